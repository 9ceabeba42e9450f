"""What is watched in training changes nothing of it, and says what it should."""

from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mgct import AVPipeline, AVSample, ClipSpec
from mgct.checkpoint import read_checkpoint, read_metrics
from mgct.coarse_start import CoarseStart
from mgct.data.media import probe
from mgct.errors import UserError
from mgct.held_out import HeldOutLoss
from mgct.losses import ClipLoss
from mgct.metrics import sync
from mgct.metrics.sources import open_source
from mgct.monitors import RUNNING_METRIC, Monitors, MonitorSettings, band_means, reference_clips
from mgct.trainer import Trainer
from mgct.types import quantise
from tests.test_trainer import batches, trainer

CLIP = ClipSpec(4, 10.0, 8, 160)
EVERYTHING = MonitorSettings(
    noise_bands=2,
    gradients_every=2,
    samples_every=4,
    samples=2,
    metric_every=4,
    metric_clips=6,
    sample_steps=2,
    sample_batch_size=4,
    reference="world:landscape",
)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    run = tmp_path_factory.mktemp("watched")
    plain = trainer(run)
    monitors = Monitors(EVERYTHING, CLIP, "world:landscape", run, plain.accelerator)

    def export(network, coarse_start, objective, step, name):
        AVPipeline(network, CLIP, coarse_start=coarse_start).save_pretrained(run / name)

    settings = (plain.unet, plain.objective, batches, plain.settings, run, {}, export, plain.accelerator)
    Trainer(*settings, EVERYTHING, monitors).fit()
    return run


def test_what_is_watched_is_sampled_from_the_model_s_own_noise_level(tmp_path):
    plain = trainer(tmp_path)
    law = CoarseStart.fit([next(iter(batches(0))).clips.video.float() / 127.5 - 1])
    seen = []
    for start, coarse in ((None, None), (700, None), (700, law)):
        monitors = Monitors(EVERYTHING, CLIP, "world:landscape", tmp_path, plain.accelerator, start)
        pipe = AVPipeline(plain.ema, CLIP, start_timestep=start, coarse_start=coarse)
        seen.append(monitors._sample(plain.ema, coarse, 2).video)
        assert torch.equal(seen[-1], quantise(pipe(num_clips=2, steps=2, progress=False)).video)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_watched_run_ends_in_the_same_weights(watched, tmp_path):
    trainer(tmp_path).fit()
    for part in ("model", "ema", "target", "optimizer"):
        ours, theirs = (read_checkpoint(run).tensors(part) for run in (watched, tmp_path))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items()), part


def test_the_log_has_bands_gradients_loudness_motion_and_metric(watched):
    rows = read_metrics(watched)
    trained, sampled = (next(row for row in rows if name in row) for name in ("grad_cm", RUNNING_METRIC))
    assert {"grad_mm_video", "grad_mm_audio", "grad_cm_over_mm", "grad_norm"} <= trained.keys()
    assert trained["grad_cm_over_mm"] == pytest.approx(trained["grad_cm"] / trained["grad_mm"])
    assert any(name.startswith("loss_mm_audio/t") for name in trained)
    wanted = {"loudness_db", "loudness_db_data", "motion", "motion_data", "FVD-compact", "FAD-compact", "sync_score"}
    assert wanted <= sampled.keys()
    assert all(value == value for value in sampled.values())
    tested = [row["loss_mm_test"] for row in rows if "loss_mm_test" in row]
    assert len(tested) == 2


def test_sheets_sounds_and_numbers_are_in_the_folder_and_in_tensorboard(watched):
    sheet = watched / "samples" / "step-00000004.mp4"
    report = probe(sheet)
    assert report.video_s == pytest.approx(2 * CLIP.seconds, abs=0.11)  # one clip's sound after the other's
    assert report.audio_s > 0
    assert (watched / "samples" / "step-00000008.png").stat().st_size > 1000
    events = EventAccumulator(str(watched / "tensorboard"), size_guidance={"images": 0, "audio": 0}).Reload()
    tags = events.Tags()
    assert {"loss_mm", "loss_cm", "grad_norm", RUNNING_METRIC} <= set(tags["scalars"])
    assert [event.step for event in events.Images(tags["images"][0])] == [4, 8]
    assert len(tags["audio"]) == 2


def test_the_best_model_is_the_one_with_the_best_metric(watched):
    values = {row["step"]: row[RUNNING_METRIC] for row in read_metrics(watched) if RUNNING_METRIC in row}
    assert read_checkpoint(watched).state["best"] == min(values.values())
    best = AVPipeline.from_pretrained(watched / "best").unet.state_dict()
    last = read_checkpoint(watched).tensors("ema")
    same = all(torch.equal(best[name], value) for name, value in last.items())
    assert same == (min(values, key=values.get) == 8)


def test_bands_share_out_the_clips_and_keep_their_sums():
    timestep = torch.tensor([0, 249, 250, 999, 400])
    loss = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    bands = band_means(timestep, {"x": loss}, 4, 1000)
    sums = {name: (total.item(), count.item()) for name, (total, count) in bands.items()}
    assert sums == {"x/t000-249": (3, 2), "x/t250-499": (20, 2), "x/t500-749": (0, 0), "x/t750-999": (8, 1)}


def test_a_stream_cannot_be_compared_with():
    with pytest.raises(UserError, match=r"give --monitor\.reference FOLDER"):
        reference_clips("pipe:cat x.tar", CLIP, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "monitor.samples must be at least 1"),
        ({"metric_every": -1}, "must not be negative"),
        ({"metric_clips": 2}, "monitor.metric_clips must be at least 3, got 2"),
        ({"sampler": "euler"}, "monitor.sampler, monitor.sample_steps: unknown sampler 'euler'"),
        ({"sampler": "consistency"}, "'consistency' takes 1 to 8 steps, got 12"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        MonitorSettings(**settings)


def test_a_loss_without_timesteps_has_no_bands(tmp_path):
    one = trainer(tmp_path, steps=2, log_every=1)
    one.watch = MonitorSettings(gradients_every=0, samples_every=0, metric_every=0)
    plain = one.objective.loss
    one.objective.loss = lambda *arguments: ClipLoss(*plain(*arguments)[:2])
    one.fit()
    assert not [name for row in read_metrics(tmp_path) for name in row if "/t" in name]


class Share(torch.nn.Module):
    """Predicts a part of what it sees as noise."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, video, audio, *_, **__):
        return AVSample(video=video * self.share, audio=audio * self.share)


def test_the_held_out_loss_is_of_both_splits_and_depends_on_the_network_alone(tiny_shards):
    """Zero noise predicted is 1 off in each modality; the same at any batch size; a better network has less."""
    many, few = (HeldOutLoss(str(tiny_shards), CLIP, 64, torch.device("cpu"), size) for size in (64, 3))
    flat = many(Share(0.0))
    assert flat.keys() == {"loss_mm_test", "loss_mm_train"}
    assert flat == pytest.approx(few(Share(0.0)), rel=1e-6)
    assert list(flat.values()) == pytest.approx([2, 2], rel=0.05)  # of 64 each, though there are but ten clips
    assert all(value < flat[name] for name, value in many(Share(0.5)).items())


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ("world:landscape", {"loss_mm_test"}),
        ("world:landscape:8", {"loss_mm_test", "loss_mm_train"}),
        ("pipe:cat x.tar", set()),
    ],
)
def test_a_held_out_loss_is_only_of_what_there_is(data, names):
    assert set(HeldOutLoss(data, CLIP, 4, torch.device("cpu"), 2)(Share(0.0))) == names


def test_a_run_that_goes_on_knows_its_best_metric(tmp_path):
    first, second = (trainer(tmp_path, steps=1) for _ in range(2))
    first.monitors, second.monitors = (SimpleNamespace(best=best, due=lambda _: False) for best in (0.5, None))
    first.fit()
    second.load(read_checkpoint(tmp_path))
    assert second.monitors.best == 0.5


def watch(tmp_path, values):
    """A run whose metric at steps 2 and 4 is as given: it, what was exported, and what was sampled from."""
    one = trainer(tmp_path, steps=4)
    exported, sampled = [], []

    class Fake:
        best = None
        is_best = Monitors.is_best

        def due(self, step):
            return step % 2 == 0

        def __call__(self, network, coarse_start, step, trackers):
            sampled.append(network)
            return {RUNNING_METRIC: values[step]}

    one.monitors = Fake()
    one.export = lambda network, _coarse_start, _objective, step, name: exported.append(
        (name, step, next(network.parameters()).clone())
    )
    one.fit()
    return one, exported, sampled


def test_the_best_model_is_the_average_and_was_measured_itself(tmp_path):
    one, exported, sampled = watch(tmp_path, {2: 2.0, 4: 1.0})
    assert all(network is one.ema for network in sampled)
    best = [(step, weights) for name, step, weights in exported if name == "best"]
    assert [step for step, _ in best] == [2, 4]
    assert torch.equal(best[-1][1], next(one.ema.parameters()))


def test_clips_are_compared_with_the_test_split_where_it_is_large_enough(tiny_shards):
    test, train = (open_source(tiny_shards, CLIP, split) for split in ("test", "train"))
    assert (len(test), len(train)) == (2, 8)
    for num, expected in ((2, test), (3, train)):
        found = reference_clips(str(tiny_shards), CLIP, num)
        assert torch.equal(found.read([0]).video, expected.read([0]).video)
    world = reference_clips("world:landscape", CLIP, 4)
    assert torch.equal(world.read(range(4)).video, open_source("world:landscape:4", CLIP, "test").read(range(4)).video)


def test_loudness_and_motion_are_of_the_samples_and_of_the_reference(tmp_path):
    plain = trainer(tmp_path)
    settings = MonitorSettings(
        samples_every=0, metric_every=1, metric_clips=4, test_loss_clips=0, reference="world:dance:4"
    )
    monitors = Monitors(settings, CLIP, "world:landscape", tmp_path, plain.accelerator)
    clips = open_source("world:landscape:4", CLIP, "test").read(range(4))
    row, real = monitors._loudness_and_motion(clips), open_source("world:dance:4", CLIP, "test").read(range(4))
    for suffix, part in (("", clips), ("_data", real)):
        assert row[f"motion{suffix}"] == pytest.approx(sync.motion_curve(part.video).mean().item())
        assert row[f"loudness_db{suffix}"] == pytest.approx(sync.loudness_db(part.audio).mean().item())


@pytest.mark.filterwarnings("ignore::mgct.metrics.distances.RankDeficientWarning")
def test_the_running_metric_is_the_geometric_mean_of_its_distances(tmp_path):
    plain = trainer(tmp_path)
    settings = MonitorSettings(samples_every=0, metric_every=1, metric_clips=4, test_loss_clips=0)
    monitors = Monitors(settings, CLIP, "world:landscape", tmp_path, plain.accelerator)
    row = monitors._measure(open_source("world:dance:4", CLIP, "test").read(range(4)))
    assert row[RUNNING_METRIC] == pytest.approx((row["FVD-compact"] * row["FAD-compact"]) ** 0.5)


def test_the_held_out_loss_is_of_all_noise_levels():
    seen = []

    class Seen(torch.nn.Module):
        def forward(self, video, audio, timestep, **_):
            seen.extend(timestep.tolist())
            return AVSample(video=torch.zeros_like(video), audio=torch.zeros_like(audio))

    HeldOutLoss("world:landscape", CLIP, 4, torch.device("cpu"), 3)(Seen())
    assert seen == [125, 375, 625, 875]


def test_the_held_out_clips_are_of_the_split_they_are_called_by(tiny_shards):
    held = HeldOutLoss(str(tiny_shards), CLIP, 2, torch.device("cpu"), 3)
    for split, clips in held.clips.items():
        assert torch.equal(clips.video, open_source(tiny_shards, CLIP, split).read(range(2)).video)
    world = HeldOutLoss("world:landscape", CLIP, 2, torch.device("cpu"), 3).clips["test"]
    assert torch.equal(world.video, open_source("world:landscape:2", CLIP, "test").read(range(2)).video)


def test_the_held_out_noise_of_the_modalities_is_not_the_same():
    from mgct.held_out import _noise

    video, audio = (_noise(torch.zeros(1, 8), modality, range(1)) for modality in ("video", "audio"))
    assert not torch.equal(video, audio)


def test_more_held_out_clips_than_memory_has_room_for_are_refused():
    with pytest.raises(UserError, match=r"monitor\.test_loss_clips must be at most 10,000, got 1000000000"):
        HeldOutLoss("world:landscape", CLIP, 10**9, torch.device("cpu"), 3)


def test_held_out_clips_are_kept_once_however_often_they_are_used(tiny_shards):
    held = HeldOutLoss(str(tiny_shards), CLIP, 64, torch.device("cpu"), 64)
    assert {split: len(clips.video) for split, clips in held.clips.items()} == {"train": 8, "test": 2}
