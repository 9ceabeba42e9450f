"""``mgct plot clips | compare | sheet | loss``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mgct import plots
from mgct.checkpoint import list_checkpoints, read_checkpoint, read_metrics
from mgct.data.media import write_mp4
from mgct.errors import UserError
from mgct.files import write_whole
from mgct.metrics.sources import clip_of, open_source
from mgct.types import AVSample, ClipSpec, dequantise

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_clips(clips: str, out: Path, clip: ClipSpec | None = None, num: int = 8, split: str = "train") -> None:
    """Draw clips into a PNG: each one's frames in a row above its spectrogram (the paper's Figure 2).

    Args:
        clips: a folder of videos, a folder made by `mgct prepare`, or the clips of `mgct sample`.
        out: the PNG to write.
        clip: how to read a folder of videos; found out where the folder says.
        num: how many.
        split: of a prepared folder or a world: train or test.
    """
    _save(plots.clips_figure(*_first(clips, clip, num, split)), out)


def plot_compare(
    clips: str,
    others: str,
    out: Path,
    clip: ClipSpec | None = None,
    num: int = 4,
    names: str = "real,generated",
    split: str = "train",
) -> None:
    """Draw two sets of clips into a PNG, one above the other (the paper's Figure 3).

    Args:
        clips: the upper set, as in `mgct plot clips`.
        others: the lower set.
        out: the PNG to write.
        clip: how to read a folder of videos; found out where the folder says.
        num: how many of each.
        names: what to call the two, with a comma between.
        split: of a prepared folder or a world: train or test.
    """
    upper, _, lower = names.partition(",")
    if not upper or not lower:
        raise UserError(f"names must be two with a comma between, as in real,generated; got {names!r}")
    below, spec = _first(others, clip or clip_of(others) or clip_of(clips), num, split)
    above, _ = _first(clips, clip or spec, num, split)
    _save(plots.compare_figure({upper: above, lower: below}, spec), out)


def plot_sheet(
    clips: str,
    out: Path,
    clip: ClipSpec | None = None,
    num: int = 9,
    sound: Literal["sequential", "mixed"] = "sequential",
    split: str = "train",
) -> None:
    """Put clips into one mp4: a grid that plays with sound.

    Args:
        clips: as in `mgct plot clips`.
        out: the mp4 to write.
        clip: how to read a folder of videos; found out where the folder says.
        num: how many.
        sound: one clip after the other, or all at once.
        split: of a prepared folder or a world: train or test.
    """
    if out.suffix.lower() != ".mp4":
        raise UserError(f"{out}: a sheet is an mp4; name a file that ends in .mp4")
    first, spec = _first(clips, clip, num, split)
    video, audio = plots.animated_sheet(first, spec, sound)
    write_mp4(out, video, audio, fps=spec.fps, sample_rate_hz=spec.sample_rate_hz)
    print(out)


def plot_loss(run: Path, out: Path) -> None:
    """Draw a run's losses into a PNG, with the step of the transfer marked.

    Args:
        run: a run folder.
        out: the PNG to write.
    """
    rows = read_metrics(run)
    if not rows and (run / "metrics.jsonl").is_file():
        raise UserError(f"{run}: no row in metrics.jsonl yet: one comes every train.log_every steps, so train longer")
    if not rows:
        raise UserError(f"{run}: no metrics there (metrics.jsonl); give the folder of a run that has been trained")
    state = read_checkpoint(run).state if list_checkpoints(run) else {}
    boundary = state.get("objective", {}).get("transfer_step")  # an upsampler has none
    _save(plots.loss_figure(rows, boundary), out)


def _first(source: str, clip: ClipSpec | None, num: int, split: str) -> tuple[AVSample, ClipSpec]:
    """The first ``num`` clips of a source in [-1, 1], and their facts."""
    if num < 1:
        raise UserError(f"num must be at least 1, got {num}")
    opened = open_source(source, clip or clip_of(source), split)
    if not len(opened):
        raise UserError(f"{source}: no clips there")
    return dequantise(opened.read(range(min(num, len(opened))))), opened.spec


def _save(figure: Figure, out: Path) -> None:
    """Write the figure, whole or not at all; without an ending it becomes a PNG."""
    if not out.suffix:
        out = Path(f"{out}.png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, figure.savefig)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: cannot be written ({error}); name a .png file in a folder that can") from error
    print(out)
