"""A step that must not be taken: it changes nothing, and the run says what happened."""

import json
import math

import pytest
import torch

from mgct.checkpoint import read_checkpoint
from mgct.errors import UserError
from mgct.guard import StepGuard, block_of
from mgct.layout import Layout, make_accelerator
from tests.test_trainer import batches, trainer


def damage(one, step, change):
    """Trainer ``one`` with ``change(one)`` made just before ``step`` is taken, and undone by whoever made it."""

    def loader(start):
        for batch in batches(start):
            if one.step == step:
                change(one)
            yield batch

    one.loader = loader


def test_a_gradient_that_is_not_finite_in_one_block_is_named_and_not_taken(tmp_path):
    one = trainer(tmp_path, steps=6)
    weight = one.unet.middle[0].res.film.weight

    def change(one):
        one.good = {name: value.clone() for name, value in one.unet.state_dict().items()}
        one.moments = one.optimizer.state[weight]["exp_avg"].clone()
        weight.register_hook(lambda grad: torch.full_like(grad, float("inf")))

    damage(one, 2, change)
    with pytest.raises(UserError, match=r"step 2: .*middle\.0 not finite; clips clip8, .*step-00000002.*learning_rate"):
        one.fit()
    saved = read_checkpoint(tmp_path)
    assert saved.state["step"] == 2
    assert all(torch.equal(value, one.good[name]) for name, value in saved.tensors("model").items())
    assert torch.equal(one.optimizer.state[weight]["exp_avg"], one.moments)
    report = json.loads((tmp_path / "diverged.json").read_text())
    assert report["keys"] == ["clip8", "clip9", "clip10", "clip11"]
    assert report["norms"]["encoder.0"] > 0
    assert set(report["norms"]) == {block_of(name) for name, _ in one.unet.named_parameters()}


def test_a_run_goes_on_after_a_bad_step_as_if_there_had_been_none(tmp_path):
    """The cause removed, the resumed run ends as the undisturbed one."""
    undisturbed = trainer(tmp_path / "undisturbed", steps=6)
    undisturbed.fit()
    one = trainer(tmp_path / "run", steps=6)
    handles = []

    def change(one):
        bias = one.unet.audio_stem.conv.bias
        handles.append(bias.register_hook(lambda grad: grad * float("nan")))

    damage(one, 5, change)
    with pytest.raises(UserError, match="audio_stem not finite"):
        one.fit()
    again = trainer(tmp_path / "run", steps=6)
    again.load(read_checkpoint(tmp_path / "run"))
    again.fit()
    for part in ("model", "ema", "target", "optimizer"):
        ours, theirs = (read_checkpoint(tmp_path / run).tensors(part) for run in ("run", "undisturbed"))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items()), part


def test_a_loss_far_above_its_usual_stops_the_run_only_if_asked(tmp_path):
    def change(one):
        one.objective.balance = lambda name, error, learned: 50 * (error.video + error.audio)

    for run, rise in (("asked", 10.0), ("not", None)):
        one = trainer(tmp_path / run, steps=24, max_loss_rise=rise, learning_rate=1e-5)
        one.objective.transfer = type(one.objective.transfer)()
        damage(one, 22, change)
        if rise is None:
            one.fit()
        else:
            with pytest.raises(UserError, match=r"step 22: the loss .* is \d+\.\d times its usual"):
                one.fit()


def test_the_loss_of_another_stage_is_no_rise(tmp_path):
    one = trainer(tmp_path, steps=24, max_loss_rise=10.0, learning_rate=1e-5)
    one.objective.transfer = type(one.objective.transfer)(max_steps=22)
    one.objective.balance = lambda name, error, learned: (1e4 if name == "cm" else 1) * (error.video + error.audio)
    one.fit()
    assert one.objective.stage == 2
    first, *_, last = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert last > 10 * first


def test_the_gradient_s_norm_is_that_of_all_and_is_clipped():
    parameters = {"a.0.w": torch.zeros(3, requires_grad=True), "b": torch.zeros(2, requires_grad=True)}
    parameters["a.0.w"].grad, parameters["b"].grad = torch.tensor([3.0, 0, 0]), torch.tensor([0, 4.0])
    guard = StepGuard(parameters, 1.0, None, Layout(make_accelerator("fp32")))
    norm, bad = guard.check(0, torch.tensor(1.0), ["k"], {})
    assert (norm.item(), bad.item()) == (5.0, 0.0)
    assert parameters["b"].grad[1].item() == pytest.approx(0.8, rel=1e-5)
    assert guard.look() is None


@pytest.fixture
def stopped(tmp_path):
    """The checkpoint before step 5, whose loss was not finite; the log's last row is of step 3, stage 2 began at 4."""
    one = trainer(tmp_path, steps=6)
    damage(one, 5, lambda one: one.objective.schedule.log_alpha.fill_(float("nan")))
    with pytest.raises(UserError, match="step 5"):
        one.fit()
    return read_checkpoint(tmp_path).state


def test_a_bad_step_leaves_no_trace_in_the_checkpoint(stopped):
    assert stopped["objective"]["updates"] == 1
    assert (stopped["means"]["steps"], stopped["means"]["counts"]["loss"]) == (2, 8)
    assert math.isfinite(stopped["means"]["sums"]["loss"])
    assert stopped["guard"]["count"] == 1  # of stage 2
    assert math.isfinite(stopped["guard"]["average"])


def test_a_run_that_goes_on_knows_its_usual_loss(tmp_path):
    first = trainer(tmp_path, steps=3)
    first.fit()
    second = trainer(tmp_path, steps=6)
    second.load(read_checkpoint(tmp_path))
    assert second.guard.state() == first.guard.state()
    assert second.guard.state()["count"] == 3


def guard(rise=None):
    parameters = {"a": torch.zeros(2, requires_grad=True)}
    parameters["a"].grad = torch.tensor([0.3, 0.4])
    return StepGuard(parameters, 1.0, rise, Layout(make_accelerator("fp32")))


def test_a_gradient_below_the_norm_is_left_alone():
    one = guard()
    one.check(0, torch.tensor(1.0), ["k"], {})
    assert one.parameters["a"].grad.tolist() == pytest.approx([0.3, 0.4])


def test_a_rise_is_told_after_twenty_steps_against_the_last_hundred():
    one = guard(rise=10.0)
    for step in range(19):
        one.check(step, torch.tensor(1.0), ["k"], {})
    assert guard(rise=10.0).check(0, torch.tensor(50.0), ["k"], {})[1] == 0
    state = one.state()
    assert one.check(19, torch.tensor(50.0), ["k"], {})[1] == 0
    one.load_state(state)
    for step in range(19, 300):
        one.check(step, torch.tensor(1.0), ["k"], {})
    assert one.check(300, torch.tensor(50.0), ["k"], {})[1] == 1
    one.check(301, torch.tensor(2.0), ["k"], {})
    assert one.average.item() == pytest.approx(1.01)
