"""A classifier is a backbone and a head: one forward gives the logits and their features."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from ncflow.nn.heads import Head


class Output(NamedTuple):
    """logits (B, K) = features (B, d) · head.weightᵀ + head.bias.

    Examples:
        >>> import torch
        >>> output = Output(logits=torch.zeros(2, 10), features=torch.zeros(2, 16))
        >>> logits, features = output
    """

    logits: Tensor
    features: Tensor


class Classifier(nn.Module):
    """images (B, 3, S, S) and, in training, targets (B,) -> Output. Features are the input of the head's linear map.

    Examples:
        >>> import torch
        >>> from ncflow import LinearHead
        >>> body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16))
        >>> logits, features = Classifier(body, LinearHead(16, 10))(torch.zeros(2, 3, 8, 8))
        >>> logits.shape, features.shape
        (torch.Size([2, 10]), torch.Size([2, 16]))
    """

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode. A backbone that does not learn stays in evaluation mode, which keeps its batch statistics."""
        super().train(mode)
        weights = list(self.backbone.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            self.backbone.eval()
        return self

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Output:
        features = self.head.embed(self.backbone(images))
        return Output(self.head.classify(features, targets), features)


class TargetedModel(nn.Module):
    """Any model whose classifier is a head, called with targets: model(images, targets=targets).

    Models of timm, torchvision and transformers call their classifier with features alone. A head that follows class
    means needs the targets in training mode. TargetedModel passes them to every head inside, for one forward. Raises
    ValueError for a model without a head.

    Examples:
        >>> import torch
        >>> from ncflow import NearestETFHead
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), NearestETFHead(16, 10))
        >>> TargetedModel(model)(torch.randn(4, 8), targets=torch.arange(4)).shape
        torch.Size([4, 10])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        if not any(isinstance(module, Head) for module in model.modules()):
            raise ValueError(
                f"expected a model with a head of ncflow as its classifier, got {type(model).__name__} without one; "
                "set it first, such as model.fc = NearestETFHead(model.num_features, num_classes)"
            )

    def forward(self, *inputs: Any, targets: Tensor | None = None, **options: Any) -> Any:
        heads = [module for module in self.model.modules() if isinstance(module, Head)]
        for head in heads:
            head.given_targets = targets
        try:
            return self.model(*inputs, **options)
        finally:
            for head in heads:
                head.given_targets = None
