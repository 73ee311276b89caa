"""The mean squared error of one-hot targets, split into one part for each part of neural collapse.

With the best W and b, the loss ½E‖Wh + b - e_y‖² over samples has two parts. One comes from the scatter within classes
(NC1), the other from class means that no classifier can separate (NC2, NC3). The rest is the excess of W and b over the
best ones. After Han, Papyan and Donoho 2022, https://arxiv.org/abs/2106.02073. Theirs has weight decay and equal
classes. Ours has a bias and classes of any sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
    s, axes = moments.between_axes
    shares = moments.counts / moments.num_samples
    roots = shares.sqrt()
    coordinates = (roots.unsqueeze(1) * (moments.means - moments.sample_mean)) @ axes.mT / s
    basis, triangle = torch.linalg.qr(coordinates)
    transfer = triangle @ torch.linalg.qr(whitened, mode="r").R.mT
    wanted = basis.mT * roots
    root = unit_plus_gram(transfer.mT)
    left = torch.cholesky_solve(wanted, root, upper=True)
    missed = _missed(basis, roots)
    return (transfer.mT @ left).square().sum() / 2, (left.square().sum() + missed) / 2


def loss(moments: ClassMoments, within_cov: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """½E‖Wh + b - e_y‖² of W (K', d), b (K',) over samples of K' classes with Σ_W (d, d). >= 0."""
    shares = moments.counts / moments.num_samples
    within = ((weight @ within_cov) * weight).sum()
    if moments.frame.crowded:
        return (within + _crowded_errors(weight, bias, moments.means) @ shares) / 2
    errors = weight @ moments.means.mT + bias.unsqueeze(1)
    errors -= torch.eye(len(bias), dtype=errors.dtype, device=errors.device)
    return (within + errors.square().sum(0) @ shares) / 2


def _crowded_errors(weight: Tensor, bias: Tensor, means: Tensor) -> Tensor:
    """‖Wμ_k + b - e_k‖² (K,) without a (K, K) matrix: the square in full, as no error is near 0 for K-1 > d."""
    outputs = (means @ (weight.mT @ weight) * means).sum(1) + 2 * means @ (bias @ weight) + bias.square().sum()
    return outputs - 2 * ((weight * means).sum(1) + bias) + 1


def _missed(basis: Tensor, roots: Tensor) -> Tensor:
    """Squared norm of sqrt(Π) outside of Q (K, r) and the unit vector sqrt(π) (K,). Exactly 0 where they span R^K."""
    if basis.shape[1] == len(basis) - 1:
        return roots.new_zeros(())
    shares = roots.square()
    return (shares * (1 - shares - basis.square().sum(1)).clamp(min=0)).sum()  # the square of a projection of sqrt(Π)


def _part(number: int) -> Formula:
    return lambda a: None if a.least_squares is None else a.least_squares[number]


def _of_classifier(a: Analysis) -> Tensor | None:
    if a.least_squares is None or a.within_cov is None or a.classifier is None:
        return None
    whole = loss(a.present, a.within_cov, *(rows[a.moments.counts > 0] for rows in a.classifier))
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
