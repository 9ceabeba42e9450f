"""Saved models and runs by short names: found in a folder, loaded when used, with the samplers that suit them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mgct.errors import UserError
from mgct.pipeline import AVPipeline
from mgct.samplers import DEFAULT, SAMPLERS
from mgct.saved_models import bundled_models
from mgct.types import ClipSpec

RUNS = Path("runs")
"""Where runs are looked for if no folder is named."""
DEPTH = 2
"""Models are looked for in the folder and so many levels below."""


def find_models(root: Path | None = None) -> dict[str, Path]:
    """Every saved model at or below a folder.

    Args:
        root: a saved model, a run folder (whose model is in ``model/``), or a folder with some of these, at most two
            levels down; or the name of a model that comes with the package. None: what is below `RUNS`, and then all
            of the latter.

    Returns:
        Name → folder with ``model_index.json``, by name. A run's model has the run's name; names are relative to
        ``root``.

    Raises:
        UserError: there is none.
    """
    bundled = bundled_models()
    if root is None:
        own = _saved_below(RUNS)
        return {**own, **{name: folder for name, folder in bundled.items() if name not in own}}
    found = _saved_below(root)
    if not found and str(root) in bundled:
        return {str(root): bundled[str(root)]}
    if not found:
        raise UserError(
            f"{root}: no saved model there; give a run folder made by `mgct train`, a saved model, a folder of them, "
            f"or one that comes with mgct: {', '.join(bundled)}"
        )
    return found


def _saved_below(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in _folders(root):
        holder = folder.parent if folder.name == "model" else folder
        if (folder / "model_index.json").is_file():
            found[_name(holder, root)] = folder
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
    for _ in range(DEPTH + 1):  # a run's model is in a folder of its own
        level = [child for folder in level for child in _children(folder)]
        folders += level
    return folders


def _children(folder: Path) -> list[Path]:
    try:
        return [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    except OSError:
        return []


@dataclass(frozen=True)
class SamplerChoice:
    """A sampler as a model's choice.

    Args:
        name: of the sampler.
        recommended: whether the model was made for it.
        low: fewest steps.
        high: most steps.
        default: steps to begin with.
    """

    name: str
    recommended: bool
    low: int
    high: int
    default: int


class Models:
    """Pipelines by name.

    Args:
        models: name → pipeline, or folder of a saved one, which is loaded when it is first used and again when it has
            changed on the disk.
        runs: name → run folder; its model counts from the moment it is saved.
        device: where the loaded models run.

    Raises:
        UserError: there is no model.
    """

    def __init__(
        self, models: Mapping[str, AVPipeline | Path], runs: Mapping[str, Path], device: torch.device | str
    ) -> None:
        if not models:
            raise UserError("the page needs at least one model")
        self.runs = dict(runs)
        self.device = torch.device(device)
        self._models = dict(models)
        self._loaded: dict[str, tuple[int, AVPipeline]] = {}
        self._loading = threading.RLock()

    @property
    def names(self) -> list[str]:
        """Names of the models."""
        return list(self._models)

    def has(self, name: str) -> bool:
        """Whether there is a model of that name; that of a run counts from the moment it is saved."""
        run = self.runs.get(name)
        if name not in self._models and run is not None and (run / "model" / "model_index.json").is_file():
            self._models[name] = run / "model"
        return name in self._models

    def _model(self, name: str) -> AVPipeline | Path:
        if not self.has(name):
            raise UserError(f"no model {name!r}; there are: {', '.join(self._models)}")
        return self._models[name]

    def pipeline(self, name: str) -> AVPipeline:
        """The pipeline of that name, loaded. At most two stay in memory.

        Raises:
            UserError: no such model, or its folder is gone.
        """
        model = self._model(name)
        if isinstance(model, AVPipeline):
            return model
        with self._loading:
            stamp = self.stamp(name)
            if name in self._loaded and self._loaded[name][0] == stamp:
                return self._loaded[name][1]
            self._loaded.pop(name, None)
            while len(self._loaded) > 1:
                self._loaded.pop(next(iter(self._loaded)))
            pipe: AVPipeline = AVPipeline.from_pretrained(model).to(self.device)  # type: ignore[attr-defined]
            self._loaded[name] = (stamp, pipe)
            return pipe

    def stamp(self, name: str) -> int:
        """A number that changes when the model on the disk does; 0 for one that lives in memory."""
        model = self._model(name)
        if isinstance(model, AVPipeline):
            return 0
        try:
            return (model / "model_index.json").stat().st_mtime_ns
        except OSError as error:
            raise UserError(f"the model {name!r} is gone from the disk; choose another") from error

    def _config(self, name: str) -> Mapping[str, Any]:
        model = self._model(name)
        if isinstance(model, AVPipeline):
            return model.config
        config: Mapping[str, Any] = AVPipeline.load_config(model)
        return config

    def clip(self, name: str) -> ClipSpec:
        """Facts of the model's clips; nothing is loaded for it."""
        return ClipSpec(**self._config(name)["clip"])

    def choices(self, name: str) -> list[SamplerChoice]:
        """Every sampler that the model can use, those that the model was made for first, each with its range of steps.

        Among those the package's default comes first, then the same along the ODE, then the ones with few steps.
        """
        ranges: Mapping[str, Sequence[int]] = self._config(name)["recommended"]
        choices = []
        for sampler, facts in SAMPLERS.items():
            if facts.jumps and sampler not in ranges:  # the network has not what it takes
                continue
            low, high = ranges.get(sampler, (1, facts.max_steps))
            default = min(max(facts.default_steps, low), high)
            choices.append(SamplerChoice(sampler, not ranges or sampler in ranges, low, high, default))
        best = [DEFAULT, "dpm-solver++"]
        places = {name: best.index(name) if name in best else len(best) for name in SAMPLERS}
        return sorted(choices, key=lambda choice: (not choice.recommended, places[choice.name], choice.default))
