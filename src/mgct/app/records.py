"""What the parts of the page hand to each other: a request's limits and settings, its cost, its progress, its clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgct.app.decode import DecodeLimits
from mgct.types import AVSample, ClipSpec


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Args:
        clips: most clips at once.
        seconds: longest time that a request may be expected to take.
        times_length: longest clip, in lengths of the model's own.
        batch_size: clips in memory at once.
        kept_clips: clips kept for one visitor; the oldest go first.
        kept_s: seconds after which the clips of a visitor who does nothing are removed.
        disk_bytes: that the files of all visitors may take; above it nothing new is made.
        upload: of decoding one file.
    """

    clips: int = 8
    seconds: float = 900.0
    times_length: int = 8
    batch_size: int = 4
    kept_clips: int = 48
    kept_s: float = 6 * 3600.0
    disk_bytes: int = 4_000_000_000
    upload: DecodeLimits = field(default_factory=DecodeLimits)


@dataclass(frozen=True)
class Settings:
    """How clips are sampled.

    Args:
        model: a name that the studio knows.
        sampler: a name out of `mgct.samplers.SAMPLERS`.
        steps: network calls per clip.
        seed: any integer.
    """

    model: str
    sampler: str
    steps: int
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """A clip that was made.

    Args:
        settings: how.
        index: its number within the seed.
        variation_of: see `SamplingOptions.variation_of`.
        title: what it is, in a few words.
        clip: as stored, uint8 (1, F, 3, H, W) and int16 (1, 1, L).
        spec: its facts.
        video_path: mp4 with sound.
        spectrogram_png: a picture of its sound.
        seconds: it took, its share of its batch.
        name: of its files, unique.
    """

    settings: Settings
    index: int
    variation_of: tuple[int, ...]
    title: str
    clip: AVSample
    spec: ClipSpec
    video_path: Path
    spectrogram_png: bytes
    seconds: float
    name: str

    def facts(self) -> dict[str, Any]:
        """What is needed to make it again, as JSON has it."""
        return {
            **vars(self.settings),
            "clip": self.index,
            "variation_of": list(self.variation_of),
            "title": self.title,
            "seconds_of_clip": self.spec.seconds,
            "seconds_taken": round(self.seconds, 3),
            "file": self.video_path.name,
        }


@dataclass(frozen=True)
class Progress:
    """How far a request is.

    Args:
        done: network calls made, counted per clip.
        total: in all.
        seconds: since sampling began, writing files left out.
        preview: clips as they look now, (≤ 4, …) in [-1, 1] on the CPU; None: nothing new.
        fps: of the preview.
        made: clips finished so far.
    """

    done: int
    total: int
    seconds: float
    preview: AVSample | None = None
    fps: float = 10.0
    made: Sequence[Made] = ()

    @property
    def left_s(self) -> float:
        """Seconds still to go, by the pace so far; infinite before the first call."""
        return self.seconds / self.done * (self.total - self.done) if self.done else math.inf


@dataclass(frozen=True)
class Cost:
    """What a request will take.

    Args:
        clips: how many.
        calls: network calls of one clip.
        seconds_per_call: measured, for one clip; windows and guidance included.
        measured: whether it was measured for this very kind of request, or derived from another.
    """

    clips: int
    calls: int
    seconds_per_call: float
    measured: bool

    @property
    def seconds(self) -> float:
        """In all."""
        return self.clips * self.calls * self.seconds_per_call


def file_label(settings: Settings, index: int, lineage: tuple[int, ...], title: str) -> str:
    """Name of a clip's files, without ending: letters, digits and dashes."""
    path = "-".join(str(number) for number in (*lineage, index))
    words = f"{settings.model} {settings.sampler} {settings.steps} seed {settings.seed} clip {path} {title}"
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in words.replace("++", "pp"))
    return "-".join(part for part in kept.split("-") if part)[:120]
