"""The network against the reference's numbers, and the laws it must keep."""

import copy
import json
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from mgct import MultimodalUNet, convolutions, gpu, resampling
from mgct.attention import windowed_attention
from mgct.convert import to_mm_diffusion
from mgct.errors import UserError
from mgct.noise import NoiseSchedule, noise_from_velocity
from mgct.norms import GroupNorm
from mgct.types import AVSample
from mgct.unet import PredictionType

SCHEDULE = NoiseSchedule()
SMALL = {"model_channels": 32, "num_res_blocks": 1, "num_head_channels": 32, "dropout": 0.0}
TINY = {
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "cross_attention_resolutions": (2,),
    "cross_attention_windows": (2,),
    "video_attention_resolutions": (2,),
    "num_heads": 2,
    "num_head_channels": 8,
    "norm_num_groups": 8,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def small(unet_small_weights):
    return MultimodalUNet.from_mm_diffusion(unet_small_weights, **SMALL).eval()


def randomised(**changes):
    torch.manual_seed(0)
    unet = MultimodalUNet(**{**TINY, **changes})
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(std=0.2)
    return unet


def clips(batch=2, frames=4, size=8, samples=64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(batch, frames, 3, size, size, generator=generator)
    return video, torch.randn(batch, 1, samples, generator=generator)


def check(unet, tensors, prefix, video, audio, shift):
    call = {"timestep": tensors[f"{prefix}.timesteps"], "window_shift": shift}
    with torch.no_grad():
        single = unet(video, audio, **call)
        double = unet.double()(video.double(), audio.double(), **call)
    unet.float()
    for name in ("video", "audio"):
        torch.testing.assert_close(single[name], tensors[f"{prefix}.{name}_out"], rtol=0, atol=1e-4)
        torch.testing.assert_close(double[name], tensors[f"{prefix}.{name}_out_f64"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("call", ["call0", "call1"])
def test_equals_the_reference(small, fixtures, call):
    tensors = load_file(fixtures / "unet_small.safetensors")
    check(small, tensors, call, tensors["video"], tensors["audio"], 0)


@pytest.mark.parametrize("rule", ["shift1", "shift3", "shiftseq"])
def test_equals_the_reference_with_shifted_windows(small, fixtures, rule):
    tensors = load_file(fixtures / "unet_shift.safetensors")
    most = small.max_window_shifts(8)
    shift = {
        "shift1": [min(1, high) for high in most],
        "shift3": [min(3, high) for high in most],
        "shiftseq": [(2 * index + 1) % (high + 1) for index, high in enumerate(most)],
    }[rule]
    for call in ("call0", "call1"):
        check(small, tensors, f"{rule}.{call}", tensors["video"], tensors["audio"], torch.tensor(shift))


@pytest.mark.parametrize("length", [2112, 2240])
def test_equals_the_reference_at_uneven_lengths(small, fixtures, length):
    tensors = load_file(fixtures / "unet_uneven.safetensors")
    video, audio = tensors[f"L{length}.video"], tensors[f"L{length}.audio"]
    for call in ("call0", "call1"):
        check(small, tensors, f"L{length}.{call}", video, audio, 0)
    shift = [min(1, high) for high in small.max_window_shifts(8)]
    check(small, tensors, f"L{length}.shift1.call0", video, audio, shift)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_velocity_is_returned_as_the_noise_that_it_stands_for(small, fixtures, dtype):
    """Each modality at its own level, and from the clips as they are, whatever precision the weights have."""
    tensors = load_file(fixtures / "unet_small.safetensors")
    plain, ours = (
        MultimodalUNet.from_config(small.config, audio_time=True, prediction_type=prediction_type)
        for prediction_type in get_args(PredictionType)
    )
    for unet in (plain, ours):
        unet.load_state_dict(plain.with_time_inputs(small.state_dict()))
        torch.nn.Module.to(unet.eval(), dtype)
    video, audio, t = tensors["video"], tensors["audio"], tensors["call0.timesteps"]
    for heard in (None, (t + 300) % 1000):
        with torch.no_grad():
            velocity, noise = (unet(video, audio, t, 0, audio_timestep=heard) for unet in (plain, ours))
        levels = AVSample(video=SCHEDULE.level(t), audio=SCHEDULE.level(t if heard is None else heard))
        want = AVSample(video=video, audio=audio).map(noise_from_velocity, velocity.to(torch.float32), levels)
        torch.testing.assert_close(noise.video, want.video, rtol=0, atol=1e-6)
        torch.testing.assert_close(noise.audio, want.audio, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="prediction_type must be one of epsilon, v_prediction"):
        MultimodalUNet(**SMALL, prediction_type="sample")


@pytest.mark.parametrize("call", ["call0", "call1"])
def test_with_a_second_time_equal_to_the_first_it_is_the_same_network(small, fixtures, call):
    """`mgct-map` begins as the network whose weights it is given: for r = t always, for any r until it learns."""
    tensors = load_file(fixtures / "unet_small.safetensors")
    mapped = MultimodalUNet.from_config(small.config, target_time=True).eval()
    mapped.load_state_dict(mapped.with_time_inputs(small.state_dict()))
    video, audio, t = tensors["video"], tensors["audio"], tensors[f"{call}.timesteps"]
    with torch.no_grad():
        plain = small(video, audio, t, window_shift=0)
        fresh = mapped(video, audio, t, window_shift=0, target_timestep=torch.zeros_like(t))
        torch.nn.init.normal_(mapped.target_gate.weight, std=0.5)
        learned = [mapped(video, audio, t, 0), mapped(video, audio, t, 0, target_timestep=t)]
        jump = mapped(video, audio, t.clamp(min=1), 0, target_timestep=torch.zeros_like(t))
        back = MultimodalUNet.from_config(small.config).eval()
        back.load_state_dict(back.with_time_inputs(mapped.state_dict()))
        learned.append(back(video, audio, t, 0))
    for other in (fresh, *learned):
        torch.testing.assert_close(other.video, plain.video, atol=1e-6, rtol=0)
        torch.testing.assert_close(other.audio, plain.audio, atol=1e-6, rtol=0)
    assert (jump.video - plain.video).abs().max() > 1e-2
    with pytest.raises(UserError, match="no second time input"):
        small(video, audio, t, 0, target_timestep=t)


@pytest.mark.parametrize("further", [{}, {"target_time": True}])
def test_with_the_audio_at_the_video_s_time_it_is_the_same_network(small, fixtures, further):
    """Trained at two noise levels or not, at one of both it is the network whose weights it was given."""
    tensors = load_file(fixtures / "unet_small.safetensors")
    apart = MultimodalUNet.from_config(small.config, audio_time=True, **further).eval()
    apart.load_state_dict(apart.with_time_inputs(small.state_dict()))
    video, audio, t = tensors["video"], tensors["audio"], tensors["call0.timesteps"]
    other = (t + 300) % 1000
    with torch.no_grad():
        plain = small(video, audio, t, window_shift=0)
        mute = apart(video, audio, t, 0, audio_timestep=other)
        torch.nn.init.normal_(apart.other_gate.weight, std=0.5)
        same = [apart(video, audio, t, 0), apart(video, audio, t, 0, audio_timestep=t)]
        told = apart(video, audio, t, 0, audio_timestep=other)
        swapped = apart(video, audio, other, 0, audio_timestep=t)
    for found in same:  # rounding alone: two rows of the embedding are one matrix product
        torch.testing.assert_close(found.video, plain.video, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.audio, plain.audio, atol=1e-4, rtol=0)
    assert (told.video - mute.video).abs().max() > 1e-2  # through the gate alone
    assert (told.audio - swapped.audio).abs().max() > 1e-2
    with pytest.raises(UserError, match="no time input of the audio's own"):
        small(video, audio, t, 0, audio_timestep=t)


def gradients(unet, video, audio, timestep):
    unet.zero_grad()
    out = unet(video, audio, timestep, window_shift=0)
    loss = out.video.square().mean() + out.audio.square().mean()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in unet.named_parameters()}


def test_gradients_equal_the_reference_with_and_without_checkpointing(small, fixtures):
    tensors = load_file(fixtures / "unet_small.safetensors")
    reference = json.loads((fixtures / "unet_small_gradients.json").read_text())
    call = (tensors["video"], tensors["audio"], tensors["call1.timesteps"])
    loss, plain = gradients(small, *call)
    small.enable_gradient_checkpointing()
    checkpointed_loss, checkpointed = gradients(small, *call)
    small.disable_gradient_checkpointing()
    assert loss == pytest.approx(reference["loss"], rel=1e-5)
    assert checkpointed_loss == loss
    from mgct.convert import reference_names

    for ours, theirs in reference_names(small).items():
        assert plain[ours].isfinite().all()
        assert plain[ours].norm().item() == pytest.approx(reference["l2"][theirs], rel=2e-3, abs=1e-6)
        assert plain[ours].norm() > 0
        torch.testing.assert_close(checkpointed[ours], plain[ours], rtol=1e-5, atol=1e-7)


def test_checkpointing_keeps_shift_and_dropout():
    unet = randomised(dropout=0.5).train()
    video, audio = clips()

    def run():
        torch.manual_seed(3)
        unet.zero_grad()
        out = unet(video, audio, torch.tensor([3, 900]))
        (out.video.square().mean() + out.audio.square().mean()).backward()
        return [p.grad.clone() for p in unet.parameters()]

    plain = run()
    unet.enable_gradient_checkpointing()
    for one, other in zip(plain, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_paper_network_has_the_reference_s_keys_shapes_and_zeros(paper_manifest):
    unet = MultimodalUNet()
    assert sum(p.numel() for p in unet.parameters()) == paper_manifest["param_count"] == 133_675_524
    state = to_mm_diffusion(unet)
    assert {key: list(value.shape) for key, value in state.items()} == paper_manifest["state_dict"]
    zeros = {key for key, value in state.items() if not value.any()}
    assert zeros == set(paper_manifest["zero_initialised"])
    flags = {"model_channels": 128, "cross_attention_windows": [1, 4, 8]}
    again = to_mm_diffusion(MultimodalUNet.from_mm_diffusion(state, **flags))
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize(
    "setting",
    [{"num_heads": 0}, {"model_channels": -8}, {"channel_mult": ()}, {"dropout": 1.5}, {"norm_num_groups": 0}],
)
def test_impossible_networks_are_refused(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        MultimodalUNet(**setting)


def test_loading_names_every_bad_key(unet_small_weights):
    state = dict(unet_small_weights)
    state["stranger"] = torch.zeros(1)
    del state["time_embed.0.bias"]
    state["audio_out.2.audio_conv.bias"] = torch.zeros(7)
    with pytest.raises(UserError) as error:
        MultimodalUNet.from_mm_diffusion(state, **SMALL)
    for part in ("missing time_embed.0.bias", "unexpected stranger", "audio_out.2.audio_conv.bias has shape (7,)"):
        assert part in str(error.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_loads_from_files(unet_small_weights, small, tmp_path, suffix):
    from safetensors.torch import save_file

    path = tmp_path / f"model{suffix}"
    (torch.save if suffix == ".pt" else save_file)(unet_small_weights, path)
    loaded = MultimodalUNet.from_mm_diffusion(path, **SMALL)
    for name, value in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize("further", [{"target_time": True}, {"audio_time": True}])
def test_loads_into_a_network_with_a_second_time_input(unet_small_weights, small, further):
    """As the denoiser that they are, and the same weights come out again."""
    more = MultimodalUNet.from_mm_diffusion(unet_small_weights, **SMALL, **further).eval()
    call = (torch.randn(1, 4, 3, 16, 16), torch.randn(1, 1, 256), torch.tensor([500]))
    torch.testing.assert_close(more(*call).video, small(*call).video, atol=1e-4, rtol=0)
    assert to_mm_diffusion(more).keys() == to_mm_diffusion(small).keys()


def test_weights_that_predict_noise_are_not_taken_for_velocities(unet_small_weights):
    with pytest.raises(UserError, match="weights predict the noise, this network v_prediction"):
        MultimodalUNet.from_mm_diffusion(unet_small_weights, **SMALL, prediction_type="v_prediction")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    import pickle

    class Harm:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'harmed')!r}, 'w')",))

    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"a": Harm()}))
    with pytest.raises(UserError, match="cannot be read as a file of tensors"):
        MultimodalUNet.from_mm_diffusion(path, **SMALL)
    assert not (tmp_path / "harmed").exists()


def test_saved_and_loaded_network_is_the_same(tmp_path):
    unet = randomised().eval()
    unet.save_pretrained(tmp_path)
    loaded = MultimodalUNet.from_pretrained(tmp_path).eval()
    video, audio = clips()
    timestep = torch.tensor([5, 700])
    one, other = unet(video, audio, timestep), loaded(video, audio, timestep)
    assert torch.equal(one.video, other.video)
    assert torch.equal(one.audio, other.audio)


@pytest.mark.parametrize(("frames", "size", "samples"), [(4, 8, 64), (3, 12, 100), (7, 8, 64), (1, 4, 16)])
def test_any_size_that_the_strides_allow(frames, size, samples):
    video, audio = clips(frames=frames, size=size, samples=samples)
    out = randomised().eval()(video, audio, torch.tensor(10))
    assert out.video.shape == video.shape
    assert out.audio.shape == audio.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 9}, "height 9 is not a multiple of 2; the nearest valid: 8 or 10"),
        ({"samples": 66}, "audio length 66 is not a multiple of 4; the nearest valid: 64 or 68"),
        ({"samples": 12}, "at least 16 audio samples"),
    ],
)
def test_other_sizes_are_refused_with_the_nearest_valid(changes, message):
    with pytest.raises(UserError, match=message):
        randomised()(*clips(**changes), torch.tensor(10))


def test_window_shift_forms_agree_and_matter():
    unet = randomised().eval()
    video, audio = clips()
    call = (video, audio, torch.tensor(10))
    as_int = unet(*call, window_shift=1)
    for form in ([1] * unet.num_shifted_blocks, torch.ones(unet.num_shifted_blocks, dtype=torch.long)):
        assert torch.equal(unet(*call, window_shift=form).video, as_int.video)
    assert not torch.equal(unet(*call).video, as_int.video)
    assert torch.equal(unet(*call).video, unet(*call, window_shift=0).video)
    with pytest.raises(UserError, match="one value per shifted block"):
        unet(*call, window_shift=[1])


def test_in_windows_of_one_frame_a_frame_and_its_own_sound_see_each_other_alone():
    unet = randomised(cross_attention_windows=1, cross_attention_shift=False, middle_cross_attention=False)
    assert unet.config["cross_attention_windows"] == [1]
    assert unet.draw_window_shifts(4) == []
    block = next(block.cross for block in unet.encoder if block.cross is not None)
    block.video_norm = block.audio_norm = torch.nn.Identity()  # a norm's mean is of the whole clip
    video, audio = torch.randn(1, 4, 3, 3, 32), torch.randn(1, 24, 32)
    louder = audio.clone()
    louder[:, 12:18] += 1  # the third of four frames
    seen, heard = block(video, audio)
    moved = (block(video, louder)[0] - seen).abs().amax((0, 2, 3, 4))
    assert moved[2] > 1e-3
    assert moved[[0, 1, 3]].max() < 1e-5
    brighter = video.clone()
    brighter[:, 2] += 1
    moved = (block(brighter, audio)[1] - heard).abs().amax((0, 2))
    assert moved[12:18].min() > 1e-3
    assert torch.cat([moved[:12], moved[18:]]).max() < 1e-5


def test_shift_is_drawn_in_training_within_its_range():
    unet = randomised()
    draws = torch.tensor([unet.draw_window_shifts(4) for _ in range(200)])
    assert draws.min() == 0
    assert draws.amax(0).tolist() == list(unet.max_window_shifts(4))
    video, audio = clips()
    torch.manual_seed(0)
    outputs = {unet(video, audio, torch.tensor(10)).video.sum().item() for _ in range(12)}
    assert len(outputs) > 1


def test_clips_of_a_batch_do_not_touch_each_other():
    unet = randomised().eval()
    video, audio = clips(batch=3)
    timestep = torch.tensor([5, 500, 900])
    together = unet(video, audio, timestep)
    alone = unet(video[1:2], audio[1:2], timestep[1:2])
    torch.testing.assert_close(together.video[1:2], alone.video, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.audio[1:2], alone.audio, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("taps", [convolutions.taps_over_frames, convolutions.taps_over_samples])
@pytest.mark.parametrize(("rows", "shift"), [(12, 3), (12, 1), (12, 4), (4, 4), (3, 1)])
def test_three_taps_have_the_gradients_of_the_convolution(taps, rows, shift):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, rows, 5), (7, 5, 3), (7,)]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    grad = torch.randn(2, rows, 7, generator=generator, dtype=torch.float64)
    ours, plain = convolutions.three_taps(taps, *inputs, shift), taps(*inputs, shift)
    torch.testing.assert_close(ours, plain)
    wanted = torch.autograd.grad(plain, inputs, grad)
    for a, b in zip(torch.autograd.grad(ours, inputs, grad), wanted, strict=True):
        torch.testing.assert_close(a, b)
    for index, gradient in enumerate(wanted):  # one alone, as guidance asks for that of x
        alone = [value.detach().requires_grad_(place == index) for place, value in enumerate(inputs)]
        (a,) = torch.autograd.grad(convolutions.three_taps(taps, *alone, shift), alone[index], grad)
        torch.testing.assert_close(a, gradient)


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_biases_may_be_left_to_what_follows(frames, down):
    """Output and all gradients: without the biases, and what is to be added then, as with them."""
    torch.manual_seed(0)
    convs = convolutions.VideoConv(6, 10, down).double(), convolutions.AudioConv(6, 10, 3, down).double()
    inputs = torch.randn(2, frames, 4, 4, 6, dtype=torch.float64), torch.randn(2, 12, 6, dtype=torch.float64)
    for conv, x in zip(convs, inputs, strict=True):
        whole, rest = conv(x.requires_grad_())
        assert rest is None
        apart, rest = conv(x, False)
        probe, leaves = torch.randn_like(whole), [x, *conv.parameters()]
        torch.testing.assert_close(apart + rest, whole)
        wanted = torch.autograd.grad(whole, leaves, probe)
        for ours, exact in zip(torch.autograd.grad(apart + rest, leaves, probe), wanted, strict=True):
            torch.testing.assert_close(ours, exact)


@pytest.fixture
def device():
    """A GPU, if there is one; else the CPU, where Triton's interpreter runs the kernels."""
    with torch.device("cuda" if torch.cuda.is_available() else "cpu") as device:
        yield device.type


@pytest.fixture(params=["plain", "kernels"])
def passes(request, monkeypatch, device):
    """What runs on a GPU, run here: PyTorch's operations, or the kernels."""
    monkeypatch.setattr(gpu, "on_gpu", lambda _: True)
    ways = gpu.Plain
    if request.param == "kernels":
        pytest.importorskip("triton")
        from mgct import kernels as ways
    monkeypatch.setattr(gpu, "ways", lambda _: ways)
    return request.param


@pytest.mark.parametrize("with_film", [False, True])
@pytest.mark.parametrize("activate", [False, True])
def test_norm_of_a_gpu_is_the_norm(passes, with_film, activate):
    """Outputs and gradients as those of PyTorch's norm and what follows, one by one."""
    dtype = torch.float64 if passes == "plain" else torch.float32
    norm = GroupNorm(8, 48).to(dtype)
    torch.manual_seed(0)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(3, 7, 211, 48, dtype=dtype) + 2).requires_grad_()
    film = torch.randn(3, 96, dtype=dtype).requires_grad_() if with_film else None
    leaves = [x, norm.weight, norm.bias, *([film] if with_film else [])]

    h = F.group_norm(x.permute(0, 3, 1, 2), 8, norm.weight, norm.bias, norm.eps).permute(0, 2, 3, 1)
    if film is not None:
        scale, shift = film[:, None, None].chunk(2, -1)
        h = h * (1 + scale) + shift
    expected = F.silu(h) if activate else h
    probe = torch.randn(3, 211, 7, 48, dtype=dtype).transpose(1, 2)  # as transposed gradients come
    gradients = torch.autograd.grad((expected * probe).sum(), leaves)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if passes == "plain" else {"rtol": 1e-3, "atol": 1e-4}

    ours = norm(x, film, activate)
    torch.testing.assert_close(ours, expected, **tolerance)
    for mine, theirs in zip(torch.autograd.grad(ours, leaves, probe), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)

    for own in (torch.float32, torch.bfloat16):  # the norm's, with a body in bfloat16
        norm.to(own)
        leaves[1:3] = norm.weight, norm.bias
        half = norm(x.bfloat16(), None if film is None else film.bfloat16(), activate)
        assert half.dtype == torch.bfloat16
        halves = [half.to(dtype), *torch.autograd.grad(half, leaves, probe.bfloat16())]
        for mine, theirs in zip(halves, [expected, *gradients], strict=True):
            assert float((mine - theirs).detach().norm() / theirs.detach().norm()) < 0.02


@pytest.mark.parametrize(("rows", "positions"), [(40, 16), (2, 2000)], ids=["many short rows", "few long rows"])
@pytest.mark.parametrize("channels", [48, 256], ids=["few channels", "many channels"])
def test_norm_in_half_precision_has_statistics_in_float32(rows, positions, channels):
    """On a CPU, in a row far from 0: it errs by its rounding, as the exact norm of the same values does not."""
    torch.manual_seed(0)
    norm = GroupNorm(8, channels)
    x = (torch.randn(rows, positions, channels) + 20).bfloat16()
    out, exact = norm(x), F.group_norm(x.double().mT, 8).mT
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=2e-2)


def test_a_norm_is_compiled_for_any_number_of_positions():
    norm = torch.compile(GroupNorm(8, 16), dynamic=True, fullgraph=True, backend="aot_eager")
    for positions in (24, 30):
        x = torch.randn(2, positions, 16, requires_grad=True)
        norm(x, None, True).sum().backward()
        assert x.grad is not None


ONE_LEVEL = {"channel_mult": (1,), "cross_attention_resolutions": (1,), "video_attention_resolutions": (1,)}
ALL_INPUTS = {"audio_time": True, "target_time": True, "prediction_type": "v_prediction"}


@pytest.mark.parametrize(
    ("changes", "training", "half"),
    [
        (ONE_LEVEL, False, False),
        *(
            pytest.param(changes, training, half, marks=pytest.mark.slow)  # half a minute each
            for changes in ({}, ALL_INPUTS)
            for training in (False, True)
            for half in (False, True)
        ),
    ],
)
def test_the_network_compiles_as_one_graph(changes, training, half):
    """What a compiler cannot take cuts the graph at every layer, and most layers then stay as they are, silently."""
    unet = randomised(**changes).train(training)
    video, audio = clips()
    call = {"timestep": torch.tensor([300.0, 700.0]), "window_shift": torch.tensor([1, 0, 1])}
    if "target_time" in changes:
        call |= {"target_timestep": torch.tensor([10.0, 20.0]), "audio_timestep": torch.tensor([0.0, 40.0])}
    torch._dynamo.reset()  # a process keeps no more than eight versions
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.set_grad_enabled(training):
        whole, plain = compiled(video, audio, **call), unet(video, audio, **call)
    largest = 0.05 if half else 1e-5
    for one, other in ((whole.video, plain.video), (whole.audio, plain.audio)):
        torch.testing.assert_close(one, other, rtol=largest, atol=largest * float(other.std()))


def test_sums_of_half_precision_are_of_float32():
    """However many there are, and whether or not they can be cut into equal pieces."""
    torch.manual_seed(0)
    for positions in (1, 63, 640, 5000, 65536):
        x = (torch.randn(2, positions, 3) + 0.3).bfloat16()
        ours, exact = gpu.total(x, torch.float32), x.double().sum(1)
        assert ours.dtype == torch.float32
        assert float((ours - exact).abs().max() / exact.abs().max()) < 2e-3


@pytest.mark.parametrize("activate", [False, True])
def test_norm_of_a_gpu_adds_the_bias_before_it(passes, activate):
    """In half precision; outputs and all gradients beside the addition and the norm in float32."""
    torch.manual_seed(0)
    norm = GroupNorm(8, 48)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, probe = torch.randn(3, 500, 48).bfloat16(), torch.randn(3, 500, 48).bfloat16()
    film, offset = torch.randn(3, 96, requires_grad=True), torch.randn(48, requires_grad=True)
    results: list = []
    for kind in (torch.bfloat16, torch.float32):
        leaves = [x.to(kind).requires_grad_(), norm.weight, norm.bias, film, offset]
        out = norm(leaves[0], film, activate, offset)
        assert out.dtype == kind
        results.append([out, *torch.autograd.grad(out, leaves, probe.to(kind))])
    for ours, exact in zip(*results, strict=True):
        assert float((ours.float() - exact).detach().norm() / exact.detach().norm()) < 0.02


@pytest.mark.parametrize("function", ["video_down", "video_up", "audio_down", "audio_up"])
@pytest.mark.usefixtures("device")
def test_resampling_of_a_gpu_is_resampling(monkeypatch, function):
    kernels = pytest.importorskip("mgct.kernels")
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, 5) if "video" in function else torch.randn(2, 12, 5)
    x.requires_grad_()
    monkeypatch.setattr(gpu, "has_kernels", lambda _: False)
    expected = getattr(resampling, function)(x)
    probe = torch.randn(expected.shape)
    (gradient,) = torch.autograd.grad(expected, x, probe)
    monkeypatch.setattr(gpu, "has_kernels", lambda _: True)
    monkeypatch.setattr(gpu, "kernels", lambda: kernels)
    ours = getattr(resampling, function)(x)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, x, probe)[0], gradient)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.usefixtures("device")
def test_windows_of_a_gpu_are_the_windows(monkeypatch, window):
    kernels = pytest.importorskip("mgct.kernels")
    torch.manual_seed(0)
    q, kv = torch.randn(2, 12, 2, 4), torch.randn(2, 20, 2, 2, 4, requires_grad=True)

    def result():
        out = windowed_attention(q, *kv.unbind(2), num_frames=4, window=window, shift=2)
        return out, *torch.autograd.grad(out.square().sum(), kv)

    monkeypatch.setattr(gpu, "has_kernels", lambda _: False)
    expected = result()
    monkeypatch.setattr(gpu, "has_kernels", lambda _: True)
    monkeypatch.setattr(gpu, "kernels", lambda: kernels)
    for ours, theirs in zip(result(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shift", [1, 3, 4])
def test_dilated_taps_as_pictures(shift):
    """What a GPU is given for a dilated convolution is that convolution."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 13, 5), torch.randn(7, 5, 3), torch.randn(7)
    rows = F.pad(x, (0, 0, 0, -13 % shift))
    ours = convolutions.taps_over_frames(rows, weight, bias, shift)[:, :13]
    torch.testing.assert_close(ours, convolutions.taps_over_samples(x, weight, bias, shift))


def test_kernels_that_are_wrong_are_not_used(device):
    pytest.importorskip("triton")
    from mgct import kernels

    gpu.check_kernels(kernels, device)
    wrong = SimpleNamespace(**{**vars(kernels), "affine": lambda x, *_: x})
    with pytest.raises(RuntimeError, match="affine"):
        gpu.check_kernels(wrong, device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_predicts_the_same(dtype):
    """The network on a GPU, in float32 and in half precision, with its gradients, beside the CPU's in float32."""
    unet = randomised()
    video, audio, t = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 1, 64), torch.tensor([3, 700])
    results = {}
    for device in ("cpu", "cuda"):
        network = copy.deepcopy(unet).to(device).train()
        half = device == "cuda" and dtype != torch.float32
        with torch.autocast(device, dtype if half else torch.bfloat16, enabled=half):
            out = network(video.to(device), audio.to(device), t.to(device), window_shift=0)
        (out.video.float().square().mean() + out.audio.float().square().mean()).backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters()]).cpu()
        results[device] = [out.video.float().cpu(), out.audio.float().cpu(), gradient]
    for ours, true in zip(results["cuda"], results["cpu"], strict=True):
        assert float((ours - true).norm() / true.norm()) < (2e-3 if dtype == torch.float32 else 3e-2)
