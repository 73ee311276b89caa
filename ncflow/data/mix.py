"""Mix each image of a batch with a partner: (images, targets, partner, uniform) -> (mixed images, share).

images (M,C,S,S) are B samples, and after them any other partners. partner (B,) is the row of each sample's partner.
targets (M,) are the classes of the rows. uniform (3,) are random numbers of this batch in [0, 1). `share`, one number
or one for each sample (B,), is the part of the loss that belongs to the sample's own class:

    loss = share·ℓ(z, y) + (1 - share)·ℓ(z, y of the partner)

The caller passes the random numbers. So a mixed image does not depend on the number of processes or the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ncflow.lookup import check_options, explained_options, lookup, takes

RANDOM_NUMBERS = 3  # per batch: the share, and the center of a box
Mix = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def create_mix(name: str, class_counts: Sequence[int] | Tensor, **options: Any) -> Mix | None:
    """The mix called `name`, or None for "none". class_counts (K,) are the sizes of the training classes.

    Raises ValueError for a name or an option that does not exist, and for values out of range.
    """
    if name == "none":
        if options:
            raise ValueError(f"mix 'none' takes no options, got {options}; choose one of {', '.join(MIXES)}")
        return None
    row = lookup(MIXES, name, "mix")
    check_options(row, options, f"mix '{name}'")
    mix = partial(row, **options)
    if takes(row, "class_counts"):
        mix = partial(mix, class_counts=torch.as_tensor(class_counts, dtype=torch.float64))
    with explained_options(f"mix '{name}'", options):  # reject options out of range before the first epoch
        images, zeros = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.long)
        mixed, share = mix(images, zeros, zeros, torch.full((RANDOM_NUMBERS,), 0.5))
    if mixed.shape != images.shape or share.shape not in ((), (2,)) or not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError(
            f"mix '{name}' must return images (B,C,S,S) and shares in [0, 1], one or (B,), got {tuple(mixed.shape)} "
            f"and {share.tolist()} for 2 images {tuple(images.shape)}"
        )
    return mix


def mixup(
    images: Tensor, targets: Tensor, partner: Tensor, uniform: Tensor, *, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """λx + (1 - λ)x' with λ ~ Beta(α, α) for each batch, and share λ.

    [Zhang et al. 2018](https://arxiv.org/abs/1710.09412).
    """
    share = torch.tensor(_beta(uniform[0].item(), alpha))
    return _blend(images, partner, share.item()), share


def cutmix(
    images: Tensor, targets: Tensor, partner: Tensor, uniform: Tensor, *, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A box of area 1 - λ comes from the partner, λ ~ Beta(α, α) for each batch. share is the area outside the box.

    A box over the edge is cut off, and share follows. [Yun et al. 2019](https://arxiv.org/abs/1905.04899).
    """
    size = images.shape[-1]
    side = size * math.sqrt(1 - _beta(uniform[0].item(), alpha))
    center = [int(number * size) for number in uniform[1:].tolist()]
    edges = [(max(c - round(side / 2), 0), min(c + round(side / 2), size)) for c in center]
    (top, bottom), (left, right) = edges
    mixed = images[: len(partner)].clone()
    mixed[..., top:bottom, left:right] = images[partner][..., top:bottom, left:right]
    return mixed, torch.tensor(1 - (bottom - top) * (right - left) / size**2)


def remix(
    images: Tensor,
    targets: Tensor,
    partner: Tensor,
    uniform: Tensor,
    *,
    class_counts: Tensor,
    alpha: float = 1.0,
    kappa: float = 3.0,
    tau: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """mixup whose share favors the rarer class of a pair: 0 if n_y ≥ κ n_y' and λ < τ, 1 if κ n_y ≤ n_y' and 1 - λ < τ.

    Otherwise it is λ. [Chou et al. 2020](https://arxiv.org/abs/2007.03943).
    """
    if not (kappa >= 1 and 0 <= tau <= 1):
        raise ValueError(f"remix needs kappa >= 1 and tau in [0, 1], got {kappa} and {tau}")
    weight = _beta(uniform[0].item(), alpha)
    ratio = class_counts[targets[: len(partner)]] / class_counts[targets[partner]]
    share = torch.full(ratio.shape, weight)
    share[ratio >= kappa] = 0.0 if weight < tau else weight
    share[ratio <= 1 / kappa] = 1.0 if 1 - weight < tau else weight
    return _blend(images, partner, weight), share


def soft_targets(targets: Tensor, others: Tensor, share: Tensor, num_classes: int) -> Tensor:
    """Shares (B, K) of the classes: `share` of the class of targets (B,), the rest of that of others (B,)."""
    share = share.expand(len(targets)).unsqueeze(1)
    own, other = (F.one_hot(labels, num_classes).to(share.dtype) for labels in (targets, others))
    return share * own + (1 - share) * other


def _blend(images: Tensor, partner: Tensor, weight: float) -> Tensor:
    return weight * images[: len(partner)] + (1 - weight) * images[partner]


def _beta(quantile: float, alpha: float) -> float:
    """The quantile of Beta(α, α)."""
    if not 0 < alpha < math.inf:
        raise ValueError(f"expected a finite alpha > 0, so that λ ~ Beta(alpha, alpha) lies in (0, 1), got {alpha}")
    from scipy.special import betaincinv

    return float(betaincinv(alpha, alpha, quantile))


# A row: the contract above, options by keyword. The name "none" stands for no mixing.
MIXES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"mixup": mixup, "cutmix": cutmix, "remix": remix}
