"""Muon for a network's weight matrices, AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mgct.layout import spread_like, whole

MOMENTUM = 0.95
"""Share of the running mean of the gradients that stays at each step (Jordan et al. 2024)."""
RMS = 0.2
"""Root mean square of an update at a learning rate of 1, about that of AdamW's (Liu et al. 2025, Eq. 4)."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""a, b, c of Jordan et al. (2024): x ← a x + b x³ + c x⁵, five times, takes a singular value in (0, 1] to about 1."""
ROUNDS = 5
SMALLEST = 8
"""Matrices with fewer rows or columns, those to pixels and from and to samples, are AdamW's."""


class Muon(torch.optim.AdamW):
    """AdamW, but for weight matrices, whose updates are made orthogonal (Jordan et al. 2024, Muon).

    For a matrix W (m, n) with gradient G, momentum M ← μ M + (1 - μ) G and step W ← W - η 0.2 √max(m, n) O, O the
    nearest orthogonal matrix to (1 - μ) G + μ M (Nesterov's momentum) by five rounds of Newton and Schulz: all
    directions of the update are equally long, the rare ones too. 0.2 √max(m, n) makes an update as large as AdamW's, so
    that one learning rate does for both (Liu et al. 2025). A kernel of a convolution
    counts as the matrix (channels out, channels in × places).

    Unlike `torch.optim.Muon` it takes kernels, lets matrices of one shape go together, obeys ``found_inf`` (a step is
    not taken where it is 1, without the host's looking) and takes parameters that are spread over processes.

    Args:
        groups: parameter groups; matrices are told apart within each, the shared ones of a group's options stay.
        lr: learning rate η.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        parts = [part for group in groups for part in _apart(group)]
        super().__init__(parts, lr=lr, fused=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's wants a count of steps, which matrices have none of

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; see the class."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["orthogonal"]]
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        skip = getattr(self, "found_inf", None)
        for group in groups:
            if group["orthogonal"]:
                self._step_matrices(group, None if skip is None else skip > 0)
        return loss

    def _step_matrices(self, group: dict[str, Any], skip: Tensor | None) -> None:
        """Matrices of one shape go through every line together."""
        alike: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            alike[_shape(parameter)].append(parameter)
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        for shape, parameters in alike.items():
            kept = [self.state[parameter]["momentum"] for parameter in parameters]
            gradient, before = _stack([p.grad for p in parameters if p.grad is not None], shape), _stack(kept, shape)
            momentum = before.lerp(gradient, 1 - MOMENTUM)
            update = orthogonal(gradient.lerp(momentum, MOMENTUM)) * (group["lr"] * RMS * max(shape) ** 0.5)
            if group["weight_decay"]:
                update = update + group["lr"] * group["weight_decay"] * _stack(parameters, shape)
            if skip is not None:
                momentum, update = torch.where(skip, before, momentum), torch.where(skip, 0.0, update)
            for parameter, old, new, step in zip(parameters, kept, momentum, update, strict=True):
                old.copy_(spread_like(new.reshape(parameter.shape), parameter))
                parameter.sub_(spread_like(step.reshape(parameter.shape), parameter))


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest orthogonal matrices: U Vᵀ of U S Vᵀ.

    A singular value of at least 1/500 of the matrix's norm comes to lie between 0.68 and 1.21; five rounds take a
    smaller one a part of the way.

    Args:
        matrices: (N, m, n).

    Returns:
        (N, m, n); by matrix products in bfloat16 on a GPU, in float32 on a CPU.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-12)
    x = x.bfloat16() if x.is_cuda else x
    a, b, c = NEWTON_SCHULZ
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _apart(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The group's matrices and its other parameters, as groups of their own."""
    parameters = list(group["params"])
    matrices = [p for p in parameters if p.ndim >= 2 and min(_shape(p)) >= SMALLEST]
    of_matrices = set(map(id, matrices))
    rest = [p for p in parameters if id(p) not in of_matrices]
    parts = [(rest, False), (matrices, True)]
    return [{**group, "params": part, "orthogonal": matrix} for part, matrix in parts if part]


def _shape(parameter: Tensor) -> tuple[int, int]:
    """Rows and columns of the matrix that a weight counts as."""
    return parameter.shape[0], parameter.shape[1:].numel()


def _stack(tensors: Iterable[Tensor], shape: tuple[int, int]) -> Tensor:
    """Whole tensors as matrices (N, *shape)."""
    return torch.stack([whole(tensor).reshape(shape) for tensor in tensors])
