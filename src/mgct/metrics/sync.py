"""Synchrony of picture and sound, and sanity of both, without any network.

Two curves describe a clip: how much the picture changes between neighbouring frames, and how much the sound's
spectrum rises in each 5 ms. Everything else follows from them. A still picture or silence gives zeros, never NaN: no
peaks, correlation 0. Times are in seconds; a positive lag means that the sound comes after the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mgct.metrics.mel import mel_filters
from mgct.types import AVSample, ClipSpec

HOP_S = 0.005
_WINDOW_S = 0.02
_BANDS = 24
_SILENCE_DB = -100.0
_LUMA = (0.299, 0.587, 0.114)


class Curves(NamedTuple):
    """What is kept of a batch of clips.

    Attributes:
        motion: (B, F - 1) mean absolute change of luma from frame to frame, in [0, 1]; entry k is frame k+1 against k.
            Of one frame (B, 1), 0.
        onset: (B, K) rise of the sound's log spectrum in each 5 ms, non-negative.
        loudness_db: (B,) root mean square in dB of full scale, at least -100.
        fps: of the frames.
    """

    motion: Tensor
    onset: Tensor
    loudness_db: Tensor
    fps: float


def motion_curve(video: Tensor) -> Tensor:
    """(B, F - 1) mean absolute luma difference of neighbouring frames, in [0, 1], of uint8 video (B, F, 3, H, W).

    A clip of one frame has one value, 0: it does not move.
    """
    if video.shape[1] == 1:
        return torch.zeros(len(video), 1, device=video.device)
    luma = torch.einsum("bfchw,c->bfhw", video.float() / 255, torch.tensor(_LUMA, device=video.device))
    return luma.diff(dim=1).abs().mean((2, 3))


def onset_curve(audio: Tensor, sample_rate_hz: int) -> Tensor:
    """(B, K) spectral flux each 5 ms of int16 audio (B, 1, L); entry k is about time k · 5 ms.

    Magnitudes of 20 ms Hann windows in 24 mel bands, log(1 + 100 x), the rises over 5 ms averaged over the bands.
    """
    window = max(16, round(_WINDOW_S * sample_rate_hz))
    size = 1 << (window - 1).bit_length()
    samples = audio[:, 0].float() / 32768
    count = round(samples.shape[1] / sample_rate_hz / HOP_S)
    centres = (torch.arange(-1, count, device=audio.device) * (HOP_S * sample_rate_hz)).round().long()
    padded = F.pad(samples, (window, window))
    at = (centres + window - window // 2)[:, None] + torch.arange(window, device=audio.device)
    frames = padded[:, at] * (torch.hann_window(window, device=audio.device) * (2 / window))
    magnitude = torch.fft.rfft(frames, size).abs()
    bands = mel_filters(size // 2 + 1, sample_rate_hz, _BANDS, 40.0, 0.95 * sample_rate_hz / 2).to(audio.device)
    level = torch.log1p(100 * (magnitude @ bands.T))
    rise = level.diff(dim=1).clamp(min=0).mean(2)
    rise[:, :3] = rise[:, -2:] = 0  # windows that reach over an end of the clip, which is no onset
    return rise


def loudness_db(audio: Tensor) -> Tensor:
    """(B,) root mean square of int16 audio (B, 1, L) in dB of full scale; -100 for silence."""
    power = (audio.double() / 32768).square().mean((1, 2))
    return (10 * torch.log10(power.clamp(min=10 ** (_SILENCE_DB / 10)))).float()


def curves(clips: AVSample, spec: ClipSpec) -> Curves:
    """The curves of stored clips: uint8 video (B, F, 3, H, W), int16 audio (B, 1, L)."""
    return Curves(
        motion_curve(clips.video),
        onset_curve(clips.audio, spec.sample_rate_hz),
        loudness_db(clips.audio),
        spec.fps,
    )


def concatenate(parts: Sequence[Curves]) -> Curves:
    """The curves of several batches of equal clips as one."""
    return Curves(
        torch.cat([p.motion for p in parts]),
        torch.cat([p.onset for p in parts]),
        torch.cat([p.loudness_db for p in parts]),
        parts[0].fps,
    )


def lags(spec_fps: float, frames: int, max_lag_s: float | None = None) -> Tensor:
    """The lags that are tried: multiples of 5 ms up to ±``max_lag_s`` (half a second, at most 0.4 of the clip)."""
    longest = min(0.5, 0.4 * frames / spec_fps) if max_lag_s is None else max_lag_s
    steps = int(longest / HOP_S + 1e-9)
    return torch.arange(-steps, steps + 1) * HOP_S


def correlation(motion: Tensor, onset: Tensor, fps: float, lag_s: Tensor) -> Tensor:
    """Correlation of picture and sound at each lag: (B, len(lag_s)), in [-1, 1].

    Frame k stands for the scene at (k + ½) / fps, the middle of the time it is shown. The sound's rise is summed over
    the time between two frames, shifted by the lag, and correlated (Pearson) with the motion over those frame
    intervals that stay inside the clip. 0 where either does not vary.

    Args:
        motion: (B, F - 1).
        onset: (B, K), one value each 5 ms.
        fps: of the frames.
        lag_s: (D,) lags in seconds.
    """
    batch, intervals = motion.shape
    grown = F.pad(onset.double().cumsum(1), (1, 0))
    edges = (torch.arange(intervals + 1, dtype=torch.float64) + 0.5) / fps
    at = (edges + lag_s.double()[:, None]) / HOP_S
    inside = (at[:, :-1] >= -1e-6) & (at[:, 1:] <= onset.shape[1] + 1e-6)
    at = at.clamp(0, onset.shape[1])
    lower = at.floor().long().clamp(max=onset.shape[1] - 1)
    total = torch.lerp(grown[:, lower], grown[:, lower + 1], (at - lower).expand(batch, -1, -1))
    sound = total.diff(dim=2)
    weight = inside.double()
    share = weight / weight.sum(1, keepdim=True).clamp(min=1)
    x, y = motion.double()[:, None], sound
    x = (x - (x * share).sum(2, keepdim=True)) * weight
    y = (y - (y * share).sum(2, keepdim=True)) * weight
    scale = (x.square().sum(2) * y.square().sum(2)).sqrt()
    return torch.where(scale > 1e-9, (x * y).sum(2) / scale.clamp(min=1e-9), torch.zeros_like(scale)).float()


class Lag(NamedTuple):
    """How a set of clips hangs together in time.

    Attributes:
        lag_s: where the mean correlation is highest; 0 if it is nowhere above 0.
        score: mean correlation at lag 0, in [-1, 1].
        peak: mean correlation at ``lag_s``.
    """

    lag_s: float
    score: float
    peak: float


def set_lag(clips: Curves, max_lag_s: float | None = None) -> Lag:
    """Lag and score of a set of clips, from the mean of their correlations; a set says more than one clip.

    At a larger lag fewer frames overlap and chance is larger, so the peak is sought in the correlation times √(share
    that overlaps).
    """
    frames = clips.motion.shape[1] + 1
    lag_s = lags(clips.fps, frames, max_lag_s)
    mean = correlation(clips.motion, clips.onset, clips.fps, lag_s).mean(0)
    tapered = mean * (1 - lag_s.abs() * clips.fps / frames).clamp(min=0).sqrt()
    zero, best = float(mean[len(mean) // 2]), int(tapered.argmax())
    return Lag(float(lag_s[best]) if mean[best] > 0 else 0.0, zero, float(mean[best]))


def shuffled_score(clips: Curves, shifts: int = 4) -> float:
    """`Lag.score` of the set when each picture gets the sound of another clip: what chance gives. One clip: 0."""
    count = len(clips.motion)
    zero = torch.zeros(1)
    moves = range(1, min(shifts, count - 1) + 1)
    scores = [correlation(clips.motion, clips.onset.roll(move, 0), clips.fps, zero).mean() for move in moves]
    return float(torch.stack(scores).mean()) if scores else 0.0


def between_bounds(score: float, shuffled: float, real: float) -> float:
    """(score - shuffled) / (real - shuffled): 0 is chance, 1 is as real; 0 if real is no better than chance."""
    return (score - shuffled) / (real - shuffled) if real - shuffled > 1e-6 else 0.0


def audio_peaks_s(onset: Tensor) -> list[float]:
    """Peak times of one onset curve (K,): highest within 30 ms, 7 % of the maximum above the mean of ±100 ms."""
    highest = float(onset.max())
    if highest < 1e-4:
        return []
    curve = (onset / highest)[None, None]
    near, wide = round(0.03 / HOP_S), round(0.1 / HOP_S)
    is_top = curve >= F.max_pool1d(curve, 2 * near + 1, 1, near)
    mean = F.avg_pool1d(curve, 2 * wide + 1, 1, wide, count_include_pad=False)
    found = (is_top & (curve > mean + 0.07))[0, 0].nonzero().flatten().tolist()
    times: list[float] = []
    for index in found:
        if not times or index * HOP_S - times[-1] > 0.03:
            times.append(index * HOP_S)
    return times


def video_peaks_s(motion: Tensor, fps: float) -> list[float]:
    """Times of the peaks of one motion curve (F - 1,): higher than before, not lower than after, above the mean.

    A change between frames k and k+1 is dated (k + 1) / fps, when frame k+1 appears.
    """
    padded = F.pad(motion, (1, 1), value=-1.0)
    top = (motion > padded[:-2]) & (motion >= padded[2:]) & (motion > motion.mean() + 1e-4)
    return [(k + 1) / fps for k in top.nonzero().flatten().tolist()]


def av_align_iou(audio_s: Sequence[float], video_s: Sequence[float], fps: float) -> float:
    """AV-Align as its authors' code computes it: intersection over union of peaks, in [0, 1].

    A sound's peak takes the first free picture's peak less than one frame away: m / (|A| + |V| - m). No peaks at all:
    0.
    """
    free = list(video_s)
    matched = 0
    for time in audio_s:
        hit = next((k for k, other in enumerate(free) if abs(time - other) < 1 / fps), None)
        if hit is not None:
            free.pop(hit)
            matched += 1
    union = len(audio_s) + len(video_s) - matched
    return matched / union if union else 0.0


def av_align_f(audio_s: Sequence[float], video_s: Sequence[float], fps: float) -> float:
    """AV-Align as its paper defines it: the share of peaks with one of the other kind within ±3 frames, in [0, 1].

    No peaks at all: 0.
    """
    reach = 3 / fps + 1e-9
    hits = sum(any(abs(a - v) <= reach for v in video_s) for a in audio_s)
    hits += sum(any(abs(a - v) <= reach for a in audio_s) for v in video_s)
    total = len(audio_s) + len(video_s)
    return hits / total if total else 0.0


def motion_beats_s(motion: Tensor, fps: float) -> list[float]:
    """Times at which one motion curve (F - 1,) is locally lowest and below its mean: a dancer's beats. Still: none."""
    padded = F.pad(motion, (1, 1), value=-1.0)
    low = (motion < padded[:-2]) & (motion <= padded[2:]) & (motion < motion.mean() - 1e-4)
    return [(k + 1) / fps for k in low.nonzero().flatten().tolist()]


def beat_alignment(motion_s: Sequence[float], audio_s: Sequence[float], sigma_s: float = 0.05) -> float:
    """Mean over motion beats of exp(-d² / 2σ²), d the distance to the nearest audio beat (Li et al. 2021), in [0, 1].

    No beats on either side: 0.

    Args:
        motion_s: times of motion beats.
        audio_s: times of audio beats.
        sigma_s: σ in seconds; three frames at 60 fps in the original.
    """
    if not motion_s or not audio_s:
        return 0.0
    gaps = (torch.tensor(motion_s)[:, None] - torch.tensor(audio_s)).abs().amin(1)
    return float(torch.exp(-gaps.square() / (2 * sigma_s**2)).mean())


def peak_scores(clips: Curves) -> dict[str, float]:
    """Means over a set of clips of both AV-Align values and the beat alignment."""
    rows = []
    for motion, onset in zip(clips.motion, clips.onset, strict=True):
        audio_s, video_s = audio_peaks_s(onset), video_peaks_s(motion, clips.fps)
        beat = beat_alignment(motion_beats_s(motion, clips.fps), audio_s, max(0.05, 0.5 / clips.fps))
        rows.append((av_align_iou(audio_s, video_s, clips.fps), av_align_f(audio_s, video_s, clips.fps), beat))
    means = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    return dict(zip(("av_align_iou", "av_align_f", "beat_alignment"), means, strict=True))


def summary(clips: Curves) -> dict[str, float]:
    """Synchrony and sanity of a set of clips as plain numbers; see the evaluation guide for what each means."""
    lag = set_lag(clips)
    shuffled = clips._replace(onset=clips.onset.roll(1, 0))
    return {
        "lag_s": lag.lag_s,
        "sync_score": lag.score,
        "sync_peak": lag.peak,
        "sync_score_shuffled": shuffled_score(clips),
        **peak_scores(clips),
        **{f"{name}_shuffled": value for name, value in peak_scores(shuffled).items()},
        "loudness_db": float(clips.loudness_db.mean()),
        "silent_share": float((clips.loudness_db < -60).float().mean()),
        "motion_per_s": float(clips.motion.mean() * clips.fps),
        "still_share": float((clips.motion.amax(1) < 1 / 255).float().mean()),
    }


def diversity(features: Tensor) -> float:
    """Root mean square distance of two clips drawn from features (N, D): √(2 tr Σ). One clip: 0."""
    if len(features) < 2:
        return 0.0
    return float((2 * features.double().var(0).sum()).sqrt())


class Neighbours(NamedTuple):
    """How near generated clips are to training clips.

    Attributes:
        nearest: (M,) row of the nearest training clip of each generated one.
        distance: (M,) distance to it.
        ratio: median distance over the median distance of training clips to their own nearest other; well under 1:
            copies.
        copied_share: share of generated clips nearer than 99 % of training clips are to their nearest other.
    """

    nearest: Tensor
    distance: Tensor
    ratio: float
    copied_share: float


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (N, M), exactly 0 for equal rows."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def nearest_neighbours(generated: Tensor, training: Tensor, rows: int = 512) -> Neighbours:
    """Nearest training clip (Euclidean) of each generated one, in features (M, D) and (N, D).

    Memory is bounded by ``rows``.
    With one training clip, or duplicates everywhere in the training set, there is no scale and ratio is 0.
    """
    generated, training = generated.double(), training.double()
    found = [_distances(part, training).min(1) for part in generated.split(rows)]
    distance, nearest = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
    own = torch.zeros(0, dtype=torch.float64)
    if len(training) > 1:
        parts = []
        for start in range(0, len(training), rows):
            gaps = _distances(training[start : start + rows], training)
            gaps[torch.arange(len(gaps)), torch.arange(start, start + len(gaps))] = float("inf")
            parts.append(gaps.amin(1))
        own = torch.cat(parts)
    scale = float(own.median()) if len(own) else 0.0
    ratio = float(distance.median()) / scale if scale > 0 else 0.0
    copied = float((distance < torch.quantile(own, 0.01)).double().mean()) if len(own) else 0.0
    return Neighbours(nearest, distance, ratio, copied)
