"""The nearest ETF, forward and backward, against the trust-region node, against an SVD, and inside of a training step.

Class means are Gaussian (K, d) in float32, the anchor is the nearest ETF of means a little elsewhere, δ = 1e-3: what a
head meets in training, and a warm start for the search. `baselines/trust_region_node.py` is the usual implicit layer,
whose backward pass builds a K(K+1)/2 × dK Jacobian: 1 GB at (d, K) = (512, 100), TBs at (2048, 1000), where it is left
out; each side runs in a process of its own. Its results differ from ours by what its search leaves undone and by the
direction of P that no ETF needs, ours from an SVD in float64 by rounding to float32. In the cases of a head, "baseline"
is the whole step of a ResNet-18 at batch 256 that the head is part of: the ratio is 1/share.

From operation counts, made after the first timings: a backward pass of 10 dK² instead of 2 d(K²/2)², so thousands at
K = 100; against the SVD 1.5 to 3, since eigenvectors of the K × K Gram matrix cost about 6 K³ where the SVD costs 20.
Came: both, but for K = 10, where an SVD is as quick. On a CPU Newton and Schulz's products take 12 to 15 times as long
as the Gram matrix's eigenvectors, torch.linalg.polar 2 to 3 times. A backward pass in float32 came a quarter sooner,
and was dropped: near collapse its error was 2e-5 of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.frame import DEVICE, Case, run
from ncflow.geometry import nearest_etf, polar
from ncflow.geometry.polar import choose_method
from ncflow.nn import Classifier, NearestETFHead, create_backbone

PROXIMAL = 1e-3
TORCH = "torch.linalg.polar"
OTHER_METHODS = ("svd", "products", TORCH)
Call = Callable[[], Any]


def cases(quick: bool) -> list[Case]:
    """All comparisons; quick is two small ones."""
    if quick:
        return [against_node(64, 5), against_svd(64, 5)]
    made = [against_node(512, 10, least_ratio=30), against_node(512, 100, least_ratio=3000)]
    made += [against_svd(512, k) for k in (10, 100, 500)]
    largest = {"most_seconds": 0.6 if DEVICE.type == "cpu" else 0.02, "most_megabytes": 250.0}
    made += [against_svd(2048, 1000, **largest), seeds(8, 512, 100)]
    made += [against_method(name, d, k) for d, k in ((512, 100), (2048, 1000)) for name in OTHER_METHODS]
    return [*made, head_in_a_step(10, least_ratio=50), head_in_a_step(100, least_ratio=20)]


def against_node(d: int, k: int, **goals: float) -> Case:
    """Ours against the implicit layer; its search stops at a gradient of 1e-6, about 1e-3 away."""
    name = f"trust-region node, (d, K) = ({d}, {k})"
    sides = partial(ours, d, k), partial(node, d, k)
    return Case(name, *sides, tolerance=1e-2, exact=partial(exact, d, k), apart=True, **goals)


def against_svd(d: int, k: int, **goals: float) -> Case:
    """Ours against the same closed form by an SVD in float64, with autograd around it."""
    return Case(f"SVD, (d, K) = ({d}, {k})", partial(ours, d, k), partial(by_svd, d, k), **goals)


def against_method(name: str, d: int, k: int) -> Case:
    """The polar factor alone in float64, by the method chosen for float32 on this device against another one."""
    chosen = partial(factor_by, choose_method(torch.float32, DEVICE), d, k)
    other = partial(factor_by_torch, d, k) if name == TORCH else partial(factor_by, name, d, k)
    return Case(f"polar factor by {name}, (d, K) = ({d}, {k})", chosen, other, tolerance=1e-8, memory=False)


def seeds(count: int, d: int, k: int) -> Case:
    """Means of several seeds at once against one after another."""
    name = f"{count} seeds at once against a loop, (d, K) = ({d}, {k})"
    return Case(name, partial(ours, d, k, count), partial(looped, d, k, count))


def head_in_a_step(k: int, **goals: float) -> Case:
    """NearestETFHead alone against the training step around it, 256 images of 32x32 in float32."""
    name = f"NearestETFHead in a ResNet-18 step, K = {k}"
    return Case(name, partial(head_alone, k), partial(whole_step, k), tolerance=None, memory=False, **goals)


def problem(d: int, k: int, *batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Class means, anchor and upstream gradient, all (..., K, d)."""
    generator = torch.Generator().manual_seed(0)
    means, step, upstream = torch.randn(3, *batch, k, d, generator=generator).to(DEVICE)
    return means, nearest_etf(means + 0.1 * step), upstream


def ours(d: int, k: int, *batch: int) -> Call:
    means, anchor, upstream = problem(d, k, *batch)
    return partial(value_and_gradient, partial(nearest_etf, proximal=PROXIMAL, anchor=anchor), means, upstream)


def exact(d: int, k: int) -> Call:
    means, anchor, upstream = (tensor.double() for tensor in problem(d, k))
    return partial(value_and_gradient, partial(nearest_etf, proximal=PROXIMAL, anchor=anchor), means, upstream)


def looped(d: int, k: int, count: int) -> Call:
    means, anchors, upstreams = problem(d, k, count)

    def call() -> list[Tensor]:
        each = [
            value_and_gradient(partial(nearest_etf, proximal=PROXIMAL, anchor=anchor), m, upstream)
            for m, anchor, upstream in zip(means, anchors, upstreams, strict=True)
        ]
        return [torch.stack(tensors) for tensors in zip(*each, strict=True)]

    return call


def node(d: int, k: int) -> Call:
    from benchmarks.baselines.trust_region_node import frame_of, nearest_etf_node

    means, anchor, upstream = (tensor.cpu() for tensor in problem(d, k))  # as NumPy's arrays
    previous = frame_of(anchor, means)
    return partial(value_and_gradient, partial(nearest_etf_node, previous=previous, proximal=PROXIMAL), means, upstream)


def by_svd(d: int, k: int) -> Call:
    from benchmarks.baselines.svd_node import nearest_etf_svd

    means, anchor, upstream = problem(d, k)
    return partial(value_and_gradient, partial(nearest_etf_svd, anchor=anchor, proximal=PROXIMAL), means, upstream)


def factor_by(method: str, d: int, k: int) -> Call:
    a, upstream = torch.randn(2, k, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(DEVICE)

    def call() -> list[Tensor]:
        factor, used, saved = polar.solve(a, method)
        assert used == method
        return [factor, polar.pullback(used, saved, upstream)]

    return call


def factor_by_torch(d: int, k: int) -> Call:
    a, upstream = torch.randn(2, k, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(DEVICE)
    return partial(value_and_gradient, lambda rows: torch.linalg.polar(rows.mT)[0].mT, a, upstream)


def value_and_gradient(function: Callable[[Tensor], Tensor], means: Tensor, upstream: Tensor) -> list[Tensor]:
    """[W, gradient of the means], each (..., K, d)."""
    means = means.detach().requires_grad_()
    etf = function(means)
    etf.backward(upstream)
    assert means.grad is not None
    return [etf.detach(), means.grad]


def head_alone(k: int) -> Call:
    features, targets = torch.randn(256, 512, device=DEVICE), torch.arange(256, device=DEVICE) % k
    head = NearestETFHead(512, k).to(DEVICE)

    def call() -> None:
        F.cross_entropy(head(features.requires_grad_(), targets), targets).backward()

    return call


def whole_step(k: int) -> Call:
    images, targets = torch.randn(256, 3, 32, 32, device=DEVICE), torch.arange(256, device=DEVICE) % k
    classifier = Classifier(create_backbone("resnet18"), NearestETFHead(512, k)).to(DEVICE)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.01, momentum=0.9)

    def call() -> None:
        optimizer.zero_grad()
        F.cross_entropy(classifier(images, targets).logits, targets).backward()
        optimizer.step()

    return call


if __name__ == "__main__":
    print(f"method here: {choose_method(torch.float32, DEVICE)}")
    run(cases)
