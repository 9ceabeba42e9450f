"""Makes ``docs/images/method-one-output.png``: python docs/figures/one_output.py.

For squared errors, the function of the noisy value that minimises (1 - w) L_MM + w L_CM has a closed form, level by
level: (1 - v) times the posterior mean plus v times the function at the level below, where the ODE's step leads. Here
v = w if both losses are in units of ε̂ (`mgct.losses.NoiseUnits`); with λ = 1 the consistency loss is in units of x̂0,
and v = w / (w + (1 - w) α²/σ²). (The step follows the exact score; θ⁻ = θ.) So nothing is trained here: what is shown
is what the best possible network would do.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from mixture import BLUE, GREY, ORANGE, SCHEDULE, posterior_mean, predict, quantiles, save, trajectory_end, wasserstein
from torch import Tensor

from mgct.grids import Grid, Point, log_snr_grid, log_snr_grid_to_clean
from mgct.samplers import ddim, dpm_solver_pp

LEVELS = 50
X = torch.linspace(-6, 6, 1201, dtype=torch.float64)
RATIOS = [k / 10 for k in range(11)]
MANY = 20
SAMPLES = 2000


def interpolate(table: Tensor, x: Tensor) -> Tensor:
    """A function given at `X`, at x (n,)."""
    return torch.from_numpy(np.interp(x.numpy(), X.numpy(), table.numpy()))


def best_output(ratio: float, noise_units: bool) -> tuple[Grid, Tensor]:
    """The levels, from noise to clean, and the minimiser x̂0 (levels, len(X)) at each, for w = ``ratio``."""
    grid = log_snr_grid(SCHEDULE, LEVELS)
    tables = [X]  # at the cleanest level the value itself
    for below, here in zip(reversed(grid), list(reversed(grid))[1:], strict=False):
        stepped = ddim(predict, X[:, None], [here, below])[:, 0]
        mean = posterior_mean(X, here)
        unit = 1.0 if noise_units else (here.alpha / here.sigma) ** 2
        share = ratio / (ratio + (1 - ratio) * unit)
        tables.append((1 - share) * mean + share * interpolate(tables[-1], stepped))
    return grid, torch.stack(tables[::-1])


def sampled(ratio: float, calls: int, noise_units: bool) -> Tensor:
    """(SAMPLES,) values made with ``calls`` calls of that output: one call jumps, more solve the ODE with it."""
    grid, tables = best_output(ratio, noise_units)
    levels = np.array([point.log_snr for point in grid])

    def predict_noise(x: Tensor, point: Point) -> Tensor:
        place = float(np.interp(point.log_snr, levels, np.arange(len(levels))))
        low, share = int(place), place - int(place)
        high = min(low + 1, len(levels) - 1)
        x0 = (1 - share) * interpolate(tables[low], x[:, 0]) + share * interpolate(tables[high], x[:, 0])
        return (x - point.alpha * x0[:, None]) / point.sigma

    steps = [grid[0], Point(0.0, 1.0, 0.0)] if calls == 1 else log_snr_grid_to_clean(SCHEDULE, calls)
    return dpm_solver_pp(predict_noise, quantiles(SAMPLES), steps)[:, 0]


def errors(calls: int, noise_units: bool) -> list[float]:
    """W1 distance to the data for each of `RATIOS`."""
    return [wasserstein(sampled(ratio, calls, noise_units)) for ratio in RATIOS]


def figure() -> Figure:
    """The compromise at one level, and what it costs with one call and with many."""
    result = Figure(figsize=(10, 4), layout="constrained")
    left, right = result.subplots(1, 2)
    grid, units = best_output(0.5, True)
    at = min(range(len(grid)), key=lambda k: abs(grid[k].timestep - 500))
    shown = X.abs() < 2.6
    left.plot(X[shown], posterior_mean(X[shown], grid[at]), color=BLUE, lw=2, label="posterior mean (w = 0)")
    left.plot(X[shown], trajectory_end(X[shown], grid[at]), color=ORANGE, lw=2, label="path's end (w = 1)")
    left.plot(X[shown], units[at][shown], color="black", ls="--", label="one output for both, w = 0.5")
    left.plot(X[shown], best_output(0.5, False)[1][at][shown], color="black", ls=":", label="the same, λ = 1")
    left.set(title=f"x̂0 at t = {grid[at].timestep:.0f}", xlabel="x at the level", ylabel="x̂0", ylim=(-0.95, 1.5))
    left.legend(loc="upper left", fontsize=8)
    for calls, color, marker in ((1, ORANGE, "s"), (MANY, BLUE, "o")):
        for noise_units, style in ((True, "--"), (False, ":")):
            label = f"{calls} call{'s' if calls > 1 else ''}, λ {'in units of ε̂' if noise_units else '= 1'}"
            right.semilogy(RATIOS, errors(calls, noise_units), marker + style, color=color, ms=4, label=label)
    for value in (errors(MANY, True)[0], errors(1, True)[-1]):
        right.axhline(value, color=GREY, lw=0.8)
    right.plot([], [], color=GREY, lw=0.8, label="two outputs: the best of each")
    right.set(title="distance of the samples to the data", xlabel="w, the share of the consistency loss", ylabel="W1")
    right.set_ylim(top=20)
    right.legend(loc="upper left", fontsize=8, ncols=2)
    return result


if __name__ == "__main__":
    print(save(figure(), "one-output"))
