"""Makes ``docs/images/method-solver.png``: python docs/figures/solver.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mixture import BLUE, GREY, ORANGE, SCHEDULE, save
from torch import Tensor

from mgct.grids import Point, log_snr_grid
from mgct.samplers import dpm_solver

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from published_solver import PublishedSolver

STD = torch.tensor([0.5, 0.3], dtype=torch.float64)
"""Standard deviations of the picture and of the sound, one number each, both Gaussian."""
CALLS = range(6, 31)
PAPER = (9, 10, 12, 15, 20)


def exact_noise(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """ε̂ of Gaussian data, (1, 2)."""
    return x * sigma / ((alpha * STD) ** 2 + sigma**2)


def published(calls: int) -> Tensor:
    """Deviations (2,) of picture and sound by the published solver.

    Everything is linear, so a start of 1 ends at the deviation.
    """
    solver = PublishedSolver(video_length=1, schedule=SCHEDULE)
    solver.set_timesteps(calls)
    x = torch.ones(1, 2, dtype=torch.float64)
    for timestep in solver.timesteps:
        alpha, sigma = SCHEDULE.level(timestep[None])
        x = solver.step(exact_noise(x, float(alpha), float(sigma)), timestep, x).prev_sample
    return x[0].abs()


def corrected(calls: int) -> Tensor:
    """The same by `mgct.samplers.dpm_solver`."""

    def predict(x: Tensor, point: Point) -> Tensor:
        return exact_noise(x, point.alpha, point.sigma)

    return dpm_solver(predict, torch.ones(1, 2, dtype=torch.float64), log_snr_grid(SCHEDULE, calls + 1))[0].abs()


def figure() -> Figure:
    """The sound's deviation against the number of network calls."""
    result = Figure(figsize=(8, 4), layout="constrained")
    axes = result.subplots()
    axes.axhline(float(STD[1]), color=GREY, lw=1, label="the data's")
    wrong = [float(published(calls)[1]) for calls in CALLS]
    axes.semilogy(CALLS, wrong, "o-", color=ORANGE, ms=4, label="published first-order step")
    axes.semilogy(CALLS, [float(corrected(calls)[1]) for calls in CALLS], "s-", color=BLUE, ms=4, label="corrected")
    for calls in PAPER:
        axes.axvline(calls, color=GREY, lw=0.6, ls=":")
    axes.set(xlabel="network calls (dotted: the paper's)", ylabel="standard deviation of the sound")
    axes.legend(loc="lower right")
    return result


if __name__ == "__main__":
    print(save(figure(), "solver"))
