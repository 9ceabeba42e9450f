"""The training loop on accelerate. It knows no formula: the objective gives one loss per clip.

Whatever is random is a function of the run's seed and the step (dropout, window shifts) or the clip's position in the
run (noise, timesteps, augmentation). So a resumed run goes on exactly as the undisturbed one, and the weights do not
depend on how many processes share a global batch (dropout aside, whose masks are per process).
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mgct.checkpoint import (
    Checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    read_metrics,
    write_checkpoint,
    write_metrics,
)
from mgct.data.shards import ClipBatch
from mgct.errors import UserError
from mgct.losses import ClipLoss
from mgct.noise import ClipRandom, derive_seed
from mgct.stages import MGCT, average_into, frozen_copy
from mgct.types import dequantise
from mgct.unet import MultimodalUNet


@dataclass(frozen=True)
class TrainSettings:
    """How a run is trained.

    Args:
        steps: optimiser steps in all, both stages together.
        batch_size: clips per step over all processes.
        micro_batch_size: clips per forward call of a process; None: its whole share at once. Less memory, same result.
        learning_rate: of AdamW, constant after the warm-up.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        weight_decay: of AdamW.
        max_grad_norm: the gradient's norm is clipped to this.
        ema_decay: decay per step of the average that is sampled from; shorter while the run is young.
        precision: bf16 runs the network's body in bfloat16; auto: bf16 where the device has it, else fp32.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        seed: of everything random.
        num_workers: data loading processes per training process.
        log_every: steps between rows of the log; the average that δ is compared with is renewed at these.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the last checkpoints stay.
    """

    steps: int = 100_000
    batch_size: int = 8
    micro_batch_size: int | None = None
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    seed: int = 0
    num_workers: int = 0
    log_every: int = 10
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "log_every", "checkpoint_every", "keep_checkpoints"):
            if not getattr(self, name) > 0:
                raise UserError(f"train.{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"train.ema_decay must lie in [0, 1), got {self.ema_decay}")


class RunningMeans:
    """Sums of logged values since the last row, kept on the device so that no step waits for them."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one step's values (scalars)."""
        for name, value in values.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The mean of each value over the steps that had it and, through ``reduce``, over the processes."""
        stacked = reduce(torch.stack([total / self.counts[name] for name, total in self.sums.items()]))
        return dict(zip(self.sums, stacked.tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"sums": {name: value.item() for name, value in self.sums.items()}, "counts": self.counts}

    def load_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what `state` gave."""
        self.sums = {name: torch.tensor(v, dtype=torch.float64, device=device) for name, v in state["sums"].items()}
        self.counts = dict(state["counts"])


class Trainer:
    """One training run in a run folder.

    Args:
        unet: the network, on the CPU.
        objective: what to minimise.
        loader: step at which to begin → this process's batches, from there on without end.
        settings: see `TrainSettings`.
        run: the run folder, made by the caller.
        config: the run's whole configuration, kept in each checkpoint.
        export: called with the averaged network, the stage and the step at every checkpoint, by the main process.
        accelerator: the processes and the device; `make_accelerator` gives it.
    """

    def __init__(
        self,
        unet: MultimodalUNet,
        objective: MGCT,
        loader: Callable[[int], Iterable[ClipBatch]],
        settings: TrainSettings,
        run: Path,
        config: dict[str, Any],
        export: Callable[[nn.Module, MGCT, int], None],
        accelerator: Accelerator,
    ) -> None:
        if settings.batch_size % accelerator.num_processes:
            raise UserError(
                f"train.batch_size {settings.batch_size} is not a multiple of the {accelerator.num_processes} processes"
            )
        self.objective, self.loader, self.settings = objective, loader, settings
        self.run, self.config, self.export, self.accelerator = run, config, export, accelerator
        self.device = accelerator.device
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.unet = unet.to(self.device).train()
        self.ema = frozen_copy(self.unet).eval()
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.model = accelerator.prepare_model(self.unet)
        self.means = RunningMeans()
        self.step = 0
        self.stop_requested = False

    def fit(self) -> None:
        """Train until ``settings.steps``, or until Ctrl-C or SIGTERM, and leave a checkpoint and an exported model.

        Raises:
            UserError: the loss or its gradient is not finite. The weights before that step are in a checkpoint.
        """
        settings, main = self.settings, self.accelerator.is_main_process
        writer = SummaryWriter(str(self.run / "tensorboard"), purge_step=self.step + 1) if main else None
        write_metrics(self.run, (row for row in read_metrics(self.run) if row["step"] <= self.step)) if main else None
        self._maybe_transfer()
        clock, clock_step = time.perf_counter(), self.step
        batches = iter(self.loader(self.step))
        bar = tqdm(total=settings.steps, initial=self.step, unit="step", disable=not main, dynamic_ncols=True)
        with bar, self._signals():
            while self.step < settings.steps and not self._should_stop():
                values = self._train_step(next(batches))
                self.step += 1
                self.means.add(values)
                bar.update()
                if self.step % settings.log_every == 0:
                    now = time.perf_counter()
                    clips_per_s = (self.step - clock_step) * settings.batch_size / (now - clock)
                    clock, clock_step = now, self.step
                    row = self._log(clips_per_s, writer)
                    bar.set_postfix(stage=row["stage"], loss=f"{row['loss']:.4f}", clips_per_s=f"{clips_per_s:.1f}")
                self._maybe_transfer()
                if self.step % settings.checkpoint_every == 0:
                    self.save()
        if self.step % settings.checkpoint_every:
            self.save()
        if writer:
            writer.close()

    def _train_step(self, batch: ClipBatch) -> dict[str, Tensor]:
        """One optimiser step on this process's share of the global batch; what to log of it."""
        settings = self.settings
        torch.manual_seed(derive_seed(settings.seed, "dropout", self.step, self.accelerator.process_index))
        shift_generator = torch.Generator().manual_seed(derive_seed(settings.seed, "shift", self.step))
        shift = self.unet.draw_window_shifts(batch.clips.video.shape[1], shift_generator)
        count = len(batch.keys)
        size = settings.micro_batch_size or count
        logs: dict[str, Tensor] = {}
        for start in range(0, count, size):
            last = start + size >= count
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                result = self._loss(batch, slice(start, start + size), shift)
                self.accelerator.backward(result.loss.sum() / count)
            for name, value in {"loss": result.loss, **result.logs}.items():
                logs[name] = logs.get(name, torch.zeros((), device=self.device)) + value.detach().sum() / count
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        if not torch.isfinite(norm + logs["loss"]):
            self._diverged(logs, batch)
        rate = settings.learning_rate * min(1.0, (self.step + 1) / max(settings.warmup_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        average_into(self.ema, self.unet, min(settings.ema_decay, (1 + self.step) / (10 + self.step)))
        self.objective.after_step(self.unet)
        return {**logs, "grad_norm": norm}

    def _loss(self, batch: ClipBatch, part: slice, shift: list[int]) -> ClipLoss:
        """The objective's loss of some clips of the batch."""
        clips = dequantise(batch.clips.map(lambda x: x[part].to(self.device, non_blocking=True)))
        seeds = [derive_seed(self.settings.seed, "clip", position) for position in batch.positions[part].tolist()]
        with self.accelerator.autocast():
            return self.objective.loss(self.model, clips, ClipRandom(seeds, self.device), shift)

    def _log(self, clips_per_s: float, writer: SummaryWriter | None) -> dict[str, Any]:
        """Write one row of means since the last row, and let the objective see the loss."""
        means = self.means.means(lambda values: self.accelerator.reduce(values, "mean"))
        self.objective.observe(means["loss"], self.means.counts["loss"])
        self.means = RunningMeans()
        rate = self.optimizer.param_groups[0]["lr"]
        row = {"step": self.step, "stage": self.objective.stage, **means, "loss_average": self.objective.average}
        row.update(learning_rate=rate, clips_per_s=clips_per_s)
        if writer:
            with (self.run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name, value, self.step)
        return row

    def _maybe_transfer(self) -> None:
        """Start stage 2 if it is due."""
        if self.objective.transfer_due(self.step):
            self.objective.start_stage_2(self.unet, self.step)

    def _diverged(self, logs: dict[str, Tensor], batch: ClipBatch) -> None:
        """Save the weights, which this step has not touched, and explain."""
        norms = {}
        for name, parameter in self.unet.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                norms[".".join(name.split(".")[:2])] = "not finite"
        self.optimizer.zero_grad(set_to_none=True)
        path = self.save()
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in logs.items())
        raise UserError(
            f"step {self.step}: the loss or its gradient is not finite ({values}; blocks with such gradients: "
            f"{', '.join(norms) or 'none'}; clips {', '.join(batch.keys[:4])} …). The weights before this step are in "
            f"{path}. Try a lower train.learning_rate, train.warmup_steps, or train.precision=fp32"
        )

    def save(self) -> Path:
        """Write a checkpoint of everything, and export the averaged network."""
        state = {
            "objective": self.objective.state(),
            "means": self.means.state(),
            "seed": self.settings.seed,
            "config": self.config,
        }
        parts = {
            "model": self.unet.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.unet),
            **{name: network.state_dict() for name, network in self.objective.networks().items()},
        }
        path = self.run / "checkpoints" / f"step-{self.step:08d}"
        if self.accelerator.is_main_process:
            path = write_checkpoint(self.run, self.step, parts, state, self.settings.keep_checkpoints)
            self.export(self.ema, self.objective, self.step)
        self.accelerator.wait_for_everyone()
        return path

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint: everything is as it was after its step."""
        self.unet.load_state_dict(checkpoint.tensors("model"))
        self.ema.load_state_dict(checkpoint.tensors("ema"))
        load_optimizer_tensors(self.optimizer, self.unet, checkpoint.tensors("optimizer"))
        state = checkpoint.state
        parts = ("target", "teacher")
        weights = {
            part: checkpoint.tensors(part) for part in parts if (checkpoint.path / f"{part}.safetensors").exists()
        }
        self.objective.load_state(state["objective"], self.unet, weights)
        self.means.load_state(state["means"], self.device)
        self.step = state["step"]

    def _should_stop(self) -> bool:
        """Whether any process was asked to stop; asked of all at the log's rows when there are several."""
        if self.accelerator.num_processes == 1:
            return self.stop_requested
        if self.step % self.settings.log_every:
            return False
        asked = torch.tensor(float(self.stop_requested), device=self.device)
        return bool(self.accelerator.reduce(asked, "sum") > 0)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask for a stop after the current step; a second one ends at once."""

        def ask(number: int, _frame: Any) -> None:
            self.stop_requested = True
            signal.signal(number, before[signal.Signals(number)])
            tqdm.write("stopping after this step; the checkpoint follows", end="\n")

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals are the caller's
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def make_accelerator(precision: Literal["auto", "fp32", "bf16"]) -> Accelerator:
    """An `Accelerator` for the processes that accelerate or torchrun started, or for this one.

    Raises:
        UserError: bf16 was asked for and the device has none.
    """
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if precision == "bf16" and not has_bf16:
        raise UserError("train.precision=bf16: this device has no bfloat16 arithmetic; use fp32 or auto")
    return Accelerator(mixed_precision="bf16" if precision != "fp32" and has_bf16 else "no")


def count_parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
