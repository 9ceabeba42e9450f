"""Awkward media files, made on the spot: a flash and a beep at one moment, in every layout that real files come in."""

import os
import random
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

EVENT_S = 1.2
SECONDS = 2.4


def picture(time_s: float, event_s: float, width: int, height: int) -> np.ndarray:
    """(height, width, 3): a red corner at the top left, stripes that move, white for 0.2 s from the event on."""
    if event_s <= time_s < event_s + 0.2:
        return np.full((height, width, 3), 255, np.uint8)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    grey = (70 + 50 * np.sin(2 * np.pi * (x / 16 + y / 40 + 2 * time_s))).astype(np.uint8)
    image = np.stack([grey] * 3, -1)
    image[: (height + 2) // 3, : (width + 2) // 3] = (200, 0, 0)
    return image


def sound(times_s: np.ndarray, event_s: float) -> np.ndarray:
    """A soft hum, and a loud 2 kHz beep of 50 ms that starts at the event."""
    since = times_s - event_s
    beep = ((since >= -1e-9) & (since < 0.05)) * 0.7 * np.cos(2 * np.pi * 2000 * since)
    return 0.03 * np.sin(2 * np.pi * 220 * times_s) + beep


def write_media(
    path: Path,
    *,
    container: str | None = None,
    vcodec: str | None = "libx264",
    acodec: str | None = "aac",
    size: tuple[int, int] = (64, 48),
    pix_fmt: str = "yuv420p",
    fps: Fraction | int = 25,
    times_s: Sequence[float] | None = None,
    time_base: Fraction | None = None,
    seconds: float = SECONDS,
    rate: int = 44100,
    layout: str = "mono",
    loud_channels: Sequence[int] | None = None,
    video_start_s: float = 0.0,
    audio_start_s: float = 0.0,
    audio_gap: tuple[float, float] | None = None,
    volume: float = 1.0,
    still: bool = False,
    aspect: Fraction | None = None,
    video_options: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    event_s: float = EVENT_S,
) -> float:
    """Write a file; returns when, on the video's clock, flash and beep start."""
    width, height = size
    time_base = time_base or 1 / Fraction(fps)
    times = list(times_s) if times_s is not None else [float(k / Fraction(fps)) for k in range(round(seconds * fps))]
    moment = min((t for t in times if t >= event_s - 1e-9), default=event_s)
    with av.open(str(path), "w", format=container, options=options or {}) as out:
        video = audio = None
        if vcodec:
            video = out.add_stream(vcodec, rate=Fraction(fps), options=video_options or {})
            video.width, video.height, video.pix_fmt = width, height, pix_fmt
            video.codec_context.time_base = time_base
            if aspect:
                video.codec_context.sample_aspect_ratio = aspect
        if acodec:
            audio = out.add_stream(acodec, rate=rate, layout=layout)
        if video:
            for time_s in times:
                array = picture(0.0 if still else time_s, np.inf if still else moment, width, height)
                frame = av.VideoFrame.from_ndarray(array, format="rgb24")
                frame.pts, frame.time_base = round((time_s + video_start_s) / time_base), time_base
                out.mux(video.encode(frame.reformat(format=pix_fmt)))
            out.mux(video.encode(None))
        if audio:
            at = audio_start_s - video_start_s + np.arange(round((seconds - audio_start_s) * rate)) / rate
            channels = len(av.AudioLayout(layout).channels)
            wave = np.stack([volume * sound(at, moment)] * channels)
            if loud_channels is not None:
                wave[[c for c in range(channels) if c not in loud_channels]] = 0
            kind = audio.codec_context.format.name
            for first in range(0, wave.shape[1], 1024):
                chunk = wave[:, first : first + 1024]
                if audio_gap and audio_gap[0] <= at[first] < audio_gap[1]:
                    continue
                packed = np.ascontiguousarray(chunk.T.astype(np.float32)).reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = first + round(audio_start_s * rate)
                for converted in av.AudioResampler(format=kind).resample(frame):
                    out.mux(audio.encode(converted))
            out.mux(audio.encode(None))
    return moment


# --------------------------------------------------------------------------------------------------- damage by the byte


def patch(path: Path, offset: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(bytes(data))


def truncate(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix (a, b; c, d) into an mp4's first track."""
    at = path.read_bytes().index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    patch(path, at, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))


def declare_huge(path: Path) -> None:
    """Make a Matroska file declare a duration of weeks."""
    at = path.read_bytes().index(b"\x44\x89\x88") + 3
    patch(path, at, struct.pack(">d", 3e9))


def break_index(path: Path) -> None:
    """Point an mp4's chunk offsets beyond the end of the file."""
    data = path.read_bytes()
    start = -1
    while (start := data.find(b"stco", start + 1)) >= 0:
        count = struct.unpack(">I", data[start + 8 : start + 12])[0]
        patch(path, start + 12, struct.pack(">I", 0x7F000000) * count)


def scramble(path: Path, share: tuple[float, float], seed: int = 0) -> None:
    """Overwrite a stretch of a file with noise."""
    size = path.stat().st_size
    first, last = (int(size * part) for part in share)
    patch(path, first, random.Random(seed).randbytes(last - first))


def crash_on_three(number: int) -> int:
    """The square, but 3 takes its process down."""
    if number == 3:
        os._exit(11)
    return number * number


def spin_on_three(number: int) -> int:
    """The square, but 3 computes for ever and never asks whether its time is up."""
    while number == 3:
        pass
    return number * number


def crawl(path: Path, frames: int = 1400) -> None:
    """A small Matroska file whose every frame is large and takes long to decode: one intra picture, many times."""
    side = 2048
    with av.open(str(path), "w", format="matroska") as out:
        video = out.add_stream("libx264", rate=25, options={"preset": "ultrafast", "tune": "zerolatency"})
        video.width, video.height, video.pix_fmt = side, side, "yuv420p"
        audio = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        picture = av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8), format="rgb24")
        (content,) = [bytes(packet) for packet in video.encode(picture.reformat(format="yuv420p"))]
        for number in range(frames):
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.is_keyframe = video, Fraction(1, 25), True
            packet.pts = packet.dts = number
            out.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.full((1, frames * 320), 9, np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
        out.mux(audio.encode(frame))


def report_crash(number: int) -> str:
    return f"crashed on {number}"


# ------------------------------------------------------------------------------------------------------------ the cases


@dataclass(frozen=True)
class Case:
    """One awkward file.

    ``gives`` is `taken`, `ignored` or the reason of the refusal; ``event`` whether flash and beep are in it; ``note``
    must occur in its notes (taken) or detail (refused); ``clock_s`` is how exactly the container can say when it beeps.
    """

    name: str
    file: str
    make: Callable[[Path], float | None]
    gives: str = "taken"
    event: bool = True
    note: str = ""
    clock_s: float = 0.002


def media(**settings: object) -> Callable[[Path], float | None]:
    return lambda path: write_media(path, **settings)


def then(make: Callable[[Path], float | None], damage: Callable[[Path], None]) -> Callable[[Path], float | None]:
    def both(path: Path) -> float | None:
        moment = make(path)
        damage(path)
        return moment

    return both


def _irregular() -> list[float]:
    """Frame times 8 to 90 ms apart, in whole milliseconds, one of them at the event."""
    draw = random.Random(5)
    times = [0.0]
    while times[-1] < SECONDS - 0.1:
        times.append(round(times[-1] + draw.randint(8, 90) / 1000, 3))
    return sorted({*times, EVENT_S})


def _two_sizes(path: Path) -> float:
    """Motion JPEG whose pictures are 64x48 for a second and 48x64 from then on."""
    with av.open(str(path), "w", format="avi") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        other = av.CodecContext.create("mjpeg", "w")
        other.width, other.height, other.pix_fmt, other.time_base = 48, 64, "yuvj420p", Fraction(1, 25)
        audio = out.add_stream("pcm_s16le", rate=44100, layout="mono")
        for number in range(60):
            array = picture(number / 25, EVENT_S, *((64, 48) if number < 25 else (48, 64)))
            frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            for packet in (stream if number < 25 else other).encode(frame):
                packet.stream = stream
                out.mux(packet)
        out.mux(stream.encode(None))
        wave = (sound(np.arange(2.4 * 44100) / 44100, EVENT_S) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
        out.mux(audio.encode(frame))
        out.mux(audio.encode(None))
    return EVENT_S


def _images(path: Path) -> None:
    path.mkdir()
    for number in range(3):
        with av.open(str(path / f"{number:03d}.png"), "w", format="image2") as out:
            stream = out.add_stream("png", rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number / 10, 9, 64, 48), format="rgb24")))
            out.mux(stream.encode(None))


def _playlist(path: Path) -> None:
    target = path.with_name("in a playlist.ts")
    write_media(target, container="mpegts", fps=30)  # not the same bytes as recording.ts
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\n{target.name}\n#EXT-X-ENDLIST\n")
    target.rename(path.with_name("listed.ts_kept_elsewhere"))


def _link_loop(path: Path) -> None:
    path.mkdir()
    (path / "again").symlink_to(path, target_is_directory=True)


def _link_out(path: Path) -> None:
    outside = path.parent.parent / "outside.mp4"
    if not outside.exists():
        write_media(outside)
    path.symlink_to(outside)


MKV = {"container": "matroska", "acodec": "flac", "time_base": Fraction(1, 1000)}
LOSSLESS = {"container": "matroska", "vcodec": "ffv1", "acodec": "flac"}
FASTSTART = {"container": "mp4", "options": {"movflags": "+faststart"}, "fps": 25}

CASES = [
    Case("plain mp4", "plain.mp4", media()),
    Case("audio 0.5 s late", "late.mp4", media(audio_start_s=0.5)),
    Case("audio 0.03 s late", "slightly late.mp4", media(audio_start_s=0.03)),
    Case("audio 0.3 s early", "early.mkv", media(video_start_s=0.3, seconds=2.7, **MKV)),
    Case(
        "both start at 5 s",
        "start5.mkv",
        media(video_start_s=5.0, audio_start_s=5.0, seconds=7.4, times_s=[k / 25 for k in range(60)], **MKV),
    ),
    Case(
        "negative timestamps",
        "negative.ts",
        media(
            container="mpegts",
            video_start_s=-0.4,
            audio_start_s=-0.4,
            times_s=[k / 25 for k in range(60)],
            seconds=2.0,
            options={"avoid_negative_ts": "disabled", "mpegts_copyts": "1"},
        ),
    ),
    Case("B-frames and encoder delay in edit lists", "edits.mp4", media(fps=30, video_options={"bf": "3"})),
    Case("variable frame rate", "vfr.mkv", media(times_s=_irregular(), **MKV)),
    Case("29.97 fps", "ntsc.mp4", media(fps=Fraction(30000, 1001), times_s=[k * 1001 / 30000 for k in range(72)])),
    Case(
        "23.976 fps AVI",
        "film.avi",
        media(
            container="avi",
            vcodec="mpeg4",
            acodec="pcm_s16le",
            fps=Fraction(24000, 1001),
            times_s=[k * 1001 / 24000 for k in range(58)],
        ),
    ),
    Case(
        "AVI with B-frames (a frame of sound offset is lost in AVI)",
        "bframes.avi",
        media(container="avi", vcodec="mpeg4", acodec="pcm_s16le", video_options={"bf": "2"}),
        clock_s=0.042,
    ),
    Case("240 fps", "fast.mp4", media(fps=240)),
    Case("5 fps", "slow.mp4", media(fps=5)),
    Case("44.1 kHz stereo, sound on the left only", "stereo.mp4", media(layout="stereo", loud_channels=[0])),
    Case("5.1 sound, centre only", "surround.mkv", media(layout="5.1", loud_channels=[2], rate=48000, **MKV)),
    Case("7.1 sound", "cinema.mp4", media(layout="7.1", rate=48000)),
    Case("8 kHz mono", "telephone.mov", media(acodec="pcm_s16le", rate=8000)),
    Case("96 kHz, 24 bit", "hires.mkv", media(rate=96000, **MKV)),
    Case(
        "sound 90 s late",
        "lost.mkv",
        media(audio_start_s=90.0, seconds=92.0, times_s=[k / 25 for k in range(60)], **MKV),
        "unsupported",
        event=False,
        note="starts 90 s after",
    ),
    Case("gap in the sound", "gap.mkv", media(audio_gap=(0.4, 0.8), **MKV), note="timestamps jump"),
    Case("MPEG transport stream", "recording.ts", media(container="mpegts")),
    Case(
        "WebM, VP9 and Opus",
        "web.webm",
        media(
            container="webm",
            vcodec="libvpx-vp9",
            acodec="libopus",
            rate=48000,
            time_base=Fraction(1, 1000),
            video_options={"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"},
        ),
    ),
    Case("FLV", "old.flv", media(container="flv", vcodec="flv1", acodec="libmp3lame", time_base=Fraction(1, 1000))),
    Case("rotated by 90 degrees", "turned.mp4", then(media(), lambda path: turn(path, (0, 1, -1, 0)))),
    Case("mirrored", "mirrored.mp4", then(media(), lambda path: turn(path, (-1, 0, 0, 1)))),
    Case("turned by 45 degrees", "skew.mp4", then(media(), lambda path: turn(path, (1, 1, -1, 1))), "unsupported"),
    Case("odd sides, 65x33", "odd.mkv", media(size=(65, 33), **LOSSLESS)),
    Case("1x1 pixel", "dot.mkv", media(size=(1, 1), **LOSSLESS)),
    Case("2000x2 pixels", "line.mkv", media(size=(2000, 2), **LOSSLESS), "unsupported"),
    Case("oblong pixels", "anamorphic.mp4", media(aspect=Fraction(2, 1), size=(32, 48))),
    Case("10-bit 4:2:2", "deep.mkv", media(pix_fmt="yuv422p10le", **LOSSLESS)),
    Case("palette-free grey", "grey.mkv", media(pix_fmt="gray", **LOSSLESS)),
    Case("RGB with alpha", "alpha.mov", media(vcodec="png", pix_fmt="rgba", acodec="pcm_s16le")),
    Case("size changes on the way", "resized.avi", _two_sizes),
    Case("one frame", "one.mp4", media(times_s=[0.0]), "too short", False),
    Case("shorter than a clip", "short.mp4", media(seconds=0.5, event_s=0.4), "too short", False),
    Case("no audio", "mute.mp4", media(acodec=None), "no audio", False),
    Case("silent audio", "silent.mp4", media(volume=0.0), "silent", False),
    Case("audio only", "radio.mp4", media(vcodec=None), "no video", False),
    Case("static picture", "still.mp4", media(still=True), "static", False),
    Case(
        "cut at 10 %, index in front",
        "cut10.mp4",
        then(media(**FASTSTART), lambda path: truncate(path, 0.1)),
        "unreadable",
        False,
    ),
    Case(
        "cut at 50 %, index in front",
        "cut50.mp4",
        then(media(**FASTSTART), lambda path: truncate(path, 0.5)),
        event=False,
        note="damaged",
    ),
    Case(
        "cut at 90 %, index in front",
        "cut90.mp4",
        then(media(**FASTSTART), lambda path: truncate(path, 0.9)),
        note="damaged",
    ),
    Case(
        "cut at 90 %, index at the end",
        "headless.mp4",
        then(media(), lambda path: truncate(path, 0.9)),
        "unreadable",
        False,
    ),
    Case("cut at 60 %, Matroska", "cut60.mkv", then(media(**MKV), lambda path: truncate(path, 0.6)), note="declares"),
    Case(
        "damaged in the middle",
        "noise.mp4",
        then(media(**FASTSTART), lambda path: scramble(path, (0.7, 0.75))),
        note="damaged",
    ),
    Case("zero bytes", "empty.mp4", lambda path: path.touch(), "unreadable", False, "0 bytes"),
    Case(
        "text named .mp4", "text.mp4", lambda path: path.write_text("not a video\n" * 100) and None, "unreadable", False
    ),
    Case(
        "noise named .mp4",
        "random.mp4",
        lambda path: path.write_bytes(random.Random(1).randbytes(20000)) and None,
        "unreadable",
        False,
    ),
    Case("playlist named .mp4", "playlist.mp4", _playlist, "unreadable", False),
    Case("Matroska named .avi", "wrong.avi", media(**MKV)),
    Case("mp4 without a suffix", "nosuffix", media(container="mp4", fps=20)),
    Case("spaces, Unicode, %03d and a colon in the name", "file: é 日本 %03d [x].mp4", media(container="mp4", fps=50)),
    Case("duration of weeks declared", "weeks.mkv", then(media(**MKV), declare_huge), note="declares"),
    Case("index points beyond the end", "index.mp4", then(media(), break_index), "unreadable", False),
    Case(
        "same content twice",
        "same again.mp4",
        lambda path: shutil.copy(path.with_name("plain.mp4"), path) and None,
        "duplicate",
        False,
    ),
    Case("image sequence", "frames", _images, "ignored", False),
    Case(
        "animated GIF",
        "loop.gif",
        media(container="gif", vcodec="gif", pix_fmt="rgb8", acodec=None, fps=10),
        "no audio",
        False,
    ),
    Case("link loop", "loop", _link_loop, "ignored", False, "link"),
    Case("link out of the folder", "link.mp4", _link_out, "passed over", False, "link"),
    Case("named pipe", "pipe.mp4", lambda path: os.mkfifo(path), "passed over", False),
]
