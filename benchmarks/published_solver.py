"""A table of the paper with rows made by MM-Diffusion's published solver, error included, beside the right one.

    python benchmarks/published_solver.py table1 --models models.yaml --data world:landscape --out reproduced

Takes and writes what `mgct reproduce` does, and shares its clips and cards. The published DPM-Solver takes its
first-order step of the audio by the formula for data prediction, though the network predicts noise. Singlestep-3 ends
on such a step at 9, 10, 12 and 15 network calls and not at 20: on Gaussian data of standard deviation 0.3 the audio
then comes out with 0.0095 at 10 calls. It also tells the network its timestep truncated to an integer. The package's
`dpm-solver` does neither; these rows show what part of the paper's audio numbers is the solver's.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from mgct.commands.reproduce import read_models
from mgct.grids import Grid, log_snr_grid
from mgct.noise import NoiseSchedule
from mgct.reproduce.paper import TABLES, Sampling
from mgct.reproduce.run import reproduce_table
from mgct.reproduce.study import Settings, Study
from mgct.samplers import singlestep_orders


class PublishedSolver:
    """DPM-Solver-3, singlestep, as MM-Diffusion publishes it, for `AVPipeline` in place of a scheduler of diffusers.

    Each call of `step` is one network call. From s, with h = λ_t - λ_s, ε_s and a slope dε/dλ, it goes to
    x_t = (α_t/α_s) x - σ_t ((e^h - 1) ε_s + …); but the audio of a whole first-order step goes to
    x_t = (σ_t/σ_s) x - α_t (e^h - 1) ε_s, the error.

    Args:
        video_length: elements of one clip's video; the rest of the packed clip is audio.
        schedule: the network's.
    """

    init_noise_sigma = 1.0

    def __init__(self, video_length: int, schedule: NoiseSchedule | None = None) -> None:
        self.schedule = schedule or NoiseSchedule()
        self.video_length = video_length
        self.alphas_cumprod = self.schedule.alpha_bar
        self.config = {"prediction_type": "epsilon", "video_length": video_length}

    def set_timesteps(self, steps: int, device: torch.device | str = "cpu") -> None:
        """Begin a run of ``steps`` network calls."""
        self.grid: Grid = log_snr_grid(self.schedule, steps + 1)
        self.timesteps = torch.tensor([int(point.timestep) for point in self.grid[:-1]], device=device)
        self.places = [(order, k) for order in singlestep_orders(steps) for k in range(order)]
        self.calls = 0

    def scale_model_input(self, x: Tensor, timestep: Tensor) -> Tensor:  # noqa: ARG002 - what diffusers hands over
        """The clip as it is."""
        return x

    def step(self, predicted: Tensor, timestep: Tensor, x: Tensor) -> SimpleNamespace:  # noqa: ARG002
        """From the state x (B, D) and the noise predicted there to the next state, ``prev_sample``."""
        order, place = self.places[self.calls]
        s, here, t = self.grid[self.calls - place], self.grid[self.calls], self.grid[self.calls + 1]
        self.calls += 1
        if place == 0:
            self.start, self.at_start = x, predicted
            slope: Tensor | float = 0.0
        else:
            slope = (predicted - self.at_start) / (here.log_snr - s.log_snr)
        h = t.log_snr - s.log_snr
        second = math.expm1(h) * h / 2 if order == 2 else math.expm1(h) - h
        end = (t.alpha / s.alpha) * self.start - t.sigma * (math.expm1(h) * self.at_start + second * slope)
        if order == 1:
            wrong = (t.sigma / s.sigma) * self.start - t.alpha * math.expm1(h) * self.at_start
            end = torch.cat([end[:, : self.video_length], wrong[:, self.video_length :]], 1)
        return SimpleNamespace(prev_sample=end)


def main() -> None:
    """Read the command line and make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--models", type=Path, default=Path("models.yaml"))
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("reproduced"))
    parser.add_argument("--protocol", default="compact")
    parser.add_argument("--num", type=int)
    parser.add_argument("--calls", type=int, nargs="*")
    parser.add_argument("--paper_data", choices=["aist", "landscape"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    settings = Settings(options.protocol, options.num, options.seed, batch_size=options.batch_size)
    study = Study(read_models(options.models), options.out, settings, options.device)
    solver = PublishedSolver(math.prod(study.clip.video_shape))
    extra = [
        (None, Sampling(solver, calls, "published solver", clip_x0=False))
        for calls in options.calls or TABLES[options.table].calls
    ]
    reproduce_table(
        study,
        options.table,
        options.data,
        calls=options.calls,
        extra=extra,
        paper_data=options.paper_data,
        tell=print,
    )
    print((options.out / f"{options.table}.md").read_text())


if __name__ == "__main__":
    main()
