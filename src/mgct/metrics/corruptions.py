"""Damage of graded strength, to see that a metric notices: pure functions of clips in model form.

Video is (B, F, C, H, W) and audio (B, 1, L), floats in [-1, 1]. Strength 0 changes nothing; more is worse.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def video_noise(video: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """White noise of standard deviation ``strength``."""
    return (video + strength * torch.randn(video.shape, generator=generator)).clamp(-1, 1)


def video_blur(video: Tensor, strength: float, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Gaussian blur of standard deviation ``strength`` times a 32nd of the frame's side."""
    sigma = strength * video.shape[-1] / 32
    if sigma < 1e-3:
        return video
    reach = max(1, min(round(3 * sigma), video.shape[-1] - 1))
    taps = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    flat = video.flatten(0, 2)[:, None]
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="reflect"), taps.view(1, 1, 1, -1))
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="reflect"), taps.view(1, 1, -1, 1))
    return flat.view(video.shape)


def video_shuffle(video: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """The share ``strength`` of each clip's frames, chosen by chance, put in another order among themselves."""
    count = round(strength * video.shape[1])
    if count < 2:
        return video
    rows = []
    for clip in video:
        chosen = torch.randperm(len(clip), generator=generator)[:count]
        mixed = clip.clone()
        mixed[chosen] = clip[chosen.roll(1)]
        rows.append(mixed)
    return torch.stack(rows)


def video_freeze(video: Tensor, strength: float, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """The last share ``strength`` of the frames repeats the frame before them."""
    kept = max(1, round((1 - strength) * video.shape[1]))
    return torch.cat([video[:, :kept], video[:, kept - 1 : kept].expand(-1, video.shape[1] - kept, -1, -1, -1)], 1)


def audio_noise(audio: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """White noise of standard deviation ``strength``."""
    return (audio + strength * torch.randn(audio.shape, generator=generator)).clamp(-1, 1)


def audio_low_pass(audio: Tensor, strength: float, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Nothing left above Nyquist / 2^strength; strength 0 keeps everything."""
    if strength <= 0:
        return audio
    spectrum = torch.fft.rfft(audio)
    spectrum[..., round(spectrum.shape[-1] / 2**strength) :] = 0
    return torch.fft.irfft(spectrum, audio.shape[-1])


def audio_gain(audio: Tensor, strength: float, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Quieter by ``strength`` times 6 dB."""
    return audio * 0.5**strength


def audio_stretch(audio: Tensor, strength: float, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Played slower by the factor 1 + ``strength`` (lower in pitch too), its end cut off."""
    if strength <= 0:
        return audio
    needed = round(audio.shape[-1] / (1 + strength))
    return F.interpolate(audio[..., :needed], size=audio.shape[-1], mode="linear", align_corners=False)


Corruption = Callable[[Tensor, float, torch.Generator], Tensor]

VIDEO: dict[str, tuple[Corruption, float]] = {
    "noise": (video_noise, 0.4),
    "blur": (video_blur, 2.5),
    "shuffle": (video_shuffle, 0.8),
    "freeze": (video_freeze, 0.9),
}
"""Name → function and the strength beyond which little is left of the clip."""

AUDIO: dict[str, tuple[Corruption, float]] = {
    "noise": (audio_noise, 0.3),
    "low_pass": (audio_low_pass, 5.0),
    "gain": (audio_gain, 5.0),
    "stretch": (audio_stretch, 1.0),
}
"""The same for sound."""
