"""What sampling asks of a network that was trained on modalities at noise levels of their own.

`MultimodalUNet` with ``audio_time``, trained with ``timesteps.independent`` (`mgct.stages.Timesteps`). It generates one
modality for the other (`mgct.predictors.conditioned`), and both so that they follow each other more than it was taught
(`mgct.predictors.coupled`).
"""

from __future__ import annotations

from typing import Any

from mgct.errors import UserError
from mgct.given import Given, Method
from mgct.sampling_options import SamplingOptions

_NEEDED = (
    "a network trained on modalities at noise levels of their own (model.audio_time, timesteps.independent), and this "
    "one was not"
)


def best_method(unet: Any) -> Method:
    """How this network best generates one modality for the other."""
    return "conditional" if unet.config["audio_time"] else "replacement"


def check(unet: Any, options: SamplingOptions, given: Given | None) -> None:
    """Refuse what the network was not trained for, and what the method ``conditional`` and a coupling cannot do."""
    conditional = given is not None and given.method == "conditional"
    both = given is None or given.start.video.shape[1] > 0 < given.start.audio.shape[2]
    if conditional and not unet.config["audio_time"]:
        raise UserError(f"method 'conditional' needs {_NEEDED}: choose 'replacement' or 'guided'")
    if conditional and both:
        raise UserError("method 'conditional' is for one modality given the other; to continue both: 'replacement'")
    if options.coupled and not unet.config["audio_time"]:
        raise UserError(f"video_coupling and audio_coupling need {_NEEDED}")
    if options.coupled and not both:
        raise UserError("a coupling is for generating both modalities; with one given: guidance_scale")


def calls_a_step(options: SamplingOptions, given: Given | None) -> int:
    """Network calls at one noise level."""
    if given is not None and given.method == "conditional":
        return 1 if given.scale == 1 else 2
    return 1 + (options.video_coupling != 1) + (options.audio_coupling != 1)
