"""What the noise levels between start and end, and the amount of fresh noise, are worth to the SDE at few calls.

    python benchmarks/grids.py landscape world:landscape --calls 6

The grid of `sde-dpm-solver++` (uniform in log-SNR) beside that of Karras et al. (2022), uniform in (σ/α)^(1/ρ), and one
half-way to a grid uniform in t; and its η = 1 beside less and more noise. All end at the same level.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from start_level import measure
from torch import Tensor

from mgct import grids, samplers
from mgct.noise import NoiseSchedule

Spacing = Callable[[NoiseSchedule, Tensor, Tensor], Tensor]
"""Timesteps at the places u in [0, 1] between two timesteps."""


def by_log_snr(schedule: NoiseSchedule, ends: Tensor, u: Tensor) -> Tensor:
    """Uniform in log(α/σ)."""
    first, last = schedule.log_snr(ends)
    return schedule.timestep_at(first + u * (last - first))


def by_rho(rho: float, schedule: NoiseSchedule, ends: Tensor, u: Tensor) -> Tensor:
    """Uniform in (σ/α)^(1/ρ)."""
    first, last = torch.exp(-schedule.log_snr(ends) / rho)
    return schedule.timestep_at(-rho * torch.log(first + u * (last - first)))


def half_way(schedule: NoiseSchedule, ends: Tensor, u: Tensor) -> Tensor:
    """The mean of timesteps uniform in log-SNR and uniform."""
    return (by_log_snr(schedule, ends, u) + ends[0] + u * (ends[1] - ends[0])) / 2


WAYS: dict[str, tuple[Spacing, float]] = {
    "log-SNR": (by_log_snr, 1.0),
    "ρ = 7": (partial(by_rho, 7.0), 1.0),
    "ρ = 3": (partial(by_rho, 3.0), 1.0),
    "half-way to uniform t": (half_way, 1.0),
    "log-SNR, η = 0.6": (by_log_snr, 0.6),
    "log-SNR, η = 1.4": (by_log_snr, 1.4),
}


def sampler_of(spacing: Spacing, eta: float) -> samplers.Sampler:
    """`sde-dpm-solver++` on another grid, or with another η."""

    def grid(schedule: NoiseSchedule, steps: int) -> grids.Grid:
        usual = grids.log_snr_grid_to_clean(schedule, steps)
        ends = torch.tensor([usual[0].timestep, usual[-2].timestep], dtype=torch.float64)
        timesteps = spacing(schedule, ends, torch.linspace(0, 1, steps, dtype=torch.float64))
        timesteps[0] = ends[0]
        return [*grids.points(schedule, timesteps), grids.CLEAN]

    return samplers.Sampler(partial(samplers.dpm_solver_pp, eta=eta), grid, 1000, 12)


def main() -> None:
    """Read the options, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", help="real clips, a world without a number")
    parser.add_argument("--start", type=int, default=850)
    parser.add_argument("--calls", type=int, nargs="+", default=[6])
    parser.add_argument("--num", type=int, default=256)
    parser.add_argument("--real", type=int, default=1024)
    options = parser.parse_args()
    for name, way in WAYS.items():
        samplers.SAMPLERS[name] = sampler_of(*way)
    measure(options.model, options.data, list(WAYS), options.calls, [options.start], options.num, options.real)


if __name__ == "__main__":
    main()
