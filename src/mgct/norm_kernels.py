"""Triton kernels for a GPU: a group norm's sums, then f(a x + s) with f SiLU or nothing, and its gradients.

Rows of (N, P, C) lie in memory as they are, channels last; a and s are (N, C) float32. Each pass reads its operands
once, works in float32 and keeps nothing between (`mgct.blocks.GroupNorm` has the rest, and what to do without Triton).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096
"""Elements that a program holds at once."""
_WARPS = 8
_TILES = 16
"""Tiles of positions that one program adds up."""


@triton.jit
def _tile(row, first, positions, channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Offsets of a tile in (N, P, C), whether they are inside, and the channels' offsets in (N, C) and their mask."""
    p = first + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    at = (row * positions + p)[:, None] * channels + c[None, :]
    return at, (p < positions)[:, None] & (c < channels)[None, :], row * channels + c, c < channels


@triton.jit
def _before(x, a, s, grad, SILU: tl.constexpr):
    """The gradient of a x + s."""
    if SILU:
        h = x * a[None, :] + s[None, :]
        sigmoid = tl.sigmoid(h)
        grad = grad * sigmoid * (1 + h * (1 - sigmoid))
    return grad


@triton.jit
def _sums_kernel(
    x_ptr, out_ptr, positions, channels, parts, TILES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    program = tl.program_id(0).to(tl.int64)
    row, part = program // parts, program % parts
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for i in range(TILES):
        at, inside, _, _ = _tile(row, (part * TILES + i) * BLOCK_P, positions, channels, BLOCK_P, BLOCK_C)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        total += x
        squares += x * x
    c = tl.arange(0, BLOCK_C)
    out = out_ptr + program * 2 * channels + c
    tl.store(out, tl.sum(total, 0), mask=c < channels)
    tl.store(out + channels, tl.sum(squares, 0), mask=c < channels)


@triton.jit
def _affine_kernel(
    x_ptr,
    a_ptr,
    s_ptr,
    y_ptr,
    positions,
    channels,
    parts,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row, part = program // parts, program % parts
    at, inside, channel, known = _tile(row, part * BLOCK_P, positions, channels, BLOCK_P, BLOCK_C)
    a = tl.load(a_ptr + channel, mask=known, other=0.0)
    s = tl.load(s_ptr + channel, mask=known, other=0.0)
    y = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * a[None, :] + s[None, :]
    if SILU:
        y = y * tl.sigmoid(y)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_sums_kernel(
    x_ptr,
    grad_ptr,
    a_ptr,
    s_ptr,
    mean_ptr,
    out_ptr,
    positions,
    channels,
    parts,
    SILU: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row, part = program // parts, program % parts
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    products = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    _, _, channel, known = _tile(row, 0, positions, channels, BLOCK_P, BLOCK_C)
    a = tl.load(a_ptr + channel, mask=known, other=0.0)
    s = tl.load(s_ptr + channel, mask=known, other=0.0)
    mean = tl.load(mean_ptr + channel, mask=known, other=0.0)
    for i in range(TILES):
        at, inside, _, _ = _tile(row, (part * TILES + i) * BLOCK_P, positions, channels, BLOCK_P, BLOCK_C)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        grad = _before(x, a, s, grad, SILU)
        total += grad
        products += grad * (x - mean[None, :])
    c = tl.arange(0, BLOCK_C)
    out = out_ptr + program * 2 * channels + c
    tl.store(out, tl.sum(total, 0), mask=known)
    tl.store(out + channels, tl.sum(products, 0), mask=known)


@triton.jit
def _gradient_kernel(
    x_ptr,
    grad_ptr,
    a_ptr,
    s_ptr,
    slope_ptr,
    offset_ptr,
    out_ptr,
    positions,
    channels,
    parts,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row, part = program // parts, program % parts
    at, inside, channel, known = _tile(row, part * BLOCK_P, positions, channels, BLOCK_P, BLOCK_C)
    a = tl.load(a_ptr + channel, mask=known, other=0.0)
    s = tl.load(s_ptr + channel, mask=known, other=0.0)
    slope = tl.load(slope_ptr + channel, mask=known, other=0.0)
    offset = tl.load(offset_ptr + channel, mask=known, other=0.0)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    out = _before(x, a, s, grad, SILU) * a[None, :] + x * slope[None, :] + offset[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


def _blocks(x: Tensor, tiles: int = 1) -> tuple[int, dict[str, int]]:
    """Programs a row, and the kernels' block sizes."""
    block_c = triton.next_power_of_2(x.shape[2])
    block_p = max(_TILE // block_c, 1)
    return triton.cdiv(x.shape[1], block_p * tiles), {"BLOCK_P": block_p, "BLOCK_C": block_c}


def _rows(*tensors: Tensor) -> list[Tensor]:
    """As the kernels want them: with nothing between the rows."""
    return [tensor.contiguous() for tensor in tensors]


def sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Σ x and Σ x² over the positions of (N, P, C): two of (N, C), float32."""
    rows, positions, channels = x.shape
    parts, blocks = _blocks(x, _TILES)
    out = torch.empty(rows, parts, 2, channels, device=x.device)
    _sums_kernel[(rows * parts,)](
        x.contiguous(), out, positions, channels, parts, TILES=_TILES, num_warps=_WARPS, **blocks
    )
    total, squares = out.sum(1).unbind(1)
    return total, squares


def affine(x: Tensor, a: Tensor, s: Tensor, silu: bool) -> Tensor:
    """f(a x + s) of (N, P, C), in its precision."""
    rows, positions, channels = x.shape
    parts, blocks = _blocks(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _affine_kernel[(rows * parts,)](
        *_rows(x, a, s), out, positions, channels, parts, SILU=silu, num_warps=_WARPS, **blocks
    )
    return out


def gradient_sums(x: Tensor, grad: Tensor, a: Tensor, s: Tensor, mean: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """With g the gradient of a x + s: Σ g and Σ g (x - mean) over the positions, (N, C) each; ``mean`` is (N, C)."""
    rows, positions, channels = x.shape
    parts, blocks = _blocks(x, _TILES)
    out = torch.empty(rows, parts, 2, channels, device=x.device)
    _gradient_sums_kernel[(rows * parts,)](
        *_rows(x, grad, a, s, mean),
        out,
        positions,
        channels,
        parts,
        SILU=silu,
        TILES=_TILES,
        num_warps=_WARPS,
        **blocks,
    )
    total, products = out.sum(1).unbind(1)
    return total, products


def gradient(x: Tensor, grad: Tensor, a: Tensor, s: Tensor, slope: Tensor, offset: Tensor, silu: bool) -> Tensor:
    """With g as in `gradient_sums`: a g + slope x + offset, in the precision of x; all but x and grad are (N, C)."""
    rows, positions, channels = x.shape
    parts, blocks = _blocks(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _gradient_kernel[(rows * parts,)](
        *_rows(x, grad, a, s, slope, offset),
        out,
        positions,
        channels,
        parts,
        SILU=silu,
        num_warps=_WARPS,
        **blocks,
    )
    return out
