"""``mgct inspect``, ``mgct prepare``, ``mgct worlds``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mgct.checkpoint import refuse_model_folder
from mgct.types import ClipSpec


def inspect_media(folder: Path, json: bool = False, file_limit_s: float = 3600.0) -> None:
    """Report what is in a folder of videos, one row a file, and what is wrong.

    Args:
        folder: searched at any depth; links out of it are not followed.
        json: print JSON instead of a table.
        file_limit_s: seconds of processor time after which a file is given up as too slow.
    """
    from mgct.data.inspect import as_json, as_summary, as_table, inspect_folder

    facts = inspect_folder(folder, file_limit_s=file_limit_s)
    print(as_json(facts) if json else f"{as_table(facts)}\n\n{as_summary(facts)}")


def prepare_shards(
    folder: Path,
    out: Path,
    clip: ClipSpec = ClipSpec(),
    stride_s: float | None = None,
    fit: Literal["crop", "letterbox"] = "crop",
    test_fraction: float = 0.1,
    shard_clips: int = 512,
    silence_dbfs: float = -60.0,
    static_levels: float = 0.5,
    file_limit_s: float = 3600.0,
    strict: bool = False,
    workers: int | None = None,
) -> None:
    """Cut every video of a folder into clips and store them in shards, with a report of what was taken and refused.

    Run again after an interruption, it goes on and ends with the same bytes.

    Args:
        folder: the videos, at any depth.
        out: the folder to write.
        clip: what to store.
        stride_s: seconds from one window's start to the next one's; the clip's length if not given.
        fit: centre crop, or letterbox.
        test_fraction: share of the files for the test split.
        shard_clips: clips a shard.
        silence_dbfs: windows below this RMS, in dB of full scale, are silent.
        static_levels: windows whose pixels move less than this many of 255 levels are static.
        file_limit_s: seconds of processor time after which a file is refused as too slow.
        strict: fail if any file is refused or damaged.
        workers: processes; one a CPU if not given.
    """
    from mgct.data.prepare import prepare

    report = prepare(
        folder,
        out,
        clip,
        stride_s=stride_s,
        fit=fit,
        test_fraction=test_fraction,
        shard_clips=shard_clips,
        silence_dbfs=silence_dbfs,
        static_levels=static_levels,
        file_limit_s=file_limit_s,
        strict=strict,
        workers=workers,
    )
    print(f"{report.summary()}\n{out}: train with `mgct train --data {out}`")


def write_videos(world: str, out: Path, num: int = 200, clip: ClipSpec = ClipSpec(), seed: int = 0) -> None:
    """Write clips of a procedural world as mp4 files with sound, and a table of their labels and events.

    Args:
        world: landscape or dance.
        out: folder to fill.
        num: how many clips.
        clip: their size, length and rates.
        seed: which series of clips.
    """
    from mgct.data.worlds.write import write_world

    refuse_model_folder(out)
    write_world(world, out, num, clip, seed)
    print(f"{out}: {num} clips of {world}")
