"""The audio head of AudioCLIP (Guzhov et al. 2021), ESResNeXt-fbsp: the features of the baseline's FAD."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgct.errors import UserError
from mgct.metrics.encoders.base import Encoder, resampled_audio
from mgct.metrics.weights import Weights, WeightSource
from mgct.types import AVSample, ClipSpec

SAMPLE_RATE_HZ = 44100
_FFT = 2048
_HOP = 561
_WINDOW = 1654
_BINS = _FFT // 2 + 1
_STAGES = {1: (64, 128, 3), 2: (256, 256, 4), 3: (512, 512, 6), 4: (1024, 1024, 3)}
_GATE_KERNELS: dict[int, tuple[int, int]] = {1: (3, 1), 2: (1, 5), 3: (3, 1), 4: (1, 5), 5: (3, 5)}


def _blackman_harris(length: int) -> Tensor:
    """Periodic four-term Blackman-Harris window, (length,) float32."""
    phase = 2 * math.pi * torch.arange(length, dtype=torch.float64) / length
    terms = (0.35875, -0.48829, 0.14128, -0.01168)
    return sum(
        (a * torch.cos(k * phase) for k, a in enumerate(terms)), torch.zeros(length, dtype=torch.float64)
    ).float()


class _SplineFilters(nn.Module):
    """Frequency B-spline filters: order m, bandwidth fb and centre fc of each bin."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(_BINS))
        self.fb = nn.Parameter(torch.ones(_BINS))
        self.fc = nn.Parameter(torch.arange(_BINS, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(0))

    def kernel(self) -> Tensor:
        """Real and imaginary filters (2, bins, 2048): √fb sinc(fb t / m)^m e^(-i fc t) / √2048, t from -π to π."""
        eps = 1e-8
        m, fb, fc = self.m[:, None], self.fb[:, None], self.fc[:, None]
        t = math.pi * torch.linspace(-1, 1, _FFT, dtype=m.dtype, device=m.device)[None] + eps
        z = fb * t / (m + eps)
        s = torch.where(z == 0, torch.ones_like(z), torch.sin(z) / z)
        magnitude, angle = (s * s) ** (m / 2), m * torch.atan2(torch.zeros_like(s), s)
        re, im = magnitude * torch.cos(angle), magnitude * torch.sin(angle)
        cos, sin = torch.cos(fc * t), -torch.sin(fc * t)
        return torch.stack([re * cos - im * sin, re * sin + im * cos]) * fb.sqrt() / math.sqrt(_FFT)


class _Bottleneck(nn.Module):
    """ResNeXt bottleneck: 1×1, grouped 3×3 with the stride, 1×1 to four times 256/128 the width; a shortcut added."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * 2
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=32, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs or stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class _Gate(nn.Module):
    """Attention of a stage: its input max-pooled to its output's size, depthwise and 1×1 convolution, norm, sigmoid."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv_depth = nn.Conv2d(inputs, inputs, kernel, padding=padding, groups=inputs)
        self.conv_point = nn.Conv2d(inputs, outputs, 1)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return torch.sigmoid(self.bn(self.conv_point(self.conv_depth(F.adaptive_max_pool2d(x, size)))))


class AudioHead(nn.Module):
    """AudioCLIP's audio network; parameter names are those of its checkpoint without the prefix ``audio.``."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", _blackman_harris(_WINDOW))
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        for stage, (inputs, width, blocks) in _STAGES.items():
            layers = [
                _Bottleneck(inputs if k == 0 else width * 2, width, 2 if k == 0 and stage > 1 else 1)
                for k in range(blocks)
            ]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            self.add_module(f"att{stage}", _Gate(inputs, width * 2, _GATE_KERNELS[stage]))
        self.att5 = _Gate(2048, 2048, _GATE_KERNELS[5])
        self.fc = nn.Linear(2048, 1024)
        self.fbsp = _SplineFilters()

    def log_spectrogram(self, audio: Tensor) -> Tensor:
        """Audio (B, L) in [-1, 1] at 44.1 kHz as power in dB (B, 3, 341, frames): three bands as channels.

        The scaling is meant for 16-bit integers; on [-1, 1] it keeps about 8 bits. It is part of the published
        number, and its order of operations matters.
        """
        window: Tensor = self.get_buffer("window")
        scaled = ((audio.float() + 32768.0) * 2.0) / 65535.0 + (-1.0)
        scaled = scaled.to(window.dtype)
        frames = 1 + max(0, math.ceil((scaled.shape[1] - _WINDOW) / _HOP))
        missing = (frames - 1) * _HOP + _WINDOW - scaled.shape[1]
        framed = F.pad(scaled, (missing // 2, missing - missing // 2)).unfold(1, _WINDOW, _HOP) * window
        framed = F.pad(framed, ((_FFT - _WINDOW) // 2,) * 2)
        re, im = (framed @ part.T for part in self.fbsp.kernel())
        power = (re * re + im * im).transpose(1, 2)[:, : _BINS // 3 * 3]
        decibel = 10 * torch.log10(torch.where(power > 0, power, torch.full_like(power, 1e-18)))
        return decibel.unflatten(1, (3, _BINS // 3))

    def embed(self, spectrogram: Tensor) -> Tensor:
        """Features (B, 1024) of log spectrograms (B, 3, 341, frames)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(spectrogram))), 3, 2, 1)
        for stage in _STAGES:
            y = self.get_submodule(f"layer{stage}")(x)
            x = y * self.get_submodule(f"att{stage}")(x, y.shape[2:])
        return self.fc((x.mean((2, 3), keepdim=True) * self.att5(x, (1, 1))).flatten(1))

    def forward(self, audio: Tensor) -> Tensor:
        """Raw (not normalised) features (B, 1024) of audio (B, L) in [-1, 1] at 44.1 kHz."""
        return self.embed(self.log_spectrogram(audio))


def convert(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state_dict of `AudioHead` from AudioCLIP's whole checkpoint (keys ``audio.*``) or from its own.

    Raises:
        UserError: the content is of another network.
    """
    prefix = "audio."
    chosen = {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)} or dict(content)
    expected = {name: tensor.shape for name, tensor in AudioHead().state_dict().items()}
    if {name: tensor.shape for name, tensor in chosen.items()} != expected:
        raise UserError("the file of weights does not hold AudioCLIP's audio head (keys audio.*)")
    return chosen


WEIGHTS = WeightSource(
    name="audioclip",
    description="AudioCLIP, full training, audio head (MIT); its publisher states no hash",
    address="https://github.com/AndreyGuzhov/AudioCLIP/releases/download/v0.1/AudioCLIP-Full-Training.pt",
    sha256="",
    convert=convert,
)


class AudioClipEncoder(Encoder):
    """Raw AudioCLIP audio features (1024-d) of a clip's sound at 44.1 kHz.

    Args:
        weights: of `AudioHead`.
        device: where to compute.
        batch_statistics: as the baseline's evaluator, which leaves the network in training mode: batch norm uses the
            statistics of each batch of 8, so a clip's features depend on its neighbours. By default the network is in
            evaluation mode.
    """

    modality = "audio"
    dimension = 1024

    def __init__(self, weights: Weights, device: torch.device | str = "cpu", batch_statistics: bool = False) -> None:
        self.name = "audioclip-train8" if batch_statistics else "audioclip"
        self.fixed_batch = 8 if batch_statistics else None
        self.weights_sha256, self.pinned = weights.sha256, weights.pinned
        self.device = torch.device(device)
        self.network = AudioHead()
        self.network.load_state_dict(weights.tensors)
        self.network.to(device).requires_grad_(False).train(batch_statistics)

    def features(self, clips: AVSample, spec: ClipSpec) -> Tensor:
        """Features (B, 1024); in training mode the running statistics change but are never used."""
        audio = resampled_audio(clips.audio, spec, SAMPLE_RATE_HZ)
        audio = (audio * 32768).round().clamp(-32768, 32767) / 32768
        if self.fixed_batch and len(audio) < 2:
            raise UserError(
                "features with batch statistics need at least 2 clips in a batch; change the number of clips"
            )
        return self.network(audio.to(self.device))
