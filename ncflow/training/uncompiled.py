"""Optimizers that do not import torch's compiler, which takes over a second: for commands, which are whole programs.

torch wraps four methods of `Optimizer` so that its compiler skips them. Their first call imports the compiler, to wrap
them, and keeps the result as an attribute. With the plain method there, nothing is imported. Before anything is
compiled, the attribute goes, and torch wraps the methods again. The first step of SGD and Adam still imports the
compiler; `--check` and the L-BFGS of post-hoc classifiers do without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

METHODS = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
WRAPPED = "__dynamo_disable"  # torch's attribute; where another version has none, the compiler is imported as before


def skip_compiler() -> None:
    """From now on optimizers do not import torch's compiler. It does nothing if that is imported already."""
    if "torch._dynamo" not in sys.modules:
        for plain in _plain_methods():
            setattr(plain, WRAPPED, plain)


def allow_compiler() -> None:
    """Take `skip_compiler` back, before something is compiled."""
    for plain in _plain_methods():
        if getattr(plain, WRAPPED, None) is plain:
            delattr(plain, WRAPPED)


def _plain_methods() -> Iterator[Callable[..., Any]]:
    """The methods of `Optimizer` as they are written, without torch's wrapper."""
    for name in METHODS:
        if plain := getattr(getattr(torch.optim.Optimizer, name, None), "__wrapped__", None):
            yield plain
