"""Matrix products on a CPU, by the faster of two libraries that PyTorch brings.

PyTorch's own products in float32 are MKL's, which uses AVX-512 on Intel's CPUs alone; its convolutions are oneDNN's,
which uses it wherever it is. On the others that have it (AMD since Zen 4) the products here are oneDNN's, too: 240
GFLOP/s where MKL has 105, on a core of an EPYC of Zen 5 (``docs/performance.md``). Elsewhere they are PyTorch's own. In
bfloat16 those are oneDNN's anyway, but a pointwise layer's bias is another pass over its output there, and none here.
"""

from __future__ import annotations

import functools
import timeit
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgct.errors import MgctWarning

MIN_PRODUCTS = 1 << 22
"""Multiplications of a pointwise layer from which on oneDNN is faster."""

MIN_CHANNELS = 64
"""Channels of both sides of a sum over rows (`summed`) from which on it is."""

SUMMED_ROWS = 1024
"""Rows that are summed at a time: they stay in a CPU's cache."""

CPU_FACTS = Path("/proc/cpuinfo")

PROBE = 256
"""Side of the matrices that `times_as_long` multiplies: the slowest product takes some 30 ms."""

SLOW = 2.0
"""Times as long as in float32 from which on a precision is warned of."""


@functools.cache
def fast_bfloat16() -> bool:
    """Whether the CPU multiplies matrices in bfloat16 itself, twice as fast as in float32 or more."""
    return torch.cpu._is_avx512_bf16_supported()


@functools.cache
def times_as_long(precision: torch.dtype) -> float:
    """How many times as long as in float32 a matrix product takes on this CPU, measured: above 1 it is slower."""

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(PROBE, PROBE, dtype=dtype)
        return min(timeit.repeat(lambda: a @ a, number=1, repeat=5))

    return seconds(precision) / seconds(torch.float32)


def warn_if_slow(precision: torch.dtype) -> None:
    """Warn of half a precision that this CPU multiplies matrices in far slower than in float32."""
    if precision.itemsize < torch.float32.itemsize and (times := times_as_long(precision)) > SLOW:
        name = str(precision).removeprefix("torch.")
        warnings.warn(
            f"this CPU has no matrix products in {name} and takes {times:.0f} times as long for them as in float32: "
            "choose fp32",
            MgctWarning,
            stacklevel=3,
        )


@functools.cache
def has_onednn() -> bool:
    """Whether PyTorch has oneDNN's product, which it does not document."""
    try:
        a = torch.eye(16)
        return torch.backends.mkldnn.is_available() and torch.equal(_onednn(a, a, a[0], a), 2 * a + a[0])
    except (AttributeError, RuntimeError, TypeError):
        return False


@functools.cache
def by_onednn() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than PyTorch's own product."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "GenuineIntel" not in CPU_FACTS.read_text(errors="replace") and has_onednn()
    except OSError:  # not Linux
        return False


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None = None, to: Tensor | None = None) -> Tensor:
    """a bᵀ, and what is to be added to it."""
    if to is None:
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(a, to, b, bias, "add")


def product(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ: (N, K) by (M, K) → (N, M); or of each of several, (P, N, K) by (P, M, K) → (P, N, M). No gradient."""
    if not by_onednn() or a.dtype != torch.float32:
        return a @ b.mT
    if a.dim() == 2:
        return _onednn(a, b)
    out = a.new_empty(*a.shape[:2], b.shape[1])
    for one, other, made in zip(a, b, out, strict=True):
        made.copy_(_onednn(one, other))
    return out


def summed(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b, a sum over rows: (K, N) by (K, M) → (N, M). No gradient."""
    if not by_onednn() or a.dtype != torch.float32 or min(a.shape[1], b.shape[1]) < MIN_CHANNELS:
        return a.mT @ b
    if a.shape[1] > b.shape[1]:  # faster the other way round
        return summed(b, a).mT.contiguous()
    pieces = zip(a.split(SUMMED_ROWS), b.split(SUMMED_ROWS), strict=True)
    one, other = next(pieces)
    out = _onednn(one.mT, other.mT)
    for one, other in pieces:
        out.add_(_onednn(one.mT, other.mT))
    return out


def possible(*inputs: Tensor) -> bool:
    """Whether these are float32 on a CPU whose products are oneDNN's, and nothing is cast or compiled."""
    return (
        all(x.device.type == "cpu" and x.dtype == torch.float32 for x in inputs)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and by_onednn()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, to: Tensor | None = None) -> Tensor:
    """A pointwise layer: x (…, C_in) by (C_out, C_in), plus bias (C_out,) and ``to`` (…, C_out) → (…, C_out)."""
    if x.numel() * len(weight) < MIN_PRODUCTS or x.device.type != "cpu" or torch.compiler.is_compiling():
        return _plain(x, weight, bias, to)
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
        x, weight = _halved(x), _halved(weight)
        bias = None if bias is None else _halved(bias)
    half = x.dtype == weight.dtype == torch.bfloat16
    if to is not None and not (half and to.dtype == x.dtype and to.is_contiguous()):  # in float32 a pass costs no more
        return to + linear(x, weight, bias)
    if (fast_bfloat16() and has_onednn()) if half else possible(x, weight):
        inputs = (x, weight, bias, to)
        return _Linear.apply(*inputs) if torch.is_grad_enabled() else _onednn(*inputs)
    return _plain(x, weight, bias, to)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, to: Tensor | None) -> Tensor:
    """`linear` by PyTorch's operations."""
    out = F.linear(x, weight, bias)
    return out if to is None else to + out


def _halved(x: Tensor) -> Tensor:
    """In bfloat16, if it is float32."""
    return x.bfloat16() if x.dtype == torch.float32 else x


class _Linear(torch.autograd.Function):
    """`linear` by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, to: Tensor | None) -> Tensor:
        """Arguments as in `linear`."""
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias, to)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and ``to``, of which only those are worked out that somebody asks for."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias, of_to = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            product(rows, weight.mT).view(x.shape) if of_x else None,
            summed(rows, x.reshape(-1, x.shape[-1])) if of_weight else None,
            rows.sum(0) if of_bias else None,
            grad if of_to else None,
        )


class Linear(nn.Linear):
    """A pointwise layer of many rows."""

    def forward(self, x: Tensor, to: Tensor | None = None) -> Tensor:
        """(…, C_in) → (…, C_out), added to ``to`` of that shape: the sum is no pass of its own then."""
        return linear(x, self.weight, self.bias, to)
