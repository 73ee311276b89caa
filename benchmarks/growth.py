"""How costs grow with samples N, features d and classes K: exponents fitted to times of at least four sizes.

One size grows, the others stay as the table says; data are those of `metrics.py`, `classes.py` and `nearest_etf.py`.
An exponent is the slope of log(seconds) over log(size) by least squares, seconds the median of the rounds. "fit" is
the range of measured over fitted seconds: far from 1, the cost follows no single power over these sizes. "last two" is
the exponent between the two largest sizes. "operations"
are the largest terms, and the goal is their largest power plus a tenth. Costs that do not grow make exponents smaller.
Nearest ETF, polar factor, head and losses include the gradient. K = 50,257 at d = 768 takes minutes, so it is not here:
`tests/trials/vocabulary.py` measures it.

Predicted: N¹ wherever there are samples; d² for the scatter up to d³ for decompositions; K¹ for logits, K² for all
pairs of classes, K²d for the nearest ETF and its polar factor while K < d, K¹ for losses and heads.
Came, with one thread on a busy machine: no power above that of the operations over the whole range, and most far below,
as small sizes pay for calls and decompositions. The last two sizes are near it: K² for the nearest ETF, d^2.3 for all
metrics. The loss "ce" grows faster than K there, as its logits no longer fit into the cache. A batch of moments hardly
knows how many classes there are.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import classes, metrics, nearest_etf
from benchmarks.frame import DEVICE, Budget, publish
from benchmarks.frame.growth import fit, grow
from ncflow.geometry import polar_factor
from ncflow.metrics.stream import MomentSum
from ncflow.nn import NearestETFHead, create_loss

Call = Callable[[], Any]
BATCH = 1024  # of streams, losses and heads
POWERS = {"²": 2, "³": 3, " ": 1, "": 1}
SLACK = 0.1  # of an exponent


@dataclass(frozen=True)
class Growth:
    """One row: what is called, the letter that grows, what stays, the largest operations and sizes."""

    name: str
    letter: str
    fixed: str
    operations: str
    make: Callable[[int], Call]
    sizes: Sequence[int]

    @property
    def power(self) -> int:
        """The largest power of the letter in the operations."""
        return max(POWERS[power] for power in re.findall(f"{self.letter}(.?)", self.operations))


def growths() -> list[Growth]:
    """All rows."""
    etf, factor = partial(nearest_etf.ours, 512), partial(polar, 1024)
    made = [
        Growth("all metrics", "N", "d = 64, K = 10", "N d²", samples, (16_000, 32_000, 64_000, 128_000, 256_000)),
        Growth("all metrics", "d", "N = 8,192, K = 10", "N d² + K d³", features, (64, 128, 256, 512, 1024)),
        Growth("all metrics", "K", "N = 8,192, d = 128", "N d K + d K²", many, (256, 512, 1024, 2048, 4096)),
        Growth("metrics of moments", "K", "d = 128", "d K²", moments, (1000, 2000, 4000, 8000)),
        Growth("a batch of moments", "d", "K = 1,000", "B d²", partial(batch, 1000), (128, 256, 512, 1024, 2048)),
        Growth("a batch of moments", "K", "d = 256", "B d² + K d", partial(batch, d=256), (10, 100, 1000, 10_000)),
        Growth("nearest ETF", "K", "d = 512", "d K² + K³", etf, (10, 20, 50, 100, 200, 500)),
        Growth("nearest ETF", "d", "K = 50", "d K²", partial(nearest_etf.ours, k=50), (64, 128, 256, 512, 1024, 2048)),
        Growth("polar factor", "K", "d = 1,024", "d K² + K³", factor, (32, 64, 128, 256, 512)),
        Growth("polar factor", "d", "K = 50", "d K²", partial(polar, k=50), (128, 256, 512, 1024, 2048)),
        Growth("NearestETFHead", "K", "B = 1,024, d = 512", "B d K + d K² + K³", head, (10, 50, 100, 200, 500)),
    ]
    kinds, sizes = ("ce", "balanced_softmax", "ldam"), (100, 400, 1600, 6400)
    return made + [Growth(f"loss '{name}'", "K", "B = 1,024", "B K", partial(loss, name), sizes) for name in kinds]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per cost and letter."""
    chosen = growths()
    if options.quick:
        chosen = [
            replace(each, sizes=(60, 80, 100, 120)) for each in chosen if each.name in ("nearest ETF", "loss 'ce'")
        ]
    budget = Budget(options.budget, cases=len(chosen))
    return [row(growth, options.pairs, budget) for growth in chosen]


def row(growth: Growth, rounds: int, budget: Budget) -> dict[str, Any]:
    """The exponent of one growth, and how well a single power fits."""
    seconds = grow(growth.make, growth.sizes, rounds, budget)
    medians = {size: statistics.median(each) for size, each in seconds.items()}
    law = fit(medians)
    print(f"{growth.name}, {growth.letter}: {law.exponent:.2f}", flush=True)
    return {
        "cost": growth.name,
        "with": f"{growth.letter} = {', '.join(f'{size:,}' for size in growth.sizes)}",
        "at": growth.fixed,
        "operations": growth.operations,
        "exponent": f"**{law.exponent:.2f}**",
        "last two": f"{law.last:.2f}",
        "fit": f"{law.least:.2f} to {law.most:.2f}",
        "milliseconds": ", ".join(f"{1e3 * each:.3g}" for each in medians.values()),
        "rounds": len(next(iter(seconds.values()))),
        "goal": f"≤ {growth.power + SLACK} {'reached' if law.exponent <= growth.power + SLACK else '**missed**'}",
    }


def samples(n: int) -> Call:
    return metrics.ours(n, 64, 10)


def features(d: int) -> Call:
    return metrics.ours(8192, d, 10)


def many(k: int) -> Call:
    return metrics.ours(8192, 128, k)


def moments(k: int) -> Call:
    return classes.moments(k, 128)


def batch(k: int, d: int) -> Call:
    """A further batch of a sum that has samples of every class."""
    rows, targets, _ = classes.problem(k, d, per_class=1)
    total = MomentSum(d, k, device=DEVICE)
    total.add(rows, targets)
    chosen = torch.arange(BATCH, device=DEVICE) % k
    return partial(total.add, rows[chosen], chosen)


def polar(d: int, k: int) -> Call:
    a, upstream = torch.randn(2, d, k, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return partial(nearest_etf.value_and_gradient, polar_factor, a, upstream)


def head(k: int) -> Call:
    rows, targets = torch.randn(BATCH, 512, device=DEVICE), torch.arange(BATCH, device=DEVICE) % k
    made = NearestETFHead(512, k).to(DEVICE)

    def call() -> None:
        F.cross_entropy(made(rows.requires_grad_(), targets), targets).backward()

    return call


def loss(name: str, k: int) -> Call:
    logits, targets = torch.randn(BATCH, k, device=DEVICE), torch.arange(BATCH, device=DEVICE) % k
    criterion = create_loss(name, [max(1, 1000 // (1 + number)) for number in range(k)])
    return lambda: criterion(logits.requires_grad_(), targets).backward()


if __name__ == "__main__":
    publish(measure)
