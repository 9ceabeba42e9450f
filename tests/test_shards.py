"""Laws of the loaders: what stands at a position never depends on how it is read, and an epoch has each sample once."""

import functools
import http.server
import io
import itertools
import json
import shutil
import tarfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mgct.data.batches import ClipBatch, stack
from mgct.data.media import Window
from mgct.data.numbered import ENDLESS, open_clips
from mgct.data.parts import tar_block
from mgct.data.shards import _Batches, _DrawnAhead, _permutation, _Positioned, make_loader
from mgct.data.streams import decode_sample, expand_urls, stream_samples
from mgct.errors import UserError
from mgct.types import ClipSpec

STORED = ClipSpec(frames=6, fps=10, size=8, sample_rate_hz=1000)
COUNT, SHARDS = 22, 4


def stored_clip(number: int) -> Window:
    """Clip ``number``: its frame f and its samples of that frame's time say so; the left half is darker."""
    video = np.full((STORED.frames, 3, 8, 8), 0, np.uint8)
    video += np.arange(STORED.frames, dtype=np.uint8)[:, None, None, None] * 10 + number
    video[..., 4:] += 100
    samples = np.arange(STORED.audio_samples) // 100
    return Window(0.0, video, (samples * 100 + number).astype(np.int16)[None])


def write_shards(folder: Path) -> None:
    """A prepared folder, written by the functions that `prepare` uses."""
    entries = []
    (folder / "train").mkdir(parents=True)
    for shard, numbers in enumerate(np.array_split(np.arange(COUNT), SHARDS)):
        path, samples, at = folder / "train" / f"{shard:06d}.tar", [], 0
        with path.open("wb") as out:
            for number in numbers:
                facts = {"fps": STORED.fps, "sample_rate_hz": STORED.sample_rate_hz}
                content, block = tar_block(f"clip_{number:05d}", stored_clip(int(number)), facts, at)
                out.write(content)
                samples.append([block.key, at + block.audio[0], block.audio[1], at + block.video[0], block.video[1]])
                at += block.length
            out.write(bytes(1024))
        entries.append({"path": f"train/{path.name}", "bytes": at + 1024, "samples": samples})
    clip = {"frames": 6, "fps": 10, "size": 8, "sample_rate_hz": 1000}
    index = {"settings": {"clip": clip}, "sources": "", "shards": {"train": entries, "test": []}}
    (folder / "index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "out"
    write_shards(folder)
    return folder


@pytest.fixture(scope="module")
def served(prepared) -> str:
    """The shards behind a web server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=prepared / "train"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def take(count: int, source: str | Path, clip: ClipSpec = STORED, **settings) -> list[ClipBatch]:
    return list(itertools.islice(make_loader(str(source), clip, **{"batch_size": 4, "seed": 5, **settings}), count))


def keys(batches: list[ClipBatch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def assert_same(a: ClipBatch, b: ClipBatch) -> None:
    assert a.keys == b.keys
    assert torch.equal(a.positions, b.positions)
    assert torch.equal(a.clips.video, b.clips.video)
    assert torch.equal(a.clips.audio, b.clips.audio)


def join(parts: list[ClipBatch]) -> ClipBatch:
    clips = parts[0].clips.map(lambda *values: torch.cat(values), *(part.clips for part in parts[1:]))
    return ClipBatch(clips, keys(parts), torch.cat([part.positions for part in parts]))


# ----------------------------------------------------------------------------------------------- local shards


@pytest.mark.parametrize("pattern", ["", "/train/*.tar", "/train/00000[0-3].tar"])
def test_an_epoch_has_every_clip_once_and_epochs_differ(prepared, pattern):
    drawn = keys(take(2 * COUNT // 2, f"{prepared}{pattern}", batch_size=2))
    first, second = drawn[:COUNT], drawn[COUNT:]
    assert set(first) == set(second) == {f"clip_{number:05d}" for number in range(COUNT)}
    assert first != second
    assert drawn != keys(take(COUNT, prepared, batch_size=2, seed=6))


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0), (2, 2), (4, 1)])
def test_ranks_and_workers_change_nothing(prepared, world_size, num_workers):
    """Two ranks of two workers, and other layouts, see together exactly what one process sees alone."""
    alone = take(7, prepared, batch_size=4)
    ranks = [
        take(7, prepared, batch_size=4 // world_size, rank=rank, world_size=world_size, num_workers=num_workers)
        for rank in range(world_size)
    ]
    for step, expected in enumerate(alone):
        assert_same(join([rank[step] for rank in ranks]), expected)
    epoch = [key for step in range(7) for rank in ranks for key in rank[step].keys][:COUNT]
    assert len(set(epoch)) == COUNT


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_loader_goes_on_where_it_was(prepared, num_workers):
    whole = take(20, prepared)
    for step in (1, 5, 6, 13):
        resumed = take(20 - step, prepared, start_step=step, num_workers=num_workers)
        for a, b in zip(whole[step:], resumed, strict=True):
            assert_same(a, b)


def test_a_glob_of_the_shards_is_the_folder(prepared):
    for a, b in zip(take(9, prepared), take(9, f"{prepared}/train/*.tar"), strict=True):
        assert_same(a, b)


def test_names_in_a_tar_may_have_folders_with_dots(prepared, tmp_path):
    """As `tar -C folder .` makes them."""
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        for path in sorted(prepared.glob("train/*.tar")):
            with tarfile.open(path) as shard:
                for member in shard:
                    content = shard.extractfile(member).read()
                    member.name = f"./v1.0/{member.name}"
                    tar.addfile(member, io.BytesIO(content))
    for a, b in zip(take(9, prepared), take(9, str(tmp_path / "other.tar")), strict=True):
        assert torch.equal(a.clips.video, b.clips.video)
        assert [f"./v1.0/{key}" for key in a.keys] == b.keys


def test_half_a_clip_is_named(prepared, tmp_path):
    with tarfile.open(sorted(prepared.glob("train/*.tar"))[0]) as shard, tarfile.open(tmp_path / "x.tar", "w") as tar:
        missing = next(name for name in shard.getnames() if name.endswith(".npy"))
        for member in shard:
            if member.name != missing:
                tar.addfile(member, io.BytesIO(shard.extractfile(member).read()))
    with pytest.raises(UserError, match=f"has no {missing}; a clip is both"):
        make_loader(str(tmp_path / "x.tar"), STORED, batch_size=1)


def test_half_of_the_clips_are_mirrored_and_by_position(prepared):
    batches = take(100, prepared)
    dark_left = torch.cat([batch.clips.video[:, 0, 0, 0, 0] < batch.clips.video[:, 0, 0, 0, 7] for batch in batches])
    assert 0.42 < dark_left.float().mean() < 0.58
    repeats = [dark_left[np.array(keys(batches)) == key] for key in set(keys(batches))]
    assert all(0 < both.float().mean() < 1 for both in repeats)
    plain = take(20, prepared, flip=False)
    assert all((batch.clips.video[..., 0] < batch.clips.video[..., 7]).all() for batch in plain)


def test_windows_of_longer_clips_are_random_and_cut_together(prepared):
    clip = ClipSpec(frames=3, fps=10, size=8, sample_rate_hz=1000)
    starts = Counter()
    for batch in take(60, prepared, clip, flip=False):
        assert batch.clips.video.shape[1:] == clip.video_shape
        assert batch.clips.audio.shape[1:] == clip.audio_shape
        for key, video, audio in zip(batch.keys, batch.clips.video, batch.clips.audio, strict=True):
            number = int(key.split("_")[1])
            frames = (video[:, 0, 0, 0].int() - number) // 10
            assert frames.tolist() == list(range(int(frames[0]), int(frames[0]) + 3))
            assert torch.equal((audio[0, ::100].int() - number) // 100, frames)
            starts[int(frames[0])] += 1
    assert set(starts) == {0, 1, 2, 3}
    assert min(starts.values()) > 35


def test_stored_clips_are_read_by_their_numbers(prepared):
    clips = open_clips(str(prepared), STORED, "train", seed=0)
    assert len(clips) == COUNT
    assert len(open_clips(f"{prepared}/train/000000.tar", STORED, "train", seed=0)) == 6
    numbers = [COUNT - 1, 3, 3, 0]
    batch = clips.batch(numbers, range(4), [0] * 4, [False] * 4)
    assert batch.keys == [f"clip_{number:05d}" for number in numbers]
    assert batch.positions.tolist() == [0, 1, 2, 3]
    for number, video in zip(numbers, batch.clips.video, strict=True):
        assert torch.equal(video, torch.from_numpy(stored_clip(number).video))


# ----------------------------------------------------------------------------------------------- streams


def sources(prepared: Path, served: str) -> dict[str, str]:
    return {
        "http": served + "/{000000..000003}.tar",
        "pipes": ",".join(f"pipe:cat {prepared}/train/{n:06d}.tar" for n in range(SHARDS)),
        "one pipe": f"pipe:cat {prepared}/train/000000.tar",
    }


@pytest.mark.parametrize(("kind", "count"), [("http", COUNT), ("pipes", COUNT), ("one pipe", 6)])
def test_a_stream_is_read_once_in_order(prepared, served, kind, count):
    samples = list(stream_samples(expand_urls(sources(prepared, served)[kind])))
    assert [sample["__key__"] for sample in samples] == [f"clip_{number:05d}" for number in range(count)]
    video, audio = decode_sample(samples[1], STORED)
    assert np.array_equal(video, stored_clip(1).video)
    assert np.array_equal(audio, stored_clip(1).audio)


@pytest.mark.parametrize("kind", ["http", "pipes"])
def test_a_streams_epoch_over_two_ranks_of_two_workers_has_each_sample_once(prepared, served, kind):
    source = sources(prepared, served)[kind]
    parts = []
    for rank in range(2):
        loader = iter(make_loader(source, STORED, batch_size=1, rank=rank, world_size=2, num_workers=2, seed=1))
        drawn: dict[int, list[str]] = {0: [], 1: []}
        for step, batch in enumerate(itertools.islice(loader, 12)):
            drawn[step % 2] += batch.keys
        parts += drawn.values()
    shards = [{f"clip_{number:05d}" for number in numbers} for numbers in np.array_split(np.arange(COUNT), SHARDS)]
    own = [next(shard for shard in shards if part[0] in shard) for part in parts]
    assert set().union(*own) == set().union(*shards)
    for part, shard in zip(parts, own, strict=True):
        assert set(part[: len(shard)]) == shard


def test_fewer_shards_than_workers_share_their_samples(prepared):
    source = f"pipe:cat {prepared}/train/000000.tar"
    drawn = [
        key for rank in range(2) for key in keys(take(3, source, batch_size=1, rank=rank, world_size=2, num_workers=0))
    ]
    assert sorted(drawn) == [f"clip_{number:05d}" for number in range(6)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_is_resumed_exactly(prepared, num_workers):
    source = sources(prepared, "")["pipes"]
    whole = take(16, source, num_workers=num_workers)
    for step in (1, 4, 11):
        for a, b in zip(whole[step:], take(16 - step, source, num_workers=num_workers, start_step=step), strict=True):
            assert_same(a, b)


def test_a_stream_is_cut_and_mirrored_too(prepared):
    clip = ClipSpec(frames=3, fps=10, size=8, sample_rate_hz=1000)
    batches = take(30, sources(prepared, "")["pipes"], clip)
    video = join(batches).clips.video
    assert video.shape[1:] == clip.video_shape
    assert 0.3 < (video[:, 0, 0, 0, 0] < video[:, 0, 0, 0, 7]).float().mean() < 0.7


def test_a_busy_server_is_asked_again(prepared, monkeypatch):
    """Two answers of 503, then the shard: the same batches."""
    asked = []

    class Busy(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if len(asked) < 3:
                self.send_error(503)
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    monkeypatch.setattr("mgct.data.streams._RETRY_AFTER_S", (0.01, 0.01, 0.01))
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Busy, directory=prepared / "train")
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        samples = list(stream_samples([f"http://127.0.0.1:{server.server_address[1]}/000000.tar"]))
        server.shutdown()
    assert len(samples) == 6
    assert len(asked) == 3


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pipe:cat /nonexistent.tar 2>/dev/null", "the command ends with exit 1"),
        ("pipe:head -c 20000 {train}/000000.tar", "cannot be read as a tar of clips"),
        ("pipe:head -c 5632 {train}/000000.tar", "cannot be read as a tar of clips"),
        ("{served}/nothing.tar", "404"),
    ],
)
def test_a_broken_stream_is_one_line(prepared, served, source, message, num_workers):
    source = source.format(train=prepared / "train", served=served)
    with pytest.raises(UserError, match=message) as caught:
        take(3, source, num_workers=num_workers)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- worlds and videos


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_world_is_drawn_by_position(num_workers):
    clip = ClipSpec(frames=2, fps=10, size=8, sample_rate_hz=2000)
    batches = take(3, "world:landscape", clip, batch_size=2, num_workers=num_workers)
    again = take(1, "world:landscape", clip, batch_size=1, rank=1, world_size=2, start_step=2)[0]
    assert torch.equal(again.clips.video[0], batches[2].clips.video[1])
    assert batches[0].clips.video.dtype == torch.uint8
    assert batches[0].labels.shape == (2,)
    assert len(set(keys(batches))) == 6


def test_a_counted_world_is_one_set_in_any_order_and_its_splits_are_apart():
    clip = ClipSpec(frames=2, fps=10, size=8, sample_rate_hz=2000)
    sets = {}
    for split in ("train", "test"):
        clips = open_clips("world:dance:5", clip, split, seed=7)  # of a counted world the seed changes nothing
        assert len(clips) == 5
        sets[split] = set(clips.batch(range(5), range(5), [0] * 5, [False] * 5).keys)
    assert set(keys(take(5, "world:dance:5", clip, batch_size=1))) == sets["train"]
    assert set(keys(take(5, "world:dance:5", clip, batch_size=1, split="test"))) == sets["test"]
    assert len(sets["train"]) == len(sets["test"]) == 5
    assert not sets["train"] & sets["test"]
    assert len(open_clips("world:dance", clip, "train", seed=0)) == ENDLESS


# ----------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("clip", "named"),
    [
        (ClipSpec(6, 10, 16, 1000), "6 frames at 10 fps, 16x16, 1000 Hz"),
        (ClipSpec(6, 5, 8, 1000), "6 frames at 5 fps, 8x8, 1000 Hz"),
        (ClipSpec(6, 10, 8, 2000), "6 frames at 10 fps, 8x8, 2000 Hz"),
        (ClipSpec(7, 10, 8, 1000), "7 frames at 10 fps, 8x8, 1000 Hz"),
        (ClipSpec(6, 20, 8, 2000), "6 frames at 20 fps, 8x8, 2000 Hz"),  # arrays of the same shapes
    ],
    ids=str,
)
def test_other_clips_than_asked_for_are_named_with_both(prepared, clip, named):
    with pytest.raises(UserError, match=f"6 frames at 10 fps, 8x8, 1000 Hz, but {named}"):
        make_loader(str(prepared), clip, batch_size=1)
    with pytest.raises(UserError, match=f"{named}"):
        take(1, f"pipe:cat {prepared}/train/000000.tar", clip)
    with pytest.raises(UserError, match=f"{named}"):
        make_loader(f"{prepared}/train/*.tar", clip, batch_size=1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{tmp}/nowhere", "does not exist"),
        ("{tmp}/nowhere/*.tar", "does not exist"),
        ("{tmp}/plain", "is not a prepared folder"),
        ("{tmp}/unfinished", "is not finished"),
        ("{tmp}/short", "missing or cut short"),
        ("{tmp}/other", "was not written by mgct prepare"),
        ("{tmp}/text.tar", "cannot be read as an uncompressed tar"),
        ("{tmp}/empty.tar", "no clips in"),
        ("world:moon", "no world is called"),
        ("world:dance:many", "world:NAME:COUNT"),
        ("world:dance:99999999999999999999999", "at most 1099511627776"),
        ("http://127.0.0.1:9/{{x.tar", "braces of 'http://127.0.0.1:9/{x.tar' cannot be expanded"),
        ("pipe:cat {{000..", "cannot be expanded"),
        ("http://[bad/x.tar", "cannot be read as a tar of clips"),
        ("http://127.0.0.1:9/{{1..99999999999}}.tar", "more than 10,000,000 URLs"),
        ("http://127.0.0.1:9/x.tar,file.tar", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_line(prepared, tmp_path, source, message):
    (tmp_path / "plain").mkdir()
    (tmp_path / "unfinished" / ".parts").mkdir(parents=True)
    shutil.copytree(prepared, tmp_path / "short")
    with (tmp_path / "short" / "train" / "000001.tar").open("r+b") as shard:
        shard.truncate(5000)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.json").write_text('{"settings": 3}')
    (tmp_path / "text.tar").write_text("no tar" * 500)
    with tarfile.open(tmp_path / "empty.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("x.txt"), io.BytesIO())
    with pytest.raises(UserError, match=message) as caught:
        take(1, source.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index.pop("sources"),
        lambda index: index["settings"]["clip"].update(frames=6.0),
        lambda index: index["shards"].update(train=3),
        lambda index: index["shards"]["train"][0].pop("samples"),
        lambda index: index["shards"]["train"][0].update(samples="abc"),
        lambda index: index["shards"]["train"][0].update(path="../out/train/000000.tar"),
        lambda index: index["shards"]["train"][0].update(path="/etc/passwd"),
        lambda index: index["shards"]["train"][0]["samples"][0].pop(),
        lambda index: index["shards"]["train"][0]["samples"].append([]),
        *(
            lambda index, place=place, value=value: index["shards"]["train"][1]["samples"][0].__setitem__(place, value)
            for place, value in [(0, 3), (1, "512"), (1, 512.0), (1, -512), (3, 2**40), (2, 2**63 - 1), (4, 10**30)]
        ),
    ],
)
def test_a_damaged_index_is_named(prepared, tmp_path, damage):
    folder = tmp_path / "out"
    shutil.copytree(prepared, folder)
    index = json.loads((folder / "index.json").read_text())
    damage(index)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"out/index\.json was not written by mgct prepare, or is damaged"):
        take(1, folder)


@pytest.mark.parametrize(("place", "value"), [(1, 0), (2, 0), (3, 512), (4, 200)])
def test_an_index_that_points_beside_the_arrays_is_one_line(prepared, tmp_path, place, value):
    folder = tmp_path / "out"
    shutil.copytree(prepared, folder)
    index = json.loads((folder / "index.json").read_text())
    for sample in index["shards"]["train"][0]["samples"]:
        sample[place] = value
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"\.tar \(.+\): a clip's array .*: prepare the videos anew") as caught:
        take(COUNT, folder, num_workers=1)
    assert "\n" not in str(caught.value)


def test_a_damaged_json_in_a_stream_is_one_line(tmp_path):
    content, _ = tar_block("clip", stored_clip(0), {"fps": "ten"}, 0)
    (tmp_path / "x.tar").write_bytes(content + bytes(1024))
    with pytest.raises(UserError, match=r"x\.tar \(clip\) has a damaged \.json"):
        take(1, f"pipe:cat {tmp_path}/x.tar")


def test_an_empty_split_and_a_wrong_one_are_named(prepared):
    with pytest.raises(UserError, match="no clips in its test split"):
        make_loader(str(prepared), STORED, batch_size=1, split="test")
    with pytest.raises(UserError, match="no split 'validation': choose one of train, test"):
        make_loader(str(prepared), STORED, batch_size=1, split="validation")
    with pytest.raises(UserError, match="no split 'validation': choose one of train, test"):
        make_loader("world:dance", STORED, batch_size=1, split="validation")


def test_an_order_beyond_memory_is_one_line():
    with pytest.raises(UserError, match="does not fit into memory"):
        _permutation(2**44, 0, 0)


def test_impossible_layouts_are_refused(prepared):
    for bad in ({"batch_size": 0}, {"batch_size": 1, "rank": 2, "world_size": 2}, {"batch_size": 1, "start_step": -1}):
        with pytest.raises(UserError, match="impossible loader"):
            make_loader(str(prepared), STORED, **bad)
    for batch_size in (10**14, 10**30):
        with pytest.raises(UserError, match=f"a batch of {batch_size} clips .* does not fit into memory"):
            make_loader(str(prepared), STORED, batch_size=batch_size)


def test_pickled_arrays_are_not_opened(tmp_path):
    """An .npy of objects is a pickle: it must be refused, not executed."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for name in ("a.audio.npy", "a.video.npy"):
            info = tarfile.TarInfo(name)
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    with pytest.raises(UserError, match="not a plain array"):
        make_loader(str(tmp_path / "evil.tar"), STORED, batch_size=1)


@pytest.mark.parametrize("source", ["world:landscape", "world:dance:11"])
def test_a_world_drawn_ahead_gives_the_batches_of_the_loader(source: str) -> None:
    """What a GPU draws many batches at a time is what the loader's processes draw one by one, also after a resume."""
    clip = ClipSpec(frames=4, fps=10, size=16, sample_rate_hz=2560)
    for rank, start_step in ((0, 0), (1, 3)):
        settings = {"batch_size": 3, "rank": rank, "world_size": 2, "seed": 5, "start_step": start_step}
        plain = list(itertools.islice(make_loader(source, clip, **settings), 5))
        clips = open_clips(source, clip, "train", 5)
        if source.endswith("11"):
            clips.keep_all(at_once=4)
        dataset = _Positioned(clips, 5, True)
        ahead = list(itertools.islice(_DrawnAhead(clips, dataset, _Batches(3, rank, 2, start_step), at_once=7), 5))
        for one, other in zip(plain, ahead, strict=True):
            assert one.keys == other.keys
            assert torch.equal(one.positions, other.positions)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.clips.video, other.clips.video)
            assert torch.equal(one.clips.audio, other.clips.audio)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_world_for_a_gpu_is_drawn_there() -> None:
    """Within a grey level of what the CPU draws, on the GPU."""
    clip = ClipSpec(frames=4, fps=10, size=16, sample_rate_hz=2560)
    cpu, gpu = (next(iter(make_loader("world:dance", clip, batch_size=5, device=kind))) for kind in ("cpu", "cuda"))
    assert gpu.clips.video.is_cuda
    assert cpu.keys == gpu.keys
    assert int((cpu.clips.video.int() - gpu.clips.video.cpu().int()).abs().max()) <= 1


def test_a_sound_one_sample_short_is_ended_with_silence():
    """30 fps at 16 kHz: frames 8 to 15 begin at sample 4267 and have 4266 of their 4267 samples."""
    clip = ClipSpec(frames=8, fps=30.0, size=2, sample_rate_hz=16000)
    video, audio = np.zeros((16, 3, 2, 2), np.uint8), np.arange(1, 8534, dtype=np.int16)[None]
    torch.use_deterministic_algorithms(True)  # which fills what is not initialised
    try:
        found = stack([("a", video, audio)], [0], clip, [8], [False]).clips.audio[0, 0]
    finally:
        torch.use_deterministic_algorithms(False)
    assert found[:-1].tolist() == audio[0, 4267:].tolist()
    assert found[-1] == 0


SHORT = ClipSpec(frames=3, fps=10, size=8, sample_rate_hz=1000)


def drawn(batches):
    """(start, mirrored) of every clip."""
    found = []
    for batch in batches:
        for key, video in zip(batch.keys, batch.clips.video, strict=True):
            row = video[0, 0, 0].int() - int(key.split("_")[1])
            found.append((int(row.min()) // 10, bool(row[0] > row[7])))
    return found


@pytest.mark.parametrize("kind", ["folder", "stream"])
def test_windows_and_mirroring_are_drawn_apart_from_the_seed(prepared, kind):
    source = str(prepared) if kind == "folder" else sources(prepared, "")["pipes"]
    one = drawn(take(60, source, SHORT))
    assert set(one) == set(itertools.product(range(4), (False, True)))
    plain = drawn(take(60, source, SHORT, flip=False))
    assert set(plain) == set(itertools.product(range(4), (False,)))
    assert [start for start, _ in one] == [start for start, _ in plain]
    other = drawn(take(60, source, SHORT, seed=6))
    same = sum(a == b for (a, _), (b, _) in zip(one, other, strict=True)) / len(one)
    assert same < 0.5


def test_epochs_of_a_stream_differ(prepared):
    order = keys(take(44, sources(prepared, "")["one pipe"], batch_size=1))
    assert len({tuple(order[start : start + 6]) for start in range(0, 42, 6)}) > 1


def test_what_is_not_there_is_not_asked_for_again(monkeypatch):
    import urllib.error

    from mgct.data import streams

    asked = []

    def missing(url, timeout):
        asked.append(url)
        raise urllib.error.HTTPError(url, 404, "Not Found", None, None)

    monkeypatch.setattr(streams.urllib.request, "urlopen", missing)
    monkeypatch.setattr(streams, "_RETRY_AFTER_S", (0.01, 0.01))
    with pytest.raises(UserError, match="404"):
        list(streams.stream_samples(["http://x/a.tar"]))
    assert len(asked) == 1
