"""Group normalisation of rows whose channels come last, with the scale, shift and activation that follow it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgct import gpu
from mgct.recompute import offer

HALF = (torch.float16, torch.bfloat16)

SHORT, FEW = 1024, 16
"""Positions of a row, and channels of a group, below both of which PyTorch's norm takes a CPU several times as long in
half precision as in float32, with the copies to and fro."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation of (N, …, C): the statistics of each group of channels are over all positions of a row."""

    def forward(
        self, x: Tensor, film: Tensor | None = None, activate: bool = False, offset: Tensor | None = None
    ) -> Tensor:
        """(N, …, C) → the same; then scaled and shifted by a FiLM pair (N, 2C), and then SiLU, if wanted.

        ``offset`` (C,) is added to x first: on a GPU in half precision the bias of the convolution that made x costs
        nothing here, and a pass over x there, and another in its backward pass.
        """
        if offset is not None and not (gpu.on_gpu(x) and x.dtype in HALF):
            x, offset = x + offset, None
        x = x.contiguous()  # a transposed view of one clip's frames is not
        settings: tuple[Any, ...] = (self.num_groups, self.eps, activate)
        if gpu.on_gpu(x):
            inputs = (x, self.weight, self.bias, film, offset, *settings)
            return offer(_NormOnGpu.apply(*inputs), lambda *given: _norm_on_gpu(*given)[0], *inputs)
        if x.device.type == "cpu" if x.dtype in HALF else self.weight.dtype == x.dtype:
            inputs = (x, self.weight, self.bias, film, *settings)
            return offer(_Norm.apply(*inputs), lambda *given: _norm(*given)[0], *inputs)
        rows, channels = x.shape[0], x.shape[-1]
        image = x.reshape(rows, -1, 1, channels).permute(0, 3, 1, 2)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):  # it would make float32 of a bfloat16 body
            h = F.group_norm(image, self.num_groups, weight, bias, self.eps)
        h = h.permute(0, 2, 3, 1).reshape(rows, -1, channels)
        if film is not None:
            scale, shift = film.to(x.dtype)[:, None].chunk(2, dim=-1)
            h = torch.addcmul(shift, h, 1 + scale)
        return (F.silu(h) if activate else h).view(x.shape)


def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None,
    groups: int,
    eps: float,
    activate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output of `GroupNorm.forward` for contiguous x, and the mean and 1/√(variance + eps) of each group."""
    rows, channels = x.shape[0], x.shape[-1]
    positions = x.numel() // (rows * channels)
    image = x.view(rows, positions, 1, channels).permute(0, 3, 1, 2)
    if x.dtype in HALF:  # then the statistics are float32
        weight, bias = weight.float(), bias.float()
        if positions < SHORT and channels // groups < FEW:
            image = image.float()
    with torch.autocast(x.device.type, enabled=False):  # it would make float32 of a bfloat16 body
        normed, mean, rstd = torch.native_group_norm(image, weight, bias, rows, channels, positions, groups, eps)
    h = normed.to(x.dtype).permute(0, 2, 3, 1).reshape(rows, positions, channels)
    if film is not None:
        scale, shift = film[:, None].to(x.dtype).chunk(2, dim=-1)
        h.mul_(1 + scale).add_(shift)
    if activate:
        F.silu(h, inplace=True)
    return h.view(x.shape), mean, rstd


class _Norm(torch.autograd.Function):
    """`GroupNorm` with what follows it, as one step of the backward pass.

    It keeps its input and a few numbers a channel where the separate steps would keep their inputs too, and works the
    rest out again; and its backward pass is several times faster where groups have few channels, for PyTorch's walks
    through one group after the other (``docs/performance.md``).

    With n positions × channels of a group, m and r the mean and 1/√(variance + eps) of each, the output is f(a x + s)
    for a = r w and s = b - m a, where w and b hold the FiLM pair, and f is SiLU or nothing.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, film: Tensor | None, *others: Any) -> Tensor:
        """Arguments as in `_norm`."""
        *_, ctx.activate = others
        h, mean, rstd = _norm(x, weight, bias, film, *others)
        ctx.save_for_backward(x, weight, bias, film, mean, rstd)
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and FiLM pair."""
        x, weight, bias, film, mean, rstd = ctx.saved_tensors
        state = gpu.norm_state(mean, rstd, weight, bias, film)
        return *_gradients(gpu.Plain, x, grad, weight, bias, film, None, state, ctx.activate)[:4], None, None, None


def _norm_on_gpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None,
    offset: Tensor | None,
    groups: int,
    eps: float,
    activate: bool,
) -> tuple[Tensor, gpu.NormState]:
    """The output of `GroupNorm.forward` for contiguous x, and what was found out on the way."""
    with torch.autocast(x.device.type, enabled=False):
        rows = x.view(x.shape[0], -1, x.shape[-1])
        ways = gpu.ways(x)
        exact = ways if x.dtype in HALF else gpu.Plain
        state = exact.statistics(rows, weight, bias, film, offset, groups, eps)
        return ways.affine(rows, state.a, state.s, activate).view(x.shape), state


class _NormOnGpu(torch.autograd.Function):
    """`_Norm` in passes over rows as they lie in memory, where PyTorch's own norm wants the channels first.

    An offset o of x adds a o to s.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, film: Tensor | None, offset: Tensor | None, *others: Any
    ) -> Tensor:
        """Arguments as in `_norm_on_gpu`."""
        *_, ctx.activate = others
        h, state = _norm_on_gpu(x, weight, bias, film, offset, *others)
        ctx.save_for_backward(x, weight, bias, film, offset, *state)
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias, FiLM pair and offset."""
        x, weight, bias, film, offset, *state = ctx.saved_tensors
        ways, known = gpu.ways(x), gpu.NormState(*state)
        return *_gradients(ways, x, grad, weight, bias, film, offset, known, ctx.activate), None, None, None


def _gradients(
    ways: Any,
    x: Tensor,
    grad: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None,
    offset: Tensor | None,
    state: gpu.NormState,
    activate: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias, FiLM pair and offset."""
    rows, grad = (value.reshape(x.shape[0], -1, x.shape[-1]) for value in (x, grad))
    grad_x, shares, grad_film = ways.gradients(rows, grad, weight, bias, film, offset, state, activate)
    grad_weight, grad_bias, grad_offset = shares.sum(0).unbind(0)
    return (
        grad_x.view(x.shape),
        grad_weight.to(weight.dtype),
        grad_bias.to(bias.dtype),
        grad_film,
        None if offset is None else grad_offset.to(offset.dtype),
    )
