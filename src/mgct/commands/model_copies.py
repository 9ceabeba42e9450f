"""A saved model with other parts beside the same network, in its own folder or in a copy."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mgct.checkpoint import is_run_folder
from mgct.errors import UserError
from mgct.files import locked, replace_folder
from mgct.model_card import HowSampled, with_sampling
from mgct.pipeline import AVPipeline
from mgct.saved_models import bundled_models


def target_of(folder: Path, out: Path | None) -> Path:
    """Where the changed model goes: ``out``, or else ``folder`` itself.

    Raises:
        UserError: something else would be lost there.
    """
    target = (out or folder).resolve()
    if target in [path.resolve() for path in bundled_models().values()]:
        raise UserError(f"{target.name} comes with mgct and is not changed: give --out FOLDER")
    if out is not None:
        holds_other = target.is_dir() and any(target.iterdir()) and not (target / "model_index.json").is_file()
        if holds_other or (target.exists() and not target.is_dir()) or target in folder.resolve().parents:
            raise UserError(f"{out} holds something else than a saved model; choose a new folder for --out")
        other_run = any(is_run_folder(above) and above not in folder.resolve().parents for above in target.parents)
        if other_run or ((target / "model_index.json").is_file() and not _same_network(folder, target)):
            raise UserError(f"{out} is of another run or model than {folder}; choose a new folder for --out")
    return target


def _same_network(folder: Path, other: Path) -> bool:
    """Whether two saved models have the same files of weights."""
    ours, theirs = (sorted(path.name for path in (one / "unet").glob("*.safetensors")) for one in (folder, other))
    return ours == theirs and all(
        filecmp.cmp(folder / "unet" / name, other / "unet" / name, shallow=False) for name in ours
    )


@contextmanager
def held(target: Path) -> Iterator[None]:
    """Keep a training off its run folder while a model in it is changed."""
    if (target.parent / "config.yaml").is_file():
        with locked(target.parent, "mgct train or calibrate"):
            yield
    else:
        yield


def save_copy(folder: Path, target: Path, pipe: AVPipeline, *parts: str, facts: Sequence[str]) -> None:
    """The saved model of ``folder`` as it is, with other parts and a card that says so, whole or not at all.

    Args:
        folder: where it is.
        target: where it goes; what is there is replaced.
        pipe: the model as it is to be.
        parts: its components that are new; what it lacks of them is left out.
        facts: names of its settings that are new.
    """
    changed: dict[str, Any] = {name: getattr(pipe, name) for name in parts}
    index = json.loads((folder / "model_index.json").read_text())
    for name, part in changed.items():
        index[name] = [None, None] if part is None else [type(part).__module__, type(part).__name__]
    index |= {name: pipe.config[name] for name in facts}
    card = folder / "README.md"

    def write(draft: Path) -> None:
        shutil.copytree(folder, draft)
        for name, part in changed.items():
            shutil.rmtree(draft / name, ignore_errors=True)
            if part is not None:
                part.to("cpu").save_pretrained(draft / name)
        (draft / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        if card.is_file():
            (draft / "README.md").write_text(with_sampling(card.read_text(), HowSampled.by(pipe)))

    replace_folder(target, write)
