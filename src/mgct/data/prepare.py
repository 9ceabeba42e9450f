"""From a folder of videos to shards of clips and a report of what was taken, what was refused, and why.

What is written, all of it a function of the files' contents and the settings alone:

    OUT/train/000000.tar …   uncompressed tars; per clip KEY.audio.npy (int16 (1, L)), KEY.json, KEY.video.npy (uint8
    OUT/test/000000.tar …    (F, 3, H, W)), in an order that mixes the files; KEY: 16 digits of the SHA-256 and a number
    OUT/report.json          every file found: taken or refused, why, how many windows, which split
    OUT/index.json           settings, shards, where each clip lies; written last: a folder without it is not finished

While it runs, each file's clips wait in OUT/.parts under the file's SHA-256. A part appears under its name only when it
is whole, so a run that was killed goes on where it stopped and ends with the same bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mgct.data.index import SPLITS, read_index
from mgct.data.media import Fit, find_files
from mgct.data.parts import Job, PrepareSettings, Record, dumps, make_parts, parts_folder, whole, write_json
from mgct.data.report import PrepareReport, make_report, refuse_if_unusable, report_json
from mgct.errors import UserError
from mgct.files import locked
from mgct.types import ClipSpec


def prepare(
    source: str | Path,
    out: str | Path,
    clip: ClipSpec,
    *,
    stride_s: float | None = None,
    fit: Fit = "crop",
    test_fraction: float = 0.1,
    shard_clips: int = 512,
    silence_dbfs: float = -60.0,
    static_levels: float = 0.5,
    file_limit_s: float = 3600.0,
    strict: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Cut every video of a folder into clips and store them in shards, with a report.

    Run again after a kill, it goes on and ends with the same bytes; run again when finished, it does nothing. Equal
    files are taken once. The split is by file, by content hash: all windows of one file are on one side, and renaming
    files changes nothing.

    Args:
        source: a folder of videos, at any depth.
        out: the folder to write; new, empty, or of an earlier run with the same settings.
        clip: what to store; `mgct.data.shards` can cut shorter clips of the same rate and size from longer ones.
        stride_s: seconds from one window's start to the next one's, to the nearest frame; the clip's length if None.
        fit: see `mgct.data.media.Fit`.
        test_fraction: share of the usable files for the test split, in [0, 1]; if above 0, at least one of several.
        shard_clips: clips a shard.
        silence_dbfs: see `PrepareSettings`.
        static_levels: see `PrepareSettings`.
        file_limit_s: see `PrepareSettings`; counted per file by `mgct.data.media.for_each_file`.
        strict: fail if any file is refused or damaged, instead of reporting it.
        workers: processes; None: one a CPU; 0: in this process.
        progress: whether to show a progress bar.

    Returns:
        The report, which is also in OUT/report.json.

    Raises:
        UserError: nothing usable, a file refused under ``strict``, another preparation in ``out``, disk full, or a
            folder that cannot be read or written.
    """
    source, out = Path(source), Path(out)
    stride = float(clip.frames) if stride_s is None else stride_s * clip.fps
    if not (math.isfinite(stride) and round(stride) >= 1):
        raise UserError(f"stride_s must be at least one frame ({1 / clip.fps:g} s), and finite, got {stride_s}")
    if workers is not None and workers < 0:
        raise UserError(f"workers must be at least 0, got {workers}")
    settings = PrepareSettings(
        clip, round(stride), fit, test_fraction, shard_clips, silence_dbfs, static_levels, file_limit_s
    )
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies inside {source}: choose an output folder outside the videos' folder")
    names, passed = find_files(source)
    with _writing_to(out), locked(out, "mgct prepare"):
        hashes = _hashes(source, names)
        first_of = {sha: name for name, sha in sorted(hashes.items(), reverse=True) if sha}
        finished = _finished_records(out, settings, set(first_of))
        if finished is None:
            parts = parts_folder(out, settings)
            jobs = [Job(sha, source / name, parts, settings) for sha, name in first_of.items()]
            make_parts(sorted(jobs, key=lambda job: job.path), settings.file_limit_s, workers, progress)
            records = {sha: Record.read(parts, sha) for sha in first_of}
        else:
            records = finished
        splits = _split(sorted(sha for sha, record in records.items() if record.windows), test_fraction)
        report = make_report(hashes, passed, first_of, records, splits, settings)
        write_json(out / "report.json", dumps(report_json(report)))
        refuse_if_unusable(report, source, out, strict)
        if finished is None:
            index = {
                "settings": settings.as_json(),
                "sources": _sources_digest(set(first_of)),
                "shards": {split: _assemble(out, split, splits, records, parts, settings) for split in SPLITS},
            }
            write_json(out / "index.json", dumps(index, indent=None))
        shutil.rmtree(out / ".parts", ignore_errors=True)
    return report


@contextlib.contextmanager
def _writing_to(out: Path) -> Iterator[None]:
    """OSErrors of writing as one clear line."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "free some space (clips need about twice their final size while they are written) and run it again"
            raise UserError(f"no space left for {out}: {advice}; it goes on where it stopped") from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise UserError(f"{out} cannot be written ({error.strerror}): choose another output folder") from error
        raise UserError(f"writing {out} failed: {error}") from error


def _finished_records(out: Path, settings: PrepareSettings, hashes: set[str]) -> dict[str, Record] | None:
    """The records of an earlier, finished run on the same contents; None if there was no such run.

    Raises:
        UserError: a finished run with other settings or other files.
    """
    if not (out / "index.json").is_file():
        return None
    index = read_index(out)
    again = "choose another folder, or delete it to prepare anew"
    wanted, found = settings.as_json(), index["settings"]
    changed = [f"{key} {found.get(key)} → {value}" for key, value in wanted.items() if found.get(key) != value]
    if changed:
        raise UserError(f"{out} was prepared with other settings ({'; '.join(changed)}): {again}")
    if index["sources"] != _sources_digest(hashes):
        raise UserError(f"{out} was prepared from other files than are there now: {again}")
    path = out / "report.json"
    try:
        records = {
            file["sha256"]: Record(
                file["sha256"], file["reason"], file["detail"], file["skipped"], file["notes"], windows=file["windows"]
            )
            for file in json.loads(path.read_text())["files"]
            if file["sha256"] and file["reason"] != "duplicate"
        }
        if records.keys() != hashes or not all(record.plausible for record in records.values()):
            raise ValueError("other files than the index's, or values of another type")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is missing or damaged: choose another folder, or delete {out} to prepare anew"
        ) from error
    return records


def _sources_digest(hashes: set[str]) -> str:
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def _hashes(source: Path, names: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of each file in hexadecimal; empty where it cannot be read."""

    def sha256(name: Path) -> str:
        try:
            with (source / name).open("rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError:
            return ""

    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(names, pool.map(sha256, names), strict=True))


def _split(usable: Sequence[str], test_fraction: float) -> dict[str, str]:
    """Split by content: the first ``test_fraction`` of the sorted hashes are for testing, at least one of several."""
    tests = round(test_fraction * len(usable))
    if 0 < test_fraction < 1 and len(usable) > 1:
        tests = min(max(tests, 1), len(usable) - 1)
    return {sha: "test" if rank < tests else "train" for rank, sha in enumerate(sorted(usable))}


def _assemble(
    out: Path,
    split: str,
    splits: dict[str, str],
    records: dict[str, Record],
    parts: Path,
    settings: PrepareSettings,
) -> list[dict[str, Any]]:
    """Write the shards of a split from the parts, in the order of the hash of each key; their entries in the index."""
    chosen = [(sha, block) for sha, record in records.items() if splits.get(sha) == split for block in record.blocks]
    chosen.sort(key=lambda item: hashlib.sha256(item[1].key.encode()).digest())
    folder = out / split
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    entries = []
    for number, start in enumerate(range(0, len(chosen), settings.shard_clips)):
        path = folder / f"{number:06d}.tar"
        samples, at = [], 0
        with whole(path) as shard:
            for sha, block in chosen[start : start + settings.shard_clips]:
                with (parts / f"{sha}.tar").open("rb") as part:
                    part.seek(block.offset)
                    shard.write(part.read(block.length))
                samples.append([block.key, at + block.audio[0], block.audio[1], at + block.video[0], block.video[1]])
                at += block.length
            shard.write(bytes(2 * tarfile.BLOCKSIZE))
        size = at + 2 * tarfile.BLOCKSIZE
        entries.append({"path": f"{split}/{path.name}", "bytes": size, "samples": samples})
    return entries
