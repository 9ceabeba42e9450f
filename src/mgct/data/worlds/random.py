"""Random numbers as a pure function of (seed, clip, name, index): the same bits on every device.

A counter-based generator in wrapping 64-bit integer arithmetic (the finaliser of SplitMix64, Steele et al. 2014).
Nothing has a state, so the draws of a clip cannot depend on its neighbours in a batch, on their order, or on the
device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mgct.clip_random import derive_seed

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _signed_64(value: int) -> int:
    """The signed 64-bit integer with the same lowest 64 bits as ``value``."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Unsigned right shift of int64 (torch's own keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of int64 that scatters every bit."""
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)


def clip_keys(indices: Tensor, seed: int, world: str) -> Tensor:
    """One int64 key per clip (B,): a mix of the world's name, the seed and the clip's index."""
    root = _signed_64(derive_seed("world", world, seed))
    return mix64(mix64(indices * _GOLDEN + root) ^ root)


class Draws:
    """Named random draws of a batch of clips.

    Args:
        keys: (B,) int64 from `clip_keys`, on the device where the draws are wanted.
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys

    def bits(self, name: str, *shape: int) -> Tensor:
        """(B, *shape) int64, uniform over all 64-bit integers."""
        streams = mix64(self.keys ^ _signed_64(derive_seed("stream", name))).view(-1, *[1] * len(shape))
        counter = torch.arange(1, math.prod(shape) + 1, device=self.keys.device).view(1, *shape)
        return mix64(streams + counter * _GOLDEN)

    def uniform(self, name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, *shape) float32, uniform over ``low`` ≤ u < ``high`` in 2²⁴ steps."""
        unit = _logical_shift(self.bits(name, *shape), 40).to(torch.float32) * 2.0**-24
        return unit if (low, high) == (0.0, 1.0) else unit * (high - low) + low

    def normal(self, name: str, *shape: int) -> Tensor:
        """(B, *shape) float32 of mean 0 and variance 1: a sum of four uniforms (bell-shaped within ±3.5)."""
        bits = self.bits(name, *shape)
        parts = [(bits >> 16 * k & 0xFFFF).to(torch.float32) for k in range(4)]
        return (parts[0] + parts[1] + parts[2] + parts[3]) * (2.0**-16 * math.sqrt(3)) - 2 * math.sqrt(3)

    def integers(self, name: str, count: int, *shape: int) -> Tensor:
        """(B, *shape) int64, uniform over 0 … ``count`` - 1."""
        return (_logical_shift(self.bits(name, *shape), 33) * count) >> 31

    def choice(self, name: str, options: Tensor) -> Tensor:
        """One row of ``options`` (N, ...) for each clip: (B, ...)."""
        return options.to(self.keys.device)[self.integers(name, len(options))]
