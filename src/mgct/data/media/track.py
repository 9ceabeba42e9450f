"""Opening a file and decoding one of its streams."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import av
from av.codec.context import ThreadType

from mgct.data.media.error import MediaError
from mgct.data.media.processes import check_limits

CLOCK_SLACK_S = 1e-3
"""A frame this much after an output time still counts as shown: containers with millisecond clocks round by that."""
AUDIO_JITTER_S = 0.02
"""Sound whose timestamp is further than this from the end of the sound before is placed anew (a gap or overlap)."""
LONGEST_GAP_S = 60.0
"""A jump in a stream's timestamps beyond this is damage, not a pause."""

_REFERRING_DEMUXERS = frozenset(
    {
        "concat",
        "hls",
        "dash",
        "sdp",
        "rtsp",
        "rtp",
        "sap",
        "imf",
        "image2",
        "lavfi",
        "tedcaptions",
        "vobsub",
        "ffmetadata",
    }
)


def decoder_version() -> str:
    """The versions of what decodes, as one word: results are bit for bit the same only between equal ones."""
    libraries = (
        ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale", "libswresample")
    )
    return "-".join((av.__version__, *libraries))


_TEXT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Texts in a file that are not UTF-8 are no reason to refuse it; PyAV 19 takes them without being told."""


@lru_cache(maxsize=1)
def _container_options() -> dict[str, str]:
    """Demuxer options: no protocol, no format that refers to other files, enough probing for late streams."""
    formats = {name for name in av.formats_available if not _REFERRING_DEMUXERS & set(name.split(","))}
    return {
        "format_whitelist": ",".join(sorted({part for name in formats for part in (name, *name.split(","))})),
        "protocol_whitelist": "none",
        "probesize": str(50_000_000),
        "analyzeduration": str(20_000_000),
    }


@contextlib.contextmanager
def open_media(path: Path) -> Iterator[Any]:
    """The container of a regular file; whatever FFmpeg says while opening becomes a `MediaError`."""
    try:
        if not path.is_file():
            raise MediaError("unreadable", "not a file")
        with path.open("rb") as handle:
            if os.fstat(handle.fileno()).st_size == 0:
                raise MediaError("unreadable", "the file is empty (0 bytes)")
            try:
                container = av.open(handle, "r", options=_container_options(), **_TEXT)
            except (av.error.FFmpegError, ValueError, UnicodeError) as error:
                raise MediaError("unreadable", f"FFmpeg cannot open it ({words(error)})") from error
            with container:
                yield container
    except OSError as error:
        if isinstance(error, av.error.FFmpegError):
            raise
        raise MediaError("unreadable", f"{error.strerror or error}") from error


def words(error: BaseException) -> str:
    """FFmpeg's message without the error number and file name that PyAV adds."""
    return getattr(error, "strerror", None) or str(error)


class Closing(ABC):
    """What holds a file open: closed by `close`, or at the end of a ``with`` statement."""

    @abstractmethod
    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Track(Closing):
    """The decoded frames of the best stream of one kind, in the order in which they are shown.

    Iterating gives (time in seconds on the container's clock, frame). Packets that cannot be decoded before the first
    frame are skipped and counted (a recording cut in the middle of a group of pictures starts so); damage after it ends
    the iteration and is described in `damage`.
    """

    def __init__(self, path: Path, kind: Literal["video", "audio"]) -> None:
        self.damage: str | None = None
        self.skipped_packets = 0
        self._stack = contextlib.ExitStack()
        try:
            self.container = self._stack.enter_context(open_media(path))
            stream = _best_stream(self.container, kind)
            if stream is None:
                raise MediaError("no video" if kind == "video" else "no audio", f"the file has no {kind} stream")
            if stream.codec_context is None:
                raise MediaError("unreadable", f"this FFmpeg has no decoder for its {kind} stream")
            self.stream: Any = stream
            self.stream.codec_context.thread_type = ThreadType.SLICE
            self.stream.codec_context.thread_count = 1
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """Release the file."""
        self._stack.close()

    def nothing(self) -> MediaError:
        """The error to raise when not even one frame could be decoded."""
        what = "video frame" if self.stream.type == "video" else "sound"
        return MediaError("unreadable", f"no {what} can be decoded ({self.damage or 'no data'})")

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        expected = None
        for frame in self._decoded():
            tick = float(frame.time_base or self.stream.time_base)
            stamp = frame.pts if frame.pts is not None else frame.dts
            if stamp is not None:
                time_s = stamp * tick
            elif expected is not None:
                time_s = expected
            else:
                time_s = (self.stream.start_time or 0) * float(self.stream.time_base)
            expected = time_s + self.frame_seconds(frame)
            yield time_s, frame

    def frame_seconds(self, frame: Any) -> float:
        """How long a frame lasts: its samples, or its stated duration, or one over the average frame rate."""
        if isinstance(frame, av.AudioFrame):
            return frame.samples / frame.sample_rate
        if frame.duration and frame.time_base:
            return float(frame.duration * frame.time_base)
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(1 / rate) if rate else 0.0

    def _decoded(self) -> Iterator[Any]:
        shown = 0
        packets = self.container.demux(self.stream)
        while True:
            check_limits()
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                frames = [] if packet.is_corrupt else packet.decode()
                damaged = "a damaged packet" if packet.is_corrupt else None
            except av.error.EOFError:
                return
            except IndexError:
                frames, damaged = [], "packets of a stream that was not announced"
            except (av.error.FFmpegError, ValueError) as error:
                frames, damaged = [], words(error)
            for frame in frames:
                if frame.is_corrupt:
                    damaged = "a damaged frame"
                    break
                shown += 1
                yield frame
            if damaged is not None:
                if shown:
                    self.damage = damaged
                    return
                self.skipped_packets += 1


def declared_seconds(container: Any) -> float | None:
    """The duration that a container declares, if it does."""
    return container.duration / av.time_base if container.duration is not None else None


def _best_stream(container: Any, kind: Literal["video", "audio"]) -> Any | None:
    """FFmpeg's choice among the streams of a kind; cover art is not a video."""
    best = container.streams.best(kind)
    if best is not None and kind == "video" and best.disposition & av.stream.Disposition.attached_pic:
        return None
    return best


def declares_more(declared_s: float | None, length_s: float, start_s: float) -> str | None:
    """A remark when a container declares a longer duration than what is in it (counted from its start or from 0)."""
    found_s = max(length_s, length_s + start_s)
    if declared_s is None or declared_s - found_s <= max(0.5, 0.05 * found_s):
        return None
    return f"the container declares {declared_s:.2f} s, there are {length_s:.2f} s"


class Reader(Closing):
    """One stream of a file, read forward once; what its pictures and its sound have in common.

    A subclass sets ``_pieces``, the iterator over what it gives.

    Attributes:
        end_s: when it ends, on the video's clock; known when everything was read.
        damage: what ended it before its end, known then too.

    Raises:
        MediaError: unreadable, or no such stream.
    """

    _pieces: Iterator[Any]

    def __init__(self, path: Path, kind: Literal["video", "audio"]) -> None:
        self._track = Track(path, kind)
        self.end_s: float | None = None
        self.damage: str | None = None
        try:
            self._frames = iter(self._track)
            first = next(self._frames, None)
            if first is None:
                raise self._track.nothing()
        except BaseException:
            self.close()
            raise
        self._first_s, self._first = first

    def finish(self) -> None:
        """Decode the rest without keeping it, so that ``end_s`` and ``damage`` are known."""
        for _ in self._pieces:
            pass

    @property
    def skipped_packets(self) -> int:
        """Packets before the first frame that could not be decoded."""
        return self._track.skipped_packets

    def close(self) -> None:
        """Release the file."""
        self._track.close()
