"""NC1, variability collapse: features of a class concentrate at their class mean.

Each function takes the moments of classes that are all present, and returns a 0-dim float64 tensor. The value is not
finite where the metric is not defined (one class, coinciding means).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ncflow.metrics.moments import ClassMoments
from ncflow.metrics.rows import PAPYAN, Metric, View, of_differing_means, of_group
from ncflow.metrics.shots import SHOTS

if TYPE_CHECKING:
    from ncflow.metrics.analysis import Analysis


def pinv(moments: ClassMoments, variances: Tensor) -> Tensor:
    """Within-class relative to between-class scatter, tr(Σ_W Σ_B⁺)/K. >= 0, 0 at collapse. Papyan et al. 2020.

    Σ_B⁺ is nonzero only on the axes of the centered means, so only the variances (r,) of Σ_W along these matter.
    """
    s, _ = moments.between_axes
    return (variances / s.square()).sum() / len(moments.means)


def quotient(moments: ClassMoments) -> Tensor:
    """tr Σ_W / tr Σ_B. >= 0, 0 at collapse."""
    within = moments.within_traces.sum() / moments.num_samples
    return within / moments.centered_means.square().sum(1).mean()


def quotient_of(moments: ClassMoments, classes: Tensor) -> Tensor:
    """tr Σ_W / tr Σ_B with Σ_W of the samples of the classes in a mask (K,). >= 0, 0 at collapse.

    The mean over groups, weighted by samples, is `quotient`.
    """
    within = moments.within_traces[classes].sum() / moments.counts[classes].sum()
    return within / moments.centered_means.square().sum(1).mean()


def cdnv(moments: ClassMoments) -> Tensor:
    """Class-distance normalized variance: mean over i≠j of (v_i + v_j)/(2‖μ_i - μ_j‖²), v = E‖h - μ‖².

    >= 0, 0 at collapse. Galanti, György and Hutter 2022.
    """
    return _class_cdnv(moments).mean()


def cdnv_of(moments: ClassMoments, classes: Tensor) -> Tensor:
    """The terms of `cdnv`, averaged over the classes i in a mask (K,) and all j≠i. >= 0, 0 at collapse.

    The mean over groups, weighted by classes, is `cdnv`.
    """
    return _class_cdnv(moments)[classes].mean()  # the means of classes outside of the group may coincide


def _class_cdnv(moments: ClassMoments) -> Tensor:
    """The terms of `cdnv` of each class (K,), averaged over the other classes. Infinite where two means coincide."""
    separation = moments.frame.pairs[2]
    assert separation is not None
    return separation.by_class


def vci(moments: ClassMoments, whitened: Tensor) -> Tensor:
    """Variability collapse index 1 - tr(Σ_T⁺ Σ_B)/min(d, K-1), Σ_T = Σ_W + Σ_B. In [0, 1], 0 at collapse.

    Xu and Liu 2023.
    With Σ_B = MMᵀ, I - Mᵀ(Σ_W + MMᵀ)⁺M = (I + MᵀΣ_W⁻¹M)⁻¹. The right side does not cancel at collapse. With
    X = Σ_W^(-1/2) M (d, r), which `whiten` returns, its trace is ‖R⁻¹‖² with RᵀR = I + XᵀX.
    """
    rank = whitened.shape[1]
    largest_rank = min(moments.means.shape[0] - 1, moments.means.shape[1])
    identity = torch.eye(rank, dtype=whitened.dtype, device=whitened.device)
    inverse = torch.linalg.solve_triangular(unit_plus_gram(whitened), identity, upper=True)
    return (inverse.square().sum() + (largest_rank - rank)) / largest_rank


def numerical_rank(spectral_ratios: Tensor) -> Tensor:
    """Mean over classes of (‖H_c‖_*/‖H_c‖_F)² for the features H_c (n_c, d) of a class. >= 1, 1 at collapse.

    Omits a class whose features are all zero, because its rank is not defined.
    """
    return spectral_ratios[spectral_ratios.isfinite()].mean()


def unit_plus_gram(columns: Tensor) -> Tensor:
    """The triangular R (r, r) with RᵀR = I + XᵀX for X (d, r), from the QR of I stacked on X, without squaring X."""
    identity = torch.eye(columns.shape[1], dtype=columns.dtype, device=columns.device)
    return torch.linalg.qr(torch.cat([identity, columns]), mode="r").R


def whiten(moments: ClassMoments, within: Tensor) -> Tensor:
    """X = Σ_W^(-1/2) M (d, r) for Σ_B = MMᵀ, up to a rotation of R^d.

    Uses Cholesky where Σ_W is safely invertible, and eigenvectors otherwise. Directions without within-class variance
    separate perfectly. There, a floor at rounding level replaces the variance of 0.
    """
    s, axes = moments.between_axes
    columns = (s.unsqueeze(1) * axes).mT
    eps = torch.finfo(columns.dtype).eps
    rounding = len(within) * eps * torch.maximum(within.trace(), eps * moments.means.square().sum(1).mean())
    _, fails = torch.linalg.cholesky_ex(within - 10 * rounding * torch.eye(len(within)).to(within))
    if not bool(fails):
        return torch.linalg.solve_triangular(torch.linalg.cholesky(within), columns, upper=False)
    variances, basis = torch.linalg.eigh(within)
    floor = len(basis) * eps * torch.maximum(variances[-1], eps * moments.means.square().sum(1).mean())
    return basis.mT @ columns / variances.clamp(min=floor).sqrt().unsqueeze(1)


def _pinv(a: Analysis) -> Tensor | None:
    return pinv(a.present, a.variances) if a.means and a.variances is not None else None


def _vci(a: Analysis) -> Tensor | None:
    return None if a.whitened is None else vci(a.present, a.whitened)


def _numerical_rank(a: Analysis) -> Tensor | None:
    return numerical_rank(a.spectra[0]) if a.samples else None


METRICS: dict[str, Metric] = {
    "nc1/pinv": Metric(
        _pinv,
        "tr(Σ_W Σ_B⁺)/K",
        "[0, ∞)",
        "0",
        "train",
        PAPYAN,
        view=View(
            "NC1: features gather at their class mean",
            "within-class scatter relative to between-class scatter, tr(Σ_W Σ_B⁺)/K",
            "train",
            ("table", "curves", "knobs"),
            at_collapse=0,
            log=True,
        ),
    ),
    "nc1/quotient": Metric(of_differing_means(quotient), "tr Σ_W / tr Σ_B", "[0, ∞)", "0", "train"),
    "nc1/cdnv": Metric(
        of_differing_means(cdnv),
        "mean over i≠j of (v_i + v_j)/(2‖μ_i − μ_j‖²), v_k = E‖h − μ_k‖² in class k",
        "[0, ∞)",
        "0",
        "both",
        "Galanti, György and Hutter 2022",
    ),
    **{
        f"nc1/quotient_{group}": Metric(
            of_group(quotient_of, group),
            f"tr Σ_W over the samples of {group}-shot classes alone, over tr Σ_B",
            "[0, ∞)",
            "0",
        )
        for group in SHOTS
    },
    **{
        f"nc1/cdnv_{group}": Metric(
            of_group(cdnv_of, group),
            f"mean over {group}-shot classes i and all j≠i of (v_i + v_j)/(2‖μ_i − μ_j‖²)",
            "[0, ∞)",
            "0",
        )
        for group in SHOTS
    },
    "nc1/vci": Metric(_vci, "1 − tr(Σ_T⁺ Σ_B)/min(d, K−1)", "[0, 1]", "0", "both", "Xu and Liu 2023", needs="scatter"),
    "nc1/numerical_rank": Metric(
        _numerical_rank,
        "mean over classes of (‖H_k‖_*/‖H_k‖_F)², H_k the features of a class, not centered",
        "[1, ∞)",
        "1",
        "train",
        needs="spectra",
    ),
}
