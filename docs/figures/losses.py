"""Makes ``docs/images/method-losses.png``: python docs/figures/losses.py."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from mixture import BLUE, GREEN, GREY, MODES, ORANGE, SCHEDULE, SPREAD, posterior_mean, predict, save, trajectory_end

from mgct.grids import Point, points
from mgct.samplers import ddim

LEVEL, LOWER = 400.0, 250.0
"""Timesteps of the level that is shown, and of the one below it to which the ODE steps."""


def level(timestep: float) -> Point:
    """The noise level of one timestep."""
    return points(SCHEDULE, torch.tensor([timestep], dtype=torch.float64))[0]


def figure() -> Figure:
    """What each loss asks of the network's x̂0 at one noise level."""
    result = Figure(figsize=(10, 4), layout="constrained")
    left, right = result.subplots(1, 2, sharey=True, sharex=True)
    here, below = level(LEVEL), level(LOWER)
    x = torch.linspace(-2.6, 2.6, 400, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x0 = MODES[torch.randint(2, (600,), generator=generator)] + SPREAD * torch.randn(600, generator=generator)
    noisy = here.alpha * x0 + here.sigma * torch.randn(600, generator=generator)
    left.plot(noisy, x0, ".", color=GREY, ms=3, alpha=0.5, label="pairs of noisy and clean values")
    left.plot(x, posterior_mean(x, here), color=BLUE, lw=2.5, label="what the multimodal loss asks for: their mean")
    left.set(title=f"the multimodal loss, t = {LEVEL:g}", xlabel="x at the level", ylabel="x̂0")
    right.plot(x, trajectory_end(x, here), color=ORANGE, lw=2.5, label="what consistency asks for: the path's end")
    right.plot(x, trajectory_end(x, below), color=GREEN, lw=1.2, ls="--", label=f"the same at t = {LOWER:g}")
    for start in (-1.9, -0.8, 0.8, 1.9):
        before = torch.tensor([start], dtype=torch.float64)
        after = ddim(predict, before[:, None], [here, below])[:, 0]
        tail, head = (float(before), float(trajectory_end(before, here))), float(after)
        right.annotate("", (head, tail[1]), tail, arrowprops={"arrowstyle": "->", "color": "black"})
        right.plot([tail[0], head], [tail[1]] * 2, "o", color="black", ms=4)
    right.set(title=f"the consistency loss, t = {LEVEL:g} → {LOWER:g}", xlabel="x at the level")
    for axes in (left, right):
        axes.legend(loc="upper left", fontsize=8)
        axes.set_ylim(-1.1, 1.5)
    return result


if __name__ == "__main__":
    print(save(figure(), "losses"))
