"""Laws of the distances, and their agreement with the reference."""

import math
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mgct.errors import UserError
from mgct.metrics import distances
from mgct.metrics.distances import (
    RankDeficientWarning,
    frechet_at_infinity,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    kernel_interval,
)

FEATURES = load_file(Path(__file__).parent / "fixtures" / "metrics_distances.safetensors")


def normal(count: int, dimension: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(count, dimension, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("case", "frechet", "mmd"),
    [
        ("small", 618.0029222871467, 0.13453304911544084),
        ("cond", 9.160276037216136, 0.6865888845938972),
    ],
)
@pytest.mark.filterwarnings("ignore::mgct.metrics.distances.RankDeficientWarning")
def test_agreement_with_the_reference(case: str, frechet: float, mmd: float) -> None:
    x, y = FEATURES[f"feat.{case}_x"], FEATURES[f"feat.{case}_y"]
    assert frechet_distance(x, y) == pytest.approx(frechet, rel=1e-8)
    assert kernel_distance(x, y) == pytest.approx(mmd, rel=1e-12)
    assert abs(frechet_distance(x, x)) < 1e-9 * frechet


def test_frechet_of_diagonal_gaussians_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5]) + 1
    y = torch.randn(200_000, 3, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 2.0, 1.5])
    assert frechet_distance(x, y) == pytest.approx(3 + 1 + 0 + 1, rel=0.01)


def test_frechet_agrees_with_the_matrix_square_root_on_a_full_rank_case() -> None:
    x, y = normal(300, 20, 0), normal(400, 20, 1, 0.3, 1.2) @ normal(20, 20, 2)
    a, b = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eig(a @ b)
    root = (vectors @ values.sqrt().diag() @ torch.linalg.inv(vectors)).real
    torch.testing.assert_close(root @ root, a @ b)
    expected = (x.mean(0) - y.mean(0)).square().sum() + (a + b - 2 * root).trace()
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-9)


def test_fewer_clips_than_dimensions_is_finite_and_warns_with_both_numbers() -> None:
    x, y = normal(10, 50, 0), normal(60, 50, 1)
    with pytest.warns(RankDeficientWarning, match=r"10 real clips for 50 feature dimensions"):
        value = frechet_distance(x, y)
    assert 0 < value < 1e3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(normal(60, 50, 0), y)


def test_constant_features_have_a_distance() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert frechet_distance(torch.zeros(5, 3), torch.ones(5, 3)) == pytest.approx(3.0)


def test_distances_do_not_change_their_arguments_and_are_symmetric() -> None:
    x, y = normal(40, 6, 0), normal(50, 6, 1, 0.5)
    before = x.clone()
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-10)
    assert kernel_distance(x, y) == pytest.approx(kernel_distance(y, x), rel=1e-10)
    assert torch.equal(x, before)


def test_kernel_distance_of_two_draws_of_one_distribution_is_zero_on_average() -> None:
    values = [kernel_distance(normal(60, 4, 2 * k), normal(40, 4, 2 * k + 1)) for k in range(200)]
    mean, error = torch.tensor(values).mean(), torch.tensor(values).std() / 200**0.5
    assert abs(mean) < 4 * error


@pytest.mark.parametrize("interval", [frechet_interval, kernel_interval])
def test_interval_covers_the_mean_value_at_that_number_of_clips(interval) -> None:
    draws = [(normal(80, 3, 3 * k), normal(80, 3, 3 * k + 1, 0.4)) for k in range(60)]
    intervals = [interval(x, y, draws=60, confidence=0.9, seed=k) for k, (x, y) in enumerate(draws)]
    mean = sum(i.value for i in intervals) / len(intervals)
    covered = sum(i.low <= mean <= i.high for i in intervals) / len(intervals)
    assert 0.75 <= covered <= 1.0
    assert all(i.low < i.value < i.high for i in intervals)


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize(("interval", "widest"), [(frechet_interval, 1.5), (kernel_interval, 2.0)])
def test_interval_is_about_as_wide_as_values_of_other_clips_spread(interval, widest, shift) -> None:
    """Half-width / z against the standard deviation of the value over independent sets of 96 clips, 24 dimensions.

    Repeated clips, as a bootstrap has them, would make the first 1.6 times as wide where nothing is shifted, and fail.
    """
    pairs = [(normal(96, 24, 2 * k), normal(96, 24, 2 * k + 1, shift)) for k in range(40)]
    values = torch.tensor([interval(x, y, draws=2).value for x, y in pairs])
    found = [interval(x, y, draws=40, confidence=0.9) for x, y in pairs[:8]]
    half = sum(i.high - i.low for i in found) / len(found) / 2
    assert 0.7 < half / 1.645 / values.std().item() < widest


@pytest.mark.parametrize("interval", [frechet_interval, kernel_interval])
def test_interval_of_two_clips_is_refused(interval) -> None:
    with pytest.raises(UserError, match="at least 3 clips a side, got 2"):
        interval(normal(2, 3, 0), normal(9, 3, 1))


def test_intervals_are_the_same_for_the_same_seed() -> None:
    x, y = normal(30, 3, 0), normal(30, 3, 1)
    assert frechet_interval(x, y, draws=10, seed=4) == frechet_interval(x, y, draws=10, seed=4)
    assert kernel_interval(x, y, draws=10, seed=4) != kernel_interval(x, y, draws=10, seed=5)


def test_extrapolation_comes_nearer_to_the_true_distance() -> None:
    x, y, truth = normal(600, 60, 0), normal(600, 60, 1, 0.1), 0.6
    plain, limit = frechet_distance(x, y), frechet_at_infinity(x, y)
    assert abs(limit - truth) < 0.2 * abs(plain - truth)


def test_unbiased_kernel_distance_does_not_depend_on_blocks_of_rows() -> None:
    from mgct.metrics import distances

    x, y = normal(37, 5, 0), normal(53, 5, 1)
    ones = torch.ones(1, 37, dtype=torch.float64), torch.ones(1, 53, dtype=torch.float64)
    small = distances._mmd_of_draws(x, y, *ones, rows=7)
    assert float(small) == pytest.approx(kernel_distance(x, y), rel=1e-12)


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), "at least 2 clips"),
        (torch.zeros(5, 3), torch.zeros(5, 4), "different encoders"),
        (torch.zeros(5, 3), torch.full((5, 3), float("nan")), "NaN"),
    ],
)
def test_wrong_features_are_refused(real: torch.Tensor, fake: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        frechet_distance(real, fake)


def test_a_higher_confidence_is_wider_by_the_normal_law():
    x, y = normal(40, 3, 0), normal(40, 3, 1)
    one, two = (kernel_interval(x, y, confidence=c, draws=20) for c in (0.6826895, 0.9544997))
    assert (two.high - two.low) / (one.high - one.low) == pytest.approx(2, rel=1e-5)


def test_as_many_clips_as_dimensions_are_too_few():
    with pytest.warns(RankDeficientWarning, match="5 real clips for 5"):
        frechet_distance(normal(5, 5, 0), normal(50, 5, 1))


def test_the_interval_is_scaled_by_the_smaller_side():
    x, y = normal(15, 3, 0), normal(800, 3, 1)
    kept = zip(*distances._kept_of_both(x, y, 30, 0), strict=True)
    spread = torch.tensor([frechet_distance(x[a], y[b]) for a, b in kept]).std().item()
    found = frechet_interval(x, y, draws=30)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * math.sqrt(14) * spread, rel=1e-5)
