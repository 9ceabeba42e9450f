"""The tab *Compare*: two models, samplers or numbers of steps on the same seeds, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from mgct.app.jobs import Cancelled
from mgct.app.parts import QUIET, Parts, failure_html, integer, paced, session_of, unexpected_html
from mgct.app.records import Settings
from mgct.app.words import progress_html, side_words, status_html
from mgct.errors import UserError

MOST = 4
"""Most pairs of a comparison."""


def compare_tab(parts: Parts) -> None:
    """Make the tab's components and wire them."""
    studio = parts.studio
    gr.Markdown("Two ways on the same seeds: what differs is the model, the sampler or the number of steps.")
    with gr.Row():
        with gr.Column(min_width=290):
            gr.Markdown("#### A")
            a = parts.choice("compare-a")
        with gr.Column(min_width=290):
            gr.Markdown("#### B")
            b = parts.choice("compare-b", fewest=True)
        with gr.Column(min_width=290):
            gr.Markdown("#### Both")
            most = min(MOST, studio.limits.clips)
            clips = gr.Slider(1, most, value=min(2, most), step=1, label="Clips", elem_id="compare-clips")
            seed = parts.seed("compare")

    def cost_of(
        model_a: str, sampler_a: str, steps_a: int, model_b: str, sampler_b: str, steps_b: int, clips: int
    ) -> str:
        sides = parts.cost_of(model_a, sampler_a, steps_a, clips), parts.cost_of(model_b, sampler_b, steps_b, clips)
        return "  \n".join(f"{letter}: {words}" for letter, words in zip("AB", sides, strict=True))

    cost, controls = parts.cost([a, b], [clips], cost_of)
    run, stop = parts.run_buttons("Compare", "compare")
    status = parts.status("Nothing compared yet.", "compare")
    sides: list[list[Any]] = []
    with gr.Row():
        for side in "ab":
            with gr.Column(elem_classes="side"):
                words = gr.Markdown(elem_id=f"compare-{side}-words")
                cards = parts.cards(MOST, f"compare-{side}", actions=False)
                sides.append([words, *(part for card in cards for part in card.outputs())])

    def on_compare(
        model_a: str,
        sampler_a: str,
        steps_a: int,
        model_b: str,
        sampler_b: str,
        steps_b: int,
        clips: int,
        seed: int,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        session = session_of(request)
        same = [gr.skip()] * sum(map(len, sides))
        done = [["", *parts.card_updates([], MOST, False)] for _ in sides]
        yield [status_html("Starting…", done=0), *done[0], *done[1]]
        try:
            both = [
                Settings(model_a, sampler_a, integer(steps_a), integer(seed)),
                Settings(model_b, sampler_b, integer(steps_b), integer(seed)),
            ]
            for number, settings in enumerate(both):
                letter, last = "AB"[number], None
                for last in paced(studio.generate(session, settings, integer(clips))):
                    share = (number + last.done / last.total) / 2
                    yield [progress_html(last, letter, share), *same]
                if last is not None:
                    done[number] = [side_words(letter, settings, last), *parts.card_updates(last.made, MOST, False)]
                yield [gr.skip(), *done[0], *done[1]]
        except (UserError, Cancelled) as error:
            yield [failure_html(error), *same]
            return
        except Exception:
            yield [unexpected_html(), *same]
            return
        yield [status_html("Done: A on one side, B on the other, the same seeds in the same places."), *same]

    event = parts.wire_run(run.click, on_compare, [*controls, seed], [status, *sides[0], *sides[1]])
    event.then(cost_of, controls, cost, **QUIET)
    parts.wire_cancel(stop, [event], status)
