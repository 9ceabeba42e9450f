"""Error of every sampler against its network calls, on two problems whose score is known exactly.

    python benchmarks/sampling.py                 # all that needs no trained network: minutes
    python benchmarks/sampling.py --trained       # small networks trained here with the package's losses: minutes
    python benchmarks/sampling.py --upsampler RUN --data world:landscape:64   # one made by mgct train-upsampler

Gaussian: zero-mean data with standard deviation 0.5 (as video) and 0.3 (as audio). Every sampler is linear there, so
the standard deviation of what it makes is computed, not estimated: one column of x per independent draw. Error: the
larger relative error of the two standard deviations.

Mixture: two modes, (-0.6, -0.4) and (0.6, 0.4) of standard deviation 0.05 and 0.03 in (video, audio), so the two
modalities must agree on the mode. Error: mean over the modalities of the Wasserstein-1 distance between 2^15 samples
and the exact quantiles; in brackets the percentage of samples whose modalities disagree.

Told: the Gaussian problem again, when the network is told the timestep rounded or truncated to an integer.

Ending: dpm-solver++ on the mixture with its grid ending (a) at timestep 0 by a second-order step, (b) the same by a
first-order step, (c) clean from the last point but one, (d) clean from timestep 0.

Conditions: two correlated Gaussian numbers, the first given; slope and spread of the second.

Longer: an Ornstein-Uhlenbeck process in time, whose score is known, in windows of 8 frames; change from frame to frame
and from sample to sample where it is least and where it is greatest, in units of the truth.

Trained: eight coupled modes in 2 + 2 dimensions, an MLP trained by stage 1 and then by the combined loss; energy
distance × 1000 of 4,096 samples. It chose the consistency sampler's timesteps and its way back.

Upsampler: frames that it has not seen, made smaller and enlarged again; nothing is degraded.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from toy import SHAPES, eight_modes, energy_distance, sinusoids

from mgct import grids, losses, predictors, samplers
from mgct.checkpoint import read_checkpoint
from mgct.data.numbered import open_clips
from mgct.given import Given
from mgct.grids import Point
from mgct.noise import NoiseSchedule, x0_from_noise
from mgct.pipeline import AVPipeline
from mgct.predictors import Predict
from mgct.sampling_options import SamplingOptions
from mgct.types import AVSample, ClipSpec, concatenate, dequantise, pack, quantise_pixels, unpack
from mgct.unet import MultimodalUNet
from mgct.upsampler import UpsamplerUNet, ddim_grid, shrink, upsample

CALLS = (1, 2, 4, 6, 8, 9, 10, 12, 15, 20, 50)
STDS = (0.5, 0.3)
MODES, WIDTHS = torch.tensor([0.6, 0.4], dtype=torch.float64), torch.tensor([0.05, 0.03], dtype=torch.float64)
SCHEDULE = NoiseSchedule()
Run = Callable[[Predict, Tensor, int, Callable[[int], Tensor]], Tensor]


def gaussian_error(run: Run, calls: int) -> float:
    """Largest relative error of the standard deviation over the two modalities, without sampling error."""
    errors = []
    for std in STDS:

        def predict(x: Tensor, point: Point, std: float = std) -> Tensor:
            return x * point.sigma / (point.alpha**2 * std**2 + point.sigma**2)

        columns = calls + 1
        start = torch.zeros(1, columns, dtype=torch.float64)
        start[0, 0] = 1

        def draw(step: int, columns: int = columns) -> Tensor:
            noise = torch.zeros(1, columns, dtype=torch.float64)
            noise[0, step + 1] = 1
            return noise

        errors.append(abs(run(predict, start, calls, draw).norm().item() / std - 1))
    return max(errors)


def mixture_noise(x: Tensor, point: Point) -> Tensor:
    """The exact ε of the mixture for x (B, 2): that of each mode, weighted by the mode's posterior probability."""
    variance = point.alpha**2 * WIDTHS**2 + point.sigma**2
    sign = torch.tanh((x * point.alpha * MODES / variance).sum(1, keepdim=True))
    return point.sigma * (x - point.alpha * MODES * sign) / variance


def mixture_error(run: Run, calls: int, samples: int = 2**15) -> tuple[float, float]:
    """Wasserstein-1 distance (mean over the modalities) and the share of samples whose modalities disagree."""
    normal = torch.distributions.Normal(0.0, 1.0)
    generator = torch.Generator().manual_seed(0)
    sobol = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(samples, dtype=torch.float64)
    start = normal.icdf(sobol.clamp(1e-9, 1 - 1e-9))
    out = run(mixture_noise, start, calls, lambda _: torch.randn(start.shape, generator=generator, dtype=torch.float64))
    half = normal.icdf((torch.arange(samples // 2, dtype=torch.float64) + 0.5) / (samples // 2))[:, None] * WIDTHS
    quantiles = torch.cat([half - MODES, half + MODES]).sort(0).values
    distance = (out.sort(0).values - quantiles).abs().mean().item()
    return distance, (out.prod(1) < 0).double().mean().item()


def named(name: str) -> Run:
    """A sampler of the package, without clipping of x̂0."""
    return lambda predict, x, calls, draw: samplers.SAMPLERS[name].run(predict, x, SCHEDULE, calls, draw)


def allowed(name: str, calls: int) -> bool:
    """Whether the sampler takes so many calls."""
    return calls <= samplers.SAMPLERS[name].max_steps


def table(title: str, cell: Callable[[str, int], str]) -> str:
    """A Markdown table, samplers down and calls across; those that want more than a denoiser are left out."""
    lines = [f"| {title} | " + " | ".join(str(calls) for calls in CALLS) + " |", "|---|" + "---|" * len(CALLS)]
    for name in (name for name, sampler in samplers.SAMPLERS.items() if not sampler.jumps):
        cells = [cell(name, calls) if allowed(name, calls) else "" for calls in CALLS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mixture_cell(name: str, calls: int) -> str:
    """One entry of the mixture's table."""
    distance, disagree = mixture_error(named(name), calls)
    return f"{distance:.4f} ({100 * disagree:.1f})"


def told_error(name: str, calls: int, rounding: Callable[[float], float]) -> float:
    """`gaussian_error` when the network is told another timestep than that of its input."""

    def run(predict: Predict, x: Tensor, calls: int, draw: Callable[[int], Tensor]) -> Tensor:
        def told(x: Tensor, point: Point) -> Tensor:
            timestep = torch.tensor([float(rounding(point.timestep))])
            alpha, sigma = SCHEDULE.level(timestep)
            return predict(x, Point(timestep.item(), alpha.item(), sigma.item()))

        return named(name)(told, x, calls, draw)

    return gaussian_error(run, calls)


def told_table() -> str:
    """Error by what the network is told."""
    columns = [(name, calls) for name in ("dpm-solver++", "unipc") for calls in (12, 20, 50, 200)]
    titles = [f"{name} {calls}" for name, calls in columns]
    lines = ["| told | " + " | ".join(titles) + " |", "|---|" + "---|" * len(columns)]
    for label, rounding in (("as it is", float), ("rounded", round), ("truncated", math.floor)):
        cells = [f"{told_error(name, calls, rounding):.1e}" for name, calls in columns]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ending_table() -> str:
    """Mixture error of dpm-solver++ by where and how its grid ends."""

    def at_zero_by_first_order(predict: Predict, x: Tensor, calls: int, _: samplers.Noise) -> Tensor:
        *start, before, last = grids.log_snr_grid(SCHEDULE, calls + 1)
        x = samplers.dpm_solver_pp(predict, x, [*start, before]) if start else x
        return samplers.ddim(predict, x, [before, last])

    def second_order(predict: Predict, x: Tensor, calls: int, _: samplers.Noise) -> Tensor:
        return samplers.dpm_solver_pp(predict, x, grids.log_snr_grid(SCHEDULE, calls + 1))

    def clean_from_last_but_one(predict: Predict, x: Tensor, calls: int, _: samplers.Noise) -> Tensor:
        return samplers.dpm_solver_pp(predict, x, grids.map_grid(SCHEDULE, calls))

    def clean_from_zero(predict: Predict, x: Tensor, calls: int, _: samplers.Noise) -> Tensor:
        return samplers.dpm_solver_pp(predict, x, [*grids.log_snr_grid(SCHEDULE, calls), grids.CLEAN])

    runs = {"(a)": second_order, "(b)": at_zero_by_first_order, "(c)": clean_from_last_but_one, "(d)": clean_from_zero}
    calls = (4, 6, 8, 10, 12, 15, 20, 50)
    lines = ["| dpm-solver++ | " + " | ".join(map(str, calls)) + " |", "|---|" + "---|" * len(calls)]
    for name, run in runs.items():
        lines.append(f"| {name} | " + " | ".join(f"{mixture_error(run, n)[0]:.4f}" for n in calls) + " |")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------- conditions


def conditional_line(method: str, name: str, calls: int, scale: float, rho: float = 0.8, count: int = 2000) -> str:
    """Slope and spread of a generated number on the given one, correlated Gaussians of deviation 0.5."""
    covariance = 0.25 * torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)

    def predict(x: Tensor, point: Point) -> Tensor:
        times = point.told or (point.timestep, point.timestep)
        alpha, sigma = (torch.diag(value) for value in SCHEDULE.level(torch.tensor(times, dtype=torch.float64)))
        return x @ (alpha @ covariance @ alpha + sigma @ sigma).inverse() @ sigma

    generator = torch.Generator().manual_seed(0)

    def draw(_: int = 0) -> Tensor:
        return torch.randn(count, 2, generator=generator, dtype=torch.float64)

    x, given = draw(), 0.5 * draw()
    known = predictors.Known(given, torch.tensor([True, False]), x)
    if method == "mm-diffusion":
        out = samplers.guided_ddpm(predict, x, grids.integer_grid(SCHEDULE, calls), draw, known, scale)
    else:
        ends = (grids.points(SCHEDULE, torch.tensor([0.0]))[0], grids.points(SCHEDULE, torch.tensor([999.0]))[0])
        wrapped = {
            "conditional": lambda: predictors.conditioned(predict, known, False, ends),
            "replacement": lambda: predictors.replaced(predict, known),
            "guided": lambda: predictors.guided(predict, known, scale),
        }[method]()
        out = samplers.SAMPLERS[name].run(wrapped, x, SCHEDULE, calls, draw)
    out = known.impose(out, grids.CLEAN)
    slope = ((out[:, 1] * out[:, 0]).sum() / (out[:, 0] ** 2).sum()).item()
    return f"{slope:.2f}, {(out[:, 1] - slope * out[:, 0]).std().item():.2f}"


def conditional_table() -> str:
    """The conditional methods on correlated Gaussians; the truth is 0.80, 0.30, in the last row 0.40, 0.46."""
    lines = [
        "| truth 0.80, 0.30 | conditional | replacement | guided, 8 | mm-diffusion, 16 | mm-diffusion, 61 |",
        "|---|---|---|---|---|---|",
    ]
    plan = [("dpm-solver++", 12), ("dpm-solver++", 20), ("unipc", 12), ("dpm-solver", 20), ("consistency", 4)]
    for name, calls in [*plan, ("ddpm", 200), ("ddpm", 1000)]:
        cells = [conditional_line(method, name, calls, 8.0) for method in ("conditional", "replacement", "guided")]
        ancestral = name == "ddpm"
        cells += [conditional_line("mm-diffusion", name, calls, s) if ancestral else "" for s in (16.0, 61.4)]
        lines.append(f"| {name}, {calls} calls | " + " | ".join(cells) + " |")
    weak = [
        conditional_line(method, "dpm-solver++", 20, 8.0, rho=0.4)
        for method in ("conditional", "replacement", "guided")
    ]
    lines.append("| dpm-solver++, 20 calls, truth 0.40, 0.46 | " + " | ".join(weak) + " |  |  |")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------- longer clips

WINDOW = ClipSpec(frames=8, fps=10, size=1, sample_rate_hz=160)


class OrnsteinUhlenbeck(nn.Module):
    """The exact ε of a stationary process for one window: places n apart correlate as exp(-n / length)."""

    dtype, device = torch.float64, torch.device("cpu")
    std, video_length, audio_length = 0.4, 4.0, 64.0

    def __init__(self) -> None:
        super().__init__()
        self.video = self.eigen(WINDOW.frames, self.video_length)
        self.audio = self.eigen(WINDOW.audio_samples, self.audio_length)

    def eigen(self, count: int, length: float) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of the covariance of ``count`` places."""
        place = torch.arange(count, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(self.std**2 * torch.exp(-(place[:, None] - place).abs() / length))
        return values, vectors

    def draw_window_shifts(self, *_: object) -> int:
        """There are no attention windows."""
        return 0

    def forward(self, video: Tensor, audio: Tensor, timestep: Tensor, window_shift: int) -> AVSample:  # noqa: ARG002
        """ε of (B, F, 3, 1, 1) and (B, 1, L)."""
        alpha, sigma = (float(rate[0]) for rate in SCHEDULE.level(timestep[:1]))

        def noise(x: Tensor, eigen: tuple[Tensor, Tensor]) -> Tensor:
            values, vectors = eigen
            return (x @ vectors) * (sigma / (alpha**2 * values + sigma**2)) @ vectors.T

        video = noise(video.transpose(1, -1), self.video).transpose(1, -1)
        return AVSample(video=video, audio=noise(audio, self.audio))

    def extremes(self, clips: AVSample) -> list[str]:
        """Least and greatest root mean square change between neighbours over all places, in units of the truth."""
        found = []
        for part, axis, length in ((clips.video, 1, self.video_length), (clips.audio, 2, self.audio_length)):
            true = self.std * math.sqrt(2 - 2 * math.exp(-1 / length))
            others = [other for other in range(part.dim()) if other != axis]
            change = part.diff(dim=axis).square().mean(others).sqrt() / true
            found.append(f"{change.min().item():.2f} to {change.max().item():.2f}")
        return found


def longer_table(count: int = 3000) -> str:
    """Clips of 20 frames out of windows of 8, made in several ways."""
    pipe = AVPipeline(MultimodalUNet(model_channels=8, channel_mult=(1,), num_res_blocks=1, norm_num_groups=8), WINDOW)
    process = pipe.unet = OrnsteinUhlenbeck()
    how: dict[str, Any] = {"steps": 20, "clip_x0": False, "batch_size": count, "progress": False}
    seconds, half = 2.0, WINDOW.frames // 2

    def gathered(given: Given, seconds: float, seed: int) -> AVSample:
        options = SamplingOptions(**how, seed=seed)
        return concatenate([clips for _, clips in pipe.stream(range(count), options, seconds=seconds, given=given)])

    start = pipe(num_clips=count, **how)
    chained = start
    for join in range(2):
        tail = AVSample(video=chained.video[:, -half:], audio=chained.audio[:, :, -WINDOW.audio_samples // 2 :])
        after = gathered(Given(tail), WINDOW.seconds, seed=join + 1)
        chained = AVSample(
            video=torch.cat([chained.video, after.video[:, half:]], 1),
            audio=torch.cat([chained.audio, after.audio[:, :, WINDOW.audio_samples // 2 :]], 2),
        )
    rows = {
        "one window": start,
        "20 frames, denoised as one (as built)": pipe(num_clips=count, seconds=seconds, **how),
        "continued: start imposed to its end": gathered(Given(start), seconds, seed=0),
        "16 frames, window after window, each imposed on the next": chained,
        "continued: last quarter of the start cross-faded (as built)": pipe.extend(start, seconds, **how),
    }
    lines = [f"| {name} | " + " | ".join(process.extremes(clips)) + " |" for name, clips in rows.items()]
    return "\n".join(["| | picture | sound |", "|---|---|---|", *lines])


# ---------------------------------------------------------------------------------------------- upsampling


def gradient_energy(images: Tensor) -> float:
    """Mean squared difference of neighbouring pixels: how much fine detail there is."""
    return sum(images.diff(dim=axis).square().mean().item() for axis in (-2, -1))


def upsampler_table(run: Path, data: str, count: int, picture: Path | None) -> str:
    """An upsampler on test frames of ``data`` against enlarging by interpolation; the frames as a PNG, if wanted."""
    clip = ClipSpec(**read_checkpoint(run).state["config"]["clip"])
    unet = UpsamplerUNet.from_pretrained(run / "model").eval()
    stored = open_clips(data, clip, "test", seed=0)
    numbers = range(min(count, len(stored)))
    nothing = [0] * len(numbers)
    large = dequantise(stored.batch(numbers, numbers, nothing, [False] * len(numbers)).clips).video[:, :1]
    small = shrink(large[:, 0], unet.config["scale"])
    first = ddim_grid(SCHEDULE, 25)[0]
    noise = torch.randn(large[:, 0].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = unet(noise, small, torch.full((len(noise),), first.timestep))[:, :3]
    made = {f"{how} interpolation": F.interpolate(small, large.shape[-2:], mode=how) for how in ("bilinear", "bicubic")}
    made["upsampler, x̂0 of its first call"] = x0_from_noise(noise, told, first.level(noise))
    clips = AVSample(video=small[:, None], audio=torch.zeros(len(small), 1, 1))
    made["upsampler, DDIM in 25 calls"] = upsample(unet, clips, SCHEDULE).video[:, 0]
    lines = ["| | mean squared error | of the frame's colour | fine detail, share of the truth |", "|---|---|---|---|"]
    for name, images in made.items():
        error = images.clamp(-1, 1) - large[:, 0]
        detail = gradient_energy(images.clamp(-1, 1)) / gradient_energy(large)
        colour = error.mean((2, 3)).square().mean().item()
        lines.append(f"| {name} | {error.square().mean().item():.4f} | {colour:.1e} | {detail:.2f} |")
    if picture is not None:
        shown = [F.interpolate(small, large.shape[-2:]), made["bilinear interpolation"]]
        shown += [made["upsampler, DDIM in 25 calls"], large[:, 0]]
        rows = [F.pad(images[:8], (1, 1, 1, 1), value=1.0).permute(1, 2, 0, 3).flatten(2) for images in shown]
        pixels = quantise_pixels(torch.cat(rows, 1)).permute(1, 2, 0)
        Image.fromarray(pixels.repeat_interleave(2, 0).repeat_interleave(2, 1).numpy()).save(picture, optimize=True)
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------- trained networks


class MLP(nn.Module):
    """ε_θ on the clips of `toy`, called as `MultimodalUNet`."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        widths = [4 + 64, width, width, width]
        hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 4))

    def forward(self, video: Tensor, audio: Tensor, timestep: Tensor, window_shift: object = None) -> AVSample:  # noqa: ARG002
        """Predicted noise."""
        clips = AVSample(video=video, audio=audio)
        out = self.layers(torch.cat([pack(clips), sinusoids(timestep, len(video))], 1))
        return unpack(out, SHAPES)


def trained(weight: losses.Weight, steps: int) -> nn.Module:
    """Half of the steps by the multimodal loss, half by the mean of it and the consistency loss (N = 50)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = MLP()
    average = copy.deepcopy(model)
    target = model
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    grid = torch.linspace(0, SCHEDULE.num_timesteps - 1, 50)
    for step in range(steps):
        if step == steps // 2:
            target = copy.deepcopy(model)
        optimiser.param_groups[0]["lr"] = 1e-3 * min(1.0, 4 * (1 - step / steps))
        clips = eight_modes(256, generator)
        noise = clips.map(lambda part: torch.randn(part.shape, generator=generator))
        timestep = torch.randint(SCHEDULE.num_timesteps, (256,), generator=generator)
        loss = losses.multimodal_loss(model, clips, noise, timestep, SCHEDULE).loss.mean()
        if step >= steps // 2:
            pair = torch.randint(len(grid) - 1, (256,), generator=generator)
            along = losses.consistency_loss(
                model,
                target,
                clips,
                noise,
                grid[pair],
                grid[pair + 1],
                SCHEDULE,
                predict=lambda x, t, target=target: target(x.video, x.audio, t),
                weight=weight,
            )
            loss = 0.5 * loss + 0.5 * along.loss.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(now, 0.001)
            for mean, now in zip(target.parameters(), model.parameters(), strict=True):
                if mean is not now:
                    mean.lerp_(now, 0.05)
    return average


def down_to(last: float, calls: int) -> grids.Grid:
    """Points uniform in log-SNR from T-1 to timestep ``last``, then the clean end."""
    ends = SCHEDULE.log_snr(torch.tensor([SCHEDULE.num_timesteps - 1.0, last])).tolist()
    timesteps = SCHEDULE.timestep_at(torch.linspace(*ends, calls, dtype=torch.float64))
    return [*grids.points(SCHEDULE, timesteps), grids.CLEAN]


def _run_consistency(
    grid: Callable[[int], grids.Grid], renoise: bool, predict: Predict, x: Tensor, calls: int, draw: samplers.Noise
) -> Tensor:
    return samplers.consistency(predict, x, grid(calls), draw if renoise else None)


def trained_table(steps: int) -> str:
    """Consistency sampling with several timesteps and both ways back, and the ODE solvers."""
    calls = (1, 2, 3, 4, 6, 8)
    choices: dict[str, Callable[[int], grids.Grid]] = {
        "uniform in t": lambda n: [*grids.time_grid(SCHEDULE, n + 1)[:-1], grids.CLEAN],
        "log-SNR": lambda n: grids.map_grid(SCHEDULE, n),
        "log-SNR to t = 30": lambda n: down_to(30, n),
        "log-SNR to t = 100": lambda n: down_to(100, n),
        "log-SNR to t = 300": lambda n: down_to(300, n),
        "as chosen": lambda n: grids.consistency_grid(SCHEDULE, n),
    }
    lines = []
    for title, weight in (("λ = 1", losses.UnitWeight()), ("λ in noise units", losses.NoiseUnits())):
        network = trained(weight, steps)

        def predict(x: Tensor, point: Point, network: nn.Module = network) -> Tensor:
            clips = unpack(x, SHAPES)
            return pack(network(clips.video, clips.audio, torch.tensor([point.timestep])))

        real = pack(eight_modes(4096, torch.Generator().manual_seed(99)))
        lines += ["", f"| {title}, calls | " + " | ".join(map(str, calls)) + " |", "|---|" + "---|" * len(calls)]
        runs: dict[str, Run] = {}
        for name, grid in choices.items():
            for back, renoise in (("noise", True), ("ε̂", False)):
                runs[f"consistency, {name}, {back}"] = partial(_run_consistency, grid, renoise)
        runs |= {name: named(name) for name in ("dpm-solver", "dpm-solver++", "unipc")}
        for name, run in runs.items():
            cells = []
            for n in calls:
                generator = torch.Generator().manual_seed(5)
                start = torch.randn(4096, 4, generator=generator)
                with torch.no_grad():
                    out = run(predict, start, n, lambda _, g=generator: torch.randn(4096, 4, generator=g))
                cells.append(f"{1000 * energy_distance(out, real):.1f}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines[1:])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", action="store_true", help="train two small networks and sample them instead")
    parser.add_argument("--steps", type=int, default=16_000, help="training steps of each, both stages together")
    parser.add_argument("--upsampler", type=Path, help="run folder of an upsampler to measure instead")
    parser.add_argument("--data", default="world:landscape:64", help="what it enlarges")
    parser.add_argument("--picture", type=Path, help="PNG of frames: small, bilinear, upsampler, truth")
    arguments = parser.parse_args()
    if arguments.trained:
        print(trained_table(arguments.steps))
        return
    if arguments.upsampler:
        print(upsampler_table(arguments.upsampler, arguments.data, 64, arguments.picture))
        return
    print(table("Gaussian, calls", lambda name, calls: f"{gaussian_error(named(name), calls):.1e}"))
    print("\n" + table("Mixture, calls", mixture_cell))
    for other in (ending_table, told_table, conditional_table, longer_table):
        print("\n" + other())


if __name__ == "__main__":
    main()
