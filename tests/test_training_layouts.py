"""One process, two, and two with sharded parameters: the same training, and checkpoints that load in each other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mgct.checkpoint import read_checkpoint, read_metrics
from mgct.pipeline import AVPipeline
from tests.test_trainer import distance, write_config

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "accelerate"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LAUNCH = {"one": None, "two": CONFIGS / "cpu.yaml", "fsdp": CONFIGS / "cpu-fsdp.yaml"}
PARTS = ("model", "ema", "target", "teacher", "optimizer", "colours")
STOP, STEPS = 4, 7
CHANGED = {"consistency.direction": "TeacherDirection", "train.learning_rate": "1e-3", "train.micro_batch_size": "1"}


def train(layout: str, *arguments, check=True) -> subprocess.CompletedProcess:
    launch = ["-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launch = [*launch, "--config_file", LAUNCH[layout], "-m", "mgct.cli"] if LAUNCH[layout] else ["-m", "mgct.cli"]
    command = [sys.executable, *map(str, launch), "train", *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def arguments(shards: Path, run: Path, steps: int) -> list:
    config = write_config(run.parent / "config.yaml", steps=steps, log_every=2)
    options = [word for name, value in CHANGED.items() for word in (f"--{name}", value)]
    return ["--config", config, "--data", shards, "--out", run, *options]


@pytest.fixture(scope="module")
def undisturbed(tiny_shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train("one", *arguments(tiny_shards, run, STEPS))
    return run


@pytest.fixture(scope="module")
def stopped(tiny_shards, tmp_path_factory):
    """Each layout's run, left in stage 2."""
    runs = {}
    for layout in LAUNCH:
        runs[layout] = tmp_path_factory.mktemp(layout) / "run"
        done = train(layout, *arguments(tiny_shards, runs[layout], STOP))
        assert {"one": "(single)", "two": "× 2 (ddp)", "fsdp": "× 2 (fsdp)"}[layout] in done.stderr
    return runs


@pytest.mark.parametrize("layout", ["two", "fsdp"])
def test_a_layout_trains_as_one_process_does(stopped, layout):
    one, other = read_checkpoint(stopped["one"]), read_checkpoint(stopped[layout])
    for part in PARTS:
        assert one.tensors(part).keys() == other.tensors(part).keys()
        assert distance(one.tensors(part), other.tensors(part)) < 1e-5, part
    assert one.state["objective"]["transfer_step"] == other.state["objective"]["transfer_step"] == 3
    for ours, theirs in zip(read_metrics(stopped[layout]), read_metrics(stopped["one"]), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("one", "fsdp", marks=pytest.mark.slow),
        ("fsdp", "one"),
        pytest.param("two", "fsdp", marks=pytest.mark.slow),
        pytest.param("fsdp", "two", marks=pytest.mark.slow),
    ],
)
def test_checkpoints_of_one_layout_load_in_another(stopped, undisturbed, tiny_shards, tmp_path, before, after):
    run = tmp_path / "run"
    run.mkdir()
    subprocess.run(["cp", "-r", *map(str, stopped[before].iterdir()), str(run)], check=True)
    train(after, *arguments(tiny_shards, run, STEPS), "--resume")
    expected, found = read_checkpoint(undisturbed), read_checkpoint(run)
    assert found.state["step"] == STEPS
    for part in PARTS:
        assert distance(expected.tensors(part), found.tensors(part)) < 1e-5, part


def test_muon_s_updates_are_those_of_whole_matrices_where_they_are_sharded(tiny_shards, tmp_path):
    runs = [tmp_path / layout / "run" for layout in ("one", "fsdp")]
    for run in runs:
        run.parent.mkdir()
        train(run.parent.name, *arguments(tiny_shards, run, STOP), "--train.optimizer", "muon")
    one, other = map(read_checkpoint, runs)
    for part in ("model", "ema", "optimizer"):
        assert one.tensors(part).keys() == other.tensors(part).keys()
        assert distance(one.tensors(part), other.tensors(part)) < 1e-4, part


def test_a_sharded_run_exports_a_whole_model(stopped):
    run = stopped["fsdp"]
    averaged = read_checkpoint(run).tensors("ema")
    exported = AVPipeline.from_pretrained(run / "model").unet.state_dict()
    assert exported.keys() == averaged.keys()
    assert all(torch.equal(exported[name], averaged[name]) for name in averaged)


def test_launches_that_are_not_done_are_refused(tiny_shards, tmp_path, monkeypatch):
    settings = yaml.safe_load((CONFIGS / "cpu-fsdp.yaml").read_text())
    settings["fsdp_config"]["fsdp_version"] = 1
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setitem(LAUNCH, "old", tmp_path / "old.yaml")
    done = train("old", *arguments(tiny_shards, tmp_path / "run", STEPS), check=False)
    assert done.returncode != 0
    assert "mgct: FSDP version 1 was asked for; set fsdp_version: 2" in done.stderr


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_launch_configuration_is_read_by_accelerate(path):
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(path))
    assert read.num_processes == yaml.safe_load(path.read_text())["num_processes"]
