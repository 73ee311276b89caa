"""Groups of classes by their number of training samples: many-, medium- and few-shot. Liu et al. 2019."""

from __future__ import annotations

from torch import Tensor

SHOTS = ("many", "medium", "few")
MANY, FEW = 100, 20  # training samples: many-shot above the first, few-shot below the second. Liu et al. 2019.


def shot_groups(class_counts: Tensor) -> dict[str, Tensor]:
    """name -> mask (K,) of the many-, medium- and few-shot classes, by their training sizes (K,). Liu et al. 2019."""
    return {
        "many": class_counts > MANY,
        "medium": (class_counts <= MANY) & (class_counts >= FEW),
        "few": class_counts < FEW,
    }
