"""Calibrated sampling: x̂0's strength in each frequency band, corrected for what is measured along a sampler's path.

What a network predicts from noisy real clips and what it predicts from the states that sampling leads through are not
alike: along the path each band of x̂0 has too little power (exposure bias: Ning et al. 2024, Elucidating the exposure
bias in diffusion models; by bands: Yu & Zhan 2025, Frequency regulation for exposure bias mitigation), and the noisier
the level the more of it is the network's own error. `mgct.calibrate` measures both; here is what is made of it.

With c0 a real clip's Fourier coefficient and ĉ that of the x̂0 predicted from its noisy version, the best linear
prediction within a band is E[c0 ĉ*] / E|ĉ|² · ĉ; its power τ = |E[c0 ĉ*]|² / E|ĉ|² is what x̂0 should have at that
level. Along the path x̂0 has the power p, so its band is multiplied by √(τ/p). The mean colour is moved to the clips'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from mgct.errors import UserError, check_loaded
from mgct.grids import Point
from mgct.noise import noise_from_x0, x0_from_noise
from mgct.predictors import Predict
from mgct.types import AVSample, pack, unpack

_TIMES, _SPACES, _COLOURS = 5, 12, 2
VIDEO_BANDS = _COLOURS * _TIMES * _SPACES
"""Octaves of time × half octaves of space, each with one for what is constant, × brightness and colour."""
AUDIO_BANDS = 17
"""Half octaves down from the Nyquist frequency, the last of them all that is lower still, and the mean."""
_OPPONENT = ((1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (1.0, 1.0, -2.0))


class Bands(NamedTuple):
    """Which band each Fourier coefficient is in, and for how many it stands (2 of a real signal's, or 1).

    Attributes:
        video: (3, F, H, W//2 + 1).
        audio: (L//2 + 1,).
        video_weight: (W//2 + 1,).
        audio_weight: (L//2 + 1,).
    """

    video: Tensor
    audio: Tensor
    video_weight: Tensor
    audio_weight: Tensor


@lru_cache(maxsize=8)
def bands_of(frames: int, height: int, width: int, samples: int, device: str = "cpu") -> Bands:
    """The bands of clips of these sizes; a frequency is in the same band whatever the size."""
    time = _octaves(torch.fft.fftfreq(frames).abs(), 1, _TIMES)
    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    space = _octaves((down**2 + across**2).sqrt(), 2, _SPACES)
    grey = time[:, None, None] * _SPACES + space
    video = torch.stack([grey, grey + _TIMES * _SPACES, grey + _TIMES * _SPACES])
    audio = _octaves(torch.fft.rfftfreq(samples), 2, AUDIO_BANDS)
    return Bands(*(x.to(device) for x in (video, audio, _weights(width), _weights(samples))))


def _octaves(frequency: Tensor, per_octave: int, count: int) -> Tensor:
    """The band of each frequency in cycles a sample: 0 from 1/2 up, then downwards; ``count`` - 1: frequency 0."""
    band = (torch.log2(0.5 / frequency.double()) * per_octave - 1e-6).ceil().clamp(0, count - 2)
    return torch.where(frequency == 0, count - 1, band).long()


def _weights(size: int) -> Tensor:
    weights = torch.full((size // 2 + 1,), 2.0)
    weights[0] = 1.0
    if size % 2 == 0:
        weights[-1] = 1.0
    return weights


def _opponent(like: Tensor) -> Tensor:
    """Red, green, blue → brightness and two colours, orthonormal, (3, 3)."""
    rows = torch.tensor(_OPPONENT, device=like.device)
    return rows / rows.norm(dim=1, keepdim=True)


def spectra(clips: AVSample) -> AVSample:
    """Clips (B, F, 3, H, W), (B, 1, L) → orthonormal Fourier coefficients (B, 3, F, H, W//2+1), (B, 1, L//2+1)."""
    colours = torch.einsum("ij,bfjhw->bifhw", _opponent(clips.video), clips.video.float())
    video = torch.fft.rfftn(colours, dim=(2, 3, 4), norm="ortho")
    return AVSample(video=video, audio=torch.fft.rfft(clips.audio.float(), norm="ortho"))


def clips_of(coefficients: AVSample, like: AVSample) -> AVSample:
    """Inverse of `spectra`, of the shapes of ``like``."""
    frames, _, height, width = like.video.shape[1:]
    colours = torch.fft.irfftn(coefficients.video, s=(frames, height, width), dim=(2, 3, 4), norm="ortho")
    video = torch.einsum("ij,bifhw->bfjhw", _opponent(colours), colours)
    return AVSample(video=video, audio=torch.fft.irfft(coefficients.audio, n=like.audio.shape[-1], norm="ortho"))


def band_sums(one: AVSample, other: AVSample, bands: Bands) -> AVSample:
    """Σ Re(one · other*) of each band over clips and coefficients, (VIDEO_BANDS,) and (AUDIO_BANDS,) float64."""
    video = (one.video * other.video.conj()).real.double().sum(0) * bands.video_weight
    audio = (one.audio * other.audio.conj()).real.double().sum((0, 1)) * bands.audio_weight
    return AVSample(
        video=video.new_zeros(VIDEO_BANDS).index_add_(0, bands.video.flatten(), video.flatten()),
        audio=audio.new_zeros(AUDIO_BANDS).index_add_(0, bands.audio, audio),
    )


@dataclass(frozen=True)
class PathGains:
    """What x̂0 is corrected by at each call of one way of sampling.

    Args:
        sampler: its name.
        calls: network calls per clip.
        start_timestep: the noise level that it starts from.
        timesteps: of the calls.
        video: gains, (calls, VIDEO_BANDS).
        audio: gains, (calls, AUDIO_BANDS).
        before: the mean colour of x̂0 along the path, (calls, 3).
        after: what it is moved to, (calls, 3).
    """

    sampler: str
    calls: int
    start_timestep: int
    timesteps: tuple[float, ...]
    video: Tensor
    audio: Tensor
    before: Tensor
    after: Tensor

    @property
    def key(self) -> tuple[str, int, int]:
        """The way of sampling."""
        return self.sampler, self.calls, self.start_timestep

    def row(self, timestep: float) -> int:
        """Which call is at a timestep."""
        return min(range(len(self.timesteps)), key=lambda row: abs(self.timesteps[row] - timestep))

    def apply(self, x0: AVSample, timestep: float) -> AVSample:
        """x̂0 in [-1, 1], (B, F, 3, H, W) and (B, 1, L), of the call at a timestep → corrected, in [-1, 1] too."""
        row, device = self.row(timestep), x0.video.device
        bands = bands_of(x0.video.shape[1], *x0.video.shape[3:], x0.audio.shape[-1], str(device))
        video, audio, before, after = (
            table[row].to(device, torch.float32) for table in (self.video, self.audio, self.before, self.after)
        )
        centred = AVSample(video=x0.video - before[:, None, None], audio=x0.audio)
        found = spectra(centred)
        gained = AVSample(video=found.video * video[bands.video], audio=found.audio * audio[bands.audio])
        clips = clips_of(gained, x0)
        return AVSample(video=clips.video + after[:, None, None], audio=clips.audio).map(lambda x: x.clamp(-1, 1))


TABLES = {"video": VIDEO_BANDS, "audio": AUDIO_BANDS, "before": 3, "after": 3}
"""The tables of `PathGains`, a row for each call → its width."""


class Calibration(ModelMixin, ConfigMixin):
    """The gains of some ways of sampling, saved with a model.

    Args:
        paths: sampler, start_timestep and timesteps of each; at least one.
    """

    @register_to_config
    def __init__(self, paths: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        if not paths:
            raise UserError("a calibration is of at least one way of sampling")
        for number, path in enumerate(paths):
            if not {"sampler", "start_timestep", "timesteps"} <= path.keys():
                raise UserError(f"a calibration's path says its sampler, start_timestep and timesteps, got {path}")
            for name, width in TABLES.items():
                self.register_buffer(f"{name}_{number}", torch.zeros(len(path["timesteps"]), width))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As diffusers' own, but weights that lack a tensor are refused."""
        wanted = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        check_loaded(info)
        if not all(bool(torch.isfinite(value).all()) for value in model.buffers()):
            raise UserError("the calibration is not of finite numbers")
        return (model, info) if wanted else model

    @property
    def paths(self) -> list[PathGains]:
        """The gains."""
        paths = self.config["paths"]
        return [
            PathGains(
                path["sampler"],
                len(path["timesteps"]),
                path["start_timestep"],
                tuple(path["timesteps"]),
                *self._tables(number),
            )
            for number, path in enumerate(paths)
        ]

    def _tables(self, number: int) -> list[Tensor]:
        return [getattr(self, f"{name}_{number}") for name in TABLES]

    def find(self, sampler: str, calls: int, start_timestep: int) -> PathGains | None:
        """The gains of a way of sampling, if it was calibrated."""
        return next((path for path in self.paths if path.key == (sampler, calls, start_timestep)), None)

    @classmethod
    def of(cls, paths: Sequence[PathGains]) -> Calibration:
        """Of these; of one way of sampling the last counts."""
        last = sorted({path.key: path for path in paths}.values(), key=lambda path: path.key)
        new = cls(
            [
                {"sampler": path.sampler, "start_timestep": path.start_timestep, "timesteps": list(path.timesteps)}
                for path in last
            ]
        )
        for number, path in enumerate(last):
            for table, name in zip(new._tables(number), TABLES, strict=True):
                table.copy_(getattr(path, name))
        return new

    def said(self) -> str:
        """The ways of sampling, in words."""
        ways: dict[tuple[str, int], list[int]] = {}
        for path in self.paths:
            ways.setdefault((path.sampler, path.start_timestep), []).append(path.calls)
        return "; ".join(
            f"{sampler} from {start} with {', '.join(map(str, calls))} calls"
            for (sampler, start), calls in ways.items()
        )


def calibrated(predict: Predict, gains: PathGains, shapes: AVSample) -> Predict:
    """The predictor whose x̂0, clipped to [-1, 1], is corrected by ``gains``; ``shapes`` are those of one clip."""

    def wrapped(x: Tensor, point: Point) -> Tensor:
        level = point.level(x)
        x0 = x0_from_noise(x, predict(x, point), level).clamp(-1, 1)
        return noise_from_x0(x, pack(gains.apply(unpack(x0, shapes), point.timestep)), level)

    return wrapped


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

    gains = AVSample(
        video=gain(wanted.video, found.video, sizes.video), audio=gain(wanted.audio, found.audio, sizes.audio)
    )
    times = gains.video.view(_COLOURS, _TIMES, _SPACES)
    for row in range(1, _TIMES - 1):
        times[:, row] = torch.where(times[:, row].isnan(), times[:, row - 1], times[:, row])
    times[:, 0] = torch.where(times[:, 0].isnan(), times[:, 1], times[:, 0])
    return gains.map(lambda x: x.nan_to_num(nan=1.0))


def count_bands(frames: int, height: int, width: int, samples: int) -> AVSample:
    """How many real coefficients of one clip each band has."""
    bands = bands_of(frames, height, width, samples)
    ones = AVSample(
        video=torch.ones(1, *bands.video.shape, dtype=torch.complex64),
        audio=torch.ones(1, 1, *bands.audio.shape, dtype=torch.complex64),
    )
    return band_sums(ones, ones, bands)
