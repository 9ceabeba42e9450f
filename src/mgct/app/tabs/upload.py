"""The tabs *Sound → video* and *Video → sound*: one modality for another that the visitor gives."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import gradio as gr

from mgct.app.decode import Kind
from mgct.app.parts import QUIET, Parts, integer, session_of
from mgct.app.records import Progress, Settings

MOST = 4
"""Most clips made from one upload."""
SHOWN = 2 * MOST


def upload_tab(parts: Parts, kind: Kind) -> None:
    """Make the components of the tab for an upload of that kind and wire them."""
    studio = parts.studio
    other = "video" if kind == "sound" else "sound"
    own = studio.models.clip(studio.models.names[0]).seconds
    with gr.Row():
        with gr.Column(scale=1, min_width=290):
            most_mb = studio.limits.upload.file_bytes / 1e6
            gr.Markdown(
                f"A {other} for your {kind}: for {own:g} s of it, from the start given below. At most {most_mb:.0f} MB."
            )
            upload = _upload(kind)
            start_s = gr.Number(0, minimum=0, label="Start at (s)", elem_id=f"{kind}-start")
            most = min(MOST, studio.limits.clips)
            clips = gr.Slider(1, most, value=1, step=1, label="Clips", elem_id=f"{kind}-clips")
            guided = gr.Checkbox(
                False,
                label="Follow the upload closely",
                info="Guided sampling: about three times as slow.",
                elem_id=f"{kind}-guided",
            )
            with gr.Accordion("Sampler, steps and seed", open=False, elem_id=f"{kind}-more"):
                choice = parts.choice(kind)
                seed = parts.seed(kind)
            cost, controls = parts.cost([choice], [clips, guided], parts.cost_of)
            run, stop = parts.run_buttons(f"Make the {other}", kind)
        with gr.Column(scale=3, min_width=300):
            status = parts.status("The upload is removed from the server as soon as it has been decoded.", kind)
            cards = parts.cards(SHOWN, kind, actions=False)
    shown = gr.State([])

    def on_upload(
        model: str,
        sampler: str,
        steps: int,
        clips: int,
        guided: bool,
        path: str | None,
        start_s: float,
        seed: int,
        shown: list[str],
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        session = session_of(request)

        def start() -> Generator[Progress, None, None]:
            settings = Settings(model, sampler, integer(steps), integer(seed))
            return parts.from_upload(session, settings, clips, path, kind, start_s, guided)

        yield from parts.show(start, session, shown, SHOWN, actions=False)

    outputs = [status, shown, *(part for card in cards for part in card.outputs())]
    event = parts.wire_run(run.click, on_upload, [*controls, upload, start_s, seed, shown], outputs)
    event.then(parts.cost_of, controls, cost, **QUIET)
    parts.wire_cancel(stop, [event], status)


def _upload(kind: Kind) -> Any:
    label = f"Your {kind}"
    if kind == "video":
        return gr.Video(sources=["upload"], label=label, elem_id="video-upload", height=220, buttons=[])
    return gr.Audio(
        sources=["upload", "microphone"],
        type="filepath",
        label=label,
        elem_id="sound-upload",
        editable=False,
        buttons=[],
    )
