"""Files and folders that are whole or not there, and that one process writes at a time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mgct.errors import UserError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, then move it there in one step; a failure leaves what was there.

    Raises:
        UserError: it cannot be written; the message says why.
    """
    from safetensors import SafetensorError

    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(draft)
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written ({getattr(error, 'strerror', None) or error})") from error
    finally:
        with suppress(NotADirectoryError):  # as the error above says
            draft.unlink(missing_ok=True)


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a folder beside ``folder``, then put it in its place; what it fails at leaves what was there.

    Between the two renames nothing is at ``folder``: `restore_folders` puts back what a kill left there.

    Raises:
        UserError: it cannot be written; the message says why.
    """
    draft, old = folder.with_name(f".{folder.name}.draft"), folder.with_name(f".{folder.name}.old")
    for leftover in (draft, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        write(draft)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        restore_folders(folder.parent)
        raise UserError(f"{folder} cannot be written ({error.strerror or error})") from error
    shutil.rmtree(old, ignore_errors=True)


def restore_folders(parent: Path) -> None:
    """Put back the folders in ``parent`` that were being replaced when a process was killed."""
    for old in parent.glob(".*.old"):
        folder = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
        if not folder.exists():
            old.rename(folder)


def check_can_make(folder: Path) -> None:
    """Refuse a folder that cannot be made, before there is anything to put into it; nothing is made.

    Raises:
        UserError: the nearest folder above it that is there takes no file.
    """
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}): choose another folder") from error


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Hold the folder's lock, which the system releases when the process ends, however it ends.

    Raises:
        UserError: another process holds it.
    """
    import fcntl  # not on Windows, where the rest of this module works

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another {command} is writing {folder}: wait for it, or choose another folder") from error
        yield
    finally:
        os.close(handle)
