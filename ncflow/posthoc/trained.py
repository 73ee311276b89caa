"""Post-hoc classifiers trained on frozen features with the class-balanced loss, each the minimum of a convex problem.

The loss of class-balanced batches is a mean over classes of the mean loss within each class, in expectation over
batches. That is cross-entropy weighted by 1/(K n_y) over the whole split. So the problems are solved on all samples at
once, without random numbers: by L-BFGS, and by accelerated projected gradients under a constraint. The papers take a
fixed number of stochastic steps towards these minima.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ncflow.lookup import facts
from ncflow.posthoc.frozen import Frozen, LinearMap

SOLVED = 1e-7  # the largest entry of a gradient at a minimum
SHORTER = 0.9  # factor of the assumed curvature from one step to the next
NEARLY = 1e-4  # above this, a solution is reported as unfinished


@facts(candidates={"weight_decay": (5e-5, 5e-4, 5e-3, 5e-2)})
def crt(frozen: Frozen, *, weight_decay: float = 5e-4, steps: int = 1000) -> LinearMap:
    """Classifier re-training: a new linear classifier that minimizes the class-balanced loss + (λ/2)(‖W‖² + ‖b‖²).

    The minimum is unique. Without λ > 0 there is none where the features are separable. The default λ is the paper's.
    The paper takes stochastic steps for a few epochs, from random weights. [Kang et al.
    2020](https://arxiv.org/abs/1910.09217).
    """
    _check(weight_decay, steps)

    def objective(weight: Tensor, bias: Tensor) -> Tensor:
        decay = weight.square().sum() + bias.square().sum()
        return class_balanced_loss(LinearMap(weight, bias)(frozen.features), frozen) + weight_decay / 2 * decay

    zeros = torch.zeros_like(frozen.weight), torch.zeros_like(frozen.bias)
    return LinearMap(*_minimize("crt", objective, zeros, steps))


@facts(candidates={"decay": (5e-5, 5e-4, 5e-3, 5e-2)})
def lws(frozen: Frozen, *, decay: float = 5e-4, steps: int = 1000) -> LinearMap:
    """Learned scales: s_k z_k, where s (K,) minimizes the class-balanced loss + (λ/2)‖s - 1‖².

    s = 1 is the classifier itself, so the loss is never above that of the classifier. The paper decays s towards zero
    with the same λ, and takes stochastic steps from 1. [Kang et al. 2020](https://arxiv.org/abs/1910.09217).
    """
    _check(decay, steps)
    logits = frozen.classifier(frozen.features)

    def objective(scales: Tensor) -> Tensor:
        return class_balanced_loss(scales * logits, frozen) + decay / 2 * (scales - 1).square().sum()

    (scales,) = _minimize("lws", objective, [torch.ones_like(frozen.bias)], steps)
    return LinearMap(scales.unsqueeze(1) * frozen.weight, scales * frozen.bias)


@facts(candidates={"bound": (0.0, 0.1, 0.5, 1.0), "weight_decay": (1e-3, 1e-2, 1e-1)})
def max_norm(frozen: Frozen, *, bound: float = 0.1, weight_decay: float = 0.1, steps: int = 10_000) -> LinearMap:
    """A linear classifier that minimizes the class-balanced loss + (λ/2)(‖W‖² + ‖b‖²) where every ‖w_k‖ <= δ.

    δ = min_k + bound·(max_k - min_k) over the norms of the trained rows. The defaults are those of the authors' code.
    That code weighs classes by the effective number of samples, β = 0.9999. Up to a constant factor this is the
    class-balanced loss where n_k is far below 10,000. It takes 10 epochs of stochastic steps from the trained rows,
    with projections in between. The constrained minimum here is unique. [Alshammari et al.
    2022](https://arxiv.org/abs/2203.14197).
    """
    _check(weight_decay, steps)
    if not 0 <= bound <= 1:
        raise ValueError(f"max_norm needs bound in [0, 1], a place between the shortest and longest row, got {bound}")
    norms = torch.linalg.vector_norm(frozen.weight, dim=1)
    radius = norms.min() + bound * (norms.max() - norms.min())
    samples = torch.cat([frozen.features, torch.ones_like(frozen.features[:, :1])], dim=1)
    weights = _sample_weights(frozen)
    own = F.one_hot(frozen.targets, len(norms)).to(samples)

    def objective(joined: Tensor) -> tuple[float, Tensor]:
        logits = samples @ joined.mT
        losses = logits.logsumexp(1) - logits.gather(1, frozen.targets.unsqueeze(1)).squeeze(1)
        errors = logits.softmax(1) - own
        value = weights @ losses + weight_decay / 2 * joined.square().sum()
        return value.item(), (weights.unsqueeze(1) * errors).mT @ samples + weight_decay * joined

    # diag(p) - ppᵀ <= 1/2 bounds the curvature of cross-entropy, so steps of 1/curvature descend.
    scatter = (weights.unsqueeze(1) * samples).mT @ samples
    curvature = torch.linalg.eigvalsh(scatter)[-1].item() / 2 + weight_decay
    start = torch.cat([frozen.weight, frozen.bias.unsqueeze(1)], dim=1)
    solution = _descend(objective, lambda joined: _project(joined, radius), start, curvature, steps)
    return LinearMap(solution[:, :-1], solution[:, -1])


def class_balanced_loss(logits: Tensor, frozen: Frozen) -> Tensor:
    """The mean over classes of the mean cross-entropy within each class, for logits (N, K) of the training split."""
    return F.cross_entropy(logits, frozen.targets, weight=1 / frozen.class_counts)  # the weights sum to K


def _sample_weights(frozen: Frozen) -> Tensor:
    """1/(K n_y) (N,): the weight of each sample in the class-balanced loss."""
    return 1 / (len(frozen.class_counts) * frozen.class_counts[frozen.targets])


@torch.enable_grad()
def _minimize(name: str, objective: Callable[..., Tensor], start: Sequence[Tensor], steps: int) -> tuple[Tensor, ...]:
    """The minimum of a smooth convex objective. Warns where `steps` did not reach it."""
    found = [tensor.clone().requires_grad_() for tensor in start]
    optimizer = torch.optim.LBFGS(
        found,
        max_iter=steps,
        tolerance_grad=SOLVED,
        tolerance_change=0.0,
        history_size=20,  # a longer history costs more time than it saves
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        loss = objective(*found)
        for tensor, grad in zip(found, torch.autograd.grad(loss, found), strict=True):
            tensor.grad = grad
        return loss.detach()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    gradients = torch.autograd.grad(objective(*found), found)
    _warn_unfinished(name, max(gradient.abs().max().item() for gradient in gradients), steps)
    return tuple(tensor.detach() for tensor in found)


def _descend(
    objective: Callable[[Tensor], tuple[float, Tensor]],
    project: Callable[[Tensor], Tensor],
    start: Tensor,
    curvature: float,
    steps: int,
) -> Tensor:
    """The minimum over a convex set, by projected steps with momentum. `curvature` is the largest one anywhere.

    The step follows the local curvature, which is far smaller where samples are fitted. The momentum starts again where
    it points uphill. [Beck and Teboulle 2009](https://doi.org/10.1137/080716542), [O'Donoghue and Candès
    2015](https://arxiv.org/abs/1204.3982).
    """
    point = ahead = project(start)
    local, momentum, residual = curvature, 1.0, math.inf
    for _ in range(steps):
        value, gradient = objective(ahead)
        local *= SHORTER
        while True:
            new = project(ahead - gradient / local)
            step = new - ahead
            model = value + (gradient * step).sum().item() + local / 2 * step.square().sum().item()
            if local >= curvature or objective(new)[0] <= model:
                break
            local = min(2 * local, curvature)
        residual = local * step.abs().max().item()
        if residual <= SOLVED:
            point = new
            break
        uphill = (step * (new - point)).sum() < 0
        following = 1.0 if uphill else (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new if uphill else new + (momentum - 1) / following * (new - point)
        point, momentum = new, following
    _warn_unfinished("max_norm", residual, steps)
    return point


def _project(joined: Tensor, radius: Tensor) -> Tensor:
    """Shorten the rows of the weight to the radius. The last column, the bias, is free."""
    norms = torch.linalg.vector_norm(joined[:, :-1], dim=1, keepdim=True)
    scales = (radius / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1)
    return torch.cat([scales * joined[:, :-1], joined[:, -1:]], dim=1)


def _warn_unfinished(name: str, residual: float, steps: int) -> None:
    if not residual <= NEARLY:
        warnings.warn(
            f"{name} stopped after {steps} steps at a gradient of {residual:.1e}; more steps reach the minimum",
            stacklevel=4,
        )


def _check(decay: float, steps: int) -> None:
    if not 0 < decay < math.inf or steps < 1:
        raise ValueError(f"expected a finite decay > 0 and steps >= 1, got {decay} and {steps}")
