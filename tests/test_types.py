"""The pair of video and audio, as the libraries around it take it."""

import pickle

import torch
from accelerate.utils import convert_to_fp32
from torch.utils import _pytree as pytree

from mgct import AVSample


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
