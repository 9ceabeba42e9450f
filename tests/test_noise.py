"""Laws of the schedule and of the closed formulas on it."""

import pytest
import torch
from safetensors.torch import load_file

from mgct.clip_random import ClipRandom, derive_seed, per_clip_randn
from mgct.noise import (
    NoiseSchedule,
    add_noise,
    consistency_coefficients,
    consistency_function,
    ddim_step,
    noise_from_velocity,
    noise_from_x0,
    x0_from_noise,
)

SCHEDULE = NoiseSchedule()
TIMESTEPS = torch.tensor([0.0, 0.5, 17.0, 333.25, 998.5, 999.0], dtype=torch.float64)


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(len(TIMESTEPS), 2, 3, dtype=torch.float64, generator=generator) for _ in range(2))


def test_schedule_equals_the_reference(fixtures):
    reference = load_file(fixtures / "diffusion.safetensors")
    torch.testing.assert_close(SCHEDULE.betas, reference["schedule.betas"], rtol=1e-12, atol=0)
    torch.testing.assert_close(SCHEDULE.alpha_bar, reference["schedule.alphas_cumprod"], rtol=1e-12, atol=0)


def test_add_noise_equals_the_reference(fixtures):
    reference = load_file(fixtures / "diffusion.safetensors")
    level = SCHEDULE.level(reference["in.t"])
    for name in ("video", "audio"):
        noisy = add_noise(reference[f"in.x0_{name}"], reference[f"in.noise_{name}"], level)
        torch.testing.assert_close(noisy, reference[f"q_sample.{name}"], rtol=0, atol=1e-6)


def test_levels_keep_the_variance_and_meet_the_table_at_integers():
    level = SCHEDULE.level(TIMESTEPS)
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones_like(TIMESTEPS), rtol=0, atol=1e-14)
    whole = torch.arange(1000)
    torch.testing.assert_close(SCHEDULE.level(whole).alpha ** 2, SCHEDULE.alpha_bar, rtol=1e-13, atol=0)


def test_timestep_at_is_the_inverse_of_log_snr():
    steps = torch.linspace(0, 999, 4001, dtype=torch.float64)
    falling = SCHEDULE.log_snr(steps)
    assert (falling.diff() < 0).all()
    torch.testing.assert_close(SCHEDULE.timestep_at(falling), steps, rtol=0, atol=1e-9)


def test_noise_and_x0_round_trip():
    x0, noise = pair()
    level = SCHEDULE.level(TIMESTEPS)
    noisy = add_noise(x0, noise, level)
    torch.testing.assert_close(x0_from_noise(noisy, noise, level), x0, rtol=0, atol=1e-11)
    torch.testing.assert_close(noise_from_x0(noisy, x0, level), noise, rtol=0, atol=1e-11)


def test_velocity_gives_the_noise_and_the_clip():
    """v = α ε - σ x0 together with x_t is both."""
    x0, noise = pair()
    level = SCHEDULE.level(TIMESTEPS)
    alpha, sigma = (rate.reshape(-1, 1, 1) for rate in level)
    x_t, velocity = add_noise(x0, noise, level), alpha * noise - sigma * x0
    torch.testing.assert_close(noise_from_velocity(x_t, velocity, level), noise)
    torch.testing.assert_close(alpha * x_t - sigma * velocity, x0)


def test_ddim_step_with_the_true_noise_lands_on_the_same_path():
    x0, noise = pair()
    high, low = SCHEDULE.level(TIMESTEPS), SCHEDULE.level(TIMESTEPS / 3)
    stepped = ddim_step(add_noise(x0, noise, high), noise, high, low)
    torch.testing.assert_close(stepped, add_noise(x0, noise, low), rtol=0, atol=1e-11)


def test_ddim_step_is_the_euler_step_of_equation_10():
    x, noise = pair()
    high, low = SCHEDULE.level(TIMESTEPS[1:]), SCHEDULE.level(TIMESTEPS[:-1])
    x, noise = x[1:], noise[1:]
    shape = (-1, 1, 1)
    euler = x / high.alpha.view(shape) + (low.sigma / low.alpha - high.sigma / high.alpha).view(shape) * noise
    torch.testing.assert_close(ddim_step(x, noise, high, low) / low.alpha.view(shape), euler, rtol=1e-12, atol=1e-11)


def test_consistency_function_is_the_identity_at_zero():
    x, noise = pair()
    zero = torch.zeros(len(x))
    torch.testing.assert_close(consistency_function(x, noise, zero, SCHEDULE.level(zero)), x, rtol=0, atol=0)


def test_consistency_coefficients_are_those_of_diffusers_lcm():
    from diffusers import LCMScheduler

    scheduler = LCMScheduler()
    for timestep in (0, 1, 20, 999):
        theirs = scheduler.get_scalings_for_boundary_condition_discrete(timestep)
        ours = consistency_coefficients(torch.tensor([timestep]))
        assert [c.item() for c in ours] == pytest.approx([float(c) for c in theirs], rel=1e-12)


def test_clip_random_rows_depend_on_their_seed_alone():
    three, one = ClipRandom([5, 6, 7]), ClipRandom([6])
    assert torch.equal(three.normal("noise", (2, 4))[1:2], one.normal("noise", (2, 4)))
    assert three.uniform("t")[1] == one.uniform("t")[0]
    assert not torch.equal(one.normal("noise", (2, 4)), one.normal("other", (2, 4)))


def test_clip_random_is_uniform_and_normal():
    random = ClipRandom(range(4000))
    draws = random.integers("t", 10)
    assert torch.bincount(draws, minlength=10).min() > 300
    assert abs(random.normal("n", (5,)).std().item() - 1) < 0.02


def test_seeds_are_the_same_everywhere():
    assert derive_seed(0, "clip", 1) == 4816947602222774308
    assert torch.equal(per_clip_randn((3,), [1, 2])[1], per_clip_randn((3,), [2])[0])


def test_a_schedule_until_a_level_has_the_same_levels_below_it():
    whole = NoiseSchedule()
    part = whole.until(700)
    assert part.num_timesteps == 701
    timesteps = torch.tensor([0.0, 0.5, 3.2, 699.9, 700.0], dtype=torch.float64)
    for ours, theirs in zip(part.level(timesteps), whole.level(timesteps), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    torch.testing.assert_close(part.timestep_at(part.log_snr(timesteps)), timesteps, rtol=0, atol=1e-9)


def test_timesteps_beyond_the_ends_count_as_the_ends():
    beyond, ends = torch.tensor([-5.0, 2000.0]), torch.tensor([0.0, 999.0])
    for ours, theirs in zip(SCHEDULE.level(beyond), SCHEDULE.level(ends), strict=True):
        assert torch.equal(ours, theirs)
    assert SCHEDULE.timestep_at(torch.tensor([50.0, -50.0])).tolist() == [0, 999]
