"""A training that is asked to stop: after the step it is at, in all processes at once."""

from __future__ import annotations

import signal
from types import TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator
from tqdm import tqdm


class Stopping:
    """SIGINT (Ctrl-C) and SIGTERM, while it is entered, ask for a stop; a second one ends the process at once.

    Outside the main thread signals are the caller's, who sets ``requested``.

    Args:
        accelerator: the processes that stop together.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.requested = False
        self._before: dict[int, Any] = {}

    def agreed(self, step: int, every: int) -> bool:
        """Whether to stop before ``step``; several processes ask one another at the multiples of ``every``."""
        if self.accelerator.num_processes == 1:
            return self.requested
        if step % every:
            return False
        asked = torch.tensor(float(self.requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum") > 0)

    def _ask(self, number: int, _frame: Any) -> None:
        self.requested = True
        signal.signal(number, self._before[number])
        tqdm.write("stopping after this step; the checkpoint follows")

    def __enter__(self) -> Self:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread
            self._before.clear()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
