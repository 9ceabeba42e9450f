"""Train a bundled compact encoder on the procedural worlds, and state how good it is.

    python benchmarks/train_compact.py video --work compact-work --out src/mgct/metrics/encoders

It draws clips of both worlds (0.8 s, 8 frames of 64×64, 16 kHz), keeps them in --work, trains the network on one
thread to name the class, the scene's factors and the strength of each kind of damage, and writes the weights and
`compact_video.json` (accuracy on held-out clips, settings). Minutes of CPU time each; the clips are drawn once.

    python benchmarks/train_compact.py video --work compact-work --probe

trains nothing of the network: it fits a linear classifier of the bundled network's features to the classes of the
training clips, and prints its accuracy on the held-out clips of each world.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mgct import ClipSpec
from mgct.clip_random import derive_seed
from mgct.data.worlds import get_world
from mgct.metrics import corruptions
from mgct.metrics.encoders import compact
from mgct.types import quantise

SPEC = ClipSpec(frames=compact.FRAMES, fps=10.0, size=compact.SIZE, sample_rate_hz=compact.SAMPLE_RATE_HZ)
WORLDS = ("landscape", "dance")
BATCH = 32


class Clips(NamedTuple):
    """Clips on disk with their targets: labels over both worlds' classes, factors with NaN where a scene has none."""

    video: np.ndarray
    audio: np.ndarray
    labels: Tensor
    factors: Tensor


def classes() -> list[str]:
    """Names of all classes of both worlds."""
    return [f"{name}/{label}" for name in WORLDS for label in get_world(name).classes]


def draw(folder: Path, count: int, part: str) -> Clips:
    """``count`` clips of each world, drawn once into ``folder``."""
    target = folder / f"{part}_{count}"
    total = count * len(WORLDS)
    shapes = {"video": (total, *SPEC.video_shape), "audio": (total, SPEC.audio_samples)}
    if not (target / "targets.pt").exists():
        target.mkdir(parents=True, exist_ok=True)
        video = np.lib.format.open_memmap(target / "video.npy", "w+", np.uint8, shapes["video"])
        audio = np.lib.format.open_memmap(target / "audio.npy", "w+", np.int16, shapes["audio"])
        labels, rows, offset = [], [], 0
        for position, name in enumerate(WORLDS):
            world = get_world(name)
            for start in tqdm(range(0, count, 64), desc=f"{part} {name}"):
                indices = range(start, min(start + 64, count))
                drawn = world.render(indices, SPEC, seed=derive_seed("compact", part) % 2**31)
                stored = quantise(drawn.clips)
                at = slice(position * count + start, position * count + start + len(indices))
                video[at], audio[at] = stored.video.numpy(), stored.audio[:, 0].numpy()
                labels.append(drawn.labels + offset)
                rows.append({f"{name}/{key}": value for key, value in drawn.factors.items()})
            offset += len(world.classes)
        names = sorted({key for row in rows for key in row})
        columns = [
            torch.cat(
                [
                    row.get(key, torch.full((len(part_labels),), float("nan")))
                    for row, part_labels in zip(rows, labels, strict=True)
                ]
            )
            for key in names
        ]
        torch.save(
            {"labels": torch.cat(labels), "factors": torch.stack(columns, 1), "names": names}, target / "targets.pt"
        )
    targets = torch.load(target / "targets.pt", weights_only=True)
    arrays = [np.load(target / f"{name}.npy", mmap_mode="r") for name in ("video", "audio")]
    return Clips(*arrays, targets["labels"], targets["factors"])


def damaged(
    clips: Tensor, kinds: dict[str, tuple[corruptions.Corruption, float]], share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Each clip with each kind of damage by chance, and the strengths (B, kinds) in [0, 1]."""
    strengths = torch.rand(len(clips), len(kinds), generator=generator)
    strengths *= torch.rand(len(clips), len(kinds), generator=generator) < share
    out = []
    for clip, row in zip(clips, strengths, strict=True):
        one = clip[None]
        for (function, most), strength in zip(kinds.values(), row.tolist(), strict=True):
            if strength > 0:
                one = function(one, strength * most, generator)
        out.append(one)
    return torch.cat(out), strengths


def video_batch(clips: Clips, rows: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Network input and strengths; a third of the clips at a quarter or half of the size, their blur not asked for."""
    video = torch.from_numpy(clips.video[np.sort(rows.numpy())]).float() / 127.5 - 1
    flip = torch.rand(len(video), generator=generator) < 0.5
    video = torch.where(flip[:, None, None, None, None], video.flip(-1), video)
    small = torch.rand(len(video), generator=generator)
    parts, strengths = [], []
    for clip, chance in zip(video, small.tolist(), strict=True):
        size = 16 if chance < 0.2 else 32 if chance < 0.35 else compact.SIZE
        native = (
            F.interpolate(clip, size=(size, size), mode="bilinear", antialias=True) if size < compact.SIZE else clip
        )
        damage, strength = damaged(native[None], corruptions.VIDEO, share, generator)
        if size < compact.SIZE:
            strength[:, list(corruptions.VIDEO).index("blur")] = float("nan")
        stored = ((damage.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        parts.append(compact.video_segments(stored)[:, 0])
        strengths.append(strength)
    return torch.cat(parts), torch.cat(strengths)


def audio_batch(clips: Clips, rows: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Network input and strengths; a third of the clips as if recorded at 2,560 Hz, their low-pass not asked for."""
    audio = torch.from_numpy(clips.audio[np.sort(rows.numpy())]).float()[:, None] / 32768
    narrow = torch.rand(len(audio), generator=generator) < 0.33
    audio = torch.where(narrow[:, None, None], corruptions.audio_low_pass(audio, 2.644, generator), audio)
    damage, strengths = damaged(audio, corruptions.AUDIO, share, generator)
    strengths[narrow, list(corruptions.AUDIO).index("low_pass")] = float("nan")
    stored = (damage.clamp(-1, 1) * 32767).round() / 32768
    return compact.audio_segments(stored[:, 0])[:, 0], strengths


def masked_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error where the target is known."""
    known = ~torch.isnan(wanted)
    return ((found - torch.nan_to_num(wanted)).square() * known).sum() / known.sum().clamp(min=1)


Batch = Callable[[Clips, Tensor, float, torch.Generator], tuple[Tensor, Tensor]]


def train(network: nn.Module, make: Batch, kinds: int, data: Clips, steps: int, seed: int) -> nn.Module:
    """The network trained for ``steps`` batches; returns its head for the class."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    total = len(classes())
    mean, std = data.factors.nanmean(0), torch.from_numpy(np.nanstd(data.factors.numpy(), 0)) + 1e-6
    factors = ((data.factors - mean) / std).clamp(-3, 3)
    width = total + factors.shape[1] + kinds
    head = nn.Linear(compact.DIMENSION, width)
    parameters = [*network.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.15)
    network.train()
    running = 0.0
    bar = tqdm(range(steps), desc=type(network).__name__)
    for step in bar:
        rows = torch.randint(len(data.labels), (BATCH,), generator=generator).sort().values
        x, strengths = make(data, rows, 0.4, generator)
        out = head(network(x))
        loss = F.cross_entropy(out[:, :total], data.labels[rows], label_smoothing=0.05)
        loss = (
            loss
            + 0.5 * masked_error(out[:, total:-kinds], factors[rows])
            + 12 * masked_error(out[:, -kinds:], strengths)
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        schedule.step()
        value = float(loss.detach())
        running = 0.98 * running + 0.02 * value if step else value
        bar.set_postfix(loss=f"{running:.3f}")
    return head


@torch.inference_mode()
def quality(
    network: nn.Module, head: nn.Module, make: Batch, kinds: list[str], data: Clips, seed: int
) -> dict[str, object]:
    """Class accuracy on undamaged held-out clips, and how strengths of damage correlate with their estimates."""
    network.eval()
    generator = torch.Generator().manual_seed(seed)
    total = len(classes())
    right: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(data.labels), BATCH):
        rows = torch.arange(start, min(start + BATCH, len(data.labels)))
        right.append(head(network(make(data, rows, 0.0, generator)[0]))[:, :total].argmax(1) == data.labels[rows])
        x, strengths = make(data, rows, 0.3, generator)
        pairs.append((head(network(x))[:, -len(kinds) :], strengths))
    found, wanted = (torch.cat(side) for side in zip(*pairs, strict=True))
    correlations = {}
    for column, name in enumerate(kinds):
        known = ~torch.isnan(wanted[:, column])
        correlations[name] = float(torch.corrcoef(torch.stack([found[known, column], wanted[known, column]]))[0, 1])
    correct = torch.cat(right).float()
    sides = {}
    begin = 0
    for name in WORLDS:
        end = begin + len(get_world(name).classes)
        inside = (data.labels >= begin) & (data.labels < end)
        sides[name] = float(correct[inside].mean())
        begin = end
    return {"accuracy": float(correct.mean()), "accuracy_by_world": sides, "damage_correlation": correlations}


@torch.inference_mode()
def features(network: nn.Module, make: Batch, data: Clips) -> Tensor:
    """Features of the undamaged clips, (clips, 64)."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.arange(len(data.labels)).split(BATCH)
    return torch.cat([network(make(data, rows, 0.0, generator)[0]) for rows in parts])


def probe(network: nn.Module, make: Batch, data: Clips, held_out: Clips) -> dict[str, float]:
    """Accuracy on held-out clips, of each world, of a logistic regression on the network's features."""
    network.eval()
    x, y = features(network, make, data), features(network, make, held_out)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, y = (x - mean) / std, (y - mean) / std
    head = nn.Linear(x.shape[1], len(classes()))
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(head(x), data.labels) + 1e-4 * head.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    right = (head(y).argmax(1) == held_out.labels).float().chunk(len(WORLDS))
    return {name: float(part.mean()) for name, part in zip(WORLDS, right, strict=True)}


def main() -> None:
    """Draw, train, state and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=("audio", "video"))
    parser.add_argument("--work", type=Path, required=True, help="folder for drawn clips")
    result = parser.add_mutually_exclusive_group(required=True)
    result.add_argument("--out", type=Path, help="folder for the weights and compact.json")
    result.add_argument("--probe", action="store_true", help="judge the bundled network, train none")
    parser.add_argument("--clips", type=int, default=2500, help="training clips of each world")
    parser.add_argument("--held-out", type=int, default=500, help="held-out clips of each world")
    parser.add_argument("--video-steps", type=int, default=1800)
    parser.add_argument("--audio-steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    data, held_out = draw(options.work, options.clips, "train"), draw(options.work, options.held_out, "held-out")
    if options.network == "audio":
        network, make, kinds, steps = compact.CompactAudio(), audio_batch, list(corruptions.AUDIO), options.audio_steps
    else:
        network = compact.CompactVideo().to(memory_format=torch.channels_last_3d)
        make, kinds, steps = video_batch, list(corruptions.VIDEO), options.video_steps
    if options.probe:
        bundled = compact.CompactAudioEncoder() if options.network == "audio" else compact.CompactVideoEncoder()
        print(json.dumps(probe(bundled.network, make, data, held_out)))
        return
    head = train(network, make, len(kinds), data, steps, options.seed)
    report = {
        "clips_of_each_world": options.clips,
        "held_out_of_each_world": options.held_out,
        "steps": steps,
        "seed": options.seed,
        **quality(network, head, make, kinds, held_out, options.seed),
        "classes": classes(),
        "cpu_s": round(time.process_time() - started),
    }
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(tensors, options.out / f"compact_{options.network}.safetensors")
    text = json.dumps(report, indent=1)
    (options.out / f"compact_{options.network}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
