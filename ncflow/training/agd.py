"""Automatic gradient descent: the step follows from the architecture and the gradient, not from a learning rate.

L layers have weights W_l (out, in). With scales s_l = √(out/in), and G the mean over the layers of s_l ‖∇_l‖_F, a step
is W_l ← W_l - gain · (η/L) · s_l · ∇_l/‖∇_l‖_F, where η = log((1 + √(1 + 4G))/2) minimizes a bound on the loss. Kernels
(out, in, k_y, k_x) are such a matrix at each of their k_y k_x taps. Every tap has its own norm, and G sums these norms.
All taps share s_l = √(out/(in k_y k_x)). Bernstein, Mingard, Huang, Azizan and Yue 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ncflow.geometry.frames import random_orthonormal


class AGD(torch.optim.Optimizer):
    """Automatic gradient descent for weight matrices and convolution kernels alone.

    The derivation has no biases and no norms' scales and shifts; `remove_affine` removes them from a model. There is no
    learning rate, weight decay or momentum. `gain` multiplies every step: 1 is the derivation's, 10 that of [Markou et
    al. 2024](https://arxiv.org/abs/2411.01248). The parameter groups store it as "lr", where a schedule finds it.
    Weights should start at `orthogonal_init`. Raises ValueError for other parameters.
    """

    def __init__(self, parameters: Iterable[Any], *, gain: float = 10.0) -> None:
        if not gain > 0:
            raise ValueError(f"AGD needs gain > 0, got {gain}")
        super().__init__(parameters, {"lr": gain})
        _refuse_other_than_weights(parameter for group in self.param_groups for parameter in group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one update; return the result of `closure`, if given. Layers without a gradient do not count."""
        result = None if closure is None else torch.enable_grad()(closure)()
        layers = [(p, group["lr"]) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not layers:
            return result
        gradient_summary = torch.stack([layer_scale(p) * _tap_norms(p.grad).sum() for p, _ in layers]).mean()
        rate = automatic_rate(gradient_summary) / len(layers)
        for p, gain in layers:
            norms = _tap_norms(p.grad)
            direction = torch.where(norms > 0, p.grad / norms, 0.0)  # a tap without a gradient does not move
            p.sub_(gain * rate * layer_scale(p) * direction)
        return result


def automatic_rate(gradient_summary: Tensor) -> Tensor:
    """η = log((1 + √(1 + 4G))/2), the solution of e^η (e^η - 1) = G: G for small G, ½ log G for large."""
    growth = 2 * gradient_summary / (1 + torch.sqrt(1 + 4 * gradient_summary))  # e^η - 1, without cancellation
    return torch.log1p(growth)


def layer_scale(weight: Tensor) -> float:
    """s_l: √(out/in) of a matrix (out, in), √(out/(in k_y k_x)) of a kernel (out, in, k_y, k_x)."""
    return math.sqrt(weight.shape[0] / weight[0].numel())


@torch.no_grad()
def orthogonal_init(parameters: Iterable[nn.Parameter], *, generator: torch.Generator | None = None) -> None:
    """Initialize weights, in place, as AGD's derivation does: Haar-random, all singular values at the layer scale.

    For a kernel, every tap is such a matrix. Parameters that require no gradient stay unchanged.
    """
    weights = [parameter for parameter in parameters if parameter.requires_grad]
    _refuse_other_than_weights(weights)
    for weight in weights:
        rows, columns = weight.shape[:2]
        frames = [_semi_orthogonal(rows, columns, generator) for _ in range(weight[0, 0].numel())]
        weight.copy_(layer_scale(weight) * torch.stack(frames, dim=-1).reshape(weight.shape))


def remove_affine(module: nn.Module) -> nn.Module:
    """Remove every bias, and every norm's scale and shift, from a module, in place; return it.

    At the usual initialization, scales 1 and biases 0, the norms' outputs stay the same.
    """
    for part in module.modules():
        if part._parameters.keys() & {"bias", "in_proj_bias"}:  # not a module with a vector alone, such as a PReLU
            for name in ("weight", "bias", "in_proj_bias"):
                parameter = part._parameters.get(name)
                if parameter is not None and parameter.ndim == 1:
                    part.register_parameter(name, None)
    return module


def _semi_orthogonal(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """(rows, columns) with orthonormal columns or, if there are more columns than rows, orthonormal rows."""
    if rows < columns:
        return _semi_orthogonal(columns, rows, generator).mT
    return random_orthonormal(rows, columns, generator=generator, dtype=torch.float64)


def _tap_norms(grad: Tensor) -> Tensor:
    """‖∇‖_F of a matrix (1, 1), or of each tap of a kernel (1, 1, k_y, k_x)."""
    norms: Tensor = torch.linalg.vector_norm(grad, dim=(0, 1), keepdim=True)
    return norms


def _refuse_other_than_weights(parameters: Iterable[nn.Parameter]) -> None:
    shapes = [tuple(parameter.shape) for parameter in parameters]
    others = [shape for shape in shapes if len(shape) not in (2, 4)]
    if others:
        raise ValueError(
            "AGD is derived for matrices (out, in) and kernels (out, in, k_y, k_x) alone, without biases and without "
            f"norms' scales and shifts, but {len(others)} of {len(shapes)} parameters are neither, the first of shape "
            f"{others[0]}; set model.affine=false and head.bias=false, or choose another backbone or optimizer"
        )
