"""The polar factor, nearest matrix with orthonormal rows: three ways to it, one rule that chooses, one exact gradient.

Of a = V S Uᵀ (..., k, d) with k <= d it is P = V Uᵀ. Its derivative in a direction G is V Ω Uᵀ + V S⁻¹ VᵀG (I - UUᵀ)
with Ω_ij = (B_ij - B_ji)/(s_i + s_j) and B = VᵀGU, a symmetric map: the gradient for an upstream G is the same
expression. Only sums s_i + s_j divide, so repeated singular values are harmless. Rows, because class means are rows:
only `polar_factor` speaks of columns, as the literature does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ncflow.checks import OutOfRange, check_tensors, where_float64_is

Saved = tuple[Tensor, ...]
Solution = tuple[Tensor, Saved]  # the factor, and what its pullback needs
EPS = torch.finfo(torch.float64).eps
MEANS = "class means must be finite and small enough to square, got others"


def polar_factor(a: Tensor) -> Tensor:
    """U Vᵀ of the thin SVD a = U S Vᵀ: (..., d, k), d >= k -> same shape, orthonormal columns; the nearest such matrix.

    Float64 inside, so that half precision and autocast do no harm. The gradient is analytic and exact; so are those of
    higher order, and the transforms of torch.func, where the matrix has full rank. For a rank-deficient matrix, where
    the factor is not unique, one is returned and the part of the gradient that does not exist is left out.
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
    """The row of METHODS for results of this dtype on this device, whatever the shape.

    On a GPU matrix products should beat decompositions, which leave it idle; nobody has measured it yet. On a CPU the
    eigenvectors of the Gram matrix come sooner than an SVD from some twenty classes on, and cost microseconds more
    below. Squaring the condition number κ costs an accuracy of κ²·1e-16, invisible in float32, but not to someone who
    asks for float64.
    """
    if device.type == "cuda":
        return "products"
    return "svd" if dtype == torch.float64 else "gram"


def solve(a: Tensor, method: str) -> tuple[Tensor, str, Saved]:
    """The factor of a (..., k, d) in float64, the method that found it, and what its `pullback` needs.

    The quick methods refuse matrices that are too near to losing rank; these are left to the SVD.
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
    """The gradient (..., k, d) of a, in float64, for that of its factor."""
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
        if torch.is_grad_enabled():  # a graph of the gradient is wanted, for derivatives of higher order
            from ncflow.geometry import smooth

            return regrad(lambda a: smooth.smooth_polar_factor(a.double()).to(a.dtype), (a,), grad)[0]
        return pullback(ctx.method, tuple(saved), grad.double()).to(grad.dtype)


def regrad(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """The gradients of `inputs` for that of the function's value, as part of the graph."""
    with torch.enable_grad():
        leaves = [value if value.requires_grad else value.detach().requires_grad_() for value in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad, create_graph=True)


def _by_svd(a: Tensor) -> Solution:
    """Without the parts that do not exist: 1/s and 1/(s_i + s_j) are 0 where they vanish next to the largest s."""
    v, s, uh = torch.linalg.svd(a, full_matrices=False)
    cutoff = s[..., :1] * (s.shape[-1] * EPS)
    sums = s.unsqueeze(-1) + s.unsqueeze(-2)
    inverse = torch.where(s > cutoff, 1 / s, 0)
    return v @ uh, (v, uh, inverse, torch.where(sums > cutoff.unsqueeze(-1), 1 / sums, 0))


def _by_gram(a: Tensor) -> Solution | None:
    """V from AAᵀ = V S² Vᵀ, then S Uᵀ = VᵀA. None where κ² loses more digits than float32 can spare, κ > 2e4."""
    squares, v = torch.linalg.eigh(a @ a.mT)
    if not bool((squares[..., 0] * torch.finfo(torch.float32).eps > squares[..., -1] * EPS).all()):
        return None
    uh = v.mT @ a
    s = torch.linalg.vector_norm(uh, dim=-1)  # of higher relative accuracy than the square roots of the eigenvalues
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
    """X ← ρ(3I - ρ²XXᵀ)X/2 from a/‖a‖ until XXᵀ = I, with the scales ρ of SCALES. None where it ends elsewhere.

    Newton and Schulz, the scales after Chen and Chow 2014. To ask how it ended is to wait for the device, once.
    """
    x = start = a / _norm_bound(a)
    for scale in SCALES:
        x = _polynomial(x, scale) @ x
    if not bool(((x @ x.mT - _eye(x)).abs() < 1e-12 * a.shape[-1]).all()):
        return None
    return x, (start, _norm_bound(a))


def _pull_by_products(saved: Saved, grad: Tensor) -> Tensor:
    """The derivative in the direction of grad, carried along the same iteration: the gradient, by symmetry."""
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
    """Scales ρ that carry singular values in [smallest, 1] to 1 soon: the best map both ends to one new lower end.

    These would be up to sqrt(3), which sends 1 next to 0 and its digits with it; at 1.5 it stays above 0.5.
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
