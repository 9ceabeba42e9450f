"""Measure the trained models: the paper's tables and figures of a size and world, and where they are published.

    python experiments/tables.py micro landscape                # all that can be made; what is there is not made again
    python experiments/tables.py micro landscape table4 --num 64

Only models that are trained to their end are measured. Clips and cards are kept in
``runs/evidence/SIZE/WORLD/tables``; tables, figures and the cards of their rows are copied to
``experiments/results/SIZE/WORLD``, and the tables into ``docs/results.md``. Rows whose cards are in there already are
not made again, and Ctrl-C leaves the cards made so far: a table can be made a few rows at a time, on several machines
if their arithmetic is the same. (The real clips are among what a card's name stands for, and a world's last digits
differ between kinds of CPU.) Beside the paper's rows (its solver,
corrected) stand the published solver of the baseline with its error in the sound, the corrected one with x̂0 clipped to
[-1, 1], and the samplers of this package.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from PIL import Image
from run import PLAN, ROOT, Task

from mgct.files import write_whole
from mgct.reproduce.paper import FigureName, Sampling, TableName
from mgct.reproduce.run import reproduce_figure, reproduce_table
from mgct.reproduce.study import Settings, Study

sys.path.insert(0, str(ROOT / "benchmarks"))
from published_solver import PublishedSolver

RESULTS = ROOT / "experiments" / "results"
PAGE = ROOT / "docs" / "results.md"
TABLES: tuple[TableName, ...] = ("table1", "table3", "table4")
"""What is made if nothing is named; table 2 has 1,000 network calls a clip."""


def extra_rows(study: Study, table: TableName, calls: list[int]) -> list[tuple[str | None, Sampling]]:
    """Rows that the paper has not: (role, or None for all, how it is sampled)."""
    if table != "table1":
        return []
    published = PublishedSolver(math.prod(study.clip.video_shape))
    rows: list[tuple[str | None, Sampling]] = [
        ("baseline", Sampling(published, count, "published solver", clip_x0=False)) for count in calls
    ]
    rows.append((None, Sampling("dpm-solver", 20, "dpm-solver, clipped", clip_x0=True)))
    rows += [(None, Sampling("dpm-solver++", count)) for count in (4, 12)]
    rows += [
        (None, Sampling("sde-dpm-solver++", count, start_timestep=start)) for start in (None, 850) for count in (4, 12)
    ]
    if "mgct-map" in study.models:
        rows += [("mgct-map", Sampling("map", count)) for count in (4, 8)]
    return rows


def publish(study: Study, folder: Path, made: list[str]) -> None:
    """Copy the tables and figures made and the cards that they name, in place of those that they named before."""
    before = named_cards(folder)
    for path in sorted(study.out.glob("*.*")):
        if re.split(r"[.-]", path.name)[0] not in made:
            continue
        if path.suffix == ".png":  # 128 colours: a third of the bytes, and they look the same
            picture = Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE)
            picture.save(folder / path.name, optimize=True)
        else:
            shutil.copy(path, folder)
    named = named_cards(folder)
    copy_cards(study.out, folder, named, again=True)
    for name in before - named:
        for ending in (".json", ".md"):
            (folder / "cards" / f"{name}{ending}").unlink(missing_ok=True)


def named_cards(folder: Path) -> set[str]:
    """Names of the cards of the tables in a folder."""
    return {name for path in folder.glob("*.md") for name in re.findall(r"\(cards/(.+?)\.md\)", path.read_text())}


def copy_cards(source: Path, target: Path, names: set[str] | None = None, again: bool = False) -> None:
    """Copy the cards of those names, or all; those that are there only ``again``."""
    (target / "cards").mkdir(parents=True, exist_ok=True)
    for card in (source / "cards").glob("[!.]*"):
        there = target / "cards" / card.name
        if (names is None or card.stem in names) and (again or not there.exists()):
            write_whole(there, partial(shutil.copy, card))


def write_page() -> None:
    """Put every published table into the page, between its marks, without the column of cards."""
    blocks = []
    for folder in sorted(RESULTS.glob("*/*")):
        for path in sorted(folder.glob("table*.md")):
            lines = path.read_text().splitlines()
            title = lines[0].removeprefix("# ")
            rows = [line.rpartition("|")[0].rpartition("|")[0] + "|" for line in lines if line.startswith("|")]
            end = next(index for index, line in enumerate(rows) if line.startswith("| Role"))
            blocks += [f"### {folder.parent.name}, {folder.name}. {title}", "", lines[2], "", *rows[:end], ""]
            if (heading := "## The paper's claims here") in lines:
                blocks += ["What it says of the paper's claims:", ""]
                blocks += lines[lines.index(heading) + 2 : lines.index("## Models")]
    marks = r"(<!-- tables -->\n).*(<!-- end of tables -->)"
    text = re.sub(marks, lambda found: found[1] + "\n".join(["", *blocks]) + found[2], PAGE.read_text(), flags=re.S)
    PAGE.write_text(text)


def main() -> None:
    """Read the options and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=list(PLAN["sizes"]))
    parser.add_argument("world", choices=PLAN["worlds"])
    parser.add_argument("what", nargs="*", choices=[*TABLES, "table2", *get_args(FigureName), []])
    parser.add_argument("--num", type=int, help="clips a row; the plan's if not given")
    parser.add_argument("--calls", type=int, nargs="*", default=[9, 10, 12, 15, 20], help="of table 1")
    parser.add_argument("--protocol", default="compact")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    tasks = [Task(options.size, options.world, role, ROOT / "runs" / "evidence") for role in PLAN["models"]]
    models = {task.role: task.model for task in tasks if task.progress().steps >= task.progress().of}
    num = options.num or PLAN["sizes"][options.size]["num"]
    settings = Settings(options.protocol, num, batch_size=options.batch_size, encoder_device=options.device)
    out = ROOT / "runs" / "evidence" / options.size / options.world / "tables"
    study = Study(models, out, settings, options.device)
    copy_cards(RESULTS / options.size / options.world, out)
    made = options.what or [*TABLES, *get_args(FigureName)]
    try:
        for what in made:
            if what in get_args(FigureName):
                if any(role.startswith("mgct-w") for role in study.models):
                    reproduce_figure(study, what)
                continue
            calls = options.calls if what == "table1" else None
            extra = extra_rows(study, what, options.calls)
            reproduce_table(study, what, f"world:{options.world}", calls=calls, extra=extra, tell=print)
            print((out / f"{what}.md").read_text())
    except KeyboardInterrupt:
        copy_cards(out, RESULTS / options.size / options.world)
        raise SystemExit("stopped; the cards made so far are kept, and the same command goes on from them") from None
    publish(study, RESULTS / options.size / options.world, made)
    write_page()


if __name__ == "__main__":
    main()
