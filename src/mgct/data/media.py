"""Real media files: the one place that knows PyAV and FFmpeg.

Time. Everything is measured on the *video's clock*: 0 s is the moment the first decodable video frame is shown. The
sound is laid on that clock by the two streams' own timestamps (edit lists, encoder priming and negative timestamps are
applied by FFmpeg's demuxers), so a stream that starts late is preceded by silence and one that starts early loses what
came before the picture. A picture is on show from its timestamp until the next one's: an output frame at time τ is the
last source frame at or before τ, which is right for any frame rate, constant or variable.

Safety. A file is opened through a Python file object with no protocol and no playlist demuxer allowed, so that a text
that calls itself a video cannot make FFmpeg read another file or the network, and no file name has a special meaning.
Decoding uses slice threads at most, and one thread a file: parallelism is over files (see `mgct.data.prepare`).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

import av
import numpy as np
import torch
from av.codec.context import ThreadType
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mgct.errors import UserError
from mgct.types import AVSample, ClipSpec

Fit = Literal["crop", "letterbox"]
"""How a picture becomes a square: `crop` keeps the centre, `letterbox` keeps everything and adds black bars."""

CLOCK_SLACK_S = 1e-3
"""A frame this much after an output time still counts as shown: containers with millisecond clocks round by that."""
AUDIO_JITTER_S = 0.02
"""Sound whose timestamp is further than this from the end of the sound before is placed anew (a gap or overlap)."""
LONGEST_GAP_S = 60.0
"""A jump in a stream's timestamps beyond this is damage, not a pause."""
AAC_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
"""Sample rates of MPEG-4 AAC (7,350 Hz left out: few players know it)."""

MEDIA_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("3g2", "3gp", "asf", "avi", "f4v", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts"),
        *("mxf", "ogv", "qt", "rm", "ts", "vob", "webm", "wmv"),
    )
)
"""Names that promise a video: one that cannot be used is refused; any other that is no video is ignored."""


_SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
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
_SAMPLE_TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
_MOST_CHANNELS = 8
_LARGEST_SCALED_SIDE = 64
_SKIPPED_AT_ONCE = 4096
_BT601 = 6
_HDR_TRANSFERS = (16, 18)
_NOTABLE_OFFSET_S = 0.04
_LARGEST_TIMESCALE = 100_000_000
_STATIC_LEVELS = 0.5

Job = TypeVar("Job")
Result = TypeVar("Result")

Reason = Literal["unreadable", "no video", "no audio", "too short", "unsupported", "silent", "static"]
"""Why a file cannot be used."""


class MediaError(UserError):
    """A media file cannot be used.

    Args:
        reason: the kind of defect, one of `Reason`.
        detail: what was found, in one line.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[MediaError], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)


# -------------------------------------------------------------------------------------------------------------- finding


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


def decoder_version() -> str:
    """The versions of what decodes, as one word: results are bit for bit the same only between equal ones."""
    libraries = (
        ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale", "libswresample")
    )
    return "-".join((av.__version__, *libraries))


# ----------------------------------------------------------------------------------------------------------- many files


def for_each_file(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    on_crash: Callable[[Job], Result],
    workers: int | None = None,
    progress: bool = True,
    done: int = 0,
) -> list[Result]:
    """Apply a function to many files in several processes, whatever the files do to them.

    A file that crashes FFmpeg takes its process down and nothing else: the files then in work are tried again one by
    one, each in a process of its own, and the one that crashes again goes to ``on_crash``. Any other exception stops
    everything and is raised. The processes end when this one ends, even when it is killed.

    Args:
        function: called in the processes; it and the jobs are pickled.
        jobs: what to give it, one a call.
        on_crash: called here for a job that crashes.
        workers: processes; None: one a CPU; 0: call it in this process.
        progress: whether to show a progress bar.
        done: jobs done earlier, for the bar.

    Returns:
        The results in the order of the jobs.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cpus if workers is None else workers, len(jobs))
    results: dict[int, Result] = {}
    with tqdm(total=len(jobs) + done, initial=done, unit="file", disable=not progress) as bar:
        if count == 0:
            for index, job in enumerate(jobs):
                results[index] = function(job)
                bar.update()
        left, suspects = dict(enumerate(jobs)) if count else {}, list[int]()
        while left:
            if suspects:
                index = suspects.pop()
                alone, _ = _in_processes(function, {index: left[index]}, 1, bar)
                if not alone:
                    alone = {index: on_crash(left[index])}
                    bar.update()
            else:
                alone, suspects = _in_processes(function, left, count, bar)
            results.update(alone)
            left = {index: job for index, job in left.items() if index not in alone}
    return [results[index] for index in range(len(jobs))]


def _in_processes(
    function: Callable[[Job], Result], jobs: dict[int, Job], count: int, bar: tqdm[Any]
) -> tuple[dict[int, Result], list[int]]:
    """Results by job; when a process died, not of all of them, and then also the jobs that were in work."""
    context = get_context("spawn")
    stop = context.Event()
    results: dict[int, Result] = {}
    broken = False
    with tempfile.TemporaryDirectory() as marks:
        pool = ProcessPoolExecutor(
            min(count, len(jobs)), context, initializer=_start_worker, initargs=(stop, os.getpid(), marks)
        )
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is for this process alone
        try:
            futures = {pool.submit(_marked, function, index, job): index for index, job in jobs.items()}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            for future in as_completed(futures):
                try:
                    results[futures[future]] = future.result()
                    bar.update()
                except BrokenProcessPool:
                    broken = True
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        in_work = [int(mark.name) for mark in Path(marks).iterdir()] if broken else []
    return results, [index for index in in_work if index not in results] or ([*jobs] if broken and not results else [])


_worker_stop: Any = None
_worker_marks = Path()


def _start_worker(stop: Any, parent: int, marks: str) -> None:
    """In a worker: end when the parent is gone, however it went."""
    global _worker_stop, _worker_marks
    _worker_stop, _worker_marks = stop, Path(marks)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _marked(function: Callable[[Job], Result], index: int, job: Job) -> Result:
    """In a worker: the call, with a mark on the disk while it lasts."""
    mark = _worker_marks / str(index)
    mark.touch()
    result = function(job)
    mark.unlink()
    return result


# ------------------------------------------------------------------------------------------------------------ reading


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
def _open(path: Path) -> Iterator[Any]:
    """The container of a regular file; whatever FFmpeg says while opening becomes a `MediaError`."""
    try:
        if not path.is_file():
            raise MediaError("unreadable", "not a file")
        with path.open("rb") as handle:
            if os.fstat(handle.fileno()).st_size == 0:
                raise MediaError("unreadable", "the file is empty (0 bytes)")
            try:
                container = av.open(handle, "r", metadata_errors="replace", options=_container_options())
            except (av.error.FFmpegError, ValueError, UnicodeError) as error:
                raise MediaError("unreadable", f"FFmpeg cannot open it ({_words(error)})") from error
            with container:
                yield container
    except OSError as error:
        if isinstance(error, av.error.FFmpegError):
            raise
        raise MediaError("unreadable", f"{error.strerror or error}") from error


def _words(error: BaseException) -> str:
    """FFmpeg's message without the error number and file name that PyAV adds."""
    return getattr(error, "strerror", None) or str(error)


class _Track:
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
            self.container = self._stack.enter_context(_open(path))
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
            if _worker_stop is not None and _worker_stop.is_set():
                raise KeyboardInterrupt
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
                frames, damaged = [], _words(error)
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


def _declared_seconds(container: Any) -> float | None:
    """The duration that a container declares, if it does."""
    return container.duration / av.time_base if container.duration is not None else None


def _best_stream(container: Any, kind: Literal["video", "audio"]) -> Any | None:
    """FFmpeg's choice among the streams of a kind; cover art is not a video."""
    best = container.streams.best(kind)
    if best is not None and kind == "video" and best.disposition & av.stream.Disposition.attached_pic:
        return None
    return best


# ------------------------------------------------------------------------------------------------------------ pictures


def display_transform(frame: Any) -> tuple[int, bool]:
    """How a frame is to be turned for display.

    Returns:
        (quarter turns counter-clockwise, mirrored left to right after turning), from the display matrix (a, b; c, d)
        that maps a pixel (x, y) to (a x + c y, b x + d y).

    Raises:
        MediaError: the matrix turns by something else than a multiple of 90 degrees.
    """
    for side in frame.side_data:
        if side.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = (value / 65536 for value in np.frombuffer(bytes(side), dtype=np.int32))
            break
    else:
        return 0, False
    scale = math.sqrt(abs(a * d - b * c)) or 1.0
    matrix = tuple(round(value / scale, 2) for value in (a, b, c, d))
    turns = {(1, 0, 0, 1): 0, (0, -1, 1, 0): 1, (-1, 0, 0, -1): 2, (0, 1, -1, 0): 3}
    mirrored = (-matrix[0], matrix[1], -matrix[2], matrix[3])
    for candidate, flip in ((matrix, False), (mirrored, True)):
        if candidate in turns:
            return turns[candidate], flip
    raise MediaError("unsupported", "it is to be shown turned by an angle that is not a multiple of 90 degrees")


def scaled_size(width: float, height: float, size: int, fit: Fit) -> tuple[int, int]:
    """Width and height in pixels to scale a picture to before it is cut or padded to size × size.

    Args:
        width: displayed width (pixels times their aspect ratio).
        height: displayed height.
        size: side of the square.
        fit: `crop` scales the shorter side to ``size``, `letterbox` the longer one.
    """
    scale = size / (min(width, height) if fit == "crop" else max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def to_square(frame: Any, size: int, fit: Fit, pixel_aspect: float = 1.0) -> NDArray[np.uint8]:
    """A decoded frame as it is displayed, as a square of RGB.

    Scaling and conversion to RGB are one pass of FFmpeg's swscale: bicubic with a support that grows with the reduction
    (so without aliasing), exact rounding. It agrees with torch's antialiased bicubic interpolation to 50 dB at a tenth
    of the time. The frame's own colour matrix and range are honoured; high dynamic range is not tone-mapped.

    Args:
        frame: a PyAV video frame of any pixel format.
        size: side of the square in pixels.
        fit: see `Fit`.
        pixel_aspect: width over height of one stored pixel.

    Returns:
        (size, size, 3) uint8.

    Raises:
        MediaError: the picture is turned by an odd angle, or its sides differ by more than a factor of 64 under `crop`.
    """
    quarter_turns, mirrored = display_transform(frame)
    width, height = scaled_size(frame.width * pixel_aspect, frame.height, size, fit)
    if max(width, height) > _LARGEST_SCALED_SIDE * size:
        raise MediaError("unsupported", f"a picture of {frame.width}x{frame.height} has no square centre to speak of")
    try:
        scaled = frame.reformat(
            width, height, "rgb24", interpolation=_SCALER, dst_color_range=ColorRange.JPEG, threads=1
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError("unsupported", f"FFmpeg cannot convert its pictures ({_words(error)})") from error
    picture = np.rot90(scaled.to_ndarray(), quarter_turns)
    if mirrored:
        picture = picture[:, ::-1]
    height, width = picture.shape[:2]
    square = np.zeros((size, size, 3), np.uint8)
    target = [
        slice(max(0, (size - side) // 2), max(0, (size - side) // 2) + min(side, size)) for side in (height, width)
    ]
    source = [
        slice(max(0, (side - size) // 2), max(0, (side - size) // 2) + min(side, size)) for side in (height, width)
    ]
    square[target[0], target[1]] = picture[source[0], source[1]]
    return square


class VideoReader:
    """The pictures of a file on a regular grid of times, in one forward pass.

    Args:
        path: any file that FFmpeg reads.
        fps: output frames per second.
        size: side of the output square in pixels.
        fit: see `Fit`.
        start_s: time of the first output frame on the video's clock.

    Attributes:
        origin_s: time of the first frame on the container's clock.
        declared_s: duration that the container declares, if it does.
        end_s: when the last frame ends, on the video's clock; known when everything was read.
        late_frames: frames whose time lies before that of a frame already shown; like a player, it drops them.

    Raises:
        MediaError: unreadable, or no video.
    """

    def __init__(self, path: Path, *, fps: float, size: int, fit: Fit = "crop", start_s: float = 0.0) -> None:
        self._track = _Track(path, "video")
        self._fps, self._size, self._fit, self._start_s = fps, size, fit, start_s
        self.late_frames = 0
        self.end_s: float | None = None
        self.damage: str | None = None
        try:
            self._frames = iter(self._track)
            first = next(self._frames, None)
            if first is None:
                raise MediaError("unreadable", f"no video frame can be decoded ({self._track.damage or 'no data'})")
        except BaseException:
            self.close()
            raise
        self.origin_s, self._first = first
        self.declared_s = _declared_seconds(self._track.container)
        aspect = self._track.stream.sample_aspect_ratio or self._track.stream.codec_context.sample_aspect_ratio
        self._pixel_aspect = float(aspect) if aspect else 1.0
        self._spans = self._shown_spans()
        self._grid = self._on_grid()

    def read(self, count: int) -> NDArray[np.uint8]:
        """The next ``count`` frames, fewer where the video ends: (n, size, size, 3) uint8."""
        frames = [frame for _, frame in zip(range(count), self._grid, strict=False)]
        return np.stack(frames) if frames else np.zeros((0, self._size, self._size, 3), np.uint8)

    def finish(self) -> None:
        """Decode the rest without keeping it, so that ``end_s`` and ``damage`` are known."""
        for _ in self._spans:
            pass

    @property
    def skipped_packets(self) -> int:
        """Packets before the first frame that could not be decoded."""
        return self._track.skipped_packets

    def close(self) -> None:
        """Release the file."""
        self._track.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _shown_spans(self) -> Iterator[tuple[Any, float]]:
        """(frame, until when it is shown) on the video's clock; the last one's end is not followed by another frame."""
        shown, since_s = self._first, 0.0
        for stamp_s, frame in self._frames:
            time_s = stamp_s - self.origin_s
            if time_s < since_s:
                if time_s < since_s - 1:
                    self.damage = f"timestamps run back from {since_s:.3f} s to {time_s:.3f} s"
                    break
                self.late_frames += 1
                continue
            if time_s > since_s + LONGEST_GAP_S:
                self.damage = f"timestamps jump from {since_s:.3f} s to {time_s:.3f} s"
                break
            yield shown, time_s
            shown, since_s = frame, time_s
        self.end_s = since_s + self._track.frame_seconds(shown)
        if self._track.damage:
            self.damage = f"{self._track.damage} after {self.end_s:.3f} s"
        yield shown, self.end_s + CLOCK_SLACK_S - 1e-6

    def _on_grid(self) -> Iterator[NDArray[np.uint8]]:
        index = 0
        for frame, until_s in self._spans:
            picture = None
            while self._start_s + index / self._fps + CLOCK_SLACK_S < until_s:
                if picture is None:
                    picture = to_square(frame, self._size, self._fit, self._pixel_aspect)
                yield picture
                index += 1


# --------------------------------------------------------------------------------------------------------------- sound


def _mono(frame: Any) -> NDArray[np.float32]:
    """The mean over an audio frame's channels as float32 in [-1, 1], shape (samples,).

    The planes are read one by one: with eight channels or more PyAV's own ``to_ndarray`` reads one too many.
    """
    channels = frame.layout.nb_channels
    if channels > _MOST_CHANNELS:
        raise MediaError("unsupported", f"its sound has {channels} channels; at most {_MOST_CHANNELS} are read")
    dtype = np.dtype(_SAMPLE_TYPES[frame.format.name.removesuffix("p")])
    if frame.format.is_planar:
        array = np.stack([np.frombuffer(plane, dtype, frame.samples) for plane in frame.planes[:channels]])
    else:
        array = np.frombuffer(frame.planes[0], dtype, frame.samples * channels).reshape(-1, channels).T
    if dtype == np.uint8:
        scaled = (array.astype(np.float64) - 128) / 128
    elif np.issubdtype(dtype, np.integer):
        scaled = array.astype(np.float64) / -float(np.iinfo(dtype).min)
    else:
        scaled = array.astype(np.float64)
    return scaled.mean(0).astype(np.float32)


class _Resampler:
    """FFmpeg's resampler for mono float32; output sample n is at n / target_hz after the first input sample."""

    def __init__(self, source_hz: int, target_hz: int) -> None:
        self.source_hz, self.target_hz = source_hz, target_hz
        self._given = 0
        self._engine = av.AudioResampler(format="fltp", layout="mono", rate=target_hz)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """What comes out for ``samples`` (n,)."""
        if self.source_hz == self.target_hz:
            return samples
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
        frame.sample_rate = self.source_hz
        frame.time_base = Fraction(1, self.source_hz)
        frame.pts = self._given
        self._given += samples.shape[0]
        return self._gather(self._engine.resample(frame))

    def flush(self) -> NDArray[np.float32]:
        """What was still held back."""
        if self.source_hz == self.target_hz or not self._given:
            return np.zeros(0, np.float32)
        return self._gather(self._engine.resample(None))

    @staticmethod
    def _gather(frames: list[Any]) -> NDArray[np.float32]:
        return np.concatenate([np.zeros(0, np.float32), *(frame.to_ndarray()[0] for frame in frames)])


def resample(samples: NDArray[np.float32], source_hz: int, target_hz: int) -> NDArray[np.float32]:
    """Mono float32 (n,) at another sample rate, by FFmpeg's resampler; sample 0 stays at time 0."""
    engine = _Resampler(source_hz, target_hz)
    return np.concatenate([engine.push(samples), engine.flush()])


def to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Floats in [-1, 1] as int16: x · 32768, rounded and clipped."""
    return np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)


class AudioReader:
    """The sound of a file, mono, at one rate, on the video's clock, in one forward pass.

    Args:
        path: any file that FFmpeg reads.
        sample_rate_hz: output samples per second.
        origin_s: 0 of the video's clock on the container's clock (`VideoReader.origin_s`).
        start_s: time of the first output sample on the video's clock (to the nearest sample).

    Attributes:
        begin_s: when the sound begins, on the video's clock (negative: before the picture).
        end_s: when it ends, on the video's clock; known when everything was read.
        gaps: how often the timestamps left or overlapped the sound before (filled with silence, or cut).

    Raises:
        MediaError: unreadable, or no audio.
    """

    def __init__(self, path: Path, *, sample_rate_hz: int, origin_s: float = 0.0, start_s: float = 0.0) -> None:
        self._track = _Track(path, "audio")
        self._rate, self._origin_s = sample_rate_hz, origin_s
        self._next = round(start_s * sample_rate_hz)
        self.gaps = 0
        self.end_s: float | None = None
        self.damage: str | None = None
        try:
            self._frames = iter(self._track)
            first = next(self._frames, None)
            if first is None:
                raise MediaError("unreadable", f"no sound can be decoded ({self._track.damage or 'no data'})")
        except BaseException:
            self.close()
            raise
        self._first = first
        self.begin_s = first[0] - origin_s
        if self.begin_s > LONGEST_GAP_S:
            self.close()
            raise MediaError("unsupported", f"its sound starts {self.begin_s:.0f} s after its picture")
        self._chunks = self._on_clock()
        self._rest = np.zeros(0, np.int16)

    def read(self, count: int) -> NDArray[np.int16]:
        """The next ``count`` samples, fewer where the sound ends: (n,) int16. Before the sound begins they are 0."""
        parts, held = [self._rest], self._rest.shape[0]
        while held < count and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            held += chunk.shape[0]
        joined = np.concatenate(parts)
        self._rest = joined[count:]
        return joined[:count]

    def finish(self) -> None:
        """Decode the rest without keeping it, so that ``end_s`` and ``damage`` are known."""
        for _ in self._chunks:
            pass

    @property
    def skipped_packets(self) -> int:
        """Packets before the first sound that could not be decoded."""
        return self._track.skipped_packets

    def close(self) -> None:
        """Release the file."""
        self._track.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_clock(self) -> Iterator[NDArray[np.int16]]:
        """Contiguous output from the sample ``start_s`` on: silence before and between, overlaps cut."""
        for position, samples in self._segments():
            if position > self._next:
                yield np.zeros(position - self._next, np.int16)
                self._next = position
            fresh = samples[self._next - position :]
            if fresh.shape[0]:
                yield to_int16(fresh)
                self._next += fresh.shape[0]

    def _segments(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(index of the first output sample on the video's clock, samples (n,)), resampled piece by piece."""
        engine: _Resampler | None = None
        start_s = end_s = self.begin_s
        given = position = 0
        for stamp_s, frame in itertools.chain([self._first], self._frames):
            time_s = stamp_s - self._origin_s
            if abs(time_s - end_s) > LONGEST_GAP_S:
                self.damage = f"timestamps jump from {end_s:.3f} s to {time_s:.3f} s"
                break
            samples = _mono(frame)
            if not np.isfinite(samples).all():
                self.damage = f"values that are no numbers after {end_s:.3f} s"
                break
            moved = abs(time_s - end_s) > AUDIO_JITTER_S
            if engine is None or moved or frame.sample_rate != engine.source_hz:
                if engine is not None:
                    yield position, engine.flush()
                self.gaps += moved
                engine = _Resampler(frame.sample_rate, self._rate)
                start_s, given = (time_s if moved else end_s), 0
                position = round(start_s * self._rate)
            out = engine.push(samples)
            given += samples.shape[0]
            end_s = start_s + given / engine.source_hz
            yield position, out
            position += out.shape[0]
        if engine is not None:
            yield position, engine.flush()
        self.end_s = end_s
        if self._track.damage:
            self.damage = f"{self._track.damage} after {end_s:.3f} s"


# --------------------------------------------------------------------------------------------------------------- clips


@dataclass(frozen=True)
class Window:
    """One clip cut from a file.

    Attributes:
        start_s: its start on the video's clock.
        video: (F, C, H, W) uint8.
        audio: (1, L) int16.
    """

    start_s: float
    video: NDArray[np.uint8]
    audio: NDArray[np.int16]


class WindowReader:
    """All windows of a clip's length in a file, one after the other, decoding everything once.

    The frames of all windows lie on one grid, k / fps on the video's clock. The first window starts at 0, or, when the
    sound begins a frame or more after the picture, at the first grid time at which there is sound. A window is given
    when all its frames are there and the sound lacks less than one frame's duration at its end (filled with silence).
    Iterating raises `MediaError` when there is not even one window.

    Args:
        path: any file that FFmpeg reads.
        clip: the windows' frames, rate, size and sample rate.
        stride_frames: frames from one window's start to the next one's.
        fit: see `Fit`.

    Attributes:
        first_s: start of the first window on the video's clock.

    Raises:
        MediaError: unreadable, no video or no audio.
    """

    def __init__(self, path: Path, clip: ClipSpec, *, stride_frames: int, fit: Fit = "crop") -> None:
        if stride_frames < 1:
            raise ValueError(f"stride_frames must be at least 1, got {stride_frames}")
        self._clip, self._stride = clip, stride_frames
        self.video = VideoReader(path, fps=clip.fps, size=clip.size, fit=fit)
        try:
            self.audio = AudioReader(path, sample_rate_hz=clip.sample_rate_hz, origin_s=self.video.origin_s)
        except BaseException:
            self.video.close()
            raise
        late_frames = max(0.0, self.audio.begin_s) * clip.fps
        self._first = 0 if late_frames < 1 else math.ceil(late_frames - 1e-6)
        self.first_s = self._first / clip.fps

    def __iter__(self) -> Iterator[Window]:
        clip, first = self._clip, self._first
        pictures, sound = _Sliding(self.video.read), _Sliding(self.audio.read)
        while True:
            frames = pictures.window(first, clip.frames)
            samples = sound.window(round(first / clip.fps * clip.sample_rate_hz), clip.audio_samples)
            if not _complete(frames, samples, clip):
                self.video.finish()
                self.audio.finish()
                if first == self._first:
                    raise _too_short(clip, first / clip.fps, frames, samples, self.notes)
                return
            yield Window(first / clip.fps, _planes(frames), _padded(samples, clip))
            first += self._stride

    def close(self) -> None:
        """Release the file."""
        self.video.close()
        self.audio.close()

    def __enter__(self) -> WindowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def notes(self) -> list[str]:
        """What was odd about the file, known after the last window."""
        length_s = max(self.video.end_s or 0.0, self.audio.end_s or 0.0)
        declares_more = _declares_more(self.video.declared_s, length_s, self.video.origin_s)
        notes = [declares_more] if declares_more else []
        for name, reader in (("video", self.video), ("audio", self.audio)):
            if reader.damage:
                notes.append(f"{name} damaged: {reader.damage}; what comes after is not used")
            if reader.skipped_packets:
                notes.append(f"{name}: {reader.skipped_packets} packets before the first decodable one skipped")
        if self.video.late_frames:
            notes.append(f"video: {self.video.late_frames} frames with a time already past dropped")
        if self.audio.gaps:
            notes.append(f"audio: timestamps jump {self.audio.gaps} times; gaps filled with silence, overlaps cut")
        return notes


def _declares_more(declared_s: float | None, length_s: float, start_s: float) -> str | None:
    """A remark when a container declares a longer duration than what is in it (counted from its start or from 0)."""
    found_s = max(length_s, length_s + start_s)
    if declared_s is None or declared_s - found_s <= max(0.5, 0.05 * found_s):
        return None
    return f"the container declares {declared_s:.2f} s, there are {length_s:.2f} s"


class _Sliding:
    """A window that moves forward over what a ``read(count)`` function gives."""

    def __init__(self, read: Callable[[int], NDArray[Any]]) -> None:
        self._read, self._held, self._at = read, read(0), 0

    def window(self, start: int, count: int) -> NDArray[Any]:
        """The elements from ``start`` on (not before an earlier call's), ``count`` of them or fewer at the end."""
        while self._at < start:
            if not self._held.shape[0]:
                self._held = self._read(min(start - self._at, _SKIPPED_AT_ONCE))
                if not self._held.shape[0]:
                    return self._held
            step = min(start - self._at, self._held.shape[0])
            self._held, self._at = self._held[step:], self._at + step
        if self._held.shape[0] < count:
            self._held = np.concatenate([self._held, self._read(count - self._held.shape[0])])
        return self._held[:count]


def _planes(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(F, H, W, C) as contiguous (F, C, H, W)."""
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))


def _complete(frames: NDArray[np.uint8], samples: NDArray[np.int16], clip: ClipSpec) -> bool:
    """Whether every frame is there and less than one frame's duration of sound is missing."""
    return frames.shape[0] == clip.frames and (clip.audio_samples - samples.shape[0]) * clip.fps < clip.sample_rate_hz


def _too_short(
    clip: ClipSpec, start_s: float, frames: NDArray[np.uint8], samples: NDArray[np.int16], notes: list[str]
) -> MediaError:
    found = (
        f"a clip lasts {clip.seconds:g} s; from {start_s:g} s on there are {frames.shape[0] / clip.fps:.2f} s of video "
        f"and {samples.shape[0] / clip.sample_rate_hz:.2f} s of audio"
    )
    return MediaError("too short", "; ".join([found, *notes]))


def _padded(samples: NDArray[np.int16], clip: ClipSpec) -> NDArray[np.int16]:
    """(1, L) with silence after the end of ``samples``."""
    return np.pad(samples, (0, clip.audio_samples - samples.shape[0]))[None]


def read_clip(path: Path, clip: ClipSpec, start_s: float = 0.0, fit: Fit = "crop") -> AVSample:
    """One clip of a file, exactly of the clip's lengths.

    The file is decoded from its beginning, never by seeking, so that the result is bit for bit the window that
    `WindowReader` gives at the same start.

    Args:
        path: any file that FFmpeg reads.
        clip: frames, rate, size and sample rate to give.
        start_s: start on the video's clock in seconds.
        fit: see `Fit`.

    Returns:
        ``video`` uint8 (F, C, H, W), ``audio`` int16 (1, L).

    Raises:
        MediaError: unreadable, no video, no audio, or less than the clip's length after ``start_s``.
    """
    with VideoReader(path, fps=clip.fps, size=clip.size, fit=fit, start_s=start_s) as video:
        frames = video.read(clip.frames)
        origin_s = video.origin_s
    with AudioReader(path, sample_rate_hz=clip.sample_rate_hz, origin_s=origin_s, start_s=start_s) as audio:
        samples = audio.read(clip.audio_samples)
    if not _complete(frames, samples, clip):
        raise _too_short(clip, start_s, frames, samples, [])
    return AVSample(video=torch.from_numpy(_planes(frames)), audio=torch.from_numpy(_padded(samples, clip)))


# --------------------------------------------------------------------------------------------------------------- facts


@dataclass(frozen=True)
class MediaFacts:
    """What is in a file, found by decoding all of it; what it says about itself is only used where named *declared*.

    Attributes:
        path: the file, as asked for.
        size_bytes: its size.
        container: FFmpeg's name of the container's format.
        declared_s: duration that the container declares; None if it does not.
        video_codec: empty without video.
        width, height: of a stored picture in pixels, before rotation.
        rotation_degrees: by how much it is turned clockwise for display.
        fps: frames per second: the median time between frames, inverted.
        variable_fps: whether the times between frames differ by more than clocks of a millisecond explain.
        video_s: duration of the video.
        frames: decoded video frames.
        audio_codec: empty without audio.
        audio_rate_hz: samples per second.
        audio_channels: channels.
        audio_s: duration of the audio.
        offset_s: start of the audio minus start of the video.
        silent_share: share of the audio's tenths of a second whose RMS is below -60 dB of full scale.
        loudness_lufs: integrated loudness (ITU-R BS.1770) of the mean of the channels; None below 0.4 s of sound.
        problems: what is wrong or needs care, in words.
    """

    path: str
    size_bytes: int = 0
    container: str = ""
    declared_s: float | None = None
    video_codec: str = ""
    width: int = 0
    height: int = 0
    rotation_degrees: int = 0
    fps: float = 0.0
    variable_fps: bool = False
    video_s: float = 0.0
    frames: int = 0
    audio_codec: str = ""
    audio_rate_hz: int = 0
    audio_channels: int = 0
    audio_s: float = 0.0
    offset_s: float = 0.0
    silent_share: float = 0.0
    loudness_lufs: float | None = None
    problems: tuple[str, ...] = ()


def probe(path: Path, name: str = "") -> MediaFacts:
    """All facts of a file; an unreadable one gives facts with the problem named, never an exception.

    Args:
        path: the file.
        name: how to call it in the facts; the path if empty.
    """
    facts: dict[str, Any] = {"path": name or str(path)}
    problems: list[str] = []
    try:
        facts["size_bytes"] = path.stat().st_size
        with _open(path) as container:
            facts["container"] = container.format.name
            facts["declared_s"] = _declared_seconds(container)
    except OSError as error:
        return MediaFacts(**facts, problems=(f"unreadable: {error.strerror}",))
    except MediaError as error:
        return MediaFacts(**facts, problems=(str(error),))
    starts: dict[str, float] = {}
    for measure in (_video_facts, _audio_facts):
        try:
            found, start_s, odd = measure(path)
            facts.update(found)
            starts[measure.__name__] = start_s
            problems += odd
        except MediaError as error:
            problems.append(str(error))
    if len(starts) == 2:
        facts["offset_s"] = offset_s = starts["_audio_facts"] - starts["_video_facts"]
        if abs(offset_s) > _NOTABLE_OFFSET_S:
            problems.append(f"sound starts {abs(offset_s):.3f} s {'after' if offset_s > 0 else 'before'} the picture")
    longest = max(facts.get("video_s", 0.0), facts.get("audio_s", 0.0))
    if starts and (note := _declares_more(facts.get("declared_s"), longest, max(starts.values()))):
        problems.append(note)
    return MediaFacts(**facts, problems=tuple(problems))


def _video_facts(path: Path) -> tuple[dict[str, Any], float, list[str]]:
    with contextlib.closing(_Track(path, "video")) as track:
        times: list[float] = []
        sizes: set[tuple[int, int]] = set()
        low: Any = None
        high: Any = None
        first = frame = None
        interlaced, turned = False, (0, False)
        for time_s, frame in track:
            times.append(time_s)
            sizes.add((frame.width, frame.height))
            interlaced |= frame.interlaced_frame
            tiny = frame.reformat(32, 32, "gray", interpolation=Interpolation.AREA, threads=1).to_ndarray()
            low, high = (tiny, tiny) if low is None else (np.minimum(low, tiny), np.maximum(high, tiny))
            first = first or frame
        if first is None or frame is None:
            raise MediaError("unreadable", f"no video frame can be decoded ({track.damage or 'no data'})")
        problems = _track_problems("video", track)
        try:
            turned = display_transform(first)
        except MediaError as error:
            problems.append(str(error))
        gaps = np.diff(np.array(times))
        forward = gaps[gaps > 0]
        period_s = float(np.median(forward)) if forward.size else track.frame_seconds(frame)
        facts = {
            "video_codec": track.stream.codec_context.name,
            "width": first.width,
            "height": first.height,
            "rotation_degrees": -90 * turned[0] % 360,
            "fps": 1 / period_s if period_s else 0.0,
            "variable_fps": bool(forward.size and np.ptp(forward) > 2.5 * CLOCK_SLACK_S),
            "video_s": max(times) - times[0] + track.frame_seconds(frame),
            "frames": len(times),
        }
        if (gaps < 0).any():
            problems.append("video timestamps run back")
        if forward.size and forward.max() > LONGEST_GAP_S:
            problems.append(f"video timestamps jump by {forward.max():.1f} s")
        if len(sizes) > 1:
            problems.append("the picture's size changes")
        if interlaced:
            problems.append("interlaced (not de-interlaced here)")
        if first.color_trc in _HDR_TRANSFERS:
            problems.append("high dynamic range (not tone-mapped here)")
        if len(times) == 1:
            problems.append("a single frame")
        elif (high.astype(np.int16) - low).mean() < _STATIC_LEVELS:
            problems.append("static: the picture never changes")
        return facts, times[0], problems


def _audio_facts(path: Path) -> tuple[dict[str, Any], float, list[str]]:
    with contextlib.closing(_Track(path, "audio")) as track:
        loudness = _Loudness()
        blocks: list[float] = []
        rest = np.zeros(0, np.float32)
        start_s, end_s, first, jumps, finite = 0.0, 0.0, None, 0, True
        for time_s, frame in track:
            if first is None:
                first, start_s, end_s = frame, time_s, time_s
            samples = _mono(frame)
            finite &= bool(np.isfinite(samples).all())
            jumps += abs(time_s - end_s) > AUDIO_JITTER_S
            end_s = time_s + track.frame_seconds(frame)
            loudness.add(samples, frame.sample_rate)
            rest = np.concatenate([rest, samples])
            tenth = max(1, frame.sample_rate // 10)
            whole = rest[: rest.shape[0] // tenth * tenth].reshape(-1, tenth)
            blocks.extend(np.sqrt(np.mean(np.square(whole, dtype=np.float64), axis=1)).tolist())
            rest = rest[whole.size :]
        if first is None:
            raise MediaError("unreadable", f"no sound can be decoded ({track.damage or 'no data'})")
        if rest.size and not blocks:
            blocks.append(float(np.sqrt(np.mean(np.square(rest, dtype=np.float64)))))
        silent_share = float(np.mean(np.array(blocks) < 1e-3))
        problems = _track_problems("audio", track)
        if silent_share == 1:
            problems.append("silent")
        if jumps:
            problems.append(f"audio timestamps jump {jumps} times")
        if not finite:
            problems.append("audio holds values that are no numbers")
        facts = {
            "audio_codec": track.stream.codec_context.name,
            "audio_rate_hz": first.sample_rate,
            "audio_channels": len(first.layout.channels),
            "audio_s": end_s - start_s,
            "silent_share": silent_share,
            "loudness_lufs": loudness.integrated_lufs() if finite else None,
        }
        return facts, start_s, problems


def _track_problems(name: str, track: _Track) -> list[str]:
    problems = [f"{name} damaged: {track.damage}"] if track.damage else []
    if track.skipped_packets:
        problems.append(f"{name}: {track.skipped_packets} packets before the first decodable one")
    return problems


class _Loudness:
    """FFmpeg's ebur128 filter over mono samples of one rate."""

    def __init__(self) -> None:
        self._graph: Any = None
        self._rate_hz = 0
        self._given = 0
        self._lufs: float | None = None

    def add(self, samples: NDArray[np.float32], rate_hz: int) -> None:
        """Samples (n,) at ``rate_hz``; after a change of rate there is no single loudness, and they are not counted."""
        if self._graph is None:
            self._graph = av.filter.Graph()
            source = self._graph.add(
                "abuffer", sample_rate=str(rate_hz), sample_fmt="fltp", channel_layout="mono", time_base=f"1/{rate_hz}"
            )
            meter = self._graph.add("ebur128", metadata="1", framelog="quiet")
            sink = self._graph.add("abuffersink")
            source.link_to(meter)
            meter.link_to(sink)
            self._graph.configure()
            self._rate_hz = rate_hz
        if rate_hz != self._rate_hz or not samples.size:
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, self._given, Fraction(1, rate_hz)
        self._given += samples.shape[0]
        self._graph.push(frame)
        self._drain()

    def integrated_lufs(self) -> float | None:
        """The loudness of everything, in LUFS; None if there was less than one gating block or only silence."""
        if self._graph is not None:
            self._graph.push(None)
            self._drain()
        return self._lufs

    def _drain(self) -> None:
        while True:
            try:
                metadata = self._graph.pull().metadata
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            if "lavfi.r128.I" in metadata:
                value = float(metadata["lavfi.r128.I"])
                self._lufs = value if value > -70 else None


# ------------------------------------------------------------------------------------------------------------- writing


def aac_rate_hz(sample_rate_hz: int) -> int:
    """The sample rate at which sound of ``sample_rate_hz`` is written: the lowest legal AAC rate that loses nothing.

    Above 96,000 Hz, the highest legal one.
    """
    return next((rate for rate in AAC_RATES_HZ if rate >= sample_rate_hz), AAC_RATES_HZ[-1])


def write_mp4(path: Path, video: Tensor, audio: Tensor, *, fps: float, sample_rate_hz: int) -> None:
    """Write a clip as an mp4 with H.264 video and AAC sound, both exactly of the clip's duration.

    The file appears under its name only when it is whole. Sides that are odd are made even by repeating the last row or
    column (H.264 with 4:2:0 colour has only even ones); the size is kept otherwise. Sound at a rate that AAC does not
    know is written at the next legal rate above (`aac_rate_hz`), resampled by FFmpeg. B-frames are not used, so that
    the first frame is at time 0 without an edit list.

    Args:
        path: the file to write; its folder must exist.
        video: (F, 3, H, W) uint8.
        audio: (C, L) int16 with C of 1 or 2 and L samples lasting as long as the video, to the nearest sample.
        fps: frames per second.
        sample_rate_hz: samples per second.

    Raises:
        ValueError: a tensor of another shape or type, or sound and video of different durations.
        UserError: the file cannot be written.
    """
    _check_writable_clip(video, audio, fps, sample_rate_hz)
    rate_hz = aac_rate_hz(sample_rate_hz)
    seconds = video.shape[0] / fps
    sound = np.stack([resample(row.numpy().astype(np.float32) / 32768, sample_rate_hz, rate_hz) for row in audio.cpu()])
    length = round(seconds * rate_hz)
    sound = np.pad(sound, ((0, 0), (0, max(0, length - sound.shape[1]))))[:, :length]
    pictures = video.cpu().permute(0, 2, 3, 1).numpy()
    pictures = np.pad(pictures, ((0, 0), (0, video.shape[2] % 2), (0, video.shape[3] % 2), (0, 0)), mode="edge")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _encode(temporary, pictures, sound, Fraction(fps).limit_denominator(100_000), rate_hz)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {_words(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _check_writable_clip(video: Tensor, audio: Tensor, fps: float, sample_rate_hz: int) -> None:
    if video.dtype != torch.uint8 or video.dim() != 4 or video.shape[1] != 3 or not video.numel():
        raise ValueError(f"video must be uint8 (F, 3, H, W), got {video.dtype} {tuple(video.shape)}")
    if audio.dtype != torch.int16 or audio.dim() != 2 or audio.shape[0] not in (1, 2):
        raise ValueError(f"audio must be int16 (1 or 2, L), got {audio.dtype} {tuple(audio.shape)}")
    samples = round(video.shape[0] / fps * sample_rate_hz)
    if audio.shape[1] != samples:
        raise ValueError(
            f"{video.shape[0]} frames at {fps} fps last {samples} samples at {sample_rate_hz} Hz, got {audio.shape[1]}"
        )


def _encode(path: Path, pictures: NDArray[np.uint8], sound: NDArray[np.float32], fps: Fraction, rate_hz: int) -> None:
    """Encode (F, H, W, 3) uint8 and (C, L) float32 into ``path``."""
    exact_timescale = math.lcm(fps.numerator, rate_hz)
    timescale = exact_timescale if exact_timescale < _LARGEST_TIMESCALE else _LARGEST_TIMESCALE
    options = {"movflags": "+faststart", "movie_timescale": str(timescale)}
    with path.open("wb") as handle, av.open(handle, "w", format="mp4", options=options) as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "14", "preset": "medium", "bf": "0"})
        video.height, video.width, video.pix_fmt = *pictures.shape[1:3], "yuv420p"
        video.codec_context.time_base = 1 / fps
        video.codec_context.thread_count = 1
        video.codec_context.color_range = ColorRange.MPEG
        video.codec_context.colorspace = _BT601
        layout = "mono" if sound.shape[0] == 1 else "stereo"
        audio = container.add_stream("aac", rate=rate_hz, layout=layout, options={"b": "160k"})
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
                format="yuv420p",
                interpolation=_SCALER,
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            frame.pts, frame.time_base, frame.duration = index, 1 / fps, 1
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
        heard.sample_rate, heard.pts, heard.time_base = rate_hz, 0, Fraction(1, rate_hz)
        container.mux(audio.encode(heard))
        container.mux(audio.encode(None))
