"""The two losses of MGCT: the multimodal loss (Eq. 4) and the consistency loss (Eq. 9-11).

Each gives one value per clip, and the values per modality to log. Nothing is drawn here: noise, timesteps and window
shifts come in. A choice (where the network takes a noisy clip, distance, weight, who predicts the ODE's direction) is
an object that is passed in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mgct.errors import UserError
from mgct.graphs import unless_recording
from mgct.noise import NoiseLevel, NoiseSchedule, add_noise, consistency_function, ddim_step
from mgct.types import AVSample


class ClipLoss(NamedTuple):
    """A loss of each clip (B,), named values (B,) to log, and both timesteps (B,) of the multimodal loss, if any.

    The timestep of a modality that is given, and has no loss, is -1.
    """

    loss: Tensor
    logs: dict[str, Tensor]
    timesteps: AVSample | None = None


def per_clip_mean(x: Tensor) -> Tensor:
    """(B, …) → (B,): the mean over each clip's own elements, in float32 or better."""
    return x.flatten(1).to(torch.promote_types(x.dtype, torch.float32)).mean(1)


def of_both(timestep: Tensor | AVSample) -> AVSample:
    """The timesteps (B,) of either modality, be they shared or not."""
    return timestep if isinstance(timestep, AVSample) else AVSample(video=timestep, audio=timestep)


@dataclass(frozen=True)
class Guide:
    """A weaker network, which the multimodal loss leads the trained one away from.

    The loss's target is ε + (1 - 1/s) (stopgrad ε̂ - ε̂_guide). Where it is met on average, ε̂ = ε̂_guide + s (E[ε | x] -
    ε̂_guide): what autoguidance of strength s (Karras et al. 2024) makes of two networks while sampling, in one call and
    of the true mean instead of the stronger one's idea of it. (Tang et al. 2025, Diffusion models without
    classifier-free guidance, train that guidance in so.)

    Args:
        network: of the same data, but trained for less, or smaller; in evaluation mode, without gradients.
        strength: s of either modality, at least 1.
    """

    network: Any
    strength: AVSample

    @torch.no_grad()
    def target(self, noise: AVSample, predicted: AVSample, noisy: AVSample, shift: Any, **times: Tensor) -> AVSample:
        """What ``predicted`` is compared with in place of ``noise``; ``times`` are those that the network was told."""
        blocks = self.network.num_shifted_blocks
        fits = shift is None or isinstance(shift, int) or len(shift) == blocks
        weaker = self.network(noisy.video, noisy.audio, window_shift=shift if fits else 0, **times)

        def led(eps: Tensor, s: float, ours: Tensor, theirs: Tensor) -> Tensor:
            return eps + (1 - 1 / s) * (ours.float() - theirs.float())

        return noise.map(led, self.strength, predicted, weaker)


def multimodal_loss(
    model: nn.Module,
    clips: AVSample,
    noise: AVSample,
    timestep: Tensor | AVSample,
    schedule: NoiseSchedule,
    window_shift: Any = None,
    guide: Guide | None = None,
) -> ClipLoss:
    """L_MM (Eq. 4), per clip: mean over video elements of (ε̂_v - ε_v)² plus mean over audio elements of (ε̂_a - ε_a)².

    Args:
        model: ε_θ, called as `MultimodalUNet`.
        clips: x0, video (B, F, C, H, W) and audio (B, C, L) in [-1, 1].
        noise: ε, of the clips' shapes.
        timestep: (B,) in [0, T-1], shared by both modalities; or one (B,) for each, which the model is then told. A
            modality at 0 beside the other at more is given, not asked for: its error counts as 0.
        schedule: noise schedule on the clips' device.
        window_shift: passed on to the model.
        guide: moves what ε̂ is compared with; None: ε.
    """
    timesteps = of_both(timestep)
    noisy = clips.map(lambda x0, eps, t: add_noise(x0, eps, schedule.level(t)), noise, timesteps)
    told = {"audio_timestep": timestep.audio} if isinstance(timestep, AVSample) else {}
    times = {"timestep": timesteps.video, **told}
    predicted = model(noisy.video, noisy.audio, window_shift=window_shift, **times)
    target = noise if guide is None else guide.target(noise, predicted, noisy, window_shift, **times)
    error = predicted.map(lambda ours, true: per_clip_mean((ours - true).square()), target)
    if told:
        others = AVSample(video=timesteps.audio, audio=timesteps.video)
        given = timesteps.map(lambda own, other: (own == 0) & (other > 0), others)
        error = error.map(lambda value, known: value.masked_fill(known, 0.0), given)
        timesteps = timesteps.map(lambda own, known: own.masked_fill(known, -1), given)
    logs = {"loss_mm_video": error.video, "loss_mm_audio": error.audio}
    return ClipLoss(error.video + error.audio, logs, timesteps)


class NoiseWeight(ABC):
    """How much a noise level counts in the multimodal loss of a modality."""

    @abstractmethod
    def __call__(self, level: NoiseLevel) -> Tensor:
        """(B,) weights."""


@dataclass(frozen=True)
class EvenNoise(NoiseWeight):
    """Each the same, as in Eq. 4: most of the loss then comes from the few levels with hardly any noise."""

    def __call__(self, level: NoiseLevel) -> Tensor:
        """(B,) ones."""
        return torch.ones_like(level.alpha)


@dataclass(frozen=True)
class MinSNR(NoiseWeight):
    """min(SNR, γ)/SNR, SNR = (α/σ)²: with less noise than γ's, errors count as those of x̂0 do (Hang et al. 2023).

    Args:
        gamma: γ.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise UserError(f"MinSNR: gamma must be positive, got {self.gamma}")

    def __call__(self, level: NoiseLevel) -> Tensor:
        """(B,) weights."""
        return (self.gamma * (level.sigma / level.alpha).square()).clamp(max=1)


@dataclass(frozen=True)
class VelocityWeight(NoiseWeight):
    """1/α²: errors count as those of the velocity α ε - σ x0 do, so noisy levels as x0's and clean ones as the noise's.

    For a network that predicts the velocity (`MultimodalUNet` with ``prediction_type`` ``v_prediction``).
    """

    def __call__(self, level: NoiseLevel) -> Tensor:
        """(B,) weights."""
        return level.alpha.square().reciprocal()


@dataclass(frozen=True)
class NoiseWeights:
    """How much each noise level counts in the multimodal loss, in either modality.

    Args:
        video: of the picture.
        audio: of the sound.
    """

    video: NoiseWeight = EvenNoise()
    audio: NoiseWeight = EvenNoise()

    def __call__(self, timesteps: AVSample, schedule: NoiseSchedule) -> AVSample:
        """(B,) float32 weights of both at their timesteps (B,)."""
        weights = AVSample(video=self.video, audio=self.audio)
        return weights.map(lambda weight, t: weight(schedule.level(t)).float(), timesteps)


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

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise UserError(f"PseudoHuber: c must be positive, got {self.c}")

    def __call__(self, ours: Tensor, target: Tensor) -> Tensor:
        """Cost of each element."""
        return torch.sqrt((ours - target).square() + self.c**2) - self.c


class Levels(NamedTuple):
    """The noise levels of a consistency pair: t_n, t_{n+1}, and r, where both are taken."""

    low: NoiseLevel
    high: NoiseLevel
    goal: NoiseLevel

    @property
    def reach(self) -> Tensor:
        """c = α_r σ_t/α_t - σ_r for t = t_{n+1}, (B,): an error of ε̂ makes c times that error at r."""
        return self.goal.alpha * self.high.sigma / self.high.alpha - self.goal.sigma


class Weight(ABC):
    """λ of Eq. 9: the weight of each pair of adjacent levels."""

    @abstractmethod
    def __call__(self, levels: Levels) -> Tensor:
        """(B,) weights."""


@dataclass(frozen=True)
class UnitWeight(Weight):
    """λ = 1. The paper names λ in Eq. 9 and Algorithm 1 and gives no value; this is the plainest reading."""

    def __call__(self, levels: Levels) -> Tensor:
        """(B,) ones."""
        return torch.ones_like(levels.high.alpha)


@dataclass(frozen=True)
class NoiseUnits(Weight):
    """λ = 1/c², c the `Levels.reach`: an error counts as the error of ε̂ that makes it, as in the multimodal loss.

    For the end point, r = 0, it is (α/σ)² at t_{n+1}.
    """

    def __call__(self, levels: Levels) -> Tensor:
        """(B,) weights."""
        return levels.reach.square().reciprocal()


@dataclass(frozen=True)
class InverseReach(Weight):
    """λ = 1/c, c the `Levels.reach`: between `UnitWeight` and `NoiseUnits`."""

    def __call__(self, levels: Levels) -> Tensor:
        """(B,) weights."""
        return levels.reach.reciprocal()


@dataclass(frozen=True)
class InverseGap(Weight):
    """λ = 1/(t - r) of easy consistency tuning (Geng et al. 2024), t > r the ratios σ/α of the pair."""

    def __call__(self, levels: Levels) -> Tensor:
        """(B,) weights."""
        return (levels.high.sigma / levels.high.alpha - levels.low.sigma / levels.low.alpha).reciprocal()


class Jump(ABC):
    """Where a network takes a noisy clip: what must come out the same from both levels of a pair.

    ``needs_target_time`` says that the network must be told the goal, `MultimodalUNet` with ``target_time``.
    """

    needs_target_time: ClassVar[bool] = False

    @abstractmethod
    def goal(self, grid: Tensor, index: Tensor, uniform: Tensor) -> Tensor:
        """The timesteps r (B,) that the pairs (grid[index], grid[index + 1]) are taken to.

        Args:
            grid: t_1 < … < t_N.
            index: (B,) the lower level of each pair.
            uniform: (B,) in [0, 1), to draw by.
        """

    @abstractmethod
    def level(self, goal: Tensor, schedule: NoiseSchedule) -> NoiseLevel:
        """The noise level at r."""

    @abstractmethod
    def __call__(
        self, model: nn.Module, noisy: AVSample, timestep: Tensor, goal: Tensor, schedule: NoiseSchedule, shift: Any
    ) -> AVSample:
        """Noisy clips at ``timestep`` (B,), taken to ``goal`` (B,)."""


@dataclass(frozen=True)
class EndPoint(Jump):
    """The consistency function f_θ(x, t) = c_skip x + c_out x̂0 of Eq. 7: to the clean end, always."""

    def goal(self, grid: Tensor, index: Tensor, uniform: Tensor) -> Tensor:  # noqa: ARG002
        """Zeros."""
        return torch.zeros_like(grid[index])

    def level(self, goal: Tensor, schedule: NoiseSchedule) -> NoiseLevel:  # noqa: ARG002
        """The clean end."""
        return NoiseLevel(torch.ones_like(goal), torch.zeros_like(goal))

    def __call__(
        self,
        model: nn.Module,
        noisy: AVSample,
        timestep: Tensor,
        goal: Tensor,  # noqa: ARG002
        schedule: NoiseSchedule,
        shift: Any,
    ) -> AVSample:
        """f_θ."""
        level = schedule.level(timestep)
        predicted = model(noisy.video, noisy.audio, timestep, window_shift=shift)
        return noisy.map(lambda x, eps: consistency_function(x, eps, timestep, level), predicted)


@dataclass(frozen=True)
class FlowMap(Jump):
    """The map from t to any r < t along the ODE: x_r = α_r x̂0 + σ_r ε̂ with ε̂ = ε_θ(x, t, r), which is told r.

    With r = t the network stays the denoiser of the multimodal loss, so one output need not serve two ends. From the
    pair's lower level a jump to r = t_n is nothing, so there the loss asks for the ODE's own step.

    Args:
        clean: the share of pairs that are taken to r = 0; the others go to a grid point up to t_n, each as likely.
    """

    needs_target_time: ClassVar[bool] = True
    clean: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.clean <= 1:
            raise UserError(f"FlowMap: clean must lie in [0, 1], got {self.clean}")

    def goal(self, grid: Tensor, index: Tensor, uniform: Tensor) -> Tensor:
        """A grid point up to the lower level."""
        spread = (uniform - self.clean).clamp(min=0) / (1 - self.clean) if self.clean < 1 else torch.zeros_like(uniform)
        return grid[(spread * (index + 1)).long()]

    def level(self, goal: Tensor, schedule: NoiseSchedule) -> NoiseLevel:
        """The level at r."""
        return schedule.level(goal)

    def __call__(
        self, model: nn.Module, noisy: AVSample, timestep: Tensor, goal: Tensor, schedule: NoiseSchedule, shift: Any
    ) -> AVSample:
        """The jump from ``timestep`` to ``goal``."""
        level, there = schedule.level(timestep), schedule.level(goal)
        predicted = model(noisy.video, noisy.audio, timestep, window_shift=shift, target_timestep=goal)
        return noisy.map(lambda x, eps: ddim_step(x, eps, level, there), predicted)


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
    """Whatever is drawn inside from torch's global generators is drawn again after; not in a CUDA graph."""
    with unless_recording(torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])):
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
    jump: Jump = EndPoint(),
    goal: Tensor | None = None,
    predict: Predictor | None = None,
    distance: Distance = SquaredError(),
    weight: Weight = UnitWeight(),
    window_shift: Any = None,
) -> ClipLoss:
    """L_CM (Eq. 11) per clip, summed over modalities: λ(t_n) d(f_θ(x_{t_{n+1}}, t_{n+1}), stopgrad f_θ⁻(x̂_{t_n}, t_n)).

    f is the consistency function of the paper, or another ``jump``.

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
        jump: f.
        goal: r (B,), at most ``low``: where the jump goes. None: 0.
        predict: φ, the noise prediction that the ODE step follows. None: the true ε (consistency training).
        distance: d.
        weight: λ.
        window_shift: passed on to the models.
    """
    level_low, level_high = schedule.level(low), schedule.level(high)
    goal = torch.zeros_like(low) if goal is None else goal
    noisy = clips.map(lambda x0, eps: add_noise(x0, eps, level_high), noise)
    with torch.no_grad():
        direction = noise if predict is None else predict(noisy, high)
        stepped = noisy.map(lambda x, eps: ddim_step(x, eps, level_high, level_low), direction)
    with same_dropout(clips.audio.device):
        ours = jump(model, noisy, high, goal, schedule, window_shift)
    with torch.no_grad():
        theirs = jump(target_model, stepped, low, goal, schedule, window_shift)
    scale = weight(Levels(level_low, level_high, jump.level(goal, schedule))).float()
    error = ours.map(lambda here, there: scale * per_clip_mean(distance(here, there)), theirs)
    return ClipLoss(error.video + error.audio, {"loss_cm_video": error.video, "loss_cm_audio": error.audio})
