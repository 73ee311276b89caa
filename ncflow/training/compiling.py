"""Compiled training: torch.compile makes the backbone's forward and backward into fewer, larger kernels.

Analyses run the network as it is. So their numbers are those that `ncflow evaluate` measures again.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ncflow.training.uncompiled import allow_compiler

SHAPES = 64  # of batches and of their parts, with and without gradients; beyond torch's limit nothing is compiled
COMPILERS = ("g++", "clang++", "c++")  # of C++, which torch's compiler calls


def refuse_compiling(*, num_processes: int = 1) -> None:
    """Raise ValueError where torch cannot compile: on other systems than Linux, without a compiler, in processes."""
    found = [name for name in (os.environ.get("CXX", ""), *COMPILERS) if name and shutil.which(name)]
    reasons = {
        f"torch's compiler is used on Linux alone, got {sys.platform}": sys.platform != "linux",
        f"torch's compiler needs a compiler of C++, got none of {', '.join(COMPILERS)}": not found,
        f"batch norms over all processes are not compiled, got {num_processes} processes": num_processes > 1,
    }
    if broken := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(f"train.compile=true: {broken[0]}; try train.compile=false")


class CompiledBackbone:
    """A backbone whose forwards inside `training` are compiled, on first use and for each shape of a batch."""

    def __init__(self, backbone: nn.Module) -> None:
        allow_compiler()
        self._backbone = backbone
        self._forward = torch.compile(backbone._call_impl, dynamic=False)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, calls of the backbone run the compiled forward."""
        import torch._dynamo  # takes seconds

        self._backbone._compiled_call_impl = self._forward  # as nn.Module.compile does
        try:
            with torch._dynamo.config.patch(recompile_limit=SHAPES):
                yield
        finally:
            self._backbone._compiled_call_impl = None
