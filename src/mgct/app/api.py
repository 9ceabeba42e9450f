"""The functions of the page for programs: named endpoints that give files and facts (``docs/app.md``)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import gradio as gr

from mgct.app.decode import Kind
from mgct.app.jobs import Cancelled
from mgct.app.parts import USES_MODEL, Parts, integer, session_of
from mgct.app.records import Made, Progress, Settings
from mgct.errors import UserError

Answer = tuple[list[str], list[dict[str, Any]]]
"""Paths of the mp4s, and the facts of each clip (`mgct.app.records.Made.facts`)."""


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Errors that a client may know of become errors that Gradio passes on."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Cancelled:
        raise gr.Error("cancelled", print_exception=False) from None


def files(progress: Iterable[Progress]) -> Answer:
    """What is there in the end."""
    made: Sequence[Made] = ()
    for update in progress:
        made = update.made
    return [str(clip.video_path) for clip in made], [clip.facts() for clip in made]


def add_api(parts: Parts) -> None:
    """Add the endpoints to the page."""
    studio, models = parts.studio, parts.studio.models
    first = models.choices(models.names[0])[0]

    @plain_errors()
    def generate(model: str, clips: int, sampler: str, steps: int, seed: int, request: gr.Request) -> Answer:
        settings = Settings(model, sampler, integer(steps), integer(seed))
        return files(studio.generate(session_of(request), settings, int(clips)))

    @plain_errors()
    def variations(
        model: str, clips: int, sampler: str, steps: int, seed: int, variation_of: list[int], request: gr.Request
    ) -> Answer:
        settings = Settings(model, sampler, integer(steps), integer(seed))
        path = [integer(number) for number in variation_of or [0]]
        return files(studio.variations(session_of(request), settings, path, int(clips)))

    @plain_errors()
    def lengthen(
        model: str, sampler: str, steps: int, seed: int, clip: int, seconds: float, request: gr.Request
    ) -> Answer:
        settings = Settings(model, sampler, integer(steps), integer(seed))
        return files(studio.lengthen_from_seed(session_of(request), settings, integer(clip), float(seconds)))

    def from_upload(kind: Kind) -> Callable[..., Answer]:
        @plain_errors()
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
        ) -> Answer:
            settings = Settings(model, sampler, integer(steps), integer(seed))
            return files(parts.from_upload(session_of(request), settings, clips, upload, kind, start_s, guided))

        return call

    @plain_errors()
    def cost(model: str, clips: int, sampler: str, steps: int) -> dict[str, Any]:
        settings = Settings(model, sampler, integer(steps))
        studio.measure(model)
        known = studio.cost(settings, int(clips))
        return {**vars(known), "seconds": known.seconds} if known else {}

    def describe() -> dict[str, Any]:
        return {
            name: {"clip": vars(models.clip(name)), "samplers": [vars(choice) for choice in models.choices(name)]}
            for name in models.names
        }

    with gr.Column(visible=False):
        model = gr.Textbox(models.names[0], label="model")
        clips = gr.Number(1, precision=0, label="clips")
        sampler = gr.Textbox(first.name, label="sampler")
        steps = gr.Number(first.default, precision=0, label="steps")
        seed = gr.Number(0, precision=0, label="seed")
        number = gr.Number(0, precision=0, label="clip")
        seconds = gr.Number(2 * models.clip(models.names[0]).seconds, label="seconds")
        path = gr.JSON([0], label="variation_of")
        start_s = gr.Number(0, label="start_s")
        guided = gr.Checkbox(False, label="guided")
        upload = gr.File(label="upload")
        made = gr.File(file_count="multiple", label="clips")
        facts = gr.JSON(label="facts")
        press = gr.Button()
        given = [upload, model, clips, sampler, steps, seed, start_s, guided]
        press.click(generate, [model, clips, sampler, steps, seed], [made, facts], api_name="generate", **USES_MODEL)
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
        press.click(describe, None, facts, api_name="models")
