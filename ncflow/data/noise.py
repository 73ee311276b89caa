"""Label noise: a random share of the labels is wrong, chosen by a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ncflow.checks import check_whole
from ncflow.data.longtail import check_labels


def noisy_targets(targets: Any, num_classes: int, *, fraction: float, seed: int) -> npt.NDArray[np.int64]:
    """Targets (N,) of which round(fraction · N) are replaced by another class, each other one equally likely.

    `fraction` in [0, 1) is the share of wrong labels. With the same seed, a smaller share changes a subset of the
    labels in the same way. Raises ValueError for another `fraction`, or fewer than 2 classes.
    """
    check_whole(least=0, most=2**32 - 1, num_classes=num_classes, seed=seed)
    if num_classes < 2:
        raise ValueError(f"label noise needs at least 2 classes, got {num_classes}")
    targets = check_labels(targets, num_classes)
    if not 0 <= fraction < 1:
        raise ValueError(f"label noise must be in [0, 1), the share of wrong labels; got {fraction}")
    # RandomState, not default_rng: NumPy guarantees that its stream, and so a split, never changes.
    random = np.random.RandomState([seed, num_classes])  # streams below num_classes belong to the classes
    shifts = random.randint(1, num_classes, size=len(targets))  # never 0, so a replaced label is wrong
    wrong = random.permutation(len(targets))[: round(fraction * len(targets))]
    noisy: npt.NDArray[np.int64] = targets.copy()
    noisy[wrong] = (targets[wrong] + shifts[wrong]) % num_classes
    return noisy
