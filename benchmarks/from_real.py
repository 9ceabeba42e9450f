"""Where a model errs: real clips, given noise up to a level and taken back by the model.

    python benchmarks/from_real.py dance world:dance CLIPS --level 300 --calls 8 --num 128
    python benchmarks/class_distances.py dance CLIPS --num 128

The lower the level, the more of a real clip is left, and the fewer levels' errors are in what comes back: the distances
of such clips by level say at which levels the distance of generated ones arises. Clips of the training split are taken;
nothing is calibrated, and nothing but noise is put in.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from mgct import AVPipeline
from mgct.clip_folder import save_clips
from mgct.clip_random import derive_seed, per_clip_randn
from mgct.grids import Point
from mgct.metrics.sources import open_as_trained
from mgct.noise import add_noise
from mgct.predictors import clipped
from mgct.samplers import DEFAULT, get_sampler
from mgct.sampling_options import SamplingOptions
from mgct.types import AVSample, dequantise, pack, unpack


def back(pipe: AVPipeline, clips: AVSample, indices: list[int], options: SamplingOptions) -> AVSample:
    """Clips (B, …) with noise up to ``options.start_timestep``, as the model takes them back."""
    shapes = clips.map(lambda x: x.shape[1:])
    network, schedule, x0 = pipe.network(options), pipe.schedule_of(options), pack(clips)

    def noise(*what: int | str) -> Tensor:
        seeds = [derive_seed(options.seed, "from real", index, *what) for index in indices]
        return per_clip_randn((x0.shape[1],), seeds, "cpu").to(x0)

    def predict(x: Tensor, point: Point) -> Tensor:
        return pack(network(unpack(x, shapes), point))

    level = schedule.level(torch.tensor([schedule.num_timesteps - 1.0]))
    sampler, calls = get_sampler(options.sampler, options.steps)
    start = add_noise(x0, noise("start"), level)
    return unpack(sampler.run(clipped(predict), start, schedule, calls, lambda step: noise("step", step)), shapes)


@torch.no_grad()
def main() -> None:
    """Read the options, take clips back, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", help="what it was trained on")
    parser.add_argument("out", type=Path)
    parser.add_argument("--level", type=int, required=True)
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--sampler", default=DEFAULT)
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    options = parser.parse_args()
    pipe = AVPipeline.from_pretrained(options.model).to(options.device)
    if options.precision == "bf16":
        pipe.cast(torch.bfloat16)
    source = open_as_trained(options.data, pipe.clip, "train", options.num)
    how = SamplingOptions(steps=options.calls, sampler=options.sampler, start_timestep=options.level)
    for first in range(0, options.num, options.batch):
        indices = list(range(first, min(first + options.batch, options.num)))
        made = back(pipe, dequantise(source.read(indices)).to(options.device), indices, how)
        save_clips(made.to("cpu"), options.out, pipe.clip, indices=indices, format="safetensors")
        print(f"{indices[-1] + 1} of {options.num}", flush=True)


if __name__ == "__main__":
    main()
