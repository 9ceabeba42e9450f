"""The pair of video and audio, as the libraries around it take it."""

import pickle

import pytest
import torch
from accelerate.utils import convert_to_fp32
from torch.utils import _pytree as pytree

from mgct import AVSample, ClipSpec
from mgct.errors import UserError


def test_accelerate_makes_float32_of_a_model_s_outputs():
    half = AVSample(video=torch.ones(2, 3, dtype=torch.bfloat16), audio=torch.zeros(2, 1, dtype=torch.bfloat16))
    whole = convert_to_fp32(half)
    assert isinstance(whole, AVSample)
    assert (whole.video.dtype, whole.audio.dtype) == (torch.float32, torch.float32)
    assert torch.equal(whole.video, half.video.float())


def test_it_survives_pickling_and_flattening():
    clips = AVSample(video=torch.ones(2), audio=torch.zeros(3))
    leaves, structure = pytree.tree_flatten(clips)
    for again in (pickle.loads(pickle.dumps(clips)), pytree.tree_unflatten(leaves, structure)):
        assert isinstance(again, AVSample)
        assert torch.equal(again.video, clips.video)
        assert torch.equal(again.audio, clips.audio)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "clip.frames must be positive"),
        ({"fps": float("nan")}, "clip.fps must be positive"),
        ({"fps": 1e-320}, "too large"),
        ({"frames": 10**400}, "too large"),
        ({"sample_rate_hz": 10**400}, "too large"),
        ({"fps": 1e6}, "no audio sample"),
    ],
)
def test_clips_that_cannot_be(change, message):
    with pytest.raises(UserError, match=message):
        ClipSpec(**{"frames": 16, "fps": 10.0, "size": 64, "sample_rate_hz": 16000, **change})


def test_audio_is_as_long_as_the_video_to_the_nearest_sample():
    clip = ClipSpec(frames=16, fps=30.0, size=64, sample_rate_hz=16000)
    assert (clip.audio_samples, clip.samples_at(15), clip.samples_at(0)) == (8533, 8000, 0)
