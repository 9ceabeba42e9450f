"""``mgct calibrate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch

from mgct import samplers
from mgct.calibrate import calibrate
from mgct.calibration import Calibration
from mgct.coarse_start import CoarseStart
from mgct.commands.sample import PRECISIONS
from mgct.errors import UserError, explain_memory
from mgct.files import replace_folder
from mgct.metrics.sources import ClipSource, is_endless, open_source
from mgct.model_card import with_calibration
from mgct.pipeline import AVPipeline
from mgct.sampling_options import SamplingOptions
from mgct.saved_models import bundled_models, find_pipeline
from mgct.types import dequantise

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
        out: folder of the calibrated model; that of the model itself if not given.
        sampler: the sampler to calibrate.
        steps: numbers of network calls to calibrate it for, as in [8,12]; the sampler's default if not given.
        start_timestep: the noisiest level, which becomes the model's own; if not given, that is taken.
        num: training clips, and as many generated ones, that it is measured on; fewer where there are not so many.
        batch_size: clips at once.
        seed: of the noise.
        precision: of the network; the same as for sampling.
    """
    folder = find_pipeline(model)
    if out is None and folder in bundled_models().values():
        raise UserError(f"{model} comes with mgct and is not changed: give --out FOLDER")
    if num < 2:
        raise UserError(f"num must be at least 2, got {num}")
    ways = [
        SamplingOptions(steps=calls, sampler=sampler, batch_size=batch_size, seed=seed, start_timestep=start_timestep)
        for calls in (steps or [samplers.get_sampler(sampler, None)[1]])
    ]
    named = [f"{way.calls} calls" for way in ways]  # refuses what the sampler cannot do before anything is read
    pipe: Any = AVPipeline.from_pretrained(folder)
    source = _training_clips(data, pipe, max(num, COARSE_CLIPS))
    num = min(num, len(source))
    if num < 2:
        raise UserError(f"{data} has {num} training clips; a calibration needs at least 2, better 64")
    if pipe.coarse_start is None:
        pipe.register_modules(coarse_start=_coarse_start(source))
    if start_timestep is not None:
        pipe.register_to_config(start_timestep=start_timestep)
    paths = [] if pipe.calibration is None else pipe.calibration.paths
    clips = dequantise(source.read(range(num)))
    measured = pipe.to(torch.accelerator.current_accelerator() or "cpu")
    torch.nn.Module.to(measured.unet, PRECISIONS[precision])  # diffusers' own warns of layers that there are none of
    with explain_memory("batch_size", batch_size):
        for way, name in zip(ways, named, strict=True):
            print(f"{sampler}, {name}, on {num} clips:", file=sys.stderr)
            paths.append(calibrate(measured, clips, way))
    saved: Any = AVPipeline.from_pretrained(folder)
    saved.register_modules(coarse_start=pipe.coarse_start.to("cpu"), calibration=Calibration.of(paths))
    saved.register_to_config(start_timestep=pipe.config.start_timestep)
    _save(saved, folder, out or folder)
    print(f"{out or folder}: calibrated for {saved.calibration.said()}")


def _training_clips(data: str, pipe: AVPipeline, most: int) -> ClipSource:
    """The training split of the data; of a world without end its first clips."""
    source = open_source(f"{data}:{most}" if is_endless(data) else data, pipe.clip, "train")
    if source.spec != pipe.clip:
        raise UserError(f"{data} has clips of another kind ({source.spec}) than the model makes ({pipe.clip})")
    return source


def _coarse_start(source: ClipSource) -> CoarseStart:
    """The law of the coarse colours of the first clips of a source."""
    count = min(len(source), COARSE_CLIPS)
    parts = (range(first, min(first + 64, count)) for first in range(0, count, 64))
    return CoarseStart.fit(dequantise(source.read(part)).video for part in parts)


def _save(pipe: Any, before: Path, out: Path) -> None:
    """Write the model anew, with what lay beside it."""
    kept = {
        path.name: path.read_bytes()
        for path in before.iterdir()
        if path.suffix in {".md", ".json"} and path.name != "model_index.json"
    }

    def write(draft: Path) -> None:
        pipe.save_pretrained(draft)
        for name, content in kept.items():
            (draft / name).write_bytes(content)
        card = draft / "README.md"
        if card.is_file():
            card.write_text(with_calibration(card.read_text(), pipe.calibration.said()))

    replace_folder(out, write)
