"""Necks: the layers between pooled features and the head: a projection to a given width, then a norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn

from ncflow.lookup import lookup
from ncflow.nn.processes import count_processes


class Backbone(nn.Module):
    """A body that maps images (B, 3, S, S) to pooled features (B, num_features), and the neck after it.

    With `project_to` a linear map without bias projects the features to that width before the neck. Heads with an ETF
    need d >= K-1. `layers` names the body's stages for `ncflow.nn.layers.capture`: stage -> path of the module in the
    body. By default these are the body's children that have parameters. Raises ValueError for a width below 1.

    Examples:
        >>> import torch
        >>> body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16))
        >>> backbone = Backbone(body, 16, project_to=5)
        >>> backbone.num_features, backbone(torch.zeros(2, 3, 8, 8)).shape
        (5, torch.Size([2, 5]))
    """

    def __init__(
        self,
        body: nn.Module,
        num_features: int,
        *,
        neck: str = "none",
        project_to: int | None = None,
        layers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if project_to is not None and project_to < 1:
            raise ValueError(f"num_features must be >= 1, or None for the body's {num_features}, got {project_to}")
        self.num_features = project_to or num_features
        self.body = body
        self.projection = nn.Linear(num_features, project_to, bias=False) if project_to else nn.Identity()
        self.neck = lookup(NECKS, neck, "neck")(self.num_features)
        self.layers = dict(layers or {name: name for name in children_with_parameters(body)})

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) -> features (B, d). A training batch of one uses the batch norms' running statistics."""
        alone = self.training and len(images) * count_processes() == 1
        with _running_statistics(self) if alone else nullcontext():
            features: Tensor = self.neck(self.projection(self.body(images)))
        return features

    def stages(self) -> dict[str, nn.Module]:
        """Return stage -> module, from the images to the features."""
        return {stage: self.body.get_submodule(path) for stage, path in self.layers.items()}


def children_with_parameters(module: nn.Module) -> dict[str, nn.Module]:
    """Return the immediate children that have parameters, by name."""
    return {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}


@contextmanager
def _running_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms use their running statistics: one sample's 1x1 map, or feature vector, has no variance."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


# name -> builder from the width d; the neck maps features (B, d) to (B, d)
NECKS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda num_features: nn.Identity(),
    "layer_norm": nn.LayerNorm,
    "batch_norm": nn.BatchNorm1d,
}
