"""The tab *Generate*: clips from noise, with variations and longer versions of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import gradio as gr

from mgct.app.parts import QUIET, VARIATIONS, Parts, integer, session_of
from mgct.app.records import Progress, Settings

SHOWN = 12
"""Clips shown at once, or as many as one request may make if that is more."""


def generate_tab(parts: Parts) -> None:
    """Make the tab's components and wire them."""
    studio = parts.studio
    size = max(SHOWN, studio.limits.clips)
    with gr.Row():
        with gr.Column(scale=1, min_width=290):
            most = studio.limits.clips
            clips = gr.Slider(1, most, value=min(4, most), step=1, label="Clips", elem_id="generate-clips")
            choice = parts.choice("generate")
            seed = parts.seed("generate")
            cost, controls = parts.cost([choice], [clips], parts.cost_of)
            run, stop = parts.run_buttons("Generate", "generate")
        with gr.Column(scale=3, min_width=300):
            status = parts.status("Nothing made yet.", "generate")
            cards = parts.cards(size, "generate", actions=True)
    shown = gr.State([])

    def on_generate(
        model: str, sampler: str, steps: int, clips: int, seed: int, shown: list[str], request: gr.Request
    ) -> Iterator[list[Any]]:
        session = session_of(request)

        def start() -> Generator[Progress, None, None]:
            settings = Settings(model, sampler, integer(steps), integer(seed))
            return studio.generate(session, settings, integer(clips))

        yield from parts.show(start, session, shown, size, actions=True)

    def on_vary(name: str, shown: list[str], request: gr.Request) -> Iterator[list[Any]]:
        session = session_of(request)

        def start() -> Generator[Progress, None, None]:
            made = studio.find(session, name)
            return studio.variations(session, made.settings, (*made.variation_of, made.index), VARIATIONS)

        yield from parts.show(start, session, shown, size, actions=True)

    def on_longer(name: str, shown: list[str], request: gr.Request) -> Iterator[list[Any]]:
        session = session_of(request)

        def start() -> Generator[Progress, None, None]:
            made = studio.find(session, name)
            return studio.lengthen(session, made, parts.longer_s(made))

        yield from parts.show(start, session, shown, size, actions=True)

    outputs = [status, shown, *(part for card in cards for part in card.outputs())]
    events = [parts.wire_run(run.click, on_generate, [*controls, seed, shown], outputs)]
    for card in cards:
        events.append(parts.wire_run(card.vary.click, on_vary, [card.name, shown], outputs))
        events.append(parts.wire_run(card.longer.click, on_longer, [card.name, shown], outputs))
    for event in events:
        event.then(parts.cost_of, controls, cost, **QUIET)
    parts.wire_cancel(stop, events, status)
