"""How far generated clips are from their world, beside how far the world's classes are from each other.

    python benchmarks/class_distances.py dance CLIPS --protocol open --num 48

Both distances are of the same number of clips a side: a Fréchet distance of few clips is too large, by about the same for
all. Real clips are of a seed of their own, never trained on. Printed for each metric of the protocol: generated against
real; real against real (what is left of nothing but the number of clips); and the mean and the smallest of the distances
between two classes of real clips, ``--num`` clips each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from itertools import combinations, pairwise
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mgct.clip_random import derive_seed
from mgct.data.worlds import get_world
from mgct.metrics.distances import RankDeficientWarning
from mgct.metrics.encoders import load_encoder
from mgct.metrics.evaluate import Extractor, choose
from mgct.metrics.protocols import get_protocol
from mgct.metrics.sources import open_source
from mgct.types import AVSample, quantise

SEED = derive_seed("class distances")


def features(extractor: Extractor, clips: AVSample, spec: object, batch_size: int) -> dict[str, Tensor]:
    """Features (N, D) by encoder."""
    parts = []
    for start in tqdm(range(0, len(clips.video), batch_size), unit="batch"):
        parts.append(extractor(clips.map(lambda x, first=start: x[first : first + batch_size]), spec).features)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world")
    parser.add_argument("clips", help="generated ones, without loss")
    parser.add_argument("--protocol", default="open")
    parser.add_argument("--num", type=int, default=48)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the distances there")
    parser.add_argument("--like", type=Path, help="take the distances between real clips from an earlier run's file")
    options = parser.parse_args()
    warnings.simplefilter("ignore", RankDeficientWarning)  # of the same number on all sides, as said above
    protocol, source, world = get_protocol(options.protocol), open_source(options.clips), get_world(options.world)
    encoders = [load_encoder(name, None, options.device) for name in protocol.encoders]
    extractor = Extractor(encoders, protocol.clip, None, options.device)

    fake = features(extractor, source.read(choose(len(source), options.num, 0)), source.spec, protocol.batch_size)
    classes = len(world.classes)
    labels = world.labels(range(4 * classes * options.num), SEED)
    of_class = [torch.nonzero(labels == k).flatten()[: options.num] for k in range(classes)]
    kept = torch.cat(of_class)
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
    mixed, others = order[: options.num], order[options.num : 2 * options.num]
    before = json.loads(options.like.read_text()) if options.like else {}
    if before:
        if (before["world"], before["num"]) != (options.world, options.num):
            raise SystemExit(f"{options.like} is of {before['num']} clips of {before['world']}")
        kept, mixed = kept[mixed], torch.arange(options.num)
    stored = quantise(world.render(kept, source.spec, seed=SEED).clips)
    real = features(extractor, stored, source.spec, protocol.batch_size)
    starts = torch.tensor([0, *map(len, of_class)]).cumsum(0).tolist()
    rows = [slice(first, last) for first, last in pairwise(starts)]
    table = {}
    print(f"{options.num} clips a side, protocol {options.protocol}, world {options.world}, {classes} classes\n")
    print(
        "| metric | generated | real | between classes: mean | smallest | generated / mean |\n|---|---|---|---|---|---|"
    )
    for metric in protocol.metrics:
        distance, scale = metric.distance.value, metric.scale
        x = real[metric.encoder]
        made = scale * distance(x[mixed], fake[metric.encoder])
        if before:
            row = {**before["distances"][metric.name], "generated": made}
        else:
            own = scale * distance(x[mixed], x[others])
            between = [scale * distance(x[a], x[b]) for a, b in combinations(rows, 2)]
            mean = statistics.mean(between)
            row = {"generated": made, "real": own, "between_mean": mean, "between_smallest": min(between)}
        table[metric.name] = row
        shown = " | ".join(f"{value:.4g}" for value in row.values())
        print(f"| {metric.name} | {shown} | {made / row['between_mean']:.2f} |")
    if options.json:
        facts = {"world": options.world, "protocol": protocol.definition(), "num": options.num, "distances": table}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
