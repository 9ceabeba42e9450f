"""Activations that are not kept for the backward pass, because they cost little to make again.

Whoever makes one notes how (`offer`); under `made_again` an operation that would keep it, or a view of it, then keeps
its recipe. Norms, the pointwise layers of attention, dropout and concatenations do so: 60 % less memory for activations
in 5 to 15 % more time, where checkpointing whole blocks costs a second forward pass (``docs/performance.md``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

_state = threading.local()


class _Recipe:
    """How to make a tensor again; what it is made from is kept, or its own recipe."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Any, ...]) -> None:
        self.function = function
        self.inputs = [_keep(x) if isinstance(x, Tensor) else x for x in inputs]
        self.uses = 0
        self.made: Tensor | None = None

    def __call__(self) -> Tensor:
        """The tensor, kept as long as somebody who keeps the recipe is still to ask for it."""
        made = self.made
        if made is None:
            with torch.no_grad():
                made = self.function(*map(_get, self.inputs))
        self.uses -= 1
        self.made = made if self.uses > 0 else None
        return made


class _View:
    """A view of what a recipe makes."""

    def __init__(self, recipe: _Recipe, x: Tensor) -> None:
        recipe.uses += 1
        self.recipe, self.geometry = recipe, (x.size(), x.stride(), x.storage_offset())

    def __call__(self) -> Tensor:
        return self.recipe().as_strided(*self.geometry)


def _keep(x: Tensor) -> Tensor | _View:
    """What is kept in place of x."""
    recipe = getattr(x if x._base is None else x._base, "_mgct_recipe", None)
    if recipe is not None:
        return _View(recipe, x)
    return x if x.grad_fn is None else x.detach()  # with its history it would keep itself alive


def _get(kept: Any) -> Any:
    """The tensor that `_keep` was given."""
    return kept() if isinstance(kept, _View) else kept


def offer(made: Tensor, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``made`` itself, which is ``function(*inputs)`` and can be made again so; the inputs are kept in its place.

    The function must give the same values in the same memory layout, whatever the autocast. ``made`` has a memory of
    its own, nothing of which is overwritten later.
    """
    if getattr(_state, "active", False) and made.requires_grad:
        base: Any = made if made._base is None else made._base
        base._mgct_recipe = _Recipe(function, inputs)
    return made


def made_again(active: bool = True) -> AbstractContextManager[None]:
    """In here, operations do not keep what was offered."""
    return _made_again() if active and torch.is_grad_enabled() else nullcontext()


@contextmanager
def _made_again() -> Iterator[None]:
    _state.active = True
    try:
        with torch.autograd.graph.saved_tensors_hooks(_keep, _get):
            yield
    finally:
        _state.active = False
