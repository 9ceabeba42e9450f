"""Clips of tars behind URLs, which are read from their beginning to their end."""

from __future__ import annotations

import http.client
import itertools
import math
import re
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from mgct.clip_random import derive_seed
from mgct.data.batches import ClipBatch, array_of, spare_frames, stack, stored_clip
from mgct.errors import UserError
from mgct.types import ClipSpec

_SHUFFLE_BUFFER = 256
_RETRY_AFTER_S = (0.5, 2.0, 8.0)
URL = re.compile(r"(https?://|pipe:)")
"""How a stream's source begins."""
MAX_URLS = 10_000_000
"""Shards of a stream."""


def expand_urls(source: str) -> list[str]:
    """The URLs of a source: separated by commas before a scheme, braces expanded (not those of a shell command)."""
    import braceexpand

    urls: list[str] = []
    for part in re.split(r",(?=https?://|pipe:)", source):
        if not URL.match(part):
            raise UserError(f"{part!r} is no URL: each part must start with http://, https:// or pipe:")
        try:
            ranges = [map(int, ends) for ends in re.findall(r"\{(-?\d+)\.\.(-?\d+)\}", part)]
            few = math.prod(abs(last - first) + 1 for first, last in ranges) <= MAX_URLS
            urls.extend(braceexpand.braceexpand(part) if few else ())
        except ValueError as error:
            raise UserError(
                f"the braces of {part!r} cannot be expanded ({error}): write {{0..9}} or {{a,b}}, and \\{{ for a brace"
            ) from error
        if not few:
            raise UserError(f"{part!r} is more than {MAX_URLS:,} URLs; are its braces as they should be?")
    return urls


class _Ended:
    """A stream that remembers its last bytes, so that a tar that stops early is noticed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._head = self._tail = b""

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        if len(self._head) < tarfile.BLOCKSIZE:
            self._head += content[: tarfile.BLOCKSIZE]
        self._tail = (self._tail + content)[-tarfile.BLOCKSIZE :]
        return content

    @property
    def cut_short(self) -> bool:
        """Whether an uncompressed tar was read that did not end with the empty block it must end with."""
        return self._head[257:262] == b"ustar" and any(self._tail)

    def close(self) -> None:
        self._stream.close()


def _opened(url: str) -> _Ended:
    """A stream of a URL's bytes; a server that is busy or away is asked again a few times."""
    from webdataset.gopen import gopen

    if url.startswith("pipe:"):
        return _Ended(gopen(url))
    for wait_s in _RETRY_AFTER_S:
        try:
            return _Ended(urllib.request.urlopen(url, timeout=60))
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise
        except urllib.error.URLError:
            pass
        time.sleep(wait_s)
    return _Ended(urllib.request.urlopen(url, timeout=60))


def stream_samples(urls: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The samples of tars, one after the other, as webdataset groups them: ``__key__`` and extension → bytes."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    for url in urls:
        try:
            stream = _opened(url)
            try:
                yield from group_by_keys(tar_file_expander([{"url": url, "stream": stream}]))
                if stream.cut_short:
                    raise tarfile.ReadError("it ends too early")
            finally:
                stream.close()
        except (tarfile.TarError, http.client.HTTPException, urllib.error.URLError, OSError, ValueError) as error:
            found = re.search(r"exit \d+", str(error)) if url.startswith("pipe:") else None
            reason = f"the command ends with {found[0]}" if found else (error.args[0] if error.args else error)
            raise UserError(f"{url} cannot be read as a tar of clips ({reason}): check it, then resume") from error


def decode_sample(sample: dict[str, Any], clip: ClipSpec) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Video and sound of one of `stream_samples`, checked against the clips wanted."""
    where = f"{sample['__url__']} ({sample['__key__']})"
    if not {"video.npy", "audio.npy"} <= sample.keys():
        raise UserError(f"{where} has no video.npy and audio.npy: these are not shards written by mgct prepare")
    video, audio = (
        array_of(sample["video.npy"], np.uint8, 4, where),
        array_of(sample["audio.npy"], np.int16, 2, where),
    )
    stored = stored_clip(sample.get("json", b"{}"), video.shape, clip, where)
    spare_frames(stored, clip, where)
    return video, audio


@dataclass(frozen=True)
class Layout:
    """Which part of a run a process has."""

    batch_size: int
    rank: int
    world_size: int
    seed: int
    start_step: int


class Streamed(IterableDataset[Any]):
    """Batches from streams; see `mgct.data.shards` for what is promised."""

    def __init__(self, urls: Sequence[str], clip: ClipSpec, layout: Layout, flip: bool) -> None:
        self._urls, self._clip, self._layout, self._flip = list(urls), clip, layout, flip

    def __iter__(self) -> Iterator[ClipBatch | UserError]:
        try:
            yield from self._batches()
        except UserError as error:
            yield error

    def _batches(self) -> Iterator[ClipBatch]:
        layout = self._layout
        info = get_worker_info()
        workers, mine = (info.num_workers, info.id) if info else (1, 0)
        first_step = layout.start_step + mine
        worker = first_step % workers
        unit, units = layout.rank * workers + worker, layout.world_size * workers
        done = first_step // workers * layout.batch_size
        samples = self._endless(unit, units, skip=done)
        for step in itertools.count(first_step, workers):
            first = (step * layout.world_size + layout.rank) * layout.batch_size
            positions = range(first, first + layout.batch_size)
            yield self._decoded(list(itertools.islice(samples, layout.batch_size)), positions)

    def _decoded(self, samples: Sequence[dict[str, Any]], positions: Sequence[int]) -> ClipBatch:
        seed, arrays, starts, flips = self._layout.seed, [], [], []
        for sample, position in zip(samples, positions, strict=True):
            video, audio = decode_sample(sample, self._clip)
            arrays.append((sample["__key__"], video, audio))
            starts.append(derive_seed(seed, "window", position) % (video.shape[0] - self._clip.frames + 1))
            flips.append(self._flip and derive_seed(seed, "flip", position) % 2 == 1)
        return stack(arrays, positions, self._clip, starts, flips)

    def _endless(self, unit: int, units: int, skip: int) -> Iterator[dict[str, Any]]:
        """A unit's samples, epoch after epoch, without the first ``skip``."""
        epoch = 0
        while True:
            count = 0
            for sample in self._epoch(unit, units, epoch):
                count += 1
                if count > skip:
                    yield sample
            if not count:
                raise UserError(
                    f"worker {unit} of {units} finds no clip in {len(self._urls)} shards: use fewer workers"
                )
            epoch += 1
            if skip >= count:
                epoch += skip // count - 1
                skip %= count
            else:
                skip = 0

    def _epoch(self, unit: int, units: int, epoch: int) -> Iterator[dict[str, Any]]:
        """A unit's samples of one epoch, each once: its shards in random order, through a shuffle buffer."""
        generator = torch.Generator().manual_seed(derive_seed(self._layout.seed, "stream", epoch, unit))
        if len(self._urls) >= units:
            own = self._urls[unit::units]
            order = torch.randperm(len(own), generator=generator).tolist()
            samples = stream_samples(own[index] for index in order)
        else:
            samples = itertools.islice(stream_samples(self._urls), unit, None, units)
        held: list[dict[str, Any]] = []
        for sample in samples:
            held.append(sample)
            if len(held) > _SHUFFLE_BUFFER:
                yield held.pop(int(torch.randint(len(held), (), generator=generator)))
        for index in torch.randperm(len(held), generator=generator).tolist():
            yield held[index]
