"""A way in a process of its own, that lives as long as its case: allocator, threads and imports are its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

_prepared: list[Callable[[], Any]] = []  # in the child: the function that is timed


def apart(way: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
    """Prepare `way`, a module-level function or a partial of one, in a child; the call that makes the child call it.

    The result is not carried back.
    """
    child = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    child.submit(_prepare, way).result()
    return partial(_wait_for, child)


def _prepare(way: Callable[[], Callable[[], Any]]) -> None:
    _prepared.append(way())


def _wait_for(child: ProcessPoolExecutor) -> None:
    child.submit(_call).result()


def _call() -> None:
    _prepared[0]()
