"""The nearest ETF as an implicit layer: forward by Riemannian trust regions, backward by the implicit function theorem.

Over P (d, K) with orthonormal columns, f = ‖H̄ - P M/sqrt(K-1)‖² + (δ/2)‖P - P_prev‖², with M = I - 11ᵀ/K; pymanopt
searches from P_prev with the exact derivatives. At the solution, with h(P) the p = K(K+1)/2 products PᵀP - I, its
Jacobian J (p, dK), and the Hessian of the Lagrangian, I_d ⊗ S with S (K, K):
dP = -(I - S⁻¹Jᵀ(J S⁻¹Jᵀ)⁻¹J) S⁻¹ ∂∇f. A generic declarative layer builds J and the p x p system, and so does this one:
dense matrix products and a Cholesky solve, in the dtype of the means. It follows Markou, Ajanthan and Gould 2024.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ncflow.geometry.riemannian import import_pymanopt

Array = NDArray[np.float64]


def nearest_etf_node(class_means: Tensor, previous: Tensor, *, proximal: float, tolerance: float = 1e-6) -> Tensor:
    """W (K, d), unit rows, for class means (K, d) and the P_prev (d, K) to start from; differentiable in the means.

    The search ends at a gradient norm of `tolerance`, by default pymanopt's.
    """
    num_classes = len(class_means)
    centered = class_means - class_means.mean(0)
    frame: Tensor = _Node.apply((centered / centered.norm()).mT, previous, proximal, tolerance)
    return math.sqrt(num_classes / (num_classes - 1)) * (frame - frame.mean(1, keepdim=True)).mT


def frame_of(etf: Tensor, class_means: Tensor) -> Tensor:
    """A frame P (d, K) of an ETF W = sqrt(K/(K-1)) M Pᵀ (K, d), for d >= 2K-1.

    W leaves the mean of P's columns free. Here it lies outside of what ETF and means span, where the term with P_prev
    pulls the search nowhere else than it pulls the closed form, which has no such direction.
    """
    num_classes, num_features = etf.shape
    span, _ = torch.linalg.qr(torch.cat([etf[1:], class_means]).mT.double())
    outside = torch.ones(num_features, dtype=torch.float64)
    outside = outside - span @ (span.mT @ outside)
    shrunk = etf.double() * math.sqrt((num_classes - 1) / num_classes)
    return (shrunk + outside / outside.norm() / math.sqrt(num_classes)).mT.to(etf)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: Tensor, previous: Tensor, proximal: float, tolerance: float) -> Tensor:
        found = _search(target.double().numpy(), previous.double().numpy(), proximal, tolerance)
        frame = torch.from_numpy(found).to(target)
        ctx.save_for_backward(target, previous, frame)
        ctx.proximal = proximal
        return frame

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        target, previous, frame = ctx.saved_tensors
        num_features, k = frame.shape
        gradient = _gradient(frame, target, previous, ctx.proximal)
        multipliers = frame.mT @ gradient
        hessian = 2 / (k - 1) * _center(torch.eye(k).to(frame)) + ctx.proximal * torch.eye(k).to(frame)
        hessian = hessian - (multipliers + multipliers.mT) / 2  # S (K, K)
        i, j = torch.triu_indices(k, k)
        rows = torch.arange(len(i))
        jacobian = frame.new_zeros(len(i), k, num_features)  # of PᵢᵀPⱼ, i <= j
        jacobian[rows, i] += frame.mT[j]
        jacobian[rows, j] += frame.mT[i]
        pulled = torch.linalg.solve(hessian, jacobian).flatten(1)  # J S⁻¹, one K x K solve for all of it
        jacobian = jacobian.flatten(1)
        free = torch.linalg.solve(hessian, grad.mT)
        system = pulled @ jacobian.mT
        multiplier = torch.cholesky_solve((jacobian @ free.flatten())[:, None], torch.linalg.cholesky(system))
        step = free - (multiplier.mT @ pulled).view(k, num_features)
        return _center(step.mT) * (2 / math.sqrt(k - 1)), None, None, None


def _search(target: Array, previous: Array, proximal: float, tolerance: float) -> Array:
    """Trust regions on the Stiefel manifold of (d, K) frames."""
    pymanopt = import_pymanopt()
    manifold = pymanopt.manifolds.Stiefel(*target.shape)
    k = target.shape[1]

    @pymanopt.function.numpy(manifold)
    def cost(p: Array) -> float:
        gap = target - _center(p) / math.sqrt(k - 1)
        return float((gap**2).sum() + proximal / 2 * ((p - previous) ** 2).sum())

    @pymanopt.function.numpy(manifold)
    def gradient(p: Array) -> Array:
        return _gradient(p, target, previous, proximal)

    @pymanopt.function.numpy(manifold)
    def hessian(p: Array, step: Array) -> Array:
        return 2 / (k - 1) * _center(step) + proximal * step

    problem = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient, euclidean_hessian=hessian)
    solver = pymanopt.optimizers.TrustRegions(verbosity=0, min_gradient_norm=tolerance)
    return solver.run(problem, initial_point=previous).point


def _gradient(p: Any, target: Any, previous: Any, proximal: float) -> Any:
    k = p.shape[1]
    return 2 / (k - 1) * _center(p) - 2 / math.sqrt(k - 1) * _center(target) + proximal * (p - previous)


def _center(columns: Any) -> Any:
    """X M: the columns minus their mean."""
    return columns - columns.mean(1, keepdims=True)
