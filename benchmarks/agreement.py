"""Whether generated picture and sound are of one class of their world: heard is what is seen.

    python benchmarks/agreement.py landscape CLIPS [CLIPS …] --num 128

The class of either is named by logistic regression on the small networks' features (`compact`), fitted on real clips of a
seed of their own; how often it names real ones rightly is printed too. ``agree``: the share of clips whose two
classes are the same; ``chance``: what that would be if sounds were dealt out anew. Beside it the synchrony in time
(`mgct.metrics.sync`). Clips made for a given modality (`mgct sample --audio`, `--video`) are measured alike.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mgct.clip_random import derive_seed
from mgct.data.worlds import World, get_world
from mgct.metrics import sync
from mgct.metrics.encoders import Encoder, load_encoder
from mgct.metrics.sources import open_source
from mgct.types import AVSample, ClipSpec, quantise

ENCODERS = ("compact-video", "compact-audio")
BATCH = 64


class Clips(NamedTuple):
    """What is kept of a set of clips: features of either modality (N, 64), and the curves of synchrony."""

    features: list[Tensor]
    curves: sync.Curves


class Classes:
    """Names the class of a clip's features: multinomial logistic regression on the standardised features.

    Args:
        features: (N, D) of real clips.
        labels: (N,) their classes, 0 … count - 1.
        count: of classes.
    """

    def __init__(self, features: Tensor, labels: Tensor, count: int) -> None:
        self.mean, self.std = features.mean(0), features.std(0).clamp(min=1e-6)
        self.layer = nn.Linear(features.shape[1], count)
        for parameter in self.layer.parameters():
            nn.init.zeros_(parameter)
        optimizer = torch.optim.LBFGS(self.layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            scores = self.layer((features - self.mean) / self.std)
            loss = nn.functional.cross_entropy(scores, labels) + 1e-3 * self.layer.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    def __call__(self, features: Tensor) -> Tensor:
        """(N,) the likeliest class of each."""
        with torch.no_grad():
            return self.layer((features - self.mean) / self.std).argmax(1)


def seen(encoders: list[Encoder], clips: AVSample, spec: ClipSpec) -> Clips:
    """The features and curves of stored clips."""
    parts = [clips.map(lambda x, at=at: x[at : at + BATCH]) for at in range(0, len(clips.video), BATCH)]
    with torch.no_grad():
        features = [torch.cat([encoder.features(part, spec) for part in parts]) for encoder in encoders]
    return Clips(features, sync.concatenate([sync.curves(part, spec) for part in parts]))


def drawn(world: World, spec: ClipSpec, count: int, name: str) -> tuple[AVSample, Tensor]:
    """Real clips, as stored, and their classes."""
    seed = derive_seed("agreement", name)
    return quantise(world.render(torch.arange(count), spec, seed=seed).clips), world.labels(range(count), seed)


def row(clips: Clips, named: list[Classes]) -> dict[str, float]:
    """The figures of a set of clips."""
    video, audio = (of(features) for of, features in zip(named, clips.features, strict=True))
    count = len(named[0].layer.bias)
    share = [torch.bincount(classes, minlength=count) / len(classes) for classes in (video, audio)]
    agree = float((video == audio).float().mean())
    return {
        "agree": agree,
        "standard_error": (agree * (1 - agree) / len(video)) ** 0.5,
        "chance": float(share[0] @ share[1]),
        "sync_score": sync.set_lag(clips.curves).score,
        "sync_score_shuffled": sync.shuffled_score(clips.curves),
    }


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world")
    parser.add_argument("clips", nargs="+", help="generated ones")
    parser.add_argument("--num", type=int, default=128)
    parser.add_argument("--fit", type=int, default=1500, help="real clips that the classes are fitted on")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    world, encoders = get_world(options.world), [load_encoder(name, None, "cpu") for name in ENCODERS]
    sources = {name: open_source(name) for name in options.clips}
    specs = {source.spec for source in sources.values()}
    if len(specs) > 1:
        raise SystemExit("the clips are of different sizes; measure them one by one")
    spec = specs.pop()
    clips, labels = drawn(world, spec, options.fit, "fit")
    named = [Classes(x, labels, len(world.classes)) for x in seen(encoders, clips, spec).features]
    clips, labels = drawn(world, spec, options.num, "test")
    real = seen(encoders, clips, spec)
    right = [float((of(x) == labels).float().mean()) for of, x in zip(named, real.features, strict=True)]
    table = {
        name: row(seen(encoders, source.read(range(min(options.num, len(source)))), spec), named)
        for name, source in sources.items()
    }
    table["real"] = row(real, named)
    print(
        f"at most {options.num} clips; of real ones {right[0]:.0%} are named rightly by the picture, {right[1]:.0%} by the sound\n"
    )
    print("| | agree | by chance | synchrony | shuffled |\n|---|---|---|---|---|")
    for name, values in table.items():
        agree, error, *rest = values.values()
        print(f"| {name} | {agree:.2f} ± {2 * error:.2f} | {' | '.join(f'{value:.2f}' for value in rest)} |")
    if options.json:
        facts = {"world": options.world, "num": options.num, "named_rightly": right, "rows": table}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
