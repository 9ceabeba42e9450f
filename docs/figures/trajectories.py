"""Makes ``docs/images/method-trajectories.png``: python docs/figures/trajectories.py."""

from __future__ import annotations

from itertools import pairwise

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mixture import BLUE, ORANGE, SCHEDULE, density, predict, quantiles, save
from torch import Tensor

from mgct.grids import Grid, log_snr_grid, log_snr_grid_to_clean, time_grid
from mgct.samplers import ddim, dpm_solver_pp

FEW = 8


def paths(grid: Grid, x: Tensor) -> Tensor:
    """The states (points of the grid, n) of the ODE from x (n, 1), by one first-order step an interval."""
    states = [x]
    for step in pairwise(grid):
        states.append(ddim(predict, states[-1], list(step)))
    return torch.stack(states)[..., 0]


def show_density(axes: Axes) -> None:
    """The noisy densities in grey, each column scaled to its own maximum."""
    grid, x = log_snr_grid(SCHEDULE, 200), torch.linspace(-3, 3, 400, dtype=torch.float64)
    columns = torch.stack([density(x, point) for point in grid], 1)
    levels = [point.log_snr for point in grid]
    axes.pcolormesh(levels, x, columns / columns.amax(0), cmap="Greys", vmax=1.6, rasterized=True)
    axes.set(xlim=(levels[0], levels[-1]), ylim=(-2.6, 2.6), xlabel="log (signal / noise), λ")


def figure() -> Figure:
    """Exact trajectories, and those of two solvers with few calls."""
    result = Figure(figsize=(10, 4), layout="constrained")
    left, right = result.subplots(1, 2)
    fine, x = log_snr_grid(SCHEDULE, 600), quantiles(16)
    exact = paths(fine, x)
    levels = [point.log_snr for point in fine]
    for axes in (left, right):
        show_density(axes)
    for path in exact.T:
        left.plot(levels, path, color=BLUE if path[-1] > 0 else ORANGE, lw=1)
    left.set(title="the flow from noise (left) to data (right)", ylabel="x")
    start = x[[9]]
    right.plot(levels, paths(fine, start)[:, 0], color="black", lw=3, alpha=0.6, label="exact")
    coarse = time_grid(SCHEDULE, FEW + 1)
    first = paths(coarse, start)[:, 0]
    right.plot([p.log_snr for p in coarse], first, "o--", color=ORANGE, ms=4, label=f"DDIM, even in t, {FEW} calls")
    grid = log_snr_grid_to_clean(SCHEDULE, FEW)
    second = [dpm_solver_pp(predict, start, grid[: n + 1]) if n else start for n in range(len(grid))]
    places = [*(p.log_snr for p in grid[:-1]), levels[-1]]  # the clean end is drawn at the edge
    label = f"dpm-solver++, even in λ, {FEW} calls"
    right.plot(places, torch.cat(second)[:, 0], "s-", color=BLUE, ms=4, label=label)
    right.set(title="one path, by solvers with few network calls", ylabel="", xlim=(-2, 4.7), ylim=(-0.9, 0.9))
    right.legend(loc="lower left", fontsize=8)
    return result


if __name__ == "__main__":
    print(save(figure(), "trajectories"))
