"""The simplex ETF nearest to given class means, in closed form, with its exact gradient.

The variable is P (d, K-1) with orthonormal columns. H̄ (d, K) holds the centered class means, of unit Frobenius norm.
The problem is to minimize ‖H̄ - P Qᵀ/sqrt(K-1)‖²_F + (δ/2)‖P - P_prev‖²_F. Each term is a constant plus a part linear
in P. The equivalent problem is to maximize tr(PᵀA) with A = (2/sqrt(K-1)) H̄Q + δ P_prev, an orthogonal Procrustes
problem. Its solution P* is the polar factor of A, and the ETF is W = sqrt(K/(K-1)) Q P*ᵀ. The problem is from Markou,
Ajanthan and Gould 2024. Our P omits the direction of the all-ones vector, on which no ETF depends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ncflow.checks import OutOfRange, check_tensors, where_float64_is
from ncflow.geometry import polar, smooth
from ncflow.geometry.frames import check_etf_exists, contrasts, from_contrasts, rounding_level
from ncflow.lookup import check_options, lookup


def nearest_etf(
    class_means: Tensor,
    *,
    proximal: float = 0.0,
    anchor: Tensor | None = None,
    solver: str = "closed_form",
    **solver_options: Any,
) -> Tensor:
    """The simplex ETF (..., K, d), unit rows, nearest to the class means (..., K, d); computed in float64.

    Differentiable to any order, and by torch.func, where the means have rank K-1. Differentiable to first order
    everywhere. Invariant to shift and scale of the means, equivariant to rotations and to class permutations, and
    idempotent on an ETF. Where the centered means have rank below K-1, the ETF is unique only with `proximal` = δ > 0,
    which pulls towards `anchor`, an ETF (..., K, d). Otherwise the function returns one of the minimizers. `solver` is
    "closed_form", or "riemannian" for an iterative solution by trust regions. The options of "riemannian" are
    `max_iterations` and `tolerance`. Raises ValueError for d < K-1.

    Examples:
        >>> import torch
        >>> from ncflow import simplex_etf
        >>> etf = simplex_etf(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> torch.allclose(nearest_etf(7 * etf + 3), etf)
        True
    """
    _check_means(class_means)
    _check_anchor(class_means, proximal, anchor)
    search = lookup(SOLVERS, solver, "solver")
    check_options(search, solver_options, f"solver '{solver}'")
    if smooth.is_transformed(class_means):
        if search is not _closed_form:
            raise ValueError(f"solver '{solver}' does not support torch.func and torch.compile; use 'closed_form'")
        return _smooth(class_means, anchor, proximal)
    chosen = partial(search, **solver_options)
    means, anchor = where_float64_is(class_means), None if anchor is None else where_float64_is(anchor)
    etf: Tensor = _NearestETF.apply(means, anchor, proximal, chosen)
    return etf.to(class_means.device)


def etf_distance(class_means: Tensor) -> Tensor:
    """Squared Frobenius distance (...) of the centered, unit-norm means (..., K, d) to their nearest simplex ETF.

    2 - (2/sqrt(K-1))‖H̄‖_* = Σ_i (s_i - 1/sqrt(K-1))² over the K-1 singular values s of H̄, whose squares sum to one. The
    second form is used, because it does not cancel at collapse. Range [0, 2), 0 on an ETF, 1 for means that all
    coincide. Differentiable. Raises ValueError for d < K-1.

    Examples:
        >>> from ncflow import simplex_etf
        >>> round(float(etf_distance(5 * simplex_etf(4) + 1)), 6)
        0.0
    """
    num_classes, eps = _check_means(class_means), torch.finfo(class_means.dtype).eps
    try:
        unit, _ = _unit_means(where_float64_is(class_means).double(), eps)
        singular_values = torch.linalg.svdvals(contrasts(unit))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise OutOfRange(polar.MEANS) from None
    return (singular_values - 1 / math.sqrt(num_classes - 1)).square().sum(-1).to(class_means)


class _NearestETF(torch.autograd.Function):
    """The map from means to ETF: the polar factor, and steps that are linear or divide by a norm.

    Q is `from_contrasts` and Qᵀ is `contrasts`. They are each other's adjoints, and both keep norms. Vectors are rows.
    """

    @staticmethod
    def forward(
        ctx: Any, class_means: Tensor, anchor: Tensor | None, proximal: float, solver: Callable[..., Tensor]
    ) -> Tensor:
        num_classes = class_means.shape[-2]
        unit, norm = _unit_means(class_means.double(), torch.finfo(class_means.dtype).eps)
        target = _target(unit, anchor, proximal)
        method = polar.choose_method(class_means.dtype, class_means.device)
        factor, ctx.method, saved = polar.solve(target, method)
        if anchor is not None and not anchor.requires_grad:
            anchor = anchor.detach().clone()  # heads overwrite the anchor's buffer with the next ETF
        ctx.save_for_backward(class_means, anchor, unit, norm, *saved)
        ctx.proximal, ctx.means, ctx.anchor = proximal, _like(class_means), _like(anchor)
        etf = from_contrasts(solver(target, factor)).mul_(_stretch(num_classes))
        return etf.to(class_means.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        class_means, anchor, unit, norm, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: derivatives of higher order
            given = (class_means,) if anchor is None else (class_means, anchor)
            found = polar.regrad(lambda means, anchor=None: _smooth(means, anchor, ctx.proximal), given, grad)
            return *found, *((None,) * (4 - len(found)))
        num_classes = grad.shape[-2]
        upstream = contrasts(grad.double()).mul_(_stretch(num_classes))
        of_target = from_contrasts(polar.pullback(ctx.method, tuple(saved), upstream))
        of_anchor = None
        if ctx.needs_input_grad[1]:
            of_anchor = _fit(_pull(ctx.proximal, num_classes) * of_target, *ctx.anchor)
        along = (unit * of_target).sum((-2, -1), keepdim=True)
        of_means = (of_target - unit * along).mul_(2 / math.sqrt(num_classes - 1) / norm)
        return _fit(of_means, *ctx.means), of_anchor, None, None


def _smooth(class_means: Tensor, anchor: Tensor | None, proximal: float) -> Tensor:
    """`nearest_etf` in operations that torch differentiates to any order."""
    unit, _ = _unit_means(class_means.double(), torch.finfo(class_means.dtype).eps)
    factor = smooth.smooth_polar_factor(_target(unit, anchor, proximal))
    return (from_contrasts(factor) * _stretch(class_means.shape[-2])).to(class_means.dtype)


def _target(unit: Tensor, anchor: Tensor | None, proximal: float) -> Tensor:
    """Aᵀ (..., K-1, d) of the centered means H̄ᵀ of unit norm."""
    num_classes = unit.shape[-2]
    target = unit * (2 / math.sqrt(num_classes - 1))
    if anchor is not None:
        target = torch.add(target, anchor.to(target), alpha=_pull(proximal, num_classes))
    return contrasts(target)


def _stretch(num_classes: int) -> float:
    """sqrt(K/(K-1)), which scales the rows of Q to unit norm."""
    return math.sqrt(num_classes / (num_classes - 1))


def _pull(proximal: float, num_classes: int) -> float:
    """δ sqrt((K-1)/K), because the anchor has unit rows and P_prev has unit columns."""
    return proximal / _stretch(num_classes)


def _unit_means(class_means: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """H̄ᵀ (..., K, d) and the norm (..., 1, 1) it was divided by, infinite where all means coincide up to rounding.

    eps is the precision of the input. In float32, equal means may differ by that much.
    """
    centered = class_means - class_means.mean(-2, keepdim=True)
    norm = torch.linalg.matrix_norm(centered)
    level = rounding_level(class_means, eps)
    norm = torch.where(norm > level, norm, torch.inf).where(norm.isfinite(), torch.nan)
    norm = norm[..., None, None]
    return centered / norm, norm


def _like(tensor: Tensor | None) -> tuple[torch.Size, torch.dtype] | None:
    return None if tensor is None else (tensor.shape, tensor.dtype)


def _fit(grad: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The gradient of an input of this shape and dtype that was broadcast and converted."""
    return grad.sum_to_size(shape).to(dtype)


def _check_means(class_means: Tensor) -> int:
    check_tensors(class_means=class_means)
    if class_means.ndim < 2 or not class_means.is_floating_point():
        raise ValueError(f"class means must be (..., K, d) floats, got {tuple(class_means.shape)} {class_means.dtype}")
    num_classes, num_features = class_means.shape[-2:]
    check_etf_exists(num_classes, num_features, "nearest ETF")
    return num_classes


def _check_anchor(class_means: Tensor, proximal: float, anchor: Tensor | None) -> None:
    if not isinstance(proximal, int | float) or not 0 <= proximal < math.inf:
        raise ValueError(f"proximal must be >= 0, got {proximal}")
    if proximal > 0 and anchor is None:
        raise ValueError(f"proximal = {proximal} needs an anchor, got None; pass the previous ETF as anchor")
    if anchor is None:
        return
    check_tensors(anchor=anchor)
    if anchor.shape[-2:] != class_means.shape[-2:] or not anchor.is_floating_point():
        raise ValueError(f"anchor must be an ETF shaped like the class means, got {tuple(anchor.shape)}")


def _closed_form(target: Tensor, factor: Tensor) -> Tensor:
    return factor


def _riemannian(target: Tensor, factor: Tensor, *, max_iterations: int = 500, tolerance: float = 1e-10) -> Tensor:
    from ncflow.geometry.riemannian import stiefel_maximizer  # imports pymanopt and JAX

    return stiefel_maximizer(target.mT, max_iterations=max_iterations, tolerance=tolerance).mT


# name -> function of (Aᵀ, its polar factor), both (..., K-1, d), that returns the frame P*ᵀ. The gradient is always
# that of the polar factor. A solver's options are its keyword-only arguments.
SOLVERS: dict[str, Callable[..., Tensor]] = {"closed_form": _closed_form, "riemannian": _riemannian}
