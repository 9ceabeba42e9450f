"""The paper's tables: which rows they have, and the numbers it prints.

The numbers are those of Tables 1 to 4 of *Multimodal Generation with Consistency Transferring* (NAACL Findings 2025),
as FVD, KVD and FAD on AIST++ and Landscape, 2,048 clips of 64×64. It does not say by which version of MM-Diffusion's
evaluator (the scale of FAD changed in 2024), nor which seeds; it gives no intervals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mgct.errors import UserError
from mgct.samplers import get_sampler
from mgct.sampling_options import SamplingOptions

PaperData = Literal["aist", "landscape"]
TableName = Literal["table1", "table2", "table3", "table4"]
FigureName = Literal["figure2", "figure3"]

ROLES = {
    "baseline": "MM-Diffusion",
    "mgct-w0.5": "MGCT, w = 0.5",
    "mgct-w0.7": "MGCT, w = 0.7",
    "mgct-no-mct": "MGCT without MCT",
    "stage1": "MM-Start (stage 1)",
}
"""The models the paper compares: role → how tables call it. A models file may name others."""


class Numbers(NamedTuple):
    """FVD, KVD and FAD as printed; lower is better."""

    fvd: float
    kvd: float
    fad: float


@dataclass(frozen=True)
class Sampling:
    """A way of sampling that makes a row of each model.

    Args:
        sampler: a name out of `mgct.samplers.SAMPLERS`, or a scheduler object as `mgct.pipeline.AVPipeline` takes it.
        calls: network calls per clip.
        name: how tables call it; None: the sampler's own name.
        clip_x0: as in `SamplingOptions`.
        start_timestep: as in `SamplingOptions`; tables say it behind the name.

    Raises:
        UserError: a named sampler that does not exist or does not take so many calls.
    """

    sampler: str | Any
    calls: int
    name: str | None = None
    clip_x0: bool | None = None
    start_timestep: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.sampler, str):
            get_sampler(self.sampler, self.calls)

    @property
    def title(self) -> str:
        """The sampler's name in tables."""
        own = self.sampler if isinstance(self.sampler, str) else type(self.sampler).__name__
        start = "" if self.start_timestep is None else f" from {self.start_timestep}"
        return (own if self.name is None else self.name) + start

    def options(self, seed: int, batch_size: int, progress: bool) -> SamplingOptions:
        """The same for the pipeline."""
        return SamplingOptions(
            steps=self.calls,
            sampler=self.sampler,
            seed=seed,
            batch_size=batch_size,
            clip_x0=self.clip_x0,
            progress=progress,
            start_timestep=self.start_timestep,
        )


@dataclass(frozen=True)
class Row:
    """One row of a table: a model, sampled in one way.

    Args:
        role: which model.
        label: how the table calls the model.
        sampling: how it is sampled.
        paper: the numbers printed for it, by data set; empty where the paper has no such row.
    """

    role: str
    label: str
    sampling: Sampling
    paper: Mapping[PaperData, Numbers] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """What a table of the paper shows.

    Args:
        title: what it compares.
        sampler: by which its models are sampled.
        calls: network calls, one row of each model for each.
        roles: its models, in order.
        numbers: (role, calls) → the numbers printed, by data set.
        note: what to know about the printed numbers.
    """

    title: str
    sampler: str
    calls: tuple[int, ...]
    roles: tuple[str, ...]
    numbers: Mapping[tuple[str, int], Mapping[PaperData, Numbers]]
    note: str


def _by_calls(calls: Sequence[int], columns: Mapping[tuple[str, PaperData], Sequence[Numbers]]) -> Any:
    """(role, calls) → data set → numbers, from one column of the table a role and data set."""
    found: dict[tuple[str, int], dict[PaperData, Numbers]] = {}
    for (role, data), numbers in columns.items():
        for count, row in zip(calls, numbers, strict=True):
            found.setdefault((role, count), {})[data] = row
    return found


_FAST = (9, 10, 12, 15, 20)
_MGCT_NOTE = (
    "The paper prints one MGCT: its numbers are those of w = 0.7 on AIST++ and of w = 0.5 on Landscape, as its Table 3 "
    "shows, and stand in those rows."
)

TABLES: dict[TableName, Table] = {
    "table1": Table(
        "MM-Diffusion and MGCT, sampled fast by DPM-Solver",
        "dpm-solver",
        _FAST,
        ("baseline", "mgct-w0.5", "mgct-w0.7"),
        _by_calls(
            _FAST,
            {
                ("baseline", "aist"): [
                    Numbers(921.407, 190.405, 2.495),
                    Numbers(716.247, 153.138, 2.513),
                    Numbers(344.164, 61.109, 2.402),
                    Numbers(335.284, 68.558, 2.25),
                    Numbers(345.724, 66.731, 1.604),
                ],
                ("baseline", "landscape"): [
                    Numbers(538.759, 22.575, 1.794),
                    Numbers(483.957, 17.436, 1.618),
                    Numbers(421.588, 13.334, 1.858),
                    Numbers(508.294, 17.245, 1.855),
                    Numbers(369.379, 9.891, 1.256),
                ],
                ("mgct-w0.7", "aist"): [
                    Numbers(861.514, 191.27, 2.384),
                    Numbers(552.488, 109.934, 2.333),
                    Numbers(279.384, 36.776, 2.305),
                    Numbers(245.689, 35.568, 2.41),
                    Numbers(209.729, 20.919, 1.558),
                ],
                ("mgct-w0.5", "landscape"): [
                    Numbers(644.841, 33.461, 1.685),
                    Numbers(532.555, 22.002, 1.77),
                    Numbers(387.195, 14.359, 1.874),
                    Numbers(398.043, 12.195, 1.3),
                    Numbers(313.545, 7.457, 1.216),
                ],
            },
        ),
        _MGCT_NOTE
        + " If they were sampled by MM-Diffusion's published solver, which the paper does not say, its first-order "
        "step was wrong for the audio: at 9, 10, 12 and 15 calls their FAD is then that of another sampler than "
        "`dpm-solver` here (benchmarks/published_solver.py makes such rows).",
    ),
    "table2": Table(
        "MM-Diffusion and MGCT, sampled slowly by DDPM",
        "ddpm",
        (1000,),
        ("baseline", "mgct-w0.5", "mgct-w0.7"),
        {
            ("baseline", 1000): {
                "aist": Numbers(198.469, 27.572, 1.347),
                "landscape": Numbers(353.283, 9.030, 1.521),
            },
            ("mgct-w0.7", 1000): {"aist": Numbers(212.669, 28.654, 1.545)},
            ("mgct-w0.5", 1000): {"landscape": Numbers(330.745, 9.777, 1.489)},
        },
        "The paper prints one MGCT, its best, without its w; it stands in the row of the w that its Table 3 has best.",
    ),
    "table3": Table(
        "MGCT by the weight w of its consistency loss",
        "dpm-solver",
        (20,),
        ("mgct-w0.7", "mgct-w0.5"),
        {
            ("mgct-w0.7", 20): {
                "aist": Numbers(209.729, 20.919, 1.558),
                "landscape": Numbers(364.452, 9.499, 1.225),
            },
            ("mgct-w0.5", 20): {
                "aist": Numbers(335.318, 54.875, 1.467),
                "landscape": Numbers(313.545, 7.457, 1.216),
            },
        },
        "The paper prints each w's best result without its sampler; those that stand in its Table 1 too are of "
        "DPM-Solver with 20 calls.",
    ),
    "table4": Table(
        "MGCT with and without Model Consistency Transferring (MCT), and the model it starts from",
        "dpm-solver",
        (20,),
        ("stage1", "mgct-w0.7", "mgct-w0.5", "mgct-no-mct"),
        {
            ("stage1", 20): {
                "aist": Numbers(593.72, 142.05, 1.569),
                "landscape": Numbers(509.041, 27.35, 1.242),
            },
            ("mgct-w0.7", 20): {"aist": Numbers(209.729, 20.92, 1.558)},
            ("mgct-w0.5", 20): {"landscape": Numbers(313.545, 7.457, 1.216)},
            ("mgct-no-mct", 20): {
                "aist": Numbers(752.826, 156.86, 2.015),
                "landscape": Numbers(653.884, 28.41, 1.347),
            },
        },
        "The paper's text has w = 0.7 for all of them, but the numbers it prints for Landscape with MCT are those of "
        "w = 0.5 in its Table 3, and stand in that row. Its sampler is not said.",
    ),
}
"""The tables by name."""


def table_rows(
    name: TableName,
    roles: Iterable[str],
    calls: Sequence[int] | None = None,
    extra: Iterable[tuple[str | None, Sampling]] = (),
) -> list[Row]:
    """The rows of a table: each of its models, then those that only the models file names, by each sampling.

    Args:
        name: of the table.
        roles: those of the models file; the paper's other models (`ROLES`) that the table does not show are left out.
        calls: network calls instead of the paper's.
        extra: further ways of sampling, each with the role it is for, or None for all of the table.
    """
    table = TABLES[name]
    shown = [*table.roles, *(role for role in roles if role not in ROLES)]
    extra = list(extra)
    unknown = [role for role, _ in extra if role is not None and role not in shown]
    if unknown:
        raise UserError(f"{name} has no row of {unknown[0]!r}; its roles are {', '.join(shown)}")
    rows = []
    for role in shown:
        label = ROLES.get(role, role)
        for count in calls or table.calls:
            paper = table.numbers.get((role, count), {})
            rows.append(Row(role, label, Sampling(table.sampler, count), paper))
        rows += [Row(role, label, sampling) for wanted, sampling in extra if wanted in (None, role)]
    return rows


def parse_extra(text: str) -> tuple[str | None, Sampling]:
    """``SAMPLER:CALLS`` or ``ROLE:SAMPLER:CALLS``, either with ``@START`` behind it, as `table_rows` takes it.

    Raises:
        UserError: neither, or a sampler that does not take so many calls.
    """
    found = re.fullmatch(r"(?:([^:]+):)?([^:]+):(\d+)(?:@(\d+))?", text)
    if found is None:
        raise UserError(
            f"{text!r} is no extra sampling: write SAMPLER:CALLS or ROLE:SAMPLER:CALLS, as dpm-solver++:12; "
            "with @700 behind it to start at that noise level"
        )
    role, sampler, calls, start = found.groups()
    return role, Sampling(sampler, int(calls), start_timestep=None if start is None else int(start))
