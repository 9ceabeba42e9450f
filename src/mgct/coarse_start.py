"""Where sampling starts, in the large: the law of a clip's coarse colours at the noise level of the start."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from mgct.errors import UserError
from mgct.noise import NoiseLevel


class CoarseStart(ModelMixin, ConfigMixin):
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
    def fit(cls, videos: Iterable[Tensor], cells: int = 8) -> Self:
        """The statistics of videos.

        Args:
            videos: parts of the set, (B, F, C, H, W) in [-1, 1].
            cells: of the grid; fewer where the height or width is no multiple of it.

        Raises:
            UserError: fewer than two clips.
        """
        means: list[Tensor] = []
        for video in videos:
            cells = math.gcd(cells, *video.shape[3:])
            means.append(_cell_means(video, cells))
        if sum(map(len, means)) < 2:
            raise UserError("the law of coarse colours needs at least two clips")
        rows = torch.cat(means).double()
        start = cls(cells, means[0].shape[1] // cells**2)
        start.mean.copy_(rows.mean(0))
        start.covariance.copy_(torch.cov(rows.T))
        return start

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


def _cell_means(video: Tensor, cells: int) -> Tensor:
    """(B, F, C, H, W) → (B, C · cells²): means over time and cells."""
    size, frames, channels, height, width = video.shape
    grid = video.reshape(size, frames, channels, cells, height // cells, cells, width // cells)
    return grid.mean(dim=(1, 4, 6)).flatten(1)
