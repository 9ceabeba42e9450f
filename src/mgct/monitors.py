"""What a run is watched by besides its loss: samples seen and heard, their loudness and motion, a running metric.

Nothing here draws from the training's random numbers: clips are sampled with their own seeds, the same at every step,
so that one sees the same clips grow. All processes sample their share; the main one measures and draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from mgct.coarse_start import CoarseStart
from mgct.errors import UserError
from mgct.held_out import HeldOutLoss
from mgct.metrics.distances import LEAST_CLIPS
from mgct.metrics.sources import ClipSource, is_endless, open_as_trained
from mgct.pipeline import AVPipeline
from mgct.samplers import DEFAULT, get_sampler
from mgct.trackers import TrackerName, Trackers
from mgct.types import AVSample, ClipSpec, dequantise, quantise

if TYPE_CHECKING:
    from mgct.metrics.evaluate import RunningMetric

RUNNING_METRIC = "running_metric"
"""√(FVD-compact · FAD-compact): lower is better, and no choice of units decides between picture and sound."""


@dataclass(frozen=True)
class MonitorSettings:
    """What is watched, and how often.

    Args:
        noise_bands: the multimodal loss is also logged by bands of equal width in t, so many of them; 0: not.
        gradients_every: steps between measurements of the gradient by modality and loss; 0: never.
        samples_every: steps between sample sheets (picture and sound); 0: never.
        samples: clips on a sheet.
        metric_every: steps between values of the running metric, by which OUT/best is chosen; 0: never.
        metric_clips: generated and real clips that the running metric compares, at most.
        test_loss_clips: clips of the test split, and of the training split, whose multimodal loss is logged with each
            sheet or metric; 0: none.
        sampler: for both.
        sample_steps: network calls per clip, for both.
        sample_batch_size: clips sampled at once by a process.
        reference: real clips for loudness, motion and metric: a source that ends, as ``mgct evaluate`` takes it; empty:
            the data's own test split, or its training clips where that is too small.
        log_to: [tensorboard], [wandb], both, or [] for none.
    """

    noise_bands: int = 4
    gradients_every: int = 500
    samples_every: int = 2000
    samples: int = 8
    metric_every: int = 2000
    metric_clips: int = 256
    test_loss_clips: int = 64
    sampler: str = DEFAULT
    sample_steps: int = 12
    sample_batch_size: int = 32
    reference: str = ""
    log_to: tuple[TrackerName, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        for name in ("noise_bands", "gradients_every", "samples_every", "metric_every", "test_loss_clips"):
            if getattr(self, name) < 0:
                raise UserError(f"monitor.{name} must not be negative (0: never), got {getattr(self, name)}")
        for name in ("samples", "sample_steps", "sample_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"monitor.{name} must be at least 1, got {getattr(self, name)}")
        if self.samples_every or self.metric_every:
            try:
                get_sampler(self.sampler, self.sample_steps)
            except UserError as error:
                raise UserError(f"monitor.sampler, monitor.sample_steps: {error}") from error
        if self.metric_clips < LEAST_CLIPS:
            raise UserError(f"monitor.metric_clips must be at least {LEAST_CLIPS}, got {self.metric_clips}")


def band_means(
    timestep: Tensor, values: dict[str, Tensor], bands: int, num_timesteps: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Each value summed over the clips of each noise band, and how many clips those are.

    Args:
        timestep: (B,) in [0, num_timesteps - 1].
        values: name → (B,).
        bands: of equal width in t.
        num_timesteps: T.

    Returns:
        ``NAME/t250-499`` → (sum, count), for the clips with 250 ≤ t ≤ 499.
    """
    edges = [round(k * num_timesteps / bands) for k in range(bands + 1)]
    found = {}
    for low, high in pairwise(edges):
        inside = (timestep >= low) & (timestep < high)
        for name, value in values.items():
            total = torch.where(inside, value.detach(), torch.zeros_like(value)).sum()
            found[f"{name}/t{low:03d}-{high - 1:03d}"] = (total, inside.sum())
    return found


class Monitors:
    """Samples from the averaged network now and then, and says how they are.

    Args:
        settings: see `MonitorSettings`.
        clip: facts of the clips.
        data: what is trained on.
        run: the run folder; sheets go to ``RUN/samples``.
        accelerator: the processes.
        start_timestep: the noise level that the model is sampled from; None: the schedule's last.

    Raises:
        UserError: real clips are needed and cannot be had from the data.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        clip: ClipSpec,
        data: str,
        run: Path,
        accelerator: Accelerator,
        start_timestep: int | None = None,
    ) -> None:
        self.settings, self.clip, self.run, self.accelerator = settings, clip, run, accelerator
        self.start_timestep = start_timestep
        self.best: float | None = None
        self._metric: RunningMetric | None = None
        self._real: ClipSource | None = None
        self._held_out: HeldOutLoss | None = None
        watched = settings.samples_every or settings.metric_every
        if watched and settings.test_loss_clips:
            count, at_once = settings.test_loss_clips, settings.sample_batch_size
            self._held_out = HeldOutLoss(data, clip, count, accelerator.device, at_once)
        if watched and accelerator.is_main_process:
            self._real = reference_clips(settings.reference or data, clip, settings.metric_clips)

    def due(self, step: int) -> bool:
        """Whether anything is sampled after ``step`` steps."""
        return any(every and step % every == 0 for every in (self.settings.samples_every, self.settings.metric_every))

    def __call__(
        self, network: nn.Module, coarse_start: CoarseStart | None, step: int, trackers: Trackers | None
    ) -> dict[str, float]:
        """Sample and measure; every process must call.

        Args:
            network: what is sampled from, on the training device.
            coarse_start: the law of coarse colours that sampling begins with, if any.
            step: steps taken.
            trackers: for sheets and sounds, in the main process.

        Returns:
            What to log; in all processes but the main one, nothing.
        """
        settings = self.settings
        with_metric = bool(settings.metric_every) and step % settings.metric_every == 0
        with_sheet = bool(settings.samples_every) and step % settings.samples_every == 0
        wanted = max(settings.metric_clips * with_metric, settings.samples * with_sheet)
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            clips = self._sample(network, coarse_start, wanted)
            losses = self._held_out(network) if self._held_out is not None else {}
            if self._real is None:
                return {}
            row = {**losses, **self._loudness_and_motion(clips)}
            if with_metric:
                row.update(self._measure(clips))
            if with_sheet:
                self._draw(clips.map(lambda x: x[: settings.samples]), step, trackers)
        return row

    def is_best(self, row: dict[str, float]) -> bool:
        """Whether a row holds the best running metric so far; if so, it is the one to beat from now on."""
        value = row.get(RUNNING_METRIC)
        if value is None or (self.best is not None and value >= self.best):
            return False
        self.best = value
        return True

    def _sample(self, network: nn.Module, coarse_start: CoarseStart | None, count: int) -> AVSample:
        """The first ``count`` clips of the monitors' seed, stored form, on the CPU of every process."""
        settings, processes = self.settings, self.accelerator.num_processes
        share = math.ceil(count / processes)
        first = share * self.accelerator.process_index
        # every process makes as many, so that with FSDP all take part in every network call
        pipe = AVPipeline(network, self.clip, start_timestep=self.start_timestep, coarse_start=coarse_start)
        clips = pipe(
            indices=range(first, first + share),
            steps=settings.sample_steps,
            sampler=settings.sampler,
            batch_size=settings.sample_batch_size,
            progress=False,
        )
        stored = quantise(clips)
        wide = AVSample(video=stored.video, audio=stored.audio.int())  # NCCL has no int16
        gathered = wide.map(lambda x: self.accelerator.gather(x.to(self.accelerator.device))[:count].cpu())
        return AVSample(video=gathered.video, audio=gathered.audio.short())

    def _loudness_and_motion(self, clips: AVSample) -> dict[str, float]:
        """Of the samples, and of as many real clips."""
        from mgct.metrics import sync

        if self._real is None:
            raise RuntimeError("the main process has real clips")
        real = self._real.read(range(min(len(clips.video), len(self._real))))
        row = {}
        for suffix, part, spec in (("", clips, self.clip), ("_data", real, self._real.spec)):
            curves = sync.curves(part, spec)
            row[f"loudness_db{suffix}"] = curves.loudness_db.mean().item()
            row[f"motion{suffix}"] = curves.motion.mean().item()
        return row

    def _measure(self, clips: AVSample) -> dict[str, float]:
        """The running metric and its parts."""
        from mgct.metrics.evaluate import RunningMetric

        if self._real is None:
            raise RuntimeError("the main process has real clips")
        count = min(self.settings.metric_clips, len(self._real))
        if self._metric is None:
            self._metric = RunningMetric(self._real, "compact", count, device=str(self.accelerator.device))
        values = self._metric(clips.map(lambda x: x[:count]), self.clip)
        frechet = [max(values[name], 0.0) for name in ("FVD-compact", "FAD-compact")]
        return {RUNNING_METRIC: math.sqrt(frechet[0] * frechet[1]), **values}

    def _draw(self, stored: AVSample, step: int, trackers: Trackers | None) -> None:
        """``RUN/samples/step-….png`` (frames over spectrograms) and ``….mp4`` (a grid that plays with sound)."""
        from mgct import plots
        from mgct.data.media import write_mp4

        clips = dequantise(stored)
        folder = self.run / "samples"
        folder.mkdir(exist_ok=True)
        figure = plots.clips_figure(clips, self.clip)
        figure.savefig(folder / f"step-{step:08d}.png")
        video, audio = plots.animated_sheet(clips, self.clip)
        path = folder / f"step-{step:08d}.mp4"
        write_mp4(path, video, audio, fps=self.clip.fps, sample_rate_hz=self.clip.sample_rate_hz)
        if trackers is not None:
            trackers.sheet("samples", _pixels(figure), step)
            trackers.sounds("samples", clips.audio[:2], self.clip.sample_rate_hz, step)


def _pixels(figure: Any) -> NDArray[np.uint8]:
    """A figure as (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def reference_clips(source: str, clip: ClipSpec, num: int) -> ClipSource:
    """Real clips to compare with: of the test split, or of the training split where the first has not ``num``.

    Args:
        source: as for training; a world without end gives its first ``num`` test clips.
        clip: facts of the clips.
        num: how many are wanted.

    Raises:
        UserError: a stream, or nothing there.
    """
    if "://" in source or source.startswith("pipe:"):
        raise UserError(
            f"{source} is a stream, and the monitors need clips that can be read twice: give --monitor.reference "
            "FOLDER, or --monitor.metric_every 0 --monitor.samples_every 0"
        )
    if is_endless(source):
        return open_as_trained(source, clip, "test", num)
    found: list[ClipSource] = []
    problems: list[UserError] = []
    for split in ("test", "train"):
        try:
            found.append(open_as_trained(source, clip, split, num))
        except UserError as error:
            problems.append(error)
            continue
        if len(found[-1]) >= num:
            return found[-1]
    if not found or len(_largest(found)) < 2:
        raise problems[0] if problems else UserError(f"{source}: the monitors need at least 2 real clips")
    return _largest(found)


def _largest(sources: Sequence[ClipSource]) -> ClipSource:
    return max(sources, key=len)
