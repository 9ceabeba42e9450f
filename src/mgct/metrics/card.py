"""Metric cards: numbers together with everything they depend on, and the refusal to compare what does not compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mgct.errors import UserError
from mgct.files import write_whole


@dataclass
class MetricValue:
    """One number of a card.

    Attributes:
        name: of the metric.
        value: of all clips, times the protocol's scale.
        low: lower bound of the interval.
        high: upper bound.
        at_infinity: extrapolated to infinitely many clips; None where the value has no bias in N.
        encoder: whose features.
        dimension: of them.
    """

    name: str
    value: float
    low: float
    high: float
    at_infinity: float | None
    encoder: str
    dimension: int


@dataclass
class Side:
    """One set of clips.

    Attributes:
        origin: name of its folder.
        container: how it is stored.
        num: clips measured.
        available: clips there.
        clip: facts of its clips.
        split: which split, as given.
        sha256: of the contents of the clips measured, whatever their order.
    """

    origin: str
    container: str
    num: int
    available: int
    clip: dict[str, float]
    split: str
    sha256: str


@dataclass
class MetricCard:
    """What was measured, on what, by what.

    Attributes:
        protocol: its name.
        definition: its settings.
        values: the numbers.
        real: the reference set.
        fake: the set that is judged.
        encoders: name → SHA-256 of weights, whether they are the pinned ones.
        synchrony: of both sides, and ``score_between_bounds`` (see `mgct.metrics.sync`).
        seed: of the choice of clips and of the interval's draws.
        draws: of the interval.
        confidence: of the intervals.
        versions: of what computed it.
        warnings: what to know before believing a number.
        seconds: it took.
        interval: how it was found: ``jackknife``; a card that does not say it has ``bootstrap`` ones, up to twice as
            wide.
        sampling: how long the generated clips took, as `mgct reproduce` notes it (see `mgct.reproduce.study.Speed`).
    """

    protocol: str
    definition: dict[str, Any]
    values: list[MetricValue]
    real: Side
    fake: Side
    encoders: dict[str, dict[str, Any]]
    synchrony: dict[str, Any]
    seed: int
    draws: int
    confidence: float
    versions: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    sampling: dict[str, Any] = field(default_factory=dict)
    interval: str = "bootstrap"

    def value(self, name: str) -> float:
        """The number of that name.

        Raises:
            KeyError: the card has none.
        """
        for value in self.values:
            if value.name == name:
                return value.value
        raise KeyError(name)

    def to_json(self) -> str:
        """The card as JSON; `MetricCard.from_json` reads it."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> MetricCard:
        """The card in the JSON of `to_json`.

        Raises:
            UserError: it is no metric card.
        """
        try:
            content = json.loads(text)
            content["values"] = [MetricValue(**value) for value in content["values"]]
            content["real"], content["fake"] = Side(**content["real"]), Side(**content["fake"])
            card = cls(**content)
            card.to_markdown()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"no metric card: {error}") from error
        return card

    def to_markdown(self) -> str:
        """The card for people."""
        percent = f"{self.confidence:.0%}"
        lines = [f"# {self.protocol}: {self.fake.origin} against {self.real.origin}", ""]
        lines += [f"| metric | value | {percent} interval | N → ∞ | encoder |", "|---|---|---|---|---|"]
        for v in self.values:
            limit = "" if v.at_infinity is None else f"{v.at_infinity:.4g}"
            lines.append(
                f"| {v.name} | {v.value:.4g} | {v.low:.4g} … {v.high:.4g} | {limit} | {v.encoder} ({v.dimension}) |"
            )
        lines += ["", "| set | clips | of | stored as | split | contents |", "|---|---|---|---|---|---|"]
        for name, side in (("real", self.real), ("fake", self.fake)):
            lines.append(
                f"| {name} | {side.num} | {side.available} | {side.container} | {side.split} | {side.sha256[:12]} |"
            )
        rows = self.synchrony
        if rows:
            lines += ["", "| synchrony and sanity | real | fake |", "|---|---|---|"]
            lines += [f"| {name} | {rows['real'][name]:.4g} | {rows['fake'][name]:.4g} |" for name in rows["real"]]
            lines += [f"| {name} | | {rows[name]:.4g} |" for name in rows if name not in {"real", "fake"}]
        lines += ["", "Weights: " + "; ".join(f"{k} {v['sha256'][:12]}" for k, v in self.encoders.items())]
        lines += [f"Seed {self.seed}, {self.draws} {self.interval} draws, {self.seconds:.0f} s. "]
        lines[-1] += ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return "\n".join(lines + [f"\nNote: {warning}" for warning in self.warnings]) + "\n"

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Write ``path`` with the endings ``.json`` and ``.md``, each whole or not at all; returns both."""
        path = Path(path)
        if path.suffix in {".json", ".md"}:
            path = path.with_suffix("")
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_name(path.name + ".json"), path.with_name(path.name + ".md")
        content, table = self.to_json(), self.to_markdown()
        write_whole(written[1], lambda draft: draft.write_text(table))
        write_whole(written[0], lambda draft: draft.write_text(content))
        return written

    @classmethod
    def load(cls, path: str | Path) -> MetricCard:
        """The card in a ``.json`` file.

        Raises:
            UserError: no such file, or no card.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no metric card at {path}; give the .json that `mgct evaluate` wrote")
        try:
            return cls.from_json(path.read_text())
        except (UserError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no metric card ({error}); give the .json that `mgct evaluate` wrote") from error


def differences(first: MetricCard, second: MetricCard) -> list[str]:
    """What keeps the numbers of two cards from being compared; empty if they may be."""
    facts = {
        "protocol": lambda card: card.definition,
        "weights": lambda card: {name: entry["sha256"] for name, entry in card.encoders.items()},
        "number of real clips": lambda card: card.real.num,
        "number of generated clips": lambda card: card.fake.num,
        "real clips": lambda card: card.real.sha256,
        "container of the generated clips": lambda card: card.fake.container,
    }
    return [name for name, fact in facts.items() if fact(first) != fact(second)]


def comparison(cards: Sequence[MetricCard], names: Sequence[str] | None = None) -> str:
    """A Markdown table of several cards' numbers.

    Args:
        cards: at least one.
        names: how to call their rows; None: the origin of the generated clips.

    Raises:
        UserError: two cards differ in something that changes the numbers; it says in what.
    """
    if not cards:
        raise UserError("no cards to compare")
    for card in cards[1:]:
        found = differences(cards[0], card)
        if found:
            raise UserError(
                f"{cards[0].fake.origin} ({cards[0].protocol}) and {card.fake.origin} ({card.protocol}) do not "
                f"compare: different {', '.join(found)}"
            )
    names = [card.fake.origin for card in cards] if names is None else names
    metrics = [value.name for value in cards[0].values]
    lines = ["| | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for name, card in zip(names, cards, strict=True):
        cells = [f"{v.value:.4g} ({v.low:.4g} … {v.high:.4g})" for v in card.values]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
