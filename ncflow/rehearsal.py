"""Rehearse one forward and backward pass of a classifier, for --check and before training.

A large backbone runs on shapes only, which takes seconds instead of a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ncflow.nn import Classifier

SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 299, 384, 448, 512)  # image sizes to try if one does not fit
SAMPLES = 2
QUICK_SIZE, QUICK_WEIGHTS = 64, 30_000_000  # up to these, a real step is faster than importing the shape-only mode


def rehearse(
    classifier: Classifier, criterion: Callable[[Tensor, Tensor], Tensor], *, image_size: int, num_classes: int
) -> None:
    """Check that images of this size fit the backbone, and its features fit head and loss. Raises ValueError if not.

    Do not train the classifier afterwards: this batch changed its running statistics.
    """
    try:
        num_features = _shapes(classifier.backbone, image_size)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(_how_to_fit(classifier.backbone, image_size, error)) from error
    with torch.random.fork_rng(devices=[]):
        features = torch.randn(SAMPLES, num_features, requires_grad=True)
    targets = torch.arange(SAMPLES) % num_classes
    classifier.head.train()
    torch.autograd.backward(criterion(classifier.head(features, targets), targets))


def _shapes(backbone: nn.Module, image_size: int) -> int:
    """The width of the features of two images, after one backward pass. Uses real numbers if fast or necessary."""
    backbone.train()
    if image_size <= QUICK_SIZE and sum(parameter.numel() for parameter in backbone.parameters()) <= QUICK_WEIGHTS:
        with _undisturbed():
            return _step(backbone, image_size)
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

    try:
        with _undisturbed(), FakeTensorMode(allow_non_fake_inputs=True):
            return _step(backbone, image_size)
    except (DataDependentOutputException, DynamicOutputShapeException):
        with _undisturbed():
            return _step(backbone, image_size)


def _step(backbone: nn.Module, image_size: int) -> int:
    features = backbone(torch.zeros(SAMPLES, 3, image_size, image_size))
    weights = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if weights and features.requires_grad:
        torch.autograd.grad(features.float().sum(), weights, allow_unused=True)
    return int(features.shape[-1])


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Inside, draw random numbers without changing those outside."""
    with torch.random.fork_rng(devices=[]):
        yield


def _how_to_fit(backbone: nn.Module, image_size: int, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:300]
    fitting = next((size for size in SIZES if size != image_size and _fits(backbone, size)), None)
    advice = f"try model.image_size={fitting}" if fitting else "try another model.image_size, or another model"
    return f"the model cannot take images of model.image_size={image_size}: {reason}; {advice}"


def _fits(backbone: nn.Module, image_size: int) -> bool:
    try:
        return _shapes(backbone, image_size) > 0
    except (RuntimeError, ValueError, AssertionError, TypeError):
        return False
