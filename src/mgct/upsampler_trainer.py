"""Training of an upsampler on large frames: the small ones are made from them.

Whatever is random is a function of the run's seed and of the frame's position in the run (noise, timesteps,
degradation) or of the step (dropout). So a resumed run goes on exactly as the undisturbed one, and how many processes
share a batch does not change the weights (dropout aside).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from mgct.checkpoint import (
    Checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    read_metrics,
    write_checkpoint,
    write_metrics,
)
from mgct.clip_random import ClipRandom, derive_seed
from mgct.data.batches import ClipBatch
from mgct.errors import UserError, check_numbers
from mgct.files import replace_folder
from mgct.noise import NoiseSchedule, add_noise
from mgct.stages import TargetDecay, average_into
from mgct.stopping import Stopping
from mgct.types import dequantise
from mgct.upsampler import UpsamplerUNet, degrade, shrink, upsampler_loss


@dataclass(frozen=True)
class UpsamplerTraining:
    """How an upsampler is trained. Rate, decay and degradation are MM-Diffusion's.

    Args:
        steps: optimiser steps.
        batch_size: clips per step over all processes; of each clip, ``clip.frames`` successive frames are trained on.
        learning_rate: of AdamW.
        final_rate_share: share of the learning rate that is left at the last step; it falls to this with a cosine.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        weight_decay: of AdamW.
        ema_decay: decay per step of the averaged weights, which are what is saved; shorter while the run is young.
        max_grad_norm: the gradient's norm is clipped to this.
        degradation: whether the small frames are degraded (`mgct.upsampler.degrade`), as generated ones are.
        seed: of everything random.
        num_workers: data loading processes per training process.
        log_every: steps between rows of the log.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the last checkpoints stay.
    """

    steps: int = 100_000
    batch_size: int = 16
    learning_rate: float = 1e-4
    final_rate_share: float = 1.0
    warmup_steps: int = 0
    weight_decay: float = 0.0
    ema_decay: float = 0.9999
    max_grad_norm: float = 1.0
    degradation: bool = True
    seed: int = 0
    num_workers: int = 0
    log_every: int = 10
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints")
        not_negative = ("weight_decay", "warmup_steps", "num_workers")
        check_numbers(vars(self), (*counts, "learning_rate", "max_grad_norm"), not_negative, "train.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"train.ema_decay must lie in [0, 1), got {self.ema_decay}")
        if not 0 <= self.final_rate_share <= 1:
            raise UserError(f"train.final_rate_share must lie in [0, 1], got {self.final_rate_share}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step ``step``, counted from 0: linear warm-up, then half a cosine."""
        left = 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1)))
        share = self.final_rate_share + (1 - self.final_rate_share) * left
        return self.learning_rate * share * min(1.0, (step + 1) / max(self.warmup_steps, 1))


class UpsamplerTrainer:
    """One training run of an upsampler in a run folder.

    ``RUN/checkpoints`` holds what resuming needs, ``RUN/model`` the averaged network, which
    `UpsamplerUNet.from_pretrained` loads, ``RUN/metrics.jsonl`` the log.

    Args:
        unet: the network, on the CPU.
        loader: step at which to begin → this process's batches of large clips, from there on without end.
        schedule: the noise schedule, on the accelerator's device.
        training: see `UpsamplerTraining`.
        run: the run folder, made by the caller.
        config: the run's whole configuration, kept in each checkpoint.
        accelerator: the processes and the device.
    """

    def __init__(
        self,
        unet: UpsamplerUNet,
        loader: Callable[[int], Iterable[ClipBatch]],
        schedule: NoiseSchedule,
        training: UpsamplerTraining,
        run: Path,
        config: dict[str, Any],
        accelerator: Accelerator,
    ) -> None:
        self.loader, self.schedule, self.training = loader, schedule, training
        self.run, self.config, self.accelerator = run, config, accelerator
        self.unet = unet.to(accelerator.device).train()
        self.average = type(unet).from_config(unet.config).to(accelerator.device).requires_grad_(False).eval()
        self.average.load_state_dict(unet.state_dict())
        self.optimiser = torch.optim.AdamW(
            unet.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        self.model = accelerator.prepare_model(self.unet)
        self.step = 0
        self.sums: dict[str, float] = {}
        self.summed = 0
        self.stopping = Stopping(accelerator)

    def fit(self) -> None:
        """Train until ``training.steps``, or until Ctrl-C or SIGTERM; leave a checkpoint and the averaged network.

        Raises:
            UserError: the loss or its gradient is not finite; the weights before that step are in a checkpoint.
        """
        main = self.accelerator.is_main_process
        if main:
            write_metrics(self.run, (row for row in read_metrics(self.run) if row["step"] <= self.step))
        clock, clock_step = time.perf_counter(), self.step
        batches = iter(self.loader(self.step))
        bar = tqdm(total=self.training.steps, initial=self.step, unit="step", disable=not main, dynamic_ncols=True)
        with bar, self.stopping:
            while self.step < self.training.steps and not self.stopping.agreed(self.step, self.training.log_every):
                batch = next(batches)
                values = self._train_step(batch)
                self.step += 1
                self.summed += 1
                for name, value in values.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                bar.update()
                if self.step % self.training.log_every == 0:
                    now = time.perf_counter()
                    images = (self.step - clock_step) * self.training.batch_size * batch.clips.video.shape[1]
                    row = self._log(images / (now - clock))
                    clock, clock_step = now, self.step
                    bar.set_postfix(loss=f"{row['loss']:.4f}", images_per_s=f"{row['images_per_s']:.1f}")
                if self.step % self.training.checkpoint_every == 0:
                    self.save()
        if self.step % self.training.checkpoint_every:
            self.save()

    def _train_step(self, batch: ClipBatch) -> dict[str, float]:
        """One optimiser step on this process's share of the batch; what to log of it, meaned over the processes."""
        training, device = self.training, self.accelerator.device
        torch.manual_seed(derive_seed(training.seed, "dropout", self.step, self.accelerator.process_index))
        frames = batch.clips.video.shape[1]
        large = dequantise(batch.clips).video.flatten(0, 1)
        random = ClipRandom(
            [derive_seed(training.seed, "image", p, f) for p in batch.positions.tolist() for f in range(frames)]
        )
        small = shrink(large, self.unet.config["scale"])
        small = degrade(small, random) if training.degradation else small
        timestep = random.integers("timestep", self.schedule.num_timesteps)
        noise = random.normal("noise", large.shape[1:])
        large, small, timestep, noise = (tensor.to(device) for tensor in (large, small, timestep, noise))
        x_t = add_noise(large, noise, self.schedule.level(timestep))
        with self.accelerator.autocast():
            output = self.model(x_t, small, timestep).float()
        residual_std = self.unet.config["residual_std"]
        losses = upsampler_loss(output, large, x_t, noise, timestep, self.schedule, residual_std)
        self.accelerator.backward(losses.mean())
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), training.max_grad_norm)
        squared_error = (output[:, :3] - noise).detach().square().mean()
        means = self.accelerator.reduce(torch.stack([losses.detach().mean(), squared_error]), "mean")
        loss, loss_noise = means.tolist()
        norm = float(norm)
        if not math.isfinite(loss + norm):
            self.optimiser.zero_grad(set_to_none=True)
            raise UserError(
                f"step {self.step}: the loss ({loss:.4g}) or its gradient's norm ({norm:.4g}) is not finite; the "
                f"weights before this step are in {self.save()}. Try a lower train.learning_rate, or train.warmup_steps"
            )
        for group in self.optimiser.param_groups:
            group["lr"] = training.learning_rate_at(self.step)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        average_into(self.average, self.unet, TargetDecay(training.ema_decay, warmup=True)(self.step))
        return {"loss": loss, "loss_noise": loss_noise, "grad_norm": norm}

    def _log(self, images_per_s: float) -> dict[str, Any]:
        """Write one row of means since the last row."""
        row: dict[str, Any] = {"step": self.step, **{name: total / self.summed for name, total in self.sums.items()}}
        row |= {"learning_rate": self.optimiser.param_groups[0]["lr"], "images_per_s": images_per_s}
        self.sums, self.summed = {}, 0
        if self.accelerator.is_main_process:
            with (self.run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        return row

    def save(self) -> Path:
        """Write a checkpoint of everything, and the averaged network into ``RUN/model``."""
        parts = {
            "model": self.unet.state_dict(),
            "ema": self.average.state_dict(),
            "optimizer": optimizer_tensors(self.optimiser, dict(self.unet.named_parameters())),
        }
        state = {"seed": self.training.seed, "config": self.config, "sums": self.sums, "summed": self.summed}
        path = self.run / "checkpoints" / f"step-{self.step:08d}"
        if self.accelerator.is_main_process:
            path = write_checkpoint(self.run, self.step, parts, state, self.training.keep_checkpoints)
            replace_folder(self.run / "model", self.average.save_pretrained)
        self.accelerator.wait_for_everyone()
        return path

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint: everything is as it was after its step."""
        self.unet.load_state_dict(checkpoint.tensors("model"))
        self.average.load_state_dict(checkpoint.tensors("ema"))
        parameters = dict(self.unet.named_parameters())
        load_optimizer_tensors(self.optimiser, parameters, checkpoint.tensors("optimizer"))
        self.sums, self.summed = dict(checkpoint.state["sums"]), checkpoint.state["summed"]
        self.step = checkpoint.state["step"]
