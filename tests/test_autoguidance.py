"""A network led away from the errors of a weaker one: what it makes, how the two are kept together, what is refused."""

import json

import pytest
import torch

from mgct import AVPipeline, AVSample
from mgct.calibrate import calibrate
from mgct.calibration import Calibration
from mgct.cli import main
from mgct.errors import UserError
from mgct.grids import points
from mgct.losses import Guide, multimodal_loss
from mgct.network_calls import autoguided
from mgct.noise import NoiseSchedule
from mgct.reproduce.study import Settings, Study
from mgct.sampling_options import SamplingOptions
from mgct.stages import Guidance
from tests.test_calibration import clips
from tests.test_pipeline import CLIP, QUIET, tiny_unet


def network(seed: int, **config):
    """A tiny network, another for each seed."""
    unet, draw = tiny_unet(**config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return unet


@pytest.fixture(scope="module")
def strong():
    return network(1)


@pytest.fixture(scope="module")
def weak():
    return network(2)


def same(one: AVSample, other: AVSample, atol: float = 0.0) -> None:
    one.map(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=atol), other)


def test_errors_that_the_weaker_one_has_twice_over_cancel():
    truth, error = clips(2), clips(2, seed=1)
    (point,) = points(NoiseSchedule(), torch.tensor([500.0]))
    led = autoguided(
        lambda noisy, _: noisy.map(torch.add, error),
        lambda noisy, _: noisy.map(lambda x, e: x + 2 * e, error),
        2.0,
    )
    same(led(truth, point), truth, atol=1e-6)


def test_strength_one_is_the_network_and_nought_the_guide(strong, weak):
    led = AVPipeline(strong, CLIP, guide=weak)
    same(led(2, 3, autoguidance=1.0, **QUIET), AVPipeline(strong, CLIP)(2, 3, **QUIET))
    same(led(2, 3, autoguidance=0.0, **QUIET), AVPipeline(weak, CLIP)(2, 3, **QUIET), atol=1e-5)
    away = led(2, 3, autoguidance=2.0, **QUIET)
    assert (away.video - led(2, 3, **QUIET).video).abs().max() > 0.01


def test_a_guide_as_good_as_the_network_changes_nothing(strong):
    same(
        AVPipeline(strong, CLIP, guide=strong)(2, 3, autoguidance=3.0, **QUIET),
        AVPipeline(strong, CLIP)(2, 3, **QUIET),
        atol=1e-5,
    )


def test_a_clip_does_not_depend_on_its_batch_nor_on_whether_it_is_long(strong, weak):
    led = AVPipeline(strong, CLIP, guide=weak, autoguidance=1.5)
    together = led(3, 3, **QUIET)
    alone = led(3, 3, indices=[2], **QUIET)
    same(together.map(lambda x: x[2:]), alone, atol=1e-4)
    assert led(1, 2, seconds=2 * CLIP.seconds, **QUIET).video.shape[1] == 2 * CLIP.frames


def test_it_leads_given_sound_too(strong, weak):
    sound = clips(1).audio
    made = [
        AVPipeline(strong, CLIP, guide=weak).audio_to_video(
            sound, method=method, steps=2, autoguidance=strength, **QUIET
        )
        for method in ("replacement", "guided")
        for strength in (1.0, 2.0)
    ]
    for one in made:
        torch.testing.assert_close(one.audio, sound.clamp(-1, 1))
    assert (made[0].video - made[1].video).abs().max() > 0.01
    assert (made[2].video - made[3].video).abs().max() > 0.01


def test_the_guide_is_told_both_noise_levels(strong):
    knows = [network(seed, audio_time=True) for seed in (1, 2)]
    led = AVPipeline(knows[0], CLIP, guide=knows[1])
    for strength in (1.0, 2.0):
        led.video_to_audio(clips(1).video, method="conditional", steps=2, autoguidance=strength, **QUIET)
    with pytest.raises(UserError, match="the guide of a network with audio_time needs it too"):
        AVPipeline(knows[0], CLIP, guide=strong)


def test_gains_are_those_of_the_strength_they_were_measured_at(strong, weak):
    led = AVPipeline(strong, CLIP, guide=weak, autoguidance=1.5)
    gains = calibrate(led, clips(4), SamplingOptions(3, **QUIET))
    assert gains.autoguidance == 1.5
    led.register_modules(calibration=Calibration.of([gains]))
    assert "with 3 calls and autoguidance 1.5" in led.calibration.said()
    assert led.gains(SamplingOptions(3)) is not None
    assert led.gains(SamplingOptions(3, autoguidance=1.0)) is None
    assert led.gains(SamplingOptions(3, autoguidance=1.5)) is not None


def test_ends_of_paths_are_not_led(strong, weak):
    both = [network(seed, target_time=True) for seed in (1, 2)]
    led, plain = AVPipeline(both[0], CLIP, guide=both[1], autoguidance=2.0), AVPipeline(both[0], CLIP)
    same(led(1, 2, "map", **QUIET), plain(1, 2, "map", **QUIET))
    with pytest.raises(UserError, match="autoguidance is of denoised clips, and sampler 'map' asks for ends of paths"):
        led(1, 2, "map", autoguidance=2.0, **QUIET)


def test_what_cannot_be_is_refused(strong, weak):
    with pytest.raises(UserError, match="autoguidance needs a model with a guide: `mgct guide` gives it one"):
        AVPipeline(strong, CLIP)(1, 2, autoguidance=2.0, **QUIET)
    with pytest.raises(UserError, match="autoguidance needs a model with a guide"):
        calibrate(AVPipeline(strong, CLIP), clips(2), SamplingOptions(2, autoguidance=2.0, **QUIET))
    with pytest.raises(UserError, match="autoguidance must be a number"):
        SamplingOptions(autoguidance=float("nan"))


@pytest.fixture
def models(tmp_path, strong, weak):
    AVPipeline(strong, CLIP).save_pretrained(tmp_path / "strong")
    AVPipeline(weak, CLIP).save_pretrained(tmp_path / "weak")
    return tmp_path


def test_a_model_and_its_guide_are_saved_together(models, capsys):
    before = {path: path.read_bytes() for path in (models / "strong").rglob("*") if path.is_file()}
    copy = models / "led"
    call = ["guide", str(models / "strong"), str(models / "weak"), "--out", str(copy), "--autoguidance", "1.5"]
    assert main(call) == 0
    assert "autoguidance 1.5" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (models / "strong").rglob("*") if path.is_file()} == before
    led = AVPipeline.from_pretrained(copy)
    by_hand = AVPipeline.from_pretrained(models / "strong")
    by_hand.take_guide(AVPipeline.from_pretrained(models / "weak"), 1.5)
    same(led(1, 3, **QUIET), by_hand(1, 3, **QUIET))


def test_another_guide_takes_the_place_of_the_first_and_its_calibration(models):
    model, options = str(models / "strong"), ["world:landscape", "--num", "2", "--steps", "[2]"]
    assert main(["calibrate", model, *options]) == 0
    assert main(["guide", model, str(models / "weak")]) == 0
    assert main(["calibrate", model, *options]) == 0
    pipe = AVPipeline.from_pretrained(model)
    assert [path.autoguidance for path in pipe.calibration.paths] == [1, 2]
    assert main(["guide", model, str(models / "weak"), "--autoguidance", "3"]) == 0
    pipe = AVPipeline.from_pretrained(model)
    assert pipe.config.autoguidance == 3
    assert [path.autoguidance for path in pipe.calibration.paths] == [1]


def test_sampling_takes_a_guide_and_records_it(models, capsys):
    model, weaker = str(models / "strong"), str(models / "weak")
    options = ["--num", "1", "--steps", "2", "--format", "safetensors"]
    for name, more in {
        "plain": [],
        "led": ["--guide", weaker],
        "more": ["--guide", weaker, "--autoguidance", "3"],
    }.items():
        assert main(["sample", model, str(models / name), *options, *more]) == 0
    records = [json.loads((models / name / "sampling.json").read_text()) for name in ("plain", "led", "more")]
    assert "autoguidance" not in records[0]
    assert [record["autoguidance"]["scale"] for record in records[1:]] == [2, 3]
    assert main(["sample", model, str(models / "led"), *options]) == 2
    assert "autoguidance" in capsys.readouterr().err


def test_a_guide_of_other_clips_is_refused_in_one_line(models, strong, capsys):
    AVPipeline(strong, CLIP, num_timesteps=500).save_pretrained(models / "other")
    assert main(["guide", str(models / "strong"), str(models / "other")]) == 2
    assert main(["guide", str(models / "strong"), str(models / "weak"), "--autoguidance", "2000"]) == 2
    assert main(["guide", "landscape-micro", str(models / "weak")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mgct: ")]
    assert "the guide has another num_timesteps (500) than the model (1000)" in errors[0]
    assert "autoguidance must be a number" in errors[1]
    assert "comes with mgct and is not changed" in errors[2]
    assert not (models / "strong" / "guide").exists()


def test_a_table_row_is_of_the_model_alone(models):
    assert main(["guide", str(models / "strong"), str(models / "weak")]) == 0
    study = Study({"baseline": models / "strong"}, models / "out", Settings(num=2))
    assert study._pipe("baseline").guide is None


class Constant(torch.nn.Module):
    """Predicts one number for the picture's noise and one for the sound's."""

    num_shifted_blocks = 0

    def __init__(self, video: float, audio: float) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor([video, audio]))

    def forward(self, video, audio, timestep, window_shift=None):
        return AVSample(video=self.values[0].expand_as(video), audio=self.values[1].expand_as(audio))


def test_training_leads_past_the_mean_of_the_noise_by_the_strength_less_one():
    model, guide = Constant(0.0, 0.0), Constant(0.4, -0.2)
    optimiser, draw = torch.optim.SGD(model.parameters(), lr=0.1), torch.Generator().manual_seed(0)
    truth, noise = clips(8), AVSample(video=torch.zeros(8, *CLIP.video_shape), audio=torch.zeros(8, *CLIP.audio_shape))
    for _ in range(200):
        timestep = torch.randint(1000, (8,), generator=draw)
        loss = multimodal_loss(
            model, truth, noise, timestep, NoiseSchedule(), guide=Guide(guide, AVSample(1.5, 1.5))
        ).loss.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert guide.values.grad is None
    torch.testing.assert_close(model.values.detach(), -0.5 * guide.values.detach(), rtol=0, atol=1e-3)


def test_training_without_strength_or_with_a_guide_as_good_is_plain(strong):
    truth, noise, timestep = clips(2), clips(2, seed=1), torch.tensor([10, 900])
    plain = multimodal_loss(strong, truth, noise, timestep, NoiseSchedule(), 0).loss
    for guide in (Guide(network(2), AVSample(1.0, 1.0)), Guide(strong, AVSample(3.0, 3.0))):
        led = multimodal_loss(strong, truth, noise, timestep, NoiseSchedule(), 0, guide).loss
        torch.testing.assert_close(led, plain, rtol=1e-5, atol=0)


def test_the_sound_can_be_led_alone(strong):
    truth, noise, timestep = clips(2), clips(2, seed=1), torch.tensor([10, 900])
    losses = [
        multimodal_loss(strong, truth, noise, timestep, NoiseSchedule(), 0, guide).logs
        for guide in (None, Guide(network(2), Guidance(strength=1.0, audio_strength=2.0).strengths))
    ]
    plain, led = losses
    assert torch.equal(led["loss_mm_video"], plain["loss_mm_video"])
    assert (led["loss_mm_audio"] - plain["loss_mm_audio"]).abs().min() > 1e-4


def test_a_guide_with_other_windows_can_train(strong):
    truth, noise, timestep = clips(2), clips(2, seed=1), torch.tensor([10, 900])
    other = network(2, cross_attention_shift=False)
    shifts = torch.ones(strong.num_shifted_blocks, dtype=torch.int64)
    led = multimodal_loss(
        strong, truth, noise, timestep, NoiseSchedule(), shifts, Guide(other, AVSample(2.0, 2.0))
    ).loss
    assert (led - multimodal_loss(strong, truth, noise, timestep, NoiseSchedule(), shifts).loss).abs().min() > 1e-4


TRAIN = [
    *("--data", "world:landscape"),
    *("--train.steps", "2", "--train.batch_size", "2", "--train.warmup_steps", "1", "--train.num_workers", "0"),
    *("--monitor.samples_every", "0", "--monitor.metric_every", "0", "--monitor.test_loss_clips", "2"),
]


def test_a_run_is_led_by_a_saved_model_and_goes_on_so(models, capsys):
    pipe = AVPipeline.from_pretrained(models / "strong")
    config = {key: value for key, value in pipe.unet.config.items() if not key.startswith("_") and value is not None}
    network_options = [
        word
        for key, value in config.items()
        for word in (f"--model.{key}", value if isinstance(value, str) else json.dumps(value))
    ]
    clip = [f"--clip.{name}={value}" for name, value in vars(CLIP).items()]
    weak = str(models / "weak")
    call = ["train", *TRAIN, *network_options, *clip, "--init", str(models / "strong"), "--train.seed", "3"]
    assert main([*call, "--out", str(models / "plain")]) == 0
    assert main([*call, "--out", str(models / "led"), "--guidance.guide", weak, "--guidance.strength", "3"]) == 0
    weights = [AVPipeline.from_pretrained(models / name).unet.state_dict() for name in ("plain", "led")]
    assert any((weights[0][name] - weights[1][name]).abs().max() > 1e-5 for name in weights[0])
    again = [*call, "--out", str(models / "led"), "--resume", "true", "--train.steps", "3"]
    assert main([*again, "--guidance.guide", weak]) == 0
    capsys.readouterr()
    assert main([*call, "--out", str(models / "none"), "--guidance.guide", str(models / "nowhere")]) == 2
    assert main([*call, "--out", str(models / "none"), "--guidance.guide", "landscape-micro"]) == 2
    assert main([*call, "--out", str(models / "none"), "--guidance.guide", weak, "--guidance.strength", "0.5"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mgct: ")]
    assert "no such model" in errors[0]
    assert "makes other clips" in errors[1]
    assert "guidance.strength must lie in [1, 10], got 0.5" in errors[2]
    with pytest.raises(UserError, match=r"guidance.audio_strength must lie in \[1, 10\], got 11"):
        Guidance(audio_strength=11)
    assert not (models / "none").exists()
