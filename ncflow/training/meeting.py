"""Processes that a launcher started meet before they train: soon, or with a message that names what was expected."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch.distributed.rendezvous import rendezvous

WAIT = "NCFLOW_WAIT"  # seconds to wait for the other processes
PATIENCE, SILENCE = 300.0, 10.0  # so long by default, and so long before it is said
COLLECTIVES = timedelta(minutes=30)  # how long a collective may take, in which one process may be writing files
MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # how MPI tells the number of processes
LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what a launcher sets, all of them


def meet(*, cpu: bool) -> None:
    """Form the process group that the environment describes, if it describes several processes.

    Raises ValueError for an environment that contradicts itself, and where the others do not come: leftovers of another
    launch look just like that. Until the group is up, SIGTERM and Ctrl-C end the process at once.
    """
    world = launched_processes()
    if world == 1 or torch.distributed.is_initialized():
        return
    rank = os.environ["RANK"]
    seconds = _patience()
    deadline = timedelta(seconds=seconds)
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    expected = f"WORLD_SIZE={world} processes at {where}, of which this is RANK={rank}"
    if not cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _default_signals(), _said(f"waiting for {expected}", after=SILENCE):
        try:
            store, number, _ = next(rendezvous("env://", timeout=deadline))
            _wait_for_all(store, world, seconds)
            torch.distributed.init_process_group(
                "gloo" if cpu else "nccl", store=store, rank=number, world_size=world, timeout=COLLECTIVES
            )
        except (RuntimeError, TimeoutError) as error:  # torch's DistStoreError is one
            raise ValueError(
                f"expected {expected}, got no answer from all of them within {seconds:g} s; start the others too, set "
                f"{WAIT} to wait longer, or unset {', '.join(LAUNCH)} to train in one process"
            ) from error


def launched_processes() -> int:
    """How many processes a launcher says there are; ValueError where its variables are incomplete or contradict."""
    given = {name: os.environ[name] for name in LAUNCH if os.environ.get(name)}
    for name in MPI:
        if _number(name, os.environ.get(name, "1")) > 1 and "WORLD_SIZE" not in given:
            raise ValueError(
                f"{name}={os.environ[name]} says that MPI started this process together with others; expected a "
                f"launch by torchrun, Accelerate or ncflow train --processes; use one of these, or unset {name}"
            )
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & given.keys():
        return 1
    world = _number("WORLD_SIZE", given.get("WORLD_SIZE", "1"))
    missing = [name for name in LAUNCH if name not in given]
    if world == 1 and ("WORLD_SIZE" in given or not missing):
        return 1
    if missing:
        raise ValueError(
            f"expected all of {', '.join(LAUNCH)}, as launchers set them, got {', '.join(given)} without "
            f"{', '.join(missing)}; unset {', '.join(given)} to train in one process, or start it by torchrun"
        )
    rank = _number("RANK", given["RANK"])
    if rank >= world:
        raise ValueError(f"expected RANK below WORLD_SIZE={world}, got RANK={rank}")
    return world


def _wait_for_all(store: Any, world: int, seconds: float) -> None:
    """Return once every process has said that it is here."""
    key, until = f"ncflow/here/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", time.monotonic() + seconds
    here = store.add(key, 1)
    while here < world:
        if time.monotonic() > until:
            raise TimeoutError(f"{here} of {world} came")
        time.sleep(0.05)
        here = store.add(key, 0)


def _patience() -> float:
    try:
        seconds = float(os.environ.get(WAIT) or PATIENCE)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise ValueError(f"expected {WAIT} to be seconds in (0, 86400], got '{os.environ[WAIT]}'")
    return seconds


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"expected {name} to be a whole number >= 0, got '{text}'")
    return int(text)


@contextmanager
def _default_signals() -> Iterator[None]:
    """Inside, signals do what the system does: Python's handlers cannot run while C++ waits."""
    main = threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGTERM, signal.SIGINT) if main and signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _said(text: str, *, after: float) -> Iterator[None]:
    """Say it, if what is inside takes longer."""
    timer = threading.Timer(after, lambda: logging.getLogger("ncflow").warning("%s", text))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
