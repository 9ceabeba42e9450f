"""A metric must notice: more damage is a larger distance, real against real is near zero, another class is far."""

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mgct import AVSample, ClipSpec
from mgct.data.worlds import get_world
from mgct.data.worlds.write import write_world
from mgct.errors import UserError
from mgct.metrics import corruptions
from mgct.metrics.distances import frechet_distance
from mgct.metrics.encoders import load_encoder
from mgct.metrics.sources import VideoSource
from mgct.types import concatenate, dequantise, quantise

SPEC = ClipSpec(8, 10.0, 16, 16000)
STEPS = (0.25, 0.5, 0.75, 1.0)
pytestmark = pytest.mark.filterwarnings("ignore::mgct.metrics.distances.RankDeficientWarning")


def rise(
    encoder,
    clips: AVSample,
    spec: ClipSpec,
    damage: Callable[[AVSample, float], AVSample],
    base: Tensor | None = None,
) -> list[float]:
    """Fréchet distances of damaged to undamaged clips, strength by strength; ``base``: features of the latter."""
    base = encoder(clips, spec) if base is None else base
    return [frechet_distance(base, encoder(damage(clips, step), spec)) for step in STEPS]


def damaged_video(name: str) -> Callable[[AVSample, float], AVSample]:
    function, most = corruptions.VIDEO[name]
    generator = torch.Generator().manual_seed(0)
    return lambda clips, step: AVSample(video=function(clips.video, step * most, generator), audio=clips.audio)


def damaged_audio(name: str) -> Callable[[AVSample, float], AVSample]:
    function, most = corruptions.AUDIO[name]
    generator = torch.Generator().manual_seed(0)
    return lambda clips, step: AVSample(video=clips.video, audio=function(clips.audio, step * most, generator))


def assert_rises(values: list[float]) -> None:
    assert values[0] > 0
    assert all(later > earlier for earlier, later in pairwise(values)), values


@pytest.fixture(scope="module", params=["landscape", "dance"])
def world_clips(request) -> tuple[AVSample, Tensor]:
    """Clips of a seed that the encoders were not trained on."""
    drawn = get_world(request.param).render(range(112), SPEC, seed=424_242)
    return dequantise(quantise(drawn.clips)), drawn.labels


@pytest.mark.parametrize("name", corruptions.VIDEO)
def test_compact_video_notices_damage(world_clips: tuple[AVSample, Tensor], name: str) -> None:
    assert_rises(rise(load_encoder("compact-video"), world_clips[0], SPEC, damaged_video(name)))


@pytest.mark.parametrize("name", corruptions.AUDIO)
def test_compact_audio_notices_damage(world_clips: tuple[AVSample, Tensor], name: str) -> None:
    assert_rises(rise(load_encoder("compact-audio"), world_clips[0], SPEC, damaged_audio(name)))


@pytest.mark.parametrize("name", ["compact-video", "compact-audio"])
def test_compact_tells_halves_of_one_world_from_classes(world_clips: tuple[AVSample, Tensor], name: str) -> None:
    clips, labels = world_clips
    features = load_encoder(name)(clips, SPEC)
    same = frechet_distance(features[::2], features[1::2])
    classes = [features[labels == label] for label in labels.unique()]
    apart = [frechet_distance(x, y) for k, x in enumerate(classes) for y in classes[k + 1 :]]
    assert min(apart) > same
    assert sum(apart) / len(apart) > 2 * same


def test_damage_of_strength_zero_is_none() -> None:
    generator = torch.Generator().manual_seed(0)
    video, audio = torch.rand(2, 8, 3, 16, 16) * 2 - 1, torch.rand(2, 1, 2000) * 2 - 1
    for function, _ in corruptions.VIDEO.values():
        assert torch.equal(function(video, 0.0, generator), video)
    for function, _ in corruptions.AUDIO.values():
        assert torch.equal(function(audio, 0.0, generator), audio)


def test_damage_is_what_it_is_named() -> None:
    generator = torch.Generator().manual_seed(0)
    video = torch.arange(8.0).view(1, 8, 1, 1, 1).expand(1, 8, 3, 16, 16) / 8
    frozen = corruptions.video_freeze(video, 0.5, generator)
    assert frozen[0, :, 0, 0, 0].tolist() == [0, 0.125, 0.25, 0.375, 0.375, 0.375, 0.375, 0.375]
    shuffled = corruptions.video_shuffle(video, 1.0, generator)
    assert sorted(shuffled[0, :, 0, 0, 0].tolist()) == video[0, :, 0, 0, 0].tolist()
    assert not torch.equal(shuffled, video)
    time_s = torch.arange(16000) / 16000
    tone = torch.sin(2 * torch.pi * 4000 * time_s)[None, None]
    assert corruptions.audio_low_pass(tone, 1.5, generator).abs().max() < 1e-3
    assert corruptions.audio_gain(tone, 1.0, generator).max() == pytest.approx(0.5, abs=1e-3)
    slower = corruptions.audio_stretch(torch.sin(2 * torch.pi * 500 * time_s)[None, None], 1.0, generator)
    assert int(torch.fft.rfft(slower[0, 0]).abs().argmax()) == pytest.approx(250, abs=1)


REAL_SPEC = ClipSpec(16, 10.0, 64, 16000)


@pytest.fixture(scope="module")
def real_clips(tmp_path_factory) -> AVSample:
    """Clips decoded from video files: those of 1.6 s or more in the folder MGCT_TEST_CLIPS, else rendered ones."""
    folder = Path(os.environ.get("MGCT_TEST_CLIPS", ""))
    if folder == Path():
        folder = tmp_path_factory.mktemp("media")
        for name in ("landscape", "dance"):
            write_world(name, folder / name, 24, ClipSpec(20, 12.5, 96, 44100), seed=99)
    source = VideoSource(folder, REAL_SPEC)
    readable = []
    for number in range(len(source)):
        try:
            readable.append(source.read([number]))
        except UserError:  # too short, or without sound
            continue
    assert len(readable) >= 20, f"{folder} has {len(readable)} videos with sound of 1.6 s or more"
    return dequantise(concatenate(readable[:32]))


@pytest.fixture(scope="module")
def i3d_features(real_clips: AVSample) -> Tensor:
    return load_encoder("i3d")(real_clips, REAL_SPEC)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["noise", "blur", "shuffle"])
def test_i3d_notices_damage_on_real_clips(real_clips: AVSample, i3d_features: Tensor, name: str) -> None:
    values = rise(load_encoder("i3d"), real_clips, REAL_SPEC, damaged_video(name), i3d_features)
    print(f"i3d, {name}, {len(real_clips.video)} clips:", *(f"{value:.1f}" for value in values))
    assert_rises(values)


@pytest.mark.slow
@pytest.mark.parametrize("name", corruptions.AUDIO)
def test_soundnet_notices_damage_on_real_clips(real_clips: AVSample, name: str) -> None:
    values = rise(load_encoder("soundnet"), real_clips, REAL_SPEC, damaged_audio(name))
    print(f"soundnet, {name}, {len(real_clips.video)} clips:", *(f"{value:.4g}" for value in values))
    assert_rises(values)
