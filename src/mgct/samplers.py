"""Samplers: from Gaussian noise to a clip by way of the network's noise predictions.

Every sampler is a pure function of one packed tensor x (B, D), which holds both modalities of B clips
(`mgct.types.pack`), of a predictor (`mgct.predictors`) and of a grid (`mgct.grids`).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mgct.errors import MgctWarning, UserError
from mgct.grids import (
    Grid,
    Point,
    consistency_grid,
    integer_grid,
    log_snr_grid,
    log_snr_grid_to_clean,
    map_grid,
    points,
)
from mgct.noise import NoiseSchedule, consistency_coefficients, ddim_step, noise_from_x0, x0_from_noise
from mgct.predictors import Known, Predict, misfit_gradient

Noise = Callable[[int], Tensor]


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
    `mgct.predictors.misfit_gradient`) of the mean of (x_t^c - q_t(y))² over the given part c, noise included, through
    the network. Arguments as in `ddpm`.
    """
    for step, (s, t) in enumerate(pairwise(grid)):
        x, z = known.impose(x, s), noise(step)
        states: list[Tensor] = []

        def residual(x: Tensor, s: Point = s, t: Point = t, z: Tensor = z, states: list[Tensor] = states) -> Tensor:
            states.append(_ancestral_step(x, predict(x, s), s, t, z))
            return states[0] - known.at(t)

        if t.sigma > 0:
            gradient = misfit_gradient(x, known, residual)
            x = states[0].detach() - scale * s.alpha * gradient
        else:
            x = _ancestral_step(x, predict(x, s), s, t, z)
    return known.impose(x, grid[-1])


def ddim(predict: Predict, x: Tensor, grid: Grid, noise: Noise | None = None, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al. 2021, Eq. 12 and 16): the ODE's first-order step for η = 0, ancestral for η = 1.

    Arguments as in `ddpm`; ``noise`` is needed for η > 0 only.
    """
    _check_noise(noise, eta)
    for step, (s, t) in enumerate(pairwise(grid)):
        predicted = predict(x, s)
        if noise is None or eta == 0:
            x = ddim_step(x, predicted, s.level(x), t.level(x))
            continue
        spread = eta * (t.sigma / s.sigma) * math.sqrt(1 - (s.alpha / t.alpha) ** 2)
        x0 = x0_from_noise(x, predicted, s.level(x))
        x = t.alpha * x0 + math.sqrt(t.sigma**2 - spread**2) * predicted + spread * noise(step)
    return x


def _check_noise(noise: Noise | None, eta: float) -> None:
    """Refuse the drift of an SDE without its noise."""
    if eta > 0 and noise is None:
        raise ValueError(f"eta={eta:g} needs noise: give a function of the step that draws it, or eta=0")


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
        for point in between:
            state = _singlestep(x, at_s, slope, s, point, order)
            slope = (predict(state, point) - at_s) / (point.log_snr - s.log_snr)
        x = _singlestep(x, at_s, slope, s, t, order)
    return x


def _singlestep(x: Tensor, at_s: Tensor, slope: Tensor | float, s: Point, t: Point, order: int) -> Tensor:
    """From x at point s to point t, as `dpm_solver` has it."""
    h = t.log_snr - s.log_snr
    second = math.expm1(h) * h / 2 if order == 2 else math.expm1(h) - h
    return (t.alpha / s.alpha) * x - t.sigma * (math.expm1(h) * at_s + second * slope)


def dpm_solver_pp(predict: Predict, x: Tensor, grid: Grid, noise: Noise | None = None, eta: float = 0.0) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2): two-step, in data prediction; for η > 0 along the SDE.

    x_t = (σ_t/σ_s) e^{-ηh} x + α_t (1 - e^{-(1+η)h}) D + σ_t √(1 - e^{-2ηh}) z, D = x̂0_s + (h / 2h') (x̂0_s - x̂0_{s'}),
    s' the point before and h' its step. The first step has D = x̂0_s, and so has one that ends clean, where x_t = D.
    η = 0 is the ODE, η = 1 SDE-DPM-Solver++(2M): noise of its own at every step, which takes the place of what the
    network's errors have put into x.

    Arguments as in `ddpm`; ``noise`` is needed for η > 0 only. The last point may be clean.
    """
    _check_noise(noise, eta)
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


def consistency(predict: Predict, x: Tensor, grid: Grid, noise: Noise | None = None) -> Tensor:
    """Consistency sampling (Song et al. 2023, Algorithm 1) of f_θ(x, t) = c_skip(t) x + c_out(t) x̂0 (Eq. 7).

    Each call jumps to the end; every call but the last then goes back to the next point: by fresh ``noise``, as in that
    algorithm, or without it by the ε̂ that x and f imply. Arguments as in `ddpm`; the grid's last point is only an end
    mark.
    """
    for step, (s, t) in enumerate(pairwise(grid)):
        c_skip, c_out = (float(c) for c in consistency_coefficients(torch.tensor([s.timestep])))
        end = c_skip * x + c_out * x0_from_noise(x, predict(x, s), s.level(x))
        if step == len(grid) - 2:
            return end
        back = noise_from_x0(x, end, s.level(x)) if noise is None else noise(step)
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
        solve: ``(predict, x, grid, noise) -> clips``, all packed; one network call for each interval of the grid.
        grid: ``(schedule, steps) -> grid`` of ``steps`` intervals.
        max_steps: most network calls; the fewest are one.
        default_steps: network calls when none are asked for.
        clip: whether x̂0 is clipped to [-1, 1] unless asked otherwise.
        jumps: whether it needs a network with a second time input.
        samples: whether it takes predictions for ends of paths, not for means of what a noisy clip may have been.
    """

    solve: Callable[[Predict, Tensor, Grid, Noise], Tensor]
    grid: Callable[[NoiseSchedule, int], Grid]
    max_steps: int
    default_steps: int
    clip: bool = True
    jumps: bool = False
    samples: bool = False

    def run(self, predict: Predict, x: Tensor, schedule: NoiseSchedule, steps: int, noise: Noise) -> Tensor:
        """Packed clips (B, D) from noise x (B, D), in exactly ``steps`` network calls."""
        return self.solve(predict, x, self.grid(schedule, steps), noise)


def _ode(solver: Callable[[Predict, Tensor, Grid], Tensor]) -> Callable[[Predict, Tensor, Grid, Noise], Tensor]:
    """A solver that needs no noise, as the table has them."""
    return lambda predict, x, grid, _: solver(predict, x, grid)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(ddpm, integer_grid, 1000, 1000),
    "ddim": Sampler(_ode(ddim), integer_grid, 1000, 50),
    "dpm-solver": Sampler(_ode(dpm_solver), lambda schedule, n: log_snr_grid(schedule, n + 1), 1000, 20, clip=False),
    "dpm-solver++": Sampler(_ode(dpm_solver_pp), log_snr_grid_to_clean, 1000, 12),
    "sde-dpm-solver++": Sampler(partial(dpm_solver_pp, eta=1.0), log_snr_grid_to_clean, 1000, 12),
    "unipc": Sampler(_ode(unipc), log_snr_grid_to_clean, 1000, 12),
    "consistency": Sampler(_ode(consistency), consistency_grid, 8, 4, samples=True),
    "map": Sampler(_ode(flow_map), map_grid, 1000, 4, jumps=True, samples=True),
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
    if not isinstance(steps, int) or not 1 <= steps <= sampler.max_steps:
        raise UserError(f"sampler {name!r} takes 1 to {sampler.max_steps} steps, got {steps!r}")
    return sampler, steps


def recommended_samplers(stage: int, jumps: bool) -> dict[str, Sequence[int]]:
    """Name → (fewest, most) network calls of the samplers that a model is meant for.

    Args:
        stage: that its training reached, 1 or 2.
        jumps: whether its second stage taught it jumps (`mgct.losses.FlowMap`).
    """
    denoiser: dict[str, Sequence[int]] = {
        "sde-dpm-solver++": [4, 100],
        "ddpm": [100, 1000],
        "ddim": [25, 1000],
        "dpm-solver": [9, 50],
        "dpm-solver++": [6, 50],
        "unipc": [6, 50],
    }
    if stage == 1:
        return denoiser
    if jumps:
        return {"map": [1, 20], **denoiser}
    return {**denoiser, "ddim": [12, 1000], "dpm-solver++": [4, 50], "unipc": [4, 50], "consistency": [1, 8]}


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
