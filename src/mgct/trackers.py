"""Where a run's numbers, pictures and sounds go besides its folder: TensorBoard, and Weights & Biases if asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from numpy.typing import NDArray
from torch import Tensor

from mgct.clip_random import derive_seed
from mgct.errors import UserError

TrackerName = Literal["tensorboard", "wandb"]


class Trackers:
    """The trackers of a run; only the main process has any.

    Args:
        names: ``tensorboard`` writes to ``RUN/tensorboard``; ``wandb`` to the project ``mgct`` (WANDB_PROJECT), as one
            run that a resumed training goes on with.
        run: the run folder.
        step: steps taken before; what TensorBoard has of later ones is hidden.

    Raises:
        UserError: wandb is asked for and not installed.
    """

    def __init__(self, names: Sequence[TrackerName], run: Path, step: int) -> None:
        self.trackers: list[GeneralTracker] = []
        for name in names:
            self.trackers.append(_wandb(run) if name == "wandb" else _tensorboard(run, step))

    def scalars(self, values: Mapping[str, Any], step: int) -> None:
        """Log numbers."""
        for tracker in self.trackers:
            tracker.log(dict(values), step=step)

    def sheet(self, name: str, image: NDArray[np.uint8], step: int) -> None:
        """Log a picture (H, W, 3)."""
        for tracker in self.trackers:
            order = {"dataformats": "NHWC"} if isinstance(tracker, TensorBoardTracker) else {}
            tracker.log_images({name: image[None]}, step=step, **order)

    def sounds(self, name: str, audio: Tensor, sample_rate_hz: int, step: int) -> None:
        """Log sounds (N, 1, L) in [-1, 1]."""
        for tracker in self.trackers:
            if isinstance(tracker, TensorBoardTracker):
                for k, sound in enumerate(audio):
                    tracker.tracker.add_audio(f"{name}/{k}", sound, step, sample_rate=sample_rate_hz)
            else:
                import wandb

                sounds = [wandb.Audio(sound[0].numpy(), sample_rate=sample_rate_hz) for sound in audio]
                tracker.log({name: sounds}, step=step)

    def close(self) -> None:
        """Write what is pending."""
        for tracker in self.trackers:
            tracker.finish()


def _tensorboard(run: Path, step: int) -> GeneralTracker:
    tracker = TensorBoardTracker("tensorboard", run, purge_step=step + 1)
    tracker.start()
    return tracker


def _wandb(run: Path) -> GeneralTracker:
    import os

    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise UserError(
            "monitor.log_to asks for wandb, which is not installed; pip install wandb, or leave it out"
        ) from error
    identity = f"{run.name}-{derive_seed(str(run.resolve())) % 16**8:08x}"
    project = os.environ.get("WANDB_PROJECT", "mgct")
    tracker = WandBTracker(project, dir=str(run), id=identity, name=run.name, resume="allow")
    tracker.start()
    return tracker
