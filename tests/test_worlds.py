"""Laws of the procedural worlds: purity, balance, range, scale, what they teach, and that sound and picture agree."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgct.data.media import read_clip
from mgct.data.worlds import World, WorldClips, get_world, world_names, write_world
from mgct.data.worlds.random import Draws, clip_keys, mix64
from mgct.errors import UserError
from mgct.types import ClipSpec, dequantise

WORLDS = ("landscape", "dance")
MICRO = ClipSpec(frames=8, fps=10, size=16, sample_rate_hz=2560)
MIDDLE = ClipSpec(frames=16, fps=10, size=32, sample_rate_hz=8000)
_drawn: dict[tuple[str, ClipSpec, int], WorldClips] = {}


def drawn(name: str, clip: ClipSpec, num: int) -> WorldClips:
    """Clips 0 … num - 1 of seed 3, drawn once per test run."""
    key = (name, clip, num)
    if key not in _drawn:
        _drawn[key] = get_world(name).render(range(num), clip, seed=3)
    return _drawn[key]


def one_of_each(world: World, seed: int = 0) -> list[int]:
    """The first clip of every class."""
    labels = world.labels(range(400), seed)
    return [int(torch.nonzero(labels == k)[0]) for k in range(len(world.classes))]


# --- the interface ----------------------------------------------------------------------------------------------------


def test_unknown_world_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="landscape, dance"):
        get_world("ocean")
    assert world_names() == WORLDS


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(("indices", "size"), [([], 16), ([-1], 16), ([0], 4)])
def test_bad_requests_are_refused(name: str, indices: list[int], size: int) -> None:
    with pytest.raises(UserError):
        get_world(name).render(indices, ClipSpec(frames=2, fps=10, size=size, sample_rate_hz=2560))


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(
    "clip",
    [
        MICRO,
        ClipSpec(3, 12.5, 24, 11025),
        ClipSpec(2, 29.97, 50, 44100),
        ClipSpec(1, 5, 33, 1000),
        ClipSpec(30, 10, 8, 4000),
    ],
)
def test_any_clip_has_its_shapes(name: str, clip: ClipSpec) -> None:
    world = get_world(name)
    out = world.render(torch.tensor(one_of_each(world)), clip)
    count = len(world.classes)
    assert out.clips.video.shape == (count, *clip.video_shape)
    assert out.clips.audio.shape == (count, *clip.audio_shape)
    assert out.clips.video.dtype == out.clips.audio.dtype == torch.float32
    assert bool(torch.isfinite(out.clips.video).all())
    assert bool(torch.isfinite(out.clips.audio).all())
    assert out.labels.tolist() == list(range(count))
    assert set(out.factors) == set(world.factor_names)
    assert all(value.shape == (count,) for value in out.factors.values())
    assert all(row == sorted(row) and all(0 <= t < clip.seconds for t in row) for row in out.events_s)


def test_class_names_are_those_of_the_data_sets() -> None:
    assert len(get_world("landscape").classes) == 9
    assert len(get_world("dance").classes) == 10


# --- purity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("clip", [MICRO, ClipSpec(4, 5, 64, 16000)])
def test_a_clip_does_not_depend_on_its_batch(name: str, clip: ClipSpec) -> None:
    """Alone, in any order and in any company a clip is the same to the last bit."""
    world = get_world(name)
    together = world.render(range(24), clip, seed=5)
    order = [17, 3, 11, 3, 0]
    for part, rows in ((world.render(order, clip, seed=5), order), (world.render([8], clip, seed=5), [8])):
        assert torch.equal(part.clips.video, together.clips.video[rows])
        assert torch.equal(part.clips.audio, together.clips.audio[rows])
        assert part.labels.tolist() == together.labels[rows].tolist()
        assert part.events_s == [together.events_s[row] for row in rows]
        for key, value in part.factors.items():
            assert torch.equal(value.nan_to_num(-9), together.factors[key][rows].nan_to_num(-9))


@pytest.mark.parametrize("name", WORLDS)
def test_the_number_of_threads_does_not_matter(name: str) -> None:
    world = get_world(name)
    clip = ClipSpec(4, 5, 64, 16000)
    before = torch.get_num_threads()
    out = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        out.append(world.render(range(20), clip).clips)
    torch.set_num_threads(before)
    assert torch.equal(out[0].video, out[1].video)
    assert torch.equal(out[0].audio, out[1].audio)


@pytest.mark.parametrize("name", WORLDS)
def test_seeds_and_indices_differ(name: str) -> None:
    world = get_world(name)
    a, b = world.render([0, 1], MICRO, seed=1).clips, world.render([0, 1], MICRO, seed=2).clips
    assert float((a.video[0] - a.video[1]).abs().mean()) > 0.02
    assert float((a.video - b.video).abs().mean((1, 2, 3, 4)).min()) > 0.02


def test_random_numbers_are_what_the_algorithm_says() -> None:
    """SplitMix64's finaliser against its definition in unbounded integers; draws pinned, so no machine may differ."""
    mask = (1 << 64) - 1

    def reference(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    values = [0, 1, -1, 2**63 - 1, -(2**63), 123456789, -987654321012345]
    assert [v & mask for v in mix64(torch.tensor(values)).tolist()] == [reference(v & mask) for v in values]
    draws = Draws(clip_keys(torch.tensor([0, 7]), 42, "landscape"))
    u = draws.uniform("x", 100_000)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert abs(float(u.double().mean()) - 0.5) < 0.003
    assert abs(float(u.double().var()) - 1 / 12) < 0.001
    assert abs(float(torch.corrcoef(u)[0, 1])) < 0.01
    assert abs(float(draws.normal("n", 100_000).var()) - 1) < 0.02
    assert torch.equal(draws.uniform("x", 10, 4)[:, :3], draws.uniform("x", 3, 4))


@pytest.mark.parametrize("name", WORLDS)
def test_classes_are_balanced(name: str) -> None:
    world = get_world(name)
    count, classes = 9000, len(world.classes)
    found = torch.bincount(world.labels(range(count), seed=0), minlength=classes).double()
    expected = count / classes
    chi_square = float(((found - expected) ** 2 / expected).sum())
    assert chi_square < 30  # 99.95 % point of χ² with 9 degrees of freedom
    labels = world.labels(range(count), seed=0)
    assert abs(float((labels[1:] == labels[:-1]).double().mean()) - 1 / classes) < 0.02


# --- range and scale --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(("clip", "num"), [(MICRO, 1000), (MIDDLE, 64)])
def test_levels(name: str, clip: ClipSpec, num: int) -> None:
    """Sound is audible, below full scale, without offset or clicks at the ends; pictures use their range and move."""
    world = get_world(name)
    out = drawn(name, clip, num)
    video, audio = out.clips.video, out.clips.audio[:, 0]
    assert float(audio.abs().max()) < 1
    assert float(audio[:, 0].abs().max()) < 1e-3
    assert float(audio[:, -1].abs().max()) < 0.05
    assert float(audio.mean(1).abs().max()) < 0.02
    assert float(video.min()) >= -1
    assert float(video.max()) <= 1
    for k in range(len(world.classes)):
        mine = out.labels == k
        rms = audio[mine].square().mean(1).sqrt()
        assert 0.03 < float(rms.mean()) < 0.35, (world.classes[k], float(rms.mean()))
        assert float(rms.min()) > 0.005, (world.classes[k], float(rms.min()))
        seen = video[mine]
        assert float(seen.std()) > 0.15, world.classes[k]
        assert float((seen.abs() > 0.999).double().mean()) < 0.12, world.classes[k]
        motion = (seen[:, 1:] - seen[:, :-1]).abs().mean((1, 2, 3, 4))
        assert float(motion.mean()) > 0.01, world.classes[k]
    assert float(video.quantile(0.999) if video.numel() < 1 << 24 else video.flatten()[::97].quantile(0.999)) > 0.8


@pytest.mark.parametrize("name", WORLDS)
def test_a_larger_frame_shows_the_same_scene(name: str) -> None:
    world = get_world(name)
    rows = one_of_each(world)
    small, large, huge = (world.render(rows, ClipSpec(3, 5, size, 4000)).clips.video for size in (32, 64, 128))
    for fine, coarse in ((large, small), (huge, large)):
        shrunk = F.avg_pool2d(fine.flatten(0, 1), 2).view_as(coarse)
        off = (shrunk - coarse).abs().mean((1, 2, 3, 4))
        other = (shrunk - coarse.roll(1, 0)).abs().mean((1, 2, 3, 4))
        assert float(off.max()) < 0.08
        assert float(off.mean()) < 0.04
        assert float(other.min()) > 2 * float(off.max())


@pytest.mark.parametrize("name", WORLDS)
def test_a_higher_sample_rate_sounds_the_same_below(name: str) -> None:
    """Below 1 kHz the spectra at 2,560 Hz and at 16 kHz are the same: nothing has been folded down."""
    world = get_world(name)
    rows = one_of_each(world)
    spectra = []
    for rate in (2560, 16000):
        clip = ClipSpec(8, 10, 8, rate)
        audio = world.render(rows, clip).clips.audio[:, 0].double()
        spectra.append(torch.fft.rfft(audio)[:, 30:800] / clip.audio_samples)
    low, high = spectra
    error = (low - high).abs().square().sum(1) / high.abs().square().sum(1)
    assert float(error.max()) < 0.05, error
    assert float(error.mean()) < 0.02, error


@pytest.mark.parametrize("name", WORLDS)
def test_a_longer_clip_begins_the_same(name: str) -> None:
    world = get_world(name)
    rows = one_of_each(world)
    short = world.render(rows, ClipSpec(4, 10, 32, 2560))
    long = world.render(rows, ClipSpec(12, 10, 32, 2560))
    assert float((short.clips.video - long.clips.video[:, :4]).abs().max()) < 0.01
    for few, many in zip(short.events_s, long.events_s, strict=True):
        assert few == pytest.approx([t for t in many if t < 0.4])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("clip", [MICRO, ClipSpec()])
def test_a_gpu_draws_the_same(name: str, clip: ClipSpec) -> None:
    """Within one grey level and 1e-4 of full scale."""
    world = get_world(name)
    cpu, gpu = (world.render(range(40), clip, seed=1, device=device) for device in ("cpu", "cuda"))
    assert torch.equal(cpu.labels, gpu.labels.cpu())
    assert float((cpu.clips.video - gpu.clips.video.cpu()).abs().max()) <= 2 / 255
    assert float((cpu.clips.audio - gpu.clips.audio.cpu()).abs().max()) <= 1e-4


def test_files_hold_the_clips(tmp_path: Path) -> None:
    """What `write_world` writes is read back as the clips drawn, with their labels; nothing is overwritten."""
    clip = ClipSpec(frames=6, fps=10, size=32, sample_rate_hz=16000)
    files = write_world("landscape", tmp_path / "out", 3, clip, seed=2, start=4, progress=False)
    world = get_world("landscape")
    truth = world.render(range(4, 7), clip, seed=2)
    records = [json.loads(line) for line in (tmp_path / "out" / "labels.jsonl").read_text().splitlines()]
    assert [record["file"] for record in records] == [path.name for path in files]
    assert [record["class"] for record in records] == [world.classes[k] for k in truth.labels.tolist()]
    for row, path in enumerate(files):
        back = dequantise(read_clip(path, clip))
        assert float((back.video - truth.clips.video[row]).abs().mean()) < 0.1
        assert records[row]["events_s"] == pytest.approx(truth.events_s[row], abs=1e-3)
    with pytest.raises(UserError, match="exists already"):
        write_world("landscape", tmp_path / "out", 1, clip, progress=False)
    with pytest.raises(UserError, match="even"):
        write_world("dance", tmp_path / "odd", 1, ClipSpec(size=33), progress=False)
    with pytest.raises(UserError, match="at least 1"):
        write_world("dance", tmp_path / "none", 0, clip, progress=False)
    for bad in (ClipSpec(fps=1e-9), ClipSpec(fps=1e-300), ClipSpec(size=10**9)):
        with pytest.raises(UserError, match="too large to draw"):
            write_world("dance", tmp_path / "large", 1, bad, progress=False)
    with pytest.raises(UserError, match="sample_rate_hz must be at most"):
        write_world("dance", tmp_path / "high", 1, ClipSpec(sample_rate_hz=2**31 - 1), progress=False)


# --- what there is to learn -------------------------------------------------------------------------------------------


def fit_linear(features: Tensor, labels: Tensor, train: int) -> float:
    """Held-out accuracy of multinomial logistic regression on standardised features."""
    features = (features - features[:train].mean(0)) / features[:train].std(0).clamp(min=1e-6)
    torch.manual_seed(0)
    probe = nn.Linear(features.shape[1], int(labels.max()) + 1)
    optimiser = torch.optim.LBFGS(probe.parameters(), max_iter=200)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(probe(features[:train]), labels[:train]) + 1e-4 * probe.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return float((probe(features[train:]).argmax(1) == labels[train:]).double().mean())


@pytest.mark.parametrize(("name", "video_most", "audio_most"), [("landscape", 0.85, 0.65), ("dance", 0.35, 0.4)])
def test_means_alone_do_not_tell_the_class(name: str, video_most: float, audio_most: float) -> None:
    """Neither a clip's mean colour nor its mean loudness gives its class away to a linear probe."""
    out = drawn(name, MICRO, 1000)
    color = out.clips.video.mean((1, 3, 4))
    power = out.clips.audio.square().mean((1, 2))[:, None]
    by_color = fit_linear(color, out.labels, 700)
    by_level = fit_linear(torch.cat((power.sqrt(), power.log()), 1), out.labels, 700)
    grid = F.adaptive_avg_pool2d(out.clips.video.mean(1), 4).flatten(1)
    spectrum = torch.fft.rfft(out.clips.audio[:, 0]).abs().square()[:, 1:1025].unflatten(1, (32, 32)).mean(2).log()
    by_more = fit_linear(torch.cat((grid, spectrum), 1), out.labels, 700)
    print(f"{name}: mean colour {by_color:.3f}, mean power {by_level:.3f}, 4×4 picture and spectrum {by_more:.3f}")
    assert by_color < video_most
    assert by_level < audio_most
    assert by_more > max(by_color, by_level) + 0.1


class SmallNetwork(nn.Module):
    """Encoders of the eight frames and of the spectrogram, pooled and joined: about 0.25 M parameters."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.video = nn.Sequential(
            nn.Conv2d(24, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 96, 3, padding=1), nn.BatchNorm2d(96), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(96, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.audio = nn.Sequential(
            nn.Conv2d(1, 24, 3, 2, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 48, 3, 2, padding=1), nn.BatchNorm2d(48), nn.ReLU(),
            nn.Conv2d(48, 96, 3, 2, padding=1), nn.BatchNorm2d(96), nn.ReLU(),
            nn.AdaptiveAvgPool2d((5, 1)), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(128 * 4 + 96 * 5, classes))

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        window = torch.hann_window(128)
        power = torch.stft(audio[:, 0], 128, 32, window=window, return_complex=True).abs().square()
        heard = self.audio(((power + 1e-5).log() / 3)[:, None])
        return self.head(torch.cat((self.video(video.flatten(1, 2)), heard), 1))


def network_accuracy(name: str, clip: ClipSpec, train: int, test: int, epochs: int) -> float:
    """Held-out accuracy of `SmallNetwork` trained on clips 0 … train - 1, tested on the ``test`` that follow."""
    world = get_world(name)
    parts = [world.render(range(k, min(k + 500, train + test)), clip, seed=9) for k in range(0, train + test, 500)]
    video, audio = (torch.cat([getattr(part.clips, side) for part in parts]) for side in ("video", "audio"))
    labels = torch.cat([part.labels for part in parts])
    torch.manual_seed(0)
    network = SmallNetwork(len(world.classes))
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    steps = epochs * (train // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    for _ in range(epochs):
        for rows in torch.randperm(train)[: train // 64 * 64].split(64):
            optimiser.zero_grad()
            loss = F.cross_entropy(network(video[rows], audio[rows]), labels[rows], label_smoothing=0.05)
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        found = torch.cat(
            [network(video[k : k + 250], audio[k : k + 250]).argmax(1) for k in range(train, train + test, 250)]
        )
    confusion = torch.zeros(len(world.classes), len(world.classes), dtype=torch.int64)
    for truth, guess in zip(labels[train:].tolist(), found.tolist(), strict=True):
        confusion[truth, guess] += 1
    print(name, confusion)
    return float((found == labels[train:]).double().mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_a_small_network_learns_the_classes(name: str) -> None:
    accuracy = network_accuracy(name, MICRO, train=6000, test=1000, epochs=10)
    print(f"{name}: {accuracy:.3f}")
    assert accuracy > 0.93


# --- sound and picture ------------------------------------------------------------------------------------------------


def motion(video: Tensor) -> Tensor:
    """(B, F - 1) how much the picture changes from each frame to the next."""
    return (video[:, 1:] - video[:, :-1]).abs().mean((2, 3, 4))


def onset_strength(audio: Tensor, frames: int) -> Tensor:
    """(B, F - 1) rise of the sound's level in the time around each change of frame (half a frame to each side)."""
    per = audio.shape[-1] // (2 * frames)
    level = audio[:, 0, : per * 2 * frames].reshape(len(audio), 2 * frames, per).square().mean(2).add(1e-6).log()
    rise = (level[:, 1:] - level[:, :-1]).clamp(min=0)
    # The change from frame f - 1 to f happens between their middles: the rises into half frames 2f and 2f ± 1.
    return torch.maximum(
        rise[:, 1 : 2 * frames - 1 : 2], 0.5 * (rise[:, 0 : 2 * frames - 2 : 2] + rise[:, 2 : 2 * frames : 2])
    )


def lag_curve(motions: Tensor, onsets: Tensor, most: int = 4) -> Tensor:
    """Mean correlation of motion with sound, for sound later than motion by -most … most frames."""

    def centred(x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        return x / x.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)

    length = motions.shape[1]
    values = []
    for lag in range(-most, most + 1):
        a = motions[:, max(0, -lag) : length - max(0, lag)]
        b = onsets[:, max(0, lag) : length - max(0, -lag)]
        values.append((centred(a) * centred(b)).mean())
    return torch.stack(values)


@pytest.mark.parametrize("name", WORLDS)
def test_sound_follows_motion_in_real_pairs_only(name: str) -> None:
    """Onsets and motion correlate most at a lag of at most one frame; with another clip's sound at no lag."""
    clip = ClipSpec(frames=32, fps=10, size=32, sample_rate_hz=4000)
    out = get_world(name).render(range(96), clip, seed=4).clips
    motions, onsets = motion(out.video), onset_strength(out.audio, clip.frames)
    real, shuffled = lag_curve(motions, onsets), lag_curve(motions, onsets.roll(1, 0))
    print(name, [round(float(x), 3) for x in real], [round(float(x), 3) for x in shuffled])
    best = int(real.argmax()) - 4
    assert abs(best) <= 1
    assert float(real.max()) > 0.12
    assert float(shuffled.abs().max()) < 0.35 * float(real.max())


@pytest.mark.parametrize("name", WORLDS)
def test_sound_follows_motion_in_every_class(name: str) -> None:
    """Class by class the correlation peaks within 0.1 s of no lag (thunder: of its mean delay, 0.13 s)."""
    world = get_world(name)
    clip = ClipSpec(frames=48, fps=20, size=32, sample_rate_hz=4000)
    labels = world.labels(range(1200), 5)
    for label, kind in enumerate(world.classes):
        out = world.render(torch.nonzero(labels == label)[:48, 0], clip, seed=5).clips
        motions, onsets = motion(out.video), onset_strength(out.audio, clip.frames)
        real = lag_curve(motions, onsets, 8)
        shuffled = torch.stack([lag_curve(motions, onsets.roll(k, 0), 8) for k in range(1, 6)]).mean(0)
        lag_s = (int(real.argmax()) - 8) / clip.fps - (0.13 if kind == "thunder" else 0.0)
        print(f"{kind}: {float(real.max()):.2f} at {lag_s:+.2f} s, shuffled {float(shuffled.abs().max()):.2f}")
        assert abs(lag_s) <= 0.1, kind
        assert float(real.max()) > 2 * float(shuffled.abs().max()), kind


def test_sound_begins_when_the_event_does() -> None:
    """The loudest rise of the sound lies within 30 ms of a stated event (plus the stated delay of sound)."""
    world = get_world("landscape")
    clip = ClipSpec(frames=16, fps=10, size=8, sample_rate_hz=16000)
    labels = world.labels(range(600), 6)
    for name in ("explosion", "splashing water", "squishing water", "thunder"):
        rows = torch.nonzero(labels == world.classes.index(name))[:30, 0]
        out = world.render(rows, clip, seed=6)
        gap_s = strongest_rise_to_event_s(out, clip)
        assert float((gap_s < 0.03).double().mean()) > 0.85, (name, gap_s)


def test_beats_are_heard_when_the_dancer_moves() -> None:
    """Notes fall on half of the sixteenths, but the sound's strongest rise is mostly on a stated beat."""
    world = get_world("dance")
    clip = ClipSpec(frames=16, fps=10, size=8, sample_rate_hz=16000)
    out = world.render(range(120), clip, seed=6)
    gap_s = strongest_rise_to_event_s(out, clip)
    assert float((gap_s < 0.03).double().mean()) > 0.6
    for row, times in enumerate(out.events_s):
        period_s = 60 / float(out.factors["bpm"][row])
        assert all(b - a == pytest.approx(period_s, abs=1e-4) for a, b in itertools.pairwise(times))
        assert 80 <= float(out.factors["bpm"][row]) <= 130


def strongest_rise_to_event_s(out: WorldClips, clip: ClipSpec) -> Tensor:
    """(B,) seconds between the strongest rise of the sound's power and the nearest event, sound delay allowed for."""
    per = clip.sample_rate_hz // 100
    power = out.clips.audio[:, 0].unfold(1, 2 * per, per // 2).square().mean(2)
    rise = power[:, 4:] - power[:, :-4]
    at_s = (rise.argmax(1) + 4) * (per / 2 / clip.sample_rate_hz) + 0.5 * per / clip.sample_rate_hz
    gaps = []
    for row, times in enumerate(out.events_s):
        delay_s = out.factors["sound_delay_s"][row] if "sound_delay_s" in out.factors else torch.tensor(math.nan)
        shift = 0.0 if bool(delay_s.isnan()) else float(delay_s)
        gaps.append(min((abs(float(at_s[row]) - t - shift) for t in times), default=9.0))
    return torch.tensor(gaps)


# --- variety ----------------------------------------------------------------------------------------------------------


def nearest_distance(name: str, num: int) -> tuple[float, float]:
    """Root mean square distances: the least between any two of ``num`` clips, and the median over random pairs."""
    world = get_world(name)
    clip = ClipSpec(frames=4, fps=5, size=8, sample_rate_hz=1280)
    parts = [world.render(range(k, min(k + 1000, num)), clip, seed=8).clips for k in range(0, num, 1000)]
    vectors = torch.cat([part.video.flatten(1) for part in parts]).double()
    scale = math.sqrt(vectors.shape[1])
    least = math.inf
    for rows in torch.arange(num).split(1000):
        distance = torch.cdist(vectors[rows], vectors)
        distance[torch.arange(len(rows)), rows] = math.inf
        least = min(least, float(distance.min()))
    usual = (vectors - vectors.roll(1, 0)).norm(dim=1).median()
    return least / scale, float(usual) / scale


@pytest.mark.parametrize("name", WORLDS)
def test_no_two_clips_are_alike(name: str) -> None:
    least, usual = nearest_distance(name, 1000)
    assert least > 0.02, least
    assert usual > 0.2, usual


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_no_two_of_ten_thousand_clips_are_alike(name: str) -> None:
    least, usual = nearest_distance(name, 10_000)
    print(f"{name}: nearest {least:.4f}, usual {usual:.3f}")
    assert least > 0.03, least
