"""The law of coarse colours: what noise is given at the start of sampling."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgct import AVPipeline
from mgct.checkpoint import read_checkpoint
from mgct.clip_folder import sample_to_folder
from mgct.coarse_start import CoarseStart, CoarseSums
from mgct.errors import UserError
from mgct.model_card import HowSampled, ModelFacts, model_card
from mgct.noise import NoiseLevel
from mgct.reproduce.study import Settings, Study
from mgct.sampling_options import SamplingOptions
from tests.test_pipeline import CLIP, QUIET, tiny_unet
from tests.test_trainer import batches, trainer

LEVEL = NoiseLevel(torch.tensor([0.6]), torch.tensor([0.8]))


def videos(count: int, seed: int = 0) -> torch.Tensor:
    """Clips (count, 4, 3, 8, 8) of one colour each, the three channels dependent, with noise of their own."""
    draw = torch.Generator().manual_seed(seed)
    colours = torch.randn(count, 3, generator=draw) @ torch.tensor([[0.3, 0.1, 0.0], [0.0, 0.2, 0.1], [0.0, 0.0, 0.1]])
    return 0.2 + colours[:, None, :, None, None] + 0.1 * torch.randn(count, 4, 3, 8, 8, generator=draw)


def cells(video: torch.Tensor) -> torch.Tensor:
    """Means over time and over the four quarters, (B, 12)."""
    return video.unflatten(-1, (2, 4)).unflatten(-3, (2, 4)).mean(dim=(1, 4, 6)).flatten(1)


def test_noise_gets_the_coarse_law_of_noisy_clips():
    clean, noise = videos(4000), torch.randn(4000, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    start = CoarseStart.fit(clean.split(1000), cells=2)
    noisy = cells(0.6 * clean + 0.8 * noise)
    made = cells(start.apply(noise, LEVEL))
    torch.testing.assert_close(made.mean(0), noisy.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(made.T), torch.cov(noisy.T), rtol=0, atol=0.003)
    assert cells(noise).var() < 0.6 * made.var()  # what noise alone lacks


def test_what_is_finer_than_the_cells_stays_as_it_is():
    noise = torch.randn(3, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    made = CoarseStart.fit([videos(50)], cells=2).apply(noise, LEVEL)
    change = made - noise
    torch.testing.assert_close(
        change, change[:, :1, :, ::4, ::4].repeat_interleave(4, 3).repeat_interleave(4, 4).expand_as(change)
    )


def test_each_clip_is_changed_by_itself_and_longer_ones_too():
    start = CoarseStart.fit([videos(50)], cells=2)
    noise = torch.randn(3, 8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(start.apply(noise, LEVEL)[1:2], start.apply(noise[1:2], LEVEL))


def test_the_grid_fits_the_picture_and_one_clip_is_no_law():
    assert CoarseStart.fit([videos(9)[..., :6, :6]], cells=4).config["cells"] == 2
    with pytest.raises(UserError, match="at least two clips"):
        CoarseStart.fit([videos(1)])


@pytest.fixture
def pipe():
    return AVPipeline(tiny_unet(), CLIP, coarse_start=CoarseStart.fit([videos(50)], cells=2))


def test_a_pipeline_keeps_its_start_and_samples_from_it(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded, plain = AVPipeline.from_pretrained(tmp_path), AVPipeline(pipe.unet, CLIP)
    made = pipe(num_clips=2, steps=2, **QUIET)
    assert torch.equal(loaded(num_clips=2, steps=2, **QUIET).video, made.video)
    assert not torch.equal(plain(num_clips=2, steps=2, **QUIET).video, made.video)
    torch.testing.assert_close(pipe(steps=2, indices=[1], **QUIET).video, made.video[1:], rtol=0, atol=1e-4)
    assert pipe(steps=2, seconds=0.8, **QUIET).video.shape[1] == 8


def test_what_is_given_is_given_still(pipe):
    sound = torch.rand(1, 1, CLIP.audio_samples) - 0.5
    torch.testing.assert_close(pipe.audio_to_video(sound, steps=3, **QUIET).audio, sound, rtol=0, atol=1e-5)


def test_clips_with_and_without_it_are_not_mixed(pipe, tmp_path):
    plain, options = AVPipeline(pipe.unet, CLIP), SamplingOptions(steps=1, progress=False)
    sample_to_folder(pipe, tmp_path, 1, options)
    with pytest.raises(UserError, match=r"made otherwise.*coarse_start"):
        sample_to_folder(plain, tmp_path, 1, options)


def test_the_papers_tables_start_from_noise_alone(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    study = Study({"baseline": tmp_path / "model"}, tmp_path, Settings())
    assert study._pipe("baseline").coarse_start is None


def test_the_card_says_so():
    said = [
        model_card(ModelFacts("m", CLIP, 1, {"ddim": [1, 2]}, sampled=HowSampled(coarse_start=has)))
        for has in (True, False)
    ]
    assert ["coarse colours" in text for text in said] == [True, False]


def same_law(one, other) -> bool:
    return torch.allclose(one.mean, other.mean, atol=1e-6) and torch.allclose(
        one.covariance, other.covariance, atol=1e-6
    )


def test_sums_of_parts_add_up_and_a_part_of_weight_0_does_not_count():
    clips, total = videos(50), CoarseSums(2)
    for part, weight in ((clips[:20], 1.0), (videos(5, seed=1), torch.tensor(0.0)), (clips[20:], torch.tensor(1.0))):
        total.add(part, weight)
    whole = CoarseStart.fit([clips], cells=2)
    assert same_law(total.law(), whole)
    torch.testing.assert_close(whole.covariance, torch.cov(cells(clips).T), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.mean, cells(clips).mean(0))
    first, second = CoarseSums(2), CoarseSums(2)  # of two processes
    first.add(clips[:20])
    second.add(clips[20:])
    assert same_law(first.of_all(lambda sums: sums + second.sums).law(), whole)
    assert float(first.sums[0, 0]) == 20


def test_a_run_fits_the_law_of_the_clips_it_has_seen_and_goes_on_with_it(tmp_path):
    run, exported = trainer(tmp_path, steps=2), []
    run.export = lambda _network, law, _objective, step, _name: exported.append((step, law))
    run.fit()
    second = trainer(tmp_path, steps=3)
    second.load(read_checkpoint(tmp_path))
    second.export = run.export
    second.fit()
    clips = [batch.clips.video.float() / 127.5 - 1 for batch, _ in zip(batches(0), range(3), strict=False)]
    for (step, law), steps in zip(exported, (2, 3), strict=True):
        assert step == steps
        assert same_law(law, CoarseStart.fit(clips[:steps]))


def test_a_run_without_it_exports_none_and_another_grid_begins_anew(tmp_path):
    exported = []
    for steps, size in ((1, 8), (2, 0), (3, 4)):
        run = trainer(tmp_path, steps=steps, coarse_start_cells=size)
        run.export = lambda _network, law, _objective, _step, _name: exported.append(law)
        if steps > 1:
            run.load(read_checkpoint(tmp_path))
        run.fit()
    assert exported[1] is None
    assert [law.config["cells"] for law in exported[::2]] == [8, 4]
    third = next(iter(batches(2))).clips.video.float() / 127.5 - 1
    assert same_law(exported[2], CoarseStart.fit([third], cells=4))


def test_a_grid_that_was_made_to_fit_is_resumed():
    before, after = CoarseSums(8), CoarseSums(8)
    before.add(videos(3)[..., :6, :6])
    after.load(before.tensors(), torch.device("cpu"), keep=True)
    after.add(videos(3, seed=1)[..., :6, :6])
    assert (after.cells, float(after.sums[0, 0])) == (2, 6)
    idle = CoarseSums(8)
    idle.load(before.tensors(), torch.device("cpu"), keep=False)
    assert float(idle.sums.abs().sum()) == 0


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_damaged_law_is_refused(pipe, tmp_path, value):
    pipe.save_pretrained(tmp_path)
    path = tmp_path / "coarse_start" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    mean = tensors.pop("mean")
    save_file(tensors if value is None else {**tensors, "mean": mean * value}, path, {"format": "pt"})
    with pytest.raises(UserError, match="missing mean" if value is None else "mean is not of finite numbers"):
        AVPipeline.from_pretrained(tmp_path)
