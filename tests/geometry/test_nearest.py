"""The nearest simplex ETF: it is the nearest, it moves with the means, and its gradient is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import references
import torch
from torch import Tensor
from torch.autograd import gradcheck

from ncflow.geometry import etf_distance, nearest_etf, polar_factor, random_orthonormal, simplex_etf

SEEDS = range(4)
SHAPES = [(2, 1), (2, 3), (3, 2), (5, 4), (5, 5), (5, 6), (5, 12), (20, 30)]  # (K, d)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_etf(num_classes: int, num_features: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 100)
    return simplex_etf(num_classes, num_features, generator=generator, dtype=torch.float64)


def rotation(num_features: int, seed: int = 0) -> Tensor:
    return random_orthonormal(
        num_features, num_features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def deficient_means(which: str, num_classes: int = 5, num_features: int = 7) -> Tensor:
    """Means of rank below K-1, as they come up in training."""
    means = gaussian(num_classes, num_features, seed=9)
    if which == "two classes at the center of the others":
        means[3:] = means[:3].mean(0)
    elif which == "two classes coincide":
        means[1] = means[0]
    elif which == "one class seen":
        means[1:] = means[0]
    else:
        means[:] = 0
    return means


DEFICIENT = ["two classes at the center of the others", "two classes coincide", "one class seen", "all means are zero"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_classes, num_features", SHAPES)
def test_the_result_is_a_simplex_etf(num_classes, num_features, seed):
    etf = nearest_etf(gaussian(num_classes, num_features, seed=seed))
    ideal = num_classes / (num_classes - 1) * (np.eye(num_classes) - 1 / num_classes)
    np.testing.assert_allclose(etf @ etf.mT, ideal, atol=1e-13)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_classes, num_features", [s for s in SHAPES if s[1] >= s[0]])
def test_it_equals_the_solution_over_all_k_columns(num_classes, num_features, seed):
    means = gaussian(num_classes, num_features, seed=seed) + 3
    np.testing.assert_allclose(nearest_etf(means), references.nearest_etf(means.numpy()), atol=1e-12)


@pytest.mark.parametrize("proximal", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("num_classes, num_features", SHAPES)
def test_no_other_etf_has_a_smaller_objective(num_classes, num_features, proximal):
    means, anchor = gaussian(num_classes, num_features), random_etf(num_classes, num_features)
    etf = nearest_etf(means, proximal=proximal, anchor=anchor)

    def objective(candidate: Tensor) -> float:
        return references.etf_objective(candidate.numpy(), means.numpy(), proximal, anchor.numpy())

    best = objective(etf)
    for seed in range(30):
        assert best <= objective(random_etf(num_classes, num_features, seed)) + 1e-12
    for seed in range(30):  # and the neighbors on the manifold: small rotations of the solution
        skew = gaussian(num_features, num_features, seed=seed)
        nearby = etf @ torch.linalg.matrix_exp(10.0 ** -(1 + seed % 4) * (skew - skew.mT))
        assert best <= objective(nearby) + 1e-12


@pytest.mark.parametrize("num_classes, num_features", SHAPES)
def test_an_etf_is_its_own_nearest(num_classes, num_features):
    etf = random_etf(num_classes, num_features)
    torch.testing.assert_close(nearest_etf(etf), etf, rtol=0, atol=1e-13)
    once = nearest_etf(gaussian(num_classes, num_features))
    torch.testing.assert_close(nearest_etf(once), once, rtol=0, atol=1e-13)


@pytest.mark.parametrize("num_classes, num_features", SHAPES)
def test_it_ignores_shift_and_scale_and_follows_rotations_and_permutations(num_classes, num_features):
    means, turn = gaussian(num_classes, num_features), rotation(num_features)
    etf, order = nearest_etf(means), torch.randperm(num_classes, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nearest_etf(1e-3 * means + gaussian(num_features)), etf, rtol=0, atol=1e-10)
    torch.testing.assert_close(nearest_etf(1e6 * means), etf, rtol=0, atol=1e-10)
    torch.testing.assert_close(nearest_etf(means @ turn), etf @ turn, rtol=0, atol=1e-10)
    torch.testing.assert_close(nearest_etf(means[order]), etf[order], rtol=0, atol=1e-10)


@pytest.mark.parametrize("which", DEFICIENT)
def test_with_an_anchor_it_is_unique_where_the_means_have_lost_rank(which):
    """Unique means: rounding of the means moves it by rounding, and rotating the problem rotates it."""
    means, anchor, turn = deficient_means(which), random_etf(5, 7), rotation(7)
    etf = nearest_etf(means, proximal=1e-3, anchor=anchor)
    shaken = means * (1 + 1e-16 * gaussian(5, 7, seed=1))
    torch.testing.assert_close(nearest_etf(shaken, proximal=1e-3, anchor=anchor), etf, rtol=0, atol=1e-8)
    turned = nearest_etf(means @ turn, proximal=1e-3, anchor=anchor @ turn)
    torch.testing.assert_close(turned, etf @ turn, rtol=0, atol=1e-10)


@pytest.mark.parametrize("which", DEFICIENT)
def test_without_an_anchor_it_still_is_one_of_the_nearest(which):
    means = deficient_means(which)
    etf = nearest_etf(means)
    distance = references.etf_objective(etf.numpy(), means.numpy())
    assert distance == pytest.approx(etf_distance(means).item(), abs=1e-12)
    torch.testing.assert_close(nearest_etf(etf), etf, rtol=0, atol=1e-13)


def test_means_that_all_coincide_leave_the_anchor_where_it_is():
    anchor = random_etf(5, 7)
    for means in (torch.zeros(5, 7), torch.full((5, 7), 0.1), torch.full((5, 7), 0.1).double() / 3):
        etf = nearest_etf(means, proximal=1e-3, anchor=anchor)
        torch.testing.assert_close(etf.double(), anchor, rtol=0, atol=1e-6)


def test_a_strong_anchor_wins_and_a_weak_one_hardly_shows():
    means, anchor = gaussian(10, 16), random_etf(10, 16)
    free = nearest_etf(means)
    torch.testing.assert_close(nearest_etf(means, proximal=1e8, anchor=anchor), anchor, rtol=0, atol=1e-6)
    gaps = [float((nearest_etf(means, proximal=delta, anchor=anchor) - free).norm()) for delta in (1e-3, 1e-6, 0.0)]
    assert 0.1 > gaps[0] > 10 * gaps[1] > gaps[2] == 0


@pytest.mark.parametrize("num_classes, num_features", [(2, 1), (5, 4), (5, 9)])
def test_a_batch_is_solved_as_its_members_are(num_classes, num_features):
    means = gaussian(2, 3, num_classes, num_features)
    anchors = torch.stack([random_etf(num_classes, num_features, seed) for seed in range(6)]).view_as(means)
    flat = list(zip(means.flatten(0, 1), anchors.flatten(0, 1), strict=True))
    etfs = torch.stack([nearest_etf(m, proximal=0.1, anchor=a) for m, a in flat]).view_as(means)
    torch.testing.assert_close(nearest_etf(means, proximal=0.1, anchor=anchors), etfs, rtol=0, atol=1e-12)
    distances = torch.stack([etf_distance(m) for m, _ in flat]).view(2, 3)
    torch.testing.assert_close(etf_distance(means), distances, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_of_the_means_is_kept_with_float64_inside(dtype):
    means = (gaussian(6, 8) + 10).to(dtype).requires_grad_()
    etf, distance, factor = nearest_etf(means), etf_distance(means), polar_factor(means.mT)
    assert etf.dtype is distance.dtype is factor.dtype is dtype
    exact = means.detach().double()
    torch.testing.assert_close(etf, nearest_etf(exact).to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(distance, etf_distance(exact).to(dtype), rtol=1e-14, atol=0)
    torch.testing.assert_close(factor, polar_factor(exact.mT).to(dtype), rtol=0, atol=0)
    etf.square().mul(gaussian(6, 8, seed=1).to(dtype)).sum().backward()
    assert means.grad is not None and means.grad.dtype is dtype and bool(means.grad.isfinite().all())


def test_autocast_changes_nothing():
    means = gaussian(6, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = nearest_etf(means), etf_distance(means), polar_factor(means.mT)
    for result, expected in zip(inside, (nearest_etf(means), etf_distance(means), polar_factor(means.mT)), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(3, 1), (4, 4), (6, 3), (2, 5, 3)])
def test_the_polar_factor_matches_its_definition_with_an_exact_gradient(shape, seed):
    a = gaussian(*shape, seed=seed)
    looped = [references.polar_factor(m.numpy()) for m in a.reshape(-1, *shape[-2:])]
    np.testing.assert_allclose(polar_factor(a), np.stack(looped).reshape(shape), atol=1e-11)
    assert gradcheck(polar_factor, a.requires_grad_())


@pytest.mark.parametrize("seed", SEEDS)
def test_the_polar_gradient_is_what_autograd_finds_through_the_svd(seed):
    a, upstream = gaussian(7, 4, seed=seed).requires_grad_(), gaussian(7, 4, seed=seed + 10)
    (grad,) = torch.autograd.grad(polar_factor(a), a, upstream)
    u, _, vh = torch.linalg.svd(a, full_matrices=False)
    (through_svd,) = torch.autograd.grad(u @ vh, a, upstream)
    torch.testing.assert_close(grad, through_svd)


@pytest.mark.parametrize("spectrum", [(2.0, 2.0, 2.0), (3.0, 1.0, 1.0), (1.0, 1e-3, 1e-3)])
def test_repeated_singular_values_do_no_harm_to_the_gradient(spectrum):
    left, right = rotation(5)[:, :3], rotation(3, seed=1)
    assert gradcheck(polar_factor, (left @ torch.tensor(spectrum).double().diag() @ right).requires_grad_(), eps=1e-7)
    assert gradcheck(polar_factor, (left[:3] @ right).requires_grad_())


def test_at_lost_rank_the_gradient_stays_finite():
    for a in (torch.zeros(4, 3), torch.ones(4, 3), torch.eye(4)[:, :3] * torch.tensor([1.0, 1.0, 0.0])):
        a = a.double().requires_grad_()
        factor = polar_factor(a)
        np.testing.assert_allclose((factor.mT @ factor).detach(), np.eye(3), atol=1e-14)
        factor.sum().backward()
        assert a.grad is not None and bool(a.grad.isfinite().all())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (4, 3), (4, 4), (4, 6), (2, 4, 5)])
def test_the_gradient_of_the_nearest_etf_is_exact(shape, seed):
    means = (gaussian(*shape, seed=seed) + 2).requires_grad_()
    anchor = random_etf(*shape[-2:], seed=seed).requires_grad_()
    if shape != (2, 1):  # there an ETF is one of two points, and nothing moves
        assert gradcheck(nearest_etf, means)
    assert gradcheck(lambda m, a: nearest_etf(m, proximal=0.1, anchor=a), (means, anchor))
    assert gradcheck(etf_distance, means)


@pytest.mark.parametrize("which", DEFICIENT)
def test_means_that_lost_rank_give_finite_gradients(which):
    means = deficient_means(which).requires_grad_()
    etf = nearest_etf(means, proximal=1e-3, anchor=random_etf(5, 7))
    (etf * gaussian(5, 7)).sum().backward()
    assert means.grad is not None and bool(means.grad.isfinite().all())
    means.grad = None
    etf_distance(means).backward()
    assert means.grad is not None and bool(means.grad.isfinite().all())


def test_the_gradient_is_exact_where_all_singular_values_are_equal():
    assert gradcheck(nearest_etf, (2 * random_etf(4, 5)).requires_grad_())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_classes, num_features", SHAPES)
def test_the_distance_is_that_to_the_nearest_etf(num_classes, num_features, seed):
    means = gaussian(num_classes, num_features, seed=seed) - 5
    distance = etf_distance(means).item()
    to_nearest = references.etf_objective(nearest_etf(means).numpy(), means.numpy())
    assert distance == pytest.approx(to_nearest, abs=1e-13)
    assert distance == pytest.approx(references.exact_etf_distance(means.numpy()), rel=1e-9, abs=1e-28)
    assert 0 <= distance < 2


@pytest.mark.parametrize("perturbation, accuracy", [(1e-2, 1e-11), (1e-6, 1e-8), (1e-9, 1e-5), (1e-12, 1e-2)])
def test_the_distance_is_right_however_near_collapse(perturbation, accuracy):
    for seed in SEEDS:
        means = random_etf(6, 9, seed) + perturbation * gaussian(6, 9, seed=seed)
        exact = references.exact_etf_distance(means.numpy())
        assert 0 < exact < 100 * perturbation**2
        assert etf_distance(means).item() == pytest.approx(exact, rel=accuracy, abs=0)


def test_an_etf_has_no_distance_and_coinciding_means_have_distance_one():
    assert etf_distance(3 * random_etf(6, 9) + 1).item() < 1e-28
    assert etf_distance(torch.ones(6, 9)).item() == pytest.approx(1)
    far = torch.zeros(200, 200, dtype=torch.float64)
    far[0] = 1  # rank one is the worst case
    assert etf_distance(far).item() == pytest.approx(2 - 2 / math.sqrt(199))


@pytest.mark.parametrize("function", [nearest_etf, etf_distance])
def test_unfit_means_are_refused(function):
    with pytest.raises(ValueError, match="num_features >= num_classes - 1, got 64 and 100; use a wider neck"):
        function(torch.zeros(100, 64))
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        function(torch.zeros(1, 64))
    with pytest.raises(ValueError, match=r"must be \(..., K, d\) floats, got \(6,\) torch.float32"):
        function(torch.zeros(6))
    with pytest.raises(ValueError, match=r"must be \(..., K, d\) floats, got \(3, 4\) torch.int64"):
        function(torch.zeros(3, 4, dtype=torch.long))


def test_unfit_options_are_refused():
    means = gaussian(4, 5)
    with pytest.raises(ValueError, match="proximal must be >= 0, got -0.1"):
        nearest_etf(means, proximal=-0.1, anchor=random_etf(4, 5))
    with pytest.raises(ValueError, match=r"proximal = 0.001 needs an anchor"):
        nearest_etf(means, proximal=1e-3)
    with pytest.raises(ValueError, match=r"anchor must be an ETF shaped like the class means, got \(4, 6\)"):
        nearest_etf(means, proximal=0.1, anchor=random_etf(4, 6))
    with pytest.raises(ValueError, match="unknown solver 'closed'. Did you mean 'closed_form'?"):
        nearest_etf(means, solver="closed")
    with pytest.raises(ValueError, match=r"d >= k, got shape \(3, 4\)"):
        polar_factor(torch.zeros(3, 4))
