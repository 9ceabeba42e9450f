"""Laws of the losses and of the two stages."""

import pytest
import torch
from safetensors.torch import load_file

from mgct.clip_random import ClipRandom
from mgct.errors import UserError
from mgct.losses import (
    FlowMap,
    InverseGap,
    InverseReach,
    Levels,
    MinSNR,
    NoiseUnits,
    NoiseWeights,
    PseudoHuber,
    SquaredError,
    UnitWeight,
    VelocityWeight,
    consistency_loss,
    multimodal_loss,
    per_clip_mean,
)
from mgct.noise import NoiseLevel, NoiseSchedule, add_noise
from mgct.stages import (
    MGCT,
    Consistency,
    DataDirection,
    LearnedUncertainty,
    LogSnrGrid,
    LossRatio,
    OwnElements,
    TargetDecay,
    TargetDirection,
    TeacherDirection,
    Timesteps,
    Transfer,
    UniformGrid,
    average_into,
)
from mgct.types import AVSample
from mgct.unet import MultimodalUNet
from tests.test_unet import randomised

SCHEDULE = NoiseSchedule()
STD = AVSample(video=0.5, audio=0.3)


def clips(batch=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    video = torch.rand(batch, 4, 3, 8, 8, generator=generator, dtype=dtype) * 2 - 1
    return AVSample(video=video, audio=torch.rand(batch, 1, 64, generator=generator, dtype=dtype) * 2 - 1)


def noise_like(sample):
    generator = torch.Generator().manual_seed(5)
    return sample.map(lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype))


class Recorded(torch.nn.Module):
    """The reference's fake model: ε_v = tanh(0.3 v + 0.01 t/1000), ε_a = sin(0.5 a) t/1000."""

    def forward(self, video, audio, timestep, window_shift=None):
        share = (timestep / 1000).to(video.dtype)
        return AVSample(
            video=torch.tanh(0.3 * video + 0.01 * share.view(-1, 1, 1, 1, 1)),
            audio=torch.sin(0.5 * audio) * share.view(-1, 1, 1),
        )


def test_multimodal_loss_equals_the_reference(fixtures):
    reference = load_file(fixtures / "diffusion.safetensors")
    sample = AVSample(video=reference["in.x0_video"], audio=reference["in.x0_audio"])
    noise = AVSample(video=reference["in.noise_video"], audio=reference["in.noise_audio"])
    result = multimodal_loss(Recorded(), sample, noise, reference["in.t"], SCHEDULE)
    torch.testing.assert_close(result.loss, reference["train.loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.logs["loss_mm_video"], reference["train.mse_video"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.logs["loss_mm_audio"], reference["train.mse_audio"], rtol=1e-5, atol=1e-6)


def spread(level, std):
    """Standard deviation at a level of Gaussian data with this one."""
    return torch.sqrt((level.alpha * std) ** 2 + level.sigma**2)


class ExactConsistency(torch.nn.Module):
    """ε̂ for which f_θ is the exact solution of the ODE for Gaussian data: x_0 = x_t · spread(0) / spread(t)."""

    def forward(self, video, audio, timestep, window_shift=None):
        from mgct.noise import consistency_coefficients

        level, start = SCHEDULE.level(timestep), SCHEDULE.level(torch.zeros_like(timestep))
        c_skip, c_out = consistency_coefficients(timestep)

        def predict(x, std):
            shape = (-1, *[1] * (x.dim() - 1))
            end = (spread(start, std) / spread(level, std)).view(shape) * x
            out = torch.where(c_out > 0, c_out, 1).view(shape)
            x0 = (end - c_skip.view(shape) * x) / out
            return (x - level.alpha.view(shape) * x0) / level.sigma.view(shape)

        return AVSample(video=video, audio=audio).map(predict, STD)


def exact_direction(low, high):
    """ε whose DDIM step from ``high`` to ``low`` is the exact solution of the ODE for Gaussian data."""
    s, t = SCHEDULE.level(low), SCHEDULE.level(high)

    def direction(x, std):
        gain = spread(s, std) / spread(t, std) - s.alpha / t.alpha
        return x * (gain / (s.sigma - s.alpha * t.sigma / t.alpha)).view(-1, *[1] * (x.dim() - 1))

    return lambda noisy, timestep: noisy.map(direction, STD)


@pytest.mark.parametrize("distance", [SquaredError(), PseudoHuber(0.03)])
@pytest.mark.parametrize("weight", [UnitWeight(), NoiseUnits()])
def test_consistency_loss_is_zero_for_the_exact_solution_of_a_gaussian_problem(distance, weight):
    sample = clips(dtype=torch.float64)
    grid = UniformGrid(50).timesteps(SCHEDULE, 0)
    low, high = grid[[0, 20, 48]], grid[[1, 21, 49]]
    exact, noise = ExactConsistency(), noise_like(sample)
    call = {"predict": exact_direction(low, high), "distance": distance, "weight": weight}
    result = consistency_loss(exact, exact, sample, noise, low, high, SCHEDULE, **call)
    assert result.loss.max() < 1e-12
    wrong = consistency_loss(Recorded(), exact, sample, noise, low, high, SCHEDULE, **call)
    assert wrong.loss.min() > 1e-5


class ExactFlowMap(torch.nn.Module):
    """ε̂ of the exact jump for Gaussian data: x_r = x_t · spread(r) / spread(t) = α_r/α_t x_t - c ε̂."""

    def forward(self, video, audio, timestep, window_shift=None, target_timestep=None):
        return exact_direction(target_timestep, timestep)(AVSample(video=video, audio=audio), timestep)


class NoMap(ExactConsistency):
    """The same prediction wherever the jump goes."""

    def forward(self, video, audio, timestep, window_shift=None, target_timestep=None):
        return super().forward(video, audio, timestep)


@pytest.mark.parametrize("weight", [UnitWeight(), InverseReach(), NoiseUnits()])
def test_flow_map_loss_is_zero_for_the_exact_map_of_a_gaussian_problem(weight):
    sample = clips(dtype=torch.float64)
    grid = LogSnrGrid(50).timesteps(SCHEDULE, 0)
    index, jump, exact = torch.tensor([1, 20, 48]), FlowMap(), ExactFlowMap()
    for uniform in (0.0, 0.5, 0.9):
        goal = jump.goal(grid, index, torch.full((3,), uniform))
        low, high = grid[index] + 1e-6, grid[index + 1]  # a jump from t to t is 0/0 above
        call = {"jump": jump, "goal": goal, "weight": weight, "predict": exact_direction(low, high)}
        noise = noise_like(sample)
        assert consistency_loss(exact, exact, sample, noise, low, high, SCHEDULE, **call).loss.max() < 1e-9
        assert consistency_loss(NoMap(), exact, sample, noise, low, high, SCHEDULE, **call).loss.max() > 1e-6


def test_goals_of_the_flow_map_are_the_grid_points_up_to_the_lower_level():
    grid, index = torch.arange(10.0), torch.tensor([0, 3]).repeat_interleave(1000)
    uniform = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    goals = FlowMap().goal(grid, index, uniform)
    assert set(goals[:1000].tolist()) == {0}
    assert torch.bincount(goals[1000:].long(), minlength=4).min() > 200
    assert goals[1000:].max() == 3
    cleaner = FlowMap(clean=0.5).goal(grid, index, uniform)
    assert (cleaner[1000:] == 0).float().mean() == pytest.approx(0.5 + 0.5 / 4, abs=0.05)
    assert set(FlowMap(clean=1.0).goal(grid, index, uniform).tolist()) == {0}


def test_consistency_pair_shares_dropout_and_shift():
    unet = randomised(dropout=0.5).train()
    sample = clips()
    same = torch.full((3,), 500.0)
    result = consistency_loss(unet, unet, sample, noise_like(sample), same, same, SCHEDULE)
    assert result.loss.max() < 1e-9


def test_gradient_flows_through_theta_only():
    unet, target = randomised(), randomised()
    sample = clips()
    low, high = torch.tensor([0.0, 300.0, 600.0]), torch.tensor([20.0, 320.0, 620.0])
    consistency_loss(unet, target, sample, noise_like(sample), low, high, SCHEDULE).loss.sum().backward()
    assert all(p.grad is None for p in target.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in unet.parameters())


def test_distances_and_weights():
    a, b = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0])
    assert SquaredError()(a, b).tolist() == [0, 4]
    assert PseudoHuber(0.5)(a, b).tolist() == pytest.approx([0, (4 + 0.25) ** 0.5 - 0.5])
    clean, low, high = (
        NoiseLevel(torch.tensor([a]), torch.tensor([s])) for a, s in ((1.0, 0.0), (0.8, 0.6), (0.6, 0.8))
    )
    assert NoiseUnits()(Levels(low, high, clean)).item() == pytest.approx(0.5625)  # (α/σ)² at t_{n+1}
    near = Levels(low, high, low)
    reach = 0.8 * 0.8 / 0.6 - 0.6
    assert InverseReach()(near).item() == pytest.approx(1 / reach)
    assert NoiseUnits()(near).item() == pytest.approx(1 / reach**2)
    assert InverseGap()(near).item() == pytest.approx(1 / (0.8 / 0.6 - 0.6 / 0.8))
    assert UnitWeight()(near).item() == 1


@pytest.mark.parametrize("grid", [UniformGrid(50), LogSnrGrid(20)])
def test_grids_span_all_levels(grid):
    steps = grid.timesteps(SCHEDULE, 0)
    assert len(steps) == grid.num_points
    assert steps[0].item() == pytest.approx(0, abs=1e-6)
    assert steps[-1].item() == pytest.approx(999, abs=1e-6)
    assert (steps.diff() > 0).all()


def test_points_double_as_stage_2_goes_on():
    grid = UniformGrid(80, first_points=10, growth_steps=300)
    assert [grid.count(k) for k in (0, 99, 100, 199, 200, 299, 300, 10**6)] == [10, 10, 20, 20, 40, 40, 80, 80]
    assert len(grid.timesteps(SCHEDULE, 150)) == 20
    assert UniformGrid(50).count(0) == 50
    mixed = objective(0.5, grid=grid)
    mixed.start_stage_2(randomised(), 0)
    mixed.updates = 250
    mixed.loss(randomised(), clips(), ClipRandom([1, 2, 3]), 0)
    assert len(mixed.grid) == 40


def objective(ratio, balance=OwnElements(), **settings):
    return MGCT(SCHEDULE, Transfer(), Consistency(ratio=LossRatio(ratio), **settings), balance)


def test_the_consistency_loss_of_a_share_of_the_clips_has_the_mean_of_those():
    unet, random = randomised().train(), ClipRandom([1, 2, 3, 4])
    some, whole = objective(1.0, share=0.5), objective(1.0)
    for mixed in (some, whole):
        mixed.start_stage_2(unet, 0)
    of_some, of_all = (mixed.loss(unet, clips(4), random, 0) for mixed in (some, whole))
    assert of_some.loss.shape == (4,)
    assert of_some.logs["loss_cm"].shape == (2,)
    torch.testing.assert_close(of_some.logs["loss_cm"], of_all.logs["loss_cm"][:2], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(of_some.loss.mean(), of_some.logs["loss_cm"].mean())


def test_learned_uncertainty_is_the_sum_at_first_and_settles_at_each_loss_s_own_scale():
    """d/ds (exp(-s) L + s) = 0 where exp(s) = L: each part then counts as 1."""
    unet, random = randomised().train(), ClipRandom([1, 2, 3])
    ours, plain = objective(0.5, LearnedUncertainty()), objective(0.5)
    for mixed in (ours, plain):
        mixed.start_stage_2(unet, 0)
    result = ours.loss(unet, clips(), random, 0)
    torch.testing.assert_close(result.loss, plain.loss(unet, clips(), random, 0).loss)
    result.loss.mean().backward()
    errors = {name.removeprefix("loss_"): value.mean() for name, value in result.logs.items()}
    for name, s in ours.learned.named_parameters():
        torch.testing.assert_close(s.grad, 0.5 * (1 - errors[name].detach()))
        with torch.no_grad():
            s.copy_(errors[name].log())
        s.grad = None
    ours.loss(unet, clips(), random, 0).loss.mean().backward()
    assert all(s.grad.abs() < 1e-6 for s in ours.learned.parameters())


@pytest.mark.parametrize("stage", [1, 2])
def test_min_snr_weighs_the_multimodal_loss_alone(stage):
    """Below γ's level by the SNR, above not at all, in its modality; what δ is compared with is not weighed."""
    unet, random = randomised().train(), ClipRandom([1, 2, 3, 4, 5])
    even, weighed = objective(0.5), objective(0.5)
    weighed.noise_weight = NoiseWeights(video=MinSNR(0.01))
    for mixed in (even, weighed):
        if stage == 2:
            mixed.start_stage_2(unet, 0)
    of_even, ours = (mixed.loss(unet, clips(5), random, 0) for mixed in (even, weighed))
    level = SCHEDULE.level(ours.timesteps.video)
    snr = (level.alpha / level.sigma).square()
    assert (snr > 0.01).any()
    assert (snr < 0.01).any()
    weight = torch.where(snr > 0.01, 0.01 / snr, torch.ones_like(snr)).float()
    share = 1.0 if stage == 1 else 0.5
    torch.testing.assert_close(of_even.loss - ours.loss, share * (1 - weight) * ours.logs["loss_mm_video"])
    assert all(torch.equal(ours.logs[name], value) for name, value in of_even.logs.items())
    with pytest.raises(UserError, match="gamma must be positive"):
        MinSNR(0.0)


def test_velocity_weight_makes_the_loss_that_of_the_velocity():
    """(ε̂ - ε)²/α² = (v̂ - v)², at any level, the noisiest too."""
    timestep = torch.tensor([0, 400, 850, 999])
    level = SCHEDULE.level(timestep)
    batch = clips(4)
    noise = noise_like(batch)
    unet = randomised(prediction_type="v_prediction").eval()
    weights = NoiseWeights(video=VelocityWeight(), audio=VelocityWeight())(
        AVSample(video=timestep, audio=timestep), SCHEDULE
    )
    found = multimodal_loss(unet, batch, noise, timestep, SCHEDULE, 0)
    heads = MultimodalUNet.from_config(unet.config, prediction_type="epsilon").eval()
    heads.load_state_dict(unet.state_dict())
    noisy = batch.map(lambda x, eps: add_noise(x, eps, level), noise)
    with torch.no_grad():
        velocity = heads(noisy.video, noisy.audio, timestep, 0)
    for name in ("video", "audio"):
        x0, eps, v = (getattr(part, name).double() for part in (batch, noise, velocity))
        alpha, sigma = (rate.reshape(-1, *[1] * (x0.dim() - 1)) for rate in level)
        error = per_clip_mean((v - (alpha * eps - sigma * x0)).square()).float()
        ours = found.logs[f"loss_mm_{name}"] * getattr(weights, name)
        torch.testing.assert_close(ours, error, rtol=1e-3, atol=0)


def test_independent_levels_are_each_modality_s_own_and_the_network_is_told_both():
    """The loss of a clip is that of its two levels, and so are its weights; for the other clips nothing changes."""
    unet, random, count = randomised(audio_time=True).train(), ClipRandom(list(range(40))), 40
    torch.nn.init.normal_(unet.other_gate.weight, std=0.5)
    shared, apart = objective(0.5), objective(0.5)
    apart.timesteps, apart.noise_weight = Timesteps(independent=0.5), NoiseWeights(audio=MinSNR(0.01))
    plain, ours = shared.loss(unet, clips(count), random, 0), apart.loss(unet, clips(count), random, 0)
    video_t, audio_t = ours.timesteps.video, ours.timesteps.audio
    same = video_t == audio_t
    assert 10 < same.sum() < 30
    assert torch.equal(video_t, plain.timesteps.video)
    for name in ("loss_mm_video", "loss_mm_audio"):
        torch.testing.assert_close(ours.logs[name][same], plain.logs[name][same])
    noise = AVSample(
        video=random.normal("mm.video", clips(count).video.shape[1:]),
        audio=random.normal("mm.audio", clips(count).audio.shape[1:]),
    )
    by_hand = multimodal_loss(unet, clips(count), noise, ours.timesteps, SCHEDULE, 0)
    torch.testing.assert_close(ours.logs["loss_mm"], by_hand.loss)
    told_one = multimodal_loss(unet, clips(count), noise, video_t, SCHEDULE, 0)
    assert (told_one.logs["loss_mm_video"] - by_hand.logs["loss_mm_video"])[~same].abs().max() > 1e-3
    level = SCHEDULE.level(audio_t)
    weight = (0.01 * (level.sigma / level.alpha).square()).clamp(max=1).float()
    torch.testing.assert_close(ours.loss, ours.logs["loss_mm_video"] + weight * ours.logs["loss_mm_audio"])
    ours.loss.mean().backward()
    assert unet.other_gate.weight.grad.abs().max() > 0
    with pytest.raises(UserError, match="independent must lie in"):
        Timesteps(independent=1.5)


def test_of_a_share_of_the_clips_one_modality_is_given_and_no_loss():
    """It is at level 0, either as often, the other anywhere; the other clips are as without."""
    unet, random = randomised(audio_time=True).train(), ClipRandom(list(range(400)))
    without, ours = (Timesteps(0.25, given)(random, 1000) for given in (0.0, 0.5))
    sound, picture = ours.audio == 0, ours.video == 0
    assert 60 < sound.sum() < 140
    assert 60 < picture.sum() < 140
    assert not (sound & picture).any()
    assert ours.video[sound].max() > 900
    rest = ~(sound | picture)
    assert torch.equal(ours.audio[rest], without.audio[rest])
    assert torch.equal(ours.video[~picture], without.video[~picture])
    assert 60 < (ours.audio != ours.video)[rest].sum() < 140
    few = AVSample(video=torch.tensor([0, 500, 0]), audio=torch.tensor([500, 0, 0]))
    found = multimodal_loss(unet, clips(), noise_like(clips()), few, SCHEDULE, 0)
    assert (found.logs["loss_mm_video"] == 0).tolist() == [True, False, False]
    assert (found.logs["loss_mm_audio"] == 0).tolist() == [False, True, False]
    assert torch.equal(found.loss, found.logs["loss_mm_video"] + found.logs["loss_mm_audio"])
    assert [found.timesteps.video.tolist(), found.timesteps.audio.tolist()] == [[-1, 500, 0], [500, -1, 0]]
    for shares, words in (((0.7, 0.4), "together at most 1"), ((0.0, -0.1), "given must lie in")):
        with pytest.raises(UserError, match=words):
            Timesteps(*shares)


def test_stage_2_of_a_flow_map_gives_the_gate_a_gradient():
    unet = randomised(target_time=True).train()
    mixed = objective(0.5, jump=FlowMap(), grid=LogSnrGrid(), weight=InverseReach())
    mixed.start_stage_2(unet, 0)
    mixed.loss(unet, clips(), ClipRandom([1, 2, 3]), 0).loss.mean().backward()
    assert unet.target_gate.weight.grad.abs().max() > 0


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_stage_2_is_the_weighted_sum_of_the_two_losses(ratio):
    unet, random = randomised().train(), ClipRandom([1, 2, 3])
    mixed = objective(ratio)
    plain = mixed.loss(unet, clips(), random, 0)
    assert torch.equal(plain.loss, plain.logs["loss_mm"])
    mixed.start_stage_2(unet, 10)
    result = mixed.loss(unet, clips(), random, 0)
    torch.testing.assert_close(result.logs["loss_mm"], plain.loss)
    expected = (1 - ratio) * result.logs["loss_mm"] + ratio * result.logs["loss_cm"]
    torch.testing.assert_close(result.loss, expected)
    if ratio == 0:
        torch.testing.assert_close(result.loss, plain.loss)
    if ratio == 1:
        torch.testing.assert_close(result.loss, result.logs["loss_cm"])


@pytest.mark.parametrize("direction", [TeacherDirection(), DataDirection()])
def test_directions_differ_from_theta_minus_only_once_it_moves(direction):
    unet, random = randomised().train(), ClipRandom([1, 2, 3])
    ours, default = objective(1.0, direction=direction), objective(1.0)
    for each in (ours, default):
        each.start_stage_2(unet, 0)
    same = torch.equal(ours.loss(unet, clips(), random, 0).loss, default.loss(unet, clips(), random, 0).loss)
    assert same == isinstance(direction, TeacherDirection)
    assert (ours.teacher is not None) == isinstance(direction, TeacherDirection)


def test_theta_minus_after_k_steps_is_the_closed_form():
    unet = randomised()
    mixed = objective(0.5, decay=TargetDecay(0.9))
    mixed.start_stage_2(unet, 0)
    first = next(unet.parameters()).detach().clone()
    values = []
    for k in range(5):
        with torch.no_grad():
            next(unet.parameters()).copy_(first + k + 1)
        values.append(first + k + 1)
        mixed.after_step(unet)
    expected = 0.9**5 * first + sum(0.1 * 0.9 ** (4 - k) * value for k, value in enumerate(values))
    torch.testing.assert_close(next(mixed.target.parameters()).detach(), expected)


def test_average_with_decay_zero_is_the_model():
    one, other = randomised(), randomised()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    average_into(one, other, 0.0)
    assert torch.equal(next(one.parameters()), next(other.parameters()))


def test_warm_up_of_the_target_and_ramp_of_the_ratio():
    assert [TargetDecay(0.95, warmup=True)(k) for k in (0, 1, 10**6)] == [0.1, 2 / 11, 0.95]
    assert [LossRatio(0.6, ramp_steps=3)(k) for k in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.6])


def test_transfer_waits_for_delta_between_its_least_and_most_steps():
    rule = Transfer(delta=0.2, min_steps=10, max_steps=20)
    assert not rule.due(9, 0.1)
    assert rule.due(10, 0.1)
    assert not rule.due(19, 0.3)
    assert rule.due(20, 0.3)
    assert Transfer(max_steps=0).due(0, float("inf"))
    assert not Transfer().due(10**9, 0.0)


def test_running_average_has_the_asked_length():
    mixed = MGCT(SCHEDULE, Transfer(delta=0.5, average_steps=10), Consistency())
    mixed.observe(1.0, 10)
    mixed.observe(0.0, 10)
    assert mixed.average == pytest.approx(0.9**10)
    one_by_one = MGCT(SCHEDULE, Transfer(delta=0.5, average_steps=10), Consistency())
    one_by_one.observe(1.0, 1)
    for _ in range(10):
        one_by_one.observe(0.0, 1)
    assert one_by_one.average == pytest.approx(mixed.average)


def test_transferred_networks_start_as_theta():
    unet = randomised()
    mixed = objective(0.5, direction=TeacherDirection())
    mixed.start_stage_2(unet, 7)
    for network in mixed.networks().values():
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), unet.parameters(), strict=True))
        assert not any(p.requires_grad for p in network.parameters())
    assert mixed.state() == {"stage": 2, "transfer_step": 7, "updates": 0, "average": None}


def test_means_are_of_float32_or_better():
    x = torch.rand(2, 5000)
    assert per_clip_mean(x.bfloat16()).dtype == torch.float32
    assert per_clip_mean(x.double()).dtype == torch.float64


def test_the_direction_is_predicted_without_dropout_at_the_step_s_shift():
    unet, seen = randomised(dropout=0.5).train(), []
    unet.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["window_shift"]), with_kwargs=True)
    predict = TargetDirection().predictor(unet, None, 1)
    one, two = (predict(clips(), torch.full((3,), 500.0)) for _ in range(2))
    assert torch.equal(one.video, two.video)
    assert seen == [1, 1]
    assert unet.training


def test_theta_minus_has_the_dropout_of_theta():
    mixed = objective(1.0, direction=TargetDirection())
    unet = randomised(dropout=0.5).train()
    mixed.start_stage_2(unet, 0)
    mixed.loss(unet, clips(), ClipRandom([1, 2, 3]), 0)
    assert mixed.target.training


def test_at_the_end_point_noise_units_are_the_squared_noise_ratio():
    low, high = torch.tensor([0.0, 0.0, 20.0]), torch.tensor([1.0, 20.0, 40.0])
    sample = clips()
    plain, weighed = (
        consistency_loss(Recorded(), Recorded(), sample, noise_like(sample), low, high, SCHEDULE, **how)
        for how in ({}, {"weight": NoiseUnits()})
    )
    level = SCHEDULE.level(high)
    torch.testing.assert_close(
        weighed.loss / plain.loss, (level.alpha / level.sigma).square().float(), rtol=1e-3, atol=0
    )


class Louder(Recorded):
    def forward(self, *inputs, **options):
        out = super().forward(*inputs, **options)
        return AVSample(video=out.video, audio=out.audio + 1)


def test_the_consistency_loss_of_each_modality_is_logged_as_its_own():
    sample, same = clips(), torch.full((3,), 500.0)
    logs = consistency_loss(Louder(), Recorded(), sample, noise_like(sample), same, same, SCHEDULE).logs
    assert logs["loss_cm_video"].max() < 1e-6 < logs["loss_cm_audio"].min()


def test_every_draw_of_a_step_is_a_draw_of_its_own():
    asked = []

    class Noted(ClipRandom):
        def uniform(self, name):
            asked.append(name)
            return super().uniform(name)

        def normal(self, name, shape):
            asked.append(name)
            return super().normal(name, shape)

        def first(self, count):
            return Noted(self.seeds[:count], self.device)

    mixed = objective(0.5)
    mixed.start_stage_2(randomised(), 0)
    mixed.loss(randomised(), clips(), Noted([1, 2, 3]), 0)
    assert len(asked) == len(set(asked)) == 7


def test_a_share_of_the_clips_is_rounded_up():
    mixed, unet = objective(0.5, share=0.3), randomised()
    mixed.start_stage_2(unet, 0)
    assert len(mixed.loss(unet, clips(4), ClipRandom([1, 2, 3, 4]), 0).logs["loss_cm"]) == 2


def test_the_noisiest_level_and_the_last_pair_are_trained():
    class Last(ClipRandom):
        def uniform(self, name):
            return torch.full((len(self.seeds),), 1 - 1e-9, dtype=torch.float64)

        def first(self, count):
            return Last(self.seeds[:count], self.device)

    seen = []

    class Noted(Recorded):
        def forward(self, video, audio, timestep, window_shift=None):
            seen.append(timestep[0].item())
            return super().forward(video, audio, timestep)

    mixed = objective(0.5)
    mixed.start_stage_2(Noted(), 0)
    result = mixed.loss(Noted(), clips(), Last([1, 2, 3]), 0)
    assert result.timesteps.video.tolist() == [999] * 3
    assert set(seen) == {999.0, mixed.grid[-2].item()}


def test_the_teacher_leads_once_theta_minus_has_moved():
    unet, random = randomised().train(), ClipRandom([1, 2, 3])
    ours, default = objective(1.0, direction=TeacherDirection()), objective(1.0)
    for each in (ours, default):
        each.start_stage_2(unet, 0)
        with torch.no_grad():
            for parameter in each.target.parameters():
                parameter.mul_(0.5)
    assert not torch.equal(ours.loss(unet, clips(), random, 0).loss, default.loss(unet, clips(), random, 0).loss)


def test_the_first_average_of_theta_minus_is_the_shortest():
    mixed, unet = objective(0.5, decay=TargetDecay(0.9, warmup=True)), randomised()
    mixed.start_stage_2(unet, 0)
    first = next(unet.parameters()).detach().clone()
    with torch.no_grad():
        next(unet.parameters()).add_(1)
    mixed.after_step(unet)
    torch.testing.assert_close(next(mixed.target.parameters()).detach(), first + 0.9)
