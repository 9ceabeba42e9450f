"""How much grain is in the picture: of what a network makes of noisy real clips at once, by level; of generated clips.

    python benchmarks/grain.py world:dance --model dance --levels 0 7 36 138 300 --num 16
    python benchmarks/grain.py world:dance --clips CLIPS [CLIPS …] --num 16

Grain is the median over pixels and frames of the absolute Laplacian (four neighbours) of the grey picture: the median
passes over edges, and what is left is what smooth areas are covered with. It and the error, the root of the mean square
of x̂0 - x0, are in grey levels, of which there are 256. Real clips are of the training split.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from mgct import AVPipeline
from mgct.clip_random import derive_seed, per_clip_randn
from mgct.metrics.sources import open_as_trained, open_source
from mgct.noise import add_noise, x0_from_noise
from mgct.types import AVSample, dequantise

GREY_LEVELS = 127.5
"""In one unit of a picture in [-1, 1]."""


def grain(video: Tensor) -> float:
    """Of pictures (B, F, C, H, W) in [-1, 1]."""
    grey = video.mean(2).flatten(0, 1)[:, None]
    kernel = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return float(F.conv2d(grey, kernel).abs().median()) * GREY_LEVELS


def denoised(pipe: AVPipeline, clips: AVSample, level: int, first: int) -> Tensor:
    """The picture x̂0 (B, F, C, H, W) that the network makes of clips ``first`` … with noise of a level."""
    at = pipe.schedule.level(torch.full((len(clips.video),), level))
    seeds = [derive_seed("grain", level, first + k) for k in range(len(clips.video))]
    noise = clips.map(lambda x: per_clip_randn(x.shape[1:], seeds, "cpu"))
    noisy = clips.map(lambda x, epsilon: add_noise(x, epsilon, at), noise)
    predicted = pipe.unet(noisy.video, noisy.audio, torch.full((len(seeds),), level))
    return x0_from_noise(noisy.video, predicted.video, at).clamp(-1, 1)


@torch.no_grad()
def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", help="what a model was trained on")
    parser.add_argument("--model", help="whose x̂0 is looked at")
    parser.add_argument("--clips", nargs="*", default=[], help="folders of generated clips")
    parser.add_argument("--levels", type=int, nargs="+", default=[0, 7, 36, 138, 300])
    parser.add_argument("--num", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    if options.model is None and not options.clips:
        parser.error("nothing to look at: give --model, --clips or both")
    pipe = None if options.model is None else AVPipeline.from_pretrained(options.model)
    clip = open_source(options.clips[0]).spec if pipe is None else pipe.clip
    source = open_as_trained(options.real, clip, "train", options.num)
    parts = [range(k, min(k + options.batch, options.num)) for k in range(0, options.num, options.batch)]
    real = [dequantise(source.read(part)) for part in parts]
    print(f"real clips: grain {grain(torch.cat([part.video for part in real])):.2f}")
    for folder in options.clips:
        made = open_source(folder)
        print(f"{folder}: grain {grain(dequantise(made.read(range(options.num))).video):.2f}")
    if pipe is None:
        return
    print("\n| level | error | grain |\n|---|---|---|")
    for level in options.levels:
        found = [denoised(pipe, clips, level, part[0]) for clips, part in zip(real, parts, strict=True)]
        errors = [(made - clips.video).square().mean((1, 2, 3, 4)) for made, clips in zip(found, real, strict=True)]
        error = torch.cat(errors).mean().sqrt() * GREY_LEVELS
        print(f"| {level} | {error:.2f} | {grain(torch.cat(found)):.2f} |", flush=True)


if __name__ == "__main__":
    main()
