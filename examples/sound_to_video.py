"""Make videos for the sound of a file, and one of them twice as long.

python examples/sound_to_video.py runs/demo-train/run thunder.wav clips
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mgct import AVPipeline, AVSample
from mgct.clip_folder import save_clips
from mgct.data.media import AudioReader
from mgct.errors import UserError


def main() -> None:
    """Read the options and do it."""
    parser = argparse.ArgumentParser(description="Make videos for the sound of a file.")
    parser.add_argument("run", type=Path, help="a run folder made by `mgct train`")
    parser.add_argument("sound", type=Path, help="any file with sound, as long as the model's clips or longer")
    parser.add_argument("out", type=Path, help="folder for the clips")
    parser.add_argument("--num", type=int, default=2, help="how many videos")
    parser.add_argument("--steps", type=int, default=12, help="network calls per clip")
    options = parser.parse_args()

    pipe = AVPipeline.from_pretrained(options.run / "model")
    clip = pipe.clip
    with AudioReader(options.sound, sample_rate_hz=clip.sample_rate_hz) as reader:
        samples = torch.from_numpy(reader.read(clip.audio_samples))
    if len(samples) < clip.audio_samples:
        raise UserError(f"{options.sound} is shorter than the model's clips ({clip.seconds:g} s)")
    sound = samples.float()[None] / 32768

    made = pipe.audio_to_video(sound, options.num, method="guided", steps=options.steps, progress=False)
    first = AVSample(video=made.video[:1], audio=made.audio[:1])
    longer = pipe.extend(first, seconds=2 * clip.seconds, steps=options.steps, progress=False)
    paths = [*save_clips(made, options.out, clip), *save_clips(longer, options.out / "longer", clip)]
    print(*paths, sep="\n")


if __name__ == "__main__":
    main()
