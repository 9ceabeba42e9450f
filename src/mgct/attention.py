"""Attention of rows whose channels come last: of all tokens, or in windows of frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgct import gpu, products
from mgct.recompute import offer

MIN_SCORES = 1 << 16
"""Scores of a row and head from which on oneDNN's products are faster than PyTorch's own attention (`_ByHead`)."""

PIECE_BYTES = 2 << 20
"""About how many scores each thread makes at a time in bfloat16 on a CPU: they stay in its cache."""


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention: q (N, T, H, D), k and v (N, S, H, D) → (N, T, H, D).

    On a CPU in bfloat16 by its matrix products, where it has them: PyTorch's own attention is no faster in bfloat16
    than in float32 there, and its backward pass slower (``docs/performance.md``). The scores are then rounded too.
    In float32, too, where oneDNN makes many scores faster than PyTorch's own attention does (`mgct.products`).
    """
    half = q.dtype == k.dtype == v.dtype == torch.bfloat16
    if half and q.device.type == "cpu" and not torch.compiler.is_compiling() and products.fast_bfloat16():
        return _InPieces.apply(q, k, v)
    if q.shape[1] * k.shape[1] >= MIN_SCORES and products.possible(q, k, v):
        return _ByHead.apply(q, k, v)
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


class _InPieces(torch.autograd.Function):
    """`attention` of a few rows and heads at a time; the backward pass makes their scores again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Arguments as in `attention`."""
        ctx.save_for_backward(q, k, v)
        batch, heads = len(q), q.shape[2]
        q, k, v = map(_by_head, (q, k, v))
        out = torch.empty_like(q)
        for piece, scores, _ in _pieces(q, k):
            torch.bmm(_probabilities(q[piece], k[piece], scores), v[piece], out=out[piece])
        return out.unflatten(0, (batch, heads)).transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Gradients of q, k and v."""
        batch, heads = len(grad), grad.shape[2]
        q, k, v, grad = map(_by_head, (*ctx.saved_tensors, grad))
        grads = grad_q, grad_k, grad_v = tuple(map(torch.empty_like, (q, k, v)))
        for piece, scores, room in _pieces(q, k):
            shares = _probabilities(q[piece], k[piece], scores)
            torch.bmm(shares.mT, grad[piece], out=grad_v[piece])
            torch.bmm(grad[piece], v[piece].mT, out=room)
            torch._softmax_backward_data(room, shares, -1, room.dtype, grad_input=room)
            torch.bmm(room, k[piece], out=grad_q[piece])
            torch.bmm(room.mT, q[piece], out=grad_k[piece])
        scale = q.shape[-1] ** -0.5
        grad_q.mul_(scale)
        grad_k.mul_(scale)
        return tuple(x.unflatten(0, (batch, heads)).transpose(1, 2) for x in grads)


def _by_head(x: Tensor) -> Tensor:
    """(N, T, H, D) → (N · H, T, D), contiguous."""
    return x.transpose(1, 2).contiguous().flatten(0, 1)


def _pieces(q: Tensor, k: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Which rows are taken together, and room for their scores twice."""
    size = max(1, PIECE_BYTES * torch.get_num_threads() // (q.shape[1] * k.shape[1] * q.element_size()))
    room = q.new_empty(2, min(size, len(q)), q.shape[1], k.shape[1])
    for start in range(0, len(q), size):
        piece = slice(start, min(start + size, len(q)))
        yield piece, *room[:, : piece.stop - start]


def _probabilities(q: Tensor, k: Tensor, room: Tensor) -> Tensor:
    """Softmax of the scaled scores of q and k, in ``room``."""
    torch.baddbmm(room, q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5, out=room)
    if k.shape[1] < 64:  # PyTorch's is three times as fast in float32 there
        return room.copy_(torch.softmax(room, -1, dtype=torch.float32))
    return torch.softmax(room, -1, out=room)


class _ByHead(torch.autograd.Function):
    """`attention` in float32 by oneDNN, a row and head at a time; the backward pass makes the scores again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Arguments as in `attention`."""
        ctx.save_for_backward(q, k, v)
        batch, heads = len(q), q.shape[2]
        q, k, v = map(_by_head, (q * q.shape[-1] ** -0.5, k, v))
        out = torch.empty_like(q)
        for one_q, one_k, one_v, made in zip(q, k, v, out, strict=True):
            made.copy_(products.product(torch.softmax(products.product(one_q, one_k), -1), one_v.mT))
        return out.unflatten(0, (batch, heads)).transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Gradients of q, k and v."""
        batch, heads = len(grad), grad.shape[2]
        q, k, v = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        q, k, v, grad = map(_by_head, (q * scale, k, v, grad))
        grads = tuple(map(torch.empty_like, (q, k, v)))
        for i in range(len(q)):
            shares = torch.softmax(products.product(q[i], k[i]), -1)
            of_scores = products.product(grad[i], v[i])
            torch._softmax_backward_data(of_scores, shares, -1, of_scores.dtype, grad_input=of_scores)
            grads[0][i].copy_(products.product(of_scores, k[i].mT)).mul_(scale)
            grads[1][i].copy_(products.product(q[i].mT, of_scores.mT).mT)  # faster than the other way round
            grads[2][i].copy_(products.product(grad[i].mT, shares.mT).mT)
        return tuple(x.unflatten(0, (batch, heads)).transpose(1, 2) for x in grads)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, *, num_frames: int, window: int, shift: int | Tensor) -> Tensor:
    """Random-shift multi-modal attention: one modality's tokens to the other's, all frames in one call.

    Both token sequences are cut into ``num_frames`` chunks; queries of chunk i see the keys of chunks
    i+shift … i+shift+window-1, wrapping around the end. Queries left over by an uneven length go with the last chunk;
    left-over keys are seen only by windows that wrap.

    Args:
        q: (B, L_q, H, D) queries, L_q ≥ num_frames.
        k: (B, L_k, H, D) keys, L_k ≥ num_frames.
        v: (B, L_k, H, D) values.
        num_frames: number of chunks.
        window: chunks that a query sees; as many as num_frames at most.
        shift: offset of the window in chunks, an int or a scalar integer tensor.

    Returns:
        (B, L_q, H, D).
    """
    batch, q_length, k_length = q.shape[0], q.shape[1], k.shape[1]
    q_chunk, k_chunk = q_length // num_frames, k_length // num_frames
    if window == num_frames and k_length == num_frames * k_chunk:  # every window is everything
        return attention(q, k, v)
    first, steps = torch.arange(num_frames, device=q.device)[:, None], torch.arange(window, device=q.device)
    if k_length == num_frames * k_chunk and window == 1 and isinstance(shift, int) and shift % num_frames == 0:
        k, v = (x.unflatten(1, (num_frames, k_chunk)) for x in (k, v))
    elif k_length == num_frames * k_chunk:
        chunks = ((first + shift + steps) % num_frames).flatten()
        places = ((first - shift - steps) % num_frames * window + steps).flatten()
        k, v = (_gather(x.unflatten(1, (num_frames, k_chunk)), chunks, places) for x in (k, v))
        k, v = (x.view(batch, num_frames, window * k_chunk, *x.shape[3:]) for x in (k, v))
    else:
        seen = ((first + shift) * k_chunk + torch.arange(window * k_chunk, device=q.device)) % k_length
        k, v = k[:, seen], v[:, seen]  # (B, F, window * k_chunk, H, D)
    whole = q[:, : num_frames * q_chunk].unflatten(1, (num_frames, q_chunk))
    out = attention(whole.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)).reshape(batch, -1, *q.shape[2:])
    if q_length > num_frames * q_chunk:
        out = torch.cat([out, attention(q[:, num_frames * q_chunk :], k[:, -1], v[:, -1])], dim=1)
    return out


def _gather(x: Tensor, chunks: Tensor, places: Tensor) -> Tensor:
    """`_Gather`, which costs little enough to be made again."""
    return offer(_Gather.apply(x, chunks, places), _taken, x, chunks)


def _taken(x: Tensor, chunks: Tensor) -> Tensor:
    """Chunks of (B, F, …) one after the other."""
    if gpu.has_kernels(x):
        return gpu.kernels().take(x.flatten(3), chunks, 1).unflatten(3, x.shape[3:])
    return x.index_select(1, chunks)


class _Gather(torch.autograd.Function):
    """Chunks of (B, F, …), each taken as often as any other: (B, F · w, …).

    The backward pass gathers too, the w places that each chunk went to, and adds them up. That of an indexing would
    scatter, which takes a GPU several times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, chunks: Tensor, places: Tensor) -> Tensor:
        """The chunks to take (F · w,), and the places that each of them is then found at (F · w,), w after w."""
        ctx.save_for_backward(places)
        ctx.count = x.shape[1]
        return _taken(x, chunks)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of x."""
        (places,) = ctx.saved_tensors
        if gpu.has_kernels(grad):
            summed = gpu.kernels().take(grad.flatten(3), places, len(places) // ctx.count)
            return summed.unflatten(3, grad.shape[3:]), None, None
        gathered = grad.index_select(1, places)
        return gathered if len(places) == ctx.count else gathered.unflatten(1, (ctx.count, -1)).sum(2), None, None
