"""Means of logged values between two rows of the log, kept on the device so that no step waits for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class RunningMeans:
    """Sums of values and of how many there were, for means over all steps and processes since the last row."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, values: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add one step's values: name → (sum, how many), both scalars."""
        self.steps += 1
        for name, (total, count) in values.items():
            total, count = total.detach().double(), count.double()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
            self.counts[name] = self.counts[name] + count if name in self.counts else count

    def means(self, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The mean of each value over steps and processes; a value that never occurred is left out."""
        totals = self._totals(reduce_sum)
        return {name: total / count for name, (total, count) in totals.items() if count}

    def gather(self, reduce_sum: Callable[[Tensor], Tensor], keep: bool) -> dict[str, Any]:
        """What a checkpoint keeps; afterwards the sums of all processes are this one's, or this one has none.

        Args:
            reduce_sum: sum over the processes.
            keep: whether this process goes on with them; one must.
        """
        totals = self._totals(reduce_sum)
        state = {
            "sums": {name: total for name, (total, _) in totals.items()},
            "counts": {name: count for name, (_, count) in totals.items()},
            "steps": self.steps,
        }
        if self.sums:
            self.load_state(state, next(iter(self.sums.values())).device, keep)
        return state

    def load_state(self, state: Mapping[str, Any], device: torch.device, keep: bool) -> None:
        """Restore what `gather` gave: in one process the sums, in the others zeros."""
        share = float(keep)
        self.sums = {k: torch.tensor(v * share, dtype=torch.float64, device=device) for k, v in state["sums"].items()}
        self.counts = {
            k: torch.tensor(v * share, dtype=torch.float64, device=device) for k, v in state["counts"].items()
        }
        self.steps = state["steps"]

    def copy(self) -> RunningMeans:
        """The same sums; adding to one leaves the other as it is."""
        other = RunningMeans()
        other.sums, other.counts, other.steps = dict(self.sums), dict(self.counts), self.steps
        return other

    def _totals(self, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, tuple[float, float]]:
        """Name → (sum, count) over the processes; the names are the same in all."""
        if not self.sums:
            return {}
        stacked = torch.stack([*self.sums.values(), *self.counts.values()])
        sums, counts = reduce_sum(stacked).view(2, -1).tolist()
        return {name: (s, c) for name, s, c in zip(self.sums, sums, counts, strict=True)}
