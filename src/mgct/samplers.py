"""Samplers: from Gaussian noise to a clip by way of the network's noise predictions.

Every sampler is a pure function of one packed tensor x (B, D), which holds both modalities of B clips (`pack`), of a
*predictor* and of a *grid*:

- a predictor ``predict(x, point) -> ε̂`` is the network at one noise level. Whatever changes what is predicted
  (clipping of x̂0, a part of the clip that is known, windows over a long clip) wraps a predictor, so it works with
  every sampler;
- a grid is the list of noise levels (`Point`) the sampler visits, from noise to clean; each but the last costs one
  call.

Timesteps are real numbers: a grid uniform in log-SNR does not fall on integers. The network's time embedding is as
smooth between integers as at them, and what it is told is then the level of its input; rounding costs little and
truncating, as the reference does, an error of 0.1 to 0.2 % that no number of steps removes (``docs/sampling.md``).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mgct.errors import MgctWarning, UserError
from mgct.noise import (
    NoiseLevel,
    NoiseSchedule,
    add_noise,
    consistency_coefficients,
    ddim_step,
    noise_from_x0,
    x0_from_noise,
)
from mgct.types import AVSample


class Point(NamedTuple):
    """One noise level of a grid: the real timestep that the network is told, α and σ.

    ``goal``: the timestep that the prediction there is meant to jump to (`mgct.losses.FlowMap`); None: the denoiser's.
    """

    timestep: float
    alpha: float
    sigma: float
    goal: float | None = None

    @property
    def log_snr(self) -> float:
        """λ = log(α/σ); infinite for a clean clip."""
        return math.log(self.alpha / self.sigma) if self.sigma > 0 else math.inf

    def level(self, like: Tensor) -> NoiseLevel:
        """The same level for the functions of `mgct.noise`, (1,) tensors on the device of ``like``."""
        return NoiseLevel(like.new_tensor([self.alpha]), like.new_tensor([self.sigma]))


CLEAN = Point(0.0, 1.0, 0.0)
Predict = Callable[[Tensor, Point], Tensor]
Noise = Callable[[int], Tensor]
Grid = list[Point]


# ---------------------------------------------------------------------------------------------- packing


def pack(clips: AVSample) -> Tensor:
    """Video (B, F, C, H, W) and audio (B, C, L) side by side as one tensor (B, D); inverse of `unpack`."""
    return torch.cat([clips.video.flatten(1), clips.audio.flatten(1)], 1)


def unpack(x: Tensor, shapes: AVSample) -> AVSample:
    """Video and audio of packed clips x (B, D); ``shapes`` holds the shape of one clip of each modality."""
    video_length = math.prod(shapes.video)
    parts = AVSample(video=x[:, :video_length], audio=x[:, video_length:])
    return parts.map(lambda part, shape: part.reshape(len(x), *shape), shapes)


# ---------------------------------------------------------------------------------------------- grids


def points(schedule: NoiseSchedule, timesteps: Tensor) -> Grid:
    """The noise levels at real timesteps (n,)."""
    alpha, sigma = schedule.level(timesteps)
    return [Point(*values) for values in zip(timesteps.tolist(), alpha.tolist(), sigma.tolist(), strict=True)]


def time_grid(schedule: NoiseSchedule, count: int) -> Grid:
    """``count`` points from the noisiest timestep T-1 to 0, uniform in the timestep."""
    return points(schedule, torch.linspace(schedule.num_timesteps - 1, 0, count, dtype=torch.float64))


def log_snr_grid(schedule: NoiseSchedule, count: int) -> Grid:
    """``count`` points from the noisiest timestep T-1 to 0, uniform in λ = log(α/σ)."""
    first, last = schedule.log_snr(torch.tensor([schedule.num_timesteps - 1.0, 0.0])).tolist()
    timesteps = schedule.timestep_at(torch.linspace(first, last, count, dtype=torch.float64))
    timesteps[0] = schedule.num_timesteps - 1
    return points(schedule, timesteps)


def integer_grid(schedule: NoiseSchedule, count: int) -> Grid:
    """``count`` integer timesteps, evenly spaced over [0, T-1], then the clean end: for DDPM and DDIM.

    Unlike diffusers' "leading" spacing it always starts at T-1, the level that pure noise stands for.
    """
    timesteps = torch.linspace(schedule.num_timesteps - 1, 0, count, dtype=torch.float64).round()
    return [*points(schedule, timesteps), CLEAN]


STABLE_END_CALLS = 10
"""Up to so many calls a multistep solver's last step is a long one, and of first order."""


def log_snr_grid_to_clean(schedule: NoiseSchedule, calls: int) -> Grid:
    """A grid of ``calls`` points uniform in λ, then the clean end, for multistep solvers.

    Timestep 0 still has noise of σ = 0.01, a hiss at -40 dB, hence the last step to the clean end; it can only be of
    first order. Up to `STABLE_END_CALLS` it starts at the last point but one of the grid to timestep 0, where no call
    can be spared, and above from timestep 0 itself; measured in ``docs/sampling.md``.
    """
    points = log_snr_grid(schedule, calls + 1)[:-1] if calls <= STABLE_END_CALLS else log_snr_grid(schedule, calls)
    return [*points, CLEAN]


CONSISTENCY_END = NoiseSchedule().log_snr(torch.tensor(100.0)).item()
"""λ of the last point of a short `consistency_grid`: timestep 100 of the default schedule, wherever sampling starts."""


SHORTEST_CONSISTENCY = 1.0
"""Where sampling starts nearer than this (in λ) to `CONSISTENCY_END`, the usual grid is taken."""


def consistency_grid(schedule: NoiseSchedule, calls: int) -> Grid:
    """``calls`` points uniform in λ, then the clean end, for the consistency sampler.

    Up to four calls the last is at `CONSISTENCY_END`, above where `log_snr_grid` of one point more has its last but
    one; chosen by measurement on trained networks (``docs/sampling.md``).
    """
    first, last = schedule.log_snr(torch.tensor(schedule.num_timesteps - 1.0)).item(), CONSISTENCY_END
    if calls == 1 or calls > 4 or last - first < SHORTEST_CONSISTENCY:
        return [*log_snr_grid(schedule, calls + 1)[:-1], CLEAN]
    timesteps = schedule.timestep_at(torch.linspace(first, last, calls, dtype=torch.float64))
    timesteps[0] = schedule.num_timesteps - 1
    return [*points(schedule, timesteps), CLEAN]


# ---------------------------------------------------------------------------------------------- predictors


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


def _misfit_gradient(x: Tensor, known: Known, residual: Callable[[Tensor], Tensor]) -> Tensor:
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

    ε̂_g ← ε̂_g + s σ α² G, with G the gradient (see `_misfit_gradient`) of the mean of (x̂0_c - y)² over the given
    part: the score of a likelihood exp(-s α² misfit), hence of the same strength for every sampler and number of
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
        gradient = _misfit_gradient(x, known, residual)
        return torch.where(known.mask, known.noise, noise + scale * point.sigma * point.alpha**2 * gradient)

    return wrapped


# ---------------------------------------------------------------------------------------------- samplers


def ddpm(predict: Predict, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2) with the larger of its two variances, β.

    μ = α_t β/σ_s² x̂0 + (α_s/α_t) σ_t²/σ_s² x_s, x_t = μ + √β z, β = 1 - (α_s/α_t)²; the step to the clean end has no
    noise.

    Args:
        predict: the predictor.
        x: noise at the first point, (B, D).
        grid: points from noise to clean.
        noise: draw z of step k, (B, D).
    """
    for step, (s, t) in enumerate(pairwise(grid)):
        x = _ancestral_step(x, predict(x, s), s, t, noise(step))
    return x


def _ancestral_step(x: Tensor, predicted: Tensor, s: Point, t: Point, z: Tensor) -> Tensor:
    """One step of `ddpm` from point s to t."""
    beta = 1 - (s.alpha / t.alpha) ** 2
    x0 = x0_from_noise(x, predicted, s.level(x))
    mean = (t.alpha * beta / s.sigma**2) * x0 + (s.alpha / t.alpha) * (t.sigma / s.sigma) ** 2 * x
    return mean + math.sqrt(beta) * z if t.sigma > 0 else mean


def guided_ddpm(predict: Predict, x: Tensor, grid: Grid, noise: Noise, known: Known, scale: float) -> Tensor:
    """MM-Diffusion's gradient-guided ancestral sampling.

    After each ancestral step s → t (not the last) the free part moves by -scale α_s G, G the gradient (see
    `_misfit_gradient`) of the mean of (x_t^c - q_t(y))² over the given part c, noise included, through the network.
    Arguments as in `ddpm`.
    """
    for step, (s, t) in enumerate(pairwise(grid)):
        x, z = known.impose(x, s), noise(step)
        states: list[Tensor] = []

        def residual(x: Tensor, s: Point = s, t: Point = t, z: Tensor = z, states: list[Tensor] = states) -> Tensor:
            states.append(_ancestral_step(x, predict(x, s), s, t, z))
            return states[0] - known.at(t)

        if t.sigma > 0:
            gradient = _misfit_gradient(x, known, residual)
            x = states[0].detach() - scale * s.alpha * gradient
        else:
            x = _ancestral_step(x, predict(x, s), s, t, z)
    return known.impose(x, grid[-1])


def ddim(predict: Predict, x: Tensor, grid: Grid, noise: Noise | None = None, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al. 2021, Eq. 12 and 16): the ODE's first-order step for η = 0, ancestral for η = 1.

    Arguments as in `ddpm`; ``noise`` is needed for η > 0 only.
    """
    for step, (s, t) in enumerate(pairwise(grid)):
        predicted = predict(x, s)
        if eta == 0 or noise is None:
            x = ddim_step(x, predicted, s.level(x), t.level(x))
            continue
        spread = eta * (t.sigma / s.sigma) * math.sqrt(1 - (s.alpha / t.alpha) ** 2)
        x0 = x0_from_noise(x, predicted, s.level(x))
        x = t.alpha * x0 + math.sqrt(t.sigma**2 - spread**2) * predicted + spread * noise(step)
    return x


def singlestep_orders(calls: int) -> list[int]:
    """Orders of DPM-Solver-3's steps that make exactly ``calls`` network calls: 3, 3, …, and a lower end.

    As in the paper: 9 → 3 3 2 1, 10 → 3 3 3 1, 11 → 3 3 3 2.
    """
    threes, rest = divmod(calls, 3)
    if rest == 0:
        return [3] * (threes - 1) + [2, 1]
    return [3] * threes + [rest]


def dpm_solver(predict: Predict, x: Tensor, grid: Grid) -> Tensor:
    """DPM-Solver-3, singlestep (Lu et al. 2022, Algorithms 1 and 2), in noise prediction.

    From s, with h = λ_t - λ_s, ε_s and a slope dε/dλ found at the points in between:
    x_t = (α_t/α_s) x - σ_t ((e^h - 1) ε_s + (e^h - 1 - h) dε/dλ), exact for ε linear in λ. Order 1 has no slope;
    order 2 replaces the second factor by (e^h - 1) h/2. The points between s and t are the grid's own: a step of
    order k uses up k intervals.

    Args:
        predict: the predictor; called once per interval of the grid.
        x: noise at the first point, (B, D).
        grid: calls + 1 points; the last must not be clean.
    """
    start = 0
    for order in singlestep_orders(len(grid) - 1):
        s, *between, t = grid[start : start + order + 1]
        start += order
        at_s = predict(x, s)
        slope: Tensor | float = 0.0

        def step_to(to: Point, x: Tensor, at_s: Tensor, slope: Tensor | float, s: Point, order: int) -> Tensor:
            h = to.log_snr - s.log_snr
            second = math.expm1(h) * h / 2 if order == 2 else math.expm1(h) - h
            return (to.alpha / s.alpha) * x - to.sigma * (math.expm1(h) * at_s + second * slope)

        for point in between:
            state = step_to(point, x, at_s, slope, s, order)
            slope = (predict(state, point) - at_s) / (point.log_snr - s.log_snr)
        x = step_to(t, x, at_s, slope, s, order)
    return x


def dpm_solver_pp(predict: Predict, x: Tensor, grid: Grid, noise: Noise | None = None, eta: float = 0.0) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2): two-step, in data prediction; for η > 0 along the SDE.

    x_t = (σ_t/σ_s) e^{-ηh} x + α_t (1 - e^{-(1+η)h}) D + σ_t √(1 - e^{-2ηh}) z, D = x̂0_s + (h / 2h') (x̂0_s - x̂0_{s'}),
    s' the point before and h' its step. The first step has D = x̂0_s, and so has one that ends clean, where x_t = D.
    η = 0 is the ODE, η = 1 SDE-DPM-Solver++(2M): noise of its own at every step, which takes the place of what the
    network's errors have put into x.

    Arguments as in `ddpm`; ``noise`` is needed for η > 0 only. The last point may be clean.
    """
    before: Tensor | None = None
    h_before = 0.0
    for step, (s, t) in enumerate(pairwise(grid)):
        x0 = x0_from_noise(x, predict(x, s), s.level(x))
        h = t.log_snr - s.log_snr
        data = x0 if before is None or t.sigma == 0 else x0 + (h / (2 * h_before)) * (x0 - before)
        before, h_before = x0, h
        if t.sigma == 0:
            x = t.alpha * data
            continue
        x = (t.sigma / s.sigma) * math.exp(-eta * h) * x - t.alpha * math.expm1(-(1 + eta) * h) * data
        if noise is not None and eta > 0:
            x = x + t.sigma * math.sqrt(-math.expm1(-2 * eta * h)) * noise(step)
    return x


def consistency(predict: Predict, x: Tensor, grid: Grid, noise: Noise, renoise: bool = True) -> Tensor:
    """Consistency sampling (Song et al. 2023, Algorithm 1) of f_θ(x, t) = c_skip(t) x + c_out(t) x̂0 (Eq. 7).

    Each call jumps to the end; every call but the last then goes back to the next point: by fresh noise, as in that
    algorithm, or with ``renoise`` False by the ε̂ that x and f imply. Arguments as in `ddpm`; the grid's last point is
    only an end mark.
    """
    for step, (s, t) in enumerate(pairwise(grid)):
        c_skip, c_out = (float(c) for c in consistency_coefficients(torch.tensor([s.timestep])))
        end = c_skip * x + c_out * x0_from_noise(x, predict(x, s), s.level(x))
        if step == len(grid) - 2:
            return end
        back = noise(step) if renoise else noise_from_x0(x, end, s.level(x))
        x = t.alpha * end + t.sigma * back
    return x


def flow_map(predict: Predict, x: Tensor, grid: Grid) -> Tensor:
    """Jumps along the ODE from point to point: x_t = α_t x̂0 + σ_t ε̂ with the ε̂ of the jump (`mgct.losses.FlowMap`).

    For a network that has learned the map exactly, the result does not depend on the grid. Arguments as in
    `dpm_solver`; the last point may be clean.
    """
    for s, t in pairwise(grid):
        x = ddim_step(x, predict(x, s._replace(goal=t.timestep)), s.level(x), t.level(x))
    return x


def unipc(predict: Predict, x: Tensor, grid: Grid, order: int = 2) -> Tensor:
    """UniPC (Zhao et al. 2023) as diffusers has it, on any grid: its noise levels are put in place of diffusers' own.

    Arguments as in `dpm_solver`; the last point may be clean.
    """
    from diffusers import UniPCMultistepScheduler

    scheduler: Any = UniPCMultistepScheduler(solver_order=order)
    scheduler.set_timesteps(len(grid) - 1)
    scheduler.sigmas = torch.tensor([point.sigma / point.alpha for point in grid], dtype=torch.float64)
    scheduler.timesteps = torch.arange(len(grid) - 1)
    for index, point in enumerate(grid[:-1]):
        x = scheduler.step(predict(x, point), scheduler.timesteps[index], x).prev_sample
    return x


def diffusers_scheduler(
    predict: Predict, x: Tensor, scheduler: Any, steps: int, schedule: NoiseSchedule, generators: list[torch.Generator]
) -> Tensor:
    """Sample with a scheduler object of diffusers, on its own timesteps.

    Args:
        predict: the predictor; the number of calls is the scheduler's affair.
        x: standard normal noise, (B, D).
        scheduler: any scheduler with ``set_timesteps``, ``scale_model_input`` and ``step``, for noise prediction.
        steps: handed to ``set_timesteps``.
        schedule: the noise schedule of the network.
        generators: one per clip, for schedulers that draw noise.

    Raises:
        UserError: the scheduler's noise schedule or prediction type is not the network's.
    """
    name = type(scheduler).__name__
    for method in ("set_timesteps", "scale_model_input", "step"):
        if not hasattr(scheduler, method):
            raise UserError(f"sampler: {name} is no diffusers scheduler (it has no {method}); use one, or {NAMES}")
    kind = scheduler.config.get("prediction_type", "none (a flow-matching scheduler?)")
    if kind != "epsilon":
        raise UserError(f"sampler: {name} has prediction_type {kind!r}; the network predicts noise: use 'epsilon'")
    levels = getattr(scheduler, "alphas_cumprod", None)
    if (
        levels is None
        or len(levels) != schedule.num_timesteps
        or not torch.allclose(levels.double().cpu(), schedule.alpha_bar.cpu(), rtol=1e-3)
    ):
        raise UserError(
            f"sampler: {name} has another noise schedule than the network; build it with num_train_timesteps="
            f"{schedule.num_timesteps}, beta_schedule='linear', beta_start={schedule.betas[0].item():g}, "
            f"beta_end={schedule.betas[-1].item():g}"
        )
    scheduler.set_timesteps(steps, device=x.device)
    extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x = x * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        point = points(schedule, timestep.reshape(1).double().to(schedule.device))[0]
        predicted = predict(scheduler.scale_model_input(x, timestep), point)
        x = scheduler.step(predicted, timestep, x, **extra).prev_sample
    return x


# ---------------------------------------------------------------------------------------------- the table of samplers


@dataclass(frozen=True)
class Sampler:
    """A named sampler with everything chosen.

    Args:
        run: ``(predict, x, schedule, steps, noise) -> clips``, all packed; makes exactly ``steps`` network calls.
        min_steps: fewest network calls.
        max_steps: most network calls.
        default_steps: network calls when none are asked for.
        clip: whether x̂0 is clipped to [-1, 1] unless asked otherwise.
        jumps: whether it needs a network with a second time input.
    """

    run: Callable[[Predict, Tensor, NoiseSchedule, int, Noise], Tensor]
    min_steps: int
    max_steps: int
    default_steps: int
    clip: bool = True
    jumps: bool = False


def _run_ddpm(predict: Predict, x: Tensor, schedule: NoiseSchedule, steps: int, noise: Noise) -> Tensor:
    return ddpm(predict, x, integer_grid(schedule, steps), noise)


def _run_ddim(predict: Predict, x: Tensor, schedule: NoiseSchedule, steps: int, _: Noise) -> Tensor:
    return ddim(predict, x, integer_grid(schedule, steps))


def _run_dpm_solver(predict: Predict, x: Tensor, schedule: NoiseSchedule, steps: int, _: Noise) -> Tensor:
    return dpm_solver(predict, x, log_snr_grid(schedule, steps + 1))


def _run_dpm_solver_pp(predict: Predict, x: Tensor, schedule: NoiseSchedule, steps: int, _: Noise) -> Tensor:
    return dpm_solver_pp(predict, x, log_snr_grid_to_clean(schedule, steps))


def _run_sde_dpm_solver_pp(predict: Predict, x: Tensor, schedule: NoiseSchedule, steps: int, noise: Noise) -> Tensor:
    return dpm_solver_pp(predict, x, log_snr_grid_to_clean(schedule, steps), noise, eta=1.0)


def _run_unipc(predict: Predict, x: Tensor, schedule: NoiseSchedule, steps: int, _: Noise) -> Tensor:
    return unipc(predict, x, log_snr_grid_to_clean(schedule, steps))


def _run_consistency(predict: Predict, x: Tensor, schedule: NoiseSchedule, steps: int, noise: Noise) -> Tensor:
    return consistency(predict, x, consistency_grid(schedule, steps), noise, renoise=False)


def _run_flow_map(predict: Predict, x: Tensor, schedule: NoiseSchedule, steps: int, _: Noise) -> Tensor:
    return flow_map(predict, x, [*log_snr_grid(schedule, steps + 1)[:-1], CLEAN])


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(_run_ddpm, 1, 1000, 1000),
    "ddim": Sampler(_run_ddim, 1, 1000, 50),
    "dpm-solver": Sampler(_run_dpm_solver, 1, 1000, 20, clip=False),
    "dpm-solver++": Sampler(_run_dpm_solver_pp, 1, 1000, 12),
    "sde-dpm-solver++": Sampler(_run_sde_dpm_solver_pp, 1, 1000, 12),
    "unipc": Sampler(_run_unipc, 1, 1000, 12),
    "consistency": Sampler(_run_consistency, 1, 8, 4),
    "map": Sampler(_run_flow_map, 1, 1000, 4, jumps=True),
}
NAMES = ", ".join(SAMPLERS)
DEFAULT = "sde-dpm-solver++"
"""Where none is asked for: measured best for networks that are trained for little (``docs/sampling.md``)."""


def get_sampler(name: str, steps: int | None = None) -> tuple[Sampler, int]:
    """The sampler called ``name`` and its number of network calls, ``steps`` or its default.

    Raises:
        UserError: no such sampler, or ``steps`` out of its range; the message says what there is.
    """
    if name not in SAMPLERS:
        raise UserError(f"unknown sampler {name!r}; choose one of: {NAMES}")
    sampler = SAMPLERS[name]
    steps = sampler.default_steps if steps is None else steps
    if not isinstance(steps, int) or not sampler.min_steps <= steps <= sampler.max_steps:
        raise UserError(f"sampler {name!r} takes {sampler.min_steps} to {sampler.max_steps} steps, got {steps!r}")
    return sampler, steps


def warn_if_not_recommended(recommended: dict[str, Sequence[int]], name: str, steps: int) -> None:
    """Warn when a model is sampled otherwise than it was made for; `DEFAULT` may be younger than the model.

    Args:
        recommended: sampler name → (fewest, most) steps; empty when nothing is known.
        name: the sampler chosen.
        steps: its number of network calls.
    """
    low, high = recommended.get(name, (1, steps) if name == DEFAULT else (1, 0))
    if recommended and not low <= steps <= high:
        known = "; ".join(f"{key} with {low} to {high} steps" for key, (low, high) in recommended.items())
        warnings.warn(
            f"this model was made for {known}; {name} with {steps} steps may look worse", MgctWarning, stacklevel=4
        )
