"""Pictures on the page: PNGs that suit light and dark, and clips as an animation."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mgct import plots
from mgct.types import AVSample, quantise_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def spectrogram_figure(audio: Tensor, sample_rate_hz: int) -> Figure:
    """The spectrogram of one sound, readable on a light and on a dark page.

    Args:
        audio: (L,) in [-1, 1].
        sample_rate_hz: samples per second.
    """
    from matplotlib.figure import Figure

    level = plots.spectrogram_db(audio.float().cpu(), sample_rate_hz)
    figure = Figure(figsize=(2.4, 0.95), dpi=160)
    axes = figure.add_axes((0.14, 0.2, 0.84, 0.76))
    axes.imshow(
        level.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0, len(audio) / sample_rate_hz, 0, sample_rate_hz / 2000),
        cmap="magma",
        vmin=plots.FLOOR_DB,
        vmax=0,
        interpolation="bilinear",
    )
    axes.locator_params(nbins=4)
    axes.xaxis.set_major_formatter("{x:g} s")
    axes.set_ylabel("kHz", fontsize=7, labelpad=1)
    axes.tick_params(labelsize=7, length=2, pad=1)
    on_any_background(figure)
    return figure


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG with a transparent background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def on_any_background(figure: Figure) -> Figure:
    """The figure with no background and everything black in a grey that light and dark pages both show."""
    grey = "#808890"
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.tick_params(which="both", colors=grey)
        for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
            text.set_color(grey)
        for spine in axes.spines.values():
            spine.set_edgecolor(grey)
        for line in axes.lines:
            if line.get_color() == "black":
                line.set_color(grey)
        legend = axes.get_legend()
        if legend is not None:
            legend.get_frame().set_alpha(0)
            for text in legend.get_texts():
                text.set_color(grey)
            for line in legend.get_lines():
                if line.get_color() == "black":
                    line.set_color(grey)
    return figure


def animation_webp(clips: AVSample, fps: float) -> bytes:
    """Clips side by side as one animated picture.

    Args:
        clips: video (B, F, 3, H, W) in [-1, 1].
        fps: frames per second.
    """
    from PIL import Image

    video = quantise_pixels(clips.video.float())
    opaque = torch.cat([video, torch.full_like(video[:, :, :1], 255)], 2)
    gap = max(opaque.shape[-1] // 16, 1)
    strips = torch.nn.functional.pad(opaque, (0, gap)).permute(1, 3, 0, 4, 2).flatten(2, 3).numpy()
    first, *others = (Image.fromarray(strip, "RGBA") for strip in strips)
    buffer = io.BytesIO()
    first.save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=round(1000 / fps),
        loop=0,
        quality=70,
        method=0,
    )
    return buffer.getvalue()
