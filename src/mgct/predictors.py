"""Predictors: ``predict(x, point) -> ε̂``, the network at one noise level, and what changes what it predicts.

x (B, D) is both modalities of B clips, packed (`mgct.types.pack`). Clipping of x̂0 and a part of the clip that is known
wrap a predictor, so they work with every sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mgct.errors import UserError
from mgct.grids import Point
from mgct.noise import add_noise, noise_from_x0, x0_from_noise
from mgct.types import AVSample

Predict = Callable[[Tensor, Point], Tensor]
_LARGEST_SCALE = 1000.0
"""No guidance is stronger: of more nothing is left but rounding."""


def check_scale(name: str, value: float) -> None:
    """Refuse a strength of guidance that is no number or beyond any use; ``name`` it has for the user."""
    if not abs(value) <= _LARGEST_SCALE:
        limit = f"{_LARGEST_SCALE:g}"
        raise UserError(f"{name} must be a number from -{limit} to {limit}, got {value}")


def clipped(predict: Predict) -> Predict:
    """The predictor whose x̂0 is clipped to [-1, 1], where every clip lies; ε̂ is derived again from it."""

    def wrapped(x: Tensor, point: Point) -> Tensor:
        level = point.level(x)
        x0 = x0_from_noise(x, predict(x, point), level).clamp(-1, 1)
        return noise_from_x0(x, x0, level)

    return wrapped


@dataclass(frozen=True)
class Known:
    """A part of the packed clip that is given.

    Args:
        x0: the clean value, (B, D); ignored where ``mask`` is False.
        mask: (D,) bool, True where the clip is given.
        noise: ε, (B, D), the one fixed draw with which the given part is diffused at every level.
    """

    x0: Tensor
    mask: Tensor
    noise: Tensor

    def at(self, point: Point) -> Tensor:
        """q(y) = α y + σ ε: the given part at a noise level, always with the same ε. Shape (B, D)."""
        return add_noise(self.x0, self.noise, point.level(self.x0))

    def impose(self, x: Tensor, point: Point) -> Tensor:
        """x (B, D) with the given part put in at the level of ``point``."""
        return torch.where(self.mask, self.at(point), x)


def replaced(predict: Predict, known: Known) -> Predict:
    """The replacement method: the network sees the given part at the present level, and there ε̂ is the true noise.

    So an ODE solver carries the given part along its exact path α y + σ ε, whatever its order and grid.
    """

    def wrapped(x: Tensor, point: Point) -> Tensor:
        return torch.where(known.mask, known.noise, predict(known.impose(x, point), point))

    return wrapped


def conditioned(predict: Predict, known: Known, sound: bool, ends: tuple[Point, Point], scale: float = 1.0) -> Predict:
    """The network told that one modality is known: it sees it at noise level 0, beside the other at its own.

    For a network that was trained on modalities at different levels (`MultimodalUNet` with ``audio_time``), which then
    predicts the other's conditional mean: no method stands between. With a ``scale`` s other than 1, classifier-free
    guidance (Ho & Salimans 2022): ε̂ ← ε̂_∅ + s (ε̂ - ε̂_∅), ε̂_∅ that of a call with what is known at the noisiest level,
    next to pure noise; twice the cost.

    Args:
        predict: the network.
        known: all of one modality.
        sound: whether that is the sound.
        ends: the least noisy and the noisiest level that the network was trained at.
        scale: s.
    """
    clean, pure = ends

    def seen(x: Tensor, point: Point, other: Point) -> Tensor:
        times = (point.timestep, other.timestep) if sound else (other.timestep, point.timestep)
        return predict(known.impose(x, other), point._replace(told=times))

    def wrapped(x: Tensor, point: Point) -> Tensor:
        noise = seen(x, point, clean)
        if scale != 1:
            noise = torch.lerp(seen(x, point, pure), noise, scale)
        return torch.where(known.mask, known.noise, noise)

    return wrapped


def coupled(predict: Predict, noise: Tensor, sound: Tensor, pure: Point, scales: AVSample) -> Predict:
    """Both modalities generated, each made to follow the other: ε̂ ← ε̂_∅ + s (ε̂ - ε̂_∅).

    ε̂_∅ is a modality's prediction beside pure noise in the other's place, which a network knows that was trained on
    modalities at different levels (`MultimodalUNet` with ``audio_time``; Bao et al. 2023).

    Args:
        predict: the network; called once more for each s other than 1.
        noise: that pure noise, (B, D).
        sound: (D,) bool, True where the packed clip is sound.
        pure: the noisiest level that the network was trained at.
        scales: s of either modality.
    """

    def wrapped(x: Tensor, point: Point) -> Tensor:
        both = predict(x, point)
        for own, scale, times in (
            (~sound, scales.video, (point.timestep, pure.timestep)),
            (sound, scales.audio, (pure.timestep, point.timestep)),
        ):
            if scale != 1:
                alone = predict(torch.where(own, x, noise), point._replace(told=times))
                both = torch.where(own, torch.lerp(alone, both, scale), both)
        return both

    return wrapped


def watched(predict: Predict, see: Callable[[Tensor], None]) -> Predict:
    """The predictor, whose x̂0 (B, D) in [-1, 1] is shown at each call."""

    def wrapped(x: Tensor, point: Point) -> Tensor:
        noise = predict(x, point)
        see(x0_from_noise(x.detach(), noise.detach(), point.level(x)).clamp(-1, 1))
        return noise

    return wrapped


def misfit_gradient(x: Tensor, known: Known, residual: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient of the misfit with respect to the part of x that is not given; 0 where it is given.

    misfit_b = mean over the given elements of ``residual(x)``², a (B, D) tensor. The gradient is taken for the inner
    product mean(u v) over the N_g free elements, G = N_g ∂misfit/∂x: an element's gradient then does not depend on
    how many elements either part has, nor on the batch.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        misfit = (residual(leaf) ** 2)[:, known.mask].mean(1).sum()
        (gradient,) = torch.autograd.grad(misfit, leaf)
    return torch.where(known.mask, 0.0, gradient * (~known.mask).sum())


def guided(predict: Predict, known: Known, scale: float) -> Predict:
    """Replacement, and the free part's ε̂ moved so that x̂0 of the given part comes out as given (for any sampler).

    ε̂_g ← ε̂_g + s σ α² G, with G the gradient (see `misfit_gradient`) of the mean of (x̂0_c - y)² over the given
    part: the score of a likelihood exp(-s α² N_g misfit), hence of the same strength for every sampler and number of
    steps. The α² makes up for the 1/α of x̂0 = (x - σ ε̂)/α, which at high noise magnifies the network's errors.
    ``predict`` must be differentiable; it is called once.
    """

    def wrapped(x: Tensor, point: Point) -> Tensor:
        level = point.level(x)
        noise = torch.empty_like(x)

        def residual(x: Tensor) -> Tensor:
            predicted = predict(x, point)
            noise.copy_(predicted.detach())
            return x0_from_noise(x, predicted, level) - known.x0

        x = known.impose(x, point)
        gradient = misfit_gradient(x, known, residual)
        return torch.where(known.mask, known.noise, noise + scale * point.sigma * point.alpha**2 * gradient)

    return wrapped
