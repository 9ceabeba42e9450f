"""What became of every file that `mgct prepare` found."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mgct.data.index import SPLITS
from mgct.data.media import MEDIA_SUFFIXES, one_line
from mgct.data.parts import PrepareSettings, Record, counted
from mgct.errors import UserError

Status = Literal["taken", "refused", "ignored"]


@dataclass(frozen=True)
class FileReport:
    """What became of one file.

    Attributes:
        path: relative to the source folder.
        status: `taken`; `refused` (no use, but its name promises a video); `ignored` (its name promises none either).
        reason: a word: why it was not taken.
        detail: the same in a line.
        sha256: of its content, in hexadecimal.
        split: `train` or `test`, for a taken file.
        windows: clips taken from it.
        skipped: windows not taken, by reason (`silent`, `static`).
        notes: what was odd about it (damage, gaps), though it was taken.
    """

    path: str
    status: Status
    reason: str = ""
    detail: str = ""
    sha256: str = ""
    split: str = ""
    windows: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        """Whether a part of the file could not be decoded."""
        return any("damaged" in note for note in self.notes)


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did.

    Attributes:
        settings: the settings, as JSON.
        files: one entry a file found, by path.
        clips: clips by split.
        hours: the clips' total duration by split, in hours.
    """

    settings: dict[str, Any]
    files: list[FileReport]
    clips: dict[str, int]
    hours: dict[str, float]

    def count(self, status: Status) -> int:
        """Files of a status."""
        return sum(file.status == status for file in self.files)

    @property
    def reasons(self) -> dict[str, int]:
        """Refused files by reason."""
        return dict(Counter(file.reason for file in self.files if file.status == "refused").most_common())

    def summary(self) -> str:
        """The report in a few lines."""
        lines = [
            f"{self.count('taken')} files taken: {self.clips['train']} clips for training "
            f"({self.hours['train']:.3g} h), {self.clips['test']} for testing ({self.hours['test']:.3g} h)"
        ]
        if self.reasons:
            lines.append(f"{self.count('refused')} refused: " + counted(self.reasons))
        skipped: Counter[str] = Counter()
        for file in self.files:
            skipped.update(file.skipped)
        if skipped:
            lines.append(f"{sum(skipped.values())} windows skipped: " + counted(skipped))
        if noted := sum(file.status == "taken" and bool(file.notes) for file in self.files):
            lines.append(f"{noted} of the files taken have notes (damage, gaps): see report.json")
        if self.count("ignored"):
            lines.append(f"{self.count('ignored')} other files ignored")
        return "\n".join(lines)


def make_report(
    hashes: dict[Path, str],
    passed: dict[Path, str],
    first_of: dict[str, Path],
    records: dict[str, Record],
    splits: dict[str, str],
    settings: PrepareSettings,
) -> PrepareReport:
    """The report of all files: those hashed, those passed over, and what their records say."""
    files = [FileReport(str(name), _passed_status(name, why), "passed over", why) for name, why in passed.items()]
    files += [_file_report(name, sha, first_of, records, splits) for name, sha in hashes.items()]
    files.sort(key=lambda file: file.path)
    clips = {split: sum(file.windows for file in files if file.split == split) for split in SPLITS}
    hours = {split: count * settings.clip.seconds / 3600 for split, count in clips.items()}
    return PrepareReport(settings.as_json(), files, clips, hours)


def _passed_status(name: Path, why: str) -> Status:
    return "refused" if name.suffix.lower() in MEDIA_SUFFIXES and why != "hidden" else "ignored"


def _file_report(
    name: Path, sha: str, first_of: dict[str, Path], records: dict[str, Record], splits: dict[str, str]
) -> FileReport:
    if not sha:
        return FileReport(str(name), "refused", "unreadable", "the file cannot be read: check its permissions")
    record = records[sha]
    promises = name.suffix.lower() in MEDIA_SUFFIXES
    if record.windows and first_of[sha] != name:
        return FileReport(str(name), "refused", "duplicate", f"the same content as {first_of[sha]}", sha)
    if record.windows:
        status: Status = "taken"
    else:
        status = "refused" if promises or record.reason not in ("unreadable", "no video", "no audio") else "ignored"
    return FileReport(
        str(name),
        status,
        record.reason,
        record.detail,
        sha,
        splits.get(sha, ""),
        record.windows,
        record.skipped,
        record.notes,
    )


def report_json(report: PrepareReport) -> dict[str, Any]:
    """What ``report.json`` holds."""
    totals = {status: report.count(status) for status in ("taken", "refused", "ignored")}
    return {
        "settings": report.settings,
        "totals": {"files": totals, "refused": report.reasons, "clips": report.clips, "hours": report.hours},
        "files": [asdict(file) for file in report.files],
    }


def refuse_if_unusable(report: PrepareReport, source: Path, out: Path, strict: bool) -> None:
    """Raise a `UserError` if nothing was taken or, under ``strict``, something was refused or damaged."""
    see = f"see {out / 'report.json'}"
    if not report.count("taken"):
        why = counted(report.reasons) if report.reasons else f"{len(report.files)} files, none of them a video"
        raise UserError(f"nothing in {source} can be used ({why}): {see}, or try mgct inspect {source}")
    bad = [file for file in report.files if file.status == "refused" or file.damaged]
    if strict and bad:
        first = bad[0]
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        what = f"{one_line(first.path)}: {first.reason or 'damaged'}{more}"
        raise UserError(f"--strict: {len(bad)} of {len(report.files)} files refused or damaged ({what}): {see}")
