"""The model card: it says what it was told, and nothing else."""

import re

import pytest
import yaml

from mgct import AVPipeline, ClipSpec
from mgct.model_card import ModelFacts, model_card
from mgct.samplers import SAMPLERS, get_sampler
from tests.test_unet import randomised

CLIP = ClipSpec(4, 10.0, 8, 160)
FACTS = ModelFacts(
    "fireworks",
    CLIP,
    12345,
    {"dpm-solver++": [4, 50], "consistency": [1, 8]},
    data="my shards",
    step=2000,
    stage=2,
    settings={"train": {"learning_rate": 0.001}},
    metrics={"FVD-compact": 1.25, "odd|name": 2.0},
    licence="cc-by-4.0",
    version="0.1.0",
)


def head_of(text):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.S).group(1))


def test_every_fact_is_on_the_card():
    text = model_card(FACTS)
    assert head_of(text)["license"] == "cc-by-4.0"
    for part in ("# fireworks", "12,345 parameters", "4 frames of 8×8", "160 Hz", "`my shards`", "2,000", "Stage: 2"):
        assert part in text
    assert "| `consistency` | 1 to 8 |" in text
    assert "| odd\\|name | 2 |" in text
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S).group(1)) == {"train": {"learning_rate": 0.001}}


def test_what_is_not_known_is_said_to_be_so():
    text = model_card(ModelFacts("m", CLIP, 1, {}))
    assert "license" not in head_of(text)
    assert "Data: not recorded" in text
    assert "not known which samplers" in text
    assert "The weights' licence is not stated" in text
    assert not re.search(r"Steps|Stage:|Measured|Settings|None", text)


@pytest.mark.parametrize(
    "recommended", [{}, {"ddpm": [100, 1000]}, {"map": [1, 20], "ddim": [25, 1000]}, FACTS.recommended]
)
def test_the_example_s_sampler_and_steps_are_among_the_recommended(recommended):
    text = model_card(ModelFacts("m", CLIP, 1, recommended))
    steps, name = re.search(r'steps=(\d+), sampler="([^"]+)"', text).groups()
    assert name in SAMPLERS
    assert get_sampler(name, int(steps))[1] == int(steps)
    low, high = recommended.get(name, (1, 1000))
    assert low <= int(steps) <= high


def test_the_example_runs_on_a_saved_folder(tmp_path):
    pipe = AVPipeline(randomised(), CLIP, FACTS.recommended)
    pipe.save_pretrained(tmp_path / "model")
    text = model_card(FACTS)
    (tmp_path / "model" / "README.md").write_text(text)
    code = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    names = {}
    exec(code.replace("path/to/this/folder", str(tmp_path / "model")), names)
    assert names["clips"].video.shape == (4, *CLIP.video_shape)
