"""The tab *Training*: a run's loss, facts, metrics and clips, live."""

from __future__ import annotations

from typing import Any

import gradio as gr

from mgct.app import training
from mgct.app.parts import QUIET, USES_MODEL, Parts
from mgct.app.words import image_tag, status_html
from mgct.errors import UserError

LIVE_EVERY_S = 4.0


def training_tab(parts: Parts) -> None:
    """Make the tab's components and wire them."""
    models = parts.studio.models
    if not models.runs:
        gr.Markdown("There is no run folder among the models of this page.")
        return
    names = list(models.runs)
    run = gr.Dropdown(names, value=names[0], label="Run", elem_id="training-run", visible=len(names) > 1)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            curve = gr.HTML(elem_id="training-loss", padding=False)
            sheet = gr.HTML(elem_id="training-sheet", padding=False)
            cards = gr.Markdown(elem_id="training-cards")
        with gr.Column(scale=1, min_width=260):
            facts = gr.Markdown(elem_id="training-facts")
            draw = gr.Button("Draw clips of the newest model", elem_id="training-draw")
            follow = gr.Checkbox(False, label="Draw again whenever the run saves its model", elem_id="training-follow")
    seen, drawn, wanted = gr.State(None), gr.State(None), gr.State(None)

    def look(run: str, seen: Any) -> list[Any]:
        folder = models.runs[run]
        now = (run, *training.stamp(folder))
        if now == seen:
            return [gr.skip()] * 4
        png = training.loss_png(folder)
        picture = image_tag(png, "figure", "loss curves of the run") if png else ""
        return [picture, training.facts_markdown(folder), training.cards_markdown(folder), now]

    def stamp(run: str) -> int:
        return models.stamp(run) if models.has(run) else 0

    def due(run: str, follow: bool, drawn: Any) -> Any:
        return (run, stamp(run)) if follow and stamp(run) and (run, stamp(run)) != drawn else gr.skip()

    def draw_sheet(run: str) -> list[Any]:
        try:
            if not stamp(run):
                raise UserError("this run has not saved a model yet; it does so at its first checkpoint")
            newest = run, stamp(run)
            png = training.sheet_png(models.pipeline(run), models.choices(run)[0])
        except UserError as error:
            return [status_html(str(error), "bad"), gr.skip()]
        return [image_tag(png, "figure", "clips of the run's newest model"), newest]

    timer = gr.Timer(LIVE_EVERY_S)
    for trigger in (timer.tick, run.change):
        trigger(look, [run, seen], [curve, facts, cards, seen], **QUIET)
    timer.tick(due, [run, follow, drawn], wanted, **QUIET)
    for trigger in (draw.click, wanted.change):
        trigger(draw_sheet, run, [sheet, drawn], **USES_MODEL, api_visibility="private")
