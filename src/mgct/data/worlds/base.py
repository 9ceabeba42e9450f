"""What a procedural world is: clips with sound as a pure function of (seed, index)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from mgct.data.worlds.paint import Canvas
from mgct.data.worlds.random import Draws, clip_keys
from mgct.data.worlds.sound import Tape
from mgct.errors import UserError
from mgct.types import AVSample, ClipSpec

_LARGEST_CLIP = 2**30


@dataclass
class WorldClips:
    """A batch of clips and what is known of them.

    Attributes:
        clips: model form: video (B, F, 3, H, W) and audio (B, 1, L), float32 in [-1, 1].
        labels: (B,) int64, positions in the world's ``classes``.
        factors: name → (B,) float32, the continuous facts the scene was drawn from; the world's ``factor_names``, NaN
            where a class has no such fact.
        events_s: per clip the times in seconds, rising, of what is both seen and heard inside the clip.
    """

    clips: AVSample
    labels: Tensor
    factors: dict[str, Tensor]
    events_s: list[list[float]]


@dataclass
class Scene:
    """One class's drawing of a batch: a picture of light, its sound, and when things happen.

    Attributes:
        picture: (B, F, 3, R, R), light in [0, 1] (more is clipped).
        signal: (B, L), at a natural level (root mean square about 0.1 to 0.2).
        events_s: (B, E) event times in seconds; those outside the clip are left out later.
        factors: name → (B,).
    """

    picture: Tensor
    signal: Tensor
    events_s: Tensor
    factors: dict[str, Tensor]


class World(ABC):
    """Clips k = 0, 1, 2, … of every seed, drawn in batches.

    Clip k of seed s is the same whatever batch it is drawn in (to the bit, on a CPU) and on every machine to within one
    grey level and 1e-4 of full scale. Scenes live in continuous space and time: another size, frame rate, length or
    sample rate shows the same scene.

    Attributes:
        name: what `get_world` calls it.
        classes: names of the labels 0, 1, ….
        factor_names: names of the continuous facts, the keys of `WorldClips.factors`.
        pixels_at_once: video elements per channel drawn in one go, by kind of device: bounds the memory.
    """

    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    factor_names: ClassVar[tuple[str, ...]]
    pixels_at_once: ClassVar[dict[str, int]] = {"cpu": 1 << 19, "cuda": 1 << 26}

    @abstractmethod
    def scene(self, label: int, canvas: Canvas, tape: Tape) -> Scene:
        """Draw clips that all have class ``label``."""

    def labels(self, indices: Sequence[int] | Tensor, seed: int = 0) -> Tensor:
        """(B,) int64 classes of clips ``indices`` of ``seed``, each class equally likely; on the CPU."""
        return Draws(self._keys(indices, seed)).integers("label", len(self.classes))

    def render(
        self,
        indices: Sequence[int] | Tensor,
        clip: ClipSpec,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> WorldClips:
        """Draw clips ``indices`` of ``seed``.

        Args:
            indices: which clips, non-negative.
            clip: size, length and rates.
            seed: which series of clips.
            device: where to draw; nothing is copied back from it but the event times.

        Returns:
            The clips with labels, factors and events, on ``device``.

        Raises:
            UserError: no index, a negative index, a frame smaller than 8 pixels, or a clip beyond all measure.
        """
        keys = self._keys(indices, seed)
        if clip.size < 8:
            raise UserError(f"world {self.name!r} draws frames of at least 8 pixels, got size {clip.size}")
        if max(prod(clip.video_shape), clip.audio_samples) > _LARGEST_CLIP:
            raise UserError(
                f"a clip of {clip.frames} frames of {clip.size}x{clip.size} and {clip.seconds:g} s at "
                f"{clip.sample_rate_hz} Hz is too large to draw: choose a smaller or shorter one"
            )
        labels = Draws(keys).integers("label", len(self.classes))
        order, parts = self._chunks(labels, clip, torch.device(device))
        scenes = [self._draw(label, keys[chosen].to(device), clip) for label, chosen in parts]
        back = torch.argsort(order).to(device)
        factors = {
            name: torch.cat(
                [known.get(name, torch.full((len(part.audio),), torch.nan, device=device)) for part, known, _ in scenes]
            )[back]
            for name in self.factor_names
        }
        clips = AVSample(
            video=torch.cat([part.video for part, _, _ in scenes])[back],
            audio=torch.cat([part.audio for part, _, _ in scenes])[back],
        )
        most = max(events.shape[1] for _, _, events in scenes)
        padded = [torch.nn.functional.pad(events, (0, most - events.shape[1]), value=-1.0) for _, _, events in scenes]
        times_s = torch.cat(padded)[back].cpu()
        inside = [sorted(t for t in row if 0 <= t < clip.seconds) for row in times_s.tolist()]
        return WorldClips(clips, labels.to(device), factors, inside)

    def _keys(self, indices: Sequence[int] | Tensor, seed: int) -> Tensor:
        chosen = torch.as_tensor(indices, dtype=torch.int64, device="cpu").reshape(-1)
        if len(chosen) == 0 or int(chosen.min()) < 0:
            raise UserError(f"world {self.name!r} wants at least one clip index, none negative")
        return clip_keys(chosen, seed, self.name)

    def _chunks(self, labels: Tensor, clip: ClipSpec, device: torch.device) -> tuple[Tensor, list[tuple[int, Tensor]]]:
        """Clips sorted by class and cut into pieces that fit the device's memory: order (B,), [(label, clips)]."""
        order = torch.argsort(labels, stable=True)
        cost = max(clip.frames * max(clip.size, 32) ** 2, clip.audio_samples * 2)
        most = max(1, self.pixels_at_once.get(device.type, 1 << 24) // cost)
        parts: list[tuple[int, Tensor]] = []
        for label in range(len(self.classes)):
            members = order[labels[order] == label]
            parts += [(label, piece) for piece in members.split(most) if len(piece)]
        return order, parts

    def _draw(self, label: int, keys: Tensor, clip: ClipSpec) -> tuple[AVSample, dict[str, Tensor], Tensor]:
        draws = Draws(keys)
        canvas, tape = Canvas(draws, clip), Tape(draws, clip)
        scene = self.scene(label, canvas, tape)
        return AVSample(canvas.finish(scene.picture), tape.finish(scene.signal)), scene.factors, scene.events_s
