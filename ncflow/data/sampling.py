"""The order of samples in an epoch: random, in batches like the whole split, or with equally likely classes.

A sampling takes the labels (N,), the sizes of the batches (N in sum) and a generator. It returns sample indices (N,).
The first batch takes the first indices, and so on.
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

    Samples are dealt in turn like cards sorted by class. n consecutive ones give each of M hands floor(n/M) or
    ceil(n/M). A batch of another size is dealt to at another pace. Then the others miss their share by less than 2.
    """
    cards = by_class(targets, generator)
    hands = torch.randperm(len(sizes), generator=generator)
    turns = torch.cat([(torch.arange(sizes[hand], dtype=torch.float64) + 0.5) / sizes[hand] for hand in hands])
    dealt = hands.repeat_interleave(torch.tensor(sizes)[hands])[turns.argsort(stable=True)]
    mixed = torch.randperm(len(cards), generator=generator)  # a process gets a part of a batch, so mix the classes
    return cards[mixed][dealt[mixed].argsort(stable=True)]


def class_balanced(targets: Tensor, sizes: Sequence[int], generator: Generator) -> Tensor:
    """N draws of a class, each equally likely, and of its next sample; samples of rare classes are drawn more often.

    A class starts again after all of its samples were drawn. [Kang et al. 2020](https://arxiv.org/abs/1910.09217),
    class-balanced sampling.
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
    """Sample indices (N,), class after class. The classes, and the samples of each, are in random order."""
    cards = torch.randperm(len(targets), generator=generator)
    rank = torch.randperm(int(targets.max()) + 1, generator=generator)
    return cards[rank[targets[cards]].argsort(stable=True)]


Sampling = Callable[[Tensor, Sequence[int], Generator], Tensor]
SAMPLINGS: dict[str, Sampling] = {
    "shuffled": shuffled,
    "stratified": stratified,
    "class_balanced": class_balanced,
}
