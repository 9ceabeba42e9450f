"""What files take on the disk."""

from __future__ import annotations

import contextlib
from pathlib import Path


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder, at any depth; those that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
