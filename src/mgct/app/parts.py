"""What the tabs are made of: the controls, the cards that show clips, and how both are wired to the studio."""

from __future__ import annotations

import math
import random
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from mgct.app.decode import Kind
from mgct.app.jobs import Cancelled
from mgct.app.models import SamplerChoice
from mgct.app.records import Made, Progress, Settings
from mgct.app.studio import Studio
from mgct.app.words import caption, cost_words, duration_words, image_tag, progress_html, sampler_label, status_html
from mgct.errors import UserError

VARIATIONS = 4
"""Made by one press of the button."""
PREVIEW_EVERY_S = 0.2
USES_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""How Gradio queues everything that uses a network: one request at a time."""
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""How Gradio runs what is done at once and needs no name in the API."""
LARGEST_SEED = 2**31 - 1
CANCELLED = "Cancelled; finished clips are kept."


@dataclass(frozen=True)
class Choice:
    """The controls that make `Settings`, and the events after which they agree with a new model or sampler.

    ``sampler`` and ``steps`` are hidden copies of what the visitor sees. Gradio checks the value of a list or a slider
    against what the server holds of it, and fails where the browser has not yet heard of new choices; a copy has no
    choices or range, and `Settings` checks it.
    """

    model: Any
    sampler: Any
    steps: Any
    model_settled: Any
    sampler_settled: Any


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
        """The components, in the order of `Parts.card_updates`."""
        parts = [self.box, self.video, self.sound, self.caption, self.name, self.download, self.vary, self.longer]
        return [part for part in parts if part is not None]


class Parts:
    """Makes components and wires them to a studio.

    Args:
        studio: what the page works with.
        blocks: the page.
    """

    def __init__(self, studio: Studio, blocks: Any) -> None:
        self.studio, self.blocks = studio, blocks

    # -------------------------------------------------------------------------------------------- controls

    def choice(self, prefix: str, *, fewest: bool = False) -> Choice:
        """Model, sampler and steps, the model's own choices first; ``fewest`` begins with the fewest steps."""
        models = self.studio.models
        first = models.names[0]
        choices = models.choices(first)
        model = gr.Dropdown(
            models.names, value=first, label="Model", elem_id=f"{prefix}-model", visible=len(models.names) > 1
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

        asked_sampler, asked_steps = (
            gr.Textbox(sampler.value, visible="hidden"),
            gr.Number(steps.value, visible="hidden"),
        )
        for shown, asked in ((sampler, asked_sampler), (steps, asked_steps)):
            shown.change(None, shown, asked, js="value => value", api_visibility="private")

        def samplers_of(model: str) -> list[Any]:
            choices = models.choices(model)
            labels = [(sampler_label(choice), choice.name) for choice in choices]
            return [gr.update(choices=labels, value=choices[0].name), choices[0].name, *range_of(choices[0])]

        def steps_of(model: str, sampler: str) -> list[Any]:
            return range_of(next(choice for choice in models.choices(model) if choice.name == sampler))

        def range_of(choice: SamplerChoice) -> list[Any]:
            return [gr.update(minimum=choice.low, maximum=choice.high, value=choice.default), choice.default]

        model_settled = model.change(samplers_of, model, [sampler, asked_sampler, steps, asked_steps], **QUIET)
        sampler_settled = sampler.input(steps_of, [model, sampler], [steps, asked_steps], **QUIET)
        return Choice(model, asked_sampler, asked_steps, model_settled, sampler_settled)

    def seed(self, prefix: str) -> Any:
        """A seed, and a button for another one."""
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

    def run_buttons(self, words: str, prefix: str) -> tuple[Any, Any]:
        """The button that starts and the one that cancels."""
        with gr.Row():
            run = gr.Button(words, variant="primary", elem_id=f"{prefix}-run", scale=2, min_width=120)
            stop = gr.Button("Cancel", variant="stop", elem_id=f"{prefix}-cancel", scale=1, min_width=80)
        return run, stop

    def status(self, words: str, prefix: str) -> Any:
        """The line that says what goes on."""
        return gr.HTML(status_html(words), elem_id=f"{prefix}-status", padding=False)

    # -------------------------------------------------------------------------------------------- cards

    def cards(self, count: int, prefix: str, actions: bool) -> list[Card]:
        """A grid of hidden cards; ``actions``: with buttons to vary and to lengthen the clip."""
        with gr.Row(elem_classes="clips"):
            return [self._card(f"{prefix}-{number}", actions) for number in range(count)]

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

    def card_updates(self, clips: Iterable[Made], size: int, actions: bool) -> list[Any]:
        """Values of the components of ``size`` cards, the rest hidden."""
        updates: list[Any] = []
        clips = list(clips)[:size]
        for made in clips:
            updates += [
                gr.update(visible=True),
                gr.update(value=str(made.video_path)),
                image_tag(made.spectrogram_png, "sound", "spectrogram: pitch upwards, time to the right"),
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
        own = studio.models.clip(made.settings.model).seconds
        vary = studio.cost(made.settings, VARIATIONS)
        seconds = self.longer_s(made)
        longer = studio.cost(made.settings, 1, seconds)
        vary_words = f"{VARIATIONS} variations" + (f" (~{duration_words(vary.seconds)})" if vary else "")
        longer_words = f"Lengthen to {seconds:g} s" + (f" (~{duration_words(longer.seconds)})" if longer else "")
        return [
            gr.update(value=vary_words, visible=made.spec.seconds <= own + 1e-6),
            gr.update(value=longer_words, visible=seconds > made.spec.seconds + 1e-6),
        ]

    def longer_s(self, made: Made) -> float:
        """The length that the button offers: one model's length more, up to the limit."""
        own = self.studio.models.clip(made.settings.model).seconds
        return min(made.spec.seconds + own, own * self.studio.limits.times_length)

    # -------------------------------------------------------------------------------------------- cost

    def cost_of(self, model: str, sampler: str, steps: int, clips: int, guided: bool = False) -> str:
        """What such a request will take, or why it cannot be."""
        try:
            settings = Settings(model, sampler, integer(steps))
            return cost_words(self.studio.cost(settings, int(clips), method="guided" if guided else "replacement"))
        except UserError as error:
            return str(error)

    def cost(self, choices: Sequence[Choice], others: Sequence[Any], function: Callable[..., str]) -> tuple[Any, Any]:
        """A line that tells the cost when the page opens and whenever a control changes; a model is timed when chosen.

        Args:
            choices: what the cost depends on,
            others: and on these controls.
            function: values of model, sampler and steps of each choice and of the others → the line.

        Returns:
            The line, and the controls in the order of the function's arguments.
        """
        line = gr.Markdown(elem_classes="cost")
        controls = [control for choice in choices for control in (choice.model, choice.sampler, choice.steps)]
        controls += others
        tell: dict[str, Any] = {"fn": function, "inputs": controls, "outputs": line, **QUIET}
        self.blocks.load(**tell)
        for control in (*(choice.steps for choice in choices), *others):
            control.change(**tell)
        for choice in choices:
            choice.sampler_settled.then(**tell)
            for trigger in (self.blocks.load, choice.model_settled.then):
                trigger(
                    self._measure, choice.model, None, **USES_MODEL, show_progress="hidden", api_visibility="private"
                ).then(**tell)
        return line, controls

    def _measure(self, model: str) -> None:
        self.studio.measure(model)

    # -------------------------------------------------------------------------------------------- work

    def wire_run(self, trigger: Any, function: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> Any:
        """Start work that uses a network: one request at a time, the others wait in order. The first output says so."""
        return trigger(
            function,
            inputs,
            outputs,
            **USES_MODEL,
            show_progress="full",
            show_progress_on=outputs[0],
            api_visibility="private",
        )

    def wire_cancel(self, stop: Any, events: list[Any], status: Any) -> None:
        """Let a button end the work of its visitor, and what waits to be started by ``events``."""

        def cancel(request: gr.Request) -> str:
            count = self.studio.cancel(session_of(request))
            return status_html(CANCELLED if count else "Cancelled: nothing was running.")

        stop.click(cancel, None, status, cancels=events, **QUIET)

    def show(
        self,
        start: Callable[[], Generator[Progress, None, None]],
        session: str,
        shown: list[str],
        size: int,
        *,
        actions: bool,
    ) -> Iterator[list[Any]]:
        """Values of (status, names shown, cards…) while clips are made; new clips come before the older ones.

        Args:
            start: begins the work.
            session: whose.
            shown: names of the clips on the cards so far.
            size: how many cards there are.
            actions: whether they have buttons.
        """
        same = [gr.skip()] * (1 + size * (8 if actions else 6))
        yield [status_html("Starting…", done=0), *same]
        finished, last = 0, None
        try:
            for progress in paced(start()):
                line, last = progress_html(progress), progress
                if len(progress.made) == finished:
                    yield [line, *same]
                    continue
                finished = len(progress.made)
                clips = [*progress.made, *self._kept(session, shown)][:size]
                yield [line, [clip.name for clip in clips], *self.card_updates(clips, size, actions)]
        except (UserError, Cancelled) as error:
            yield [failure_html(error), *same]
            return
        except Exception:
            yield [unexpected_html(), *same]
            return
        if last is not None:
            words = f"{finished} made in {duration_words(last.seconds)} ({last.total} network calls)."
            clips = [*last.made, *self._kept(session, shown)][:size]
            yield [status_html(words), gr.skip(), *self.card_updates(clips, size, actions)]

    def _kept(self, session: str, names: list[str]) -> list[Made]:
        """Those of the clips that are still there."""
        there = {made.name: made for made in self.studio.session(session).made}
        return [there[name] for name in names if name in there]

    def from_upload(
        self,
        session: str,
        settings: Settings,
        clips: int,
        path: str | None,
        kind: Kind,
        start_s: float | None,
        guided: bool,
    ) -> Generator[Progress, None, None]:
        """As `Studio.from_upload`, for a path that came from a browser.

        Raises:
            UserError: there is none, or it is not that of an upload.
        """
        if path is None:
            raise UserError("choose a file" + (", or record a sound," if kind == "sound" else "") + " first")
        if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()) or Path(path).is_dir():
            raise UserError("only uploaded files are read")
        start = float(start_s or 0)
        return self.studio.from_upload(session, settings, int(clips), Path(path), kind, start_s=start, guided=guided)


def paced(progress: Generator[Progress, None, None]) -> Iterator[Progress]:
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


def failure_html(error: UserError | Cancelled) -> str:
    """The status line of work that ended early for a reason the visitor knows or should."""
    if isinstance(error, Cancelled):
        return status_html(CANCELLED)
    words = str(error)
    return status_html(f"{words[:1].upper()}{words[1:]}.", "bad")


def unexpected_html() -> str:
    """The status line of work that broke. Call it where the error is handled: what broke goes to the server's log."""
    traceback.print_exc()
    return status_html("Something went wrong on the server; its log says what.", "bad")


def session_of(request: gr.Request) -> str:
    """The name of the visitor's session."""
    return request.session_hash or "nobody"


def integer(value: Any) -> int:
    """A whole number that came from a browser.

    Raises:
        UserError: it is none.
    """
    if value is None or value != value or int(value) != value:
        raise UserError(f"a whole number is needed, not {value!r}")
    return int(value)
