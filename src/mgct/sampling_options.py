"""What every way of sampling takes, and what it tells while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mgct import samplers
from mgct.errors import UserError
from mgct.predictors import check_scale
from mgct.types import AVSample

SCHEDULER_STEPS = 20
"""Steps for a scheduler object of diffusers when none are asked for."""


@dataclass(frozen=True)
class Step:
    """A noise level at which the network was called while sampling.

    Args:
        indices: the clips of the batch.
        call: its number within the batch, from 1.
        calls: levels in all for the batch; each counts once, however many windows or calls of guidance it takes.
        clips: the idea of the clean clips there, x̂0 = (x - σ ε̂) / α clipped to [-1, 1], on the network's device:
            calibrated and guided as asked, with what is given in its place.
    """

    indices: list[int]
    call: int
    calls: int
    clips: AVSample


@dataclass(frozen=True)
class SamplingOptions:
    """What every way of sampling takes.

    Args:
        steps: network calls per clip; None: the sampler's default.
        sampler: a name out of `mgct.samplers.SAMPLERS`, or a scheduler object of diffusers.
        seed: any integer. The noise that sampling starts from is the same on every device; what some samplers draw at
            each step is drawn where the network is, and a GPU's is another than a CPU's.
        batch_size: clips in memory at once; it changes speed and memory, not the clips.
        clip_x0: whether x̂0 is clipped to [-1, 1]; None: as the sampler has it.
        window_shift: fixed shifts of the attention windows instead of drawn ones (see `MultimodalUNet`).
        progress: show a progress bar.
        on_step: called after every noise level's network calls; an exception that it raises ends the sampling.
        variation_of: numbers i, j, … of clips. Clip k is then a variation of clip i (of its j-th variation, …): its
            noise, at the start and at each step, is that clip's, mixed with some of its own.
        variation: how much of its own, s in (0, 1]: x = √(1 - s²) x_other + s x_own.
        start_timestep: the noisiest level, where pure noise is put in; None: the model's own, or T-1 where it has none.
            Above about 700 a network that was trained for little mistakes noise for a scene, and the clip comes out in
            too strong colours and with a noisy sound; starting lower leaves these levels out (``docs/sampling.md``
            measures it).
        video_coupling: how much the picture follows the sound, s: ε̂ ← ε̂_∅ + s (ε̂ - ε̂_∅), ε̂_∅ its prediction beside
            pure noise in the sound's place (classifier-free guidance, by the other modality). 1: as trained. Another
            value takes one network call a step more, and a network with ``audio_time``.
        audio_coupling: how much the sound follows the picture, likewise.
        autoguidance: how far the network is led away from the errors of the model's guide, a weaker network (see
            `mgct.network_calls.autoguided`), which is then called as often; 1: not. None: the model's own, which is 1
            without a guide.
    """

    steps: int | None = None
    sampler: str | Any = samplers.DEFAULT
    seed: int = 0
    batch_size: int = 8
    clip_x0: bool | None = None
    window_shift: int | Sequence[int] | None = None
    progress: bool = True
    on_step: Callable[[Step], None] | None = None
    variation_of: Sequence[int] = ()
    variation: float = 0.4
    start_timestep: int | None = None
    video_coupling: float = 1.0
    audio_coupling: float = 1.0
    autoguidance: float | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.start_timestep is not None:
            if self.start_timestep < 1:
                raise UserError(f"start_timestep must be at least 1, got {self.start_timestep}")
            if not isinstance(self.sampler, str):
                raise UserError("start_timestep goes with the samplers named here, not with a scheduler of diffusers")
        if not 0 < self.variation <= 1:
            raise UserError(f"variation must lie in (0, 1], got {self.variation}")
        for name in ("video_coupling", "audio_coupling"):
            check_scale(name, getattr(self, name))
        if self.autoguidance is not None:
            check_scale("autoguidance", self.autoguidance)

    @property
    def coupled(self) -> bool:
        """Whether either modality is to follow the other otherwise than as trained."""
        return (self.video_coupling, self.audio_coupling) != (1, 1)

    @property
    def asks_ends(self) -> bool:
        """Whether the sampler asks the network for ends of paths, and not for denoised clips."""
        name = self.sampler
        return isinstance(name, str) and name in samplers.SAMPLERS and samplers.SAMPLERS[name].samples

    @property
    def calls(self) -> int:
        """Network calls per clip (steps, for a scheduler object of diffusers).

        Raises:
            UserError: no such sampler, or not with so many.
        """
        if not isinstance(self.sampler, str):
            return self.steps or SCHEDULER_STEPS
        return samplers.get_sampler(self.sampler, self.steps)[1]
