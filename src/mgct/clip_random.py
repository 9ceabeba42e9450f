"""Random numbers that are a function of a seed and a name alone, on whatever machine, in whatever batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mgct.gpu import send


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a fixed, well-mixed function of ``parts``: the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def per_clip_randn(shape: Sequence[int], seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (len(seeds), *shape), row k a function of ``seeds[k]`` (and the device's kind) alone.

    PyTorch's generator on a CPU keeps 32 bits of a seed: among 100,000 clips one pair or two have the same noise.
    """
    generator = torch.Generator(device)
    rows = [torch.randn(tuple(shape), generator=generator.manual_seed(seed), device=device) for seed in seeds]
    return torch.stack(rows)


class ClipRandom:
    """The random numbers of a batch of clips: row k is a function of seed k and the name of the draw alone.

    So what a clip gets depends neither on the batch it is in nor on how many processes share the work, and a resumed
    run draws what the undisturbed one would have drawn.

    Args:
        seeds: one per clip.
        device: where normal noise is drawn. Each kind of device has its own generator, and so its own noise.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seeds = list(seeds)
        self.device = torch.device(device)

    def first(self, count: int) -> ClipRandom:
        """The random numbers of the first ``count`` clips."""
        return ClipRandom(self.seeds[:count], self.device)

    def uniform(self, name: str) -> Tensor:
        """(B,) float64 in [0, 1), on the CPU."""
        return torch.tensor([(derive_seed(seed, name) >> 10) / 2**53 for seed in self.seeds], dtype=torch.float64)

    def integers(self, name: str, count: int) -> Tensor:
        """(B,) int64, uniform on 0 … count-1, on the CPU."""
        return (self.uniform(name) * count).long()

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """(B, *shape) float32 standard normal noise."""
        return per_clip_randn(shape, [derive_seed(seed, name) for seed in self.seeds], self.device)


class DrawnRandom(ClipRandom):
    """The random numbers of another `ClipRandom`, all on its device, each drawn when it is first asked for.

    Args:
        random: whose they are.
        drawn: what has been drawn, by what was asked for.
    """

    def __init__(self, random: ClipRandom, drawn: dict[tuple[Any, ...], Tensor] | None = None) -> None:
        super().__init__(random.seeds, random.device)
        self.drawn = {} if drawn is None else drawn

    def draw(self, keys: Iterable[tuple[Any, ...]]) -> list[Tensor]:
        """What the keys of another's ``drawn`` stand for."""
        return [self.first(count)._once(count, method, *what) for count, method, *what in keys]

    def first(self, count: int) -> DrawnRandom:
        """The random numbers of the first ``count`` clips."""
        return DrawnRandom(super().first(count), self.drawn)

    def uniform(self, name: str) -> Tensor:
        """(B,) float64 in [0, 1), on the device."""
        return self._once(len(self.seeds), "uniform", name)

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """(B, *shape) float32 standard normal noise."""
        return self._once(len(self.seeds), "normal", name, tuple(shape))

    def _once(self, *key: Any) -> Tensor:
        """A draw of the parent class."""
        if key not in self.drawn:
            _, method, *what = key
            self.drawn[key] = send(getattr(super(), method)(*what), self.device)
        return self.drawn[key]
