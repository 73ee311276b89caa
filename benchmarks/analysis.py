"""The analysis of an epoch: metrics of train and test split from one forward of each, against two forwards.

A ResNet-18 for 32x32 images at K = 10 in float32 and eval mode. The baseline forwards every batch once for its logits
and once for its features, in the default memory format, and computes the four metrics of `three_passes.py` and the
accuracy; `evaluate` forwards once and computes all metrics. "same layout" gives the baseline channels_last, too: what
is left is the second forward.

Predicted: 2, less what the other metrics cost, more what channels_last gives.
Came: 2.6, of which channels_last is 1.3; the metrics are not seen beside the forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.three_passes import three_passes
from benchmarks.frame import DEVICE, Case, run
from ncflow.nn import Classifier, LinearHead, create_backbone
from ncflow.training.evaluation import Splits, evaluate_splits

Call = Callable[[], Any]
K, BATCH = 10, 256


@dataclass(frozen=True)
class Loaded:
    """Images (N, 3, 32, 32) and targets (N,) in memory, as a split's batches."""

    images: Tensor
    targets: Tensor

    @property
    def share(self) -> Tensor:
        """Numbers of all samples."""
        return torch.arange(len(self.targets))

    def ordered(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images.split(BATCH), self.targets.split(BATCH), strict=True)


def cases(quick: bool) -> list[Case]:
    """The usual baseline, and one that differs in nothing but the second forward."""
    name, train, test = ("resnet20", 256, 128) if quick else ("resnet18", 512, 256)
    options: dict[str, Any] = {"tolerance": 1e-3, "memory": False}
    one = partial(one_forward, name, train, test)
    return [
        Case(
            f"{name}, {train} + {test} images", one, partial(two_forwards, name, train, test), least_ratio=2, **options
        ),
        Case("same layout", one, partial(two_forwards, name, train, test, torch.channels_last), **options),
    ]


def problem(name: str, train: int, test: int) -> tuple[Classifier, dict[str, Loaded]]:
    """A classifier with random weights; images of a class share a random picture, so that there is something to see."""
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=32)
    classifier = Classifier(backbone, LinearHead(backbone.num_features, K, bias=True)).to(DEVICE).eval()
    pictures = 3 * torch.randn(K, 3, 32, 32)
    splits = {}
    for split, number in (("train", train), ("test", test)):
        targets = torch.arange(number) % K
        images = pictures[targets] + torch.randn(number, 3, 32, 32)
        splits[split] = Loaded(images.to(DEVICE), targets.to(DEVICE))
    return classifier, splits


def one_forward(name: str, train: int, test: int) -> Call:
    classifier, splits = problem(name, train, test)
    classifier.to(memory_format=torch.channels_last)

    def call() -> dict[str, float]:
        found = evaluate_splits(classifier, Splits(**splits, class_counts=[train // K] * K))
        return {f"{split}/{key}": value for split, of in found.items() for key, value in of.metrics.items()}

    return call


def two_forwards(name: str, train: int, test: int, layout: torch.memory_format = torch.contiguous_format) -> Call:
    classifier, splits = problem(name, train, test)
    classifier.to(memory_format=layout)

    @torch.no_grad()
    def forward(split: Loaded, model: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([model(images.contiguous(memory_format=layout)) for images, _ in split.ordered()])

    def call() -> dict[str, float]:
        found = {}
        for name, split in splits.items():
            logits = forward(split, lambda images: classifier(images).logits)
            features = forward(split, classifier.backbone)
            metrics = three_passes(
                features, split.targets, classifier.head.weight.detach(), classifier.head.bias.detach()
            )
            metrics.pop("nc4/ncc_mismatch")  # of the test split it goes by other means than ours
            accuracy = (logits.argmax(1) == split.targets).double().mean().item()
            found |= {f"{name}/{key}": value for key, value in (metrics | {"acc/overall": accuracy}).items()}
        return found

    return call


if __name__ == "__main__":
    run(cases)
