"""Muon: orthogonal updates of matrices, AdamW's of the rest."""

import pytest
import torch

from mgct.checkpoint import checkpoint_to_resume, read_checkpoint
from mgct.errors import UserError
from mgct.muon import RMS, Muon, orthogonal
from tests.test_trainer import assert_same, trainer

RATE = 1e-2


def weights(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def stepped(optimizer, parameters, steps):
    for seed in range(steps):
        gradients(parameters, seed)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12), (16, 8, 3), (12, 12, 3, 3)])
def test_an_update_of_a_matrix_is_about_its_gradient_s_nearest_orthogonal_one(shape):
    (weight,) = weights(shape)
    before = weight.detach().clone()
    optimizer = Muon([{"params": [weight], "weight_decay": 0.0}], RATE)
    gradients([weight], 0)
    optimizer.step()
    update = (before - weight.detach()).flatten(1) / (RATE * RMS * max(weight.flatten(1).shape) ** 0.5)
    left, _, right = torch.linalg.svd(weight.grad.flatten(1), full_matrices=False)
    along = left.T @ update @ right.T
    assert along.diag().min() > 0.5
    assert along.diag().max() < 1.25
    assert (along - along.diag().diag()).abs().max() < 1e-3


def test_matrices_go_as_with_torch_s_own_muon():
    """Up to its bfloat16; shapes mixed, so that those put together get their own updates back."""
    shapes = [(16, 24), (24, 16), (16, 24), (32, 8)]
    ours, theirs = weights(*shapes), weights(*shapes)
    a = stepped(Muon([{"params": ours, "weight_decay": 0.1}], RATE), ours, 4)
    other = torch.optim.Muon(theirs, lr=RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    b = stepped(other, theirs, 4)
    for one, two, begun in zip(a, b, weights(*shapes), strict=True):
        assert torch.dist(one, two) < 0.03 * torch.dist(one, begun)


def test_all_but_matrices_go_as_with_adamw():
    shapes = [(16,), (3, 32, 3, 3), (32, 1, 3), (16, 24), (4, 4)]
    ours, theirs = weights(*shapes), weights(*shapes)
    a = stepped(Muon([{"params": ours, "weight_decay": 0.1}], RATE), ours, 3)
    b = stepped(torch.optim.AdamW(theirs, lr=RATE, weight_decay=0.1, fused=True), theirs, 3)
    same = [torch.equal(one, two) for one, two in zip(a, b, strict=True)]
    assert same == [True, True, True, False, True]


def test_an_update_is_as_large_as_the_matrix_is_whatever_the_gradient_s_size():
    small, large = (orthogonal(scale * torch.ones(1, 16, 8).cumsum(1)) for scale in (1e-9, 1e3))
    torch.testing.assert_close(small, large)
    assert orthogonal(torch.zeros(2, 8, 16)).count_nonzero() == 0


def test_small_singular_values_become_about_one_too():
    values = torch.logspace(0, -4, 40)
    values = values / values.norm()
    found = torch.linalg.svdvals(orthogonal(torch.diag(values)[None])[0, values >= 1 / 500])
    assert found.min() > 0.68
    assert found.max() < 1.21


def test_a_step_that_must_not_be_taken_changes_nothing():
    parameters = weights((16, 24), (16,))
    optimizer = Muon([{"params": parameters, "weight_decay": 0.1}], RATE)
    stepped(optimizer, parameters, 2)
    before = [parameter.detach().clone() for parameter in parameters]
    kept = [{name: value.clone() for name, value in optimizer.state[p].items()} for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(parameters, before, strict=True))
    for parameter, state in zip(parameters, kept, strict=True):
        assert all(torch.equal(optimizer.state[parameter][name], value) for name, value in state.items())
    gradients(parameters, 9)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert not any(torch.equal(*pair) for pair in zip(parameters, before, strict=True))


def test_a_resumed_run_goes_on_as_the_undisturbed_one(tmp_path):
    undisturbed = trainer(tmp_path / "undisturbed", optimizer="muon")
    undisturbed.fit()
    stopped = trainer(tmp_path / "run", optimizer="muon", steps=5)
    stopped.fit()
    again = trainer(tmp_path / "run", optimizer="muon")
    again.load(read_checkpoint(tmp_path / "run"))
    again.fit()
    for part in ("model", "ema", "target", "optimizer"):
        ours, theirs = (read_checkpoint(tmp_path / run).tensors(part) for run in ("run", "undisturbed"))
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert_same(ours[name], value, f"{part} {name}")
    kept = read_checkpoint(tmp_path / "run").tensors("optimizer")
    assert {name.rpartition("/")[2] for name in kept} == {"momentum", "exp_avg", "exp_avg_sq", "step"}


def test_a_run_is_resumed_with_its_own_optimizer(tmp_path):
    config = {"kind": "train", "model": {}, "clip": {}, "train": {"optimizer": "muon"}}
    one = trainer(tmp_path, optimizer="muon", steps=1)
    one.config = config
    one.fit()
    assert checkpoint_to_resume(tmp_path, True, config, 0, 2) is not None
    with pytest.raises(UserError, match=r"was trained with train.optimizer muon; resume with the same, or .* --init"):
        checkpoint_to_resume(tmp_path, True, {**config, "train": {}}, 0, 2)
