"""The mean squared error of one-hot targets, split into one part for each part of neural collapse.

With the best W and b, the loss ½E‖Wh + b - e_y‖² over samples has two parts. One comes from the scatter within classes
(NC1), the other from class means that no classifier can separate (NC2, NC3). The rest is the excess of W and b over the
best ones. After Han, Papyan and Donoho 2022, https://arxiv.org/abs/2106.02073. Theirs has weight decay and equal
classes. Ours has a bias and classes of any sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncflow.metrics.blocks import by_block, triangle
from ncflow.metrics.moments import ClassMoments
from ncflow.metrics.nc1 import unit_plus_gram
from ncflow.metrics.rows import Formula, Metric

if TYPE_CHECKING:
    from ncflow.metrics.analysis import Analysis


def least_squares(moments: ClassMoments, whitened: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts of the least loss that any W and b reach: (within classes, of the means), 0-dim each.

    moments: of classes that are all present. whitened (d, r): X = Σ_W^(-1/2) M for Σ_B = MMᵀ, from `nc1.whiten`.
    Both parts are >= 0, and 0 at collapse. Their sum is at most (1 - Σπ²)/2 with the class shares π.

    Let A have the rows sqrt(π_k)(μ_k - μ_N), and Z = A Σ_W^(-1/2) = QT with an orthonormal Q (K, r). The best W solves
    r equations: V = (I + TTᵀ)⁻¹ Qᵀ sqrt(Π) leaves ½‖TᵀV‖² within classes and ½‖V‖² between their means. In directions
    of sqrt(Π) outside of Q and sqrt(π) the means do not differ, so their error remains in full.
    """
    upper, wanted, missed = (_basis_of_many if moments.frame.crowded else _basis)(moments)
    transfer = upper @ torch.linalg.qr(whitened, mode="r").R.mT
    left = torch.cholesky_solve(wanted, unit_plus_gram(transfer.mT), upper=True)
    return (transfer.mT @ left).square().sum() / 2, (left.square().sum() + missed) / 2


def _basis(moments: ClassMoments) -> tuple[Tensor, Tensor, Tensor]:
    """T (r, r), Qᵀ sqrt(Π) (r, K), and the squared norm of sqrt(Π) outside of Q and sqrt(π)."""
    roots, coordinates = _coordinates(moments)
    basis, upper = torch.linalg.qr(coordinates(roots, moments.means))
    if basis.shape[1] == len(basis) - 1:  # they span R^K
        return upper, basis.mT * roots, roots.new_zeros(())
    return upper, basis.mT * roots, _outside(roots, basis.square().sum(1))


def _basis_of_many(moments: ClassMoments) -> tuple[Tensor, Tensor, Tensor]:
    """As `_basis`, without holding Q = Z T⁻¹: F (r, r) with FᵀF = QᵀΠQ takes the place of sqrt(Π) Q (K, r)."""
    roots, coordinates = _coordinates(moments)
    upper = triangle(coordinates, roots, moments.means)

    def basis(root: Tensor, means: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(upper, coordinates(root, means), upper=True, left=False)

    factor = triangle(lambda root, means: root.unsqueeze(1) * basis(root, means), roots, moments.means)
    inside = by_block(lambda root, means: basis(root, means).square().sum(1), roots, moments.means)
    return upper, factor.mT, _outside(roots, inside)


def _coordinates(moments: ClassMoments) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """sqrt(π) (K,), and the function that gives the rows of A = S diag(s) U along the axes U of the means."""
    s, axes = moments.between_axes
    center = moments.sample_mean
    roots = (moments.counts / moments.num_samples).sqrt()
    return roots, lambda root, means: root.unsqueeze(1) * (means - center) @ axes.mT / s


def _outside(roots: Tensor, inside: Tensor) -> Tensor:
    """The squared norm of sqrt(Π) outside of Q and sqrt(π), a projection. inside (K,): squared norms of Q's rows."""
    shares = roots.square()
    return (shares * (1 - shares - inside).clamp(min=0)).sum()


def loss(moments: ClassMoments, within_cov: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """½E‖Wh + b - e_y‖² of W (K', d), b (K',) over samples of K' classes with Σ_W (d, d). >= 0."""
    shares = moments.counts / moments.num_samples
    within = by_block(lambda w: ((w @ within_cov) * w).sum(1), weight).sum()
    if moments.frame.crowded:
        return (within + _crowded_errors(weight, bias, moments.means) @ shares) / 2
    errors = weight @ moments.means.mT + bias.unsqueeze(1)
    errors -= torch.eye(len(bias), dtype=errors.dtype, device=errors.device)
    return (within + errors.square().sum(0) @ shares) / 2


def _crowded_errors(weight: Tensor, bias: Tensor, means: Tensor) -> Tensor:
    """‖Wμ_k + b - e_k‖² (K,) without a (K, K) matrix: the square in full, as no error is near 0 for K-1 > d."""
    squares, shift = weight.mT @ weight, 2 * bias @ weight

    def errors(w: Tensor, b: Tensor, mean: Tensor) -> Tensor:
        return ((mean @ squares - 2 * w) * mean).sum(1) + mean @ shift - 2 * b

    return by_block(errors, weight, bias, means) + (bias.square().sum() + 1)


def _part(number: int) -> Formula:
    return lambda a: None if a.least_squares is None else a.least_squares[number]


def _of_classifier(a: Analysis) -> Tensor | None:
    if a.least_squares is None or a.within_cov is None or a.classifier is None:
        return None
    assert a.dual_rows is not None
    whole = loss(a.present, a.within_cov, a.dual_rows.rows, a.classifier[1][a.moments.counts > 0])
    return (whole - sum(a.least_squares)).clamp(min=0)


HAN = "Han, Papyan and Donoho 2022"
METRICS: dict[str, Metric] = {
    "squared_error/within": Metric(
        _part(0),
        "½E‖z − z̄_y‖² of the outputs z that fit one-hot targets best, z̄_k their mean in class k",
        "[0, ½]",
        "0",
        "both",
        HAN,
        needs="scatter",
    ),
    "squared_error/means": Metric(_part(1), "½E‖z̄_y − e_y‖² of the same", "[0, ½]", "0", "both", HAN, needs="scatter"),
    "squared_error/classifier": Metric(
        _of_classifier,
        "½E‖Wh + b − z‖²: the loss ½E‖Wh + b − e_y‖² less the two parts above",
        "[0, ∞)",
        "—",
        "both",
        HAN,
        needs="scatter",
    ),
}
