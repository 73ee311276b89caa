"""Collect the features that the last linear layer of a model sees, in a plain PyTorch loop, and measure them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ncflow.checks import as_tensors
from ncflow.measuring import FeatureSplit, Measurement, measure, write_features
from ncflow.measuring.layers import Call, LastLinear, captured, evaluating

IGNORED = -100  # the target of positions that a loss leaves out, as in torch and transformers


class CollectedFeatures:
    """Features and targets of all batches so far, on the CPU. `collect_features` makes it."""

    def __init__(self, last: LastLinear, *, ignore_index: int) -> None:
        self._last, self._ignored = last, ignore_index
        self._added: Call | None = None
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._classifier: tuple[Tensor, Tensor | None] | None = None

    def add(self, targets: Any) -> None:
        """Keep the features of the model's last forward, with their targets: whole numbers (B,) below K.

        Features (B, T, d) of sequences take targets (B, T) or (B·T,). Rows with the target `ignore_index` are left out.
        Raises ValueError where targets do not fit the features, and where the model was not called since the last call.
        """
        call = self._last.call
        if call is self._added:
            raise ValueError("expected a forward of the model before each add(targets), got two calls of add after one")
        (targets,) = as_tensors(targets)
        rows, kept = call.features.flatten(0, -2), _flat(targets, call).to(call.features.device)
        chosen = kept != self._ignored
        self._batches.append((rows[chosen].cpu(), kept[chosen].cpu()))
        self._added = call

    @property
    def features(self) -> Tensor:
        """Features (N, d) of all batches, in the dtype of the layer's input."""
        return self._joined()[0]

    @property
    def targets(self) -> Tensor:
        """Targets (N,) of all batches."""
        return self._joined()[1]

    @property
    def layer(self) -> str:
        """The path of the layer, such as "fc"."""
        return self._last.name

    @property
    def weight(self) -> Tensor:
        """The layer's weight (K, d), inside the context its present value, afterwards its last one."""
        return self._rows()[0]

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias (K,), at the same time as the weight, or None."""
        return self._rows()[1]

    def measure(
        self,
        *,
        train: CollectedFeatures | tuple[Any, Any] | None = None,
        class_counts: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> Measurement:
        """Measure the features with the layer's weight and bias, as `ncflow.measure` does.

        `train` are the collected features of the training split, or a pair of features and targets. Then these features
        are unseen ones. class_counts (K,) are the sizes of the training classes, by default counted.
        """
        seen = (train.features, train.targets) if isinstance(train, CollectedFeatures) else train
        known: dict[str, Any] = {"class_counts": class_counts, "class_names": class_names, "train": seen}
        return measure(self.features, self.targets, weight=self.weight, bias=self.bias, **known)

    def save(self, file: str | Path) -> Path:
        """Write features, targets, weight and bias to one .npz, which `ncflow measure` reads."""
        features, weight, bias = (_for_numpy(tensor) for tensor in (self.features, self.weight, self.bias))
        assert features is not None
        return write_features(Path(file), {"train": FeatureSplit(features, self.targets, weight, bias)})

    def _joined(self) -> tuple[Tensor, Tensor]:
        if not self._batches:
            raise ValueError("no features are collected; call add(targets) after each forward of the model")
        if len(self._batches) > 1:
            features, targets = zip(*self._batches, strict=True)
            self._batches = [(torch.cat(features), torch.cat(targets))]
        return self._batches[0]

    def _rows(self) -> tuple[Tensor, Tensor | None]:
        if self._classifier is not None:
            return self._classifier
        weight, bias = self._last.weight, self._last.bias
        return weight.cpu(), None if bias is None else bias.cpu()

    def _end(self) -> None:
        """Copy the classifier: training may change it from here on."""
        if self._added is not None:
            weight, bias = self._rows()
            self._classifier = weight.clone(), None if bias is None else bias.clone()


@contextmanager
def collect_features(
    model: nn.Module, layer: str | nn.Module | None = None, *, evaluate: bool = True, ignore_index: int = IGNORED
) -> Iterator[CollectedFeatures]:
    """Collect what the last linear layer of a model sees: its features, with the targets of each batch.

    The layer is found in the first forward: the last linear one that returns the logits. `layer` names another, such as
    "head.fc", or is the module. Inside, the model is in eval mode and without gradients; `evaluate=False` leaves both
    as they are. At the end the hooks are removed, and each module has its own mode again. Raises ValueError for a model
    without such a layer.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        >>> loader = [(torch.randn(30, 8), torch.arange(30) % 3)] * 2
        >>> with collect_features(model) as collected:
        ...     for images, targets in loader:
        ...         _ = model(images)
        ...         collected.add(targets)
        >>> collected.measure().metrics["train"]["nc1/pinv"] > 0
        True
    """
    with ExitStack() as stack:
        if evaluate:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(model))
        last = stack.enter_context(captured(model, layer))
        collected = CollectedFeatures(last, ignore_index=ignore_index)
        yield collected
        collected._end()


def _flat(targets: Any, call: Call) -> Tensor:
    """Targets with one number for each row of the features, which are flattened likewise."""
    rows = call.features.shape[:-1]
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        found = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(f"targets must be a tensor of whole numbers, got {found}; soft targets have no class")
    fitting = (rows, (*rows, 1), (rows.numel(),))
    if targets.shape not in fitting:
        hint = f"; layer '{call.name}' sees a sequence: give each position a target" if len(rows) > 1 else ""
        found = f"features {tuple(call.features.shape)} and targets {tuple(targets.shape)}"
        raise ValueError(f"expected a target for each row of features, {tuple(rows)}, got {found}{hint}")
    return targets.flatten().long()


def _for_numpy(tensor: Tensor | None) -> Tensor | None:
    """The tensor, in float32 where NumPy does not have its dtype."""
    return tensor.float() if tensor is not None and tensor.dtype is torch.bfloat16 else tensor
