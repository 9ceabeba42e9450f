"""What the page says, in words and in small pieces of HTML."""

from __future__ import annotations

import base64
import html
import math

from mgct.app.models import SamplerChoice
from mgct.app.pictures import animation_webp
from mgct.app.records import Cost, Made, Progress, Settings


def image_tag(image: bytes, kind: str, words: str, form: str = "png") -> str:
    """An image inside the page itself.

    Args:
        image: its bytes.
        kind: its class in the style sheet.
        words: for those who do not see it.
        form: its format.
    """
    encoded = base64.b64encode(image).decode()
    return f'<img class="{kind}" alt="{html.escape(words)}" src="data:image/{form};base64,{encoded}">'


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
        return f"{max(seconds, 0.1):.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
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
    return f"{choice.name} ({'' if choice.recommended else 'not '}recommended)"


def side_words(letter: str, settings: Settings, last: Progress) -> str:
    """What one side of a comparison took."""
    return (
        f"**{letter}: {settings.model}, {settings.sampler}, {settings.steps} steps**  \n"
        f"{duration_words(last.seconds)} for {len(last.made)} clips, {settings.steps} network calls a clip"
    )


def progress_html(progress: Progress, letter: str = "", share: float | None = None) -> str:
    """The status line of work in progress, with the clips as they form.

    Args:
        progress: how far it is.
        letter: which of two sides it is.
        share: done of the whole, in [0, 1]; None: of this.
    """
    done = progress.done / progress.total
    words = f"{done:.0%}: {progress.done} of {progress.total} network calls, {duration_words(progress.left_s)} to go"
    preview = ""
    if progress.preview is not None:
        preview = image_tag(animation_webp(progress.preview, progress.fps), "preview", "the clips as they form", "webp")
    return status_html(f"{letter}: {words}" if letter else words, done=done if share is None else share, more=preview)
