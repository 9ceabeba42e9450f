"""``mgct evaluate``, ``mgct weights``."""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import TemporaryFile

from mgct.errors import UserError
from mgct.metrics.card import MetricCard, comparison
from mgct.metrics.evaluate import evaluate
from mgct.metrics.protocols import get_protocol
from mgct.metrics.sources import clip_of, open_source, split_of
from mgct.metrics.weights import fetch_weights
from mgct.types import ClipSpec


def evaluate_clips(
    real: str,
    fake: str,
    protocol: str = "compact",
    out: Path | None = None,
    num: int | None = None,
    clip: ClipSpec | None = None,
    split: str | None = None,
    seed: int = 0,
    draws: int = 100,
    workers: int = 1,
    device: str = "cpu",
    weights: dict[str, Path] | None = None,
) -> None:
    """Measure generated clips against real ones by a protocol, and write a metric card.

    Args:
        real: a folder of videos or of lossless samples, a prepared folder, or world:NAME:COUNT.
        fake: the clips to judge, likewise.
        protocol: compact, open, vggish, mm-diffusion-2024 or mm-diffusion-2023 (see docs/evaluation.md).
        out: where to write the card (.json and .md); if not given, into the folder of the clips to judge, beside cards
            against other real clips.
        num: clips a side; the protocol's if not given.
        clip: how to read folders of videos; found out if not given, where the folder says.
        split: which split of a prepared folder or world; the protocol's if not given (test, or train for mm-diffusion).
        seed: of the choice of clips and of the intervals.
        draws: of the intervals.
        workers: processes.
        device: where the encoders run.
        weights: encoder → file, instead of the cached or bundled weights.
    """
    split = get_protocol(protocol).split_or(split)
    if out is None and not Path(fake).is_dir():
        raise UserError(
            f"{fake} is no folder, so say with --out where the card shall be: --out NAME makes NAME.json and NAME.md"
        )
    spec = clip or clip_of(fake) or clip_of(real)
    sides = open_source(real, spec, split), open_source(fake, spec, split)
    path = out or Path(fake) / f"metrics-{protocol}"
    _check_place(path)
    card = evaluate(
        *sides,
        protocol,
        num=num,
        seed=seed,
        draws=draws,
        workers=workers,
        device=device,
        weights=weights,
        split=split_of(sides[0], split),
    )
    print(card.to_markdown())  # before saving, which may fail
    written = card.save(path if out is not None else _free_name(path, card))
    print("written: " + ", ".join(map(str, written)))


def _check_place(path: Path) -> None:
    """Make the folder of a card and see that files can be written there: before hours of measuring."""
    if not path.name:
        raise UserError(f"{path} is a folder; name the card in it by --out, as in {path / 'metrics'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(
            f"{path}: no card can be written there ({error.strerror}); name another place by --out"
        ) from error


def _free_name(path: Path, card: MetricCard) -> Path:
    """``path``, or the first of path-2, path-3, … under which there is nothing that would be lost."""
    others = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], others) if not _is_other(name, card))


def _is_other(path: Path, card: MetricCard) -> bool:
    """Whether ``path``.json is there and is no card against the same real clips."""
    file = path.with_name(f"{path.name}.json")
    try:
        return MetricCard.load(file).real.sha256 != card.real.sha256
    except UserError:  # none, or no card
        return file.exists()


def compare_cards(cards: list[Path] | str) -> None:
    """Put metric cards side by side in a table; cards that do not compare are refused.

    Args:
        cards: their .json files.
    """
    files = [Path(card) for card in cards.split(",")] if isinstance(cards, str) else cards
    print(comparison([MetricCard.load(file) for file in files], [file.stem for file in files]))


def get_weights(name: str, path: Path | None = None) -> None:
    """Get, check and convert the weights of a measuring network into the cache.

    Args:
        name: i3d, soundnet, audioclip or vggish.
        path: take this file instead of downloading.
    """
    print(fetch_weights(name, path))
