"""Generated clips in a folder: written whole or not at all, resumable, by any number of processes."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mgct.calibration import TABLES
from mgct.checkpoint import refuse_model_folder
from mgct.errors import UserError
from mgct.files import write_whole
from mgct.given import Given
from mgct.metrics.sources import read_record
from mgct.pipeline import AVPipeline
from mgct.sampling_options import SamplingOptions
from mgct.types import AVSample, ClipSpec, concatenate, dequantise, quantise

Format = Literal["mp4", "safetensors"]


def save_clips(
    clips: AVSample,
    folder: str | Path,
    clip: ClipSpec,
    *,
    indices: Sequence[int] | None = None,
    format: Format = "mp4",
) -> list[Path]:
    """Write clips to a folder, each file complete or absent.

    ``mp4``: one file per clip, ``clip_000012.mp4``, H.264 and AAC. ``safetensors``: one file for all, without loss,
    ``clips_000000-000063.safetensors``: video uint8 (N, F, 3, H, W), audio int16 (N, 1, L), metadata ``clip`` (the
    `ClipSpec` as JSON) and ``indices``; `load_clips` reads it.

    Args:
        clips: video and audio in [-1, 1].
        folder: made if need be.
        clip: their facts.
        indices: their numbers, for the file names; None: 0, 1, ….
        format: ``mp4`` or ``safetensors``.

    Returns:
        The files written.
    """
    indices, folder = list(range(len(clips.video))) if indices is None else list(indices), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = quantise(clips)
    if format == "safetensors":
        path = folder / _shard_name(indices)
        tensors = {"video": stored.video.contiguous(), "audio": stored.audio.contiguous()}
        metadata = {"clip": json.dumps(asdict(clip)), "indices": json.dumps(indices)}
        write_whole(path, lambda temporary: save_file(tensors, temporary, metadata))
        return [path]
    if format != "mp4":
        raise UserError(f"unknown format {format!r}; choose one of: {', '.join(get_args(Format))}")
    from mgct.data.media import write_mp4

    paths = [folder / _clip_name(index) for index in indices]
    for path, video, audio in zip(paths, stored.video, stored.audio, strict=True):
        write_mp4(path, video, audio, fps=clip.fps, sample_rate_hz=clip.sample_rate_hz)
    return paths


def load_clips(path: str | Path) -> tuple[AVSample, ClipSpec]:
    """Clips in [-1, 1] and their facts from a safetensors file of `save_clips`.

    Raises:
        UserError: not such a file.
    """
    try:
        with safe_open(path, "pt") as file:
            clip = ClipSpec(**json.loads(file.metadata()["clip"]))
            stored = AVSample(video=file.get_tensor("video"), audio=file.get_tensor("audio"))
    except Exception as error:
        raise UserError(
            f"{path} is not a file of clips written by `mgct sample --format safetensors`: {error}"
        ) from error
    return dequantise(stored), clip


def check_count(num_clips: int) -> None:
    """Refuse to make no clips, or more than the names of their files are for."""
    if not 1 <= num_clips <= 10**6:
        raise UserError(f"a folder holds 1 to 1,000,000 clips, got num={num_clips}: choose another number")


def _clip_name(index: int) -> str:
    return f"clip_{index:06d}.mp4"


def _shard_name(indices: Sequence[int]) -> str:
    return f"clips_{indices[0]:06d}-{indices[-1]:06d}.safetensors"


@dataclass(frozen=True)
class BulkReport:
    """What `sample_to_folder` did in this process: clips written and found, seconds taken."""

    written: int
    found: int
    seconds: float

    @property
    def clips_per_second(self) -> float:
        """Clips written per second."""
        return self.written / self.seconds if self.seconds else 0.0


def sample_to_folder(
    pipe: AVPipeline,
    folder: Path,
    num_clips: int,
    options: SamplingOptions,
    *,
    format: Format = "mp4",
    seconds: float | None = None,
    given: Given | None = None,
    rank: int = 0,
    world_size: int = 1,
    shard_size: int = 64,
    finish: Callable[[AVSample, list[int]], AVSample] | None = None,
    finished_size: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> BulkReport:
    """Generate clips 0 … num_clips-1 into a folder, as `save_clips` writes them.

    Files that are there already are kept and not made again, so an interrupted run goes on where it was. Processes need
    not talk: process r of R makes every R-th file. ``sampling.json`` in the folder says how the clips were made, and
    a run that would mix others in is refused.

    Args:
        pipe: the model.
        folder: made if need be.
        num_clips: how many clips the folder shall hold.
        options: how they are sampled.
        format: ``mp4`` (a file per clip) or ``safetensors`` (a file per ``shard_size`` clips).
        seconds: duration, None: the model's own.
        given: a part that is given, in N versions: clip k has version k modulo N.
        rank: this process.
        world_size: number of processes.
        shard_size: clips per safetensors file.
        finish: applied to each batch and its indices before it is written (an upsampler, say).
        finished_size: side of a picture after ``finish``, if it changes it.
        facts: what else decides what is in the files, for the record.

    Raises:
        UserError: the folder holds clips that were made otherwise; and as in `AVPipeline.__call__`.
    """
    check_count(num_clips)
    refuse_model_folder(folder)
    size = 1 if format == "mp4" else shard_size
    files = [range(first, min(first + size, num_clips)) for first in range(0, num_clips, size)][rank::world_size]
    missing = [file for file in files if not (folder / _file_name(file, format)).exists()]
    indices = [index for file in missing for index in file]
    own = None if given is None else given.in_turn(indices)
    batches = pipe.stream(indices, options, seconds=seconds, given=own)  # what cannot be made claims no folder
    folder.mkdir(parents=True, exist_ok=True)
    clip = replace(pipe.clip, size=finished_size or pipe.clip.size)
    record = _record(pipe, options, num_clips, format, seconds, given, shard_size)
    _claim_folder(folder, {**record, "clip": asdict(clip), **(facts or {})})
    _remove_halves(folder, {_file_name(file, format) for file in missing})
    started = time.monotonic()
    pending: list[AVSample] = []
    for batch, clips in batches:
        pending.append(finish(clips, batch) if finish is not None else clips)
        while missing and sum(len(part.video) for part in pending) >= len(missing[0]):
            done, pending = _split(concatenate(pending), len(missing[0]))
            spec = replace(pipe.clip, frames=done.video.shape[1], size=done.video.shape[-1])
            save_clips(done, folder, spec, indices=missing.pop(0), format=format)
    found = sum(len(file) for file in files) - len(indices)
    return BulkReport(written=len(indices), found=found, seconds=time.monotonic() - started)


def _file_name(indices: Sequence[int], format: Format) -> str:
    return _clip_name(indices[0]) if format == "mp4" else _shard_name(indices)


def _remove_halves(folder: Path, names: set[str]) -> None:
    """Delete what a killed process left half-written of these files; other processes' are theirs."""
    for path in folder.glob(".*"):
        found = re.search(r"clips?_[\d-]+\.(mp4|safetensors)", path.name)
        if found and found[0] in names:
            path.unlink(missing_ok=True)


def _split(clips: AVSample, count: int) -> tuple[AVSample, list[AVSample]]:
    """The first ``count`` clips, and a list of the rest, if any."""
    rest = clips.map(lambda part: part[count:])
    return clips.map(lambda part: part[:count]), [rest] if len(rest.video) else []


def _record(
    pipe: AVPipeline,
    options: SamplingOptions,
    num_clips: int,
    format: Format,
    seconds: float | None,
    given: Given | None,
    shard_size: int,
) -> dict[str, Any]:
    """Everything that decides what is in the files of a folder."""
    sampler: Any = options.sampler
    record: dict[str, Any] = {
        "model": fingerprint(pipe.unet),
        "clip": asdict(pipe.clip),
        "sampler": sampler if isinstance(sampler, str) else f"{type(sampler).__name__} {dict(sampler.config)}",
        "steps": options.calls,
        "seed": options.seed,
        "clip_x0": options.clip_x0,
        "window_shift": options.window_shift,
        "seconds": seconds,
        "format": format,
    }
    if pipe.coarse_start is not None:
        record["coarse_start"] = fingerprint(pipe.coarse_start)
    if (gains := pipe.gains(options, given)) is not None:
        record["calibration"] = _digest(getattr(gains, name) for name in TABLES)
    start = pipe.start_timestep(options)
    if start != pipe.schedule.num_timesteps - 1:
        record["start_timestep"] = start
    if (device := pipe._execution_device.type) != "cpu":  # it draws and rounds otherwise
        record["device"] = device
    if options.variation_of:
        record["variation"] = {"of": list(options.variation_of), "amount": options.variation}
    if options.coupled:
        record["coupling"] = {"video": options.video_coupling, "audio": options.audio_coupling}
    if (scale := pipe.autoguidance(options)) != 1:
        record["autoguidance"] = {"scale": scale, "guide": fingerprint(pipe.guide)}
    if given is not None:
        record["given"] = {
            "content": _digest([given.start.video, given.start.audio]),
            "method": given.method,
            "guidance_scale": given.scale,
        }
    if format == "safetensors":
        record |= {"num_clips": num_clips, "shard_size": shard_size}
    return record


def _claim_folder(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of how the clips are made, or compare it with that of the clips that are there."""
    path, text = folder / "sampling.json", json.dumps(record, indent=1, default=str)
    # looked at first: another process writes the record before its first clip
    clips = any(folder.glob("clip*.mp4")) or any(folder.glob("clips_*.safetensors"))
    if clips and not path.exists():
        raise UserError(f"{folder} holds clips without a record of how they were made; choose an empty folder")
    before, now = read_record(path) if path.exists() else {}, json.loads(text)
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing and not clips:
        write_whole(path, lambda temporary: temporary.write_text(text + "\n"))
    elif differing:
        changes = ", ".join(f"{key} {before.get(key)!r} → {now.get(key)!r}" for key in differing)
        raise UserError(f"{folder} holds clips made otherwise ({changes}); choose another folder, or empty it")


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint(model: torch.nn.Module) -> str:
    """A short digest of a model's weights: equal for equal weights."""
    return _digest(tensor for _, tensor in sorted(model.state_dict().items()))
