"""Writing a clip as an mp4 with H.264 video and AAC sound."""

from __future__ import annotations

import contextlib
import math
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from torch import Tensor

from mgct.data.media.pictures import SCALER
from mgct.data.media.sound import resample
from mgct.data.media.track import words
from mgct.errors import UserError

AAC_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
"""Sample rates of MPEG-4 AAC (7,350 Hz left out: few players know it)."""
_BT601 = 6
_LARGEST_TIMESCALE = 100_000_000


def aac_rate_hz(sample_rate_hz: int) -> int:
    """The sample rate at which sound of ``sample_rate_hz`` is written: the lowest legal AAC rate that loses nothing.

    Above 96,000 Hz, the highest legal one.
    """
    return next((rate for rate in AAC_RATES_HZ if rate >= sample_rate_hz), AAC_RATES_HZ[-1])


def write_mp4(path: str | Path, video: Tensor, audio: Tensor, *, fps: float, sample_rate_hz: int) -> None:
    """Write a clip as an mp4 with H.264 video and AAC sound, both exactly of the clip's duration.

    The file appears under its name only when it is whole. Sides that are odd are made even by repeating the last row or
    column (H.264 with 4:2:0 colour has only even ones); the size is kept otherwise. Sound at a rate that AAC does not
    know is written at the next legal rate above (`aac_rate_hz`), resampled by FFmpeg. B-frames are not used, so that
    the first frame is at time 0 without an edit list.

    Args:
        path: the file to write; its folder must exist.
        video: (F, 3, H, W) uint8.
        audio: (C, L) int16 with C of 1 or 2 and L samples lasting as long as the video, to the nearest sample.
        fps: frames per second.
        sample_rate_hz: samples per second.

    Raises:
        ValueError: a tensor of another shape or type, or sound and video of different durations.
        UserError: the file cannot be written.
    """
    _check_writable_clip(video, audio, fps, sample_rate_hz)
    path = Path(path)
    rate_hz = aac_rate_hz(sample_rate_hz)
    seconds = video.shape[0] / fps
    sound = np.stack([resample(row.numpy().astype(np.float32) / 32768, sample_rate_hz, rate_hz) for row in audio.cpu()])
    length = round(seconds * rate_hz)
    sound = np.pad(sound, ((0, 0), (0, max(0, length - sound.shape[1]))))[:, :length]
    pictures = video.cpu().permute(0, 2, 3, 1).numpy()
    pictures = np.pad(pictures, ((0, 0), (0, video.shape[2] % 2), (0, video.shape[3] % 2), (0, 0)), mode="edge")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _encode(temporary, pictures, sound, Fraction(fps).limit_denominator(100_000), rate_hz)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {words(error)}") from error
    finally:
        with contextlib.suppress(OSError):  # what kept it from being written
            temporary.unlink(missing_ok=True)


def _check_writable_clip(video: Tensor, audio: Tensor, fps: float, sample_rate_hz: int) -> None:
    if video.dtype != torch.uint8 or video.dim() != 4 or video.shape[1] != 3 or not video.numel():
        raise ValueError(f"video must be uint8 (F, 3, H, W), got {video.dtype} {tuple(video.shape)}")
    if audio.dtype != torch.int16 or audio.dim() != 2 or audio.shape[0] not in (1, 2):
        raise ValueError(f"audio must be int16 (1 or 2, L), got {audio.dtype} {tuple(audio.shape)}")
    samples = round(video.shape[0] / fps * sample_rate_hz)
    if audio.shape[1] != samples:
        raise ValueError(
            f"{video.shape[0]} frames at {fps} fps last {samples} samples at {sample_rate_hz} Hz, got {audio.shape[1]}"
        )


def _encode(path: Path, pictures: NDArray[np.uint8], sound: NDArray[np.float32], fps: Fraction, rate_hz: int) -> None:
    """Encode (F, H, W, 3) uint8 and (C, L) float32 into ``path``."""
    exact_timescale = math.lcm(fps.numerator, rate_hz)
    timescale = exact_timescale if exact_timescale < _LARGEST_TIMESCALE else _LARGEST_TIMESCALE
    options = {"movflags": "+faststart", "movie_timescale": str(timescale)}
    with path.open("wb") as handle, av.open(handle, "w", format="mp4", options=options) as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "14", "preset": "medium", "bf": "0"})
        video.height, video.width, video.pix_fmt = *pictures.shape[1:3], "yuv420p"
        video.codec_context.time_base = 1 / fps
        video.codec_context.thread_count = 1
        video.codec_context.color_range = ColorRange.MPEG
        video.codec_context.colorspace = _BT601
        layout = "mono" if sound.shape[0] == 1 else "stereo"
        audio = container.add_stream("aac", rate=rate_hz, layout=layout, options={"b": "160k"})
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
                format="yuv420p",
                interpolation=SCALER,
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            frame.pts, frame.time_base, frame.duration = index, 1 / fps, 1
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
        heard.sample_rate, heard.pts, heard.time_base = rate_hz, 0, Fraction(1, rate_hz)
        container.mux(audio.encode(heard))
        container.mux(audio.encode(None))
