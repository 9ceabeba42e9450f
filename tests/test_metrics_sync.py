"""Synchrony: known offsets are recovered, and nothing is ever NaN."""

import math
from dataclasses import replace

import pytest
import torch

from mgct import AVSample, ClipSpec
from mgct.data.worlds import get_world
from mgct.metrics import sync
from mgct.types import quantise

SPECS = [ClipSpec(16, 10.0, 16, 16000), ClipSpec(16, 10.0, 16, 2560), ClipSpec(40, 25.0, 16, 16000)]
OFFSETS_S = (-0.3, -0.15, -0.04, 0.0, 0.04, 0.15, 0.3)


def flashes_and_beeps(spec: ClipSpec, offset_s: float, count: int = 12, seed: int = 0, flashes: int = 2) -> AVSample:
    """Clips of one or two flashes each; every beep comes ``offset_s`` after its flash."""
    generator = torch.Generator().manual_seed(seed)
    first = 0.35 + 0.2 * torch.rand(count, 1, generator=generator)
    second = first + 0.6 + 0.3 * torch.rand(count, 1, generator=generator)
    times_s = (torch.cat([first, second], 1) if flashes == 2 else first + 0.3)[:, :, None]
    frame_s = (torch.arange(spec.frames) + 0.5) / spec.fps
    sample_s = torch.arange(spec.audio_samples) / spec.sample_rate_hz
    light = (torch.exp(-(frame_s - times_s) / 0.15) * (frame_s >= times_s)).sum(1)
    heard = sample_s - times_s - offset_s
    beep = (torch.exp(-heard.clamp(min=0) / 0.05) * (heard >= 0)).sum(1) * torch.sin(2 * math.pi * 600 * sample_s)
    video = (40 + 170 * light).clamp(0, 255)[:, :, None, None, None].expand(-1, -1, 3, spec.size, spec.size)
    return AVSample(video=video.to(torch.uint8), audio=(beep[:, None] * 15000).to(torch.int16))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("offset_s", OFFSETS_S)
def test_a_known_offset_is_recovered_within_half_a_frame(spec: ClipSpec, offset_s: float) -> None:
    lag = sync.set_lag(sync.curves(flashes_and_beeps(spec, offset_s), spec))
    assert abs(lag.lag_s - offset_s) <= 0.5 / spec.fps + 1e-6
    assert lag.peak > 0.6


def test_a_single_clip_is_recovered_within_a_frame() -> None:
    spec = SPECS[0]
    for seed in range(6):
        for offset_s in OFFSETS_S:
            lag = sync.set_lag(sync.curves(flashes_and_beeps(spec, offset_s, 1, seed, flashes=1), spec))
            assert abs(lag.lag_s - offset_s) <= 1 / spec.fps + 1e-6


@pytest.mark.parametrize("name", ["landscape", "dance"])
def test_world_clips_shifted_by_known_offsets(name: str) -> None:
    """The worlds' own lag at offset 0 is what real clips have; every other offset is found relative to the truth."""
    spec, longer = ClipSpec(16, 10.0, 16, 16000), ClipSpec(26, 10.0, 16, 16000)
    clips = quantise(get_world(name).render(range(40), longer, seed=11).clips)
    for offset_s in (-0.3, -0.1, 0.0, 0.2, 0.3):
        begin = round((0.5 - offset_s) * spec.sample_rate_hz)
        cut = AVSample(video=clips.video[:, 5:21], audio=clips.audio[:, :, begin : begin + spec.audio_samples])
        lag = sync.set_lag(sync.curves(cut, spec))
        assert abs(lag.lag_s - offset_s) <= 0.5 / spec.fps + 1e-6


def test_real_pairs_score_above_shuffled_ones() -> None:
    spec = SPECS[0]
    curves = sync.curves(flashes_and_beeps(spec, 0.0, 24), spec)
    score, chance = sync.set_lag(curves).score, sync.shuffled_score(curves)
    assert score > chance + 0.2
    assert sync.between_bounds(score, chance, score) == 1
    assert sync.between_bounds(chance, chance, score) == 0
    assert sync.between_bounds(0.3, 0.2, 0.2) == 0


def still_or_silent(still: bool, silent: bool, spec: ClipSpec) -> AVSample:
    clips = flashes_and_beeps(spec, 0.0, 3)
    video = torch.full_like(clips.video, 90) if still else clips.video
    return AVSample(video=video, audio=torch.zeros_like(clips.audio) if silent else clips.audio)


@pytest.mark.parametrize(("still", "silent"), [(True, False), (False, True), (True, True)])
def test_still_pictures_and_silence_have_defined_values(still: bool, silent: bool) -> None:
    spec = SPECS[1]
    curves = sync.curves(still_or_silent(still, silent, spec), spec)
    rows = sync.summary(curves)
    assert all(math.isfinite(value) for value in rows.values())
    assert rows["lag_s"] == rows["sync_score"] == 0
    assert rows["av_align_iou"] == 0
    assert rows["silent_share"] == float(silent)
    assert rows["still_share"] == float(still)
    assert not still or sync.video_peaks_s(curves.motion[0], spec.fps) == []
    assert not silent or (sync.audio_peaks_s(curves.onset[0]) == [] and rows["loudness_db"] == -100)


def test_a_clip_of_one_frame_does_not_move() -> None:
    spec = replace(SPECS[0], frames=1)
    rows = sync.summary(sync.curves(flashes_and_beeps(spec, 0.0, 3), spec))
    assert all(math.isfinite(value) for value in rows.values())
    assert rows["motion_per_s"] == rows["sync_score"] == 0
    assert rows["still_share"] == 1


def test_one_clip_has_no_shuffled_partner() -> None:
    spec = SPECS[0]
    assert sync.shuffled_score(sync.curves(flashes_and_beeps(spec, 0.0, 1), spec)) == 0


def test_peaks_are_where_the_events_are() -> None:
    spec = SPECS[2]
    clip = flashes_and_beeps(spec, 0.0, 1, seed=3)
    curves = sync.curves(clip, spec)
    audio_s, video_s = sync.audio_peaks_s(curves.onset[0]), sync.video_peaks_s(curves.motion[0], spec.fps)
    assert len(audio_s) == len(video_s) == 2
    assert all(abs(a - v) < 1 / spec.fps for a, v in zip(audio_s, video_s, strict=True))


def test_both_definitions_of_av_align_by_hand() -> None:
    fps = 10.0
    audio_s, video_s = [0.5, 1.0, 1.9], [0.55, 1.25]
    assert sync.av_align_iou(audio_s, video_s, fps) == pytest.approx(1 / 4)
    assert sync.av_align_f(audio_s, video_s, fps) == pytest.approx(4 / 5)
    assert sync.av_align_iou(audio_s, audio_s, fps) == sync.av_align_f(audio_s, audio_s, fps) == 1
    assert sync.av_align_iou([], [], fps) == sync.av_align_f([], [], fps) == 0
    assert sync.av_align_iou([0.5], [], fps) == sync.av_align_f([], [0.5], fps) == 0
    assert sync.av_align_iou([0.5, 0.52], [0.51], fps) == pytest.approx(1 / 2)


def test_beat_alignment_by_hand() -> None:
    assert sync.beat_alignment([0.5, 1.0], [0.5, 1.0]) == 1
    assert sync.beat_alignment([0.5], [0.55], sigma_s=0.05) == pytest.approx(math.exp(-0.5))
    assert sync.beat_alignment([], [0.5]) == sync.beat_alignment([0.5], []) == 0


def test_a_dancer_that_stops_on_the_beat() -> None:
    fps = 20.0
    time_s = (torch.arange(39) + 1) / fps
    motion = torch.sin(2 * math.pi * time_s).abs() * 0.1
    beats = sync.motion_beats_s(motion, fps)
    assert beats == pytest.approx([0.5, 1.0, 1.5], abs=1e-6)


def test_loudness_and_motion_in_their_units() -> None:
    audio = torch.full((1, 1, 100), 16384, dtype=torch.int16)
    assert float(sync.loudness_db(audio)) == pytest.approx(-6.02, abs=0.01)
    video = torch.zeros(1, 3, 3, 4, 4, dtype=torch.uint8)
    video[:, 1] = 255
    assert sync.motion_curve(video)[0].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_the_start_of_a_steady_sound_is_no_onset() -> None:
    spec = SPECS[0]
    tone = (torch.sin(2 * math.pi * 440 * torch.arange(spec.audio_samples) / 16000) * 9000).to(torch.int16)
    onset = sync.onset_curve(tone[None, None], 16000)
    assert float(onset.max()) < 0.02


def test_diversity_is_the_distance_of_two_clips() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 8, generator=generator)
    pairs = (features[:2000] - features[2000:]).square().sum(1).mean().sqrt()
    assert sync.diversity(features) == pytest.approx(float(pairs), rel=0.02)
    assert sync.diversity(features[:1]) == 0


def test_copies_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    training = torch.randn(700, 8, generator=generator)
    fresh = sync.nearest_neighbours(torch.randn(300, 8, generator=generator), training)
    copied = sync.nearest_neighbours(training[200:500] + 0.01 * torch.randn(300, 8, generator=generator), training)
    assert fresh.ratio == pytest.approx(1.0, abs=0.15)
    assert fresh.copied_share < 0.05
    assert copied.ratio < 0.1
    assert copied.copied_share == 1
    assert torch.equal(copied.nearest, torch.arange(200, 500))
    assert sync.nearest_neighbours(training[:3], training[:1]).ratio == 0


def test_luma_is_that_of_bt_601():
    video = torch.zeros(1, 4, 3, 2, 2, dtype=torch.uint8)
    for channel in range(3):
        video[:, channel + 1, channel] = 255
    assert sync.motion_curve(video)[0].tolist() == pytest.approx([0.299, 0.587 - 0.299, 0.587 - 0.114])


def test_a_summary_in_its_units():
    spec = ClipSpec(16, 10.0, 16, 16000)
    curves = sync.curves(flashes_and_beeps(spec, 0.0, 12), spec)
    rows = sync.summary(curves)
    assert rows["motion_per_s"] == pytest.approx(float(curves.motion.mean()) * 10)
    shuffled = sync.peak_scores(curves._replace(onset=curves.onset.roll(1, 0)))
    for name, value in shuffled.items():
        assert rows[f"{name}_shuffled"] == value
    assert rows["av_align_iou"] > rows["av_align_iou_shuffled"]
    for level, silent in ((-59.0, 0), (-61.0, 1)):
        assert sync.summary(curves._replace(loudness_db=torch.full((12,), level)))["silent_share"] == silent
    for motion, still in ((0.9 / 255, 1), (1.1 / 255, 0)):
        assert sync.summary(curves._replace(motion=torch.full((12, 15), motion)))["still_share"] == still


def test_a_beat_is_as_sharp_as_the_frames_allow():
    motion = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    onset = torch.zeros(1, 400)
    onset[0, 140] = 1.0  # 0.7 s; the motion is lowest at 2 / 4 fps = 0.5 s
    found = sync.peak_scores(sync.Curves(motion, onset, torch.zeros(1), 4.0))["beat_alignment"]
    assert found == pytest.approx(math.exp(-(0.2**2) / (2 * 0.125**2)), rel=1e-4)


def test_the_end_of_a_steady_sound_is_no_onset():
    tone = (torch.cos(2 * math.pi * 441.3 * torch.arange(8000) / 16000) * 30000).to(torch.int16)
    assert float(sync.onset_curve(tone[None, None], 16000)[0, -2:].max()) == 0


def test_a_peak_of_motion_is_dated_when_the_new_frame_appears():
    assert sync.video_peaks_s(torch.tensor([0.0, 1.0, 0.0, 0.0]), 10.0) == pytest.approx([0.2])
    assert sync.motion_beats_s(torch.tensor([1.0, 0.0, 1.0, 1.0]), 10.0) == pytest.approx([0.2])


def test_a_lag_counts_by_how_much_of_the_clips_overlaps():
    draw = torch.Generator().manual_seed(0)
    motion, onset = torch.rand(2, 15, generator=draw), torch.rand(2, 320, generator=draw)
    curves, lag_s = sync.Curves(motion, onset, torch.zeros(2), 10.0), sync.lags(10.0, 16)
    mean = sync.correlation(motion, onset, 10.0, lag_s).mean(0)
    tapered = mean * (1 - lag_s.abs() * 10 / 16).sqrt()
    assert tapered.argmax() != mean.argmax()
    assert sync.set_lag(curves).lag_s == pytest.approx(lag_s[tapered.argmax()].item())
