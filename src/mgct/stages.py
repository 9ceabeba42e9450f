"""The two stages of MGCT (Eq. 12, Algorithm 1): which loss, which θ⁻, and when the first stage hands over."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mgct.clip_random import ClipRandom
from mgct.errors import UserError
from mgct.layout import local_parts
from mgct.losses import (
    ClipLoss,
    Distance,
    EndPoint,
    Guide,
    Jump,
    NoiseWeights,
    Predictor,
    SquaredError,
    UnitWeight,
    Weight,
    consistency_loss,
    evaluating,
    multimodal_loss,
    of_both,
)
from mgct.noise import NoiseSchedule
from mgct.types import AVSample


@dataclass(frozen=True)
class Transfer:
    """Model Consistency Transferring: stage 2 starts when the running average of the loss falls below δ.

    Args:
        delta: δ of Eq. 12; None: only ``max_steps`` decides.
        min_steps: steps that stage 1 has at the least.
        max_steps: steps that stage 1 has at the most; None: no limit. 0: stage 2 from the first step.
        average_steps: length of the running average, in steps.
        weights: what stage 2 starts from: the ``live`` weights, or their average, ``ema``.
        keep_optimizer: whether the optimiser's moments stay.
    """

    delta: float | None = None
    min_steps: int = 0
    max_steps: int | None = None
    average_steps: int = 100
    weights: Literal["live", "ema"] = "live"
    keep_optimizer: bool = True

    def __post_init__(self) -> None:
        if self.delta is not None and not self.delta > 0:
            raise UserError(f"transfer.delta must be positive, got {self.delta}")
        if self.average_steps < 1:
            raise UserError(f"transfer.average_steps must be at least 1, got {self.average_steps}")
        if self.max_steps is not None and self.max_steps < self.min_steps:
            raise UserError(f"transfer.max_steps ({self.max_steps}) is below transfer.min_steps ({self.min_steps})")

    def due(self, step: int, average: float) -> bool:
        """Whether stage 1 ends after ``step`` steps with this running average of the loss."""
        if self.max_steps is not None and step >= self.max_steps:
            return True
        return self.delta is not None and step >= max(self.min_steps, 1) and average < self.delta


@dataclass(frozen=True)
class Grid(ABC):
    """t_1 < … < t_N over [0, T-1]: the levels between which consistency is asked for.

    Args:
        num_points: N of Eq. 9; with ``growth_steps``, what it grows to.
        first_points: N just after the transfer.
        growth_steps: N doubles at even intervals within so many steps after the transfer (Song & Dhariwal 2023); 0: it
            is ``num_points`` at once.
    """

    num_points: int = 50
    first_points: int = 10
    growth_steps: int = 0

    def __post_init__(self) -> None:
        if self.num_points < 2 or self.first_points < 2:
            raise UserError(f"a grid needs at least 2 points, got {min(self.num_points, self.first_points)}")
        if self.growth_steps < 0:
            raise UserError(f"grid.growth_steps must not be negative, got {self.growth_steps}")

    def count(self, updates: int) -> int:
        """N, k updates after the transfer."""
        if updates >= self.growth_steps or self.first_points >= self.num_points:
            return self.num_points
        doublings = math.ceil(math.log2(self.num_points / self.first_points))
        return min(self.first_points * 2 ** (updates * doublings // self.growth_steps), self.num_points)

    @abstractmethod
    def timesteps(self, schedule: NoiseSchedule, updates: int) -> Tensor:
        """(N,) float64 timesteps, increasing, from 0 to T-1, on the schedule's device."""


@dataclass(frozen=True)
class UniformGrid(Grid):
    """N points evenly spaced in t."""

    def timesteps(self, schedule: NoiseSchedule, updates: int) -> Tensor:
        """(N,) float64 timesteps."""
        last = schedule.num_timesteps - 1
        return torch.linspace(0, last, self.count(updates), dtype=torch.float64, device=schedule.device)


@dataclass(frozen=True)
class LogSnrGrid(Grid):
    """N points evenly spaced in log-SNR."""

    def timesteps(self, schedule: NoiseSchedule, updates: int) -> Tensor:
        """(N,) float64 timesteps."""
        last = schedule.num_timesteps - 1
        ends = schedule.log_snr(torch.tensor([0.0, last], dtype=torch.float64, device=schedule.device))
        fraction = torch.linspace(0, 1, self.count(updates), dtype=torch.float64, device=schedule.device)
        timesteps = schedule.timestep_at(torch.lerp(ends[0], ends[1], fraction))
        timesteps[0], timesteps[-1] = 0, last
        return timesteps


class Direction(ABC):
    """φ of Eq. 10: who predicts the noise that the ODE step follows."""

    needs_teacher: ClassVar[bool] = False

    @abstractmethod
    def predictor(self, target: nn.Module, teacher: nn.Module | None, window_shift: Any) -> Predictor | None:
        """The prediction to use; None: the true noise."""


def _as_predictor(model: nn.Module, window_shift: Any) -> Predictor:
    """The model, without dropout, as a function of noisy clips and timesteps."""

    def predict(noisy: AVSample, timestep: Tensor) -> AVSample:
        with evaluating(model):
            return model(noisy.video, noisy.audio, timestep, window_shift=window_shift)

    return predict


@dataclass(frozen=True)
class TargetDirection(Direction):
    """φ = θ⁻: the running average that is also the target."""

    def predictor(self, target: nn.Module, teacher: nn.Module | None, window_shift: Any) -> Predictor | None:  # noqa: ARG002
        """θ⁻ without dropout."""
        return _as_predictor(target, window_shift)


@dataclass(frozen=True)
class TeacherDirection(Direction):
    """φ = the frozen weights of the moment of transfer: consistency distillation."""

    needs_teacher: ClassVar[bool] = True

    def predictor(self, target: nn.Module, teacher: nn.Module | None, window_shift: Any) -> Predictor | None:  # noqa: ARG002
        """The teacher without dropout."""
        if teacher is None:
            raise RuntimeError("the teacher is made at the transfer")
        return _as_predictor(teacher, window_shift)


@dataclass(frozen=True)
class DataDirection(Direction):
    """φ = the true noise: consistency training, one network call fewer."""

    def predictor(self, target: nn.Module, teacher: nn.Module | None, window_shift: Any) -> Predictor | None:  # noqa: ARG002
        """None."""
        return None


@dataclass(frozen=True)
class TargetDecay:
    """μ(k) = min(value, (1 + k) / (10 + k)) with warm-up, else value, for k updates since the transfer.

    Args:
        value: μ, in [0, 1). 0: θ⁻ is θ.
        warmup: start with a shorter average.
    """

    value: float = 0.95
    warmup: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.value < 1:
            raise UserError(f"consistency.decay: value must lie in [0, 1), got {self.value}")

    def __call__(self, updates: int) -> float:
        """μ(k)."""
        return min(self.value, (1 + updates) / (10 + updates)) if self.warmup else self.value


@dataclass(frozen=True)
class LossRatio:
    """w of Eq. 12, k steps after the transfer: rises linearly to ``value`` over ``ramp_steps``.

    Args:
        value: w in [0, 1]; the paper's is 0.5 for Landscape, 0.7 for AIST++.
        ramp_steps: steps until w is reached; 0: at once.
    """

    value: float = 0.5
    ramp_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise UserError(f"the loss ratio w must lie in [0, 1], got {self.value}")

    def __call__(self, updates: int) -> float:
        """w(k)."""
        return self.value * min(1.0, (updates + 1) / self.ramp_steps) if self.ramp_steps else self.value


@dataclass(frozen=True)
class Timesteps:
    """How the noise levels of the multimodal loss are drawn: uniform in t, and the same for both modalities (Eq. 4).

    Args:
        independent: the share of clips whose picture and sound are at levels drawn each for itself. Only where one is
            clearer than the other does a network learn much of what either says of the other; and it then generates
            one for the other without guidance (UniDiffuser, Bao et al. 2023). The network needs ``audio_time``.
        given: the share of clips of which one modality, either as likely, is given: at level 0, and of loss 0, in the
            mean that δ is compared with too. One says most of the other where it is clear and the other hardly to be
            made out, which two levels drawn each for itself seldom are. The network needs ``audio_time``.
    """

    independent: float = 0.0
    given: float = 0.0

    def __post_init__(self) -> None:
        for name in ("independent", "given"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"timesteps.{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.independent + self.given > 1:
            raise UserError(
                f"timesteps.independent and timesteps.given are shares of the clips, together at most 1, got "
                f"{self.independent} and {self.given}"
            )

    @property
    def apart(self) -> bool:
        """Whether the modalities ever have levels of their own."""
        return self.independent + self.given > 0

    def __call__(self, random: ClipRandom, num_timesteps: int) -> Tensor | AVSample:
        """(B,) timesteps in [0, num_timesteps - 1], or those of either modality."""
        timestep = random.integers("mm.timestep", num_timesteps)
        if not self.apart:
            return timestep
        own, kind = random.integers("mm.audio_timestep", num_timesteps), random.uniform("mm.independent")
        video, audio = timestep, torch.where(kind < self.independent, own, timestep)
        if self.given:
            given, sound = kind >= 1 - self.given, random.uniform("mm.given") < 0.5
            video, audio = video.masked_fill(given & ~sound, 0), audio.masked_fill(given & sound, 0)
        return AVSample(video=video, audio=audio)


@dataclass(frozen=True)
class Guidance:
    """Guidance by a weaker model that the network learns while it trains; see `mgct.losses.Guide`.

    Args:
        guide: the weaker model, a saved model or run folder; empty: none.
        strength: s, of the autoguidance that is learned; 1: none.
        audio_strength: that of the sound; None: as the picture's.
    """

    guide: str = ""
    strength: float = 1.5
    audio_strength: float | None = None

    def __post_init__(self) -> None:
        for name in ("strength", "audio_strength"):
            if (value := getattr(self, name)) is not None and not 1 <= value <= 10:
                raise UserError(f"guidance.{name} must lie in [1, 10], got {value}")

    @property
    def strengths(self) -> AVSample:
        """s of either modality."""
        return AVSample(self.strength, self.strength if self.audio_strength is None else self.audio_strength)


class Balance(ABC):
    """How the losses of the two modalities, each a mean over its own elements, become one."""

    def parameters(self) -> nn.Module:
        """What is learned of it, if anything."""
        return nn.Module()

    @abstractmethod
    def __call__(self, name: str, error: AVSample, learned: nn.Module) -> Tensor:
        """(B,) loss of the errors (B,) of loss ``name``, mm or cm."""


@dataclass(frozen=True)
class OwnElements(Balance):
    """Their sum, as in Eq. 4: a modality counts the same however many elements it has."""

    def __call__(self, name: str, error: AVSample, learned: nn.Module) -> Tensor:  # noqa: ARG002
        """The sum."""
        return error.video + error.audio


@dataclass(frozen=True)
class LearnedUncertainty(Balance):
    """Σ exp(-s) L + s with one learned s = log σ² per modality and loss (Kendall et al. 2018), all 0 at first."""

    def parameters(self) -> nn.Module:
        """The four s."""
        return nn.ParameterDict(
            {f"{name}_{modality}": torch.zeros(()) for name in ("mm", "cm") for modality in ("video", "audio")}
        )

    def __call__(self, name: str, error: AVSample, learned: Any) -> Tensor:
        """The weighted sum."""
        s = AVSample(video=learned[f"{name}_video"], audio=learned[f"{name}_audio"])
        parts = error.map(lambda e, log_variance: torch.exp(-log_variance) * e + log_variance, s)
        return parts.video + parts.audio


@dataclass(frozen=True)
class Consistency:
    """Layer Consistency Transferring: everything that stage 2 adds to stage 1.

    Args:
        ratio: w, the share of the consistency loss.
        share: the share of each batch's clips that the consistency loss sees: less of it, less compute a step. Its mean
            is over those, so the weight of the loss stays.
        jump: f, what is to be consistent.
        grid: the levels between which consistency is asked for; N is its number of points.
        direction: φ.
        distance: d.
        weight: λ.
        decay: μ(k) of θ⁻.
    """

    ratio: LossRatio = field(default_factory=LossRatio)
    share: float = 1.0
    jump: Jump = field(default_factory=EndPoint)
    grid: Grid = field(default_factory=UniformGrid)
    direction: Direction = field(default_factory=TargetDirection)
    distance: Distance = field(default_factory=SquaredError)
    weight: Weight = field(default_factory=UnitWeight)
    decay: TargetDecay = field(default_factory=TargetDecay)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"consistency.share must lie in (0, 1], got {self.share}")


@torch.no_grad()
def average_into(average: nn.Module, model: nn.Module, decay: float, taken: Tensor | None = None) -> None:
    """average ← decay · average + (1 - decay) · model, for all parameters at once.

    Args:
        average: changed in place.
        model: its parameters lie as the average's do.
        decay: in [0, 1].
        taken: 1.0, or 0.0 to leave the average as it is, on the device, so that nobody waits for it; None: 1.
    """
    ours, theirs = local_parts(average.parameters()), local_parts(model.parameters())
    if taken is None:
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        return
    change = torch._foreach_sub(theirs, ours)
    torch._foreach_mul_(change, (1 - decay) * taken)
    torch._foreach_add_(ours, change)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of the model whose parameters take no gradient."""
    return copy.deepcopy(model).requires_grad_(False)


class MGCT:
    """The objective of Algorithm 1 and its state: the stage, θ⁻, the teacher, the running average of the loss.

    Args:
        schedule: noise schedule on the training device.
        transfer: when stage 2 starts.
        consistency: what stage 2 minimises.
        balance: how the modalities are weighed, in both stages.
        noise_weight: how much each noise level counts in L_MM; not in ``loss_mm``, which is logged and which δ is
            compared with.
        timesteps: how the noise levels of L_MM are drawn.
        guide: what L_MM leads the network away from; None: nothing.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        transfer: Transfer,
        consistency: Consistency,
        balance: Balance = OwnElements(),
        noise_weight: NoiseWeights = NoiseWeights(),
        timesteps: Timesteps = Timesteps(),
        guide: Guide | None = None,
    ) -> None:
        self.schedule = schedule
        self.transfer = transfer
        self.consistency = consistency
        self.balance = balance
        self.noise_weight = noise_weight
        self.timesteps = timesteps
        self.guide = guide
        self.learned = balance.parameters()
        self.grid = consistency.grid.timesteps(schedule, 0)
        self.stage = 1
        self.transfer_step: int | None = None
        self.updates = 0
        self.average: float | None = None
        self.target: nn.Module | None = None
        self.teacher: nn.Module | None = None

    def loss(self, model: nn.Module, clips: AVSample, random: ClipRandom, window_shift: Any = None) -> ClipLoss:
        """Stage 1: L_MM. Stage 2: (1 - w) L_MM + w L_CM (Eq. 12). Per clip.

        Args:
            model: θ.
            clips: x0, as in `losses.multimodal_loss`.
            random: the clips' random numbers.
            window_shift: passed on to the models.
        """
        noise = self._noise(clips, random, "mm")
        timestep = self.timesteps(random, self.schedule.num_timesteps).to(clips.audio.device)
        plain = multimodal_loss(model, clips, noise, timestep, self.schedule, window_shift, self.guide)
        logs = {"loss_mm": plain.loss, **plain.logs}
        loss = self._balanced("mm", plain, self.noise_weight(of_both(timestep), self.schedule))
        if self.stage == 2:
            consistent = self._consistency(model, clips, random, window_shift)
            ratio = self.consistency.ratio(self.updates)
            loss = (1 - ratio) * loss + ratio * self._spread(self._balanced("cm", consistent), len(loss))
            logs |= {"loss_cm": consistent.loss, **consistent.logs}
        return ClipLoss(loss, logs, plain.timesteps)

    def variant(self) -> tuple[Any, ...]:
        """What `loss` depends on besides its arguments and weights; another variant is another computation."""
        if self.stage == 1:
            return (1,)
        return (2, self.consistency.ratio(self.updates), self.consistency.grid.count(self.updates))

    def _balanced(self, name: str, result: ClipLoss, weights: AVSample | None = None) -> Tensor:
        """One loss (B,) of the errors of the two modalities, each times its weights (B,)."""
        error = AVSample(video=result.logs[f"loss_{name}_video"], audio=result.logs[f"loss_{name}_audio"])
        if weights is not None:
            error = error.map(torch.mul, weights)
        return self.balance(name, error, self.learned)

    @staticmethod
    def _spread(loss: Tensor, count: int) -> Tensor:
        """The losses of some clips as those of ``count``, with the same mean."""
        return torch.nn.functional.pad(loss * (count / len(loss)), (0, count - len(loss)))

    def _consistency(self, model: nn.Module, clips: AVSample, random: ClipRandom, window_shift: Any) -> ClipLoss:
        """L_CM of a random pair of adjacent levels, for the batch's first clips."""
        settings = self.consistency
        if self.target is None:
            raise RuntimeError("stage 2 without θ⁻: start_stage_2 or load_state comes first")
        if len(self.grid) != settings.grid.count(self.updates):
            self.grid = settings.grid.timesteps(self.schedule, self.updates)
        count = math.ceil(settings.share * len(clips.audio))
        clips, random = clips.map(lambda x: x[:count]), random.first(count)
        index = random.integers("cm.pair", len(self.grid) - 1).to(self.grid.device)
        goal = settings.jump.goal(self.grid, index, random.uniform("cm.goal").to(self.grid.device))
        return consistency_loss(
            model,
            self.target,
            clips,
            self._noise(clips, random, "cm"),
            self.grid[index],
            self.grid[index + 1],
            self.schedule,
            jump=settings.jump,
            goal=goal,
            predict=settings.direction.predictor(self.target, self.teacher, window_shift),
            distance=settings.distance,
            weight=settings.weight,
            window_shift=window_shift,
        )

    @staticmethod
    def _noise(clips: AVSample, random: ClipRandom, name: str) -> AVSample:
        """ε of the clips' shapes."""
        return AVSample(
            video=random.normal(f"{name}.video", clips.video.shape[1:]),
            audio=random.normal(f"{name}.audio", clips.audio.shape[1:]),
        )

    def observe(self, loss: float, steps: int) -> None:
        """Take note of the mean multimodal loss of the last ``steps`` steps."""
        keep = (1 - 1 / self.transfer.average_steps) ** steps
        self.average = loss if self.average is None else keep * self.average + (1 - keep) * loss

    def transfer_due(self, step: int) -> bool:
        """Whether stage 2 starts now, after ``step`` steps in all."""
        return self.stage == 1 and self.transfer.due(step, float("inf") if self.average is None else self.average)

    def start_stage_2(self, model: nn.Module, step: int) -> None:
        """θ⁻ ← θ: the same size, the same weights; and the teacher, if φ is one."""
        self.target = frozen_copy(model).train()
        self.teacher = frozen_copy(model).eval() if self.consistency.direction.needs_teacher else None
        self.stage, self.transfer_step, self.updates = 2, step, 0

    def after_step(self, model: nn.Module, taken: Tensor | None = None) -> None:
        """θ⁻ ← μ(k) θ⁻ + (1 - μ(k)) θ, after an optimiser step of stage 2; ``taken`` as in `average_into`."""
        if self.target is not None:
            average_into(self.target, model, self.consistency.decay(self.updates), taken)
            self.updates += 1

    def state(self) -> dict[str, Any]:
        """The numbers that a checkpoint keeps; the networks are kept beside them."""
        names = ("stage", "transfer_step", "updates", "average")
        return {name: getattr(self, name) for name in names}

    def networks(self) -> dict[str, nn.Module]:
        """θ⁻ and the teacher, as far as there are any."""
        networks = {"target": self.target, "teacher": self.teacher}
        return {name: network for name, network in networks.items() if network is not None}

    def load_state(self, state: dict[str, Any], model: nn.Module, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what `state` gave, and the networks from the state_dicts under the names of `networks`."""
        if state["stage"] == 2:
            self.start_stage_2(model, state["transfer_step"])
            for name, network in self.networks().items():
                if name not in weights:
                    raise UserError(
                        f"the checkpoint has no {name} network; resume with the consistency settings it had"
                    )
                network.load_state_dict(weights[name])
        for name, value in state.items():
            setattr(self, name, value)
