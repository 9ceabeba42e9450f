"""What its class tells of a noisy clip: how much of x̂0's error a denoiser is spared that knows the class.

    python benchmarks/class_tells.py landscape --config configs/micro.yaml

The denoiser is the best linear one for Gaussians of independent Fourier coefficients: x̂0 = μ + α P/(α² P + σ²) (x - α μ),
with mean μ and power P of all real clips, or of those of the clip's class, fitted on half of the clips and measured on
the other half. That is a lower bound of what the sound can tell of the picture, and the picture of the sound, if either
says its class: what tells nothing here teaches a network nothing of the other modality but what is in time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import yaml
from torch import Tensor

from mgct import ClipSpec
from mgct.clip_random import derive_seed
from mgct.data.worlds import get_world
from mgct.noise import NoiseSchedule
from mgct.types import concatenate, dequantise, quantise

LEVELS = (100, 300, 500, 700, 850, 999)
SHRINK = 20
"""A class's statistics are drawn towards those of all clips, as so many further clips would."""


def spared(spectra: Tensor, labels: Tensor, level: int) -> float:
    """The share of the error of x̂0 of spectra (N, …) that knowing the labels (N,) takes away, at a noise level."""
    alpha, sigma = (float(rate) for rate in NoiseSchedule().level(torch.tensor([float(level)])))
    fitted = torch.arange(len(spectra)) % 2 == 0

    def statistics(chosen: Tensor) -> tuple[Tensor, Tensor]:
        mean = spectra[chosen].mean(0)
        return mean, (spectra[chosen] - mean).abs().square().mean(0)

    def errors(chosen: Tensor, mean: Tensor, power: Tensor) -> Tensor:
        gain = alpha * power / (alpha**2 * power + sigma**2)
        squares = (spectra[chosen] - mean).abs().square()
        return ((1 - alpha * gain) ** 2 * squares + (gain * sigma) ** 2).flatten(1).mean(1)

    of_all = statistics(fitted)
    known = []
    for label in labels.unique():
        own = statistics(fitted & (labels == label))
        count = int((fitted & (labels == label)).sum())
        drawn = (torch.lerp(whole, part, count / (count + SHRINK)) for whole, part in zip(of_all, own, strict=True))
        known.append(errors(~fitted & (labels == label), *drawn))
    return 1 - float(torch.cat(known).mean() / errors(~fitted, *of_all).mean())


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world")
    parser.add_argument("--config", type=Path, default=Path("configs/micro.yaml"), help="the clip's facts are its")
    parser.add_argument("--num", type=int, default=3000)
    options = parser.parse_args()
    world, spec = get_world(options.world), ClipSpec(**yaml.safe_load(options.config.read_text())["clip"])
    seed = derive_seed("class tells")
    parts = torch.arange(options.num).split(64)
    clips = concatenate([dequantise(quantise(world.render(part, spec, seed=seed).clips)) for part in parts])
    labels = world.labels(range(options.num), seed)
    picture = torch.fft.fftn(clips.video, dim=(1, 3, 4), norm="ortho")
    sound = torch.fft.fft(clips.audio, dim=2, norm="ortho")
    print(f"{options.num} clips of {options.world}\n\n| level | picture | sound |\n|---|---|---|")
    for level in LEVELS:
        print(f"| {level} | {spared(picture, labels, level):.1%} | {spared(sound, labels, level):.1%} |", flush=True)


if __name__ == "__main__":
    main()
