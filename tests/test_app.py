"""The page without a browser: jobs, uploads, what visitors make, who may come in, and the API through its client."""

import io
import itertools
import json
import math
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mgct import AVPipeline, AVSample, ClipSpec, MultimodalUNet, cli
from mgct.app.decode import DecodeLimits, decode
from mgct.app.jobs import Cancelled, Job
from mgct.app.models import find_models, find_runs
from mgct.app.pictures import animation_webp, spectrogram_figure
from mgct.app.records import Limits, Settings
from mgct.app.server import check_access, is_loopback
from mgct.app.studio import Studio
from mgct.app.training import cards_markdown, facts_markdown, loss_png, stamp
from mgct.clip_random import derive_seed, per_clip_randn
from mgct.data.media import probe, read_clip, write_mp4
from mgct.errors import UserError
from mgct.sampling_options import SamplingOptions, Step
from mgct.types import quantise

CLIP = ClipSpec(frames=4, fps=10.0, size=16, sample_rate_hz=2560)
RANGES = {"consistency": [1, 8], "ddim": [10, 1000], "dpm-solver++": [4, 50]}


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    unet = MultimodalUNet(
        model_channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        cross_attention_resolutions=(2,),
        cross_attention_windows=(2,),
        video_attention_resolutions=(2,),
        num_heads=2,
        num_head_channels=8,
        norm_num_groups=8,
    )
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return AVPipeline(unet, CLIP, RANGES)


@pytest.fixture
def studio(pipe):
    studio = Studio({"tiny": pipe}, limits=Limits(batch_size=2))
    yield studio
    studio.close()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A video with a tone, a text that calls itself a video, a silent file, one that is too short."""
    folder = tmp_path_factory.mktemp("uploads")
    generator = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (30, 3, 20, 32), generator=generator, dtype=torch.uint8)
    audio = (torch.sin(torch.arange(24000) * 0.3) * 9000).to(torch.int16)[None]
    write_mp4(folder / "good.mp4", video, audio, fps=10, sample_rate_hz=8000)
    write_mp4(folder / "short.mp4", video[:2], audio[:, :1600], fps=10, sample_rate_hz=8000)
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "empty.mp4").touch()
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    return folder


def last(progress):
    return list(progress)[-1]


# ---------------------------------------------------------------------------------------------- the pipeline's hooks


def test_every_network_call_is_reported_with_its_guess_of_the_clip(pipe):
    steps: list[Step] = []
    clips = pipe(3, 5, "dpm-solver++", seed=2, batch_size=2, progress=False, on_step=steps.append)
    assert [(step.indices, step.call, step.calls) for step in steps] == [
        *(([0, 1], call, 5) for call in range(1, 6)),
        *(([2], call, 5) for call in range(1, 6)),
    ]
    assert all(step.clips.video.shape[1:] == CLIP.video_shape for step in steps)
    assert all(part.abs().max() <= 1 for step in steps for part in (step.clips.video, step.clips.audio))
    # the last step of this sampler ends at its own x̂0
    torch.testing.assert_close(steps[4].clips.video, clips.video[:2], atol=1e-4, rtol=0)


def test_what_a_step_s_listener_raises_ends_the_sampling(pipe):
    class Enough(Exception):
        pass

    calls = itertools.count(1)

    def stop(_):
        if next(calls) == 2:
            raise Enough

    with pytest.raises(Enough):
        pipe(1, 8, progress=False, on_step=stop)
    assert next(calls) == 3


def test_a_variation_starts_from_mixed_noise_and_does_not_depend_on_the_batch(pipe):
    seen = {}

    def start_noise(**options):
        class Caught(Exception):
            pass

        def hook(module, inputs):
            seen["x"] = torch.cat([inputs[0].flatten(1), inputs[1].flatten(1)], 1)
            raise Caught

        handle = pipe.unet.register_forward_pre_hook(hook)
        try:
            with pytest.raises(Caught):
                list(pipe.stream(options.pop("indices"), SamplingOptions(steps=4, progress=False, seed=5, **options)))
        finally:
            handle.remove()
        return seen["x"]

    base = start_noise(indices=[3])
    length = base.shape[1]
    torch.testing.assert_close(base, per_clip_randn((length,), [derive_seed(5, 3, "start")]))
    near = start_noise(indices=[0, 1], variation_of=[3], variation=0.6)
    correlation = torch.corrcoef(torch.cat([base, near]))
    slack = 4 / math.sqrt(length)
    assert abs(near.std().item() - 1) < slack
    assert abs(correlation[0, 1].item() - 0.8) < slack
    assert abs(correlation[1, 2].item() - 0.64) < slack
    assert torch.equal(start_noise(indices=[1], variation_of=[3], variation=0.6)[0], near[1])
    further = start_noise(indices=[0], variation_of=[3, 1], variation=0.6)
    assert abs(torch.corrcoef(torch.cat([near[1:], further]))[0, 1].item() - 0.8) < slack
    with pytest.raises(UserError, match="variation"):
        SamplingOptions(variation=0.0)


@pytest.mark.parametrize("sampler", ["sde-dpm-solver++", "ddpm"])
def test_a_variation_shares_the_noise_of_every_step_too(pipe, sampler):
    """So a small one is near the clip, also by samplers that draw noise at each step."""
    how = {"steps": 6, "sampler": sampler, "seed": 5, "progress": False}
    base, other = pipe(indices=[3], **how).video, pipe(indices=[0], **how).video
    near = pipe(indices=[0], variation_of=[3], variation=0.02, **how).video
    assert (near - base).norm() < 0.2 * (other - base).norm()


# ---------------------------------------------------------------------------------------------- models on the disk


def test_models_and_runs_are_found_by_name(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "zoo" / "one" / "model")
    pipe.save_pretrained(tmp_path / "zoo" / "deep" / "two")
    (tmp_path / "zoo" / "one" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    zoo = tmp_path / "zoo"
    assert find_models(zoo) == {"deep/two": zoo / "deep" / "two", "one": zoo / "one" / "model"}
    assert find_models(zoo / "one") == {"one": zoo / "one" / "model"}
    assert find_models(zoo / "one" / "model") == {"one": zoo / "one" / "model"}
    assert find_runs(zoo) == {"one": zoo / "one"}
    assert find_runs(zoo / "one") == {"one": zoo / "one"}
    with pytest.raises(UserError, match="no saved model"):
        find_models(tmp_path / "nothing")


def test_a_saved_model_is_read_again_when_it_changes_and_a_run_s_model_counts_once_saved(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "first")
    studio = Studio({"first": tmp_path / "first"}, {"later": tmp_path / "later"})
    assert studio.models.clip("first") == CLIP
    loaded = studio.models.pipeline("first")
    assert studio.models.pipeline("first") is loaded
    index = tmp_path / "first" / "model_index.json"
    index.write_text(index.read_text())
    assert studio.models.pipeline("first") is not loaded
    assert not studio.models.has("later")
    pipe.save_pretrained(tmp_path / "later" / "model")
    assert studio.models.has("later")
    with pytest.raises(UserError, match="no model 'other'"):
        studio.models.pipeline("other")


def test_the_model_s_own_samplers_come_first_with_their_steps(studio):
    choices = studio.models.choices("tiny")
    assert [choice.name for choice in choices[:3]] == ["dpm-solver++", "consistency", "ddim"]
    assert [choice.recommended for choice in choices] == [True] * 3 + [False] * (len(choices) - 3)
    assert (choices[0].low, choices[0].high, choices[0].default) == (4, 50, 12)
    assert "map" not in {choice.name for choice in choices}  # it takes a network with a second time input


# ---------------------------------------------------------------------------------------------- jobs


def test_a_job_hands_over_reports_and_errors():
    assert list(Job(lambda say: [say(n) for n in range(3)] and None).reports()) == [0, 1, 2]

    def breaks(say):
        say(1)
        raise KeyError("gone")

    seen = []
    with pytest.raises(KeyError, match="gone"):
        seen.extend(Job(breaks).reports())


def test_a_cancelled_job_ends_at_its_next_report_and_leaving_the_iteration_waits_for_it():
    made = []

    def work(say):
        for number in itertools.count():
            made.append(number)
            say(number)
            time.sleep(0.01)

    job = Job(work)

    def cancel_at_two():
        for report in job.reports():
            if report == 2:
                job.cancel()

    with pytest.raises(Cancelled):
        cancel_at_two()
    count = len(made)
    time.sleep(0.05)
    assert len(made) == count <= 6
    reports = Job(work).reports()
    next(reports)
    reports.close()
    count = len(made)
    time.sleep(0.05)
    assert len(made) == count
    never = Job(work)
    never.cancel()
    with pytest.raises(Cancelled):
        list(never.reports())
    assert len(made) == count


# ---------------------------------------------------------------------------------------------- uploads


def test_an_upload_is_decoded_as_the_media_functions_decode_it(videos):
    clip = ClipSpec(5, 10.0, 16, 4000)
    for start_s in (0.0, 0.7):
        whole = read_clip(videos / "good.mp4", clip, start_s)
        sound = decode(videos / "good.mp4", "sound", clip, start_s)
        video = decode(videos / "good.mp4", "video", clip, start_s)
        assert sound.shape == (1, *clip.audio_shape)
        assert video.shape == (1, *clip.video_shape)
        again = quantise(AVSample(video=video[0], audio=sound[0]))
        assert torch.equal(again.video, whole.video)
        assert torch.equal(again.audio, whole.audio)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("text.mp4", "video", "unreadable"),
        ("empty.mp4", "sound", "empty"),
        ("playlist.mp4", "sound", "unreadable"),
        ("short.mp4", "sound", "too short: 0.2"),
        ("short.mp4", "video", "too short: 0.20 s of video; 0.4 s"),
    ],
)
def test_an_awkward_upload_is_refused_in_one_line(videos, name, kind, message):
    with pytest.raises(UserError, match=message) as error:
        decode(videos / name, kind, CLIP)
    assert "\n" not in str(error.value)


def test_decoding_is_bounded_in_bytes_time_and_memory(videos):
    good = videos / "good.mp4"
    with pytest.raises(UserError, match="at most 0 MB"):
        decode(good, "video", CLIP, limits=DecodeLimits(file_bytes=100))
    started = time.monotonic()
    with pytest.raises(UserError, match="took longer"):
        decode(good, "video", CLIP, limits=DecodeLimits(seconds=0.0))
    assert time.monotonic() - started < 5
    large = ClipSpec(400, 200.0, 1024, 4000)  # 1.2 GB of frames
    with pytest.raises(UserError, match="memory"):
        decode(good, "video", large, limits=DecodeLimits(memory_bytes=100_000_000))
    with pytest.raises(UserError, match="0 s or later"):
        decode(good, "video", CLIP, start_s=math.nan)


# ---------------------------------------------------------------------------------------------- what visitors make


def test_the_studio_makes_the_pipeline_s_clips_and_reports_every_batch(studio, pipe):
    settings = Settings("tiny", "dpm-solver++", 4, 7)
    reports = list(studio.generate("me", settings, 3))
    made = reports[-1].made
    expected = quantise(pipe(3, 4, "dpm-solver++", 7, batch_size=2, progress=False))
    assert [clip.index for clip in made] == [0, 1, 2]
    for row, clip in enumerate(made):
        assert torch.equal(clip.clip.video[0], expected.video[row])
        assert torch.equal(clip.clip.audio[0], expected.audio[row])
        facts = probe(clip.video_path)
        assert facts.frames == CLIP.frames
        assert 0 <= facts.audio_s - CLIP.seconds < 1024 / 8000  # AAC comes in blocks
        assert clip.spectrogram_png.startswith(b"\x89PNG")
    assert [report.done for report in reports if report.preview is not None] == [2, 4, 6, 8, 9, 10, 11, 12]
    assert {len(report.made) for report in reports} == {0, 2, 3}
    assert reports[-1].total == 12
    assert studio.session("me").made == list(made)


def test_the_cost_is_clips_times_calls_times_what_a_call_took(studio):
    settings = Settings("tiny", "dpm-solver++", 8)
    assert studio.cost(settings, 3) is None
    per_call = studio.measure("tiny")
    cost = studio.cost(settings, 3)
    assert cost.seconds == pytest.approx(3 * 8 * per_call)
    assert cost.measured
    guided = studio.cost(settings, 3, method="guided")
    assert guided.seconds == pytest.approx(3 * cost.seconds)
    assert not guided.measured
    assert studio.cost(settings, 1, seconds=0.8).seconds == pytest.approx(8 * 3 * per_call)  # three windows
    done = last(studio.generate("me", settings, 2))
    assert studio.cost(settings, 2).seconds == pytest.approx(done.seconds, rel=1e-3)


def test_what_is_too_much_is_refused_before_it_starts(pipe):
    studio = Studio({"tiny": pipe}, limits=Limits(clips=4, seconds=1e-6))
    with pytest.raises(UserError, match="fewer clips or steps"):
        next(studio.generate("me", Settings("tiny", "ddim", 50), 1))
    with pytest.raises(UserError, match="between 1 and 4"):
        next(studio.generate("me", Settings("tiny", "ddim", 50), 5))
    with pytest.raises(UserError, match="8 steps, got 9"):
        next(studio.generate("me", Settings("tiny", "consistency", 9), 1))
    with pytest.raises(UserError, match="unknown sampler"):
        next(studio.generate("me", Settings("tiny", "euler", 9), 1))


def test_variations_are_near_and_a_longer_clip_begins_like_the_clip(studio):
    settings = Settings("tiny", "dpm-solver++", 4, 1)
    base = last(studio.generate("me", settings, 2)).made[1]
    near = last(studio.variations("me", settings, [base.index], 3)).made
    assert [clip.variation_of for clip in near] == [(1,)] * 3
    assert len({clip.clip.video.numpy().tobytes() for clip in (base, *near)}) == 4
    longer = last(studio.lengthen("me", base, 0.8)).made[0]
    assert longer.spec == replace(CLIP, frames=8)
    kept = CLIP.frames - 1  # a quarter of a window is made anew
    assert torch.equal(longer.clip.video[:, :kept], base.clip.video[:, :kept])
    assert probe(longer.video_path).video_s == pytest.approx(0.8)
    again = last(studio.lengthen_from_seed("you", settings, 1, 0.8)).made
    # float32 kernels round differently for clip 1 alone and in a batch of two
    assert (again[0].clip.video.int() - longer.clip.video.int()).abs().max() <= 1
    with pytest.raises(UserError, match=r"can last 0\.4 to 3\.2 s"):
        next(studio.lengthen("me", base, 4.0))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", ["sound", "video"])
def test_an_upload_steers_the_clip_and_is_removed(studio, videos, tmp_path, kind, guided):
    upload = tmp_path / "upload.mp4"
    upload.write_bytes((videos / "good.mp4").read_bytes())
    settings = Settings("tiny", "dpm-solver++", 4)
    made = last(studio.from_upload("me", settings, 2, upload, kind, start_s=0.5, guided=guided)).made
    assert not upload.exists()
    given = quantise(
        AVSample(
            video=decode(videos / "good.mp4", "video", CLIP, 0.5), audio=decode(videos / "good.mp4", "sound", CLIP, 0.5)
        )
    )
    for clip in made:
        same = torch.equal(clip.clip.audio, given.audio), torch.equal(clip.clip.video, given.video)
        assert same == ((True, False) if kind == "sound" else (False, True))


def test_a_refused_upload_is_removed_too(studio, tmp_path):
    upload = tmp_path / "upload.mp4"
    upload.write_text("nothing")
    with pytest.raises(UserError, match="unreadable"):
        list(studio.from_upload("me", Settings("tiny", "dpm-solver++", 4), 1, upload, "sound"))
    assert not upload.exists()


def test_an_upload_can_be_used_again_as_it_was_though_its_file_is_gone(studio, videos, tmp_path):
    upload = tmp_path / "upload.mp4"
    upload.write_bytes((videos / "good.mp4").read_bytes())
    settings = Settings("tiny", "dpm-solver++", 4)
    first = last(studio.from_upload("me", settings, 1, upload, "sound")).made[0]
    assert not upload.exists()
    second = last(studio.from_upload("me", replace(settings, seed=1), 1, upload, "sound")).made[0]
    assert torch.equal(first.clip.audio, second.clip.audio)
    assert not torch.equal(first.clip.video, second.clip.video)
    for session, start_s in (("me", 0.5), ("you", 0.0)):  # another part of it, another visitor
        with pytest.raises(UserError, match="choose the file again"):
            list(studio.from_upload(session, settings, 1, upload, "sound", start_s=start_s))


def test_a_full_disk_makes_nothing_new(pipe):
    studio = Studio({"tiny": pipe}, limits=Limits(disk_bytes=20_000))
    (studio.folder / "clip.mp4").write_bytes(b"x" * 30_000)
    with pytest.raises(UserError, match="no more room"):
        next(studio.generate("me", Settings("tiny", "consistency", 1), 1))
    (studio.folder / "clip.mp4").unlink()
    assert last(studio.generate("me", Settings("tiny", "consistency", 1), 1)).made
    studio.close()


def test_cancelling_one_session_keeps_its_finished_clips_and_the_other_s_work(studio):
    slow = Settings("tiny", "ddim", 40)
    outcome = {}

    def other():
        outcome["clips"] = len(last(studio.generate("you", Settings("tiny", "dpm-solver++", 4), 2)).made)

    waiting = threading.Thread(target=other)
    seen = []

    def cancel_after_one_batch():
        for report in studio.generate("me", slow, 8):
            seen.append(report)
            if len(report.made) == 2 and not waiting.is_alive():
                waiting.start()
                assert studio.cancel("me") == 1

    with pytest.raises(Cancelled):
        cancel_after_one_batch()
    waiting.join(60)
    assert outcome == {"clips": 2}
    assert len(studio.session("me").made) == 2
    assert seen[-1].done < seen[-1].total / 2
    assert studio.cancel("me") == 0


def test_a_session_s_files_go_with_it_and_the_oldest_first(pipe):
    studio = Studio({"tiny": pipe}, limits=Limits(kept_clips=3))
    settings = Settings("tiny", "consistency", 1)
    first = last(studio.generate("me", settings, 2)).made
    second = last(studio.generate("me", replace(settings, seed=1), 2)).made
    assert not first[0].video_path.exists()
    assert first[1].video_path.exists()
    with pytest.raises(UserError, match="not kept"):
        studio.find("me", first[0].name)
    with pytest.raises(UserError, match="not kept"):
        studio.find("you", second[0].name)
    folder = studio.session("me").folder
    studio.forget("me")
    assert not folder.exists()
    studio.close()
    assert not studio.folder.exists()


def test_the_spectrogram_shows_a_tone_where_it_is():
    tone = torch.sin(torch.arange(8000) / 8000 * 2 * math.pi * 1000)
    figure = spectrogram_figure(tone, 8000)
    (image,) = figure.axes[0].images
    level = torch.as_tensor(image.get_array())
    loudest = level.mean(1).argmax().item() / (level.shape[0] - 1) * 4000
    assert abs(loudest - 1000) < 40
    assert figure.axes[0].get_ylim() == (0, 4)


def test_the_preview_plays_the_clips_side_by_side():
    from PIL import Image, ImageSequence

    levels = (
        torch.linspace(-1, 1, 4)[None, :, None, None, None].expand(2, 4, 3, 16, 16)
        * torch.tensor([1.0, -1])[:, None, None, None, None]
    )
    with Image.open(io.BytesIO(animation_webp(AVSample(video=levels, audio=torch.zeros(2, 1, 1)), 10.0))) as picture:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(picture)]
        assert picture.info["duration"] == 100
    assert len(frames) == 4
    assert frames[0].size == (2 * 17, 16)
    left, right = ([frame.getpixel((x, 8))[0] for frame in frames] for x in (8, 25))
    assert left == pytest.approx([0, 85, 170, 255], abs=4)
    assert right == pytest.approx([255, 170, 85, 0], abs=4)


# ---------------------------------------------------------------------------------------------- a run


def test_a_run_is_shown_as_far_as_it_is(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert loss_png(run) is None
    assert facts_markdown(run) == "Nothing is logged yet."
    before = stamp(run)
    rows = [{"step": 10 * n, "stage": 1, "loss": 1 / (n + 1), "clips_per_s": 12.3} for n in range(5)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert stamp(run) != before
    assert loss_png(run).startswith(b"\x89PNG")
    assert "| step | 40 |" in facts_markdown(run)
    assert "| clips a second | 12.3 |" in facts_markdown(run)
    (run / "other.json").write_text("{}")
    assert cards_markdown(run) == ""


# ---------------------------------------------------------------------------------------------- who may come in


def test_only_loopback_is_open():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.org", "")))
    check_access("127.0.0.1", None)
    check_access("0.0.0.0", "long enough, this one")
    with pytest.raises(UserError, match="at least 10"):
        check_access("0.0.0.0", "short")


def test_another_address_without_a_password_is_one_clear_line(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("MGCT_APP_PASSWORD", raising=False)
    assert cli.main(["app", str(tmp_path), "--host", "0.0.0.0"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "MGCT_APP_PASSWORD" in line
    assert cli.main(["app", str(tmp_path)]) == 2
    assert "no saved model" in capsys.readouterr().err


@pytest.mark.parametrize("port", [-1, 0, 65536, 99999])
def test_a_port_that_is_none_is_one_clear_line(capsys, port):
    assert cli.main(["app", "landscape", f"--port={port}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--port must lie in 1" in line


def test_nothing_of_the_page_is_loaded_before_it_is_built():
    import subprocess
    import sys

    code = "import sys, mgct.app, mgct.commands.app; assert 'gradio' not in sys.modules, 'gradio was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------------------------- served


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def served(pipe, tmp_path_factory):
    """Address of a page that is served in this process, and its studio."""
    pytest.importorskip("gradio")
    from mgct.app import build_app
    from mgct.app.server import launch_settings

    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        blocks = build_app(pipe)
        port = free_port()
        blocks.launch(**launch_settings(folder, port=port), prevent_thread_lock=True)
        yield f"http://127.0.0.1:{port}", blocks.studio
        blocks.close(verbose=False)
        blocks.studio.close()


@pytest.fixture
def client(served, tmp_path):
    from gradio_client import Client

    return Client(served[0], download_files=tmp_path / "got", verbose=False, analytics_enabled=False)


def test_the_api_makes_the_same_clips(client, pipe, tmp_path):
    options = {"model": "model", "sampler": "dpm-solver++", "steps": 4, "seed": 3}
    files, facts = client.predict(clips=2, **options, api_name="/generate")
    expected = quantise(pipe(2, 4, "dpm-solver++", 3, progress=False))
    for row, (path, fact) in enumerate(zip(files, facts, strict=True)):
        assert (fact["seed"], fact["clip"], fact["steps"]) == (3, row, 4)
        direct = tmp_path / f"{row}.mp4"
        write_mp4(direct, expected.video[row], expected.audio[row], fps=CLIP.fps, sample_rate_hz=CLIP.sample_rate_hz)
        assert Path(path).read_bytes() == direct.read_bytes()
    longer, _ = client.predict(
        model="model", sampler="dpm-solver++", steps=4, seed=3, clip=0, seconds=0.8, api_name="/lengthen"
    )
    assert probe(Path(longer[0])).video_s == pytest.approx(0.8)
    near, facts = client.predict(clips=2, **options, variation_of=[1], api_name="/variations")
    assert len(near) == 2
    assert facts[1]["variation_of"] == [1]
    cost = client.predict(model="model", clips=2, sampler="ddim", steps=10, api_name="/cost")
    assert cost["seconds"] == pytest.approx(20 * cost["seconds_per_call"])
    assert client.predict(api_name="/models")["model"]["samplers"][0]["name"] == "dpm-solver++"


def test_the_api_takes_uploads_keeps_none_and_says_what_is_wrong(served, client, videos):
    from gradio_client import handle_file

    options = {"model": "model", "clips": 1, "sampler": "dpm-solver++", "steps": 4, "seed": 0}
    for name in ("/sound_to_video", "/video_to_sound"):
        files, _ = client.predict(upload=handle_file(videos / "good.mp4"), **options, api_name=name)
        assert probe(Path(files[0])).frames == CLIP.frames
        with pytest.raises(Exception, match="unreadable"):
            client.predict(upload=handle_file(videos / "text.mp4"), **options, api_name=name)
    from gradio.utils import get_upload_folder

    kept = {path.name for path in Path(get_upload_folder()).rglob("*") if path.is_file()}
    assert not kept & {"good.mp4", "text.mp4"}
    with pytest.raises(Exception, match="8 steps, got 99"):
        client.predict(**{**options, "sampler": "consistency", "steps": 99}, api_name="/generate")


def test_nothing_but_results_can_be_read(served, client, tmp_path):
    import httpx
    from gradio.utils import get_upload_folder

    url, studio = served
    client.predict(model="model", clips=1, sampler="consistency", steps=1, seed=0, api_name="/generate")
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    inside = next(studio.folder.rglob("*.mp4"))
    here = Path(__file__).resolve()
    for path in ("/etc/passwd", secret, here, inside, f"{studio.folder}/../../etc/passwd"):
        answer = httpx.get(f"{url}/gradio_api/file={path}")
        assert answer.status_code in (403, 404), path
    for path in ("file=http://127.0.0.1:9/x", "file=https://example.org/", "proxy=http://127.0.0.1:9/x"):
        assert httpx.get(f"{url}/gradio_api/{path}").status_code == 403, path
    # a request that names a file of the server instead of one that was uploaded
    given = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    data = [given, "model", 1, "consistency", 1, 0, 0, False]
    event = httpx.post(f"{url}/gradio_api/call/sound_to_video", json={"data": data}).json()["event_id"]
    answer = httpx.get(f"{url}/gradio_api/call/sound_to_video/{event}", timeout=60)
    assert "event: error" in answer.text
    assert "unreadable" not in answer.text
    assert secret.read_text() == "secret"
    uploads = Path(get_upload_folder())
    data[0] = {"path": str(uploads), "meta": {"_type": "gradio.FileData"}}
    event = httpx.post(f"{url}/gradio_api/call/sound_to_video", json={"data": data}).json()["event_id"]
    assert "event: error" in httpx.get(f"{url}/gradio_api/call/sound_to_video/{event}", timeout=60).text
    assert uploads.is_dir()


def test_the_browser_is_told_to_fetch_nothing_from_elsewhere(served):
    import httpx

    answer = httpx.get(f"{served[0]}/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_full_upload_folder_takes_no_more(served, monkeypatch, tmp_path):
    import httpx

    from mgct.app import server

    monkeypatch.setattr(server, "MOST_UPLOADED_BYTES", -1)
    answer = httpx.post(f"{served[0]}/gradio_api/upload", files={"files": ("a.wav", b"x" * 1000)})
    assert answer.status_code == 507
    monkeypatch.undo()
    too_large = httpx.post(f"{served[0]}/gradio_api/upload", files={"files": ("a.wav", b"x" * 51_000_000)})
    assert too_large.status_code == 413


def test_a_password_keeps_others_out(pipe, tmp_path):
    pytest.importorskip("gradio")
    import httpx

    from mgct.app import build_app
    from mgct.app.server import launch_settings

    blocks = build_app(pipe)
    port = free_port()
    settings = launch_settings(tmp_path, "0.0.0.0", port, "correct horse battery")
    blocks.launch(**settings, prevent_thread_lock=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for path in ("/config", "/gradio_api/info", "/gradio_api/queue/status", "/gradio_api/file=x.mp4"):
            assert httpx.get(url + path).status_code == 401, path
        upload = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.wav", b"x")})
        assert upload.status_code == 401
        for user, password in (("mgct", "wrong"), ("other", "correct horse battery"), ("mgct", "")):
            assert httpx.post(f"{url}/login", data={"username": user, "password": password}).status_code >= 400
        with httpx.Client(base_url=url) as visitor:
            answer = visitor.post("/login", data={"username": "mgct", "password": "correct horse battery"})
            assert answer.status_code == 200
            assert visitor.get("/config").status_code == 200
    finally:
        blocks.close(verbose=False)
        blocks.studio.close()
