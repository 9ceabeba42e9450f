"""The sound of a file: mono, resampled, laid on the video's clock."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.plane import AudioPlane
from numpy.typing import NDArray

from mgct.data.media.error import MediaError
from mgct.data.media.track import AUDIO_JITTER_S, LONGEST_GAP_S, Reader
from mgct.errors import UserError

_SAMPLE_TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
_MOST_CHANNELS = 8
_HIGHEST_RATE_HZ = 768_000


def check_rate_hz(rate_hz: int) -> None:
    """Refuse to resample to a rate that no sound has.

    Raises:
        UserError: it is too high.
    """
    if rate_hz > _HIGHEST_RATE_HZ:
        raise UserError(f"clip.sample_rate_hz must be at most {_HIGHEST_RATE_HZ}, got {rate_hz}")


def mono(frame: Any) -> NDArray[np.float32]:
    """The mean over an audio frame's channels as float32 in [-1, 1], shape (samples,).

    The planes are made one by one: of a frame of eight, PyAV's own ``planes`` and ``to_ndarray`` take one too many.
    """
    channels = frame.layout.nb_channels
    if channels > _MOST_CHANNELS:
        raise MediaError("unsupported", f"its sound has {channels} channels; at most {_MOST_CHANNELS} are read")
    dtype = np.dtype(_SAMPLE_TYPES[frame.format.name.removesuffix("p")])
    if frame.format.is_planar:
        array = np.stack([_plane(frame, channel, dtype, frame.samples) for channel in range(channels)])
    else:
        array = _plane(frame, 0, dtype, frame.samples * channels).reshape(-1, channels).T
    if dtype == np.uint8:
        scaled = (array.astype(np.float64) - 128) / 128
    elif np.issubdtype(dtype, np.integer):
        scaled = array.astype(np.float64) / -float(np.iinfo(dtype).min)
    else:
        scaled = array.astype(np.float64)
    return scaled.mean(0).astype(np.float32)


def _plane(frame: Any, index: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """The values of one plane of an audio frame, (count,)."""
    plane: Any = AudioPlane(frame, index)
    return np.frombuffer(plane, dtype, count)


class MonoFilter:
    """A chain of FFmpeg's filters on mono float32 samples of one rate, in this thread.

    (PyAV's own resampler starts a thread a CPU for each file.)

    Args:
        rate_hz: of the samples given.
        name: the filter between source and sink.
        options: the filter's options.
    """

    def __init__(self, rate_hz: int, name: str, **options: str) -> None:
        self._graph, self._rate_hz, self._given = av.filter.Graph(), rate_hz, 0
        self._graph.threads = 1
        source = {"sample_rate": str(rate_hz), "sample_fmt": "fltp", "channel_layout": "mono"}
        chain = [
            self._graph.add("abuffer", **source, time_base=f"1/{rate_hz}"),
            self._graph.add(name, **options),
            self._graph.add("abuffersink"),
        ]
        for before, after in itertools.pairwise(chain):
            before.link_to(after)
        self._graph.configure()

    def push(self, samples: NDArray[np.float32]) -> list[Any]:
        """The audio frames that come out for ``samples`` (n,)."""
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = self._rate_hz, self._given, Fraction(1, self._rate_hz)
        self._given += samples.shape[0]
        self._graph.push(frame)
        return self._pulled()

    def flush(self) -> list[Any]:
        """What was still held back."""
        self._graph.push(None)
        return self._pulled()

    def _pulled(self) -> list[Any]:
        frames = []
        with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                frames.append(self._graph.pull())
        return frames


class _Resampler:
    """FFmpeg's resampler for mono float32; output sample n is at n / target_hz after the first input sample."""

    def __init__(self, source_hz: int, target_hz: int) -> None:
        self.source_hz = source_hz
        self._filter: MonoFilter | None = None
        if source_hz != target_hz:
            form = {"sample_rates": str(target_hz), "sample_fmts": "fltp", "channel_layouts": "mono"}
            self._filter = MonoFilter(source_hz, "aformat", **form)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """What comes out for ``samples`` (n,)."""
        return self._gather(self._filter.push(samples)) if self._filter and samples.size else samples

    def flush(self) -> NDArray[np.float32]:
        """What was still held back."""
        return self._gather(self._filter.flush() if self._filter else [])

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


class AudioReader(Reader):
    """The sound of a file, mono, at one rate, on the video's clock, in one forward pass.

    Args:
        path: any file that FFmpeg reads.
        sample_rate_hz: output samples per second.
        origin_s: 0 of the video's clock on the container's clock (`VideoReader.origin_s`).
        start_s: time of the first output sample on the video's clock (to the nearest sample).

    Attributes:
        begin_s: when the sound begins, on the video's clock (negative: before the picture).
        gaps: how often the timestamps left or overlapped the sound before (filled with silence, or cut).

    Raises:
        MediaError: unreadable, or no audio.
        UserError: a sample rate that is too high.
    """

    def __init__(self, path: Path, *, sample_rate_hz: int, origin_s: float = 0.0, start_s: float = 0.0) -> None:
        check_rate_hz(sample_rate_hz)
        super().__init__(path, "audio")
        self._rate, self._origin_s = sample_rate_hz, origin_s
        self._next = round(start_s * sample_rate_hz)
        self.gaps = 0
        self.begin_s = self._first_s - origin_s
        if self.begin_s > LONGEST_GAP_S:
            self.close()
            raise MediaError("unsupported", f"its sound starts {self.begin_s:.0f} s after its picture")
        self._pieces = self._on_clock()
        self._rest = np.zeros(0, np.int16)

    def read(self, count: int) -> NDArray[np.int16]:
        """The next ``count`` samples, fewer where the sound ends: (n,) int16. Before the sound begins they are 0."""
        parts, held = [self._rest], self._rest.shape[0]
        while held < count and (chunk := next(self._pieces, None)) is not None:
            parts.append(chunk)
            held += chunk.shape[0]
        joined = np.concatenate(parts)
        self._rest = joined[count:]
        return joined[:count]

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
        for stamp_s, frame in itertools.chain([(self._first_s, self._first)], self._frames):
            time_s = stamp_s - self._origin_s
            if abs(time_s - end_s) > LONGEST_GAP_S:
                self.damage = f"timestamps jump from {end_s:.3f} s to {time_s:.3f} s"
                break
            samples = mono(frame)
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
