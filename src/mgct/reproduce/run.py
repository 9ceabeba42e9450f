"""The paper's tables and figures from a `Study`: rows are made one after the other, and the report after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mgct.clip_folder import load_clips
from mgct.errors import UserError
from mgct.metrics.card import differences
from mgct.reproduce.paper import FigureName, PaperData, Row, Sampling, TableName, table_rows
from mgct.reproduce.report import draw_table, write_figure, write_table
from mgct.reproduce.study import Measurer, Result, Study, noted_speed
from mgct.types import AVSample, concatenate


def sample_table(
    study: Study,
    name: TableName,
    data: str,
    *,
    calls: Sequence[int] | None = None,
    extra: Iterable[tuple[str | None, Sampling]] = (),
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """This process's share of a table's clips: for several processes, before one of them calls `reproduce_table`."""
    measurer = Measurer(study, data)
    for row in table_rows(name, study.paths, calls, extra):
        if not study.missing(row.role) and not measurer.path(row.role, row.sampling).is_file():
            study.sample(row.role, row.sampling, study.settings.count, rank, world_size)


def reproduce_table(
    study: Study,
    name: TableName,
    data: str,
    *,
    calls: Sequence[int] | None = None,
    extra: Iterable[tuple[str | None, Sampling]] = (),
    paper_data: PaperData | None = None,
    time: bool = False,
    tell: Callable[[str], object] = lambda _: None,
) -> list[Result]:
    """Make a table of the paper: sample and measure each row; Markdown and CSV after each, a PNG in the end.

    Args:
        study: models, settings, and where results are kept.
        name: of the table.
        data: real clips: a folder of videos, of samples or of shards, or ``world:NAME`` (its test split, which no
            training run draws from; see `mgct.data.shards`).
        calls: network calls instead of the paper's.
        extra: further ways of sampling, each with the role it is for, or None for all.
        paper_data: the data set of the paper that ``data`` is: its numbers are put beside. None: it is another.
        time: time the rows anew, in turns (`Study.time`).
        tell: called with a line for each row as it is done.

    Returns:
        The rows, in order. Those whose model is missing say so.

    Raises:
        UserError: no model at all, data or protocol that do not fit the models, too few clips, weights of the
            protocol's networks that cannot be had.
    """
    rows = table_rows(name, study.paths, calls, extra)
    measurer = Measurer(study, data)
    results: list[Result] = []
    for number, row in enumerate(rows, start=1):
        lack = study.missing(row.role)
        if lack:
            results.append(Result(row, lack))
        else:
            results.append(_make(study, measurer, row))
            _check_comparable(results)
        write_table(study, name, results + [Result(r, "not made yet") for r in rows[number:]], data, paper_data)
        tell(f"{number}/{len(rows)} {row.label}, {row.sampling.title} {row.sampling.calls}: {lack or 'done'}")
    if time:
        study.time([(r.row.role, r.row.sampling) for r in results if r.card], study.settings.count)
        results = [_make(study, measurer, r.row) if r.card else r for r in results]
        write_table(study, name, results, data, paper_data)
    draw_table(study, name, results, paper_data)
    return results


def _make(study: Study, measurer: Measurer, row: Row) -> Result:
    """A row: from its card, or by sampling and measuring."""
    path, count = measurer.path(row.role, row.sampling), study.settings.count
    samples = (study.samples if path.is_file() else study.sample)(row.role, row.sampling, count)
    card = measurer.card(row.role, row.sampling)
    return Result(row, "", card, path, samples, noted_speed(card))


def _check_comparable(results: Sequence[Result]) -> None:
    """Refuse a last card that differs from an earlier row's in what changes the numbers."""
    made = [result for result in results if result.card is not None]
    first, last = made[0], made[-1]
    found = differences(first.card, last.card) if first.card and last.card else []
    if found:
        paths = f"{first.card_path} and {last.card_path}"
        raise UserError(f"{paths} do not compare (different {', '.join(found)}); delete the older one")


FIGURE_CALLS = {"figure2": 20, "figure3": 12}
"""Network calls of the figures, unless asked otherwise; the paper does not say its own."""
FIGURE_CLIPS = {"figure2": 6, "figure3": 4}


def sample_figure(study: Study, name: FigureName, calls: int | None = None, num: int | None = None) -> dict[str, Path]:
    """Make the clips of a figure with the paper's sampler, the same seeds for every role; role → their folder."""
    if num is not None and num < 1:
        raise UserError(f"num must be at least 1, got {num}")
    shown = {"baseline"} if name == "figure3" else set()
    shown |= {role for role in study.models if role.startswith("mgct") and role != "mgct-no-mct"}
    wanted = [role for role in study.models if role in shown]
    wanted.sort(key=lambda role: role != "baseline")
    if not wanted:
        raise UserError(f"{name} needs a role that begins with mgct; the models file has {', '.join(study.models)}")
    sampling = Sampling("dpm-solver", FIGURE_CALLS[name] if calls is None else calls)
    return {role: study.sample(role, sampling, num or FIGURE_CLIPS[name]) for role in wanted}


def reproduce_figure(study: Study, name: FigureName, calls: int | None = None, num: int | None = None) -> list[Path]:
    """Draw a figure of the paper: generated clips as frames above spectrograms.

    ``figure2``: the clips of each MGCT model. ``figure3``: those of MM-Diffusion above those of each MGCT model, of the
    same seeds, with few calls.

    Args:
        study: models, settings, and where results are kept.
        name: of the figure.
        calls: network calls; None: 20 for figure 2 and 12 for figure 3.
        num: clips; None: 6 and 4.

    Returns:
        The files written: PNGs, and a Markdown that says what they show and which roles are missing.

    Raises:
        UserError: no model for it, or no clip or call asked for.
    """
    folders = sample_figure(study, name, calls, num)
    clips = {role: _read(folder) for role, folder in folders.items()}
    return write_figure(study, name, clips, folders, calls or FIGURE_CALLS[name])


def _read(folder: Path) -> AVSample:
    """All clips of a folder of samples, in order, in [-1, 1]."""
    return concatenate([load_clips(path)[0] for path in sorted(folder.glob("clips_*.safetensors"))])
