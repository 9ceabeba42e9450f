"""Clips cut from a file: all windows one after the other, or one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mgct.data.media.error import MediaError
from mgct.data.media.pictures import Fit, VideoReader
from mgct.data.media.sound import AudioReader
from mgct.data.media.track import Closing, declares_more
from mgct.types import AVSample, ClipSpec

_SKIPPED_AT_ONCE = 4096


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


class WindowReader(Closing):
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
            samples = sound.window(clip.samples_at(first), clip.audio_samples)
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

    @property
    def notes(self) -> list[str]:
        """What was odd about the file, known after the last window."""
        length_s = max(self.video.end_s or 0.0, self.audio.end_s or 0.0)
        more = declares_more(self.video.declared_s, length_s, self.video.origin_s)
        notes = [more] if more else []
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


def read_sound(path: Path, clip: ClipSpec, start_s: float = 0.0) -> NDArray[np.int16]:
    """The sound of one clip, (1, L), of a file that need have no picture.

    Args:
        path: any file that FFmpeg reads.
        clip: duration and sample rate to give.
        start_s: where in the file to start, in seconds.

    Raises:
        MediaError: unreadable, no audio, or less than the clip's length after ``start_s``.
    """
    with AudioReader(path, sample_rate_hz=clip.sample_rate_hz, start_s=start_s) as reader:
        samples = reader.read(clip.audio_samples)
    if len(samples) < clip.audio_samples:
        raise _one_too_short("sound", len(samples) / clip.sample_rate_hz, clip, start_s)
    return samples[None]


def read_video(path: Path, clip: ClipSpec, start_s: float = 0.0) -> NDArray[np.uint8]:
    """The frames of one clip, (F, C, H, W), of a file that need have no sound: the square in its picture's middle.

    Args:
        path: any file that FFmpeg reads.
        clip: frames, rate and size to give.
        start_s: where in the file to start, in seconds.

    Raises:
        MediaError: unreadable, no video, or less than the clip's length after ``start_s``.
    """
    with VideoReader(path, fps=clip.fps, size=clip.size, fit="crop", start_s=start_s) as reader:
        frames = reader.read(clip.frames)
    if len(frames) < clip.frames:
        raise _one_too_short("video", len(frames) / clip.fps, clip, start_s)
    return _planes(frames)


def _one_too_short(what: str, seconds: float, clip: ClipSpec, start_s: float) -> MediaError:
    place = f" from {start_s:g} s on" if start_s else ""
    return MediaError("too short", f"{seconds:.2f} s of {what}{place}; {clip.seconds:g} s are needed")


def read_clip(path: str | Path, clip: ClipSpec, start_s: float = 0.0, fit: Fit = "crop") -> AVSample:
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
    path = Path(path)
    with VideoReader(path, fps=clip.fps, size=clip.size, fit=fit, start_s=start_s) as video:
        frames = video.read(clip.frames)
        origin_s = video.origin_s
    with AudioReader(path, sample_rate_hz=clip.sample_rate_hz, origin_s=origin_s, start_s=start_s) as audio:
        samples = audio.read(clip.audio_samples)
    if not _complete(frames, samples, clip):
        raise _too_short(clip, start_s, frames, samples, [])
    return AVSample(video=torch.from_numpy(_planes(frames)), audio=torch.from_numpy(_padded(samples, clip)))
