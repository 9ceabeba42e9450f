"""Distances between two sets of features: Fréchet and polynomial-kernel MMD, with what is needed to trust a number.

Everything here is pure and computes in float64. Features are (N, D): one row per clip. Nothing is scaled: a protocol
that multiplies its numbers says so (`mgct.metrics.protocols`).
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from mgct.errors import MgctWarning, UserError

LEFT_OUT = 8
"""A draw of an interval leaves out one clip of so many."""
LEAST_CLIPS = 3
"""A side, for an interval: it leaves one out, and a covariance takes two."""


class RankDeficientWarning(MgctWarning):
    """Fewer clips than feature dimensions: a Fréchet distance is finite but strongly biased upwards."""


class Gaussian(NamedTuple):
    """Mean (D,) and covariance (D, D), both float64."""

    mean: Tensor
    covariance: Tensor


class Interval(NamedTuple):
    """A value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def _as_features(features: Tensor, side: str) -> Tensor:
    if features.dim() != 2 or features.shape[0] < 2:
        raise UserError(f"{side} features must be (N, D) with at least 2 clips, got shape {tuple(features.shape)}")
    features = features.detach().to("cpu", torch.float64)
    if not torch.isfinite(features).all():
        raise UserError(f"{side} features hold NaN or infinity: an encoder failed, or a clip is broken")
    return features


def _checked(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    real, fake = _as_features(real, "real"), _as_features(fake, "fake")
    if real.shape[1] != fake.shape[1]:
        raise UserError(f"features of different encoders: {real.shape[1]} against {fake.shape[1]} dimensions")
    return real, fake


def gaussian(features: Tensor) -> Gaussian:
    """Mean and unbiased covariance (divided by N - 1) of features (N, D)."""
    mean = features.mean(0)
    centred = features - mean
    return Gaussian(mean, centred.T @ centred / (len(features) - 1))


def _square_root(covariance: Tensor) -> Tensor:
    """A (D, D) with A Aᵀ = Σ for a symmetric positive semi-definite Σ; negative rounding is cut at 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()


def frechet_between(first: Gaussian, second: Gaussian) -> float:
    """Squared Fréchet (Wasserstein-2) distance of two Gaussians.

    |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁^½ Σ₂ Σ₁^½)^½ (Dowson and Landau 1982). The last trace is the sum of the
    singular values of A₁ᵀ A₂ for any A Aᵀ = Σ, and A comes from a symmetric eigen-decomposition: exact also where Σ
    is singular.
    """
    coupling = torch.linalg.svdvals(_square_root(first.covariance).T @ _square_root(second.covariance)).sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * coupling
    return float((first.mean - second.mean).square().sum() + spread)


def _warn_if_rank_deficient(real: Tensor, fake: Tensor) -> None:
    for side, features in (("real", real), ("fake", fake)):
        count, dimension = features.shape
        if count <= dimension:
            warnings.warn(
                f"{count} {side} clips for {dimension} feature dimensions: the covariance is singular and the Fréchet "
                f"distance biased upwards; use more than {dimension} clips, or compare only equal numbers of clips",
                RankDeficientWarning,
                stacklevel=3,
            )


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two feature sets (N, D) and (M, D): FVD and FAD.

    It is biased upwards by an amount that falls about like 1/N: only values of equal N and M compare.

    Raises:
        UserError: less than 2 clips a side, different dimensions, or values that are not finite.

    Warns:
        RankDeficientWarning: N or M is not larger than D.
    """
    real, fake = _checked(real, fake)
    _warn_if_rank_deficient(real, fake)
    return frechet_between(gaussian(real), gaussian(fake))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """Cubic polynomial kernel (x·y / D + 1)³ of (N, D) and (M, D): (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mmd_of_draws(real: Tensor, fake: Tensor, w_real: Tensor, w_fake: Tensor, rows: int = 1024) -> Tensor:
    """Unbiased squared MMD of R subsets (R,), from 1 where a clip is in: (R, N), (R, M). ``rows`` bounds the memory."""

    def pairs(x: Tensor, y: Tensor, w_x: Tensor, w_y: Tensor, same: bool) -> Tensor:
        total = torch.zeros(len(w_x), dtype=torch.float64)
        for start in range(0, len(x), rows):
            block = slice(start, start + rows)
            kernel = _kernel(x[block], y)
            if same:
                kernel[torch.arange(len(kernel)), torch.arange(start, start + len(kernel))] = 0
            total += ((w_x[:, block] @ kernel) * w_y).sum(1)
        ordered = w_x.sum(1) * w_y.sum(1)
        return total / (ordered - (w_x * w_y).sum(1) if same else ordered)

    return (
        pairs(real, real, w_real, w_real, same=True)
        + pairs(fake, fake, w_fake, w_fake, same=True)
        - 2 * pairs(real, fake, w_real, w_fake, same=False)
    )


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x·y / D + 1)³ of two feature sets (N, D) and (M, D): KVD and KAD.

    It may be negative by chance when the sets are alike; its mean does not depend on N and M.

    Raises:
        UserError: less than 2 clips a side, different dimensions, or values that are not finite.
    """
    real, fake = _checked(real, fake)
    ones = (torch.ones(1, len(features), dtype=torch.float64) for features in (real, fake))
    return float(_mmd_of_draws(real, fake, next(ones), next(ones)))


def _generator(seed: int) -> torch.Generator:
    """Random numbers of any integer."""
    return torch.Generator().manual_seed(seed % 2**64)


def _left_out(count: int) -> int:
    """How many of ``count`` clips a draw leaves out."""
    return max(1, count // LEFT_OUT)


def _kept(count: int, draws: int, generator: torch.Generator) -> Tensor:
    """Which of ``count`` clips each jackknife draw keeps: bool (draws, count), without a random `LEFT_OUT`th."""
    order = torch.stack([torch.randperm(count, generator=generator) for _ in range(draws)])
    return order >= _left_out(count)


def _kept_of_both(real: Tensor, fake: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """`_kept` of either side."""
    few = min(len(real), len(fake))
    if few < LEAST_CLIPS:
        raise UserError(f"an interval needs at least {LEAST_CLIPS} clips a side, got {few}")
    generator = _generator(seed)
    return _kept(len(real), draws, generator), _kept(len(fake), draws, generator)


def _around(value: float, replicas: Tensor, count: int, confidence: float) -> Interval:
    """The delete-d jackknife interval: the spread of replicas without d of ``count`` clips, times √((n - d) / d)."""
    spread = replicas.std() * math.sqrt((count - _left_out(count)) / _left_out(count))
    half = float(spread * torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)))
    return Interval(value, value - half, value + half)


def frechet_interval(
    real: Tensor, fake: Tensor, *, draws: int = 100, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """`frechet_distance` with a jackknife interval over the clips of both sides.

    Each draw leaves out a random `LEFT_OUT`th of either side (delete-d jackknife, Shao and Wu 1989; normal bounds). It
    says how far the value would move with other clips of the same number, not where the value of infinitely many is.
    A bootstrap, which repeats clips, gives up to twice the width (``docs/evaluation.md``).

    Args:
        real: (N, D), N at least 3.
        fake: (M, D), M at least 3.
        draws: at least 2.
        confidence: in (0, 1).
        seed: of the draws.

    Raises:
        UserError: less than 3 clips a side, different dimensions, or values that are not finite.
    """
    value = frechet_distance(real, fake)
    real, fake = _checked(real, fake)
    kept = zip(*_kept_of_both(real, fake, draws, seed), strict=True)
    replicas = [frechet_between(gaussian(real[x]), gaussian(fake[y])) for x, y in kept]
    return _around(value, torch.tensor(replicas, dtype=torch.float64), min(len(real), len(fake)), confidence)


def kernel_interval(
    real: Tensor, fake: Tensor, *, draws: int = 100, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """`kernel_distance` with a jackknife interval over the clips of both sides; arguments as in `frechet_interval`."""
    value = kernel_distance(real, fake)
    real, fake = _checked(real, fake)
    x, y = _kept_of_both(real, fake, draws, seed)
    return _around(value, _mmd_of_draws(real, fake, x.double(), y.double()), min(len(real), len(fake)), confidence)


def frechet_at_infinity(real: Tensor, fake: Tensor, *, points: int = 8, seed: int = 0) -> float:
    """Fréchet distance extrapolated to infinitely many clips on both sides (Chong and Forsyth 2020, FID∞).

    The distance of random subsets of a fraction f of both sides, f = 0.5 … 1, is fitted by a + b / f; a is returned.
    The bias of the plain value is b at f = 1. Where N is not several times D the bias is not linear in 1/N and a is a
    hint.

    Args:
        real: (N, D).
        fake: (M, D).
        points: number of fractions, at least 2.
        seed: of the subsets.
    """
    real, fake = _checked(real, fake)
    generator = _generator(seed)

    def subset(features: Tensor, fraction: float) -> Gaussian:
        count = max(2, round(fraction * len(features)))
        return gaussian(features[torch.randperm(len(features), generator=generator)[:count]])

    inverse = torch.linspace(1, 2, points, dtype=torch.float64)
    values = [frechet_between(subset(real, 1 / float(x)), subset(fake, 1 / float(x))) for x in inverse]
    measured = torch.tensor(values, dtype=torch.float64)
    centred = inverse - inverse.mean()
    slope = (centred * measured).sum() / centred.square().sum()
    return float(measured.mean() - slope * inverse.mean())
