"""The web page (``mgct app``). Nothing of it is loaded before `build_app` is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgct.errors import UserError

if TYPE_CHECKING:
    from mgct.app.records import Limits
    from mgct.pipeline import AVPipeline


def build_app(
    models: AVPipeline | Mapping[str, AVPipeline | Path],
    runs: Mapping[str, Path] | None = None,
    device: Any = "cpu",
    limits: Limits | None = None,
) -> Any:
    """The page over one pipeline, or over several models by name. `mgct.app.server.serve` puts it on an address.

    Args:
        models: a pipeline, or name → pipeline or folder of a saved one (loaded when first used).
        runs: name → run folder for the tab *Training*.
        device: where the loaded models run.
        limits: of one request.

    Returns:
        A ``gradio.Blocks`` with its queue. Its attribute ``studio`` is the `mgct.app.studio.Studio` behind it.

    Raises:
        UserError: gradio is not installed, or there is no model.
    """
    try:
        from mgct.app.page import build_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError("the page needs gradio: pip install 'mgct[app]'") from error
    from mgct.app.studio import Studio
    from mgct.pipeline import AVPipeline

    studio = Studio({"model": models} if isinstance(models, AVPipeline) else models, runs, device, limits)
    blocks = build_page(studio)
    blocks.studio = studio
    return blocks
