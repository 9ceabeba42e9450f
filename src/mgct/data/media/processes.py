"""Work on many files in several processes, whatever the files do to them."""

from __future__ import annotations

import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from mgct.data.media.error import MediaError
from mgct.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

_GRACE_S = 2.0


def for_each_file(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    on_crash: Callable[[Job], Result],
    limit_s: float = math.inf,
    workers: int | None = None,
    progress: bool = True,
    done: int = 0,
) -> list[Result]:
    """Apply a function to many files in several processes, whatever the files do to them.

    A file that crashes FFmpeg takes its process down and nothing else: the files then in work are tried again one by
    one, each in a process of its own, and the one that crashes again goes to ``on_crash``. Any other exception stops
    everything and is raised. The processes end when this one ends, even when it is killed.

    A file that takes too long gets a `MediaError` from the readers of this package; one whose decoder does not even
    come back from a packet counts as crashed some seconds later (not with 0 workers). It is processor time that counts,
    so that a busy machine refuses no more than an idle one.

    Args:
        function: called in the processes; it and the jobs are pickled.
        jobs: what to give it, one a call.
        on_crash: called here for a job that crashes.
        limit_s: seconds of processor time for one job.
        workers: processes; None: one a CPU; 0: call it in this process.
        progress: whether to show a progress bar.
        done: jobs done earlier, for the bar.

    Returns:
        The results in the order of the jobs.

    Raises:
        UserError: a limit or a number of workers that cannot be.
    """
    if not limit_s > 0:
        raise UserError(f"file_limit_s must be above 0, got {limit_s}")
    if workers is not None and workers < 0:
        raise UserError(f"workers must be at least 0, got {workers}")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cpus if workers is None else workers, len(jobs))
    results: dict[int, Result] = {}
    call = partial(_marked, function, limit_s)
    with tqdm(total=len(jobs) + done, initial=done, unit="file", disable=not progress) as bar:
        if count == 0:
            for index, job in enumerate(jobs):
                results[index] = _limited(function, limit_s, job)
                bar.update()
        left, suspects = dict(enumerate(jobs)) if count else {}, list[int]()
        while left:
            if suspects:
                index = suspects.pop()
                alone, _ = _in_processes(call, {index: left[index]}, 1, bar)
                if not alone:
                    alone = {index: on_crash(left[index])}
                    bar.update()
            else:
                alone, suspects = _in_processes(call, left, count, bar)
            results.update(alone)
            left = {index: job for index, job in left.items() if index not in alone}
    return [results[index] for index in range(len(jobs))]


def _in_processes(
    call: Callable[[int, Job], Result], jobs: dict[int, Job], count: int, bar: tqdm[Any]
) -> tuple[dict[int, Result], list[int]]:
    """Results by job; when a process died, not of all of them, and then also the jobs that were in work."""
    context = get_context("spawn")
    stop = context.Event()
    results: dict[int, Result] = {}
    broken = False
    with tempfile.TemporaryDirectory() as marks:
        pool = ProcessPoolExecutor(
            min(count, len(jobs)), context, initializer=_start_worker, initargs=(stop, os.getpid(), marks)
        )
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is for this process alone
        try:
            futures = {pool.submit(call, index, job): index for index, job in jobs.items()}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            for future in as_completed(futures):
                try:
                    results[futures[future]] = future.result()
                    bar.update()
                except BrokenProcessPool:
                    broken = True
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        in_work = [int(mark.name) for mark in Path(marks).iterdir()] if broken else []
    return results, [index for index in in_work if index not in results] or ([*jobs] if broken and not results else [])


_worker_stop: Any = None
_worker_marks = Path()
_deadline_s = math.inf  # of the file in work, on the clock of this process's processor time


def check_limits() -> None:
    """To be called between the packets of a file: stops the work on it when all is to stop, or its time is up.

    Raises:
        KeyboardInterrupt: everything is to stop.
        MediaError: the file in work has taken longer than ``limit_s`` of `for_each_file`.
    """
    if _worker_stop is not None and _worker_stop.is_set():
        raise KeyboardInterrupt
    if time.process_time() > _deadline_s:
        raise MediaError("too slow", "decoding it takes more processor time than --file_limit_s allows")


def _start_worker(stop: Any, parent: int, marks: str) -> None:
    """In a worker: end when the parent is gone, however it went, or when FFmpeg does not come back from a file."""
    global _worker_stop, _worker_marks
    _worker_stop, _worker_marks = stop, Path(marks)

    def watch() -> None:
        while os.getppid() == parent and time.process_time() < _deadline_s + _GRACE_S:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _marked(function: Callable[[Job], Result], limit_s: float, index: int, job: Job) -> Result:
    """In a worker: the call, with a mark on the disk while it lasts."""
    mark = _worker_marks / str(index)
    mark.touch()
    result = _limited(function, limit_s, job)
    mark.unlink()
    return result


def _limited(function: Callable[[Job], Result], limit_s: float, job: Job) -> Result:
    """The call, with a deadline that `check_limits` sees."""
    global _deadline_s
    _deadline_s = time.process_time() + limit_s
    try:
        return function(job)
    finally:
        _deadline_s = math.inf
