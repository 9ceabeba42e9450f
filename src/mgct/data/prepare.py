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
import io
import json
import math
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mgct.data.media import (
    MEDIA_SUFFIXES,
    Fit,
    MediaError,
    Window,
    WindowReader,
    check_rate_hz,
    decoder_version,
    find_files,
    for_each_file,
    one_line,
)
from mgct.errors import UserError
from mgct.files import locked
from mgct.types import ClipSpec

FORMAT_VERSION = 1
SPLITS = ("train", "test")
_LARGEST_SIDE = 16384
Status = Literal["taken", "refused", "ignored"]


@dataclass(frozen=True)
class PrepareSettings:
    """Everything besides the files' contents that decides what is written.

    Args:
        clip: the clips to store.
        stride_frames: frames from one window's start to the next one's.
        fit: centre crop or letterbox.
        test_fraction: share of the usable files whose clips go to the test split.
        shard_clips: clips a shard.
        silence_dbfs: a window whose RMS is below this many dB of full scale is silent.
        static_levels: a window is static when its pixels' range over time, averaged, is below this many of 255 levels.
        file_limit_s: seconds of processor time after which a file is refused as too slow.

    Raises:
        UserError: a setting is out of its range.
    """

    clip: ClipSpec
    stride_frames: int
    fit: Fit
    test_fraction: float
    shard_clips: int
    silence_dbfs: float
    static_levels: float
    file_limit_s: float

    def __post_init__(self) -> None:
        if self.fit not in ("crop", "letterbox"):
            raise UserError(f"fit must be 'crop' or 'letterbox', got {self.fit!r}")
        if not 0 <= self.test_fraction <= 1:
            raise UserError(f"test_fraction must be between 0 and 1, got {self.test_fraction}")
        if self.shard_clips < 1:
            raise UserError(f"shard_clips must be at least 1, got {self.shard_clips}")
        if not self.silence_dbfs <= 0:
            raise UserError(f"silence_dbfs must be at most 0, which is full scale, got {self.silence_dbfs}")
        if math.isnan(self.static_levels):
            raise UserError("static_levels must be a number, got nan")
        if not self.file_limit_s > 0:
            raise UserError(f"file_limit_s must be above 0, got {self.file_limit_s}")
        if self.clip.size > _LARGEST_SIDE:
            raise UserError(f"clip.size must be at most {_LARGEST_SIDE}, got {self.clip.size}")
        check_rate_hz(self.clip.sample_rate_hz)

    def as_json(self) -> dict[str, Any]:
        """The settings and the versions of format and decoder, as JSON."""
        return {**asdict(self), "format": FORMAT_VERSION, "decoder": decoder_version()}

    @property
    def digest(self) -> str:
        """A word that differs when any setting or version differs."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FileReport:
    """What became of one file.

    Attributes:
        path: relative to the source folder.
        status: `taken`; `refused` (no use, but its name promises a video); `ignored` (its name promises none either).
        reason: a word: why it was not taken.
        detail: the same in a line.
        sha256: of its content, in hexadecimal.
        split: `train` or `test`, for a taken file.
        windows: clips taken from it.
        skipped: windows not taken, by reason (`silent`, `static`).
        notes: what was odd about it (damage, gaps), though it was taken.
    """

    path: str
    status: Status
    reason: str = ""
    detail: str = ""
    sha256: str = ""
    split: str = ""
    windows: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        """Whether a part of the file could not be decoded."""
        return any("damaged" in note for note in self.notes)


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did.

    Attributes:
        settings: the settings, as JSON.
        files: one entry a file found, by path.
        clips: clips by split.
        hours: the clips' total duration by split, in hours.
    """

    settings: dict[str, Any]
    files: list[FileReport]
    clips: dict[str, int]
    hours: dict[str, float]

    def count(self, status: Status) -> int:
        """Files of a status."""
        return sum(file.status == status for file in self.files)

    @property
    def reasons(self) -> dict[str, int]:
        """Refused files by reason."""
        return dict(Counter(file.reason for file in self.files if file.status == "refused").most_common())

    def summary(self) -> str:
        """The report in a few lines."""
        lines = [
            f"{self.count('taken')} files taken: {self.clips['train']} clips for training "
            f"({self.hours['train']:.3g} h), {self.clips['test']} for testing ({self.hours['test']:.3g} h)"
        ]
        if self.reasons:
            lines.append(f"{self.count('refused')} refused: " + _counted(self.reasons))
        skipped: Counter[str] = Counter()
        for file in self.files:
            skipped.update(file.skipped)
        if skipped:
            lines.append(f"{sum(skipped.values())} windows skipped: " + _counted(skipped))
        if noted := sum(file.status == "taken" and bool(file.notes) for file in self.files):
            lines.append(f"{noted} of the files taken have notes (damage, gaps): see report.json")
        if self.count("ignored"):
            lines.append(f"{self.count('ignored')} other files ignored")
        return "\n".join(lines)


def prepare(
    source: Path,
    out: Path,
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
            parts = _parts_folder(out, settings)
            jobs = [_Job(sha, source / name, parts, settings) for sha, name in first_of.items()]
            _make_parts(sorted(jobs, key=lambda job: job.path), settings.file_limit_s, workers, progress)
            records = {sha: _Record.read(parts, sha) for sha in first_of}
        else:
            records = finished
        splits = _split(sorted(sha for sha, record in records.items() if record.windows), test_fraction)
        report = _report(hashes, passed, first_of, records, splits, settings)
        _write_whole(out / "report.json", _dumps(_report_json(report)))
        _refuse_if_unusable(report, source, out, strict)
        if finished is None:
            index = {
                "settings": settings.as_json(),
                "sources": _sources_digest(set(first_of)),
                "shards": {split: _assemble(out, split, splits, records, parts, settings) for split in SPLITS},
            }
            _write_whole(out / "index.json", _dumps(index, indent=None))
        shutil.rmtree(out / ".parts", ignore_errors=True)
    return report


# ------------------------------------------------------------------------------------------------------ before the work


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


def _parts_folder(out: Path, settings: PrepareSettings) -> Path:
    """OUT/.parts for these settings, without what an interrupted run left half-written or made with others."""
    root = out / ".parts"
    if not root.is_dir() and not (out / "index.json").is_file() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no preparation: choose a new output folder")
    if root.is_dir():
        for old in root.iterdir():
            if old.name != settings.digest:
                shutil.rmtree(old)
    parts = root / settings.digest
    parts.mkdir(parents=True, exist_ok=True)
    for half in parts.glob("*.tmp"):
        half.unlink(missing_ok=True)
    return parts


def _finished_records(out: Path, settings: PrepareSettings, hashes: set[str]) -> dict[str, _Record] | None:
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
            file["sha256"]: _Record(
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


# ------------------------------------------------------------------------------------------------------------- one file


@dataclass(frozen=True)
class _Block:
    """Where one clip's three tar members lie: the whole, and the two arrays' bytes relative to its start."""

    key: str
    offset: int
    length: int
    audio: tuple[int, int]
    video: tuple[int, int]


@dataclass(frozen=True)
class _Record:
    """What decoding one file came to."""

    sha256: str
    reason: str
    detail: str
    skipped: dict[str, int]
    notes: list[str]
    windows: int = 0
    blocks: list[_Block] = field(default_factory=list)

    @property
    def plausible(self) -> bool:
        """Whether what was read from a file is of the types that were written."""
        texts = (self.sha256, self.reason, self.detail, *self.notes)
        counts = (self.windows, *self.skipped.values())
        return all(isinstance(text, str) for text in texts) and all(isinstance(count, int) for count in counts)

    @staticmethod
    def path(parts: Path, sha256: str) -> Path:
        return parts / f"{sha256}.json"

    @classmethod
    def read(cls, parts: Path, sha256: str) -> _Record:
        path = cls.path(parts, sha256)
        try:
            stored = json.loads(path.read_text())
            blocks = [
                _Block(block["key"], block["offset"], block["length"], tuple(block["audio"]), tuple(block["video"]))
                for block in stored.pop("blocks")
            ]
            return cls(**stored, blocks=blocks)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged: delete it and run this again") from error


@dataclass(frozen=True)
class _Job:
    sha256: str
    path: Path
    parts: Path
    settings: PrepareSettings

    @property
    def tar(self) -> Path:
        return self.parts / f"{self.sha256}.tar"


def _member(name: str, content: bytes) -> bytes:
    """A tar member whose bytes depend on its name and content alone."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _tar_block(key: str, window: Window, facts: dict[str, Any], offset: int) -> tuple[bytes, _Block]:
    """One clip as three tar members, in the order of their names as webdataset wants a sample's members adjacent."""
    audio, video = _npy(window.audio), _npy(window.video)
    parts = [_member(f"{key}.audio.npy", audio), _member(f"{key}.json", _dumps(facts, indent=None).encode())]
    video_at = sum(map(len, parts)) + tarfile.BLOCKSIZE
    parts.append(_member(f"{key}.video.npy", video))
    content = b"".join(parts)
    return content, _Block(key, offset, len(content), (tarfile.BLOCKSIZE, len(audio)), (video_at, len(video)))


def _window_defect(window: Window, settings: PrepareSettings) -> Literal["silent", "static"] | None:
    loudness = np.sqrt(np.mean(np.square(window.audio, dtype=np.float64))) / 32768
    if loudness < 10 ** (settings.silence_dbfs / 20):
        return "silent"
    pixel_range = window.video.max(0).astype(np.int16) - window.video.min(0)
    if window.video.shape[0] > 1 and pixel_range.mean() < settings.static_levels:
        return "static"
    return None


def _make_part(job: _Job) -> None:
    """Decode one file into its part: the clips' tar members, then the record, which says that the part is whole."""
    clip, settings = job.settings.clip, job.settings
    blocks: list[_Block] = []
    skipped: Counter[str] = Counter()
    notes: list[str] = []
    reason = detail = ""
    with _whole(job.tar) as out:
        try:
            with WindowReader(job.path, clip, stride_frames=settings.stride_frames, fit=settings.fit) as reader:
                for number, window in enumerate(reader):
                    if defect := _window_defect(window, settings):
                        skipped[defect] += 1
                        continue
                    facts = {"sha256": job.sha256, "start_s": window.start_s, "fps": clip.fps}
                    facts["sample_rate_hz"] = clip.sample_rate_hz
                    offset = blocks[-1].offset + blocks[-1].length if blocks else 0
                    content, block = _tar_block(f"{job.sha256[:16]}_{number:05d}", window, facts, offset)
                    out.write(content)
                    blocks.append(block)
                notes = reader.notes
        except MediaError as error:
            reason, detail = error.reason, error.detail
            blocks, skipped = [], Counter()
    if skipped and not blocks:
        reason = skipped.most_common(1)[0][0]
        detail = "in no window is there both sound and motion: " + _counted(skipped)
    record = _Record(job.sha256, reason, detail, dict(sorted(skipped.items())), notes, len(blocks), blocks)
    _write_whole(_Record.path(job.parts, job.sha256), _dumps(asdict(record), indent=None))


# ---------------------------------------------------------------------------------------------------------- all files


def _make_parts(jobs: Sequence[_Job], limit_s: float, workers: int | None, progress: bool) -> None:
    """`_make_part` for every job that has no part yet, in several processes."""
    missing = [job for job in jobs if not _Record.path(job.parts, job.sha256).is_file()]
    for_each_file(
        _make_part,
        missing,
        on_crash=_record_crash,
        limit_s=limit_s,
        workers=workers,
        progress=progress,
        done=len(jobs) - len(missing),
    )


def _record_crash(job: _Job) -> None:
    record = _Record(job.sha256, "unreadable", "decoding it crashes or hangs FFmpeg", {}, [])
    _write_whole(_Record.path(job.parts, job.sha256), _dumps(asdict(record), indent=None))


# -------------------------------------------------------------------------------------------------------------- shards


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
    records: dict[str, _Record],
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
        with _whole(path) as shard:
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


# -------------------------------------------------------------------------------------------------------------- report


def _report(
    hashes: dict[Path, str],
    passed: dict[Path, str],
    first_of: dict[str, Path],
    records: dict[str, _Record],
    splits: dict[str, str],
    settings: PrepareSettings,
) -> PrepareReport:
    files = [FileReport(str(name), _passed_status(name, why), "passed over", why) for name, why in passed.items()]
    files += [_file_report(name, sha, first_of, records, splits) for name, sha in hashes.items()]
    files.sort(key=lambda file: file.path)
    clips = {split: sum(file.windows for file in files if file.split == split) for split in SPLITS}
    hours = {split: count * settings.clip.seconds / 3600 for split, count in clips.items()}
    return PrepareReport(settings.as_json(), files, clips, hours)


def _passed_status(name: Path, why: str) -> Status:
    return "refused" if name.suffix.lower() in MEDIA_SUFFIXES and why != "hidden" else "ignored"


def _file_report(
    name: Path, sha: str, first_of: dict[str, Path], records: dict[str, _Record], splits: dict[str, str]
) -> FileReport:
    if not sha:
        return FileReport(str(name), "refused", "unreadable", "the file cannot be read: check its permissions")
    record = records[sha]
    promises = name.suffix.lower() in MEDIA_SUFFIXES
    if record.windows and first_of[sha] != name:
        return FileReport(str(name), "refused", "duplicate", f"the same content as {first_of[sha]}", sha)
    if record.windows:
        status: Status = "taken"
    else:
        status = "refused" if promises or record.reason not in ("unreadable", "no video", "no audio") else "ignored"
    return FileReport(
        str(name),
        status,
        record.reason,
        record.detail,
        sha,
        splits.get(sha, ""),
        record.windows,
        record.skipped,
        record.notes,
    )


def _report_json(report: PrepareReport) -> dict[str, Any]:
    totals = {status: report.count(status) for status in ("taken", "refused", "ignored")}
    return {
        "settings": report.settings,
        "totals": {"files": totals, "refused": report.reasons, "clips": report.clips, "hours": report.hours},
        "files": [asdict(file) for file in report.files],
    }


def _refuse_if_unusable(report: PrepareReport, source: Path, out: Path, strict: bool) -> None:
    see = f"see {out / 'report.json'}"
    if not report.count("taken"):
        why = _counted(report.reasons) if report.reasons else f"{len(report.files)} files, none of them a video"
        raise UserError(f"nothing in {source} can be used ({why}): {see}, or try mgct inspect {source}")
    bad = [file for file in report.files if file.status == "refused" or file.damaged]
    if strict and bad:
        first = bad[0]
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        what = f"{one_line(first.path)}: {first.reason or 'damaged'}{more}"
        raise UserError(f"--strict: {len(bad)} of {len(report.files)} files refused or damaged ({what}): {see}")


# ------------------------------------------------------------------------------------------------------------- writing


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _dumps(value: Any, indent: int | None = 1) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=False) + "\n"


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that gets its name only when it is whole and on the disk."""
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_whole(path: Path, text: str) -> None:
    with _whole(path) as handle:
        # Bytes of a file's name that are no UTF-8 become JSON escapes, which are read back as what Python calls them.
        handle.write(text.encode("utf-8", "backslashreplace"))
