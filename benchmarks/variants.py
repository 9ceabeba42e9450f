"""The second stages that are compared, and what a step of each costs."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser

from mgct.stages import Balance, Consistency

_END: dict[str, Any] = {"ratio": {"value": 0.5}, "weight": "NoiseUnits"}
_MAP: dict[str, Any] = {
    "jump": "FlowMap",
    "grid": "LogSnrGrid",
    "weight": "InverseReach",
    "ratio": {"value": 0.8},
}


def _points(count: int) -> dict[str, Any]:
    return {"class_path": "LogSnrGrid", "init_args": {"num_points": count}}


def _clean(share: float) -> dict[str, Any]:
    return {"class_path": "FlowMap", "init_args": {"clean": share}}


VARIANTS: dict[str, dict[str, Any]] = {
    "mm-diffusion": {},
    "mgct-paper-w0.5": {"ratio": {"value": 0.5}},
    "mgct-paper-w0.7": {"ratio": {"value": 0.7}},
    "mgct-eps": _END,
    "mgct-map": {**_MAP, "share": 0.5},
    "eps-data": {**_END, "direction": "DataDirection"},
    "eps-teacher": {**_END, "direction": "TeacherDirection"},
    "eps-huber": {**_END, "distance": "PseudoHuber"},
    "eps-gap": {**_END, "weight": "InverseGap"},
    "eps-growing": {**_END, "grid": {"class_path": "UniformGrid", "init_args": {"growth_steps": 1000}}},
    "eps-learned": {**_END, "balance": "LearnedUncertainty"},
    "map-unit": {**_MAP, "weight": "UnitWeight"},
    "map-eps": {**_MAP, "weight": "NoiseUnits"},
    "map-uniform-t": {**_MAP, "grid": "UniformGrid"},
    "map-n20": {**_MAP, "grid": _points(20)},
    "map-n200": {**_MAP, "grid": _points(200)},
    "map-clean": {**_MAP, "jump": _clean(1.0)},
    "map-half-clean": {**_MAP, "jump": _clean(0.5)},
    "map-w0.5": {**_MAP, "ratio": {"value": 0.5}},
    "map-data": {**_MAP, "direction": "DataDirection"},
    "map-teacher": {**_MAP, "direction": "TeacherDirection"},
    "map-huber": {**_MAP, "distance": "PseudoHuber"},
    "map-huber-half": {**_MAP, "distance": "PseudoHuber", "share": 0.5},
    "map-huber-gap": {**_MAP, "distance": "PseudoHuber", "weight": "InverseGap"},
    "map-gap": {**_MAP, "weight": "InverseGap"},
    "map-learned": {**_MAP, "balance": "LearnedUncertainty"},
    "map-share1": _MAP,
    "map-share0.25": {**_MAP, "share": 0.25},
    "map-decay0": {**_MAP, "decay": {"value": 0.0}},
    "map-decay0.99": {**_MAP, "decay": {"value": 0.99}},
}
"""Name → settings of `mgct.stages.Consistency`, as in the YAML files, and a balance; none: no second stage."""
MAIN = ("mm-diffusion", "mgct-paper-w0.5", "mgct-eps", "mgct-map")


def settings_of(variant: str) -> dict[str, Any]:
    """The parts ``consistency`` and ``balance`` of a training configuration."""
    settings = dict(VARIANTS[variant])
    balance = settings.pop("balance", "OwnElements")
    return {"consistency": settings, "balance": balance}


def objects_of(variant: str) -> tuple[Consistency, Balance]:
    """The settings as `mgct train` would read them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Consistency, "consistency")
    parser.add_argument("--balance", type=Balance)
    found = parser.instantiate(parser.parse_object(settings_of(variant)))
    return found.consistency, found.balance


def jumps(variant: str) -> bool:
    """Whether the variant's network has a second time input."""
    return VARIANTS[variant].get("jump") is not None


def cost(variant: str) -> float:
    """Network evaluations per clip of a step: forward 1, backward 2; θ⁻ 1; φ 1 unless it is the data."""
    if not VARIANTS[variant]:
        return 3.0
    settings, _ = objects_of(variant)
    predicted = type(settings.direction).__name__ != "DataDirection"
    return 3.0 + settings.share * (4.0 + predicted)


def share_of_compute(variant: str, clips: float, batch_size: int) -> int:
    """Steps of the variant that cost as much as ``clips`` clips of plain training do."""
    return round(clips / batch_size * 3 / cost(variant))


def with_variant(config: dict[str, Any], variant: str) -> dict[str, Any]:
    """A training configuration as nested dicts, with the variant's second stage, from the first step, or with none."""
    config = {name: dict(value) if isinstance(value, dict) else value for name, value in config.items()}
    config["transfer"] = {"delta": None, "max_steps": None}
    config.pop("consistency", None)
    if VARIANTS[variant]:
        config.update(settings_of(variant))
        config["transfer"] = {"max_steps": 0}
    if jumps(variant):
        config["model"]["target_time"] = True
    return config
