"""``mgct calibrate``."""

from __future__ import annotations

import filecmp
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from mgct import samplers
from mgct.calibrate import calibrate, check_can_calibrate
from mgct.calibration import Calibration, PathGains
from mgct.checkpoint import is_run_folder
from mgct.coarse_start import CoarseStart
from mgct.commands.sample import PRECISIONS
from mgct.errors import UserError, explain_memory
from mgct.files import check_can_make, locked, replace_folder
from mgct.metrics.sources import ClipSource, open_as_trained
from mgct.model_card import with_sampling
from mgct.pipeline import AVPipeline
from mgct.sampling_options import SamplingOptions
from mgct.saved_models import bundled_models, find_pipeline
from mgct.types import AVSample, ClipSpec, dequantise

COARSE_CLIPS = 2048
"""Training clips that a model which has no coarse colours for its start is given them from, at most."""


def calibrate_model(
    model: str,
    data: str,
    out: Path | None = None,
    sampler: str = samplers.DEFAULT,
    steps: list[int] | None = None,
    start_timestep: int | None = None,
    num: int = 64,
    batch_size: int = 8,
    seed: int = 0,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> None:
    """Measure what a model's predictions lack along the path of sampling, and save the correction with the model.

    No weight is changed. For each number of calls it takes the time of twice as many clips. A model without the coarse
    colours of its clips is given them too. What was sampled from the model before is of other clips than after.

    Args:
        model: a run folder made by `mgct train`, or a saved model's folder.
        data: what it was trained on: a folder made by `mgct prepare` or of clips, or world:landscape or world:dance.
        out: folder of the calibrated copy, new, empty or an earlier copy of these weights; without it the model itself
            changes.
        sampler: the sampler to calibrate, not consistency or map.
        steps: numbers of network calls to calibrate it for, as in [8,12]; the sampler's default if not given.
        start_timestep: the noisiest level, which becomes the model's own; if not given, that is taken.
        num: training clips, and as many generated ones, that it is measured on; fewer where there are not so many.
        batch_size: clips at once.
        seed: of the noise.
        precision: of the network; the same as for sampling.
    """
    folder = find_pipeline(model)
    target = _target(folder, out)
    if num < 2:
        raise UserError(f"num must be at least 2, got {num}")
    ways = [
        SamplingOptions(steps=calls, sampler=sampler, batch_size=batch_size, seed=seed, start_timestep=start_timestep)
        for calls in sorted(set(steps or [samplers.get_sampler(sampler)[1]]))
    ]
    pipe: Any = AVPipeline.from_pretrained(folder)
    card = folder / "README.md"
    said = card.read_text() if card.is_file() else ""
    for way in ways:
        check_can_calibrate(way)
        pipe.schedule_of(way)
    check_can_make(target)
    with _held(target):
        source = _training_clips(data, pipe.clip, max(num, COARSE_CLIPS))
        num = min(num, len(source))
        if num < 2:
            raise UserError(f"{data} has {num} training clips; a calibration needs at least 2, better 64")
        if start_timestep is not None:
            pipe.register_to_config(start_timestep=start_timestep)
        if pipe.coarse_start is None:
            pipe.register_modules(coarse_start=_coarse_start(source))
        before = [] if pipe.calibration is None else pipe.calibration.paths
        clips = dequantise(source.read(range(num)))
        pipe.to(torch.accelerator.current_accelerator() or "cpu")
        torch.nn.Module.to(pipe.unet, PRECISIONS[precision])  # diffusers' own warns of layers that there are none of
        calibration = Calibration.of([*before, *_measured(pipe, clips, ways)])
        said = said and with_sampling(said, pipe.config.start_timestep, True, calibration.said())
        _save(folder, target, pipe.config.start_timestep, pipe.coarse_start.to("cpu"), calibration, said)
    print(f"{target}: calibrated for {calibration.said()}")


def _measured(pipe: AVPipeline, clips: AVSample, ways: Sequence[SamplingOptions]) -> Iterator[PathGains]:
    """The gains of each way of sampling, as it is measured."""
    for way in ways:
        print(f"{way.sampler}, {way.calls} calls, on {len(clips.video)} clips:", file=sys.stderr)
        with explain_memory("batch_size", way.batch_size):
            yield calibrate(pipe, clips, way)


def _target(folder: Path, out: Path | None) -> Path:
    """Where the calibrated model goes.

    Raises:
        UserError: something else would be lost there.
    """
    target = (out or folder).resolve()
    if target in [path.resolve() for path in bundled_models().values()]:
        raise UserError(f"{target.name} comes with mgct and is not changed: give --out FOLDER")
    if out is not None:
        holds_other = target.is_dir() and any(target.iterdir()) and not (target / "model_index.json").is_file()
        if holds_other or (target.exists() and not target.is_dir()) or target in folder.resolve().parents:
            raise UserError(f"{out} holds something else than a saved model; choose a new folder for --out")
        other_run = any(is_run_folder(above) and above not in folder.resolve().parents for above in target.parents)
        if other_run or ((target / "model_index.json").is_file() and not _same_network(folder, target)):
            raise UserError(f"{out} is of another run or model than {folder}; choose a new folder for --out")
    return target


def _same_network(folder: Path, other: Path) -> bool:
    """Whether two saved models have the same files of weights."""
    ours, theirs = (sorted(path.name for path in (one / "unet").glob("*.safetensors")) for one in (folder, other))
    return ours == theirs and all(
        filecmp.cmp(folder / "unet" / name, other / "unet" / name, shallow=False) for name in ours
    )


@contextmanager
def _held(target: Path) -> Iterator[None]:
    """Keep a training off its run folder while a model in it is changed."""
    if (target.parent / "config.yaml").is_file():
        with locked(target.parent, "mgct train or calibrate"):
            yield
    else:
        yield


def _training_clips(data: str, clip: ClipSpec, most: int) -> ClipSource:
    """The training split of the data, if it has such clips."""
    source = open_as_trained(data, clip, "train", most)
    if source.spec != clip:
        raise UserError(f"{data} has clips of another kind ({source.spec}) than the model makes ({clip})")
    return source


def _coarse_start(source: ClipSource) -> CoarseStart:
    """The law of the coarse colours of the first clips of a source."""
    count = min(len(source), COARSE_CLIPS)
    parts = (range(first, min(first + 64, count)) for first in range(0, count, 64))
    return CoarseStart.fit(dequantise(source.read(part)).video for part in parts)


def _save(
    folder: Path,
    target: Path,
    start_timestep: int | None,
    coarse_start: CoarseStart,
    calibration: Calibration,
    card: str,
) -> None:
    """The model's folder as it is, with the new parts, and with another card if it has one."""
    parts: dict[str, Any] = {"coarse_start": coarse_start, "calibration": calibration}
    index = json.loads((folder / "model_index.json").read_text())
    index |= {name: [type(part).__module__, type(part).__name__] for name, part in parts.items()}
    index["start_timestep"] = start_timestep

    def write(draft: Path) -> None:
        shutil.copytree(folder, draft)
        for name, part in parts.items():
            part.save_pretrained(draft / name)
        (draft / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        if card:
            (draft / "README.md").write_text(card)

    replace_folder(target, write)
