"""Which second stage is worth its compute: MM-Diffusion continued against MGCT's variants, from one checkpoint.

    python benchmarks/stage2.py toy                       # 4-D data whose distribution is known: about a minute
    python benchmarks/stage2.py toy --seeds 3 --steps 8000 --variants all
    python benchmarks/stage2.py micro runs/stage2         # the micro network on a world: under an hour on two cores
    python benchmarks/stage2.py micro runs/stage2 --stage_1 landscape-micro --config configs/finetune.yaml
    python benchmarks/stage2.py small runs/stage2 --stage_1 landscape --config configs/finetune-small-cpu.yaml
    python benchmarks/stage2.py report RESULTS.jsonl …    # the tables, from what the others wrote

Every variant goes on from the same stage 1 and has the same compute: network evaluations × size, a backward pass
counted as two. So a variant whose step costs more takes fewer steps. ``mm-diffusion`` goes on with the multimodal loss
alone. The network that is measured is the running average.

Toy: eight coupled modes in 2 + 2 dimensions and an MLP. Error: energy distance × 1000 between samples and data.
Micro and small: ``configs/SIZE.yaml`` through `mgct train`; the protocol's metrics against clips never trained on.

Both write a line of JSON per measurement, so that a stopped study goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from toy import SHAPES, eight_modes, energy_distance, sinusoids
from variants import MAIN, VARIANTS, jumps, objects_of, share_of_compute, with_variant

from mgct import samplers
from mgct.grids import Point
from mgct.noise import NoiseSchedule
from mgct.stages import MGCT, Consistency, Transfer, average_into
from mgct.types import AVSample, pack, unpack

ROOT = Path(__file__).resolve().parent.parent
CALLS = (1, 2, 4, 8, 12, 20)
SCHEDULE = NoiseSchedule()


def named_runs(variant: str) -> list[str]:
    """The samplers that a variant's network is measured with."""
    names = ["dpm-solver", "dpm-solver++", "unipc"]
    if VARIANTS[variant]:
        names.append("map" if jumps(variant) else "consistency")
    return names


# ---------------------------------------------------------------------------------------------- the toy

TOY_BATCH = 256


class MLP(nn.Module):
    """ε_θ on these clips, called as `MultimodalUNet`, with its second time input through a layer that begins at 0."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        widths = [4 + 64, width, width, width]
        self.first = nn.Linear(widths[0], width)
        self.goal = nn.Linear(64, width, bias=False)
        nn.init.zeros_(self.goal.weight)
        hidden = [layer for a, b in pairwise(widths[1:]) for layer in (nn.SiLU(), nn.Linear(a, b))]
        self.rest = nn.Sequential(*hidden, nn.SiLU(), nn.Linear(width, 4))

    def forward(
        self,
        video: Tensor,
        audio: Tensor,
        timestep: Tensor,
        window_shift: object = None,  # noqa: ARG002
        target_timestep: Tensor | None = None,
    ) -> AVSample:
        """Predicted noise."""
        x = pack(AVSample(video=video, audio=audio)).float()
        own = sinusoids(timestep, len(x))
        h = self.first(torch.cat([x, own], 1))
        if target_timestep is not None:
            h = h + self.goal(sinusoids(target_timestep, len(x)) - own)
        return unpack(self.rest(h), SHAPES)


class BatchRandom:
    """`mgct.clip_random.ClipRandom` from one generator: clips need no seeds of their own here."""

    def __init__(self, generator: torch.Generator, count: int) -> None:
        self.generator, self.count = generator, count

    def first(self, count: int) -> BatchRandom:
        """For the first clips."""
        return BatchRandom(self.generator, count)

    def uniform(self, name: str) -> Tensor:  # noqa: ARG002
        """(B,) in [0, 1)."""
        return torch.rand(self.count, generator=self.generator, dtype=torch.float64)

    def integers(self, name: str, count: int) -> Tensor:
        """(B,) on 0 … count-1."""
        return (self.uniform(name) * count).long()

    def normal(self, name: str, shape: Iterable[int]) -> Tensor:  # noqa: ARG002
        """(B, *shape) noise."""
        return torch.randn(self.count, *shape, generator=self.generator)


def train_toy(model: nn.Module, objective: MGCT, steps: int, seed: int, rate: Callable[[float], float]) -> nn.Module:
    """Steps of AdamW; the learning rate as a function of the part done. The running average of the weights."""
    generator = torch.Generator().manual_seed(seed)
    average = copy.deepcopy(model)
    parameters = [*model.parameters(), *objective.learned.parameters()]
    optimiser = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate(step / steps)
        clips = eight_modes(TOY_BATCH, generator)
        random: Any = BatchRandom(generator, TOY_BATCH)
        optimiser.zero_grad()
        objective.loss(model, clips, random).loss.mean().backward()
        optimiser.step()
        average_into(average, model, min(0.999, (1 + step) / (10 + step)))
        objective.after_step(model)
    return average


@torch.no_grad()
def measure_toy(network: nn.Module, name: str, calls: int, seed: int, count: int = 4096) -> float:
    """Energy distance × 1000 of what a sampler makes, against as many draws of the data."""
    generator = torch.Generator().manual_seed(1000 + seed)
    real = pack(eight_modes(count, generator))
    start = torch.randn(count, 4, generator=generator)

    def predict(x: Tensor, point: Point) -> Tensor:
        clips = unpack(x, SHAPES)
        goal = None if point.goal is None else torch.tensor([point.goal])
        return pack(network(clips.video, clips.audio, torch.tensor([point.timestep]), target_timestep=goal))

    def draw(_: int) -> Tensor:
        return torch.randn(count, 4, generator=generator)

    made = samplers.SAMPLERS[name].run(predict, start, SCHEDULE, calls, draw)
    return 1000 * energy_distance(made, real)


def toy(options: argparse.Namespace, record: Callable[[dict[str, Any]], None], known: set[tuple[Any, ...]]) -> None:
    """Every variant on the toy."""
    torch.set_num_threads(options.threads)
    for seed in range(options.seeds):
        wanted = [name for name in options.variants if ("toy", name, seed) not in known]
        if not wanted:
            continue
        torch.manual_seed(seed)
        start = MLP()
        stage_1 = MGCT(SCHEDULE, Transfer(), Consistency())
        average = train_toy(start, stage_1, options.steps, seed, lambda part: 1e-3 * min(1.0, 4 * (1 - part)))
        for name in wanted:
            began = time.perf_counter()
            model = copy.deepcopy(average)
            objective = stage_1
            if VARIANTS[name]:
                objective = MGCT(SCHEDULE, Transfer(max_steps=0), *objects_of(name))
                objective.start_stage_2(model, 0)
            steps = share_of_compute(name, options.steps, 1)
            network = train_toy(model, objective, steps, seed + 100, lambda part: 1e-3 * min(1.0, 2 * (1 - part)))
            for sampler in named_runs(name):
                for calls in CALLS:
                    if calls <= samplers.SAMPLERS[sampler].max_steps:
                        record(
                            {
                                "study": "toy",
                                "variant": name,
                                "seed": seed,
                                "sampler": sampler,
                                "calls": calls,
                                "energy": measure_toy(network, sampler, calls, seed),
                            }
                        )
            print(f"seed {seed}, {name}: {steps} steps, {time.perf_counter() - began:.0f} s", file=sys.stderr)


# ---------------------------------------------------------------------------------------------- micro and small


def run_training(folder: Path, config: dict[str, Any], arguments: list[str]) -> None:
    """`mgct train` with a configuration of our own; a run that was stopped goes on, one that is done is left."""
    if (folder / "done").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    resume = ["--resume"] if any((folder / "checkpoints").glob("step-*")) else []
    if resume:
        arguments = [word for word in arguments if not word.startswith("--init")]
    command = [sys.executable, "-m", "mgct.cli", "train", f"--config={file}", f"--out={folder}", *arguments, *resume]
    subprocess.run(command, check=True)
    (folder / "done").touch()


def config_of(options: argparse.Namespace, variant: str | None, seed: int) -> dict[str, Any]:
    """``configs/SIZE.yaml`` and what is laid over it, with a variant's second stage, or with none.

    A stage 1 that is trained here has the paper's windows.
    """
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs" / f"{options.command}.yaml").read_text())
    plan = yaml.safe_load((ROOT / "experiments" / "plan.yaml").read_text())
    if options.stage_1 is None:
        config["model"].update(plan["sizes"][options.command]["model"])
    for file in options.config:
        for name, settings in yaml.safe_load(file.read_text()).items():
            config[name] = {**config.get(name, {}), **settings} if isinstance(settings, dict) else settings
    config["data"] = f"world:{options.world}"
    config["monitor"] = {"gradients_every": 0, "samples_every": 0, "metric_every": 0}
    names = ("optimizer", "learning_rate", "warmup_steps")
    config["train"].update({name: getattr(options, name) for name in names}, seed=seed)
    clips = options.stage_1_clips if variant is None else options.stage_2_clips
    variant = variant or "mm-diffusion"
    config["train"]["steps"] = share_of_compute(variant, clips, config["train"]["batch_size"])
    for model in plan["models"].values():
        if model["variant"] == variant:
            config["train"].update(model.get("train", {}))
    return with_variant(config, variant)


def on_a_world(
    options: argparse.Namespace, record: Callable[[dict[str, Any]], None], known: set[tuple[Any, ...]]
) -> None:
    """Every variant on a world, from one stage 1: a model that is given, or one trained here."""
    from mgct import AVPipeline, ClipSpec
    from mgct.metrics.evaluate import RunningMetric
    from mgct.metrics.sources import open_source

    out: Path = options.out
    stage_1 = options.stage_1
    if stage_1 is None:
        run_training(out / options.world / "stage-1", config_of(options, None, 0), [])
        stage_1 = out / options.world / "stage-1" / "model"
    clip = ClipSpec(**config_of(options, None, 0)["clip"])
    study = options.world if options.command == "micro" else f"{options.command} {options.world}"
    metrics: list[RunningMetric] = []
    for seed in range(options.seeds):
        for variant in options.variants:
            folder = out / options.world / f"{variant}-{seed}"
            run_training(folder, config_of(options, variant, seed + 1), [f"--init={stage_1}"])
            pipe: Any = AVPipeline.from_pretrained(folder / "model")
            if options.precision == "bf16":
                pipe.cast(torch.bfloat16)
            for sampler in [*named_runs(variant), "sde-dpm-solver++"]:
                for calls, clip_x0, start in options.calls.get(sampler, ()):
                    name = f"{sampler}, clipped" if clip_x0 else sampler
                    name += f" from {start}" if start else ""
                    if (study, variant, seed, name, calls) in known:
                        continue
                    if not metrics:
                        real = open_source(f"world:{options.world}:{options.real}", clip, "test")
                        for protocol in options.protocols:
                            metrics.append(RunningMetric(real, protocol, options.num, num_real=options.real))
                    clips = pipe(
                        num_clips=options.num,
                        steps=calls,
                        sampler=sampler,
                        clip_x0=clip_x0,
                        start_timestep=start,
                        seed=seed,
                        batch_size=options.batch,
                        progress=False,
                    )
                    row = {"study": study, "variant": variant, "seed": seed, "sampler": name, "calls": calls}
                    for metric in metrics:
                        row.update(metric(clips, clip))
                    record(row)


# ---------------------------------------------------------------------------------------------- tables


def cell(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.3g}"
    return f"{mean:.3g} ± {statistics.stdev(values):.2g}"


def tables(rows: list[dict[str, Any]]) -> str:
    """A table per study and metric: variants and samplers down, network calls across."""
    found: dict[tuple[str, str], dict[tuple[str, str], dict[int, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in rows:
        for metric in ("energy", "FVD-compact", "FAD-compact", "FVD", "KVD", "FAD-SoundNet"):
            if metric in row:
                found[row["study"], metric][row["variant"], row["sampler"]][row["calls"]].append(row[metric])
    lines = []
    for (study, metric), table in found.items():
        lines += ["", f"| {study}: {metric} | sampler | " + " | ".join(map(str, CALLS)) + " |"]
        lines.append("|---|---|" + "---|" * len(CALLS))
        order = {name: index for index, name in enumerate(VARIANTS)}
        for (variant, sampler), by_calls in sorted(table.items(), key=lambda item: (order[item[0][0]], item[0][1])):
            cells = [cell(by_calls[calls]) if calls in by_calls else "" for calls in CALLS]
            lines.append(f"| {variant} | {sampler} | " + " | ".join(cells) + " |")
    return "\n".join(lines[1:])


def add_world_options(command: argparse.ArgumentParser, size: str) -> None:
    """The options of a study on a world."""
    command.add_argument("--world", default="landscape")
    overlay = f"laid over configs/{size}.yaml, as configs/velocity.yaml"
    command.add_argument("--config", type=Path, nargs="+", default=[], help=overlay)
    given = "a finished model to go on from, with the settings that it was trained with in --config"
    command.add_argument("--stage_1", metavar="MODEL", help=given)
    command.add_argument("--stage_1_clips", type=int, default=48_000)
    command.add_argument("--stage_2_clips", type=int, default=8_000, help="of plain training's compute")
    command.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw")
    command.add_argument("--learning_rate", type=float, default=1e-3 if size == "micro" else 3e-4)
    command.add_argument("--num", type=int, default=256 if size == "micro" else 128, help="clips that are made")
    command.add_argument("--real", type=int, default=1024, help="clips that they are compared with")
    command.add_argument("--batch", type=int, default=32 if size == "micro" else 8, help="clips made at once")
    command.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of sampling")
    command.add_argument("--protocols", nargs="+", default=["compact"], help="of evaluation: compact, open, …")
    command.add_argument("--warmup_steps", type=int, default=20)
    default = ["dpm-solver:20,20c", "dpm-solver++:4,8,20", "map:1,2,4,8", "consistency:1,2,4,8"]
    words = "network calls; with a c behind, x̂0 is clipped where the sampler does not by itself; with @700, begun there"
    command.add_argument("--calls", nargs="+", default=default, metavar="SAMPLER:CALLS,…", help=words)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("toy", "micro", "small"):
        command = commands.add_parser(name)
        if name != "toy":
            command.add_argument("out", type=Path, help="folder of the runs")
        command.add_argument("--variants", nargs="+", default=list(MAIN), choices=[*VARIANTS, "all"])
        command.add_argument("--seeds", type=int, default=3 if name == "micro" else 1)
        command.add_argument("--json", type=Path, help="file of results, added to")
        if name == "toy":
            command.add_argument("--steps", type=int, default=4000, help="stage 1, and as much compute again")
            command.add_argument("--threads", type=int, default=1)
        else:
            add_world_options(command, name)
    commands.add_parser("report").add_argument("results", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command != "report" and "all" in options.variants:
        options.variants = list(VARIANTS)
    if options.command in ("micro", "small"):
        pairs = (word.partition(":")[::2] for word in options.calls)
        options.calls = {sampler: [parse_calls(text) for text in calls.split(",")] for sampler, calls in pairs}
    return options


def parse_calls(text: str) -> tuple[int, bool | None, int | None]:
    """``CALLS[c][@START]`` → network calls, whether x̂0 is clipped, and where sampling starts."""
    calls, _, start = text.partition("@")
    return int(calls.removesuffix("c")), True if calls.endswith("c") else None, int(start) if start else None


def read_rows(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The measurements in some files."""
    return [json.loads(line) for file in files if file.is_file() for line in file.read_text().splitlines()]


def main() -> None:
    """Run a study and print its tables."""
    options = parse()
    if options.command == "report":
        print(tables(read_rows(options.results)))
        return
    file = options.json or (None if options.command == "toy" else options.out / "results.jsonl")
    rows = read_rows([file] if file else [])
    known: set[tuple[Any, ...]] = {(r["study"], r["variant"], r["seed"]) for r in rows if r["study"] == "toy"}
    known |= {(r["study"], r["variant"], r["seed"], r["sampler"], r["calls"]) for r in rows}

    def record(row: dict[str, Any]) -> None:
        rows.append(row)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")

    (toy if options.command == "toy" else on_a_world)(options, record, known)
    print(tables(rows))


if __name__ == "__main__":
    main()
