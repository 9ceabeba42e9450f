"""The one exception that means: the input is wrong, not the program; and what raises it in many places."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """Bad input; its message is one line: what is wrong and what to do. The command line prints it and exits with 2."""


class MgctWarning(UserWarning):
    """What may not be as it should, in one line, which the command line prints as it is."""


@contextmanager
def explain_memory(
    setting: str, value: int, at_one: str = "use a smaller model or clip, or a device with more"
) -> Iterator[None]:
    """Turn running out of memory into one line that says which value of ``setting`` (a number of things) to try.

    Args:
        setting: its name.
        value: its value.
        at_one: what to do if it is 1 already.

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
            advice = f"{setting} is 1 already: {at_one}"
        raise UserError(f"out of memory with {setting}={value}; {advice}") from error


@contextmanager
def explain_damage(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever is raised for damaged files of the folder ``path``, if there is one, into one line.

    Raises:
        UserError: it cannot be loaded as a saved ``kind``.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # what diffusers and its libraries raise is of every kind
        if not path.exists():
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be loaded as a saved {kind} ({reason}); copy or make it anew") from error


def check_loaded(info: Mapping[str, Any]) -> None:
    """Refuse weights that lack a tensor, which diffusers draws at random, or have one too many.

    Args:
        info: what diffusers' ``from_pretrained`` gives for ``output_loading_info``.

    Raises:
        UserError: tensors are missing or unexpected; each is named.
    """
    if problems := [f"{kind} {key}" for kind in ("missing", "unexpected") for key in info[f"{kind}_keys"]]:
        raise UserError(f"the saved weights do not fit their network: {'; '.join(problems)}")


def check_numbers(
    settings: Mapping[str, Any], positive: Iterable[str], not_negative: Iterable[str] = (), prefix: str = ""
) -> None:
    """Refuse settings that are not finite, or not of the sign that they must have.

    Args:
        settings: name → value.
        positive: names of those that must be positive.
        not_negative: names of those that may be 0 too.
        prefix: stands before the names in the message.

    Raises:
        UserError: some are out of their range; each is named.
    """
    infinite = [name for name, value in settings.items() if isinstance(value, float) and not math.isfinite(value)]
    wrong = {
        "must be finite": infinite,
        "must be positive": [name for name in positive if settings[name] <= 0],
        "may not be negative": [name for name in not_negative if settings[name] < 0],
    }
    problems = [f"{prefix}{name} {rule}, got {settings[name]}" for rule, names in wrong.items() for name in names]
    if problems:
        raise UserError("; ".join(problems))
