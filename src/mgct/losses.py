"""The two losses of MGCT: the multimodal loss (Eq. 4) and the consistency loss (Eq. 9-11).

Each gives one value per clip, and the values per modality to log. Nothing is drawn here: noise, timesteps and window
shifts come in. A choice (distance, weight, who predicts the ODE's direction) is an object that is passed in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mgct.noise import NoiseLevel, NoiseSchedule, add_noise, consistency_function, ddim_step
from mgct.types import AVSample


class ClipLoss(NamedTuple):
    """A loss of each clip (B,), and named values (B,) to log."""

    loss: Tensor
    logs: dict[str, Tensor]


def per_clip_mean(x: Tensor) -> Tensor:
    """(B, …) → (B,): the mean over each clip's own elements, in float32 or better."""
    return x.flatten(1).to(torch.promote_types(x.dtype, torch.float32)).mean(1)


def multimodal_loss(
    model: nn.Module,
    clips: AVSample,
    noise: AVSample,
    timestep: Tensor,
    schedule: NoiseSchedule,
    window_shift: Any = None,
) -> ClipLoss:
    """L_MM (Eq. 4), per clip: mean over video elements of (ε̂_v - ε_v)² plus mean over audio elements of (ε̂_a - ε_a)².

    Args:
        model: ε_θ, called as `MultimodalUNet`.
        clips: x0, video (B, F, C, H, W) and audio (B, C, L) in [-1, 1].
        noise: ε, of the clips' shapes.
        timestep: (B,) in [0, T-1], shared by both modalities.
        schedule: noise schedule on the clips' device.
        window_shift: passed on to the model.
    """
    level = schedule.level(timestep)
    noisy = clips.map(lambda x0, eps: add_noise(x0, eps, level), noise)
    predicted = model(noisy.video, noisy.audio, timestep, window_shift=window_shift)
    error = predicted.map(lambda ours, true: per_clip_mean((ours - true).square()), noise)
    return ClipLoss(error.video + error.audio, {"loss_mm_video": error.video, "loss_mm_audio": error.audio})


class Distance(ABC):
    """d of Eq. 9: an elementwise cost of two tensors of one shape, zero where they agree."""

    @abstractmethod
    def __call__(self, ours: Tensor, target: Tensor) -> Tensor:
        """Cost of each element."""


@dataclass(frozen=True)
class SquaredError(Distance):
    """(a - b)²."""

    def __call__(self, ours: Tensor, target: Tensor) -> Tensor:
        """Cost of each element."""
        return (ours - target).square()


@dataclass(frozen=True)
class PseudoHuber(Distance):
    """√((a - b)² + c²) - c: quadratic below c, linear above.

    Args:
        c: the turning point, in units of the data's range [-1, 1].
    """

    c: float = 0.03

    def __call__(self, ours: Tensor, target: Tensor) -> Tensor:
        """Cost of each element."""
        return torch.sqrt((ours - target).square() + self.c**2) - self.c


class Weight(ABC):
    """λ of Eq. 9: the weight of each pair of adjacent levels."""

    @abstractmethod
    def __call__(self, low: NoiseLevel, high: NoiseLevel) -> Tensor:
        """(B,) weights of the pairs (t_n, t_{n+1})."""


@dataclass(frozen=True)
class UnitWeight(Weight):
    """λ = 1, as in the paper's Algorithm 1."""

    def __call__(self, low: NoiseLevel, high: NoiseLevel) -> Tensor:  # noqa: ARG002
        """(B,) ones."""
        return torch.ones_like(high.alpha)


@dataclass(frozen=True)
class NoiseUnits(Weight):
    """λ = (α / σ)² at t_{n+1}: an error of x̂0 counts as the error of ε̂ that makes it, as in the multimodal loss."""

    def __call__(self, low: NoiseLevel, high: NoiseLevel) -> Tensor:  # noqa: ARG002
        """(B,) weights."""
        return (high.alpha / high.sigma).square()


Predictor = Callable[[AVSample, Tensor], AVSample]
"""Noise prediction of noisy clips at timesteps (B,)."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode (no dropout), back in its former mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(training)


@contextmanager
def same_dropout(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside from torch's global generators is drawn again after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def consistency_loss(
    model: nn.Module,
    target_model: nn.Module,
    clips: AVSample,
    noise: AVSample,
    low: Tensor,
    high: Tensor,
    schedule: NoiseSchedule,
    *,
    predict: Predictor | None = None,
    distance: Distance = SquaredError(),
    weight: Weight = UnitWeight(),
    window_shift: Any = None,
) -> ClipLoss:
    """L_CM (Eq. 11) per clip, summed over modalities: λ(t_n) d(f_θ(x_{t_{n+1}}, t_{n+1}), stopgrad f_θ⁻(x̂_{t_n}, t_n)).

    x_{t_{n+1}} = α x0 + σ ε; x̂_{t_n} is one ODE step (DDIM; Eq. 10) from t_{n+1} to t_n along the predicted noise. Both
    calls have the same window shift and the same dropout mask.

    Args:
        model: θ.
        target_model: θ⁻.
        clips: x0, as in `multimodal_loss`.
        noise: ε, of the clips' shapes.
        low: t_n (B,).
        high: t_{n+1} (B,), above ``low``.
        schedule: noise schedule on the clips' device.
        predict: φ, the noise prediction that the ODE step follows. None: the true ε (consistency training).
        distance: d.
        weight: λ.
        window_shift: passed on to the models.
    """
    level_low, level_high = schedule.level(low), schedule.level(high)
    noisy = clips.map(lambda x0, eps: add_noise(x0, eps, level_high), noise)
    with torch.no_grad():
        direction = noise if predict is None else predict(noisy, high)
        stepped = noisy.map(lambda x, eps: ddim_step(x, eps, level_high, level_low), direction)
    with same_dropout(clips.audio.device):
        ahead = model(noisy.video, noisy.audio, high, window_shift=window_shift)
    with torch.no_grad():
        behind = target_model(stepped.video, stepped.audio, low, window_shift=window_shift)
        goal = stepped.map(lambda x, eps: consistency_function(x, eps, low, level_low), behind)
    end = noisy.map(lambda x, eps: consistency_function(x, eps, high, level_high), ahead)
    scale = weight(level_low, level_high).float()
    error = end.map(lambda ours, target: scale * per_clip_mean(distance(ours, target)), goal)
    return ClipLoss(error.video + error.audio, {"loss_cm_video": error.video, "loss_cm_audio": error.audio})
