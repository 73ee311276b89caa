"""Which sample comes when in an epoch: in any order, in batches like the whole split, or every class alike.

A sampling takes the labels (N,), the sizes of the batches, N in all, and a generator; it gives sample indices (N,), of
which the first batch takes the first, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor


def shuffled(targets: Tensor, sizes: Sequence[int], generator: Generator) -> Tensor:
    """Every sample once, in random order."""
    return torch.randperm(len(targets), generator=generator)


def stratified(targets: Tensor, sizes: Sequence[int], generator: Generator) -> Tensor:
    """Every sample once; each batch holds of each class its share, rounded down or up if all batches are of one size.

    Cards sorted by class and dealt in turn: n consecutive ones give each of M hands floor(n/M) or ceil(n/M). A batch of
    another size is dealt to at another pace, which makes the others miss their share by less than 2.
    """
    cards = by_class(targets, generator)
    hands = torch.randperm(len(sizes), generator=generator)
    turns = torch.cat([(torch.arange(sizes[hand], dtype=torch.float64) + 0.5) / sizes[hand] for hand in hands])
    dealt = hands.repeat_interleave(torch.tensor(sizes)[hands])[turns.argsort(stable=True)]
    mixed = torch.randperm(len(cards), generator=generator)  # a process gets a part of a batch: all classes in each
    return cards[mixed][dealt[mixed].argsort(stable=True)]


def class_balanced(targets: Tensor, sizes: Sequence[int], generator: Generator) -> Tensor:
    """N draws of a class, each equally likely, and of its next sample: rare samples come often, frequent ones seldom.

    A class begins again when all of its samples have come. Kang et al. 2020, class-balanced sampling.
    """
    cards = by_class(targets, generator)
    size = torch.unique_consecutive(targets[cards], return_counts=True)[1]
    start = size.cumsum(0) - size
    drawn = torch.randint(len(size), (len(targets),), generator=generator)
    in_order, place = drawn.sort(stable=True)
    turn = torch.empty_like(drawn)  # how often the class had been drawn before
    turn[place] = torch.arange(len(drawn)) - torch.searchsorted(in_order, in_order)
    return cards[start[drawn] + turn % size[drawn]]


def by_class(targets: Tensor, generator: Generator) -> Tensor:
    """Sample indices (N,), class after class; classes in random order, and the samples of each."""
    cards = torch.randperm(len(targets), generator=generator)
    rank = torch.randperm(int(targets.max()) + 1, generator=generator)
    return cards[rank[targets[cards]].argsort(stable=True)]


Sampling = Callable[[Tensor, Sequence[int], Generator], Tensor]
SAMPLINGS: dict[str, Sampling] = {
    "shuffled": shuffled,
    "stratified": stratified,
    "class_balanced": class_balanced,
}
