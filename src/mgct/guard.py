"""Watches each step's gradient and loss; a bad step changes no weight and ends the run with an explanation.

The decision is made on the device, and the optimiser's fused kernel obeys it there. The host reads it while the next
step's forward and backward pass are already queued, so it never waits with an idle device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mgct.layout import Layout, local_parts

_WARM_STEPS = 20
"""Losses that the running mean needs before a spike can be told."""


class Delayed:
    """A small tensor on its way to the host, read later without waiting for what was queued after it."""

    def __init__(self, value: Tensor) -> None:
        self.event = None
        if value.is_cuda:
            self.host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self.host.copy_(value, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.host = value.detach().clone()

    def get(self) -> Tensor:
        """The value on the CPU."""
        if self.event is not None:
            self.event.synchronize()
        return self.host


@dataclass(frozen=True)
class Step:
    """What is kept of a step until the host has looked at it.

    Args:
        step: its number.
        keys: names of the clips.
        before: numbers of the run before it, for the caller to go back to.
        seen: bad or not, the reason, the loss, its running mean, and the norm of each parameter's gradient.
    """

    step: int
    keys: Sequence[str]
    before: Mapping[str, Any]
    seen: Delayed


@dataclass(frozen=True)
class Failure:
    """A step that was not taken.

    Args:
        step: its number.
        keys: names of this process's clips.
        before: as in `Step`.
        spike: the loss was finite, but too high.
        loss: its loss.
        usual: the running mean of the loss before it.
        norms: block → norm of its gradient.
    """

    step: int
    keys: Sequence[str]
    before: Mapping[str, Any]
    spike: bool
    loss: float
    usual: float
    norms: dict[str, float]

    def explain(self) -> str:
        """What happened, in one line without the end."""
        finite = {name: norm for name, norm in self.norms.items() if norm < float("inf")}
        top = sorted(finite, key=lambda name: -finite[name])[:4]
        bad = [name for name in self.norms if name not in finite]
        what = f"the loss {self.loss:.4g} is {self.loss / self.usual:.1f} times its usual {self.usual:.4g}"
        if not self.spike:
            what = f"the loss or its gradient is not finite (loss {self.loss:.4g})"
        norms = ", ".join([f"{name} {finite[name]:.3g}" for name in top] + [f"{name} not finite" for name in bad[:4]])
        more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
        keys = ", ".join(self.keys[:4]) + (" …" if len(self.keys) > 4 else "")
        return f"step {self.step}: {what}; gradient norms by block: {norms}{more}; clips {keys}"


def block_of(name: str) -> str:
    """The block that a parameter belongs to: ``encoder.3``, ``video_head``."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdecimal() else parts[0]


class StepGuard:
    """Clips the gradient and decides whether the step is taken.

    Args:
        parameters: name → what is trained.
        max_norm: the whole gradient is scaled down to this norm.
        max_loss_rise: a loss above this times its running mean is a spike; None: spikes are let through.
        layout: how the parameters lie on the processes.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], max_norm: float, max_loss_rise: float | None, layout: Layout
    ) -> None:
        self.parameters, self.max_norm, self.max_loss_rise, self.layout = parameters, max_norm, max_loss_rise, layout
        device = layout.accelerator.device
        self.average = torch.zeros((), dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.pending: Step | None = None

    def gradient_norms(self) -> Tensor:
        """(P,) float32 norms of each parameter's gradient over all processes; 0 where there is none."""
        parameters = list(self.parameters.values())
        gradients = [torch.zeros((), device=p.device) if p.grad is None else p.grad for p in parameters]
        norms = torch.stack(torch._foreach_norm(local_parts(gradients))).float()
        if not self.layout.sharded:
            return norms
        whole = torch.tensor([local is grad for local, grad in zip(local_parts(gradients), gradients, strict=True)])
        share = torch.where(whole, 1 / self.layout.accelerator.num_processes, 1.0).to(norms.device)
        return self.layout.sum(norms.square() * share).sqrt()

    def check(self, step: int, loss: Tensor, keys: Sequence[str], before: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Clip the gradient, and tell whether the step must not be taken.

        Args:
            step: its number.
            loss: this process's mean loss.
            keys: its clips.
            before: see `Step`.

        Returns:
            The gradient's norm before clipping, and 1.0 if the step is bad, else 0.0; both on the device.
        """
        norms = self.gradient_norms()
        norm = torch.linalg.vector_norm(norms)
        loss = loss.detach().double()
        spike = torch.zeros((), dtype=torch.bool, device=norm.device)
        if self.max_loss_rise is not None:
            loss = self.layout.sum(loss) / self.layout.accelerator.num_processes
            spike = (self.count >= _WARM_STEPS) & (loss > self.max_loss_rise * self.average)
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        if self.layout.accelerator.num_processes > 1:  # a loss may be infinite in one process alone
            finite = self.layout.sum((~finite).float()) == 0
        bad = ~finite | spike
        seen = torch.cat([torch.stack([bad.double(), spike.double(), loss, self.average]), norms.double()])
        self.pending = Step(step, list(keys), before, Delayed(seen))
        self.count = torch.where(bad, self.count, self.count + 1)
        share = torch.clamp(1 / self.count.clamp(min=1), min=0.01)
        self.average = torch.where(bad, self.average, torch.lerp(self.average, loss, share))
        scale = torch.clamp(self.max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(local_parts(p.grad for p in self.parameters.values() if p.grad is not None), scale)
        return norm, bad.float()

    def look(self) -> Failure | None:
        """What went wrong in the step checked last, if anything; each is told once."""
        pending, self.pending = self.pending, None
        if pending is None:
            return None
        bad, spike, loss, usual, *norms = pending.seen.get().tolist()
        if not bad:
            return None
        squares: dict[str, float] = {}
        for name, norm in zip(self.parameters, norms, strict=True):
            value = norm if norm == norm else float("inf")
            squares[block_of(name)] = squares.get(block_of(name), 0.0) + value**2
        blocks = {name: square**0.5 for name, square in squares.items()}
        return Failure(pending.step, pending.keys, pending.before, bool(spike), loss, usual, blocks)

    def forget(self) -> None:
        """Begin the running mean anew, for another loss."""
        self.count.zero_()

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"average": self.average.item(), "count": self.count.item()}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore what `state` gave."""
        self.average.fill_(state["average"])
        self.count.fill_(state["count"])
