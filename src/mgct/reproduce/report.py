"""A table's results as Markdown, CSV and PNG."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mgct.files import write_whole
from mgct.metrics.card import MetricValue
from mgct.metrics.protocols import get_protocol
from mgct.plots import Estimate, calls_figure, clips_figure, compare_figure
from mgct.reproduce.paper import ROLES, TABLES, FigureName, Numbers, PaperData, TableName
from mgct.reproduce.study import Result, Study
from mgct.types import AVSample

PAPER_METRICS = ("FVD", "KVD", "FAD")
PAPER_NAMES: dict[PaperData, str] = {"aist": "AIST++", "landscape": "Landscape"}
_NOTHING = "–"


def _write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """`write_whole` in a folder that is made if need be; returns the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write)
    return path


def write_table(
    study: Study, name: TableName, results: Sequence[Result], data: str, paper_data: PaperData | None
) -> list[Path]:
    """Write ``NAME.md`` and ``NAME.csv``; returns the files."""
    markdown, values = table_markdown(study, name, results, data, paper_data), table_csv(study, results, paper_data)
    return [
        _write_whole(study.out / f"{name}.md", lambda path: path.write_text(markdown)),
        _write_whole(study.out / f"{name}.csv", lambda path: path.write_text(values)),
    ]


def draw_table(study: Study, name: TableName, results: Sequence[Result], paper_data: PaperData | None) -> Path | None:
    """Draw ``NAME.png``, metrics and time against network calls; None where no row was made."""
    if all(result.card is None for result in results):
        return None
    figure = calls_figure(_panels(results, paper_data))
    return _write_whole(study.out / f"{name}.png", lambda path: figure.savefig(path, format="png"))


# ---------------------------------------------------------------------------------------------------------- Markdown


def table_markdown(
    study: Study, name: TableName, results: Sequence[Result], data: str, paper_data: PaperData | None
) -> str:
    """The table, what it says about the paper's claims, the models and the notes."""
    settings, table = study.settings, TABLES[name]
    metrics = [metric.name for metric in get_protocol(settings.protocol).metrics]
    paper = [f"paper: {metric}" for metric in PAPER_METRICS] if paper_data else []
    heads = ["Model", "Sampler", "Calls", *(f"{metric} ↓" for metric in metrics), "s a clip", *paper, "Card"]
    cards = [result.card for result in results if result.card]
    split = next((f", split {card.real.split}" for card in cards if card.real.split), "")
    kinds = sorted({f"{card.confidence:.0%} {card.interval} intervals" for card in cards})
    lines = [
        f"# Table {name[-1]}: {table.title}",
        "",
        f"Real clips: {data}{split}. Protocol {settings.protocol}, {settings.count} clips a side, "
        f"seed {settings.seed}. In brackets {' or '.join(kinds) or 'intervals'}; the best of each column is bold.",
        "",
        _line(heads),
        "|---" * len(heads) + "|",
    ]
    best = {metric: min((v.value for v in _all_values(results, metric)), default=None) for metric in metrics}
    for result in results:
        row = result.row
        cells = [row.label, row.sampling.title, str(row.sampling.calls)]
        if result.card is None:
            cells += [result.missing, *[""] * len(metrics)]
        else:
            cells += [_cell(value, best[value.name]) for value in result.card.values]
            cells.append(_NOTHING if result.speed is None else f"{result.speed.seconds_per_clip:.3g}")
        cells += _paper_cells(row.paper.get(paper_data)) if paper_data else []
        cells.append(f"[card](cards/{result.card_path.with_suffix('.md').name})" if result.card_path else "")
        lines.append(_line(cells))
    claims = claim_lines(results, paper_data)
    if claims:
        lines += ["", "## The paper's claims here", "", *claims]
    lines += ["", "## Models", "", "| Role | Folder | Weights and network |", "|---|---|---|"]
    lines += [f"| {role} | {_folder_name(model.path)} | {model.digest} |" for role, model in study.models.items()]
    lines += ["", "## Notes", "", *(f"- {note}" for note in _notes(study, name, results, paper_data))]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _folder_name(path: Path) -> str:
    """A model's folder, with that of its run."""
    return "/".join(path.parts[-2:])


def _cell(value: MetricValue, best: float | None) -> str:
    shown = f"**{value.value:.4g}**" if value.value == best else f"{value.value:.4g}"
    return f"{shown} ({value.low:.4g} … {value.high:.4g})"


def _paper_cells(numbers: Numbers | None) -> list[str]:
    return [_NOTHING] * len(PAPER_METRICS) if numbers is None else [f"{value:g}" for value in numbers]


def _all_values(results: Iterable[Result], metric: str) -> list[MetricValue]:
    return [v for result in results if result.card for v in result.card.values if v.name == metric]


def _notes(study: Study, name: TableName, results: Sequence[Result], paper_data: PaperData | None) -> list[str]:
    """What a reader should know before believing a number."""
    protocol = study.settings.protocol
    notes = [note for result in results if result.card for note in result.card.warnings]
    speeds = {result.speed for result in results if result.speed}
    where = sorted({(speed.in_turns, f"batches of {speed.batch_size} on {speed.where}") for speed in speeds})
    for in_turns, setting in where:
        how = "timed in turns" if in_turns else "timed while the clips were made and written"
        notes.append(f"Seconds a clip: of the fastest of the {setting}, {how}")
    if not _times_agree(results):
        notes.append(
            "Seconds a clip: rows differ in time per network call, so the machine was busy with other things at times, "
            "or they were timed on different ones; --time measures them anew, in turns"
        )
    if paper_data:
        notes.append(f"The paper's numbers are those for {PAPER_NAMES[paper_data]}. {TABLES[name].note}")
        if not protocol.startswith("mm-diffusion"):
            notes.append(
                f"The paper measured by MM-Diffusion's evaluator; numbers of protocol {protocol} are on other scales "
                "and do not compare with its numbers, only the order of rows does"
            )
    by_digest: dict[str, list[str]] = {}
    for role, model in study.models.items():
        by_digest.setdefault(model.digest, []).append(role)
    notes += [f"{' and '.join(roles)} are the same weights" for roles in by_digest.values() if len(roles) > 1]
    return list(dict.fromkeys(notes))


def _times_agree(results: Sequence[Result], within: float = 1.25) -> bool:
    """Whether rows sampled as the table is were timed alike and need the same time per network call, up to a factor.

    Models of one size do, unless something else disturbed some of them.
    """
    usual = results[0].row.sampling.title
    if len({r.speed[1:] for r in results if r.speed and r.row.sampling.title == usual}) > 1:
        return False
    rows = [(r.speed.seconds_per_clip, r.row.sampling) for r in results if r.speed]
    per_call = [seconds / sampling.calls for seconds, sampling in rows if sampling.title == usual]
    return not per_call or max(per_call) <= within * min(per_call)


class _Series(NamedTuple):
    """A model's numbers by network calls."""

    label: str
    values: dict[int, float]
    bounds: dict[int, tuple[float, float]]
    seconds: dict[int, float]


def claim_lines(results: Sequence[Result], paper_data: PaperData | None) -> list[str]:
    """How far each model bears out the paper's two claims against MM-Diffusion: better, and as good in less time.

    For every metric: the change at the most network calls; the fewest calls at which the model is no worse than
    MM-Diffusion at the most calls, and the share of its time. Rows sampled otherwise than the table are left out. None
    where MM-Diffusion or every other model is missing.
    """
    lines = []
    metrics = list(dict.fromkeys(v.name for result in results if result.card for v in result.card.values))
    for metric in metrics:
        lines += _claims(metric, _measured_series(results, metric), "")
    if paper_data:
        for position, metric in enumerate(PAPER_METRICS):
            printed: dict[str, _Series] = {}
            for result in results:
                numbers = result.row.paper.get(paper_data)
                if numbers is not None:
                    series = printed.setdefault(result.row.role, _Series(result.row.label, {}, {}, {}))
                    series.values[result.row.sampling.calls] = numbers[position]
            lines += _claims(metric, printed, f" (the paper, {PAPER_NAMES[paper_data]})")
    return lines


def _measured_series(results: Sequence[Result], metric: str) -> dict[str, _Series]:
    """Role → its numbers, of rows sampled as the table is."""
    usual, comparable = results[0].row.sampling.title, _times_agree(results)
    found: dict[str, _Series] = {}
    for result in results:
        row = result.row
        if result.card is None or row.sampling.title != usual:
            continue
        series = found.setdefault(row.role, _Series(row.label, {}, {}, {}))
        (value,) = _all_values([result], metric)
        series.values[row.sampling.calls], series.bounds[row.sampling.calls] = value.value, (value.low, value.high)
        if result.speed is not None and comparable:
            series.seconds[row.sampling.calls] = result.speed.seconds_per_clip
    return found


def _claims(metric: str, series: Mapping[str, _Series], source: str) -> list[str]:
    base = series.get("baseline")
    if base is None:
        return []
    most = max(base.values)
    limit = base.values[most]
    lines = []
    for role, other in series.items():
        if role == "baseline" or most not in other.values or limit <= 0:
            continue
        change = other.values[most] / limit - 1
        words = f"{abs(change):.1%} {'lower' if change < 0 else 'higher'}"
        line = f"- {metric}{source}: {other.label} is {words} than {base.label} at {most} calls"
        if most in other.bounds:
            (low, high), (base_low, base_high) = other.bounds[most], base.bounds[most]
            line += " (the intervals overlap)" if low <= base_high and base_low <= high else ""
        if len(other.values) > 1:
            enough = [calls for calls, value in sorted(other.values.items()) if value <= limit]
            if not enough:
                line += "; no number of calls makes it as good"
            elif enough[0] == most:
                line += ", and with fewer calls not as good"
            else:
                line += f", and as good already with {enough[0]} calls"
                times = other.seconds.get(enough[0]), base.seconds.get(most)
                if times[0] is not None and times[1] is not None:
                    line += f", in {times[0] / times[1]:.0%} of the time"
        lines.append(line + ".")
    return lines


# --------------------------------------------------------------------------------------------------------------- CSV


def table_csv(study: Study, results: Sequence[Result], paper_data: PaperData | None) -> str:
    """One line a row: every number with its bounds, the paper's, seconds a clip, and the card and clips it is from."""
    metrics = [metric.name for metric in get_protocol(study.settings.protocol).metrics]
    heads = ["role", "model", "sampler", "calls", "status"]
    heads += [f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high")]
    heads += [f"paper_{metric}" for metric in PAPER_METRICS] if paper_data else []
    heads += ["seconds_per_clip", "batch_size", "where", "weights", "card", "samples"]
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, restval="", lineterminator="\n")
    writer.writeheader()
    for result in results:
        row = result.row
        line: dict[str, object] = {"role": row.role, "model": row.label, "sampler": row.sampling.title}
        line |= {"calls": row.sampling.calls, "status": result.missing or "made"}
        for value in result.card.values if result.card else ():
            line |= {value.name: value.value, f"{value.name}_low": value.low, f"{value.name}_high": value.high}
        numbers = row.paper.get(paper_data) if paper_data else None
        if numbers is not None:
            line |= {f"paper_{metric}": number for metric, number in zip(PAPER_METRICS, numbers, strict=True)}
        if result.speed is not None:
            line |= {"seconds_per_clip": result.speed.seconds_per_clip, "batch_size": result.speed.batch_size}
            line["where"] = result.speed.where
        if row.role in study.models:
            line["weights"] = study.models[row.role].digest
        if result.card_path is not None and result.samples is not None:
            line |= {"card": f"cards/{result.card_path.name}", "samples": f"samples/{result.samples.name}"}
        writer.writerow(line)
    return text.getvalue()


# --------------------------------------------------------------------------------------------------------------- PNG


def _panels(results: Sequence[Result], paper_data: PaperData | None) -> dict[str, dict[str, list[Estimate]]]:
    """What the figure shows: each metric, the time, and the paper's numbers on axes of their own."""
    panels: dict[str, dict[str, list[Estimate]]] = {}
    usual = results[0].row.sampling.title

    def add(panel: str, result: Result, value: float, low: float, high: float) -> None:
        row = result.row
        series = row.label if row.sampling.title == usual else f"{row.label}, {row.sampling.title}"
        panels.setdefault(panel, {}).setdefault(series, []).append(Estimate(row.sampling.calls, value, low, high))

    for result in results:
        if result.card is None:
            continue
        for value in result.card.values:
            add(value.name, result, value.value, value.low, value.high)
    for result in results:
        if result.speed is not None:
            seconds = result.speed.seconds_per_clip
            add("seconds a clip", result, seconds, seconds, seconds)
    for result in results:
        numbers = result.row.paper.get(paper_data) if paper_data else None
        for metric, number in zip(PAPER_METRICS, numbers or (), strict=False):
            add(f"{metric}, as the paper prints it", result, number, number, number)
    return panels


# ----------------------------------------------------------------------------------------------------------- figures

FIGURE_TITLES: dict[FigureName, str] = {
    "figure2": "Generated clips: frames above the spectrogram of their sound",
    "figure3": "MM-Diffusion and MGCT with few calls, column by column from the same noise",
}


def write_figure(
    study: Study, name: FigureName, clips: Mapping[str, AVSample], folders: Mapping[str, Path], calls: int
) -> list[Path]:
    """Write a figure's PNGs and its Markdown; returns the files."""
    labels = {role: ROLES.get(role, role) for role in clips}
    figures = {}
    if name == "figure2":
        for role, some in clips.items():
            figures[f"figure2-{role}.png"] = clips_figure(some, study.clip), labels[role]
    else:
        groups = {labels[role].replace(", ", "\n"): some for role, some in clips.items()}
        figures["figure3.png"] = compare_figure(groups, study.clip), ", ".join(labels.values())
    lines = [f"# Figure {name[-1]}: {FIGURE_TITLES[name]}", ""]
    lines.append(f"DPM-Solver with {calls} calls, seed {study.settings.seed}, clips 0 … {_count(clips) - 1}.")
    written = []
    for file, (figure, label) in figures.items():
        written.append(_write_whole(study.out / file, lambda path, figure=figure: figure.savefig(path, format="png")))  # type: ignore[misc]
        lines += ["", f"![{label}]({file})", "", label]
    wanted = ["baseline"] if name == "figure3" else []
    lines += ["", *(f"- {study.missing(role)}" for role in [*wanted, "mgct-w0.5", "mgct-w0.7"] if study.missing(role))]
    lines += [f"- {labels[role]}: clips in samples/{folder.name}" for role, folder in folders.items()]
    text = "\n".join(lines) + "\n"
    return [_write_whole(study.out / f"{name}.md", lambda path: path.write_text(text)), *written]


def _count(clips: Mapping[str, AVSample]) -> int:
    return len(next(iter(clips.values())).video)
