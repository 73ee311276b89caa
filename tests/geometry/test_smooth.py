"""Derivatives of any order and the transforms of torch.func: equal to finite differences, or refused."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from ncflow.geometry import etf_distance, nearest_etf, polar_factor

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
SEEDS = range(3)
SHAPES = [(4, 3), (4, 6), (2, 2)]  # (K, d): as many features as an ETF needs, and more


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(shape: tuple[int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class means, and an ETF to stay near to."""
    return randn(*shape, seed=seed).requires_grad_(), nearest_etf(randn(*shape, seed=seed + 100)).requires_grad_()


def anchored(means: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    return nearest_etf(means, proximal=0.3, anchor=anchor)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_second_derivatives_are_those_of_finite_differences(seed, shape):
    means, anchor = problem(shape, seed)
    assert gradgradcheck(nearest_etf, means)
    assert gradgradcheck(anchored, (means, anchor))
    assert gradgradcheck(etf_distance, means)
    assert gradgradcheck(polar_factor, randn(shape[1], shape[0] - 1, seed=seed).requires_grad_())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_graph_of_the_gradient_changes_no_gradient(seed):
    means, anchor = problem((5, 7), seed)
    upstream = randn(5, 7, seed=seed + 1)
    for inputs in ((means, anchor), (means.detach().float().requires_grad_(), anchor)):
        plain, graphed = (
            torch.autograd.grad(anchored(*inputs), inputs, upstream.to(inputs[0].dtype), create_graph=create)
            for create in (False, True)
        )
        for one, other in zip(plain, graphed, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5 if one.dtype == torch.float32 else 1e-9, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_buffer_as_anchor_may_be_overwritten_before_backward(seed):
    means, anchor = problem((4, 6), seed)
    buffer = anchor.detach().clone()
    etf = anchored(means, buffer)
    buffer.zero_()
    (found,) = torch.autograd.grad(etf.sum(), means, create_graph=True)
    (expected,) = torch.autograd.grad(anchored(means, anchor).sum(), means)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("function", [nearest_etf, etf_distance, lambda means: polar_factor(means.mT)])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_transforms_of_torch_func_agree_with_autograd(seed, function):
    means, batch = randn(4, 6, seed=seed), randn(5, 4, 6, seed=seed + 1)
    theirs = torch.autograd.functional.jacobian(function, means)
    torch.testing.assert_close(jacrev(function)(means), theirs)
    torch.testing.assert_close(jacfwd(function)(means), theirs)
    torch.testing.assert_close(vmap(function)(batch), torch.stack([function(one) for one in batch]))
    per_sample = vmap(grad(lambda one: function(one).sum()))(batch)
    for one, found in zip(batch, per_sample, strict=True):
        one = one.clone().requires_grad_()
        torch.testing.assert_close(found, torch.autograd.grad(function(one).sum(), one)[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hessian_is_that_of_autograd(seed):
    means, weights = randn(3, 4, seed=seed), randn(3, 4, seed=seed + 1)

    def value(means: torch.Tensor) -> torch.Tensor:
        return (nearest_etf(means) * weights).sum()

    torch.testing.assert_close(hessian(value)(means), torch.autograd.functional.hessian(value, means))


@pytest.mark.parametrize("seed", SEEDS)
def test_forward_mode_agrees_with_finite_differences(seed):
    assert gradcheck(nearest_etf, randn(4, 6, seed=seed).requires_grad_(), check_forward_ad=True)


def test_a_second_derivative_that_does_not_exist_is_refused():
    means = randn(4, 6, seed=0)
    means[2] = means[1]
    means.requires_grad_()
    (first,) = torch.autograd.grad(nearest_etf(means).sum(), means)
    assert first.isfinite().all()
    with pytest.raises(ValueError, match="no derivative where its matrix loses rank"):
        torch.autograd.grad(nearest_etf(means).sum(), means, create_graph=True)


def test_a_search_cannot_be_transformed():
    with pytest.raises(ValueError, match="use 'closed_form'"):
        vmap(lambda means: nearest_etf(means, solver="riemannian"))(randn(2, 3, 4, seed=0))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_it_is_the_same(backend):
    torch._dynamo.reset()
    means, anchor = problem((5, 7), 0)
    upstream = randn(5, 7, seed=1)
    compiled = torch.compile(anchored, fullgraph=True, backend=backend)
    plain = torch.autograd.grad(anchored(means, anchor), (means, anchor), upstream)
    found = torch.autograd.grad(compiled(means, anchor), (means, anchor), upstream)
    torch.testing.assert_close(compiled(means, anchor), anchored(means, anchor))
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_means_of_one_value_up_to_their_rounding_pull_nowhere(dtype):
    means = (1 + torch.finfo(dtype).eps * torch.randint(-1, 2, (4, 6), generator=torch.Generator().manual_seed(0))).to(
        dtype
    )
    anchor = nearest_etf(randn(4, 6, seed=1)).to(dtype)
    means.requires_grad_()
    etf = nearest_etf(means, proximal=1e-3, anchor=anchor)
    torch.testing.assert_close(etf, anchor, rtol=0, atol=4 * torch.finfo(dtype).eps)
    etf.sum().backward()
    assert not means.grad.any()
    assert etf_distance(means.detach()).item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("jacobian", [torch.func.jacrev, torch.func.jacfwd])
@pytest.mark.parametrize("mapped", [False, True])
def test_torch_func_refuses_a_derivative_where_rank_is_lost(jacobian, mapped):
    means = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means[2] = means[1]
    function = torch.func.vmap(jacobian(nearest_etf)) if mapped else jacobian(nearest_etf)
    with pytest.raises(ValueError, match="no derivative where its matrix loses rank"):
        function(torch.stack([torch.eye(4, 6).double(), means]) if mapped else means)
