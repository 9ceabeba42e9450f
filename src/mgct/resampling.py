"""Halving, quartering and repeating of channels-last pictures and sounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mgct import gpu
from mgct.types import AVSample

Resample = Callable[[Tensor], Tensor]


def video_down(x: Tensor) -> Tensor:
    """(B, F, H, W, C) → (B, F, H/2, W/2, C): the mean of each 2×2 square."""
    if gpu.has_kernels(x):
        return _Resampled.apply(x.flatten(0, 1), "down", (2, 2)).unflatten(0, x.shape[:2])
    frames = x.flatten(0, 1).permute(0, 3, 1, 2)
    return F.avg_pool2d(frames, 2).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def video_up(x: Tensor) -> Tensor:
    """(B, F, H, W, C) → (B, F, 2H, 2W, C): each pixel repeated."""
    if gpu.has_kernels(x):
        return _Resampled.apply(x.flatten(0, 1), "up", (2, 2)).unflatten(0, x.shape[:2])
    frames = x.flatten(0, 1).permute(0, 3, 1, 2)
    return _repeated(frames, (2, 2)).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def audio_down(x: Tensor) -> Tensor:
    """(B, L, C) → (B, L/4, C): the mean of each four samples."""
    if gpu.has_kernels(x):
        return _Resampled.apply(x[:, None], "down", (1, 4)).squeeze(1)
    return x.unflatten(1, (-1, 4)).mean(2)


def audio_up(x: Tensor) -> Tensor:
    """(B, L, C) → (B, 4L, C): each sample repeated."""
    if gpu.has_kernels(x):
        return _Resampled.apply(x[:, None], "up", (1, 4)).squeeze(1)
    row = x[:, None].permute(0, 3, 1, 2)
    return _repeated(row, (1, 4)).squeeze(2).mT


def _repeated(x: Tensor, times: tuple[int, int]) -> Tensor:
    """Pictures (N, C, H, W) with each row and column repeated so many times."""
    with torch.autocast(
        x.device.type, enabled=False
    ):  # on a GPU it would make float32 of them, and of all that follows
        return F.interpolate(x, scale_factor=times, mode="nearest")


class _Resampled(torch.autograd.Function):
    """Means of neighbours, or each repeated, by `mgct.kernels`; each is the other's backward pass, but for a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, way: Literal["down", "up"], factors: tuple[int, int]) -> Tensor:
        """(N, H, W, C) → (N, H/a, W/b, C) or (N, a H, b W, C)."""
        ctx.way, ctx.factors = way, factors
        if way == "down":
            return gpu.kernels().down(x, factors, 1 / math.prod(factors))
        return gpu.kernels().up(x, factors, 1.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of x."""
        if ctx.way == "down":
            return gpu.kernels().up(grad, ctx.factors, 1 / math.prod(ctx.factors)), None, None
        return gpu.kernels().down(grad, ctx.factors, 1.0), None, None


def identity(x: Tensor) -> Tensor:
    """X itself: the resampling of a block that keeps its resolution."""
    return x


RESAMPLING = {
    "none": AVSample(video={}, audio={}),
    "down": AVSample(video={"down": video_down}, audio={"down": audio_down}),
    "up": AVSample(video={"up": video_up}, audio={"up": audio_up}),
}
"""How the paths of a residual block resample, by the block's kind."""
