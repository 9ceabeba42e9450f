"""The one exception that means: the input is wrong, not the program; and errors that are turned into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input; its message is one line: what is wrong and what to do. The command line prints it and exits with 2."""


@contextmanager
def explain_memory(setting: str, value: int) -> Iterator[None]:
    """Turn running out of memory into one line that says which value of ``setting`` (a number of things) to try.

    Raises:
        UserError: instead of the device's error.
    """
    import torch

    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's and others' are known by their words
        if not isinstance(error, torch.OutOfMemoryError) and not any(
            words in str(error) for words in ("out of memory", "can't allocate memory")
        ):
            raise
        if value > 1:
            advice = f"try {setting}={value // 2}"
        else:
            advice = f"{setting} is 1 already: use a smaller model or clip, or a device with more"
        raise UserError(f"out of memory with {setting}={value}; {advice}") from error
