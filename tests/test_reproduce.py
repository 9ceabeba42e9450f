"""The paper's tables from tiny models: traceable, resumable, honest about what is missing."""

import csv
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file

from mgct import AVPipeline, ClipSpec, MultimodalUNet, samplers
from mgct.cli import main
from mgct.clip_folder import load_clips
from mgct.data.numbered import open_clips
from mgct.data.worlds import get_world
from mgct.errors import UserError
from mgct.metrics.card import MetricCard
from mgct.metrics.distances import RankDeficientWarning
from mgct.metrics.protocols import PROTOCOLS
from mgct.metrics.sources import open_source
from mgct.noise import NoiseSchedule
from mgct.plots import Estimate, calls_figure
from mgct.reproduce import report, run, study
from mgct.reproduce.paper import ROLES, TABLES, Sampling, parse_extra, table_rows
from mgct.reproduce.study import Measurer, Result, Settings, Study, _model_digest, read_speed
from mgct.sampling_options import SamplingOptions
from tests.test_pipeline import CLIP as TINY
from tests.test_pipeline import tiny_unet
from tests.test_samplers import packed, reference_model

CLIP = ClipSpec(frames=8, fps=10.0, size=16, sample_rate_hz=1280)
NUM = 24
DATA = "world:landscape"
pytestmark = pytest.mark.filterwarnings(f"ignore::{RankDeficientWarning.__module__}.{RankDeficientWarning.__name__}")


def save_model(folder: Path, seed: int, clip: ClipSpec = CLIP) -> Path:
    """An untrained network whose last layers do something, saved as `mgct train` saves it."""
    torch.manual_seed(seed)
    unet = MultimodalUNet(
        model_channels=8,
        channel_mult=(1, 1, 1),
        num_res_blocks=1,
        cross_attention_resolutions=(4,),
        cross_attention_windows=(2,),
        video_attention_resolutions=(),
        num_heads=1,
        num_head_channels=8,
        norm_num_groups=4,
    )
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    AVPipeline(unet, clip).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A models file without mgct-w0.7, beside its models."""
    folder = tmp_path_factory.mktemp("models")
    for seed, role in enumerate(("baseline", "mgct-w0.5", "map")):
        save_model(folder / role, seed)
    path = folder / "models.yaml"
    path.write_text("baseline: baseline\nmgct-w0.5: mgct-w0.5/model\n")
    return path


def reproduce(capsys, *arguments, out: Path, models: Path, **options) -> str:
    """The output of a command that must succeed."""
    given = {"num": NUM, "draws": 10, "batch_size": NUM, **options}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    status = main(["reproduce", *arguments, "--models", str(models), "--out", str(out), *words])
    output = capsys.readouterr()
    assert status == 0, output.err
    return output.out


def table(out: Path, name: str = "table1") -> list[dict[str, str]]:
    with (out / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(models, tmp_path_factory) -> Path:
    """Table 1 with the paper's own numbers of network calls, made once."""
    out = tmp_path_factory.mktemp("made")
    words = ["--models", str(models), "--data", DATA, "--out", str(out), "--num", str(NUM), "--draws", "10"]
    words += ["--batch_size", str(NUM)]
    assert main(["reproduce", "table1", *words, "--paper_data", "landscape"]) == 0
    return out


@pytest.fixture
def nothing_is_made(monkeypatch):
    for name in ("sample_to_folder", "evaluate", "measure_reference"):
        monkeypatch.setattr(study, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))


def test_table1_end_to_end(made):
    rows = table(made)
    expected = product(["baseline", "mgct-w0.5", "mgct-w0.7"], ["9", "10", "12", "15", "20"])
    assert [(row["role"], row["calls"]) for row in rows] == list(expected)
    for row in rows[:10]:
        card = MetricCard.load(made / row["card"])
        assert (card.protocol, card.real.num, card.fake.num) == ("compact", NUM, NUM)
        assert card.fake.origin == Path(row["samples"]).name
        (path,) = (made / row["samples"]).glob("clips_*.safetensors")
        clips, clip = load_clips(path)
        assert (len(clips.video), clip) == (NUM, CLIP)
        for value in card.values:
            read = [float(row[f"{value.name}{end}"]) for end in ("", "_low", "_high")]
            assert read == [value.value, value.low, value.high]
        assert 0 < float(row["seconds_per_clip"]) < 60
    assert len({row["card"] for row in rows[:10]}) == 10
    assert len({row["FVD-compact"] for row in rows[:10]}) == 10
    for row in rows[10:]:
        assert row["status"] == "missing: role mgct-w0.7 is not among the models"
        assert not row["card"]
    text = (made / "table1.md").read_text()
    for link in re.findall(r"\]\((cards/[^)]*)\)", text):
        assert (made / link).is_file()
    assert text.count("](cards/") == 10
    assert text.count("missing: role mgct-w0.7") == 5
    assert "538.759 | 22.575 | 1.794" in text
    assert "other scales" in text
    picture = imread(made / "table1.png")
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.01


def test_a_made_table_is_not_made_again(made, models, capsys, nothing_is_made):
    before = {path.name: path.read_bytes() for path in made.iterdir() if path.suffix in {".md", ".csv"}}
    words = {"calls": "[9,10,12,15,20]", "paper_data": "landscape", "data": DATA}
    reproduce(capsys, "table1", out=made, models=models, **words)
    assert {path.name: path.read_bytes() for path in made.iterdir() if path.suffix in {".md", ".csv"}} == before


def test_a_row_with_its_card_needs_no_clips(made, models, tmp_path, capsys, nothing_is_made):
    """So a table goes on from what a repository can keep, where the arithmetic is the same."""
    shutil.copytree(made / "cards", tmp_path / "cards")
    reproduce(capsys, "table1", out=tmp_path, models=models, data=DATA, paper_data="landscape")
    for name in ("table1.md", "table1.csv"):
        assert (tmp_path / name).read_text() == (made / name).read_text()
    assert not (tmp_path / "samples").exists()


class Count:
    """Calls of a function that still does what it did."""

    def __init__(self, monkeypatch, module, name):
        self.real, self.calls = getattr(module, name), []
        monkeypatch.setattr(module, name, self)

    def __call__(self, *arguments, **options):
        self.calls.append(arguments)
        return self.real(*arguments, **options)


def test_changed_settings_are_noticed(models, tmp_path, capsys, monkeypatch):
    out, own = tmp_path / "out", tmp_path / "models"
    for role, seed in (("baseline", 0), ("mgct-w0.5", 1)):
        save_model(own / role, seed)
    own_models = own / "models.yaml"
    own_models.write_text("baseline: baseline\nmgct-w0.5: mgct-w0.5\n")
    sampled, judged = Count(monkeypatch, study, "sample_to_folder"), Count(monkeypatch, study, "evaluate")

    def made(**options) -> tuple[int, int]:
        """Rows sampled and rows measured by a run."""
        before = len(sampled.calls), len(judged.calls)
        reproduce(capsys, "table1", out=out, models=own_models, **{"calls": "[3]", "data": DATA, "num": 8, **options})
        return len(sampled.calls) - before[0], len(judged.calls) - before[1]

    assert made() == (2, 2)
    assert made() == (0, 0)
    assert made(batch_size=5) == (0, 0)
    assert made(draws=11) == (0, 2)
    assert made(data="world:dance") == (0, 2)
    assert made(seed=1) == (2, 2)
    assert made(num=9) == (2, 2)
    assert made(calls="[3,4]") == (2, 2)
    assert made(add="[dpm-solver++:3,mgct-w0.5:consistency:2]") == (3, 3)
    first = table(out)
    save_model(own / "baseline", seed=7)
    assert made() == (1, 1)
    second = table(out)
    assert first[0]["FVD-compact"] != second[0]["FVD-compact"]
    assert first[0]["weights"] != second[0]["weights"]


def test_a_killed_run_goes_on_where_it_was(models, tmp_path, capsys, monkeypatch):
    out, calls = tmp_path / "out", "[3,4,5,6]"
    words = {"--models": models, "--data": DATA, "--out": out, "--num": 8, "--draws": 10, "--calls": calls}
    command = [sys.executable, "-m", "mgct.cli", "reproduce", "table1"]
    command += [str(word) for option in words.items() for word in option]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(out.glob("cards/[!.]*.json"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = len(list(out.glob("cards/[!.]*.json")))
    assert 2 <= there < 8
    sampled, judged = Count(monkeypatch, study, "sample_to_folder"), Count(monkeypatch, study, "evaluate")
    options = {"models": models, "data": DATA, "calls": calls, "num": 8, "batch_size": 8}
    reproduce(capsys, "table1", out=out, **options)
    assert len(judged.calls) == 8 - there
    assert len(sampled.calls) <= 8 - there
    reproduce(capsys, "table1", out=tmp_path / "undisturbed", **options)
    for one, other in zip(table(out)[:8], table(tmp_path / "undisturbed")[:8], strict=True):
        assert one["samples"] == other["samples"]
        assert float(one["FVD-compact"]) == pytest.approx(float(other["FVD-compact"]), rel=1e-3)


def test_parts_that_a_kill_leaves_are_not_taken_for_clips(models, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    options = {"out": out, "models": models, "calls": "[3]", "data": DATA, "num": 8}
    reproduce(capsys, "table1", **options)
    row = table(out)[0]
    samples, card = out / row["samples"], out / row["card"]
    (clips,) = samples.glob("clips_*.safetensors")
    clips.rename(samples / f".123.{clips.name}")
    (samples / f".123.{clips.name}").write_bytes(b"cut sho")
    card.rename(card.with_name(f".123.{card.name}"))
    with (samples / "speed-0.jsonl").open("a") as file:
        file.write('{"clips": 8, "sec')
    sampled, judged = Count(monkeypatch, study, "sample_to_folder"), Count(monkeypatch, study, "evaluate")
    reproduce(capsys, "table1", **options)
    assert (len(sampled.calls), len(judged.calls)) == (1, 1)
    assert table(out)[0]["FVD-compact"] == row["FVD-compact"]


def test_further_roles_and_samplers_get_rows(models, tmp_path, capsys):
    path = models.parent / "more.yaml"
    path.write_text("baseline: baseline\nmap: map\nstage1: not-trained-yet\n")
    words = {
        "data": DATA,
        "calls": "[3]",
        "num": 12,
        "add": "[map:dpm-solver++:2,map:dpm-solver++:2@700]",
        "split": "train",
    }
    reproduce(capsys, "table4", out=tmp_path, models=path, **words)
    rows = [(row["role"], row["sampler"], row["calls"], row["status"][:7]) for row in table(tmp_path, "table4")]
    assert rows == [
        ("stage1", "dpm-solver", "3", "missing"),
        ("mgct-w0.7", "dpm-solver", "3", "missing"),
        ("mgct-w0.5", "dpm-solver", "3", "missing"),
        ("mgct-no-mct", "dpm-solver", "3", "missing"),
        ("map", "dpm-solver", "3", "made"),
        ("map", "dpm-solver++", "2", "made"),
        ("map", "dpm-solver++ from 700", "2", "made"),
    ]
    distances = [row["FVD-compact"] for row in table(tmp_path, "table4")[-2:]]
    assert distances[0] != distances[1]
    assert "no saved model at" in table(tmp_path, "table4")[0]["status"]


def test_ddpm_is_the_sampler_of_table2(models, tmp_path, capsys):
    reproduce(capsys, "table2", out=tmp_path, models=models, data=DATA, calls="[4]", num=8)
    assert [(row["sampler"], row["calls"]) for row in table(tmp_path, "table2")] == [("ddpm", "4")] * 3


def test_processes_share_the_sampling(models, tmp_path, capsys, nothing_is_made, monkeypatch):
    monkeypatch.undo()
    roles = {role: models.parent / role / "model" for role in ("baseline", "mgct-w0.5")}
    settings = Settings(num=70, draws=5, batch_size=35, progress=False)
    for rank in (0, 1):
        mine = Study(roles, tmp_path, settings)
        run.sample_table(mine, "table3", DATA, calls=[2], rank=rank, world_size=2)
    (folder,) = (tmp_path / "samples").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        "clips_000000-000063.safetensors",
        "clips_000064-000069.safetensors",
        "sampling.json",
        "speed-0.jsonl",
        "speed-1.jsonl",
    ]
    monkeypatch.setattr(study, "sample_to_folder", lambda *_, **__: pytest.fail("sampled again"))
    results = run.reproduce_table(Study(roles, tmp_path, settings), "table3", DATA, calls=[2])
    assert [result.missing[:7] for result in results] == ["missing", ""]


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "no such models file"),
        ("- a\n- b\n", {}, "ROLE: FOLDER"),
        ("bas\udce9line: baseline\n", {}, "is no YAML"),
        ("baseline: baseline\n", {"device": "foo"}, "--device"),
        ("baseline: nowhere\n", {}, "no saved model at"),
        ("base line: baseline\n", {}, "letters, digits"),
        ("baseline: baseline\n", {"data": ""}, "needs --data"),
        ("baseline: baseline\n", {"data": "world:ocean"}, "ocean"),
        (
            "baseline: baseline\n",
            {"data": "world:landscape:5"},
            "only 5 real ones in world:landscape:5 (its test split)",
        ),
        ("baseline: baseline\n", {"protocol": "open"}, "16 frames at 10 fps"),
        ("baseline: baseline\n", {"protocol": "best"}, "unknown protocol"),
        ("baseline: baseline\n", {"add": "[dpm-solver++]"}, "SAMPLER:CALLS"),
        ("baseline: baseline\n", {"add": "[mgct-w0.9:ddim:5]"}, "no row of 'mgct-w0.9'"),
        ("baseline: baseline\n", {"add": "[consistency:9]"}, "takes 1 to 8 steps"),
        ("baseline: baseline\n", {"calls": "[0]"}, "takes 1 to 1000 steps"),
        ("baseline: baseline\nother: larger\n", {}, "different clips"),
    ],
)
def test_bad_input_is_one_line(models, tmp_path, capsys, content, options, message):
    if "larger" in (content or "") and not (models.parent / "larger").exists():
        save_model(models.parent / "larger", 0, ClipSpec(8, 10.0, 24, 1280))
    path = models.parent / f"{tmp_path.name}.yaml"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    given = {"data": DATA, "num": NUM, **options}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    status = main(["reproduce", "table1", "--models", str(path), "--out", str(tmp_path / "out"), *words])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2
    assert message in error
    assert not list(tmp_path.rglob("clips_*"))


def test_a_file_is_no_folder_for_results(models, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    words = ["--models", str(models), "--out", str(tmp_path / "out"), "--num", str(NUM), "--data", DATA]
    for what in ("table1", "figure2"):
        assert main(["reproduce", what, *words]) == 2
        assert "cannot be made (Not a directory)" in capsys.readouterr().err.strip().splitlines()[-1]
    assert (tmp_path / "out").read_text() == "mine"


# ------------------------------------------------------------------------------------------------- the paper


def test_the_papers_tables_agree_with_each_other():
    fast, weights, start = (TABLES[name].numbers for name in ("table1", "table3", "table4"))
    for role, data in (("mgct-w0.7", "aist"), ("mgct-w0.5", "landscape")):
        assert fast[role, 20][data] == weights[role, 20][data]
        assert start[role, 20][data] == pytest.approx(weights[role, 20][data], abs=0.002)
    for name, shown in TABLES.items():
        assert {role for role, _ in shown.numbers} == set(shown.roles) <= set(ROLES)
        rows = table_rows(name, [])
        assert [(row.role, row.sampling.calls) for row in rows] == list(product(shown.roles, shown.calls))
        assert all(row.paper == shown.numbers[row.role, row.sampling.calls] for row in rows)
    assert len(table_rows("table1", ["stage1"])) == len(table_rows("table1", []))


def test_the_papers_claims_follow_from_its_table():
    results = [Result(row, "not made") for row in table_rows("table1", [])]
    fvd, _, fad = report.claim_lines(results, "aist")
    assert "MGCT, w = 0.7 is 39.3% lower than MM-Diffusion at 20 calls, and as good already with 12 calls" in fvd
    assert "2.9% lower" in fad
    fvd, kvd, _ = report.claim_lines(results, "landscape")
    assert "15.1% lower than MM-Diffusion at 20 calls, and with fewer calls not as good" in fvd
    assert "24.6% lower" in kvd


def test_extra_rows_are_read():
    assert parse_extra("ddim:50") == (None, Sampling("ddim", 50))
    assert parse_extra("mgct-w0.5:consistency:4") == ("mgct-w0.5", Sampling("consistency", 4))
    assert parse_extra("stage1:ddim:50@700") == ("stage1", Sampling("ddim", 50, start_timestep=700))
    for text in ("ddim", "a:b:c:3", "ddim:many", ":3", "a:", "ddim:3@", "ddim:3@much"):
        with pytest.raises(UserError, match="SAMPLER:CALLS"):
            parse_extra(text)


@pytest.mark.parametrize("name", ["landscape", "dance"])
def test_a_worlds_test_split_is_never_trained_on(name):
    """Clips are drawn from (seed, index) mixed into 64 bits: no key of a test split is one of a training run's."""
    world, many = get_world(name), range(20_000)
    fixed = open_clips(f"world:{name}:2048", CLIP, "test", 0)
    tested = set(world._keys(many, fixed._seed).tolist())
    assert len(tested) == len(many)
    for seed in range(20):
        trained = open_clips(f"world:{name}", CLIP, "train", seed)
        assert trained._seed == seed != fixed._seed
        assert not tested & set(world._keys(many, seed).tolist())


def test_speed_is_that_of_the_fastest_whole_batch_after_the_first(tmp_path):
    assert read_speed(tmp_path) is None
    setting = {"batch_size": 8, "where": "cpu", "in_turns": False}
    lines = [(8, 0.8, True), (8, 40.0, False), (8, 16.0, False), (8, 80.0, False), (3, 0.3, False)]
    text = [json.dumps({"clips": n, "seconds": s, "first": first, **setting}) for n, s, first in lines]
    other = json.dumps({"clips": 16, "seconds": 1.0, "first": False, **setting, "batch_size": 16})
    damaged = ["[]", "{}", "3", '{"clips": 0}', json.dumps({**setting, "clips": "8", "seconds": 1.0}), "\x00"]
    (tmp_path / "speed-0.jsonl").write_text("\n".join([other, *text, *damaged]) + '\n{"clips": 8, "se')
    assert read_speed(tmp_path) == (2.0, 8, "cpu", False)
    (tmp_path / "speed-0.jsonl").write_text(text[0])
    assert read_speed(tmp_path) == (0.1, 8, "cpu", False)
    turn = {"clips": 4, "seconds": 12.0, "first": False, **setting, "batch_size": 4, "in_turns": True}
    (tmp_path / "speed-turns.jsonl").write_text(json.dumps(turn))
    (tmp_path / "speed-z.jsonl").write_text(text[1])
    assert read_speed(tmp_path) == (3.0, 4, "cpu", True)


def test_rows_are_timed_in_turns(models, tmp_path, capsys, monkeypatch):
    options = {"out": tmp_path, "models": models, "data": DATA, "calls": "[2,8]", "num": 4}
    reproduce(capsys, "table1", **options)
    for row in table(tmp_path)[:4]:
        path = tmp_path / row["samples"] / "speed-0.jsonl"
        line = json.loads(path.read_text())
        path.write_text(json.dumps(line | {"seconds": 4.0 if row["calls"] == "2" else 1000.0}))
    reproduce(capsys, "table1", **options)
    text = (tmp_path / "table1.md").read_text()
    assert "the machine was busy" in text
    assert "of the time" not in text
    cards = {row["card"] for row in table(tmp_path)}
    monkeypatch.setattr(study, "sample_to_folder", lambda *_, **__: pytest.fail("sampled again"))
    reproduce(capsys, "table1", **options, time="true")
    rows = table(tmp_path)
    seconds = [float(row["seconds_per_clip"]) for row in rows[:4]]
    assert seconds[0] < seconds[1] < 100
    assert seconds[2] < seconds[3] < 100
    assert {row["card"] for row in rows} == cards
    assert "timed in turns" in (tmp_path / "table1.md").read_text()


# ------------------------------------------------------------------------------------------------- figures


def test_figures_compare_the_same_seeds(models, tmp_path, capsys):
    words = {"num": 2, "calls": "[3]"}
    files = reproduce(capsys, "figure3", out=tmp_path, models=models, **words).split()
    assert {Path(file).name for file in files} == {"figure3.md", "figure3.png"}
    assert "missing: role mgct-w0.7" in (tmp_path / "figure3.md").read_text()
    assert imread(tmp_path / "figure3.png")[..., :3].std() > 0.05
    made = [json.loads((folder / "sampling.json").read_text()) for folder in (tmp_path / "samples").iterdir()]
    assert len(made) == 2
    assert [record["seed"] for record in made] == [0, 0]
    assert made[0]["model"] != made[1]["model"]
    files = reproduce(capsys, "figure2", out=tmp_path, models=models, **words).split()
    assert {Path(file).name for file in files} == {"figure2.md", "figure2-mgct-w0.5.png"}
    assert len(list((tmp_path / "samples").iterdir())) == 2
    assert main(["reproduce", "figure2", "--models", str(models), "--out", str(tmp_path), "--num", "0"]) == 2
    assert "num must be at least 1" in capsys.readouterr().err
    only = models.parent / "only.yaml"
    only.write_text("baseline: baseline\n")
    assert main(["reproduce", "figure2", "--models", str(only), "--out", str(tmp_path)]) == 2
    assert "begins with mgct" in capsys.readouterr().err


def test_calls_figure_shows_values_with_their_intervals():
    lines = {
        "a": [Estimate(20, 1.0, 0.8, 1.3), Estimate(9, 50.0, 40.0, 70.0)],
        "b": [Estimate(9, 5.0, 4.0, 6.0), Estimate(20, 2.0, 1.9, 2.1)],
        "empty": [],
    }
    alone = {"a": [Estimate(20, -1.0, -2.0, 0.5)], "b": [Estimate(20, 3.0, 2.0, 4.0)]}
    figure = calls_figure({"FVD": lines, "KVD": alone})
    first, second = figure.axes
    assert (first.get_yscale(), second.get_yscale()) == ("log", "linear")
    a, b = first.containers
    assert a.lines[0].get_ydata().tolist() == [50.0, 1.0]
    assert b.lines[0].get_ydata().tolist() == [5.0, 2.0]
    segments = [segment[:, 1].tolist() for segment in a.lines[2][0].get_segments()]
    assert segments == [pytest.approx([40.0, 70.0]), pytest.approx([0.8, 1.3])]
    assert [label.get_text() for label in second.get_xticklabels()] == ["20 calls", "20 calls"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    with pytest.raises(UserError, match="nothing to draw"):
        calls_figure({"FVD": {"a": []}})


# ------------------------------------------------------------------------------------------------- the published solver


@pytest.fixture(scope="module")
def published():
    path = Path(__file__).parent.parent / "benchmarks" / "published_solver.py"
    spec = importlib.util.spec_from_file_location("published_solver", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", [*(f"single3_logsnr_{n}" for n in (9, 10, 12, 15, 20)), "gauss_single3_logsnr_10"])
def test_the_published_solver_is_the_reference_s_with_its_error(published, fixtures, case):
    right, wrong = load_file(fixtures / "dpm_solver.safetensors"), load_file(fixtures / "published_solver.safetensors")
    length, calls = right["x_T.video"].numel(), int(case.split("_")[-1])
    solver, start = published.PublishedSolver(length), packed(right, "x_T").double()
    out = samplers.diffusers_scheduler(reference_model(case, length), start, solver, calls, NoiseSchedule(), [])
    torch.testing.assert_close(out[:, :length], packed(right, case)[:, :length], atol=1e-9, rtol=0)
    torch.testing.assert_close(out[:, length:], wrong[f"{case}.audio"].flatten(1), atol=1e-9, rtol=0)
    differs = (out - packed(right, case)).abs().max().item() > 1e-3
    assert differs == (calls != 20)


def test_a_solver_object_makes_rows_of_its_own(published, models, tmp_path, monkeypatch):
    roles = {"baseline": models.parent / "baseline" / "model"}
    mine = Study(roles, tmp_path, Settings(num=8, draws=5, progress=False))
    length = math.prod(CLIP.video_shape)
    extra = [(None, Sampling(published.PublishedSolver(length), 4, "published solver", clip_x0=False))]
    results = run.reproduce_table(mine, "table1", DATA, calls=[4], extra=extra)
    usual, other = [result for result in results if result.card]
    assert [result.row.sampling.title for result in (usual, other)] == ["dpm-solver", "published solver"]
    one, two = (load_clips(next(result.samples.glob("clips_*")))[0] for result in (usual, other))
    assert (one.audio - two.audio).abs().max() > 1e-2
    monkeypatch.setattr(study, "sample_to_folder", lambda *_, **__: pytest.fail("sampled again"))
    assert run.reproduce_table(mine, "table1", DATA, calls=[4], extra=extra)[1].card == other.card


@pytest.fixture(scope="module")
def roles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    AVPipeline(tiny_unet(), TINY, start_timestep=600).save_pretrained(folder)
    return {"baseline": folder}


def test_clips_are_kept_apart_by_how_they_are_clipped(roles, tmp_path):
    study = Study(roles, tmp_path, Settings())
    assert (
        len({study.samples_key("baseline", Sampling("ddim", 5, clip_x0=clip), 8) for clip in (None, True, False)}) == 3
    )


def test_a_row_starts_where_it_says_whatever_the_model_s_own_start(roles, tmp_path):
    pipe = Study(roles, tmp_path, Settings())._pipe("baseline")
    assert pipe.start_timestep(Sampling("ddim", 5).options(0, 1, False)) == 999
    assert pipe.start_timestep(Sampling("ddim", 5, start_timestep=700).options(0, 1, False)) == 700


def test_a_model_of_another_noise_schedule_is_another_model():
    unet = tiny_unet()
    assert _model_digest(AVPipeline(unet, TINY)) != _model_digest(AVPipeline(unet, TINY, beta_end=0.03))


def test_a_card_is_of_its_split_and_protocol(roles, tmp_path, monkeypatch):
    def measurer(**settings):
        study = Study(roles, tmp_path, Settings(num=4, **settings))
        return Measurer(study, "world:landscape")

    one, other = measurer(), measurer(split="train")
    for made, split in ((one, "test"), (other, "train")):
        expected = open_source("world:landscape:4", TINY, split).read([0])
        assert torch.equal(made.real.read([0]).video, expected.video)
    scaled = replace(PROTOCOLS["compact"], metrics=tuple(replace(m, scale=2.0) for m in PROTOCOLS["compact"].metrics))
    monkeypatch.setitem(PROTOCOLS, "compact", scaled)
    assert len({one.key("x"), other.key("x"), measurer().key("x")}) == 3


def test_the_way_of_sampling_reaches_the_pipeline():
    options = Sampling("ddim", 5, clip_x0=False, start_timestep=700).options(3, 4, False)
    assert options == SamplingOptions(
        steps=5, sampler="ddim", seed=3, batch_size=4, clip_x0=False, progress=False, start_timestep=700
    )
