"""Clips of a procedural world as real video files."""

from __future__ import annotations

import json
from pathlib import Path

from tqdm import tqdm

from mgct.data.worlds.base import World
from mgct.errors import UserError, explain_memory
from mgct.types import ClipSpec, quantise


def write_world(
    name: str,
    out: str | Path,
    num: int,
    clip: ClipSpec,
    seed: int = 0,
    *,
    start: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> list[Path]:
    """Write clips ``start`` … ``start + num - 1`` of a world to mp4 files (H.264 and AAC), and ``labels.jsonl``.

    Each line of ``labels.jsonl`` holds a file's name, class, label, event times in seconds, and factors.

    Args:
        name: of the world.
        out: folder to fill; made if it is not there. It may not hold a ``labels.jsonl`` already.
        num: how many clips.
        clip: size, length and rates; the size must be even (H.264 stores colour at half size).
        seed: which series of clips.
        start: index of the first clip.
        batch_size: clips drawn at once.
        progress: show a progress bar.

    Returns:
        The files written, in order.

    Raises:
        UserError: unknown world, nothing to write, an odd size, a clip beyond all measure, or ``out`` is taken.
    """
    from mgct.data.media import check_rate_hz, write_mp4
    from mgct.data.worlds import get_world

    world: World = get_world(name)
    out = Path(out)
    if num < 1 or start < 0:
        raise UserError(f"num must be at least 1 and start at least 0, got num={num}, start={start}")
    if clip.size % 2:
        raise UserError(f"clip.size must be even to be stored as H.264, got {clip.size}")
    check_rate_hz(clip.sample_rate_hz)
    table = out / "labels.jsonl"
    if table.exists():
        raise UserError(f"{table} exists already; choose another folder or remove it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}") from error
    width = max(5, len(str(start + num - 1)))
    files: list[Path] = []
    lines: list[str] = []
    with tqdm(total=num, unit="clip", desc=f"world {name}", disable=not progress) as bar:
        for first in range(start, start + num, batch_size):
            indices = range(first, min(first + batch_size, start + num))
            with explain_memory("clip.size", clip.size):
                drawn = world.render(indices, clip, seed)
                stored = quantise(drawn.clips)
            for row, index in enumerate(indices):
                path = out / f"{name}_{index:0{width}d}.mp4"
                write_mp4(path, stored.video[row], stored.audio[row], fps=clip.fps, sample_rate_hz=clip.sample_rate_hz)
                label = int(drawn.labels[row])
                record = {
                    "file": path.name,
                    "class": world.classes[label],
                    "label": label,
                    "events_s": [round(t, 4) for t in drawn.events_s[row]],
                    "factors": {
                        key: round(float(value[row]), 4)
                        for key, value in drawn.factors.items()
                        if not value[row].isnan()
                    },
                }
                lines.append(json.dumps(record))
                files.append(path)
                bar.update()
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files
