"""Figures of clips and of training. They are returned, never shown or saved here; `Figure.savefig` does that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mgct.errors import UserError
from mgct.types import AVSample, ClipSpec, quantise_pixels, quantise_sound

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAME_INCHES = 0.62
FLOOR_DB = -80.0


def spectrogram_db(audio: Tensor, sample_rate_hz: int, bins: int = 128) -> Tensor:
    """Short-time spectrum of one sound in decibels relative to a full-scale sine.

    A Hann window of about 25 ms, at least 64 samples; hops of a quarter of it.

    Args:
        audio: (L,) in [-1, 1].
        sample_rate_hz: samples per second.
        bins: least number of frequency bins shown; the spectrum is interpolated to it by padding with zeros.

    Returns:
        (frequencies, times), at least `FLOOR_DB`.
    """
    window = min(max(64, 2 ** round(math.log2(0.025 * sample_rate_hz))), len(audio))
    hann = torch.hann_window(window, dtype=audio.dtype)
    size = max(window, 2 * (bins - 1))
    spectrum = torch.stft(
        torch.nn.functional.pad(audio, (size // 2, size // 2)),
        size,
        max(window // 4, 1),
        window,
        hann,
        center=False,
        return_complex=True,
    )
    amplitude = spectrum.abs() * (2 / hann.sum())
    return (20 * torch.log10(amplitude.clamp(min=1e-12))).clamp(min=FLOOR_DB)


def clips_figure(clips: AVSample, clip: ClipSpec, titles: Sequence[str] | None = None, max_frames: int = 16) -> Figure:
    """Each clip's frames in a row above its spectrogram, on a common time axis (as the paper's Figure 2).

    Args:
        clips: video (N, F, 3, H, W) and audio (N, 1, L) in [-1, 1].
        clip: their frame and sample rate.
        titles: a line above each clip; None: none.
        max_frames: of longer clips so many frames, evenly spaced, are shown.
    """
    return _sheet([(None, clips)], clip, titles, max_frames)


def compare_figure(
    groups: Mapping[str, AVSample], clip: ClipSpec, titles: Sequence[str] | None = None, max_frames: int = 8
) -> Figure:
    """Groups of clips one above the other, clip k of each in column k (as the paper's Figure 3).

    Real above generated, or two models or samplers on the same seeds.

    Args:
        groups: name → clips, in the order from top to bottom; as many clips in each.
        clip: their frame and sample rate.
        titles: a line above each column; None: none.
        max_frames: frames shown per clip.

    Raises:
        UserError: groups of different numbers of clips, or none.
    """
    return _sheet(list(groups.items()), clip, titles, max_frames)


def _sheet(
    groups: list[tuple[str | None, AVSample]], clip: ClipSpec, titles: Sequence[str] | None, max_frames: int
) -> Figure:
    """Clips of one group below each other, of several groups side by side with the groups below each other."""
    from matplotlib.figure import Figure

    counts = {len(clips.video) for _, clips in groups}
    if len(counts) != 1 or 0 in counts:
        raise UserError(f"every group must have the same number of clips, at least one; got {sorted(counts)}")
    count = counts.pop()
    if titles is not None and len(titles) != count:
        raise UserError(f"{count} clips need {count} titles, got {len(titles)}")
    columns = 1 if len(groups) == 1 else min(count, 2)
    blocks = math.ceil(count / columns)
    shown = min(max_frames, groups[0][1].video.shape[1])
    left, right, top, bottom = 0.55 + 0.45 * (len(groups) > 1), 0.25, 0.12 + 0.15 * (titles is not None), 0.35
    width = max(FRAME_INCHES * shown, 4.0)
    frames_height, sound_height = width / shown, max(0.8, 0.13 * width)
    cell_height = frames_height + sound_height + 0.3
    block_height = len(groups) * cell_height + 0.2 + 0.15 * (titles is not None)
    total_width = left + columns * width + (columns - 1) * 0.35 + right
    total_height = top + blocks * block_height - 0.2 + bottom - 0.3
    figure = Figure(figsize=(total_width, total_height), dpi=130)

    def axes_at(column: int, y_from_top: float, height: float) -> Axes:
        x = left + column * (width + 0.35)
        y = total_height - y_from_top - height
        return figure.add_axes((x / total_width, y / total_height, width / total_width, height / total_height))

    for number in range(count):
        block, column = divmod(number, columns)
        for level, (name, clips) in enumerate(groups):
            y = top + block * block_height + level * cell_height
            frames, sound = axes_at(column, y, frames_height), axes_at(column, y + frames_height + 0.03, sound_height)
            _draw_frames(frames, clips.video[number], clip, max_frames)
            _draw_sound(sound, clips.audio[number, 0], clip)
            if titles is not None and level == 0:
                frames.set_title(titles[number], fontsize=8, pad=3)
            if column == 0 and name is not None:
                frames.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
            if column > 0:
                sound.set_yticks([])
                sound.set_ylabel("")
    return figure


def _draw_frames(axes: Axes, video: Tensor, clip: ClipSpec, max_frames: int) -> None:
    """Frames (F, 3, H, W) side by side."""
    frames = len(video)
    chosen = torch.linspace(0, frames - 1, min(max_frames, frames)).round().long()
    strip = video[chosen].float().cpu().clamp(-1, 1).add(1).div(2).permute(2, 0, 3, 1).flatten(1, 2)
    axes.imshow(strip.numpy(), aspect="auto", interpolation="nearest", extent=(0, frames / clip.fps, 0, 1))
    for cut in range(1, len(chosen)):
        axes.axvline(cut / len(chosen) * frames / clip.fps, color="white", linewidth=0.6)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_sound(axes: Axes, audio: Tensor, clip: ClipSpec) -> None:
    """The spectrogram of audio (L,), time axis in seconds."""
    level = spectrogram_db(audio.float().cpu(), clip.sample_rate_hz)
    seconds = len(audio) / clip.sample_rate_hz
    top_khz = clip.sample_rate_hz / 2000
    axes.imshow(
        level.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, top_khz),
        cmap="magma",
        vmin=FLOOR_DB,
        vmax=0,
        interpolation="bilinear",
    )
    axes.set_xlim(0, seconds)
    axes.tick_params(labelsize=6, length=2, pad=1)
    axes.xaxis.set_major_formatter("{x:g} s")
    axes.set_ylabel("kHz", fontsize=7, labelpad=1)


def loss_figure(rows: Sequence[Mapping[str, Any]], boundary_step: int | None = None) -> Figure:
    """The training losses against the step, with the change of stage marked.

    Args:
        rows: what `metrics.jsonl` holds, a mapping per line with ``step`` and some of ``loss``, ``loss_mm``
            (multimodal), ``loss_cm`` (consistency), ``loss_mm_train`` and ``loss_mm_test``; ``stage`` finds the
            boundary when it is not given.
        boundary_step: first step of stage 2; None: where ``stage`` changes, if it does.

    Raises:
        UserError: no row with a step and a loss.
    """
    from matplotlib.figure import Figure

    looks = {
        "loss": ("total", "black"),
        "loss_mm": ("multimodal, Eq. 4", "tab:blue"),
        "loss_cm": ("consistency, Eq. 11", "tab:orange"),
        "loss_mm_train": ("multimodal, averaged weights, training clips", "tab:purple"),
        "loss_mm_test": ("the same, test clips", "tab:green"),
    }
    curves = {
        key: [(row["step"], row[key]) for row in rows if "step" in row and row.get(key) is not None] for key in looks
    }
    if not any(curves.values()):
        raise UserError("there is no loss to draw: no row has both 'step' and one of " + ", ".join(looks))
    if boundary_step is None:
        second = [row["step"] for row in rows if row.get("stage") == 2 and "step" in row]
        first = any(row.get("stage") == 1 for row in rows)
        boundary_step = min(second) if second and first else None
    figure = Figure(figsize=(7.5, 3.6), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for key, curve in curves.items():
        label, colour = looks[key]
        finite = [(step, value) for step, value in curve if value > 0 and math.isfinite(value)]
        if not finite:
            continue
        steps, values = zip(*finite, strict=True)
        axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.35)
        axes.plot([], [], color=colour, linewidth=1.4, label=label)
        cut = len(steps) if boundary_step is None else sum(step < boundary_step for step in steps)
        for part in (slice(None, cut), slice(cut, None)):
            axes.plot(steps[part], _running_mean(values[part]), color=colour, linewidth=1.4)
    if boundary_step is not None:
        axes.axvline(boundary_step, color="tab:red", linestyle="--", linewidth=1)
        axes.annotate(
            f"transfer, step {boundary_step}",
            (boundary_step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -10),
            textcoords="offset points",
            fontsize=7,
            color="tab:red",
        )
    axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean of each value with those before it, a twentieth of them all."""
    width = max(len(values) // 20, 1)
    total = torch.tensor([0.0, *values], dtype=torch.float64).cumsum(0)
    ends = torch.arange(1, len(values) + 1)
    starts = (ends - width).clamp(min=0)
    return ((total[ends] - total[starts]) / (ends - starts)).tolist()


def animated_sheet(
    clips: AVSample, clip: ClipSpec, sound: str = "sequential", columns: int | None = None, border: int = 2
) -> tuple[Tensor, Tensor]:
    """A grid of clips as one video with sound, in the stored form that `mgct.data.media.write_mp4` takes.

    ``sequential``: the clips play one after the other, each with its own sound and a bright border, while the others
        stand at their first frame.
    ``mixed``: all play at once; the sound is the sum, scaled down only if it would clip.

    Args:
        clips: video (N, F, 3, H, W) and audio (N, 1, L) in [-1, 1].
        clip: their facts.
        sound: ``sequential`` or ``mixed``.
        columns: clips per row; None: about as many as rows.
        border: pixels around each clip.

    Returns:
        Video uint8 (F', 3, H', W') and audio int16 (1, L'); F' = N F when sequential.

    Raises:
        UserError: another ``sound``.
    """
    if sound not in ("sequential", "mixed"):
        raise UserError(f"sound must be 'sequential' or 'mixed', got {sound!r}")
    video = quantise_pixels(clips.video.float().cpu())
    audio = clips.audio.float().cpu().clamp(-1, 1)
    count, frames, _, height, width = video.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cell_height, cell_width = height + 2 * border, width + 2 * border
    active = range(count) if sound == "sequential" else [None]
    sheets = []
    for playing in active:
        sheet = torch.full((frames, 3, rows * cell_height, columns * cell_width), 24, dtype=torch.uint8)
        for index in range(count):
            top, left = index // columns * cell_height, index % columns * cell_width
            if playing == index:
                sheet[:, :, top : top + cell_height, left : left + cell_width] = 255
            moving = video[index] if playing in (None, index) else video[index, :1].expand(frames, -1, -1, -1)
            sheet[:, :, top + border : top + border + height, left + border : left + border + width] = moving
        sheets.append(sheet)
    if sound == "sequential":
        mixed = torch.cat(list(audio), -1)
    else:
        mixed = audio.sum(0)
        mixed = mixed / mixed.abs().max().clamp(min=1)
    samples = clip.samples_at(len(sheets) * frames)
    mixed = torch.nn.functional.pad(mixed, (0, max(samples - mixed.shape[-1], 0)))[:, :samples]
    return torch.cat(sheets), quantise_sound(mixed)


class Estimate(NamedTuple):
    """A value at a number of network calls, with its interval (NaN where there is none)."""

    calls: int
    value: float
    low: float
    high: float


def calls_figure(panels: Mapping[str, Mapping[str, Sequence[Estimate]]], columns: int | None = None) -> Figure:
    """Values against network calls, with their intervals: a panel for each title, a line for each series.

    Series keep their colour over all panels. Where every series of a panel has one number of calls alone, the series
    stand side by side instead.

    Args:
        panels: title → series → estimates; an empty series is left out.
        columns: panels in a row; None: at most 4.

    Raises:
        UserError: nothing to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    names = list(dict.fromkeys(name for series in panels.values() for name, line in series.items() if line))
    if not names:
        raise UserError("there is nothing to draw: no row of the table has been made")
    columns = columns or min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.3 * columns, 2.9 * rows + 0.3 + 0.16 * math.ceil(len(names) / 4)), dpi=130)
    figure.set_layout_engine("constrained")
    handles: dict[str, Any] = {}
    for number, (title, series) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        drawn = {name: sorted(series[name]) for name in names if series.get(name)}
        single = {len(line) for line in drawn.values()} == {1}
        for place, (name, line) in enumerate(drawn.items()):
            colour = f"C{names.index(name)}"
            # lines that share a number of calls are drawn a little apart
            shift = 1 + 0.03 * (names.index(name) - (len(names) - 1) / 2)
            at = [place] if single else [point.calls * shift for point in line]
            values = [point.value for point in line]
            bars = [
                [max(point.value - point.low, 0.0) for point in line],
                [max(point.high - point.value, 0.0) for point in line],
            ]
            handles[name] = axes.errorbar(
                at, values, bars, color=colour, marker="o", markersize=3.5, linewidth=1.2, capsize=2.5, elinewidth=0.9
            )
        every = [point for line in drawn.values() for point in line]
        lows = [point.low if math.isfinite(point.low) else point.value for point in every]
        if every and min(lows) > 0 and max(point.value for point in every) > 8 * min(point.value for point in every):
            axes.set_yscale("log")
        if single:
            calls = [line[0].calls for line in drawn.values()]
            axes.set_xticks(range(len(drawn)), [f"{count} calls" for count in calls])
            axes.set_xlim(-0.5, len(drawn) - 0.5)
        elif every:
            axes.set_xscale("log")
            axes.set_xticks(sorted({point.calls for point in every}))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("network calls", fontsize=7)
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=6.5)
        axes.tick_params(which="minor", labelsize=5)
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower center", ncols=min(len(names), 4), fontsize=7
    )
    return figure
