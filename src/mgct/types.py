"""The two types everything speaks in: a pair of video and audio, and the physical facts of a clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from mgct.errors import UserError


@dataclass
class AVSample(BaseOutput):
    """A batch of clips, or anything that has one value for the video and one for the audio.

    For clips: ``video`` is (B, F, C, H, W) and ``audio`` is (B, C, L). As the model sees them both are floats in
    [-1, 1]; as they are stored, ``video`` is uint8 in [0, 255] and ``audio`` int16 (see `quantise`, `dequantise`).

    It subclasses diffusers' `BaseOutput`, so that accelerate converts a model's outputs under mixed precision. It then
    makes a new one from a dict of the fields, which `BaseOutput` takes in place of the first if the others are None.
    """

    video: Any
    audio: Any = None

    def map(self, function: Callable[..., Any], *others: AVSample) -> AVSample:
        """Apply ``function`` to the video values of self and ``others``, and likewise to the audio values."""
        return AVSample(
            video=function(self.video, *(other.video for other in others)),
            audio=function(self.audio, *(other.audio for other in others)),
        )

    def to(self, *args: Any, **kwargs: Any) -> AVSample:
        """Both tensors moved or converted, as `torch.Tensor.to` does."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))


@dataclass(frozen=True)
class ClipSpec:
    """Physical facts of a clip; every length is derived from them.

    Args:
        frames: number of video frames.
        fps: video frames per second.
        size: height and width of a frame in pixels.
        sample_rate_hz: audio samples per second (mono).

    Raises:
        UserError: a fact is not positive, or the clip would hold less than one audio sample.
    """

    frames: int = 16
    fps: float = 10.0
    size: int = 64
    sample_rate_hz: int = 16000

    def __post_init__(self) -> None:
        for name in ("frames", "fps", "size", "sample_rate_hz"):
            if not getattr(self, name) > 0:
                raise UserError(f"clip.{name} must be positive, got {getattr(self, name)!r}")
        try:
            endless = math.isinf(self.seconds * self.sample_rate_hz)
        except OverflowError:
            endless = True
        if endless:
            raise UserError("a clip of so many frames or samples is too large; see clip.frames, fps and sample_rate_hz")
        if self.audio_samples < 1:
            raise UserError(f"a clip of {self.seconds} s at {self.sample_rate_hz} Hz holds no audio sample")

    @property
    def seconds(self) -> float:
        """Duration of the clip in seconds."""
        return self.frames / self.fps

    @property
    def audio_samples(self) -> int:
        """Audio samples of the clip: its duration times the sample rate, to the nearest sample."""
        return self.samples_at(self.frames)

    def samples_at(self, frames: int) -> int:
        """Audio samples in the duration of ``frames`` frames."""
        return round(frames / self.fps * self.sample_rate_hz)

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(F, C, H, W) of one clip."""
        return (self.frames, 3, self.size, self.size)

    @property
    def audio_shape(self) -> tuple[int, int]:
        """(C, L) of one clip."""
        return (1, self.audio_samples)


def concatenate(parts: Sequence[AVSample]) -> AVSample:
    """Batches one after the other, as one batch."""
    return AVSample(video=torch.cat([part.video for part in parts]), audio=torch.cat([part.audio for part in parts]))


def dequantise(clips: AVSample) -> AVSample:
    """Stored clips (uint8 video, int16 audio) as the float32 in [-1, 1] that the model sees."""
    return AVSample(video=dequantise_pixels(clips.video), audio=clips.audio.float() / 32768)


def dequantise_pixels(images: Tensor) -> Tensor:
    """Images or video of any shape, uint8, as float32 in [-1, 1]; inverse of `quantise_pixels`."""
    return images.float() / 127.5 - 1


def quantise(clips: AVSample) -> AVSample:
    """Model clips (floats, clipped to [-1, 1]) as stored: uint8 video, int16 audio. Inverse of `dequantise`."""
    return AVSample(
        video=quantise_pixels(clips.video),
        audio=quantise_sound(clips.audio),
    )


def quantise_pixels(images: Tensor) -> Tensor:
    """Images or video of any shape, floats clipped to [-1, 1], as uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def quantise_sound(audio: Tensor) -> Tensor:
    """Sound of any shape, floats clipped to [-1, 1], as int16."""
    return (audio.clamp(-1, 1) * 32768).round().clamp(-32768, 32767).to(torch.int16)


def pack(clips: AVSample) -> Tensor:
    """Video (B, F, C, H, W) and audio (B, C, L) side by side as one tensor (B, D); inverse of `unpack`."""
    return torch.cat([clips.video.flatten(1), clips.audio.flatten(1)], 1)


def unpack(x: Tensor, shapes: AVSample) -> AVSample:
    """Video and audio of packed clips x (B, D); ``shapes`` holds the shape of one clip of each modality."""
    video_length = math.prod(shapes.video)
    parts = AVSample(video=x[:, :video_length], audio=x[:, video_length:])
    return parts.map(lambda part, shape: part.reshape(len(x), *shape), shapes)
