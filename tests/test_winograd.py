"""Convolutions with fewer products are convolutions, and are used where they gain."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mgct import convolutions, winograd


def relative(ours, exact):
    return float((ours.double() - exact).norm() / exact.norm())


def exact_conv2d(x, weight, bias):
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)


def exact_conv1d(x, weight, bias, shift):
    return F.conv1d(x.mT, weight, bias, padding=shift, dilation=shift).mT


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
def test_a_picture(monkeypatch, piece_bytes, size, channels):
    monkeypatch.setattr(winograd, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(winograd, "MIN_SIZE", 0)
    check(winograd.conv2d, exact_conv2d, (3, *size, channels[0]), (channels[1], channels[0], 3, 3))


def test_a_picture_with_few_channels_goes_backwards_so(monkeypatch):
    ways = []
    apply = winograd._Winograd.apply
    monkeypatch.setattr(winograd._Winograd, "apply", lambda *a: ways.append(a[-1]) or apply(*a))
    check(winograd.conv2d, exact_conv2d, (8, 32, 32, 96), (32, 96, 3, 3))
    assert set(ways) == {winograd._plain_conv2d}


@pytest.mark.parametrize("piece_bytes", [1, 16 << 20])
@pytest.mark.parametrize(("rows", "shift"), [(16, 1), (18, 3), (40, 8), (5, 4), (7, 7)])
def test_a_row(monkeypatch, piece_bytes, rows, shift):
    monkeypatch.setattr(winograd, "PIECE_BYTES", piece_bytes)
    check(winograd.conv1d, exact_conv1d, (2, rows, 24), (20, 24, 3), shift)


def test_layers_use_it_where_it_gains(monkeypatch):
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

    wide, _ = layers(128)
    assert used == [(128, 128, 3, 3), (128, 128, 3)]
    layers(32)
    assert not used
    layers(128, torch.float64)
    assert not used
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wide(torch.randn(1, 16, 16, 8, 128))
    assert not used


def test_a_layer_gives_what_pytorch_gives():
    torch.manual_seed(0)
    layer = convolutions.AudioConv(160, 160, dilation=4)
    x = torch.randn(2, 101, 160)
    assert winograd.pays_1d(x, layer.conv.weight, 4)
    plain = nn.Conv1d(160, 160, 3, padding=4, dilation=4)
    plain.load_state_dict(layer.conv.state_dict())
    assert relative(layer(x)[0].detach(), plain.double()(x.double().mT).mT.detach()) < 1e-5
