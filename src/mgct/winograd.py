"""Convolutions of width 3 with fewer multiplications, for a CPU in float32.

Winograd's F(4, 3) makes four neighbouring outputs of three taps from six products where the plain sum needs twelve:
with d the six inputs that they see and g the taps, y = Aᵀ[(G g) ⊙ (Bᵀ d)]. Over two axes it takes 36 products for 16
outputs, which need 144 (S. Winograd, *Arithmetic Complexity of Computations*, 1980; A. Lavin and S. Gray, *Fast
Algorithms for Convolutional Neural Networks*, arXiv:1509.09308). Summed over channels, each of the six or 36 is one
matrix product, and so is each of the backward pass, which is the adjoint of every step in turn. Rounding is about four
times that of the plain convolution, some 3e-6 of the output. What it gains: ``docs/performance.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mgct.products import by_onednn, product, summed

Matrix = tuple[tuple[float, ...], ...]

Taps = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]
"""(B, N, C_in), weight (C_out, C_in, 3), bias (C_out,), s → (B, N, C_out): row n sees the rows n - s, n and n + s."""

TILE = 4
"""Outputs that are made together along an axis; they see two inputs more."""

ANALYSIS: Matrix = (
    (4, 0, -5, 0, 1, 0),
    (0, 0, -4, 0, 1, 0),
    (0, -4, 0, 1, 0, 0),
    (0, 0, -1, 0, 1, 0),
    (0, -2, 0, 2, 0, 0),
    (0, 4, 0, -5, 0, 1),
)
"""Bᵀ for the interpolation points 0, 1, -1, 2, -2 and ∞, up to a butterfly: in place of the values at 1 and -1 their
even and their odd part, of which they are sum and difference; the same for 2 and -2."""

SYNTHESIS: Matrix = ((1, 1, 0, 1, 0, 0), (0, 0, 1, 0, 2, 0), (0, 1, 0, 4, 0, 0), (0, 0, 1, 0, 8, 1))
"""Aᵀ after the same butterfly."""

PAIRS = ((1, 2), (3, 4))
"""What the butterfly acts on."""

TAPS: Matrix = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""G."""

PIECE_BYTES = 16 << 20
"""About how much of Bᵀ d is made at a time: little enough to stay in a CPU's cache."""


class Limits(NamedTuple):
    """From where on fewer products gain, as measured: below, the additions cost more than they save.

    Attributes:
        pictures: the harmonic mean of a layer's channels for `conv2d`, forward.
        pictures_back: and of its backward pass.
        rows: the same for `conv1d`, which saves less.
        rows_back: and of its backward pass.
        rows_fit: whether its backward pass gains only with pieces as small as wanted.
        size: tiles × channels for `conv2d`: the products of the weights are made anew at each call.
        size_back: and of its backward pass.
    """

    pictures: float
    pictures_back: float
    rows: float
    rows_back: float
    rows_fit: bool
    size: int
    size_back: int


BY_MKL = Limits(pictures=60, pictures_back=46, rows=120, rows_back=120, rows_fit=True, size=1 << 14, size_back=1 << 14)
"""With products by MKL; measured on an AMD EPYC (Zen 3)."""

BY_ONEDNN = Limits(
    pictures=110, pictures_back=110, rows=250, rows_back=120, rows_fit=False, size=1 << 15, size_back=1 << 16
)
"""With products, and plain convolutions, by oneDNN and AVX-512; measured on an AMD EPYC (Zen 5)."""


def limits() -> Limits:
    """Those of this machine."""
    return BY_ONEDNN if by_onednn() else BY_MKL


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3×3 convolution that keeps the size: (N, H, W, C) by (O, C, 3, 3) and (O,) → (N, H, W, O).

    By PyTorch's own convolution where this would not be faster; sometimes only the backward pass is by this.
    """
    if not _is_possible(x, weight) or x.shape[1] % TILE or x.shape[2] % TILE:
        return _plain_conv2d(x, weight, bias)
    gain, channels, tiles = limits(), _mean_channels(weight), x.numel() / (TILE * TILE * x.shape[-1])
    forward = channels >= gain.pictures and tiles * channels >= gain.size
    back = channels >= gain.pictures_back and tiles * channels >= gain.size_back
    if back if torch.is_grad_enabled() else forward:
        return _Winograd.apply(x, weight, bias, (1, 2), 0, None if forward else _plain_conv2d)
    return _plain_conv2d(x, weight, bias)


def _plain_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, shift: int, plain: Taps) -> Tensor | None:
    """A convolution of width 3 dilated by ``shift``: (B, N, C) by (O, C, 3) and (O,) → (B, N, O).

    None where this would not be faster. ``plain``, with the same arguments, makes the output where only the backward
    pass is faster.
    """
    if not _is_possible(x, weight) or x.shape[1] <= shift:
        return None
    gain, channels = limits(), _mean_channels(weight)
    fits = _fits(x, weight, shift)
    forward = channels >= gain.rows and fits
    back = channels >= gain.rows_back and (fits or not gain.rows_fit)
    if not (back if torch.is_grad_enabled() else forward):
        return None

    def outputs(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return plain(rows.flatten(1, 2), weight, bias, shift).unflatten(1, (-1, shift))

    rows = F.pad(x, (0, 0, 0, -x.shape[1] % (TILE * shift))).unflatten(1, (-1, shift))
    made = _Winograd.apply(rows, weight, bias, (1,), 2, None if forward else outputs)
    return made.flatten(1, 2)[:, : x.shape[1]]


def _fits(x: Tensor, weight: Tensor, shift: int) -> bool:
    """Whether a piece has several places, of those that `conv1d` does not mix: otherwise it is larger than wanted."""
    return _place_bytes(x[:, ::shift], weight) <= PIECE_BYTES / 4


def on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether x is computed on a CPU in its own precision, without autocast."""
    return x.device.type == "cpu" and x.dtype == weight.dtype and not torch.is_autocast_enabled("cpu")


def _is_possible(x: Tensor, weight: Tensor) -> bool:
    """Whether x is computed on a CPU in float32, by operations one after the other."""
    return on_cpu(x, weight) and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def _mean_channels(weight: Tensor) -> float:
    """The harmonic mean of the channels in and out: the products that one value read or written takes part in."""
    out_channels, in_channels = weight.shape[:2]
    return 2 * in_channels * out_channels / (in_channels + out_channels)


def _combine(matrix: Matrix, parts: Sequence[Tensor], outs: Sequence[Tensor], add: bool = False) -> None:
    """Each of ``outs`` becomes its row's sum of ``parts``, or has it added."""
    for row, out in zip(matrix, outs, strict=True):
        terms = [(factor, part) for factor, part in zip(row, parts, strict=True) if factor]
        if not add:
            terms.sort(key=lambda term: term[0] != 1)
            (factor, part), *terms = terms
            if factor == 1 and terms:
                (factor, other), *terms = terms
                torch.add(part, other, alpha=factor, out=out)
            else:
                torch.mul(part, factor, out=out)
        for factor, part in terms:
            out.add_(part, alpha=factor)


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _every_fourth(x: Tensor, axis: int, first: int, count: int) -> Tensor:
    """So many values along the axis, from ``first``."""
    return x[(slice(None),) * axis + (slice(first, first + TILE * (count - 1) + 1, TILE),)]


def _to_products(matrix: Matrix, x: Tensor, axis: int) -> Tensor:
    """Each tile along an axis, by the matrix and the butterfly: (…, 4 T or 4 T + 2, …) → (6, …, T, …)."""
    count = x.shape[axis] // TILE
    out = x.new_empty(len(matrix), *x.shape[:axis], count, *x.shape[axis + 1 :])
    parts = list(out.unbind())
    for _, odd in PAIRS:
        parts[odd] = torch.empty_like(parts[odd])
    _combine(matrix, [_every_fourth(x, axis, place, count) for place in range(len(matrix[0]))], parts)
    for even, odd in PAIRS:
        torch.sub(parts[even], parts[odd], out=out[odd])
        parts[even].add_(parts[odd])
    return out


def _from_products(matrix: Matrix, x: Tensor, axis: int, out: Tensor | None = None) -> Tensor:
    """The adjoint, by the transposed matrix: (6, …, T, …) → (…, 4 T or 4 T + 2, …), the sum of what each tile gives.

    It overwrites x. ``out``: where to.
    """
    count, rows = x.shape[axis + 1], len(matrix)
    length = TILE * count + rows - TILE
    if out is None:
        out = x.new_empty(*x.shape[1 : axis + 1], length, *x.shape[axis + 2 :])
    out.narrow(axis, TILE * count, rows - TILE).zero_()
    parts, places = list(x.unbind()), [_every_fourth(out, axis, place, count) for place in range(rows)]
    for one, other in PAIRS:
        difference = parts[one] - parts[other]
        parts[one].add_(parts[other])
        parts[other] = difference
    _combine(matrix[:TILE], parts, places[:TILE])
    _combine(matrix[TILE:], parts, places[TILE:], add=True)  # where the next tile has been
    return out


def _taps(weight: Tensor) -> Tensor:
    """G over a weight's axes: (6, 3) or (36, 9), the last axis first among the rows, as `_Winograd` makes them."""
    one = weight.new_tensor(TAPS)
    if weight.dim() == 3:
        return one
    return torch.einsum("ai,bj->baij", one, one).reshape(len(TAPS) ** 2, -1)


class _Winograd(torch.autograd.Function):
    """A convolution over axes whose lengths are multiples of four, in pieces along a dimension that it does not mix."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        axes: tuple[int, ...],
        pieces: int,
        plain: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None,
    ) -> Tensor:
        """``axes`` of the convolution, the dimension cut into ``pieces``, and what makes the output, if not this."""
        ctx.save_for_backward(x, weight)
        ctx.axes, ctx.pieces = axes, pieces
        if plain is not None:
            return plain(x, weight, bias)
        products = _products(weight)
        out = x.new_empty(*x.shape[:-1], len(weight))
        size = _piece_size(x, weight, pieces)
        for given, made in zip(x.split(size, pieces), out.split(size, pieces), strict=True):
            tiles = _tiles(given, axes)
            h = product(tiles.flatten(1, -2), products).unflatten(1, tiles.shape[1:-1])
            if len(axes) == 2:
                h = _from_products(SYNTHESIS, h.unflatten(0, (len(ANALYSIS), -1)), axes[1] + 1)
            _from_products(SYNTHESIS, h, axes[0], made)
        return out if bias is None else out.add_(bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias, of which only those are worked out that somebody asks for."""
        x, weight = ctx.saved_tensors
        axes, pieces = ctx.axes, ctx.pieces
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        products = _products(weight)
        grad_x, grad_products = torch.empty_like(x) if of_x else None, torch.zeros_like(products)
        size = _piece_size(x, weight, pieces)
        whole = (x, grad, x if grad_x is None else grad_x)
        for given, wanted, made in zip(*(value.split(size, pieces) for value in whole), strict=True):
            h = _to_products(_transposed(SYNTHESIS), wanted, axes[0])
            if len(axes) == 2:
                h = _to_products(_transposed(SYNTHESIS), h, axes[1] + 1).flatten(0, 1)
            places, rows = h.shape[1:-1], h.flatten(1, -2)
            if of_weight:
                _add_products(grad_products, rows, _tiles(given, axes).flatten(1, -2))
            if grad_x is None:
                continue
            h = product(rows, products.mT).unflatten(1, places)
            if len(axes) == 2:
                h = _from_products(_transposed(ANALYSIS), h.unflatten(0, (len(ANALYSIS), -1)), axes[1] + 1)
            h = _from_products(_transposed(ANALYSIS), h, axes[0])
            for axis in axes:
                h = h.narrow(axis, 1, h.shape[axis] - 2)
            made.copy_(h)
        grad_weight = (grad_products.flatten(1).mT @ _taps(weight)).view(weight.shape) if of_weight else None
        grad_bias = grad.sum(tuple(range(grad.dim() - 1))) if of_bias else None
        return grad_x, grad_weight, grad_bias, None, None, None


def _tiles(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Bᵀ d of every tile: (…, C) → (6 or 36, …, C)."""
    around = [1 if axis in axes else 0 for axis in reversed(range(x.dim())) for _ in range(2)]
    h = _to_products(ANALYSIS, F.pad(x, around), axes[0])
    return _to_products(ANALYSIS, h, axes[1] + 1).flatten(0, 1) if len(axes) == 2 else h


def _add_products(to: Tensor, a: Tensor, b: Tensor) -> None:
    """Add aᵀ b of each of several: (P, N, M), (P, K, N), (P, K, M)."""
    if by_onednn():
        for total, one, other in zip(to, a, b, strict=True):
            total.add_(summed(one, other))
    else:
        to.baddbmm_(a.mT, b)


def _products(weight: Tensor) -> Tensor:
    """G g of every pair of channels: (O, C, 3) → (6, O, C), or (O, C, 3, 3) → (36, O, C)."""
    return (_taps(weight) @ weight.flatten(0, 1).flatten(1).mT).unflatten(1, weight.shape[:2])


def _piece_size(x: Tensor, weight: Tensor, pieces: int) -> int:
    """How much of the dimension that is cut one piece has."""
    return max(1, int(PIECE_BYTES / _place_bytes(x.movedim(pieces, 0)[0], weight)))


def _place_bytes(x: Tensor, weight: Tensor) -> float:
    """Bytes of Bᵀ d, or of what is made of it, for so much of x (…, C)."""
    growth = (len(TAPS) / TILE) ** (weight.dim() - 2)
    return growth * (x.numel() // x.shape[-1]) * max(weight.shape[:2]) * x.element_size()
