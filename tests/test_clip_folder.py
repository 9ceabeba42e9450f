"""`mgct sample` in bulk, as it is launched: two processes give what one gives, and an interrupted run goes on."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from mgct import AVPipeline, AVSample, ClipSpec
from mgct.checkpoint import run_folder
from mgct.cli import main
from mgct.clip_folder import load_clips, sample_to_folder
from mgct.commands.sample import sample
from mgct.data.media import AudioReader, VideoReader, read_clip
from mgct.errors import UserError
from mgct.given import Given
from mgct.sampling_options import SamplingOptions
from tests.media_files import write_media
from tests.test_unet import randomised

CLIP = ClipSpec(frames=4, fps=10, size=8, sample_rate_hz=160)
TWO_PROCESSES = Path(__file__).parents[1] / "configs" / "accelerate" / "cpu.yaml"
NUM = 9
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def sampling(model: Path, out: Path, *options: str, processes: int = 1) -> list[str]:
    """The command line of `mgct sample`, as the documentation has it."""
    launch = ["accelerate.commands.launch", "--config_file", str(TWO_PROCESSES), "--main_process_port", "0", "-m"]
    prefix = [] if processes == 1 else launch
    arguments = ["sample", str(model), str(out), f"--num={NUM}", "--steps=15", "--batch_size=2", *options]
    return [sys.executable, "-m", *prefix, "mgct.cli", *arguments]


def films(folder: Path) -> list[Path]:
    """The clips of a folder, in order."""
    return sorted(folder.glob("clip_*.mp4"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    AVPipeline(randomised(), CLIP, {"dpm-solver++": [1, 50]}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(model):
    return AVPipeline.from_pretrained(model)


@pytest.fixture(scope="module")
def films_of_one(model, tmp_path_factory):
    """What one process writes."""
    out = tmp_path_factory.mktemp("films") / "one"
    subprocess.run(sampling(model, out), env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    return out


def test_two_processes_write_what_one_writes_and_go_on_after_a_kill(model, films_of_one, tmp_path):
    out = tmp_path / "two"
    command = sampling(model, out, processes=2)
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not films(out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    family = psutil.Process(process.pid)
    for member in [*family.children(recursive=True), family]:
        member.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in films(out)}
    assert 0 < len(kept) < NUM
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    made, found = (int(number) for number in re.search(r"(\d+) clips made by 2 .*, (\d+) were", done.stdout).groups())
    assert (made, found) == (NUM - len(kept), len(kept))
    assert [path.name for path in films(out)] == [f"clip_{index:06d}.mp4" for index in range(NUM)]
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert not list(out.glob(".*")), "what the kill left half-written is gone"
    ours, theirs = (
        torch.stack([read_clip(path, CLIP).video.float() for path in films(folder)]) for folder in (out, films_of_one)
    )
    assert (ours - theirs).abs().mean() < 1  # of 255: batches of other clips round otherwise, and H.264 is lossy
    assert (ours - theirs.roll(1, 0)).abs().mean() > 20


def test_another_precision_rounds_and_is_not_mixed_in(model, tmp_path):
    how = {"num": 2, "steps": 6, "format": "safetensors"}
    for precision in ("fp32", "bf16"):
        sample(str(model), tmp_path / precision, precision=precision, **how)
    exact, rounded = (load_clips(next((tmp_path / name).glob("*.safetensors")))[0].video for name in ("fp32", "bf16"))
    assert 0 < (exact - rounded).abs().mean() < 0.1 * exact.std()
    with pytest.raises(UserError, match="made otherwise \\(model"):
        sample(str(model), tmp_path / "fp32", precision="bf16", **how)


def test_what_cannot_be_made_claims_no_folder(model, tmp_path):
    pipe, out = AVPipeline.from_pretrained(model), tmp_path / "out"
    for bad in ({"start_timestep": 5}, {"start_timestep": 1000}, {"sampler": "map"}):
        with pytest.raises(UserError):
            sample_to_folder(pipe, out, 1, SamplingOptions(**{"steps": 8, "progress": False, **bad}))
        assert not out.exists()


def test_a_record_without_clips_gives_way_to_another(model, tmp_path):
    """What fails before its first clip claims nothing."""
    pipe = AVPipeline.from_pretrained(model)

    def full(*_):
        raise UserError("no space left")

    with pytest.raises(UserError, match="no space left"):
        sample_to_folder(pipe, tmp_path, 1, SamplingOptions(steps=8, progress=False), finish=full)
    sample_to_folder(pipe, tmp_path, 1, SamplingOptions(steps=9, progress=False))
    assert json.loads((tmp_path / "sampling.json").read_text())["steps"] == 9


def test_clips_are_not_put_into_a_run_or_a_saved_model(model, tmp_path, capsys):
    run = tmp_path / "run"
    with run_folder(run, {"init": ""}, "mgct train"):
        shutil.copytree(model, run / "model")
    before = sorted(run.rglob("*"))
    for out in (run, run / "model"):
        assert main(["sample", str(run), str(out), "--steps=1"]) == 2
        assert f"{out} holds a run or a saved model: choose another folder" in capsys.readouterr().err
        assert main(["worlds", "landscape", str(out), "--num=1"]) == 2
        assert f"{out} holds a run or a saved model: choose another folder" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before
    assert main(["sample", str(run), str(run / "clips"), "--steps=8", "--sampler=dpm-solver++", "--num=1"]) == 0


@pytest.mark.parametrize("record", ["{", "[]"])
def test_a_damaged_record_is_named(model, tmp_path, record):
    (tmp_path / "sampling.json").write_text(record)
    with pytest.raises(UserError, match=r"sampling\.json is damaged"):
        sample_to_folder(AVPipeline.from_pretrained(model), tmp_path, 1, SamplingOptions(steps=8, progress=False))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model_index.json", "{"),
        ("model_index.json", "[1]"),
        ("unet/config.json", "x"),
        ("unet/diffusion_pytorch_model.safetensors", ""),
    ],
)
def test_a_damaged_model_is_named(model, tmp_path, file, content):
    copy = shutil.copytree(model, tmp_path / "model")
    (copy / file).write_text(content)
    with pytest.raises(UserError, match="model cannot be loaded as a saved pipeline"):
        AVPipeline.from_pretrained(copy)


def test_a_model_that_lacks_a_tensor_is_refused(model, tmp_path):
    """Instead of being given a random one."""
    copy = shutil.copytree(model, tmp_path / "model")
    file = next(copy.glob("unet/*.safetensors"))
    tensors = load_file(file)
    tensors.pop("time_embed.0.bias")
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"missing time_embed\.0\.bias"):
        AVPipeline.from_pretrained(copy)


def test_what_was_left_half_written_is_removed_where_it_is_one_s_own(model, tmp_path):
    pipe = AVPipeline.from_pretrained(model)
    halves = [tmp_path / name for name in (".clip_000001.mp4.77.tmp", ".clip_000002.mp4.77.tmp", ".notes")]
    for half in halves:
        half.write_bytes(b"half")
    options = SamplingOptions(steps=1, progress=False)
    sample_to_folder(pipe, tmp_path, 4, options, rank=0, world_size=2)
    assert [half.exists() for half in halves] == [True, False, True]
    assert [path.name for path in films(tmp_path)] == ["clip_000000.mp4", "clip_000002.mp4"]


def test_the_record_tells_enlarged_clips_from_others(model, tmp_path):
    pipe = AVPipeline.from_pretrained(model)
    options = SamplingOptions(steps=1, progress=False)

    def larger(clips, _):
        return AVSample(video=clips.video.repeat_interleave(2, -1).repeat_interleave(2, -2), audio=clips.audio)

    how = {"finish": larger, "finished_size": 16, "facts": {"upsampler": "abc"}}
    sample_to_folder(pipe, tmp_path, 2, options, **how)
    record = json.loads((tmp_path / "sampling.json").read_text())
    assert (record["clip"]["size"], record["upsampler"]) == (16, "abc")
    assert sample_to_folder(pipe, tmp_path, 2, options, **how).found == 2
    with pytest.raises(UserError, match=r"made otherwise.*upsampler"):
        sample_to_folder(pipe, tmp_path, 2, options)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("silent.mp4", "audio", r"silent\.mp4: no audio: .*; give a file with sound"),
        ("deaf.wav", "video", r"deaf\.wav: no video: .*; give a file with a picture"),
        ("none.wav", "audio", r"none\.wav: unreadable: not a file"),
        ("short.mp4", "audio", r"short\.mp4: too short: 0\.2\d s of sound; 0\.4 s are needed \(a shorter --sec"),
        ("short.mp4", "video", r"short\.mp4: too short: 0\.2\d s of video; 0\.4 s are needed \(a shorter --sec"),
    ],
)
def test_a_given_file_that_will_not_do_is_named(model, tmp_path, name, option, message):
    write_media(tmp_path / "silent.mp4", acodec=None)
    write_media(tmp_path / "deaf.wav", vcodec=None, acodec="pcm_s16le")
    write_media(tmp_path / "short.mp4", seconds=0.2)
    with pytest.raises(UserError, match=message):
        sample(str(model), tmp_path / "out", **{option: tmp_path / name})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_given_media_of_any_rate_are_in_the_clips(model, tmp_path, rate):
    given = tmp_path / "given.mkv"
    write_media(given, fps=Fraction(30000, 1001), rate=rate, seconds=1.0, layout="stereo")
    made = {}
    for option in ("audio", "video"):
        sample(str(model), tmp_path / option, num=1, steps=2, format="safetensors", **{option: given})
        made[option] = load_clips(tmp_path / option / "clips_000000-000000.safetensors")[0]
    with AudioReader(given, sample_rate_hz=CLIP.sample_rate_hz) as reader:
        sound = torch.from_numpy(reader.read(CLIP.audio_samples)) / 32768
    with VideoReader(given, fps=CLIP.fps, size=CLIP.size, fit="crop") as reader:
        picture = torch.from_numpy(reader.read(CLIP.frames)).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(made["audio"].audio[0, 0], sound, atol=1e-4, rtol=0)
    torch.testing.assert_close(made["video"].video[0], picture, atol=0.01, rtol=0)
    assert (made["audio"].video[0] - picture).abs().mean() > 0.05


def test_a_folder_of_sounds_is_taken_in_turn_and_from_where_it_is_told(model, tmp_path):
    """Clip k has the sound of file k modulo N from --start_s on; more clips of the same can be asked for later."""
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for number, name in enumerate(("a.wav", "b ü.wav")):
        write_media(sounds / name, vcodec=None, acodec="pcm_s16le", seconds=1.0 + number, event_s=0.4 + 0.2 * number)
    (sounds / "notes.txt").write_text("no sound")
    out, how = tmp_path / "out", {"steps": 1, "audio": sounds, "start_s": 0.3}
    sample(str(model), out, **how)
    assert len(films(out)) == 2
    sample(str(model), out, num=3, **how)
    assert len(films(out)) == 3
    with pytest.raises(UserError, match="made otherwise"):
        sample(str(model), out, num=3, **{**how, "start_s": 0.0})
    lossless = tmp_path / "lossless"
    sample(str(model), lossless, num=3, format="safetensors", **how)
    made = load_clips(lossless / "clips_000000-000002.safetensors")[0].audio[:, 0]
    for clip, name in zip(made, ("a.wav", "b ü.wav", "a.wav"), strict=True):
        with AudioReader(sounds / name, sample_rate_hz=CLIP.sample_rate_hz, start_s=0.3) as reader:
            expected = torch.from_numpy(reader.read(CLIP.audio_samples)) / 32768
        torch.testing.assert_close(clip, expected, atol=1e-4, rtol=0)
    assert not torch.equal(made[0], made[1])
    (sounds / "b ü.wav").unlink()
    sample(str(model), tmp_path / "of one", **how)
    assert len(films(tmp_path / "of one")) == 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"audio": "empty"}, "empty: no sound or video file in this folder"),
        ({"video": "empty"}, "empty: no video file in this folder"),
        ({"start_s": 1.0}, "give --audio or --video too"),
        ({"audio": "sound.wav", "start_s": -1.0}, "start_s must be 0 or later"),
        ({"audio": "sound.wav", "start_s": 0.8}, r"sound\.wav: too short: 0\.2\d? s of sound from 0\.8 s on; 0\.4 s"),
    ],
)
def test_a_given_folder_or_start_that_will_not_do_is_named(model, tmp_path, how, message):
    (tmp_path / "empty").mkdir()
    write_media(tmp_path / "sound.wav", vcodec=None, acodec="pcm_s16le", seconds=1.0)
    how = {name: tmp_path / value if isinstance(value, str) else value for name, value in how.items()}
    with pytest.raises(UserError, match=message):
        sample(str(model), tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("clip_x0", {"clip_x0": False}),
        ("window_shift", {"window_shift": 1}),
        ("variation", {"variation_of": [3]}),
        ("variation", {"variation_of": [3], "variation": 0.2}),
        ("start_timestep", {"start_timestep": 600}),
        ("num_clips", {}),
    ],
)
def test_clips_made_otherwise_are_not_mixed_in(pipe, tmp_path, name, changes):
    first = {"variation_of": [3]} if "variation" in changes else {}
    sample_to_folder(pipe, tmp_path, 1, SamplingOptions(steps=2, progress=False, **first), format="safetensors")
    with pytest.raises(UserError, match=f"made otherwise.*{name}"):
        sample_to_folder(
            pipe,
            tmp_path,
            1 if changes else 2,
            SamplingOptions(steps=2, progress=False, **changes),
            format="safetensors",
        )


def test_clips_of_another_given_sound_or_scale_are_not_mixed_in(pipe, tmp_path):
    options = SamplingOptions(steps=1, progress=False)
    empty, sound = torch.zeros(1, 0, 3, 8, 8), torch.full((1, 1, CLIP.audio_samples), 0.5)
    given = Given(AVSample(video=empty, audio=sound), "guided", 4.0)
    sample_to_folder(pipe, tmp_path, 1, options, given=given)
    for other in (replace(given, guidance_scale=2.0), replace(given, start=AVSample(video=empty, audio=-sound))):
        with pytest.raises(UserError, match=r"made otherwise.*given"):
            sample_to_folder(pipe, tmp_path, 1, options, given=other)


def test_clips_without_a_record_are_not_added_to(pipe, tmp_path):
    (tmp_path / "clip_000007.mp4").write_bytes(b"mine")
    with pytest.raises(UserError, match="without a record"):
        sample_to_folder(pipe, tmp_path, 1, SamplingOptions(steps=1, progress=False))
