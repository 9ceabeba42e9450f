"""``mgct reproduce``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, get_args

import yaml

from mgct.errors import UserError
from mgct.layout import leave_processes, start_processes
from mgct.reproduce.paper import FigureName, PaperData, TableName, parse_extra
from mgct.reproduce.run import reproduce_figure, reproduce_table, sample_table
from mgct.reproduce.study import Settings, Study
from mgct.saved_models import find_pipeline
from mgct.types import ClipSpec


def read_models(path: Path) -> dict[str, Path]:
    """Role → folder of the saved model, from a YAML file; relative folders are beside the file.

    A folder may be that of a run or of the model saved in it. One that is not there is kept as it is named: its rows
    will say so.

    Raises:
        UserError: no such file, or another content.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such models file; write one line ROLE: FOLDER a model, as baseline: runs/mm")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(part, str) for item in content.items() for part in item):
        raise UserError(f"{path}: write one line ROLE: FOLDER a model, as baseline: runs/mm")
    found = {}
    for role, folder in content.items():
        named = path.parent / Path(folder).expanduser()
        try:
            found[role] = find_pipeline(named)
        except UserError:
            found[role] = named
    return found


def reproduce(
    what: Literal["table1", "table2", "table3", "table4", "figure2", "figure3"],
    models: Path = Path("models.yaml"),
    data: str = "",
    out: Path = Path("reproduced"),
    protocol: str = "compact",
    num: int | None = None,
    calls: list[int] | None = None,
    add: list[str] | None = None,
    paper_data: PaperData | None = None,
    split: str | None = None,
    clip: ClipSpec | None = None,
    seed: int = 0,
    draws: int = 100,
    batch_size: int = 8,
    workers: int = 1,
    device: str = "cpu",
    weights: dict[str, Path] | None = None,
    time: bool = False,
) -> None:
    """Make a table or figure of the paper from trained models. What is there already is not made again.

    Args:
        what: table1 to table4, figure2 or figure3.
        models: YAML file, role: folder of a run or saved model. The paper's roles are baseline, mgct-w0.5, mgct-w0.7,
            mgct-no-mct and stage1; others get rows of their own. A role that is missing leaves rows that say so.
        data: real clips, for tables: a folder of videos, samples or shards, or world:landscape or world:dance.
        out: folder of clips, cards and tables, made if need be.
        protocol: of the metrics: compact, open, mm-diffusion-2024 … (see docs/evaluation.md).
        num: clips a row, the protocol's if not given; of a figure, 6 or 4.
        calls: network calls instead of the paper's, as [9,12].
        add: more rows: SAMPLER:CALLS for every model, or ROLE:SAMPLER:CALLS, as [dpm-solver++:12,stage1:ddim:50]; with
            @700 behind it, sampling starts at that noise level.
        paper_data: the data set of the paper that the data is; its numbers are put beside.
        split: which split of a prepared folder or world; the protocol's if not given (test, or train for mm-diffusion).
        clip: how to read a folder of videos; as the models' clips if not given.
        seed: of the clips, of their choice and of the intervals.
        draws: of the intervals.
        batch_size: clips sampled at once.
        workers: processes that measure.
        device: where the metrics' networks run.
        weights: encoder → file, instead of the cached or bundled weights.
        time: time the rows of a table anew, in turns: on a machine that other programs use too.
    """
    state = start_processes()
    main = state.is_main_process
    settings = Settings(protocol, num, seed, draws, batch_size, split, clip, workers, device, weights or {}, True, main)
    study = Study(read_models(models), out, settings, state.device)
    if what in get_args(FigureName):
        figure: FigureName = what  # type: ignore[assignment]
        if calls and len(calls) > 1:
            raise UserError(f"{what} is drawn for one number of calls, got {calls}")
        if main:
            print("\n".join(map(str, reproduce_figure(study, figure, calls[0] if calls else None, num))))
        return
    if not data:
        raise UserError(f"{what} needs --data: real clips, as a folder or world:landscape or world:dance")
    table: TableName = what  # type: ignore[assignment]
    extra = [parse_extra(text) for text in add or []]
    if state.num_processes > 1:
        sample_table(
            study, table, data, calls=calls, extra=extra, rank=state.process_index, world_size=state.num_processes
        )
        leave_processes()
    if not main:
        return

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    reproduce_table(study, table, data, calls=calls, extra=extra, paper_data=paper_data, time=time, tell=tell)
    print((out / f"{what}.md").read_text())
    print("written: " + ", ".join(str(out / f"{what}.{end}") for end in ("md", "csv", "png")))
