"""One side of a comparison: prepared once, then asked for its result and its seconds, here or in its own process."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

# Prepares (imports, inputs, warm state: not timed) and returns the function that is timed; a module-level function or
# a partial of one, so that a process can be given it.
Way = Callable[[], Callable[[], Any]]


class Side(NamedTuple):
    """result() of a call, and seconds(repeats): the mean of a call."""

    result: Callable[[], Any]
    seconds: Callable[..., float]


def here(way: Way) -> Side:
    """In this process, beside the other side."""
    call = way()
    return Side(call, lambda repeats=1: timed(call, repeats))


def apart(way: Way) -> Side:
    """In a process that lives as long as its side: allocator, threads and imports are its own."""
    child = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    child.submit(_prepare, way).result()
    return Side(
        lambda: child.submit(_result).result(),
        lambda repeats=1: child.submit(_seconds, repeats).result(),
    )


def timed(call: Callable[[], Any], repeats: int = 1) -> float:
    """Mean seconds of a call, with the work that it left on a GPU."""
    _wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait()
    return (time.perf_counter() - start) / repeats


def _prepare(way: Way) -> None:
    _prepared.append(way())


def _result() -> Any:
    return tree_map(lambda leaf: leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) else leaf, _prepared[0]())


def _seconds(repeats: int) -> float:
    return timed(_prepared[0], repeats)


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


_prepared: list[Callable[[], Any]] = []  # in the child: the function that is timed
