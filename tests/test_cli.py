"""The command line as a newcomer meets it: help, one-line errors, configs. What README and docs say: test_docs.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mgct import ClipSpec, cli
from mgct.errors import UserError
from mgct.unet import MultimodalUNet

ROOT = Path(__file__).parent.parent
MODEL_CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, output and errors of a command."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def test_help_names_every_command_without_heavy_imports():
    code = "import sys; from mgct import cli; cli.main(['--help']); assert 'torch' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_help(capsys, name):
    status, out, _ = run(capsys, *name.split(), "--help")
    assert status in (0, None)
    assert out.startswith(f"usage: mgct {name}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paint"], "no command 'paint'"),
        (["sample", "no-such-model", "out"], "no-such-model: no such model"),
        (["sample", "no-such-model", "out", "--nmu", "3"], "nmu"),
        (["sample", "no-such-model", "out", "--num", "three"], "num"),
        (["train", "--config", str(ROOT / "configs/micro.yaml")], "train needs --data"),
        (["train", "--config", "no-such.yaml"], "no-such.yaml"),
        (["train", "--data", "x", "--train.stepz", "3"], "stepz"),
        (["train", "--data", "no-such-folder", "--config", str(ROOT / "configs/micro.yaml")], "no-such-folder"),
        (["prepare", "no-such-folder", "out"], "no-such-folder"),
        (["worlds", "ocean", "out"], "ocean"),
        (["plot", "loss", "no-such-run", "x.png"], "no-such-run"),
        (["worlds", "dance", "out", "--clip.frames", "0"], "clip.frames must be positive"),
        (["worlds", "dance", "latin1.yaml/out"], "latin1.yaml"),
        (["train", "--config", "latin1.yaml"], "not text in UTF-8"),
        (["compare", "a.json", "b.json"], "no metric card at a.json"),
        (["sample", "no-such-model", "out", "--steps", "0"], "takes 1 to 1000 steps, got 0"),
        (["sample", "no-such-model", "out", "--sampler", "euler"], "unknown sampler 'euler'"),
        (["sample", "no-such-model", "out", "--batch_size", "0"], "batch_size must be at least 1"),
        (["sample", "no-such-model", "out", "--num", "0"], "got num=0"),
        (["sample", "no-such-model", "out", "--num", "100000000000"], "holds 1 to 1,000,000 clips"),
        (["sample", "no-such-model", "out", "--guidance_scale", "5"], "guidance_scale is for what is given"),
        (["sample", "no-such-model", "out", "--method", "guided"], "method is for what is given"),
        (["sample", "no-such-model", "out", "--video_coupling", "1e4"], "video_coupling must be a number from -1000"),
    ],
)
def test_bad_input_is_one_line_that_names_it(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("latin1.yaml").write_bytes("data: Tänze".encode("latin-1"))
    status, _, err = run(capsys, *arguments)
    assert status == 2
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("mgct: ")
    assert message in lines[0]


@pytest.mark.parametrize("path", MODEL_CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads(path):
    from mgct.train_settings import TrainSettings

    parser = cli.parser_of("train")
    parsed = parser.parse_args([f"--config={path}", "--data=x"])
    options = parser.instantiate(parsed)
    assert isinstance(options.train, TrainSettings)
    model = MultimodalUNet(**parsed.model.as_dict())
    spec = options.clip
    depth = len(model.config["channel_mult"]) - 1
    assert spec.size % 2**depth == 0
    assert spec.audio_samples % 4**depth == 0
    parameters = sum(p.numel() for p in model.parameters())
    if path.stem == "paper":
        assert parameters == 133_675_524
    if path.stem == "small":
        assert parameters <= 8_000_000


@pytest.mark.parametrize("path", sorted((ROOT / "configs/clips").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_clip_config_is_the_clip_of_its_model(path):
    assert yaml.safe_load(path.read_text()) == yaml.safe_load((ROOT / "configs" / path.name).read_text())["clip"]


@pytest.mark.parametrize(("world", "ratio"), [("landscape", 0.5), ("aist", 0.7)])
def test_the_paper_s_configs_are_the_paper_s(world, ratio):
    from mgct.stages import Consistency, LossRatio, UniformGrid

    parser = cli.parser_of("train")
    options = parser.instantiate(parser.parse_args([f"--config={ROOT}/configs/mgct-paper-{world}.yaml", "--data=x"]))
    assert options.consistency == Consistency(ratio=LossRatio(ratio), grid=UniformGrid(50))
    unet = MultimodalUNet(**options.model.as_dict())
    assert unet.num_parameters() == 133_675_524


def test_a_second_config_makes_a_flow_map_of_any(capsys, tmp_path):
    from mgct.losses import FlowMap

    parser = cli.parser_of("train")
    files = [f"--config={ROOT}/configs/{name}.yaml" for name in ("small", "mgct-map")]
    options = parser.instantiate(parser.parse_args([*files, "--data=x"]))
    assert options.consistency.jump == FlowMap()
    assert options.model.target_time
    assert (
        options.model.model_channels
        == yaml.safe_load((ROOT / "configs/small.yaml").read_text())["model"]["model_channels"]
    )
    arguments = [f"--config={ROOT}/configs/micro.yaml", "--data=world:landscape", f"--out={tmp_path}"]
    status, _, err = run(capsys, "train", *arguments, "--consistency.jump=FlowMap")
    assert (status, "needs --model.target_time true" in err) == (2, True)
    status, _, err = run(capsys, "train", *arguments, "--monitor.sampler=map")
    assert (status, "monitor.sampler map jumps; it needs --model.target_time true" in err) == (2, True)
    status, _, err = run(capsys, "train", *arguments, "--timesteps.independent=0.5")
    assert (status, "needs --model.audio_time true" in err) == (2, True)
    status, _, err = run(capsys, "train", *arguments, "--balance=LearnedUncertainty", "--train.max_loss_rise=10")
    assert (status, "a learned balance makes the loss negative" in err) == (2, True)


@pytest.mark.usefixtures("other_precision")
@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (["--transfer.max_steps=9"], True),
        (["--transfer.delta=0.1"], True),
        ([], False),
        (["--transfer.max_steps=9", "--consistency.weight=NoiseUnits"], False),
        (["--transfer.max_steps=9", "--train.precision=fp32"], False),
    ],
)
def test_a_second_stage_that_bfloat16_would_round_away_is_warned_of(capsys, recwarn, options, warned):
    arguments = [f"--config={ROOT}/configs/micro.yaml", "--data=no-such-folder"]
    off = [
        "--transfer.min_steps=0",
        "--transfer.delta=null",
        "--transfer.max_steps=null",
        "--consistency.weight=UnitWeight",
    ]
    status, _, err = run(capsys, "train", *arguments, *off, "--train.precision=bf16", *options)
    assert (status, "no-such-folder" in err) == (2, True)
    assert any("λ = 1 in bfloat16" in str(warning.message) for warning in recwarn) == warned


@pytest.mark.usefixtures("other_precision")
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_a_velocity_s_weight_for_a_network_that_predicts_noise_is_warned_of(capsys, recwarn, prediction_type, modality):
    options = [f"--model.prediction_type={prediction_type}", f"--noise_weight.{modality}=VelocityWeight"]
    status, _, err = run(capsys, "train", f"--config={ROOT}/configs/micro.yaml", "--data=no-such-folder", *options)
    assert (status, "no-such-folder" in err) == (2, True)
    warned = any("a few clips decide each step; use MinSNR" in str(warning.message) for warning in recwarn)
    assert warned == (prediction_type == "epsilon")


def test_an_objective_is_chosen_in_the_yaml(tmp_path):
    from mgct.losses import PseudoHuber
    from mgct.stages import LogSnrGrid, TeacherDirection

    path = tmp_path / "config.yaml"
    choices = {
        "distance": {"class_path": "PseudoHuber", "init_args": {"c": 0.1}},
        "grid": {"class_path": "LogSnrGrid", "init_args": {"num_points": 20}},
        "direction": {"class_path": "TeacherDirection"},
    }
    path.write_text(yaml.safe_dump({"consistency": choices}))
    parser = cli.parser_of("train")
    options = parser.instantiate(parser.parse_args([f"--config={path}", "--consistency.ratio.value=0.7"]))
    assert options.consistency.distance == PseudoHuber(0.1)
    assert options.consistency.grid == LogSnrGrid(20)
    assert options.consistency.direction == TeacherDirection()
    assert options.consistency.ratio.value == 0.7


def test_a_yes_or_no_option_needs_no_value():
    def function(folder: str, strict: bool = False, num: int = 1) -> None:
        """Do nothing."""

    assert cli.complete_flags(function, ["a", "--strict"]) == ["a", "--strict=true"]
    assert cli.complete_flags(function, ["--strict", "--num", "1", "a"]) == ["--strict=true", "--num", "1", "a"]
    assert cli.complete_flags(function, ["--strict", "false"]) == ["--strict", "false"]


@pytest.mark.parametrize("annotation", [ClipSpec, ClipSpec | None])
def test_a_dataclass_is_given_by_a_file_and_its_parts_win(tmp_path, annotation):
    given = []

    def function(clip=ClipSpec()):
        given.append(clip)

    function.__annotations__ = {"clip": annotation, "return": None}
    path = tmp_path / "clip.yaml"
    path.write_text("frames: 4\nsize: 32\n")
    cli.call(function, "mgct test", ["--clip", str(path), "--clip.frames", "6"])
    assert given == [ClipSpec(frames=6, size=32)]
    with pytest.raises(UserError, match="missing"):
        cli.call(function, "mgct test", ["--clip", str(tmp_path / "missing.yaml")])
    path.write_text("clip: {frames: 4, size: 32}\ntrain: {steps: 3}\n")  # of a training configuration its own clip
    for words in (["--clip", str(path)], [f"--clip={path}"]):
        cli.call(function, "mgct test", [*words, "--clip.frames", "6"])
        assert given.pop() == ClipSpec(frames=6, size=32)


def test_a_warning_of_this_package_is_one_line(tmp_path):
    """Others' warnings stay as Python has them."""
    script = "import warnings; from mgct import cli; import sys; warnings.formatwarning = cli._warning_line; "
    script += "from mgct.errors import MgctWarning; warnings.warn('odd', MgctWarning); warnings.warn('foreign')"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr
    own, *foreign = shown.splitlines()
    assert own == "mgct: odd"
    assert "UserWarning: foreign" in foreign[0]
