"""Where sampling starts, in the large: the law of a clip's coarse colours at the noise level of the start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from mgct.errors import UserError
from mgct.noise import NoiseLevel
from mgct.whole_files import LoadedWhole


class CoarseStart(LoadedWhole, ModelMixin, ConfigMixin):
    """Mean and covariance of a clip's coarse colours: the means over time and over a grid of cells.

    At a noise level (α, σ) the coefficients of a clip on the constant patterns of the cells, c = √n m with m the mean
    of a cell's n values, have mean α √n μ and covariance C = α² n Σ + σ² I. Noise alone has neither, and over many
    pixels that is much: where 2.6 % of a clip are left (level 850 of the usual schedule), the brightness of 16 frames
    of 64 × 64 is spread nearly three times as wide as noise. Sampling that starts from noise makes every clip grey.
    `apply` gives noise that law, by c ← α √n μ + C^½ c. The error is that of every schedule that does not end at α = 0
    (Lin et al. 2024); the Gaussian is what a network itself knows of so noisy clips (Wang & Vastola 2024).

    Args:
        cells: of the grid, along height and along width.
        channels: of the picture.
    """

    mean: Tensor
    covariance: Tensor

    @register_to_config
    def __init__(self, cells: int = 8, channels: int = 3) -> None:
        super().__init__()
        size = channels * cells**2
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("covariance", torch.zeros(size, size))

    @classmethod
    def fit(cls, videos: Iterable[Tensor], cells: int = 8) -> CoarseStart:
        """The statistics of videos.

        Args:
            videos: parts of the set, (B, F, C, H, W) in [-1, 1].
            cells: of the grid; fewer where the height or width is no multiple of it.

        Raises:
            UserError: fewer than two clips.
        """
        sums = CoarseSums(cells)
        for video in videos:
            sums.add(video)
        law = sums.law()
        if law is None:
            raise UserError("the law of coarse colours needs at least two clips")
        return law

    def apply(self, video: Tensor, level: NoiseLevel) -> Tensor:
        """Noise (B, F, C, H, W) of unit variance → the same with the coarse law of noisy clips at ``level``."""
        cells = cast("Any", self.config).cells
        count = video.shape[1] * video.shape[3] * video.shape[4] / cells**2
        alpha, sigma = float(level.alpha), float(level.sigma)
        mean, covariance = (value.to("cpu", torch.float64) for value in (self.mean, self.covariance))
        variances, axes = torch.linalg.eigh(covariance)
        spread = (alpha**2 * count * variances.clamp(min=0) + sigma**2).sqrt()
        now = _cell_means(video, cells).to("cpu", torch.float64)
        wanted = alpha * mean + now @ (axes * spread) @ axes.T
        change = (wanted - now).to(video).view(len(video), 1, -1, cells, cells)
        height, width = (size // cells for size in video.shape[3:])
        return video + change.repeat_interleave(height, 3).repeat_interleave(width, 4)


class CoarseSums:
    """What the law of coarse colours follows from: second moments of (1, m) with m a clip's cells, summed over clips.

    Sums of parts of a set, of steps or of processes, add up to that of the whole.

    Args:
        cells: of the grid; fewer where the height or width of the first clips is no multiple of it.
    """

    def __init__(self, cells: int = 8) -> None:
        self.asked = self.cells = cells
        self.sums: Tensor | None = None

    def add(self, video: Tensor, weight: Tensor | float = 1.0) -> None:
        """Add clips (B, F, C, H, W) in [-1, 1], each so many times; no host synchronisation."""
        if self.sums is None:
            self.cells = math.gcd(self.cells, *video.shape[3:])
        means = _cell_means(video, self.cells).double()
        rows = torch.cat([torch.ones_like(means[:, :1]), means], 1)
        now = rows.T @ rows * weight
        self.sums = now if self.sums is None else self.sums + now

    def of_all(self, reduce_sum: Callable[[Tensor], Tensor]) -> CoarseSums:
        """The sums over all processes, which must all call and must all have some or none."""
        whole = CoarseSums(self.asked)
        whole.cells = self.cells
        whole.sums = None if self.sums is None else reduce_sum(self.sums.clone())
        return whole

    def law(self) -> CoarseStart | None:
        """Mean and covariance; None of fewer than two clips."""
        if self.sums is None or (count := float(self.sums[0, 0])) < 2:
            return None
        sums = self.sums.cpu()
        mean = sums[0, 1:] / count
        start = CoarseStart(self.cells, len(mean) // self.cells**2)
        start.mean.copy_(mean)
        start.covariance.copy_((sums[1:, 1:] - count * torch.outer(mean, mean)) / (count - 1))
        return start

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        if self.sums is None:
            return {}
        return {"sums": self.sums.cpu(), "cells": torch.tensor([self.asked, self.cells])}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device, keep: bool) -> None:
        """Go on from what `tensors` gave, if it is of the same grid: one process keeps it, the others have zeros."""
        asked, cells = tensors["cells"].tolist()
        if asked == self.asked:
            self.cells, self.sums = cells, tensors["sums"].to(device) * float(keep)


def _cell_means(video: Tensor, cells: int) -> Tensor:
    """(B, F, C, H, W) → (B, C · cells²): means over time and cells."""
    size, frames, channels, height, width = video.shape
    grid = video.reshape(size, frames, channels, cells, height // cells, cells, width // cells)
    return grid.mean(dim=(1, 4, 6)).flatten(1)
