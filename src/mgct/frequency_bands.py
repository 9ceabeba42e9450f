"""Frequency bands of clips: which octave each Fourier coefficient of picture and sound is in, and the power in each."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mgct.types import AVSample

VIDEO_SHAPE = (2, 5, 12)
"""Brightness and colour × octaves of time × half octaves of space; of the latter two the last is what is constant."""
VIDEO_BANDS = math.prod(VIDEO_SHAPE)
AUDIO_BANDS = 17
"""Half octaves down from the Nyquist frequency, the last of them all that is lower still, and the mean."""
_OPPONENT = ((1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (1.0, 1.0, -2.0))


class Bands(NamedTuple):
    """Which band each Fourier coefficient is in, and for how many it stands (2 of a real signal's, or 1).

    Attributes:
        video: (3, F, H, W//2 + 1).
        audio: (L//2 + 1,).
        video_weight: (W//2 + 1,).
        audio_weight: (L//2 + 1,).
    """

    video: Tensor
    audio: Tensor
    video_weight: Tensor
    audio_weight: Tensor


@lru_cache(maxsize=8)
def bands_of(frames: int, height: int, width: int, samples: int, device: str = "cpu") -> Bands:
    """The bands of clips of these sizes; a frequency is in the same band whatever the size."""
    _, times, spaces = VIDEO_SHAPE
    time = _octaves(torch.fft.fftfreq(frames).abs(), 1, times)
    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    space = _octaves((down**2 + across**2).sqrt(), 2, spaces)
    grey = time[:, None, None] * spaces + space
    video = torch.stack([grey, grey + times * spaces, grey + times * spaces])
    audio = _octaves(torch.fft.rfftfreq(samples), 2, AUDIO_BANDS)
    return Bands(*(x.to(device) for x in (video, audio, _weights(width), _weights(samples))))


def _octaves(frequency: Tensor, per_octave: int, count: int) -> Tensor:
    """The band of each frequency in cycles a sample: 0 from 1/2 up, then downwards; ``count`` - 1: frequency 0."""
    band = (torch.log2(0.5 / frequency.double()) * per_octave - 1e-6).ceil().clamp(0, count - 2)
    return torch.where(frequency == 0, count - 1, band).long()


def _weights(size: int) -> Tensor:
    weights = torch.full((size // 2 + 1,), 2.0)
    weights[0] = 1.0
    if size % 2 == 0:
        weights[-1] = 1.0
    return weights


@lru_cache(maxsize=8)
def _opponent(device: str) -> Tensor:
    """Red, green, blue → brightness and two colours, orthonormal, (3, 3)."""
    rows = torch.tensor(_OPPONENT, device=device)
    return rows / rows.norm(dim=1, keepdim=True)


def spectra(clips: AVSample, colour: Tensor) -> AVSample:
    """Orthonormal Fourier coefficients of clips, a mean colour taken off.

    Args:
        clips: (B, F, 3, H, W) and (B, 1, L).
        colour: (3,).

    Returns:
        (B, 3, F, H, W//2+1), of brightness and two colours, and (B, 1, L//2+1).
    """
    centred = clips.video.float() - colour[:, None, None]
    colours = torch.einsum("ij,bfjhw->bifhw", _opponent(str(centred.device)), centred)
    video = torch.fft.rfftn(colours, dim=(2, 3, 4), norm="ortho")
    return AVSample(video=video, audio=torch.fft.rfft(clips.audio.float(), norm="ortho"))


def clips_of(coefficients: AVSample, like: AVSample) -> AVSample:
    """Inverse of `spectra` with colour 0, of the shapes of ``like``."""
    frames, _, height, width = like.video.shape[1:]
    colours = torch.fft.irfftn(coefficients.video, s=(frames, height, width), dim=(2, 3, 4), norm="ortho")
    video = torch.einsum("ij,bifhw->bfjhw", _opponent(str(colours.device)), colours)
    return AVSample(video=video, audio=torch.fft.irfft(coefficients.audio, n=like.audio.shape[-1], norm="ortho"))


def band_sums(one: AVSample, other: AVSample, bands: Bands) -> AVSample:
    """Σ Re(one · other*) of each band over clips and coefficients, (VIDEO_BANDS,) and (AUDIO_BANDS,) float64."""
    video = (one.video * other.video.conj()).real.double().sum(0) * bands.video_weight
    audio = (one.audio * other.audio.conj()).real.double().sum((0, 1)) * bands.audio_weight
    return AVSample(
        video=video.new_zeros(VIDEO_BANDS).index_add_(0, bands.video.flatten(), video.flatten()),
        audio=audio.new_zeros(AUDIO_BANDS).index_add_(0, bands.audio, audio),
    )


def count_bands(frames: int, height: int, width: int, samples: int) -> AVSample:
    """How many real coefficients of one clip each band has."""
    bands = bands_of(frames, height, width, samples)
    ones = AVSample(
        video=torch.ones(1, *bands.video.shape, dtype=torch.complex64),
        audio=torch.ones(1, 1, *bands.audio.shape, dtype=torch.complex64),
    )
    return band_sums(ones, ones, bands)
