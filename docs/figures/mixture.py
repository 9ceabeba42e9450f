"""A one-dimensional data set of which everything is known: two narrow modes, their noisy densities and exact score.

What the figures of ``docs/method.md`` share. Data: x0 = ±0.6 with equal odds, plus Gaussian noise of deviation 0.1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from mgct.grids import Grid, Point, log_snr_grid
from mgct.noise import NoiseSchedule
from mgct.samplers import dpm_solver_pp

IMAGES = Path(__file__).parent.parent / "images"
SCHEDULE = NoiseSchedule()
MODES = torch.tensor([-0.6, 0.6], dtype=torch.float64)
SPREAD = 0.1
BLUE, ORANGE, GREEN, GREY = "#2166ac", "#d6604d", "#1b7837", "#777777"


def density(x: Tensor, point: Point) -> Tensor:
    """p_t(x), the shape of x."""
    variance = (point.alpha * SPREAD) ** 2 + point.sigma**2
    gap = x[..., None] - point.alpha * MODES
    return (-(gap**2) / (2 * variance)).exp().mean(-1) / (2 * torch.pi * variance) ** 0.5


def posterior_mean(x: Tensor, point: Point) -> Tensor:
    """E[x0 | x_t = x], the shape of x: what the multimodal loss teaches."""
    variance = (point.alpha * SPREAD) ** 2 + point.sigma**2
    gap = x[..., None] - point.alpha * MODES
    odds = torch.softmax(-(gap**2) / (2 * variance), -1)
    return (odds * (MODES + point.alpha * SPREAD**2 / variance * gap)).sum(-1)


def predict(x: Tensor, point: Point) -> Tensor:
    """The exact ε̂, the shape of x."""
    return (x - point.alpha * posterior_mean(x, point)) / point.sigma


def quantiles(count: int) -> Tensor:
    """(count, 1) standard normal numbers, evenly spread over its quantiles."""
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(uniform)[:, None]


def data_quantiles(count: int) -> Tensor:
    """(count,) data values, evenly spread over the quantiles of the data, increasing; ``count`` even."""
    mode = SPREAD * quantiles(count // 2)[:, 0]
    return torch.cat([MODES[0] + mode, MODES[1] + mode])


def wasserstein(values: Tensor) -> float:
    """W1 distance of values (n,) to the data; n even."""
    return float((values.sort().values - data_quantiles(len(values))).abs().mean())


def trajectory_end(x: Tensor, point: Point, calls: int = 300) -> Tensor:
    """Where the ODE takes x (n,) from ``point``, solved finely: what the consistency loss teaches."""
    everywhere = log_snr_grid(SCHEDULE, calls)
    grid: Grid = [point, *[p for p in everywhere if p.log_snr > point.log_snr], Point(0.0, 1.0, 0.0)]
    return dpm_solver_pp(predict, x[:, None], grid)[:, 0]


def save(figure: Figure, name: str, folder: Path = IMAGES) -> Path:
    """Write ``method-NAME.png``."""
    path = folder / f"method-{name}.png"
    figure.savefig(path, dpi=130)
    return path
