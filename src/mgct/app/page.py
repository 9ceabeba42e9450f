"""The page: what a visitor sees, and the same functions as an API."""

from __future__ import annotations

import base64
import html
import io
import math
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.utils import get_upload_folder

from mgct.app import training
from mgct.app.jobs import Cancelled
from mgct.app.studio import Cost, Made, Progress, SamplerChoice, Settings, Studio, figure_png, on_any_background
from mgct.errors import UserError
from mgct.types import AVSample

TITLE = "MGCT: video with its sound"
SHOWN = 12
"""Clips on the first tab."""
GIVEN_SHOWN = 4
"""Most clips made from one upload."""
COMPARED = 4
"""Most pairs of a comparison."""
VARIATIONS = 4
SHEET_CLIPS = 4
PREVIEW_EVERY_S = 0.2
LIVE_EVERY_S = 4.0
USES_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""How Gradio queues everything that uses a network: one request at a time."""
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""How Gradio runs what is done at once and needs no name in the API."""
WAITING = 32
"""Requests that may wait."""
LARGEST_SEED = 2**31 - 1

CSS = """
.clips { display: grid !important; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 14px; }
.clip { min-width: 0 !important; padding: 10px; border-radius: 10px; background: var(--background-fill-secondary);
        border: 1px solid var(--border-color-primary); gap: 6px !important; }
.clip video { width: 100%; aspect-ratio: 1; image-rendering: pixelated; background: #000; }
.clip .controls { display: block !important; position: static; width: auto; margin: 6px 0 0; opacity: 1; }
.clip .controls .time { display: none; }
.clip .controls .icon { flex: none; width: 22px; height: 22px; }
.clip .caption p { margin: 0; font-size: 13px; line-height: 1.35; }
.clip button { min-width: 0; }
.clip .html-container { padding: 0 !important; }
img.sound, img.figure { display: block; width: 100%; }
img.preview { display: block; width: 100%; max-width: 760px; image-rendering: pixelated; border-radius: 6px;
              margin-top: 8px; }
.status .bar { height: 8px; border-radius: 4px; overflow: hidden; background: var(--border-color-primary); }
.status .bar div { height: 100%; background: var(--color-accent); }
.status .bad { color: #c2410c; font-weight: 600; }
.dark .status .bad { color: #fdba74; }
.status .quiet, .title p { color: var(--body-text-color); opacity: 0.8; }
.cost p { margin: 0; }
.title h1 { margin: 0.2em 0 0.1em; font-size: 1.5em; }
.title p { margin: 0; }
.side { min-width: 0 !important; }
.seed { align-items: flex-end; }
footer { display: none !important; }
"""


# ---------------------------------------------------------------------------------------------- pieces of HTML


def png_tag(png: bytes, kind: str, words: str) -> str:
    """An image inside the page itself."""
    return (
        f'<img class="{kind}" alt="{html.escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )


def preview_tag(clips: AVSample, fps: float) -> str:
    """Clips side by side as one animated picture inside the page.

    Args:
        clips: video (B, F, 3, H, W) in [-1, 1].
        fps: frames per second.
    """
    from PIL import Image

    video = ((clips.video.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    opaque = torch.cat([video, torch.full_like(video[:, :, :1], 255)], 2)
    gap = max(opaque.shape[-1] // 16, 1)
    strips = torch.nn.functional.pad(opaque, (0, gap)).permute(1, 3, 0, 4, 2).flatten(2, 3).numpy()
    frames = [Image.fromarray(strip, "RGBA") for strip in strips]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / fps),
        loop=0,
        quality=70,
        method=0,
    )
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="preview" alt="the clips as they form" src="data:image/webp;base64,{encoded}">'


def status_html(words: str, kind: str = "quiet", done: float | None = None, more: str = "") -> str:
    """The status line: a bar (when ``done`` in [0, 1] is given), words, and what belongs below."""
    percent = 0 if done is None else round(100 * done)
    bar = (
        f'<div class="bar" role="progressbar" aria-valuenow="{percent}"><div style="width:{percent}%"></div></div>'
        if done is not None
        else ""
    )
    return f'<div class="status" role="status">{bar}<div class="{kind}">{html.escape(words)}</div>{more}</div>'


def duration_words(seconds: float) -> str:
    """A duration as people say it."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def cost_words(cost: Cost | None) -> str:
    """What a request will take, with how that is known."""
    if cost is None:
        return "Cost: the model is being loaded and timed; one moment."
    known = "measured here" if cost.measured else "estimated from plain sampling"
    clips = "1 clip" if cost.clips == 1 else f"{cost.clips} clips"
    return (
        f"Cost: **about {duration_words(cost.seconds)}** = {clips} × {cost.calls} network calls × "
        f"{cost.seconds_per_call:.3g} s ({known})"
    )


def caption(made: Made) -> str:
    """What a clip is, for the line under it."""
    numbers = " → ".join(str(index) for index in (*made.variation_of, made.index))
    first = f"**Seed {made.settings.seed}, clip {numbers}**" + (f" · {made.title}" if made.title else "")
    return f"{first}  \n{made.settings.sampler}, {made.settings.steps} calls"


def sampler_label(choice: SamplerChoice) -> str:
    """A sampler's name with what to expect of it."""
    if choice.recommended:
        return f"{choice.name} (recommended)"
    return f"{choice.name} (not made for it)"


# ---------------------------------------------------------------------------------------------- the page


@dataclass(frozen=True)
class Card:
    """The components of one clip; all are updated together."""

    box: Any
    video: Any
    sound: Any
    caption: Any
    name: Any
    download: Any
    vary: Any = None
    longer: Any = None

    def outputs(self) -> list[Any]:
        """The components, in the order of `update`."""
        parts = [self.box, self.video, self.sound, self.caption, self.name, self.download, self.vary, self.longer]
        return [part for part in parts if part is not None]


@dataclass(frozen=True)
class Choice:
    """The controls that make `Settings`."""

    model: Any
    sampler: Any
    steps: Any


class Page:
    """Builds the components and wires them to a studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    # -------------------------------------------------------------------------------------------- components

    def build(self) -> Any:
        """The whole page."""
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 6 * 3600)) as blocks:
            gr.Markdown(
                f"# {TITLE}\nShort clips, picture and sound together, made from nothing but noise. "
                "Choose how many, press **Generate**, and watch them form.",
                elem_classes="title",
            )
            with gr.Tabs():
                with gr.Tab("Generate", id="generate"):
                    self._generate_tab(blocks)
                with gr.Tab("Sound → video", id="sound"):
                    self._upload_tab(blocks, "sound")
                with gr.Tab("Video → sound", id="video"):
                    self._upload_tab(blocks, "video")
                with gr.Tab("Compare", id="compare"):
                    self._compare_tab(blocks)
                with gr.Tab("Training", id="training"):
                    self._training_tab()
            self._api()
            blocks.unload(self._unload)
        return blocks.queue(max_size=WAITING, api_open=True)

    def _choice(self, prefix: str, *, fewest: bool = False) -> Choice:
        """Model, sampler and steps, the model's own choices first; ``fewest`` begins with the fewest steps."""
        studio = self.studio
        first = studio.models[0]
        choices = studio.choices(first)
        model = gr.Dropdown(
            studio.models, value=first, label="Model", elem_id=f"{prefix}-model", visible=len(studio.models) > 1
        )
        sampler = gr.Dropdown(
            [(sampler_label(choice), choice.name) for choice in choices],
            value=choices[0].name,
            label="Sampler",
            info="How noise becomes a clip. The first is a good choice.",
            elem_id=f"{prefix}-sampler",
        )
        steps = gr.Slider(
            choices[0].low,
            choices[0].high,
            value=choices[0].low if fewest else choices[0].default,
            step=1,
            label="Steps",
            info="Network calls for each clip. More are slower and finer.",
            elem_id=f"{prefix}-steps",
        )
        model.change(self._samplers_of, model, [sampler, steps], **QUIET)
        sampler.input(self._steps_of, [model, sampler], steps, **QUIET)
        return Choice(model, sampler, steps)

    def _seed(self, prefix: str) -> Any:
        with gr.Row(elem_classes="seed"):
            seed = gr.Number(
                0,
                precision=0,
                minimum=0,
                maximum=LARGEST_SEED,
                label="Seed",
                info="The same seed gives the same clips.",
                elem_id=f"{prefix}-seed",
                scale=3,
                min_width=120,
            )
            fresh = gr.Button("New seed", size="sm", scale=1, min_width=90, elem_id=f"{prefix}-fresh")
        fresh.click(lambda: random.randrange(1_000_000), None, seed, **QUIET)
        return seed

    def _cards(self, count: int, prefix: str, actions: bool) -> list[Card]:
        cards = []
        with gr.Row(elem_classes="clips"):
            for number in range(count):
                cards.append(self._card(f"{prefix}-{number}", actions))
        return cards

    def _card(self, prefix: str, actions: bool) -> Card:
        with gr.Column(visible=False, elem_classes="clip", min_width=0, elem_id=f"{prefix}-card") as box:
            video = gr.Video(show_label=False, interactive=False, loop=True, buttons=[], container=False)
            sound = gr.HTML(padding=False)
            words = gr.Markdown(elem_classes="caption")
            name = gr.State("")
            download = gr.DownloadButton("Download mp4", size="sm", elem_id=f"{prefix}-download")
            vary = gr.Button("Variations", size="sm", elem_id=f"{prefix}-vary") if actions else None
            longer = gr.Button("Lengthen", size="sm", elem_id=f"{prefix}-longer") if actions else None
        return Card(box, video, sound, words, name, download, vary, longer)

    def _run_buttons(self, words: str, prefix: str) -> tuple[Any, Any]:
        with gr.Row():
            run = gr.Button(words, variant="primary", elem_id=f"{prefix}-run", scale=2, min_width=120)
            stop = gr.Button("Cancel", variant="stop", elem_id=f"{prefix}-cancel", scale=1, min_width=80)
        return run, stop

    def _wire_cost(self, blocks: Any, controls: list[Any], cost: Any, function: Callable[..., str], model: Any) -> None:
        """Tell the cost when the page opens and whenever a control changes; time a model when it is chosen."""
        for control in controls:
            control.change(function, controls, cost, **QUIET)
        for trigger in (blocks.load, model.change):
            trigger(
                self._measure,
                model,
                None,
                **USES_MODEL,
                show_progress="hidden",
                api_visibility="private",
            ).then(function, controls, cost, **QUIET)

    def _wire_run(
        self, triggers: list[Any], function: Callable[..., Any], inputs: list[Any], outputs: list[Any], status: Any
    ) -> list[Any]:
        """Start work that uses a network: one request at a time, the others wait in order."""
        return [
            trigger(
                function,
                inputs,
                outputs,
                **USES_MODEL,
                show_progress="full",
                show_progress_on=status,
                api_visibility="private",
            )
            for trigger in triggers
        ]

    def _wire_cancel(self, stop: Any, events: list[Any], status: Any) -> None:
        stop.click(self._cancel, None, status, cancels=events, **QUIET)

    # -------------------------------------------------------------------------------------------- tabs

    def _generate_tab(self, blocks: Any) -> None:
        limits = self.studio.limits
        with gr.Row():
            with gr.Column(scale=1, min_width=290):
                clips = gr.Slider(
                    1, limits.clips, value=min(4, limits.clips), step=1, label="Clips", elem_id="generate-clips"
                )
                choice = self._choice("generate")
                seed = self._seed("generate")
                cost = gr.Markdown(self._cost_of(*self._defaults(), min(4, limits.clips)), elem_classes="cost")
                run, stop = self._run_buttons("Generate", "generate")
            with gr.Column(scale=3, min_width=300):
                status = gr.HTML(status_html("Nothing made yet."), elem_id="generate-status", padding=False)
                cards = self._cards(SHOWN, "generate", actions=True)
        shown = gr.State([])
        outputs = [status, shown, *(part for card in cards for part in card.outputs())]
        controls = [choice.model, choice.sampler, choice.steps, clips]
        self._wire_cost(blocks, controls, cost, self._cost_of, choice.model)

        def on_generate(
            model: str, sampler: str, steps: int, clips: int, seed: int, shown: list[str], request: gr.Request
        ) -> Iterator[list[Any]]:
            session = _session(request)
            settings = Settings(model, sampler, int(steps), _integer(seed))
            yield from self._show(
                lambda: self.studio.generate(session, settings, int(clips)), session, shown, SHOWN, actions=True
            )

        def on_vary(name: str, shown: list[str], request: gr.Request) -> Iterator[list[Any]]:
            session = _session(request)

            def start() -> Generator[Progress, None, None]:
                made = self.studio.find(session, name)
                path = (*made.variation_of, made.index)
                return self.studio.variations(session, made.settings, path, VARIATIONS)

            yield from self._show(start, session, shown, SHOWN, actions=True)

        def on_longer(name: str, shown: list[str], request: gr.Request) -> Iterator[list[Any]]:
            session = _session(request)

            def start() -> Generator[Progress, None, None]:
                made = self.studio.find(session, name)
                return self.studio.lengthen(session, made, self._longer_s(made))

            yield from self._show(start, session, shown, SHOWN, actions=True)

        inputs = [choice.model, choice.sampler, choice.steps, clips, seed, shown]
        events = self._wire_run([run.click], on_generate, inputs, outputs, status)
        for card in cards:
            events += self._wire_run([card.vary.click], on_vary, [card.name, shown], outputs, status)
            events += self._wire_run([card.longer.click], on_longer, [card.name, shown], outputs, status)
        for event in events:
            event.then(self._cost_of, controls, cost, **QUIET)
        self._wire_cancel(stop, events, status)

    def _upload_tab(self, blocks: Any, kind: Any) -> None:
        limits = self.studio.limits
        own = self.studio.clip(self.studio.models[0]).seconds
        most_mb = limits.upload.file_bytes / 1e6
        with gr.Row():
            with gr.Column(scale=1, min_width=290):
                words = f"Your {kind}, at most {most_mb:.0f} MB; {own:g} s of it are used."
                if kind == "sound":
                    upload: Any = gr.Audio(
                        sources=["upload", "microphone"],
                        type="filepath",
                        label=words,
                        elem_id="sound-upload",
                        editable=False,
                    )
                else:
                    upload = gr.Video(sources=["upload"], label=words, elem_id="video-upload", height=220)
                start_s = gr.Number(0, minimum=0, label="Start at (s)", elem_id=f"{kind}-start")
                clips = gr.Slider(
                    1, min(GIVEN_SHOWN, limits.clips), value=1, step=1, label="Clips", elem_id=f"{kind}-clips"
                )
                choice = self._choice(kind)
                close = gr.Checkbox(
                    False,
                    label="Follow the upload closely",
                    info="Guided sampling: about three times as slow.",
                    elem_id=f"{kind}-guided",
                )
                seed = self._seed(kind)
                cost = gr.Markdown(self._cost_of(*self._defaults(), 1), elem_classes="cost")
                run, stop = self._run_buttons("Make the video" if kind == "sound" else "Make the sound", kind)
            with gr.Column(scale=3, min_width=300):
                status = gr.HTML(
                    status_html("The upload is removed from the server as soon as it has been decoded."),
                    elem_id=f"{kind}-status",
                    padding=False,
                )
                cards = self._cards(2 * GIVEN_SHOWN, kind, actions=False)
        shown = gr.State([])
        outputs = [status, shown, *(part for card in cards for part in card.outputs())]
        controls = [choice.model, choice.sampler, choice.steps, clips, close]
        self._wire_cost(blocks, controls, cost, self._cost_of, choice.model)

        def on_from_upload(
            path: str | None,
            start_s: float,
            model: str,
            sampler: str,
            steps: int,
            clips: int,
            guided: bool,
            seed: int,
            shown: list[str],
            request: gr.Request,
        ) -> Iterator[list[Any]]:
            session = _session(request)
            settings = Settings(model, sampler, int(steps), _integer(seed))

            def start() -> Generator[Progress, None, None]:
                return self._from_upload(session, settings, clips, path, kind, start_s, guided)

            yield from self._show(start, session, shown, 2 * GIVEN_SHOWN, actions=False)

        inputs = [upload, start_s, choice.model, choice.sampler, choice.steps, clips, close, seed, shown]
        events = self._wire_run([run.click], on_from_upload, inputs, outputs, status)
        events[0].then(self._cost_of, controls, cost, **QUIET)
        self._wire_cancel(stop, events, status)

    def _compare_tab(self, blocks: Any) -> None:
        gr.Markdown("Two ways on the same seeds: what differs is the model, the sampler or the number of steps.")
        with gr.Row():
            with gr.Column(elem_classes="side"):
                gr.Markdown("#### A")
                a = self._choice("compare-a")
            with gr.Column(elem_classes="side"):
                gr.Markdown("#### B")
                b = self._choice("compare-b", fewest=True)
            with gr.Column(elem_classes="side"):
                gr.Markdown("#### Both")
                clips = gr.Slider(
                    1, min(COMPARED, self.studio.limits.clips), value=2, step=1, label="Clips", elem_id="compare-clips"
                )
                seed = self._seed("compare")
        cost = gr.Markdown("", elem_classes="cost")
        run, stop = self._run_buttons("Compare", "compare")
        status = gr.HTML(status_html("Nothing compared yet."), elem_id="compare-status", padding=False)
        sides: list[tuple[Any, list[Card]]] = []
        with gr.Row():
            for side in "ab":
                with gr.Column(elem_classes="side"):
                    words = gr.Markdown(elem_id=f"compare-{side}-words")
                    sides.append((words, self._cards(COMPARED, f"compare-{side}", actions=False)))
        controls = [a.model, a.sampler, a.steps, b.model, b.sampler, b.steps, clips]
        self._wire_cost(blocks, controls, cost, self._compare_cost, b.model)
        outputs = [status]
        for words, cards in sides:
            outputs += [words, *(part for card in cards for part in card.outputs())]

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
            session = _session(request)
            both = [
                Settings(model_a, sampler_a, int(steps_a), _integer(seed)),
                Settings(model_b, sampler_b, int(steps_b), _integer(seed)),
            ]
            size = (len(outputs) - 1) // 2
            done: list[list[Any]] = [["", *self._card_updates([], COMPARED, False)] for _ in both]
            yield [status_html("Starting…", done=0), *done[0], *done[1]]
            for number, settings in enumerate(both):
                letter = "AB"[number]
                try:
                    last = None
                    for progress in self._paced(self.studio.generate(session, settings, int(clips))):
                        last = progress
                        words, kind, share, more = _progress_parts(progress)
                        line = status_html(f"{letter}: {words}", kind, (number + (share or 0)) / 2, more)
                        yield [line, *[gr.skip()] * (2 * size)]
                except UserError as error:
                    yield [status_html(f"{letter}: {error}", "bad"), *[gr.skip()] * (2 * size)]
                    return
                except Cancelled:
                    yield [status_html("Cancelled."), *[gr.skip()] * (2 * size)]
                    return
                if last is not None:
                    done[number] = [
                        side_words(letter, settings, last),
                        *self._card_updates(last.made, COMPARED, False),
                    ]
                    yield [gr.skip(), *done[0], *done[1]]
            yield [
                status_html("Done: A on one side, B on the other, the same seeds in the same places."),
                *done[0],
                *done[1],
            ]

        inputs = [*controls, seed]
        events = self._wire_run([run.click], on_compare, inputs, outputs, status)
        events[0].then(self._compare_cost, controls, cost, **QUIET)
        self._wire_cancel(stop, events, status)

    def _training_tab(self) -> None:
        studio = self.studio
        if not studio.runs:
            gr.Markdown("There is no run folder among the models of this page.")
            return
        names = list(studio.runs)
        run = gr.Dropdown(names, value=names[0], label="Run", elem_id="training-run", visible=len(names) > 1)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                curve = gr.HTML(elem_id="training-loss")
                cards = gr.Markdown(elem_id="training-cards")
            with gr.Column(scale=1, min_width=260):
                facts = gr.Markdown(elem_id="training-facts")
                draw = gr.Button("Draw clips of the newest model", elem_id="training-draw")
                follow = gr.Checkbox(
                    False, label="Draw again whenever the run saves its model", elem_id="training-follow"
                )
                sheet = gr.HTML(elem_id="training-sheet")
        seen = gr.State(None)
        drawn = gr.State(None)
        timer = gr.Timer(LIVE_EVERY_S)

        def look(run: str, seen: Any) -> list[Any]:
            now = (run, *training.stamp(studio.runs[run]))
            if now == seen:
                return [gr.skip()] * 4
            png = training.loss_png(studio.runs[run])
            picture = png_tag(png, "figure", "loss curves of the run") if png else ""
            return [
                picture,
                training.facts_markdown(studio.runs[run]),
                training.cards_markdown(studio.runs[run]),
                now,
            ]

        def due(run: str, follow: bool, drawn: Any) -> Any:
            stamp = self._sheet_stamp(run)
            return (run, stamp) if follow and stamp and (run, stamp) != drawn else gr.skip()

        def sheet_of(run: str) -> list[Any]:
            try:
                return [self._sheet(run), (run, self._sheet_stamp(run))]
            except UserError as error:
                return [status_html(str(error), "bad"), gr.skip()]

        for trigger in (timer.tick, run.change):
            trigger(look, [run, seen], [curve, facts, cards, seen], **QUIET)
        wanted = gr.State(None)
        timer.tick(due, [run, follow, drawn], wanted, **QUIET)
        for trigger in (draw.click, wanted.change):
            trigger(
                sheet_of,
                run,
                [sheet, drawn],
                **USES_MODEL,
                api_visibility="private",
            )

    # -------------------------------------------------------------------------------------------- the API

    def _api(self) -> None:
        """The same functions for programs, as named endpoints that give files and facts."""
        studio = self.studio
        first = studio.choices(studio.models[0])[0]

        def files(progress: Iterable[Progress]) -> tuple[list[str], list[dict[str, Any]]]:
            made: list[Made] = []
            try:
                for update in progress:
                    made = list(update.made)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error
            except Cancelled:
                raise gr.Error("cancelled", print_exception=False) from None
            return [str(clip.video_path) for clip in made], [clip.facts() for clip in made]

        def generate(
            model: str, clips: int, sampler: str, steps: int, seed: int, request: gr.Request
        ) -> tuple[list[str], list[dict[str, Any]]]:
            settings = Settings(model, sampler, int(steps), _integer(seed))
            return files(studio.generate(_session(request), settings, int(clips)))

        def variations(
            model: str, clips: int, sampler: str, steps: int, seed: int, variation_of: list[int], request: gr.Request
        ) -> tuple[list[str], list[dict[str, Any]]]:
            settings = Settings(model, sampler, int(steps), _integer(seed))
            path = [_integer(number) for number in variation_of or [0]]
            return files(studio.variations(_session(request), settings, path, int(clips)))

        def lengthen(
            model: str, sampler: str, steps: int, seed: int, clip: int, seconds: float, request: gr.Request
        ) -> tuple[list[str], list[dict[str, Any]]]:
            settings = Settings(model, sampler, int(steps), _integer(seed))
            return files(studio.lengthen_from_seed(_session(request), settings, _integer(clip), float(seconds)))

        def from_upload(kind: Any) -> Callable[..., tuple[list[str], list[dict[str, Any]]]]:
            def call(
                upload: str,
                model: str,
                clips: int,
                sampler: str,
                steps: int,
                seed: int,
                start_s: float,
                guided: bool,
                request: gr.Request,
            ) -> tuple[list[str], list[dict[str, Any]]]:
                settings = Settings(model, sampler, int(steps), _integer(seed))
                return files(self._from_upload(_session(request), settings, clips, upload, kind, start_s, guided))

            return call

        def cost(model: str, clips: int, sampler: str, steps: int) -> dict[str, Any]:
            settings = Settings(model, sampler, int(steps))
            try:
                studio.measure(model)
                known = studio.cost(settings, int(clips))
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error
            return {**vars(known), "seconds": known.seconds} if known else {}

        def models() -> dict[str, Any]:
            return {
                name: {
                    "clip": vars(studio.clip(name)),
                    "samplers": [vars(choice) for choice in studio.choices(name)],
                }
                for name in studio.models
            }

        with gr.Column(visible=False):
            model = gr.Textbox(studio.models[0], label="model")
            clips = gr.Number(1, precision=0, label="clips")
            sampler = gr.Textbox(first.name, label="sampler")
            steps = gr.Number(first.default, precision=0, label="steps")
            seed = gr.Number(0, precision=0, label="seed")
            number = gr.Number(0, precision=0, label="clip")
            seconds = gr.Number(2 * studio.clip(studio.models[0]).seconds, label="seconds")
            path = gr.JSON([0], label="variation_of")
            start_s = gr.Number(0, label="start_s")
            guided = gr.Checkbox(False, label="guided")
            upload = gr.File(label="upload")
            made = gr.File(file_count="multiple", label="clips")
            facts = gr.JSON(label="facts")
            press = gr.Button()
            given = [upload, model, clips, sampler, steps, seed, start_s, guided]
            press.click(
                generate, [model, clips, sampler, steps, seed], [made, facts], api_name="generate", **USES_MODEL
            )
            press.click(
                variations,
                [model, clips, sampler, steps, seed, path],
                [made, facts],
                api_name="variations",
                **USES_MODEL,
            )
            press.click(
                lengthen,
                [model, sampler, steps, seed, number, seconds],
                [made, facts],
                api_name="lengthen",
                **USES_MODEL,
            )
            press.click(from_upload("sound"), given, [made, facts], api_name="sound_to_video", **USES_MODEL)
            press.click(from_upload("video"), given, [made, facts], api_name="video_to_sound", **USES_MODEL)
            press.click(cost, [model, clips, sampler, steps], facts, api_name="cost", **USES_MODEL)
            press.click(models, None, facts, api_name="models")

    # -------------------------------------------------------------------------------------------- functions

    def _defaults(self) -> tuple[str, str, int]:
        """The first model, its first sampler and that one's steps."""
        name = self.studio.models[0]
        choice = self.studio.choices(name)[0]
        return name, choice.name, choice.default

    def _samplers_of(self, model: str) -> list[Any]:
        choices = self.studio.choices(model)
        labels = [(sampler_label(choice), choice.name) for choice in choices]
        return [gr.update(choices=labels, value=choices[0].name), self._steps(choices[0])]

    def _steps_of(self, model: str, sampler: str) -> Any:
        return self._steps(next(choice for choice in self.studio.choices(model) if choice.name == sampler))

    def _steps(self, choice: SamplerChoice) -> Any:
        return gr.update(minimum=choice.low, maximum=choice.high, value=choice.default)

    def _measure(self, model: str) -> None:
        self.studio.measure(model)

    def _cost_of(self, model: str, sampler: str, steps: int, clips: int, guided: bool = False) -> str:
        try:
            settings = Settings(model, sampler, int(steps))
            return cost_words(self.studio.cost(settings, int(clips), method="guided" if guided else "replacement"))
        except UserError as error:
            return str(error)

    def _compare_cost(
        self, model_a: str, sampler_a: str, steps_a: int, model_b: str, sampler_b: str, steps_b: int, clips: int
    ) -> str:
        a, b = self._cost_of(model_a, sampler_a, steps_a, clips), self._cost_of(model_b, sampler_b, steps_b, clips)
        return f"A: {a}  \nB: {b}"

    def _longer_s(self, made: Made) -> float:
        """The length that the button offers: one model's length more, up to the limit."""
        own = self.studio.clip(made.settings.model).seconds
        return min(made.spec.seconds + own, own * self.studio.limits.times_length)

    def _from_upload(
        self, session: str, settings: Settings, clips: int, path: str | None, kind: Any, start_s: float, guided: bool
    ) -> Generator[Progress, None, None]:
        if path is None:
            raise UserError("choose a file" + (", or record a sound," if kind == "sound" else "") + " first")
        if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
            raise UserError("only uploaded files are read")
        return self.studio.from_upload(
            session,
            settings,
            int(clips),
            Path(path),
            kind,
            start_s=float(start_s or 0),
            method="guided" if guided else "replacement",
        )

    def _show(
        self,
        start: Callable[[], Generator[Progress, None, None]],
        session: str,
        shown: list[str],
        size: int,
        *,
        actions: bool,
    ) -> Iterator[list[Any]]:
        """Values of (status, names shown, cards…) while clips are made; new clips come before the older ones."""
        skip = gr.skip()
        width = size * (8 if actions else 6)
        yield [status_html("Starting…", done=0), skip, *[skip] * width]
        finished, last = 0, None
        try:
            for progress in self._paced(start()):
                words, kind, share, more = _progress_parts(progress)
                line, last = status_html(words, kind, share, more), progress
                if len(progress.made) == finished:
                    yield [line, skip, *[skip] * width]
                    continue
                finished = len(progress.made)
                clips = [*progress.made, *self._kept(session, shown)][:size]
                yield [line, [clip.name for clip in clips], *self._card_updates(clips, size, actions)]
        except UserError as error:
            yield [status_html(str(error), "bad"), skip, *[skip] * width]
            return
        except Cancelled:
            yield [status_html("Cancelled; finished clips are kept."), skip, *[skip] * width]
            return
        if last is not None:
            words = f"{finished} made in {duration_words(last.seconds)} ({last.total} network calls)."
            clips = [*last.made, *self._kept(session, shown)][:size]
            yield [status_html(words), skip, *self._card_updates(clips, size, actions)]

    def _kept(self, session: str, names: list[str]) -> list[Made]:
        """Those of the clips that are still there."""
        there = {made.name: made for made in self.studio.session(session).made}
        return [there[name] for name in names if name in there]

    @staticmethod
    def _paced(progress: Generator[Progress, None, None]) -> Iterator[Progress]:
        """The reports without those that come too soon after another; one with newly finished clips always comes."""
        shown_at, finished = -math.inf, 0
        try:
            for report in progress:
                now = time.monotonic()
                if now - shown_at >= PREVIEW_EVERY_S or len(report.made) != finished:
                    shown_at, finished = now, len(report.made)
                    yield report
        finally:
            progress.close()

    def _card_updates(self, clips: Iterable[Made], size: int, actions: bool) -> list[Any]:
        """Values of the components of ``size`` cards, the rest hidden."""
        updates: list[Any] = []
        clips = list(clips)[:size]
        for made in clips:
            updates += [
                gr.update(visible=True),
                gr.update(value=str(made.video_path)),
                png_tag(made.spectrogram_png, "sound", "spectrogram: pitch upwards, time to the right"),
                caption(made),
                made.name,
                gr.update(value=str(made.video_path)),
            ]
            if actions:
                updates += self._action_updates(made)
        return updates + [gr.update(visible=False), *[gr.skip()] * (7 if actions else 5)] * (size - len(clips))

    def _action_updates(self, made: Made) -> list[Any]:
        """Labels of the two buttons, with what they cost."""
        studio = self.studio
        own = studio.clip(made.settings.model).seconds
        vary = studio.cost(made.settings, VARIATIONS)
        seconds = self._longer_s(made)
        longer = studio.cost(made.settings, 1, seconds)
        vary_words = f"{VARIATIONS} variations" + (f" (~{duration_words(vary.seconds)})" if vary else "")
        longer_words = f"Lengthen to {seconds:g} s" + (f" (~{duration_words(longer.seconds)})" if longer else "")
        return [
            gr.update(value=vary_words, visible=made.spec.seconds <= own + 1e-6),
            gr.update(value=longer_words, visible=seconds > made.spec.seconds + 1e-6),
        ]

    def _cancel(self, request: gr.Request) -> str:
        count = self.studio.cancel(_session(request))
        return status_html("Cancelled; finished clips are kept." if count else "Cancelled: nothing was running.")

    def _unload(self, request: gr.Request) -> None:
        self.studio.forget(_session(request))

    def _sheet_stamp(self, run: str) -> int:
        """What changes when the run saves its model; 0 when it has none yet."""
        return self.studio.stamp(run) if self.studio.has_model(run) else 0

    def _sheet(self, run: str) -> str:
        """Clips of the run's newest model, always of the same seed."""
        from mgct import plots

        studio = self.studio
        if not self._sheet_stamp(run):
            raise UserError("this run has not saved a model yet; it does so at its first checkpoint")
        choice = studio.choices(run)[0]
        pipe = studio.pipeline(run)
        clips = pipe(SHEET_CLIPS, choice.default, choice.name, 0, progress=False)
        figure = on_any_background(plots.clips_figure(clips, pipe.clip))
        return png_tag(figure_png(figure), "figure", "clips of the run's newest model")


def side_words(letter: str, settings: Settings, last: Progress) -> str:
    """What one side of a comparison took."""
    return (
        f"**{letter}: {settings.model}, {settings.sampler}, {settings.steps} steps**  \n"
        f"{duration_words(last.seconds)} for {len(last.made)} clips, {settings.steps} network calls a clip"
    )


def _progress_parts(progress: Progress) -> tuple[str, str, float, str]:
    """Words, kind, share done, and the preview, for `status_html`."""
    share = progress.done / progress.total
    words = f"{share:.0%}: {progress.done} of {progress.total} network calls, {duration_words(progress.left_s)} to go"
    more = preview_tag(progress.preview, progress.fps) if progress.preview is not None else ""
    return words, "quiet", share, more


def _session(request: gr.Request) -> str:
    """The name of the visitor's session."""
    return request.session_hash or "nobody"


def _integer(value: Any) -> int:
    """A whole number that came from a browser.

    Raises:
        UserError: it is none.
    """
    if value is None or value != value or int(value) != value:
        raise UserError(f"a whole number is needed, not {value!r}")
    return int(value)
