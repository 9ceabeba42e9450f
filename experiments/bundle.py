"""Put a trained model into the package: `mgct sample NAME`, `AVPipeline.from_pretrained("NAME")`.

    python experiments/bundle.py micro landscape baseline CARD.json

The weights are those of ``experiments/checkpoints/SIZE/WORLD/ROLE``, in half precision, and are kept in the package
alone from then on; the model is called as its world. CARD.json is a metric card of its samples, as `mgct evaluate` and `mgct reproduce` write them: its numbers go
into the model's card. Only what was trained on nothing but the procedural worlds may be bundled under this licence.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from run import PLAN, ROOT, Task, without_paths

from mgct import AVPipeline, __version__
from mgct.bundled import FOLDER
from mgct.commands.train import RECOMMENDED
from mgct.metrics.card import MetricCard
from mgct.model_card import ModelFacts, model_card
from mgct.trainer import count_parameters

LARGEST_BYTES = 20_000_000


def bundle(task: Task, card_path: Path, start_timestep: int | None) -> Path:
    """Copy the packed model and write its card."""
    card = MetricCard.load(card_path)
    parts = [task, *([task.parent] if task.parent else [])]
    seconds = sum(piece["seconds"] for part in parts for piece in part.progress().pieces)
    devices = {piece["device"] for part in parts for piece in part.progress().pieces}
    steps = sum(part.progress().steps for part in parts)
    clips = sum(part.progress().steps * part.progress().batch_size for part in parts)
    different = PLAN["sizes"][task.size].get("clips", clips)
    pipe: Any = AVPipeline.from_pretrained(task.model, dtype=torch.float16)
    config = task.config()
    how = f"{card_path.stem.split('--')[1]}, {card.fake.num} clips against {card.real.num}"
    kind = ("map" if config["model"].get("target_time") else 2) if "consistency" in config else 1
    pipe.register_to_config(recommended=RECOMMENDED[kind], start_timestep=start_timestep)
    facts = ModelFacts(
        name=f"{task.world} ({task.size})",
        clip=pipe.clip,
        parameters=count_parameters(pipe.unet),
        recommended=RECOMMENDED[kind],
        data=config["data"],
        step=steps,
        stage=2 if "consistency" in config else 1,
        settings={"experiment": f"{task.size}/{task.world}/{task.role}", "train": config["train"]},
        metrics={f"{value.name}, {how}": value.value for value in card.values},
        licence="Apache-2.0",
        version=__version__,
        address=task.world,
        start_timestep=start_timestep,
        cost=f"{clips:,} clips, {different:,} of them different, {seconds / 60:.0f} minutes on {' and '.join(sorted(devices))}",
    )
    folder, draft = FOLDER / task.world, FOLDER / f".{task.world}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    pipe.save_pretrained(draft)
    without_paths(draft)
    (draft / "README.md").write_text(model_card(facts))
    size = sum(path.stat().st_size for path in draft.rglob("*") if path.is_file())
    if size > LARGEST_BYTES:
        shutil.rmtree(draft)
        raise SystemExit(f"{folder} would have {size / 1e6:.1f} MB; at most {LARGEST_BYTES / 1e6:.0f} may be bundled")
    give_back(task.world)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    keep_once(task)
    return folder


def give_back(world: str) -> None:
    """Let the task whose weights only the package has keep them itself."""
    for size, role in itertools.product(PLAN["sizes"], PLAN["models"]):
        task = Task(size, world, role, ROOT / "runs" / "evidence")
        progress = task.progress()
        if progress.bundled:
            shutil.copytree(FOLDER / world, task.packed, dirs_exist_ok=True)
            replace(progress, bundled=False).save(task.packed)


def keep_once(task: Task) -> None:
    """Leave the weights to the package."""
    replace(task.progress(), bundled=True).save(task.packed)
    for path in task.packed.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "progress.json":
            path.unlink()


def main() -> None:
    """Read the options and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=list(PLAN["sizes"]))
    parser.add_argument("world", choices=PLAN["worlds"])
    parser.add_argument("role", choices=list(PLAN["models"]))
    parser.add_argument("card", type=Path)
    parser.add_argument("--start_timestep", type=int, help="the noise level that it is best sampled from")
    options = parser.parse_args()
    task = Task(options.size, options.world, options.role, ROOT / "runs" / "evidence")
    print(bundle(task, options.card, options.start_timestep))


if __name__ == "__main__":
    main()
