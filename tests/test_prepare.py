"""Laws of `prepare`: the same bytes whatever happens on the way, nothing skipped silently, nothing half-written."""

import errno
import io
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from mgct.data import parts
from mgct.data import prepare as preparing
from mgct.data.inspect import as_json, as_table, inspect_folder
from mgct.data.media import WindowReader
from mgct.data.prepare import _split, prepare
from mgct.errors import UserError
from mgct.files import locked
from mgct.types import ClipSpec
from tests.media_files import write_media

CLIP = ClipSpec(frames=8, fps=10, size=16, sample_rate_hz=8000)
FILES = 8

RUN = """
import sys
from pathlib import Path
from mgct.data.prepare import prepare
from mgct.types import ClipSpec
if __name__ == "__main__":
    clip = ClipSpec(frames=8, fps=10, size=16, sample_rate_hz=8000)
    prepare(Path(sys.argv[1]), Path(sys.argv[2]), clip, stride_s=0.2, shard_clips=16, workers=2, progress=False)
"""


def run(source: Path, out: Path, **settings):
    return prepare(
        source, out, CLIP, **{"stride_s": 0.2, "shard_clips": 16, "workers": 0, "progress": False, **settings}
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(FILES):
        (folder / f"part{number % 2}").mkdir(exist_ok=True)
        write_media(folder / f"part{number % 2}" / f"{number}.mp4", event_s=0.8 + number / 10, seconds=2.0 + number / 5)
    write_media(folder / "mute.mp4", acodec=None)
    (folder / "README.txt").write_text("about these videos")
    return folder


@pytest.fixture(scope="module")
def undisturbed(videos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    run(videos, out)
    return out


# -------------------------------------------------------------------------------------------- what is written


def test_every_window_is_stored_once_and_without_loss(videos, undisturbed):
    expected = {}
    report = json.loads((undisturbed / "report.json").read_text())
    for file in report["files"]:
        if file["status"] == "taken":
            with WindowReader(videos / file["path"], CLIP, stride_frames=2) as reader:
                for number, window in enumerate(reader):
                    expected[f"{file['sha256'][:16]}_{number:05d}"] = (window, file["split"])
    seen = {}
    for path in undisturbed.rglob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                if kind.endswith("npy"):
                    array = np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False)
                    np.testing.assert_array_equal(array, getattr(expected[key][0], kind.removesuffix(".npy")))
                    assert (key, kind) not in seen
                    seen[key, kind] = path.parent.name
                    assert path.parent.name == expected[key][1]
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
    assert len(seen) == 2 * len(expected)
    assert len(expected) > 50


def test_index_says_where_every_array_lies(undisturbed):
    index = json.loads((undisturbed / "index.json").read_text())
    for shard in (shard for shards in index["shards"].values() for shard in shards):
        content = (undisturbed / shard["path"]).read_bytes()
        assert len(content) == shard["bytes"]
        assert len(shard["samples"]) <= 16
        for key, audio_at, audio_size, video_at, video_size in shard["samples"]:
            assert content[audio_at - 512 :].startswith(f"{key}.audio.npy".encode())
            assert content[video_at - 512 :].startswith(f"{key}.video.npy".encode())
            for at, size in ((audio_at, audio_size), (video_at, video_size)):
                assert content[at : at + 6] == b"\x93NUMPY"
                assert len(content) >= at + size


def test_webdataset_reads_the_shards(undisturbed):
    import webdataset

    shards = sorted(map(str, (undisturbed / "train").glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    index = json.loads((undisturbed / "index.json").read_text())
    assert [s["__key__"] for s in samples] == [
        key for shard in index["shards"]["train"] for key, *_ in shard["samples"]
    ]
    assert samples[0]["video.npy"].shape == CLIP.video_shape


def test_split_is_by_file_and_nothing_is_skipped_silently(videos, undisturbed):
    report = json.loads((undisturbed / "report.json").read_text())
    files = {file["path"]: file for file in report["files"]}
    assert set(files) == {str(path.relative_to(videos)) for path in videos.rglob("*") if path.is_file()}
    assert (files["mute.mp4"]["status"], files["mute.mp4"]["reason"]) == ("refused", "no audio")
    assert files["README.txt"]["status"] == "ignored"
    assert report["totals"]["files"] == {"taken": FILES, "refused": 1, "ignored": 1}
    assert sorted(file["split"] for file in files.values() if file["split"]) == ["test"] + ["train"] * (FILES - 1)
    keys = {path.parent.name: set() for path in undisturbed.rglob("*.tar")}
    for path in undisturbed.rglob("*.tar"):
        with tarfile.open(path) as tar:
            keys[path.parent.name] |= {name.split("_")[0] for name in tar.getnames()}
    assert not keys["train"] & keys["test"]


# -------------------------------------------------------------------------------------------- always the same bytes


def test_workers_names_and_order_change_nothing(videos, undisturbed, tmp_path):
    run(videos, tmp_path / "again", workers=2)
    assert files_of(tmp_path / "again") == files_of(undisturbed)
    shutil.copytree(videos, tmp_path / "renamed")
    (tmp_path / "renamed" / "part0" / "0.mp4").rename(tmp_path / "renamed" / "zzz.mp4")
    run(tmp_path / "renamed", tmp_path / "out")
    changed = {name for name, content in files_of(tmp_path / "out").items() if content != files_of(undisturbed)[name]}
    assert changed == {"report.json"}


def _start(videos: Path, out: Path, with_workers: bool) -> subprocess.Popen | multiprocessing.Process:
    if with_workers:
        return subprocess.Popen([sys.executable, "-c", RUN, str(videos), str(out)])
    process = multiprocessing.get_context("fork").Process(target=run, args=(videos, out))
    process.start()
    return process


def test_killed_five_times_and_resumed_is_as_if_undisturbed(videos, undisturbed, tmp_path, monkeypatch):
    """SIGKILL at random moments while parts are made, once with worker processes, which then end by themselves."""
    out, draw = tmp_path / "out", random.Random(7)
    make_part = parts.make_part
    # Forked processes pause before each part, so that on a fast machine too some are left for the next kill.
    monkeypatch.setattr(parts, "make_part", lambda job: (time.sleep(0.08), make_part(job)))
    for kill in range(5):
        before = len(list(out.glob(".parts/*/*.json")))
        process = _start(videos, out, with_workers=kill == 0)
        deadline = time.monotonic() + 300
        while len(list(out.glob(".parts/*/*.json"))) == before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0 if kill == 0 else draw.random() * 0.15)
        workers = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait() if isinstance(process, subprocess.Popen) else process.join()
        assert not (out / "index.json").exists()
        assert len(list(out.glob(".parts/*/*.json"))) > before
        assert bool(workers) == (kill == 0)
        assert not psutil.wait_procs(workers, timeout=60)[1]
    monkeypatch.undo()
    run(videos, out)
    assert files_of(out) == files_of(undisturbed)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_killed_while_shards_are_written(videos, undisturbed, tmp_path, monkeypatch, share):
    """Ended at the first, a middle or the last write of a shard or index: the next run completes the same bytes."""
    out, writes = tmp_path / "out", -1
    whole, last = preparing.whole, len(list(undisturbed.rglob("*.tar")))

    class Killed(BaseException):
        pass

    def dying(path):
        nonlocal writes
        writes += path.parent.name in ("train", "test") or path.name == "index.json"
        if writes == round(share * last):
            Path(f"{path}.tmp").write_bytes(b"half")
            raise Killed
        return whole(path)

    for module in (preparing, parts):
        monkeypatch.setattr(module, "whole", dying)
    with pytest.raises(Killed):
        run(videos, out)
    assert not (out / "index.json").exists()
    monkeypatch.undo()
    run(videos, out)
    assert files_of(out) == files_of(undisturbed)


def test_a_finished_run_is_left_alone(videos, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    report = run(videos, out)
    assert report.clips["train"] > 0
    assert files_of(out) == files_of(undisturbed)
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}


# -------------------------------------------------------------------------------------------- what is refused


def test_other_settings_or_files_in_a_finished_folder_are_named(videos, undisturbed, tmp_path):
    with pytest.raises(UserError, match=r"other settings .*stride_frames 2 → 4"):
        run(videos, undisturbed, stride_s=0.4)
    shutil.copytree(videos, tmp_path / "more")
    write_media(tmp_path / "more" / "new.mp4", event_s=1.05, seconds=2.1)
    with pytest.raises(UserError, match="prepared from other files"):
        run(tmp_path / "more", undisturbed)
    with pytest.raises(UserError, match="is not empty and holds no preparation"):
        run(videos, tmp_path)


def test_strict_names_the_first_refused_file(videos, tmp_path):
    with pytest.raises(UserError, match=r"--strict: 1 of 10 files refused or damaged \(mute\.mp4: no audio\)"):
        run(videos, tmp_path / "out", strict=True)
    assert not (tmp_path / "out" / "index.json").exists()
    run(videos, tmp_path / "out")
    assert (tmp_path / "out" / "index.json").is_file()


def test_nothing_usable_is_one_line_with_the_reasons(tmp_path):
    source = tmp_path / "videos"
    source.mkdir()
    write_media(source / "mute.mp4", acodec=None)
    (source / "empty.mp4").touch()
    with pytest.raises(UserError, match=r"can be used \(1 unreadable, 1 no audio\)") as caught:
        run(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "index.json").exists()
    assert not list((tmp_path / "out").glob("*/*.tar"))
    (source / "mute.mp4").unlink()
    (source / "empty.mp4").unlink()
    with pytest.raises(UserError, match="none of them a video"):
        run(source, tmp_path / "out")
    with pytest.raises(UserError, match="is not a folder"):
        run(tmp_path / "nowhere", tmp_path / "out2")


def test_output_inside_the_source_is_refused(videos):
    with pytest.raises(UserError, match="lies inside"):
        run(videos, videos / "out")


@pytest.mark.parametrize(
    "bad",
    [
        {"fit": "stretch"},
        {"test_fraction": 1.5},
        {"shard_clips": 0},
        {"stride_s": 0.01},
        {"stride_s": float("nan")},
        {"stride_s": float("inf")},
        {"workers": -1},
        {"silence_dbfs": 1e9},
        {"static_levels": float("nan")},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(videos, tmp_path, bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        run(videos, tmp_path / "out", **bad)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", [{"sample_rate_hz": 2**31 - 1}, {"sample_rate_hz": 10**11}, {"size": 10**11}], ids=str)
def test_clips_beyond_all_measure_are_refused(videos, tmp_path, bad):
    with pytest.raises(UserError, match=f"clip.{next(iter(bad))} must be at most"):
        prepare(videos, tmp_path / "out", replace(CLIP, **bad), workers=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["", "[", '{"files": []}', '{"files": 3}', "windows", "skipped", "detail"])
def test_a_damaged_report_is_named(videos, undisturbed, tmp_path, damage):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    report = json.loads((out / "report.json").read_text())
    for file in report["files"]:
        file[damage] = [3]
    (out / "report.json").write_text(json.dumps(report) if damage.isalpha() else damage)
    with pytest.raises(UserError, match=r"report\.json is missing or damaged"):
        run(videos, out)
    assert (out / "index.json").is_file()


def test_a_damaged_part_is_named(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "_split", _read_only)
    with pytest.raises(UserError):
        run(videos, tmp_path / "out")
    part = next((tmp_path / "out").glob(".parts/*/*.json"))
    part.write_text("{")
    with pytest.raises(UserError, match=f"{part.name} is damaged: delete it and run this again"):
        run(videos, tmp_path / "out")


def test_disk_full_is_one_line_and_the_next_run_goes_on(videos, undisturbed, tmp_path, monkeypatch):
    """A real limit of the kernel on the size of a file, which fails writes as a full disk does."""
    out = tmp_path / "out"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"no space left for .* it goes on where it stopped"):
            run(videos, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not (out / "index.json").exists()
    assert not list(out.rglob("*.tmp"))
    run(videos, out)
    assert files_of(out) == files_of(undisturbed)


def test_disk_full_in_a_worker_process_is_the_same_line(videos, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(parts, "for_each_file", full)
    with pytest.raises(UserError, match="no space left"):
        run(videos, tmp_path / "out", workers=2)


def test_read_only_output_is_one_line(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", _read_only)
    with pytest.raises(UserError, match=r"cannot be written .*: choose another output folder"):
        run(videos, tmp_path / "out")


def _read_only(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_output_that_is_a_file_is_one_line(videos, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"writing .* failed"):
        run(videos, tmp_path / "out")


def test_two_runs_at_once_are_refused(videos, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", "mgct prepare"), pytest.raises(UserError, match="another mgct prepare is writing"):
        run(videos, tmp_path / "out")


def test_report_is_told_in_a_few_lines(videos, undisturbed):
    summary = run(videos, undisturbed).summary()
    assert f"{FILES} files taken" in summary
    assert "1 refused: 1 no audio" in summary
    assert "1 other files ignored" in summary


def test_file_names_of_any_bytes_are_told_in_one_line(tmp_path):
    """A line break and a byte that is no UTF-8: in the report, in the error's line, and read back by the next run."""
    source, odd = tmp_path / "videos", os.fsdecode(b"line\nbreak \xff.mp4")
    source.mkdir()
    write_media(source / odd)
    write_media(source / os.fsdecode(b"mute\n\xff.mp4"), acodec=None)
    with pytest.raises(UserError, match=r"mute\\n\\udcff\.mp4: no audio") as caught:
        run(source, tmp_path / "out", strict=True)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
    run(source, tmp_path / "out")
    files = json.loads((tmp_path / "out" / "report.json").read_text())["files"]
    assert [file["path"] for file in files] == sorted([odd, os.fsdecode(b"mute\n\xff.mp4")])
    assert run(source, tmp_path / "out").count("taken") == 1
    facts = inspect_folder(source, workers=0, progress=False)
    assert as_table(facts).count("\n") == 3
    assert [entry["path"] for entry in json.loads(as_json(facts).encode())] == [entry.path for entry in facts]


def test_all_files_can_be_for_testing_or_none(videos, tmp_path):
    assert run(videos, tmp_path / "a", test_fraction=1.0).clips["train"] == 0
    assert run(videos, tmp_path / "b", test_fraction=0.0).clips["test"] == 0


def test_thresholds_decide_what_is_silent_and_static(videos, tmp_path):
    with pytest.raises(UserError, match="8 silent"):
        run(videos, tmp_path / "a", silence_dbfs=0.0)
    with pytest.raises(UserError, match="8 static"):
        run(videos, tmp_path / "b", static_levels=256.0)


def test_one_file_is_left_for_either_split():
    for fraction, tests in ((0.01, 1), (0.5, 2), (0.99, 3)):
        assert list(_split(["a", "b", "c", "d"], fraction).values()).count("test") == tests


def test_windows_follow_one_another(tmp_path):
    (tmp_path / "videos").mkdir()
    write_media(tmp_path / "videos" / "a.mp4", seconds=2.0)
    clip = ClipSpec(frames=8, fps=10, size=16, sample_rate_hz=8000)
    report = prepare(tmp_path / "videos", tmp_path / "out", clip, workers=0, progress=False, test_fraction=0)
    assert report.clips["train"] == 2


def test_of_equal_files_the_first_by_name_is_taken(tmp_path):
    (tmp_path / "videos").mkdir()
    write_media(tmp_path / "videos" / "b.mp4", seconds=2.0)
    (tmp_path / "videos" / "a.mp4").write_bytes((tmp_path / "videos" / "b.mp4").read_bytes())
    run(tmp_path / "videos", tmp_path / "out")
    files = json.loads((tmp_path / "out" / "report.json").read_text())["files"]
    assert [(file["path"], file["status"], file["reason"]) for file in files] == [
        ("a.mp4", "taken", ""),
        ("b.mp4", "refused", "duplicate"),
    ]


def test_the_clips_of_a_file_are_spread_over_a_shard(videos, tmp_path):
    run(videos, tmp_path / "out", shard_clips=512)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    files = [key.split("_")[0] for key, *_ in index["shards"]["train"][0]["samples"]]
    assert sum(a != b for a, b in itertools.pairwise(files)) > len(files) / 2
