"""What a sampler and the noise level at which it starts are worth: a trained model's distance to its world.

    python benchmarks/start_level.py landscape world:landscape
    python benchmarks/start_level.py RUN world:dance --starts 999 700 --calls 12 --num 256

Protocol `compact`, generated clips of the same seed against clips never trained on.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

from mgct import AVPipeline
from mgct.metrics.evaluate import RunningMetric
from mgct.metrics.sources import open_source
from mgct.saved_models import find_pipeline

METRICS = ("FVD", "KVD", "FAD", "KAD")


def measure(
    model: str, data: str, names: list[str], calls: list[int], starts: list[int], num: int, num_real: int
) -> None:
    """Print a table of ``num`` clips by each sampler, number of calls and start, against ``num_real`` real ones."""
    pipe: Any = AVPipeline.from_pretrained(find_pipeline(model))
    real = open_source(f"{data}:{num_real}", pipe.clip, "test")
    metric = RunningMetric(real, num=num, num_real=num_real)
    print("| sampler | start | calls | " + " | ".join(f"{name}-compact" for name in METRICS) + " |")
    print("|---" * (3 + len(METRICS)) + "|")
    for sampler, count, start in itertools.product(names, calls, starts):
        how = {"sampler": sampler, "steps": count, "start_timestep": start, "batch_size": 32}
        found = metric(pipe(num_clips=num, seed=0, progress=False, **how), pipe.clip)
        cells = [f"{found[f'{name}-compact']:.3g}" for name in METRICS]
        print(f"| {sampler} | {start} | {count} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Read the options, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", help="real clips, a world without a number")
    parser.add_argument("--starts", type=int, nargs="+", default=[999, 900, 800, 700, 600, 500])
    parser.add_argument("--calls", type=int, nargs="+", default=[4, 12, 20])
    parser.add_argument("--samplers", nargs="+", default=["dpm-solver++"])
    parser.add_argument("--num", type=int, default=192)
    parser.add_argument("--real", type=int, default=1024)
    given = vars(parser.parse_args())
    names = ("model", "data", "samplers", "calls", "starts", "num", "real")
    measure(*(given[name] for name in names))


if __name__ == "__main__":
    main()
