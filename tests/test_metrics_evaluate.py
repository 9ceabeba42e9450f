"""From clips to a metric card: sources, cache, processes, protocols, refusals."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mgct import AVSample, ClipSpec
from mgct.cli import main
from mgct.clip_folder import save_clips
from mgct.errors import UserError
from mgct.metrics import evaluate as e
from mgct.metrics import sync
from mgct.metrics.card import MetricCard, comparison
from mgct.metrics.distances import frechet_distance
from mgct.metrics.encoders import load_encoder
from mgct.metrics.protocols import PROTOCOLS, get_protocol
from mgct.metrics.sources import MemorySource, SampleSource, VideoSource, clip_of, identity, open_source, split_of
from mgct.types import dequantise
from tests.test_metrics_sync import flashes_and_beeps

SPEC = ClipSpec(8, 10.0, 16, 2560)
pytestmark = pytest.mark.filterwarnings("ignore::mgct.metrics.distances.RankDeficientWarning")


def clips(count: int, seed: int, spec: ClipSpec = SPEC) -> AVSample:
    """Smooth random pictures that drift, and tones: no world, but not noise either."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 5, 5, generator=generator)
    video = torch.nn.functional.interpolate(
        coarse.transpose(1, 2), (spec.frames, spec.size, spec.size), mode="trilinear"
    )
    pitch = 100 + 900 * torch.rand(count, 1, 1, generator=generator)
    tone = torch.sin(2 * torch.pi * pitch * torch.arange(spec.audio_samples) / spec.sample_rate_hz)
    return AVSample(video=(video.transpose(1, 2) * 255).to(torch.uint8), audio=(tone * 9000).to(torch.int16))


def write_samples(folder: Path, stored: AVSample, spec: ClipSpec = SPEC, block: int = 24) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(stored.video), block):
        part = {"video": stored.video[start : start + block], "audio": stored.audio[start : start + block]}
        part = {name: tensor.contiguous() for name, tensor in part.items()}
        save_file(part, folder / f"clips_{start:06d}.safetensors", {"clip": json.dumps(asdict(spec))})
    return folder


@pytest.fixture(scope="module")
def real() -> MemorySource:
    return MemorySource(clips(36, 0), SPEC)


@pytest.fixture(scope="module")
def fake() -> MemorySource:
    return MemorySource(clips(36, 1), SPEC)


def measured(real: MemorySource, fake: MemorySource, **options) -> MetricCard:
    return e.evaluate(real, fake, "compact", **{"num": 36, "draws": 8, "cache": None, "progress": False, **options})


def test_the_card_says_everything(real: MemorySource, fake: MemorySource, tmp_path: Path) -> None:
    card = measured(real, fake, split="test")
    assert [value.name for value in card.values] == ["FVD-compact", "KVD-compact", "FAD-compact", "KAD-compact"]
    assert all(value.low <= value.value <= value.high for value in card.values)
    assert card.values[0].at_infinity is not None
    assert card.values[1].at_infinity is None
    assert (card.real.num, card.fake.num, card.real.split) == (36, 36, "test")
    assert card.encoders["compact-video"]["pinned"]
    assert card.definition == PROTOCOLS["compact"].definition()
    assert any("2048" in note for note in card.warnings)
    assert {"real", "fake", "score_between_bounds", "nearest_ratio_compact-video"} <= set(card.synchrony)
    written, table = card.save(tmp_path / "out" / "my.card")
    assert written.name == "my.card.json"
    assert MetricCard.load(written) == card
    assert "| FVD-compact |" in table.read_text()
    assert card.value("KVD-compact") == card.values[1].value


def test_the_value_is_the_distance_of_the_encoders_features(real: MemorySource, fake: MemorySource) -> None:
    encoder = load_encoder("compact-video")
    expected = frechet_distance(encoder(real.clips, SPEC), encoder(fake.clips, SPEC))
    assert measured(real, fake).value("FVD-compact") == pytest.approx(expected, rel=1e-3)


def test_real_against_itself_is_zero(real: MemorySource) -> None:
    card = measured(real, real)
    assert abs(card.value("FVD-compact")) < 1e-6
    assert card.synchrony["nearest_ratio_compact-video"] == 0
    assert card.synchrony["copied_share_compact-video"] == 1


def test_one_and_two_processes_give_the_same_numbers(tmp_path: Path) -> None:
    sides = [open_source(write_samples(tmp_path / name, clips(36, k))) for k, name in enumerate(("real", "fake"))]
    cards = [measured(*sides, num=36, workers=workers) for workers in (1, 2)]
    for one, two in zip(cards[0].values, cards[1].values, strict=True):
        limits = [value.at_infinity or 0.0 for value in (one, two)]
        assert [one.value, one.low, one.high, limits[0]] == pytest.approx([two.value, two.low, two.high, limits[1]])
    for side in ("real", "fake"):
        assert cards[0].synchrony[side] == pytest.approx(cards[1].synchrony[side], rel=1e-6)
    assert cards[0].real.sha256 == cards[1].real.sha256


class Deadly(SampleSource):
    """Kills the process that reads it."""

    def read(self, indices):
        os._exit(9)


def test_a_worker_that_dies_is_one_line(tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "clips", clips(36, 0))
    with pytest.raises(UserError, match=r"a worker process has died.*use fewer workers"):
        measured(Deadly(folder), Deadly(folder), workers=2)


def test_features_are_cached_by_content(
    real: MemorySource, fake: MemorySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(real, fake, cache=tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2 * 2 * 2
    from mgct.metrics.encoders.compact import CompactVideoEncoder

    monkeypatch.setattr(CompactVideoEncoder, "features", lambda *_: pytest.fail("computed again"))
    assert measured(real, fake, cache=tmp_path).values == first.values
    changed = MemorySource(fake.clips.map(lambda x: x.clone()), SPEC)
    changed.clips.video[0, 0, 0, 0, 0] ^= 1
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        measured(real, changed, cache=tmp_path)


def test_damaged_cache_is_an_error(real: MemorySource, fake: MemorySource, tmp_path: Path) -> None:
    measured(real, fake, cache=tmp_path)
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"broken")
    with pytest.raises(UserError, match="delete that file"):
        measured(real, fake, cache=tmp_path)


def test_samples_are_read_in_any_order(tmp_path: Path) -> None:
    stored = clips(50, 2)
    source = SampleSource(write_samples(tmp_path, stored))
    assert (len(source), source.spec) == (50, SPEC)
    indices = [49, 0, 23, 24, 24, 7]
    found = source.read(indices)
    assert torch.equal(found.video, stored.video[indices])
    assert torch.equal(found.audio, stored.audio[indices])


def test_sources_by_what_a_folder_holds(tmp_path: Path, tiny_shards: Path) -> None:
    from mgct.data.media import write_mp4

    spec = ClipSpec(8, 10.0, 16, 8000)
    stored = clips(2, 0, spec)
    for k in range(2):
        write_mp4(tmp_path / f"{k}.mp4", stored.video[k], stored.audio[k], fps=10.0, sample_rate_hz=8000)
    videos = open_source(tmp_path, spec)
    assert isinstance(videos, VideoSource)
    assert videos.read([1, 0]).video.shape == (2, *spec.video_shape)
    assert (videos.read([0]).video.float() - stored.video[:1].float()).abs().mean() < 8
    shards = open_source(tiny_shards, split="train")
    assert shards.spec == ClipSpec(4, 10.0, 8, 160)
    assert shards.container == "shards"
    assert shards.read([2, 0]).video.shape == (2, 4, 3, 8, 8)
    assert len(shards) == 8
    world = open_source("world:landscape:12", SPEC)
    assert len(world) == 12
    assert world.read([3]).audio.shape == (1, 1, SPEC.audio_samples)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "no video files"),
        (lambda folder: (folder / "a.safetensors").write_bytes(b"x"), "no file of samples"),
        (lambda folder: save_file({"video": torch.zeros(1)}, folder / "a.safetensors"), "no file of samples"),
    ],
    ids=["empty", "no safetensors", "no metadata"],
)
def test_wrong_folders_are_refused(tmp_path: Path, prepare, message: str) -> None:
    prepare(tmp_path)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"video": None},
        {"audio": None},
        {"video": torch.tensor(3, dtype=torch.uint8)},
        {"video": torch.zeros(8, 3, 16, 16, dtype=torch.uint8)},
        {"video": torch.zeros(2, 8, 3, 24, 24, dtype=torch.uint8)},
        {"video": torch.zeros(2, 8, 3, 16, 16)},
        {"audio": torch.zeros(1, 1, 2048, dtype=torch.int16)},
        {"audio": torch.zeros(2, 1, 2000, dtype=torch.int16)},
    ],
    ids=lambda change: " ".join(f"{k} {v if v is None else (v.dtype, *v.shape)}" for k, v in change.items()),
)
def test_samples_that_are_not_as_they_say_are_refused(tmp_path: Path, change: dict[str, torch.Tensor | None]) -> None:
    stored = clips(2, 0)
    tensors = {"video": stored.video.contiguous(), "audio": stored.audio.contiguous(), **change}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    save_file(tensors, tmp_path / "a.safetensors", {"clip": json.dumps(asdict(SPEC))})
    with pytest.raises(UserError, match=r"a\.safetensors (is no file of samples|holds video .* make it anew)"):
        open_source(tmp_path)


def test_an_index_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"index\.json was not written by mgct prepare, or is damaged"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "foo"], "--device"),
        (["--device", "meta"], "--device"),
        (["--out", "/proc/mgct/card"], "/proc/mgct/card: no card can be written there"),
        (["--out", "a-file/card"], "a-file/card: no card can be written there"),
        (["--out", "."], "is a folder"),
        (["--weights", '{"compact-video": "a-file"}'], "a-file is no safetensors file"),
    ],
)
def test_what_evaluate_cannot_do_is_said_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list, message: str
) -> None:
    monkeypatch.setattr(e, "_measure", lambda *_: pytest.fail("measured"))
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("mine")
    write_samples(Path("samples"), clips(3, 0))
    assert main(["evaluate", "samples", "samples", "--num", "3", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert {str(path) for path in Path().rglob("*")} == {"a-file", "samples", "samples/clips_000000.safetensors"}


def test_seeds_of_any_size_are_taken(real: MemorySource, fake: MemorySource) -> None:
    for seed in (10**24, -(10**24)):
        assert measured(real, fake, seed=seed).seed == seed


def test_features_that_cannot_be_kept_are_said(
    real: MemorySource, fake: MemorySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(e, "save_file", full)
    with pytest.raises(UserError, match="cannot be written"):
        measured(real, fake, cache=tmp_path)


def test_samples_of_two_kinds_are_refused(tmp_path: Path) -> None:
    write_samples(tmp_path, clips(2, 0))
    other = ClipSpec(8, 10.0, 24, 2560)
    stored = clips(2, 0, other)
    facts = {"clip": json.dumps(asdict(other))}
    save_file(
        {"video": stored.video.contiguous(), "audio": stored.audio.contiguous()}, tmp_path / "z.safetensors", facts
    )
    with pytest.raises(UserError, match="2 different clip settings"):
        open_source(tmp_path)


def test_a_broken_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    source = VideoSource(tmp_path, SPEC)
    with pytest.raises(UserError, match=r"bad\.mp4"):
        source.read([0])


def test_clips_of_different_length_are_refused(real: MemorySource) -> None:
    other = ClipSpec(16, 10.0, 16, 2560)
    with pytest.raises(UserError, match="must agree"):
        measured(real, MemorySource(clips(96, 1, other), other))


def test_protocols_fix_frames_and_size() -> None:
    wanted = PROTOCOLS["open"].clip
    with pytest.raises(UserError, match="16 frames at 10 fps"):
        e.conform(clips(1, 0), SPEC, wanted)
    spec = ClipSpec(16, 10.0, 32, 16000)
    found, facts = e.conform(clips(1, 0, spec), spec, wanted)
    assert found.video.shape == (1, 16, 3, 64, 64)
    assert facts == ClipSpec(16, 10.0, 64, 16000)


def test_protocols_are_what_they_are_named() -> None:
    old, new = get_protocol("mm-diffusion-2023"), get_protocol("mm-diffusion-2024")
    assert [m.scale for m in old.metrics] == [1, 1, 1000]
    assert [m.scale for m in new.metrics] == [1, 1, 10000]
    assert new.batch_size == 8
    assert new.clip == ClipSpec(16, 10.0, 64, 44100)
    names = {protocol.name: {m.name for m in protocol.metrics} for protocol in PROTOCOLS.values()}
    assert names["open"] == {"FVD", "KVD", "FAD-SoundNet"}
    assert "FAD" not in names["open"] | names["compact"]
    with pytest.raises(UserError, match="mm-diffusion-2024"):
        get_protocol("fvd")


def test_only_cards_of_one_harness_compare(real: MemorySource, fake: MemorySource, tmp_path: Path) -> None:
    card = measured(real, fake)
    table = comparison([card, card], ["ours", "theirs"])
    assert "| ours | " in table
    assert "FAD-compact" in table
    other = replace(card, protocol="open", definition=PROTOCOLS["open"].definition())
    with pytest.raises(UserError, match="different protocol"):
        comparison([card, other])
    for change, message in (
        (replace(card, fake=replace(card.fake, num=35)), "number of generated clips"),
        (replace(card, real=replace(card.real, sha256="0")), "real clips"),
        (replace(card, fake=replace(card.fake, container="video files")), "container"),
        (replace(card, encoders={"compact-video": {"sha256": "0", "pinned": False}}), "weights"),
    ):
        with pytest.raises(UserError, match=message):
            comparison([card, change])
    with pytest.raises(UserError, match="no metric card"):
        MetricCard.from_json("{}")
    content = json.loads(card.to_json())
    value = content["values"][0] | {"value": "much"}
    damaged = [{"values": [value]}, {"encoders": []}, {"encoders": {"a": {}}}, {"synchrony": 3}, {"confidence": None}]
    for text in ("no card", "[]", *(json.dumps(content | change) for change in damaged)):
        (tmp_path / "mine.json").write_text(text)
        with pytest.raises(UserError, match=r"mine\.json is no metric card"):
            MetricCard.load(tmp_path / "mine.json")


@pytest.mark.parametrize("given", ["[a.json,b.json]", "a.json,b.json", "a.json"])
def test_cards_are_named_with_commas_between(
    real: MemorySource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        measured(real, real, num=8).save(Path(name))
    assert main(["compare", given]) == 0
    assert [line[:5] for line in capsys.readouterr().out.splitlines()[2:] if line] == [
        f"| {name} |" for name in "ab" if f"{name}.json" in given
    ]
    assert main(["compare", "none.json"]) == 2
    assert "no metric card at none.json; give the .json" in capsys.readouterr().err


def test_the_choice_of_clips_is_the_seeds(real: MemorySource, fake: MemorySource) -> None:
    assert e.choose(10, 5, 0) == e.choose(10, 5, 0)
    assert e.choose(10, 5, 0) != e.choose(10, 5, 1)
    assert len(set(e.choose(10, 10, 3))) == 10
    one, two = measured(real, fake, num=20, seed=0), measured(real, fake, num=20, seed=1)
    assert one.real.sha256 != two.real.sha256


def test_weights_by_path_are_recorded_as_not_pinned(real: MemorySource, fake: MemorySource, tmp_path: Path) -> None:
    from mgct.metrics.encoders import compact

    bundled = Path(compact.__file__).parent / "compact_audio.safetensors"
    tensors = load_file(bundled)
    tensors["embed.bias"] += 1
    save_file(tensors, tmp_path / "mine.safetensors")
    card = measured(real, fake, weights={"compact-audio": tmp_path / "mine.safetensors"})
    assert not card.encoders["compact-audio"]["pinned"]
    assert any("compact-audio" in note for note in card.warnings)
    with pytest.raises(UserError, match="weights given for i3d"):
        measured(real, fake, weights={"i3d": tmp_path / "mine.safetensors"})


def test_the_running_metric_is_the_cards_number(real: MemorySource, fake: MemorySource) -> None:
    running = e.RunningMetric(real, num=36)
    row = running(fake.clips, SPEC)
    card = measured(real, fake)
    assert row["FVD-compact"] == pytest.approx(card.value("FVD-compact"), rel=1e-6)
    assert row["sync_score"] == pytest.approx(card.synchrony["fake"]["sync_score"], abs=1e-6)
    with pytest.raises(UserError, match="36 clips"):
        running(clips(4, 0), SPEC)


def test_a_reference_is_measured_once(real: MemorySource, fake: MemorySource) -> None:
    options = {"num": 36, "seed": 3, "cache": None, "progress": False}
    reference = e.measure_reference(real, "compact", split="test", **options)
    card = measured(reference, fake, seed=3)
    assert replace(card, seconds=0.0) == replace(measured(real, fake, seed=3, split="test"), seconds=0.0)
    with pytest.raises(UserError, match="36 clips with seed 3, not by compact on 20 with seed 3"):
        measured(reference, fake, seed=3, num=20)
    with pytest.raises(UserError, match="not by compact on 36 with seed 4"):
        measured(reference, fake, seed=4)
    with pytest.raises(UserError, match="other weights"):
        measured(replace(reference, encoders={"compact-video": "0"}), fake, seed=3)
    other = ClipSpec(16, 10.0, 16, 2560)
    with pytest.raises(UserError, match="must agree"):
        measured(reference, MemorySource(clips(36, 1, other), other), seed=3)


def test_the_identity_of_a_source_is_its_content(tmp_path: Path, tiny_shards: Path) -> None:
    folder = write_samples(tmp_path / "samples", clips(30, 2))
    before = identity(open_source(folder))
    (folder / ".99.clips_000000.safetensors").write_bytes(b"part of a file that a killed run left")
    assert identity(open_source(folder)) == before
    assert len(open_source(folder)) == 30
    write_samples(folder, clips(30, 3))
    assert identity(open_source(folder)) != before
    assert identity(open_source(tiny_shards, split="train")) == identity(open_source(tiny_shards, split="train"))
    assert identity(open_source(tiny_shards, split="train")) != identity(open_source(tiny_shards, split="test"))
    worlds = [
        ("world:landscape:8", SPEC, "test"),
        ("world:dance:8", SPEC, "test"),
        ("world:landscape:8", SPEC, "train"),
    ]
    worlds += [("world:landscape:9", SPEC, "test"), ("world:landscape:8", ClipSpec(8, 10.0, 16, 1280), "test")]
    assert len({identity(open_source(*world)) for world in worlds}) == len(worlds)
    assert identity(open_source(*worlds[0])) == identity(open_source(*worlds[0]))


def test_a_card_is_written_whole(real: MemorySource, fake: MemorySource, tmp_path: Path, monkeypatch) -> None:
    card = measured(real, fake)
    monkeypatch.setattr(MetricCard, "to_json", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        card.save(tmp_path / "a-0.5")
    assert not list(tmp_path.glob("*.json"))
    monkeypatch.undo()
    card.save(tmp_path / "a-0.5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-0.5.json", "a-0.5.md"]
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"b\.md cannot be written \(No space left on device\)"):
        card.save(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-0.5.json", "a-0.5.md"]


def test_a_card_against_other_clips_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a folder of the same name; against the same clips it is made anew, and --out is taken at its word."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a/real", 0), ("b/real", 1), ("made", 2)):
        Path(name).parent.mkdir(exist_ok=True)
        write_samples(Path(name), clips(4, seed))
    for real, num in (("a/real", 4), ("b/real", 4), ("a/real", 4), ("a/real", 3)):
        assert main(["evaluate", real, "made", "--num", str(num)]) == 0
    cards = [MetricCard.load(path) for path in sorted(Path("made").glob("*.json"))]
    assert [card.real.num for card in cards] == [4, 3, 4]  # …-2 is b's, …-3 that of three clips
    assert len({card.real.sha256 for card in cards}) == 3
    assert main(["evaluate", "b/real", "made", "--num", "4", "--out", "made/metrics-compact"]) == 0
    assert len(list(Path("made").glob("*.json"))) == 3


def test_too_few_clips_are_named_with_what_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_samples(Path("few"), clips(3, 0))
    write_samples(Path("more"), clips(5, 0))
    few, more = open_source("few"), open_source("more")
    with pytest.raises(UserError, match=r"there are only 3 generated ones in few: give a num of at most 3 \(--num 3\)"):
        e.evaluate(more, few, "compact", num=5)
    with pytest.raises(UserError, match=r"only 5 real ones in more and 3 generated ones in few: .*--num 3\)"):
        e.evaluate(more, few, "compact", num=6)
    with pytest.raises(UserError, match=r"only 4 real ones in world:dance:4 \(its test split\) and 3 generated"):
        e.evaluate(open_source("world:dance:4", SPEC), few, "compact", num=5, split="test")
    with pytest.raises(UserError, match="at least 3 clips a side"):
        e.evaluate(more, few, "compact", num=2)


def test_a_folder_of_mgct_sample_is_read_as_it_was_made(tmp_path: Path) -> None:
    made = ClipSpec(frames=4, fps=10, size=16, sample_rate_hz=8000)
    save_clips(dequantise(clips(1, 0)), str(tmp_path), SPEC)
    (tmp_path / "sampling.json").write_text(json.dumps({"clip": asdict(made), "seconds": None}))
    assert open_source(tmp_path).spec == made
    assert open_source(tmp_path, SPEC).spec == SPEC


def test_larger_frames_are_averaged_and_rounded():
    spec, small = ClipSpec(2, 10.0, 64, 2560), ClipSpec(2, 10.0, 16, 2560)
    video = torch.randint(0, 256, (1, *spec.video_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video[..., ::4] = 255
    found, _ = e.conform(AVSample(video=video, audio=torch.zeros(1, 1, 512, dtype=torch.int16)), spec, small)
    assert found.video.float().mean().item() == pytest.approx(video.float().mean().item(), abs=0.4)


def test_features_of_other_weights_are_not_taken_from_the_cache(real, fake, tmp_path):
    from mgct.metrics.encoders import compact

    tensors = load_file(Path(compact.__file__).parent / "compact_audio.safetensors")
    tensors["embed.weight"] *= 2
    save_file(tensors, tmp_path / "mine.safetensors")
    first = measured(real, fake, cache=tmp_path / "cache")
    other = measured(real, fake, cache=tmp_path / "cache", weights={"compact-audio": tmp_path / "mine.safetensors"})
    assert other.value("FAD-compact") == pytest.approx(4 * first.value("FAD-compact"), rel=1e-3)


def test_the_cache_knows_size_rates_and_modality(tmp_path):
    stored, other = clips(4, 0), clips(4, 1)
    encoders = [load_encoder("compact-video"), load_encoder("compact-audio")]
    mixed = AVSample(video=stored.video, audio=other.audio)
    ways = [(None, stored, SPEC), (ClipSpec(8, 10.0, 8, 2560), stored, SPEC)]
    ways += [(None, stored, replace(SPEC, sample_rate_hz=5120)), (None, mixed, SPEC)]
    for clip, what, spec in ways:
        plain, cached = (e.Extractor(encoders, clip, cache, "cpu")(what, spec) for cache in (None, tmp_path))
        for name, value in plain.features.items():
            torch.testing.assert_close(cached.features[name], value)


def test_a_metric_is_multiplied_by_its_scale_bounds_and_limit_too(real, fake):
    scaled = replace(
        PROTOCOLS["compact"], metrics=tuple(replace(m, scale=1000.0) for m in PROTOCOLS["compact"].metrics)
    )
    plain = measured(real, fake)
    card = e.evaluate(real, fake, scaled, num=36, draws=8, cache=None, progress=False)
    for ours, theirs in zip(card.values, plain.values, strict=True):
        for name in ("value", "low", "high", "at_infinity"):
            if getattr(theirs, name) is not None:
                assert getattr(ours, name) == pytest.approx(1000 * getattr(theirs, name))


def test_the_running_metric_is_scaled_too(real, fake, monkeypatch):
    plain = e.RunningMetric(real, num=36)(fake.clips, SPEC)
    scaled = replace(
        PROTOCOLS["compact"], metrics=tuple(replace(m, scale=1000.0) for m in PROTOCOLS["compact"].metrics)
    )
    monkeypatch.setitem(PROTOCOLS, "compact", scaled)
    row = e.RunningMetric(real, num=36)(fake.clips, SPEC)
    assert row["FAD-compact"] == pytest.approx(1000 * plain["FAD-compact"])


def test_copies_are_sought_among_the_real_clips(real):
    few = MemorySource(real.clips.map(lambda x: x[:12].repeat(3, *[1] * (x.dim() - 1))), SPEC)
    rows = measured(real, few).synchrony
    assert (rows["nearest_ratio_compact-video"], rows["copied_share_compact-video"]) == (0, 1)
    features = load_encoder("compact-video")(few.clips, SPEC)
    assert rows["fake"]["diversity_compact-video"] == pytest.approx(sync.diversity(features), rel=1e-3)


def test_the_synchrony_score_stands_between_chance_and_real_clips():
    real, fake = (
        MemorySource(flashes_and_beeps(SPEC, offset, 12, seed), SPEC) for offset, seed in ((0.0, 0), (0.02, 1))
    )
    rows = measured(real, fake, num=12).synchrony
    chance, top = rows["real"]["sync_score_shuffled"], rows["real"]["sync_score"]
    assert rows["score_between_bounds"] == pytest.approx((rows["fake"]["sync_score"] - chance) / (top - chance))


def test_measuring_leaves_the_threads_as_they_were(real, fake):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        measured(real, fake, num=8)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_card_says_how_its_sides_differ(real, fake, tmp_path):
    stored = open_source(write_samples(tmp_path / "stored", fake.clips))
    assert any("stored as memory, generated ones as safetensors" in note for note in measured(real, stored).warnings)
    protocol = replace(PROTOCOLS["compact"], split="train")
    card = e.evaluate(real, fake, protocol, num=36, draws=8, cache=None, progress=False, split="test")
    assert any("of the test split" in note for note in card.warnings)


def test_an_encoder_of_a_fixed_batch_is_refused_another(real, fake, monkeypatch):
    from mgct.metrics.encoders.compact import CompactVideoEncoder

    monkeypatch.setattr(CompactVideoEncoder, "fixed_batch", 8)
    with pytest.raises(UserError, match="needs batches of 8, not 32"):
        measured(real, fake)


def test_one_draw_makes_no_interval(real, fake):
    with pytest.raises(UserError, match="at least 2 draws"):
        measured(real, fake, draws=1)


def test_any_clip_may_be_chosen():
    assert max(e.choose(1000, 50, 0)) > 500


def test_clips_of_a_length_are_read_at_that_length(tmp_path):
    made = ClipSpec(frames=4, fps=10, size=16, sample_rate_hz=8000)
    (tmp_path / "sampling.json").write_text(json.dumps({"clip": asdict(made), "seconds": 1.2}))
    assert clip_of(tmp_path) == replace(made, frames=12)


def test_a_world_without_end_is_not_measured():
    with pytest.raises(UserError, match="as in world:dance:2048"):
        open_source("world:dance", SPEC)


def test_videos_and_samples_are_of_no_split(real, tiny_shards):
    assert split_of(real, "test") == ""
    assert split_of(open_source(tiny_shards), "test") == "test"


def test_a_source_is_of_the_split_asked_for(tiny_shards):
    assert [len(open_source(tiny_shards, split=split)) for split in ("test", "train")] == [2, 8]
    one, two = (open_source("world:dance:2", SPEC, split).read([0]).video for split in ("test", "train"))
    assert not torch.equal(one, two)


def test_a_file_written_anew_is_another_source(tmp_path):
    folder = write_samples(tmp_path / "samples", clips(30, 2))
    before = identity(open_source(folder))
    path = sorted(folder.glob("*"))[-1]
    os.utime(path, ns=(1, 1))
    assert identity(open_source(folder)) != before
