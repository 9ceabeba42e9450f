"""Train the models of the paper's tables, in pieces of a few minutes, from files of the repository alone.

    python experiments/run.py small landscape stage1 --minutes 9   # a piece; the same again goes on
    python experiments/run.py small landscape next --minutes 9     # the models that are not finished, one after the other
    python experiments/run.py small landscape status

``plan.yaml`` says which models there are and what each is given. A piece trains by `mgct train` in ``--runs``, where it
goes on exactly if the run is still there. Its averaged weights are then packed, in half precision, into
``experiments/checkpoints/SIZE/WORLD/ROLE``: a saved model, with ``progress.json``. From that alone the next piece goes
on where there is no run: with the averaged weights as they are, a new optimiser that warms up, and clips not seen yet.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from variants import share_of_compute, with_variant  # noqa: E402

from mgct.saved_models import FOLDER  # noqa: E402

CHECKPOINTS = ROOT / "experiments" / "checkpoints"
LEAST_MINUTES = 1.0
"""A further model is not begun for less."""
PLAN: dict[str, Any] = yaml.safe_load((ROOT / "experiments" / "plan.yaml").read_text())


@dataclass
class Piece:
    """Some minutes of training.

    Args:
        steps: optimiser steps.
        seconds: of wall time, start-up included.
        device: what it ran on.
        loss: of the last row of its log.
    """

    steps: int
    seconds: float
    device: str
    loss: float | None


@dataclass
class Progress:
    """How far a model is.

    Args:
        steps: done.
        of: steps in all, as the plan now has it.
        batch_size: clips a step.
        run_from: the step at which the present run folder began.
        pieces: how they were done.
        bundled: the package's model that has these weights, which are not kept twice; empty: none.
        variant: what was trained, out of benchmarks/variants.py; empty where that was not noted yet.
    """

    of: int
    batch_size: int
    steps: int = 0
    run_from: int = 0
    pieces: list[dict[str, Any]] = field(default_factory=list)
    bundled: str = ""
    variant: str = ""

    def save(self, folder: Path) -> None:
        """Write it into a model's folder."""
        (folder / "progress.json").write_text(json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class Task:
    """One model to train.

    Args:
        size: ``micro`` or ``small``.
        world: what it learns.
        role: which model of the plan.
        runs: folder of run folders.
    """

    size: str
    world: str
    role: str
    runs: Path

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.runs / self.size / self.world / self.role

    @property
    def packed(self) -> Path:
        """Its folder in the repository: how far it is, and the saved model, if the package has not got that."""
        return CHECKPOINTS / self.size / self.world / self.role

    @property
    def model(self) -> Path:
        """The saved model."""
        bundled = self.progress().bundled
        return FOLDER / bundled if bundled else self.packed

    @property
    def parent(self) -> Task | None:
        """The model it begins from."""
        name = PLAN["models"][self.role].get("from")
        return Task(self.size, self.world, name, self.runs) if name else None

    def config(self) -> dict[str, Any]:
        """The whole configuration of the run, from its first step to its last."""
        sizes, model = PLAN["sizes"][self.size], PLAN["models"][self.role]
        config: dict[str, Any] = yaml.safe_load((ROOT / "configs" / f"{self.size}.yaml").read_text())
        config["data"] = f"world:{self.world}" + (f":{sizes['clips']}" if "clips" in sizes else "")
        config["model"].update(sizes["model"])
        config["monitor"] = {"gradients_every": 0, "samples_every": 0, "metric_every": 0}
        clips = sizes["then_clips"] if self.parent else sizes["stage1_clips"]
        steps = share_of_compute(model["variant"], clips, config["train"]["batch_size"])
        if others := model.get("iterations_of"):
            tasks = [Task(self.size, self.world, role, self.runs) for role in others]
            steps = sum(task.config()["train"]["steps"] for task in tasks)
        seed = list(PLAN["models"]).index(self.role)
        config["train"].update({**sizes["train"], **model.get("train", {})}, steps=steps, seed=seed)
        return with_variant(config, model["variant"])

    def progress(self) -> Progress:
        """How far it is."""
        train = self.config()["train"]
        file = self.packed / "progress.json"
        known = json.loads(file.read_text()) if file.is_file() else {}
        variant = PLAN["models"][self.role]["variant"]
        if (before := known.pop("variant", "")) not in ("", variant):
            raise SystemExit(f"{self.packed} is a {before}, and the plan now has a {variant}: move it away")
        return Progress(variant=variant, **{**known, "of": train["steps"], "batch_size": train["batch_size"]})


def train_piece(task: Task, minutes: float, options: list[str]) -> Progress:
    """Train for so long or to the end, and pack what came of it."""
    before, run = task.progress(), task.run
    if before.steps >= before.of:
        return before
    begun = time.monotonic()
    run_from = resumable(run, before)
    resume = run_from is not None
    config = task.config()
    if run_from is not None:
        before.run_from = run_from
    else:
        before.run_from = before.steps
        config["train"]["steps"] = before.of - before.steps
        config["train"]["seed"] += 1000 * len(before.pieces)
        run.mkdir(parents=True, exist_ok=True)
        (run / "piece.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (run / "run_from.json").write_text(json.dumps(before.run_from))
    command = [sys.executable, "-m", "mgct.cli", "train", f"--config={run / 'piece.yaml'}", f"--out={run}", *options]
    start = task.model if before.steps else task.parent.model if task.parent else None
    if resume:
        command.append("--resume")
    elif start is not None:
        if not (start / "model_index.json").is_file():
            raise SystemExit(f"{task.role} begins from {start}, which is not there; train that first")
        command.append(f"--init={start}")
    process = subprocess.Popen(command)
    try:
        code = process.wait(60 * minutes)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGTERM)  # it saves and leaves
        code = process.wait()
    if code:
        raise SystemExit(f"mgct train ended with status {code}; nothing was packed")
    return pack(task, before, time.monotonic() - begun)


def resumable(run: Path, before: Progress) -> int | None:
    """The step at which the run folder began, if it is as far as what is packed; None: a new run must begin.

    A run that others have overtaken elsewhere is put aside.
    """
    saved = sorted((run / "checkpoints").glob("step-*"))
    if not saved:
        return None
    run_from: int = json.loads((run / "run_from.json").read_text())
    if run_from + int(saved[-1].name.removeprefix("step-")) >= before.steps:
        return run_from
    run.rename(run.with_name(f"{run.name}-until-{saved[-1].name}"))
    return None


def pack(task: Task, before: Progress, seconds: float) -> Progress:
    """Put the run's averaged network into the repository's folder, in half precision."""
    import torch

    from mgct import AVPipeline

    model, draft = task.run / "model", task.packed.with_name(f".{task.role}.draft")
    done = before.run_from + json.loads((model / "training.json").read_text())["step"]
    rows = [json.loads(line) for line in (task.run / "metrics.jsonl").read_text().splitlines()]
    piece = Piece(done - before.steps, round(seconds, 1), device(), rows[-1]["loss"] if rows else None)
    pieces = [*before.pieces, asdict(piece)]
    progress = Progress(before.of, before.batch_size, done, before.run_from, pieces, variant=before.variant)
    shutil.rmtree(draft, ignore_errors=True)
    pipe: Any = AVPipeline.from_pretrained(model)
    pipe.cast(torch.float16)
    pipe.save_pretrained(draft)
    without_paths(draft)
    progress.save(draft)
    shutil.rmtree(task.packed, ignore_errors=True)
    draft.rename(task.packed)
    return progress


def device() -> str:
    """What a training here runs on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} {platform.machine()} thread" + "s" * (threads > 1)


def without_paths(folder: Path) -> None:
    """Take out of a saved model where it was loaded from, which diffusers notes: a folder of this machine."""
    for path in folder.rglob("*.json"):
        facts = {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}
        path.write_text(json.dumps(facts, indent=2) + "\n")


def status(size: str, world: str, runs: Path) -> str:
    """A line for each model."""
    lines = []
    for role in PLAN["models"]:
        progress = Task(size, world, role, runs).progress()
        minutes = sum(piece["seconds"] for piece in progress.pieces) / 60
        lines.append(
            f"{role}: {progress.steps} of {progress.of} steps in {minutes:.0f} min, {len(progress.pieces)} pieces"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=list(PLAN["sizes"]))
    parser.add_argument("world", choices=PLAN["worlds"])
    parser.add_argument("role", choices=[*PLAN["models"], "next", "status"])
    parser.add_argument("--minutes", type=float, default=9.0, help="of this piece, then a checkpoint")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "evidence")
    parser.epilog = "What follows -- is given to mgct train."
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:end])
    roles = {"next": list(PLAN["models"]), "status": []}.get(options.role, [options.role])
    tasks = [Task(options.size, options.world, role, options.runs) for role in roles]
    last = time.monotonic() + 60 * options.minutes
    unfinished = [task for task in tasks if task.progress().steps < task.progress().of]
    for number, task in enumerate(unfinished):
        left = (last - time.monotonic()) / 60
        if number and left < LEAST_MINUTES:
            break
        progress = train_piece(task, left, given[end + 1 :])
        if progress.steps < progress.of:
            break
    print(status(options.size, options.world, options.runs))


if __name__ == "__main__":
    main()
