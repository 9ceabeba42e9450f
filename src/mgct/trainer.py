"""The training loop on accelerate. It knows no formula: the objective gives one loss per clip.

Whatever is random is a function of the run's seed and the step (dropout, window shifts) or the clip's position in the
run (noise, timesteps, augmentation). So a resumed run goes on exactly as the undisturbed one, and the weights do not
depend on how many processes share a global batch (dropout aside, whose masks are per process).
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from tqdm import tqdm

from mgct.batch_size import find_micro_batch
from mgct.checkpoint import (
    Checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    read_metrics,
    write_checkpoint,
    write_metrics,
)
from mgct.clip_random import ClipRandom, derive_seed
from mgct.coarse_start import CoarseStart, CoarseSums
from mgct.data.batches import ClipBatch
from mgct.errors import UserError
from mgct.gpu import send
from mgct.guard import Failure, StepGuard
from mgct.layout import Layout, Network, placed_like
from mgct.losses import ClipLoss
from mgct.monitors import Monitors, MonitorSettings, band_means
from mgct.muon import Muon
from mgct.passes import GraphedPasses
from mgct.running_means import RunningMeans
from mgct.stages import MGCT, TargetDecay, average_into, frozen_copy
from mgct.stopping import Stopping
from mgct.trackers import Trackers
from mgct.train_settings import TrainSettings
from mgct.types import AVSample, dequantise, dequantise_pixels

QUIET = MonitorSettings(noise_bands=0, gradients_every=0, samples_every=0, metric_every=0)
"""Nothing but the losses, in TensorBoard."""


class Trainer:
    """One training run in a run folder.

    Args:
        unet: the network, on the CPU.
        objective: what to minimise.
        loader: step at which to begin → this process's batches, from there on without end.
        settings: see `TrainSettings`.
        run: the run folder, made by the caller.
        config: the run's whole configuration, kept in each checkpoint.
        export: called by the main process with the averaged network whole on the CPU, the law of the clips' coarse
            colours (or None), the objective, the step, and the name of a folder in the run: ``model`` at every
            checkpoint, ``best`` at every best running metric.
        accelerator: the processes and the device; `mgct.layout.make_accelerator` gives it.
        watch: what else to log.
        monitors: what samples and measures now and then; None: nothing.
    """

    def __init__(
        self,
        unet: Network,
        objective: MGCT,
        loader: Callable[[int], Iterable[ClipBatch]],
        settings: TrainSettings,
        run: Path,
        config: dict[str, Any],
        export: Callable[[nn.Module, CoarseStart | None, MGCT, int, str], None],
        accelerator: Accelerator,
        watch: MonitorSettings = QUIET,
        monitors: Monitors | None = None,
    ) -> None:
        if settings.batch_size % accelerator.num_processes:
            raise UserError(
                f"train.batch_size {settings.batch_size} is not a multiple of the {accelerator.num_processes} processes"
            )
        self.objective, self.loader, self.settings = objective, loader, settings
        self.run, self.config, self.export, self.accelerator = run, config, export, accelerator
        self.watch, self.monitors = watch, monitors
        self.device, self.main = accelerator.device, accelerator.is_main_process
        self.layout = Layout(accelerator)
        if settings.compile and self.layout.sharded:
            raise UserError("train.compile does not go with FSDP; leave one of them out")
        if settings.recompute and (settings.compile or self.layout.sharded):
            raise UserError(
                "train.recompute goes neither with FSDP nor with train.compile; use train.gradient_checkpointing"
            )
        unet.recompute = settings.recompute
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if settings.compile:
            unet.compile()
        self.unet, self.model = self.layout.place(unet.train())
        self.ema, self.ema_decay = frozen_copy(self.unet).eval(), TargetDecay(settings.ema_decay, warmup=True)
        self.learned = objective.learned.to(self.device)
        self.parameters = {
            **dict(self.unet.named_parameters()),
            **{f"learned.{name}": value for name, value in self.learned.named_parameters()},
        }
        optimizer = Muon if settings.optimizer == "muon" else partial(torch.optim.AdamW, fused=True)
        self.optimizer = optimizer(self._groups(), lr=settings.learning_rate)
        self.guard = StepGuard(self.parameters, settings.max_grad_norm, settings.max_loss_rise, self.layout)
        self.means = RunningMeans()
        self.colours = CoarseSums(settings.coarse_start_cells) if settings.coarse_start_cells else None
        self.trackers: Trackers | None = None
        self.passes = GraphedPasses(self._objective, accelerator.backward, list(self.parameters.values()))
        self.step = 0
        self.stopping = Stopping(accelerator)

    def _groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups: plain and sharded tensors may not share one."""
        groups = [{"params": list(self.unet.parameters()), "weight_decay": self.settings.weight_decay}]
        learned = list(self.learned.parameters())
        return [*groups, {"params": learned, "weight_decay": 0.0}] if learned else groups

    def fit(self) -> None:
        """Train until ``settings.steps``, or until Ctrl-C or SIGTERM, and leave a checkpoint and an exported model.

        Raises:
            UserError: a step's loss or gradient is not finite, or has risen too much. That step is not taken; the
                weights before it are in a checkpoint.
        """
        settings = self.settings
        if self.main:
            self.trackers = Trackers(self.watch.log_to, self.run, self.step)
            write_metrics(self.run, (row for row in read_metrics(self.run) if row["step"] <= self.step))
        self._maybe_transfer()
        clock, clock_step = time.perf_counter(), self.step
        batches = iter(self.loader(self.step))
        bar = tqdm(total=settings.steps, initial=self.step, unit="step", disable=not self.main, dynamic_ncols=True)
        with bar, self.stopping:
            while self.step < settings.steps and not self.stopping.agreed(self.step, settings.log_every):
                self.means.add(self._train_step(next(batches)))
                self.step += 1
                bar.update()
                if self.step % settings.log_every == 0:
                    now = time.perf_counter()
                    clips_per_s = (self.step - clock_step) * settings.batch_size / (now - clock)
                    clock, clock_step = now, self.step
                    row = self._log(clips_per_s)
                    bar.set_postfix(stage=row["stage"], loss=f"{row['loss']:.4f}", clips_per_s=f"{clips_per_s:.1f}")
                self._maybe_transfer()
                if self.monitors is not None and self.monitors.due(self.step):
                    self._monitor(self.monitors)
                    clock, clock_step = time.perf_counter(), self.step
                if self.step % settings.checkpoint_every == 0:
                    self.save()
            self._look()
        self.passes.forget()
        if self.step % settings.checkpoint_every:
            self.save()
        if self.trackers:
            self.trackers.close()

    def _train_step(self, batch: ClipBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """One optimiser step on this process's share of the global batch; what to log of it, as sums and counts."""
        settings = self.settings
        before = {"means": self.means.copy(), "objective": self.objective.state()}
        shift = self._shift(batch)
        values: dict[str, tuple[Tensor, Tensor]] = {}
        every = self.watch.gradients_every
        if every and (self.step + 1) % every == 0:
            self.passes.forget()  # they need its memory
            values.update(self._gradients_by_part(batch, shift))
        self._seed_dropout()
        count = len(batch.keys)
        for result in self._parts(batch, shift):
            for name, value in self._log_values(result).items():
                total = values.get(name, (torch.zeros((), device=self.device),) * 2)
                values[name] = (total[0] + value[0], total[1] + value[1])
        self._average_learned_gradients()
        self._look()
        norm, bad = self.guard.check(self.step, values["loss"][0] / count, batch.keys, before)
        if self.colours is not None:
            self.colours.add(dequantise_pixels(batch.clips.video.to(self.device, non_blocking=True)), 1 - bad)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.step)
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # the fused kernel does nothing where it is 1
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        average_into(self.ema, self.unet, self.ema_decay(self.step), 1 - bad)
        self.objective.after_step(self.unet, 1 - bad)
        return {**values, "grad_norm": (norm, torch.ones_like(norm))}

    def _seed_dropout(self) -> None:
        torch.manual_seed(derive_seed(self.settings.seed, "dropout", self.step, self.accelerator.process_index))

    def _shift(self, batch: ClipBatch) -> Any:
        """This step's window shifts, the same in all processes; a tensor where a compiled graph takes them."""
        generator = torch.Generator().manual_seed(derive_seed(self.settings.seed, "shift", self.step))
        shift = self.unet.draw_window_shifts(batch.clips.video.shape[1], generator)
        return send(torch.tensor(shift), self.device) if self.settings.compile else shift

    def _loss(self, batch: ClipBatch, part: slice, shift: Any) -> ClipLoss:
        """The objective's loss of some clips of the batch."""
        stored = batch.clips.map(lambda x: x[part].to(self.device, non_blocking=True))
        return self._objective(stored, self._random(batch, part), shift)

    def _random(self, batch: ClipBatch, part: slice) -> ClipRandom:
        """The random numbers of some clips of the batch."""
        seeds = [derive_seed(self.settings.seed, "clip", position) for position in batch.positions[part].tolist()]
        return ClipRandom(seeds, self.device)

    def _objective(self, stored: AVSample, random: ClipRandom, shift: Any) -> ClipLoss:
        """The objective's loss of stored clips on the device."""
        with self.accelerator.autocast():
            return self.objective.loss(self.model, dequantise(stored), random, shift)

    def _parts(self, batch: ClipBatch, shift: Any) -> Iterator[ClipLoss]:
        """The loss of each micro-batch, once its gradient has been added to the parameters'."""
        count = len(batch.keys)
        size = self.settings.micro_batch_size or count
        if self._may_replay(count):
            stored = batch.clips.map(lambda x: x.to(self.device, non_blocking=True))
            shifts = send(torch.tensor(shift), self.device)
            yield self.passes(stored, self._random(batch, slice(None)), shifts, self.objective.variant())
            return
        for start in range(0, count, size):
            last = start + size >= count
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                result = self._loss(batch, slice(start, start + size), shift)
                self.accelerator.backward(result.loss.sum() / count)
            yield result

    def _may_replay(self, count: int) -> bool:
        """Whether a step of ``count`` clips may be a CUDA graph."""
        settings = self.settings
        if not settings.cuda_graph or self.device.type != "cuda":
            return False
        alone = self.accelerator.distributed_type == DistributedType.NO  # one process may be DDP or FSDP too
        in_parts = settings.micro_batch_size is not None and settings.micro_batch_size < count
        same_masks = self.objective.stage == 2 and self.unet.config["dropout"] > 0  # of two calls: not in a graph
        return alone and not (in_parts or same_masks or settings.compile or settings.gradient_checkpointing)

    def _log_values(self, result: ClipLoss) -> dict[str, tuple[Tensor, Tensor]]:
        """Name → (sum over the clips that have it, how many) of the loss and what the objective logs."""
        named = {"loss": result.loss, **result.logs}
        counts = {n: torch.full((), float(n), device=self.device) for n in {len(value) for value in named.values()}}
        values = {name: (value.detach().sum(), counts[len(value)]) for name, value in named.items()}
        if self.watch.noise_bands and result.timesteps is not None:
            for modality, timestep in result.timesteps.items():
                name, total = f"loss_mm_{modality}", self.objective.schedule.num_timesteps
                values.update(band_means(timestep, {name: result.logs[name]}, self.watch.noise_bands, total))
        return values

    def _gradients_by_part(self, batch: ClipBatch, shift: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Norms of the gradient of each modality's loss and of each of the two losses, on one micro-batch a process.

        The losses are those of the log, before their weights: ``noise_weight``, ``balance`` and w are not in them.

        Each by a forward and backward pass of its own, so that it works under DDP and FSDP. Leaves no gradient.
        """
        names = ["loss_mm_video", "loss_mm_audio"]
        names += ["loss_cm_video", "loss_cm_audio", "loss_mm", "loss_cm"] if self.objective.stage == 2 else []
        part = slice(0, self.settings.micro_batch_size or len(batch.keys))
        norms: dict[str, Tensor] = {}
        for name in names:
            self._seed_dropout()
            result = self._loss(batch, part, shift)
            if name not in result.logs:
                continue
            # zero times the rest: every parameter has a gradient, as DDP wants it
            self.accelerator.backward(result.logs[name].mean() + 0 * result.loss.mean())
            self._average_learned_gradients()
            norms[f"grad_{name.removeprefix('loss_')}"] = torch.linalg.vector_norm(self.guard.gradient_norms())
            self.optimizer.zero_grad(set_to_none=True)
        if "grad_mm" in norms and "grad_cm" in norms:
            norms["grad_cm_over_mm"] = norms["grad_cm"] / norms["grad_mm"]
        return {name: (norm, torch.ones_like(norm)) for name, norm in norms.items()}

    def _average_learned_gradients(self) -> None:
        """The gradients of the objective's own parameters, which lie whole in every process."""
        for parameter in self.learned.parameters():
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def _log(self, clips_per_s: float) -> dict[str, Any]:
        """Write one row of means since the last row, and let the objective see the loss."""
        self._look()
        means, steps = self.means.means(self.layout.sum), self.means.steps
        self.objective.observe(means["loss_mm"], steps)
        self.means = RunningMeans()
        rate = self.optimizer.param_groups[0]["lr"]
        row = {"step": self.step, "stage": self.objective.stage, **means, "loss_average": self.objective.average}
        row.update(learning_rate=rate, clips_per_s=clips_per_s)
        self._write(row)
        return row

    def _write(self, row: Mapping[str, Any]) -> None:
        """Add a row to the log and to the trackers."""
        if self.trackers is not None:
            with (self.run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.trackers.scalars({name: value for name, value in row.items() if name != "step"}, self.step)

    def _monitor(self, monitors: Monitors) -> None:
        """Sample and measure, and keep the model if it is the best so far."""
        self._look()
        self.passes.forget()
        colours = self._whole_colours()
        coarse_start = None if colours is None else colours.law()
        row = monitors(self.ema, coarse_start, self.step, self.trackers)
        if row:
            self._write({"step": self.step, **row})
        best = self.layout.sum(torch.tensor(float(monitors.is_best(row)), device=self.device))
        if best.item():
            network = self.layout.plain_copy(self.ema)
            if network is not None:
                self.export(network, coarse_start, self.objective, self.step, "best")

    def _whole_colours(self) -> CoarseSums | None:
        """The coarse colours of the clips so far, of all processes; all must call."""
        return None if self.colours is None else self.colours.of_all(self.layout.sum)

    def _maybe_transfer(self) -> None:
        """Start stage 2 if it is due."""
        if not self.objective.transfer_due(self.step):
            return
        self._look()
        transfer = self.objective.transfer
        if transfer.weights == "ema":
            with torch.no_grad():
                torch._foreach_copy_(list(self.unet.parameters()), list(self.ema.parameters()))
        if not transfer.keep_optimizer:
            self.optimizer.state.clear()
        self.objective.start_stage_2(self.unet, self.step)
        self.guard.forget()
        self._compile_copies()

    def _compile_copies(self) -> None:
        """θ⁻ and the teacher are called as often as the network."""
        if self.settings.compile:
            for network in self.objective.networks().values():
                network.compile()

    def _look(self) -> None:
        """Find out whether the step before was taken; if not, save what was before it and explain."""
        failure = self.guard.look()
        if failure is not None:
            self._diverged(failure)

    def _diverged(self, failure: Failure) -> None:
        """Save the weights and optimiser, which the step has not touched, and explain."""
        self.optimizer.zero_grad(set_to_none=True)
        self.step, self.means = failure.step, failure.before["means"]
        self.objective.updates = failure.before["objective"]["updates"]
        report = {**vars(failure), "before": None}
        if self.main:
            (self.run / "diverged.json").write_text(json.dumps(report, indent=1))
        path = self.save()
        raise UserError(
            f"{failure.explain()}. The weights before this step are in {path}, all norms in "
            f"{self.run / 'diverged.json'}. Try a lower train.learning_rate, train.warmup_steps, a lower "
            "train.max_grad_norm, or train.precision=fp32, and --resume"
        )

    def save(self) -> Path:
        """Write a checkpoint of everything, and export the averaged network."""
        self._look()
        networks = {"model": self.unet, "ema": self.ema, **self.objective.networks(), "learned": self.learned}
        parts = {name: self.layout.whole(network.state_dict()) for name, network in networks.items()}
        parts["optimizer"] = self.layout.whole(optimizer_tensors(self.optimizer, self.parameters))
        colours = self._whole_colours()
        coarse_start = None if colours is None else colours.law()
        parts["colours"] = {} if colours is None else colours.tensors()
        state = {
            "objective": self.objective.state(),
            "means": self.means.gather(self.layout.sum, self.main),
            "guard": self.guard.state(),
            "best": self.monitors.best if self.monitors else None,
            "seed": self.settings.seed,
            "layout": f"{self.layout.name} × {self.accelerator.num_processes}",
            "config": self.config,
        }
        path = self.run / "checkpoints" / f"step-{self.step:08d}"
        network = self.layout.plain_copy(self.ema)
        if network is not None:
            parts = {name: tensors for name, tensors in parts.items() if tensors}
            path = write_checkpoint(self.run, self.step, parts, state, self.settings.keep_checkpoints)
            self.export(network, coarse_start, self.objective, self.step, "model")
        self.accelerator.wait_for_everyone()
        return path

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, whatever the layout that wrote it: everything is as it was after its step."""
        self.passes.forget()
        parameters = dict(self.unet.named_parameters())
        self.unet.load_state_dict(placed_like(checkpoint.tensors("model"), parameters))
        self.ema.load_state_dict(placed_like(checkpoint.tensors("ema"), parameters))
        if checkpoint.has("learned"):
            learned = checkpoint.tensors("learned")
            if learned.keys() != self.learned.state_dict().keys():
                raise UserError("the checkpoint's balance learned other weights than this one has; resume with its own")
            self.learned.load_state_dict(learned)
        if self.colours is not None and checkpoint.has("colours"):
            self.colours.load(checkpoint.tensors("colours"), self.device, keep=self.main)
        if checkpoint.has("optimizer"):
            self._load_optimizer(checkpoint.tensors("optimizer"))
        state = checkpoint.state
        weights = {
            part: placed_like(checkpoint.tensors(part), parameters)
            for part in ("target", "teacher")
            if checkpoint.has(part)
        }
        self.objective.load_state(state["objective"], self.unet, weights)
        self._compile_copies()
        self.means.load_state(state["means"], self.device, self.main)
        self.guard.load_state(state["guard"])
        if self.monitors is not None:
            self.monitors.best = state["best"]
        self.step = state["step"]

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Each moment as its parameter lies; the counts of steps as they are."""
        moments = {path: value for path, value in tensors.items() if not path.endswith("/step")}
        likes = {path: self.parameters[path.rpartition("/")[0]] for path in moments}
        load_optimizer_tensors(self.optimizer, self.parameters, {**tensors, **placed_like(moments, likes)})

    def largest_micro_batch(self) -> int:
        """The largest micro-batch that fits, with everything of both stages in memory. The run is spent afterwards."""
        transfer = self.objective.transfer
        if self.objective.stage == 1 and (transfer.delta is not None or transfer.max_steps is not None):
            self.objective.start_stage_2(self.unet, self.step)
        batch = next(iter(self.loader(self.step)))

        def attempt(size: int) -> None:
            self.settings = replace(self.settings, micro_batch_size=size, cuda_graph=False)
            self.optimizer.zero_grad(set_to_none=True)
            self._train_step(batch)
            self._look()

        def say(line: str) -> None:
            if self.main:
                tqdm.write(line, file=sys.stderr)

        return find_micro_batch(attempt, len(batch.keys), say)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
