"""Nuclear norms of the features of each class: exact singular value sums at the price of Gram matrices.

The eigenvalues of a Gram matrix are the squared singular values, with an error of about eps times the largest: fine for
those above 1e-4 of the largest singular value, worthless below. So the small ones are computed a second time, from
the Gram matrix of the features restricted to their directions, whose largest is small and whose error is, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ncflow.metrics import moments
from ncflow.metrics.moments import GramSum

SMALL = 1e-8  # squared singular values below this share of the largest are computed from their own directions
BATCH = 2**21  # numbers of classes that are taken together


def spectral_ratios(features: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """(‖H_c‖_*/‖H_c‖_F)² of the features H_c (n_c, d) of each class that has any, in float64: (K',), in any order."""
    sizes = torch.bincount(targets, minlength=num_classes).tolist()
    by_class = sorted(torch.split(targets.argsort(stable=True), sizes), key=len)
    wide = [rows for rows in by_class if 0 < len(rows) <= features.shape[1]]
    tall = [rows for rows in by_class if len(rows) > features.shape[1]]
    ratios = [_wide([features[rows] for rows in batch]) for batch in _batches(wide, features.shape[1])]
    return torch.cat(ratios + [_tall(features, rows) for rows in tall])


def _wide(classes: list[Tensor]) -> Tensor:
    """The ratios (C,) of classes (n_c, d), n_c <= d, all at once: rows of zeros make them equally long."""
    rows = pad_sequence([h.double() for h in classes], batch_first=True)

    def gram(directions: Tensor | None = None) -> Tensor:
        along = rows if directions is None else directions.mT @ rows
        return along @ along.mT

    return _ratios(gram)


def _tall(features: Tensor, rows: Tensor) -> Tensor:
    """The ratio (1,) of the class of these rows (n_c,) of the features, n_c > d, in chunks."""

    def gram(directions: Tensor | None = None) -> Tensor:
        total = GramSum(features.shape[1] if directions is None else directions.shape[-1], features.device)
        for part in torch.split(rows, moments.CHUNK):
            h = features[part].double()
            total.add(h if directions is None else h @ directions[0])
        return total.total().unsqueeze(0)

    return _ratios(gram)


def _ratios(gram: Callable[..., Tensor]) -> Tensor:
    """(‖H‖_*/‖H‖_F)² (C,), where gram() is HᵀH or HHᵀ (C, m, m), and gram(v) that of H restricted to v (C, m, r)."""
    whole = gram()
    squares = torch.linalg.eigvalsh(whole)
    if not bool((squares > SMALL * squares[:, -1:]).all()):
        squares, directions = torch.linalg.eigh(whole)
        small = squares <= SMALL * squares[:, -1:]
        number = int(small.sum(1).max())
        fine = torch.linalg.eigvalsh(gram((directions * small.unsqueeze(1))[..., :number]))
        squares = torch.cat([squares.masked_fill(small, 0), fine.clamp(min=0)], 1)
    return (squares.sqrt().sum(1).square() / whole.diagonal(dim1=1, dim2=2).sum(1)).clamp(min=1)


def _batches(classes: list[Tensor], num_features: int) -> Iterator[list[Tensor]]:
    """Consecutive classes, the last of each batch the longest, as many as BATCH numbers hold."""
    batch: list[Tensor] = []
    for rows in classes:
        if batch and (len(batch) + 1) * len(rows) * num_features > BATCH:
            yield batch
            batch = []
        batch.append(rows)
    if batch:
        yield batch
