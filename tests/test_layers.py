"""Imports point downwards."""

import ast
import re
from pathlib import Path

import pytest

import mgct

ROOT = Path(mgct.__file__).parent
LAYERS = [
    {"errors"},
    {"saved_models", "graphs", "gpu", "products", "recompute"},
    {"types", "files", "clip_random", "winograd"},
    {"kernels", "norms", "resampling", "attention", "frequency_bands", "whole_files"},
    {"convolutions"},
    {"noise", "blocks", "data.media", "metrics.distances", "metrics.mel"},
    {"unet", "grids", "coarse_start", "data.worlds", "data.batches", "data.index", "data.parts", "data.inspect"},
    {"predictors", "data.numbered", "data.streams", "data.report", "metrics.weights", "metrics.sync"},
    {"data.shards", "data.prepare", "metrics.encoders", "metrics.corruptions"},
    {"layout", "losses", "convert", "plots", "metrics.sources", "metrics.protocols", "metrics.card"},
    {"stages", "samplers", "metrics.evaluate", "held_out"},
    {"given", "windows", "sampling_options", "stopping", "calibration"},
    {"two_levels", "network_calls", "batch_sampling"},
    {"pipeline", "model_card", "upsampler", "checkpoint", "trackers", "running_means", "batch_size", "passes"},
    {"guard", "monitors", "muon", "train_settings", "calibrate"},
    {"trainer", "clip_folder", "upsampler_trainer"},
    {"reproduce", "app"},
    {"commands"},
    {"cli", ""},
    {"completion"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SHORTCUTS = {("unet", "convert"), ("gpu", "kernels")}
"""Imports at call time that point upwards: `MultimodalUNet.from_mm_diffusion` is `convert.load_mm_diffusion`, and
`gpu.kernels` tries `kernels`, which need Triton."""


def part_of(module: str) -> str | None:
    """The named part of the package that a module belongs to."""
    names = module.split(".")
    return next((".".join(names[:n]) for n in range(len(names), 0, -1) if ".".join(names[:n]) in LEVEL), None)


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__") if name != "__init__" else "", path


def imported(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mgct":
            base = node.module.removeprefix("mgct").removeprefix(".")
            for alias in node.names:
                joined = f"{base}.{alias.name}".removeprefix(".")
                yield joined if part_of(joined) == joined or not base else base


def test_every_module_has_a_layer():
    assert not [
        name for name, _ in modules() if name not in ("data", "metrics", "data.worlds") and part_of(name) is None
    ]


@pytest.mark.parametrize(("name", "path"), [pytest.param(name, path, id=name or "mgct") for name, path in modules()])
def test_imports_point_downwards(name, path):
    own = part_of(name)
    if own is None:
        return
    for target in imported(path):
        other = part_of(target)
        if other is None or other == own or (own, other) in SHORTCUTS:
            continue
        assert LEVEL[other] < LEVEL[own], f"{name} imports {target}, which is not below it"


def test_only_media_imports_pyav():
    users = {part_of(name) for name, path in modules() if re.search(r"^\s*(import|from) av\b", path.read_text(), re.M)}
    assert users == {"data.media"}
