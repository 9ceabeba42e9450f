"""Laws of the samplers on problems whose score is known, and agreement with the reference's recorded loops."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import load_file

from mgct import grids, predictors, samplers
from mgct.given import GUIDANCE_SCALE
from mgct.grids import CLEAN, Point
from mgct.noise import NoiseSchedule, consistency_coefficients
from mgct.predictors import Known
from mgct.samplers import SAMPLERS, recommended_samplers
from mgct.types import AVSample, pack, unpack

from .conftest import FIXTURES

SCHEDULE = NoiseSchedule()
STDS = (0.5, 0.3)


def gaussian_noise(x: torch.Tensor, point: Point) -> torch.Tensor:
    """The exact ε of zero-mean Gaussian data, columns of the stds in turn."""
    std = torch.tensor(STDS, dtype=x.dtype).repeat(x.shape[1] // len(STDS))
    return x * point.sigma / (point.alpha**2 * std**2 + point.sigma**2)


def exact_gaussian(x: torch.Tensor, start: Point, end: Point) -> torch.Tensor:
    """Where the probability-flow ODE carries x from start to end."""
    std = torch.tensor(STDS, dtype=x.dtype).repeat(x.shape[1] // len(STDS))

    def spread(point):
        return (point.alpha**2 * std**2 + point.sigma**2).sqrt()

    return x * spread(end) / spread(start)


class Counted:
    """A predictor that remembers the timesteps of its calls."""

    def __init__(self, predict):
        self.predict, self.timesteps = predict, []

    def __call__(self, x, point):
        self.timesteps.append(point.timestep)
        return self.predict(x, point)


# ---------------------------------------------------------------------------------------------- the reference


def packed(tensors, name):
    return pack(AVSample(video=tensors[f"{name}.video"], audio=tensors[f"{name}.audio"]))


def by_modality(x, video_length, video, audio):
    return torch.cat([video(x[:, :video_length]), audio(x[:, video_length:])], 1)


@pytest.fixture(scope="module")
def solver_fixture():
    return load_file(FIXTURES / "dpm_solver.safetensors")


def reference_model(name, video_length):
    """The fixture's stand-ins; like the reference they are told the timestep rounded down to an integer."""

    def gauss(x, point):
        alpha_bar = SCHEDULE.alpha_bar[int(point.timestep)]

        def scaled(std):
            return lambda part: part * torch.sqrt(1 - alpha_bar) / (alpha_bar * std**2 + 1 - alpha_bar)

        return by_modality(x, video_length, scaled(STDS[0]), scaled(STDS[1]))

    def bounded(x, point):
        time = int(point.timestep) / 1000
        return by_modality(
            x, video_length, lambda v: torch.tanh(0.3 * v + 0.01 * time), lambda a: torch.sin(0.5 * a) * time
        )

    return gauss if name.startswith("gauss") else bounded


@pytest.mark.parametrize(
    ("problem", "steps"), [("", 9), ("", 10), ("", 12), ("", 15), ("", 20), ("gauss_", 10), ("gauss_", 20)]
)
def test_dpm_solver_is_the_reference_with_its_audio_corrected(solver_fixture, problem, steps):
    name = f"{problem}single3_logsnr_{steps}"
    x = packed(solver_fixture, "x_T").double()
    predict = Counted(reference_model(name, solver_fixture["x_T.video"].numel()))
    out = samplers.dpm_solver(predict, x, grids.log_snr_grid(SCHEDULE, steps + 1))
    torch.testing.assert_close(out, packed(solver_fixture, name), atol=1e-9, rtol=0)
    told = solver_fixture[f"{name}.model_timestep"].tolist()
    assert [int(timestep) for timestep in predict.timesteps] == told


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("problem", ["", "gauss_"])
def test_dpm_solver_pp_is_the_reference(solver_fixture, problem, steps):
    name = f"{problem}pp_multi2_time_{steps}"
    predict = reference_model(name, solver_fixture["x_T.video"].numel())
    grid = grids.time_grid(SCHEDULE, steps + 1)
    out = samplers.dpm_solver_pp(predict, packed(solver_fixture, "x_T").double(), grid)
    torch.testing.assert_close(out, packed(solver_fixture, name), atol=1e-9, rtol=0)


@pytest.mark.parametrize("case", ["ddim_r_ddim10", "ddim_r_10", "ddim_eta05_r_ddim10", "ddpm_r_10", "ddpm_r_ddim10"])
def test_ddpm_and_ddim_are_the_reference(case):
    fixture = load_file(FIXTURES / "diffusion_loops.safetensors")
    grid = [*grids.points(SCHEDULE, fixture[f"{case}.timestep_map"].flip(0)), CLEAN]
    predict = predictors.clipped(reference_model("bounded", fixture[f"{case}.x_T.video"].numel()))
    x = packed(fixture, f"{case}.x_T")

    def noise(step):
        video, audio = fixture[f"{case}.noise.video"][step], fixture[f"{case}.noise.audio"][step]
        return pack(AVSample(video=video, audio=audio))

    if case.startswith("ddpm"):
        out = samplers.ddpm(predict, x, grid, noise)
    elif "eta05" in case:
        out = samplers.ddim(predict, x, grid, noise, eta=0.5)
    else:
        out = samplers.ddim(predict, x, grid)
    torch.testing.assert_close(out, packed(fixture, f"{case}.final"), atol=1e-5, rtol=0)
    if case.endswith("r_10"):
        assert grid == grids.integer_grid(SCHEDULE, 10)


def coupled_model(shapes):
    """The conditional fixture's stand-in, in which each modality's noise depends on the other's input."""

    def predict(x, point):
        clips = unpack(x, shapes)
        time = point.timestep / 1000
        (mv, ma), (sv, sa) = (
            [f(part.flatten(1)).mean(1) for part in (clips.video, clips.audio)] for f in (lambda p: p, lambda p: p**2)
        )
        mv, sv = mv.reshape(-1, 1, 1), sv.reshape(-1, 1, 1)
        ma, sa = (m.reshape(-1, 1, 1, 1, 1) for m in (ma, sa))
        video = torch.tanh(0.3 * clips.video + 0.5 * ma + 0.2 * sa + 0.01 * time)
        audio = torch.sin(0.5 * clips.audio + 0.4 * mv - 0.1 * sv) * (0.5 + 0.5 * time)
        return pack(AVSample(video=video, audio=audio))

    return predict


@pytest.mark.parametrize("case", ["replace_v2a", "replace_a2v", "guided_v2a_scale3000", "guided_a2v_fp16flag"])
def test_conditional_ddpm_is_the_reference(case):
    fixture = load_file(FIXTURES / "conditional.safetensors")
    condition = AVSample(video=fixture["condition.video"], audio=fixture["condition.audio"])
    shapes = condition.map(lambda part: part.shape[1:])
    given_video = "v2a" in case
    mask = condition.map(torch.zeros_like)
    (mask.video if given_video else mask.audio).fill_(1)
    mask = pack(mask)[0].bool()
    x = packed(fixture, f"{case}.x_T")
    known = Known(pack(condition), mask, x)

    def noise(step):
        recorded = [fixture.get(f"{case}.noise.{what}") for what in ("video", "audio")]
        parts = [
            torch.zeros_like(part) if tape is None else tape[step]
            for tape, part in zip(recorded, (condition.video, condition.audio), strict=True)
        ]
        return pack(AVSample(*parts))

    predict = predictors.clipped(coupled_model(shapes))
    grid = grids.integer_grid(SCHEDULE, 10)
    if case.startswith("replace"):
        out = samplers.ddpm(predictors.replaced(predict, known), x, grid, noise)
    else:
        batch, elements = len(x), int((~mask).sum())
        reference_scale = 3000.0 if "3000" in case else 0.001 * 2**20
        out = samplers.guided_ddpm(predict, x, grid, noise, known, reference_scale / (batch * elements))
    torch.testing.assert_close(out[:, ~mask], fixture[f"{case}.final"].flatten(1), atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------------- laws


def run_to_the_end(solver, steps):
    """The exact Gaussian problem from T-1 to timestep 0 (solvers of the ODE): the result, and what it should be."""
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    grid = grids.log_snr_grid(SCHEDULE, steps + 1)
    return solver(gaussian_noise, x, grid), exact_gaussian(x, grid[0], grid[-1])


@pytest.mark.parametrize(
    ("solver", "order"),
    [(samplers.ddim, 1), (samplers.dpm_solver_pp, 2), (samplers.unipc, 3), (samplers.dpm_solver, 3)],
)
def test_order_of_convergence(solver, order):
    """UniPC with two points and its corrector is of order 3."""
    errors = []
    for steps in (40, 80, 160):
        out, exact = run_to_the_end(solver, steps)
        errors.append((out - exact).abs().max().item())
    rates = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(order - 0.25 < rate < order + 0.6 for rate in rates), (errors, rates)


@pytest.mark.parametrize("calls", [3, 8, 12])
def test_sde_dpm_solver_pp_is_that_of_diffusers(calls):
    """On its noise levels and with its noise; diffusers ends on first order where we do, told to by its settings."""
    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", lower_order_final=False)
    scheduler.set_timesteps(calls)
    grid = grids.log_snr_grid_to_clean(SCHEDULE, calls)
    scheduler.sigmas = torch.tensor([point.sigma / point.alpha for point in grid], dtype=torch.float64)
    scheduler.timesteps = torch.arange(calls)
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(3, 2, dtype=torch.float64, generator=draw)
    noise = torch.randn(calls, 3, 2, dtype=torch.float64, generator=draw)
    theirs = start
    for step, point in enumerate(grid[:-1]):
        theirs = scheduler.step(gaussian_noise(theirs, point), step, theirs, variance_noise=noise[step]).prev_sample
    ours = SAMPLERS["sde-dpm-solver++"].run(gaussian_noise, start, SCHEDULE, calls, lambda step: noise[step])
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def standard_deviation(name, std, steps):
    """Of what a sampler makes of Gaussian data with the exact score: linear, so one column per independent draw."""

    def predict(x, point):
        return x * point.sigma / (point.alpha**2 * std**2 + point.sigma**2)

    def unit(column):
        return torch.nn.functional.one_hot(torch.tensor([column]), steps + 1).double()

    out = SAMPLERS[name].run(predict, unit(0), SCHEDULE, steps, lambda step: unit(step + 1))
    return out.norm().item()


@pytest.mark.parametrize(
    ("name", "steps", "tolerance"),
    [
        ("ddpm", 1000, 0.01),
        ("ddim", 1000, 0.01),
        ("ddim", 50, 0.1),
        ("dpm-solver", 20, 0.02),
        ("dpm-solver++", 12, 0.04),
        ("unipc", 12, 0.04),
        ("dpm-solver++", 50, 0.005),
        ("unipc", 50, 0.002),
        ("sde-dpm-solver++", 12, 0.1),
        ("sde-dpm-solver++", 50, 0.02),
    ],
)
@pytest.mark.parametrize("std", STDS)
def test_exact_score_gives_the_data_standard_deviation(name, steps, tolerance, std):
    assert standard_deviation(name, std, steps) == pytest.approx(std, rel=tolerance)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_exactly_as_many_calls_as_steps_at_falling_timesteps(name, steps):
    predict = Counted(gaussian_noise)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    out = SAMPLERS[name].run(predict, x, SCHEDULE, steps, lambda _: torch.zeros_like(x))
    assert out.shape == x.shape
    assert len(predict.timesteps) == steps
    assert predict.timesteps[0] == 999
    assert predict.timesteps == sorted(set(predict.timesteps), reverse=True)
    assert min(predict.timesteps) >= 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_prediction_of_one_clip_returns_that_clip(name):
    """Data that is a single clip: ε̂ = (x - α y)/σ exactly, and every sampler must end at y."""
    clip = torch.tensor([[0.3, -0.8, 0.0, 1.0]], dtype=torch.float64)

    def predict(x, point):
        return (x - point.alpha * clip) / point.sigma

    x = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = SAMPLERS[name].run(predict, x, SCHEDULE, 7, lambda _: torch.randn(2, 4, dtype=torch.float64))
    # dpm-solver ends at timestep 0, where σ = 0.01; the consistency function keeps c_skip of x
    tolerance = {"dpm-solver": 0.04, "consistency": 1e-4}.get(name, 1e-9)
    torch.testing.assert_close(out, clip.expand(2, -1), atol=tolerance, rtol=0)


@pytest.mark.parametrize("steps", range(1, 13))
def test_few_steps_stay_bounded_with_an_imperfect_network(steps):
    """The multistep samplers' last step is of first order, so few calls with a rough network do not overshoot."""

    def rough(x, point):
        return torch.tanh(gaussian_noise(x, point) + 0.2 * torch.sin(5 * x))

    x = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for name in ("dpm-solver++", "sde-dpm-solver++", "unipc"):
        out = SAMPLERS[name].run(predictors.clipped(rough), x, SCHEDULE, steps, lambda _: x)
        assert out.abs().max() <= 1 + 1e-9, name


def test_singlestep_orders_are_the_papers():
    assert samplers.singlestep_orders(9) == [3, 3, 2, 1]
    assert samplers.singlestep_orders(10) == [3, 3, 3, 1]
    assert samplers.singlestep_orders(12) == [3, 3, 3, 2, 1]
    assert samplers.singlestep_orders(15) == [3, 3, 3, 3, 2, 1]
    assert samplers.singlestep_orders(20) == [3] * 6 + [2]
    assert all(sum(samplers.singlestep_orders(calls)) == calls for calls in range(1, 50))


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("std", STDS)
def test_jumps_with_the_exact_map_end_at_the_exact_place_in_any_number_of_calls(std, steps):
    """Gaussian data: x_r = x_t · spread(r) / spread(t), told where each jump goes."""

    def spread(alpha, sigma):
        return math.sqrt((alpha * std) ** 2 + sigma**2)

    goals = []

    def predict(x, point):
        goals.append(point.goal)
        alpha, sigma = (1.0, 0.0) if point.goal == 0 else (float(r) for r in SCHEDULE.level(torch.tensor([point.goal])))
        x_r = x * spread(alpha, sigma) / spread(point.alpha, point.sigma)
        return (alpha / point.alpha * x - x_r) / (alpha * point.sigma / point.alpha - sigma)

    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = SAMPLERS["map"].run(predict, x, SCHEDULE, steps, lambda _: x)
    first = grids.log_snr_grid(SCHEDULE, 2)[0]
    torch.testing.assert_close(out, x * std / spread(first.alpha, first.sigma))
    assert goals[-1] == 0
    assert goals == sorted(goals, reverse=True)


def test_grids():
    grid = grids.log_snr_grid(SCHEDULE, 13)
    steps = torch.tensor([point.log_snr for point in grid]).diff()
    torch.testing.assert_close(steps, steps[:1].expand(12), rtol=1e-6, atol=0)
    assert (grid[0].timestep, grid[-1].timestep) == (999, pytest.approx(0, abs=1e-6))
    for point in grid:
        assert point.alpha**2 + point.sigma**2 == pytest.approx(1)
    assert CLEAN.log_snr == math.inf


def test_pack_and_unpack_are_inverse():
    clips = AVSample(video=torch.rand(2, 4, 3, 5, 5), audio=torch.rand(2, 1, 7))
    back = unpack(pack(clips), clips.map(lambda part: part.shape[1:]))
    assert torch.equal(back.video, clips.video)
    assert torch.equal(back.audio, clips.audio)


def test_clipping_changes_nothing_inside_the_range_and_bounds_x0_outside():
    grid = grids.time_grid(SCHEDULE, 5)
    inside = torch.tensor([[0.2, -0.9]], dtype=torch.float64)
    for point in grid[:-1]:
        x = point.alpha * inside + point.sigma
        same = predictors.clipped(lambda x, p: (x - p.alpha * inside) / p.sigma)(x, point)
        torch.testing.assert_close(same, torch.ones_like(x))
        bound = predictors.clipped(lambda x, p: (x - p.alpha * 5.0) / p.sigma)(x, point)
        torch.testing.assert_close((x - point.sigma * bound) / point.alpha, torch.ones_like(x))


def consistency_jump(x, point):
    """f(x, t) of the Gaussian problem."""
    c_skip, c_out = (c.item() for c in consistency_coefficients(torch.tensor([point.timestep])))
    return c_skip * x + c_out * (x - point.sigma * gaussian_noise(x, point)) / point.alpha


def test_consistency_sampling_is_the_consistency_function_and_fresh_noise():
    """f(x, T-1) for one call; f(α f(x, T-1) + σ z, t) for two."""
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 4, 2, dtype=torch.float64, generator=generator)
    first, second, _ = grid = grids.consistency_grid(SCHEDULE, 2)
    assert (first.timestep, second.timestep) == (999, pytest.approx(100))
    once = samplers.consistency(gaussian_noise, x, [first, CLEAN], lambda _: z)
    torch.testing.assert_close(once, consistency_jump(x, first))
    twice = samplers.consistency(gaussian_noise, x, grid, lambda _: z)
    torch.testing.assert_close(twice, consistency_jump(second.alpha * once + second.sigma * z, second))


def test_the_consistency_sampler_goes_back_by_the_noise_that_its_jump_implies():
    """f(α f(x, T-1) + σ ε̂, t), ε̂ = (x - α_T f(x, T-1)) / σ_T, and no noise drawn."""
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second, _ = grids.consistency_grid(SCHEDULE, 2)
    once = consistency_jump(x, first)
    implied = (x - first.alpha * once) / first.sigma
    twice = SAMPLERS["consistency"].run(gaussian_noise, x, SCHEDULE, 2, lambda _: pytest.fail("drew noise"))
    torch.testing.assert_close(twice, consistency_jump(second.alpha * once + second.sigma * implied, second))


@pytest.mark.parametrize("solver", [samplers.ddim, samplers.dpm_solver_pp])
def test_the_sde_without_its_noise_is_refused(solver):
    with pytest.raises(ValueError, match="eta=1 needs noise"):
        solver(gaussian_noise, torch.zeros(1, 2, dtype=torch.float64), grids.integer_grid(SCHEDULE, 3), eta=1.0)


@pytest.mark.parametrize("start", [999, 850, 300, 120, 101, 100, 30])
@pytest.mark.parametrize("calls", [1, 2, 4, 5])
def test_a_short_consistency_grid_ends_at_one_noise_level_wherever_it_starts(start, calls):
    """Timestep 100, if that is below the start; the levels fall to it from the start."""
    *levels, clean = grids.consistency_grid(SCHEDULE.until(start), calls)
    timesteps = [level.timestep for level in levels]
    assert clean is CLEAN
    assert len(timesteps) == calls
    assert timesteps[0] == start
    assert timesteps == sorted(set(timesteps), reverse=True)
    if 2 <= calls <= 4 and start >= 300:
        assert timesteps[-1] == pytest.approx(100)
    assert levels[-1].log_snr - levels[0].log_snr >= min(1, calls - 1)


# ---------------------------------------------------------------------------------------------- conditional


def correlated_noise(x, point, rho=0.8):
    """The exact ε of two standard normals with correlation ρ, scaled by 0.5."""
    covariance = 0.25 * torch.tensor([[1, rho], [rho, 1]], dtype=x.dtype)
    total = point.alpha**2 * covariance + point.sigma**2 * torch.eye(2, dtype=x.dtype)
    return point.sigma * x @ total.inverse()


def conditional_line(wrap, name="dpm-solver++", steps=20):
    """Slope and spread of the made second number on the given first; the truth for `correlated_noise` is 0.8, 0.3."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 2, dtype=torch.float64, generator=generator)
    given = 0.5 * torch.randn(4000, 1, dtype=torch.float64, generator=generator)
    known = Known(torch.cat([given, torch.zeros_like(given)], 1), torch.tensor([True, False]), x)
    draws = [torch.randn(4000, 2, dtype=torch.float64, generator=generator) for _ in range(steps)]
    out = known.impose(SAMPLERS[name].run(wrap(known), x, SCHEDULE, steps, draws.__getitem__), CLEAN)
    assert torch.equal(out[:, :1], given)
    slope = (out[:, 1] * out[:, 0]).sum() / (out[:, 0] ** 2).sum()
    return slope.item(), (out[:, 1] - slope * out[:, 0]).std().item()


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_given_part_pulls_the_rest(name):
    steps = min(20, SAMPLERS[name].max_steps)
    slope, _ = conditional_line(lambda known: predictors.replaced(correlated_noise, known), name, steps)
    assert 0.2 < slope < 0.9


def test_zero_guidance_is_replacement_and_the_default_guidance_is_about_right():
    plain = conditional_line(lambda known: predictors.replaced(correlated_noise, known))
    none = conditional_line(lambda known: predictors.guided(correlated_noise, known, 0.0))
    assert none == pytest.approx(plain, abs=1e-9)
    slope, spread = conditional_line(lambda known: predictors.guided(correlated_noise, known, GUIDANCE_SCALE["guided"]))
    assert slope == pytest.approx(0.8, abs=0.06)
    assert spread == pytest.approx(0.3, abs=0.03)
    assert plain[0] < 0.5


def separate_noise(x, point, rho=0.8):
    """`correlated_noise` of two numbers at noise levels of their own."""
    times = point.told or (point.timestep, point.timestep)
    alpha, sigma = (torch.diag(value) for value in SCHEDULE.level(torch.tensor(times, dtype=torch.float64)))
    covariance = 0.25 * torch.tensor([[1, rho], [rho, 1]], dtype=x.dtype)
    return x @ (alpha @ covariance @ alpha + sigma @ sigma).inverse() @ sigma


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if not sampler.samples])
def test_a_network_that_knows_two_levels_gives_the_true_conditional_law(name):
    """Slope 0.8 and spread 0.3 with scale 1; with scale 0, of the same network, the law without the condition."""
    ends = tuple(grids.points(SCHEDULE, torch.tensor([0.0, 999.0])))
    steps = 200 if name in ("ddpm", "ddim") else 20
    line = [
        conditional_line(lambda known, s=s: predictors.conditioned(separate_noise, known, False, ends, s), name, steps)
        for s in (1.0, 0.0)
    ]
    assert line[0] == pytest.approx((0.8, 0.3), abs=0.03)
    assert line[1] == pytest.approx((0.0, 0.5), abs=0.03)


def test_coupling_makes_two_modalities_agree_more_or_not_at_all():
    """Correlation 0.8 as trained, 0 with scale 0, more with scale 2; with one scale 1 it costs a call less."""
    generator, sound = torch.Generator().manual_seed(0), torch.tensor([False, True])
    x = torch.randn(8000, 2, dtype=torch.float64, generator=generator)
    pure = grids.points(SCHEDULE, torch.tensor([999.0]))[0]
    calls = []

    def counted(x, point):
        calls.append(point)
        return separate_noise(x, point)

    def correlation(video, audio):
        calls.clear()
        predict = predictors.coupled(counted, x, sound, pure, AVSample(video=video, audio=audio))
        return SAMPLERS["unipc"].run(predict, x, SCHEDULE, 20, None).T.corrcoef()[0, 1].item()

    assert correlation(1.0, 1.0) == pytest.approx(0.8, abs=0.03)
    assert len(calls) == 20
    assert correlation(0.0, 0.0) == pytest.approx(0.0, abs=0.03)
    assert len(calls) == 60
    assert correlation(1.0, 2.0) > 0.85
    assert len(calls) == 40
    assert correlation(2.0, 2.0) > correlation(1.0, 2.0)


@pytest.mark.parametrize("copies", [1, 5])
def test_guidance_does_not_depend_on_how_many_elements_there_are(copies):
    """A clip of independent copies of one pair is guided as the pair is, in any batch."""
    x = torch.tensor([[0.4, -0.3], [1.0, 0.2]], dtype=torch.float64).repeat_interleave(copies, 1)
    point = grids.points(SCHEDULE, torch.tensor([300.0]))[0]

    def copied(x, point):
        return (
            correlated_noise(x.reshape(-1, 2, copies).mT.reshape(-1, 2), point)
            .reshape(-1, copies, 2)
            .mT.reshape(x.shape)
        )

    mask = torch.tensor([True, False]).repeat_interleave(copies)
    known = Known(torch.full_like(x, 0.5), mask, torch.zeros_like(x))
    out = predictors.guided(copied, known, 3.0)(x, point)
    single = predictors.guided(
        correlated_noise, Known(known.x0[:1, ::copies], mask[::copies], known.noise[:1, ::copies]), 3.0
    )(x[:1, ::copies], point)
    torch.testing.assert_close(out[:1], single.repeat_interleave(copies, 1))


@pytest.mark.parametrize("clip", [False, True])
def test_one_ancestral_step_has_the_reference_s_mean_and_variance(fixtures, clip):
    """The reference's p_mean_variance with its larger variance, at x_t = q_sample, for its fake model."""
    reference = load_file(fixtures / "diffusion.safetensors")
    for row, timestep in enumerate(reference["in.t"].tolist()):
        if timestep == 0:
            continue
        s, t = grids.points(NoiseSchedule(), torch.tensor([timestep, timestep - 1.0], dtype=torch.float64))
        for name in ("video", "audio"):
            x = reference[f"q_sample.{name}"][row : row + 1].flatten(1)
            wave = (
                torch.tanh(0.3 * x + 0.01 * timestep / 1000)
                if name == "video"
                else torch.sin(0.5 * x) * timestep / 1000
            )
            predict = (lambda _, __, wave=wave: wave) if not clip else predictors.clipped(lambda _, __, wave=wave: wave)
            mean = samplers._ancestral_step(x, predict(x, s), s, t, torch.zeros_like(x))
            spread = samplers._ancestral_step(x, predict(x, s), s, t, torch.ones_like(x)) - mean
            prefix = f"p_mean_variance.FIXED_LARGE.clip{int(clip)}"
            expected = reference[f"{prefix}.mean.{name}"][row : row + 1].flatten(1)
            variance = reference[f"{prefix}.variance.{name}"][row : row + 1].flatten(1)
            torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(spread.square(), variance.expand_as(spread), rtol=1e-3, atol=1e-7)


def test_the_last_step_is_a_long_one_up_to_ten_calls():
    assert grids.log_snr_grid_to_clean(SCHEDULE, 10) == grids.map_grid(SCHEDULE, 10)
    assert grids.log_snr_grid_to_clean(SCHEDULE, 11)[-2].timestep == pytest.approx(0, abs=1e-6)


def test_more_than_four_calls_of_the_consistency_sampler_have_the_usual_grid():
    assert grids.consistency_grid(SCHEDULE, 5) == grids.map_grid(SCHEDULE, 5)


def test_dpm_solver_alone_is_not_clipped():
    assert [name for name, sampler in SAMPLERS.items() if not sampler.clip] == ["dpm-solver"]


def test_a_scheduler_that_scales_its_input_ends_at_the_data():
    """Euler's states are x/α: its start and what the network sees are scaled."""
    from diffusers import EulerDiscreteScheduler

    x = torch.ones(1, 2, dtype=torch.float64)
    scheduler = EulerDiscreteScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    out = samplers.diffusers_scheduler(gaussian_noise, x, scheduler, 100, SCHEDULE, [])
    torch.testing.assert_close(
        out, exact_gaussian(x, grids.log_snr_grid(SCHEDULE, 2)[0], grids.CLEAN), rtol=0.05, atol=0
    )


def test_what_a_model_is_recommended_for():
    one, two, jumps = recommended_samplers(1, False), recommended_samplers(2, False), recommended_samplers(2, True)
    assert "consistency" not in one
    assert two["consistency"] == [1, 8]
    assert jumps["map"] == [1, 20]
    assert all(two[name][0] < one[name][0] for name in ("ddim", "dpm-solver++", "unipc"))
