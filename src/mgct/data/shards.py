"""From stored clips, or a procedural world, to batches for training and evaluation.

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
import glob
import http.client
import io
import itertools
import json
import math
import os
import re
import tarfile
import time
import tokenize
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from mgct.data.media import MEDIA_SUFFIXES, MediaError, find_files, one_line, read_clip
from mgct.data.prepare import SPLITS, read_index
from mgct.errors import UserError
from mgct.gpu import send
from mgct.noise import derive_seed
from mgct.types import AVSample, ClipSpec, concatenate, quantise

_OPEN_SHARDS = 64
_SHUFFLE_BUFFER = 256
_RETRY_AFTER_S = (0.5, 2.0, 8.0)
_LARGEST_WORLD = 2**40
_URL = re.compile(r"(https?://|pipe:)")


@dataclass
class ClipBatch:
    """A batch of stored clips.

    Attributes:
        clips: video uint8 (B, F, 3, H, W), audio int16 (B, 1, L).
        keys: the clips' names.
        positions: (B,) int64, where in the run (or the source) they stand.
        labels: (B,) int64 classes, where the source knows them.
    """

    clips: AVSample
    keys: list[str]
    positions: Tensor
    labels: Tensor | None = None


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
            f"a batch of {batch_size} clips of {_describe(clip)} does not fit into memory: use a smaller batch_size"
        ) from error
    workers: dict[str, Any] = {"num_workers": num_workers}
    if _URL.match(source):
        layout = _Layout(batch_size, rank, world_size, seed, start_step)
        return _Loader(DataLoader(_Streamed(_urls(source), clip, layout, flip), batch_size=None, **workers))
    clips = open_clips(source, clip, split, seed)
    dataset = _Positioned(clips, seed, flip)
    batches = _Batches(batch_size, rank, world_size, start_step)
    if isinstance(clips, _WorldClips) and torch.device(device).type == "cuda":
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


def read_all(source: str, clip: ClipSpec, split: str = "test", *, batch_size: int = 16) -> Iterator[ClipBatch]:
    """Every clip of a source once, in its order: for evaluation.

    No mirroring, and of longer stored clips the first window. Besides the sources of the module it takes a folder of
    plain videos, of which each must give one clip from its start on.

    Args:
        source: see the module; or a folder of videos.
        clip: the clips wanted.
        split: `train` or `test`, where the source has both.
        batch_size: clips a batch; the last one may be smaller.

    Raises:
        UserError: as for `make_loader`; a video that cannot be read; an endless world.
    """
    if _URL.match(source):
        for group in _grouped(enumerate(_stream_samples(_urls(source))), batch_size):
            arrays = [(sample["__key__"], *_decode_sample(sample, clip)) for _, sample in group]
            yield _batch(arrays, [position for position, _ in group], clip, [0] * len(group), [False] * len(group))
        return
    folder = Path(source)
    if folder.is_dir() and not (folder / "index.json").is_file() and not (folder / ".parts").is_dir():
        yield from _read_videos(folder, clip, batch_size)
        return
    clips = open_clips(source, clip, split, seed=0)
    if len(clips) == _ENDLESS:
        raise UserError(f"{source} has no end: say how many clips, as in {source}:2048")
    for group in _grouped(range(len(clips)), batch_size):
        yield clips.batch(group, group, [0] * len(group), [False] * len(group))


def count_clips(source: str, clip: ClipSpec, split: str = "train") -> int | None:
    """Clips of an epoch; None where that cannot be known (a stream, an endless world).

    Raises:
        UserError: as for `make_loader`.
    """
    if _URL.match(source):
        return None
    count = len(open_clips(source, clip, split, seed=0))
    return None if count == _ENDLESS else count


# ------------------------------------------------------------------------------------------------ clips known by number

_ENDLESS = 2**62


class _Clips(Protocol):
    """Clips that can be had by number."""

    spare_frames: int
    mirrors: bool

    def __len__(self) -> int: ...

    def batch(
        self, numbers: Sequence[int], positions: Sequence[int], starts: Sequence[int], flips: Sequence[bool]
    ) -> ClipBatch: ...


def open_clips(source: str, clip: ClipSpec, split: str, seed: int) -> _Clips:
    """The clips of a source that is no stream."""
    if source.startswith("world:"):
        return _WorldClips.parse(source, clip, split, seed)
    folder = Path(source)
    if folder.is_dir():
        return _stored_folder(folder, clip, split)
    paths = [Path(name) for name in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207
    if not paths:
        raise UserError(f"{source} does not exist: give a folder written by mgct prepare, tars, a URL or world:NAME")
    return _scanned_tars(paths, clip)


class _WorldClips:
    """Clips of a procedural world, drawn when asked for."""

    spare_frames = 0
    mirrors = False
    device = torch.device("cpu")
    _kept: tuple[AVSample, Tensor] | None = None

    def __init__(self, name: str, count: int, clip: ClipSpec, seed: int) -> None:
        from mgct.data.worlds import get_world

        self._world, self._name, self._count, self._clip, self._seed = get_world(name), name, count, clip, seed

    @classmethod
    def parse(cls, source: str, clip: ClipSpec, split: str, seed: int) -> _WorldClips:
        """``world:NAME`` draws from the run's seed, ``world:NAME:COUNT`` is one fixed set; splits share no clip."""
        _, name, *rest = source.split(":")
        count = int(rest[0]) if rest and rest[0].isdecimal() and len(rest[0]) < 20 else 0
        if len(rest) > 1 or (rest and not 0 < count <= _LARGEST_WORLD):
            raise UserError(
                f"{source!r} is no world: write world:NAME or world:NAME:COUNT, as in world:landscape:2048, with a "
                f"count of at most {_LARGEST_WORLD}"
            )
        if split not in SPLITS:
            raise UserError(f"{source} has no split {split!r}: choose one of {', '.join(SPLITS)}")
        base = 0 if rest else seed
        drawn_from = base if split == "train" else derive_seed("world split", base, split)
        return cls(name, count or _ENDLESS, clip, drawn_from)

    def __len__(self) -> int:
        return self._count

    def keep_if_they_fit(self) -> None:
        """Draw all the clips and keep them, if they fit into a quarter of the GPU's free memory."""
        if self.device.type != "cuda" or self._count == _ENDLESS or self._kept is not None:
            return
        size = self._count * (math.prod(self._clip.video_shape) + 2 * self._clip.audio_samples)
        if size < torch.cuda.mem_get_info(self.device)[0] / 4:
            self.keep_all()

    def keep_all(self, at_once: int = 1024) -> None:
        """Draw all the clips and keep them."""
        parts = [self._drawn(range(self._count)[first : first + at_once]) for first in range(0, self._count, at_once)]
        clips = concatenate([clips for clips, _ in parts])
        self._kept = clips, torch.cat([labels for _, labels in parts])

    def batch(
        self, numbers: Sequence[int], positions: Sequence[int], starts: Sequence[int], flips: Sequence[bool]
    ) -> ClipBatch:
        """The clips ``numbers``, which are neither cut nor mirrored: ``starts`` are 0 and ``flips`` False."""
        if any(starts) or any(flips):
            raise ValueError("a world's clips are neither cut nor mirrored")
        if self._kept is None:
            clips, labels = self._drawn(numbers)
        else:
            chosen = send(torch.tensor(list(numbers)), self.device)
            clips, labels = self._kept[0].map(lambda x: x[chosen]), self._kept[1][chosen]
        keys = [f"{self._name}_{self._seed}_{number}" for number in numbers]
        return ClipBatch(clips, keys, torch.tensor(list(positions)), labels)

    def _drawn(self, numbers: Sequence[int]) -> tuple[AVSample, Tensor]:
        drawn = self._world.render(list(numbers), self._clip, seed=self._seed, device=self.device)
        return quantise(drawn.clips), drawn.labels


class _StoredClips:
    """Clips in uncompressed tars on the local disk, read by their offsets.

    Args:
        paths: the tars.
        keys: the clips' names.
        places: (N, 5) int64: tar, offset and size of the audio array, offset and size of the video array.
        clip: what is wanted.
        spare_frames: frames that the stored clips have more than wanted.
    """

    mirrors = True

    def __init__(
        self, paths: Sequence[Path], keys: Sequence[str], places: NDArray[np.int64], clip: ClipSpec, spare_frames: int
    ) -> None:
        self._paths, self._keys, self._places, self._clip = list(paths), list(keys), places, clip
        self.spare_frames = spare_frames
        self._handles: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict()}

    def __del__(self) -> None:
        for handle in self.__dict__.get("_handles", {}).values():
            os.close(handle)

    def batch(
        self, numbers: Sequence[int], positions: Sequence[int], starts: Sequence[int], flips: Sequence[bool]
    ) -> ClipBatch:
        """The clips ``numbers``, each from its frame ``starts`` on, mirrored where ``flips``."""
        arrays = [(self._keys[number], *self._read(number)) for number in numbers]
        return _batch(arrays, positions, self._clip, starts, flips)

    def _read(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        shard, *places = (int(value) for value in self._places[number])
        audio, video = (self._bytes(shard, *place) for place in (places[:2], places[2:]))
        return _npy(video, np.uint8, 4), _npy(audio, np.int16, 2)

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        if shard not in self._handles:
            if len(self._handles) >= _OPEN_SHARDS:
                os.close(self._handles.popitem(last=False)[1])
            try:
                self._handles[shard] = os.open(self._paths[shard], os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{self._paths[shard]} cannot be read ({error.strerror})") from error
        self._handles.move_to_end(shard)
        content = os.pread(self._handles[shard], size, offset)
        if len(content) != size:
            raise UserError(f"{self._paths[shard]} is cut short: prepare its folder anew")
        return content


def _stored_folder(folder: Path, clip: ClipSpec, split: str) -> _StoredClips:
    """The clips of a prepared folder, after checking that it is finished, whole and of the right kind."""
    index = read_index(folder)
    stored = ClipSpec(**index["settings"]["clip"])
    spare = _spare_frames(stored, clip, str(folder))
    if split not in index["shards"]:
        raise UserError(f"{folder} has no split {split!r}: choose one of {', '.join(index['shards'])}")
    shards = index["shards"][split]
    samples = [(number, sample) for number, shard in enumerate(shards) for sample in shard["samples"]]
    if not samples:
        raise UserError(
            f"{folder} has no clips in its {split} split: prepare with another test_fraction or more videos"
        )
    paths = [folder / shard["path"] for shard in shards]
    places = np.array([[number, *sample[1:]] for number, sample in samples], dtype=np.int64)
    return _StoredClips(paths, [sample[0] for _, sample in samples], places, clip, spare)


def _scanned_tars(paths: Sequence[Path], clip: ClipSpec) -> _StoredClips:
    """The clips of tars without an index, found by reading the members' headers once."""
    keys: list[str] = []
    places: list[list[int]] = []
    for number, path in enumerate(paths):
        for key, members in _members(path).items():
            if lone := {"audio.npy", "video.npy"} - members.keys():
                raise UserError(f"{path}: {key} has no {key}.{lone.pop()}; a clip is both")
            keys.append(key)
            places.append([number, *members["audio.npy"], *members["video.npy"]])
    if not keys:
        raise UserError(
            f"no clips in {paths[0]}{' …' if len(paths) > 1 else ''}: members KEY.video.npy and KEY.audio.npy"
        )
    clips = _StoredClips(paths, keys, np.array(places, dtype=np.int64), clip, 0)
    video, audio = clips._read(0)
    clips.spare_frames = _check_arrays(video, audio, clip, str(paths[0]))
    return clips


def _members(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """key → {"audio.npy" and "video.npy" → (offset, size)} of an uncompressed tar, in its order."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    size = path.stat().st_size if path.is_file() else 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                name, _, kind = name.partition(".")
                key = folder + slash + name
                if member.isreg() and kind in ("audio.npy", "video.npy"):
                    if member.offset_data + member.size > size:
                        raise UserError(f"{path} is cut short: copy it again")
                    found.setdefault(key, {})[kind] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} cannot be read as an uncompressed tar ({error})") from error
    return found


class _Positioned(Dataset[Any]):
    """What stands at each position of an endless run: epoch after epoch, each a permutation."""

    def __init__(self, clips: _Clips, seed: int, flip: bool) -> None:
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
        if len(self._clips) == _ENDLESS:
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

    world: _WorldClips
    clips: _Positioned
    batches: _Batches
    at_once: int = 1024

    def __iter__(self) -> Iterator[ClipBatch]:
        self.world.keep_if_they_fit()
        size = self.batches.batch_size
        for group in _grouped(self.batches, max(self.at_once // size, 1)):
            drawn = self.clips.at(list(itertools.chain.from_iterable(group)))
            for start in range(0, len(drawn.keys), size):
                part = slice(start, start + size)
                labels = None if drawn.labels is None else drawn.labels[part]
                clips = drawn.clips.map(lambda x, part=part: x[part])
                yield ClipBatch(clips, drawn.keys[part], drawn.positions[part], labels)


# --------------------------------------------------------------------------------------------------------------- arrays


def _npy(content: bytes, dtype: type[np.generic], axes: int) -> NDArray[Any]:
    """The array in the bytes of an .npy file, without a copy and without pickle."""
    try:
        shape, found, start = _npy_header(content[:128])
        array = np.frombuffer(content, found, offset=start).reshape(shape)
    except (ValueError, OverflowError, SyntaxError, tokenize.TokenError) as error:
        raise UserError(f"a clip's array is damaged ({one_line(str(error))})") from error
    if array.dtype != dtype or array.ndim != axes:
        raise UserError(f"a clip's array holds {array.dtype} {array.shape}, not {np.dtype(dtype)} with {axes} axes")
    return array


@functools.lru_cache(maxsize=64)
def _npy_header(head: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """(shape, dtype, where the data start) of an .npy file in C order."""
    stream = io.BytesIO(head)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not version 1.0 of the format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran or dtype.hasobject:
        raise ValueError("not a plain array in C order")
    return shape, dtype, stream.tell()


def _batch(
    arrays: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.int16]]],
    positions: Sequence[int],
    clip: ClipSpec,
    starts: Sequence[int],
    flips: Sequence[bool],
) -> ClipBatch:
    """Cut, mirror and stack stored clips (key, video (F', 3, H, W), audio (1, L'))."""
    videos = torch.empty(len(arrays), *clip.video_shape, dtype=torch.uint8)
    audios = torch.empty(len(arrays), *clip.audio_shape, dtype=torch.int16)
    video_rows, audio_rows = videos.numpy(), audios.numpy()
    for row, ((_, video, audio), start, flip) in enumerate(zip(arrays, starts, flips, strict=True)):
        frames = video[start : start + clip.frames]
        first = clip.samples_at(start)
        sound = audio[:, first : first + clip.audio_samples]
        if frames.shape != clip.video_shape or sound.shape[0] != 1 or clip.audio_samples - sound.shape[1] > 1:
            raise UserError(f"clip {arrays[row][0]} has another shape than the first of its source: {video.shape}")
        video_rows[row] = frames[..., ::-1] if flip else frames
        audio_rows[row, :, : sound.shape[1]] = sound
        audio_rows[row, :, sound.shape[1] :] = 0
    return ClipBatch(AVSample(video=videos, audio=audios), [key for key, *_ in arrays], torch.tensor(list(positions)))


def _describe(clip: ClipSpec) -> str:
    return f"{clip.frames} frames at {clip.fps:g} fps, {clip.size}x{clip.size}, {clip.sample_rate_hz} Hz"


def _spare_frames(stored: ClipSpec, clip: ClipSpec, where: str) -> int:
    """Frames that stored clips have more than wanted ones."""
    same = (stored.fps, stored.size, stored.sample_rate_hz) == (clip.fps, clip.size, clip.sample_rate_hz)
    if not same or stored.frames < clip.frames:
        raise UserError(
            f"{where} holds clips of {_describe(stored)}, but {_describe(clip)} are asked for: "
            "prepare the videos anew with the clip settings of the model, or change the model's"
        )
    return stored.frames - clip.frames


def _check_arrays(video: NDArray[np.uint8], audio: NDArray[np.int16], clip: ClipSpec, where: str) -> int:
    """As `_spare_frames`, for clips of which only the arrays are known."""
    frames = video.shape[0]
    expected = clip.samples_at(frames)
    if video.shape != (frames, *clip.video_shape[1:]) or audio.shape != (1, expected) or frames < clip.frames:
        raise UserError(
            f"{where} holds clips with video {video.shape} and audio {audio.shape}, but {_describe(clip)} (video "
            f"{clip.video_shape}, audio {clip.audio_shape}) are asked for: prepare the videos anew"
        )
    return frames - clip.frames


def _grouped(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _read_videos(folder: Path, clip: ClipSpec, batch_size: int) -> Iterator[ClipBatch]:
    """The first clip of each video of a folder, decoded here."""
    names = [name for name in find_files(folder)[0] if name.suffix.lower() in MEDIA_SUFFIXES]
    if not names:
        raise UserError(f"there is no video in {folder}: give a folder of videos, or one written by mgct prepare")
    for group in _grouped(enumerate(names), batch_size):
        arrays = []
        for _, name in group:
            try:
                sample = read_clip(folder / name, clip)
            except MediaError as error:
                raise UserError(
                    f"{folder / name} cannot be used ({error}): remove it, or see mgct inspect {folder}"
                ) from error
            arrays.append((str(name), sample.video.numpy(), sample.audio.numpy()))
        yield _batch(arrays, [position for position, _ in group], clip, [0] * len(group), [False] * len(group))


# -------------------------------------------------------------------------------------------------------------- streams


MAX_URLS = 10_000_000
"""Shards of a stream."""


def _urls(source: str) -> list[str]:
    """The URLs of a source: separated by commas before a scheme, braces expanded (not those of a shell command)."""
    import braceexpand

    urls: list[str] = []
    for part in re.split(r",(?=https?://|pipe:)", source):
        if not _URL.match(part):
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


def _stream_samples(urls: Iterable[str]) -> Iterator[dict[str, Any]]:
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


def _decode_sample(sample: dict[str, Any], clip: ClipSpec) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    where = f"{sample['__url__']} ({sample['__key__']})"
    if not {"video.npy", "audio.npy"} <= sample.keys():
        raise UserError(f"{where} has no video.npy and audio.npy: these are not shards written by mgct prepare")
    video, audio = _npy(sample["video.npy"], np.uint8, 4), _npy(sample["audio.npy"], np.int16, 2)
    try:
        facts = json.loads(sample.get("json", b"{}"))
        stored = ClipSpec(
            video.shape[0],
            facts.get("fps", clip.fps),
            video.shape[-1],
            facts.get("sample_rate_hz", clip.sample_rate_hz),
        )
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{where} has a damaged .json: prepare the videos anew") from error
    _spare_frames(stored, clip, where)
    return video, audio


@dataclass(frozen=True)
class _Layout:
    """Which part of a run a process has."""

    batch_size: int
    rank: int
    world_size: int
    seed: int
    start_step: int


class _Streamed(IterableDataset[Any]):
    """Batches from streams; see the module for what is promised."""

    def __init__(self, urls: Sequence[str], clip: ClipSpec, layout: _Layout, flip: bool) -> None:
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
            video, audio = _decode_sample(sample, self._clip)
            arrays.append((sample["__key__"], video, audio))
            starts.append(derive_seed(seed, "window", position) % (video.shape[0] - self._clip.frames + 1))
            flips.append(self._flip and derive_seed(seed, "flip", position) % 2 == 1)
        return _batch(arrays, positions, self._clip, starts, flips)

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
            samples = _stream_samples(own[index] for index in order)
        else:
            samples = itertools.islice(_stream_samples(self._urls), unit, None, units)
        held: list[dict[str, Any]] = []
        for sample in samples:
            held.append(sample)
            if len(held) > _SHUFFLE_BUFFER:
                yield held.pop(int(torch.randint(len(held), (), generator=generator)))
        for index in torch.randperm(len(held), generator=generator).tolist():
            yield held[index]
