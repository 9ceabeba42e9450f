"""Versions, the self-test, and completion."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from mgct import __version__, cli
from mgct.commands import doctor


def test_version_is_one_line_then_what_a_bug_report_needs(capsys):
    assert cli.main(["--version"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"mgct {__version__}"
    assert [line.split()[0] for line in rest] == ["python", "torch", "diffusers", "accelerate", "av", "CUDA"]
    import torch

    installed = version("torch")  # which some builds name without what stands after the +
    assert f"torch {installed}" in rest
    assert torch.__version__ in (installed, f"{installed}+{torch.__version__.partition('+')[2]}")
    assert rest[-1].split(" ", 1)[1] == (torch.version.cuda or "none (torch is built without it)")


def test_version_loads_nothing_heavy():
    code = "import sys; from mgct import cli; cli.main(['--version']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_doctor_says_what_is_there_and_tests_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MGCT_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "i3d.safetensors").write_text("not weights")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in ("installed", "device", "weights", "self-test", "mgct weights soundnet"):
        assert words in out
    (damaged,) = [line for line in out.splitlines() if line.strip().startswith("i3d")]
    assert "damaged" in damaged
    for name in doctor.CHECKS:
        (line,) = [line for line in out.splitlines() if line.strip().startswith(f"{name} ")]
        assert " ok, " in line


def test_a_failed_check_is_reported_and_told_by_the_exit_status(capsys, monkeypatch):
    def broken() -> str:
        raise RuntimeError("the decoder is missing")

    monkeypatch.setattr(doctor, "CHECKS", {"media": broken})
    assert cli.main(["doctor"]) == 2
    out, err = capsys.readouterr()
    assert "FAILED: RuntimeError: the decoder is missing" in out
    assert "self-test failed" in err


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    pytest.importorskip("shtab")
    path = tmp_path_factory.mktemp("completion") / "mgct.bash"
    script = subprocess.run(
        [sys.executable, "-m", "mgct.cli", "completion", "bash"], capture_output=True, text=True, check=True
    )
    path.write_text(script.stdout)
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mgct", "sam"], {"sample"}),
        (["mgct", "plot", "l"], {"loss"}),
        (["mgct", "sample", "--sam"], {"--sampler"}),
        (["mgct", "train", "--train.lea"], {"--train.learning_rate"}),
        (["mgct", "train", "--model.num_h"], {"--model.num_heads", "--model.num_head_channels"}),
        (["mgct", "sample", "--format", "s"], {"safetensors"}),
        (["mgct", "sample", "--audio", "pyproj"], {"pyproject.toml"}),
        (["mgct", "sample", "--steps", "pyproj"], set()),
    ],
)
def test_bash_completes(bash_script, words, expected):
    quoted = " ".join(words)
    code = (
        f"source {bash_script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMPREPLY=(); "
        f"_shtab_mgct mgct {words[-1]} {words[-2]}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    out = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(out.split()) == expected
