"""Every backbone and alias at K = 10 on 32x32 images: parameters (classifier included), feature width, milliseconds.

A step is one forward and one backward pass of cross-entropy through a linear head, float32, batch of 8, in training
mode; the median of five after one that is not counted.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.frame import DEVICE, Budget, publish, timed
from ncflow.nn import BACKBONES, MODEL_ALIASES, Classifier, LinearHead, create_backbone

NUM_CLASSES, BATCH, IMAGE_SIZE = 10, 8, 32
OPTIONS: dict[str, dict[str, Any]] = {"free_features": {"num_samples": BATCH}}
IMAGES = {"free_features": torch.zeros}  # an image of a number, 0; for the others noise does
QUICK = ["resnet20", "free_features"]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per name."""
    names = QUICK if options.quick else [*BACKBONES, *MODEL_ALIASES]
    budget = Budget(options.budget, cases=len(names))
    return [row(name, options.pairs, budget) for name in names]


def row(name: str, repeats: int, budget: Budget) -> dict[str, Any]:
    """Size and speed of one backbone under a linear head."""
    end = budget.start_case()
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=IMAGE_SIZE, **OPTIONS.get(name, {}))
    classifier = Classifier(backbone, LinearHead(backbone.num_features, NUM_CLASSES)).to(DEVICE)
    images = IMAGES.get(name, torch.randn)(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE, device=DEVICE)
    targets = torch.arange(BATCH, device=DEVICE) % NUM_CLASSES

    def step() -> None:
        F.cross_entropy(classifier(images).logits, targets).backward()

    step()
    milliseconds = statistics.median(1e3 * timed(step) for _ in budget.rounds(repeats, end))
    size = sum(parameter.numel() for parameter in classifier.parameters())
    print(f"{name:20} {size:12,} {backbone.num_features:5} {milliseconds:8.1f} ms", flush=True)
    return {"model": name, "parameters": size, "d": backbone.num_features, "ms per step": round(milliseconds, 1)}


if __name__ == "__main__":
    publish(measure)
