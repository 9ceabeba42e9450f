"""``mgct doctor``, and what ``mgct --version`` says."""

from __future__ import annotations

import os
import platform
import runpy
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

from mgct.errors import UserError

REPORTED = ("torch", "diffusers", "accelerate", "av")
"""Packages whose versions belong into a bug report."""
OPTIONAL = ("gradio",)
"""Packages that a part of the program needs."""


def versions() -> dict[str, str]:
    """What a bug report should name: Python, the packages of `REPORTED`, and the CUDA that torch was built for."""
    found = {"python": platform.python_version()}
    for package in REPORTED:
        found[package] = _version(package)
    torch = util.find_spec("torch")
    built_for = runpy.run_path(str(Path(torch.origin).with_name("version.py"))) if torch and torch.origin else {}
    found["CUDA"] = built_for.get("cuda") or "none (torch is built without it)"
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def doctor(folder: Path = Path()) -> None:
    """Say what is installed, on what device, which weights are there, and test in seconds that the whole path works.

    Args:
        folder: where to look for room on the disk; it may hold clips and runs.
    """
    from mgct import __version__

    sections = {
        "installed": [("mgct", __version__), *versions().items(), *((name, _version(name)) for name in OPTIONAL)],
        "device": list(_device()),
        "disk and memory": list(_room(folder)),
        "weights": list(_weights()),
    }
    for title, rows in sections.items():
        print(title)
        for name, value in rows:
            print(f"  {name:<14} {value}")
    print("self-test")
    failed = False
    for name, check in CHECKS.items():
        started = time.monotonic()
        try:
            said = check()
        except Exception as error:  # reported, and told by the exit status
            failed, said = True, f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"  {name:<14} {said} ({time.monotonic() - started:.1f} s)")
    if failed:
        raise UserError("the self-test failed; report it with all of the above")


def _device() -> Iterator[tuple[str, str]]:
    import torch

    from mgct.products import by_onednn, fast_bfloat16, times_as_long

    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if fast_bfloat16():
        half = "bfloat16 products: --train.precision bf16 pays"
    else:
        half = f"no bfloat16 products ({times_as_long(torch.bfloat16):.1f} times the time of float32's)"
    library = ", float32 products by oneDNN" if by_onednn() else ""
    yield "CPU", f"{cores} cores, torch uses {torch.get_num_threads()} threads, {half}{library}"
    if not torch.cuda.is_available():
        yield "GPU", "none that torch can use"
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield f"GPU {number}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, {bf16}"


def _room(folder: Path) -> Iterator[tuple[str, str]]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    yield "disk", f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free in {folder.resolve()}"
    memory = Path("/proc/meminfo")
    if memory.is_file():
        line = next((line for line in memory.read_text().splitlines() if line.startswith("MemAvailable:")), None)
        if line is not None:
            yield "memory", f"{int(line.split()[1]) / 2**20:.1f} GiB free"


def _weights() -> Iterator[tuple[str, str]]:
    from mgct.metrics.weights import NETWORKS, cache_folder, ensure_weights

    for name in NETWORKS:
        path = cache_folder() / "weights" / f"{name}.safetensors"
        if not path.is_file():
            yield name, f"not there (mgct weights {name})"
            continue
        try:
            known = ensure_weights(name)
        except UserError as error:
            yield name, str(error)
        else:
            state = "whole, as published" if known.pinned else "whole, of another source than the published ones"
            yield name, f"{state} ({path.stat().st_size / 1e6:.0f} MB)"
    yield "folder", str(cache_folder() / "weights")


# ---------------------------------------------------------------------------------------------- the self-test


def _check_training() -> str:
    """Two optimiser steps on two procedural clips: the loss is finite and its gradient reaches every parameter."""
    import torch

    from mgct.clip_random import ClipRandom
    from mgct.data.worlds import get_world
    from mgct.losses import multimodal_loss
    from mgct.noise import NoiseSchedule
    from mgct.types import AVSample

    unet, clip = _tiny()
    clips = get_world("landscape").render([0, 1], clip).clips
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-3)
    schedule, losses = NoiseSchedule(), []
    for step in range(2):
        optimizer.zero_grad()
        random = ClipRandom([2 * step, 2 * step + 1])
        noise = AVSample(video=random.normal("video", clip.video_shape), audio=random.normal("audio", clip.audio_shape))
        timestep = random.integers("timestep", schedule.num_timesteps)
        loss = multimodal_loss(unet, clips, noise, timestep, schedule).loss.mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    missing = [name for name, parameter in unet.named_parameters() if parameter.grad is None]
    if missing or not all(value == value and value < float("inf") for value in losses):
        raise RuntimeError(f"losses {losses}, no gradient for {missing[:3]}")
    return f"ok, loss {losses[0]:.3f} then {losses[1]:.3f}"


def _check_sampling() -> str:
    """A clip of an untrained network comes out twice the same, finite, in range."""
    import torch

    from mgct.pipeline import AVPipeline

    unet, clip = _tiny()
    pipe = AVPipeline(unet, clip)
    first, second = (pipe(1, 4, seed=0, progress=False) for _ in range(2))
    same = torch.equal(first.video, second.video) and torch.equal(first.audio, second.audio)
    if not same or not torch.isfinite(first.video).all() or first.audio.abs().max() > 1:
        raise RuntimeError("the same seed gave two clips, or one out of range")
    return "ok, the same seed gives the same clip"


def _check_media() -> str:
    """A clip is written as mp4 and read back: as long as it was, and as it looked."""
    import torch

    from mgct.data.media import read_clip, write_mp4
    from mgct.types import ClipSpec

    clip = ClipSpec(8, 10.0, 32, 16000)
    ramp = torch.linspace(0, 255, 32).to(torch.uint8)
    video = ramp.expand(8, 3, 32, 32).contiguous()
    audio = (torch.sin(torch.arange(clip.audio_samples) * 440 * 6.2832 / 16000) * 9000).to(torch.int16)[None]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_mp4(path, video, audio, fps=clip.fps, sample_rate_hz=clip.sample_rate_hz)
        back = read_clip(path, clip)
    error = (back.video.float() - video.float()).abs().mean().item()
    correlation = float(torch.corrcoef(torch.stack([back.audio[0].float(), audio[0].float()]))[0, 1])
    if error > 8 or correlation < 0.9:
        raise RuntimeError(f"mean error {error:.1f} of 255 levels, correlation of the sound {correlation:.2f}")
    return f"ok, mp4 with H.264 and AAC (mean error {error:.1f} of 255, sound {correlation:.3f})"


CHECKS = {"training": _check_training, "sampling": _check_sampling, "media": _check_media}


def _tiny() -> tuple[Any, Any]:
    """A network that costs nothing, with every kind of block, and its clip."""
    import torch

    from mgct.types import ClipSpec
    from mgct.unet import MultimodalUNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = MultimodalUNet(
            model_channels=16,
            channel_mult=(1, 2),
            num_res_blocks=1,
            cross_attention_resolutions=(2,),
            cross_attention_windows=(2,),
            video_attention_resolutions=(2,),
            num_head_channels=16,
            norm_num_groups=8,
            dropout=0.0,
        )
    return unet, ClipSpec(8, 10.0, 16, 2560)
