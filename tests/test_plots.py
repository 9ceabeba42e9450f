"""What the figures show, read back from their axes and pixels."""

import io
import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from matplotlib.figure import Figure

from mgct import AVSample, ClipSpec
from mgct.clip_folder import save_clips
from mgct.commands.plot import plot_clips, plot_compare, plot_loss, plot_sheet
from mgct.data.media import write_mp4
from mgct.errors import UserError
from mgct.metrics.sources import clip_of
from mgct.plots import FLOOR_DB, animated_sheet, clips_figure, compare_figure, loss_figure, spectrogram_db
from mgct.types import quantise

CLIP = ClipSpec(frames=4, fps=10, size=8, sample_rate_hz=2560)


def clips(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    video = torch.rand(count, *CLIP.video_shape, generator=generator) * 2 - 1
    return AVSample(video=video, audio=torch.rand(count, *CLIP.audio_shape, generator=generator) - 0.5)


def png_size(figure: Figure) -> int:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return len(buffer.getvalue())


@pytest.mark.parametrize(("frequency_hz", "amplitude"), [(200.0, 1.0), (1000.0, 0.1)])
def test_spectrogram_has_a_sine_at_its_frequency_with_its_level(frequency_hz, amplitude):
    sine = amplitude * torch.sin(2 * math.pi * frequency_hz * torch.arange(2560) / 2560)
    level = spectrogram_db(sine, 2560)
    middle = level[:, level.shape[1] // 2]
    assert middle.argmax() / (len(middle) - 1) * 1280 == pytest.approx(frequency_hz, abs=10)
    assert middle.max().item() == pytest.approx(20 * math.log10(amplitude), abs=0.5)
    assert spectrogram_db(torch.zeros(2560), 2560).max() == FLOOR_DB


def test_clips_figure_has_frames_above_a_spectrogram_for_each_clip():
    figure = clips_figure(clips(), CLIP, ["a", "b", "c"])
    assert len(figure.axes) == 6
    frames, sound = figure.axes[:2]
    assert frames.get_title() == "a"
    assert frames.images[0].get_array().shape == (8, 4 * 8, 3)
    assert frames.get_position().y0 > sound.get_position().y0
    assert sound.get_xlim() == (0, pytest.approx(CLIP.seconds))
    assert png_size(figure) > 2000


def test_compare_figure_puts_clip_k_of_each_group_in_one_column():
    upper, lower = clips(4), clips(4, seed=1)
    figure = compare_figure({"real": upper, "generated": lower}, CLIP)
    frames = [axes for axes in figure.axes if axes.images[0].get_array().ndim == 3]
    assert [axes.get_ylabel() for axes in frames if axes.get_ylabel()] == ["real", "generated"] * 2
    first = {(round(axes.get_position().x0, 3), axes.get_ylabel()) for axes in frames[:2]}
    assert len({x for x, _ in first}) == 1
    shown = torch.from_numpy(frames[0].images[0].get_array().copy())
    expected = (upper.video[0] + 1).div(2).permute(2, 0, 3, 1).flatten(1, 2)
    torch.testing.assert_close(shown, expected, check_dtype=False)
    with pytest.raises(UserError, match="same number of clips"):
        compare_figure({"real": upper, "generated": clips(3)}, CLIP)
    with pytest.raises(UserError, match="3 clips need 3 titles, got 2"):
        clips_figure(clips(3), CLIP, ["a", "b"])


@pytest.mark.parametrize("given", [True, False])
def test_loss_figure_marks_the_boundary(given):
    rows = [{"step": step, "stage": 1, "loss": 1 / (step + 1)} for step in range(30)]
    rows += [{"step": step, "stage": 2, "loss": 0.1, "loss_mm": 0.12, "loss_cm": 0.05} for step in range(30, 50)]
    rows.append({"step": 50, "note": "no loss here"})
    axes = loss_figure(rows, 30 if given else None).axes[0]
    assert [text.get_text() for text in axes.texts] == ["transfer, step 30"]
    assert len(axes.get_legend().get_texts()) == 3
    assert "transfer" not in str([text.get_text() for text in loss_figure(rows[:30]).axes[0].texts])
    with pytest.raises(UserError, match="no loss to draw"):
        loss_figure([{"step": 1}])


def test_animated_sheet_plays_each_clip_in_turn_or_all_at_once():
    some = clips(3)
    video, audio = animated_sheet(some, CLIP)
    assert video.shape == (12, 3, 2 * 12, 2 * 12)
    assert audio.shape == (1, 3 * CLIP.audio_samples)
    assert (video.dtype, audio.dtype) == (torch.uint8, torch.int16)
    for playing in range(3):
        corners = [video[4 * playing, :, k // 2 * 12, k % 2 * 12].tolist() for k in range(3)]
        assert [corner == [255] * 3 for corner in corners] == [k == playing for k in range(3)]
    torch.testing.assert_close(audio[0, : CLIP.audio_samples], (some.audio[0, 0] * 32768).round().to(torch.int16))
    video, audio = animated_sheet(some, CLIP, "mixed", columns=3)
    assert video.shape == (4, 3, 12, 36)
    assert audio.shape == (1, CLIP.audio_samples)
    expected = ((some.video[2] + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(video[:, :, 2:10, 26:34], expected)
    with pytest.raises(UserError, match="'sequential' or 'mixed'"):
        animated_sheet(some, CLIP, "loud")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same clips as samples without loss that say what they are, and as videos that do not."""
    samples, videos = tmp_path_factory.mktemp("samples"), tmp_path_factory.mktemp("videos")
    clip = replace(CLIP, size=16, sample_rate_hz=8000)
    some = AVSample(video=torch.zeros(2, *clip.video_shape), audio=torch.zeros(2, *clip.audio_shape))
    save_clips(some, samples, clip, format="safetensors")
    (samples / "sampling.json").write_text(json.dumps({"clip": asdict(clip), "seconds": None}))
    stored = quantise(some)
    for number in range(2):
        path = videos / f"{number}.mp4"
        write_mp4(path, stored.video[number], stored.audio[number], fps=clip.fps, sample_rate_hz=clip.sample_rate_hz)
    return samples, videos


@pytest.mark.parametrize("order", [1, -1])
def test_videos_are_compared_as_clips_of_the_side_that_says_what_they_are(folders, tmp_path, order):
    samples, videos = folders
    plot_compare(*map(str, (samples, videos)[::order]), tmp_path / "compared.png", num=2)
    assert (tmp_path / "compared.png").stat().st_size > 1000


def test_what_cannot_be_drawn_is_said(folders, tmp_path):
    samples = str(folders[0])
    with pytest.raises(UserError, match="num must be at least 1"):
        plot_clips(samples, tmp_path / "a.png", num=0)
    with pytest.raises(UserError, match="two with a comma"):
        plot_compare(samples, samples, tmp_path / "a.png", names="one")
    with pytest.raises(UserError, match=r"ends in \.mp4"):
        plot_sheet(samples, tmp_path / "a.avi")
    with pytest.raises(UserError, match="nowhere does not exist"):
        plot_clips(str(tmp_path / "nowhere"), tmp_path / "a.png")
    with pytest.raises(UserError, match="cannot be written"):
        plot_clips(samples, tmp_path / "a.xyz")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def upsampler_run(tmp_path):
    """What `mgct train-upsampler` leaves: a checkpoint without a transfer, and its log."""
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"step": 2, "config": {}, "sums": {}, "summed": 0}))
    rows = [{"step": step, "loss": 0.5, "learning_rate": 1e-4, "images_per_s": 9.0} for step in (1, 2)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "run"


def test_an_upsampler_s_losses_are_drawn_and_what_was_written_is_said(upsampler_run, tmp_path, capsys):
    plot_loss(upsampler_run, tmp_path / "losses")
    assert capsys.readouterr().out == f"{tmp_path / 'losses.png'}\n"
    assert (tmp_path / "losses.png").stat().st_size > 1000


def test_a_run_without_a_row_yet_is_told_from_what_is_no_run(upsampler_run, tmp_path):
    with pytest.raises(UserError, match="no metrics there"):
        plot_loss(tmp_path, tmp_path / "loss.png")
    (upsampler_run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no row in metrics\.jsonl yet: one comes every train\.log_every steps"):
        plot_loss(upsampler_run, tmp_path / "loss.png")


def test_a_figure_that_cannot_be_written_leaves_the_one_before(upsampler_run, tmp_path, monkeypatch):
    out = tmp_path / "loss.png"
    out.write_bytes(b"before")

    def full(_, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(UserError, match=r"loss\.png cannot be written \(No space left"):
        plot_loss(upsampler_run, out)
    assert out.read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {"loss.png", "run"}


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"clip": 3}', '{"clip": {"fps": "x"}, "seconds": null}', '{"clip": {}, "seconds": Infinity}'],
)
def test_a_damaged_record_of_clips_is_said(tmp_path, content):
    (tmp_path / "sampling.json").write_text(content)
    with pytest.raises(UserError, match=r"sampling\.json is damaged"):
        clip_of(str(tmp_path))
