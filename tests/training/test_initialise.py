"""Starting values: the geometric median against a brute-force minimiser, and fresh SAEs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import training
from torch import Tensor

from fastzoo.saes.jumprelu import JumpReLUSAE
from fastzoo.training.initialise import Points, activation_scale, decoder_bias, geometric_median, new_sae


def objective(points: np.ndarray, centre: np.ndarray) -> float:
    return float(np.sqrt(((points - centre) ** 2).sum(1)).sum())


def brute_force_median(points: np.ndarray) -> np.ndarray:
    """Pattern search: halve the step whenever no neighbour along a random basis is better."""
    rng = np.random.default_rng(0)
    centre = points.mean(0)
    best = objective(points, centre)
    step = float(np.abs(points - centre).max())
    while step > 1e-9:
        basis = np.linalg.qr(rng.normal(size=(points.shape[1],) * 2))[0]
        for direction in np.concatenate([basis, -basis]):
            trial = centre + step * direction
            value = objective(points, trial)
            if value < best:
                centre, best = trial, value
                break
        else:
            step *= 0.7
    return centre


@pytest.mark.parametrize("seed", range(4))
def test_geometric_median_is_the_brute_force_minimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(31, 3)) * rng.uniform(0.1, 5, size=3) + rng.normal(size=3) * 10
    points[:4] += 200  # outliers: the mean is far away
    found = geometric_median(Points(torch.from_numpy(points))).numpy()
    expected = brute_force_median(points)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert objective(points, found) <= objective(points, expected) * (1 + 1e-9)
    assert np.abs(points.mean(0) - expected).max() > 1


def test_geometric_median_of_collinear_points_is_their_middle_one() -> None:
    direction = np.array([1.0, -2.0, 0.5])
    places = np.array([-7.0, -1.0, 0.3, 4.0, 50.0])
    found = geometric_median(Points(torch.from_numpy(places[:, None] * direction)))
    np.testing.assert_allclose(found.numpy(), 0.3 * direction, atol=1e-5)


def test_geometric_median_that_coincides_with_a_sample() -> None:
    """Three of five points at one place: the sum of distances is least exactly there."""
    points = torch.tensor([[1.0, 2.0]] * 3 + [[9.0, -4.0], [-30.0, 7.0]], dtype=torch.float64)
    np.testing.assert_allclose(geometric_median(Points(points)).numpy(), [1.0, 2.0], atol=1e-5)


def test_geometric_median_leaves_a_sample_that_its_start_coincides_with() -> None:
    """The mean, where iterations start, is itself a sample here, and not the median."""
    points = torch.tensor([[0.0], [0.0], [0.0], [1.0], [4.0]], dtype=torch.float64)
    assert points.mean().item() == 1.0
    assert abs(geometric_median(Points(points)).item()) < 1e-4


def test_geometric_median_of_one_point_and_of_equal_points() -> None:
    point = torch.tensor([[3.0, -1.0]])
    assert torch.equal(geometric_median(Points(point)), point[0])
    assert torch.equal(geometric_median(Points(point.repeat(7, 1))), point[0])


def test_geometric_median_of_many_points_is_that_of_all_of_them() -> None:
    """More points than one chunk holds; by symmetry the median is known."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(6000, 4, generator=generator, dtype=torch.float64)
    centre = torch.tensor([5.0, -3.0, 0.0, 100.0], dtype=torch.float64)
    points = torch.cat([centre + half, centre - half])
    np.testing.assert_allclose(geometric_median(Points(points)).numpy(), centre.numpy(), atol=1e-8)
    assert geometric_median(Points(points.float())).dtype == torch.float32


def test_decoder_bias_kinds() -> None:
    points = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 3.0]])
    np.testing.assert_allclose(decoder_bias(Points(points), "geometric_median"), [0, 0], atol=1e-4)
    assert decoder_bias(Points(points), "mean").tolist() == [3.0, 1.0]
    assert decoder_bias(Points(points), "zeros").tolist() == [0.0, 0.0]


def test_activation_scale_makes_the_mean_square_one() -> None:
    points = torch.randn(100, 7, generator=torch.Generator().manual_seed(0)) * 13 + 4
    scale = activation_scale(Points(points), "unit_mean_square")
    assert float(np.mean((points.numpy().astype(np.float64) * scale) ** 2)) == pytest.approx(1)
    assert activation_scale(Points(points), "none") == 1.0
    assert activation_scale(Points(torch.zeros(3, 2)), "unit_mean_square") == 1.0
    # An outlier that is not counted changes nothing; if nothing is counted, everything is.
    outlier = torch.cat([points, torch.full((1, 7), 1e4)])
    counted = torch.arange(101) < 100
    assert activation_scale(Points(outlier, counted), "unit_mean_square") == pytest.approx(scale)
    everything = activation_scale(Points(outlier), "unit_mean_square")
    assert everything < scale / 10
    assert activation_scale(Points(outlier, counted & ~counted), "unit_mean_square") == everything


def test_half_precision_points_lose_nothing_more() -> None:
    points = (torch.randn(500, 7, generator=torch.Generator().manual_seed(0)) + 3).bfloat16()
    for kind in ("geometric_median", "mean"):
        found = decoder_bias(Points(points), kind)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, decoder_bias(Points(points.double()), kind))


def fresh(kind: str, preset: str, seed: int, d_in: int = 24, d_sae: int = 192) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sae = new_sae(kind, d_in, d_sae, training(preset), generator)
    return {name: p.detach().clone() for name, p in sae.named_parameters()}


@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
@pytest.mark.parametrize("preset", ["paper", "quick"])
def test_fresh_sae(kind: str, preset: str) -> None:
    weights = fresh(kind, preset, 1)
    decoder = weights["W_dec"]
    np.testing.assert_allclose(decoder.norm(dim=1), np.ones(192), rtol=1e-5)
    assert not weights["b_enc"].any()
    assert not weights["b_dec"].any()
    # Rows of a Kaiming-uniform matrix point anywhere: their mean is near zero.
    assert decoder.mean(0).abs().max() < 0.1
    if preset == "paper":
        # kaiming_uniform_ of a (d_in, d_sae) tensor: within sqrt(6 / d_sae), evenly spread.
        bound = math.sqrt(6 / 192)
        encoder = weights["W_enc"]
        assert encoder.abs().max() <= bound
        assert encoder.abs().max() > 0.98 * bound
        assert encoder.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert abs(encoder.mean().item()) < 0.02 * bound
        correlation = torch.corrcoef(torch.stack([encoder.flatten(), decoder.t().flatten()]))
        assert abs(correlation[0, 1].item()) < 0.05  # independent draws
    else:
        assert torch.equal(weights["W_enc"], decoder.t())
    if kind == "jumprelu":
        start = training(preset).jumprelu_initial_threshold
        np.testing.assert_allclose(weights["threshold"], np.full(192, start), rtol=1e-6)
        assert ("log_threshold" in weights) == (preset == "paper")
        if preset == "paper":
            np.testing.assert_allclose(weights["log_threshold"], np.full(192, math.log(start)), rtol=1e-6)


@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
def test_same_seed_same_sae_other_seed_another(kind: str) -> None:
    one, again, other = fresh(kind, "paper", 7), fresh(kind, "paper", 7), fresh(kind, "paper", 8)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["W_enc"], other["W_enc"])
    assert not torch.equal(one["W_dec"], other["W_dec"])


def test_fresh_saes_do_not_depend_on_the_global_generator() -> None:
    torch.manual_seed(1)
    one = fresh("standard", "quick", 3)
    torch.manual_seed(2)
    assert torch.equal(one["W_dec"], fresh("standard", "quick", 3)["W_dec"])


def test_bandwidth_comes_from_the_recipe() -> None:
    section = training("quick", jumprelu_bandwidth=0.125)
    sae = new_sae("jumprelu", 4, 8, section, torch.Generator().manual_seed(0))
    assert isinstance(sae, JumpReLUSAE)
    assert sae.bandwidth == 0.125
