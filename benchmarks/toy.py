"""Eight coupled modes in 2 + 2 dimensions: picture and sound small enough to train a network in seconds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mgct.types import AVSample, unpack

SHAPES = AVSample(video=(1, 1, 1, 2), audio=(1, 2))
"""Of one clip."""


def eight_modes(count: int, generator: torch.Generator) -> AVSample:
    """Clips of two numbers each: video on a circle, audio on another, run through three times as fast."""
    angle = torch.randint(0, 8, (count,), generator=generator) * (2 * math.pi / 8)
    centre = torch.stack([0.7 * angle.cos(), 0.7 * angle.sin(), 0.6 * (3 * angle).cos(), 0.6 * (3 * angle).sin()], 1)
    return unpack(centre + 0.05 * torch.randn(count, 4, generator=generator), SHAPES)


def sinusoids(timestep: Tensor, count: int) -> Tensor:
    """What the networks are told of a timestep, of each clip's own or of all of them: (count, 64)."""
    frequencies = torch.exp(-math.log(1e4) * torch.arange(32) / 32)
    phase = timestep.float().expand(count)[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], 1)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|."""
    between, inside_x, inside_y = (torch.cdist(a, b).mean().item() for a, b in ((x, y), (x, x), (y, y)))
    return 2 * between - inside_x - inside_y
