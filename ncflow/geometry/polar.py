"""The polar factor, the nearest matrix with orthonormal rows, by three methods, with an exact gradient.

The factor of a = V S Uᵀ (..., k, d) with k <= d is P = V Uᵀ. Its derivative in a direction G is
V Ω Uᵀ + V S⁻¹ VᵀG (I - UUᵀ) with Ω_ij = (B_ij - B_ji)/(s_i + s_j) and B = VᵀGU. This map is symmetric, so the gradient
for an upstream G is the same expression. The divisors are sums s_i + s_j, so repeated singular values are harmless.
This module uses rows, because class means are rows. Only `polar_factor` uses columns, as the literature does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncflow.checks import OutOfRange, check_tensors, where_float64_is

Saved = tuple[Tensor, ...]
Solution = tuple[Tensor, Saved]  # the factor, and the tensors that its pullback needs
EPS = torch.finfo(torch.float64).eps
MEANS = "class means must be finite and small enough to square, got NaN, infinite or too large ones"


def polar_factor(a: Tensor) -> Tensor:
    """U Vᵀ of the thin SVD a = U S Vᵀ: (..., d, k), d >= k -> same shape, the nearest matrix with orthonormal columns.

    Computed in float64, which keeps half precision and autocast accurate. The gradient is analytic and exact. For a
    matrix of full rank, gradients of higher order and the transforms of torch.func are exact too. For a rank-deficient
    matrix the factor is not unique: the function returns one, and its gradient omits the undefined part. Raises
    ValueError for other shapes, and for NaN or infinities.

    Examples:
        >>> import torch
        >>> factor = polar_factor(torch.randn(5, 3, dtype=torch.float64))
        >>> torch.allclose(factor.T @ factor, torch.eye(3, dtype=torch.float64))
        True
    """
    check_tensors(a=a)
    if a.ndim < 2 or a.shape[-2] < a.shape[-1] or not a.is_floating_point():
        raise ValueError(f"polar factor needs floats (..., d, k) with d >= k, got shape {tuple(a.shape)} {a.dtype}")
    from ncflow.geometry import smooth

    if smooth.is_transformed(a):
        return smooth.smooth_polar_factor(a.mT.double()).mT.to(a.dtype)
    if not bool(a.isfinite().all()):
        raise ValueError("polar factor needs a finite matrix, got one with NaN or infinities")
    factor: Tensor = _PolarFactor.apply(where_float64_is(a).mT)
    return factor.mT.to(a.device)


def choose_method(dtype: torch.dtype, device: torch.device) -> str:
    """The row of METHODS for results of this dtype on this device, for every shape.

    On a GPU, matrix products should be faster than decompositions, which leave it idle. This is not measured yet. On a
    CPU, the eigenvectors of the Gram matrix are faster than an SVD from about twenty classes on. For fewer classes they
    cost microseconds more. The Gram matrix squares the condition number κ, which gives an error of κ²·1e-16. In
    float32 this is invisible, in float64 it is not.
    """
    if device.type == "cuda":
        return "products"
    return "svd" if dtype == torch.float64 else "gram"


def solve(a: Tensor, method: str) -> tuple[Tensor, str, Saved]:
    """The factor of a (..., k, d) in float64, the method that found it, and what its `pullback` needs.

    The quick methods return None for matrices that are close to losing rank. The SVD then solves these.
    """
    try:
        solution = METHODS[method].solve(a)
        if solution is None:
            method, solution = "svd", _by_svd(a)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise OutOfRange(MEANS) from None
    factor, saved = solution
    return factor, method, saved


def pullback(method: str, saved: Saved, grad: Tensor) -> Tensor:
    """The gradient (..., k, d) of a, in float64, from the gradient of its factor."""
    return METHODS[method].pullback(saved, grad)


class _PolarFactor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        factor, ctx.method, saved = solve(a.double(), choose_method(a.dtype, a.device))
        ctx.save_for_backward(a, *saved)
        return factor.to(a.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        a, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: derivatives of higher order
            from ncflow.geometry import smooth

            return regrad(lambda a: smooth.smooth_polar_factor(a.double()).to(a.dtype), (a,), grad)[0]
        return pullback(ctx.method, tuple(saved), grad.double()).to(grad.dtype)


def regrad(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """The gradients of `inputs`, from the gradient of the function's value, as part of the graph."""
    with torch.enable_grad():
        leaves = [value if value.requires_grad else value.detach().requires_grad_() for value in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad, create_graph=True)


def _by_svd(a: Tensor) -> Solution:
    """By SVD. Where a divisor is rounding, its inverse is 0: that part of the gradient is undefined."""
    v, s, uh = torch.linalg.svd(a, full_matrices=False)
    cutoff = s[..., :1] * (s.shape[-1] * EPS)
    sums = s.unsqueeze(-1) + s.unsqueeze(-2)
    inverse = torch.where(s > cutoff, 1 / s, 0)
    return v @ uh, (v, uh, inverse, torch.where(sums > cutoff.unsqueeze(-1), 1 / sums, 0))


def _by_gram(a: Tensor) -> Solution | None:
    """V from AAᵀ = V S² Vᵀ, then S Uᵀ = VᵀA. None for κ > 2e4, where κ² leaves fewer digits than float32 has."""
    squares, v = torch.linalg.eigh(a @ a.mT)
    if not bool((squares[..., 0] * torch.finfo(torch.float32).eps > squares[..., -1] * EPS).all()):
        return None
    uh = v.mT @ a
    s = torch.linalg.vector_norm(uh, dim=-1)  # more accurate than the square roots of the eigenvalues
    inverse = 1 / s
    uh *= inverse.unsqueeze(-1)
    return v @ uh, (v, uh, inverse, 1 / (s.unsqueeze(-1) + s.unsqueeze(-2)))


def _pull_by_spectrum(saved: Saved, grad: Tensor) -> Tensor:
    v, uh, inverse, inverse_sums = saved
    vg = v.mT @ grad
    b = vg @ uh.mT
    inverse = inverse.unsqueeze(-1)
    inner = (b - b.mT) * inverse_sums - inverse * b
    return v @ torch.add(vg * inverse, inner @ uh)


def _by_products(a: Tensor) -> Solution | None:
    """X ← ρ(3I - ρ²XXᵀ)X/2 from a/‖a‖ until XXᵀ = I, with the scales ρ of SCALES. None where it does not converge.

    The Newton-Schulz iteration, with scales after Chen and Chow 2014. The convergence check waits for the device once.
    """
    x = start = a / _norm_bound(a)
    for scale in SCALES:
        x = _polynomial(x, scale) @ x
    if not bool(((x @ x.mT - _eye(x)).abs() < 1e-12 * a.shape[-1]).all()):
        return None
    return x, (start, _norm_bound(a))


def _pull_by_products(saved: Saved, grad: Tensor) -> Tensor:
    """The derivative in the direction of grad, by the same iteration. By symmetry it is the gradient."""
    x, norm = saved
    direction = grad / norm
    for scale in SCALES:
        polynomial = _polynomial(x, scale)
        mixed = direction @ x.mT
        direction = polynomial @ direction - 0.5 * scale**3 * ((mixed + mixed.mT) @ x)
        x = polynomial @ x
    return direction


def _polynomial(x: Tensor, scale: float) -> Tensor:
    return 1.5 * scale * _eye(x) - 0.5 * scale**3 * (x @ x.mT)


def _eye(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)


def _norm_bound(a: Tensor) -> Tensor:
    """An upper bound (..., 1, 1) of the largest singular value, tight when AAᵀ is nearly diagonal; inf for zeros."""
    bound = torch.linalg.matrix_norm(a @ a.mT, ord=1).sqrt()[..., None, None]
    return torch.where(bound > 0, bound, torch.inf)


def _scales(smallest: float) -> list[float]:
    """Scales ρ that bring singular values in [smallest, 1] to 1 in few steps.

    The best scale maps both ends of the interval to the same new lower end. It can reach sqrt(3), which maps 1 close
    to 0 and loses its digits. With a limit of 1.5, 1 stays above 0.5.
    """
    scales, low = [], smallest
    while 1 - low > EPS:
        scale = min(1.5, math.sqrt(3 / (1 + low + low**2)))
        scales.append(scale)
        low = min(0.5 * scale * end * (3 - (scale * end) ** 2) for end in (low, 1.0))
    return scales


SCALES = _scales(1e-5)


class Method(NamedTuple):
    """solve(a) -> (factor, saved) or None; pullback(saved, grad) -> gradient of a."""

    solve: Callable[[Tensor], Solution | None]
    pullback: Callable[[Saved, Tensor], Tensor]


METHODS = {
    "svd": Method(_by_svd, _pull_by_spectrum),
    "gram": Method(_by_gram, _pull_by_spectrum),
    "products": Method(_by_products, _pull_by_products),
}
