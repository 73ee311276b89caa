"""Several runs of one shape in one process, stacked, against one after another: would `suite --stack` be worth it?

The same training step of S models that differ in seed and weight decay, on the same batch of 128 images of 32x32:
"ours" are their parameters stacked (`torch.func.stack_module_state`), the model mapped over the stack by `vmap`, one
backward pass and one optimizer step for all, with a weight decay per model; "baseline" is one step after another. Both
in float32 and channels_last. The results are the losses and the first weights after the step.

Predicted: convolutions of a stack become grouped ones, S groups of 16 to 64 channels, which CPU kernels serve no better
than S convolutions; batch norms and additions save calls only. On a CPU about 1, below where groups are badly blocked;
on a GPU, which one small model leaves idle, more than 1.5.
Came, on a CPU: 0.7 of two models down to 0.4 of eight, with 2.4 to 3.4 times the memory: `suite` has no `--stack`.
The GPU has not been asked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from benchmarks.frame import DEVICE, Case, run
from ncflow.nn import Classifier, LinearHead, create_backbone

Call = Callable[[], Any]
K, BATCH, LR, MOMENTUM = 10, 128, 0.01, 0.9


def cases(quick: bool) -> list[Case]:
    """Stacks of growing size; the goal is what would make it worth its place."""
    stacks = [("resnet20", 2, 16)] if quick else [("resnet20", count, BATCH) for count in (2, 4, 8)]
    return [
        Case(
            f"{count} x {name}, batch {batch}",
            partial(stacked, name, count, batch),
            partial(looped, name, count, batch),
            tolerance=1e-3,
            least_ratio=None if quick else 1.5,
        )
        for name, count, batch in stacks
    ]


def problem(name: str, count: int, batch: int) -> tuple[list[nn.Module], Tensor, Tensor, Tensor]:
    """Models in training mode, images (B, 3, 32, 32), targets (B,), weight decays (S,)."""
    models: list[nn.Module] = []
    for seed in range(count):
        torch.manual_seed(seed)
        backbone = create_backbone(name, image_size=32)
        model = Classifier(backbone, LinearHead(backbone.num_features, K)).to(DEVICE, memory_format=torch.channels_last)
        models.append(model.train())
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    decays = 1e-4 * torch.arange(1, count + 1, device=DEVICE)
    return models, images.contiguous(memory_format=torch.channels_last), torch.arange(batch, device=DEVICE) % K, decays


def stacked(name: str, count: int, batch: int) -> Call:
    models, images, targets, decays = problem(name, count, batch)
    parameters, buffers = stack_module_state(models)
    shape = models[0]

    def loss_of_one(of_one: dict[str, Tensor], its_buffers: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(shape, (of_one, its_buffers), (images,)).logits, targets)

    optimizer = torch.optim.SGD(parameters.values(), lr=LR, momentum=MOMENTUM)

    def call() -> list[Tensor]:
        optimizer.zero_grad()
        losses = vmap(loss_of_one)(parameters, buffers)
        losses.sum().backward()
        with torch.no_grad():
            for parameter in parameters.values():  # weight decay, as SGD adds it
                assert parameter.grad is not None
                parameter.grad += decays.view(-1, *[1] * (parameter.ndim - 1)) * parameter
        optimizer.step()
        return [losses.detach(), next(iter(parameters.values())).detach()]

    return call


def looped(name: str, count: int, batch: int) -> Call:
    models, images, targets, decays = problem(name, count, batch)
    optimizers = [
        torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=decay)
        for model, decay in zip(models, decays.tolist(), strict=True)
    ]

    def call() -> list[Tensor]:
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images).logits, targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return [torch.stack(losses), torch.stack([next(model.parameters()).detach() for model in models])]

    return call


if __name__ == "__main__":
    run(cases)
