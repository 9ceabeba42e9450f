"""The index of a folder that `mgct prepare` wrote: its settings, its shards, and where each clip lies in them."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mgct.errors import UserError
from mgct.types import ClipSpec

SPLITS = ("train", "test")


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a prepared folder, after checking that it is whole.

    Returns:
        ``settings``, ``sources`` and ``shards``: split → [{``path``, ``bytes``, ``samples``: [key, offset and size of
        the audio array, offset and size of the video array]}].

    Raises:
        UserError: the folder is not prepared or not finished, its index is damaged, or a shard is missing or cut short.
    """
    path = folder / "index.json"
    if not path.is_file():
        if (folder / ".parts").is_dir():
            raise UserError(f"{folder} is not finished: run its mgct prepare again, it goes on where it stopped")
        raise UserError(
            f"{folder} is not a prepared folder (no index.json): run mgct prepare {folder} OUT, then use OUT"
        )
    try:
        index: dict[str, Any] = json.loads(path.read_text())
        shards = _checked_shards(index)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} was not written by mgct prepare, or is damaged: prepare anew") from error
    for name, size in shards:
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise UserError(f"{folder / name} is missing or cut short: delete {folder} and prepare it anew")
    return index


def _checked_shards(index: dict[str, Any]) -> list[tuple[str, int]]:
    """(path, size) of each shard of an index.

    Raises:
        Exception: of many kinds, for what `prepare` does not write: a part that is missing or of another type, a shard
            outside the folder, an array outside its shard.
    """
    clip = ClipSpec(**index["settings"]["clip"])
    if not all(isinstance(value, int) for value in (clip.frames, clip.size, clip.sample_rate_hz)):
        raise TypeError("clip")
    if not isinstance(index["sources"], str):
        raise TypeError("sources")
    shards = [shard for split in index["shards"].values() for shard in split]
    for shard in shards:
        name = PurePosixPath(shard["path"])
        if name.is_absolute() or ".." in name.parts:
            raise ValueError("path")
        if not all(isinstance(key, str) for key, *_ in shard["samples"]):
            raise TypeError("key")
        places = np.array([sample[1:] for sample in shard["samples"]] or np.zeros((0, 4), np.int64))
        if places.dtype != np.int64 or places.shape != (len(shard["samples"]), 4) or (places < 0).any():
            raise ValueError("places")
        if (places[:, ::2] > shard["bytes"] - places[:, 1::2]).any():
            raise ValueError("places outside the shard")
    return [(shard["path"], shard["bytes"]) for shard in shards]
