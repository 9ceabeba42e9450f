"""One batch of clips out of noise: their noise, the predictor with all that it is wrapped in, the sampler."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mgct import grids, predictors, samplers
from mgct.calibration import calibrated
from mgct.clip_random import derive_seed, per_clip_randn
from mgct.given import Given
from mgct.predictors import Known, Predict
from mgct.sampling_options import SamplingOptions, Step
from mgct.types import AVSample, pack, unpack


@dataclass(frozen=True)
class Batch:
    """Clips that are sampled together.

    Args:
        numbers: which clips of the seed.
        positions: their places among all that are asked for.
        shapes: of one clip.
        options: how they are sampled.
        device: where the network is.
    """

    numbers: list[int]
    positions: Sequence[int]
    shapes: AVSample
    options: SamplingOptions
    device: torch.device

    def noise(self, *what: int | str) -> Tensor:
        """Packed noise (B, D) at the ``"start"`` or at a ``"step"``: each clip's own draw, or a variation's."""
        if not self.options.variation_of:
            return self._drawn(self.numbers, *what)
        first, *rest = self.options.variation_of
        x = self._drawn([first] * len(self.numbers), *what)
        own = self.options.variation
        for depth, numbers in enumerate([*([number] * len(self.numbers) for number in rest), self.numbers]):
            x = math.sqrt(1 - own**2) * x + own * self._drawn(numbers, *what, "variation", depth)
        return x

    def _drawn(self, numbers: list[int], *what: int | str) -> Tensor:
        """Of these clips of the seed; at the start on the CPU, so that it is the same on every device."""
        length = math.prod(self.shapes.video) + math.prod(self.shapes.audio)
        seeds = [derive_seed(self.options.seed, number, *what) for number in numbers]
        return per_clip_randn((length,), seeds, "cpu" if what[0] == "start" else self.device).to(self.device)


@torch.no_grad()
def integrate(pipe: Any, predict: Predict, batch: Batch, given: Given | None = None) -> Tensor:
    """Packed clips (B, D) of a batch, not clipped.

    Args:
        pipe: the model, an `mgct.pipeline.AVPipeline`: its schedule, coarse colours and calibration.
        predict: its network.
        batch: whose clips.
        given: the part that is given.
    """
    options, schedule, start = batch.options, pipe.schedule_of(batch.options), batch.noise("start")
    known = None if given is None else given.known(batch.positions, batch.shapes, start)
    predict = _wrapped(pipe, predict, batch, start, given, known)
    step_noise = functools.partial(batch.noise, "step")
    x = start
    if pipe.coarse_start is not None:
        clips = unpack(x, batch.shapes)
        level = schedule.level(torch.tensor([schedule.num_timesteps - 1.0], device=schedule.device))
        x = pack(AVSample(video=pipe.coarse_start.apply(clips.video, level), audio=clips.audio))
    if given is not None and known is not None and given.method == "mm-diffusion":
        grid = grids.integer_grid(schedule, options.calls)
        return samplers.guided_ddpm(predict, x, grid, step_noise, known, given.scale)
    if isinstance(options.sampler, str):
        sampler, calls = samplers.get_sampler(options.sampler, options.steps)
        x = sampler.run(predict, x, schedule, calls, step_noise)
    else:
        seeds = [derive_seed(options.seed, number, "scheduler") for number in batch.numbers]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        x = samplers.diffusers_scheduler(predict, x, options.sampler, options.calls, pipe.schedule, generators)
    return x if known is None else known.impose(x, grids.CLEAN)


def _wrapped(
    pipe: Any, predict: Predict, batch: Batch, start: Tensor, given: Given | None, known: Known | None
) -> Predict:
    """The predictor as ``batch.options`` and what is given have it, from the network outwards."""
    options, shapes = batch.options, batch.shapes
    clean, pure = grids.points(pipe.schedule, torch.tensor([0.0, pipe.schedule.num_timesteps - 1.0]))
    if options.coupled:
        sound = torch.arange(start.shape[1], device=start.device) >= math.prod(shapes.video)
        scales = AVSample(video=options.video_coupling, audio=options.audio_coupling)
        predict = predictors.coupled(predict, start, sound, pure, scales)
    if given is not None and known is not None and given.method == "conditional":
        heard = given.start.audio.shape[2] > 0
        predict = predictors.conditioned(predict, known, heard, (clean, pure), given.scale)
    if (gains := pipe.gains(options, given)) is not None:
        predict = calibrated(predict, gains, shapes)
    if _clips_x0(options):
        predict = predictors.clipped(predict)
    if given is not None and known is not None and given.method == "guided":
        predict = predictors.guided(predict, known, given.scale)
    if given is not None and known is not None and given.method == "replacement":
        predict = predictors.replaced(predict, known)
    return _watched(predict, batch, known)


def _clips_x0(options: SamplingOptions) -> bool:
    """Whether x̂0 is clipped to [-1, 1]."""
    if options.clip_x0 is not None:
        return options.clip_x0
    return samplers.SAMPLERS[options.sampler].clip if isinstance(options.sampler, str) else True


def _watched(predict: Predict, batch: Batch, known: Known | None) -> Predict:
    """The predictor, which tells ``on_step`` of its x̂0, with what is known in its place."""
    if (on_step := batch.options.on_step) is None:
        return predict
    made = itertools.count(1)

    def see(x0: Tensor) -> None:
        x0 = x0 if known is None else known.impose(x0, grids.CLEAN)
        on_step(Step(batch.numbers, next(made), batch.options.calls, unpack(x0, batch.shapes)))

    return predictors.watched(predict, see)
