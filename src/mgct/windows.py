"""Long clips through a network of short ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mgct.grids import Point
from mgct.types import AVSample, ClipSpec

Network = Callable[[AVSample, Point], AVSample]


def windowed(network: Network, clip: ClipSpec, frames: int) -> Network:
    """The network on clips of ``frames`` frames, through overlapping windows of its own length.

    Neighbouring windows overlap by half or more. Where they do, the prediction is the mean with weights that rise
    with the cube of the distance from each window's ends to its middle, in frames for the video and in samples for
    the audio: a window hardly counts where it begins, so nothing jumps there.

    Args:
        network: on clips of ``clip.frames`` frames.
        clip: facts of those.
        frames: more than ``clip.frames``.
    """
    windows = math.ceil((frames - clip.frames) / max(clip.frames // 2, 1)) + 1
    starts = [round(i * (frames - clip.frames) / (windows - 1)) for i in range(windows)]
    last = clip.samples_at(frames) - clip.audio_samples  # three roundings: the last window still ends with the sound
    sample_starts = [*(min(clip.samples_at(start), last) for start in starts[:-1]), last]

    def ramp(length: int, like: Tensor) -> Tensor:
        rising = torch.arange(1, length + 1, dtype=like.dtype, device=like.device)
        return (torch.minimum(rising, rising.flip(0)) / length) ** 3

    def blend(whole: Tensor, parts: list[Tensor], starts: list[int], axis: int) -> Tensor:
        length = parts[0].shape[axis]
        weight = ramp(length, whole).reshape(-1, *[1] * (whole.dim() - axis - 1))
        total, weights = torch.zeros_like(whole), torch.zeros_like(whole)
        for start, part in zip(starts, parts, strict=True):
            total.narrow(axis, start, length).add_(weight * part)
            weights.narrow(axis, start, length).add_(weight)
        return total / weights

    def call(clips: AVSample, point: Point) -> AVSample:
        predicted = [
            network(
                AVSample(
                    video=clips.video.narrow(1, start, clip.frames),
                    audio=clips.audio.narrow(2, sample_start, clip.audio_samples),
                ),
                point,
            )
            for start, sample_start in zip(starts, sample_starts, strict=True)
        ]
        return AVSample(
            video=blend(clips.video, [part.video for part in predicted], starts, 1),
            audio=blend(clips.audio, [part.audio for part in predicted], sample_starts, 2),
        )

    return call
