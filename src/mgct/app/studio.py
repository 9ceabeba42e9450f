"""What the page does, without the page: models, cost, clips made for each visitor.

A visitor (a browser tab, a client of the API) is a *session*: a name, the clips made for it, and the work in progress.
Everything long is a generator of `Progress`; leaving it early, or `Studio.cancel`, ends the work within one network
call.
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import statistics
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mgct import plots
from mgct.app.decode import DecodeLimits, Kind, decode
from mgct.app.jobs import Job
from mgct.clip_folder import save_clips
from mgct.errors import UserError
from mgct.pipeline import AVPipeline, Given, Method, SamplingOptions, Step
from mgct.samplers import SAMPLERS, get_sampler
from mgct.types import AVSample, ClipSpec, dequantise, quantise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREVIEWED = 4
"""Clips of a batch that a preview shows."""
TIMED_CALLS = 8
"""Network calls timed when a model is loaded, unless they take too long."""
TIMED_S = 4.0
"""After so many seconds no further call is timed."""
GUIDED_COST = 3.0
"""How many plain calls a guided one costs, until it was measured."""


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
        upload: of decoding one file.
    """

    clips: int = 8
    seconds: float = 900.0
    times_length: int = 8
    batch_size: int = 4
    kept_clips: int = 48
    kept_s: float = 6 * 3600.0
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
class SamplerChoice:
    """A sampler as a model's choice.

    Args:
        name: of the sampler.
        recommended: whether the model was made for it.
        low: fewest steps.
        high: most steps.
        default: steps to begin with.
    """

    name: str
    recommended: bool
    low: int
    high: int
    default: int


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


@dataclass
class Session:
    """One visitor's work.

    Args:
        folder: of the files.
        made: oldest first.
        jobs: in progress.
        used: monotonic time of the last request.
    """

    folder: Path
    made: list[Made] = field(default_factory=list)
    jobs: set[Job[Progress]] = field(default_factory=set)
    used: float = field(default_factory=time.monotonic)


class _Enough(Exception):
    """Enough calls were timed."""


Start = Callable[[AVPipeline, SamplingOptions], Iterable[tuple[list[int], AVSample]]]


class Studio:
    """Models and what visitors make with them.

    Files go to a temporary folder, which is removed with the studio.

    Args:
        models: name → pipeline, or folder of a saved one, which is loaded when it is first used and again when it has
            changed on the disk.
        runs: name → run folder that may be looked at.
        device: where the loaded models run.
        limits: of one request.
    """

    def __init__(
        self,
        models: Mapping[str, AVPipeline | Path],
        runs: Mapping[str, Path] | None = None,
        device: torch.device | str = "cpu",
        limits: Limits | None = None,
    ) -> None:
        if not models:
            raise UserError("the page needs at least one model")
        self.limits = limits or Limits()
        self.runs = dict(runs or {})
        self.device = torch.device(device)
        self.folder = Path(tempfile.mkdtemp(prefix="mgct-app-"))
        self.close = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._models = dict(models)
        self._loaded: dict[str, tuple[int, AVPipeline]] = {}
        self._seconds_per_call: dict[tuple[str, Method], float] = {}
        self._sessions: dict[str, Session] = {}
        self._using = threading.RLock()

    # -------------------------------------------------------------------------------------------- models

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return list(self._models)

    def has_model(self, name: str) -> bool:
        """Whether there is a model of that name; that of a run counts from the moment it is saved."""
        run = self.runs.get(name)
        if name not in self._models and run is not None and (run / "model" / "model_index.json").is_file():
            self._models[name] = run / "model"
        return name in self._models

    def _model(self, name: str) -> AVPipeline | Path:
        if not self.has_model(name):
            raise UserError(f"no model {name!r}; there are: {', '.join(self._models)}")
        return self._models[name]

    def pipeline(self, name: str) -> AVPipeline:
        """The pipeline of that name, loaded. At most two stay in memory.

        Raises:
            UserError: no such model, or its folder is gone.
        """
        model = self._model(name)
        if isinstance(model, AVPipeline):
            return model
        with self._using:
            stamp = self.stamp(name)
            if name in self._loaded and self._loaded[name][0] == stamp:
                return self._loaded[name][1]
            self._loaded.pop(name, None)
            while len(self._loaded) > 1:
                self._loaded.pop(next(iter(self._loaded)))
            pipe: AVPipeline = AVPipeline.from_pretrained(model).to(self.device)  # type: ignore[attr-defined]
            self._loaded[name] = (stamp, pipe)
            return pipe

    def stamp(self, name: str) -> int:
        """A number that changes when the model on the disk does; 0 for one that lives in memory."""
        model = self._model(name)
        if isinstance(model, AVPipeline):
            return 0
        try:
            return (model / "model_index.json").stat().st_mtime_ns
        except OSError as error:
            raise UserError(f"the model {name!r} is gone from the disk; choose another") from error

    def _config(self, name: str) -> Mapping[str, Any]:
        model = self._model(name)
        if isinstance(model, AVPipeline):
            return model.config
        config: Mapping[str, Any] = AVPipeline.load_config(model)
        return config

    def clip(self, name: str) -> ClipSpec:
        """Facts of the model's clips; nothing is loaded for it."""
        return ClipSpec(**self._config(name)["clip"])

    def choices(self, name: str) -> list[SamplerChoice]:
        """Every sampler, those that the model was made for first, each with its range of steps.

        Among those the package's default comes first, then the ones with few steps.
        """
        ranges: Mapping[str, Sequence[int]] = self._config(name)["recommended"]
        choices = []
        for sampler, facts in SAMPLERS.items():
            low, high = ranges.get(sampler, (facts.min_steps, facts.max_steps))
            default = min(max(facts.default_steps, low), high)
            choices.append(SamplerChoice(sampler, not ranges or sampler in ranges, low, high, default))
        best = SamplingOptions().sampler
        return sorted(choices, key=lambda choice: (not choice.recommended, choice.name != best, choice.default))

    # -------------------------------------------------------------------------------------------- cost

    def measure(self, name: str) -> float:
        """Load a model and time a network call for one clip, in seconds; known at once the second time."""
        key: tuple[str, Method] = (name, "replacement")
        if key not in self._seconds_per_call:
            with self._using:
                times: list[float] = []

                def on_step(_: Step) -> None:
                    times.append(time.perf_counter())
                    if len(times) > TIMED_CALLS or times[-1] - times[0] > TIMED_S:
                        raise _Enough

                choice = self.choices(name)[0]
                options = SamplingOptions(
                    steps=min(max(choice.low, TIMED_CALLS + 1), choice.high),
                    sampler=choice.name,
                    progress=False,
                    on_step=on_step,
                )
                with contextlib.suppress(_Enough):
                    list(self.pipeline(name).stream([0], options))
                laps = [after - before for before, after in pairwise(times)]
                self._seconds_per_call[key] = statistics.median(laps)
        return self._seconds_per_call[key]

    def cost(
        self, settings: Settings, clips: int, seconds: float | None = None, method: Method = "replacement"
    ) -> Cost | None:
        """What a request will take; None while the model has not been measured.

        Args:
            settings: how.
            clips: how many.
            seconds: length of a clip; None: the model's own.
            method: how a given modality steers the other.

        Raises:
            UserError: a setting that cannot be.
        """
        calls = get_sampler(settings.sampler, settings.steps)[1]
        windows = self._windows(settings.model, seconds)
        measured = self._seconds_per_call.get((settings.model, method))
        plain = self._seconds_per_call.get((settings.model, "replacement"))
        if plain is None:
            return None
        per_window = measured if measured is not None else GUIDED_COST * plain
        return Cost(clips, calls, windows * per_window, measured is not None)

    def _windows(self, name: str, seconds: float | None) -> int:
        """Network calls that one call for a clip of that length stands for (see `mgct.pipeline.windowed`)."""
        clip = self.clip(name)
        more = round((seconds or clip.seconds) * clip.fps) - clip.frames
        return 1 if more <= 0 else math.ceil(more / max(clip.frames // 2, 1)) + 1

    def _check(self, settings: Settings, clips: int, seconds: float | None, method: Method) -> None:
        """Refuse what cannot be or would take too long."""
        if not 1 <= clips <= self.limits.clips:
            raise UserError(f"between 1 and {self.limits.clips} clips can be made at once, not {clips}")
        own = self.clip(settings.model).seconds
        if seconds is not None and not own <= seconds <= own * self.limits.times_length + 1e-6:
            raise UserError(f"a clip can last {own:g} to {own * self.limits.times_length:g} s, not {seconds:g}")
        self.measure(settings.model)
        cost = self.cost(settings, clips, seconds, method)
        if cost is not None and cost.seconds > self.limits.seconds:
            raise UserError(
                f"this would take about {cost.seconds / 60:.0f} min; at most {self.limits.seconds / 60:.0f} min are "
                f"allowed: ask for fewer clips or steps"
            )

    # -------------------------------------------------------------------------------------------- sessions

    def session(self, name: str) -> Session:
        """The session of that name, made if need be; sessions long unused are removed."""
        now = time.monotonic()
        for other in [key for key, value in self._sessions.items() if now - value.used > self.limits.kept_s]:
            self.forget(other)
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = Session(Path(tempfile.mkdtemp(dir=self.folder)))
        session.used = now
        return session

    def cancel(self, name: str) -> int:
        """End whatever is in progress for a session; how many requests that were."""
        session = self._sessions.get(name)
        jobs = list(session.jobs) if session else []
        for job in jobs:
            job.cancel()
        return len(jobs)

    def forget(self, name: str) -> None:
        """Cancel a session's work and remove its files."""
        self.cancel(name)
        session = self._sessions.pop(name, None)
        if session is not None:
            shutil.rmtree(session.folder, ignore_errors=True)

    def find(self, session: str, name: str) -> Made:
        """The clip of that name made for a session.

        Raises:
            UserError: there is none (any more).
        """
        for made in self.session(session).made:
            if made.name == name:
                return made
        raise UserError("this clip is not kept any more; make it again from its seed")

    # -------------------------------------------------------------------------------------------- making clips

    def generate(self, session: str, settings: Settings, clips: int) -> Generator[Progress, None, None]:
        """Clips 0 … clips-1 of a seed.

        Raises:
            UserError: a setting that cannot be, or beyond the limits.
            Cancelled: by `cancel`.
        """
        self._check(settings, clips, None, "replacement")
        yield from self._run(
            session, settings, "", clips, lambda pipe, options: pipe.stream(range(clips), options), None
        )

    def variations(
        self, session: str, settings: Settings, variation_of: Sequence[int], clips: int
    ) -> Generator[Progress, None, None]:
        """Clips near a clip: variations 0 … clips-1 of ``variation_of`` (see `SamplingOptions`)."""
        self._check(settings, clips, None, "replacement")
        lineage = tuple(variation_of)

        def start(pipe: AVPipeline, options: SamplingOptions) -> Iterator[tuple[list[int], AVSample]]:
            return pipe.stream(range(clips), replace(options, variation_of=lineage))

        yield from self._run(session, settings, "variation", clips, start, None, lineage)

    def lengthen(self, session: str, made: Made, seconds: float) -> Generator[Progress, None, None]:
        """A clip that was made, continued to ``seconds``."""
        self._check(made.settings, 1, seconds, "replacement")

        def start(pipe: AVPipeline, options: SamplingOptions) -> Iterator[tuple[list[int], AVSample]]:
            chosen = {name: value for name, value in vars(options).items() if name != "variation_of"}
            yield [made.index], pipe.extend(dequantise(made.clip), seconds, **chosen)

        yield from self._run(
            session, made.settings, f"lengthened to {seconds:g} s", 1, start, seconds, made.variation_of
        )

    def lengthen_from_seed(
        self, session: str, settings: Settings, index: int, seconds: float
    ) -> Generator[Progress, None, None]:
        """Clip ``index`` of a seed, made and then continued to ``seconds``."""
        self._check(settings, 1, seconds, "replacement")
        last = None
        for last in self._run(session, settings, "", 1, lambda pipe, options: pipe.stream([index], options), None):
            yield replace(last, made=())
        if last is not None:
            yield from self.lengthen(session, last.made[0], seconds)

    def from_upload(
        self,
        session: str,
        settings: Settings,
        clips: int,
        path: Path,
        kind: Kind,
        *,
        start_s: float = 0.0,
        seconds: float | None = None,
        method: Method = "replacement",
    ) -> Generator[Progress, None, None]:
        """Videos for the sound of a file, or sounds for its picture. The file is removed once it is decoded.

        Args:
            session: whose.
            settings: how.
            clips: how many.
            path: of the upload.
            kind: what is given: its sound, or its video.
            start_s: where in the file to start, in seconds.
            seconds: length; None: the model's own.
            method: see `AVPipeline.audio_to_video`.

        Raises:
            UserError: the file cannot be used, a setting that cannot be, or beyond the limits.
            Cancelled: by `cancel`.
        """
        try:
            spec = self.clip(settings.model)
            self._check(settings, clips, seconds, method)
            if seconds is not None:
                spec = replace(spec, frames=round(seconds * spec.fps))
            given = decode(path, kind, spec, start_s, self.limits.upload)
        finally:
            path.unlink(missing_ok=True)
        start = self._given(given, kind, spec, method)
        title = "video for your sound" if kind == "sound" else "sound for your video"
        yield from self._run(
            session,
            settings,
            title,
            clips,
            lambda pipe, options: pipe.stream(range(clips), options, given=start),
            spec.seconds,
            method=method,
        )

    @staticmethod
    def _given(given: Tensor, kind: Kind, spec: ClipSpec, method: Method) -> Given:
        if kind == "sound":
            return Given(AVSample(video=torch.zeros(1, 0, *spec.video_shape[1:]), audio=given), method)
        return Given(AVSample(video=given, audio=torch.zeros(1, 1, 0)), method)

    def _run(
        self,
        session: str,
        settings: Settings,
        title: str,
        clips: int,
        start: Start,
        seconds: float | None,
        lineage: tuple[int, ...] = (),
        method: Method = "replacement",
    ) -> Generator[Progress, None, None]:
        """Sample in a thread and report; finished clips are kept for the session as each batch is done."""
        owner = self.session(session)
        total = clips * settings.steps
        windows = self._windows(settings.model, seconds)

        def work(say: Callable[[Progress], None]) -> None:
            with self._using:
                pipe = self.pipeline(settings.model)
                made: list[Made] = []
                sampling_s, since = 0.0, time.perf_counter()

                def seconds_so_far() -> float:
                    return sampling_s + time.perf_counter() - since

                def on_step(step: Step) -> None:
                    now = AVSample(video=step.clips.video[:PREVIEWED].cpu(), audio=step.clips.audio[:PREVIEWED].cpu())
                    done = len(made) * settings.steps + len(step.indices) * step.call
                    say(Progress(done, total, seconds_so_far(), now, pipe.clip.fps, tuple(made)))

                options = SamplingOptions(
                    steps=settings.steps,
                    sampler=settings.sampler,
                    seed=settings.seed,
                    batch_size=self.limits.batch_size,
                    progress=False,
                    on_step=on_step,
                )
                for indices, batch in start(pipe, options):
                    taken = time.perf_counter() - since
                    sampling_s += taken
                    for row, index in enumerate(indices):
                        clip = batch.map(lambda part, row=row: part[row : row + 1])
                        share = taken / len(indices)
                        made.append(self._keep(owner, settings, index, lineage, title, clip, pipe.clip, share))
                    say(Progress(len(made) * settings.steps, total, sampling_s, made=tuple(made)))
                    since = time.perf_counter()
                self._seconds_per_call[settings.model, method] = sampling_s / total / windows

        job: Job[Progress] = Job(work)
        owner.jobs.add(job)
        try:
            yield from job.reports()
        finally:
            owner.jobs.discard(job)

    def _keep(
        self,
        owner: Session,
        settings: Settings,
        index: int,
        lineage: tuple[int, ...],
        title: str,
        clip: AVSample,
        spec: ClipSpec,
        seconds: float,
    ) -> Made:
        """Write a finished clip (1, …) and its spectrogram into the session's folder."""
        name = uuid.uuid4().hex
        folder = owner.folder / name
        spec = replace(spec, frames=clip.video.shape[1])
        (saved,) = save_clips(clip, folder, spec, indices=[index])
        label = _file_label(settings, index, lineage, title)
        video_path = saved.rename(folder / f"{label}.mp4")
        picture = figure_png(spectrogram_figure(clip.audio[0, 0], spec.sample_rate_hz))
        made = Made(settings, index, lineage, title, quantise(clip), spec, video_path, picture, seconds, name)
        owner.made.append(made)
        for old in owner.made[: -self.limits.kept_clips]:
            shutil.rmtree(old.video_path.parent, ignore_errors=True)
        del owner.made[: -self.limits.kept_clips]
        return made


def spectrogram_figure(audio: Tensor, sample_rate_hz: int) -> Figure:
    """The spectrogram of one sound, readable on a light and on a dark page.

    Args:
        audio: (L,) in [-1, 1].
        sample_rate_hz: samples per second.
    """
    from matplotlib.figure import Figure

    level = plots.spectrogram_db(audio.float().cpu(), sample_rate_hz)
    figure = Figure(figsize=(2.4, 0.95), dpi=160)
    axes = figure.add_axes((0.14, 0.2, 0.84, 0.76))
    axes.imshow(
        level.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, len(audio) / sample_rate_hz, 0, sample_rate_hz / 2000),
        cmap="magma",
        vmin=plots.FLOOR_DB,
        vmax=0,
        interpolation="bilinear",
    )
    axes.locator_params(nbins=4)
    axes.xaxis.set_major_formatter("{x:g} s")
    axes.set_ylabel("kHz", fontsize=7, labelpad=1)
    axes.tick_params(labelsize=7, length=2, pad=1)
    on_any_background(figure)
    return figure


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG with a transparent background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def on_any_background(figure: Figure) -> Figure:
    """The figure with no background and everything black in a grey that light and dark pages both show."""
    grey = "#808890"
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.tick_params(which="both", colors=grey)
        for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
            text.set_color(grey)
        for spine in axes.spines.values():
            spine.set_edgecolor(grey)
        for line in axes.lines:
            if line.get_color() == "black":
                line.set_color(grey)
        legend = axes.get_legend()
        if legend is not None:
            legend.get_frame().set_alpha(0)
            for text in legend.get_texts():
                text.set_color(grey)
            for line in legend.get_lines():
                if line.get_color() == "black":
                    line.set_color(grey)
    return figure


def _file_label(settings: Settings, index: int, lineage: tuple[int, ...], title: str) -> str:
    """Name of a clip's files, without ending: letters, digits and dashes."""
    path = "-".join(str(number) for number in (*lineage, index))
    words = f"{settings.model} {settings.sampler} {settings.steps} seed {settings.seed} clip {path} {title}"
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in words.replace("++", "pp"))
    return "-".join(part for part in kept.split("-") if part)[:120]
