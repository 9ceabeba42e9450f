"""How much of real clips' power generated ones have, by frequency: contrast and motion of the picture, and loudness.

    python benchmarks/band_power.py world:landscape:128 CLIPS [CLIPS …] --num 128

Printed is the power of each band over that of as many real clips (1: alike), mean colours taken off. Of the picture: what
does not change over time by its period in pixels, then what changes, by its period in frames. Of the sound: by octave.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from torch import Tensor

from mgct.frequency_bands import AUDIO_BANDS, VIDEO_SHAPE, band_sums, bands_of, spectra
from mgct.metrics.sources import ClipSource, open_source
from mgct.types import ClipSpec, dequantise


def powers(source: ClipSource, num: int) -> dict[str, float]:
    """Power by what is printed, of the first ``num`` clips."""
    clip = source.spec
    mean = torch.zeros(3)
    parts = [range(first, min(first + 16, num)) for first in range(0, num, 16)]
    for part in parts:
        mean += dequantise(source.read(part)).video.mean((1, 3, 4)).sum(0) / num
    video, audio = torch.zeros(VIDEO_SHAPE), torch.zeros(AUDIO_BANDS)
    bands = bands_of(clip.frames, clip.size, clip.size, clip.audio_samples)
    for part in parts:
        found = spectra(dequantise(source.read(part)), mean)
        sums = band_sums(found, found, bands)
        video += sums.video.view(VIDEO_SHAPE) / num
        audio += sums.audio / num
    return named(video.sum(0), audio, clip)


def named(video: Tensor, audio: Tensor, clip: ClipSpec) -> dict[str, float]:
    """Sums over the bands of time × space, and of the sound."""
    still, moving = video[-1], video[:-1].sum(1)
    rows = {"colour": still[-1], "> 32 px": still[9:-1].sum()}
    rows |= {f"{2 << k}-{4 << k} px": still[_octave(k)].sum() for k in (3, 2, 1, 0)}
    rows |= {"> 8 frames": moving[3], "4-8 frames": moving[2], "2-4 frames": moving[:2].sum()}
    for octave in range(6, -1, -1):
        top = clip.sample_rate_hz / 2 / 2**octave
        rows[f"{top / 2:g}-{top:g} Hz"] = audio[_octave(octave)].sum()
    rows["lower"] = audio[15:].sum()
    return {name: float(value) for name, value in rows.items()}


def _octave(number: int) -> slice:
    """Which half octaves are octave ``number`` below the Nyquist frequency: the first of them is that frequency alone."""
    return slice(2 * number + (number > 0), 2 * number + 3)


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real")
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--num", type=int, default=128)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sources = [open_source(clips) for clips in options.clips]
    real = powers(open_source(options.real, sources[0].spec), options.num)
    made = [powers(source, options.num) for source in sources]
    print(f"| of real clips' power | {' | '.join(options.clips)} |\n|---|{'---|' * len(made)}")
    for name, power in real.items():
        if power > 0:
            print(f"| {name} | {' | '.join(f'{one[name] / power:.2f}' for one in made)} |")


if __name__ == "__main__":
    main()
