"""Contact sheets of the procedural worlds: rows of frames above each clip's spectrogram.

python benchmarks/world_sheets.py docs/images                       # the sheets of docs/worlds.md
python benchmarks/world_sheets.py sheets --world dance --per-class 3 --size 64
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from mgct.data.worlds import WorldClips, get_world, world_names
from mgct.types import ClipSpec


def spectrogram(audio: torch.Tensor, sample_rate_hz: int, width: int, height: int) -> np.ndarray:
    """(L,) sound as RGB (height, width, 3): 70 dB of range, frequency logarithmic, low at the bottom."""
    import matplotlib

    window = min(1024, max(128, sample_rate_hz // 16))
    hop = max(1, len(audio) // width)
    power = torch.stft(audio, window, hop, window=torch.hann_window(window), return_complex=True).abs().square()
    bins = torch.logspace(np.log10(1.5), np.log10(window // 2 - 1), height)
    level = 10 * torch.log10(power[bins.long()] + 1e-7)
    shown = (((level + 35) / 70).clamp(0, 1).flip(0)[:, :width] * 20).round() / 20  # few tones: a small file
    return (matplotlib.colormaps["magma"](shown.numpy())[..., :3] * 255).astype(np.uint8)


def tile(drawn: WorldClips, row: int, clip: ClipSpec, zoom: int, columns: int, strip: int) -> np.ndarray:
    """One clip: every frame (or every second, …) in a row, then its spectrogram with event times as ticks."""
    step = max(1, clip.frames // columns)
    frames = drawn.clips.video[row, ::step][:columns]
    picture = ((frames.permute(2, 0, 3, 1).flatten(1, 2) + 1) * 127.5).round().byte().numpy()
    picture = picture.repeat(zoom, 0).repeat(zoom, 1)
    width = picture.shape[1]
    sound = spectrogram(drawn.clips.audio[row, 0], clip.sample_rate_hz, width, strip)
    sound = np.pad(sound, ((0, 0), (0, width - sound.shape[1]), (0, 0)), mode="edge")
    for time_s in drawn.events_s[row]:
        at = min(width - 1, int(time_s / clip.seconds * width))
        sound[:6, at : at + 2] = (120, 255, 160)
    return np.concatenate([picture, sound, np.full((6, width, 3), 255, np.uint8)])


def sheet(name: str, path: Path, clip: ClipSpec, per_class: int, columns: int, labels: tuple[int, ...] | None) -> None:
    """Draw ``per_class`` clips of each class of world ``name`` side by side and save the sheet."""
    from PIL import Image, ImageDraw

    world = get_world(name)
    table = world.labels(range(4000), seed=11)
    zoom = max(1, round(64 / clip.size))
    rows = []
    for label in labels or range(len(world.classes)):
        chosen = torch.nonzero(table == label)[:per_class, 0]
        drawn = world.render(chosen, clip, seed=11)
        tiles = [tile(drawn, row, clip, zoom, columns, 48) for row in range(per_class)]
        gap = np.full((tiles[0].shape[0], 8, 3), 255, np.uint8)
        body = np.concatenate([part for one in tiles for part in (one, gap)][:-1], 1)
        head = Image.new("RGB", (body.shape[1], 16), "white")
        ImageDraw.Draw(head).text((4, 2), world.classes[label], fill="black")
        rows += [np.asarray(head), body]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path, optimize=True)


def main() -> None:
    """Read the command line and write the sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--world", choices=world_names())
    parser.add_argument("--per-class", type=int, default=2)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--size", type=int, choices=(16, 32, 64, 128))
    parser.add_argument("--labels", type=int, nargs="*")
    options = parser.parse_args()
    small = {
        16: ClipSpec(frames=8, fps=10, size=16, sample_rate_hz=2560),
        32: ClipSpec(frames=16, fps=10, size=32, sample_rate_hz=8000),
        64: ClipSpec(frames=16, fps=10, size=64, sample_rate_hz=16000),
        128: ClipSpec(frames=16, fps=10, size=128, sample_rate_hz=16000),
    }
    for name in [options.world] if options.world else world_names():
        for size in [options.size] if options.size else (64, 16):
            path = options.out / f"worlds-{name}-{size}.png"
            labels = tuple(options.labels) if options.labels else None
            sheet(name, path, small[size], options.per_class, options.columns, labels)
            print(path)


if __name__ == "__main__":
    main()
