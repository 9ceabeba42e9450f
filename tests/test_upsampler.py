"""The upsampler against the reference's numbers; sampling and training on tiny networks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from mgct import AVPipeline, AVSample, ClipSpec, cli
from mgct.checkpoint import read_checkpoint, read_metrics
from mgct.clip_folder import load_clips
from mgct.clip_random import ClipRandom
from mgct.data.media import read_clip
from mgct.data.shards import make_loader
from mgct.errors import UserError
from mgct.noise import NoiseSchedule, add_noise, x0_from_noise
from mgct.predictors import clipped
from mgct.samplers import ddim
from mgct.types import dequantise
from mgct.upsampler import UpsamplerUNet, ddim_grid, degrade, residual_noise, shrink, upsample, upsampler_loss
from mgct.upsampler_trainer import UpsamplerTraining
from tests.test_trainer import distance

from .conftest import FIXTURES, load_reference_weights

ROOT = Path(__file__).parent.parent

SCHEDULE = NoiseSchedule()
SMALL = {"model_channels": 32, "channel_mult": (1, 1, 2, 2), "num_res_blocks": 1, "attention_factors": (2, 8)}
TINY = {
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_factors": (),
    "norm_num_groups": 8,
}


@pytest.fixture(scope="module")
def weights():
    return load_reference_weights(FIXTURES / "sr_unet_small_weights.safetensors")


@pytest.fixture(scope="module")
def small(weights):
    return UpsamplerUNet.from_mm_diffusion(weights, **SMALL).eval()


@pytest.mark.parametrize("call", ["call0", "call1"])
def test_network_is_the_reference_also_after_saving(small, tmp_path, call):
    fixture = load_file(FIXTURES / "sr_unet_small.safetensors")
    small.save_pretrained(tmp_path)
    for network in (small, UpsamplerUNet.from_pretrained(tmp_path).eval()):
        with torch.no_grad():
            out = network(fixture["x"], fixture["low_res"], fixture[f"{call}.timesteps"])
        torch.testing.assert_close(out, fixture[f"{call}.out"], atol=1e-4, rtol=0)


def test_wrong_weights_are_named(weights):
    lacking = {key: tensor for key, tensor in weights.items() if key != "out.2.bias"}
    with pytest.raises(UserError, match=r"missing conv_out\.bias"):
        UpsamplerUNet.from_mm_diffusion(lacking, **SMALL)
    with pytest.raises(UserError, match=r"unexpected label_emb\.weight"):
        UpsamplerUNet.from_mm_diffusion({**weights, "label_emb.weight": torch.zeros(1)}, **SMALL)
    with pytest.raises(UserError, match="has shape"):
        UpsamplerUNet.from_mm_diffusion({**weights, "out.2.bias": torch.zeros(3)}, **SMALL)


def test_the_paper_s_network_takes_exactly_the_reference_s_keys_and_shapes():
    manifest = json.loads((FIXTURES / "sr_manifest.json").read_text())
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in manifest["shapes"].items()}
        model = UpsamplerUNet.from_mm_diffusion(state)
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest["param_count"] == 311_027_910


def reference_model(low_res):
    """The fixture's stand-in for the network."""
    mu = 0.8 * F.interpolate(low_res, (16, 16), mode="bilinear", align_corners=False)

    def predict(x, point):
        alpha_bar = SCHEDULE.alpha_bar[round(point.timestep)]
        gain = (torch.sqrt(1 - alpha_bar) / (0.16 * alpha_bar + 1 - alpha_bar)).item()
        return (x - alpha_bar.sqrt().item() * mu) * gain + 0.1 * torch.sin(3 * x)

    return predict


def test_ddim_25_is_the_reference():
    fixture = load_file(FIXTURES / "sr_diffusion.safetensors")
    grid = ddim_grid(SCHEDULE, 25)
    assert [point.timestep for point in grid[:-1]] == list(range(960, -1, -40))
    out = ddim(clipped(reference_model(fixture["low_res"])), fixture["ddim25.x_T"], grid)
    torch.testing.assert_close(out, fixture["ddim25.final"], atol=1e-4, rtol=0)


def test_loss_and_its_gradient_are_the_reference():
    fixture = load_file(FIXTURES / "sr_diffusion.safetensors")
    output = fixture["train.model_output"].requires_grad_()
    arguments = [fixture[f"train.{name}"] for name in ("x_start", "x_t", "noise", "t")]
    loss = upsampler_loss(output, *arguments, SCHEDULE)
    torch.testing.assert_close(loss, fixture["train.mse.loss"], atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    torch.testing.assert_close(gradient, fixture["train.mse.grad_model_output"], atol=1e-5, rtol=2e-3)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return UpsamplerUNet(**TINY).eval()


def test_upsampling_shares_one_noise_per_clip_and_does_not_depend_on_chunks(tiny):
    generator = torch.Generator().manual_seed(0)
    still = (torch.rand(2, 1, 3, 4, 4, generator=generator) * 2 - 1).expand(-1, 5, -1, -1, -1)
    clips = AVSample(video=still, audio=torch.rand(2, 1, 50, generator=generator))
    large = upsample(tiny, clips, SCHEDULE, steps=5)
    assert large.video.shape == (2, 5, 3, 16, 16)
    assert torch.equal(large.audio, clips.audio)
    assert large.video.abs().max() <= 1
    torch.testing.assert_close(large.video[:, :1].expand_as(large.video), large.video, atol=2e-3, rtol=0)
    assert (large.video[0] - large.video[1]).abs().mean() > 1e-3
    in_chunks = upsample(tiny, clips, SCHEDULE, steps=5, images_at_once=2)
    torch.testing.assert_close(in_chunks.video, large.video, atol=2e-3, rtol=0)
    alone = upsample(tiny, clips.map(lambda part: part[1:]), SCHEDULE, steps=5, indices=[1])
    torch.testing.assert_close(alone.video, large.video[1:], atol=2e-3, rtol=0)


def test_bad_settings_are_refused(tiny):
    clips = AVSample(video=torch.zeros(1, 1, 3, 4, 4), audio=torch.zeros(1, 1, 1))
    with pytest.raises(UserError, match="divides 1000, got 30; try 25"):
        upsample(tiny, clips, SCHEDULE, steps=30)
    deep = UpsamplerUNet(**(TINY | {"channel_mult": (1, 1, 1, 1, 2, 2)}))
    with pytest.raises(UserError, match=r"multiples of 32 \(its levels\), not 16"):
        upsample(deep, clips, SCHEDULE)


def test_the_residual_form_gives_back_the_noise_and_keeps_x0_near_the_small_image():
    """If x0 = e + σ_r d, the output that stands for the true noise is of order 1 at every noise level."""
    generator = torch.Generator().manual_seed(0)
    enlarged, detail, noise = (torch.randn(1000, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    timestep = torch.linspace(0, 999, 1000).round().long()
    level = SCHEDULE.level(timestep)
    x_t = add_noise(enlarged + 0.1 * detail, noise, level)
    alone = residual_noise(torch.zeros_like(noise), x_t, enlarged, level, 0.1)
    one = residual_noise(torch.ones_like(noise), x_t, enlarged, level, 0.1) - alone
    output = (noise - alone) / one
    assert 0.95 < output.square().mean(dim=(1, 2, 3)).sqrt().mean() < 1.05
    assert output.square().mean(dim=(1, 2, 3)).max() < 3
    wrong = x0_from_noise(x_t, residual_noise(output + 1, x_t, enlarged, level, 0.1), level)
    assert (wrong - (enlarged + 0.1 * detail)).abs().max() < 0.11


def test_the_residual_form_is_the_network_s_after_loading(tmp_path):
    torch.manual_seed(0)
    plain = UpsamplerUNet(**TINY).eval()
    residual = UpsamplerUNet(**TINY, residual_std=0.2).eval()
    residual.load_state_dict(plain.state_dict())
    residual.save_pretrained(tmp_path)
    residual = UpsamplerUNet.from_pretrained(tmp_path).eval()
    generator = torch.Generator().manual_seed(0)
    x, low = (torch.randn(2, 3, side, side, generator=generator) for side in (16, 4))
    timestep = torch.tensor([3, 800])
    with torch.no_grad():
        (noise, place), (own_noise, own_place) = (net(x, low, timestep).chunk(2, 1) for net in (plain, residual))
    enlarged = F.interpolate(low, (16, 16), mode="bilinear")
    torch.testing.assert_close(own_place, place)
    torch.testing.assert_close(own_noise, residual_noise(noise, x, enlarged, SCHEDULE.level(timestep), 0.2))
    with pytest.raises(UserError, match="residual_std must be positive"):
        UpsamplerUNet(**TINY, residual_std=0.0)


def test_shrinking_and_degrading_keep_the_range_and_the_picture():
    images = torch.linspace(-1, 1, 16).expand(40, 3, 16, 16).contiguous()
    small = shrink(images, 4)
    assert small.shape == (40, 3, 4, 4)
    torch.testing.assert_close(small[0, 0, 0], torch.tensor([-0.8, -0.27, 0.27, 0.8]), atol=0.05, rtol=0)
    worse = degrade(small, ClipRandom(range(40)))
    changed = (worse - small).abs().flatten(1).amax(1) > 1e-6
    assert 0.5 < changed.float().mean() < 1
    assert (worse - small).abs().mean() < 0.15
    assert degrade(torch.full((40, 3, 4, 4), 0.98), ClipRandom(range(40))).abs().max() <= 1
    alone = degrade(small[7:9], ClipRandom([7, 8]))
    torch.testing.assert_close(alone, worse[7:9])


# ------------------------------------------------------------------------------------------------ the training command

STEPS = 6
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def write_config(path: Path, **train) -> Path:
    """A configuration for frames of the shards of `tiny_shards`, 4 → 8 pixels."""
    config = {
        "clip": {"frames": 2, "fps": 10.0, "size": 8, "sample_rate_hz": 160},
        "model": {**TINY, "channel_mult": [1, 2], "attention_factors": [], "scale": 2, "residual_std": 0.2},
        "train": {"steps": STEPS, "batch_size": 4, "learning_rate": 3e-3, "log_every": 4, **train},
    }
    path.write_text(yaml.safe_dump(config))
    return path


def command(*arguments, processes=1) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [sys.executable, *launch, "-m", "mgct.cli", *map(str, arguments)]


def run(capsys, *arguments) -> tuple[int, str]:
    """Exit status and errors of a command."""
    status = cli.main([str(argument) for argument in arguments])
    return status, capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tiny_shards, tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("upsampler")
    config = write_config(folder / "config.yaml")
    assert cli.main(["train-upsampler", f"--config={config}", f"--data={tiny_shards}", f"--out={folder / 'run'}"]) == 0
    return folder / "run"


def test_the_run_folder_holds_the_average_and_the_log(trained):
    average = read_checkpoint(trained).tensors("ema")
    exported = UpsamplerUNet.from_pretrained(trained / "model")
    assert exported.config["residual_std"] == 0.2
    assert all(torch.equal(value, average[name]) for name, value in exported.state_dict().items())
    (row,) = read_metrics(trained)
    assert row["step"] == 4
    assert row.keys() >= {"loss", "loss_noise", "grad_norm", "learning_rate", "images_per_s"}


@pytest.mark.parametrize("stop_after", [1, 5])
def test_a_stopped_and_resumed_run_ends_as_the_undisturbed_one(
    trained, tiny_shards, tmp_path, capsys, monkeypatch, stop_after
):
    from mgct.upsampler_trainer import UpsamplerTrainer

    arguments = [
        "train-upsampler",
        f"--config={write_config(tmp_path / 'config.yaml')}",
        f"--data={tiny_shards}",
        f"--out={tmp_path / 'run'}",
    ]
    step = UpsamplerTrainer._train_step

    def interrupted(self, batch):
        values = step(self, batch)
        if self.step + 1 == stop_after:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C
        return values

    with monkeypatch.context() as patch:
        patch.setattr(UpsamplerTrainer, "_train_step", interrupted)
        assert run(capsys, *arguments)[0] == 0
    assert read_checkpoint(tmp_path / "run").state["step"] == stop_after
    status, err = run(capsys, *arguments)
    assert (status, "--resume goes on with it" in err) == (2, True)
    assert run(capsys, *arguments, "--resume")[0] == 0
    for part in ("model", "ema", "optimizer"):
        ours, theirs = (read_checkpoint(folder).tensors(part) for folder in (tmp_path / "run", trained))
        assert all(torch.equal(ours[key], value) for key, value in theirs.items()), part
    rows, undisturbed = read_metrics(tmp_path / "run"), read_metrics(trained)
    for row in [*rows, *undisturbed]:
        row.pop("images_per_s")
    assert rows == undisturbed


def test_two_processes_train_as_one(trained, tiny_shards, tmp_path):
    """Adam's moments, unlike its steps, are as close as the gradients of every step are."""
    config = write_config(tmp_path / "config.yaml")
    arguments = ["train-upsampler", "--config", config, "--data", tiny_shards, "--out", tmp_path / "run"]
    done = subprocess.run(
        command(*arguments, processes=2), env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    one, two = read_checkpoint(trained), read_checkpoint(tmp_path / "run")
    assert distance(one.tensors("model"), two.tensors("model")) < 1e-4
    for moment in ("exp_avg", "exp_avg_sq"):
        ours, theirs = (
            {name: value for name, value in checkpoint.tensors("optimizer").items() if name.endswith(moment)}
            for checkpoint in (one, two)
        )
        assert ours
        assert distance(ours, theirs) < 1e-4, moment


def test_sigterm_saves(tiny_shards, tmp_path):
    config = write_config(tmp_path / "config.yaml", steps=100_000, log_every=1)
    arguments = command("train-upsampler", "--config", config, "--data", tiny_shards, "--out", tmp_path / "run")
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not read_metrics(tmp_path / "run") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert read_checkpoint(tmp_path / "run").state["step"] > 0


def test_training_lowers_the_loss(tiny_shards, tmp_path):
    """On the same images, noise and timesteps, before and after."""
    config = write_config(tmp_path / "config.yaml", steps=40, degradation=False)
    assert (
        cli.main(["train-upsampler", f"--config={config}", f"--data={tiny_shards}", f"--out={tmp_path / 'run'}"]) == 0
    )
    settings = yaml.safe_load(config.read_text())
    torch.manual_seed(0)
    before = UpsamplerUNet(**settings["model"]).eval()
    after = UpsamplerUNet.from_pretrained(tmp_path / "run" / "model").eval()
    batch = next(iter(make_loader(str(tiny_shards), ClipSpec(**settings["clip"]), batch_size=8, start_step=100)))
    large = dequantise(batch.clips).video.flatten(0, 1)
    random = ClipRandom(range(len(large)))
    timestep, noise = random.integers("t", 1000), random.normal("noise", large.shape[1:])
    x_t = add_noise(large, noise, SCHEDULE.level(timestep))

    def loss(unet):
        with torch.no_grad():
            output = unet(x_t, shrink(large, 2), timestep)
        return upsampler_loss(output, large, x_t, noise, timestep, SCHEDULE, residual_std=0.2).mean()

    assert loss(after) < 0.8 * loss(before)


def test_training_begins_from_given_weights(weights, trained, tiny_shards, tmp_path, capsys):
    """MM-Diffusion's file, or another upsampler: a rate that changes nothing leaves them as they were."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "sr.safetensors")
    config = write_config(tmp_path / "config.yaml", learning_rate=1e-30, steps=1)
    reference = {**SMALL, "channel_mult": [1, 1, 2, 2], "attention_factors": [2, 8], "scale": 4}
    settings = yaml.safe_load(config.read_text())
    (tmp_path / "reference.yaml").write_text(yaml.safe_dump({**settings, "model": reference}))
    for name, source, expected in (
        ("reference", tmp_path / "sr.safetensors", UpsamplerUNet.from_mm_diffusion(weights, **SMALL).state_dict()),
        ("config", trained, UpsamplerUNet.from_pretrained(trained / "model").state_dict()),
    ):
        out = tmp_path / f"run-{name}"
        arguments = [f"--config={tmp_path / name}.yaml", f"--data={tiny_shards}", f"--out={out}", f"--init={source}"]
        assert cli.main(["train-upsampler", *arguments]) == 0
        loaded = UpsamplerUNet.from_pretrained(out / "model").state_dict()
        for key, value in expected.items():
            torch.testing.assert_close(loaded[key], value, atol=1e-20, rtol=0)
    arguments = [f"--config={config}", f"--data={tiny_shards}", f"--out={tmp_path / 'other'}"]
    status, err = run(capsys, "train-upsampler", *arguments, f"--init={trained}", "--model.residual_std=0.3")
    assert (status, "differs from this one in residual_std" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data="], "needs --data"),
        (["--data=no-such-folder"], "no-such-folder"),
        (["--clip.size=9"], "multiples of 2 (its scale), not 9"),
        (["--clip.size=16"], "prepare the videos anew"),
        (["--train.steps=0"], "train.steps must be positive"),
        (["--train.num_workers=-1"], "train.num_workers may not be negative"),
        (["--train.stepz=3"], "stepz"),
        (["--train.ema_decay=1"], "train.ema_decay must lie in [0, 1)"),
        (["--train.learning_rate=.inf"], "train.learning_rate must be finite"),
        (["--train.max_grad_norm=.nan"], "train.max_grad_norm must be finite"),
        (["--train.batch_size=99999999999999"], "does not fit into memory"),
        (["--model.scale=0"], "scale must be positive, got 0"),
        (
            ["--model.num_heads=0", "--model.norm_num_groups=0"],
            "num_heads must be positive, got 0; norm_num_groups must be positive, got 0",
        ),
        (["--model.channel_mult=[]"], "channel_mult must begin with 1"),
        (["--model.channel_mult=[1, 0]"], "channel_mult must begin with 1"),
        (["--model.norm_num_groups=7"], "not a multiple of norm_num_groups=7"),
        (["--model.dropout=2"], "dropout must lie in [0, 1)"),
        (["--model.residual_std=.nan"], "residual_std must be positive"),
        (["--model.model_channels=160000000"], "out of memory with model.model_channels=160000000"),
        (["--init=no-such-weights"], "no saved upsampler there"),
        (["--resume"], "no checkpoint there"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tiny_shards, tmp_path, capsys, options, message):
    config = write_config(tmp_path / "config.yaml")
    arguments = [f"--config={config}", f"--data={tiny_shards}", f"--out={tmp_path / 'run'}"]
    status, err = run(capsys, "train-upsampler", *arguments, *options)
    assert status == 2
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_of_another_network_is_not_resumed(trained, tiny_shards, tmp_path, capsys):
    arguments = [f"--config={write_config(tmp_path / 'config.yaml')}", f"--data={tiny_shards}", f"--out={trained}"]
    status, err = run(capsys, "train-upsampler", *arguments, "--resume", "--model.dropout=0.1")
    assert (status, "model.dropout" in err) == (2, True)
    status, err = run(capsys, "train-upsampler", *arguments, "--resume", "--train.seed=7")
    assert (status, "resume with the same" in err) == (2, True)
    status, err = run(capsys, "train-upsampler", *arguments, "--resume", "--train.steps=2")
    assert (status, "beyond train.steps 2" in err) == (2, True)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_weights(tiny_shards, tmp_path, capsys, monkeypatch):
    from mgct import upsampler_trainer

    monkeypatch.setattr(upsampler_trainer, "upsampler_loss", lambda *_: (_[0] * float("nan")).flatten(1).mean(1))
    arguments = [f"--config={write_config(tmp_path / 'config.yaml')}", f"--data={tiny_shards}"]
    status, err = run(capsys, "train-upsampler", *arguments, f"--out={tmp_path / 'run'}")
    assert status == 2
    assert "is not finite" in err.strip().splitlines()[-1]
    assert all(value.isfinite().all() for value in read_checkpoint(tmp_path / "run").tensors("model").values())


@pytest.mark.parametrize("path", sorted((ROOT / "configs/upsampler").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_loads(path):

    parser = cli.parser_of("train-upsampler")
    parsed = parser.parse_args([f"--config={path}", "--data=x"])
    assert isinstance(parser.instantiate(parsed).train, UpsamplerTraining)
    with torch.device("meta"):
        model = UpsamplerUNet(**parsed.model.as_dict())
    model.check_side(parsed.clip.size)
    if path.stem == "paper":
        assert model.num_parameters() == 311_027_910


# --------------------------------------------------------------------------------------------- mgct sample --upsampler


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model of 4 frames of 4 × 4 pixels, untrained."""
    from tests.test_unet import randomised

    pipe = AVPipeline(randomised(), ClipSpec(4, 10.0, 4, 160), {"dpm-solver++": [1, 50]})
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


def test_sampling_with_a_trained_upsampler(trained, model, tmp_path, capsys):
    arguments = ["sample", model, tmp_path / "clips", "--num=3", "--steps=2", "--batch_size=2"]
    for out, options in (("lossless", ["--format=safetensors"]), ("films", [])):
        arguments[2] = tmp_path / out
        status, err = run(capsys, *arguments, f"--upsampler={trained}", *options)
        assert status == 0, err
    clips, spec = load_clips(next((tmp_path / "lossless").glob("*.safetensors")))
    assert spec == ClipSpec(4, 10.0, 8, 160)
    pipe = AVPipeline.from_pretrained(model)
    small = pipe(num_clips=3, steps=2, seed=0, progress=False)
    large = upsample(UpsamplerUNet.from_pretrained(trained / "model"), small, SCHEDULE, seed=0)
    torch.testing.assert_close(clips.video, large.video, atol=1 / 127, rtol=0)
    films = sorted((tmp_path / "films").glob("*.mp4"))
    assert len(films) == 3
    assert read_clip(films[0], ClipSpec(4, 10.0, 8, 160)).video.shape == (4, 3, 8, 8)
    record = json.loads((tmp_path / "films" / "sampling.json").read_text())
    assert record["clip"]["size"] == 8
    status, err = run(capsys, *arguments)
    assert (status, "holds clips made otherwise" in err, "upsampler" in err) == (2, True, True)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", "{", "config.json is damaged"),
        ("config.json", "[]", "config.json is damaged"),
        ("config.json", '{"_class_name": "UpsamplerUNet", "scale": "x"}', "cannot be loaded as a saved upsampler"),
        ("diffusion_pytorch_model.safetensors", "", "cannot be loaded as a saved upsampler"),
        ("diffusion_pytorch_model.safetensors", None, "cannot be loaded as a saved upsampler"),
    ],
)
def test_a_damaged_upsampler_is_named(trained, tiny_shards, tmp_path, capsys, name, damage, message):
    shutil.copytree(trained / "model", tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(path.read_bytes()[:5000]) if damage is None else path.write_text(damage)
    arguments = [f"--config={write_config(tmp_path / 'config.yaml')}", f"--data={tiny_shards}"]
    status, err = run(capsys, "train-upsampler", *arguments, f"--out={tmp_path / 'run'}", f"--init={tmp_path}")
    assert (status, message in err.strip().splitlines()[-1]) == (2, True), err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_an_upsampler_that_is_none_or_does_not_fit_is_refused(model, tmp_path, capsys):
    arguments = ["sample", model, tmp_path / "clips", "--num=1", "--steps=2"]
    status, err = run(capsys, *arguments, f"--upsampler={model}")
    assert (status, "no saved upsampler there" in err) == (2, True)
    UpsamplerUNet(**(TINY | {"channel_mult": (1, 1, 1, 1, 2, 2)}), scale=2).save_pretrained(tmp_path / "deep")
    status, err = run(capsys, *arguments, f"--upsampler={tmp_path / 'deep'}")
    assert (status, "multiples of 32" in err) == (2, True)
    assert not list((tmp_path / "clips").glob("*.mp4"))
