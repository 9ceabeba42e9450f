"""Measures what `mgct.calibration` corrects: x̂0 of noisy real clips, and of the states that sampling leads through."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from mgct.batch_sampling import Batch, integrate
from mgct.calibration import TABLES, PathGains
from mgct.clip_random import derive_seed, per_clip_randn
from mgct.errors import UserError
from mgct.frequency_bands import VIDEO_SHAPE, band_sums, bands_of, count_bands, spectra
from mgct.grids import Point
from mgct.noise import add_noise, noise_from_x0, x0_from_noise
from mgct.pipeline import AVPipeline
from mgct.sampling_options import SamplingOptions
from mgct.types import AVSample, pack, unpack

LARGEST_GAIN = 2.0
"""Of a band at a call. What is missing after it is made up for at the next calls, which see more of it."""


def calibrate(pipe: AVPipeline, clips: AVSample, options: SamplingOptions) -> PathGains:
    """The gains of one way of sampling, call by call: each is measured with those before it in use.

    As many clips are sampled as are given, together, from noise of their own (not that of any clip that the seeds
    make); each call's noise level is also put into the given clips. So it costs twice as many network calls.

    Args:
        pipe: the model. A calibration that it has is not used.
        clips: real clips of its own length, (N, F, 3, H, W) and (N, 1, L) in [-1, 1], of those trained on.
        options: sampler, calls, start and seed; clips in a network call.

    Raises:
        UserError: fewer than two clips, clips of another size, or a sampler that is not named here.
    """
    shapes = AVSample(video=pipe.clip.video_shape, audio=pipe.clip.audio_shape)
    count = len(clips.video)
    if count < 2:
        raise UserError("a calibration needs at least 2 clips, better 64")
    if (clips.video.shape[1:], clips.audio.shape[1:]) != (torch.Size(shapes.video), torch.Size(shapes.audio)):
        raise UserError(f"a calibration needs clips as the model makes them, {pipe.clip}")
    check_can_calibrate(options)
    seed = derive_seed(options.seed, "calibration")
    options = replace(options, seed=seed, variation_of=(), on_step=None)
    pipe.check_sampler(options)
    own, pipe.calibration = pipe.calibration, None
    try:
        with tqdm(total=options.calls, unit="call", disable=not options.progress) as bar:
            rows = _Rows(pipe, clips, options, bar)
            integrate(pipe, rows.predict, Batch(list(range(count)), range(count), shapes, options, rows.device))
    finally:
        pipe.calibration = own
    return rows.gains()


def check_can_calibrate(options: SamplingOptions) -> None:
    """Refuse a way of sampling that is not of the denoiser.

    What a noisy clip's power should be is known of the mean of the clips that it may have been, E[x0 | x_t]. A
    consistency function or a flow map predicts one of them.
    """
    if not isinstance(options.sampler, str):
        raise UserError("a calibration is for the samplers named here, not for a scheduler of diffusers")
    if options.asks_ends:
        raise UserError(f"sampler {options.sampler!r} predicts ends of paths, not means, which alone can be calibrated")
    if options.coupled:
        raise UserError("a calibration is of sampling without video_coupling and audio_coupling")


class _Rows:
    """The predictor of a calibration, which measures each call before it answers."""

    def __init__(self, pipe: AVPipeline, clips: AVSample, options: SamplingOptions, bar: tqdm) -> None:
        self.clips, self.options, self.bar = clips, options, bar
        self.key = str(options.sampler), options.calls, pipe.start_timestep(options), pipe.autoguidance(options)
        self.network, self.device, self.dtype = pipe.network(options), pipe._execution_device, pipe.unet.dtype
        self.shapes = AVSample(video=pipe.clip.video_shape, audio=pipe.clip.audio_shape)
        frames, _, height, width = pipe.clip.video_shape
        sizes = frames, height, width, pipe.clip.audio_samples
        self.bands = bands_of(*sizes, str(self.device))
        self.sizes = count_bands(*sizes).to(self.device)
        self.mean = clips.video.float().mean((0, 1, 3, 4)).to(self.device)
        self.rows: list[PathGains] = []

    def predict(self, x: Tensor, point: Point) -> Tensor:
        """ε̂ of all clips together, from the x̂0 that has the power it should."""
        parts = [self._x0(part, point) for part in x.split(self.options.batch_size)]
        before = self._mean_colour(parts)
        found = _total(band_sums(one, one, self.bands) for one in (self._spectra(part, before) for part in parts))
        power = self._per_coefficient(found)
        gains = matching_gains(self._wanted(point), power, self.sizes, LARGEST_GAIN)
        row = PathGains(
            *self.key,
            (point.timestep,),
            *(value.float().cpu()[None] for value in (gains.video, gains.audio, before, self.mean)),
        )
        self.rows.append(row)
        corrected = torch.cat([pack(row.apply(unpack(part, self.shapes), point.timestep)) for part in parts])
        self.bar.update()
        return noise_from_x0(x, corrected, point.level(x))

    def gains(self) -> PathGains:
        """The calls' rows as one table."""
        timesteps = tuple(row.timesteps[0] for row in self.rows)
        return PathGains(
            *self.key, timesteps, *(torch.cat([getattr(row, name) for row in self.rows]) for name in TABLES)
        )

    def _wanted(self, point: Point) -> AVSample:
        """The power of the best linear prediction from x̂0 of noisy real clips, per coefficient of each band."""
        clean_parts, predicted_parts = [], []
        for first in range(0, len(self.clips.video), self.options.batch_size):
            last = first + self.options.batch_size
            clean = pack(self.clips.map(lambda x, part=slice(first, last): x[part].to(self.device, torch.float32)))
            seeds = [derive_seed(self.options.seed, "real", k, f"{point.timestep:.3f}") for k in range(first, last)]
            noise = per_clip_randn((clean.shape[1],), seeds[: len(clean)], self.device)
            clean_parts.append(clean)
            predicted_parts.append(self._x0(add_noise(clean, noise, point.level(clean)), point))
        mean = self._mean_colour(predicted_parts)
        cross, own = [], []
        for clean, predicted in zip(clean_parts, predicted_parts, strict=True):
            found = self._spectra(predicted, mean)
            cross.append(band_sums(self._spectra(clean, self.mean), found, self.bands))
            own.append(band_sums(found, found, self.bands))
        best = _total(cross).map(lambda both, power: both.clamp(min=0) ** 2 / power.clamp(min=1e-30), _total(own))
        return self._per_coefficient(best)

    def _x0(self, x: Tensor, point: Point) -> Tensor:
        """x̂0 in [-1, 1] of packed noisy clips (B, D)."""
        noise = pack(self.network(unpack(x, self.shapes), point))
        x0 = x0_from_noise(x, noise, point.level(x)).clamp(-1, 1)
        if not bool(torch.isfinite(x0).all()):
            raise UserError(
                f"the network's predictions at timestep {point.timestep:.0f} are not finite numbers: its weights are "
                f"damaged, or {self.dtype} is too narrow for it"
            )
        return x0

    def _mean_colour(self, parts: Sequence[Tensor]) -> Tensor:
        """(3,) of packed clips."""
        return torch.cat([unpack(part, self.shapes).video.mean((1, 3, 4)) for part in parts]).mean(0)

    def _spectra(self, packed: Tensor, mean: Tensor) -> AVSample:
        """Of packed clips (B, D) whose mean colour (3,) is taken off."""
        return spectra(unpack(packed, self.shapes), mean)

    def _per_coefficient(self, sums: AVSample) -> AVSample:
        count = len(self.clips.video)
        return sums.map(lambda total, size: total / (count * size).clamp(min=1), self.sizes)


def _total(parts: Iterable[AVSample]) -> AVSample:
    return functools.reduce(lambda one, other: one.map(torch.add, other), parts)


def matching_gains(wanted: AVSample, found: AVSample, sizes: AVSample, largest: float) -> AVSample:
    """√(wanted / found) of each band's power, at most ``largest``.

    Args:
        wanted: power per coefficient, (VIDEO_BANDS,) and (AUDIO_BANDS,).
        found: the same of what is there; where it is 0, so is the gain.
        sizes: how many coefficients a clip has of each. A band without any is one that longer clips alone have: it gets
            the gain of the next faster band of time (the next slower where none is faster), or 1.
        largest: gain.
    """

    def gain(wanted: Tensor, found: Tensor, size: Tensor) -> Tensor:
        gains = torch.where(found > 0, wanted.clamp(min=0) / found, 0.0).sqrt().clamp(max=largest)
        return torch.where(size > 0, gains, torch.nan)

    gains = wanted.map(gain, found, sizes)
    times = gains.video.view(VIDEO_SHAPE)
    for row in range(1, times.shape[1] - 1):
        times[:, row] = torch.where(times[:, row].isnan(), times[:, row - 1], times[:, row])
    times[:, 0] = torch.where(times[:, 0].isnan(), times[:, 1], times[:, 0])
    return gains.map(lambda x: x.nan_to_num(nan=1.0))
