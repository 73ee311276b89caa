"""Engines turn a job into a task and start it when there is room. Ray's engine is loaded on demand."""

from __future__ import annotations

import importlib
import os
from typing import Protocol

from ncflow.lookup import lookup
from ncflow.suite.jobs import Job
from ncflow.suite.process import Attempt, Ending, Task, cpus
from ncflow.suite.warm import WarmStarter


class Running(Protocol):
    """A running job."""

    def has_started(self) -> bool: ...
    def poll(self) -> Ending | None: ...
    def ask_to_end(self) -> None: ...
    def end(self) -> None: ...


class Engine(Protocol):
    """The interface of an engine: whether it has room for another job, and how to start the job."""

    def has_room(self) -> bool: ...
    def start(self, job: Job) -> Running: ...


def create_engine(
    name: str,
    *,
    processes: int | None = None,
    jobs: int | None = None,
    jobs_per_gpu: int | None = None,
    address: str | None = None,
) -> Engine:
    """Create an engine by name, for jobs of `processes` processes each.

    `jobs` is the highest number of jobs in parallel. `jobs_per_gpu` is how many jobs share a GPU. `address` is that of
    a Ray cluster. Raises ValueError for an unknown name and for options that contradict each other.
    """
    module, _, factory = lookup(ENGINES, name, "engine").partition(":")
    if address and name != "ray":
        raise ValueError(f"only engine ray takes an address, got '{address}' for engine {name}; use --engine ray")
    options = {"address": address} if name == "ray" else {}
    create = getattr(importlib.import_module(module), factory)
    if jobs_per_gpu and (processes or 1) > 1:
        raise ValueError(f"jobs that share a GPU have one process each, got {processes}; leave one of the options out")
    engine: Engine = create(processes=processes, jobs=jobs, jobs_per_gpu=jobs_per_gpu, **options)
    return engine


class LocalEngine:
    """Engine for this machine, divided into equal slots: each slot has a share of the CPUs and one or more GPUs.

    The default is one slot with one process per GPU. `jobs_per_gpu` sets the number of slots per GPU. OMP_NUM_THREADS
    in the environment limits the threads of each process. Without GPUs, runs are warm (ncflow/suite/warm.py).
    """

    def __init__(
        self, *, processes: int | None = None, jobs: int | None = None, jobs_per_gpu: int | None = None
    ) -> None:
        gpus = visible_gpus()
        if jobs_per_gpu and not gpus:
            raise ValueError(f"expected a GPU for {jobs_per_gpu} jobs per GPU, but this machine has no GPU; use --jobs")
        by_gpu = jobs_per_gpu * len(gpus) if jobs_per_gpu else None
        jobs = min((limit for limit in (jobs, by_gpu) if limit), default=1)
        self._processes = processes or max(len(gpus) // jobs, 1)
        share = max(cpus() // (jobs * self._processes), 1)
        self._threads = min(share, _most_threads() or share)
        self._gpus = [_share_of_gpus(gpus, slot, self._processes) for slot in range(jobs)]
        self._slots: list[Attempt | None] = [None] * jobs
        self._warm = WarmStarter()

    def has_room(self) -> bool:
        return self._free_slot() is not None

    def start(self, job: Job) -> Attempt:
        slot = self._free_slot()
        assert slot is not None, "start a job only if there is room"
        task = Task.of(
            job,
            processes=self._processes,
            threads=self._threads,
            gpus=self._gpus[slot],
        )
        attempt = Attempt(task, self._warm.start) if self._warm.takes(task) else Attempt(task)
        self._slots[slot] = attempt
        return attempt

    def _free_slot(self) -> int | None:
        free = (slot for slot, attempt in enumerate(self._slots) if attempt is None or attempt.poll())
        return next(free, None)


def _most_threads() -> int | None:
    """The limit that OMP_NUM_THREADS sets, None without one. OpenMP ignores other values, and so does this."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else None


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES and counted by torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None and not named.strip():
        return []
    import torch

    count = torch.cuda.device_count()  # CUDA ends the list at the first invalid name, such as -1
    names = [str(gpu) for gpu in range(count)] if named is None else [gpu.strip() for gpu in named.split(",")]
    return names[:count]


def _share_of_gpus(gpus: list[str], slot: int, processes: int) -> tuple[str, ...] | None:
    """The next `processes` GPUs in turn, after those of the slot before; None without GPUs."""
    if not gpus:
        return None
    return tuple(dict.fromkeys(gpus[(slot * processes + rank) % len(gpus)] for rank in range(processes)))


ENGINES = {"local": "ncflow.suite.engines:LocalEngine", "ray": "ncflow.suite.cluster:RayEngine"}
