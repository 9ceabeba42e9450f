"""Where saved models are: folders, run folders, and those that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from mgct.errors import UserError

FOLDER = Path(__file__).parent / "models"


def bundled_models() -> dict[str, Path]:
    """Name → folder of the saved pipelines that come with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(FOLDER.glob("*/model_index.json"))}


def find_pipeline(model: str | Path) -> Path:
    """The saved pipeline that ``model`` names: its folder, the run folder that holds it, or one that is bundled.

    Raises:
        UserError: there is none.
    """
    folder = Path(model)
    for candidate in (folder, folder / "model"):
        if (candidate / "model_index.json").is_file():
            return candidate
    bundled = bundled_models()
    if str(model) in bundled:
        return bundled[str(model)]
    if folder.exists():
        raise UserError(f"{model}: no saved model there (no model_index.json); give a run folder or its model/ folder")
    raise UserError(
        f"{model}: no such model; give a run folder made by `mgct train`, its model/ folder, or one of the models that "
        f"come with mgct: {', '.join(bundled)}"
    )
