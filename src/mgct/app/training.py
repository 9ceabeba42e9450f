"""A run folder, looked at while it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mgct import plots
from mgct.app.models import SamplerChoice
from mgct.app.pictures import figure_png, on_any_background
from mgct.checkpoint import list_checkpoints, read_metrics
from mgct.errors import UserError
from mgct.metrics.card import MetricCard
from mgct.pipeline import AVPipeline

LARGEST_CARD_BYTES = 1_000_000
SHEET_CLIPS = 4


def loss_png(run: Path) -> bytes | None:
    """The run's loss curves as a PNG; None before the first row of its log."""
    rows = read_metrics(run)
    if not any(row.get("loss") is not None for row in rows):
        return None
    return figure_png(on_any_background(plots.loss_figure(rows)))


def sheet_png(pipe: AVPipeline, choice: SamplerChoice) -> bytes:
    """Clips of a model as a PNG, always of the same seed, so that two sheets of a run show what training did."""
    clips = pipe(SHEET_CLIPS, choice.default, choice.name, 0, progress=False)
    return figure_png(on_any_background(plots.clips_figure(clips, pipe.clip)))


def facts_markdown(run: Path) -> str:
    """Where the run is: its last row of the log and its checkpoints, as a table."""
    rows = read_metrics(run)
    if not rows:
        return "Nothing is logged yet."
    tested: dict[str, Any] = next((row for row in reversed(rows) if "loss_mm_test" in row), {})
    last: dict[str, Any] = {**tested, **rows[-1]}
    names = {
        "step": "step",
        "stage": "stage",
        "loss": "loss",
        "loss_mm": "multimodal loss",
        "loss_cm": "consistency loss",
        "loss_mm_train": "averaged weights, training clips",
        "loss_mm_test": "averaged weights, test clips",
        "learning_rate": "learning rate",
        "clips_per_s": "clips a second",
    }
    table = [(label, f"{last[key]:.4g}") for key, label in names.items() if last.get(key) is not None]
    found = list_checkpoints(run)
    table.append(("last checkpoint", found[-1].name if found else "none yet"))
    return "\n".join(
        [f"| run | {run.resolve().name} |", "|---|---|", *(f"| {label} | {value} |" for label, value in table)]
    )


def cards_markdown(run: Path) -> str:
    """The metric cards in the run folder and the folders in it; empty if there are none."""
    cards = []
    for path in sorted([*run.glob("*.json"), *run.glob("*/*.json")]):
        if path.is_symlink() or path.stat().st_size > LARGEST_CARD_BYTES:
            continue
        try:
            cards.append(MetricCard.load(path).to_markdown().replace("# ", "### ", 1))
        except UserError:  # some other JSON file
            continue
    return "\n\n".join(cards)


def stamp(run: Path) -> tuple[int, int]:
    """Times of the log's and of the checkpoints' last change: equal when there is nothing new to show."""
    return tuple(  # type: ignore[return-value]
        path.stat().st_mtime_ns if path.exists() else 0 for path in (run / "metrics.jsonl", run / "checkpoints")
    )
