"""The polar factor's three ways: each is the SVD's, value and gradient, and leaves to it what it cannot do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import references
import torch
from torch import Tensor
from torch.autograd import gradcheck

from ncflow.geometry import nearest_etf, polar, polar_factor, random_orthonormal, simplex_etf

SEEDS = range(3)
SHAPES = [(1, 1), (4, 4), (6, 9), (9, 64), (30, 40)]  # (k, d)
CPU = torch.device("cpu")
# condition number -> what a factor may differ by, of order 1, and a gradient, relative to its largest element
ACCURACY = {1.0: (1e-13, 1e-13), 30.0: (1e-12, 1e-12), 1e3: (1e-9, 1e-8), 1e4: (1e-7, 1e-6), 1e7: (1e-8, 1e-8)}


def rows_and_factor(k: int, d: int, *, condition: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A (k, d) with singular values from 3 down to 3/condition, evenly in their logarithm, and its polar factor."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (random_orthonormal(size, k, generator=generator, dtype=torch.float64) for size in (k, d))
    values = 3 * torch.logspace(0, -math.log10(condition), k, dtype=torch.float64)
    return left @ values.diag() @ right.mT, left @ right.mT


def rows(k: int, d: int, *, condition: float, seed: int = 0) -> Tensor:
    return rows_and_factor(k, d, condition=condition, seed=seed)[0]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 50), dtype=torch.float64)


@pytest.mark.parametrize("condition", ACCURACY)
@pytest.mark.parametrize("method", polar.METHODS)
def test_every_method_is_the_definition_at_every_condition_number(method, condition):
    accuracy, gradient_accuracy = ACCURACY[condition]
    for k, d in SHAPES:
        for seed in SEEDS:
            a, known = rows_and_factor(k, d, condition=condition, seed=seed)
            upstream = gaussian(k, d, seed=seed)
            factor, used, saved = polar.solve(a, method)
            torch.testing.assert_close(factor, known, rtol=0, atol=accuracy)
            gradient = polar.pullback(used, saved, upstream)
            exact = references.polar_gradient(a.mT.numpy(), known.mT.numpy(), upstream.mT.numpy()).T
            # for k = d = 1 the factor is a sign, and the exact gradient 0
            np.testing.assert_allclose(gradient, exact, atol=gradient_accuracy * max(abs(exact).max(), 1))


@pytest.mark.parametrize("method", ["gram", "products"])
def test_what_is_too_near_to_losing_rank_is_left_to_the_svd(method):
    for condition, expected in ((1e3, method), (1e7, "svd"), (math.inf, "svd")):
        a = rows(6, 9, condition=condition) if condition < math.inf else torch.ones(6, 9, dtype=torch.float64)
        factor, used, _ = polar.solve(a, method)
        assert used == expected
        torch.testing.assert_close(factor @ factor.mT, torch.eye(6).double(), rtol=0, atol=1e-9)
    batch = torch.stack([rows(6, 9, condition=10), torch.zeros(6, 9).double()])
    assert polar.solve(batch, method)[1] == "svd"


@pytest.mark.parametrize("method", polar.METHODS)
def test_a_batch_is_solved_as_its_members_are(method):
    batch = torch.stack([rows(6, 9, condition=10 * (seed + 1), seed=seed) for seed in range(6)])
    upstream = gaussian(6, 6, 9)
    factor, used, saved = polar.solve(batch.view(2, 3, 6, 9), method)
    gradient = polar.pullback(used, saved, upstream.view(2, 3, 6, 9)).view(6, 6, 9)
    for a, g, p, q in zip(batch, upstream, factor.view(6, 6, 9), gradient, strict=True):
        alone, used, saved = polar.solve(a, method)
        torch.testing.assert_close(p, alone, rtol=0, atol=1e-13)
        torch.testing.assert_close(q, polar.pullback(used, saved, g), rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", polar.METHODS)
def test_whatever_finds_the_factor_the_gradient_of_the_etf_is_exact(method, monkeypatch):
    monkeypatch.setattr(polar, "choose_method", lambda dtype, device: method)
    anchor = simplex_etf(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    means = gaussian(2, 4, 6).requires_grad_()  # one anchor for a batch of means
    assert gradcheck(lambda m, a: nearest_etf(m, proximal=0.1, anchor=a), (means, anchor))
    assert gradcheck(polar_factor, gaussian(5, 3).requires_grad_())


def test_the_method_follows_device_and_accuracy():
    assert polar.choose_method(torch.float64, CPU) == "svd"
    assert {polar.choose_method(dtype, CPU) for dtype in (torch.float32, torch.bfloat16, torch.float16)} == {"gram"}
    for dtype in (torch.float64, torch.float32):
        assert polar.choose_method(dtype, torch.device("cuda")) == "products"


@pytest.mark.parametrize("method", polar.METHODS)
@pytest.mark.parametrize("num_seen", [0, 1, 2, 6, 10])
def test_a_float32_head_is_exact_with_absent_classes_and_near_collapse(method, num_seen, monkeypatch):
    """proximal = 1e-3 with an anchor, as the head has it: within 1e-5 of float64 by an SVD, gradient included."""
    anchor = simplex_etf(10, 32, generator=torch.Generator().manual_seed(3))
    upstream = gaussian(10, 32).float()
    for spread in (1.0, 1e-4):  # Gaussian means, and means next to an ETF
        means = (spread * gaussian(10, 32).float() + (spread < 1) * simplex_etf(10, 32)).requires_grad_()
        seen = torch.arange(10)[:, None] < num_seen
        filled = torch.where(seen, means, means[:num_seen].mean(0) if num_seen else 0.0)
        exact_means = filled.detach().double().requires_grad_()
        exact = nearest_etf(exact_means, proximal=1e-3, anchor=anchor.double())
        exact.backward(upstream.double())
        with monkeypatch.context() as patch:
            patch.setattr(polar, "choose_method", lambda dtype, device: method)
            filled = filled.detach().requires_grad_()
            etf = nearest_etf(filled, proximal=1e-3, anchor=anchor)
            etf.backward(upstream)
        torch.testing.assert_close(etf.double(), exact, rtol=0, atol=1e-5)
        scale = float(exact_means.grad.abs().max())
        torch.testing.assert_close(filled.grad.double(), exact_means.grad, rtol=0, atol=1e-5 * scale)
