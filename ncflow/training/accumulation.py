"""Gradient accumulation that equals the large batch: its loss sees all features, and the backbone works in parts.

Heads, losses and penalties are functions of all features of a batch, such as its class means. So their gradients are
no sums over parts of the batch. A first pass without gradients collects the features of all parts. The loss of the
whole batch then has a gradient with respect to every feature. A second pass repeats the forward of each part and
backpropagates this gradient. It costs one more forward. Gao, Zhang, Han and Callan 2021 call it gradient cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import groupby

import torch
from torch import Tensor, nn

from ncflow.nn.processes import count_processes, sum_over_processes
from ncflow.training.state import get_randomness, set_randomness

Context = Callable[[], AbstractContextManager[object]]


class CachedForward:
    """The forward of images (B, ...) through a backbone in parts. `features` (B, d) take the gradient of the loss.

    `backward` then gives the parameters their gradients. It repeats each part with the random numbers and the buffers
    of its first forward. So dropout drops the same units, and running statistics move once for each part. Each forward
    runs inside `context`. `parts` are slices of the rows, which together hold each row once.
    """

    def __init__(self, backbone: nn.Module, images: Tensor, parts: Sequence[slice], context: Context) -> None:
        self._backbone, self._images, self._parts, self._context = backbone, images, parts, context
        self._buffers, self._randomness = copies(backbone.buffers()), get_randomness()
        learns = any(parameter.requires_grad for parameter in backbone.parameters())
        with torch.no_grad():
            outputs = [self._forward(part) for part in parts]
            features = outputs[0].new_empty(len(images), *outputs[0].shape[1:])
            for part, output in zip(parts, outputs, strict=True):
                features[part] = output
        self.features = features.requires_grad_(learns)

    def backward(self) -> None:
        """Add the gradients of the backbone's parameters; buffers and generators end as they were before."""
        if self.features.grad is None:
            return
        after = get_randomness()
        restore(self._backbone.buffers(), self._buffers)
        set_randomness(self._randomness)
        for part in self._parts:
            torch.autograd.backward(self._forward(part), self.features.grad[part])
        set_randomness(after)

    def _forward(self, part: slice) -> Tensor:
        images = self._images[part].contiguous(memory_format=torch.channels_last)
        with self._context():  # a new one each time, since autocast keeps casts that have no gradient
            features: Tensor = self._backbone(images)
        return features


def interleaved(number: int, first: int) -> list[slice]:
    """Return the rows of each part: every `number`-th row of the whole batch, whose row `first` is row 0 here.

    So a part has the same samples for any number of processes, and so do its batch norms.
    """
    return [slice((part - first) % number, None, number) for part in range(number)]


def first_row(size: int, process_index: int, num_processes: int) -> int:
    """Return the place in a batch of `size` samples of a process's first one, as `Batches` shares them."""
    each, more = divmod(size, num_processes)
    return each * process_index + min(more, process_index)


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes, in one exchange for each dtype."""
    if count_processes() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for _, same in groupby(sorted(gradients, key=lambda g: str(g.dtype)), key=lambda g: g.dtype):
        group = list(same)
        total = sum_over_processes(torch.cat([gradient.flatten() for gradient in group]))
        for gradient, part in zip(group, torch.split(total, [g.numel() for g in group]), strict=True):
            gradient.copy_(part.view_as(gradient))


def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return copies of tensors, without gradient."""
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def restore(tensors: Iterable[Tensor], values: Sequence[Tensor]) -> None:
    """Write values into tensors, in place."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
