"""Put a trained model into the package: `mgct sample NAME`, `AVPipeline.from_pretrained("NAME")`.

    python experiments/bundle.py landscape-micro CARD.json --task micro landscape mgct-map --start_timestep 850
    python experiments/bundle.py landscape CARD.json --run runs/landscape --start_timestep 850
    python experiments/bundle.py landscape CARD.json --calibrated runs/landscape-calibrated

A task's weights are those of ``experiments/checkpoints/SIZE/WORLD/ROLE``, and are kept in the package alone from then
on; a run's are those of its ``model``, in half precision; a copy that `mgct calibrate` has made of a model of the
package takes its place. CARD.json is a metric card of its samples, as `mgct evaluate` and `mgct reproduce` write them:
its numbers go into the model's card. Only what was trained on nothing but the procedural worlds may be bundled under
this licence.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from run import PLAN, ROOT, Task, device, without_paths

from mgct import AVPipeline, __version__
from mgct.files import replace_folder
from mgct.metrics.card import MetricCard
from mgct.model_card import HowSampled, ModelFacts, model_card
from mgct.samplers import recommended_samplers
from mgct.saved_models import FOLDER, bundled_models
from mgct.trainer import count_parameters

LARGEST_BYTES = 20_000_000
SHOWN = {1: ("train", "noise_weight", "timesteps", "guidance")}
SHOWN[2] = (*SHOWN[1], "transfer", "consistency", "balance")
"""What a model's card shows of the configuration of its run, by stage."""


def of_task(task: Task) -> tuple[Path, dict[str, Any]]:
    """The saved model of a task, and what its card says of the training."""
    parts = [task, *([task.parent] if task.parent else [])]
    pieces = [piece for part in parts for piece in part.progress().pieces]
    clips = sum(part.progress().steps * part.progress().batch_size for part in parts)
    config = task.config()
    return task.model, {
        "data": config["data"],
        "step": sum(part.progress().steps for part in parts),
        "stage": 2 if "consistency" in config else 1,
        "settings": {"experiment": f"{task.size}/{task.world}/{task.role}", "train": config["train"]},
        "cost": cost(
            clips,
            PLAN["sizes"][task.size].get("clips", clips),
            sum(piece["seconds"] for piece in pieces),
            {piece["device"] for piece in pieces},
        ),
    }


def of_run(run: Path) -> tuple[Path, dict[str, Any]]:
    """The saved model of a run of `mgct train` on a world without end, made here, and what its card says."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    done = json.loads((run / "model" / "training.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    batch, every = config["train"]["batch_size"], config["train"]["log_every"]
    clips = done["step"] * batch
    return run / "model", {
        "data": config["data"],
        "began_from": config["init"],
        "before": said_of(config["init"]) if config["init"] in bundled_models() else "",
        "step": done["step"],
        "stage": done["stage"],
        "settings": {name: config[name] for name in SHOWN[done["stage"]] if name in config},
        "cost": cost(clips, clips, sum(every * batch / row["clips_per_s"] for row in rows), {device()}),
    }


def said_of(name: str) -> str:
    """What the card of one of the package's models says of its training."""
    text = (FOLDER / name / "README.md").read_text()
    section = text.split("## Training\n", 1)[1].split("\n## ", 1)[0]
    return " ".join(line.removeprefix("- ") for line in section.strip().splitlines())


def cost(clips: int, different: int, seconds: float, devices: set[str]) -> str:
    """What a training took, in words."""
    where = " and ".join(sorted(devices))
    return f"{clips:,} clips, {different:,} of them different, {seconds / 60:.0f} minutes on {where}"


def bundle(name: str, model: Path, training: dict[str, Any], card_path: Path, start_timestep: int | None) -> Path:
    """Copy a saved model in half precision, with its card.

    Args:
        name: what it is called from then on.
        model: its folder.
        training: what `ModelFacts` has of its training.
        card_path: the metric card of its samples.
        start_timestep: the noise level that it is best sampled from.
    """
    card = MetricCard.load(card_path)
    pipe: Any = AVPipeline.from_pretrained(model)
    pipe.cast(torch.float16)
    recommended = recommended_samplers(training["stage"], pipe.unet.config["target_time"])
    pipe.register_to_config(recommended=recommended, start_timestep=start_timestep)
    facts = ModelFacts(
        name=name,
        clip=pipe.clip,
        parameters=count_parameters(pipe.unet),
        recommended=recommended,
        metrics=measured(card, card_path),
        licence="Apache-2.0",
        version=__version__,
        address=name,
        sampled=HowSampled.by(pipe),
        **training,
    )
    folder, draft = FOLDER / name, FOLDER / f".{name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    pipe.save_pretrained(draft)
    without_paths(draft)
    (draft / "README.md").write_text(model_card(facts))
    size = sum(path.stat().st_size for path in draft.rglob("*") if path.is_file())
    if size > LARGEST_BYTES:
        shutil.rmtree(draft)
        raise SystemExit(f"{folder} would have {size / 1e6:.1f} MB; at most {LARGEST_BYTES / 1e6:.0f} may be bundled")
    give_back(name)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return folder


def calibrate(name: str, copy: Path, card_path: Path) -> Path:
    """Put a copy that `mgct calibrate` has made of a model of the package in its place, with the numbers of that."""
    folder, weights = FOLDER / name, "unet/diffusion_pytorch_model.safetensors"
    if (folder / weights).read_bytes() != (copy / weights).read_bytes():
        raise SystemExit(f"{copy} is not a copy of {name}: its weights differ")
    rows = "\n".join(
        f"| {label} | {value:g} |" for label, value in measured(MetricCard.load(card_path), card_path).items()
    )
    text = (copy / "README.md").read_text()
    text = re.sub(r"(?<=\|---\|---\|\n)\| [A-Z]+-.*?\|(?=\n\n)", lambda _: rows, text, flags=re.DOTALL)

    def write(draft: Path) -> None:
        shutil.copytree(copy, draft)
        without_paths(draft)
        (draft / "README.md").write_text(text)

    replace_folder(folder, write)
    return folder


def measured(card: MetricCard, path: Path) -> dict[str, float]:
    """The numbers of a metric card, as a model's card names them."""
    how = f"{path.stem.split('--')[1]}, {card.fake.num} clips against {card.real.num}"
    return {f"{value.name}, {how}": value.value for value in card.values}


def give_back(name: str) -> None:
    """Let the task whose weights only the package has, under that name, keep them itself."""
    for size, world, role in itertools.product(PLAN["sizes"], PLAN["worlds"], PLAN["models"]):
        task = Task(size, world, role, ROOT / "runs" / "evidence")
        progress = task.progress()
        if progress.bundled == name:
            shutil.copytree(FOLDER / name, task.packed, dirs_exist_ok=True)
            replace(progress, bundled="").save(task.packed)


def keep_once(task: Task, name: str) -> None:
    """Leave a task's weights to the package."""
    replace(task.progress(), bundled=name).save(task.packed)
    for path in task.packed.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "progress.json":
            path.unlink()


def main() -> None:
    """Read the options and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("card", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--task", nargs=3, metavar=("SIZE", "WORLD", "ROLE"))
    source.add_argument("--run", type=Path)
    source.add_argument("--calibrated", type=Path)
    parser.add_argument("--start_timestep", type=int, help="the noise level that it is best sampled from")
    options = parser.parse_args()
    if options.calibrated:
        print(calibrate(options.name, options.calibrated, options.card))
        return
    task = Task(*options.task, ROOT / "runs" / "evidence") if options.task else None
    model, training = of_task(task) if task else of_run(options.run)
    print(bundle(options.name, model, training, options.card, options.start_timestep))
    if task:
        keep_once(task, options.name)


if __name__ == "__main__":
    main()
