"""``mgct export``: other programs get the same network, or one line that says why not."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mgct import AVPipeline, ClipSpec, MultimodalUNet
from mgct.commands.export import onnx_inputs
from mgct.convert import mm_diffusion_flags
from mgct.errors import UserError
from tests.test_cli import run
from tests.test_unet import SMALL, clips, randomised

CLIP = ClipSpec(4, 10.0, 8, 160)
ONE_LEVEL = {
    "channel_mult": (1,),
    "cross_attention_resolutions": (1,),
    "video_attention_resolutions": (),
    "middle_cross_attention": False,
}


def saved(unet, folder):
    AVPipeline(unet, CLIP, {"ddim": [1, 50]}).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_onnx_is_the_same_function(tmp_path, capsys, prediction_type):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    unet = randomised(**ONE_LEVEL, target_time=True, audio_time=True, prediction_type=prediction_type).eval()
    status, out, err = run(capsys, "export", saved(unet, tmp_path / "model"), tmp_path / "sub" / "net.onnx")
    assert status == 0, err
    assert "inputs video, audio, timestep, window_shift, target_timestep, audio_timestep" in out
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "sub" / "net.onnx", providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["mgct"])
    assert ClipSpec(**facts["clip"]) == CLIP
    assert facts["recommended"] == {"ddim": [1, 50]}
    assert facts["max_window_shifts"] == list(unet.max_window_shifts(CLIP.frames))
    for batch, shift, goal in ((1, 0, 1.0), (5, 2, 0.25)):
        video, audio = clips(batch=batch, samples=CLIP.audio_samples, seed=batch)
        timestep = torch.linspace(3, 990, batch)
        shifts = torch.full((unet.num_shifted_blocks,), shift)
        with torch.no_grad():
            want = unet(video, audio, timestep, shifts, timestep * goal, timestep.flip(0))
        values = (video, audio, timestep, shifts, timestep * goal, timestep.flip(0))
        got = session.run(None, {name: value.numpy() for name, value in zip(onnx_inputs(unet), values, strict=True)})
        for ours, theirs in zip((want.video, want.audio), got, strict=True):
            assert ours.std() > 0.01
            torch.testing.assert_close(torch.from_numpy(theirs), ours, atol=1e-4, rtol=0)


def test_a_file_that_differs_is_not_kept(tmp_path, capsys, monkeypatch):
    from mgct.commands import export

    monkeypatch.setattr(export, "_need_packages", lambda: None)
    monkeypatch.setattr(export, "write_onnx", lambda pipe, path: path.write_bytes(b"x"))
    model = saved(randomised(), tmp_path / "model")
    (tmp_path / "net.onnx").write_text("before")
    for difference in (0.01, float("nan")):
        monkeypatch.setattr(export, "onnx_difference", lambda pipe, path, found=difference: found)
        status, _, err = run(capsys, "export", model, tmp_path / "net.onnx")
        assert status == 2
        assert "differs from PyTorch's" in err
        assert (tmp_path / "net.onnx").read_text() == "before"
        assert not list(tmp_path.glob(".*"))


def test_without_the_packages_it_says_which(tmp_path, capsys, monkeypatch):
    from mgct.commands import export

    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    status, _, err = run(capsys, "export", tmp_path, tmp_path / "net.onnx")
    assert status == 2
    assert err.strip() == "mgct: ONNX needs onnxruntime: pip install 'mgct[export]'"


@pytest.mark.parametrize(("name", "format"), [("net.pt", "onnx"), ("net.onnx", "mm-diffusion"), ("net", "onnx")])
def test_the_ending_must_fit(tmp_path, capsys, name, format):
    status, _, err = run(capsys, "export", tmp_path, tmp_path / name, "--format", format)
    assert status == 2
    assert f"a file of the format {format} ends in" in err


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_mm_diffusion_there_and_back(unet_small_weights, tmp_path, capsys, suffix):
    clip = ClipSpec(8, 10.0, 16, 2560)
    unet = MultimodalUNet.from_mm_diffusion(unet_small_weights, **SMALL)
    AVPipeline(unet, clip).save_pretrained(tmp_path / "model")
    path = tmp_path / f"out{suffix}"
    status, out, err = run(capsys, "export", tmp_path / "model", path, "--format", "mm-diffusion")
    assert status == 0, err
    state = torch.load(path, weights_only=True) if suffix == ".pt" else load_file(path)
    assert state.keys() == unet_small_weights.keys()
    assert all(torch.equal(state[key], value) for key, value in unet_small_weights.items())
    words = out.splitlines()[1].split()
    flags = dict(zip(words[::2], words[1::2], strict=True))
    assert flags["--num_channels"] == "32"
    assert flags["--audio_attention_resolutions"] == "-1"
    assert flags["--video_size"] == "8,3,16,16"
    assert flags["--audio_size"] == "1,2048"


PAPER_LIKE = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2, 3, 4), "norm_num_groups": 32}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target_time": True}, "target_time=True"),
        ({"norm_num_groups": 16}, "norm_num_groups=16"),
        ({"middle_cross_attention": False}, "middle_cross_attention=False"),
        ({"cross_attention_windows": (1, 2, 4)}, "cross_attention_windows=[1, 2, 4]"),
        ({"audio_channels": 2}, "audio_channels=2"),
    ],
)
def test_what_mm_diffusion_cannot_build_is_refused_by_name(changes, named, tmp_path, capsys):
    assert mm_diffusion_flags(MultimodalUNet(**PAPER_LIKE))["num_channels"] == "32"
    unet = MultimodalUNet(**{**PAPER_LIKE, **changes})
    with pytest.raises(UserError) as error:
        mm_diffusion_flags(unet)
    assert named in str(error.value)
    saved(unet, tmp_path / "model")
    status, _, err = run(capsys, "export", tmp_path / "model", tmp_path / "out.pt", "--format", "mm-diffusion")
    assert status == 2
    assert [named in line for line in err.splitlines() if line.startswith("mgct: ")] == [True]
    assert "Traceback" not in err
    assert not (tmp_path / "out.pt").exists()


def test_a_setting_that_mm_diffusion_does_not_know_is_refused():
    unet = MultimodalUNet(**PAPER_LIKE)
    unet.register_to_config(brand_new=3)
    with pytest.raises(UserError, match=r"brand_new \(unknown there\)"):
        mm_diffusion_flags(unet)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, capsys):
    unet = MultimodalUNet(**PAPER_LIKE)
    (tmp_path / "file").write_text("")
    saved(unet, tmp_path / "model")
    target = tmp_path / "file" / "out.pt"
    status, _, err = run(capsys, "export", tmp_path / "model", target, "--format", "mm-diffusion")
    assert status == 2
    assert f"mgct: {target}: cannot be written" in err
