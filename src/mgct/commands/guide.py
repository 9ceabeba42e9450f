"""``mgct guide``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mgct.calibration import Calibration
from mgct.commands.model_copies import held, save_copy, target_of
from mgct.files import check_can_make
from mgct.network_calls import AUTOGUIDANCE
from mgct.pipeline import AVPipeline
from mgct.predictors import check_scale
from mgct.saved_models import find_pipeline


def guide_model(model: str, guide: str, out: Path | None = None, autoguidance: float = AUTOGUIDANCE) -> None:
    """Give a model a weaker one to be guided by, away from the errors that both make, and save them together.

    Autoguidance (Karras et al. 2024). The weaker one has seen the same data for a sixteenth of the training or less,
    and may be smaller, which costs less at each call: a run of `mgct train` with fewer --train.steps. Try a strength
    before with `mgct sample MODEL CLIPS --guide GUIDE --autoguidance 1.5`.

    Args:
        model: a run folder made by `mgct train`, or a saved model's folder.
        guide: the weaker one, likewise.
        out: folder of the copy that has both, new, empty or an earlier copy of these weights; without it the model
            itself changes.
        autoguidance: how far the model is led, 1 not at all; it becomes the model's own. Its calibrations with another
            guide are dropped.
    """
    check_scale("autoguidance", autoguidance)
    folder, weaker = find_pipeline(model), find_pipeline(guide)
    target = target_of(folder, out)
    check_can_make(target)
    with held(target):
        pipe: Any = AVPipeline.from_pretrained(folder)
        pipe.take_guide(AVPipeline.from_pretrained(weaker), autoguidance)
        if pipe.calibration is not None:
            alone = [path for path in pipe.calibration.paths if path.autoguidance == 1]
            pipe.register_modules(calibration=Calibration.of(alone) if alone else None)
        save_copy(folder, target, pipe, "guide", "calibration", facts=("autoguidance",))
    print(f"{target}: guided by {weaker}, autoguidance {autoguidance:g}")
