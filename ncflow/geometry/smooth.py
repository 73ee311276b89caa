"""The polar factor as a function that supports derivatives of any order, torch.func and torch.compile.

The faster version in `polar` saves a decomposition and has only a first-order gradient. Here the derivative is an
expression of the factor itself. H = A Pᵀ is the symmetric part of the polar decomposition A = H P of A (k, d). The
derivative along G is X P + H⁻¹ G (I - PᵀP), where the skew X solves H X + X H = G Pᵀ - P Gᵀ. The map is symmetric, so
the derivative along G and the gradient for an upstream G are the same expression. The derivatives of the Sylvester
equation are Sylvester equations. https://nhigham.com/2020/07/28/what-is-the-polar-decomposition
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ncflow.checks import OutOfRange
from ncflow.geometry import polar

SINGULAR = "a polar factor has no derivative where its matrix loses rank"


def smooth_polar_factor(a: Tensor) -> Tensor:
    """The polar factor of a (..., k, d), k <= d, in float64. Differentiable to any order where a has full rank."""
    if torch.compiler.is_compiling() or a.is_meta:
        traced: Tensor = _traced(a)
        return traced
    factor: Tensor = _Polar.apply(a)
    return factor


def is_transformed(tensor: Tensor) -> bool:
    """Whether torch.func, forward-mode differentiation or torch.compile is active, or the tensor is a meta tensor.

    These need the smooth version, which reads no values outside of an operation.
    """
    return (
        tensor.is_meta
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def derivative(a: Tensor, factor: Tensor, direction: Tensor) -> Tensor:
    """The derivative of the factor of a (..., k, d) along a direction. Differentiable to any order itself."""
    h = a @ factor.mT
    h = _OfFullRank.apply((h + h.mT) / 2)
    inner = direction @ factor.mT
    skew: Tensor = _Sylvester.apply(h, inner - inner.mT)
    return skew @ factor + torch.linalg.solve(h, direction - inner @ factor)


class _Polar(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor) -> Tensor:
        return polar.solve(a, polar.choose_method(a.dtype, a.device))[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        a, factor = ctx.saved_tensors
        return derivative(a, factor, grad)

    @staticmethod
    def jvp(ctx: Any, direction: Tensor) -> Tensor:
        a, factor = ctx.saved_tensors
        return derivative(a, factor, direction)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], a: Tensor) -> tuple[Tensor, int]:
        return _Polar.apply(a.movedim(in_dims[0] or 0, 0)), 0


class _OfFullRank(torch.autograd.Function):
    """H (..., k, k). Raises where H loses rank up to rounding. Under torch.func only a Function can read values."""

    @staticmethod
    def forward(h: Tensor) -> Tensor:
        s = torch.linalg.eigvalsh(h)
        if not bool((s[..., 0] > s[..., -1] * (s.shape[-1] * polar.EPS)).all()):
            raise OutOfRange(SINGULAR)
        return h.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad

    @staticmethod
    def jvp(ctx: Any, direction: Tensor) -> Tensor:
        return direction.clone()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], h: Tensor) -> tuple[Tensor, int]:
        return _OfFullRank.apply(h.movedim(in_dims[0] or 0, 0)), 0


class _Sylvester(torch.autograd.Function):
    """X with H X + X H = C, for a positive definite H (..., k, k)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, c: Tensor) -> Tensor:
        s, v = torch.linalg.eigh(h)
        x: Tensor = v @ ((v.mT @ c @ v) / (s.unsqueeze(-1) + s.unsqueeze(-2))) @ v.mT
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        h, x = ctx.saved_tensors
        y = _Sylvester.apply(h, grad)
        return -(y @ x.mT + x.mT @ y), y

    @staticmethod
    def jvp(ctx: Any, of_h: Tensor, of_c: Tensor) -> Tensor:
        h, x = ctx.saved_tensors
        x_dot: Tensor = _Sylvester.apply(h, of_c - of_h @ x - x @ of_h)
        return x_dot


@torch.library.custom_op("ncflow::polar_factor", mutates_args=())
def _traced(a: Tensor) -> Tensor:
    """The factor as one operation for torch.compile. The inside of an operation may read values."""
    return polar.solve(a, polar.choose_method(a.dtype, a.device))[0].clone()


@_traced.register_fake
def _shape(a: Tensor) -> Tensor:
    return torch.empty_like(a)


@torch.library.custom_op("ncflow::polar_derivative", mutates_args=())
def _traced_derivative(a: Tensor, direction: Tensor) -> Tensor:
    """The same gradient as in uncompiled code, including where the matrix loses rank."""
    _, method, saved = polar.solve(a, polar.choose_method(a.dtype, a.device))
    return polar.pullback(method, saved, direction).clone()


@_traced_derivative.register_fake
def _shape_of_derivative(a: Tensor, direction: Tensor) -> Tensor:
    return torch.empty_like(a)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _gradient(ctx: Any, grad: Tensor) -> Tensor:
    gradient: Tensor = _traced_derivative(*ctx.saved_tensors, grad)
    return gradient


_traced.register_autograd(_gradient, setup_context=_keep)
