"""The models that come with the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mgct import AVPipeline, cli
from mgct.app.models import find_models
from mgct.data.media import probe
from mgct.errors import MgctWarning, UserError
from mgct.saved_models import bundled_models

ROOT = Path(__file__).parent.parent
NAMES = sorted(bundled_models())


def test_there_are_some():
    assert "landscape" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_model_loads_by_its_name_without_a_network_and_generates(name):
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise OSError('no network')\n"
        "socket.socket.connect = socket.create_connection = refuse\n"
        "from mgct import AVPipeline\n"
        "pipe = AVPipeline.from_pretrained(sys.argv[1])\n"
        "clips = pipe(num_clips=2, steps=4, progress=False)\n"
        "assert clips.video.shape == (2, *pipe.clip.video_shape) and clips.audio.shape == (2, *pipe.clip.audio_shape)\n"
        "assert all(x.isfinite().all() and x.abs().max() <= 1 and x.std() > 0.01 for x in (clips.video, clips.audio))\n"
    )
    subprocess.run([sys.executable, "-c", code, name], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_model_is_small_and_has_a_card(name):
    folder = bundled_models()[name]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 20e6
    assert not any("_name_or_path" in path.read_text() for path in folder.rglob("*.json"))  # whose folder it was
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "Apache-2.0"
    for words in (
        f"world:{name.removesuffix('-micro')}",
        "FVD-compact",
        "Cost:",
        "Steps:",
        f'from_pretrained("{name}")',
    ):
        assert words in card


def test_a_saved_pipeline_of_the_same_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundled_models()["landscape"], "landscape")
    config = Path("landscape/model_index.json")
    config.write_text(config.read_text().replace('"beta_end": 0.02', '"beta_end": 0.03'))
    assert AVPipeline.from_pretrained("landscape").config.beta_end == 0.03
    config.unlink()  # any folder, as of videos
    assert AVPipeline.from_pretrained("landscape").config.beta_end == 0.02
    for name in ("seascape", "seascape/model", "a/b/model", Path("seascape/model"), Path("a/b"), "landscape/best"):
        with pytest.raises(UserError, match=rf"{name}: no such model; .* landscape"):
            AVPipeline.from_pretrained(name)


def test_sample_alone_makes_clips_of_a_bundled_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = cli.COMMANDS["sample"]
    model, *others = command.when_alone
    assert model in NAMES
    quick = command._replace(when_alone=("landscape-micro", *others))  # the same in a twentieth of the time
    monkeypatch.setitem(cli.COMMANDS, "sample", quick)
    assert cli.main(["sample"]) == 0
    files = sorted(Path("clips").glob("*.mp4"))
    assert len(files) == 8
    assert probe(files[0]).audio_codec == "aac"
    capsys.readouterr()
    assert cli.main(["sample", "seascape", "clips"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"come with mgct: {', '.join(NAMES)}" in line


def test_the_page_offers_runs_and_then_the_bundled_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(find_models()) == NAMES
    assert find_models(Path("landscape")) == {"landscape": bundled_models()["landscape"]}
    shutil.copytree(bundled_models()["landscape"], "runs/mine/model")
    assert list(find_models()) == ["mine", *NAMES]


def test_training_goes_on_from_the_bundled_model_by_the_configuration_for_it(tmp_path):
    config = ["--config", str(ROOT / "configs" / "finetune.yaml"), "--data", "world:landscape"]
    small = ["--out", str(tmp_path / "run"), "--train.steps", "1", "--train.batch_size", "2"]
    assert cli.main(["train", *config, *small]) == 0
    before, after = (
        AVPipeline.from_pretrained(model).unet.state_dict() for model in ("landscape-micro", tmp_path / "run" / "model")
    )
    assert before.keys() == after.keys()
    assert all((before[name] - after[name]).abs().max() < 1e-3 for name in after)
    wider = ["--model.cross_attention_windows", "[4]", "--model.cross_attention_shift", "true"]
    with pytest.warns(
        MgctWarning, match=r"other windows \(cross_attention_shift False, here True, cross_attention_win"
    ):
        assert cli.main(["train", *config, *small, *wider, "--out", str(tmp_path / "wider")]) == 0
    assert AVPipeline.from_pretrained(tmp_path / "wider").unet.config["cross_attention_windows"] == [4]
    more = ["--train.steps", "2", "--resume"]
    assert cli.main(["train", *config, *small[:2], *small[4:], *more]) == 0
    starts = [
        AVPipeline.from_pretrained(model).config.start_timestep for model in ("landscape-micro", tmp_path / "run/model")
    ]
    assert starts == [850, 850]
