"""What sampling asks of a network that was trained on modalities at noise levels of their own.

`MultimodalUNet` with ``audio_time``, trained with ``timesteps.independent`` or ``given`` (`mgct.stages.Timesteps`). It
generates one modality for the other (`mgct.predictors.conditioned`), and both so that they follow each other more than
it was taught (`mgct.predictors.coupled`).
"""

from __future__ import annotations

from typing import Any

from mgct.errors import UserError
from mgct.given import Given, Method
from mgct.sampling_options import SamplingOptions
from mgct.types import AVSample

_NEEDED = (
    "a network trained on modalities at noise levels of their own (model.audio_time, with timesteps.{}), and this one "
    "was not"
)
_EITHER, _INDEPENDENT = _NEEDED.format("given or independent"), _NEEDED.format("independent")


def best_method(pipe: Any, options: SamplingOptions) -> Method:
    """How this model best generates one modality for the other."""
    knows = _knows(pipe, "given", "independent")
    return "conditional" if knows and not options.asks_ends else "replacement"


def check(pipe: Any, options: SamplingOptions, given: Given | None, shapes: AVSample) -> None:
    """Refuse what the network was not trained for, and what the method ``conditional`` and a coupling cannot do.

    Guidance and a coupling call it with one modality pure noise at any level of the other's: that is
    ``timesteps.independent``, and not in ``given``.

    Args:
        pipe: the model, an `mgct.pipeline.AVPipeline`.
        options: how it is sampled.
        given: the part that is given.
        shapes: of one clip that is made.
    """
    if given is not None and given.method == "conditional":
        if not _knows(pipe, "given", "independent"):
            raise UserError(f"method 'conditional' needs {_EITHER}: choose 'replacement' or 'guided'")
        if given.scale != 1 and not _knows(pipe, "independent"):
            raise UserError(f"guidance_scale of method 'conditional' needs {_INDEPENDENT}: leave it out")
        sizes = given.start.video.shape[1], given.start.audio.shape[2]
        if sizes not in ((shapes.video[0], 0), (0, shapes.audio[1])):
            raise UserError(
                "method 'conditional' is for all of one modality given; with parts of a clip: 'replacement'"
            )
    elif options.coupled:
        if not _knows(pipe, "independent"):
            raise UserError(f"video_coupling and audio_coupling need {_INDEPENDENT}: leave them out")
    else:
        return
    if options.coupled and given is not None and given.one_modality:
        raise UserError("a coupling is for generating both modalities; with one given: guidance_scale")
    if options.asks_ends:
        raise UserError(
            f"sampler {options.sampler!r} needs a network that predicts ends of paths, and with two noise levels none "
            "has learned to; choose another"
        )


def calls_a_step(options: SamplingOptions, given: Given | None) -> int:
    """Network calls at one noise level."""
    if given is not None and given.method == "conditional":
        return 1 if given.scale == 1 else 2
    return 1 + (options.video_coupling != 1) + (options.audio_coupling != 1)


def _knows(pipe: Any, *shares: str) -> bool:
    """Whether it was trained with any of these shares of clips; of older models it is not known, and taken to be so."""
    trained = pipe.config.noise_levels_apart
    return bool(pipe.unet.config.get("audio_time")) and (trained is None or any(trained[name] for name in shares))
