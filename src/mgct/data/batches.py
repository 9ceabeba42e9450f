"""Batches of stored clips, and the arrays that they are made of."""

from __future__ import annotations

import functools
import io
import itertools
import json
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgct.data.media import one_line
from mgct.errors import UserError
from mgct.types import AVSample, ClipSpec


@dataclass
class ClipBatch:
    """A batch of stored clips.

    Attributes:
        clips: video uint8 (B, F, 3, H, W), audio int16 (B, 1, L).
        keys: the clips' names.
        positions: (B,) int64, where in the run (or the source) they stand.
        labels: (B,) int64 classes, where the source knows them.
    """

    clips: AVSample
    keys: list[str]
    positions: Tensor
    labels: Tensor | None = None


def stack(
    arrays: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.int16]]],
    positions: Sequence[int],
    clip: ClipSpec,
    starts: Sequence[int],
    flips: Sequence[bool],
) -> ClipBatch:
    """Cut, mirror and stack stored clips (key, video (F', 3, H, W), audio (1, L'))."""
    videos = torch.empty(len(arrays), *clip.video_shape, dtype=torch.uint8)
    audios = torch.empty(len(arrays), *clip.audio_shape, dtype=torch.int16)
    video_rows, audio_rows = videos.numpy(), audios.numpy()
    for row, ((_, video, audio), start, flip) in enumerate(zip(arrays, starts, flips, strict=True)):
        frames = video[start : start + clip.frames]
        first = clip.samples_at(start)
        sound = audio[:, first : first + clip.audio_samples]
        if frames.shape != clip.video_shape or sound.shape[0] != 1 or clip.audio_samples - sound.shape[1] > 1:
            raise UserError(f"clip {arrays[row][0]} has another shape than the first of its source: {video.shape}")
        video_rows[row] = frames[..., ::-1] if flip else frames
        audio_rows[row, :, : sound.shape[1]] = sound
        audio_rows[row, :, sound.shape[1] :] = 0
    return ClipBatch(AVSample(video=videos, audio=audios), [key for key, *_ in arrays], torch.tensor(list(positions)))


def array_of(content: bytes, dtype: type[np.generic], axes: int, where: str) -> NDArray[Any]:
    """The array in the bytes of an .npy file, without a copy and without pickle; ``where`` it is, for messages."""
    try:
        shape, found, start = _header(content[:128])
        array = np.frombuffer(content, found, offset=start).reshape(shape)
    except (ValueError, OverflowError, SyntaxError, tokenize.TokenError) as error:
        raise UserError(
            f"{where}: a clip's array is damaged ({one_line(str(error))}): prepare the videos anew"
        ) from error
    if array.dtype != dtype or array.ndim != axes:
        raise UserError(
            f"{where}: a clip's array holds {array.dtype} {array.shape}, not {np.dtype(dtype)} with {axes} axes: "
            "prepare the videos anew"
        )
    return array


@functools.lru_cache(maxsize=64)
def _header(head: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """(shape, dtype, where the data start) of an .npy file in C order."""
    stream = io.BytesIO(head)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not version 1.0 of the format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran or dtype.hasobject:
        raise ValueError("not a plain array in C order")
    return shape, dtype, stream.tell()


def describe(clip: ClipSpec) -> str:
    """The shape of a clip in words."""
    return f"{clip.frames} frames at {clip.fps:g} fps, {clip.size}x{clip.size}, {clip.sample_rate_hz} Hz"


def spare_frames(stored: ClipSpec, clip: ClipSpec, where: str) -> int:
    """Frames that stored clips have more than wanted ones."""
    same = (stored.fps, stored.size, stored.sample_rate_hz) == (clip.fps, clip.size, clip.sample_rate_hz)
    if not same or stored.frames < clip.frames:
        raise UserError(
            f"{where} holds clips of {describe(stored)}, but {describe(clip)} are asked for: "
            "prepare the videos anew with the clip settings of the model, or change the model's"
        )
    return stored.frames - clip.frames


def stored_clip(facts: bytes, video_shape: Sequence[int], clip: ClipSpec, where: str) -> ClipSpec:
    """What a clip of video (F, 3, H, W) is by the JSON beside it; rates that are not in there are those of ``clip``."""
    try:
        said = json.loads(facts)
        fps, rate = said.get("fps", clip.fps), said.get("sample_rate_hz", clip.sample_rate_hz)
        return ClipSpec(video_shape[0], fps, video_shape[-1], rate)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{where} has a damaged .json: prepare the videos anew") from error


def check_arrays(video: NDArray[np.uint8], audio: NDArray[np.int16], clip: ClipSpec, where: str) -> int:
    """As `spare_frames`, for clips of which only the arrays are known."""
    frames = video.shape[0]
    expected = clip.samples_at(frames)
    if video.shape != (frames, *clip.video_shape[1:]) or audio.shape != (1, expected) or frames < clip.frames:
        raise UserError(
            f"{where} holds clips with video {video.shape} and audio {audio.shape}, but {describe(clip)} (video "
            f"{clip.video_shape}, audio {clip.audio_shape}) are asked for: prepare the videos anew"
        )
    return frames - clip.frames


def grouped(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` items; the last may be shorter."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
