"""Saved models and runs in a folder, by short names."""

from __future__ import annotations

from pathlib import Path

from mgct.errors import UserError

DEPTH = 2
"""Models are looked for in the folder and so many levels below."""


def find_models(root: Path) -> dict[str, Path]:
    """Every saved model at or below a folder.

    Args:
        root: a saved model, a run folder (whose model is in ``model/``), or a folder with some of these, at most two
            levels down.

    Returns:
        Name → folder with ``model_index.json``, by name. A run's model has the run's name; names are relative to
        ``root``.

    Raises:
        UserError: there is none.
    """
    found: dict[str, Path] = {}
    for folder in _folders(root):
        holder = folder.parent if folder.name == "model" else folder
        if (folder / "model_index.json").is_file():
            found[_name(holder, root)] = folder
    if not found:
        raise UserError(
            f"{root}: no saved model there; give a run folder made by `mgct train`, a saved model, or a folder of them"
        )
    return dict(sorted(found.items()))


def find_runs(root: Path) -> dict[str, Path]:
    """Every run folder (one with ``metrics.jsonl``) at or below a folder, by name, as `find_models`; none is fine."""
    found = {_name(path, root): path for path in _folders(root) if (path / "metrics.jsonl").is_file()}
    return dict(sorted(found.items()))


def _name(folder: Path, root: Path) -> str:
    relative = folder.relative_to(root) if folder != root.parent else Path()
    return str(relative) if relative != Path() else folder.resolve().name


def _folders(root: Path) -> list[Path]:
    """The folder and those below it whose names do not begin with a dot; what cannot be read is passed over."""
    folders, level = [root], [root]
    for _ in range(DEPTH + 1):
        level = [child for folder in level for child in _children(folder)]
        folders += level
    return folders


def _children(folder: Path) -> list[Path]:
    try:
        return [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    except OSError:
        return []
