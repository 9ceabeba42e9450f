"""The scripts that train and publish the models of the paper's tables, on a plan of four steps."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mgct import AVPipeline, cli
from mgct.samplers import DEFAULT
from mgct.saved_models import FOLDER

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(monkeypatch, tmp_path):
    """`experiments/run.py` with a tiny plan, whose packed models go into a folder of their own."""
    for folder in ("experiments", "benchmarks"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    import run

    plan = {"stage1_clips": 64, "then_clips": 32, "model": {}, "train": {"log_every": 1, "num_workers": 0}, "num": 8}
    monkeypatch.setitem(run.PLAN["sizes"], "micro", plan)
    monkeypatch.setattr(run, "CHECKPOINTS", tmp_path / "checkpoints")
    return run


def test_every_model_of_the_plan_has_a_configuration(run, tmp_path):
    for size in ("micro", "small"):
        for role in run.PLAN["models"]:
            task = run.Task(size, "dance", role, tmp_path)
            config = task.config()
            assert config["train"]["steps"] >= 1
            assert ("consistency" in config) == (role not in ("stage1", "baseline"))
            assert config["data"].startswith("world:dance")
    roles = [run.Task("micro", "dance", role, tmp_path) for role in run.PLAN["models"]]
    assert len({task.config()["train"]["seed"] for task in roles}) == len(roles)
    steps = {task.role: task.config()["train"]["steps"] for task in roles}
    assert steps["mgct-no-mct"] == steps["stage1"] + steps["mgct-w0.7"]


def test_pieces_go_on_from_the_packed_model_alone(run, tmp_path, monkeypatch, capsys):
    def main(*words):
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        run.main()

    main("micro", "landscape", "next", "--runs", str(tmp_path / "a"), "--", "--train.steps", "3")
    task = run.Task("micro", "landscape", "stage1", tmp_path / "a")
    first, said = task.progress(), capsys.readouterr().out
    assert (first.steps, first.of, len(first.pieces)) == (3, 4, 1)
    assert "stage1: 3 of 4 steps" in said
    assert "baseline: 0 of 2 steps" in said  # it would begin from what is not finished
    monkeypatch.setattr(run, "LEAST_MINUTES", 100)
    main("micro", "landscape", "next", "--runs", str(tmp_path / "elsewhere"))
    assert "baseline: 0 of 2 steps" in capsys.readouterr().out  # for want of time
    second = run.Task("micro", "landscape", "stage1", tmp_path / "elsewhere").progress()
    assert (second.steps, [piece["steps"] for piece in second.pieces]) == (4, [3, 1])
    assert AVPipeline.from_pretrained(task.packed).clip.size == 16
    assert not any("_name_or_path" in path.read_text() for path in task.packed.rglob("*.json"))
    monkeypatch.setattr(run, "LEAST_MINUTES", 0)
    monkeypatch.setattr(run, "PLAN", {**run.PLAN, "models": dict(list(run.PLAN["models"].items())[:3])})
    assert run.Task("micro", "landscape", "baseline", tmp_path).parent.packed == task.packed
    main("micro", "landscape", "next", "--runs", str(tmp_path / "elsewhere"))
    said = capsys.readouterr().out
    assert "baseline: 2 of 2 steps" in said
    assert "mgct-w0.5: 1 of 1 steps" in said


def test_published_tables_get_onto_the_page(run, tmp_path, monkeypatch):
    import tables

    page, results = tmp_path / "results.md", tmp_path / "results"
    page.write_text("before\n<!-- tables -->\nold\n<!-- end of tables -->\nafter\n")
    folder = results / "micro" / "dance"
    folder.mkdir(parents=True)
    lines = [
        "# Table 1: who",
        "",
        "On what.",
        "",
        "| model | FVD | card |",
        "|---|---|---|",
        "| MGCT | 1.5 | x.md |",
        "",
    ]
    lines += ["## The paper's claims here", "", "- Held.", "", "## Models", "", "| Role | Model |", "|---|---|"]
    (folder / "table1.md").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(tables, "RESULTS", results)
    monkeypatch.setattr(tables, "PAGE", page)
    for _ in range(2):
        tables.write_page()
        text = page.read_text()
        assert text.startswith("before\n<!-- tables -->\n")
        assert text.endswith("<!-- end of tables -->\nafter\n")
        assert "### micro, dance. Table 1: who" in text
        assert "| MGCT | 1.5 |" in text
        assert "- Held." in text
        assert "x.md" not in text
        assert "old" not in text


def test_what_is_published_again_takes_the_place_of_its_own_cards_alone(run, tmp_path):
    """A table that was stopped half way does not take the place of one that is whole."""
    import tables

    study, folder = SimpleNamespace(out=tmp_path / "out"), tmp_path / "results"
    for place, table, cards in (
        (study.out, "table1", "new"),
        (study.out, "table3", "c"),
        (folder, "table1", "ab"),
        (folder, "table3", "d"),
    ):
        (place / "cards").mkdir(parents=True, exist_ok=True)
        (place / f"{table}.md").write_text("".join(f"| [card](cards/{card}.md) |\n" for card in cards))
        for card in cards:
            (place / "cards" / f"{card}.json").write_text("{}")
            (place / "cards" / f"{card}.md").write_text(card)
    (folder / "cards" / "kept.json").write_text("{}")  # of a table that was stopped
    tables.publish(study, folder, ["table3"])
    assert "(cards/a.md)" in (folder / "table1.md").read_text()
    assert "(cards/c.md)" in (folder / "table3.md").read_text()
    assert {path.stem for path in (folder / "cards").glob("*.json")} == {"a", "b", "c", "kept"}


def test_a_bundled_model_is_what_was_packed_and_is_kept_once(run, tmp_path, monkeypatch):
    import bundle

    for module in (run, bundle):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "models")
    first, then = (run.Task("micro", "dance", role, tmp_path / "runs") for role in ("stage1", "baseline"))
    run.train_piece(first, 5, [])
    weights = (first.packed / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    card = next((ROOT / "experiments").rglob("stage1--dpm-solver-20--*.json"))

    def put(name, task, start_timestep):
        folder = bundle.bundle(name, *bundle.of_task(task), card, start_timestep)
        bundle.keep_once(task, name)
        return folder

    folder = put("dancers", first, 700)
    assert folder.name == "dancers"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["start_timestep"] == 700
    assert "sde-dpm-solver++" in index["recommended"]
    assert "noise level 700" in (folder / "README.md").read_text()
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert [path.name for path in first.packed.iterdir()] == ["progress.json"]
    assert first.model == folder

    run.train_piece(then, 5, [])  # from the package's model
    put("dancers", then, None)
    assert then.model == folder
    assert (first.model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert first.model == first.packed


def test_the_model_of_a_run_is_bundled_with_what_it_began_from(run, tmp_path, monkeypatch):
    import bundle

    for module in (run, bundle):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "models")
    config = ["--config", str(ROOT / "configs" / "finetune.yaml"), "--data", "world:dance"]
    small = ["--train.steps", "2", "--train.batch_size", "2", "--train.log_every", "1"]
    assert cli.main(["train", *config, *small, "--out", str(tmp_path / "run")]) == 0
    shutil.copytree(FOLDER / "landscape-micro", tmp_path / "models" / "landscape-micro")
    card = next((ROOT / "experiments").rglob("stage1--dpm-solver-20--*.json"))

    folder = bundle.bundle("tuned", *bundle.of_run(tmp_path / "run"), card, 850)
    weights = (AVPipeline.from_pretrained(path).unet.state_dict() for path in (tmp_path / "run" / "model", folder))
    for exact, half in zip(*(part.values() for part in weights), strict=True):
        torch.testing.assert_close(exact, half.float(), atol=1e-3, rtol=1e-3)
    text = (folder / "README.md").read_text()
    for words in (
        "Began from the weights of `landscape-micro`. Of those: Data: `world:landscape`. Steps: ",
        "world:dance",
        "Steps: 2",
        "4 clips, 4 of them different",
    ):
        assert words in text
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.glob("*.*"))


def test_a_model_of_the_package_is_given_the_calibration_of_a_copy(run, tmp_path, monkeypatch):
    import bundle

    for module in (run, bundle):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "models")
    folder, copy = tmp_path / "models" / "landscape-micro", tmp_path / "copy"
    shutil.copytree(FOLDER / "landscape-micro", folder)
    few = ["--num", "2", "--steps", "[2]", "--start_timestep", "640"]
    assert cli.main(["calibrate", str(folder), "world:landscape", "--out", str(copy), *few]) == 0
    weights = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    card = tmp_path / "calibrated--ddim-2--compact.json"
    shutil.copy(next((ROOT / "experiments").rglob("stage1--dpm-solver-20--*.json")), card)
    assert bundle.calibrate("landscape-micro", copy, card) == folder
    pipe = AVPipeline.from_pretrained(folder)
    assert pipe.calibration.find(DEFAULT, 2, 640) is not None
    assert pipe.config.start_timestep == 640
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    text = (folder / "README.md").read_text()
    assert "noise level 640 unless" in text
    assert "Calibrated (`mgct calibrate`) for sde-dpm-solver++ from 640 with 2 calls" in text
    assert text.count("| FVD-compact, ddim-2, ") == 1
    assert "-from-850-" not in text
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.glob("*.*"))
    shutil.copytree(FOLDER / "dance", tmp_path / "models" / "dance")
    with pytest.raises(SystemExit, match="not a copy of dance"):
        bundle.calibrate("dance", copy, card)
