"""How many clips a second the procedural worlds draw.

python benchmarks/worlds.py                                  # this machine's CPU, torch's threads
python benchmarks/worlds.py --processes 2                    # one thread each, as the workers of a loader have it
python benchmarks/worlds.py --device cuda --batch 1024
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from mgct.data.worlds import World, get_world, world_names
from mgct.types import ClipSpec

CLIPS = {
    "micro": ClipSpec(frames=8, fps=10, size=16, sample_rate_hz=2560),
    "small": ClipSpec(frames=16, fps=10, size=64, sample_rate_hz=16000),
    "large": ClipSpec(frames=16, fps=10, size=128, sample_rate_hz=16000),
}


def clips_per_second(world: World, clip: ClipSpec, batch: int, device: str, least_s: float) -> tuple[float, float]:
    """Clips a second of wall time, and CPU milliseconds a clip, over at least ``least_s`` seconds."""

    def draw(first: int) -> None:
        world.render(range(first, first + batch), clip, device=device)
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    draw(0)
    done, wall_s, cpu_s = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall_s < least_s:
        done += batch
        draw(done)
    return done / (time.perf_counter() - wall_s), 1000 * (time.process_time() - cpu_s) / done


def one_of_many(name: str, label: str, batch: int, least_s: float) -> tuple[float, float]:
    """What one process measures on one thread while the others do the same."""
    torch.set_num_threads(1)
    return clips_per_second(get_world(name), CLIPS[label], batch, "cpu", least_s)


def main() -> None:
    """Read the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=8.0, help="measured time per row")
    parser.add_argument("--processes", type=int, default=0, help="CPU processes of one thread each; 0: this one alone")
    parser.add_argument("--clips", nargs="*", choices=list(CLIPS), default=["micro", "small"])
    options = parser.parse_args()
    if options.processes and options.device != "cpu":
        parser.error("--processes is for the CPU")
    if options.device.startswith("cuda"):
        where = torch.cuda.get_device_name()
    elif options.processes:
        where = f"{options.processes} CPU processes of one thread"
    else:
        where = f"{torch.get_num_threads()} CPU threads"
    print(f"{where}, torch {torch.__version__}, batches of {options.batch}")
    print(f"{'world':<10} {'clip':<6} {'clips/s':>9} {'CPU ms/clip':>12}")
    for name in world_names():
        for label in options.clips:
            if options.processes:
                with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
                    jobs = [
                        pool.submit(one_of_many, name, label, options.batch, options.seconds)
                        for _ in range(options.processes)
                    ]
                    rates, costs = zip(*(job.result() for job in jobs), strict=True)
                rate, cpu_ms = sum(rates), sum(costs) / len(costs)
            else:
                rate, cpu_ms = clips_per_second(
                    get_world(name), CLIPS[label], options.batch, options.device, options.seconds
                )
            print(f"{name:<10} {label:<6} {rate:>9.1f} {cpu_ms:>12.2f}")


if __name__ == "__main__":
    main()
