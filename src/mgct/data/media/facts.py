"""What is in a file, found by decoding all of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from mgct.data.media.error import MediaError
from mgct.data.media.pictures import display_transform
from mgct.data.media.sound import MonoFilter, mono
from mgct.data.media.track import (
    AUDIO_JITTER_S,
    CLOCK_SLACK_S,
    LONGEST_GAP_S,
    Track,
    declared_seconds,
    declares_more,
    open_media,
)

_HDR_TRANSFERS = (16, 18)
_NOTABLE_OFFSET_S = 0.04
_STATIC_LEVELS = 0.5


@dataclass(frozen=True)
class MediaFacts:
    """What is in a file, found by decoding all of it; what it says about itself is only used where named *declared*.

    Attributes:
        path: the file, as asked for.
        size_bytes: its size.
        container: FFmpeg's name of the container's format.
        declared_s: duration that the container declares; None if it does not.
        video_codec: empty without video.
        width, height: of a stored picture in pixels, before rotation.
        rotation_degrees: by how much it is turned clockwise for display.
        fps: frames per second: the median time between frames, inverted.
        variable_fps: whether the times between frames differ by more than clocks of a millisecond explain.
        video_s: duration of the video.
        frames: decoded video frames.
        audio_codec: empty without audio.
        audio_rate_hz: samples per second.
        audio_channels: channels.
        audio_s: duration of the audio.
        offset_s: start of the audio minus start of the video.
        silent_share: share of the audio's tenths of a second whose RMS is below -60 dB of full scale.
        loudness_lufs: integrated loudness (ITU-R BS.1770) of the mean of the channels; None below 0.4 s of sound.
        problems: what is wrong or needs care, in words.
    """

    path: str
    size_bytes: int = 0
    container: str = ""
    declared_s: float | None = None
    video_codec: str = ""
    width: int = 0
    height: int = 0
    rotation_degrees: int = 0
    fps: float = 0.0
    variable_fps: bool = False
    video_s: float = 0.0
    frames: int = 0
    audio_codec: str = ""
    audio_rate_hz: int = 0
    audio_channels: int = 0
    audio_s: float = 0.0
    offset_s: float = 0.0
    silent_share: float = 0.0
    loudness_lufs: float | None = None
    problems: tuple[str, ...] = ()


def probe(path: Path, name: str = "") -> MediaFacts:
    """All facts of a file; an unreadable one gives facts with the problem named, never an exception.

    Args:
        path: the file.
        name: how to call it in the facts; the path if empty.
    """
    facts: dict[str, Any] = {"path": name or str(path)}
    problems: list[str] = []
    try:
        facts["size_bytes"] = path.stat().st_size
        with open_media(path) as container:
            facts["container"] = container.format.name
            facts["declared_s"] = declared_seconds(container)
    except OSError as error:
        return MediaFacts(**facts, problems=(f"unreadable: {error.strerror}",))
    except MediaError as error:
        return MediaFacts(**facts, problems=(str(error),))
    starts: dict[str, float] = {}
    for measure in (_video_facts, _audio_facts):
        try:
            found, start_s, odd = measure(path)
            facts.update(found)
            starts[measure.__name__] = start_s
            problems += odd
        except MediaError as error:
            problems.append(str(error))
    if len(starts) == 2:
        facts["offset_s"] = offset_s = starts["_audio_facts"] - starts["_video_facts"]
        if abs(offset_s) > _NOTABLE_OFFSET_S:
            problems.append(f"sound starts {abs(offset_s):.3f} s {'after' if offset_s > 0 else 'before'} the picture")
    longest = max(facts.get("video_s", 0.0), facts.get("audio_s", 0.0))
    if starts and (note := declares_more(facts.get("declared_s"), longest, max(starts.values()))):
        problems.append(note)
    return MediaFacts(**facts, problems=tuple(problems))


def _video_facts(path: Path) -> tuple[dict[str, Any], float, list[str]]:
    with Track(path, "video") as track:
        times: list[float] = []
        sizes: set[tuple[int, int]] = set()
        low: Any = None
        high: Any = None
        first = frame = None
        interlaced, turned = False, (0, False)
        for time_s, frame in track:
            times.append(time_s)
            sizes.add((frame.width, frame.height))
            interlaced |= frame.interlaced_frame
            tiny = frame.reformat(32, 32, "gray", interpolation=Interpolation.AREA, threads=1).to_ndarray()
            low, high = (tiny, tiny) if low is None else (np.minimum(low, tiny), np.maximum(high, tiny))
            first = first or frame
        if first is None or frame is None:
            raise track.nothing()
        problems = _track_problems("video", track)
        try:
            turned = display_transform(first)
        except MediaError as error:
            problems.append(str(error))
        gaps = np.diff(np.array(times))
        forward = gaps[gaps > 0]
        variable = bool(forward.size and np.ptp(forward) > 2.5 * CLOCK_SLACK_S)
        period_s = track.frame_seconds(frame)
        if forward.size:  # the mean, where time stamps are rounded alone; a single odd gap does not count
            period_s = float(np.median(forward) if variable else np.mean(forward))
        facts = {
            "video_codec": track.stream.codec_context.name,
            "width": first.width,
            "height": first.height,
            "rotation_degrees": -90 * turned[0] % 360,
            "fps": 1 / period_s if period_s else 0.0,
            "variable_fps": variable,
            "video_s": max(times) - times[0] + track.frame_seconds(frame),
            "frames": len(times),
        }
        if (gaps < 0).any():
            problems.append("video timestamps run back")
        if forward.size and forward.max() > LONGEST_GAP_S:
            problems.append(f"video timestamps jump by {forward.max():.1f} s")
        if len(sizes) > 1:
            problems.append("the picture's size changes")
        if interlaced:
            problems.append("interlaced (not de-interlaced here)")
        if first.color_trc in _HDR_TRANSFERS:
            problems.append("high dynamic range (not tone-mapped here)")
        if len(times) == 1:
            problems.append("a single frame")
        elif (high.astype(np.int16) - low).mean() < _STATIC_LEVELS:
            problems.append("static: the picture never changes")
        return facts, times[0], problems


def _audio_facts(path: Path) -> tuple[dict[str, Any], float, list[str]]:
    with Track(path, "audio") as track:
        loudness: _Loudness | None = None
        blocks: list[float] = []
        rest = np.zeros(0, np.float32)
        start_s, end_s, first, jumps, finite = 0.0, 0.0, None, 0, True
        for time_s, frame in track:
            if first is None or loudness is None:
                first, start_s, end_s, loudness = frame, time_s, time_s, _Loudness(frame.sample_rate)
            samples = mono(frame)
            finite &= bool(np.isfinite(samples).all())
            jumps += abs(time_s - end_s) > AUDIO_JITTER_S
            end_s = time_s + track.frame_seconds(frame)
            loudness.add(samples, frame.sample_rate)
            rest = np.concatenate([rest, samples])
            tenth = max(1, frame.sample_rate // 10)
            whole = rest[: rest.shape[0] // tenth * tenth].reshape(-1, tenth)
            blocks.extend(np.sqrt(np.mean(np.square(whole, dtype=np.float64), axis=1)).tolist())
            rest = rest[whole.size :]
        if first is None or loudness is None:
            raise track.nothing()
        if rest.size and not blocks:
            blocks.append(float(np.sqrt(np.mean(np.square(rest, dtype=np.float64)))))
        silent_share = float(np.mean(np.array(blocks) < 1e-3))
        problems = _track_problems("audio", track)
        if silent_share == 1:
            problems.append("silent")
        if jumps:
            problems.append(f"audio timestamps jump {jumps} times")
        if not finite:
            problems.append("audio holds values that are no numbers")
        facts = {
            "audio_codec": track.stream.codec_context.name,
            "audio_rate_hz": first.sample_rate,
            "audio_channels": len(first.layout.channels),
            "audio_s": end_s - start_s,
            "silent_share": silent_share,
            "loudness_lufs": loudness.integrated_lufs() if finite else None,
        }
        return facts, start_s, problems


def _track_problems(name: str, track: Track) -> list[str]:
    problems = [f"{name} damaged: {track.damage}"] if track.damage else []
    if track.skipped_packets:
        problems.append(f"{name}: {track.skipped_packets} packets before the first decodable one")
    return problems


class _Loudness:
    """FFmpeg's ebur128 filter over mono samples of one rate."""

    def __init__(self, rate_hz: int) -> None:
        self._meter, self._rate_hz = MonoFilter(rate_hz, "ebur128", metadata="1", framelog="quiet"), rate_hz
        self._lufs: float | None = None

    def add(self, samples: NDArray[np.float32], rate_hz: int) -> None:
        """Samples (n,); after a change of rate there is no single loudness, and they are not counted."""
        if rate_hz == self._rate_hz and samples.size:
            self._note(self._meter.push(samples))

    def integrated_lufs(self) -> float | None:
        """The loudness of everything, in LUFS; None if there was less than one gating block or only silence."""
        self._note(self._meter.flush())
        return self._lufs

    def _note(self, frames: list[Any]) -> None:
        for frame in frames:
            if "lavfi.r128.I" in frame.metadata:
                value = float(frame.metadata["lavfi.r128.I"])
                self._lufs = value if value > -70 else None
