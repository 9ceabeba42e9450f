"""Work in a thread that reports while it goes on and ends soon after it is told to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

Report = TypeVar("Report")
Say = Callable[[Report], None]


class Cancelled(Exception):
    """The work was told to end."""


class Job(Generic[Report]):
    """A function in a thread, seen as an iterator of what it reports.

    The function gets ``say``; each call of it hands one report over and raises `Cancelled` once `cancel` was called. So
    the work ends within one step of it, and leaving the iteration early cancels it and waits for that.

    Args:
        work: what to do.
    """

    def __init__(self, work: Callable[[Say[Report]], None]) -> None:
        self._work = work
        self._reports: queue.SimpleQueue[Report | BaseException | None] = queue.SimpleQueue()
        self._told = threading.Event()

    def cancel(self) -> None:
        """End the work at its next report; safe to call from anywhere, at any time."""
        self._told.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._told.is_set()

    def reports(self) -> Generator[Report, None, None]:
        """Do the work; what it reports, as it does.

        Raises:
            Cancelled: it was told to end.
            Exception: whatever the work raised.
        """
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            while (report := self._reports.get()) is not None:
                if isinstance(report, BaseException):
                    raise report
                yield report
        finally:
            self.cancel()
            thread.join()

    def _say(self, report: Report) -> None:
        if self.cancelled:
            raise Cancelled
        self._reports.put(report)

    def _run(self) -> None:
        try:
            if self.cancelled:
                raise Cancelled
            self._work(self._say)
        except BaseException as error:  # handed over, raised in `reports`
            self._reports.put(error)
        else:
            self._reports.put(None)
