"""Sampling and measuring trained models, so that nothing is done twice.

Everything is kept under one folder:

    samples/ROLE--SAMPLER-CALLS--KEY/   the clips without loss, and how long each batch took
    cards/ROLE--SAMPLER-CALLS--KEY.json the metric card of a row, and .md; where it is, the clips are not made again
    table1.md, table1.csv, table1.png   the table, written anew after every row, and its figure

A KEY is a digest of everything that its content depends on: weights, network and noise schedule, sampler, calls, seed,
number of clips, and the kind of device if it is no CPU; for cards also the data, the protocol and its weights, and the
interval's draws. So what was made with other settings is never taken for what is asked for, and what is there for these
settings is not made again.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

import mgct
from mgct.clip_folder import fingerprint, sample_to_folder
from mgct.errors import UserError
from mgct.metrics.card import MetricCard
from mgct.metrics.encoders import load_encoder
from mgct.metrics.evaluate import FEATURES_VERSION, Reference, called, check_num, evaluate, measure_reference
from mgct.metrics.protocols import get_protocol
from mgct.metrics.sources import ClipSource, SampleSource, identity, is_endless, open_source, split_of
from mgct.pipeline import AVPipeline
from mgct.reproduce.paper import Row, Sampling
from mgct.types import AVSample, ClipSpec


@dataclass(frozen=True)
class Settings:
    """How rows are sampled and measured.

    Args:
        protocol: name of the metrics' protocol.
        num: clips a row; None: the protocol's number.
        seed: of the clips, of their choice, and of the intervals' draws.
        draws: of the intervals.
        batch_size: clips sampled at once; it changes the time and not the clips.
        split: of the data, where it has several; None: the protocol's.
        clip: how a folder of videos is read, or a world drawn; None: as the models' clips.
        workers: processes that measure.
        encoder_device: where the metrics' networks run.
        weights: of those networks, encoder → file; others are cached or bundled.
        cache: folder for features; True: in the cache folder; False: none are kept.
        progress: show bars.
    """

    protocol: str = "compact"
    num: int | None = None
    seed: int = 0
    draws: int = 100
    batch_size: int = 8
    split: str | None = None
    clip: ClipSpec | None = None
    workers: int = 1
    encoder_device: str = "cpu"
    weights: Mapping[str, Path] = field(default_factory=dict)
    cache: Path | bool = True
    progress: bool = True

    @property
    def real_split(self) -> str:
        """The split that real clips are taken from."""
        return get_protocol(self.protocol).split_or(self.split)

    @property
    def count(self) -> int:
        """Clips of each row."""
        return get_protocol(self.protocol).num if self.num is None else self.num


class Speed(NamedTuple):
    """Time to sample a clip, of the fastest whole batch: what other programs on the machine disturbed least.

    Attributes:
        seconds_per_clip: of wall time.
        batch_size: clips sampled at once.
        where: device and threads.
        in_turns: whether rows were timed in turns (`Study.time`), not while their clips were made.
    """

    seconds_per_clip: float
    batch_size: int
    where: str
    in_turns: bool


class Model(NamedTuple):
    """A trained model: where it is, a digest of all that decides what it makes, and its clips' facts."""

    path: Path
    digest: str
    clip: ClipSpec


@dataclass(frozen=True)
class Result:
    """A row of a table and what became of it.

    Attributes:
        row: which.
        missing: what its inputs lack; empty where it was made.
        card: its numbers.
        card_path: where they are kept.
        samples: the clips they were measured on, which need not be there any more.
        speed: time to sample.
    """

    row: Row
    missing: str = ""
    card: MetricCard | None = None
    card_path: Path | None = None
    samples: Path | None = None
    speed: Speed | None = None


def _key(*parts: Any) -> str:
    """12 hexadecimal digits that stand for ``parts`` (plain values)."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()


def _slug(text: str) -> str:
    """A part of a file name."""
    return re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-.")


def _model_digest(pipe: AVPipeline) -> str:
    """What decides which clips a pipeline makes: weights, network, clip, noise schedule."""
    network = {name: value for name, value in dict(pipe.unet.config).items() if not name.startswith("_")}
    facts = {name: pipe.config[name] for name in ("clip", "num_timesteps", "beta_start", "beta_end")}
    return _key(fingerprint(pipe.unet), network, facts)


class _Clock:
    """Notes how long each batch took, in a file beside the clips; handed to `sample_to_folder` as ``finish``."""

    def __init__(self, path: Path, batch_size: int, where: str, in_turns: bool = False) -> None:
        self.path, self.first = path, not in_turns
        self.facts = {"batch_size": batch_size, "where": where, "in_turns": in_turns}
        self.started = time.perf_counter()

    def __call__(self, clips: AVSample, indices: Sequence[int]) -> AVSample:
        now = time.perf_counter()
        line = {"clips": len(indices), "seconds": now - self.started, "first": self.first, **self.facts}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.first, self.started = False, time.perf_counter()
        return clips


class _Batch(NamedTuple):
    """A line of `_Clock`: batch size, device and turns are its setting."""

    clips: int
    seconds_per_clip: float
    first: bool
    setting: tuple[int, str, bool]

    @classmethod
    def read(cls, text: str) -> _Batch | None:
        """The line, or None of one that is damaged: during which the process was killed, say."""
        try:
            line = json.loads(text)
            setting = line["batch_size"], line["where"], line["in_turns"]
            return cls(line["clips"], line["seconds"] / line["clips"], line["first"], setting)
        except (ValueError, TypeError, KeyError, ZeroDivisionError):
            return None


def noted_speed(card: MetricCard) -> Speed | None:
    """What a card says of it; None if nothing."""
    try:
        return Speed(**card.sampling)
    except TypeError:
        return None


def read_speed(folder: Path) -> Speed | None:
    """Time to sample a clip of a folder of samples; None where no batch was timed.

    Of several settings the one timed last counts, before it one timed in turns. The first batch of a process and
    smaller ones are left out where there are others.
    """
    texts = [path.read_text(errors="replace") for path in sorted(folder.glob("speed-*.jsonl"))]
    batches = [batch for text in texts for batch in map(_Batch.read, text.splitlines()) if batch]
    if not batches:
        return None
    setting = next((batch.setting for batch in reversed(batches) if batch.setting[2]), batches[-1].setting)
    same = [batch for batch in batches if batch.setting == setting]
    most = max(batch.clips for batch in same)
    whole = [batch for batch in same if batch.clips == most]
    chosen = [batch for batch in whole if not batch.first] or whole
    return Speed(min(batch.seconds_per_clip for batch in chosen), *setting)


class Study:
    """Models, settings and the folder in which what they make is kept.

    Args:
        models: role → folder of a saved pipeline, which need not be there.
        out: the folder.
        settings: how rows are made.
        device: where models run.

    Raises:
        UserError: no role, or one that makes no file name; models of different clips.
    """

    def __init__(
        self, models: Mapping[str, Path], out: Path, settings: Settings, device: torch.device | str = "cpu"
    ) -> None:
        self.paths, self.out, self.settings, self.device = dict(models), out, settings, torch.device(device)
        self.models: dict[str, Model] = {}
        self._loaded: tuple[str, AVPipeline] | None = None
        for role in models:
            if not re.fullmatch(r"[A-Za-z0-9._+-]+", role):
                raise UserError(f"role {role!r}: use letters, digits, dots and dashes only")
        for role in models:
            if not self.missing(role):
                pipe = self._pipe(role)
                self.models[role] = Model(models[role], _model_digest(pipe), pipe.clip)
        if not self.models:
            roles = "; ".join(self.missing(role) for role in models) or "the models file names none"
            raise UserError(f"no model to reproduce with: {roles}")
        clips = {model.clip: role for role, model in self.models.items()}
        if len(clips) > 1:
            facts = "; ".join(f"{role}: {clip}" for clip, role in clips.items())
            raise UserError(f"the models make different clips, so their numbers do not compare ({facts})")
        (self.clip,) = clips

    def missing(self, role: str) -> str:
        """What keeps a role's rows from being made; empty if nothing does."""
        if role not in self.paths:
            return f"missing: role {role} is not among the models"
        if not (self.paths[role] / "model_index.json").is_file():
            return f"missing: role {role} has no saved model at {self.paths[role]}"
        return ""

    def _pipe(self, role: str) -> AVPipeline:
        """The role's pipeline; only the last one used stays in memory."""
        if self._loaded is None or self._loaded[0] != role:
            self._loaded = None
            pipe: AVPipeline = AVPipeline.from_pretrained(self.paths[role])
            pipe.register_to_config(start_timestep=None)  # a row says where it starts, and that is noise alone
            pipe.register_modules(coarse_start=None, calibration=None, guide=None)
            self._loaded = role, pipe.to(self.device)  # type: ignore[attr-defined]
        return self._loaded[1]

    def samples_key(self, role: str, sampling: Sampling, count: int) -> str:
        """What stands for a role's clips."""
        sampler: Any = sampling.sampler
        named = sampler if isinstance(sampler, str) else f"{type(sampler).__name__} {dict(sampler.config)}"
        made_by = [named, sampling.calls, sampling.clip_x0, self.settings.seed, count]
        made_by += [] if sampling.start_timestep is None else [f"from {sampling.start_timestep}"]
        made_by += [] if (device := torch.device(self.device).type) == "cpu" else [device]
        return _key(mgct.__version__, self.models[role].digest, made_by)

    def file_name(self, role: str, sampling: Sampling, key: str) -> str:
        """What a role's clips or card are kept as."""
        return f"{role}--{_slug(sampling.title)}-{sampling.calls}--{key}"

    def samples(self, role: str, sampling: Sampling, count: int) -> Path:
        """The folder of a role's clips, made or not."""
        key = self.samples_key(role, sampling, count)
        return self.out / "samples" / self.file_name(role, sampling, key)

    def sample(self, role: str, sampling: Sampling, count: int, rank: int = 0, world_size: int = 1) -> Path:
        """Make what is not there of a role's clips; returns their folder.

        Several processes share the work: process ``rank`` of ``world_size`` makes its share.
        """
        folder = self.samples(role, sampling, count)
        if any(folder.glob("clips_*.safetensors")) and len(SampleSource(folder)) == count:
            return folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made ({error.strerror}); name another folder by --out") from error
        pipe = self._pipe(role)
        with _unlike_recommended():
            sample_to_folder(
                pipe,
                folder,
                count,
                sampling.options(self.settings.seed, self.settings.batch_size, self.settings.progress),
                format="safetensors",
                rank=rank,
                world_size=world_size,
                finish=_Clock(folder / f"speed-{rank}.jsonl", self.settings.batch_size, self._where()),
            )
        return folder

    def _where(self) -> str:
        """The device, for reports."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        threads = torch.get_num_threads()
        return f"{self.device.type}, {threads} thread{'s' if threads > 1 else ''}"

    def time(self, ways: Sequence[tuple[str, Sampling]], count: int, rounds: int = 3) -> None:
        """Time every way of sampling (role, how) anew: in turns, so that a busy hour does not fall on some alone.

        In each round each makes one batch, which is thrown away.
        """
        batch, loaded = min(self.settings.batch_size, count), None
        for _ in range(rounds):
            for role, sampling in ways:
                self.samples(role, sampling, count).mkdir(parents=True, exist_ok=True)
                pipe = self._pipe(role)
                with _unlike_recommended():
                    if loaded is not pipe:
                        loaded = pipe
                        pipe(batch, 1, "ddim", batch_size=batch, progress=False)  # memory and kernels are made
                    clock = _Clock(
                        self.samples(role, sampling, count) / "speed-turns.jsonl", batch, self._where(), in_turns=True
                    )
                    for indices, clips in pipe.stream(range(batch), sampling.options(self.settings.seed, batch, False)):
                        clock(clips, indices)


@contextmanager
def _unlike_recommended() -> Iterator[None]:
    """No warnings of samplers that a model was not made for: a table samples every model in every way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="this model was made for")
        yield


class Measurer:
    """Cards of samples against one set of real clips, which is measured once and only if a card is wanted."""

    def __init__(self, study: Study, data: str) -> None:
        self.study, settings = study, study.settings
        self.protocol = get_protocol(settings.protocol)
        self.real = _open_data(data, study, settings)
        wanted, clip = self.protocol.clip, study.clip
        if wanted is not None and (clip.frames, clip.fps) != (wanted.frames, wanted.fps):
            raise UserError(
                f"protocol {self.protocol.name} measures clips of {wanted.frames} frames at {wanted.fps:g} fps, the "
                f"models make {clip.frames} at {clip.fps:g} fps; choose --protocol compact"
            )
        check_num(settings.count, {called("real", self.real, settings.real_split): len(self.real)})
        for name in self.protocol.encoders:
            load_encoder(name, settings.weights.get(name), settings.encoder_device)  # before hours of sampling
        self.identity = identity(self.real)
        self.split = split_of(self.real, settings.real_split)
        self._reference: Reference | None = None

    def key(self, samples: str) -> str:
        """What stands for a card of the samples with that key."""
        settings = self.study.settings
        files = [[name, path.stat().st_size, path.stat().st_mtime_ns] for name, path in settings.weights.items()]
        measured_by = [
            self.protocol.definition(),
            files,
            settings.encoder_device,
            settings.real_split,
            FEATURES_VERSION,
        ]
        return _key(mgct.__version__, samples, self.identity, measured_by, settings.seed, settings.draws)

    def reference(self) -> Reference:
        """The real side."""
        settings = self.study.settings
        if self._reference is None:
            self._reference = measure_reference(
                self.real,
                self.protocol,
                num=settings.count,
                seed=settings.seed,
                workers=settings.workers,
                device=settings.encoder_device,
                weights=settings.weights,
                cache=settings.cache,
                split=self.split,
                progress=settings.progress,
            )
        return self._reference

    def path(self, role: str, sampling: Sampling) -> Path:
        """Where the card of a role's samples is, or will be."""
        key = self.key(self.study.samples_key(role, sampling, self.study.settings.count))
        return self.study.out / "cards" / f"{self.study.file_name(role, sampling, key)}.json"

    def card(self, role: str, sampling: Sampling) -> MetricCard:
        """The card of a role's samples, measured if it is not there, with how long they took."""
        study, settings = self.study, self.study.settings
        path, samples = self.path(role, sampling), study.samples(role, sampling, settings.count)
        kept = path.is_file()
        card, speed = MetricCard.load(path) if kept else self._measure(samples), read_speed(samples)
        noted = noted_speed(card)
        if speed is not None and speed != noted and (speed.in_turns or noted is None or not noted.in_turns):
            card.sampling, kept = speed._asdict(), False
        if not kept:
            card.save(path)
        return card

    def _measure(self, samples: Path) -> MetricCard:
        """The card of a folder of samples."""
        settings = self.study.settings
        return evaluate(
            self.reference(),
            SampleSource(samples),
            self.protocol,
            num=settings.count,
            seed=settings.seed,
            draws=settings.draws,
            workers=settings.workers,
            device=settings.encoder_device,
            weights=settings.weights,
            cache=settings.cache,
            split=self.split,
            progress=settings.progress,
        )


def _open_data(data: str, study: Study, settings: Settings) -> ClipSource:
    """The real clips; a world without a number gets the number wanted."""
    if is_endless(data):
        data = f"{data}:{settings.count}"
    return open_source(data, settings.clip or study.clip, settings.real_split)
