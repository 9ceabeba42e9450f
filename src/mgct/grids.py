"""Grids: the noise levels that a sampler visits, from noise to clean; each but the last costs one network call.

Timesteps are real numbers: a grid uniform in log-SNR does not fall on integers. The network's time embedding is as
smooth between integers as at them, and what it is told is then the level of its input; rounding costs little and
truncating, as the reference does, an error of 0.1 to 0.2 % that no number of steps removes (``docs/sampling.md``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mgct.noise import NoiseLevel, NoiseSchedule


class Point(NamedTuple):
    """One noise level of a grid: the real timestep that the network is told, α and σ.

    ``goal``: the timestep that the prediction there is meant to jump to (`mgct.losses.FlowMap`); None: the denoiser's.
    ``told``: the timesteps of video and audio that the network is told, where they are not both this one.
    """

    timestep: float
    alpha: float
    sigma: float
    goal: float | None = None
    told: tuple[float, float] | None = None

    @property
    def log_snr(self) -> float:
        """λ = log(α/σ); infinite for a clean clip."""
        return math.log(self.alpha / self.sigma) if self.sigma > 0 else math.inf

    def level(self, like: Tensor) -> NoiseLevel:
        """The same level for the functions of `mgct.noise`, (1,) tensors on the device of ``like``."""
        return NoiseLevel(like.new_tensor([self.alpha]), like.new_tensor([self.sigma]))


CLEAN = Point(0.0, 1.0, 0.0)
Grid = list[Point]


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
    return map_grid(schedule, calls) if calls <= STABLE_END_CALLS else [*log_snr_grid(schedule, calls), CLEAN]


CONSISTENCY_END = NoiseSchedule().log_snr(torch.tensor(100.0)).item()
"""λ of the last point of a short `consistency_grid`: timestep 100 of the default schedule, wherever sampling starts."""


SHORTEST_CONSISTENCY = 1.0
"""Where sampling starts nearer than this (in λ) to `CONSISTENCY_END`, the usual grid is taken."""


def map_grid(schedule: NoiseSchedule, calls: int) -> Grid:
    """A grid of ``calls`` points uniform in λ, then the clean end in place of timestep 0, which would be the next."""
    return [*log_snr_grid(schedule, calls + 1)[:-1], CLEAN]


def consistency_grid(schedule: NoiseSchedule, calls: int) -> Grid:
    """``calls`` points uniform in λ, then the clean end, for the consistency sampler.

    Up to four calls the last is at `CONSISTENCY_END`, above where `log_snr_grid` of one point more has its last but
    one; chosen by measurement on trained networks (``docs/sampling.md``).
    """
    first, last = schedule.log_snr(torch.tensor(schedule.num_timesteps - 1.0)).item(), CONSISTENCY_END
    if calls == 1 or calls > 4 or last - first < SHORTEST_CONSISTENCY:
        return map_grid(schedule, calls)
    timesteps = schedule.timestep_at(torch.linspace(first, last, calls, dtype=torch.float64))
    timesteps[0] = schedule.num_timesteps - 1
    return [*points(schedule, timesteps), CLEAN]
