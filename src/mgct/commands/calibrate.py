"""``mgct calibrate``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from mgct import samplers
from mgct.calibrate import calibrate, check_can_calibrate
from mgct.calibration import Calibration, PathGains
from mgct.coarse_start import CoarseStart
from mgct.commands.model_copies import held, save_copy, target_of
from mgct.commands.sample import PRECISIONS
from mgct.errors import UserError, explain_memory
from mgct.files import check_can_make
from mgct.metrics.sources import ClipSource, open_as_trained
from mgct.pipeline import AVPipeline
from mgct.sampling_options import SamplingOptions
from mgct.saved_models import find_pipeline
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
    target = target_of(folder, out)
    if num < 2:
        raise UserError(f"num must be at least 2, got {num}")
    ways = [
        SamplingOptions(steps=calls, sampler=sampler, batch_size=batch_size, seed=seed, start_timestep=start_timestep)
        for calls in sorted(set(steps or [samplers.get_sampler(sampler)[1]]))
    ]
    pipe: Any = AVPipeline.from_pretrained(folder)
    for way in ways:
        check_can_calibrate(way)
        pipe.schedule_of(way)
    check_can_make(target)
    with held(target):
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
        pipe.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
        pipe.cast(PRECISIONS[precision])
        calibration = Calibration.of([*before, *_measured(pipe, clips, ways)])
        pipe.register_modules(calibration=calibration)
        save_copy(folder, target, pipe, "coarse_start", "calibration", facts=("start_timestep",))
    print(f"{target}: calibrated for {calibration.said()}")


def _measured(pipe: AVPipeline, clips: AVSample, ways: Sequence[SamplingOptions]) -> Iterator[PathGains]:
    """The gains of each way of sampling, as it is measured."""
    for way in ways:
        print(f"{way.sampler}, {way.calls} calls, on {len(clips.video)} clips:", file=sys.stderr)
        with explain_memory("batch_size", way.batch_size):
            yield calibrate(pipe, clips, way)


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
