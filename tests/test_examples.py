"""The examples run, on a tiny model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mgct import AVPipeline
from mgct.data.media import probe, write_mp4
from tests.test_app import CLIP, free_port, pipe

EXAMPLES = Path(__file__).parent.parent / "examples"
__all__ = ["pipe"]  # the fixture


@pytest.fixture(scope="module")
def run_folder(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    pipe.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "sound.mp4"
    audio = (torch.sin(torch.arange(8000) * 0.3) * 9000).to(torch.int16)[None]
    write_mp4(path, torch.zeros(10, 3, 16, 16, dtype=torch.uint8), audio, fps=10, sample_rate_hz=8000)
    return path


def example(name, *arguments, **environment):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")} == {
        "generate.py",
        "sound_to_video.py",
        "client.py",
        "tour.ipynb",
    }


def test_generate(run_folder, tmp_path):
    out = example("generate.py", run_folder, tmp_path / "out", "--steps", 4)
    files = [Path(line) for line in out.splitlines() if line.endswith(".mp4")]
    assert len(files) == 5
    assert "call 4 of 4" in out
    assert all(probe(file).frames == CLIP.frames for file in files)
    assert files[0].read_bytes() != files[-1].read_bytes()


def test_sound_to_video(run_folder, sound, tmp_path):
    out = example("sound_to_video.py", run_folder, sound, tmp_path / "out", "--steps", 4)
    frames = [probe(Path(line)).frames for line in out.splitlines()]
    assert frames == [CLIP.frames, CLIP.frames, 2 * CLIP.frames]


def test_client(run_folder, sound, tmp_path):
    pytest.importorskip("gradio")
    from mgct.app import build_app
    from mgct.app.server import launch_settings

    blocks = build_app({"demo": AVPipeline.from_pretrained(run_folder / "model")})
    port = free_port()
    password = "a long enough password"
    blocks.launch(**launch_settings(tmp_path, port=port, password=password), prevent_thread_lock=True)
    try:
        address = f"http://127.0.0.1:{port}"
        out = example("client.py", address, tmp_path / "out", "--sound", sound, MGCT_APP_PASSWORD=password)
    finally:
        blocks.close(verbose=False)
        blocks.studio.close()
    assert "will take about" in out
    assert "video for your sound" in out
    files = sorted((tmp_path / "out").glob("*.mp4"))
    assert [probe(file).frames for file in files] == [CLIP.frames] * 3


def test_the_notebook():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    texts = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    )
    first, last = (float(word) for word in texts.split("loss ")[1].split("\n")[0].split(" → "))
    assert last < first / 2
