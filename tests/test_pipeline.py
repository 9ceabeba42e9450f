"""The pipeline on a tiny real network: reproducibility, saving, conditions, long clips, bulk sampling, errors."""

import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from mgct import AVPipeline, AVSample, ClipSpec, MultimodalUNet
from mgct.calibrate import calibrate
from mgct.clip_folder import load_clips, sample_to_folder, save_clips
from mgct.data.media import read_clip
from mgct.errors import UserError
from mgct.given import Given
from mgct.grids import Point
from mgct.noise import NoiseSchedule
from mgct.samplers import SAMPLERS, Sampler
from mgct.sampling_options import SamplingOptions
from mgct.two_levels import best_method
from mgct.types import dequantise, quantise
from mgct.windows import windowed

CLIP = ClipSpec(frames=4, fps=10, size=8, sample_rate_hz=640)
QUIET = {"progress": False}
# float32 kernels round differently for different batch sizes, and the first steps magnify that by 1/α = 156
SAME = {"atol": 2e-3, "rtol": 0.0}


@pytest.fixture(scope="module")
def pipe():
    return AVPipeline(tiny_unet(target_time=True), CLIP)


def tiny_unet(**settings):
    torch.manual_seed(0)
    unet = MultimodalUNet(
        model_channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        cross_attention_resolutions=(2,),
        cross_attention_windows=(2,),
        video_attention_resolutions=(2,),
        num_heads=2,
        num_head_channels=8,
        norm_num_groups=8,
        **settings,
    )
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return unet


def test_a_model_without_a_second_time_input_does_not_jump():
    with pytest.raises(UserError, match=r"no second time input.*choose one of: ddpm, ddim, dpm-solver"):
        AVPipeline(tiny_unet(), CLIP)(sampler="map", **QUIET)


def assert_same(ours, theirs):
    torch.testing.assert_close(ours.video, theirs.video, **SAME)
    torch.testing.assert_close(ours.audio, theirs.audio, **SAME)


# ---------------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_makes_clips_of_the_models_shape(pipe, sampler):
    clips = pipe(num_clips=2, steps=3, sampler=sampler, seed=1, **QUIET)
    assert clips.video.shape == (2, *CLIP.video_shape)
    assert clips.audio.shape == (2, *CLIP.audio_shape)
    for part in (clips.video, clips.audio):
        assert part.dtype == torch.float32
        assert part.isfinite().all()
        assert part.abs().max() <= 1
        assert part[0].std() > 0
        assert not torch.allclose(part[0], part[1])


@pytest.mark.parametrize("sampler", ["ddpm", "dpm-solver++", "consistency"])
def test_clip_k_of_a_seed_is_the_same_alone_in_a_batch_of_3_or_8_and_in_any_order(pipe, sampler):
    together = pipe(num_clips=8, steps=4, sampler=sampler, seed=3, batch_size=8, **QUIET)
    assert_same(pipe(num_clips=8, steps=4, sampler=sampler, seed=3, batch_size=3, **QUIET), together)
    alone = pipe(indices=[5], steps=4, sampler=sampler, seed=3, **QUIET)
    assert_same(alone, together.map(lambda part: part[5:6]))
    shuffled = pipe(indices=[6, 1, 4], steps=4, sampler=sampler, seed=3, batch_size=2, **QUIET)
    assert_same(shuffled, together.map(lambda part: part[[6, 1, 4]]))
    other_seed = pipe(num_clips=1, steps=4, sampler=sampler, seed=4, **QUIET)
    assert (other_seed.video - together.video[:1]).abs().mean() > 0.05


def test_the_same_call_twice_is_bit_identical_and_leaves_torchs_generator_alone(pipe):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second = (pipe(num_clips=2, steps=3, sampler="ddpm", **QUIET) for _ in range(2))
    assert torch.equal(first.video, second.video)
    assert torch.equal(first.audio, second.audio)
    assert torch.equal(torch.get_rng_state(), before)


def test_window_shifts_are_drawn_from_seed_and_timestep_and_may_be_given(pipe):
    network = pipe.network(SamplingOptions(seed=0))
    seen = []
    forward = pipe.unet.forward

    def spy(*args, window_shift, **kwargs):
        seen.append(tuple(window_shift) if not isinstance(window_shift, int) else window_shift)
        return forward(*args, window_shift=window_shift, **kwargs)

    clips = AVSample(video=torch.zeros(1, *CLIP.video_shape), audio=torch.zeros(1, *CLIP.audio_shape))
    pipe.unet.forward = spy
    try:
        with torch.no_grad():
            for timestep in (999.0, 999.0, *range(0, 999, 40)):
                network(clips, Point(float(timestep), 0.5, 0.8))
            pipe.network(SamplingOptions(window_shift=1))(clips, Point(0.0, 1.0, 0.1))
    finally:
        del pipe.unet.forward
    assert seen[0] == seen[1]
    assert len(set(seen[:-1])) > 3
    most = pipe.unet.max_window_shifts(4)
    assert all(0 <= shift <= top for row in seen[:-1] for shift, top in zip(row, most, strict=True))
    assert seen[-1] == 1


def test_no_more_clips_are_in_the_network_than_batch_size(pipe):
    sizes = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    try:
        pipe(num_clips=5, steps=2, batch_size=2, **QUIET)
    finally:
        handle.remove()
    assert sizes == [2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, DDPMScheduler])
def test_scheduler_objects_of_diffusers_work_with_per_clip_seeds(pipe, scheduler):
    clips = pipe(num_clips=3, steps=4, sampler=scheduler(), **QUIET)
    alone = pipe(indices=[2], steps=4, sampler=scheduler(), **QUIET)
    assert_same(alone, clips.map(lambda part: part[2:]))


# ---------------------------------------------------------------------------------------------- saving


def test_save_and_load_round_trip(pipe, tmp_path):
    made_for = {"dpm-solver++": (3, 20), "consistency": (1, 4)}
    AVPipeline(pipe.unet, CLIP, made_for).save_pretrained(tmp_path)
    loaded = AVPipeline.from_pretrained(tmp_path)
    assert loaded.clip == CLIP
    assert loaded.config.recommended == {name: list(steps) for name, steps in made_for.items()}
    assert not list(tmp_path.rglob("*.bin"))
    ours, theirs = (p(num_clips=2, steps=3, **QUIET) for p in (pipe, loaded))
    assert torch.equal(ours.video, theirs.video)
    with pytest.warns(UserWarning, match="made for consistency with 1 to 4 steps; dpm-solver.. with 3 to 20 steps"):
        loaded(steps=2, sampler="ddim", **QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded(steps=3, **QUIET)


def test_a_saved_pipeline_loads_in_a_fresh_process_by_its_name_alone(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    code = (
        "import sys; from mgct import AVPipeline; p = AVPipeline.from_pretrained(sys.argv[1]);"
        "print(p(steps=2, progress=False).audio.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "[1, 1, 256]" in done.stdout


# ---------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("method", "sampler"),
    [("replacement", "ddpm"), ("replacement", "unipc"), ("guided", "dpm-solver++"), ("mm-diffusion", "ddpm")],
)
def test_the_given_modality_comes_back_and_changes_the_other(pipe, method, sampler):
    how = {"steps": 3, "sampler": sampler, "method": method, **QUIET}
    sound = torch.sin(torch.arange(CLIP.audio_samples) / 9)[None] * 0.9
    made = pipe.audio_to_video(sound, 2, **how)
    assert torch.equal(made.audio, sound.expand(2, 1, -1))
    assert made.video.shape == (2, *CLIP.video_shape)
    silent = pipe.audio_to_video(torch.zeros_like(sound), 2, **how)
    assert (silent.video - made.video).abs().mean() > 1e-4
    picture = made.video
    made = pipe.video_to_audio(picture, **how)
    assert torch.equal(made.video, picture)
    assert made.audio.shape == (2, *CLIP.audio_shape)


def test_a_network_that_knows_two_levels_is_told_that_the_given_modality_is_clean(pipe):
    """At each step: the given part at level 0, the other at the step's; that is the default, and refused elsewhere."""
    told = AVPipeline(MultimodalUNet(**{**pipe.unet.config, "audio_time": True}), CLIP)
    told.unet.load_state_dict(told.unet.with_time_inputs(pipe.unet.state_dict()))
    torch.nn.init.normal_(told.unet.other_gate.weight, std=0.5)
    seen = []
    told.unet.register_forward_pre_hook(lambda _, args, options: seen.append((args, options)), with_kwargs=True)
    sound = torch.sin(torch.arange(CLIP.audio_samples) / 9)[None] * 0.9
    shown = []
    made = told.audio_to_video(sound, steps=3, on_step=shown.append, **QUIET)
    assert torch.equal(made.audio[0], sound)
    assert len(shown) == len(seen) == 3
    for step, ((_, audio, timestep), options) in zip(shown, seen, strict=True):
        torch.testing.assert_close(step.clips.audio[0], sound)
        assert (audio[0] - sound).abs().max() < 0.1
        assert float(options["audio_timestep"]) == 0
        assert timestep > 0
    seen.clear()
    free = told.video_to_audio(made.video, steps=3, guidance_scale=2.0, **QUIET)
    assert torch.equal(free.video, made.video)
    assert [float(args[2]) for args, _ in seen] == [0, 999] * 3
    assert (told.video_to_audio(made.video, steps=3, method="replacement", **QUIET).audio - free.audio).abs().max() > 0
    seen.clear()
    follows = told(2, steps=3, audio_coupling=2.0, batch_size=2, **QUIET)
    assert [(float(args[2][0]), "audio_timestep" in options) for args, options in seen][:2] == [
        (999, False),
        (999, True),
    ]
    assert len(seen) == 6
    assert_same(told(indices=[1], steps=3, audio_coupling=2.0, **QUIET), follows.map(lambda part: part[1:]))
    assert (told(2, steps=3, **QUIET).audio - follows.audio).abs().max() > 0
    with pytest.raises(UserError, match="noise levels of their own"):
        pipe.audio_to_video(sound, steps=3, method="conditional", **QUIET)
    with pytest.raises(UserError, match="video_coupling and audio_coupling need a network"):
        pipe(steps=3, video_coupling=2.0, **QUIET)
    with pytest.raises(UserError, match="with one given: guidance_scale"):
        told.audio_to_video(sound, steps=3, video_coupling=2.0, **QUIET)
    for beyond in (math.inf, math.nan, -1001.0):
        with pytest.raises(UserError, match="audio_coupling must be a number from -1000 to 1000"):
            told(steps=3, audio_coupling=beyond, **QUIET)
        with pytest.raises(UserError, match="guidance_scale must be a number from -1000 to 1000"):
            told.audio_to_video(sound, steps=3, guidance_scale=beyond, **QUIET)
    with pytest.raises(UserError, match="guidance_scale is not for method 'replacement'"):
        told.audio_to_video(sound, steps=3, method="replacement", guidance_scale=3.0, **QUIET)
    with pytest.raises(UserError, match="for all of one modality given"):
        told.extend(made, 1.0, steps=3, method="conditional", **QUIET)
    with pytest.raises(UserError, match="for all of one modality given"):
        told.video_to_audio(made.video[:, :2], steps=3, **QUIET)
    with pytest.raises(UserError, match="needs a network that predicts ends of paths"):
        told.audio_to_video(sound, sampler="map", steps=2, method="conditional", **QUIET)
    with pytest.raises(UserError, match="'consistency' needs a network that predicts ends of paths"):
        told(steps=2, sampler="consistency", audio_coupling=2.0, **QUIET)
    assert torch.equal(told.audio_to_video(sound, sampler="map", steps=2, **QUIET).audio[0], sound)  # by replacement


@pytest.mark.parametrize(
    ("given", "independent", "conditional", "guidance"),
    [(0.0, 0.0, False, False), (0.4, 0.0, True, False), (0.0, 0.2, True, True), (0.4, 0.2, True, True)],
)
def test_a_model_is_not_asked_for_noise_levels_that_it_was_not_trained_on(
    pipe, tmp_path, given, independent, conditional, guidance
):
    """Conditional needs either share, guidance and coupling ``independent``; of an older model nothing is known."""
    told = AVPipeline(
        MultimodalUNet(**{**pipe.unet.config, "audio_time": True}),
        CLIP,
        noise_levels_apart={"given": given, "independent": independent},
    )
    told.save_pretrained(tmp_path)
    told = AVPipeline.from_pretrained(tmp_path)
    sound, how = torch.zeros(1, CLIP.audio_samples), {"steps": 1, "sampler": "ddim", **QUIET}
    assert best_method(told, SamplingOptions()) == ("conditional" if conditional else "replacement")
    ways = [
        (conditional, "conditional' needs", lambda: told.audio_to_video(sound, method="conditional", **how)),
        (
            guidance,
            "guidance_scale of method 'conditional' needs" if conditional else "conditional' needs",
            lambda: told.audio_to_video(sound, method="conditional", guidance_scale=2.0, **how),
        ),
        (guidance, "video_coupling and audio_coupling need", lambda: told(video_coupling=2.0, **how)),
    ]
    for can, said, make in ways:
        if can:
            make()
        else:
            with pytest.raises(UserError, match=f"{said} a network .* this one was not: "):
                make()
    index = tmp_path / "model_index.json"
    facts = json.loads(index.read_text())
    index.write_text(json.dumps({**facts, "noise_levels_apart": {"given": 0.4}}))
    with pytest.raises(UserError, match="cannot be loaded as a saved pipeline"):
        AVPipeline.from_pretrained(tmp_path)
    del facts["noise_levels_apart"]
    index.write_text(json.dumps(facts))
    old = AVPipeline.from_pretrained(tmp_path)
    assert best_method(old, SamplingOptions()) == "conditional"
    old(video_coupling=2.0, **how)


def test_guidance_by_the_other_modality_keeps_clips_in_range_and_compares_like_with_like(pipe):
    """x̂0 is clipped after guidance, whose two predictions have the same window shifts; no calibration is used."""
    told = AVPipeline(MultimodalUNet(**{**pipe.unet.config, "audio_time": True}), CLIP)
    told.unet.load_state_dict(told.unet.with_time_inputs(pipe.unet.state_dict()))
    torch.nn.init.normal_(told.unet.other_gate.weight, std=0.5)
    shifts, shown, bare = [], [], []
    told.unet.register_forward_pre_hook(
        lambda _, args, options: shifts.append(tuple(options["window_shift"])), with_kwargs=True
    )
    wild = {"steps": 4, "guidance_scale": 50.0, **QUIET}
    sound = torch.sin(torch.arange(CLIP.audio_samples) / 9)[None]
    made = told.audio_to_video(sound, on_step=shown.append, **wild)
    assert shifts[::2] == shifts[1::2]
    assert len(set(shifts)) > 1
    assert torch.equal(made.video, shown[-1].clips.video)  # the last level's x̂0, which lies in the range by itself
    told.audio_to_video(sound, on_step=bare.append, clip_x0=False, **wild)
    assert not torch.allclose(bare[-1].clips.video, shown[-1].clips.video)
    options = SamplingOptions(steps=4, audio_coupling=2.0)
    with pytest.raises(UserError, match="without video_coupling and audio_coupling"):
        calibrate(told, told(2, steps=2, **QUIET), options)


@pytest.mark.parametrize("method", ["replacement", "guided"])
def test_conditional_clips_do_not_depend_on_the_batch(pipe, method):
    picture = torch.rand(3, *CLIP.video_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    how = {"steps": 3, "method": method, **QUIET}
    together = pipe.video_to_audio(picture, batch_size=3, **how)
    assert_same(pipe.video_to_audio(picture, batch_size=2, **how), together)
    alone = pipe.video_to_audio(picture[2], indices=[2], **how)
    assert_same(alone, together.map(lambda part: part[2:]))


def test_guidance_brings_the_network_s_idea_of_the_condition_closer(pipe):
    """On a network in which the audio's noise depends on the video, the misfit of x̂0 falls with the guidance scale."""

    class Coupled(torch.nn.Module):
        dtype, device = torch.float32, torch.device("cpu")

        def draw_window_shifts(self, *_):
            return 0

        def forward(self, video, audio, timestep, window_shift):
            pull = video.mean((1, 2, 3, 4)).reshape(-1, 1, 1)
            return AVSample(video=0.9 * video, audio=0.9 * audio - 0.5 * pull)

    coupled = AVPipeline(MultimodalUNet(**pipe.unet.config), CLIP)
    coupled.unet = Coupled()
    sound = torch.full((1, CLIP.audio_samples), 0.5)
    means = [
        coupled.audio_to_video(sound, 8, method="guided", guidance_scale=scale, steps=10, **QUIET).video.mean().item()
        for scale in (0.0, 2.0, 8.0)
    ]
    assert means[0] < means[1] < means[2]


# ---------------------------------------------------------------------------------------------- longer


def test_longer_clips_have_the_asked_length_and_an_extension_keeps_its_start(pipe):
    long = pipe(num_clips=2, steps=3, seconds=1.0, **QUIET)
    assert long.video.shape[1] == 10
    assert long.audio.shape[2] == 640
    start = pipe(num_clips=2, steps=3, **QUIET)
    extended = pipe.extend(start, 1.0, steps=3, **QUIET)
    assert extended.video.shape[1] == 10
    assert pipe.fade_frames(4) == 1
    assert torch.equal(extended.video[:, :3], start.video[:, :3])
    assert torch.equal(extended.audio[:, :, :192], start.audio[:, :, :192])
    assert extended.video[:, 4:].std() > 0
    with pytest.raises(UserError, match="can be continued from 2 up to 10"):
        pipe.extend(long.map(lambda part: torch.cat([part, part], 1 if part.dim() == 5 else 2)), 1.0, **QUIET)


LONG = ClipSpec(frames=8, fps=10, size=1, sample_rate_hz=160)


class OrnsteinUhlenbeck(torch.nn.Module):
    """The exact ε of a stationary process in time, for one window: neighbours correlate as exp(-distance/length)."""

    dtype, device = torch.float64, torch.device("cpu")
    std, video_length, audio_length = 0.3, 4.0, 64.0

    def __init__(self):
        super().__init__()

        def eigen(count, length):
            place = torch.arange(count, dtype=torch.float64)
            return torch.linalg.eigh(self.std**2 * torch.exp(-(place[:, None] - place).abs() / length))

        self.video = eigen(LONG.frames, self.video_length)
        self.audio = eigen(LONG.audio_samples, self.audio_length)

    def draw_window_shifts(self, *_):
        return 0

    def forward(self, video, audio, timestep, window_shift):
        alpha, sigma = (float(x[0]) for x in NoiseSchedule().level(timestep[:1]))

        def noise(x, eigen):
            values, vectors = eigen
            return (x @ vectors) * (sigma / (alpha**2 * values + sigma**2)) @ vectors.T

        return AVSample(
            video=noise(video.transpose(1, -1), self.video).transpose(1, -1), audio=noise(audio, self.audio)
        )

    def steps(self, clips):
        """Root mean square change from frame to frame and sample to sample at each place, in units of the truth."""
        changes = []
        for part, axis, length in ((clips.video, 1, self.video_length), (clips.audio, 2, self.audio_length)):
            true = self.std * math.sqrt(2 - 2 * math.exp(-1 / length))
            others = [other for other in range(part.dim()) if other != axis]
            changes.append(part.diff(dim=axis).square().mean(others).sqrt() / true)
        return changes


def test_no_click_and_no_jump_at_the_joins_of_a_process_whose_score_is_known(pipe):
    """Changes at the joins against those inside a window: 2.0 s out of windows of 0.8 s that start every 0.4 s."""
    process = AVPipeline(MultimodalUNet(**pipe.unet.config), LONG)
    network = process.unet = OrnsteinUhlenbeck()
    how = {"steps": 20, "clip_x0": False, "batch_size": 600, **QUIET}
    long = process(600, seconds=2.0, **how)
    video, audio = network.steps(long)
    assert video.max() < 1.15
    assert audio.max() < 1.10
    assert min(video.min(), audio.min()) > 0.85
    assert long.video.std().item() == pytest.approx(network.std, rel=0.05)
    start = process(600, **how)
    extended = process.extend(start, 2.0, **how)
    video, audio = network.steps(extended)
    assert video.max() < 1.35
    assert audio.max() < 1.15


def test_windows_cover_every_frame_and_agree_with_a_network_that_needs_no_context():
    """For a network that acts on each element alone, windows change nothing, whatever the length."""

    def alone(clips, point):
        assert clips.video.shape[1] == CLIP.frames
        assert clips.audio.shape[2] == CLIP.audio_samples
        return clips.map(lambda part: torch.sin(3 * part) * point.sigma)

    for frames in (5, 7, 13, 40):
        samples = round(frames / CLIP.fps * CLIP.sample_rate_hz)
        clips = AVSample(video=torch.randn(2, frames, 3, 8, 8), audio=torch.randn(2, 1, samples))
        out = windowed(alone, CLIP, frames)(clips, Point(10.0, 0.9, 0.4))
        expected = clips.map(lambda part: torch.sin(3 * part) * 0.4)
        torch.testing.assert_close(out.video, expected.video)
        torch.testing.assert_close(out.audio, expected.audio)


@pytest.mark.parametrize(("fps", "rate"), [(10, 11025), (30, 11025), (23.976, 44100), (29.97, 16000)])
def test_windows_cover_a_sound_whose_frames_have_no_whole_number_of_samples(fps, rate):
    clip = ClipSpec(frames=16, fps=fps, size=8, sample_rate_hz=rate)
    for frames in range(17, 60):
        clips = AVSample(video=torch.ones(1, frames, 1, 1, 1), audio=torch.ones(1, 1, round(frames / fps * rate)))
        out = windowed(lambda clips, _: clips, clip, frames)(clips, Point(10.0, 0.9, 0.4))
        torch.testing.assert_close(out.audio, clips.audio)


def test_windows_that_disagree_are_cross_faded_without_a_step():
    """Each window predicts its own constant; the blend must pass from one to the next in small steps."""
    clip = ClipSpec(frames=16, fps=10, size=8, sample_rate_hz=1600)
    calls = []

    def constant(clips, _):
        calls.append(None)
        return clips.map(lambda part: torch.full_like(part, float(len(calls))))

    clips = AVSample(video=torch.zeros(1, 32, 3, 8, 8), audio=torch.zeros(1, 1, 5120))
    out = windowed(constant, clip, 32)(clips, Point(10.0, 0.9, 0.4))
    assert len(calls) == 3
    assert out.video.diff(dim=1).abs().max() < 0.4
    assert out.audio.diff(dim=2).abs().max() < 0.004
    assert (out.audio.min().item(), out.audio.max().item()) == pytest.approx((1, 3))


# ---------------------------------------------------------------------------------------------- files


def test_clips_are_saved_without_loss_and_as_mp4(pipe, tmp_path):
    clips = pipe(num_clips=3, steps=3, **QUIET)
    (path,) = save_clips(clips, tmp_path, CLIP, format="safetensors")
    loaded, clip = load_clips(path)
    assert clip == CLIP
    assert torch.equal(quantise(loaded).video, quantise(clips).video)
    assert torch.equal(quantise(loaded).audio, quantise(clips).audio)
    spec = replace(CLIP, sample_rate_hz=16000)
    sound = 0.5 * torch.sin(torch.arange(spec.audio_samples) * 0.2).expand(3, 1, -1)
    paths = save_clips(AVSample(video=clips.video, audio=sound), tmp_path, spec, indices=[4, 5, 9])
    assert [path.name for path in paths] == ["clip_000004.mp4", "clip_000005.mp4", "clip_000009.mp4"]
    back = dequantise(read_clip(paths[0], spec))
    assert back.video.shape == spec.video_shape
    assert back.audio.shape == spec.audio_shape
    assert (back.audio - sound[0]).abs().mean() < 0.1


@pytest.mark.parametrize("format", ["mp4", "safetensors"])
def test_bulk_sampling_splits_over_processes_and_goes_on_after_an_interruption(pipe, tmp_path, format):
    options = SamplingOptions(steps=2, batch_size=3, progress=False)
    how = {"format": format, "shard_size": 4, "world_size": 2}
    first = sample_to_folder(pipe, tmp_path, 10, options, rank=0, **how)
    names = {path.name for path in tmp_path.glob("clip*")}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("clip*")}
    second = sample_to_folder(pipe, tmp_path, 10, options, rank=1, **how)
    assert first.written + second.written == 10
    assert first.found == second.found == 0
    added = {path.name for path in tmp_path.glob("clip*")} - names
    assert added
    assert names
    lost = sorted(tmp_path.glob("clip*"))[-1]
    lost.unlink()
    again = sample_to_folder(pipe, tmp_path, 10, options, **(how | {"world_size": 1}))
    assert again.written == (1 if format == "mp4" else 2)
    assert again.written + again.found == 10
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path != lost)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match=r"made otherwise.*seed 0 → 1"):
        sample_to_folder(pipe, tmp_path, 10, replace(options, seed=1), **how)
    if format == "safetensors":
        loaded = [load_clips(path)[0].video for path in sorted(tmp_path.glob("clips_*"))]
        direct = pipe(num_clips=10, steps=2, **QUIET)
        torch.testing.assert_close(torch.cat(loaded), direct.video, atol=0.02, rtol=0)


def test_bulk_sampling_with_a_given_sound_and_a_finishing_step(pipe, tmp_path):
    sound = torch.rand(1, 1, 640) - 0.5
    given = Given(AVSample(video=torch.zeros(1, 0, 3, 8, 8), audio=sound))

    def larger(clips, indices):
        assert indices == [0, 1, 2]
        return AVSample(video=clips.video.repeat_interleave(2, -1).repeat_interleave(2, -2), audio=clips.audio)

    options = SamplingOptions(steps=2, progress=False)
    sample_to_folder(pipe, tmp_path, 3, options, format="safetensors", given=given, finish=larger)
    (path,) = tmp_path.glob("*.safetensors")
    clips, clip = load_clips(path)
    assert clip == replace(CLIP, frames=10, size=16)
    assert torch.equal(quantise(clips).audio, quantise(AVSample(video=sound, audio=sound)).audio.expand(3, 1, -1))
    assert json.loads((tmp_path / "sampling.json").read_text())["given"]["method"] == "replacement"


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p(sampler="euler", **QUIET), "unknown sampler 'euler'; choose one of: ddpm, ddim, dpm-solver"),
        (lambda p: p(steps=9, sampler="consistency", **QUIET), "'consistency' takes 1 to 8 steps, got 9"),
        (lambda p: p(steps=0, **QUIET), "takes 1 to 1000 steps, got 0"),
        (lambda p: p(num_clips=0, **QUIET), "num_clips must be at least 1"),
        (lambda p: p(batch_size=0, **QUIET), "batch_size must be at least 1"),
        (lambda p: p(seconds=0.2, **QUIET), "less than the model's own 0.4"),
        (lambda p: p(sampler=FlowMatchEulerDiscreteScheduler(), **QUIET), "FlowMatchEulerDiscreteScheduler"),
        (lambda p: p(sampler=DDIMScheduler(beta_end=0.012), **QUIET), "another noise schedule"),
        (lambda p: p(sampler=DDIMScheduler(prediction_type="v_prediction"), **QUIET), "use 'epsilon'"),
        (lambda p: p.audio_to_video(torch.rand(1, 300), **QUIET), "nearest that fits has 320 samples"),
        (lambda p: p.audio_to_video(torch.rand(300), **QUIET), "audio must be"),
        (lambda p: p.audio_to_video(torch.zeros(1, 256).short(), **QUIET), "floating point"),
        (lambda p: p.audio_to_video(torch.zeros(1, 256).numpy(), **QUIET), "audio must be a torch tensor, got ndarray"),
        (lambda p: p.audio_to_video(torch.zeros(0, 1, 256), **QUIET), "got none"),
        (lambda p: p.audio_to_video(torch.full((1, 256), math.nan), **QUIET), "must be in"),
        (lambda p: p.video_to_audio(torch.full(CLIP.video_shape, 200.0), **QUIET), "values from 200 to 200; pixels"),
        (lambda p: p.audio_to_video(torch.rand(3, 1, 256), 2, **QUIET), "has 3 clips"),
        (lambda p: p.audio_to_video(torch.rand(1, 256), method="magic", **QUIET), "unknown conditional method"),
        (lambda p: p.audio_to_video(torch.rand(1, 256), method="mm-diffusion", **QUIET), "needs sampler 'ddpm'"),
        (lambda p: p.video_to_audio(torch.rand(4, 3, 9, 9), **QUIET), r"this model's is \(4, 3, 8, 8\)"),
        (lambda p: p.extend(p(steps=1, **QUIET), 0.3, **QUIET), "less than the model's own"),
        (lambda p: p.extend(quantise(p(steps=1, **QUIET)), 1.0, **QUIET), "the clip's video must be floating point"),
        (lambda _: AVPipeline.from_pretrained("/nowhere/at/all"), "/nowhere/at/all: no such model"),
    ],
)
def test_bad_input_is_one_line_that_says_what_would_work(pipe, call, message):
    with pytest.raises(UserError, match=message) as caught:
        call(pipe)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("batch_size", "advice"), [(8, "try batch_size=4"), (1, "smaller model or clip")])
def test_out_of_memory_names_the_batch_size_to_try(pipe, batch_size, advice):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = pipe.unet.register_forward_pre_hook(exhausted)
    try:
        with pytest.raises(UserError, match=advice):
            pipe(num_clips=8, steps=2, batch_size=batch_size, **QUIET)
    finally:
        handle.remove()


def test_a_clip_too_long_for_memory_is_told_so(pipe):
    for seconds in (1e13, 1e300):
        with pytest.raises(UserError, match="does not fit into memory: ask for fewer seconds"):
            pipe(seconds=seconds, steps=2, **QUIET)

    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = pipe.unet.register_forward_pre_hook(exhausted)
    try:
        with pytest.raises(UserError, match="batch_size is 1 already: ask for fewer seconds"):
            pipe(seconds=1.0, steps=2, batch_size=1, **QUIET)
    finally:
        handle.remove()


def test_a_file_that_holds_no_clips_is_refused(tmp_path):
    path = tmp_path / "clips_000000-000001.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a file of clips"):
        load_clips(path)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_level_above_the_start_is_sampled_through(pipe, sampler):
    seen = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend([*args, *kwargs.values()]), with_kwargs=True
    )
    try:
        clips = pipe(num_clips=2, steps=4, sampler=sampler, start_timestep=600, **QUIET)
    finally:
        hook.remove()
    times = [float(x.max()) for x in seen if torch.is_tensor(x) and x.dim() < 3 and x.numel() <= 2]
    assert times
    assert max(times) == 600
    assert all(part.isfinite().all() for part in (clips.video, clips.audio))
    assert not torch.equal(clips.video, pipe(num_clips=2, steps=4, sampler=sampler, **QUIET).video)


def test_a_model_s_own_start_is_taken_where_it_fits_and_no_other_is_asked_for(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    pipe = AVPipeline.from_pretrained(tmp_path)  # weights that lie elsewhere in memory may round otherwise
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "start_timestep": 600}))
    low = AVPipeline.from_pretrained(tmp_path)
    ways = {None: 600, 300: 300, 999: 999}
    for asked, start in ways.items():
        ours = low(num_clips=1, steps=3, start_timestep=asked, **QUIET)
        assert torch.equal(ours.video, pipe(num_clips=1, steps=3, start_timestep=start, **QUIET).video)
    assert low.start_timestep(SamplingOptions(sampler="ddpm", steps=700)) == 999  # more calls than it has levels
    assert low.start_timestep(SamplingOptions(sampler=DDIMScheduler(), steps=3)) == 999
    assert torch.equal(
        pipe(num_clips=1, steps=3, **QUIET).video, pipe(num_clips=1, steps=3, start_timestep=999, **QUIET).video
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start_timestep": 0}, "at least 1"),
        ({"start_timestep": 1000}, "below the schedule's 1000"),
        ({"start_timestep": 10, "steps": 12}, "12 steps do not fit below start_timestep=10"),
    ],
)
def test_a_start_that_cannot_be_is_refused(pipe, options, words):
    with pytest.raises(UserError, match=words):
        pipe(**options, **QUIET)


@pytest.mark.parametrize("start", ["abc", -7, 0, 5000, 700.5, True])
def test_a_model_whose_own_start_cannot_be_is_refused(pipe, tmp_path, start):
    pipe.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "start_timestep": start}))
    with pytest.raises(UserError, match=f"start_timestep must be a whole number from 1 to 999, got {start!r}"):
        AVPipeline.from_pretrained(tmp_path)


def test_clips_that_are_not_finite_are_named_and_not_given_out():
    pipe = AVPipeline(tiny_unet(), CLIP)
    with torch.no_grad():
        next(iter(pipe.unet.parameters())).fill_(math.nan)
    with pytest.raises(UserError, match=r"clips 4, 5 are not finite numbers: the model's weights are damaged"):
        pipe(steps=1, indices=[4, 5], clip_x0=False, **QUIET)


def test_every_step_has_noise_of_its_own(pipe, monkeypatch):
    seen, plain = [], Sampler.run

    def run(self, predict, x, schedule, steps, noise):
        seen.extend(noise(step) for step in range(3))
        return plain(self, predict, x, schedule, steps, noise)

    monkeypatch.setattr(Sampler, "run", run)
    pipe(steps=3, sampler="ddpm", **QUIET)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_sampler_clips_as_its_table_has_it(pipe):
    for name, sampler in SAMPLERS.items():
        usual, told, other = (
            pipe(steps=3, sampler=name, clip_x0=clip, **QUIET).video for clip in (None, sampler.clip, not sampler.clip)
        )
        assert torch.equal(usual, told)
        assert not torch.equal(usual, other)


def test_no_dropout_while_sampling():
    pipe = AVPipeline(tiny_unet(dropout=0.5).train(), CLIP)
    one, two = (pipe(steps=2, **QUIET) for _ in range(2))
    assert torch.equal(one.video, two.video)


def test_schedulers_and_shifts_draw_from_the_seed_and_the_clip(pipe):
    from diffusers import DDPMScheduler

    seen = {}

    class Noted(DDPMScheduler):
        def step(self, *arguments, generator, **options):
            seen[seed] = [one.initial_seed() for one in generator]
            return super().step(*arguments, generator=generator, **options)

    for seed in (0, 1):
        pipe(num_clips=2, steps=2, sampler=Noted(), seed=seed, **QUIET)
    assert len({*seen[0], *seen[1]}) == 4


def test_window_shifts_are_the_seeds(pipe):
    seen = {}
    for seed in (0, 1):
        seen[seed] = []
        handle = pipe.unet.register_forward_pre_hook(
            lambda _, args, kwargs, seed=seed: seen[seed].append(tuple(kwargs["window_shift"])), with_kwargs=True
        )
        pipe(steps=12, seed=seed, **QUIET)
        handle.remove()
    assert seen[0] != seen[1]


def test_a_pipeline_samples_by_the_schedule_it_was_trained_with(tmp_path):
    from mgct.noise import NoiseSchedule

    AVPipeline(tiny_unet(), CLIP, num_timesteps=500, beta_start=2e-4, beta_end=0.03).save_pretrained(tmp_path)
    loaded = AVPipeline.from_pretrained(tmp_path).schedule
    assert torch.equal(loaded.alpha_bar, NoiseSchedule(500, 2e-4, 0.03).alpha_bar)


def test_a_network_of_velocities_is_of_the_default_schedule():
    """It works out the noise itself, by the levels that networks are trained at."""
    unet = tiny_unet(prediction_type="v_prediction")
    assert torch.isfinite(AVPipeline(unet, CLIP)(1, steps=2).video).all()
    with pytest.raises(UserError, match="is of the default noise schedule"):
        AVPipeline(unet, CLIP, num_timesteps=500)


def test_a_start_beyond_the_range_is_cut(pipe):
    start = AVSample(video=torch.full((1, *CLIP.video_shape), 1.4), audio=torch.full((1, *CLIP.audio_shape), 1.4))
    made = pipe.extend(start, 1.0, steps=2, **QUIET)
    assert made.video.abs().max() <= 1
    assert made.audio.abs().max() <= 1


def test_what_is_shown_of_a_step_lies_in_the_range(pipe):
    seen = []
    pipe(steps=3, sampler="dpm-solver", on_step=lambda step: seen.append(step.clips.video.abs().max().item()), **QUIET)
    assert max(seen) <= 1


def test_the_start_fades_into_what_is_generated(pipe):
    """The sound passes from the given one to the generated one."""
    start = AVSample(video=torch.full((1, *CLIP.video_shape), 1.0), audio=torch.full((1, *CLIP.audio_shape), 1.0))
    made = pipe.extend(start, 1.0, steps=2, **QUIET)
    first, last = made.audio[0, 0, 192:200].mean(), made.audio[0, 0, 248:256].mean()
    assert first > 0.9 > last
