"""Convolutions with fewer products are convolutions, and are used where they gain."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mgct import convolutions, products, winograd


@pytest.fixture(params=["mkl", "onednn"])
def by_onednn(monkeypatch, request):
    """Products by either library, on any machine that has it."""
    wanted = request.param == "onednn"
    if wanted and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    for module in (products, winograd, convolutions):
        monkeypatch.setattr(module, "by_onednn", lambda: wanted)
    return wanted


def relative(ours, exact):
    return float((ours.double() - exact).norm() / exact.norm())


def exact_conv2d(x, weight, bias):
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)


def exact_conv1d(x, weight, bias, shift):
    return F.conv1d(x.mT, weight, bias, padding=shift, dilation=shift).mT


def always():
    return winograd.BY_MKL._replace(size=0, size_back=0)


def check(function, exact, x_shape, weight_shape, *arguments):
    """Output and gradients of all inputs, beside float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = (x_shape, weight_shape, weight_shape[:1])
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    precise = [value.detach().double().requires_grad_() for value in inputs]
    ours, wanted = function(*inputs, *arguments), exact(*precise, *arguments)
    assert ours.shape == wanted.shape
    assert ours.dtype == torch.float32
    assert relative(ours.detach(), wanted.detach()) < 1e-5
    grad = torch.randn(wanted.shape, generator=generator)
    gradients = torch.autograd.grad(ours, inputs, grad)
    for one, other in zip(gradients, torch.autograd.grad(wanted, precise, grad.double()), strict=True):
        assert relative(one, other) < 1e-5
    for index, whole in enumerate(gradients):  # one alone, as guidance asks for that of x
        alone = [value.detach().requires_grad_(place == index) for place, value in enumerate(inputs)]
        (gradient,) = torch.autograd.grad(function(*alone, *arguments), alone[index], grad)
        torch.testing.assert_close(gradient, whole, rtol=0, atol=0)


@pytest.mark.parametrize("piece_bytes", [1, 16 << 20])
@pytest.mark.parametrize("size", [(4, 4), (8, 12), (16, 8)])
@pytest.mark.parametrize("channels", [(64, 64), (96, 48)])
def test_a_picture(monkeypatch, by_onednn, piece_bytes, size, channels):
    monkeypatch.setattr(winograd, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(winograd, "limits", always)
    check(winograd.conv2d, exact_conv2d, (3, *size, channels[0]), (channels[1], channels[0], 3, 3))


def test_a_picture_with_few_channels_goes_backwards_so(monkeypatch):
    monkeypatch.setattr(winograd, "limits", lambda: winograd.BY_MKL)
    ways = []
    apply = winograd._Winograd.apply
    monkeypatch.setattr(winograd._Winograd, "apply", lambda *a: ways.append(a[-1]) or apply(*a))
    check(winograd.conv2d, exact_conv2d, (8, 32, 32, 96), (32, 96, 3, 3))
    assert set(ways) == {winograd._plain_conv2d}


@pytest.mark.parametrize("piece_bytes", [1, 16 << 20])
@pytest.mark.parametrize(("rows", "shift"), [(16, 1), (18, 3), (40, 8), (5, 4), (8, 7)])
@pytest.mark.parametrize("plain", [False, True], ids=["both passes", "backwards"])
def test_a_row(monkeypatch, by_onednn, piece_bytes, rows, shift, plain):
    limits = winograd.BY_ONEDNN._replace(rows=1000 if plain else 0, rows_back=0)
    monkeypatch.setattr(winograd, "limits", lambda: limits)
    monkeypatch.setattr(winograd, "_fits", lambda *_: True)
    monkeypatch.setattr(winograd, "PIECE_BYTES", piece_bytes)
    ways = []
    apply = winograd._Winograd.apply
    monkeypatch.setattr(winograd._Winograd, "apply", lambda *a: ways.append(a[-1] is not None) or apply(*a))
    taps = convolutions.taps_over_samples
    check(lambda *inputs: winograd.conv1d(*inputs, taps), exact_conv1d, (2, rows, 24), (20, 24, 3), shift)
    assert set(ways) == {plain}


def test_a_single_row_of_places_is_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(winograd, "limits", lambda: winograd.BY_ONEDNN._replace(rows=0, rows_back=0))
    monkeypatch.setattr(winograd, "_fits", lambda *_: True)
    taps = convolutions.taps_over_samples
    assert winograd.conv1d(torch.randn(2, 7, 24), torch.randn(20, 24, 3), None, 7, taps) is None
    check(lambda *inputs: convolutions.three_taps(taps, *inputs), exact_conv1d, (2, 7, 24), (20, 24, 3), 7)


def test_layers_use_it_where_it_gains(monkeypatch, by_onednn):
    """Wide layers do, with the same result; narrow ones, half precision and float64 do not."""
    used = []
    apply = winograd._Winograd.apply
    monkeypatch.setattr(winograd._Winograd, "apply", lambda *a: used.append(a[1].shape) or apply(*a))

    def layers(channels, dtype=torch.float32):
        used.clear()
        torch.manual_seed(0)
        layer = convolutions.VideoConv(channels, channels).to(dtype)
        with torch.no_grad():
            return layer, layer(torch.randn(1, 16, 16, 8, channels, dtype=dtype))

    enough = 256 if by_onednn else 128
    wide, _ = layers(enough)
    assert used == [(enough, enough, 3, 3), (enough, enough, 3)]
    layers(32)
    assert not used
    layers(enough, torch.float64)
    assert not used
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wide(torch.randn(1, 16, 16, 8, enough))
    assert not used


def test_a_layer_gives_what_pytorch_gives(by_onednn):
    torch.manual_seed(0)
    layer = convolutions.AudioConv(160, 160, dilation=4)
    x = torch.randn(2, 101, 160)
    assert winograd.conv1d(x, layer.conv.weight, None, 4, convolutions.taps_over_samples) is not None
    plain = nn.Conv1d(160, 160, 3, padding=4, dilation=4)
    plain.load_state_dict(layer.conv.state_dict())
    assert relative(layer(x)[0].detach(), plain.double()(x.double().mT).mT.detach()) < 1e-5
