"""Gains of x̂0 by frequency band: what they do to a signal, how they are measured, kept and used."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgct import AVPipeline, AVSample, ClipSpec
from mgct.calibrate import LARGEST_GAIN, calibrate, matching_gains
from mgct.calibration import Calibration, PathGains
from mgct.checkpoint import run_folder
from mgct.cli import main
from mgct.clip_folder import sample_to_folder
from mgct.errors import MgctWarning, UserError
from mgct.files import locked
from mgct.frequency_bands import (
    AUDIO_BANDS,
    VIDEO_BANDS,
    VIDEO_SHAPE,
    band_sums,
    bands_of,
    clips_of,
    count_bands,
    spectra,
)
from mgct.metrics.sources import open_source
from mgct.model_card import HowSampled, ModelFacts, model_card, with_sampling
from mgct.reproduce.study import Settings, Study
from mgct.sampling_options import SamplingOptions
from mgct.types import dequantise
from tests.test_pipeline import CLIP, QUIET, tiny_unet

SIZES = (CLIP.frames, CLIP.size, CLIP.size, CLIP.audio_samples)
NO_COLOUR = torch.zeros(3)
WAY = {"sampler": "sde-dpm-solver++", "calls": 3, "start_timestep": 999, "autoguidance": 1.0}


def clips(count: int, seed: int = 0) -> AVSample:
    draw = torch.Generator().manual_seed(seed)
    return AVSample(
        video=0.3 * torch.randn(count, *CLIP.video_shape, generator=draw),
        audio=0.1 * torch.randn(count, *CLIP.audio_shape, generator=draw),
    )


def gains(video=1.0, audio=1.0, colour=0.0, **way) -> PathGains:
    """Gains of three calls, the same for all bands."""
    return PathGains(
        **{**WAY, **way},
        timesteps=(999.0, 500.0, 100.0),
        video=torch.full((3, VIDEO_BANDS), video),
        audio=torch.full((3, AUDIO_BANDS), audio),
        before=torch.zeros(3, 3),
        after=torch.full((3, 3), colour),
    )


@pytest.mark.parametrize("sizes", [SIZES, (5, 6, 10, 63), (16, 64, 64, 25600)])
def test_the_bands_hold_every_coefficient_once(sizes):
    frames, height, width, samples = sizes
    counts = count_bands(*sizes)
    assert counts.video.sum() == 3 * frames * height * width
    assert counts.audio.sum() == samples
    assert counts.video.view(VIDEO_SHAPE)[:, -1, -1].tolist() == [1, 2]  # the mean brightness, and two mean colours


def test_spectra_keep_the_power_and_can_be_undone():
    one = clips(2)
    found = spectra(one, NO_COLOUR)
    sums = band_sums(found, found, bands_of(*SIZES))
    assert sums.video.sum().item() == pytest.approx(one.video.square().sum().item(), rel=1e-5)
    assert sums.audio.sum().item() == pytest.approx(one.audio.square().sum().item(), rel=1e-5)
    back = clips_of(found, one)
    torch.testing.assert_close(back.video, one.video, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.audio, one.audio, rtol=0, atol=1e-5)


def test_a_frequency_is_in_the_same_band_in_clips_of_any_size():
    for sizes in ((16, 64, 64, 25600), (32, 128, 128, 51200)):
        frames, height, _, samples = sizes
        time = torch.cos(torch.pi / 2 * torch.arange(frames))  # a period of 4 frames
        space = torch.cos(torch.pi / 4 * torch.arange(height))  # of 8 pixels
        video = (time[:, None, None, None] * space[:, None]).expand(frames, 3, height, sizes[2])[None]
        sound = torch.cos(torch.pi / 5 * torch.arange(samples))[None, None]  # of 10 samples
        found = spectra(AVSample(video=video, audio=sound), NO_COLOUR)
        power = band_sums(found, found, bands_of(*sizes))
        assert power.video.argmax() == 1 * 12 + 4  # brightness, an octave and four half octaves below Nyquist
        assert power.audio.argmax() == 5
        assert power.video.max() > 0.999 * power.video.sum()
        assert power.audio.max() > 0.999 * power.audio.sum()


def test_gains_of_one_change_nothing_and_of_zero_leave_the_mean_colour():
    one = clips(2).map(lambda x: x.clamp(-1, 1))
    same = gains().apply(one, 500.0)
    torch.testing.assert_close(same.video, one.video, rtol=0, atol=1e-5)
    torch.testing.assert_close(same.audio, one.audio, rtol=0, atol=1e-5)
    nothing = gains(video=0.0, audio=0.0, colour=0.25).apply(one, 500.0)
    torch.testing.assert_close(nothing.video, torch.full_like(one.video, 0.25), rtol=0, atol=1e-5)
    torch.testing.assert_close(nothing.audio, torch.zeros_like(one.audio), rtol=0, atol=1e-5)


def test_each_call_has_gains_of_its_own_and_a_band_does_not_touch_another():
    table = gains()
    table.audio[1, 2:] = 0.0
    one = clips(1)
    assert torch.allclose(table.apply(one, 998.7).audio, one.audio, atol=1e-5)
    found, before = spectra(table.apply(one, 500.2), NO_COLOUR), spectra(one, NO_COLOUR)
    band = bands_of(*SIZES).audio
    assert found.audio[..., band > 1].abs().max() < 1e-5
    torch.testing.assert_close(found.audio[..., band < 2], before.audio[..., band < 2], rtol=0, atol=1e-5)


def test_gains_give_the_power_that_is_wanted_up_to_the_largest():
    found = AVSample(video=torch.ones(VIDEO_BANDS), audio=torch.tensor([1.0]))
    wanted = AVSample(video=torch.ones(VIDEO_BANDS), audio=torch.tensor([100.0]))
    found.video[:4], wanted.video[:4] = torch.tensor([1.0, 4.0, 0.0, 1.0]), torch.tensor([2.25, 1.0, 1.0, 0.0])
    made = matching_gains(wanted, found, found.map(torch.ones_like), 2.0)
    assert made.video[:5].tolist() == [1.5, 0.5, 0.0, 0.0, 1.0]
    assert made.audio.tolist() == [2.0]


@pytest.fixture(scope="module")
def pipe():
    return AVPipeline(tiny_unet(), CLIP)


def shrinking(pipe, share: float, variance: float):
    """The pipeline, with the exact x̂0 of independent Gaussian values times ``share``, always too weak."""

    def network(options):
        def call(noisy, point):
            best = point.alpha * variance / (point.alpha**2 * variance + point.sigma**2)
            return noisy.map(lambda x: (x - point.alpha * share * best * x) / point.sigma)

        return call

    class Wrong(AVPipeline):
        def network(self, options):
            return network(options)

    return Wrong(pipe.unet, pipe.clip)


def test_what_a_network_predicts_too_weakly_is_made_strong_enough(pipe):
    variance = 0.04
    draw = torch.Generator().manual_seed(0)
    real = AVSample(
        video=variance**0.5 * torch.randn(48, *CLIP.video_shape, generator=draw),
        audio=variance**0.5 * torch.randn(48, *CLIP.audio_shape, generator=draw),
    )
    wrong = shrinking(pipe, 0.6, variance)
    options = SamplingOptions(steps=8, sampler="dpm-solver++", start_timestep=700, progress=False)
    weak = wrong(48, 8, "dpm-solver++", start_timestep=700, progress=False)
    table = calibrate(wrong, real, options)
    assert (table.sampler, table.calls, table.start_timestep) == ("dpm-solver++", 8, 700)
    assert list(table.timesteps) == sorted(table.timesteps, reverse=True)
    wrong.register_modules(calibration=Calibration.of([table]))
    right = wrong(48, 8, "dpm-solver++", start_timestep=700, progress=False)
    for part in ("video", "audio"):
        assert getattr(weak, part).var() < 0.75 * variance
        assert getattr(right, part).var().item() == pytest.approx(variance, rel=0.1)


def test_a_calibration_is_measured_with_the_gains_before_in_use_and_not_with_an_old_one(pipe):
    real = dequantise(open_source("world:landscape:4", CLIP, "train").read(range(4)))
    options = SamplingOptions(steps=3, sampler="sde-dpm-solver++", progress=False)
    first = calibrate(pipe, real, options)
    pipe.register_modules(calibration=Calibration.of([gains(video=0.5)]))
    again = calibrate(pipe, real, options)
    assert pipe.calibration is not None
    pipe.register_modules(calibration=None)
    for name in ("video", "audio", "before", "after"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert first.video.max() <= LARGEST_GAIN
    torch.testing.assert_close(first.after, real.video.mean((0, 1, 3, 4)).expand(3, 3))
    in_parts = calibrate(pipe, real, SamplingOptions(steps=3, sampler="sde-dpm-solver++", batch_size=3, progress=False))
    torch.testing.assert_close(in_parts.video, first.video, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("count", "clip", "sampler", "said"),
    [
        (1, CLIP, "ddim", "at least 2 clips"),
        (2, ClipSpec(frames=8, fps=CLIP.fps, size=8, sample_rate_hz=CLIP.sample_rate_hz), "ddim", "as the model makes"),
        (2, CLIP, object(), "not for a scheduler"),
        (2, CLIP, "consistency", "predicts ends of paths"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(pipe, count, clip, sampler, said):
    real = AVSample(video=torch.zeros(count, *clip.video_shape), audio=torch.zeros(count, *clip.audio_shape))
    with pytest.raises(UserError, match=said):
        calibrate(pipe, real, SamplingOptions(steps=2, sampler=sampler, progress=False))


def test_a_model_keeps_its_gains_and_uses_them_for_their_way_of_sampling_alone(tmp_path):
    unet = tiny_unet()
    pipe = AVPipeline(unet, CLIP, calibration=Calibration.of([gains(audio=0.0), gains(video=0.5)]))
    assert [path.video[0, 0].item() for path in pipe.calibration.paths] == [0.5]  # the last of one way
    pipe.register_modules(calibration=Calibration.of([gains(audio=0.0)]))
    pipe.save_pretrained(tmp_path)
    loaded, plain = AVPipeline.from_pretrained(tmp_path), AVPipeline(unet, CLIP)
    made = pipe(2, 3, WAY["sampler"], **QUIET)
    assert torch.equal(loaded(2, 3, WAY["sampler"], **QUIET).audio, made.audio)
    assert made.audio.abs().max() < 1e-5  # no gain, no sound
    alone = pipe(1, 3, WAY["sampler"], indices=[1], **QUIET)
    torch.testing.assert_close(alone.video, made.video[1:], rtol=0, atol=1e-4)
    for other in ({"steps": 4}, {"steps": 3, "start_timestep": 700}):
        with pytest.warns(MgctWarning, match=r"calibrated for sde-dpm-solver\+\+ from 999 with 3 calls; as asked"):
            ours = pipe(1, sampler=WAY["sampler"], **other, **QUIET)
        theirs = plain(1, sampler=WAY["sampler"], **other, **QUIET)
        assert torch.equal(ours.audio, theirs.audio)
    assert pipe(1, 3, WAY["sampler"], seconds=0.8, **QUIET).audio.abs().max() < 1e-5


def test_where_sound_is_given_the_picture_is_calibrated_by_replacement_and_not_by_guidance():
    unet = tiny_unet()
    pipe, plain = AVPipeline(unet, CLIP, calibration=Calibration.of([gains(video=0.0, colour=0.25)])), None
    sound = torch.rand(1, 1, CLIP.audio_samples) - 0.5
    way = {"steps": 3, "sampler": WAY["sampler"], **QUIET}
    made = pipe.audio_to_video(sound, **way)
    torch.testing.assert_close(made.audio, sound, rtol=0, atol=1e-5)
    torch.testing.assert_close(made.video, torch.full_like(made.video, 0.25), rtol=0, atol=1e-4)
    plain = AVPipeline(unet, CLIP)
    ours, theirs = (one.audio_to_video(sound, method="guided", **way) for one in (pipe, plain))
    assert torch.equal(ours.video, theirs.video)


def test_values_that_may_leave_the_range_are_not_calibrated():
    unet = tiny_unet()
    pipe, plain = AVPipeline(unet, CLIP, calibration=Calibration.of([gains(audio=0.0)])), AVPipeline(unet, CLIP)
    way = {"steps": 3, "sampler": WAY["sampler"], "clip_x0": False, **QUIET}
    with pytest.warns(MgctWarning, match="goes without"):
        made = pipe(1, **way)
    assert torch.equal(made.audio, plain(1, **way).audio)


def test_long_clips_have_their_slow_motion_though_the_model_s_own_have_none_so_slow():
    sizes = count_bands(8, 16, 16, 512)
    wanted = AVSample(video=torch.ones(VIDEO_BANDS), audio=torch.ones(AUDIO_BANDS))
    found = AVSample(video=4 * sizes.video.clamp(max=1).float(), audio=4 * sizes.audio.clamp(max=1).float())
    made = matching_gains(wanted, found, sizes, 2.0)
    slow, faster = (made.video.view(VIDEO_SHAPE)[:, row] for row in (3, 2))
    assert sizes.video.view(VIDEO_SHAPE)[:, 3].sum() == 0
    assert torch.equal(slow, faster)
    assert set(made.video.tolist()) == {0.5, 1.0}  # 1: spatial bands that no clip of this size has
    odd = matching_gains(wanted, found, count_bands(5, 16, 16, 512), 2.0)
    assert torch.equal(odd.video.view(VIDEO_SHAPE)[:, 0], odd.video.view(VIDEO_SHAPE)[:, 1])


def test_gains_in_half_precision_are_those_of_the_same_calls():
    many = [float(t) for t in range(999, -1, -1)]
    table = PathGains(
        "ddpm", 1000, 999, 1.0, tuple(many), *(torch.zeros(1000, n) for n in (VIDEO_BANDS, AUDIO_BANDS, 3, 3))
    )
    table.video[:] = torch.arange(1000.0)[:, None]
    (path,) = Calibration.of([table]).to(torch.bfloat16).paths
    assert [path.row(t) for t in many] == list(range(1000))
    assert path.video.dtype == torch.bfloat16
    assert path.apply(clips(1), 500.0).video.dtype == torch.float32


def test_calibrated_clips_are_not_mixed_with_others_and_tables_are_made_without(tmp_path):
    unet = tiny_unet()
    pipe, plain = AVPipeline(unet, CLIP, calibration=Calibration.of([gains()])), AVPipeline(unet, CLIP)
    options = SamplingOptions(steps=3, sampler=WAY["sampler"], progress=False)
    sample_to_folder(pipe, tmp_path / "clips", 1, options)
    pipe.register_modules(calibration=Calibration.of([gains(), gains(sampler="ddim")]))
    sample_to_folder(pipe, tmp_path / "clips", 2, options)  # another way does not matter
    with pytest.raises(UserError, match=r"made otherwise.*calibration"):
        sample_to_folder(plain, tmp_path / "clips", 1, options)
    pipe.save_pretrained(tmp_path / "model")
    assert Study({"baseline": tmp_path / "model"}, tmp_path, Settings())._pipe("baseline").calibration is None


# ---------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def model(tmp_path):
    AVPipeline(tiny_unet(), CLIP).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text(model_card(ModelFacts("m", CLIP, 1, {"ddim": [1, 2]})))
    (tmp_path / "model" / ".git").mkdir()
    (tmp_path / "model" / ".git" / "HEAD").write_text("main")
    return tmp_path / "model"


def test_a_saved_model_is_calibrated_in_its_place(model, capsys):
    weights = (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    call = ["calibrate", str(model), "world:landscape", "--num", "4"]
    assert main([*call, "--steps", "[2,3]", "--start_timestep", "700"]) == 0
    assert "calibrated for sde-dpm-solver++ from 700 with 2, 3 calls" in capsys.readouterr().out
    assert main([*call, "--steps", "[3]", "--sampler", "ddim"]) == 0
    pipe = AVPipeline.from_pretrained(model)
    assert [path.key for path in pipe.calibration.paths] == [
        ("ddim", 3, 700, 1),
        ("sde-dpm-solver++", 2, 700, 1),
        ("sde-dpm-solver++", 3, 700, 1),
    ]
    assert pipe.coarse_start is not None
    assert (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert (model / ".git" / "HEAD").read_text() == "main"
    card = (model / "README.md").read_text()
    assert card.count("Calibrated (`mgct calibrate`) for ddim from 700 with 3 calls; sde") == 1
    assert "Sampling starts at noise level 700 unless" in card
    assert "has the coarse colours" in card


def test_a_calibrated_copy_leaves_the_model_as_it_is(model, tmp_path):
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    call = ["calibrate", str(model), "world:landscape", "--out", str(tmp_path / "copy"), "--num", "2", "--steps", "[2]"]
    assert main(call) == 0
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    assert "calibration" in json.loads((tmp_path / "copy" / "model_index.json").read_text())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["world:landscape", "--num", "1"], "num must be at least 2"),
        (["world:landscape:1"], "has 1 training clips; a calibration needs at least 2"),
        (["world:landscape", "--steps", "[0]"], "steps"),
        (["world:landscape", "--sampler", "euler"], "euler"),
        (["world:landscape", "--sampler", "map", "--steps", "[2]", "--num", "2"], "predicts ends of paths"),
        (["world:landscape", "--steps", "[8,800]", "--start_timestep", "700"], "800 steps do not fit"),
        (["world:landscape", "--start_timestep", "2000"], "must be below the schedule"),
        (["world:dance:5", "--out", "."], "holds something else"),
        (["world:dance:5", "--out", "file"], "holds something else"),
        (["nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_line(model, capsys, monkeypatch, options, said):
    monkeypatch.chdir(model.parent)
    Path("file").write_text("")
    before = sorted(model.parent.rglob("*"))
    assert main(["calibrate", str(model), *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert error.startswith("mgct: ")
    assert sorted(model.parent.rglob("*")) == before


def test_models_of_the_package_are_not_changed(capsys):
    assert main(["calibrate", "landscape-micro", "world:landscape"]) == 2
    assert "give --out FOLDER" in capsys.readouterr().err


def test_a_card_says_once_what_is_calibrated():
    sampled = HowSampled(calibration="ddim with 2 calls from 999", autoguidance=1.5)
    card = model_card(ModelFacts("m", CLIP, 1, {"ddim": [1, 2]}, sampled=sampled))
    assert card.count("Calibrated") == card.count("Autoguidance of strength 1.5") == 1
    again = with_sampling(card, replace(sampled, calibration="ddim with 3 calls from 999"))
    assert again.count("Calibrated") == 1
    assert "ddim with 3 calls" in again
    assert again.replace("3 calls", "2 calls") == card


def test_a_network_that_gives_no_numbers_is_refused(model, capsys):
    pipe = AVPipeline.from_pretrained(model)
    next(pipe.unet.parameters()).data.fill_(float("nan"))
    pipe.save_pretrained(model)
    assert main(["calibrate", str(model), "world:landscape", "--num", "2", "--steps", "[2]"]) == 2
    assert "are not finite numbers: its weights are damaged" in capsys.readouterr().err
    assert not (model / "calibration").exists()


def test_a_run_that_is_being_trained_is_left_alone(model, capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with locked(tmp_path, "mgct train"):
        assert main(["calibrate", str(tmp_path), "world:landscape", "--num", "2", "--steps", "[2]"]) == 2
    assert "another mgct train or calibrate is writing" in capsys.readouterr().err
    assert main(["calibrate", str(tmp_path), "world:landscape", "--num", "2", "--steps", "[2]"]) == 0


def test_a_prepared_folder_of_longer_clips_does_as_it_does_for_training(model, tiny_shards, tmp_path):
    facts = json.loads((tiny_shards / "index.json").read_text())["settings"]["clip"]
    shorter = ClipSpec(**{**facts, "frames": facts["frames"] // 2})
    unet = AVPipeline.from_pretrained(model).unet
    AVPipeline(unet, shorter).save_pretrained(tmp_path / "short")
    assert main(["calibrate", str(tmp_path / "short"), str(tiny_shards), "--num", "2", "--steps", "[2]"]) == 0
    (path,) = AVPipeline.from_pretrained(tmp_path / "short").calibration.paths
    assert path.calls == 2


@pytest.mark.parametrize("damage", ["tensor", "config", "empty"])
def test_a_damaged_calibration_is_refused(tmp_path, damage):
    AVPipeline(tiny_unet(), CLIP, calibration=Calibration.of([gains()])).save_pretrained(tmp_path / "model")
    folder = tmp_path / "model" / "calibration"
    config = json.loads((folder / "config.json").read_text())
    if damage == "tensor":
        tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
        del tensors["audio_0"]
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    elif damage == "config":
        del config["paths"][0]["sampler"]
    else:
        config["paths"] = []
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        AVPipeline.from_pretrained(tmp_path / "model")


@pytest.fixture
def other_run(tmp_path):
    """The run folder of another model."""
    run = tmp_path / "other"
    with run_folder(run, {"init": "", "clip": {}}, "mgct train"):
        AVPipeline(tiny_unet(), CLIP).save_pretrained(run / "model")
    return run


CALL = ["world:landscape", "--num", "2", "--steps", "[2]"]


@pytest.mark.parametrize("out", ["other/model", "other/best", "other/new/copy"])
def test_the_model_of_another_run_is_not_replaced(model, other_run, tmp_path, capsys, out):
    before = {path: path.read_bytes() for path in other_run.rglob("*") if path.is_file()}
    with locked(other_run, "mgct train"):
        assert main(["calibrate", str(model), *CALL, "--out", str(tmp_path / out)]) == 2
    assert "is of another run or model than" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in other_run.rglob("*") if path.is_file()} == before


def test_a_copy_is_replaced_by_one_of_the_same_weights_alone(model, tmp_path, capsys):
    copy = ["--out", str(tmp_path / "copy")]
    for _ in range(2):
        assert main(["calibrate", str(model), *CALL, *copy]) == 0
    pipe = AVPipeline.from_pretrained(model)
    next(pipe.unet.parameters()).data.add_(1)
    pipe.save_pretrained(model)
    assert main(["calibrate", str(model), *CALL, *copy]) == 2
    assert "is of another run or model than" in capsys.readouterr().err


def test_a_copy_inside_a_run_is_made_while_nobody_trains_there(other_run, capsys):
    call = ["calibrate", str(other_run), *CALL, "--out", str(other_run / "calibrated")]
    with locked(other_run, "mgct train"):
        assert main(call) == 2
    assert "another mgct train or calibrate is writing" in capsys.readouterr().err
    assert main(call) == 0


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["calibrate", str(model), *CALL, "--out", str(tmp_path / "file" / "copy")]) == 2
    err = capsys.readouterr().err
    assert "copy cannot be made (Not a directory): choose another folder" in err
    assert "calls, on" not in err
