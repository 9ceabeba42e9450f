"""Laws of the media layer, on awkward files that the tests make themselves (`media_files.py`)."""

import os
import random
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import torch

from mgct.data import inspect as inspection
from mgct.data.media import (
    AAC_RATES_HZ,
    AudioReader,
    MediaError,
    VideoReader,
    WindowReader,
    aac_rate_hz,
    find_files,
    for_each_file,
    probe,
    read_clip,
    resample,
    to_square,
    write_mp4,
)
from mgct.data.numbered import open_clips
from mgct.data.prepare import prepare
from mgct.data.report import FileReport
from mgct.errors import UserError
from mgct.types import AVSample, ClipSpec
from tests.media_files import CASES, Case, crash_on_three, crawl, report_crash, spin_on_three, write_media

CLIP = ClipSpec(frames=8, fps=10, size=32, sample_rate_hz=16000)
DOCS = Path(__file__).parent.parent / "docs" / "datasets.md"


@dataclass
class Prepared:
    """The awkward files after ``prepare`` with a window at every frame."""

    source: Path
    events: dict[str, float | None]
    reports: dict[str, FileReport]
    windows: dict[str, dict[float, AVSample]]


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    source = tmp_path_factory.mktemp("awkward") / "videos"
    source.mkdir()
    events = {case.file: case.make(source / case.file) for case in CASES}
    out = source.parent / "out"
    report = prepare(source, out, CLIP, stride_s=0.1, test_fraction=0, workers=0, progress=False)
    reports = {file.path: file for file in report.files}
    starts = {}
    for file in reports.values():
        if file.windows:
            with WindowReader(source / file.path, CLIP, stride_frames=1) as reader:
                starts[file.sha256[:16]] = reader.first_s
    windows: dict[str, dict[float, AVSample]] = {sha: {} for sha in starts}
    stored = open_clips(str(out), CLIP, "train", seed=0)
    for index in range(len(stored)):
        batch = stored.batch([index], [0], [0], [False])
        sha, number = batch.keys[0].split("_")
        windows[sha][starts[sha] + int(number) / CLIP.fps] = batch.clips.map(lambda value: value[0])
    return Prepared(source, events, reports, windows)


def flash_frame(clip: AVSample) -> int | None:
    """The first frame that is white in the middle and follows one that is not."""
    white = clip.video[:, :, 12:20, 12:20].float().mean((1, 2, 3)) > 230
    changes = torch.nonzero(white[1:] & ~white[:-1]).flatten()
    return int(changes[0]) + 1 if len(changes) else None


def beep_sample(clip: AVSample) -> int | None:
    """The first sample of the loud part."""
    loud = clip.audio[0].abs().float()
    return int(torch.nonzero(loud > 0.5 * loud.max())[0]) if loud.max() > 0.08 * 32768 else None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_awkward_file_gives_what_the_table_says(awkward: Prepared, case: Case):
    reports = [r for path, r in awkward.reports.items() if path == case.file or path.startswith(case.file + "/")]
    assert reports
    for report in reports:
        assert case.gives in (report.status, report.reason)
        assert case.note in "; ".join([report.detail, *report.notes])
        assert (report.windows > 0) == (report.status == "taken")


@pytest.mark.parametrize("case", [case for case in CASES if case.gives == "taken"], ids=lambda case: case.name)
def test_beep_stays_with_the_flash(awkward: Prepared, case: Case):
    """Within a frame of the flash, and within 2 ms of its time on the video's clock where the container can say so."""
    event_s = awkward.events[case.file]
    seen = 0
    for start_s, clip in awkward.windows[awkward.reports[case.file].sha256[:16]].items():
        flash, beep = flash_frame(clip), beep_sample(clip)
        if flash is None or beep is None:
            continue
        seen += 1
        beep_s = beep / CLIP.sample_rate_hz
        assert abs(beep_s - flash / CLIP.fps) < 1 / CLIP.fps
        assert abs(start_s + beep_s - event_s) < case.clock_s
    assert (seen > 0) == case.event


def test_the_table_in_the_documentation_is_this_one():
    rows = re.findall(r"^\| (.+?) \| `(.+?)` \|", DOCS.read_text(), flags=re.MULTILINE)
    assert [(case.name, case.gives) for case in CASES] == rows


def test_no_file_is_missing_from_the_report(awkward: Prepared):
    found = {str(path.relative_to(awkward.source)) for path in awkward.source.rglob("*") if not path.is_dir()}
    assert found <= set(awkward.reports)


# ------------------------------------------------------------------------------------------------------------- reading


def test_read_clip_is_the_window_that_prepare_stores(awkward: Prepared):
    for name in ("ntsc.mp4", "late.mp4", "vfr.mkv"):
        for start_s, clip in awkward.windows[awkward.reports[name].sha256[:16]].items():
            again = read_clip(awkward.source / name, CLIP, start_s)
            assert torch.equal(again.video, clip.video)
            assert torch.equal(again.audio, clip.audio)


@pytest.mark.parametrize("clip", [CLIP, ClipSpec(16, 7.5, 16, 2560), ClipSpec(30, 29.97, 20, 22050)])
def test_read_clip_has_the_exact_lengths(awkward: Prepared, clip: ClipSpec):
    sample = read_clip(awkward.source / "ntsc.mp4", clip)
    assert sample.video.shape == clip.video_shape
    assert sample.audio.shape == clip.audio_shape
    assert (sample.video.dtype, sample.audio.dtype) == (torch.uint8, torch.int16)


def test_output_frame_is_what_is_shown_in_the_middle_of_its_time(tmp_path):
    times = [0.0, 0.05, 0.26, 0.3, 0.31, 0.72, 0.8]
    path = tmp_path / "steps.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "gray"
        for number, time_s in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32), 30 * number, np.uint8), format="gray")
            frame.pts, frame.time_base = round(time_s * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with VideoReader(path, fps=20, size=32) as reader:
        levels = reader.read(100)[:, 0, 0, 0] // 30
    expected = [max(k for k, t in enumerate(times) if t <= (n + 0.5) / 20 + 1e-3) for n in range(16)]
    assert levels.tolist()[:16] == expected


def test_asking_beyond_the_end_is_refused_with_figures(awkward: Prepared):
    with pytest.raises(MediaError, match=r"too short: a clip lasts 0\.8 s; from 2 s on there are 0\.40 s of video"):
        read_clip(awkward.source / "plain.mp4", CLIP, 2.0)


def test_stereo_is_mixed_by_the_mean(awkward: Prepared):
    both = read_clip(awkward.source / "plain.mp4", CLIP, 0.8).audio.float()
    left = read_clip(awkward.source / "stereo.mp4", CLIP, 0.8).audio.float()
    assert float(left.abs().max() / both.abs().max()) == pytest.approx(0.5, abs=0.03)
    centre = read_clip(awkward.source / "surround.mkv", CLIP, 0.8).audio.float()
    assert float(centre.abs().max() / both.abs().max()) == pytest.approx(1 / 6, abs=0.02)


@pytest.mark.parametrize(("source_hz", "target_hz"), [(44100, 16000), (8000, 48000), (16000, 2560), (16000, 16000)])
def test_resampling_keeps_every_tone_in_phase(source_hz, target_hz):
    tone = lambda rate: np.cos(2 * np.pi * 300 * np.arange(rate) / rate + 0.4).astype(np.float32)  # noqa: E731
    out, expected = resample(tone(source_hz), source_hz, target_hz), tone(target_hz)
    assert abs(out.shape[0] - target_hz) <= 1
    middle = slice(target_hz // 10, -target_hz // 10)
    np.testing.assert_allclose(out[:target_hz][middle], expected[: out.shape[0]][middle], atol=2e-3)


def test_sound_is_placed_by_its_timestamps(awkward: Prepared):
    with VideoReader(awkward.source / "late.mp4", fps=10, size=8) as video:
        origin_s = video.origin_s
    with AudioReader(awkward.source / "late.mp4", sample_rate_hz=16000, origin_s=origin_s) as audio:
        assert audio.begin_s == pytest.approx(0.5 - 1024 / 44100, abs=1e-3)
        assert not audio.read(7600).any()
        assert audio.read(1000).any()


def corner(picture: torch.Tensor) -> str:
    """Where the red corner is, in a (3, H, W) picture."""
    red = (picture[0].float() - picture[1].float()) > 60
    y, x = (torch.nonzero(red).float().mean(0) / picture.shape[-1]).tolist()
    return ("top" if y < 0.5 else "bottom") + (" left" if x < 0.5 else " right")


@pytest.mark.parametrize(
    ("name", "where"),
    [("plain.mp4", "top left"), ("turned.mp4", "top right"), ("mirrored.mp4", "top right"), ("odd.mkv", "top left")],
)
def test_pictures_are_turned_as_they_are_displayed(awkward: Prepared, name: str, where: str):
    assert corner(read_clip(awkward.source / name, CLIP, fit="letterbox").video[0]) == where


def test_letterbox_keeps_everything_and_crop_fills_the_square(awkward: Prepared):
    clip = ClipSpec(8, 10, 64, 16000)
    boxed = read_clip(awkward.source / "plain.mp4", clip, fit="letterbox").video[0]
    cropped = read_clip(awkward.source / "plain.mp4", clip, fit="crop").video[0]
    assert not boxed[:, :8].any()
    assert not boxed[:, -8:].any()
    assert boxed[:, 8:56].float().mean() > 30
    assert (cropped.amax(0) > 10).all()
    oblong = read_clip(awkward.source / "anamorphic.mp4", clip, fit="letterbox").video[0]
    assert not oblong[:, :8].any()
    assert (oblong[:, 8:56].float().mean((0, 1)) > 10).all()


def test_reduction_is_antialiased():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    image[:256] = np.where(np.indices((256, 512)).sum(0)[..., None] % 2, 255, 0)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    ours = torch.from_numpy(to_square(frame, 32, "crop")).double()
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    theirs = torch.nn.functional.interpolate(planes, (32, 32), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    error = (ours - theirs.clamp(0, 255)).square().mean().sqrt()
    assert error < 1.5


def test_colour_matrix_of_the_file_is_used(tmp_path):
    """The same picture, coded with either matrix and said so, comes out the same."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :16], image[:, 16:] = (30, 160, 60), (180, 40, 90)
    for space, code in (("ITU601", 6), ("ITU709", 1)):
        path = tmp_path / f"{space}.mkv"
        with av.open(str(path), "w") as out:
            stream = out.add_stream("libx264", rate=10, options={"crf": "1"})
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv444p"
            stream.codec_context.colorspace = code
            for number in range(3):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame = frame.reformat(format="yuv444p", dst_colorspace=space)
                frame.pts = number
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        with VideoReader(path, fps=10, size=32) as reader:
            assert np.abs(reader.read(1)[0].astype(int) - image).max() <= 6


def test_find_files_follows_no_link(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    for name in ("in/b.mp4", "in/deep/a.mp4", "in/.hidden.mp4", "out/c.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "c.mp4").symlink_to(tmp_path / "out" / "c.mp4")
    files, passed = find_files(tmp_path / "in")
    assert files == [Path("b.mp4"), Path("deep/a.mp4")]
    assert set(map(str, passed)) == {".hidden.mp4", "away", "c.mp4", "loop"}
    with pytest.raises(UserError, match="is not a folder"):
        find_files(tmp_path / "nowhere")


def test_reading_starts_no_threads(awkward: Prepared):
    """Parallelism is over files; and what starts no thread cannot wait for one."""
    before = psutil.Process().num_threads()
    with WindowReader(awkward.source / "plain.mp4", CLIP, stride_frames=1) as reader:
        assert next(iter(reader)).audio.any()
        assert psutil.Process().num_threads() == before


def test_a_file_that_crashes_its_process_harms_no_other():
    results = for_each_file(crash_on_three, [2, 3, 4], on_crash=report_crash, workers=1, progress=False)
    assert results == [4, "crashed on 3", 16]


def test_a_file_that_hangs_its_process_is_given_up():
    """Without a word from the decoder the process is ended some seconds after the limit; the others are not harmed."""
    results = for_each_file(spin_on_three, [2, 3, 4], on_crash=report_crash, limit_s=0.2, workers=1, progress=False)
    assert results == [4, "crashed on 3", 16]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_decodes_at_a_crawl_is_refused_as_too_slow(tmp_path, workers):
    """After the limit of processor time, not when it is done; the file beside it is taken."""
    source = tmp_path / "videos"
    source.mkdir()
    write_media(source / "plain.mp4")
    crawl(source / "crawl.mkv")
    assert (source / "crawl.mkv").stat().st_size < 20_000_000
    settings = {"file_limit_s": 0.7, "test_fraction": 0, "progress": False}
    report = prepare(source, tmp_path / "out", CLIP, **settings, workers=workers)
    found = {file.path: (file.status, file.reason) for file in report.files}
    assert found == {"crawl.mkv": ("refused", "too slow"), "plain.mp4": ("taken", "")}
    facts = {entry.path: entry for entry in inspection.inspect_folder(source, file_limit_s=0.7, workers=workers)}
    assert any("too slow" in problem for problem in facts["crawl.mkv"].problems)
    assert not facts["plain.mp4"].problems
    with pytest.raises(UserError, match="file_limit_s must be above 0"):
        prepare(source, tmp_path / "out", CLIP, file_limit_s=0)


@pytest.mark.parametrize("name", ["cut90.mp4", "early.mkv", "recording.ts", "bframes.avi", "old.flv"])
def test_damage_of_any_kind_gives_windows_or_a_reason(awkward: Prepared, tmp_path, name):
    """Random bytes at random places: never another exception, and never more than the file can hold."""
    whole, draw, path = (awkward.source / name).read_bytes(), random.Random(name), tmp_path / name
    outcomes = set()
    for _ in range(15):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 3, 20])):
            at, length = draw.randrange(len(data)), draw.choice([1, 16, 256])
            data[at : at + length] = draw.randbytes(len(data[at : at + length]))
        path.write_bytes(data)
        try:
            with WindowReader(path, CLIP, stride_frames=8) as reader:
                windows = list(reader)
            outcomes.add("taken")
            assert len(windows) <= 4
            assert all(window.video.shape == CLIP.video_shape for window in windows)
            assert all(window.audio.shape == CLIP.audio_shape for window in windows)
        except MediaError as error:
            outcomes.add(error.reason)
        probe(path)
    assert "taken" in outcomes


# ------------------------------------------------------------------------------------------------------------- writing


def some_clip(clip: ClipSpec, height: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    coarse = torch.rand(clip.frames, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    size = (height or clip.size, clip.size)
    video = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)
    seconds = torch.arange(clip.audio_samples) / clip.sample_rate_hz
    audio = (torch.sin(2 * torch.pi * 300 * seconds) * 12000).to(torch.int16)[None]
    return video, audio


@pytest.mark.parametrize(
    "clip",
    [
        ClipSpec(16, 10, 64, 16000),
        ClipSpec(8, 10, 16, 2560),
        ClipSpec(10, 29.97, 33, 44100),
        ClipSpec(1, 5, 2, 48000),
        ClipSpec(4, 24, 1, 96000),
    ],
    ids=str,
)
def test_write_mp4_has_both_streams_of_the_exact_duration(tmp_path, clip):
    path = tmp_path / "clip.mp4"
    video, audio = some_clip(clip)
    write_mp4(path, video, audio, fps=clip.fps, sample_rate_hz=clip.sample_rate_hz)
    with av.open(str(path)) as container:
        streams = {stream.type: stream for stream in container.streams}
        assert streams["video"].codec_context.name == "h264"
        assert streams["audio"].codec_context.name == "aac"
        assert streams["audio"].codec_context.sample_rate == aac_rate_hz(clip.sample_rate_hz)
        for stream in streams.values():
            assert stream.start_time == 0
            assert float(stream.duration * stream.time_base) == pytest.approx(clip.seconds, abs=1e-4)
        frames = list(container.decode(video=0))
        assert len(frames) == clip.frames
        assert (frames[0].width, frames[0].height) == (clip.size + clip.size % 2,) * 2
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_written_is_read_back(tmp_path):
    clip = ClipSpec(16, 10, 64, 16000)
    video, audio = some_clip(clip)
    write_mp4(tmp_path / "clip.mp4", video, audio, fps=clip.fps, sample_rate_hz=clip.sample_rate_hz)
    again = read_clip(tmp_path / "clip.mp4", clip)
    assert (again.video.float() - video.float()).abs().mean() < 2.5
    assert (again.video.float() - video.float()).mean((0, 2, 3)).abs().max() < 1
    noise = (again.audio - audio).float().square().mean()
    assert 10 * torch.log10(audio.float().square().mean() / noise) > 30


def test_stereo_can_be_written(tmp_path):
    clip = ClipSpec(8, 10, 32, 16000)
    video, audio = some_clip(clip)
    write_mp4(tmp_path / "clip.mp4", video, audio.expand(2, -1) // 2, fps=10, sample_rate_hz=16000)
    assert probe(tmp_path / "clip.mp4").audio_channels == 2


def test_write_mp4_refuses_what_does_not_fit_together(tmp_path):
    video, audio = some_clip(CLIP)
    with pytest.raises(ValueError, match=r"8 frames at 10\.0 fps last 12800 samples"):
        write_mp4(tmp_path / "x.mp4", video, audio[:, :-5], fps=10.0, sample_rate_hz=16000)
    with pytest.raises(ValueError, match="uint8"):
        write_mp4(tmp_path / "x.mp4", video.float(), audio, fps=10.0, sample_rate_hz=16000)
    with pytest.raises(ValueError, match="int16"):
        write_mp4(tmp_path / "x.mp4", video, audio.float(), fps=10.0, sample_rate_hz=16000)
    assert not list(tmp_path.iterdir())


def test_write_mp4_leaves_nothing_half_written(tmp_path, monkeypatch):
    video, audio = some_clip(CLIP)
    (tmp_path / "clip.mp4").write_bytes(b"old")
    monkeypatch.setattr("mgct.data.media.mp4._encode", _full_disk)
    with pytest.raises(UserError, match=r"cannot write .*clip\.mp4: No space left"):
        write_mp4(tmp_path / "clip.mp4", video, audio, fps=10.0, sample_rate_hz=16000)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_write_mp4_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    video, audio = some_clip(CLIP)
    with pytest.raises(UserError, match=r"cannot write .*x\.mp4: Not a directory"):
        write_mp4(tmp_path / "file" / "x.mp4", video, audio, fps=10.0, sample_rate_hz=16000)


def _full_disk(path: Path, *_: object) -> None:
    path.write_bytes(b"half")
    raise OSError(28, os.strerror(28))


@pytest.mark.parametrize(("asked_hz", "written_hz"), [(2560, 8000), (8000, 8000), (16001, 22050), (200000, 96000)])
def test_aac_rate_is_the_next_legal_one(asked_hz, written_hz):
    assert aac_rate_hz(asked_hz) == written_hz
    assert written_hz in AAC_RATES_HZ


# ------------------------------------------------------------------------------------------------------------- inspect


@pytest.fixture(scope="module")
def facts(awkward: Prepared):
    found = inspection.inspect_folder(awkward.source, workers=0, progress=False)
    return {entry.path: entry for entry in found}


def test_inspect_names_the_facts(facts):
    plain = facts["plain.mp4"]
    assert (plain.width, plain.height, plain.video_codec, plain.audio_codec) == (64, 48, "h264", "aac")
    assert plain.fps == pytest.approx(25)
    assert plain.video_s == pytest.approx(2.4, abs=1e-3)
    assert plain.audio_rate_hz == 44100
    assert not plain.variable_fps
    assert not plain.problems
    assert facts["ntsc.mp4"].fps == pytest.approx(29.97, abs=0.01)
    assert facts["vfr.mkv"].variable_fps
    assert facts["late.mp4"].offset_s == pytest.approx(0.5 - 1024 / 44100, abs=1e-3)
    assert facts["early.mkv"].offset_s == pytest.approx(-0.3, abs=1e-3)
    assert facts["turned.mp4"].rotation_degrees == 90
    assert facts["surround.mkv"].audio_channels == 6
    assert facts["silent.mp4"].silent_share == 1
    assert facts["weeks.mkv"].declared_s > 1e5


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("late.mp4", r"sound starts 0\.47[67] s after"),
        ("mute.mp4", "no audio"),
        ("radio.mp4", "no video"),
        ("silent.mp4", "silent"),
        ("still.mp4", "static"),
        ("one.mp4", "a single frame"),
        ("empty.mp4", "0 bytes"),
        ("text.mp4", "unreadable"),
        ("cut50.mp4", "damaged"),
        ("cut60.mkv", "declares"),
        ("weeks.mkv", "declares"),
        ("gap.mkv", "audio timestamps jump"),
        ("resized.avi", "size changes"),
        ("link.mp4", "a link"),
        ("skew.mp4", "angle"),
    ],
)
def test_inspect_says_what_is_wrong(facts, name, problem):
    assert any(re.search(problem, found) for found in facts[name].problems)


@pytest.mark.parametrize("fps", [24, 30, Fraction(30000, 1001)])
def test_inspect_tells_the_rate_of_rounded_time_stamps(tmp_path, fps):
    """Matroska's are whole milliseconds: 33, 33, 34."""
    write_media(tmp_path / "a.mkv", fps=fps, seconds=2.0)
    (entry,) = inspection.inspect_folder(tmp_path, workers=0, progress=False)
    assert entry.fps == pytest.approx(float(fps), abs=0.05)
    assert not entry.variable_fps


def test_inspect_measures_loudness(tmp_path):
    """A 997 Hz tone at -20 dB of full scale on one channel measures -23.01 LUFS (ITU-R BS.1770)."""
    write_media(tmp_path / "quiet.mkv", acodec="flac", container="matroska", volume=0.0)
    with av.open(str(tmp_path / "tone.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=48000, layout="mono")
        wave = np.rint(3276.8 * np.sin(2 * np.pi * 997 * np.arange(96000) / 48000)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.sample_rate = 48000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert probe(tmp_path / "tone.wav").loudness_lufs == pytest.approx(-23.01, abs=0.1)
    assert probe(tmp_path / "quiet.mkv").loudness_lufs is None


def test_inspect_prints_every_file_and_counts_what_is_wrong(facts):
    entries = list(facts.values())
    table = inspection.as_table(entries)
    assert all(name in table for name in facts)
    assert re.search(r"\+0\.47[67] s", table)  # by PyAV 18 and 19
    summary = inspection.as_summary(entries)
    assert f"{len(entries)} files" in summary
    assert "x no audio" in summary
    assert '"audio_rate_hz": 44100' in inspection.as_json(entries)


def test_inspect_counts_a_file_once_though_picture_and_sound_are_bad():
    bad = inspection.MediaFacts("a.mp4", problems=("unreadable: picture", "unreadable: sound"))
    other = inspection.MediaFacts("b.mp4", problems=("unreadable: sound", "no audio"))
    assert inspection.as_summary([bad, other]).splitlines()[-2:] == ["  2 x unreadable", "  1 x no audio"]


def test_inspect_refuses_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no media file"):
        inspection.inspect_folder(tmp_path)


@pytest.mark.parametrize("bad", [{"file_limit_s": 0}, {"file_limit_s": -1}, {"workers": -1}], ids=str)
def test_inspect_refuses_impossible_settings(awkward: Prepared, bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        inspection.inspect_folder(awkward.source, progress=False, **bad)


def test_a_rate_that_no_sound_has_is_not_resampled_to(awkward: Prepared):
    with pytest.raises(UserError, match="sample_rate_hz must be at most 768000"):
        read_clip(awkward.source / "plain.mp4", ClipSpec(1, 10, 16, 2**31 - 1))
