"""The upsampler against the reference's numbers; sampling and training on tiny networks."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from mgct import AVSample
from mgct.errors import UserError
from mgct.noise import NoiseSchedule
from mgct.samplers import clipped, ddim
from mgct.upsampler import (
    UpsamplerTraining,
    UpsamplerUNet,
    ddim_grid,
    degrade,
    random_frames,
    shrink,
    train_upsampler,
    upsample,
    upsampler_loss,
)

from .conftest import FIXTURES, load_reference_weights

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
    with pytest.raises(UserError, match="multiples of 32, not 16 × 16"):
        upsample(deep, clips, SCHEDULE)


def test_training_lowers_the_loss_and_the_average_is_saved(tmp_path):
    """Images of one smooth colour ramp each: a few steps suffice to predict noise better than at the start."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    def clips():
        while True:
            colour = torch.rand(4, 1, 3, 1, 1, generator=generator) * 2 - 1
            yield AVSample(video=(colour * torch.linspace(0, 1, 16)).expand(4, 2, 3, 16, 16), audio=None)

    losses = []
    training = UpsamplerTraining(steps=30, learning_rate=3e-3)
    unet = UpsamplerUNet(**TINY)
    average = train_upsampler(unet, random_frames(clips()), SCHEDULE, training, lambda _, loss: losses.append(loss))
    assert len(losses) == 30
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    average.save_pretrained(tmp_path)
    loaded = UpsamplerUNet.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(average.parameters(), loaded.parameters(), strict=True))


def test_shrinking_and_degrading_keep_the_range_and_the_picture():
    images = torch.linspace(-1, 1, 16).expand(40, 3, 16, 16).contiguous()
    small = shrink(images, 4)
    assert small.shape == (40, 3, 4, 4)
    torch.testing.assert_close(small[0, 0, 0], torch.tensor([-0.8, -0.27, 0.27, 0.8]), atol=0.05, rtol=0)
    worse = degrade(small, torch.Generator().manual_seed(0))
    changed = (worse - small).abs().flatten(1).amax(1) > 1e-6
    assert 0.5 < changed.float().mean() < 1
    assert (worse - small).abs().mean() < 0.15
    again = degrade(small, torch.Generator().manual_seed(0))
    assert torch.equal(worse, again)
