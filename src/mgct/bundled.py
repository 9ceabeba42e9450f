"""The trained models that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "models"


def bundled_models() -> dict[str, Path]:
    """Name → folder of the saved pipeline, by name."""
    return {path.parent.name: path.parent for path in sorted(FOLDER.glob("*/model_index.json"))}
