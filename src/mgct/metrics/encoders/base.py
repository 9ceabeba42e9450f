"""What an encoder is: stored clips in, one feature vector per clip out, all preprocessing inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mgct.types import AVSample, ClipSpec, quantise


class Encoder(ABC):
    """A network that turns clips into features.

    Attributes:
        name: how protocols and metric cards call it.
        modality: what of the clip it looks at or listens to.
        dimension: D, features per clip.
        fixed_batch: None where a clip's features depend on that clip alone; else the batch size on which they depend.
        weights_sha256: of its tensors (`mgct.metrics.weights.tensors_sha256`).
        pinned: whether these are the weights that the registry pins.
    """

    name: str
    modality: ClassVar[Literal["video", "audio"]]
    dimension: ClassVar[int]
    fixed_batch: int | None = None
    weights_sha256: str
    pinned: bool

    @abstractmethod
    def features(self, clips: AVSample, spec: ClipSpec) -> Tensor:
        """Features (B, D) float32 of stored clips: uint8 video (B, F, 3, H, W), int16 audio (B, 1, L)."""

    @torch.inference_mode()
    def __call__(self, clips: AVSample, spec: ClipSpec) -> Tensor:
        """Features (B, D), float32 on the CPU, of a batch of clips.

        Args:
            clips: stored form, or model form (then rounded to what would be stored).
            spec: their frame rate and sample rate.
        """
        stored = clips if clips.video.dtype == torch.uint8 else quantise(clips)
        return self.features(stored, spec).float().cpu()


def resampled_audio(audio: Tensor, spec: ClipSpec, sample_rate_hz: int) -> Tensor:
    """Stored audio (B, 1, L) as float32 (B, L') in [-1, 1) at another rate, L' of the same time (by FFmpeg)."""
    from mgct.data.media import resample

    tracks = audio[:, 0].cpu().float() / 32768
    if spec.sample_rate_hz == sample_rate_hz:
        return tracks
    length = round(tracks.shape[1] * sample_rate_hz / spec.sample_rate_hz)
    rows = []
    for track in tracks:
        moved = torch.from_numpy(resample(track.numpy(), spec.sample_rate_hz, sample_rate_hz))[:length]
        rows.append(torch.nn.functional.pad(moved, (0, length - len(moved))))
    return torch.stack(rows)
