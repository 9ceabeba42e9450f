"""Where clips to be measured come from: videos, lossless samples, shards, worlds or memory; read a few at a time."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open

from mgct.errors import UserError
from mgct.types import AVSample, ClipSpec, quantise


class ClipSource(Protocol):
    """Clips that can be read in any order.

    Attributes:
        spec: facts of every clip.
        container: how they are stored: ``video files``, ``safetensors``, ``shards``, ``world`` or ``memory``.
        origin: where, for people.
    """

    spec: ClipSpec
    container: str
    origin: str

    def __len__(self) -> int:
        """Number of clips."""

    def read(self, indices: Sequence[int]) -> AVSample:
        """Clips ``indices`` in stored form: uint8 video (B, F, 3, H, W), int16 audio (B, 1, L)."""


class MemorySource:
    """Clips that are in memory already.

    Args:
        clips: stored or model form.
        spec: their facts.
    """

    container = "memory"
    origin = "memory"

    def __init__(self, clips: AVSample, spec: ClipSpec) -> None:
        self.clips = clips.to("cpu")
        self.spec = spec

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips.video)

    def read(self, indices: Sequence[int]) -> AVSample:
        """Clips ``indices`` in stored form."""
        chosen = self.clips.map(lambda tensor: tensor[list(indices)])
        return chosen if chosen.video.dtype == torch.uint8 else quantise(chosen)


class VideoSource:
    """A folder of video files, searched at any depth, one clip from the start of each, in the order of their paths.

    Args:
        folder: of the files.
        spec: how to read them: frames, rates, size (centre crop).

    Raises:
        UserError: no video file.
    """

    container = "video files"

    def __init__(self, folder: Path, spec: ClipSpec) -> None:
        from mgct.data.media import MEDIA_SUFFIXES, find_files

        found = sorted(path for path in find_files(folder)[0] if path.suffix.lower() in MEDIA_SUFFIXES)
        self.files = [folder / path for path in found]
        self.spec = spec
        self.origin = folder.name
        if not self.files:
            raise UserError(f"no video files in {folder}")

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def read(self, indices: Sequence[int]) -> AVSample:
        """Clips of the files ``indices``.

        Raises:
            UserError: a file that cannot be read or is too short; it names the file.
        """
        from mgct.data.media import read_clip

        clips = []
        for index in indices:
            try:
                clips.append(read_clip(self.files[index], self.spec))
            except UserError as error:
                raise UserError(f"{self.files[index]}: {error}") from error
        return AVSample(video=torch.stack([c.video for c in clips]), audio=torch.stack([c.audio for c in clips]))


class _Block(NamedTuple):
    path: Path
    start: int


def _sample_files(folder: Path) -> list[Path]:
    """Files of samples in order; hidden ones are parts that an interrupted run left."""
    return sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))


class SampleSource:
    """A folder of lossless samples: safetensors files with ``video``, ``audio`` and the metadata ``clip``.

    Args:
        folder: of the files.

    Raises:
        UserError: a file of another kind or whose clips are not as it says, or files of different clips.
    """

    container = "safetensors"

    def __init__(self, folder: Path) -> None:
        self.origin = folder.name
        self.blocks: list[_Block] = []
        self.total = 0
        specs: set[ClipSpec] = set()
        for path in _sample_files(folder):
            try:
                with safe_open(path, "pt") as file:
                    spec = ClipSpec(**json.loads(file.metadata()["clip"]))
                    parts = [file.get_slice(name) for name in ("video", "audio")]
                    found = [(part.get_dtype(), *part.get_shape()) for part in parts]
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path} is no file of samples (tensors video, audio; metadata clip): {error}"
                ) from error
            count = found[0][1] if len(found[0]) > 1 else 0
            if found != [("U8", count, *spec.video_shape), ("I16", count, *spec.audio_shape)]:
                raise UserError(
                    f"{path} holds video {found[0]} and audio {found[1]}: not clips as its metadata say, uint8 and "
                    f"int16 of {spec}; make it anew"
                )
            specs.add(spec)
            self.blocks.append(_Block(path, self.total))
            self.total += count
        if len(specs) != 1:
            raise UserError(f"{folder} holds samples of {len(specs)} different clip settings; one is needed")
        (self.spec,) = specs
        self.files = [block.path for block in self.blocks]

    def __len__(self) -> int:
        """Number of clips in all files."""
        return self.total

    def read(self, indices: Sequence[int]) -> AVSample:
        """Clips ``indices``; only those rows are read."""
        rows: dict[int, AVSample] = {}
        starts = torch.tensor([block.start for block in self.blocks])
        home = (torch.searchsorted(starts, torch.tensor(list(indices)), right=True) - 1).tolist()
        for block in sorted(set(home)):
            path, start = self.blocks[block]
            with safe_open(path, "pt") as file:
                video, audio = file.get_slice("video"), file.get_slice("audio")
                for index in (index for index, at in zip(indices, home, strict=True) if at == block):
                    row = index - start
                    rows[index] = AVSample(video=video[row : row + 1], audio=audio[row : row + 1])
        ordered = [rows[index] for index in indices]
        return AVSample(video=torch.cat([c.video for c in ordered]), audio=torch.cat([c.audio for c in ordered]))


def split_of(source: ClipSource, split: str) -> str:
    """``split``; empty where there are none: the clips of a folder of videos or samples are of neither."""
    return split if source.container in ("shards", "world") else ""


def is_endless(source: str) -> bool:
    """Whether a source is a world without a number of clips: ``world:NAME``."""
    return source.startswith("world:") and source.count(":") == 1


class StoredSource:
    """Clips that `mgct.data.numbered` reads: a prepared folder, tars, or ``world:NAME:COUNT``.

    Args:
        source: see `mgct.data.shards`; no stream.
        spec: clips wanted; None: as a prepared folder stores them, else `ClipSpec`'s defaults.
        split: `train` or `test`, where the source has both.
    """

    def __init__(self, source: str, spec: ClipSpec | None, split: str) -> None:
        from mgct.data.index import read_index
        from mgct.data.numbered import open_clips

        index = Path(source) / "index.json"
        if spec is None and index.is_file():
            spec = ClipSpec(**read_index(Path(source))["settings"]["clip"])
        self.spec = spec or ClipSpec()
        self.container = "world" if source.startswith("world:") else "shards"
        self.origin = source if self.container == "world" else Path(source).name
        self._clips = open_clips(source, self.spec, split, 0)
        self.files = [index] if index.is_file() else [Path(path) for path in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207
        if is_endless(source):
            raise UserError(f"{source} has no end: say how many clips, as in {source}:2048")

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._clips)

    def read(self, indices: Sequence[int]) -> AVSample:
        """Clips ``indices`` in stored form, of longer stored clips the first window."""
        chosen = list(indices)
        return self._clips.batch(chosen, chosen, [0] * len(chosen), [False] * len(chosen)).clips


def read_record(path: Path) -> dict[str, Any]:
    """The record of a folder of clips, its ``sampling.json``.

    Raises:
        UserError: it is damaged.
    """
    try:
        record = json.loads(path.read_text())
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged, so how the clips were made is unknown: take another folder")
    return record


def clip_of(source: str | Path) -> ClipSpec | None:
    """The facts of the clips that `mgct sample` left in a folder; None: it is not such a folder.

    Clips made for a given sound or picture are as long as that: of those only the model's own length is read.

    Raises:
        UserError: the folder's record of how they were made is damaged.
    """
    record = Path(source) / "sampling.json"
    if not record.is_file():
        return None
    made = read_record(record)
    try:
        clip = ClipSpec(**made["clip"])
        return clip if made["seconds"] is None else replace(clip, frames=round(made["seconds"] * clip.fps))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{record} is damaged: make the clips anew, or say by --clip what they are") from error


def open_as_trained(data: str, clip: ClipSpec, split: str, most: int) -> ClipSource:
    """The clips of what a model is trained on, as it sees them: windows of its own length of longer stored clips.

    Args:
        data: see `open_source`; of a world without end the first ``most`` clips.
        clip: facts of the model's clips.
        split: `train` or `test`, where the source has both.
        most: clips of a world.

    Raises:
        UserError: nothing there.
    """
    if is_endless(data):
        return StoredSource(f"{data}:{most}", clip, split)
    if (Path(data) / "index.json").is_file():
        return StoredSource(data, clip, split)
    return open_source(data, clip, split)


def open_source(source: str | Path, spec: ClipSpec | None = None, split: str = "test") -> ClipSource:
    """The clips of a source, by what it is: lossless samples, shards, a world, or else a folder of video files.

    Args:
        source: a folder of ``.safetensors`` samples, of videos, or written by ``mgct prepare``; tars;
            ``world:NAME:COUNT``.
        spec: how video files are read and worlds drawn; None: as `mgct sample` recorded that it made them, or else by
            the defaults of `ClipSpec`. Where clips are stored with their facts it is not needed.
        split: which split of a prepared folder or a world.

    Raises:
        UserError: nothing there, or samples and shards mixed.
    """
    folder = Path(source)
    if str(source).startswith("world:") or not folder.is_dir():
        if not any(mark in str(source) for mark in ":*{") and not folder.exists():
            raise UserError(
                f"{source} does not exist: give a folder of videos, of samples or of shards, or world:NAME:COUNT"
            )
        if "://" in str(source):
            raise UserError(f"{source}: clips are read in any order here; download the shards first")
        return StoredSource(str(source), spec, split)
    samples = bool(_sample_files(folder))
    shards = (folder / "index.json").is_file() or (folder / ".parts").is_dir()
    if samples and shards:
        raise UserError(f"{folder} holds both samples (.safetensors) and shards; give a folder of one kind")
    if samples:
        return SampleSource(folder)
    if shards:
        return StoredSource(str(folder), None, split)
    return VideoSource(folder, spec or clip_of(folder) or ClipSpec())


def identity(source: ClipSource) -> str:
    """A digest that stands for a source's content without reading it all: files, facts, and some clips.

    It changes when a file is added, removed or written anew (name, size, time), when clips are read otherwise, and when
    a world draws its clips in another way.

    Args:
        source: any.
    """
    digest = hashlib.sha256(repr((source.container, source.spec, len(source))).encode())
    for file in getattr(source, "files", ()):
        facts = file.stat()
        digest.update(repr((file.name, facts.st_size, facts.st_mtime_ns)).encode())
    some = source.read(range(min(len(source), 32 if source.container in {"world", "memory"} else 1)))
    for tensor in (some.video, some.audio):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
