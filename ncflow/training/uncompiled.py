"""Optimizers that do not import torch's compiler, which takes over a second: for commands, which are whole programs.

torch wraps four methods of `Optimizer` so that its compiler skips them. Their first call imports the compiler, to wrap
them, and keeps the result as an attribute. With the plain method there, nothing is imported. Before anything is
compiled, the attribute goes, and torch wraps the methods again.

torch also wraps `step`, to switch gradients off and to tell the compiler to stop there. The second part imports the
compiler and does nothing outside of compiled code. ncflow compiles backbones, never a step, so it goes without.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch

METHODS = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
WRAPPED = "__dynamo_disable"  # torch's attribute; where another version has none, the compiler is imported as before
STEP = "_use_grad"  # torch's wrapper of `step`, by the name of its function


def skip_compiler() -> None:
    """From now on optimizers do not import torch's compiler. It does nothing if that is imported already."""
    if "torch._dynamo" not in sys.modules:
        for plain in _plain_methods():
            setattr(plain, WRAPPED, plain)
        for optimizer in torch.optim.Optimizer.__subclasses__():
            step = vars(optimizer).get("step")
            if getattr(getattr(step, "__code__", None), "co_name", "") == STEP:
                optimizer.step = _without_gradients(step.__wrapped__)  # type: ignore[method-assign, union-attr]


def allow_compiler() -> None:
    """Take `skip_compiler` back, before something is compiled."""
    for plain in _plain_methods():
        if getattr(plain, WRAPPED, None) is plain:
            delattr(plain, WRAPPED)


def _without_gradients(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of an optimizer as torch's wrapper runs it."""

    @wraps(step)
    def eager(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return eager


def _plain_methods() -> Iterator[Callable[..., Any]]:
    """The methods of `Optimizer` as they are written, without torch's wrapper."""
    for name in METHODS:
        if plain := getattr(getattr(torch.optim.Optimizer, name, None), "__wrapped__", None):
            yield plain
