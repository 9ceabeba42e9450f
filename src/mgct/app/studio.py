"""What the page does, without the page: models, cost, clips made for each visitor.

A visitor (a browser tab, a client of the API) is a *session*: a name, the clips made for it, and the work in progress.
Everything long is a generator of `Progress`; leaving it early, or `Studio.cancel`, ends the work within one network
call.
"""

from __future__ import annotations

import contextlib
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

import torch
from torch import Tensor

from mgct.app.decode import Kind, decode
from mgct.app.disk import folder_bytes
from mgct.app.jobs import Job
from mgct.app.models import Models
from mgct.app.pictures import figure_png, spectrogram_figure
from mgct.app.records import Cost, Limits, Made, Progress, Settings, file_label
from mgct.clip_folder import save_clips
from mgct.errors import UserError
from mgct.given import Given, Method
from mgct.pipeline import AVPipeline
from mgct.samplers import get_sampler
from mgct.sampling_options import SamplingOptions, Step
from mgct.two_levels import best_method
from mgct.types import AVSample, ClipSpec, dequantise, quantise

PREVIEWED = 4
"""Clips of a batch that a preview shows."""
TIMED_CALLS = 8
"""Network calls timed when a model is loaded, unless they take too long."""
TIMED_S = 4.0
"""After so many seconds no further call is timed."""
GUIDED_COST = 3.0
"""How many plain calls a guided one costs, until it was measured."""


@dataclass(frozen=True)
class Upload:
    """What of an uploaded file is used.

    Args:
        path: of the file.
        kind: its sound, or its video.
        clip: length, rates and size wanted.
        start_s: where to start, in seconds.
    """

    path: Path
    kind: Kind
    clip: ClipSpec
    start_s: float


@dataclass
class Session:
    """One visitor's work.

    Args:
        folder: of the files.
        made: oldest first.
        jobs: in progress.
        given: what was decoded of the last upload, and of what file and part: the file itself is gone by then.
        used: monotonic time of the last request.
    """

    folder: Path
    made: list[Made] = field(default_factory=list)
    jobs: set[Job[Progress]] = field(default_factory=set)
    given: tuple[Upload, Tensor] | None = None
    used: float = field(default_factory=time.monotonic)


class _Enough(Exception):
    """Enough calls were timed."""


Start = Callable[[AVPipeline, SamplingOptions], Iterable[tuple[list[int], AVSample]]]


class Studio:
    """Models and what visitors make with them.

    Files go to a temporary folder, which is removed with the studio.

    Args:
        models: name → pipeline, or folder of a saved one; see `Models`.
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
        self.models = Models(models, runs or {}, device)
        self.limits = limits or Limits()
        self.folder = Path(tempfile.mkdtemp(prefix="mgct-app-"))
        self.folders = [self.folder]
        """What counts against ``limits.disk_bytes``; whoever copies clips elsewhere adds that folder."""
        self.close = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._seconds_per_call: dict[tuple[str, Method], float] = {}
        self._sessions: dict[str, Session] = {}
        self._using = threading.RLock()

    # -------------------------------------------------------------------------------------------- cost

    def measure(self, name: str) -> float:
        """Load a model and time a network call for one clip, in seconds; known at once the second time."""
        key: tuple[str, Method] = (name, "replacement")
        if key not in self._seconds_per_call:
            with self._using:
                pipe = self.models.pipeline(name)
                times = [time.perf_counter()]

                def on_step(_: Step) -> None:
                    times.append(time.perf_counter())
                    if len(times) > TIMED_CALLS + 1 or times[-1] - times[0] > TIMED_S:
                        raise _Enough

                choice = self.models.choices(name)[0]
                options = SamplingOptions(
                    steps=min(max(choice.low, TIMED_CALLS + 1), choice.high),
                    sampler=choice.name,
                    progress=False,
                    on_step=on_step,
                )
                with contextlib.suppress(_Enough):
                    list(pipe.stream([0], options))
                first, *others = (after - before for before, after in pairwise(times))
                self._seconds_per_call[key] = statistics.median(others or [first])
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
        """Network calls that one call for a clip of that length stands for (see `mgct.windows.windowed`)."""
        clip = self.models.clip(name)
        more = round((seconds or clip.seconds) * clip.fps) - clip.frames
        return 1 if more <= 0 else math.ceil(more / max(clip.frames // 2, 1)) + 1

    def _check(self, settings: Settings, clips: int, seconds: float | None, method: Method) -> None:
        """Refuse what cannot be or would take too long."""
        if not 1 <= clips <= self.limits.clips:
            raise UserError(f"between 1 and {self.limits.clips} clips can be made at once, not {clips}")
        if sum(map(folder_bytes, self.folders)) > self.limits.disk_bytes:
            raise UserError("the server has no more room for clips; older ones are removed in time: try again later")
        own = self.models.clip(settings.model).seconds
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
        guided: bool = False,
    ) -> Generator[Progress, None, None]:
        """Videos for the sound of a file, or sounds for its picture. The file is removed once it is decoded.

        Args:
            session: whose.
            settings: how.
            clips: how many.
            path: of the upload.
            kind: what is given: its sound, or its video.
            start_s: where in the file to start, in seconds.
            guided: by the method ``guided`` of `AVPipeline.audio_to_video`, or by the best that costs one call a step.

        Raises:
            UserError: the file cannot be used, a setting that cannot be, or beyond the limits.
            Cancelled: by `cancel`.
        """
        try:
            spec = self.models.clip(settings.model)
            given = self._decoded(session, Upload(path, kind, spec, start_s))
        finally:
            path.unlink(missing_ok=True)
        method: Method = "guided" if guided else "replacement"
        self._check(settings, clips, None, method)

        def start(pipe: AVPipeline, options: SamplingOptions) -> Iterator[tuple[list[int], AVSample]]:
            chosen = self._given(given, kind, spec, "guided" if guided else best_method(pipe, options))
            return pipe.stream(range(clips), options, given=chosen)

        title = "video for your sound" if kind == "sound" else "sound for your video"
        yield from self._run(
            session,
            settings,
            title,
            clips,
            start,
            spec.seconds,
            method=method,
        )

    def _decoded(self, session: str, upload: Upload) -> Tensor:
        """What is used of an upload; the last one of a session can be used again as it is, though its file is gone."""
        owner = self.session(session)
        if owner.given is not None and owner.given[0] == upload:
            return owner.given[1]
        if not upload.path.is_file():
            raise UserError("the upload was removed from the server once it had been used; choose the file again")
        try:
            given = decode(upload.path, upload.kind, upload.clip, upload.start_s, self.limits.upload)
        except UserError as error:
            raise UserError(f"this file cannot be used: {error}") from error
        owner.given = upload, given
        return given

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
                pipe = self.models.pipeline(settings.model)
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
        label = file_label(settings, index, lineage, title)
        video_path = saved.rename(folder / f"{label}.mp4")
        picture = figure_png(spectrogram_figure(clip.audio[0, 0], spec.sample_rate_hz))
        made = Made(settings, index, lineage, title, quantise(clip), spec, video_path, picture, seconds, name)
        owner.made.append(made)
        for old in owner.made[: -self.limits.kept_clips]:
            shutil.rmtree(old.video_path.parent, ignore_errors=True)
        del owner.made[: -self.limits.kept_clips]
        return made
