"""The page in headless Chromium, as a visitor uses it (`make test-web`).

A page is served by `mgct app` in a process of its own, over two untrained networks of the smallest size.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from mgct import AVPipeline, ClipSpec, MultimodalUNet
from mgct.data.media import probe, write_mp4

CLIP = ClipSpec(frames=8, fps=10.0, size=16, sample_rate_hz=2560)
RANGES = {"dpm-solver++": [4, 50], "ddim": [4, 1000], "consistency": [1, 8]}
WAIT_S = 240.0
SCROLL_TO = "arguments[0].scrollIntoView({block: 'center'}); return arguments[0].getBoundingClientRect().top"


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """Two runs with a saved model each; the first has a log."""
    folder = tmp_path_factory.mktemp("zoo")
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
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
        AVPipeline(unet, CLIP, RANGES).save_pretrained(folder / name / "model")
    rows = [{"step": 10 * n, "stage": 1, "loss": 2 / (n + 1), "loss_mm": 2 / (n + 1)} for n in range(20)]
    (folder / "first" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def url(zoo, tmp_path_factory):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "mgct.cli", "app", str(zoo), "--port", str(port), "--device", "cpu"]
    command += ["--most_seconds", "100000"]  # the machine may be busy
    said, temporary = tmp_path_factory.mktemp("server") / "output.txt", tmp_path_factory.mktemp("temporary")
    with said.open("w") as output:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + WAIT_S
    while address not in said.read_text():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < end, "the server is not ready"
        time.sleep(0.1)
    yield address
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == 0
    assert "Traceback" not in said.read_text()
    assert not list(temporary.glob("mgct-*")), "files of visitors are left"


class Visitor:
    """A browser with one tab."""

    def __init__(self, url: str, downloads: Path, width: int = 1280, dark: bool = False) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = os.environ.get("CHROMIUM") or shutil.which("chromium")
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--mute-audio",
            "--autoplay-policy=no-user-gesture-required",
            f"--window-size={max(width, 500)},1000",
        ):
            options.add_argument(argument)
        if width < 500:
            metrics = {"width": width, "height": 1000, "pixelRatio": 1.0, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = Service(os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.downloads = downloads
        self.requested: list[str] = []
        try:
            self._open(url, dark)
        except Exception:
            self.driver.quit()
            raise

    def _open(self, url: str, dark: bool) -> None:
        if dark:
            scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        self.driver.get(url)
        self.until("return document.querySelector('#generate-run')")
        # what the controls say comes from the server once the model has been timed
        self.until("return [...document.querySelectorAll('.cost')].some(e => e.innerText.includes('measured here'))")

    def js(self, code: str, *arguments):
        return self.driver.execute_script(code, *arguments)

    def until(self, code: str, *arguments, seconds: float = WAIT_S):
        end = time.monotonic() + seconds
        while not (found := self.js(code, *arguments)):
            if time.monotonic() > end:
                statuses = self.js("return [...document.querySelectorAll('.status')].map(e => e.innerText)")
                raise TimeoutError(f"{code}: the page says {statuses}")
            time.sleep(0.1)
        return found

    def click(self, selector: str) -> None:
        element = self.until("return document.querySelector(arguments[0])", selector)
        before = None
        while (place := self.js(SCROLL_TO, element)) != before:  # what is above may still change its height
            before = place
            time.sleep(0.15)
        element.click()

    def tab(self, words: str) -> None:
        """Open a tab; on a narrow page it may be in the menu of those that do not fit."""
        named = "return [...document.querySelectorAll('{}')].find(b => b.innerText.trim() === arguments[0])"
        find = named.format("button[role=tab]")
        if self.js(find, words) is None:
            self.click(".overflow-menu > button")
            find = named.format(".overflow-dropdown button")
        self.js("arguments[0].click()", self.until(find, words))
        time.sleep(0.5)

    def slide(self, name: str, value: int) -> None:
        """Set a slider through its number."""
        self.js(
            "const i = document.querySelector(arguments[0] + ' input[type=number]');"
            "Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(i, arguments[1]);"
            "for (const name of ['input', 'change', 'blur']) i.dispatchEvent(new Event(name, {bubbles: true}))",
            f"#{name}",
            value,
        )
        time.sleep(0.5)

    def choose(self, name: str, words: str) -> None:
        """Choose from a dropdown."""
        self.click(f"#{name} input")
        option = self.until(
            "return [...document.querySelectorAll('[role=listbox] li')].find(e => e.innerText.includes(arguments[0]))",
            words,
        )
        option.click()
        time.sleep(0.5)

    def status(self, prefix: str) -> str:
        return self.js("return document.querySelector(arguments[0]).innerText", f"#{prefix}-status")

    def says(self, prefix: str, words: str) -> str:
        self.until(
            "return document.querySelector(arguments[0]).innerText.includes(arguments[1])", f"#{prefix}-status", words
        )
        return self.status(prefix)

    def videos(self, prefix: str) -> list[dict]:
        """State of the players on the cards of a tab, once all have loaded."""
        selector = f"[id^={prefix}-][id$=-card] video"
        self.until(
            "const v = [...document.querySelectorAll(arguments[0])];"
            "return v.length && v.every(e => e.readyState >= 3 || e.error)",
            selector,
        )
        return self.js(
            "return [...document.querySelectorAll(arguments[0])].map(e => ({src: e.currentSrc, seconds: e.duration,"
            " ready: e.readyState, error: e.error && e.error.message, width: e.videoWidth}))",
            selector,
        )

    def downloaded(self) -> Path:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            files = [path for path in self.downloads.glob("*.mp4") if path.stat().st_size]
            if files:
                return files[0]
            time.sleep(0.1)
        raise TimeoutError("nothing was downloaded")

    def hosts(self) -> set[str]:
        """Hosts that were asked for anything."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
        return {address.split("/")[2] for address in self.requested if address.startswith(("http", "ws"))}

    def complaints(self) -> list[str]:
        """Errors on the browser's console."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def visit(url, tmp_path):
    visitors = []

    def open_page(**options):
        downloads = tmp_path / f"downloads-{len(visitors)}"
        downloads.mkdir()
        visitors.append(Visitor(url, downloads, **options))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.driver.quit()


def test_generate_play_download_vary_lengthen(visit, url):
    visitor = visit()
    visitor.slide("generate-clips", 2)
    visitor.slide("generate-steps", 20)
    visitor.until("return document.querySelector('.cost').innerText.includes('2 clips × 20 network calls')")
    visitor.click("#generate-run")
    visitor.until("return document.querySelector('#generate-status img.preview')")
    visitor.until("return document.querySelector('#generate-status [role=progressbar]')")
    assert "40 network calls" in visitor.says("generate", "2 made")
    videos = visitor.videos("generate")
    assert len(videos) == 2
    for video in videos:
        assert video["error"] is None
        assert video["seconds"] == pytest.approx(CLIP.seconds, abs=0.05)
        assert video["width"] == CLIP.size
    played = visitor.driver.execute_async_script(
        "const done = arguments[arguments.length - 1]; const v = document.querySelector('.clip video'); v.loop = false;"
        "v.onended = () => done([v.currentTime, v.webkitAudioDecodedByteCount, v.webkitDecodedFrameCount]); v.play()"
    )
    assert played[0] == pytest.approx(CLIP.seconds, abs=0.05)
    assert played[1] > 0
    assert played[2] >= CLIP.frames
    spectrograms = visitor.js("return [...document.querySelectorAll('.clip img.sound')].map(e => e.naturalWidth)")
    assert len([width for width in spectrograms if width > 100]) == 2
    assert "Seed 0, clip 1" in visitor.js("return document.querySelector('#generate-1-card').innerText")
    visitor.click("#generate-1-download")
    facts = probe(visitor.downloaded())
    assert (facts.video_codec, facts.audio_codec) == ("h264", "aac")
    assert (facts.frames, facts.fps, facts.width, facts.height) == (CLIP.frames, CLIP.fps, CLIP.size, CLIP.size)
    assert facts.audio_s > 0.9 * CLIP.seconds

    visitor.click("#generate-1-vary")
    visitor.says("generate", "4 made")
    assert len(visitor.videos("generate")) == 6
    assert "variation" in visitor.js("return document.querySelector('#generate-0-card').innerText")
    visitor.click("#generate-5-longer")
    visitor.says("generate", "1 made")
    assert visitor.videos("generate")[0]["seconds"] == pytest.approx(2 * CLIP.seconds, abs=0.05)
    assert len(visitor.videos("generate")) == 7
    assert visitor.hosts() == {url.removeprefix("http://")}
    assert visitor.complaints() == []


def test_the_cost_follows_hurried_choices(visit):
    """A new model is being timed while its sampler and steps are chosen: no older line comes last, nothing fails."""
    visitor = visit()
    for model, sampler, steps in (("second", "consistency", 7), ("first", "ddim", 900), ("second", "consistency", 3)):
        visitor.choose("generate-model", model)
        visitor.choose("generate-sampler", sampler)
        visitor.slide("generate-steps", steps)
        visitor.until(f"return document.querySelector('.cost').innerText.includes('× {steps} network calls')")
    visitor.click("#generate-run")
    assert "12 network calls" in visitor.says("generate", "4 made")
    assert visitor.complaints() == []


def test_compare_on_the_same_seed(visit):
    visitor = visit()
    visitor.tab("Compare")
    visitor.choose("compare-b-model", "second")
    visitor.choose("compare-b-sampler", "consistency")
    visitor.slide("compare-b-steps", 2)
    visitor.click("#compare-run")
    visitor.says("compare", "Done")
    assert len(visitor.videos("compare-a")) == 2
    assert len(visitor.videos("compare-b")) == 2
    words = [visitor.js("return document.querySelector(arguments[0]).innerText", f"#compare-{s}-words") for s in "ab"]
    assert "first, dpm-solver++, 12 steps" in words[0]
    assert "second, consistency, 2 steps" in words[1]
    assert all("s for 2 clips" in text for text in words)
    assert "Seed 0, clip 1" in visitor.js("return document.querySelector('#compare-b-1-card').innerText")


@pytest.mark.parametrize(("tab", "kind"), [("Sound → video", "sound"), ("Video → sound", "video")])
def test_an_awkward_upload_gets_a_clear_message_and_a_good_one_a_clip(visit, tmp_path, tab, kind):
    visitor = visit()
    visitor.tab(tab)
    visitor.click(f"#{kind}-run")
    visitor.says(kind, "Choose a file")
    (tmp_path / "text.mp4").write_text("no video at all\n" * 50)
    (tmp_path / "text.wav").write_text("no sound at all\n" * 50)
    video = torch.randint(0, 256, (20, 3, 32, 48), dtype=torch.uint8)
    audio = torch.randint(-8000, 8000, (1, 16000), dtype=torch.int16)
    write_mp4(tmp_path / "good.mp4", video, audio, fps=10, sample_rate_hz=8000)
    good = tmp_path / ("good.mp4" if kind == "video" else "good.m4a")
    if kind == "sound":
        (tmp_path / "good.mp4").rename(good)
    for file, expected in (
        (tmp_path / ("text.mp4" if kind == "video" else "text.wav"), "unreadable"),
        (good, "1 made"),
    ):
        remove = visitor.js(f"return document.querySelector('#{kind}-upload button[aria-label=Clear]')")
        if remove is not None:
            visitor.js("arguments[0].click()", remove)
        visitor.until(f"return document.querySelector('#{kind}-upload input[type=file]')")
        visitor.driver.find_element(By.CSS_SELECTOR, f"#{kind}-upload input[type=file]").send_keys(str(file))
        visitor.until(f"return !document.querySelector('#{kind}-upload input[type=file]')")
        visitor.click(f"#{kind}-run")
        visitor.says(kind, expected)
    assert visitor.videos(kind)[0]["error"] is None
    # the file is gone by now, what was decoded of it is not
    visitor.click(f"#{kind}-more > button")
    visitor.click(f"#{kind}-fresh")
    visitor.slide(f"{kind}-steps", 5)
    visitor.click(f"#{kind}-run")
    visitor.until(f"return document.querySelectorAll('[id^={kind}-][id$=-card] video').length === 2")
    visitor.says(kind, "1 made")
    assert len({video["src"] for video in visitor.videos(kind)}) == 2
    captions = visitor.js(f"return [0, 1].map(n => document.querySelector(`#{kind}-${{n}}-card`).innerText)")
    assert "5 calls" in captions[0]
    assert "12 calls" in captions[1]


def test_cancel_ends_the_work_and_the_next_request_runs(visit):
    visitor = visit()
    visitor.slide("generate-clips", 8)
    visitor.choose("generate-sampler", "ddim")
    visitor.slide("generate-steps", 1000)
    visitor.click("#generate-run")
    visitor.until("return document.querySelector('#generate-status img.preview')")
    number, unit = re.search(r"([\d.]+) (s|min|h) to go", visitor.status("generate")).groups()
    left_s = float(number) * {"s": 1, "min": 60, "h": 3600}[unit]
    visitor.click("#generate-cancel")
    visitor.says("generate", "Cancelled")
    visitor.choose("generate-sampler", "dpm-solver++")
    visitor.slide("generate-steps", 4)
    visitor.slide("generate-clips", 2)
    started = time.monotonic()
    visitor.click("#generate-run")
    visitor.says("generate", "2 made")
    assert time.monotonic() - started < left_s / 2  # the cancelled work is not waited for
    assert len(visitor.videos("generate")) == 2


def test_two_visitors_wait_for_each_other_and_neither_loses_anything(visit):
    one, other = visit(), visit()
    one.slide("generate-steps", 20)
    one.slide("generate-clips", 8)
    other.slide("generate-steps", 10)
    other.slide("generate-clips", 3)
    one.click("#generate-run")
    one.until("return document.querySelector('#generate-status img.preview')")
    other.click("#generate-run")
    other.says("generate", "3 made")
    one.says("generate", "8 made")
    first, second = one.videos("generate"), other.videos("generate")
    assert (len(first), len(second)) == (8, 3)
    assert all(video["error"] is None for video in (*first, *second))
    assert not {video["src"] for video in first} & {video["src"] for video in second}


def test_a_run_is_watched_live(visit, zoo):
    visitor = visit()
    visitor.tab("Training")
    visitor.until("return document.querySelector('#training-facts').innerText.includes('190')")
    visitor.until("const i = document.querySelector('#training-loss img'); return i && i.naturalWidth > 300")
    with (zoo / "first" / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 777, "stage": 1, "loss": 0.05}) + "\n")
    visitor.until("return document.querySelector('#training-facts').innerText.includes('777')")
    visitor.click("#training-draw")
    visitor.until("const i = document.querySelector('#training-sheet img'); return i && i.naturalWidth > 300")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits(visit, width, dark):
    visitor = visit(width=width, dark=dark)
    visitor.slide("generate-clips", 2)
    visitor.slide("generate-steps", 4)
    visitor.click("#generate-run")
    visitor.says("generate", "2 made")
    for tab in ("Generate", "Compare", "Training", "Sound → video", "Video → sound"):
        visitor.tab(tab)
        assert visitor.js("return document.documentElement.scrollWidth <= innerWidth"), tab
    background = visitor.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(background[:3]) / 3 < 80) == dark
