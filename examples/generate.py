"""Generate clips with sound from a trained model, and a variation of the first.

python examples/generate.py runs/demo-train/run clips
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mgct import AVPipeline
from mgct.clip_folder import save_clips
from mgct.sampling_options import Step


def show(step: Step) -> None:
    """Say how far the sampling is, and how loud the clip's sound is by now."""
    loudness = step.clips.audio.square().mean().sqrt().item()
    print(f"call {step.call} of {step.calls}: sound at {loudness:.3f} of full scale")


def main() -> None:
    """Read the options and do it."""
    parser = argparse.ArgumentParser(description="Generate clips with sound from a trained model.")
    parser.add_argument("run", type=Path, help="a run folder made by `mgct train`")
    parser.add_argument("out", type=Path, help="folder for the clips")
    parser.add_argument("--steps", type=int, default=12, help="network calls per clip")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same clips")
    options = parser.parse_args()

    pipe = AVPipeline.from_pretrained(options.run / "model")
    how = {"steps": options.steps, "seed": options.seed, "progress": False}
    clips = pipe(num_clips=4, on_step=show, **how)
    variation = pipe(num_clips=1, variation_of=[0], variation=0.3, **how)
    paths = save_clips(clips, options.out, pipe.clip)
    paths += save_clips(variation, options.out / "variation", pipe.clip)
    print(*paths, sep="\n")


if __name__ == "__main__":
    main()
