"""How fast clips are prepared and loaded, per CPU core, and what a training run would use up.

    python benchmarks/data.py                     # a small set of videos made on the spot
    python benchmarks/data.py --videos DIR        # your own videos
    python benchmarks/data.py --gpu-clips-per-s 400

Prints clips per second of `mgct prepare` (one process, its start not counted) and of the training loader, in the
training process and with 1, 2 and 4 worker processes; CPU seconds are those of this process and its workers.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import psutil
import torch

from mgct.data.media import write_mp4
from mgct.data.prepare import prepare
from mgct.data.shards import make_loader
from mgct.types import ClipSpec


def make_videos(folder: Path, count: int, seconds: float, height: int, width: int) -> None:
    """Videos at 30 fps with 44.1 kHz sound: a drifting texture with grain and a tone that rises."""
    generator = torch.Generator().manual_seed(0)
    frames = round(seconds * 30)
    times = torch.arange(round(frames / 30 * 44100)) / 44100
    for number in range(count):
        coarse = torch.rand(1, 3, height // 8, width // 8 + frames // 4 + 1, generator=generator)
        texture = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")[0]
        grain = torch.rand(3, height, width, generator=generator) * 0.1
        shown = [texture[:, :, 2 * frame : 2 * frame + width] * 0.9 + grain for frame in range(frames)]
        video = torch.stack(shown).clamp(0, 1).mul(255).to(torch.uint8)
        audio = (torch.sin(2 * torch.pi * (200 + 50 * number) * times * (1 + times)) * 9000).to(torch.int16)[None]
        write_mp4(folder / f"{number:03d}.mp4", video, audio, fps=30, sample_rate_hz=44100)


def cpu_seconds() -> float:
    """CPU time of this process and of its living children."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def time_prepare(videos: Path, out: Path, clip: ClipSpec) -> None:
    """Prepare in this process and print the rates."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    report = prepare(videos, out, clip, workers=0, progress=False)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    clips = sum(report.clips.values())
    print(f"prepare, 1 process  {clips / wall:8.1f} clips/s  {clips / cpu:8.1f} per CPU second  ", end="")
    print(f"({clips * clip.seconds / cpu:.0f} s of video per CPU second)")


def time_loader(source: str, clip: ClipSpec, batch_size: int, num_workers: int, batches: int) -> tuple[float, float]:
    """Clips per second, and per CPU second of everything, of the loader after a warm-up."""
    loader = iter(make_loader(source, clip, batch_size=batch_size, num_workers=num_workers))
    for _ in range(4 * max(1, num_workers)):
        next(loader)
    wall, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(batches):
        next(loader)
    clips = batches * batch_size
    return clips / (time.perf_counter() - wall), clips / (cpu_seconds() - cpu)


def main() -> None:
    """Make or take videos, prepare them, load them, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="a folder of videos; made on the spot if not given")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--gpu-clips-per-s", type=float, help="clips a second that a training step on your GPU uses up")
    args = parser.parse_args()
    clip = ClipSpec()
    print(f"clip: {clip.frames}x{clip.size}x{clip.size}, {clip.audio_samples} samples; {os.cpu_count()} CPUs")
    with tempfile.TemporaryDirectory() as folder:
        videos = args.videos
        if videos is None:
            videos = Path(folder) / "videos"
            videos.mkdir()
            make_videos(videos, count=12, seconds=9.7, height=240, width=320)
        out = Path(folder) / "out"
        time_prepare(videos, out, clip)
        best = 0.0
        for workers in (0, 1, 2, 4):
            rate, per_cpu = time_loader(str(out), clip, args.batch_size, workers, args.batches)
            best = max(best, rate)
            print(f"loader, {workers} workers   {rate:8.0f} clips/s  {per_cpu:8.0f} per CPU second")
        rate, per_cpu = time_loader("world:landscape", clip, 8, 0, 4)
        print(f"world:landscape     {rate:8.1f} clips/s  {per_cpu:8.1f} per CPU second (drawn in this process)")
        if args.gpu_clips_per_s:
            print(f"the loader gives {best / args.gpu_clips_per_s:.1f} times what the GPU uses up")


if __name__ == "__main__":
    main()
