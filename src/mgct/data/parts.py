"""One file's clips, as the members of a tar that will be copied into shards, and the record of what became of it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mgct.data.media import Fit, MediaError, Window, WindowReader, check_rate_hz, decoder_version, for_each_file
from mgct.errors import UserError
from mgct.types import ClipSpec

FORMAT_VERSION = 2
"""Of what `mgct prepare` writes."""
_LARGEST_SIDE = 16384


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
class Block:
    """Where one clip's three tar members lie: the whole, and the two arrays' bytes relative to its start."""

    key: str
    offset: int
    length: int
    audio: tuple[int, int]
    video: tuple[int, int]


@dataclass(frozen=True)
class Record:
    """What decoding one file came to."""

    sha256: str
    reason: str
    detail: str
    skipped: dict[str, int]
    notes: list[str]
    windows: int = 0
    blocks: list[Block] = field(default_factory=list)

    @property
    def plausible(self) -> bool:
        """Whether what was read from a file is of the types that were written."""
        texts = (self.sha256, self.reason, self.detail, *self.notes)
        counts = (self.windows, *self.skipped.values())
        return all(isinstance(text, str) for text in texts) and all(isinstance(count, int) for count in counts)

    @staticmethod
    def path(parts: Path, sha256: str) -> Path:
        """Where the record of a file's part is."""
        return parts / f"{sha256}.json"

    @classmethod
    def read(cls, parts: Path, sha256: str) -> Record:
        """The record of a file's part.

        Raises:
            UserError: it is damaged.
        """
        path = cls.path(parts, sha256)
        try:
            stored = json.loads(path.read_text())
            blocks = [
                Block(block["key"], block["offset"], block["length"], tuple(block["audio"]), tuple(block["video"]))
                for block in stored.pop("blocks")
            ]
            return cls(**stored, blocks=blocks)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged: delete it and run this again") from error


@dataclass(frozen=True)
class Job:
    """A file to make a part of."""

    sha256: str
    path: Path
    parts: Path
    settings: PrepareSettings

    @property
    def tar(self) -> Path:
        """Where its clips wait."""
        return self.parts / f"{self.sha256}.tar"


def parts_folder(out: Path, settings: PrepareSettings) -> Path:
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


def make_parts(jobs: Sequence[Job], limit_s: float, workers: int | None, progress: bool) -> None:
    """`make_part` for every job that has no part yet, in several processes."""
    missing = [job for job in jobs if not Record.path(job.parts, job.sha256).is_file()]
    for_each_file(
        make_part,
        missing,
        on_crash=_record_crash,
        limit_s=limit_s,
        workers=workers,
        progress=progress,
        done=len(jobs) - len(missing),
    )


def make_part(job: Job) -> None:
    """Decode one file into its part: the clips' tar members, then the record, which says that the part is whole."""
    clip, settings = job.settings.clip, job.settings
    blocks: list[Block] = []
    skipped: Counter[str] = Counter()
    notes: list[str] = []
    reason = detail = ""
    with whole(job.tar) as out:
        try:
            with WindowReader(job.path, clip, stride_frames=settings.stride_frames, fit=settings.fit) as reader:
                for number, window in enumerate(reader):
                    if defect := _window_defect(window, settings):
                        skipped[defect] += 1
                        continue
                    facts = {"sha256": job.sha256, "start_s": window.start_s, "fps": clip.fps}
                    facts["sample_rate_hz"] = clip.sample_rate_hz
                    offset = blocks[-1].offset + blocks[-1].length if blocks else 0
                    content, block = tar_block(f"{job.sha256[:16]}_{number:05d}", window, facts, offset)
                    out.write(content)
                    blocks.append(block)
                notes = reader.notes
        except MediaError as error:
            reason, detail = error.reason, error.detail
            blocks, skipped = [], Counter()
    if skipped and not blocks:
        reason = skipped.most_common(1)[0][0]
        detail = "in no window is there both sound and motion: " + counted(skipped)
    record = Record(job.sha256, reason, detail, dict(sorted(skipped.items())), notes, len(blocks), blocks)
    write_json(Record.path(job.parts, job.sha256), dumps(asdict(record), indent=None))


def _record_crash(job: Job) -> None:
    record = Record(job.sha256, "unreadable", "decoding it crashes or hangs FFmpeg", {}, [])
    write_json(Record.path(job.parts, job.sha256), dumps(asdict(record), indent=None))


def _window_defect(window: Window, settings: PrepareSettings) -> Literal["silent", "static"] | None:
    loudness = np.sqrt(np.mean(np.square(window.audio, dtype=np.float64))) / 32768
    if loudness < 10 ** (settings.silence_dbfs / 20):
        return "silent"
    pixel_range = window.video.max(0).astype(np.int16) - window.video.min(0)
    if window.video.shape[0] > 1 and pixel_range.mean() < settings.static_levels:
        return "static"
    return None


def tar_block(key: str, window: Window, facts: dict[str, Any], offset: int) -> tuple[bytes, Block]:
    """One clip as three tar members, in the order of their names as webdataset wants a sample's members adjacent."""
    audio, video = _npy(window.audio), _npy(window.video)
    parts = [_member(f"{key}.audio.npy", audio), _member(f"{key}.json", dumps(facts, indent=None).encode())]
    video_at = sum(map(len, parts)) + tarfile.BLOCKSIZE
    parts.append(_member(f"{key}.video.npy", video))
    content = b"".join(parts)
    return content, Block(key, offset, len(content), (tarfile.BLOCKSIZE, len(audio)), (video_at, len(video)))


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


def counted(counts: dict[str, int]) -> str:
    """Counts of things in words."""
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def dumps(value: Any, indent: int | None = 1) -> str:
    """The text of a JSON file, of which every character stays as it is."""
    return json.dumps(value, indent=indent, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
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


def write_json(path: Path, text: str) -> None:
    """Write what `dumps` gives as a `whole` file."""
    with whole(path) as handle:
        # Bytes of a file's name that are no UTF-8 become JSON escapes, which are read back as what Python calls them.
        handle.write(text.encode("utf-8", "backslashreplace"))


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
