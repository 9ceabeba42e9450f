"""What is in a folder of videos, before anything is done with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from mgct.data.media import MEDIA_SUFFIXES, MediaFacts, find_files, for_each_file, one_line, probe
from mgct.errors import UserError

_COLUMNS = ("file", "container", "length", "video", "fps", "size", "audio", "offset", "silent", "loudness", "problems")


def inspect_folder(
    folder: Path, *, file_limit_s: float = 3600.0, workers: int | None = None, progress: bool = True
) -> list[MediaFacts]:
    """The facts of every media file of a folder, at any depth, each decoded from beginning to end.

    Files that FFmpeg does not read and whose names promise no video are left out; links, and what cannot be read, are
    listed with the reason.

    Args:
        folder: where to look; a single file is inspected alone.
        file_limit_s: seconds of processor time after which a file is given up.
        workers: processes; None: one a CPU; 0: this process.
        progress: whether to show a progress bar.

    Returns:
        One entry a file, by path.

    Raises:
        UserError: nothing is there, or the folder cannot be read.
    """
    call = partial(for_each_file, _probe, on_crash=_crashed, limit_s=file_limit_s, workers=workers, progress=progress)
    if folder.is_file():
        return call([(folder, folder.name)])
    names, passed = find_files(folder)
    found = call([(folder / name, str(name)) for name in names])
    facts = [entry for entry in found if entry.container or Path(entry.path).suffix.lower() in MEDIA_SUFFIXES]
    facts += [MediaFacts(str(name), problems=(why,)) for name, why in passed.items() if why != "hidden"]
    if not facts:
        raise UserError(f"there is no media file in {folder}: give the folder that holds the videos")
    return sorted(facts, key=lambda entry: entry.path)


def _probe(job: tuple[Path, str]) -> MediaFacts:
    facts = probe(*job)
    return replace(facts, container="") if not facts.video_codec and not facts.audio_codec else facts


def _crashed(job: tuple[Path, str]) -> MediaFacts:
    return MediaFacts(job[1], problems=("unreadable: decoding it crashes or hangs FFmpeg",))


def as_table(facts: Sequence[MediaFacts]) -> str:
    """The facts as a text table, one row a file."""
    rows = [_COLUMNS, *(_row(entry) for entry in facts)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _row(facts: MediaFacts) -> tuple[str, ...]:
    video, audio = bool(facts.video_codec), bool(facts.audio_codec)
    turned = f" turned {facts.rotation_degrees}°" if facts.rotation_degrees else ""
    loudness = "-" if facts.loudness_lufs is None else f"{facts.loudness_lufs:.1f} LUFS"
    return (
        one_line(facts.path),
        facts.container.split(",")[0] or "-",
        f"{max(facts.video_s, facts.audio_s):.2f} s",
        facts.video_codec or "none",
        f"{facts.fps:.2f}{' var.' if facts.variable_fps else ''}" if video else "-",
        f"{facts.width}x{facts.height}{turned}" if video else "-",
        f"{facts.audio_codec} {facts.audio_rate_hz} Hz x{facts.audio_channels}" if audio else "none",
        f"{facts.offset_s:+.3f} s" if video and audio else "-",
        f"{facts.silent_share:.0%}" if audio else "-",
        loudness,
        "; ".join(facts.problems),
    )


def as_summary(facts: Sequence[MediaFacts]) -> str:
    """The whole folder in a few lines: how much, of which kinds, and how many files have which problem."""
    both = [entry for entry in facts if entry.video_codec and entry.audio_codec]
    lines = [
        f"{len(facts)} files, {sum(entry.video_s for entry in facts) / 3600:.3f} h of video, {len(both)} with picture "
        f"and sound, {sum(bool(entry.problems) for entry in facts)} with something to note"
    ]
    if both:
        rates = Counter(f"{entry.fps:.4g}" for entry in both).most_common(5)
        sizes = Counter(f"{entry.width}x{entry.height}" for entry in both).most_common(5)
        sounds = Counter(f"{entry.audio_rate_hz} Hz x{entry.audio_channels}" for entry in both).most_common(5)
        lengths = np.array([entry.video_s for entry in both])
        low, middle, high = np.quantile(lengths, [0, 0.5, 1])
        lines.append(f"length: {low:.2f} s shortest, {middle:.2f} s median, {high:.2f} s longest")
        for title, counts in (("frames per second", rates), ("size", sizes), ("sound", sounds)):
            lines.append(f"{title}: " + ", ".join(f"{value} ({count})" for value, count in counts))
        loud = [entry.loudness_lufs for entry in both if entry.loudness_lufs is not None]
        if loud:
            lines.append(f"loudness: {min(loud):.1f} to {max(loud):.1f} LUFS, median {np.median(loud):.1f}")
    kinds = Counter(kind for entry in facts for kind in dict.fromkeys(map(_kind, entry.problems)))
    lines += [f"  {count} x {kind}" for kind, count in kinds.most_common(12)]
    return "\n".join(lines)


def _kind(problem: str) -> str:
    """A problem without what it is in numbers, and without the reason."""
    return problem.split(":")[0].rstrip("0123456789. s")


def as_json(facts: Sequence[MediaFacts]) -> str:
    """The facts as a JSON list, units in the names; bytes of a file's name that are no UTF-8 become JSON escapes."""
    text = json.dumps([asdict(entry) for entry in facts], indent=1, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()
