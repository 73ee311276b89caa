"""Nuclear norms of the features of each class: exact sums of singular values, at the cost of Gram matrices.

The eigenvalues of a Gram matrix are the squared singular values, with an error of about eps times its norm. This is
accurate for singular values above 1e-4 of the largest one, and useless below. So the small ones are computed again,
from a Gram matrix of the features restricted to their directions. Its norm is small, and so is its error.

A class with more samples than features has HᵀH = S + n μμᵀ with its within-class scatter S. Other metrics need the sum
of S over the classes, so its products are reused. The error of S does not grow with μ. A second look therefore
needs no products with samples, unless S itself has small directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ncflow.metrics import moments as cuts
from ncflow.metrics.moments import ClassMoments, GramSum

SMALL = 1e-8  # squared singular values below this share of a Gram matrix's norm are computed again in their directions
BATCH = 2**21  # limit of numbers in a batch of classes

Look = Callable[[Tensor], tuple[Tensor, Tensor | float]]  # directions (C, m, r) -> Gram matrix (C, r, r), its level


def spectral_ratios(features: Tensor, targets: Tensor, moments: ClassMoments, scatter: GramSum | None = None) -> Tensor:
    """(‖H_c‖_*/‖H_c‖_F)² of the features H_c (n_c, d) of each class with samples, in float64: (K',), in any order.

    NaN for a class whose features are all zero. Adds the within-class scatter of all samples to `scatter`, and reuses
    products where possible.
    """
    sizes = moments.counts.long().tolist()
    by_class = sorted(zip(torch.split(targets.argsort(stable=True), sizes), moments.means, strict=True), key=_length)
    wide = [(rows, mean) for rows, mean in by_class if 0 < len(rows) <= features.shape[1]]
    tall = [(rows, mean) for rows, mean in by_class if len(rows) > features.shape[1]]
    ratios = [_wide(features, batch, scatter) for batch in _batches(wide, features.shape[1])]
    return torch.cat(ratios + [_tall(features, rows, mean, scatter) for rows, mean in tall])


def _wide(features: Tensor, classes: list[tuple[Tensor, Tensor]], scatter: GramSum | None) -> Tensor:
    """The ratios (C,) of classes of n samples each, n <= d, in one batch."""
    rows, means = (torch.stack(parts) for parts in zip(*classes, strict=True))
    h = features[rows].double()
    gram = h @ h.mT

    def closer(directions: Tensor) -> tuple[Tensor, float]:
        along = directions.mT @ h
        return along @ along.mT, 0.0

    ratios = _ratios(gram, closer)
    if scatter is not None:
        scatter.add(h.sub_(means.unsqueeze(1)).flatten(0, 1))
    return ratios


def _tall(features: Tensor, rows: Tensor, mean: Tensor, scatter: GramSum | None) -> Tensor:
    """The ratio (1,) of the class of these rows (n,) of the features and this mean (d,), n > d, in chunks."""
    chunks = torch.split(rows, cuts.CHUNK)
    within = GramSum(len(mean), features.device)
    is_zero = torch.ones((), dtype=torch.bool, device=features.device)  # the mean of zeros may be rounding, not 0
    for part in chunks:
        h = features[part].double()
        is_zero &= ~h.any()
        within.add(h.sub_(mean))
    own = within.total()
    if scatter is not None:
        scatter.add_gram(own)

    def with_mean(restricted: Tensor, along: Tensor) -> Tensor:
        return (restricted + len(rows) * along.unsqueeze(1) * along).unsqueeze(0)

    def of_scatter(directions: Tensor) -> tuple[Tensor, Tensor]:
        (v,) = directions
        return with_mean(v.mT @ own @ v, mean @ v), torch.linalg.matrix_norm(own)

    def of_samples(directions: Tensor) -> tuple[Tensor, float]:
        total = GramSum(directions.shape[-1], features.device)
        for part in chunks:
            total.add(features[part].double() @ directions[0])
        return total.total().unsqueeze(0), 0.0

    return _ratios(with_mean(own, mean), of_scatter, of_samples).masked_fill(is_zero, torch.nan)


def _ratios(gram: Tensor, *looks: Look) -> Tensor:
    """(‖H‖_*/‖H‖_F)² (C,) from the Gram matrices (C, m, m) of H, and repeated looks at the small directions.

    The rounding of a look is relative to its level, which is at least its own norm.
    """
    level = torch.linalg.matrix_norm(gram)
    squares, directions = _spectrum(gram, level)
    nuclear = squares.sqrt().sum(1)
    for look in looks:
        if directions is None:
            break
        restricted, known = look(directions)
        level = torch.linalg.matrix_norm(restricted).clamp(min=known)
        squares, turn = _spectrum(restricted, level, last=look is looks[-1])
        nuclear += squares.sqrt().sum(1)
        directions = None if turn is None else directions @ turn
    return (nuclear.square() / gram.diagonal(dim1=1, dim2=2).sum(1)).clamp(min=1)


def _spectrum(gram: Tensor, level: Tensor, *, last: bool = False) -> tuple[Tensor, Tensor | None]:
    """The eigenvalues (C, m) of Gram matrices, 0 for small ones, and the directions (C, m, r) of the small ones."""
    floor = (SMALL * level).unsqueeze(1)
    # This check is much faster than eigh, which is needed only if there are small eigenvalues.
    _, fails = torch.linalg.cholesky_ex(gram - torch.diag_embed(floor.expand(gram.shape[:2])))
    if last or not bool(fails.any()):
        return torch.linalg.eigvalsh(gram).clamp(min=0), None
    squares, directions = torch.linalg.eigh(gram)
    small = squares <= floor
    number = int(small.sum(1).max())
    return squares.masked_fill(small, 0), (directions * small.unsqueeze(1))[..., :number] if number else None


def _batches(classes: list[tuple[Tensor, Tensor]], num_features: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield consecutive classes of equal size, with at most BATCH numbers per batch."""
    batch: list[tuple[Tensor, Tensor]] = []
    for rows, mean in classes:
        full = (len(batch) + 1) * len(rows) * num_features > BATCH
        if batch and (full or len(rows) != len(batch[0][0])):
            yield batch
            batch = []
        batch.append((rows, mean))
    if batch:
        yield batch


def _length(one: tuple[Tensor, Tensor]) -> int:
    return len(one[0])
