"""The convolutions of the coupled U-Net, of channels-last pictures and sounds."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgct import winograd
from mgct.products import by_onednn
from mgct.resampling import audio_down, video_down
from mgct.winograd import Taps


def zero_init(layer: nn.Linear | nn.Conv1d | nn.Conv3d) -> nn.Module:
    """The same layer with weights and bias set to zero: a residual branch that starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class SpatialConv(nn.Conv2d):
    """A 3×3 convolution of channels-last pictures."""

    def forward(self, x: Tensor, with_bias: bool = True) -> Tensor:
        """(N, H, W, C_in) → (N, H, W, C_out)."""
        return winograd.conv2d(x, self.weight, self.bias if with_bias else None)


def taps_over_frames(x: Tensor, weight: Tensor, bias: Tensor | None, shift: int) -> Tensor:
    """`Taps` over frames of ``shift`` pixels each, by PyTorch's convolution."""
    frames = x.unflatten(1, (-1, shift)).permute(0, 3, 1, 2)
    return F.conv2d(frames, weight[..., None], bias, padding=(1, 0)).permute(0, 2, 3, 1).flatten(1, 2)


def taps_over_samples(x: Tensor, weight: Tensor, bias: Tensor | None, shift: int) -> Tensor:
    """`Taps` over samples, dilated by ``shift``, by PyTorch's convolution.

    A GPU is given rows of ``shift`` samples below each other, which is the same without a dilation: for some dilations
    cuDNN has only a kernel that takes a hundred times as long (``docs/performance.md``).
    """
    if x.is_cuda and shift > 1:
        length = x.shape[1]
        rows = F.pad(x, (0, 0, 0, -length % shift)) if length % shift else x
        return taps_over_frames(rows, weight, bias, shift)[:, :length]
    row = x[:, None].permute(0, 3, 1, 2)
    return F.conv2d(row, weight[:, :, None], bias, padding=(0, shift), dilation=(1, shift)).squeeze(2).mT


def three_taps(taps: Taps, x: Tensor, weight: Tensor, bias: Tensor | None, shift: int) -> Tensor:
    """``taps`` of the rest; on a CPU by fewer products, or with a backward pass up to five times as fast as its own."""
    made = winograd.conv1d(x, weight, bias, shift, taps)
    if made is not None:
        return made
    if winograd.on_cpu(x, weight) and not torch.compiler.is_compiling() and not by_onednn():
        return _ThreeTaps.apply(x, weight, bias, shift, taps)
    return taps(x, weight, bias, shift)


class _ThreeTaps(torch.autograd.Function):
    """`three_taps`: backwards as matrix products of shifted rows, which PyTorch's convolution of width 3 is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shift: int, taps: Taps) -> Tensor:
        """Arguments as in `three_taps`."""
        ctx.save_for_backward(x, weight)
        ctx.shift = shift
        return taps(x, weight, bias, shift)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias, of which only those are worked out that somebody asks for."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        shift, grad = ctx.shift, grad.contiguous()
        grad_x = grad_weight = None
        of_later, of_earlier = grad[:, shift:], grad[:, : max(0, x.shape[1] - shift)]
        if of_x:
            before, now, after = weight.permute(2, 0, 1).contiguous()  # (C_out, C_in) each
            grad_x = grad @ now
            grad_x[:, : of_later.shape[1]].baddbmm_(of_later, before.expand(len(x), -1, -1))
            grad_x[:, shift:].baddbmm_(of_earlier, after.expand(len(x), -1, -1))
        if of_weight:
            taps = (
                (of_later.mT @ x[:, : of_later.shape[1]]).sum(0),
                grad.flatten(0, 1).mT @ x.flatten(0, 1),
                (of_earlier.mT @ x[:, shift:]).sum(0),
            )
            grad_weight = torch.stack(taps).permute(1, 2, 0)
        return grad_x, grad_weight, grad.sum((0, 1)) if of_bias else None, None, None


class TemporalConv(nn.Conv1d):
    """A convolution of width 3 over frames, at each pixel."""

    def forward(self, x: Tensor, with_bias: bool = True) -> Tensor:
        """(B, F, P, C_in) → (B, F, P, C_out)."""
        bias = self.bias if with_bias else None
        rows = three_taps(taps_over_frames, x.flatten(1, 2), self.weight, bias, x.shape[2])
        return rows.unflatten(1, x.shape[1:3])


class VideoConv(nn.Module):
    """A 3×3 convolution over each frame, then a convolution of width 3 over the frames; nothing in between.

    With ``down`` the result is averaged over 2×2 pixels. That is done between the two convolutions, where it gives the
    same (the second does not mix pixels) and makes the second four times cheaper.
    """

    def __init__(self, in_channels: int, out_channels: int, down: bool = False) -> None:
        super().__init__()
        self.down = down
        self.spatial = SpatialConv(in_channels, out_channels, 3, padding=1)
        self.temporal = TemporalConv(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, with_bias: bool = True) -> tuple[Tensor, Tensor | None]:
        """(B, F, H, W, C_in) → (B, F, H, W, C_out); with ``down``, (B, F, H/2, W/2, C_out).

        Also what is still to be added to it, (C_out,), where the biases are left to what follows. The spatial one is
        then not added between the convolutions; what the temporal one makes of it is the same in every frame, but that
        the first and the last see no frame before or after them.
        """
        h = self.spatial(x.flatten(0, 1), with_bias).unflatten(0, x.shape[:2])
        if self.down:
            h = video_down(h)
        size = h.shape[:4]
        h = self.temporal(h.flatten(2, 3), with_bias)
        if with_bias or self.spatial.bias is None or self.temporal.bias is None:
            return h.view(*size, -1), None
        with torch.autocast(x.device.type, enabled=False):
            before, now, after = (self.temporal.weight.permute(2, 0, 1) @ self.spatial.bias).unbind()
            offset = before + now + after + self.temporal.bias
        return _LessAtTheEnds.apply(h, before, after).view(*size, -1), offset


class _LessAtTheEnds(torch.autograd.Function):
    """(B, F, P, C) less a vector (C,) in the first frame, and another in the last.

    In place, so that the other frames cost nothing. Autograd is not told: it would copy the whole gradient. So nobody
    may look at the input afterwards, and what made it must not have kept it, as a convolution has not.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, last: Tensor) -> Tensor:
        """The same memory."""
        ctx.dtypes = first.dtype, last.dtype
        out = x.detach()
        out[:, 0].sub_(first)
        out[:, -1].sub_(last)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of all three."""
        first, last = ctx.dtypes
        return grad, -grad[:, 0].sum((0, 1), dtype=first), -grad[:, -1].sum((0, 1), dtype=last)


class AudioConv(nn.Module):
    """A dilated convolution of width 3 that keeps the length; with ``down``, its mean over each four samples."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1, down: bool = False) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv1d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.dilation = dilation

    def forward(self, x: Tensor, with_bias: bool = True) -> tuple[Tensor, Tensor | None]:
        """(B, L, C_in) → (B, L, C_out); with ``down``, (B, L/4, C_out). Also what is still to be added, (C_out,)."""
        bias, later = (self.conv.bias, None) if with_bias else (None, self.conv.bias)
        h = three_taps(taps_over_samples, x, self.conv.weight, bias, self.dilation)
        return audio_down(h) if self.down else h, later


class VideoHead(nn.Module):
    """A full 3×3×3 convolution to the output channels, zero at first.

    It is made as one 3×3 convolution to the three frames that each frame contributes to, and their sum: PyTorch has no
    fast three-dimensional convolution to so few channels. Its output is float32 or better, as the reference's is: x̂0
    magnifies what half precision would round off ε̂ by σ/α, 157 at the noisy end. (A GPU may multiply in TF32.)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv: Any = zero_init(nn.Conv3d(in_channels, out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H, W, C_in) → (B, F, C_out, H, W)."""
        batch, frames = x.shape[:2]
        with torch.autocast(x.device.type, enabled=False):
            x, weight, bias = _precise(x, self.conv.weight, self.conv.bias.view(-1, 1, 1))
            weight = weight.transpose(0, 2).transpose(1, 2).flatten(0, 1)  # tap of time and output, C_in, 3, 3
            pictures = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, padding=1)
            after, now, before = pictures.view(batch, frames, 3, -1, *x.shape[2:4]).unbind(2)
            return now + F.pad(after, [0] * 6 + [1, 0])[:, :-1] + F.pad(before, [0] * 6 + [0, 1])[:, 1:] + bias


class AudioHead(nn.Module):
    """A convolution of width 3 to the output channels, zero at first; made of a pointwise layer, as `VideoHead` is."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv: Any = zero_init(nn.Conv1d(in_channels, out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C_in) → (B, C_out, L)."""
        with torch.autocast(x.device.type, enabled=False):
            x, weight, bias = _precise(x, self.conv.weight, self.conv.bias)
            weight = weight.permute(2, 0, 1).flatten(0, 1)  # tap and output, C_in
            after, now, before = F.linear(x, weight).unflatten(2, (3, -1)).unbind(2)
            return (now + F.pad(after, [0, 0, 1, 0])[:, :-1] + F.pad(before, [0, 0, 0, 1])[:, 1:] + bias).mT


def _precise(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """All of them in float32, or in x's own precision if that is better."""
    kind = torch.promote_types(x.dtype, torch.float32)
    return tuple(value.to(kind) for value in (x, *weights))
