"""What the layers run on a GPU: Triton kernels where they work, else PyTorch's operations for the same."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mgct.errors import MgctWarning


class NormState(NamedTuple):
    """What a group norm of x (N, P, C), with o added to it, has found out, in float32 or better.

    Attributes:
        a: (N, C), with s: the output before the activation is a x + s.
        s: (N, C).
        pivot: (N, C), the group's mean of x + o, less o.
        rstd: (N, G), 1/√(variance + eps) of each group.
        means: (N, C), the mean of x + o at each channel; None without o.
    """

    a: Tensor
    s: Tensor
    pivot: Tensor
    rstd: Tensor
    means: Tensor | None


def send(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on the device. The host does not wait for what a GPU still has to do, as it would for a plain copy."""
    if device.type == "cuda" and not x.is_cuda:
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def on_gpu(x: Tensor) -> bool:
    """Whether ``x`` is on a GPU and nothing is being compiled, which has its own ways."""
    return x.is_cuda and not torch.compiler.is_compiling()


def has_kernels(x: Tensor) -> bool:
    """Whether `mgct.kernels` work on ``x``: on the current GPU, where Triton works, if nothing is compiled."""
    if not on_gpu(x) or x.dtype == torch.float64 or x.device.index != torch.cuda.current_device():
        return False
    return kernels() is not None


def ways(x: Tensor) -> Any:
    """`mgct.kernels` where they work on ``x``, or `Plain`."""
    return kernels() if has_kernels(x) else Plain


@functools.cache
def kernels() -> Any:
    """`mgct.kernels`, if Triton works here; else None, after a warning."""
    try:
        from mgct import kernels as made

        check_kernels(made, "cuda")
    except Exception as error:  # whatever a compiler may raise
        warnings.warn(f"no Triton kernels, which do not work here: {error}", MgctWarning, stacklevel=2)
        return None
    return made


def check_kernels(made: Any, device: str) -> None:
    """Try each of `mgct.kernels` beside `Plain`.

    Raises:
        RuntimeError: they do not agree.
    """
    with torch.autocast(device, enabled=False), torch.no_grad():
        _check_kernels(made, device)


def _check_kernels(made: Any, device: str) -> None:
    """What `check_kernels` does."""
    x = torch.arange(2.0 * 150 * 24, device=device, dtype=torch.float32).sin().view(2, 150, 24)
    a, s, grad = x[:, 0] + 1, x[:, 1], x.roll(1, 1)
    pictures, chunks = x.view(2, 10, 15, 24)[:, :, :12], x.view(2, 6, 25, 24)
    weight, bias, offset, film = x[0, 3] + 2, x[0, 4], x[0, 5], x[:, 6:8].reshape(2, 48)
    calls: list[tuple[str, tuple[Any, ...]]] = []
    for silu, own_film, own_offset in ((False, None, None), (True, film, offset)):
        norm = (weight, bias, own_film, own_offset)
        state = Plain.statistics(x, *norm, 8, 1e-5)
        calls += [
            ("affine", (x, a, s, silu)),
            ("statistics", (x, *norm, 8, 1e-5)),
            ("gradients", (x, grad, *norm, state, silu)),
        ]
    calls += [(way, (pictures, factors, 0.5)) for way in ("down", "up") for factors in ((2, 2), (1, 4))]
    calls += [("take", (chunks, torch.tensor([3, 0, 5, 1, 1, 4], device=device), each)) for each in (1, 3)]
    for name, arguments in calls:
        ours, plain = (getattr(way, name)(*arguments) for way in (made, Plain))
        if isinstance(ours, Tensor):
            ours, plain = [ours], [plain]
        for one, other in zip(ours, plain, strict=True):
            if (one is None) != (other is None):
                raise RuntimeError(f"the kernel of {name} gives too much or too little")
            if one is not None and (one.shape != other.shape or not torch.allclose(one, other, rtol=1e-3, atol=1e-3)):
                raise RuntimeError(f"the kernel of {name} is {(one - other).abs().max().item():.2g} off")


class Plain:
    """`mgct.kernels` by PyTorch's operations, in the precision of what they are given."""

    @staticmethod
    def statistics(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        film: Tensor | None,
        offset: Tensor | None,
        groups: int,
        eps: float,
    ) -> NormState:
        """Half precision is summed in float32 as it is read: a copy in float32 would cost more than all the rest."""
        if x.dtype in (torch.float32, torch.float64):
            moved = x if offset is None else x + offset
            variance, mean = torch.var_mean(moved.unflatten(2, (groups, -1)), dim=(1, 3), correction=0)
            means = moved.mean(1) if offset is not None else None
        else:
            means = x.sum(1, dtype=torch.float32) / x.shape[1]
            squares = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).square() / x.shape[1]
            if offset is not None:
                squares = squares + offset * (2 * means + offset)
                means = means + offset
            mean, square = (total.unflatten(1, (groups, -1)).mean(2) for total in (means, squares))
            variance = (square - mean.square()).clamp(min=0)
        return norm_state(mean, torch.rsqrt(variance + eps), weight, bias, film, offset, means)

    @staticmethod
    def affine(x: Tensor, a: Tensor, s: Tensor, silu: bool) -> Tensor:
        """The values f(a x + s)."""
        h = torch.addcmul(s[:, None].to(x.dtype), x, a[:, None].to(x.dtype))
        return F.silu(h, inplace=True) if silu else h

    @classmethod
    def gradients(
        cls,
        x: Tensor,
        grad: Tensor,
        weight: Tensor,
        bias: Tensor,
        film: Tensor | None,
        offset: Tensor | None,
        state: NormState,
        silu: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of x, of weight, bias and offset (N, 3, C), and of the FiLM pair."""
        a, s, pivot, rstd, means = state
        positions, groups = x.shape[1], rstd.shape[1]
        each = x.shape[2] // groups
        if silu:
            grad = torch.ops.aten.silu_backward(grad, cls.affine(x, a, s, False))
        grad_s = total(grad, a.dtype)
        whole = x.dtype == a.dtype
        products = torch.linalg.vecdot(grad, x, dim=1) if whole else total(grad * x, a.dtype)
        grad_a = products - pivot * grad_s

        def over_group(values: Tensor) -> Tensor:
            return values.unflatten(1, (groups, each)).sum(2).repeat_interleave(each, 1)

        r, mean = rstd.repeat_interleave(each, 1), pivot + (0 if offset is None else offset)
        grad_variance = -0.5 * r.square() * over_group(grad_a * a)
        grad_mean = -over_group(grad_s * a) - 2 * mean * grad_variance
        slope, constant = 2 * grad_variance / (positions * each), grad_mean / (positions * each)
        own = constant if offset is None else constant + slope * offset
        a_row, slope_row, own = (value[:, None].to(x.dtype) for value in (a, slope, own))
        grad_x = torch.addcmul(own, x, slope_row).addcmul_(grad, a_row)
        grad_w, scale = r * grad_a, 1.0 if film is None else 1 + film.to(a.dtype).chunk(2, dim=-1)[0]
        grad_offset = torch.zeros_like(a) if means is None else a * grad_s + positions * (slope * means + constant)
        rows = torch.stack([grad_w * scale, grad_s * scale, grad_offset], 1)
        if film is None:
            return grad_x, rows, None
        return grad_x, rows, torch.cat([grad_w * weight + grad_s * bias, grad_s], 1).to(film.dtype)

    @staticmethod
    def down(x: Tensor, factors: tuple[int, int], scale: float) -> Tensor:
        """The scaled sum of neighbours."""
        return x.unflatten(2, (-1, factors[1])).unflatten(1, (-1, factors[0])).sum((2, 4)) * scale

    @staticmethod
    def up(x: Tensor, factors: tuple[int, int], scale: float) -> Tensor:
        """Each repeated, and scaled."""
        return x.repeat_interleave(factors[0], 1).repeat_interleave(factors[1], 2) * scale

    @staticmethod
    def take(x: Tensor, index: Tensor, each: int) -> Tensor:
        """Sums of chunks."""
        return x.index_select(1, index).unflatten(1, (-1, each)).sum(2)


def total(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums (N, C) over the positions of x (N, P, C), in ``dtype``.

    A CPU makes a copy of half precision in ``dtype`` first, which takes several times as long as the sum; there up to
    512 values at a time are summed in x's own dtype, which accumulates in float32 and rounds each such sum.
    """
    if x.dtype != dtype and x.device.type == "cpu" and not torch.compiler.is_compiling():
        few = math.gcd(x.shape[1], 512)
        x = x.unflatten(1, (-1, few)).sum(2) if few >= 64 else x
    return x.sum(1, dtype=dtype)


def norm_state(
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None,
    offset: Tensor | None = None,
    means: Tensor | None = None,
) -> NormState:
    """From the mean and 1/√(variance + eps) (N, G) of x + offset, and its means (N, C): a = r w, s = b - (m - o) a.

    w and b are the norm's weight and bias (C,) with the FiLM pair (N, 2C) in them.
    """
    weight, bias = weight.to(mean.dtype)[None], bias.to(mean.dtype)[None]
    if film is not None:
        scale, shift = film.to(mean.dtype).chunk(2, dim=-1)
        weight, bias = weight * (1 + scale), bias * (1 + scale) + shift
    each = weight.shape[1] // mean.shape[1]
    a = rstd.repeat_interleave(each, 1) * weight
    pivot = mean.repeat_interleave(each, 1) - (0 if offset is None else offset)
    return NormState(a, bias - a * pivot, pivot, rstd, None if offset is None else means)
