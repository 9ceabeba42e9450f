"""From two sets of clips to a metric card: features in batches, cached by content, over several processes."""

from __future__ import annotations

import hashlib
import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import mgct
from mgct.clip_random import derive_seed
from mgct.errors import UserError
from mgct.files import write_whole
from mgct.metrics import sync
from mgct.metrics.card import MetricCard, MetricValue, Side
from mgct.metrics.distances import LEAST_CLIPS, RankDeficientWarning
from mgct.metrics.encoders import Encoder, load_encoder
from mgct.metrics.protocols import AS_GIVEN, Protocol, get_protocol
from mgct.metrics.sources import ClipSource, MemorySource, split_of
from mgct.metrics.weights import cache_folder
from mgct.types import AVSample, ClipSpec

FEATURES_VERSION = 1
"""Raised when any preprocessing changes, so that cached features of before are not used."""


def conform(clips: AVSample, spec: ClipSpec, wanted: ClipSpec | None) -> tuple[AVSample, ClipSpec]:
    """Stored clips with frames of the size that a protocol measures at (bilinear, antialiased); sound is left as it is.

    Raises:
        UserError: another number of frames or frame rate, which nothing here repairs.
    """
    if wanted is None:
        return clips, spec
    if (spec.frames, spec.fps) != (wanted.frames, wanted.fps):
        raise UserError(
            f"the protocol measures clips of {wanted.frames} frames at {wanted.fps:g} fps, these have {spec.frames} at "
            f"{spec.fps:g} fps; make clips of that kind, or use the protocol compact"
        )
    size = wanted.size
    if clips.video.shape[-2:] == (size, size):
        return clips, spec
    flat = clips.video.flatten(0, 1).float()
    resized = F.interpolate(flat, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    video = resized.round().clamp(0, 255).to(torch.uint8).unflatten(0, clips.video.shape[:2])
    facts = ClipSpec(spec.frames, spec.fps, size, spec.sample_rate_hz)
    return AVSample(video=video, audio=clips.audio), facts


class BatchFeatures(NamedTuple):
    """What is kept of one batch: features by encoder, synchrony curves, and a SHA-256 for each clip."""

    features: dict[str, Tensor]
    curves: sync.Curves
    hashes: list[str]


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


class Extractor:
    """Encoders, and a cache of what they gave.

    Args:
        encoders: to run on each batch.
        clip: what clips are brought to first; None: nothing.
        cache: folder for features; None: none are kept.
        device: where the encoders are; features of another kind of device differ by rounding.
    """

    def __init__(
        self, encoders: Sequence[Encoder], clip: ClipSpec | None, cache: Path | None, device: torch.device | str
    ) -> None:
        self.encoders, self.clip, self.cache = list(encoders), clip, cache
        self.device_type = torch.device(device).type

    def __call__(self, clips: AVSample, spec: ClipSpec) -> BatchFeatures:
        """Features, curves and hashes of a batch of stored clips."""
        facts = repr((spec.fps, spec.sample_rate_hz, tuple(clips.video.shape[1:]))).encode()
        videos = [_digest(facts, row.numpy().tobytes()) for row in clips.video]
        audios = [_digest(facts, row.numpy().tobytes()) for row in clips.audio]
        hashes = [_digest(v.encode(), a.encode()) for v, a in zip(videos, audios, strict=True)]
        features: dict[str, Tensor] = {}
        measured, measured_spec = conform(clips, spec, self.clip)
        for encoder in self.encoders:
            content = videos if encoder.modality == "video" else audios
            features[encoder.name] = self._features(encoder, measured, measured_spec, content)
        return BatchFeatures(features, sync.curves(clips, spec), hashes)

    def _features(self, encoder: Encoder, clips: AVSample, spec: ClipSpec, content: Sequence[str]) -> Tensor:
        if self.cache is None:
            return encoder(clips, spec)
        made_by = (FEATURES_VERSION, encoder.name, encoder.weights_sha256, self.device_type)
        setting = repr((*made_by, self.clip, tuple(content)))
        key = _digest(setting.encode())
        path = self.cache / encoder.name / key[:2] / f"{key}.safetensors"
        if path.is_file():
            try:
                return load_file(path)["features"]
            except (SafetensorError, KeyError) as error:
                raise UserError(f"the cached features in {path} are damaged; delete that file") from error
        found = encoder(clips, spec)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda draft: save_file({"features": found.contiguous()}, draft))
        return found


@dataclass(frozen=True)
class _Plan:
    """What a worker process needs to build its own extractor."""

    encoders: tuple[str, ...]
    weights: tuple[tuple[str, Path], ...]
    device: str
    clip: ClipSpec | None
    cache: Path | None

    def extractor(self) -> Extractor:
        given = dict(self.weights)
        loaded = [load_encoder(name, given.get(name), self.device) for name in self.encoders]
        return Extractor(loaded, self.clip, self.cache, self.device)


_worker: tuple[Sequence[ClipSource], Extractor] | None = None


def _start_worker(sources: Sequence[ClipSource], plan: _Plan) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = sources, plan.extractor()


def _work(task: tuple[int, list[int]]) -> BatchFeatures | UserError:
    if _worker is None:
        raise RuntimeError("a worker got clips before its encoders")
    (sources, extractor), (side, indices) = _worker, task
    try:
        return extractor(sources[side].read(indices), sources[side].spec)
    except UserError as error:
        return error


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, as in a worker process, so that not even the last digits depend on ``workers``."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Runner:
    """Runs batches of several sources in this process or in a pool of others, which it starts once."""

    def __init__(self, sources: Sequence[ClipSource], plan: _Plan, workers: int) -> None:
        self.sources, self.on_cpu = sources, plan.device == "cpu"
        self.extractor = plan.extractor()
        self.pool = None
        if workers > 1:
            self.pool = ProcessPoolExecutor(
                workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(sources, plan)
            )

    def __enter__(self) -> _Runner:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def __call__(self, side: int, batches: Sequence[list[int]]) -> Iterator[BatchFeatures]:
        if self.pool is None:
            source = self.sources[side]
            for indices in batches:
                with _one_thread() if self.on_cpu else nullcontext():
                    found = self.extractor(source.read(indices), source.spec)
                yield found
            return
        try:
            for result in self.pool.map(_work, [(side, indices) for indices in batches]):
                if isinstance(result, UserError):
                    raise result
                yield result
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process has died, for want of memory perhaps (use fewer workers), or because a script calls "
                'this with workers outside of `if __name__ == "__main__":`'
            ) from error


class Measured(NamedTuple):
    """A whole side: features (N, D) by encoder, curves, and the digest of its contents."""

    features: dict[str, Tensor]
    curves: sync.Curves
    sha256: str


def check_num(num: int, available: Mapping[str, int]) -> None:
    """Refuse more clips a side than there are, or fewer than a distance needs.

    Args:
        num: clips wanted a side.
        available: what each side is called → its clips.

    Raises:
        UserError: it names the side, and the most that all of them have.
    """
    if num < LEAST_CLIPS:
        raise UserError(f"a distance needs at least {LEAST_CLIPS} clips a side, got num = {num}")
    most = min(available.values())
    if short := [f"{count} {name}" for name, count in available.items() if count < num]:
        advice = (
            f"give a num of at most {most} (--num {most}), or more clips" if most >= LEAST_CLIPS else "make more clips"
        )
        raise UserError(f"{num} clips a side are wanted, and there are only {' and '.join(short)}: {advice}")


def choose(available: int, num: int, seed: int) -> list[int]:
    """``num`` clips of ``available``, in an order drawn from the seed."""
    generator = torch.Generator().manual_seed(derive_seed("evaluate", seed))
    return torch.randperm(available, generator=generator)[:num].tolist()


def _measure(
    runner: _Runner, side: int, indices: Sequence[int], batch_size: int, progress: bool, label: str = "clips"
) -> Measured:
    """Features and curves of clips ``indices`` of one source, in batches of ``batch_size`` and that order."""
    batches = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
    found: list[BatchFeatures] = []
    with tqdm(total=len(indices), unit="clip", desc=label, disable=not progress) as bar:
        for result in runner(side, batches):
            found.append(result)
            bar.update(len(result.hashes))
    features = {name: torch.cat([part.features[name] for part in found]) for name in found[0].features}
    hashes = sorted(value for part in found for value in part.hashes)
    return Measured(features, sync.concatenate([part.curves for part in found]), _digest(*map(str.encode, hashes)))


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {"mgct": mgct.__version__, "torch": torch.__version__, "python": platform.python_version()}


def _values(
    protocol: Protocol, real: Measured, fake: Measured, draws: int, confidence: float, seed: int
) -> list[MetricValue]:
    values = []
    for metric in protocol.metrics:
        x, y = real.features[metric.encoder], fake.features[metric.encoder]
        interval = metric.distance.interval(x, y, draws=draws, confidence=confidence, seed=seed)
        limit = metric.distance.at_infinity(x, y, seed=seed) * metric.scale if metric.distance.at_infinity else None
        value, low, high = (bound * metric.scale for bound in interval)
        values.append(MetricValue(metric.name, value, low, high, limit, metric.encoder, x.shape[1]))
    return values


def _synchrony(real: Measured, fake: Measured) -> dict[str, Any]:
    sides = {name: sync.summary(side.curves) for name, side in (("real", real), ("fake", fake))}
    rows: dict[str, Any] = dict(sides)
    for name in real.features:
        for side, measured in (("real", real), ("fake", fake)):
            sides[side][f"diversity_{name}"] = sync.diversity(measured.features[name])
    rows["score_between_bounds"] = sync.between_bounds(
        sides["fake"]["sync_score"], sides["real"]["sync_score_shuffled"], sides["real"]["sync_score"]
    )
    for name in real.features:
        near = sync.nearest_neighbours(fake.features[name], real.features[name])
        rows[f"nearest_ratio_{name}"] = near.ratio
        rows[f"copied_share_{name}"] = near.copied_share
    return rows


@dataclass(frozen=True)
class Reference:
    """A real side that was measured once, to judge several sets against it; made by `measure_reference`.

    Attributes:
        protocol: by which.
        seed: of the choice of clips.
        side: what was measured.
        measured: its features and curves.
        encoders: name → SHA-256 of weights.
    """

    protocol: Protocol
    seed: int
    side: Side
    measured: Measured
    encoders: dict[str, str]


def _make_plan(protocol: Protocol, device: str, weights: Mapping[str, Path] | None, cache: Path | bool | None) -> _Plan:
    """What the workers of a measurement need."""
    folder = cache_folder() / "features" if cache is True else (cache or None)
    given = tuple(sorted((weights or {}).items()))
    unknown = [name for name, _ in given if name not in protocol.encoders]
    if unknown:
        raise UserError(f"weights given for {unknown[0]}, but {protocol.name} uses {', '.join(protocol.encoders)}")
    return _Plan(protocol.encoders, given, device, protocol.clip, folder)


def _measure_sides(
    protocol: Protocol,
    plan: _Plan,
    sides: Sequence[tuple[str, ClipSource, str]],
    count: int,
    seed: int,
    workers: int,
    progress: bool,
) -> tuple[list[tuple[Side, Measured]], list[Encoder]]:
    """Measure sides (label, clips, split) with one set of workers; also the encoders that did it."""
    check_num(count, {called(label, source, split): len(source) for label, source, split in sides})
    picked = [choose(len(source), count, seed) for _, source, _ in sides]
    found = []
    with _Runner([source for _, source, _ in sides], plan, workers) as runner:
        loaded = runner.extractor.encoders
        for encoder in loaded:
            if encoder.fixed_batch not in {None, protocol.batch_size}:
                raise UserError(f"{encoder.name} needs batches of {encoder.fixed_batch}, not {protocol.batch_size}")
        for k, (label, source, split) in enumerate(sides):
            measured = _measure(runner, k, picked[k], protocol.batch_size, progress, label)
            facts = asdict(source.spec)
            side = Side(source.origin, source.container, count, len(source), facts, split, measured.sha256)
            found.append((side, measured))
    return found, loaded


def measure_reference(
    source: ClipSource,
    protocol: Protocol | str = "compact",
    *,
    num: int | None = None,
    seed: int = 0,
    workers: int = 1,
    device: str = "cpu",
    weights: Mapping[str, Path] | None = None,
    cache: Path | bool | None = True,
    split: str = "",
    progress: bool = True,
) -> Reference:
    """The real side of `evaluate`, measured once; give it to `evaluate` in place of the clips.

    Arguments as in `evaluate`.

    Raises:
        UserError: as in `evaluate`.
    """
    chosen = get_protocol(protocol) if isinstance(protocol, str) else protocol
    count = chosen.num if num is None else num
    plan = _make_plan(chosen, device, weights, cache)
    sides = [("real", source, split or split_of(source, chosen.split))]
    [(side, measured)], loaded = _measure_sides(chosen, plan, sides, count, seed, workers, progress)
    return Reference(chosen, seed, side, measured, {e.name: e.weights_sha256 for e in loaded})


def evaluate(
    real: ClipSource | Reference,
    fake: ClipSource,
    protocol: Protocol | str = "compact",
    *,
    num: int | None = None,
    seed: int = 0,
    draws: int = 100,
    confidence: float = 0.95,
    workers: int = 1,
    device: str = "cpu",
    weights: Mapping[str, Path] | None = None,
    cache: Path | bool | None = True,
    split: str = "",
    progress: bool = True,
) -> MetricCard:
    """Measure generated clips against real ones by a protocol.

    Memory is bounded by one batch a process, and the features. The numbers do not depend on ``workers``.

    Args:
        real: the reference set, or what `measure_reference` made of it.
        fake: the set to judge; on both sides ``num`` clips are chosen by the seed.
        protocol: a protocol or its name.
        num: clips a side; None: the protocol's.
        seed: of the choice and of the interval's draws.
        draws: of the interval, at least 2.
        confidence: of the intervals.
        workers: processes, one thread each; on a GPU one is best.
        device: where encoders run.
        weights: encoder → file to load instead of the cached or bundled weights.
        cache: folder for features; True: in the cache folder; None or False: none are kept.
        split: which split the real clips are of, for the card.
        progress: show a bar.

    Returns:
        The card; nothing is written.

    Raises:
        UserError: too few clips, clips the protocol does not measure, weights that cannot be had, no such device, or a
            reference that was measured otherwise.
    """
    started = time.monotonic()
    chosen = get_protocol(protocol) if isinstance(protocol, str) else protocol
    count = chosen.num if num is None else num
    frames, fps = (
        (real.side.clip["frames"], real.side.clip["fps"])
        if isinstance(real, Reference)
        else (real.spec.frames, real.spec.fps)
    )
    if chosen.clip is None and (frames, fps) != (fake.spec.frames, fake.spec.fps):
        raise UserError(
            f"real clips have {frames} frames at {fps:g} fps, generated ones {fake.spec.frames} at "
            f"{fake.spec.fps:g} fps; the two must agree"
        )
    if draws < 2:
        raise UserError(f"at least 2 draws are needed for an interval, got {draws}")
    if isinstance(real, Reference) and (real.protocol, real.seed, real.side.num) != (chosen, seed, count):
        raise UserError(
            f"the reference was measured by {real.protocol.name} on {real.side.num} clips with seed {real.seed}, "
            f"not by {chosen.name} on {count} with seed {seed}; measure it again"
        )
    plan = _make_plan(chosen, device, weights, cache)
    sides: list[tuple[str, ClipSource, str]] = [("fake", fake, "")]
    if not isinstance(real, Reference):
        sides.insert(0, ("real", real, split or split_of(real, chosen.split)))
    found, loaded = _measure_sides(chosen, plan, sides, count, seed, workers, progress)
    if isinstance(real, Reference):
        if real.encoders != {e.name: e.weights_sha256 for e in loaded}:
            raise UserError("the reference was measured with other weights; measure it again")
        found.insert(0, (real.side, real.measured))
    (real_side, real_measured), (fake_side, fake_measured) = found
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", RankDeficientWarning)
        values = _values(chosen, real_measured, fake_measured, draws, confidence, seed)
    notes = list(dict.fromkeys(str(w.message) for w in raised))
    return MetricCard(
        protocol=chosen.name,
        definition=chosen.definition(),
        values=values,
        real=real_side,
        fake=fake_side,
        encoders={e.name: {"sha256": e.weights_sha256, "pinned": e.pinned} for e in loaded},
        synchrony=_synchrony(real_measured, fake_measured),
        seed=seed,
        draws=draws,
        confidence=confidence,
        interval="jackknife",
        versions=versions(),
        warnings=notes + _cautions(chosen, real_side, fake_side, loaded, count),
        seconds=time.monotonic() - started,
    )


def _cautions(protocol: Protocol, real: Side, fake: Side, encoders: Sequence[Encoder], count: int) -> list[str]:
    """What a reader should know about how the two sides differ."""
    notes = []
    if count != protocol.num:
        notes.append(f"{count} clips a side, the protocol's number is {protocol.num}: compare only equal numbers")
    if real.container != fake.container:
        notes.append(
            f"real clips are stored as {real.container}, generated ones as {fake.container}: part of the distance"
        )
    if real.clip != fake.clip:
        notes.append(f"real clips are {real.clip}, generated ones {fake.clip}: part of the distance")
    if real.split and protocol.split not in (AS_GIVEN, real.split):
        notes.append(f"real clips are of the {real.split} split, the protocol takes the {protocol.split} split")
    notes += [f"the weights of {e.name} are not ones that the registry pins" for e in encoders if not e.pinned]
    return notes


def called(label: str, source: ClipSource, split: str) -> str:
    """A side of a measurement, ``real`` or ``fake``, in words."""
    what = "real" if label == "real" else "generated"
    split = split_of(source, split)
    where = f" (its {split} split)" if split else ""
    return f"{what} ones in {source.origin}{where}"


class RunningMetric:
    """The cheap metric of a run in training: its numbers without intervals, the real side measured once.

    Args:
        real: reference clips.
        protocol: whose numbers.
        num: generated clips.
        seed: of the choice of real clips.
        device: where encoders run.
        num_real: real clips; None: as many as generated ones.
    """

    def __init__(
        self,
        real: ClipSource,
        protocol: str = "compact",
        num: int = 256,
        seed: int = 0,
        device: str = "cpu",
        num_real: int | None = None,
    ) -> None:
        self.protocol = get_protocol(protocol)
        self.plan = _Plan(self.protocol.encoders, (), device, self.protocol.clip, None)
        self.num = num
        with _Runner((real,), self.plan, 1) as runner:
            wanted = num if num_real is None else num_real
            check_num(wanted, {called("real", real, ""): len(real)})
            chosen = choose(len(real), wanted, seed)
            self.real = _measure(runner, 0, chosen, self.protocol.batch_size, progress=False)

    def __call__(self, fake: AVSample, spec: ClipSpec) -> dict[str, float]:
        """Metric name → value of generated clips, stored or model form; also the synchrony score and lag.

        Raises:
            UserError: not ``num`` clips: the value depends on their number.
        """
        if len(fake.video) != self.num:
            raise UserError(f"the running metric compares {self.num} clips, got {len(fake.video)}")
        with _Runner((MemorySource(fake, spec),), self.plan, 1) as runner:
            found = _measure(runner, 0, range(self.num), self.protocol.batch_size, progress=False)
        row = {}
        for metric in self.protocol.metrics:
            x, y = self.real.features[metric.encoder], found.features[metric.encoder]
            row[metric.name] = metric.distance.value(x, y) * metric.scale
        lag = sync.set_lag(found.curves)
        return {**row, "sync_score": lag.score, "lag_s": lag.lag_s}
