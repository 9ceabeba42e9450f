"""Clips that can be had by number: those of a prepared folder or of tars on the local disk, and those of a world."""

from __future__ import annotations

import glob
import math
import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgct.clip_random import derive_seed
from mgct.data.batches import ClipBatch, array_of, check_arrays, spare_frames, stack, stored_clip
from mgct.data.index import SPLITS, read_index
from mgct.errors import UserError
from mgct.gpu import send
from mgct.types import AVSample, ClipSpec, concatenate, quantise

_OPEN_SHARDS = 64
_LARGEST_WORLD = 2**40
ENDLESS = 2**62
"""So many clips has a world that was given no number."""


class Clips(Protocol):
    """Clips that can be had by number."""

    spare_frames: int
    mirrors: bool

    def __len__(self) -> int: ...

    def batch(
        self, numbers: Sequence[int], positions: Sequence[int], starts: Sequence[int], flips: Sequence[bool]
    ) -> ClipBatch:
        """Clips ``numbers``, to stand at ``positions``: each from its frame ``starts`` on, mirrored if ``flips``."""


def open_clips(source: str, clip: ClipSpec, split: str, seed: int) -> Clips:
    """The clips of a source that is no stream."""
    if source.startswith("world:"):
        return WorldClips.parse(source, clip, split, seed)
    folder = Path(source)
    if folder.is_dir():
        return _stored_folder(folder, clip, split)
    paths = [Path(name) for name in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207
    if not paths:
        raise UserError(f"{source} does not exist: give a folder written by mgct prepare, tars, a URL or world:NAME")
    return _scanned_tars(paths, clip)


class WorldClips:
    """Clips of a procedural world, drawn when asked for."""

    spare_frames = 0
    mirrors = False
    device = torch.device("cpu")
    _kept: tuple[AVSample, Tensor] | None = None

    def __init__(self, name: str, count: int, clip: ClipSpec, seed: int) -> None:
        from mgct.data.worlds import get_world

        self._world, self._name, self._count, self._clip, self._seed = get_world(name), name, count, clip, seed

    @classmethod
    def parse(cls, source: str, clip: ClipSpec, split: str, seed: int) -> WorldClips:
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
        return cls(name, count or ENDLESS, clip, drawn_from)

    def __len__(self) -> int:
        return self._count

    def keep_if_they_fit(self) -> None:
        """Draw all the clips and keep them, if they fit into a quarter of the GPU's free memory."""
        if self.device.type != "cuda" or self._count == ENDLESS or self._kept is not None:
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
        return stack(arrays, positions, self._clip, starts, flips)

    def _read(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        shard, *places = (int(value) for value in self._places[number])
        audio, video = (self._bytes(shard, *place) for place in (places[:2], places[2:]))
        where = f"{self._paths[shard]} ({self._keys[number]})"
        return array_of(video, np.uint8, 4, where), array_of(audio, np.int16, 2, where)

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
    spare = spare_frames(stored, clip, str(folder))
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
    facts: dict[int, tuple[int, int, int]] = {}
    """Of each tar that has any, of one clip: its number, offset and size of the JSON that says its rates."""
    for number, path in enumerate(paths):
        for key, members in _members(path).items():
            if members.keys() == {"json"}:
                continue
            if lone := {"audio.npy", "video.npy"} - members.keys():
                raise UserError(f"{path}: {key} has no {key}.{lone.pop()}; a clip is both")
            if "json" in members:
                facts.setdefault(number, (len(keys), *members["json"]))
            keys.append(key)
            places.append([number, *members["audio.npy"], *members["video.npy"]])
    if not keys:
        raise UserError(
            f"no clips in {paths[0]}{' …' if len(paths) > 1 else ''}: members KEY.video.npy and KEY.audio.npy"
        )
    clips = _StoredClips(paths, keys, np.array(places, dtype=np.int64), clip, 0)
    video, audio = clips._read(0)
    clips.spare_frames = check_arrays(video, audio, clip, str(paths[0]))
    for number, place in facts.items():
        where = f"{paths[number]} ({keys[place[0]]})"
        spare_frames(stored_clip(clips._bytes(number, *place[1:]), video.shape, clip, where), clip, where)
    return clips


def _members(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """key → {"audio.npy", "video.npy" and, where there is one, "json" → (offset, size)} of an uncompressed tar."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    size = path.stat().st_size if path.is_file() else 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                name, _, kind = name.partition(".")
                key = folder + slash + name
                if member.isreg() and kind in ("audio.npy", "video.npy", "json"):
                    if member.offset_data + member.size > size:
                        raise UserError(f"{path} is cut short: copy it again")
                    found.setdefault(key, {})[kind] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} cannot be read as an uncompressed tar ({error})") from error
    return found
