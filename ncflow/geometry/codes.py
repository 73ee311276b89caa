"""Fixed directions for K classes in d features, one unit row per class: frames for few classes, codes for many.

A softmax code keeps the largest cosine of two rows small. It is a simplex ETF for K <= d+1. For d+1 < K <= 2d it is a
sum of simplices in orthogonal subspaces, whose largest cosine is 0. Above, it is found by descent. Jiang et al. 2023.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ncflow.checks import LARGEST, check_whole
from ncflow.geometry.code_files import load_code, store_code
from ncflow.geometry.frames import check_etf_exists, contrasts, random_orthonormal, seli_frame, simplex_etf

BLOCK = 256  # rows whose cosines are in memory at a time
STEPS = 1000  # of the descent
FEW_STEPS = 400  # where one step takes LONG or more
LONG = 3e7  # products K²d
STARTS = 4  # of the descent, where one step takes SHORT or less
SHORT = 1e5
ALIKE = 1e-4  # codes whose largest cosines differ by less are equally good
SHARPEST = 300.0  # inverse temperature at the end, for rows at wide angles
RATE = 0.05  # size of the first steps, as a share of the distance of rows
KEPT = 32  # codes in memory


def orthogonal_frame(num_classes: int, num_features: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Orthonormal rows (K, d) in float64: the first K axes, or random ones with a `generator`.

    The optimum behind a ReLU on balanced classes. Raises ValueError for d < K. [Dang et al.
    2023](https://arxiv.org/abs/2301.00437).

    Examples:
        >>> orthogonal_frame(2, 3).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    check_whole(num_classes=num_classes, num_features=num_features)
    if num_features < num_classes:
        raise ValueError(
            f"orthogonal frame needs num_features >= num_classes, got {num_features} and {num_classes}; "
            "use a wider neck, or the frame softmax_code"
        )
    if generator is None:
        return torch.eye(num_classes, num_features, dtype=torch.float64)
    return random_orthonormal(num_features, num_classes, generator=generator, dtype=torch.float64).mT.contiguous()


def softmax_code(num_classes: int, num_features: int, *, seed: int = 0) -> Tensor:
    """Unit rows (K, d) in float64 whose largest cosine is small: at most that of `code_bound` where it is exact.

    K <= d+1: the canonical simplex ETF, for every seed, with a warning. d+1 < K <= 2d: K-d simplices in orthogonal
    subspaces, turned at random by `seed`; the largest cosine is 0, as for the orthoplex, which is the case K = 2d.
    d = 2: the regular polygon. Else a local minimum of the log-sum-exp of all cosines, by descent from random starts
    of this seed. One step takes O(K²d) operations and O(Kd) memory. Machines agree to rounding, far below 1e-6; files
    in ~/.cache/ncflow/codes keep the results. Raises ValueError for K < 2, and for K > 2 in one dimension, where rows
    would coincide. [Jiang et al. 2023](https://arxiv.org/abs/2310.05351).

    Examples:
        >>> code = softmax_code(6, 3)
        >>> cosines = (code @ code.T).fill_diagonal_(-1)
        >>> abs(float(cosines.max())) < 1e-6  # the orthoplex
        True
    """
    _check_room(num_classes, num_features)
    if num_classes <= num_features + 1:
        _say_simplex(num_classes, num_features)
        return simplex_etf(num_classes, num_features, dtype=torch.float64)
    if num_features == 2:
        return _polygon(num_classes)
    return _code(int(num_classes), int(num_features), seed).clone()  # callers may write to their copy


def code_bound(num_classes: int, num_features: int) -> float:
    """The least possible largest cosine of K unit rows in d dimensions: exact or a lower bound. In [-1, 1).

    Exact: -1/(K-1) for K <= d+1, 0 for d+1 < K <= 2d, cos(2π/K) for d = 2. Above 2d it is Levenshtein's bound of
    degree 3, the root s of d(1-s)(2+(d+1)s) = K(1-ds²). It stays at its value for K = d(d+3)/2 beyond that size. The
    Welch bound, on the absolute value of cosines, is no bound here. Levenshtein 1998.

    Examples:
        >>> code_bound(3, 2), code_bound(8, 4)
        (-0.5, 0.0)
    """
    _check_room(num_classes, num_features)
    if num_classes <= num_features + 1:
        return -1 / (num_classes - 1)
    if num_features == 2:
        return math.cos(2 * math.pi / num_classes)
    d, k = num_features, min(num_classes, num_features * (num_features + 3) // 2)
    if num_classes <= 2 * d:
        return 0.0
    half = d * (d - 1) / 2
    return (k - 2 * d) / (half + math.sqrt(half**2 + d * (k - d - 1) * (k - 2 * d)))


def largest_cosine(rows: Tensor) -> float:
    """The largest cosine of two unit rows (K, d), K >= 2, block by block."""
    return max(float(_cosines(rows, start).max()) for start in range(0, len(rows), BLOCK))


def _check_room(num_classes: int, num_features: int) -> None:
    check_whole(least=-LARGEST, num_classes=num_classes, num_features=num_features)
    if num_classes < 2 or num_features < 1 or (num_features == 1 and num_classes > 2):
        raise ValueError(
            "softmax code needs num_classes >= 2, and num_features >= 2 for more than two classes, "
            f"got {num_classes} and {num_features}; use a wider neck"
        )


def _polygon(num_classes: int) -> Tensor:
    angles = torch.arange(num_classes, dtype=torch.float64) * (2 * math.pi / num_classes)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


@lru_cache(maxsize=KEPT)
def _code(num_classes: int, num_features: int, seed: int) -> Tensor:
    if num_classes <= 2 * num_features:
        return _orthogonal_simplices(num_classes, num_features, seed)
    stored = load_code(num_classes, num_features, seed)
    if stored is not None:
        return stored
    code = _search(num_classes, num_features, seed)
    store_code(code, seed)
    return code


def _orthogonal_simplices(num_classes: int, num_features: int, seed: int) -> Tensor:
    """K-d simplices of n and n+1 rows, in orthogonal subspaces of n-1 and n dimensions, turned at random.

    Rows of one simplex have negative cosines, rows of two have cosine 0. The rows sum to zero. They are turned because
    a row along a negative axis has no positive logit for features behind a ReLU.
    """
    number = num_classes - num_features
    size, larger = divmod(num_classes, number)
    sizes = [size + 1] * larger + [size] * (number - larger)
    blocks = [simplex_etf(n, n - 1, dtype=torch.float64) for n in sizes]
    turn = random_orthonormal(num_features, num_features, generator=_seeded(seed), dtype=torch.float64)
    turns = torch.split_with_sizes(turn, [n - 1 for n in sizes])  # each simplex by the dimensions of its subspace
    return F.normalize(torch.cat([block @ part for block, part in zip(blocks, turns, strict=True)]), dim=1)


def _search(num_classes: int, num_features: int, seed: int) -> Tensor:
    """The result of a descent: the first of the best ones, where several are fast."""
    starts = STARTS if num_classes**2 * num_features <= SHORT else 1
    draws = torch.randn(starts, num_classes, num_features, generator=_seeded(seed), dtype=torch.float64)
    found = [_descend(F.normalize(draw, dim=1)) for draw in draws]
    cosines = [largest_cosine(rows) for rows in found]
    return next(rows for rows, cosine in zip(found, cosines, strict=True) if cosine < min(cosines) + ALIKE)


def _descend(rows: Tensor) -> Tensor:
    """Minimize the log-sum-exp of the cosines with rising inverse temperature: momentum on the sphere, step as Adam.

    One scale for all entries, unlike Adam's, keeps the descent independent of the basis. It has no branch, so a
    rounding error stays a rounding error.
    """
    num_classes, num_features = rows.shape
    spread = num_classes ** (-2 / (num_features - 1))  # 1 - cosine of neighbors grows with K and d like this
    last = max(SHARPEST, 100 / spread)
    steps = STEPS if num_classes**2 * num_features < LONG else FEW_STEPS
    momentum, scale = torch.zeros_like(rows), torch.zeros((), dtype=rows.dtype)
    for step in range(steps):
        gradient = crowding_gradient(rows, last * 20 ** (step / steps - 1))
        gradient -= (gradient * rows).sum(1, keepdim=True) * rows  # tangential
        momentum.mul_(0.9).add_(gradient, alpha=0.1)
        scale.mul_(0.999).add_(gradient.square().mean(), alpha=0.001)
        corrected = (scale / (1 - 0.999 ** (step + 1))).sqrt() * (1 - 0.9 ** (step + 1))
        rate = RATE * math.sqrt(spread) * (1 - step / steps) / corrected.clamp(min=1e-300)
        rows = F.normalize(rows - rate * momentum, dim=1)
    return rows


def crowding_gradient(rows: Tensor, sharpness: float) -> Tensor:
    """The gradient (K, d) of log Σ_{i≠j} exp(β w_i·w_j)/β at rows (K, d), with β = `sharpness`.

    Row i is 2 Σ_j p_ij w_j with the shares p_ij of the pairs in the sum. A block of rows has shares that sum to 1 in
    each row; the shares of the rows follow at the end.
    """
    totals, pulls = [], []
    for start in range(0, len(rows), BLOCK):
        scores = _cosines(rows, start).mul_(sharpness)
        total = scores.logsumexp(1, keepdim=True)
        totals.append(total)
        pulls.append(scores.sub_(total).exp_() @ rows)
    return torch.cat(pulls) * (2 * torch.cat(totals).softmax(0))


def _cosines(rows: Tensor, start: int) -> Tensor:
    """The cosines (B, K) of a block of rows with all rows; -∞ for a row with itself."""
    cosines = rows[start : start + BLOCK] @ rows.mT
    cosines.diagonal(start).fill_(-torch.inf)
    return cosines


def _seeded(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)


def _simplex_row(num_classes: int, num_features: int, *, seed: int | None = None) -> Tensor:
    """The simplex ETF, canonical or turned at random by a seed; d >= K-1."""
    return simplex_etf(num_classes, num_features, generator=_seeded(seed), dtype=torch.float64)


def _orthogonal_row(num_classes: int, num_features: int, *, seed: int | None = None) -> Tensor:
    """Orthonormal rows, the axes or random ones with a seed; d >= K."""
    return orthogonal_frame(num_classes, num_features, generator=_seeded(seed))


def _seli_row(
    num_classes: int,
    num_features: int,
    *,
    seed: int | None = None,
    class_counts: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """The directions of SELI's classifier for these class sizes, turned at random with a seed; d >= K-1.

    The rows of V Λ^½ have different norms, longer for frequent classes. A fixed classifier keeps only their angles: on
    features of one norm a longer row would add a prior for its class to every decision. So the Gram matrix is not
    SELI's, but all frames have one contract, unit rows. Equal sizes give the simplex ETF.
    """
    check_etf_exists(num_classes, num_features, "frame seli")
    if class_counts is None:
        raise ValueError("frame seli needs class_counts, the number of training samples of each class")
    if len(class_counts) != num_classes:
        raise ValueError(f"frame seli needs class_counts for {num_classes} classes, got {len(class_counts)}")
    weight = seli_frame(class_counts, device="cpu")[0]  # V Λ^½ Vᵀ: unlike V Λ^½, it is unique
    if seed is not None:
        turn = random_orthonormal(num_features, num_classes - 1, generator=_seeded(seed), dtype=torch.float64)
        rows = contrasts(weight.mT).mT @ turn.mT
    elif num_features < num_classes:
        rows = contrasts(weight.mT).mT
    else:
        rows = F.pad(weight, (0, num_features - num_classes))
    return F.normalize(rows, dim=1)


def _say_simplex(num_classes: int, num_features: int) -> None:
    warnings.warn(
        f"frame softmax_code of {num_classes} classes in {num_features} features is the simplex ETF, which is used",
        stacklevel=3,
    )


def _code_row(num_classes: int, num_features: int, *, seed: int | None = None) -> Tensor:
    """A softmax code, from the start of a seed. For K <= d+1 it is the simplex ETF, with a warning."""
    _check_room(num_classes, num_features)
    if num_classes <= num_features + 1:
        _say_simplex(num_classes, num_features)
        return _simplex_row(num_classes, num_features, seed=seed)
    return softmax_code(num_classes, num_features, seed=0 if seed is None else seed)


def _random_row(num_classes: int, num_features: int, *, seed: int | None = None) -> Tensor:
    """Independent random directions; any K and d."""
    check_whole(num_classes=num_classes, num_features=num_features)
    generator = _seeded(0 if seed is None else seed)
    return F.normalize(torch.randn(num_classes, num_features, generator=generator, dtype=torch.float64), dim=1)


# A row: (num_classes, num_features) -> unit rows (K, d). Keyword-only, both optional: `seed`, and `class_counts` (K,).
FRAMES: dict[str, Callable[..., Tensor]] = {
    "simplex_etf": _simplex_row,
    "orthogonal": _orthogonal_row,
    "seli": _seli_row,
    "softmax_code": _code_row,
    "random": _random_row,
}
