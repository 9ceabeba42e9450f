"""What is made again instead of kept: less memory, the very same gradients."""

import pytest
import torch
from torch import nn

from mgct import MultimodalUNet, gpu, recompute


def network(dtype=torch.float32, dropout=0.3):
    torch.manual_seed(0)
    unet = MultimodalUNet(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        cross_attention_resolutions=(2,),
        cross_attention_windows=(2,),
        video_attention_resolutions=(2,),
        audio_attention_resolutions=(2,),
        num_heads=2,
        num_head_channels=16,
        dropout=dropout,
        middle_cross_attention=False,
    )
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return unet.to(dtype).train()


def passes(unet, active):
    """Outputs, gradients, and the bytes that the graph keeps besides the weights."""
    unet.recompute = active
    unet.zero_grad()
    torch.manual_seed(1)
    dtype = next(unet.parameters()).dtype
    video, audio = torch.randn(2, 4, 3, 16, 16, dtype=dtype), torch.randn(2, 1, 640, dtype=dtype)
    kept, keep, weights = {}, recompute._keep, {p.untyped_storage().data_ptr() for p in unet.parameters()}

    def noting(x):
        stored = keep(x) if active else x
        if isinstance(stored, torch.Tensor) and stored.untyped_storage().data_ptr() not in weights:
            kept[stored.untyped_storage().data_ptr()] = stored.untyped_storage()
        return stored

    with pytest.MonkeyPatch.context() as patch, torch.autograd.graph.saved_tensors_hooks(noting, lambda x: x):
        patch.setattr(recompute, "_keep", noting)
        out = unet(video, audio, torch.tensor([3, 900]), window_shift=1)
    size = sum(storage.nbytes() for storage in kept.values())
    kept.clear()
    (out.video.square().mean() + out.audio.square().mean()).backward()
    return out, [parameter.grad.clone() for parameter in unet.parameters()], size


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_the_same_to_the_last_bit(dropout):
    unet = network(dropout=dropout)
    plain, gradients, kept = passes(unet, active=False)
    ours, same, less = passes(unet, active=True)
    assert torch.equal(ours.video, plain.video)
    assert torch.equal(ours.audio, plain.audio)
    assert all(map(torch.equal, same, gradients))
    assert less < 0.5 * kept


def test_gradients_are_the_same_by_the_ways_of_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "on_gpu", lambda _: True)
    monkeypatch.setattr(gpu, "has_kernels", lambda _: False)
    unet = network()
    _, gradients, kept = passes(unet, active=False)
    _, same, less = passes(unet, active=True)
    assert all(map(torch.equal, same, gradients))
    assert less < 0.5 * kept


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_the_same_in_half_precision(dropout):
    unet = network(dropout=dropout)
    with torch.autocast("cpu", torch.bfloat16):
        _, gradients, kept = passes(unet, active=False)
        _, same, less = passes(unet, active=True)
    assert all(map(torch.equal, same, gradients))
    assert less < kept


def test_a_graph_can_be_gone_through_twice():
    unet = network()
    unet.recompute = True
    torch.manual_seed(1)
    out = unet(torch.randn(1, 4, 3, 16, 16), torch.randn(1, 1, 640), torch.tensor([3]), window_shift=1)
    loss, weights = out.video.square().mean(), list(unet.video_stem.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, weights)))


def test_nothing_is_offered_where_nothing_asks():
    unet = network()
    with torch.no_grad(), recompute.made_again():
        assert not recompute._state.__dict__.get("active")
    x = torch.randn(2, 8, 32, requires_grad=True)
    assert not hasattr(unet.encoder[0].res.video.norm_in(x), "_mgct_recipe")


def test_a_recipe_is_followed_once_for_all_who_ask():
    calls = []

    def double(x):
        calls.append(1)
        return 2 * x

    x = torch.randn(3, requires_grad=True)
    with recompute.made_again():
        y = recompute.offer(double(x), double, x)
        out = (y.sin() * y.cos()).sum()
    calls.clear()
    (gradient,) = torch.autograd.grad(out, x)
    assert len(calls) == 1
    torch.testing.assert_close(gradient, 2 * (4 * x).cos())
