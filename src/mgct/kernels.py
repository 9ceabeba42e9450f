"""Triton kernels for a GPU: what is between the network's convolutions, attention and pointwise layers.

A group norm's sums, f(a x + s) with f SiLU or nothing, and its gradients; means of neighbours and their repetition; and
chunks taken by index. Tensors lie in memory as they are, channels last. Each pass reads its operands once, works in
float32 and keeps nothing between (`mgct.norms` and `mgct.blocks` have the rest, `mgct.gpu.Plain` the same without
Triton).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mgct.gpu import NormState

_TILE = 4096
"""Elements that a program holds at once."""
_WARPS = 8
_TILES = 16
"""Tiles of positions that one program adds up."""
_jit = triton.jit(do_not_specialize=["rows", "positions", "parts", "width", "chunks", "tokens"])
"""Kernels are compiled anew for other channels, not for other lengths: that would take most of a minute in all."""


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


@_jit
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


@_jit
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


@_jit
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


@_jit
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
def _group_tile(GROUPS: tl.constexpr, EACH: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_E: tl.constexpr):
    """Channels laid out as groups × channels of each, and which of them there are."""
    g = tl.arange(0, BLOCK_G)[:, None]
    e = tl.arange(0, BLOCK_E)[None, :]
    return g * EACH + e, (g < GROUPS) & (e < EACH)


@triton.jit
def _two_sums(
    parts_ptr, row, parts, channels, c, known, BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_E: tl.constexpr
):
    """What the parts (N, parts, 2, C) of two sums come to in a row."""
    first = tl.zeros([BLOCK_G, BLOCK_E], tl.float32)
    second = tl.zeros([BLOCK_G, BLOCK_E], tl.float32)
    for start in range(0, parts, BLOCK_S):
        p = start + tl.arange(0, BLOCK_S)[:, None, None]
        at = parts_ptr + (row * parts + p) * 2 * channels + c[None, :, :]
        inside = (p < parts) & known[None, :, :]
        first += tl.sum(tl.load(at, mask=inside, other=0.0), 0)
        second += tl.sum(tl.load(at + channels, mask=inside, other=0.0), 0)
    return first, second


@triton.jit
def _film(weight_ptr, bias_ptr, film_ptr, row, channels, c, known, FILM: tl.constexpr):
    """Weight and bias of the norm; scale (with its 1) and shift of a row's FiLM pair."""
    weight = tl.load(weight_ptr + c, mask=known, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, mask=known, other=0.0).to(tl.float32)
    scale = tl.full(weight.shape, 1.0, tl.float32)
    shift = tl.zeros(weight.shape, tl.float32)
    if FILM:
        at = film_ptr + row * 2 * channels + c
        scale += tl.load(at, mask=known, other=0.0).to(tl.float32)
        shift += tl.load(at + channels, mask=known, other=0.0).to(tl.float32)
    return weight, bias, scale, shift


@_jit
def _statistics_kernel(
    parts_ptr,
    weight_ptr,
    bias_ptr,
    film_ptr,
    offset_ptr,
    out_ptr,
    rstd_ptr,
    rows,
    positions,
    channels,
    parts,
    eps,
    FILM: tl.constexpr,
    OFFSET: tl.constexpr,
    GROUPS: tl.constexpr,
    EACH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    c, known = _group_tile(GROUPS, EACH, BLOCK_G, BLOCK_E)
    total, squares = _two_sums(parts_ptr, row, parts, channels, c, known, BLOCK_S, BLOCK_G, BLOCK_E)
    means = total / positions
    squares = squares / positions
    offset = tl.zeros([BLOCK_G, BLOCK_E], tl.float32)
    if OFFSET:
        offset += tl.load(offset_ptr + c, mask=known, other=0.0).to(tl.float32)
        squares += offset * (2 * means + offset)
        means += offset
    mean = tl.sum(means, 1)[:, None] / EACH
    square = tl.sum(squares, 1)[:, None] / EACH
    rstd = 1 / tl.sqrt(tl.maximum(square - mean * mean, 0.0) + eps)
    weight, bias, scale, shift = _film(weight_ptr, bias_ptr, film_ptr, row, channels, c, known, FILM)
    a = rstd * weight * scale
    pivot = mean - offset
    at = out_ptr + row * channels + c
    tl.store(at, a, mask=known)
    tl.store(at + rows * channels, bias * scale + shift - a * pivot, mask=known)
    tl.store(at + 2 * rows * channels, pivot, mask=known)
    if OFFSET:
        tl.store(at + 3 * rows * channels, means, mask=known)
    g = tl.arange(0, BLOCK_G)[:, None]
    tl.store(rstd_ptr + row * GROUPS + g, rstd, mask=g < GROUPS)


@_jit
def _finish_kernel(
    parts_ptr,
    weight_ptr,
    bias_ptr,
    film_ptr,
    offset_ptr,
    a_ptr,
    pivot_ptr,
    rstd_ptr,
    means_ptr,
    lines_ptr,
    shares_ptr,
    grad_film_ptr,
    rows,
    positions,
    channels,
    parts,
    FILM: tl.constexpr,
    OFFSET: tl.constexpr,
    GROUPS: tl.constexpr,
    EACH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    c, known = _group_tile(GROUPS, EACH, BLOCK_G, BLOCK_E)
    grad_s, grad_a = _two_sums(parts_ptr, row, parts, channels, c, known, BLOCK_S, BLOCK_G, BLOCK_E)
    weight, bias, scale, _shift = _film(weight_ptr, bias_ptr, film_ptr, row, channels, c, known, FILM)
    at = row * channels + c
    a = tl.load(a_ptr + at, mask=known, other=0.0)
    mean = tl.load(pivot_ptr + at, mask=known, other=0.0)
    g = tl.arange(0, BLOCK_G)[:, None]
    rstd = tl.load(rstd_ptr + row * GROUPS + g, mask=g < GROUPS, other=0.0)
    offset = tl.zeros([BLOCK_G, BLOCK_E], tl.float32)
    if OFFSET:
        offset += tl.load(offset_ptr + c, mask=known, other=0.0).to(tl.float32)
        mean += offset
    count = positions * EACH
    grad_variance = -0.5 * rstd * rstd * tl.sum(grad_a * a, 1)[:, None]
    slope = tl.zeros([BLOCK_G, BLOCK_E], tl.float32) + 2 * grad_variance / count
    constant = (-tl.sum(grad_s * a, 1)[:, None] - 2 * mean * grad_variance) / count
    tl.store(lines_ptr + at, slope, mask=known)
    tl.store(lines_ptr + rows * channels + at, constant + slope * offset, mask=known)
    grad_w = rstd * grad_a
    share = shares_ptr + row * 3 * channels + c
    tl.store(share, grad_w * scale, mask=known)
    tl.store(share + channels, grad_s * scale, mask=known)
    grad_offset = tl.zeros([BLOCK_G, BLOCK_E], tl.float32)
    if OFFSET:
        means = tl.load(means_ptr + at, mask=known, other=0.0)
        grad_offset = a * grad_s + positions * (slope * means + constant)
    tl.store(share + 2 * channels, grad_offset, mask=known)
    if FILM:
        film = grad_film_ptr + row * 2 * channels + c
        kind = grad_film_ptr.dtype.element_ty
        tl.store(film, (grad_w * weight + grad_s * bias).to(kind), mask=known)
        tl.store(film + channels, grad_s.to(kind), mask=known)


@_jit
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


@_jit
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


@_jit
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


def _finish_sizes(channels: int, groups: int) -> dict[str, int]:
    """Sizes of the kernels that add up parts, group by group."""
    each = channels // groups
    tile = triton.next_power_of_2(groups) * triton.next_power_of_2(each)
    return {
        "GROUPS": groups,
        "EACH": each,
        "BLOCK_S": max(_TILE // tile, 1),
        "BLOCK_G": triton.next_power_of_2(groups),
        "BLOCK_E": triton.next_power_of_2(each),
        "num_warps": _WARPS,
    }


def statistics(
    x: Tensor, weight: Tensor, bias: Tensor, film: Tensor | None, offset: Tensor | None, groups: int, eps: float
) -> NormState:
    """What a group norm of (N, P, C) finds out: its sums in one pass, the rest from these."""
    rows, positions, channels = x.shape
    parts, blocks = _blocks(x, _TILES)
    sums = torch.empty(rows, parts, 2, channels, dtype=torch.float32, device=x.device)
    x, weight, bias = _rows(x, weight, bias)
    film = film if film is None else film.contiguous()
    _sums_kernel[(rows * parts,)](x, sums, positions, channels, parts, TILES=_TILES, num_warps=_WARPS, **blocks)
    out = torch.empty(3 if offset is None else 4, rows, channels, dtype=torch.float32, device=x.device)
    rstd = torch.empty(rows, groups, dtype=torch.float32, device=x.device)
    _statistics_kernel[(rows,)](
        sums,
        weight,
        bias,
        film,
        offset,
        out,
        rstd,
        rows,
        positions,
        channels,
        parts,
        eps,
        FILM=film is not None,
        OFFSET=offset is not None,
        **_finish_sizes(channels, groups),
    )
    a, s, pivot, *means = out.unbind(0)
    return NormState(a, s, pivot, rstd, means[0] if means else None)


def affine(x: Tensor, a: Tensor, s: Tensor, silu: bool) -> Tensor:
    """f(a x + s) of (N, P, C), in its precision."""
    rows, positions, channels = x.shape
    parts, blocks = _blocks(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _affine_kernel[(rows * parts,)](
        *_rows(x, a, s), out, positions, channels, parts, SILU=silu, num_warps=_WARPS, **blocks
    )
    return out


def gradients(
    x: Tensor,
    grad: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None,
    offset: Tensor | None,
    state: NormState,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x (N, P, C), of weight, bias and offset, row by row (N, 3, C), and of the FiLM pair.

    Its sums in one pass, what they come to, and the gradient of x in another.
    """
    rows, positions, channels = x.shape
    parts, blocks = _blocks(x, _TILES)
    x, grad, weight, bias, a, s, pivot = _rows(x, grad, weight, bias, state.a, state.s, state.pivot)
    film = film if film is None else film.contiguous()
    sums = torch.empty(rows, parts, 2, channels, dtype=torch.float32, device=x.device)
    _gradient_sums_kernel[(rows * parts,)](
        x,
        grad,
        a,
        s,
        pivot,
        sums,
        positions,
        channels,
        parts,
        SILU=silu,
        TILES=_TILES,
        num_warps=_WARPS,
        **blocks,
    )
    shapes = (2, rows, channels), (rows, 3, channels)
    lines, shares = (torch.empty(shape, dtype=torch.float32, device=x.device) for shape in shapes)
    grad_film = None if film is None else torch.empty_like(film)
    groups = state.rstd.shape[1]
    _finish_kernel[(rows,)](
        sums,
        weight,
        bias,
        film,
        offset,
        a,
        pivot,
        state.rstd,
        state.means,
        lines,
        shares,
        grad_film,
        rows,
        positions,
        channels,
        parts,
        FILM=film is not None,
        OFFSET=offset is not None,
        **_finish_sizes(channels, groups),
    )
    parts, blocks = _blocks(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _gradient_kernel[(rows * parts,)](
        x,
        grad,
        a,
        s,
        *lines.unbind(0),
        out,
        positions,
        channels,
        parts,
        SILU=silu,
        num_warps=_WARPS,
        **blocks,
    )
    return out, shares, grad_film


def down(x: Tensor, factors: tuple[int, int], scale: float) -> Tensor:
    """(N, H, W, C) → (N, H/a, W/b, C), without remainder: ``scale`` times the sum of each a × b neighbours."""
    count, height, width, channels = x.shape
    if height % factors[0] or width % factors[1]:
        raise ValueError(f"{height} × {width} is not a multiple of {factors[0]} × {factors[1]}")
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
