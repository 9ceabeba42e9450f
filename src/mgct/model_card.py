"""The card of a saved model: facts in, Markdown out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from mgct.samplers import DEFAULT
from mgct.types import ClipSpec

_SAMPLED = _STARTS, _COARSE, _CALIBRATED, _GUIDED = (
    "Sampling starts at noise level ",
    "The noise at the start has the coarse colours ",
    "Calibrated (`mgct calibrate`) for ",
    "Autoguidance of strength ",
)


@dataclass(frozen=True)
class HowSampled:
    """How a model is sampled unless asked otherwise.

    Args:
        start_timestep: the noise level that it starts from; None: the schedule's last.
        coarse_start: whether its start has the coarse colours of its training clips.
        calibration: the ways of sampling that it is calibrated for, in words; empty: none.
        autoguidance: its strength; None: none.
    """

    start_timestep: int | None = None
    coarse_start: bool = False
    calibration: str = ""
    autoguidance: float | None = None

    @classmethod
    def by(cls, pipe: Any) -> HowSampled:
        """As `mgct.pipeline.AVPipeline` has it."""
        calibration = "" if pipe.calibration is None else pipe.calibration.said()
        guidance = None if pipe.guide is None else pipe.config.autoguidance
        return cls(pipe.config.start_timestep, pipe.coarse_start is not None, calibration, guidance)

    def said(self) -> list[str]:
        """In words, a paragraph each."""
        said = []
        if self.start_timestep is not None:
            said.append(f"{_STARTS}{self.start_timestep} unless another `start_timestep` is given.")
        if self.coarse_start:
            said.append(f"{_COARSE}of the training clips (`coarse_start`).")
        if self.autoguidance is not None:
            said.append(f"{_GUIDED}{self.autoguidance:g}, by the weaker network beside it, unless another is given.")
        if self.calibration:
            said.append(f"{_CALIBRATED}{self.calibration}.")
        return said


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a trained model.

    Args:
        name: what to call it.
        clip: the clips it makes.
        parameters: how many it has.
        recommended: sampler → (fewest, most) network calls that it was made for, as `AVPipeline` keeps it.
        data: what it was trained on, as ``mgct train --data`` takes it; empty: not known.
        began_from: the weights that it was trained from, as ``mgct train --init`` takes them; empty: from none.
        before: what is known of the training of those weights, in words; empty: not recorded.
        step: optimiser steps that it was trained for.
        stage: 1 or 2; None: not known.
        settings: the run's settings, nested names → plain values; shown as YAML.
        metrics: name → value, as measured.
        licence: of the weights, an SPDX name; empty: nobody has said.
        version: of this package; empty: not known.
        address: what ``AVPipeline.from_pretrained`` and ``mgct sample`` find it by.
        cost: what it was trained on and how long, in words; empty: not known.
        sampled: how it is sampled unless asked otherwise.
    """

    name: str
    clip: ClipSpec
    parameters: int
    recommended: Mapping[str, Sequence[int]]
    data: str = ""
    began_from: str = ""
    before: str = ""
    step: int | None = None
    stage: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    licence: str = ""
    version: str = ""
    address: str = "path/to/this/folder"
    cost: str = ""
    sampled: HowSampled = HowSampled()


def model_card(facts: ModelFacts) -> str:
    """The text of the card, to be saved as ``README.md`` in the model's folder: Markdown with a YAML head.

    Nothing is said that is not in ``facts``; what is not known is said to be so.
    """
    parts = [_head(facts), f"# {_line(facts.name)}", _summary(facts), _use(facts), _samplers(facts), _training(facts)]
    if facts.metrics:
        rows = [f"| {_cell(name)} | {value:g} |" for name, value in facts.metrics.items()]
        parts.append("\n".join(["## Measured", "", "| metric | value |", "|---|---|", *rows]))
    parts.append(_licence(facts))
    if facts.settings:
        text = yaml.safe_dump(dict(facts.settings), sort_keys=False, allow_unicode=True).rstrip()
        parts.append(f"## Settings\n\n```yaml\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def with_sampling(card: str, sampled: HowSampled) -> str:
    """A card's text that says how the model is sampled now, whatever it said of that before."""
    head, mark, rest = card.partition("\n\n## Training\n")
    kept = [part for part in head.split("\n\n") if not part.startswith(_SAMPLED)]
    return "\n\n".join([*kept, *sampled.said()]) + mark + rest


def _line(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def _cell(text: str) -> str:
    """The text as it may stand in a cell of a table."""
    return _line(text).replace("|", r"\|")


def _head(facts: ModelFacts) -> str:
    """The YAML head that a hub reads."""
    head: dict[str, Any] = {"library_name": "mgct", "tags": ["audio-video-generation", "diffusion", "mgct"]}
    if facts.licence:
        head["license"] = facts.licence
    return f"---\n{yaml.safe_dump(head, sort_keys=False).rstrip()}\n---"


def _summary(facts: ModelFacts) -> str:
    clip = facts.clip
    return (
        f"Generates video with its sound: {clip.frames} frames of {clip.size}×{clip.size} at {clip.fps:g} frames a "
        f"second with {clip.seconds:g} s of mono sound at {clip.sample_rate_hz:,} Hz. {facts.parameters:,} parameters."
    )


def _use(facts: ModelFacts) -> str:
    name, (fewest, most) = next(iter(_ranked(facts)), (DEFAULT, (12, 12)))
    if DEFAULT in facts.recommended:
        name, (fewest, most) = DEFAULT, tuple(facts.recommended[DEFAULT])
    steps = min(max(12, fewest), most)
    return (
        "## Use\n\n"
        "It needs nothing but the package `mgct`:\n\n"
        "```python\n"
        "from mgct import AVPipeline\n\n"
        f'pipe = AVPipeline.from_pretrained("{facts.address}")\n'
        f'clips = pipe(num_clips=4, steps={steps}, sampler="{name}", seed=0)  # video and audio in [-1, 1]\n'
        "```\n\n"
        f"or `mgct sample {facts.address} clips`, which writes mp4 files."
    )


def _ranked(facts: ModelFacts) -> list[tuple[str, tuple[int, int]]]:
    """The recommended samplers, that of fewest calls first."""
    known = [(name, (int(calls[0]), int(calls[1]))) for name, calls in facts.recommended.items()]
    return sorted(known, key=lambda entry: entry[1])


def _samplers(facts: ModelFacts) -> str:
    if not facts.recommended:
        return "## Samplers\n\nIt is not known which samplers this model was made for."
    rows = [f"| `{name}` | {low} to {high} |" for name, (low, high) in _ranked(facts)]
    text = "\n".join(["| sampler | network calls |", "|---|---|", *rows])
    text = "\n\n".join([text, *facts.sampled.said()])
    return f"## Samplers\n\nThe model was made for these; other choices work, with a warning.\n\n{text}"


def _training(facts: ModelFacts) -> str:
    said = [f"- Data: {f'`{_line(facts.data)}`' if facts.data else 'not recorded'}."]
    if facts.began_from:
        before = f". Of those: {_line(facts.before)}" if facts.before else ", and what those had been trained on."
        said.append(f"- Began from the weights of `{_line(facts.began_from)}`{before}")
    if facts.step is not None:
        said.append(f"- Steps: {facts.step:,}.")
    if facts.stage is not None:
        losses = {1: "the multimodal loss alone", 2: "the multimodal and the consistency loss"}
        said.append(f"- Stage: {facts.stage}, {losses[facts.stage]}.")
    if facts.cost:
        said.append(f"- Cost: {_line(facts.cost)}.")
    if facts.version:
        said.append(f"- Made with mgct {facts.version}.")
    return "\n".join(["## Training", "", *said])


def _licence(facts: ModelFacts) -> str:
    own = f"The weights are under {_line(facts.licence)}." if facts.licence else "The weights' licence is not stated."
    return (
        f"## Licence\n\n{own} The package is under Apache-2.0. What was learned from videos may be bound by the "
        "licences of those videos."
    )
