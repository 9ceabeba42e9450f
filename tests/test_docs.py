"""The documentation is true: its commands run, its messages exist, its figures are made, its site builds."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mgct import cli
from mgct.commands import export
from mgct.data.media import write_mp4
from tests.test_cli import run
from tests.test_export import ONE_LEVEL
from tests.test_trainer import write_config

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {"README": ROOT / "README.md", "start": DOCS / "start.md", "train": DOCS / "train.md"}
SMALLER = {
    "doctor": ["--folder", "."],
    "worlds": ["--num", "8"],
    "evaluate": ["--draws", "5"],
    "prepare": ["--workers", "1"],
}
"""Options put after a command's own, to make it small. Training is made small by its configuration."""


def steps(page: Path) -> list[tuple[str, str]]:
    """The shell commands and Python blocks of a page in order, as (language, text)."""
    found = []
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(), re.S | re.M):
        if language == "python":
            found.append((language, block))
            continue
        lines = block.replace("\\\n", " ").splitlines()
        found += [("bash", line.split(" #")[0].strip()) for line in lines if line.split(" #")[0].strip()]
    return found


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with eight videos and configurations of the documented names, all tiny."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "clips").mkdir(parents=True)
    config = yaml.safe_load(write_config(tmp_path / "configs" / "micro.yaml").read_text())
    config["model"] |= {key: list(value) if isinstance(value, tuple) else value for key, value in ONE_LEVEL.items()}
    for name in ("micro", "demo"):
        (tmp_path / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "configs" / "finetune.yaml").write_text(yaml.safe_dump({**config, "init": "run"}))
    (tmp_path / "configs" / "clips" / "micro.yaml").write_text(yaml.safe_dump(config["clip"]))
    (tmp_path / "videos").mkdir()
    for number in range(8):
        generator = torch.Generator().manual_seed(number)
        video = torch.randint(0, 256, (12, 3, 16, 16), generator=generator, dtype=torch.uint8)
        audio = torch.randint(-9000, 9000, (1, 9600), generator=generator, dtype=torch.int16)
        write_mp4(tmp_path / "videos" / f"{number}.mp4", video, audio, fps=10, sample_rate_hz=8000)
    return tmp_path


@pytest.mark.parametrize("name", PAGES)
def test_every_command_runs_at_tiny_size(name, workplace, capsys, monkeypatch):
    # PyTorch takes most of a minute to translate even this network; test_export.py has it do that once
    monkeypatch.setattr(export, "write_onnx", lambda pipe, path: path.write_bytes(b"translated"))
    monkeypatch.setattr(export, "onnx_difference", lambda pipe, path: 0.0)
    seen = set()
    for language, text in steps(PAGES[name]):
        if language == "python":
            exec(compile(text, f"{name}.md", "exec"), {})
            continue
        words = shlex.split(text)
        assert words[0] == "mgct", f"{text}: only mgct commands are run; put others into a console block"
        command = next(" ".join(words[1:n]) for n in (3, 2) if " ".join(words[1:n]) in cli.COMMANDS)
        status, _, err = run(capsys, *words[1:], *SMALLER.get(command, []))
        assert status == 0, f"{text}: {err}"
        seen.add(command)
    assert {"prepare", "train", "sample", "plot loss"} <= seen
    pictures = list(workplace.glob("*.png"))
    assert pictures
    assert all(path.stat().st_size > 1000 for path in pictures)
    assert len(list(workplace.glob("*clips/*.mp4"))) == 8


def test_options_named_in_prose_exist():
    """Words such as `train.precision` or `--transfer.max_steps` on a page are settings that there are."""

    parser = cli.parser_of("train")
    known = {"--" + key for key in parser.get_defaults(skip_validation=True).keys(branches=True)}
    for page in [*PAGES.values(), DOCS / "troubleshooting.md", DOCS / "from-mm-diffusion.md", DOCS / "method.md"]:
        named = re.findall(r"`(?:--)?((?:train|transfer|consistency|monitor|model|clip)\.[a-z_.]+)", page.read_text())
        for name in named:
            assert "--" + name in known or name.endswith((".yaml", ".py", ".md")), f"{page.name}: {name}"


def messages_of_the_source() -> list[str]:
    """The texts given to UserError, MediaError and warnings.warn in the package, with … for what is put in."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name not in ("UserError", "MediaError", "warn"):
                continue
            for part in ast.walk(node):
                if isinstance(part, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in part.values))
                elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                    found.append(part.value)
    return found


def test_every_message_of_the_troubleshooting_page_exists():
    text = (DOCS / "troubleshooting.md").read_text()
    headings = re.findall(r"^### (.+)$", text, re.M)
    assert len(headings) >= 20
    source = messages_of_the_source()
    for heading in headings:
        parts = [part.strip(" :;(),") for part in heading.split("…")]
        assert max(map(len, parts)) >= 10
        assert any(all(part in message for part in parts) for message in source), f"no message reads {heading!r}"


def test_every_top_module_has_an_api_page():
    shown = set(re.findall(r"^::: (\S+)$", "\n".join(p.read_text() for p in (DOCS / "api").glob("*.md")), re.M))
    package = ROOT / "src" / "mgct"
    modules = {f"mgct.{path.stem}" for path in package.glob("*.py") if path.stem != "__init__"}
    modules |= {f"mgct.{path.parent.name}" for path in package.glob("*/__init__.py")}
    assert modules == shown


def figure_script(name: str):
    """A script of docs/figures as a module."""
    folder = DOCS / "figures"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


@pytest.mark.parametrize("name", ["losses", "solver", "trajectories"])
def test_figures_are_drawn(name, tmp_path):
    module = figure_script(name)
    path = module.save(module.figure(), name, tmp_path)
    assert path.stat().st_size > 10_000
    assert (DOCS / "images" / path.name).is_file()
    assert f"images/{path.name}" in (DOCS / "method.md").read_text()


def test_the_solver_figure_s_numbers():
    solver = figure_script("solver")
    assert abs(float(solver.published(10)[1]) - 0.009) < 1e-3
    assert abs(float(solver.corrected(10)[1]) - 0.31) < 5e-3
    for calls in (8, 11, 20):
        torch.testing.assert_close(solver.published(calls), solver.corrected(calls), atol=5e-3, rtol=0.02)
    assert abs(solver.published(12)[0] - 0.5) < 0.1  # the picture's formula is right


def test_one_output_is_the_mean_or_the_end_at_its_ends():
    module = figure_script("one_output")
    inside = module.X.abs() < 2
    for noise_units in (True, False):
        grid, tables = module.best_output(0.0, noise_units)
        for at in (0, 20, 40):
            torch.testing.assert_close(tables[at], module.posterior_mean(module.X, grid[at]))
    grid, tables = module.best_output(1.0, True)
    for at in (10, 30):
        end = module.trajectory_end(module.X[inside], grid[at])
        assert float((tables[at][inside] - end).abs().mean()) < 0.02
    best, worst = module.wasserstein(module.sampled(0.0, 20, True)), module.wasserstein(module.sampled(1.0, 20, True))
    assert worst > 5 * best
    assert module.wasserstein(module.sampled(0.0, 1, True)) > 5 * module.wasserstein(module.sampled(1.0, 1, True))


def test_the_site_builds_strictly_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= 18
    for page in pages:
        loads = re.findall(r'<(?:script|link|img|iframe)[^>]*?(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert not loads, f"{page.name} loads {loads[0]}"
    assert "MultimodalUNet" in (tmp_path / "site" / "api" / "network.html").read_text()
    assert not (tmp_path / "site" / "figures").exists()
