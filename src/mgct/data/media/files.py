"""The files of a folder."""

from __future__ import annotations

import os
from pathlib import Path

from mgct.errors import UserError

MEDIA_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("3g2", "3gp", "asf", "avi", "f4v", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts"),
        *("mxf", "ogv", "qt", "rm", "ts", "vob", "webm", "wmv"),
    )
)
"""Names that promise a video: one that cannot be used is refused; any other that is no video is ignored."""

SOUND_SUFFIXES = frozenset(
    f".{suffix}" for suffix in ("aac", "aif", "aiff", "flac", "m4a", "mka", "mp3", "oga", "ogg", "opus", "wav", "wma")
)
"""Names that promise a sound without a picture."""


def one_line(name: Path | str) -> str:
    """A file's name as it can be printed: line breaks and whatever else is no printable character as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


def find_files(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The regular files of a folder at any depth, sorted, and what was passed over.

    No link is followed: what a link inside the folder leads to is found under its own name, and what lies outside is
    not part of the folder. (``folder`` itself may be a link.)

    Returns:
        (files, passed over: path → why), both as paths relative to ``folder``.

    Raises:
        UserError: ``folder`` is not a folder, or cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that holds the videos")
    files: list[Path] = []
    passed: dict[Path, str] = {}

    def refuse(error: OSError) -> None:
        passed[Path(error.filename).relative_to(folder)] = f"cannot be read ({error.strerror})"

    for place, folders, names in os.walk(folder, onerror=refuse):
        for name in [*folders, *names]:
            path = Path(place, name)
            relative = path.relative_to(folder)
            if path.is_symlink():
                passed[relative] = "a link (links are not followed)"
            elif name.startswith("."):
                passed[relative] = "hidden"
            elif not path.is_dir() and not path.is_file():
                passed[relative] = "neither a file nor a folder"
            elif path.is_file():
                files.append(relative)
        folders[:] = sorted(name for name in folders if Path(place, name).relative_to(folder) not in passed)
    if Path() in passed:
        raise UserError(f"{folder} {passed[Path()]}")
    return sorted(files), dict(sorted(passed.items()))
