"""Processes of one launch connect before they train, or fail with a message that names the expected ones."""

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

from ncflow.training.network import INTERFACE, interface_towards

WAIT = "NCFLOW_WAIT"  # seconds to wait for the other processes, before training
TIMEOUT = "NCFLOW_TIMEOUT"  # seconds to wait for the other processes, while training
PATIENCE, SILENCE = 300.0, 10.0  # seconds: the default of WAIT, and the wait before it is logged
CONNECTING = 60.0  # seconds for processes that have all started to connect to each other
COLLECTIVES = 1800.0  # seconds: the default of TIMEOUT; meanwhile one process may be writing files
MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # MPI's variables of the number of processes
LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # a launcher sets all of them


def meet(*, cpu: bool) -> None:
    """Form the process group that the environment describes, if it describes several processes.

    Raises ValueError if the environment contradicts itself, or if the others do not connect. Variables left over from
    another launch look the same. Until the group is up, SIGTERM and Ctrl-C end the process at once.
    """
    world = launched_processes()
    if world == 1 or torch.distributed.is_initialized():
        return
    rank = os.environ["RANK"]
    seconds, limit = seconds_of(WAIT, PATIENCE), seconds_of(TIMEOUT, COLLECTIVES)
    deadline = timedelta(seconds=seconds)
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    expected = f"WORLD_SIZE={world} processes at {where}, of which this is RANK={rank}"
    if not cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    elif name := os.environ.get(INTERFACE) or interface_towards(os.environ["MASTER_ADDR"]):
        os.environ[INTERFACE] = name  # gloo would take the address of the host name, which may be of this machine only
    with _default_signals(), _said(f"waiting for {expected}", after=SILENCE):
        try:
            store, number, _ = next(rendezvous("env://", timeout=deadline))
            _wait_for_all(store, world, seconds)
        except (RuntimeError, TimeoutError) as error:  # torch's DistStoreError is one
            raise ValueError(
                f"expected {expected}, got fewer within {seconds:g} s; start the others too, set "
                f"{WAIT} to wait longer, or unset {', '.join(LAUNCH)} to use one process"
            ) from error
        first, later = timedelta(seconds=min(seconds, CONNECTING)), timedelta(seconds=limit)
        _connect(store, number, world, cpu=cpu, first=first, later=later)


def launched_processes() -> int:
    """Return the number of processes that a launcher started.

    Raises ValueError if its variables are incomplete or contradict each other.
    """
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
            f"{', '.join(missing)}; unset {', '.join(given)} to use one process, or start it by torchrun"
        )
    rank = _number("RANK", given["RANK"])
    if rank >= world:
        raise ValueError(f"expected RANK below WORLD_SIZE={world}, got RANK={rank}")
    return world


def seconds_of(variable: str, default: float) -> float:
    """Return the seconds that an environment variable gives. Raises ValueError if it gives none."""
    try:
        seconds = float(os.environ.get(variable) or default)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise ValueError(f"expected {variable} to be seconds in (0, 86400], got '{os.environ[variable]}'")
    return seconds


def _connect(store: Any, rank: int, world: int, *, cpu: bool, first: timedelta, later: timedelta) -> None:
    """Form the group of processes that have all registered. `first` limits the connecting, `later` each collective.

    Gloo connects here, and NCCL at the first collective.
    """
    backend, limit = ("gloo", first) if cpu else ("nccl", later)
    try:
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
    except RuntimeError as error:
        raise ValueError(
            f"all {world} processes reached {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}, but they cannot "
            f"connect to each other: {str(error).splitlines()[0]}; expected a network interface that reaches the other "
            f"machines, got {INTERFACE}='{os.environ.get(INTERFACE, '')}'; set it to one that `ip addr` lists, and let "
            "the firewall pass all ports between the machines"
        ) from error
    if cpu:
        torch.distributed.set_timeout(later)


def _wait_for_all(store: Any, world: int, seconds: float) -> None:
    """Return once every process has registered."""
    key, until = f"ncflow/here/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", time.monotonic() + seconds
    here = store.add(key, 1)
    while here < world:
        if time.monotonic() > until:
            raise TimeoutError(f"{here} of {world} connected")
        time.sleep(0.05)
        here = store.add(key, 0)


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"expected {name} to be a whole number >= 0, got '{text}'")
    return int(text)


@contextmanager
def _default_signals() -> Iterator[None]:
    """Inside, signals have the system's default effect, because Python's handlers cannot run while C++ waits."""
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
    """Log the text if the code inside takes longer."""
    timer = threading.Timer(after, lambda: logging.getLogger("ncflow").warning("%s", text))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
