"""The largest micro-batch that fits into the device's memory."""

from __future__ import annotations

from collections.abc import Callable

from accelerate.utils import find_executable_batch_size

from mgct.errors import UserError


def find_micro_batch(attempt: Callable[[int], object], largest: int, say: Callable[[str], object]) -> int:
    """The largest micro-batch, tried downwards from ``largest`` in steps of a tenth, with which a step runs.

    Args:
        attempt: takes a whole training step with micro-batches of the given size.
        largest: clips per step of one process.
        say: told of each size that is tried.

    Raises:
        UserError: not even one clip fits.
    """

    @find_executable_batch_size(starting_batch_size=largest)
    def run(batch_size: int) -> int:
        say(f"trying micro-batches of {batch_size}")
        attempt(batch_size)
        return batch_size

    try:
        return int(run())
    except RuntimeError as error:
        if "No executable batch size found" not in str(error):
            raise
        raise UserError(
            "not even one clip fits into memory; try --train.recompute true or --train.gradient_checkpointing true, "
            "FSDP, or a smaller model"
        ) from error
