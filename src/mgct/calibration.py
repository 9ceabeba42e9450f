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
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from mgct.errors import UserError
from mgct.frequency_bands import AUDIO_BANDS, VIDEO_BANDS, bands_of, clips_of, spectra
from mgct.grids import Point
from mgct.noise import noise_from_x0, x0_from_noise
from mgct.predictors import Predict
from mgct.types import AVSample, pack, unpack
from mgct.whole_files import LoadedWhole


@dataclass(frozen=True)
class PathGains:
    """What x̂0 is corrected by at each call of one way of sampling.

    Args:
        sampler: its name.
        calls: network calls per clip.
        start_timestep: the noise level that it starts from.
        autoguidance: its strength; 1: without.
        timesteps: of the calls.
        video: gains, (calls, VIDEO_BANDS).
        audio: gains, (calls, AUDIO_BANDS).
        before: the mean colour of x̂0 along the path, (calls, 3).
        after: what it is moved to, (calls, 3).
    """

    sampler: str
    calls: int
    start_timestep: int
    autoguidance: float
    timesteps: tuple[float, ...]
    video: Tensor
    audio: Tensor
    before: Tensor
    after: Tensor

    @property
    def key(self) -> tuple[str, int, int, float]:
        """The way of sampling."""
        return self.sampler, self.calls, self.start_timestep, self.autoguidance

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
        found = spectra(x0, before)
        gained = AVSample(video=found.video * video[bands.video], audio=found.audio * audio[bands.audio])
        clips = clips_of(gained, x0)
        return AVSample(video=clips.video + after[:, None, None], audio=clips.audio).map(lambda x: x.clamp(-1, 1))


TABLES = {"video": VIDEO_BANDS, "audio": AUDIO_BANDS, "before": 3, "after": 3}
"""The tables of `PathGains`, a row for each call → its width."""


class Calibration(LoadedWhole, ModelMixin, ConfigMixin):
    """The gains of some ways of sampling, saved with a model.

    Args:
        paths: sampler, start_timestep, timesteps and, where it is not 1, autoguidance of each; at least one.
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

    @property
    def paths(self) -> list[PathGains]:
        """The gains."""
        paths = self.config["paths"]
        return [
            PathGains(
                path["sampler"],
                len(path["timesteps"]),
                path["start_timestep"],
                path.get("autoguidance", 1.0),
                tuple(path["timesteps"]),
                *self._tables(number),
            )
            for number, path in enumerate(paths)
        ]

    def _tables(self, number: int) -> list[Tensor]:
        return [getattr(self, f"{name}_{number}") for name in TABLES]

    def find(self, sampler: str, calls: int, start_timestep: int, autoguidance: float = 1.0) -> PathGains | None:
        """The gains of a way of sampling, if it was calibrated."""
        key = sampler, calls, start_timestep, autoguidance
        return next((path for path in self.paths if path.key == key), None)

    @classmethod
    def of(cls, paths: Sequence[PathGains]) -> Calibration:
        """Of these; of one way of sampling the last counts."""
        last = sorted({path.key: path for path in paths}.values(), key=lambda path: path.key)
        new = cls(
            [
                {"sampler": path.sampler, "start_timestep": path.start_timestep, "timesteps": list(path.timesteps)}
                | ({} if path.autoguidance == 1 else {"autoguidance": path.autoguidance})
                for path in last
            ]
        )
        for number, path in enumerate(last):
            for table, name in zip(new._tables(number), TABLES, strict=True):
                table.copy_(getattr(path, name))
        return new

    def said(self) -> str:
        """The ways of sampling, in words."""
        ways: dict[tuple[str, int, float], list[int]] = {}
        for path in self.paths:
            ways.setdefault((path.sampler, path.start_timestep, path.autoguidance), []).append(path.calls)
        return "; ".join(
            f"{sampler} from {start} with {', '.join(map(str, calls))} calls"
            + ("" if guidance == 1 else f" and autoguidance {guidance:g}")
            for (sampler, start, guidance), calls in ways.items()
        )


def calibrated(predict: Predict, gains: PathGains, shapes: AVSample) -> Predict:
    """The predictor whose x̂0, clipped to [-1, 1], is corrected by ``gains``; ``shapes`` are those of one clip."""

    def wrapped(x: Tensor, point: Point) -> Tensor:
        level = point.level(x)
        x0 = x0_from_noise(x, predict(x, point), level).clamp(-1, 1)
        return noise_from_x0(x, pack(gains.apply(unpack(x0, shapes), point.timestep)), level)

    return wrapped
