"""Peak memory of one call, above what was there when it began; in a process of its own, so that nothing is reused."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # Linux


def peak_memory(way: Callable[[], Callable[[], Any]]) -> float | None:
    """MB that the first call of `way()` needs beyond inputs and imports; None where the system does not tell.

    On a GPU, of the GPU's memory.
    """
    if not CLEAR.exists():
        return None
    # Spawned, not forked: a fork inherits locks of threads that it does not have.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, way).result()


def _measure(way: Callable[[], Callable[[], Any]]) -> float:
    call = way()
    if torch.cuda.is_initialized():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    CLEAR.write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1e6


def _status(key: str) -> float:
    """Bytes of one line of the process's status, which counts in kB."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:")]
    return 1024 * float(line.split()[1])
