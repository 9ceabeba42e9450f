"""Mel filters, which several front ends share."""

from __future__ import annotations

import torch
from torch import Tensor


def _mel(hz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hz / 700.0)


def mel_filters(bins: int, sample_rate_hz: int, bands: int, lowest_hz: float, highest_hz: float) -> Tensor:
    """Triangular filters (bands, bins), linear in mel = 1127 ln(1 + f / 700), peak 1, over FFT bins 0 … Nyquist."""
    bin_mel = _mel(torch.linspace(0, sample_rate_hz / 2, bins, dtype=torch.float64))
    low, high = _mel(torch.tensor([lowest_hz, highest_hz], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, bands + 2, dtype=torch.float64)[:, None]
    rising = (bin_mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bin_mel) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    filters[:, 0] = 0
    return filters.float()
