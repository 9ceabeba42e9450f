"""`mgct sample` in bulk, as it is launched: two processes give what one gives, and an interrupted run goes on."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from mgct import AVPipeline, AVSample, ClipSpec
from mgct.clip_folder import sample_to_folder
from mgct.data.media import read_clip
from mgct.errors import UserError
from mgct.pipeline import SamplingOptions
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
