"""How a run is trained: the section ``train`` of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mgct.errors import UserError, check_numbers
from mgct.layout import Precision


@dataclass(frozen=True)
class TrainSettings:
    """How a run is trained.

    Args:
        steps: optimiser steps in all, both stages together.
        batch_size: clips per step over all processes.
        micro_batch_size: clips per forward call of a process; None: its whole share at once. Less memory, same
            result; but of each the consistency loss sees at least one clip (``consistency.share``, rounded up).
        optimizer: adamw; or muon, which makes the updates of weight matrices orthogonal and leaves the rest to AdamW
            (`mgct.muon.Muon`).
        learning_rate: constant between warm-up and cooldown.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        cooldown_steps: last steps over which it falls linearly to 0 (Hägele et al. 2024, Scaling laws and
            compute-optimal training beyond fixed training durations). A run that is resumed with more steps, from its
            end or from a checkpoint before the cooldown, is at the whole rate again.
        weight_decay: share of the learning rate by which weights shrink at each step, apart from the gradient.
        max_grad_norm: the gradient's norm is clipped to this.
        max_loss_rise: a step whose loss is above this times the mean of the stage's last 100 stops the run, as one that
            is not finite does; None: only the latter. Beware of losses without λ in stage 2, which vary a lot.
        ema_decay: decay per step of the average that is sampled from; shorter while the run is young.
        precision: bf16 runs the network's body in bfloat16; auto: bf16 on a GPU that has it, else fp32.
        recompute: make in the backward pass, instead of keeping it, what costs little a second time (norms,
            concatenations, the pointwise layers of attention): about 60 % less memory for activations, 5 to 15 % more
            time, the same gradients. Not with FSDP or compile; gradient_checkpointing includes it.
        gradient_checkpointing: recompute all activations in the backward pass: still less memory, about a third more
            time.
        compile: translate the network with torch.compile: a slow start, then faster steps; not with FSDP.
        cuda_graph: on one GPU, record the forward and backward pass once and replay them, so that the GPU need not wait
            for the host. Where that cannot be (several processes, micro-batches, gradient_checkpointing, compile, or
            dropout in stage 2) every kernel is launched by itself, with the same result.
        coarse_start_cells: the law of the clips' coarse colours, which sampling begins with, is taken over a grid of so
            many cells along height and along width, from all clips trained on; 0: sampling begins with noise alone.
        seed: of everything random.
        num_workers: data loading processes per training process.
        log_every: steps between rows of the log; the average that δ is compared with is renewed at these.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the last checkpoints stay.
    """

    steps: int = 100_000
    batch_size: int = 8
    micro_batch_size: int | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    cooldown_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_loss_rise: float | None = None
    ema_decay: float = 0.9999
    precision: Precision = "auto"
    recompute: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    cuda_graph: bool = True
    coarse_start_cells: int = 8
    seed: int = 0
    num_workers: int = 0
    log_every: int = 10
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints")
        not_negative = ("weight_decay", "warmup_steps", "cooldown_steps", "coarse_start_cells", "num_workers")
        check_numbers(vars(self), (*counts, "learning_rate", "max_grad_norm"), not_negative, "train.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"train.ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.cooldown_steps > self.steps:
            raise UserError(f"train.cooldown_steps {self.cooldown_steps} is more than train.steps {self.steps}")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise UserError(f"train.micro_batch_size must be positive, got {self.micro_batch_size}")
        if self.max_loss_rise is not None and self.max_loss_rise <= 1:
            raise UserError(f"train.max_loss_rise must be above 1, got {self.max_loss_rise}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step ``step``, counted from 0; above 0 in every step."""
        rising = (step + 1) / max(self.warmup_steps, 1)
        falling = (self.steps - step) / (self.cooldown_steps + 1)
        return self.learning_rate * min(1.0, rising, falling)
