"""Real digits at 8x8, and a ResNet-20 for them: small enough to train in a test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ncflow.data import Batches, Snapshot, load_batches
from ncflow.nn import Classifier, create_backbone, create_head
from ncflow.training import Splits

SPLITS = ("train", "test")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return Snapshot.create(tmp_path_factory.mktemp("snapshots") / "digits", name="digits", imb_factor=0.02, seed=0)


@pytest.fixture(scope="session")
def splits(digits: Snapshot) -> dict[str, Batches]:
    return {split: load_batches(digits, split, image_size=8, batch_size=64) for split in SPLITS}


@pytest.fixture(scope="session")
def whole(digits: Snapshot, splits: dict[str, Batches]) -> Splits:
    """The same as `fit` takes them."""
    return Splits(**splits, class_counts=digits.class_counts)


@pytest.fixture
def make_classifier() -> Callable[..., Classifier]:
    """A ResNet-20 with a head, initialized from a seed."""

    def make(head: str = "linear", *, seed: int = 0, backbone: str = "resnet20", **options: object) -> Classifier:
        torch.manual_seed(seed)
        body = create_backbone(backbone)
        return Classifier(body, create_head(head, body.num_features, 10, **options))

    return make


@pytest.fixture
def few() -> Callable[..., Classifier]:
    """A classifier with few parameters and without batch statistics, quick to train."""

    def make(head: str = "linear", *, seed: int = 0) -> Classifier:
        torch.manual_seed(seed)
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU())
        return Classifier(backbone, create_head(head, 16, 10))

    return make
