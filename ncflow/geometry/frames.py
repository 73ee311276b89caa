"""The frames that class means and classifier rows collapse to: simplex ETFs, and SELI under imbalance.

There are K classes and d features, and rows are classes. Centered rows lie in the K-1 dimensions orthogonal to the
all-ones vector. Q (K, K-1) is an orthonormal basis of this space. A simplex ETF is sqrt(K/(K-1)) Q Pᵀ with orthonormal
columns P (d, K-1). Q is the Householder reflection of the first axis onto 1/sqrt(K), without its first column. The two
functions below apply Q in O(Kd) and never build it.
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
    """The size (...) below which differences between the rows (..., K, d) are only rounding.

    eps is the precision of the input, by default that of the rows' dtype. Half precision accumulates in float32, so its
    numbers are rounded once, and the level does not grow with K and d.
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

    Without a `generator` it is the canonical one: sqrt(K/(K-1)) (I - 11ᵀ/K), padded with zero columns to d (default K).
    For d = K-1 it is the coordinates of that ETF in the basis Q. With a generator, the ETF is rotated by a Haar-random
    rotation of the feature space. Raises ValueError for K < 2 or d < K-1, where no simplex ETF exists. [Papyan et al.
    2020](https://doi.org/10.1073/pnas.2015509117).

    Examples:
        >>> frame = simplex_etf(3, 2)
        >>> [round(cosine, 4) for cosine in (frame @ frame.T)[0].tolist()]
        [1.0, -0.5, -0.5]
    """
    num_features = num_classes if num_features is None else num_features
    check_whole(least=-LARGEST, num_classes=num_classes, num_features=num_features)
    check_etf_exists(num_classes, num_features, "simplex ETF")
    if generator is not None:
        frame = random_orthonormal(num_features, num_classes - 1, generator=generator, dtype=torch.float64).mT
    elif num_features >= num_classes:  # the symmetric form needs one dimension more than the ETF spans
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
    """Haar-random orthonormal columns (d, k): QR of a Gaussian matrix, with a positive diagonal of R.

    Raises ValueError for d < k.
    """
    check_whole(least=0, num_features=num_features, num_vectors=num_vectors)
    if num_features < num_vectors:
        raise ValueError(f"{num_vectors} orthonormal vectors need as many dimensions, got num_features={num_features}")
    # Draw on the generator's device and in float64: the same seed then gives the same frame on every device.
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

    With (I - J/K) D (I - J/K) = V Λ² Vᵀ and D = diag(class_counts): W Wᵀ = V Λ Vᵀ, H̄ H̄ᵀ = V Λ⁺ Vᵀ, W H̄ᵀ = I - J/K.
    It is the optimum of unconstrained features as the regularization vanishes. For balanced classes it is a simplex
    ETF. Raises ValueError for fewer than two classes or a count that is not positive. [Thrampoulidis et al.
    2022](https://arxiv.org/abs/2208.05512).
    """
    counts = counts_tensor(class_counts)
    if counts.ndim != 1 or len(counts) < 2 or not bool((counts > 0).all()):
        raise ValueError(f"SELI needs at least two classes, each with samples, got class_counts={counts.tolist()}")
    squared_spectrum, u = _squared_spectrum(counts)
    quarter, v = squared_spectrum.pow(0.25), from_contrasts(u)
    weight, means = (v * quarter) @ v.mT, (v / quarter) @ v.mT
    return weight.to(device, dtype), means.to(device, dtype)


def _squared_spectrum(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Λ² (K-1,) and U (K-1, K-1) of Qᵀ D Q = U Λ² Uᵀ, without the zero eigenvalue of the all-ones vector.

    For count ratios above EXTREME, rounding of the largest count would hide the smallest. There the SVD of D^½ Q is
    used, whose singular values are Λ.
    """
    if counts.max() <= EXTREME * counts.min():
        return torch.linalg.eigh(contrasts(contrasts(counts.diag()).mT))
    spectrum, vh = torch.linalg.svd(contrasts(counts.sqrt().diag()).mT, full_matrices=False)[1:]
    return spectrum.square(), vh.mT


def check_etf_exists(num_classes: int, num_features: int, what: str) -> None:
    """Raise ValueError for K < 2 or d < K-1, with `what` as the subject of the message."""
    if num_classes < 2:
        raise ValueError(f"{what} needs at least 2 classes, got {num_classes}")
    if num_features < num_classes - 1:
        raise ValueError(
            f"{what} needs num_features >= num_classes - 1, got {num_features} and {num_classes}; "
            "use a wider neck, the linear head, or head fixed_frame with frame=softmax_code"
        )


def _num_classes(rows: Tensor) -> int:
    if rows.ndim < 2 or rows.shape[-2] < 2:
        raise ValueError(f"expected (..., K, d) with at least 2 class rows, got shape {tuple(rows.shape)}")
    return int(rows.shape[-2])


EXTREME = 1e6  # up to this ratio of class sizes, ten digits of the smallest size survive
