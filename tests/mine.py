"""A user's file: one new row in each of ncflow's tables, each a function and a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ncflow import BACKBONES, EXPERIMENTS, HEADS, LOSSES, METRICS, OPTIMIZERS, SOURCES, Head, Metric
from ncflow.data import AUGMENTATIONS, MIXES, ImageSource
from ncflow.geometry import FRAMES
from ncflow.metrics.rows import View
from ncflow.nn import PENALTIES
from ncflow.params import Params, make_params
from ncflow.posthoc import POSTHOC, Frozen, LinearMap


class MineHead(Head):
    """Rows that learn, scaled by a constant."""

    def __init__(self, num_features: int, num_classes: int, *, scale: float = 2.0) -> None:
        super().__init__(num_features, num_classes, temperature=None)
        self.raw = nn.Parameter(torch.randn(num_classes, num_features) / num_features**0.5)
        self.bias = None
        self.scale = scale

    @property
    def weight(self) -> Tensor:
        return self.scale * self.raw

    def linear_map(self, embedded: Tensor, targets: Tensor | None) -> tuple[Tensor, None]:
        return self.weight, None


def mine_loss(logits: Tensor, targets: Tensor, *, margin: float = 0.5) -> Tensor:
    """Cross-entropy of logits less a margin at the target."""
    if targets.ndim == 1:
        targets = nn.functional.one_hot(targets, logits.shape[1]).to(logits.dtype)
    classes = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    of_class = -(logits.unsqueeze(1) - margin * classes).log_softmax(2).diagonal(dim1=1, dim2=2)  # (B, K)
    return (targets * of_class).sum(1).mean()


def mine_optimizer(parameters: object, *, lr: float = 0.1, weight_decay: float = 0.0, nesterov: bool = True) -> object:
    """SGD with Nesterov's momentum."""
    return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=nesterov)


def mine_backbone(*, width: int = 24) -> nn.Module:
    """One convolution and a mean."""
    body = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    body.num_features = width
    return body


def mine_source(root: Path | None, split: str, *, brightness: int = 200) -> ImageSource:
    """Three classes of noisy squares."""
    random = np.random.default_rng(split == "test")
    targets = np.arange(90) % 3
    images = random.integers(0, 50, (90, 8, 8), dtype=np.uint8)
    for image, label in zip(images, targets, strict=True):
        image[2 * label : 2 * label + 3] += np.uint8(brightness)
    return ImageSource("mine", images, targets.astype(np.int64), ["a", "b", "c"])


def mine_group(base: Params) -> Iterator[Params]:
    """Two margins.

    Hypothesis: they make no difference on squares. Expected: both runs classify all of them.
    """
    for margin in (0.0, 1.0):
        values = base.model_dump(mode="json") | {"exp_name": f"mine_{margin:g}"}
        yield make_params(values, ["train.loss=mine", f"train.loss_options.margin={margin}"])


def mine_penalty(features: Tensor, targets: Tensor, weight: Tensor, class_counts: Tensor, *, power: int = 2) -> Tensor:
    """The mean power of the features."""
    return features.abs().pow(power).mean()


def mine_mix(images: Tensor, targets: Tensor, partner: Tensor, uniform: Tensor, *, share: float = 0.9) -> tuple:
    """A constant share of the sample itself."""
    return share * images[: len(partner)] + (1 - share) * images[partner], torch.tensor(share)


def mine_augmentation(images: Tensor, uniform: Tensor, *, darker: float = 0.5) -> Tensor:
    """Half of the images darker."""
    return torch.where(uniform[:, :1, None, None] < 0.5, (darker * images).to(images.dtype), images)


def mine_frame(num_classes: int, num_features: int, *, seed: int | None = None) -> Tensor:
    """The same direction for all classes."""
    return torch.ones(num_classes, num_features, dtype=torch.float64) / num_features**0.5


def mine_posthoc(frozen: Frozen, *, shift: float = 0.0) -> LinearMap:
    """The classifier with a shifted bias."""
    return LinearMap(frozen.weight, frozen.bias + shift)


HEADS["mine"] = MineHead
FRAMES["mine"] = mine_frame
POSTHOC["mine"] = mine_posthoc
PENALTIES["mine"] = mine_penalty
MIXES["mine"] = mine_mix
AUGMENTATIONS["mine"] = mine_augmentation
LOSSES["mine"] = mine_loss
OPTIMIZERS["mine"] = mine_optimizer
BACKBONES["mine"] = mine_backbone
SOURCES["mine"] = mine_source
EXPERIMENTS["mine"] = mine_group
METRICS["mine/width"] = Metric(
    lambda a: a.present.means.norm(dim=1).max(),
    "largest norm of a class mean",
    "[0, ∞)",
    split="train",
    view=View("Width of the means", "largest norm of a class mean", "train", ("table", "curves", "knobs"), log=True),
)
