"""The training loop: exact resume, the transfer, stopping, divergence, several processes."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mgct import AVPipeline, ClipSpec, cli
from mgct.checkpoint import (
    checkpoint_to_resume,
    list_checkpoints,
    open_run_folder,
    read_checkpoint,
    read_metrics,
    run_folder,
    write_checkpoint,
)
from mgct.data.batches import ClipBatch
from mgct.errors import UserError
from mgct.layout import make_accelerator
from mgct.losses import FlowMap, MinSNR, NoiseWeights, PseudoHuber
from mgct.noise import NoiseSchedule
from mgct.running_means import RunningMeans
from mgct.stages import MGCT, Consistency, LearnedUncertainty, TargetDecay, TeacherDirection, Transfer
from mgct.train_settings import TrainSettings
from mgct.trainer import Trainer
from mgct.types import AVSample
from mgct.unet import PredictionType
from mgct.upsampler_trainer import UpsamplerTraining
from tests.test_unet import TINY, randomised

TRANSFER_STEP = 4
STEPS = 8


def batches(start):
    """Clips that are a function of their position."""
    step = start
    while True:
        positions = torch.arange(4) + 4 * step
        generators = [torch.Generator().manual_seed(int(p)) for p in positions]
        video = [torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=g) for g in generators]
        audio = [torch.randint(-9000, 9000, (1, 64), dtype=torch.int16, generator=g) for g in generators]
        clips = AVSample(video=torch.stack(video), audio=torch.stack(audio))
        yield ClipBatch(clips, [f"clip{p}" for p in positions.tolist()], positions)
        step += 1


def trainer(run: Path, loader=batches, dropout=0.1, **changes) -> Trainer:
    run.mkdir(exist_ok=True)
    settings = {"steps": STEPS, "batch_size": 4, "log_every": 3, "checkpoint_every": 100, "learning_rate": 1e-3}
    settings = TrainSettings(**{**settings, "precision": "fp32", **changes})
    accelerator = make_accelerator(settings.precision)
    schedule = NoiseSchedule(device=accelerator.device)
    objective = MGCT(schedule, Transfer(max_steps=TRANSFER_STEP), Consistency(direction=TeacherDirection()))
    torch.manual_seed(0)
    unet = randomised(dropout=dropout)
    return Trainer(unet, objective, loader, settings, run, {}, lambda *_: None, accelerator)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    """Bit for bit; on a GPU, whose kernels add in an order that varies, to rounding."""
    if torch.cuda.is_available():
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)
    else:
        assert torch.equal(ours, theirs), name


PARTS = ("model", "ema", "target", "teacher", "optimizer", "colours")


def final(run: Path) -> dict:
    checkpoint = read_checkpoint(run)
    assert checkpoint.state["step"] == STEPS
    return {name: checkpoint.tensors(name) for name in PARTS}


def distance(one: dict, other: dict) -> float:
    """Relative distance of two sets of weights as one vector: Adam makes single tiny gradients' rounding visible."""
    apart = sum((one[key].double() - other[key].double()).square().sum() for key in one)
    return (apart / sum(value.double().square().sum() for value in one.values())).sqrt().item()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed")
    trainer(run).fit()
    return run


@pytest.mark.parametrize("stop_after", [2, TRANSFER_STEP, 7])
def test_a_stopped_and_resumed_run_ends_as_the_undisturbed_one(undisturbed, tmp_path, stop_after):
    first = trainer(tmp_path)

    def loader(start):
        for batch in batches(start):
            yield batch
            first.stopping.requested = first.step + 1 >= stop_after

    first.loader = loader
    first.fit()
    assert read_checkpoint(tmp_path).state["step"] == stop_after
    second = trainer(tmp_path)
    second.load(read_checkpoint(tmp_path))
    second.fit()
    for name, tensors in final(undisturbed).items():
        for key, value in final(tmp_path)[name].items():
            assert_same(value, tensors[key], f"{name}.{key}")
    ours, theirs = read_metrics(tmp_path), read_metrics(undisturbed)
    for mine, other in zip(ours, theirs, strict=True):
        for row in (mine, other):
            row.pop("clips_per_s")
        assert mine == (pytest.approx(other, rel=1e-3) if torch.cuda.is_available() else other)


def test_the_transfer_happens_where_it_should(undisturbed):
    state = read_checkpoint(undisturbed).state["objective"]
    assert (state["stage"], state["transfer_step"], state["updates"]) == (2, TRANSFER_STEP, STEPS - TRANSFER_STEP)
    rows = read_metrics(undisturbed)
    assert [row["step"] for row in rows] == [3, 6]
    assert "loss_cm" not in rows[0]
    assert rows[1]["loss_cm"] > 0


def test_micro_batches_change_nothing_but_memory(undisturbed, tmp_path):
    def without_dropout(run, **changes):
        one = trainer(run, steps=3, **changes)
        for module in one.unet.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        one.fit()
        return one.unet.state_dict()

    whole = without_dropout(tmp_path / "whole")
    parts = without_dropout(tmp_path / "parts", micro_batch_size=1)
    assert distance(whole, parts) < 1e-5


@pytest.mark.parametrize("setting", [{"gradient_checkpointing": True}, {"recompute": True}])
def test_recomputation_changes_nothing_but_memory(undisturbed, tmp_path, setting):
    trainer(tmp_path, **setting).fit()
    for part in ("model", "target"):
        assert distance(final(tmp_path)[part], final(undisturbed)[part]) < (1e-4 if torch.cuda.is_available() else 1e-6)


def test_recomputing_what_is_compiled_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"use train\.gradient_checkpointing"):
        trainer(tmp_path, recompute=True, compile=True)


@pytest.mark.slow
def test_a_compiled_run_has_the_same_losses_to_rounding(tmp_path):
    runs = {compiled: tmp_path / str(compiled) for compiled in (False, True)}
    for compiled, run in runs.items():
        one = trainer(run, compile=compiled, log_every=1)
        for module in one.unet.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        one.fit()
    plain, compiled = ([row["loss"] for row in read_metrics(run)] for run in runs.values())
    assert compiled == pytest.approx(plain, rel=1e-3)


@pytest.mark.usefixtures("other_precision")
def test_bf16_runs_the_body_in_bfloat16_and_nothing_else(tmp_path):
    one = trainer(tmp_path, precision="bf16")
    seen = {}

    def see(name):
        def hook(_module, _inputs, out):
            seen[name] = out.dtype

        return hook

    one.unet.time_embed.register_forward_hook(see("time embedding"))
    one.unet.encoder[0].res.video.project.register_forward_hook(see("body"))
    one.unet.encoder[0].res.video.norm_out.register_forward_hook(see("norm"))
    plain = one.objective.loss

    def loss(*arguments):
        result = plain(*arguments)
        seen["loss"] = result.loss.dtype
        return result

    one.objective.loss = loss
    one.fit()
    body = {seen.pop("body"), seen.pop("norm")}
    assert body == {torch.bfloat16}
    assert set(seen.values()) == {torch.float32}
    kept = [*one.unet.parameters(), *one.ema.parameters(), *one.objective.target.parameters()]
    kept += [moment for state in one.optimizer.state.values() for moment in state.values()]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert all(row["loss"] < 1e3 for row in read_metrics(tmp_path))


def test_the_largest_micro_batch_is_found_by_running_out_of_memory(tmp_path):
    one = trainer(tmp_path)
    step = one._train_step

    def limited(batch):
        if one.settings.micro_batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(batch)

    one._train_step = limited
    assert one.largest_micro_batch() == 2
    assert one.objective.stage == 2

    def nothing(batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    one._train_step = nothing
    with pytest.raises(UserError, match="not even one clip fits"):
        one.largest_micro_batch()


@pytest.mark.parametrize("weights", ["live", "ema"])
@pytest.mark.parametrize("keep_optimizer", [True, False])
def test_what_stage_2_starts_from(tmp_path, weights, keep_optimizer):
    one = trainer(tmp_path)
    one.objective.transfer = Transfer(max_steps=TRANSFER_STEP, weights=weights, keep_optimizer=keep_optimizer)
    start = one.objective.start_stage_2
    seen = {}

    def watch(unet, step):
        live, average = (next(iter(network.state_dict().values())).clone() for network in (unet, one.ema))
        seen.update(same=torch.equal(live, average), moments=len(one.optimizer.state))
        start(unet, step)

    one.objective.start_stage_2 = watch
    one.fit()
    assert seen["same"] == (weights == "ema")
    assert (seen["moments"] > 0) == keep_optimizer


def test_what_is_learned_of_the_balance_is_trained_saved_and_resumed(tmp_path):
    def balanced(run):
        one = trainer(run)
        schedule = NoiseSchedule(device=one.accelerator.device)
        objective = MGCT(schedule, Transfer(max_steps=TRANSFER_STEP), Consistency(), LearnedUncertainty())
        return Trainer(one.unet, objective, batches, one.settings, run, {}, lambda *_: None, one.accelerator)

    whole = balanced(tmp_path / "whole")
    whole.fit()
    first = balanced(tmp_path / "parts")
    first.loader = lambda start: (setattr(first.stopping, "requested", first.step >= 4) or b for b in batches(start))
    first.fit()
    second = balanced(tmp_path / "parts")
    second.load(read_checkpoint(tmp_path / "parts"))
    assert 0 < second.step < STEPS
    second.fit()
    ours, theirs = (read_checkpoint(tmp_path / run).tensors("learned") for run in ("parts", "whole"))
    assert len(ours) == 4
    assert all(value != 0 for value in ours.values())
    for name, value in theirs.items():
        assert_same(ours[name], value, name)


def test_training_lowers_the_loss(tmp_path):
    def same(_):
        batch = next(batches(0))
        while True:
            yield batch

    one = trainer(tmp_path, same, steps=60, learning_rate=3e-3, log_every=10)
    one.objective.transfer = Transfer()
    torch.nn.init.zeros_(one.unet.video_head.conv.weight)
    torch.nn.init.zeros_(one.unet.audio_head.conv.weight)
    one.fit()
    losses = [row["loss"] for row in read_metrics(tmp_path)]
    assert losses[-1] < 0.9 * losses[0]


def test_the_learning_rate_rises_stays_and_falls(tmp_path):
    one = trainer(tmp_path, steps=6, warmup_steps=2, cooldown_steps=3, log_every=1)
    one.fit()
    rates = [row["learning_rate"] for row in read_metrics(tmp_path)]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    more = dataclasses.replace(one.settings, steps=12)  # resumed with more steps
    assert more.learning_rate_at(6) == more.learning_rate
    assert TrainSettings(steps=6).learning_rate_at(5) == TrainSettings().learning_rate


def test_a_loss_that_is_not_finite_stops_and_keeps_the_weights(tmp_path):
    one = trainer(tmp_path)

    def loader(start):
        for batch in batches(start):
            if one.step == 2:
                one.good = {key: value.clone() for key, value in one.unet.state_dict().items()}
                one.objective.schedule.log_alpha.fill_(float("nan"))
            yield batch

    one.loader = loader
    with pytest.raises(UserError, match=r"step 2: the loss or its gradient is not finite .*clip8.*learning_rate"):
        one.fit()
    saved = read_checkpoint(tmp_path)
    assert saved.state["step"] == 2
    assert all(torch.equal(value, one.good[key].cpu()) for key, value in saved.tensors("model").items())


def test_only_the_last_checkpoints_stay_and_a_broken_save_leaves_them_whole(tmp_path, monkeypatch):
    part = {"model": {"a": torch.ones(2)}}
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, part, {}, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mgct.checkpoint.save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_checkpoint(tmp_path, 4, part, {}, keep=2)
    assert read_checkpoint(tmp_path).state["step"] == 3
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")]


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = write_checkpoint(tmp_path, 1, {"model": {"a": torch.ones(2)}}, {}, keep=1)
    (path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read .*take .*step-00000001 away"):
        read_checkpoint(tmp_path).tensors("model")
    with pytest.raises(UserError, match="no checkpoint there"):
        read_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (TrainSettings, {"steps": 0}, "train.steps must be positive"),
        (TrainSettings, {"max_grad_norm": 0}, "train.max_grad_norm must be positive"),
        (TrainSettings, {"warmup_steps": -5}, "train.warmup_steps may not be negative"),
        (TrainSettings, {"cooldown_steps": -1}, "train.cooldown_steps may not be negative"),
        (TrainSettings, {"steps": 5, "cooldown_steps": 6}, "train.cooldown_steps 6 is more than train.steps 5"),
        (TrainSettings, {"ema_decay": 1.0}, "ema_decay"),
        (TrainSettings, {"learning_rate": float("inf")}, "train.learning_rate must be finite"),
        (Transfer, {"delta": float("nan")}, "transfer.delta must be positive"),
        (UpsamplerTraining, {"max_grad_norm": -1}, "train.max_grad_norm must be positive"),
        (TargetDecay, {"value": 1.5}, r"must lie in \[0, 1\)"),
        (PseudoHuber, {"c": 0.0}, "c must be positive"),
        (FlowMap, {"clean": -0.1}, r"clean must lie in \[0, 1\]"),
    ],
)
def test_impossible_settings_are_refused(kind, settings, message):
    with pytest.raises(UserError, match=message):
        kind(**settings)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_logged_losses_are_means_over_the_clips_that_have_them(tmp_path, share):
    one = trainer(tmp_path)
    one.objective.consistency = dataclasses.replace(one.objective.consistency, share=share)
    one.objective.start_stage_2(one.unet, 0)
    result = one._loss(next(batches(0)), slice(None), [0] * one.unet.num_shifted_blocks)
    assert len(result.logs["loss_cm"]) == 4 * share
    for name, (total, count) in one._log_values(result).items():
        if name in result.logs:
            assert float(total / count) == pytest.approx(float(result.logs[name].detach().mean()), rel=1e-6)


def test_a_run_goes_on_with_the_networks_it_had_or_not_at_all(undisturbed, tmp_path):
    path = read_checkpoint(undisturbed).path
    copies = [shutil.copytree(path, tmp_path / name / "checkpoints" / path.name) for name in ("untaught", "balanced")]
    (copies[0] / "teacher.safetensors").unlink()
    save_file({"cm_audio": torch.zeros(())}, copies[1] / "learned.safetensors")
    for copy, message in zip(copies, ("the checkpoint has no teacher network", "balance learned other"), strict=True):
        with pytest.raises(UserError, match=message):
            trainer(tmp_path / "run").load(read_checkpoint(copy.parents[1]))


@pytest.mark.parametrize("state", ["[]", "{}", '{"step": "4"}'])
def test_a_damaged_state_is_named(tmp_path, state):
    path = write_checkpoint(tmp_path, 1, {"model": {"a": torch.ones(2)}}, {}, keep=1)
    (path / "state.json").write_text(state)
    with pytest.raises(UserError, match=r"state\.json: cannot be read \(it does not say the step\)"):
        read_checkpoint(tmp_path)


SAME = {"model": {"width": 4}, "clip": {"frames": 8}}


@pytest.mark.parametrize(
    ("state", "asked", "message"),
    [
        ({}, {"config": {**SAME, "kind": "upsampler"}}, "is a run of `mgct train`; resume it with that"),
        ({"config": {**SAME, "kind": "upsampler"}}, {}, "is a run of `mgct train-upsampler`"),
        ({}, {"config": {**SAME, "model": {"width": 5}}}, r"other settings \(model\.width\)"),
        ({}, {"config": {**SAME, "clip": {}}}, r"other settings \(clip\.frames\)"),
        ({}, {"seed": 1}, "train.seed 0; resume with the same"),
        ({}, {"steps": 2}, "beyond train.steps 2: .*--train.steps 5"),
        ({"config": {"model": SAME["model"]}}, {}, "step-00000003 is damaged"),
        ({"config": []}, {}, "step-00000003 is damaged"),
        ({"seed": None}, {}, "train.seed None"),
        ({}, {"resume": False}, "--resume goes on with it"),
    ],
)
def test_only_the_same_training_is_resumed(tmp_path, state, asked, message):
    write_checkpoint(tmp_path, 3, {}, {"seed": 0, "config": SAME, **state}, keep=1)
    with pytest.raises(UserError, match=message):
        checkpoint_to_resume(tmp_path, **{"resume": True, "config": SAME, "seed": 0, "steps": 3, **asked})


def test_one_window_for_all_is_the_same_setting_as_one_for_each(tmp_path):
    one, each, other = (
        {**SAME, "model": {"cross_attention_resolutions": [4, 8], "cross_attention_windows": windows}}
        for windows in (1, [1, 1], [1, 2])
    )
    write_checkpoint(tmp_path, 3, {}, {"seed": 0, "config": each}, keep=1)
    assert checkpoint_to_resume(tmp_path, True, one, 0, 3).state["step"] == 3
    write_checkpoint(tmp_path, 4, {}, {"seed": 0, "config": one}, keep=1)
    assert checkpoint_to_resume(tmp_path, True, each, 0, 4).state["step"] == 4
    with pytest.raises(UserError, match=r"other settings \(model\.cross_attention_windows\)"):
        checkpoint_to_resume(tmp_path, True, other, 0, 4)


def test_the_newest_checkpoint_is_resumed_and_without_one_a_run_begins(tmp_path):
    assert checkpoint_to_resume(tmp_path, False, SAME, 0, 9) is None
    for step in (3, 4):
        write_checkpoint(tmp_path, step, {}, {"seed": 0, "config": {**SAME, "data": "elsewhere"}}, keep=2)
    assert checkpoint_to_resume(tmp_path, True, SAME, 0, 4).state["step"] == 4


@pytest.mark.parametrize(
    ("later", "before", "now"), [("any", False, True), ("prediction_type", *get_args(PredictionType))]
)
def test_a_run_from_before_a_setting_goes_on_as_it_was(tmp_path, later, before, now):
    write_checkpoint(tmp_path, 4, {}, {"seed": 0, "config": SAME}, keep=2)
    as_it_was, changed = ({**SAME, "model": {**SAME["model"], later: value}} for value in (before, now))
    assert checkpoint_to_resume(tmp_path, True, as_it_was, 0, 4).state["step"] == 4
    with pytest.raises(UserError, match=rf"other settings \(model\.{later}\)"):
        checkpoint_to_resume(tmp_path, True, changed, 0, 4)


def test_a_damaged_row_of_the_log_is_named_and_an_unfinished_one_left_out(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    for damaged in ('{"step": 1}\n{"st\n{"step": 3}\n', "[1]\n", '{"loss": 1}\n'):
        log.write_text(damaged)
        with pytest.raises(UserError, match=r"metrics\.jsonl: line \d is damaged"):
            read_metrics(tmp_path)


def write_config(path: Path, **train) -> Path:
    config = {
        "clip": {"frames": 4, "fps": 10.0, "size": 8, "sample_rate_hz": 160},
        "model": {key: list(value) if isinstance(value, tuple) else value for key, value in TINY.items()},
        "train": {"steps": 6, "batch_size": 4, "log_every": 1, "checkpoint_every": 100, "precision": "fp32", **train},
        "transfer": {"max_steps": 3},
    }
    path.write_text(yaml.safe_dump(config))
    return path


def command(*arguments, processes=1) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [sys.executable, *launch, "-m", "mgct.cli", *map(str, arguments)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def test_two_processes_give_the_weights_of_one(tiny_shards, tmp_path):
    config = write_config(tmp_path / "config.yaml", learning_rate=1e-3)
    for processes in (1, 2):
        arguments = ["train", "--config", config, "--data", tiny_shards, "--out", tmp_path / f"run{processes}"]
        subprocess.run(
            command(*arguments, processes=processes), check=True, env=ENVIRONMENT, capture_output=True, timeout=300
        )
    for part in ("model", "ema", "target"):
        one, two = (read_checkpoint(tmp_path / f"run{n}").tensors(part) for n in (1, 2))
        assert distance(one, two) < 1e-6


def test_sigterm_saves_and_resume_goes_on(tiny_shards, tmp_path):
    run = tmp_path / "run"
    config = write_config(tmp_path / "config.yaml", steps=400)
    arguments = ["train", "--config", config, "--data", tiny_shards, "--out", run]
    process = subprocess.Popen(
        command(*arguments), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not read_metrics(run) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    stopped = read_checkpoint(run).state["step"]
    assert 0 < stopped < 400
    assert out.splitlines()[-1] == f"{run}: stopped at step {stopped} of 400; go on with --resume"
    refused = subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith("mgct: ")
    assert "--resume" in refused.stderr
    if stopped > 1:
        fewer = [*arguments, "--resume", "--train.steps", stopped - 1]
        refused = subprocess.run(command(*fewer), env=ENVIRONMENT, capture_output=True, text=True)
        assert refused.returncode == 2
        assert f"is at step {stopped} already" in refused.stderr
    subprocess.run(
        command(*arguments, "--resume", "--train.steps", stopped + 2), env=ENVIRONMENT, check=True, timeout=120
    )
    assert [row["step"] for row in read_metrics(run)] == list(range(1, stopped + 3))
    exported = load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    averaged = read_checkpoint(run).tensors("ema")
    assert all(torch.equal(exported[key], averaged[key]) for key in averaged)
    assert json.loads((run / "model" / "model_index.json").read_text())["clip"]["frames"] == 4
    card = (run / "model" / "README.md").read_text()
    assert f"- Steps: {stopped + 2}." in card
    assert "learning_rate" in card


@pytest.mark.slow
def test_twenty_kills_at_random_moments_end_as_the_undisturbed_run(tiny_shards, tmp_path):
    """A save at every step, so that many kills hit one; two processes and two data workers each."""
    config = write_config(tmp_path / "config.yaml", steps=60, checkpoint_every=1, num_workers=1)
    arguments = ["train", "--config", config, "--data", tiny_shards, "--transfer.max_steps", 20]
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    subprocess.run(
        command(*arguments, "--out", undisturbed, processes=2), env=ENVIRONMENT, check=True, capture_output=True
    )
    random = torch.Generator().manual_seed(0)
    kills = 0
    while kills < 20:
        found = list_checkpoints(run)
        resume = ["--resume"] if found else []
        before = read_checkpoint(run).state["step"] if found else 0
        process = subprocess.Popen(
            command(*arguments, "--out", run, *resume, processes=2),
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            found = list_checkpoints(run)
            if found and read_checkpoint(run).state["step"] > before:
                break
            time.sleep(0.02)
        time.sleep(float(torch.rand((), generator=random)) * 0.5)
        finished = process.poll() is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        checkpoint = read_checkpoint(run)
        assert checkpoint.state["step"] >= before
        for part in ("model", "ema", "optimizer"):
            checkpoint.tensors(part)
        kills += 1
        if finished:
            break
    subprocess.run(
        command(*arguments, "--out", run, "--resume", processes=2), env=ENVIRONMENT, check=True, capture_output=True
    )
    assert kills == 20
    for part in ("model", "ema", "target", "optimizer"):
        ours, theirs = (read_checkpoint(folder).tensors(part) for folder in (run, undisturbed))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items()), part


def test_every_step_has_dropout_masks_and_window_shifts_of_its_own(tmp_path):
    one, masks, shifts = trainer(tmp_path), [], []
    for one.step in range(30):
        one._seed_dropout()
        masks.append(torch.rand(()).item())
        shifts.append(tuple(one._shift(next(batches(0)))))
    assert len(set(masks)) == 30
    assert len(set(shifts)) > 1


def test_another_seed_draws_other_noise(tmp_path):
    first, second = (trainer(tmp_path, seed=seed)._random(next(batches(0)), slice(None)).seeds for seed in (0, 1))
    assert not set(first) & set(second)


def test_weights_decay_and_what_the_balance_learns_does_not(tmp_path):
    one = trainer(tmp_path, weight_decay=0.3)
    assert [group["weight_decay"] for group in one.optimizer.param_groups] == [0.3]
    objective = MGCT(NoiseSchedule(), Transfer(), Consistency(), LearnedUncertainty())
    two = Trainer(one.unet, objective, batches, one.settings, tmp_path, {}, lambda *_: None, one.accelerator)
    assert [group["weight_decay"] for group in two.optimizer.param_groups] == [0.3, 0.0]


def test_what_the_balance_learns_has_the_learning_rate_of_the_rest(tmp_path):
    one = trainer(tmp_path, steps=3, warmup_steps=10)
    objective = MGCT(NoiseSchedule(), Transfer(), Consistency(), LearnedUncertainty())
    two = Trainer(one.unet, objective, batches, one.settings, tmp_path, {}, lambda *_: None, one.accelerator)
    two.fit()
    assert {group["lr"] for group in two.optimizer.param_groups} == {two.settings.learning_rate_at(2)}


def test_a_young_run_has_a_short_average(tmp_path):
    one = trainer(tmp_path, steps=1)
    before = next(one.unet.parameters()).detach().clone()
    one.fit()
    after = next(one.unet.parameters()).detach()
    torch.testing.assert_close(next(one.ema.parameters()).detach(), before.lerp(after, 0.9))


def test_a_row_of_the_log_is_the_mean_of_its_own_steps(tmp_path):
    for every in (1, 3):
        trainer(tmp_path / str(every), steps=6, log_every=every).fit()
    single, rows = ([row["loss"] for row in read_metrics(tmp_path / str(every))] for every in (1, 3))
    assert rows == pytest.approx([sum(single[:3]) / 3, sum(single[3:]) / 3])


def test_delta_is_compared_with_the_loss_before_its_weights(tmp_path):
    one = trainer(tmp_path, steps=3)
    one.objective.noise_weight = NoiseWeights(MinSNR(0.01), MinSNR(0.01))
    one.fit()
    (row,) = read_metrics(tmp_path)
    assert row["loss_average"] == row["loss_mm"] > row["loss"]


def test_a_run_that_goes_on_keeps_the_row_of_the_step_it_was_stopped_at(tmp_path):
    trainer(tmp_path, steps=3).fit()
    second = trainer(tmp_path, steps=6)
    second.load(read_checkpoint(tmp_path))
    second.fit()
    assert [row["step"] for row in read_metrics(tmp_path)] == [3, 6]


def test_stage_2_can_be_there_from_the_first_step(tmp_path):
    one = trainer(tmp_path, steps=3)
    one.objective.transfer = Transfer(max_steps=0)
    one.fit()
    assert (one.objective.transfer_step, one.objective.updates) == (0, 3)


def test_the_kept_configuration_does_not_resume(tmp_path):
    with run_folder(tmp_path / "run", {"resume": True, "data": "x"}, "mgct train"):
        assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == {"resume": False, "data": "x"}


def test_a_checkpoint_takes_the_place_of_another_and_of_what_a_kill_left(tmp_path):
    for value in (1.0, 2.0):
        (tmp_path / "checkpoints" / ".step-00000002.draft").mkdir(parents=True)
        (tmp_path / "checkpoints" / ".step-00000001.old").mkdir()
        (tmp_path / "checkpoints" / "step-00000009").mkdir(exist_ok=True)  # without its state
        write_checkpoint(tmp_path, 2, {"model": {"a": torch.full((2,), value)}}, {}, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002"]
    assert read_checkpoint(tmp_path).tensors("model")["a"].tolist() == [2, 2]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_copy_is_left_as_it_is():
    one, other = RunningMeans(), None
    value = (torch.tensor(1.0), torch.tensor(1.0))
    one.add({"a": value})
    other = one.copy()
    one.add({"a": value, "b": value})
    assert other.means(lambda x: x) == {"a": 1.0}
    assert (other.counts["a"], other.steps) == (1, 1)


def test_delta_is_compared_with_an_average_over_steps_not_rows(tmp_path):
    one = trainer(tmp_path, steps=6)
    one.objective.transfer = Transfer(average_steps=10)
    one.fit()
    first, second = read_metrics(tmp_path)
    keep = 0.9**3
    assert second["loss_average"] == pytest.approx(keep * first["loss_mm"] + (1 - keep) * second["loss_mm"])


@pytest.mark.parametrize("kind", ["train", "train-upsampler"])
@pytest.mark.parametrize("foreign", ["config.yaml", "model/thing.txt", "samples/mine.mp4"])
def test_a_folder_of_something_else_is_not_trained_into(tiny_shards, tmp_path, capsys, kind, foreign):
    from tests import test_upsampler

    write = {"train": write_config, "train-upsampler": test_upsampler.write_config}[kind]
    config, out = write(tmp_path / "config.yaml", steps=1), tmp_path / "p"
    (out / foreign).parent.mkdir(parents=True)
    (out / foreign).write_text("resume: false\nlearner: svm\n")
    before = sorted(out.rglob("*"))
    assert cli.main([kind, f"--config={config}", f"--data={tiny_shards}", f"--out={out}"]) == 2
    said = f"p is not empty and holds no run of mgct {kind}: choose a new folder"
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert sorted(out.rglob("*")) == before
    assert (out / foreign).read_text() == "resume: false\nlearner: svm\n"


def test_a_run_folder_can_be_used_again_and_so_can_one_with_notes(tmp_path):
    for config in ({"init": ""}, {"init": "dance", "clip": {"frames": 4}}):
        run = tmp_path / f"failed early {len(config)}"
        with run_folder(run, config, "mgct train"):
            (run / "model").mkdir()
        open_run_folder(run, "mgct train")
    write_checkpoint(tmp_path / "without its config", 1, {}, {}, keep=1)
    open_run_folder(tmp_path / "without its config", "mgct train")
    (tmp_path / "notes").mkdir()
    open_run_folder(tmp_path / "notes", "mgct train")
    (tmp_path / "notes" / "piece.yaml").write_text("")
    open_run_folder(tmp_path / "notes", "mgct train")


def test_a_checkpoint_of_another_network_is_damaged(undisturbed, tmp_path):
    path = read_checkpoint(undisturbed).path
    copy = shutil.copytree(path, tmp_path / "checkpoints" / path.name)
    save_file({"a": torch.ones(2)}, copy / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path)
    with (
        pytest.raises(UserError, match=rf"{path.name} is damaged \(.*\); take .* away to resume") as caught,
        checkpoint.explained(),
    ):
        trainer(tmp_path / "run").load(checkpoint)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="a bug"), checkpoint.explained():
        raise RuntimeError("a bug")


@pytest.fixture(scope="module")
def begun(tiny_shards, tmp_path_factory):
    """A run of one step that began from a saved model, the arguments that made it but --init, and the model."""
    folder = tmp_path_factory.mktemp("begun")
    AVPipeline(randomised(), ClipSpec(4, 10.0, 8, 160), start_timestep=700).save_pretrained(folder / "first")
    config = write_config(folder / "config.yaml", steps=1)
    arguments = ["train", f"--config={config}", f"--data={tiny_shards}", f"--out={folder / 'run'}"]
    assert cli.main([*arguments, f"--init={folder / 'first'}"]) == 0
    return folder / "run", arguments, folder / "first"


@pytest.mark.parametrize("kept_in", ["checkpoint", "config.yaml"])
def test_a_run_that_goes_on_keeps_what_it_began_from(begun, tmp_path, capsys, kept_in):
    begun_run, arguments, first = begun
    run = shutil.copytree(begun_run, tmp_path / "run")
    resume = [*arguments[:-1], f"--out={run}", "--resume", "--train.steps=2"]
    if kept_in == "config.yaml":
        state = run / "checkpoints" / "step-00000001" / "state.json"
        facts = json.loads(state.read_text())
        del facts["config"]["init"]
        state.write_text(json.dumps(facts))
    assert cli.main([*resume, f"--init={tmp_path / 'other'}"]) == 2
    assert f"began from {first}, not from {tmp_path / 'other'}: resume without --init" in capsys.readouterr().err
    assert cli.main(resume) == 0
    assert f"Began from the weights of `{first}`" in (run / "model" / "README.md").read_text()
    assert yaml.safe_load((run / "config.yaml").read_text())["init"] == str(first)
    assert json.loads((run / "model" / "model_index.json").read_text())["start_timestep"] == 700


def test_a_damaged_model_of_a_run_is_not_needed_to_go_on(begun, tmp_path, capsys):
    begun_run, arguments, _ = begun
    run = shutil.copytree(begun_run, tmp_path / "run")
    resume = [*arguments[:-1], f"--out={run}", "--resume", "--train.steps=2"]
    for damage, said in (("{", "is damaged"), ('{"start_timestep": "abc"}', "a model's start_timestep must be")):
        (run / "model" / "model_index.json").write_text(damage)
        assert cli.main(resume) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mgct: ")]
        assert said in line
        assert f"delete {run / 'model'} and resume without it" in line
    shutil.rmtree(run / "model")
    assert cli.main(resume) == 0
    assert json.loads((run / "model" / "model_index.json").read_text())["start_timestep"] == 700


def test_a_model_keeps_what_it_was_trained_on_of_two_noise_levels(begun, tmp_path):
    """Of a model from before this was kept it stays unknown, of one that had no second level it is what a run adds."""
    _, arguments, first = begun
    told = [*arguments[:-1], "--model.audio_time=true"]

    def trained(name, *options):
        assert cli.main([*told, f"--out={tmp_path / name}", *options]) == 0
        return AVPipeline.from_pretrained(tmp_path / name).config.noise_levels_apart

    given = trained("given", f"--init={first}", "--timesteps.given=0.4")
    assert given == {"given": 0.4, "independent": 0.0}
    both = trained("both", f"--init={tmp_path / 'given'}", "--timesteps.independent=0.2")
    assert both == {"given": 0.4, "independent": 0.2}
    index = tmp_path / "given" / "model" / "model_index.json"
    facts = json.loads(index.read_text())
    del facts["noise_levels_apart"]
    index.write_text(json.dumps(facts))
    assert trained("old", f"--init={tmp_path / 'given'}", "--timesteps.independent=0.2") is None
