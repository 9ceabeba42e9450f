"""Two small bundled networks, for measuring without downloads: features of clips of any size, length and rate.

They are trained on the procedural worlds (``benchmarks/train_compact.py``) to name the class, the scene's factors,
and kind and strength of damage. Their numbers mean something between runs of this library only.
"""

from __future__ import annotations

import itertools
import math
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor, nn
from torch.nn import functional as F

from mgct.errors import UserError
from mgct.metrics.encoders.base import Encoder, resampled_audio
from mgct.metrics.mel import mel_filters
from mgct.metrics.weights import tensors_sha256
from mgct.types import AVSample, ClipSpec

DIMENSION = 64
FRAMES, SIZE = 8, 64
SAMPLE_RATE_HZ = 16000
_WINDOW, _HOP, _BANDS, _STEPS = 512, 160, 64, 80
SEGMENT_SAMPLES = _STEPS * _HOP
"""Samples of one audio segment: 0.8 s at 16 kHz."""


def _starts(length: int, segment: int) -> list[int]:
    """Where segments start that cover ``length``, evenly spread, overlapping where they must."""
    count = math.ceil(length / segment)
    return [round(k * (length - segment) / max(1, count - 1)) for k in range(count)] if length > segment else [0]


class CompactVideo(nn.Module):
    """3-D convolutions over segments of 8 frames of 64×64: (B, 3, 8, 64, 64) in [-1, 1] → (B, 64)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        kernels = ((3, 5, 5), (3, 3, 3), (3, 3, 3), (3, 3, 3))
        strides = ((1, 4, 4), (1, 2, 2), (2, 2, 2), (2, 2, 2))
        layers: list[nn.Module] = []
        for (inputs, outputs), kernel, stride in zip(itertools.pairwise(widths), kernels, strides, strict=True):
            padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
            layers += [
                nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False),
                nn.BatchNorm3d(outputs),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.embed = nn.Linear(256, DIMENSION)

    def forward(self, segments: Tensor) -> Tensor:
        """Features (B, 64)."""
        x = self.body(segments)
        return self.embed(torch.cat([x.mean((2, 3, 4)), x.std((2, 3, 4), unbiased=False)], 1))


class CompactAudio(nn.Module):
    """2-D convolutions over log-mel segments of 0.8 s: (B, 1, 64, 80) → (B, 64)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 24, 48, 96, 160)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            convolution = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.embed = nn.Linear(2 * 160 * 4, DIMENSION)

    def forward(self, segments: Tensor) -> Tensor:
        """Features (B, 64)."""
        x = self.body(segments)
        pooled = torch.cat([x.mean(3), x.std(3, unbiased=False)], 1)
        return self.embed(pooled.flatten(1))


def video_segments(video: Tensor) -> Tensor:
    """Stored video uint8 (B, F, 3, H, W) as segments (B, S, 3, 8, 64, 64) in [-1, 1].

    Every frame is in some segment; fewer than 8 frames are repeated evenly. Frames are resized bilinearly, antialiased.
    """
    if video.shape[1] < FRAMES:
        video = video[:, torch.linspace(0, video.shape[1] - 1, FRAMES).round().long()]
    batch, frames = video.shape[:2]
    flat = video.flatten(0, 1).float() / 127.5 - 1
    if flat.shape[-2:] != (SIZE, SIZE):
        flat = F.interpolate(flat, size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
    clips = flat.view(batch, frames, 3, SIZE, SIZE).transpose(1, 2)
    return torch.stack([clips[:, :, start : start + FRAMES] for start in _starts(frames, FRAMES)], 1)


def log_mel(audio: Tensor) -> Tensor:
    """Audio (B, n · 160) at 16 kHz in [-1, 1] as log-mel (B, 64, n): 32 ms windows each 10 ms, 40 Hz to 7.6 kHz."""
    padded = F.pad(audio, ((_WINDOW - _HOP) // 2, (_WINDOW - _HOP) // 2))
    frames = padded.unfold(1, _WINDOW, _HOP) * torch.hann_window(_WINDOW, device=audio.device)
    power = torch.fft.rfft(frames).abs().square()
    filters = mel_filters(_WINDOW // 2 + 1, SAMPLE_RATE_HZ, _BANDS, 40.0, 7600.0).to(audio.device)
    return ((filters @ power.transpose(1, 2) + 1e-5).log() + 3) / 4


def audio_segments(audio: Tensor) -> Tensor:
    """Audio (B, L) at 16 kHz in [-1, 1] as log-mel segments (B, S, 1, 64, 80); short sound is padded with silence."""
    audio = F.pad(audio, (0, max(0, SEGMENT_SAMPLES - audio.shape[1])))
    starts = _starts(audio.shape[1], SEGMENT_SAMPLES)
    return torch.stack([log_mel(audio[:, start : start + SEGMENT_SAMPLES]) for start in starts], 1)[:, :, None]


def _load(network: nn.Module, bundled: str, path: Path | None) -> tuple[str, bool]:
    """Load weights into a network; their SHA-256, and whether they are the bundled ones."""
    if path is not None:
        if not path.is_file():
            raise UserError(f"no file of weights at {path}")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is no safetensors file, or is damaged: {error}") from error
    else:
        tensors = load((resources.files("mgct.metrics.encoders") / bundled).read_bytes())
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise UserError(f"{path or bundled} is no file of weights for this encoder")
    network.load_state_dict(tensors)
    network.requires_grad_(False).eval()
    return tensors_sha256(tensors), path is None


class CompactVideoEncoder(Encoder):
    """64 features of a clip's video: the mean over its segments of 8 frames.

    Args:
        path: weights; None: the bundled ones.
        device: where to compute.
    """

    name = "compact-video"
    modality = "video"
    dimension = DIMENSION

    def __init__(self, path: Path | None = None, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.network = CompactVideo()
        self.weights_sha256, self.pinned = _load(self.network, "compact_video.safetensors", path)
        self.network.to(device)

    def features(self, clips: AVSample, spec: ClipSpec) -> Tensor:  # noqa: ARG002 - frames are taken as they come
        """Features (B, 64)."""
        segments = video_segments(clips.video.to(self.device))
        return self.network(segments.flatten(0, 1)).view(*segments.shape[:2], -1).mean(1)


class CompactAudioEncoder(Encoder):
    """64 features of a clip's sound at 16 kHz: the mean over its segments of 0.8 s.

    Args:
        path: weights; None: the bundled ones.
        device: where to compute.
    """

    name = "compact-audio"
    modality = "audio"
    dimension = DIMENSION

    def __init__(self, path: Path | None = None, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.network = CompactAudio()
        self.weights_sha256, self.pinned = _load(self.network, "compact_audio.safetensors", path)
        self.network.to(device)

    def features(self, clips: AVSample, spec: ClipSpec) -> Tensor:
        """Features (B, 64)."""
        segments = audio_segments(resampled_audio(clips.audio, spec, SAMPLE_RATE_HZ).to(self.device))
        return self.network(segments.flatten(0, 1)).view(*segments.shape[:2], -1).mean(1)
