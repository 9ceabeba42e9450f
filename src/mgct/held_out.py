"""The multimodal loss on clips that are not trained on, beside that on some that are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mgct.clip_random import derive_seed, per_clip_randn
from mgct.data.index import SPLITS
from mgct.errors import UserError
from mgct.losses import multimodal_loss
from mgct.metrics.sources import StoredSource, is_endless
from mgct.noise import NoiseSchedule
from mgct.types import AVSample, ClipSpec, dequantise

MOST_CLIPS = 10_000
"""Of each split; they are kept in memory, and a few hundred say enough."""


class HeldOutLoss:
    """L_MM of the same clips, timesteps and noise at every call, so that nothing but the network moves it.

    The timesteps are spread evenly over the noise levels, and are the same for both splits: the clips of a split with
    fewer than are wanted are taken several times. What the loss of the training split has lost more than that
    of the test split is learned by heart.

    Args:
        data: what is trained on: of a prepared folder, or a world with a number of clips, both splits are taken; of an
            endless world the test split alone; of anything else nothing.
        clip: facts of the clips.
        count: clips of each split, at most `MOST_CLIPS`.
        device: where the network is.
        batch_size: clips at once.

    Raises:
        UserError: too many clips are wanted.
    """

    def __init__(self, data: str, clip: ClipSpec, count: int, device: torch.device, batch_size: int) -> None:
        if count > MOST_CLIPS:
            raise UserError(f"monitor.test_loss_clips must be at most {MOST_CLIPS:,}, got {count}: 64 are usual")
        self.count, self.device, self.batch_size = count, device, batch_size
        self.schedule = NoiseSchedule(device=device)
        self.clips = {split: clips for split in SPLITS if (clips := _clips(data, clip, split, count)) is not None}

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """``loss_mm_test`` and ``loss_mm_train``, as far as there are such clips."""
        return {f"loss_mm_{split}": self._mean(network, clips) for split, clips in self.clips.items()}

    def _mean(self, network: nn.Module, stored: AVSample) -> float:
        count = self.count
        levels = torch.arange(count, dtype=torch.float64).add(0.5).mul(self.schedule.num_timesteps / count).floor()
        losses = []
        for first in range(0, count, self.batch_size):
            numbers = range(first, min(first + self.batch_size, count))
            in_turn = torch.tensor(numbers) % len(stored.video)
            clips = dequantise(stored.map(lambda x, rows=in_turn: x[rows]))
            noise = AVSample(video=_noise(clips.video, "video", numbers), audio=_noise(clips.audio, "audio", numbers))
            timestep = levels[numbers.start : numbers.stop].to(self.device)
            loss = multimodal_loss(network, clips.to(self.device), noise.to(self.device), timestep, self.schedule)
            losses.append(loss.loss.double())
        return torch.cat(losses).mean().item()


def _noise(like: Tensor, modality: str, numbers: range) -> Tensor:
    """Standard normal noise of each clip's own."""
    return per_clip_randn(like.shape[1:], [derive_seed("held out", modality, number) for number in numbers])


def _clips(data: str, clip: ClipSpec, split: str, count: int) -> AVSample | None:
    """The first ``count`` clips of a split, or all, stored form; None where there is no such split."""
    endless = is_endless(data)
    if endless and split == "train":
        return None
    if not data.startswith("world:") and not (Path(data) / "index.json").is_file():
        return None
    try:
        source = StoredSource(f"{data}:{count}" if endless else data, clip, split)
    except UserError:  # a split without clips; what else is wrong, the loader says
        return None
    return source.read(range(min(count, len(source))))
