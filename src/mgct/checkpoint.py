"""The run folder: checkpoints that are whole or absent, and the metrics log.

``RUN/checkpoints/step-00001000/`` holds one safetensors file per network (``model``, ``ema``, in stage 2 ``target``),
one for the optimiser, and ``state.json``. Tensors are whole and under plain names, however many processes wrote them. A
checkpoint is written beside its place and renamed, so what has its name is whole. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from mgct.errors import UserError
from mgct.files import locked, restore_folders, write_whole

STATE_FILE = "state.json"
CONFIG_FILE = "config.yaml"
WRITTEN = (CONFIG_FILE, "checkpoints", "model", "best", "samples", "metrics.jsonl", "diverged.json")
"""What a training writes into its run folder, and replaces there."""


def is_run_folder(folder: Path) -> bool:
    """Whether a training began in the folder: it keeps its configuration there (`run_folder`) before anything else."""
    try:
        kept = yaml.safe_load((folder / CONFIG_FILE).read_text())
    except (OSError, UnicodeError, yaml.YAMLError):
        kept = None
    ours = isinstance(kept, dict) and kept.keys() >= {"init", "resume"}
    return ours or bool(list_checkpoints(folder))


def open_run_folder(out: Path, command: str) -> None:
    """See that a training may write into ``out``, and put back what a kill left there half-replaced.

    Raises:
        UserError: it holds something else that the training would overwrite.
    """
    if not is_run_folder(out) and any((out / name).exists() for name in WRITTEN):
        raise UserError(f"{out} is not empty and holds no run of {command}: choose a new folder")
    restore_folders(out)


def refuse_model_folder(folder: Path) -> None:
    """Refuse a folder for clips that holds a run or a saved model, which its next checkpoint may replace.

    Raises:
        UserError: it is one.
    """
    if is_run_folder(folder) or (folder / "model_index.json").is_file():
        raise UserError(f"{folder} holds a run or a saved model: choose another folder for the clips")


@contextmanager
def run_folder(out: Path, settings: Mapping[str, Any], command: str) -> Iterator[None]:
    """Make the run folder, keep others off it, and keep the configuration in it.

    Args:
        out: the folder.
        settings: the whole configuration, ``init`` among it.
        command: what trains.

    Raises:
        UserError: it cannot be made, or another process trains in it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: the run folder cannot be made ({error.strerror}); choose another --out") from error
    with locked(out, command):
        text = yaml.safe_dump({**settings, "resume": False}, sort_keys=False)
        write_whole(out / CONFIG_FILE, lambda draft: draft.write_text(text))
        yield


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Args:
        path: its folder.
        state: what ``state.json`` holds; ``state["step"]`` is the number of optimiser steps taken.
    """

    path: Path
    state: dict[str, Any]

    def has(self, name: str) -> bool:
        """Whether there is a part ``name``."""
        return (self.path / f"{name}.safetensors").is_file()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of the part ``name``.

        Raises:
            UserError: the file is missing or damaged.
        """
        file = self.path / f"{name}.safetensors"
        try:
            return load_file(file)
        except Exception as error:
            raise _damaged(self.path, f"{file}: cannot be read ({error})") from error

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say of what a damaged checkpoint lacks that it is damaged."""
        try:
            yield
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "loading state_dict" not in str(error):
                raise
            reason = " ".join(str(error).split()) if isinstance(error, RuntimeError) else repr(error)
            raise _damaged(self.path, f"{self.path} is damaged ({reason[:200]})") from error


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{what}; take {path} away to resume from an earlier checkpoint")


LATER = {"prediction_type": "epsilon"}
"""Settings that older runs have not → what they were then; of others that came later it was off."""


def _spelled_out(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a network with one number for all of its windows as one for each."""
    windows, resolutions = settings.get("cross_attention_windows"), settings.get("cross_attention_resolutions", ())
    return (
        {**settings, "cross_attention_windows": [windows] * len(resolutions)} if isinstance(windows, int) else settings
    )


def checkpoint_to_resume(
    run: Path, resume: bool, config: Mapping[str, Any], seed: int, steps: int
) -> Checkpoint | None:
    """The newest checkpoint of a run folder, which must be of the same training; None where a new run begins.

    Args:
        run: the run folder.
        resume: whether to go on; without it the folder may not hold a run.
        config: what is kept in each checkpoint, as `as_json` gives it: of ``kind``, ``model`` and ``clip`` nothing may
            have changed, nor the optimiser.
        seed: of the run; the same as before.
        steps: to train to, at least as far as the run is.

    Raises:
        UserError: there is a run, or none; it is another one, has got further, or is damaged; and what to do.
    """
    if not resume:
        if found := list_checkpoints(run):
            raise UserError(f"{run} holds a run (its last checkpoint: {found[-1].name}); --resume goes on with it")
        return None
    checkpoint = read_checkpoint(run)
    with checkpoint.explained():
        before = checkpoint.state["config"]
        if before.get("kind") != config.get("kind"):
            command = {"upsampler": "train-upsampler"}.get(before.get("kind"), "train")
            raise UserError(f"{run} is a run of `mgct {command}`; resume it with that")
        for part in ("model", "clip"):
            ours, theirs = _spelled_out(config[part]), _spelled_out(before[part])
            names = sorted(ours.keys() | theirs.keys())
            now, then = ([values.get(key, LATER.get(key)) or None for key in names] for values in (ours, theirs))
            if changed := [f"{part}.{key}" for key, a, b in zip(names, now, then, strict=True) if a != b]:
                named = ", ".join(changed)
                raise UserError(f"{run} was trained with other settings ({named}); see {run / 'config.yaml'}")
        if (trained := checkpoint.state["seed"]) != seed:
            raise UserError(f"{run} was trained with train.seed {trained}; resume with the same")
        now, then = (kept.get("train", {}).get("optimizer", "adamw") for kept in (config, before))
        if now != then:
            raise UserError(
                f"{run} was trained with train.optimizer {then}; resume with the same, or begin another run with "
                f"--init {run}"
            )
        if (done := checkpoint.state["step"]) > steps:
            raise UserError(
                f"{run} is at step {done} already, beyond train.steps {steps}: give the step to train to, as in "
                f"--train.steps {done + steps}"
            )
    return checkpoint


def began_from(run: Path, checkpoint: Checkpoint | None, init: str) -> str:
    """The weights that a run began from, as ``--init`` named them.

    Args:
        run: the run folder.
        checkpoint: what is resumed; None: a run begins, from ``init``.
        init: as given; empty: none.

    Raises:
        UserError: a run that is resumed began from others.
    """
    if checkpoint is None:
        return init
    with checkpoint.explained():
        before = checkpoint.state["config"].get("init")
    if before is None and (run / CONFIG_FILE).is_file():  # a checkpoint from before it was kept there
        try:
            before = yaml.safe_load((run / CONFIG_FILE).read_text()).get("init")
        except (UnicodeError, yaml.YAMLError, AttributeError) as error:
            raise UserError(f"{run / CONFIG_FILE} is damaged; take it away to resume without it") from error
    before = str(before or "")
    if init not in ("", before):
        raise UserError(f"{run} began from {before or 'no other weights'}, not from {init}: resume without --init")
    return before


def as_json(values: Any) -> Any:
    """The same values as a checkpoint's ``state.json`` gives them back."""
    return json.loads(json.dumps(values))


def write_checkpoint(
    run: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write ``RUN/checkpoints/step-…`` so that it appears whole or not at all, then delete all but the last ``keep``.

    A process that is killed at any moment leaves every earlier checkpoint whole until the new one is.

    Args:
        run: the run folder.
        step: optimiser steps taken.
        parts: name → tensors; each becomes ``name.safetensors``.
        state: numbers and settings, as JSON.
        keep: how many checkpoints stay.
    """
    folder = run / "checkpoints"
    final, draft = folder / f"step-{step:08d}", folder / f".step-{step:08d}.draft"
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)
    try:
        draft.mkdir(parents=True)
        for name, tensors in parts.items():
            save_file(
                {key: value.detach().contiguous() for key, value in tensors.items()}, draft / f"{name}.safetensors"
            )
        (draft / STATE_FILE).write_text(json.dumps({"step": step, **state}, indent=1))
        for path in [*draft.iterdir(), draft]:
            _sync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{final}: the checkpoint could not be written ({reason}); earlier ones are whole") from error
    if final.exists():
        _remove(final)
    draft.rename(final)
    _sync(folder)
    for old in list_checkpoints(run)[:-keep]:
        _remove(old)
    return final


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint so that what is left of it, if that is interrupted, does not bear its name."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def _sync(path: Path) -> None:
    """Make sure that a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def list_checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if (path / STATE_FILE).is_file())


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint folder, or the newest checkpoint of a run folder.

    Raises:
        UserError: there is none, or its state cannot be read.
    """
    if not (path / STATE_FILE).is_file():
        found = list_checkpoints(path)
        if not found:
            raise UserError(f"{path}: no checkpoint there; give a run folder that has been trained")
        path = found[-1]
    try:
        state = json.loads((path / STATE_FILE).read_text())
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise ValueError("it does not say the step")
    except (OSError, ValueError) as error:
        raise _damaged(path, f"{path / STATE_FILE}: cannot be read ({error})") from error
    return Checkpoint(path, state)


def optimizer_tensors(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimiser's per-parameter state as ``parameter name/state name`` → tensor."""
    return {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave.

    Args:
        optimizer: its parameters are among ``parameters``.
        parameters: name → parameter.
        tensors: as `optimizer_tensors` names them.
    """
    place = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    order = {name: place[id(parameter)] for name, parameter in parameters.items() if id(parameter) in place}
    per_parameter: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        per_parameter.setdefault(order[name], {})[key] = value
    optimizer.load_state_dict({"state": per_parameter, "param_groups": optimizer.state_dict()["param_groups"]})


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of ``RUN/metrics.jsonl``, oldest first; an unfinished last line is left out.

    Raises:
        UserError: another line is damaged.
    """
    path = run / "metrics.jsonl"
    text = path.read_bytes() if path.is_file() else b""
    *lines, last = text.split(b"\n")
    rows = []
    for number, line in enumerate([*lines, last] if last else lines, 1):
        try:
            row = json.loads(line)
            row["step"] + 0
            rows.append(row)
        except (ValueError, TypeError, KeyError) as error:
            if line is last:
                break
            raise UserError(f"{path}: line {number} is damaged; take it out to go on without it") from error
    return rows


def write_metrics(run: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace ``RUN/metrics.jsonl`` by these rows."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_whole(run / "metrics.jsonl", lambda draft: draft.write_text(text))
