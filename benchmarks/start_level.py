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
from mgct.commands.sample import find_pipeline
from mgct.metrics.evaluate import RunningMetric
from mgct.metrics.sources import open_source


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
    options = parser.parse_args()
    pipe: Any = AVPipeline.from_pretrained(find_pipeline(options.model))
    metric = RunningMetric(
        open_source(f"{options.data}:{options.real}", pipe.clip, "test"), num=options.num, num_real=options.real
    )
    print(
        "| sampler | start | calls | FVD-compact | KVD-compact | FAD-compact | KAD-compact |\n|---|---|---|---|---|---|---|"
    )
    for sampler, calls, start in itertools.product(options.samplers, options.calls, options.starts):
        how = {"sampler": sampler, "steps": calls, "start_timestep": start, "batch_size": 32}
        found = metric(pipe(num_clips=options.num, seed=0, progress=False, **how), pipe.clip)
        cells = [f"{found[f'{name}-compact']:.3g}" for name in ("FVD", "KVD", "FAD", "KAD")]
        print(f"| {sampler} | {start} | {calls} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
