"""Batched sound synthesis: shaped noise, grains and envelopes, at any sample rate without aliasing.

Everything is placed in seconds and hertz. Noise is drawn per frequency bin, so a lower sample rate hears the low part
of the same noise; tones above the band fade out. Sums of grains are taken in fixed point, so their order does not
matter.

Shapes: B clips, L samples; signals are (B, L) float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mgct.data.worlds.random import Draws
from mgct.types import ClipSpec

TAU = 2 * math.pi
_FIXED = 2.0**20


def _to_spectrum(signal: Tensor) -> Tensor:
    """The real Fourier transform of each row (B, L)."""
    # FFT libraries split a lone row differently from several, which changes its last bits: never pass one alone.
    return torch.fft.rfft(signal) if len(signal) > 1 else torch.fft.rfft(signal.repeat(2, 1))[:1]


def _from_spectrum(spectrum: Tensor, samples: int) -> Tensor:
    """The inverse of `_to_spectrum`."""
    if len(spectrum) > 1:
        return torch.fft.irfft(spectrum, n=samples)
    return torch.fft.irfft(spectrum.repeat(2, 1), n=samples)[:1]


class Tape:
    """Sample times and random draws of the sound of a batch of clips.

    Attributes:
        draws: the clips' random draws.
        clips, samples, rate_hz: B, L and the sample rate.
        time_s: (1, L) float32 sample times.
    """

    def __init__(self, draws: Draws, clip: ClipSpec) -> None:
        self.draws = draws
        self.device = draws.keys.device
        self.clips, self.samples, self.rate_hz = len(draws.keys), clip.audio_samples, float(clip.sample_rate_hz)
        self.time_s = (torch.arange(self.samples, device=self.device, dtype=torch.float64) / self.rate_hz).float()[None]

    def audible(self, frequency_hz: Tensor) -> Tensor:
        """1 for frequencies well inside the band, 0 from its edge on."""
        return ((0.5 * self.rate_hz - frequency_hz) / (0.08 * self.rate_hz)).clamp(0, 1)

    def noise(self, name: str, density: Callable[[Tensor], Tensor], top_hz: float = 16000.0) -> Tensor:
        """Stationary noise (B, L) whose power density over frequency has the shape ``density``.

        Its mean square is 1 over the whole band up to ``top_hz``; a sample rate that reaches less hears less.

        Args:
            name: of the random stream.
            density: frequencies in hertz (N,) → relative power per hertz (N,) or (B, N).
            top_hz: where the density is negligible.
        """
        bins = self.samples // 2 + 1
        frequency_hz = torch.arange(bins, device=self.device, dtype=torch.float32) * (self.rate_hz / self.samples)
        reference = torch.linspace(2.0, top_hz, 4000, device=self.device)
        total = density(reference).double().sum(-1, keepdim=True).float() * (reference[1] - reference[0])
        gain = (density(frequency_hz) / total * self.audible(frequency_hz)).sqrt()
        gain = gain * (frequency_hz > 20.0)
        parts = self.draws.uniform(name, bins, 2) - 0.5
        # Each bin is a complex number of mean square 1/6; irfft's sum over both signs of frequency brings 2/L².
        scale = math.sqrt(3.0 * self.rate_hz / self.samples) * self.samples
        spectrum = torch.view_as_complex(parts) * (gain * scale)
        return _from_spectrum(spectrum, self.samples)

    def band_noise(self, name: str, low_hz: float | Tensor, high_hz: float | Tensor, slope: float = 0.0) -> Tensor:
        """Noise of mean square 1 between ``low_hz`` and ``high_hz`` (numbers or (B,)); density ∝ 1/fˢˡᵒᵖᵉ inside."""
        low = low_hz[:, None] if isinstance(low_hz, Tensor) else low_hz
        high = high_hz[:, None] if isinstance(high_hz, Tensor) else high_hz

        def density(frequency_hz: Tensor) -> Tensor:
            f = frequency_hz[None].clamp(min=1.0)
            a, b = (f / low) ** 2, (f / high) ** 2
            shape = a * a / (1 + a * a) / (1 + b * b)
            return shape * torch.exp(-slope * torch.log(f))

        return self.noise(name, density)

    def grains(
        self,
        onset_s: Tensor,
        duration_s: float,
        shape: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Sum of short sounds, each a function of the time since its onset: (B, L).

        Args:
            onset_s: (B, E) onsets in seconds; may lie before or after the clip.
            duration_s: how long the longest lasts.
            shape: times since the onset (B, E, N) in seconds → values (B, E, N), up to about 8 in size; faded out over
                the last fifth of ``duration_s``.
        """
        length = max(1, math.ceil(duration_s * self.rate_hz))
        exact = onset_s.double() * self.rate_hz
        first = exact.ceil()
        steps = torch.arange(length, device=self.device)
        local_s = ((first - exact).float()[..., None] + steps) * (1 / self.rate_hz)
        fade = ((length - steps) * (5.0 / length)).clamp(0, 1) * _FIXED
        value = (shape(local_s) * fade).round_().to(torch.int32)
        # Grains that begin before the clip or end after it run over into margins that are cut off.
        position = first.clamp(-length, self.samples).long()[..., None] + (steps + length)
        wide = self.samples + 2 * length
        total = torch.zeros(self.clips, wide, dtype=torch.int32, device=self.device)
        total.scatter_add_(1, position.flatten(1), value.flatten(1))
        return total[:, length : length + self.samples].to(torch.float32) * (1 / _FIXED)

    def envelope(self, onset_s: Tensor, strength: Tensor, attack_s: float, decay_s: float | Tensor) -> Tensor:
        """Sum of struck envelopes (B, L): a rise over ``attack_s``, then an exponential fall.

        Args:
            onset_s: (B, E) seconds.
            strength: (B, E) peaks.
            attack_s: rise time in seconds.
            decay_s: time constant of the fall, a number or (B, E).
        """
        longest = float(decay_s) if isinstance(decay_s, float) else _LONGEST_DECAY_S
        decay = decay_s if isinstance(decay_s, float) else decay_s[..., None]

        def shape(t: Tensor) -> Tensor:
            return strength[..., None] * (t * (1 / attack_s)).clamp(max=1) * torch.exp(-t / decay)

        return self.grains(onset_s, min(longest * 6, self.samples / self.rate_hz + 1.0), shape)

    def chirps(
        self,
        onset_s: Tensor,
        strength: Tensor,
        frequency_hz: Tensor,
        rise: Tensor | float,
        decay_s: Tensor,
        duration_s: float,
    ) -> Tensor:
        """Sum of decaying sines with gliding pitch (bubbles, drops, drums): (B, L).

        f(t) = frequency · exp(rise · t) is integrated in closed form, so the phase is exact at any sample rate.

        Args:
            onset_s: (B, E) seconds.
            strength: (B, E) amplitudes.
            frequency_hz: (B, E) pitch at the onset.
            rise: relative change of pitch per second, (B, E) or a number; not 0.
            decay_s: (B, E) time constants of the fall.
            duration_s: how long the longest is heard.
        """
        glide = rise[..., None] if isinstance(rise, Tensor) else torch.tensor(rise, device=self.device)

        def shape(t: Tensor) -> Tensor:
            growth = torch.exp(glide * t)
            now_hz = frequency_hz[..., None] * growth
            cycles = frequency_hz[..., None] * (growth - 1) / glide
            phase = (cycles - cycles.floor()) * TAU
            body = torch.exp(-t / decay_s[..., None]) * (t * 1000.0).clamp(max=1)
            return strength[..., None] * body * torch.sin(phase) * self.audible(now_hz)

        return self.grains(onset_s, duration_s, shape)

    def sine(self, frequency_hz: Tensor, phase: Tensor) -> Tensor:
        """Steady sines (B, L) of (B,) frequencies and phases in cycles, silent above the band."""
        time_s = torch.arange(self.samples, device=self.device, dtype=torch.float64)[None] / self.rate_hz
        cycles = frequency_hz.double()[:, None] * time_s + phase.double()[:, None]
        wave = torch.sin(((cycles - cycles.floor()) * TAU).float())
        return wave * self.audible(frequency_hz)[:, None]

    def finish(self, signal: Tensor) -> Tensor:
        """The clip as heard: no rumble below 20 Hz, gently limited below full scale, 4 ms fades at both ends."""
        spectrum = _to_spectrum(signal)
        frequency_hz = torch.arange(spectrum.shape[-1], device=self.device) * (self.rate_hz / self.samples)
        signal = _from_spectrum(spectrum * ((frequency_hz - 18.0) / 12.0).clamp(0, 1), self.samples)
        signal = signal / torch.sqrt(1 + signal * signal * 0.9)
        end_s = self.samples / self.rate_hz
        fade = (torch.minimum(self.time_s, end_s - self.time_s) * 250.0).clamp(0, 1)
        return (signal * (fade * fade * (3 - 2 * fade))).clamp(-0.99, 0.99)[:, None]


_LONGEST_DECAY_S = 0.5


def hits(draws: Draws, name: str, slot_s: Tensor, most: int, jitter: float = 0.6) -> Tensor:
    """Irregular event times (B, most) in seconds: one in each slot of ``slot_s`` (B,), counted from before the clip.

    Slot j covers [(j - 1) · slot, j · slot]; its event lies within the middle ``jitter`` part. Event j is the same
    however long the clip is.
    """
    slot = torch.arange(most, device=draws.keys.device, dtype=torch.float32) - 1
    return (slot + draws.uniform(name, most) * jitter + 0.5 * (1 - jitter)) * slot_s[:, None]
