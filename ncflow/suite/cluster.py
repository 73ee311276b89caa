"""Jobs on Ray, on this machine or on a cluster. Only this module imports ray, and only on demand."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from typing import Any

from ncflow.exits import Exit
from ncflow.imports import IMPORTED
from ncflow.suite.jobs import Job
from ncflow.suite.process import GRACE, Ending, Task, run_task


class RayEngine:
    """Engine for a Ray cluster: each job is a Ray task, which starts training on a machine with room.

    It connects to Ray at `address`, at RAY_ADDRESS or on this machine, and else starts Ray here. Every machine needs
    ncflow and the project's folder under the same path. The run folder, not Ray, shows whether a run is done. After a
    lost machine or a killed suite, the next attempt resumes the interrupted runs.
    """

    def __init__(
        self,
        *,
        processes: int | None = None,
        jobs: int | None = None,
        jobs_per_gpu: int | None = None,
        address: str | None = None,
    ) -> None:
        self._ray = _import_ray()
        if not self._ray.is_initialized():
            asked_to_end = signal.getsignal(signal.SIGTERM)
            self._ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")
            if signal.getsignal(signal.SIGTERM) != asked_to_end:  # Ray's handler would end this process without cleanup
                signal.signal(signal.SIGTERM, asked_to_end)
        self._processes = processes or 1
        self._most = jobs or math.inf
        self._running: list[RayAttempt] = []
        self._said = False
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._resources = share_of_machine(machines, processes=self._processes, jobs=jobs, jobs_per_gpu=jobs_per_gpu)

    def has_room(self) -> bool:
        """Whether fewer than `jobs` jobs run or wait. Ray queues them: it knows the free room, and may add machines."""
        self._running = [attempt for attempt in self._running if attempt.poll() is None]
        self._say_if_waiting()
        return len(self._running) < self._most

    def _say_if_waiting(self) -> None:
        """Log once what the runs request and what is free, if no run has started."""
        waiting = [attempt for attempt in self._running if not attempt.has_started()]
        if self._said or not waiting or len(waiting) < len(self._running) or waiting[0].age() < PATIENCE:
            return
        self._said = True
        asked, free = self._resources, self._ray.available_resources()
        logging.getLogger("ncflow").warning(
            "waiting for Ray: each run requests %g CPUs and %g GPUs, free are %g CPUs and %g GPUs",
            asked["num_cpus"], asked["num_gpus"], free.get("CPU", 0), free.get("GPU", 0),
        )  # fmt: skip

    def start(self, job: Job) -> RayAttempt:
        threads = max(int(self._resources["num_cpus"]) // self._processes, 1)
        # Another machine has another environment: send it the variables of ncflow and MLflow.
        sent = {name: value for name, value in os.environ.items() if name.startswith(("NCFLOW_", "MLFLOW_"))}
        task = Task.of(
            job,
            processes=self._processes,
            threads=threads,
            environment=sent,
        )
        self._running.append(RayAttempt(self._ray, job, task, self._resources))
        return self._running[-1]


class RayAttempt:
    """A job's task in Ray, waiting or running."""

    def __init__(self, ray: Any, job: Job, task: Task, resources: dict[str, float]) -> None:
        self._ray, self._log = ray, task.log
        task.log.parent.mkdir(parents=True, exist_ok=True)
        task.log.touch()
        self._size, self._since = task.log.stat().st_size, time.monotonic()
        # The suite retries: it counts the attempts and logs the reason. Retries by Ray would hide both.
        remote = ray.remote(run_job).options(max_retries=0, name=task.log.stem, **resources)
        self._ref = remote.remote(job, task, dict(IMPORTED))

    def age(self) -> float:
        """Seconds since the task was submitted."""
        return time.monotonic() - self._since

    def has_started(self) -> bool:
        """Whether its process has written to the log; before that it may wait for room."""
        return self._log.stat().st_size > self._size

    def poll(self) -> Ending | None:
        if not self._ray.wait([self._ref], timeout=0)[0]:
            return None
        try:
            ending: Ending = self._ray.get(self._ref)
            return ending
        except (self._ray.exceptions.RayError, KeyboardInterrupt) as error:
            return Ending(LOST, f"lost by Ray: {str(error).strip().splitlines()[0]}")

    def ask_to_end(self) -> None:
        self._ray.cancel(self._ref)  # interrupts `run_task`, which ends the process cleanly

    def end(self) -> None:
        self._ray.wait([self._ref], timeout=GRACE)


def run_job(job: Job, task: Task, imported: dict[str, str]) -> Ending:
    """Run a job's task in a Ray process; skip it if others finished the run while it waited."""
    IMPORTED.update(imported)  # compared with those of a finished run; not imported here
    if job.is_spared():
        return Ending(Exit.TAKEN, "finished by another process")
    return run_task(task)


def share_of_machine(
    machines: list[dict[str, float]], *, processes: int, jobs: int | None, jobs_per_gpu: int | None
) -> dict[str, float]:
    """The CPUs and GPUs that a job requests from Ray; together the jobs use the whole machine.

    With GPUs, each process takes one GPU or 1/`jobs_per_gpu` of one, and CPUs in proportion. Without GPUs, `jobs` are
    spread over the machines; the default is one per machine. Raises ValueError if no machine has enough GPUs.
    """
    with_gpus = [machine for machine in machines if machine.get("GPU", 0) > 0]
    if with_gpus or jobs_per_gpu:
        gpus = processes / (jobs_per_gpu or 1)
        most = max((machine["GPU"] for machine in with_gpus), default=math.inf)
        if gpus > most:
            raise ValueError(
                f"a job of {processes} processes needs {gpus:g} GPUs of one machine, the largest has {most:g}"
            )
        per_gpu = min((machine["CPU"] / machine["GPU"] for machine in with_gpus), default=1.0)
        return {"num_cpus": max(int(per_gpu * gpus), 1), "num_gpus": gpus}
    jobs_per_machine = math.ceil((jobs or 1) / max(len(machines), 1))
    fewest = min((machine.get("CPU", 1.0) for machine in machines), default=1.0)
    return {"num_cpus": max(int(fewest) // jobs_per_machine, 1), "num_gpus": 0}


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # `uv run` would install everything again
    import ray

    return ray


PATIENCE = 15.0  # seconds that Ray may need to start its workers, without a warning
LOST = -1  # exit code of a task that Ray lost
