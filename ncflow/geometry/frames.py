"""The frames that class means and classifier rows collapse to: simplex ETFs, and SELI under imbalance.

K classes in d features; rows are classes. Everything centered lives in the K-1 dimensions orthogonal to the all-ones
vector, so an orthonormal basis Q (K, K-1) of that space carries all of it: a simplex ETF is sqrt(K/(K-1)) Q Pᵀ with
orthonormal columns P (d, K-1). Q is the Householder reflection of the first axis onto 1/sqrt(K) without its first
column; applied by the two functions below in O(Kd), it is never built.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ncflow.checks import LARGEST, check_whole, counts_tensor

HALF = 1e-4  # float16 and bfloat16 have a larger eps, float32 a smaller one


def contrasts(rows: Tensor) -> Tensor:
    """Coordinates Qᵀ(rows - mean row) of the centered rows: (..., K, d) -> (..., K-1, d). Keeps their scatter."""
    num_classes = _num_classes(rows)
    centered = rows - rows.mean(-2, keepdim=True)
    return centered[..., 1:, :] + centered[..., :1, :] / (math.sqrt(num_classes) - 1)


def from_contrasts(coordinates: Tensor) -> Tensor:
    """The centered rows Q·coordinates, an isometry and the inverse of `contrasts`: (..., K-1, d) -> (..., K, d)."""
    num_classes = coordinates.shape[-2] + 1
    root = math.sqrt(num_classes)
    total = coordinates.sum(-2, keepdim=True)
    return torch.cat([total / root, coordinates - total / (num_classes - root)], dim=-2)


def rounding_level(rows: Tensor, eps: float | None = None) -> Tensor:
    """The size (...) below which differences between the rows (..., K, d) are nothing but rounding.

    eps is the precision in which the rows came; default: that of their dtype. Half precision adds up in float32, so
    that its numbers are rounded once and the level does not grow with K and d.
    """
    eps = torch.finfo(rows.dtype).eps if eps is None else eps
    return torch.linalg.matrix_norm(rows) * (eps if eps > HALF else max(rows.shape[-2:]) * eps)


def simplex_etf(
    num_classes: int,
    num_features: int | None = None,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """A simplex equiangular tight frame (K, d): unit rows with pairwise cosine -1/(K-1), W Wᵀ = K/(K-1) (I - 11ᵀ/K).

    Canonical when `generator` is None: sqrt(K/(K-1)) (I - 11ᵀ/K), padded with zero columns to d (default K); for
    d = K-1 its coordinates in the basis Q. With a generator it is rotated by a Haar-random rotation of the feature
    space. Raises ValueError for K < 2 or d < K-1, where no simplex ETF exists. Papyan, Han and Donoho 2020.
    """
    num_features = num_classes if num_features is None else num_features
    check_whole(least=-LARGEST, num_classes=num_classes, num_features=num_features)
    check_etf_exists(num_classes, num_features, "simplex ETF")
    if generator is not None:
        frame = random_orthonormal(num_features, num_classes - 1, generator=generator, dtype=torch.float64).mT
    elif num_features >= num_classes:  # the familiar symmetric form needs one dimension more than the ETF spans
        frame = contrasts(torch.eye(num_classes, num_features, dtype=torch.float64))
    else:
        frame = torch.eye(num_classes - 1, dtype=torch.float64)
    etf = math.sqrt(num_classes / (num_classes - 1)) * from_contrasts(frame)
    return etf.to(device, dtype or torch.get_default_dtype())


def random_orthonormal(
    num_features: int,
    num_vectors: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Haar-random orthonormal columns (d, k), d >= k: QR of a Gaussian matrix with the signs of R made positive."""
    check_whole(least=0, num_features=num_features, num_vectors=num_vectors)
    if num_features < num_vectors:
        raise ValueError(f"{num_vectors} orthonormal vectors need as many dimensions, got num_features={num_features}")
    # Drawn on the generator's device and in float64, so that one seed gives one frame wherever it is used.
    source = generator.device if generator is not None else device
    gaussian = torch.randn(num_features, num_vectors, generator=generator, dtype=torch.float64, device=source)
    q, r = torch.linalg.qr(gaussian)
    return (q * r.diagonal().sign()).to(device, dtype or torch.get_default_dtype())


def seli_frame(
    class_counts: Sequence[int] | Tensor,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """The simplex-encoded-labels interpolation for given class counts: (weight (K, K), class_means (K, K)).

    With (I - J/K) D (I - J/K) = V Λ² Vᵀ and D = diag(class_counts): W Wᵀ = V Λ Vᵀ, H̄ H̄ᵀ = V Λ⁺ Vᵀ, W H̄ᵀ = I - J/K. The
    optimum of unconstrained features as the regularization vanishes; a simplex ETF when balanced. Every count must
    be positive. Thrampoulidis, Kini, Vakilian and Behnia 2022.
    """
    counts = counts_tensor(class_counts)
    if counts.ndim != 1 or len(counts) < 2 or not bool((counts > 0).all()):
        raise ValueError(f"SELI needs at least two classes, each with samples, got class_counts={counts.tolist()}")
    squared_spectrum, u = _squared_spectrum(counts)
    quarter, v = squared_spectrum.pow(0.25), from_contrasts(u)
    weight, means = (v * quarter) @ v.mT, (v / quarter) @ v.mT
    return weight.to(device, dtype), means.to(device, dtype)


def _squared_spectrum(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Λ² and the vectors of Qᵀ D Q = U Λ² Uᵀ, (K-1,) and (K-1, K-1), in which the zero of the all-ones vector is gone.

    Beyond EXTREME the rounding of the largest count would swallow the smallest: there from D^½ Q, whose values are Λ.
    """
    if counts.max() <= EXTREME * counts.min():
        return torch.linalg.eigh(contrasts(contrasts(counts.diag()).mT))
    spectrum, vh = torch.linalg.svd(contrasts(counts.sqrt().diag()).mT, full_matrices=False)[1:]
    return spectrum.square(), vh.mT


def check_etf_exists(num_classes: int, num_features: int, what: str) -> None:
    """Raise the one error message of every place that needs d >= K-1."""
    if num_classes < 2:
        raise ValueError(f"{what} needs at least 2 classes, got {num_classes}")
    if num_features < num_classes - 1:
        raise ValueError(
            f"{what} needs num_features >= num_classes - 1, got {num_features} and {num_classes}; "
            "use a wider neck or the linear head"
        )


def _num_classes(rows: Tensor) -> int:
    if rows.ndim < 2 or rows.shape[-2] < 2:
        raise ValueError(f"expected (..., K, d) with at least 2 class rows, got shape {tuple(rows.shape)}")
    return int(rows.shape[-2])


EXTREME = 1e6  # ratio of the class sizes, up to which ten digits of the smallest survive
