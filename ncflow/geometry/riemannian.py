"""The nearest simplex ETF by optimization on the Stiefel manifold: a slow, independent check of the closed form.

Pymanopt's trust regions minimize the objective directly, over frames P (d, K-1) with orthonormal columns. JAX computes
the derivatives in float64 on the CPU. This module uses no singular values, so it can serve as an oracle. Each run
returns how it ended. The module is imported on demand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncflow.geometry.frames import check_etf_exists, from_contrasts
from ncflow.geometry.polar import polar_factor

Frame = NDArray[np.float64]  # (d, k), orthonormal columns
Cost = Callable[[Any], Any]  # a frame as a JAX array -> a scalar


class RiemannianDiagnostics(NamedTuple):
    """How a run ended: the objective it reached, and whether it converged."""

    objective: float
    iterations: int
    stopping_reason: str  # pymanopt's text
    gradient_norm: float  # of the Riemannian gradient; below `tolerance` when the run converged
    seconds: float


def nearest_etf_riemannian(
    class_means: Tensor,
    *,
    proximal: float = 0.0,
    anchor: Tensor | None = None,
    initial: Tensor | None = None,
    max_iterations: int = 500,
    tolerance: float = 1e-10,
) -> tuple[Tensor, RiemannianDiagnostics]:
    """The simplex ETF W (K, d) nearest to the class means (K, d), and how the search ended. Not differentiable.

    Minimizes ‖H̄ - W/sqrt(K)‖²_F + (δ/2)(K-1)/K ‖W - anchor‖²_F, with H̄ the centered means of unit Frobenius norm and
    δ = `proximal`. Without the second term, the minimum is `etf_distance`. The search starts from the ETF `initial`
    (K, d), by default from one that leads to the optimum. For d = K-1 the ETFs form two components, mirror images of
    each other. A search stays in the component where it starts. Raises ValueError for d < K-1.
    """
    num_classes, num_features = class_means.shape
    check_etf_exists(num_classes, num_features, "nearest ETF")
    basis = from_contrasts(torch.eye(num_classes - 1, dtype=torch.float64)).numpy()  # Q (K, K-1)
    scale = math.sqrt(num_classes / (num_classes - 1))  # W = scale Q Pᵀ
    centered = _float64(class_means) - _float64(class_means).mean(0)
    target = centered / (np.linalg.norm(centered) or 1.0)
    previous, pull = (target, 0.0) if anchor is None else (_float64(anchor), proximal / 2 / scale**2)
    frame, diagnostics = _minimize(
        lambda frame: jax.jit(_objective)(scale * basis @ frame.T, target, previous, pull),
        shape=(num_features, num_classes - 1),
        start=None if initial is None else _float64(initial).T @ basis / scale,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )
    return torch.from_numpy(scale * basis @ frame.T).to(class_means), diagnostics


def stiefel_maximizer(target: Tensor, *, max_iterations: int = 500, tolerance: float = 1e-10) -> Tensor:
    """The orthonormal columns P that maximize tr(PᵀA), A (..., d, k) with d >= k: the polar factor, by search.

    Differentiable. By the implicit function theorem, the gradient is that of the polar factor.
    """
    matrices = _float64(target.reshape(-1, *target.shape[-2:]))
    options = {"max_iterations": max_iterations, "tolerance": tolerance}
    frames = np.stack([_aligned_frame(a, **options) for a in matrices])
    found = torch.from_numpy(frames).to(target).reshape(target.shape)
    exact = polar_factor(target)
    return exact + (found - exact).detach()


def _aligned_frame(a: Frame, **options: Any) -> Frame:
    """argmax tr(PᵀA) (d, k). A is scaled to unit norm, so the default tolerance has the same meaning for every A."""
    a = a / (np.linalg.norm(a) or 1.0)
    return _minimize(lambda frame: -jnp.sum(frame * a), shape=a.shape, **options)[0]


def _objective(etf: Any, target: Any, previous: Any, pull: float) -> Any:
    """‖H̄ - W/sqrt(K)‖²_F + pull ‖W - W_prev‖²_F, all (K, d)."""
    return jnp.sum((target - etf / math.sqrt(len(etf))) ** 2) + pull * jnp.sum((etf - previous) ** 2)


def _minimize(
    cost: Cost,
    *,
    shape: tuple[int, ...],
    start: Frame | None = None,
    max_iterations: int = 500,
    tolerance: float = 1e-10,
) -> tuple[Frame, RiemannianDiagnostics]:
    """Trust regions on the Stiefel manifold of (d, k) frames."""
    pymanopt = import_pymanopt()
    manifold = pymanopt.manifolds.Stiefel(*shape)
    solver = pymanopt.optimizers.TrustRegions(max_iterations=max_iterations, min_gradient_norm=tolerance, verbosity=0)
    # At a critical start, pymanopt divides 0 by 0, rejects the step and stops. This is correct, so hide the warning.
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]), np.errstate(invalid="ignore"):
        problem = pymanopt.Problem(manifold, pymanopt.function.jax(manifold)(cost))
        start = _start(cost, shape) if start is None else start
        result = solver.run(problem, initial_point=start, maxinner=max(1, manifold.dim))  # d = k = 1 has dimension 0
    return result.point, RiemannianDiagnostics(
        objective=float(result.cost),
        iterations=result.iterations,
        stopping_reason=result.stopping_criterion,
        gradient_norm=float(result.gradient_norm),
        seconds=result.time,
    )


def _start(cost: Cost, shape: tuple[int, ...]) -> Frame:
    """Q of A = QR, diag(R) >= 0, where A is the steepest descent direction at the origin.

    For a cost that is linear on the manifold, -tr(PᵀA), this start is never a saddle point. P is critical where PᵀA is
    symmetric, and a symmetric R is diagonal and nonnegative, which is the optimum. For d = k, the determinant has A's
    sign, so the start lies in the optimum's component.
    """
    q, r = np.linalg.qr(-np.asarray(jax.grad(cost)(jnp.zeros(shape))))
    return q * np.where(np.diagonal(r) < 0, -1.0, 1.0)


def import_pymanopt() -> ModuleType:
    """Import pymanopt, and undo its process-wide switch of JAX to 64 bits."""
    users_choice = jax.enable_x64.get_global()  # jax.config would return the value of a surrounding `with`
    import pymanopt

    jax.config.update("jax_enable_x64", users_choice)
    return pymanopt


def _float64(tensor: Tensor) -> Frame:
    return tensor.detach().to("cpu", torch.float64).numpy()
