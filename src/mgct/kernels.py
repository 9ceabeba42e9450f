"""Triton kernels for a GPU: what is between the network's convolutions, attention and pointwise layers.

A group norm's sums, f(a x + s) with f SiLU or nothing, and its gradients; means of neighbours and their repetition; and
chunks taken by index. Tensors lie in memory as they are, channels last. Each pass reads its operands once, works in
float32 and keeps nothing between (`mgct.blocks` has the rest, and what to do without Triton).
"""

from typing import Any

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
        first = (part * TILES + i) * BLOCK_P
        at, inside, _channel, _known = _tile(row, first, positions, channels, BLOCK_P, BLOCK_C)
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
    channel = row * channels + tl.arange(0, BLOCK_C)
    known = tl.arange(0, BLOCK_C) < channels
    a = tl.load(a_ptr + channel, mask=known, other=0.0)
    s = tl.load(s_ptr + channel, mask=known, other=0.0)
    mean = tl.load(mean_ptr + channel, mask=known, other=0.0)
    for i in range(TILES):
        first = (part * TILES + i) * BLOCK_P
        at, inside, _channel, _known = _tile(row, first, positions, channels, BLOCK_P, BLOCK_C)
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


@triton.jit
def _down_kernel(
    x_ptr,
    y_ptr,
    positions,
    width,
    channels,
    scale,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)[None, :]
    inside = (p < positions)[:, None] & (c < channels)
    row, column = p // width, p % width
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for i in tl.static_range(HEIGHT):
        for j in tl.static_range(WIDTH):
            source = (row * HEIGHT + i) * (width * WIDTH) + column * WIDTH + j
            total += tl.load(x_ptr + source[:, None] * channels + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + p[:, None] * channels + c, (total * scale).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _up_kernel(
    x_ptr,
    y_ptr,
    positions,
    width,
    channels,
    scale,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)[None, :]
    inside = (p < positions)[:, None] & (c < channels)
    row, column = p // width, p % width
    source = (row // HEIGHT) * (width // WIDTH) + column // WIDTH
    x = tl.load(x_ptr + source[:, None] * channels + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + p[:, None] * channels + c, (x * scale).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _take_kernel(
    x_ptr,
    index_ptr,
    y_ptr,
    clip_stride,
    token_stride,
    chunks,
    tokens,
    channels,
    parts,
    EACH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    chunk, part = program // parts, program % parts
    clip, number = chunk // chunks, chunk % chunks
    p = part * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)[None, :]
    inside = (p < tokens)[:, None] & (c < channels)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for i in tl.static_range(EACH):
        taken = tl.load(index_ptr + number * EACH + i)
        source = clip * clip_stride + (taken * tokens + p) * token_stride
        total += tl.load(x_ptr + source[:, None] + c, mask=inside, other=0.0).to(tl.float32)
    target = (chunk * tokens + p)[:, None] * channels + c
    tl.store(y_ptr + target, total.to(y_ptr.dtype.element_ty), mask=inside)


def _block_sizes(channels: int) -> dict[str, int]:
    """Of a tile."""
    block_c = triton.next_power_of_2(channels)
    return {"BLOCK_P": max(_TILE // block_c, 1), "BLOCK_C": block_c}


def _blocks(x: Tensor, tiles: int = 1) -> tuple[int, dict[str, int]]:
    """Programs a row, and the kernels' block sizes."""
    sizes = _block_sizes(x.shape[2])
    return triton.cdiv(x.shape[1], sizes["BLOCK_P"] * tiles), sizes


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


def down(x: Tensor, factors: tuple[int, int], scale: float) -> Tensor:
    """(N, H, W, C) → (N, H/a, W/b, C): ``scale`` times the sum of each a × b neighbours."""
    count, height, width, channels = x.shape
    shape = (count, height // factors[0], width // factors[1], channels)
    return _resampled(_down_kernel, x, shape, factors, scale)


def up(x: Tensor, factors: tuple[int, int], scale: float) -> Tensor:
    """(N, H, W, C) → (N, a H, b W, C): ``scale`` times each, a × b times."""
    count, height, width, channels = x.shape
    shape = (count, height * factors[0], width * factors[1], channels)
    return _resampled(_up_kernel, x, shape, factors, scale)


def _resampled(kernel: Any, x: Tensor, shape: tuple[int, ...], factors: tuple[int, int], scale: float) -> Tensor:
    """What `down` and `up` make."""
    y = torch.empty(shape, dtype=x.dtype, device=x.device)
    positions, sizes = shape[0] * shape[1] * shape[2], _block_sizes(shape[3])
    kernel[(triton.cdiv(positions, sizes["BLOCK_P"]),)](
        x.contiguous(),
        y,
        positions,
        shape[2],
        shape[3],
        scale,
        HEIGHT=factors[0],
        WIDTH=factors[1],
        num_warps=_WARPS,
        **sizes,
    )
    return y


def take(x: Tensor, index: Tensor, each: int) -> Tensor:
    """(B, F, T, C), (n · each,) → (B, n, T, C): sums of ``each`` chunks x[:, index] that follow each other."""
    batch, _, tokens, channels = x.shape
    if x.stride(3) != 1 or x.stride(1) != tokens * x.stride(2):
        x = x.contiguous()
    count, sizes = len(index) // each, _block_sizes(channels)
    y = torch.empty(batch, count, tokens, channels, dtype=x.dtype, device=x.device)
    parts = triton.cdiv(tokens, sizes["BLOCK_P"])
    _take_kernel[(batch * count * parts,)](
        x,
        index.contiguous(),
        y,
        x.stride(0),
        x.stride(2),
        count,
        tokens,
        channels,
        parts,
        EACH=each,
        num_warps=_WARPS,
        **sizes,
    )
    return y
