"""Passes that are recorded once and replayed are those that are launched anew; a GPU is needed for real graphs."""

import subprocess
import sys

import pytest
import torch

from mgct import AVPipeline, ClipSpec, graphs, passes, pipeline
from mgct.clip_random import ClipRandom, DrawnRandom
from mgct.graphs import Graphed
from mgct.trainer import Trainer
from tests.test_trainer import assert_same, distance, final, trainer
from tests.test_unet import randomised

ON_GPU = torch.cuda.is_available()


class Pretended(Graphed):
    """As a graph does, it works on its own copies of what it is given, and what it gave is overwritten."""

    def __call__(self, *inputs):
        if not self.inputs:
            self.inputs = [torch.empty_like(x) for x in inputs]
            return self.function(*inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        return self.function(*self.inputs)


def test_drawn_numbers_are_the_clips_own():
    random = ClipRandom([3, 1, 2])
    asked = DrawnRandom(random)
    first = [asked.normal("a", (4, 2)), asked.integers("b", 50), asked.first(2).uniform("c"), asked.normal("a", (4, 2))]
    own = [random.normal("a", (4, 2)), random.integers("b", 50), random.first(2).uniform("c"), first[0]]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, own, strict=True))
    other = ClipRandom([7, 8, 9])
    drawn = DrawnRandom(other).draw(asked.drawn)
    assert [x.shape for x in drawn] == [(3, 4, 2), (3,), (2,)]
    assert torch.equal(drawn[0], other.normal("a", (4, 2)))
    assert torch.equal(drawn[2], other.first(2).uniform("c"))


def test_a_replayed_run_ends_as_the_other(tmp_path, monkeypatch):
    """Both stages; the transfer is recorded anew."""
    trainer(tmp_path / "launched", dropout=0.0, cuda_graph=False).fit()
    made = []

    class Counted(Graphed if ON_GPU else Pretended):
        def __init__(self, function):
            super().__init__(function)
            made.append(self)

    monkeypatch.setattr(passes, "Graphed", Counted)
    if not ON_GPU:
        monkeypatch.setattr(Trainer, "_may_replay", lambda *_: True)
    trainer(tmp_path / "replayed", dropout=0.0).fit()
    assert len(made) == 2
    assert all(one.graph is not None or not ON_GPU for one in made)
    ours, theirs = final(tmp_path / "replayed"), final(tmp_path / "launched")
    for part in ours:
        if ON_GPU:
            assert distance(ours[part], theirs[part]) < 1e-3
        else:
            for name, value in ours[part].items():
                assert_same(value, theirs[part][name], name)


def test_what_changes_during_a_ramp_is_not_replayed():
    """The weight of the consistency loss is a number of the host's; as long as it changes, steps are launched."""
    from mgct.noise import NoiseSchedule
    from mgct.stages import MGCT, Consistency, LossRatio, Transfer, UniformGrid

    ramp = Consistency(ratio=LossRatio(0.5, ramp_steps=3), grid=UniformGrid(50, 10, growth_steps=6))
    objective = MGCT(NoiseSchedule(), Transfer(), ramp)
    assert objective.variant() == (1,)
    objective.start_stage_2(torch.nn.Linear(1, 1), 0)
    seen = []
    for _ in range(8):
        seen.append(objective.variant())
        objective.updates += 1
    assert len(set(seen[:3])) == 3
    assert len(set(seen[6:])) == 1


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_is_replayed(monkeypatch, dtype):
    pipe = AVPipeline(randomised(), ClipSpec(4, 10.0, 8, 160)).to("cuda", dtype)
    options = {"num_clips": 3, "steps": 6, "batch_size": 3, "progress": False}
    replayed = pipe(**options)
    monkeypatch.setattr(pipeline, "Graphed", lambda function: function)
    launched = pipe(**options)
    torch.testing.assert_close(replayed.video, launched.video, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(replayed.audio, launched.audio, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_what_cannot_be_recorded_is_launched():
    """With a warning, and with the same result ever after; in a process of its own, for what it may leave behind."""
    program = """
import torch, warnings
from mgct.graphs import Graphed
graphed = Graphed(lambda x: x * x.sum().item())
x = torch.ones(3, device="cuda")
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    print([graphed(x * k).tolist()[0] for k in (1, 2, 3)], [str(w.message)[:13] for w in seen], graphed.works)
torch.cuda.empty_cache()
print(torch.randn(4, device="cuda").shape, torch.cuda.current_stream() == torch.cuda.default_stream())
good = Graphed(lambda x: x + 1)
print([good(x * k).tolist()[0] for k in (1, 2, 3)], good.graph is not None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[3.0, 12.0, 27.0] ['no CUDA graph'] False",
        "torch.Size([4]) True",
        "[2.0, 3.0, 4.0] True",
    ]


def test_inputs_of_another_shape_begin_anew():
    shapes = []
    graphed = graphs.Graphed(lambda x: shapes.append(x.shape))
    for size in (2, 3, 2, 3):
        graphed(torch.zeros(size))
    assert shapes == [(2,), (3,), (2,), (3,)]
