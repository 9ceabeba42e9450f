"""The law of coarse colours: what noise is given at the start of sampling."""

import pytest
import torch

from mgct import AVPipeline
from mgct.clip_folder import sample_to_folder
from mgct.coarse_start import CoarseStart
from mgct.errors import UserError
from mgct.model_card import ModelFacts, model_card
from mgct.noise import NoiseLevel
from mgct.reproduce.study import Settings, Study
from mgct.sampling_options import SamplingOptions
from tests.test_pipeline import CLIP, QUIET, tiny_unet

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
    said = [model_card(ModelFacts("m", CLIP, 1, {"ddim": [1, 2]}, coarse_start=has)) for has in (True, False)]
    assert ["coarse colours" in text for text in said] == [True, False]
