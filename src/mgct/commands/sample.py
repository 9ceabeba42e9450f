"""``mgct sample``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from accelerate.utils import gather_object

from mgct.clip_folder import BulkReport, check_count, fingerprint, sample_to_folder
from mgct.commands.upsampler import find_upsampler
from mgct.data.media import MEDIA_SUFFIXES, SOUND_SUFFIXES, MediaError, find_files, read_sound, read_video
from mgct.errors import UserError
from mgct.given import Given, Method
from mgct.layout import leave_processes, start_processes
from mgct.noise import NoiseSchedule
from mgct.pipeline import AVPipeline
from mgct.samplers import DEFAULT, get_sampler
from mgct.sampling_options import SamplingOptions
from mgct.saved_models import find_pipeline
from mgct.two_levels import best_method
from mgct.types import AVSample, ClipSpec, dequantise
from mgct.upsampler import UpsamplerUNet, upsample

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sample(
    model: str,
    out: Path,
    num: int | None = None,
    sampler: str = DEFAULT,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    format: Literal["mp4", "safetensors"] = "mp4",
    seconds: float | None = None,
    audio: Path | None = None,
    video: Path | None = None,
    start_s: float = 0.0,
    method: Method | None = None,
    guidance_scale: float | None = None,
    upsampler: Path | None = None,
    start_timestep: int | None = None,
    video_coupling: float = 1.0,
    audio_coupling: float = 1.0,
    guide: str | None = None,
    autoguidance: float | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> None:
    """Generate clips with sound into a folder. What is there already is kept; several processes share the work.

    `mgct sample` alone is `mgct sample landscape clips`.

    Args:
        model: a run folder made by `mgct train`, a saved model's folder, or a model that comes with mgct: landscape,
            dance or landscape-micro.
        out: folder of the clips, made if need be.
        num: how many clips; 8 if not given, or one for each file of a folder that is given.
        sampler: ddpm, ddim, dpm-solver, dpm-solver++, sde-dpm-solver++, unipc, consistency or map.
        steps: network calls per clip; the sampler's default if not given.
        seed: clip k of a seed is the same whatever the batch size or the number of processes.
        batch_size: clips at once; more is faster until memory is full.
        format: mp4 (H.264 and AAC), or safetensors (without loss, for `mgct evaluate`).
        seconds: length; the model's own if not given, longer ones are made in overlapping windows.
        audio: generate video for the sound of this file; or of each file of this folder, in the order of their names,
            and again from the first if more clips are wanted; all of them must do, also if fewer are.
        video: generate sound for the picture of this file, or of each of this folder likewise.
        start_s: where in a given file to begin, in seconds.
        method: how a given modality steers the other: conditional (what a model does that was trained with
            timesteps.given or independent), and for any model replacement, guided (about three times as slow, follows
            it more closely), or mm-diffusion (guided as the reference does it, with sampler ddpm). If not given:
            conditional where the model can, else replacement.
        guidance_scale: strength of all but replacement: 1 for conditional if not given (other values take twice the
            calls), else 8.
        upsampler: a run folder made by `mgct train-upsampler`, or a saved upsampler's folder; the clips are enlarged
            before they are written.
        start_timestep: the noisiest level; 700 makes more of a model that was trained for little, 999 is the schedule's
            last; the model's own if not given.
        video_coupling: how much the picture follows the sound, 1 as trained; 3 makes them agree more often. Takes one
            more network call a step, and a model that was trained with timesteps.independent.
        audio_coupling: how much the sound follows the picture, likewise.
        guide: a weaker model of the same clips, as `mgct guide` saves one with the model: the model is led away from
            its errors. It is called as often.
        autoguidance: how far, 1 not at all; if not given, the model's own, and 2 with --guide.
        precision: of the network; bf16 and fp16 are faster on a GPU, bf16 on some CPUs too (`mgct doctor` says), and
            differ from fp32 by their rounding.
    """
    if audio is not None and video is not None:
        raise UserError("give --audio or --video, not both")
    if audio is None and video is None:
        for name, value in (("start_s", start_s or None), ("method", method), ("guidance_scale", guidance_scale)):
            if value is not None:
                raise UserError(f"{name} is for what is given of the clips: give --audio or --video too")
    files = _files_of(audio, video)
    if num is None:
        num = len(files) if any(path is not None and path.is_dir() for path in (audio, video)) else 8
    check_count(num)
    options = SamplingOptions(
        steps=steps,
        sampler=sampler,
        seed=seed,
        batch_size=batch_size,
        start_timestep=start_timestep,
        video_coupling=video_coupling,
        audio_coupling=audio_coupling,
        autoguidance=autoguidance,
    )
    get_sampler(sampler, steps)  # refuses them before the model is loaded
    state = start_processes()
    loaded: Any = AVPipeline.from_pretrained(find_pipeline(model))
    if guide is not None:
        loaded.take_guide(AVPipeline.from_pretrained(find_pipeline(guide)))
    pipe: AVPipeline = loaded.to(state.device)
    pipe.cast(PRECISIONS[precision])
    enlarger = _Enlarger.load(upsampler, pipe, seed) if upsampler else None
    method = method or best_method(pipe, options)
    given = _given(pipe, files, audio is not None, start_s, seconds, method, guidance_scale)
    report = sample_to_folder(
        pipe,
        out,
        num,
        replace(options, progress=state.is_main_process),
        format=format,
        seconds=None if given is not None else seconds,
        given=given,
        rank=state.process_index,
        world_size=state.num_processes,
        finish=enlarger,
        finished_size=pipe.clip.size * enlarger.network.config["scale"] if enlarger else None,
        facts=enlarger.facts if enlarger else None,
    )
    reports: list[BulkReport] = gather_object([report])
    if state.is_main_process:
        written, found = sum(part.written for part in reports), sum(part.found for part in reports)
        rate = written / max(max(part.seconds for part in reports), 1e-9)
        by = f" by {len(reports)} processes" if len(reports) > 1 else ""
        print(f"{out}: {written} clips made{by} at {rate:.2f} clips/s" + (f", {found} were there" if found else ""))
    leave_processes()


@dataclass(frozen=True)
class _Enlarger:
    """Enlarges clips by an upsampler."""

    network: UpsamplerUNet
    seed: int

    @classmethod
    def load(cls, folder: Path, pipe: AVPipeline, seed: int) -> Self:
        """By the one saved in ``folder``, for the clips of ``pipe``."""
        network = UpsamplerUNet.from_pretrained(find_upsampler(folder)).to(pipe.unet.device)
        network.check_side(pipe.clip.size * network.config["scale"])
        return cls(network, seed)

    @property
    def facts(self) -> dict[str, str]:
        """What tells clips made with it from others."""
        return {"upsampler": fingerprint(self.network)}  # type: ignore[arg-type]

    def __call__(self, clips: AVSample, indices: Sequence[int]) -> AVSample:
        schedule = NoiseSchedule(device=self.network.device)
        return upsample(self.network, clips, schedule, seed=self.seed, indices=indices)


def _files_of(audio: Path | None, video: Path | None) -> list[Path]:
    """The file that is given, or those of the folder, in the order of their names.

    Raises:
        UserError: a folder without any.
    """
    source = audio if audio is not None else video
    if source is None or not source.is_dir():
        return [] if source is None else [source]
    kinds = MEDIA_SUFFIXES if audio is None else MEDIA_SUFFIXES | SOUND_SUFFIXES
    names = sorted(name for name in find_files(source)[0] if name.suffix.lower() in kinds)
    if not names:
        raise UserError(f"{source}: no {'video' if audio is None else 'sound or video'} file in this folder")
    return [source / name for name in names]


def _given(
    pipe: AVPipeline,
    files: Sequence[Path],
    sound: bool,
    start_s: float,
    seconds: float | None,
    method: Method,
    scale: float | None,
) -> Given | None:
    """The sound of the files, or else their picture, as long as the clips to make."""
    if not files:
        return None
    if not (math.isfinite(start_s) and start_s >= 0):
        raise UserError(f"start_s must be 0 or later, got {start_s}")
    clip = replace(pipe.clip, frames=pipe.clip.frames if seconds is None else pipe.frames_of(seconds))
    parts = [_read(file, clip, start_s, sound) for file in files]
    clips = dequantise(AVSample(torch.cat([part.video for part in parts]), torch.cat([part.audio for part in parts])))
    return Given(clips, method, scale)


def _read(path: Path, clip: ClipSpec, start_s: float, sound: bool) -> AVSample:
    """One file's sound, or its picture, as stored: video (1, F, 3, H, W) or audio (1, 1, L), and none of the other."""
    try:
        audio = read_sound(path, clip, start_s) if sound else np.empty((1, 0), np.int16)
        video = read_video(path, clip, start_s) if not sound else np.empty((0, *clip.video_shape[1:]), np.uint8)
    except MediaError as error:
        advice = {
            "no audio": "; give a file with sound",
            "no video": "; give a file with a picture",
            "too short": " (a shorter --seconds, or another file)",
        }
        raise UserError(f"{path}: {error}{advice.get(error.reason, '')}") from error
    return AVSample(video=torch.from_numpy(video)[None], audio=torch.from_numpy(audio)[None])
