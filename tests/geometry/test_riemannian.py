"""The Riemannian search and the closed form are held against each other: two roads to one ETF."""

from __future__ import annotations

import jax
import pytest
import torch
from torch import Tensor

from ncflow.geometry.frames import simplex_etf
from ncflow.geometry.nearest import etf_distance, nearest_etf
from ncflow.geometry.polar import polar_factor
from ncflow.geometry.riemannian import nearest_etf_riemannian, stiefel_maximizer

# (K, d): K = 2 on a line, where the Stiefel manifold is two points; then d = K-1, d = K and d = K+1
SHAPES = [(2, 1), (5, 4), (5, 5), (5, 6)]
SEEDS = range(3)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def draw(num_classes: int, num_features: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gaussian class means with an offset, and a random anchor ETF: (K, d) and (K, d)."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(num_classes, num_features, generator=generator, dtype=torch.float64) + 3
    return means, simplex_etf(num_classes, num_features, generator=generator, dtype=torch.float64)


def objective(etf: Tensor, class_means: Tensor, proximal: float, anchor: Tensor) -> float:
    """The problem of Markou et al. 2024, term by term over P (d, K): ‖H̄ - PM/sqrt(K-1)‖² + (δ/2)‖P - P_prev‖².

    W = sqrt(K/(K-1)) M Pᵀ leaves the part of P along the all-ones vector free; both Ps are given the same one.
    """
    num_classes = len(etf)
    shrink = ((num_classes - 1) / num_classes) ** 0.5
    centered = class_means - class_means.mean(0)
    distance = (centered / centered.norm() - shrink * etf / (num_classes - 1) ** 0.5).square().sum()
    return float(distance + proximal / 2 * (shrink * (etf - anchor)).square().sum())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_classes, num_features", SHAPES)
def test_the_search_ends_at_the_closed_form(num_classes, num_features, seed):
    means, _ = draw(num_classes, num_features, seed)
    etf, diagnostics = nearest_etf_riemannian(means)
    torch.testing.assert_close(etf, nearest_etf(means), rtol=0, atol=1e-8)
    assert diagnostics.objective == pytest.approx(etf_distance(means).item(), abs=1e-12)
    assert diagnostics.gradient_norm < 1e-10
    assert "grad norm" in diagnostics.stopping_reason
    assert diagnostics.iterations >= 1
    assert diagnostics.seconds > 0


@pytest.mark.parametrize("proximal", [1e-3, 0.5])
@pytest.mark.parametrize("num_classes, num_features", SHAPES)
def test_the_search_ends_at_the_closed_form_with_an_anchor(num_classes, num_features, proximal):
    for seed in SEEDS[:2]:
        means, anchor = draw(num_classes, num_features, seed)
        etf, diagnostics = nearest_etf_riemannian(means, proximal=proximal, anchor=anchor)
        torch.testing.assert_close(etf, nearest_etf(means, proximal=proximal, anchor=anchor), rtol=0, atol=1e-8)
        assert diagnostics.objective == pytest.approx(objective(etf, means, proximal, anchor), abs=1e-12)


def test_the_anchor_decides_where_classes_are_absent():
    means, anchor = draw(5, 6, 0)
    means[3:] = means[:3].mean(0)  # two classes never seen: the centered means have rank 2
    etf, diagnostics = nearest_etf_riemannian(means, proximal=1e-3, anchor=anchor)
    assert diagnostics.gradient_norm < 1e-10
    torch.testing.assert_close(etf, nearest_etf(means, proximal=1e-3, anchor=anchor), rtol=0, atol=1e-5)


def test_means_that_all_coincide_leave_the_anchor_or_any_etf():
    _, anchor = draw(5, 6, 0)
    etf, _ = nearest_etf_riemannian(torch.ones_like(anchor), proximal=1e-3, anchor=anchor)
    torch.testing.assert_close(etf, anchor, rtol=0, atol=1e-6)
    etf, diagnostics = nearest_etf_riemannian(torch.ones_like(anchor))  # without an anchor every ETF is nearest
    assert etf_distance(etf) < 1e-12
    assert diagnostics.objective == pytest.approx(etf_distance(torch.ones_like(anchor)).item())


def test_any_start_is_good_above_the_square_case():
    means, anchor = draw(5, 5, 0)
    for start in (anchor, -nearest_etf(means) + 0.01 * anchor):  # the second one begins next to the maximum
        etf, _ = nearest_etf_riemannian(means, initial=nearest_etf(start))
        torch.testing.assert_close(etf, nearest_etf(means), rtol=0, atol=1e-8)


def test_a_mirror_image_start_stays_there_for_d_k_minus_1():
    means, _ = draw(5, 4, 0)
    mirror = torch.eye(4, dtype=torch.float64)
    mirror[0, 0] = -1
    etf, diagnostics = nearest_etf_riemannian(means, initial=nearest_etf(means) @ mirror)
    assert diagnostics.gradient_norm < 1e-10, "it converges, and to the wrong place"
    assert diagnostics.objective > etf_distance(means) + 1e-3
    assert etf_distance(etf) < 1e-12


def test_an_iteration_limit_is_reported_and_leaves_an_etf():
    means, _ = draw(5, 6, 0)
    etf, diagnostics = nearest_etf_riemannian(means, max_iterations=1)
    assert "max iterations" in diagnostics.stopping_reason
    assert diagnostics.gradient_norm > 1e-10
    assert etf_distance(etf) < 1e-12
    assert diagnostics.objective > etf_distance(means)


@pytest.mark.parametrize("num_classes, num_features", SHAPES)
def test_stiefel_maximizer_is_the_polar_factor(num_classes, num_features):
    targets = torch.stack([draw(num_classes, num_features, seed)[0].mT[:, 1:] for seed in SEEDS])
    torch.testing.assert_close(stiefel_maximizer(targets), polar_factor(targets), rtol=0, atol=1e-8)
    torch.testing.assert_close(stiefel_maximizer(targets * 1e-9), polar_factor(targets), rtol=0, atol=1e-7)


@pytest.mark.parametrize("num_classes, num_features", [(3, 2), (3, 4)])
def test_finite_differences_of_the_search_are_the_analytic_gradient(num_classes, num_features):
    means, anchor = draw(num_classes, num_features, 0)

    def solve(class_means: Tensor) -> Tensor:
        return nearest_etf(class_means, proximal=1e-2, anchor=anchor, solver="riemannian")

    assert torch.autograd.gradcheck(solve, means.requires_grad_(), eps=1e-5, atol=1e-6)


def test_every_solver_gives_the_same_etf_and_gradient():
    means = torch.stack([draw(3, 4, seed)[0] for seed in SEEDS]).float().requires_grad_()
    upstream = torch.randn(means.shape, generator=torch.Generator().manual_seed(0))
    etfs, gradients = [], []
    for solver in ("closed_form", "riemannian"):
        etfs.append(nearest_etf(means, solver=solver))
        gradients.append(torch.autograd.grad((etfs[-1] * upstream).sum(), means)[0])
    assert etfs[1].dtype == torch.float32
    torch.testing.assert_close(etfs[1], etfs[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_too_few_dimensions_are_refused():
    with pytest.raises(ValueError, match="num_features >= num_classes - 1, got 3 and 5"):
        nearest_etf_riemannian(torch.randn(5, 3))


def test_a_users_jax_keeps_its_precision():
    for users_choice, dtype in ((False, "float32"), (True, "float64")):
        with jax.enable_x64(users_choice):
            _, diagnostics = nearest_etf_riemannian(draw(5, 6, 0)[0])
            assert diagnostics.gradient_norm < 1e-10, "the search itself runs in float64"
            assert jax.numpy.ones(1).dtype == dtype
    assert not jax.config.jax_enable_x64, "pymanopt's import has switched the whole process to float64"
