"""From stored clips, or a procedural world, to batches for training.

A *source* is a string, one of

    DIR                      a folder written by ``mgct prepare``
    'DIR/*.tar'              a glob of tars with the same members, wherever they come from
    URL,URL or URL{0..9}     tars behind ``http://``, ``https://`` or ``pipe:COMMAND``, streamed through webdataset
    world:NAME               a procedural world: every clip is new
    world:NAME:COUNT         the same, COUNT clips in all

Training positions. With clips on the local disk (or from a world) training runs through positions 0, 1, 2, … of an
endless row of epochs, each a permutation drawn from (seed, epoch). What stands at a position (which clip, which window
of it, mirrored or not) is a function of (source, seed, position) alone. Batch k of global size G holds positions kG …
(k+1)G-1, and rank r of R takes the r-th of R equal parts. So a run is resumed exactly from its step number alone, and
neither the number of ranks nor that of workers changes what is trained on.

Streams know no positions in advance: each rank's worker takes its own shards (or, where there are fewer shards than
workers, every n-th sample), in an order drawn from the seed. Each sample is still seen once an epoch, and a resumed run
gets the same batches if its number of ranks and workers is the same; it reads again, undecoded, what it had read.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mgct.clip_random import derive_seed
from mgct.data.batches import ClipBatch, describe, grouped
from mgct.data.numbered import ENDLESS, Clips, WorldClips, open_clips
from mgct.data.streams import URL, Layout, Streamed, expand_urls
from mgct.errors import UserError
from mgct.types import ClipSpec


def make_loader(
    source: str,
    clip: ClipSpec,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    start_step: int = 0,
    num_workers: int = 0,
    split: str = "train",
    flip: bool = True,
    device: torch.device | str = "cpu",
) -> Iterable[ClipBatch]:
    """The endless batches of one rank, from ``start_step`` on.

    Args:
        source: see the module.
        clip: the clips wanted: of the stored rate, size and sample rate, and not longer than the stored ones.
        batch_size: clips a batch of this rank.
        rank: this process's number.
        world_size: processes in all.
        seed: decides order, windows and mirroring.
        start_step: the first batch's number: a resumed run's next step.
        num_workers: processes that read ahead; 0: read in this one.
        split: `train` or `test`, for a prepared folder or a world; a glob or URL names its shards itself.
        flip: mirror half of the clips left to right (never those of a world, which are all different anyway).
        device: where they will be wanted. A world's clips are drawn on a GPU itself, many at a time, without workers;
            what is read from files stays on the CPU.

    Returns:
        An iterable; each iteration starts at ``start_step``.

    Raises:
        UserError: a source that does not exist, is unfinished, empty or damaged, or that holds other clips.
    """
    if batch_size < 1 or num_workers < 0 or start_step < 0 or not 0 <= rank < world_size:
        raise UserError(
            f"impossible loader: batch_size {batch_size}, num_workers {num_workers}, start_step {start_step}, "
            f"rank {rank} of {world_size}"
        )
    try:
        np.empty((batch_size, math.prod(clip.video_shape) + 2 * clip.audio_samples), np.uint8)  # pages none of it
    except (MemoryError, ValueError, OverflowError) as error:
        raise UserError(
            f"a batch of {batch_size} clips of {describe(clip)} does not fit into memory: use a smaller batch_size"
        ) from error
    workers: dict[str, Any] = {"num_workers": num_workers}
    if URL.match(source):
        layout = Layout(batch_size, rank, world_size, seed, start_step)
        return _Loader(DataLoader(Streamed(expand_urls(source), clip, layout, flip), batch_size=None, **workers))
    clips = open_clips(source, clip, split, seed)
    dataset = _Positioned(clips, seed, flip)
    batches = _Batches(batch_size, rank, world_size, start_step)
    if isinstance(clips, WorldClips) and torch.device(device).type == "cuda":
        clips.device = torch.device(device)
        return _DrawnAhead(clips, dataset, batches)
    return _Loader(DataLoader(dataset, batch_sampler=batches, collate_fn=_as_is, **workers))


@dataclass(frozen=True)
class _Loader:
    """Batches from worker processes; a `UserError` there is raised here, as the one line it is."""

    batches: Iterable[ClipBatch | UserError]

    def __iter__(self) -> Iterator[ClipBatch]:
        for batch in self.batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Positioned(Dataset[Any]):
    """What stands at each position of an endless run: epoch after epoch, each a permutation."""

    def __init__(self, clips: Clips, seed: int, flip: bool) -> None:
        self._clips, self._seed, self._flip = clips, seed, flip and clips.mirrors

    def __getitem__(self, position: int) -> ClipBatch | UserError:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> ClipBatch | UserError:
        try:
            return self.at(positions)
        except UserError as error:
            return error

    def at(self, positions: Sequence[int]) -> ClipBatch:
        """The clips at these positions, as one batch."""
        spare = self._clips.spare_frames
        starts = [derive_seed(self._seed, "window", p) % (spare + 1) if spare else 0 for p in positions]
        flips = [self._flip and derive_seed(self._seed, "flip", p) % 2 == 1 for p in positions]
        return self._clips.batch([self._number(p) for p in positions], positions, starts, flips)

    def _number(self, position: int) -> int:
        if len(self._clips) == ENDLESS:
            return position
        epoch, place = divmod(position, len(self._clips))
        return int(_permutation(len(self._clips), self._seed, epoch)[place])


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
    try:
        return torch.randperm(count, generator=generator)
    except RuntimeError as error:
        raise UserError(f"the order of {count} clips does not fit into memory: use fewer, or world:NAME") from error


@dataclass(frozen=True)
class _Batches:
    """The positions of one rank's batches, without end."""

    batch_size: int
    rank: int
    world_size: int
    start_step: int

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self.start_step):
            first = (step * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


def _as_is(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class _DrawnAhead:
    """Batches of a world, of which so many are drawn at once as hold ``at_once`` clips.

    A world draws with hundreds of small kernels a class, so a GPU draws a thousand clips about as fast as one.
    """

    world: WorldClips
    clips: _Positioned
    batches: _Batches
    at_once: int = 1024

    def __iter__(self) -> Iterator[ClipBatch]:
        self.world.keep_if_they_fit()
        size = self.batches.batch_size
        for group in grouped(self.batches, max(self.at_once // size, 1)):
            drawn = self.clips.at(list(itertools.chain.from_iterable(group)))
            for start in range(0, len(drawn.keys), size):
                part = slice(start, start + size)
                labels = None if drawn.labels is None else drawn.labels[part]
                clips = drawn.clips.map(lambda x, part=part: x[part])
                yield ClipBatch(clips, drawn.keys[part], drawn.positions[part], labels)
