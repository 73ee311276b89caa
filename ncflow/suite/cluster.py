"""Jobs on Ray, on this machine or on a cluster. Only this module imports ray, and only on demand."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ncflow.exits import Exit
from ncflow.imports import IMPORTED
from ncflow.suite.jobs import Job
from ncflow.suite.machines import Findings, inspect_machine, marked, unshared
from ncflow.suite.process import GRACE, Ending, Task, run_task
from ncflow.suite.shares import refuse_too_large, share_of_machine
from ncflow.suite.versions import versions

LOGGER = logging.getLogger("ncflow")


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
            _join(self._ray, address)
            if signal.getsignal(signal.SIGTERM) != asked_to_end:  # Ray's handler would end this process without cleanup
                signal.signal(signal.SIGTERM, asked_to_end)
        self._processes = processes or 1
        self._most = jobs or math.inf
        self._running: list[RayAttempt] = []
        self._said = False
        self._inspected = False
        machines = [node["Resources"] for node in _machines(self._ray)]
        self._resources = share_of_machine(machines, processes=self._processes, jobs=jobs, jobs_per_gpu=jobs_per_gpu)
        if _is_fixed(self._ray):
            refuse_too_large(self._resources, machines)

    def has_room(self) -> bool:
        """Whether fewer than `jobs` jobs run or wait. Ray queues them: it knows the free room, and may add machines."""
        self._running = [attempt for attempt in self._running if attempt.poll() is None]
        return len(self._running) < self._most

    def _say_if_waiting(self) -> None:
        """Log once what the runs request and what is free, if no run has started."""
        waiting = [attempt for attempt in self._running if not attempt.has_started()]
        if self._said or not waiting or len(waiting) < len(self._running) or waiting[0].age() < PATIENCE:
            return
        self._said = True
        asked, free = self._resources, self._ray.available_resources()
        LOGGER.warning(
            "waiting for Ray: each run requests %g CPUs and %g GPUs, free are %g CPUs and %g GPUs",
            asked["num_cpus"], asked["num_gpus"], free.get("CPU", 0), free.get("GPU", 0),
        )  # fmt: skip

    def start(self, job: Job) -> RayAttempt:
        """Submit a job. Before the first one, raises ValueError if a machine of the cluster cannot train."""
        if not self._inspected:
            inspect_machines(self._ray, job.root)
            self._inspected = True
        threads = max(int(self._resources["num_cpus"]) // self._processes, 1)
        # Another machine has another environment: send it the variables of ncflow and MLflow.
        sent = {name: value for name, value in os.environ.items() if name.startswith(("NCFLOW_", "MLFLOW_"))}
        task = Task.of(
            job,
            processes=self._processes,
            threads=threads,
            environment=sent,
        )
        self._running.append(RayAttempt(self._ray, job, task, self._resources, self._say_if_waiting))
        return self._running[-1]


class RayAttempt:
    """A job's task in Ray, waiting or running. It calls `still_open` whenever it is asked before its end."""

    def __init__(
        self, ray: Any, job: Job, task: Task, resources: dict[str, float], still_open: Callable[[], None]
    ) -> None:
        self._ray, self._log, self._still_open = ray, task.log, still_open
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
            self._still_open()
            return None
        try:
            ending: Ending = self._ray.get(self._ref)
            return ending
        except (self._ray.exceptions.RayError, KeyboardInterrupt) as error:
            return Ending(LOST, f"lost by Ray: {_last_line(error)}")

    def ask_to_end(self) -> None:
        self._ray.cancel(self._ref)  # interrupts `run_task`, which ends the process cleanly

    def end(self) -> None:
        self._ray.wait([self._ref], timeout=GRACE)


def run_job(job: Job, task: Task, imported: dict[str, str]) -> Ending:
    """Run a job's task in a Ray process; skip it if others finished the run while it waited."""
    configs = [Path(after) for word, after in itertools.pairwise(task.arguments) if word == "--config"]
    if not all(config.exists() for config in configs):  # this machine joined after the machines were inspected
        return Ending(Exit.CHANGE, unshared(job.root))
    IMPORTED.update(imported)  # compared with those of a finished run; not imported here
    if job.is_spared():
        return Ending(Exit.TAKEN, "finished by another process")
    return run_task(task)


def inspect_machines(ray: Any, root: Path) -> None:
    """Inspect all machines of the cluster at the same time, and log what may surprise.

    Raises ValueError with all reasons if machines cannot train. A machine that joins later is inspected by its jobs.
    """
    with marked(root) as marker:
        found = [*_inspections(ray, marker)]
    for findings in found:
        if findings.warning:
            LOGGER.warning("%s", findings.warning)
    if problems := [findings.problem for findings in found if findings.problem]:
        raise ValueError(f"nothing was trained. {'. '.join(dict.fromkeys(problems))}")


def _inspections(ray: Any, marker: Path) -> Iterator[Findings]:
    """What each machine that may train has found."""
    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    machines = [node for node in _machines(ray) if node["Resources"].get("CPU", 0) > 0]
    asked = {}
    for node in machines:
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": affinity(node["NodeID"], soft=False)}
        inspection = ray.remote(inspect_machine).options(**options)
        asked[inspection.remote(marker, versions(), node["Resources"].get("GPU", 0))] = node
    answered, silent = ray.wait([*asked], num_returns=len(asked), timeout=ANSWER) if asked else ([], [])
    for ref in answered:
        yield _answer(ray, ref, asked[ref])
    for ref in silent:
        ray.cancel(ref)
        yield Findings(warning=f"{_name(asked[ref])} has not answered within {ANSWER:g} s; its runs may start late")


def _answer(ray: Any, ref: Any, node: dict[str, Any]) -> Findings:
    """The findings of a machine. A task that ended with an error could not be loaded there; a lost one says nothing."""
    try:
        findings: Findings = ray.get(ref)
        return findings
    except ray.exceptions.RayTaskError as error:
        return Findings(f"{_name(node)} cannot run ncflow: {_last_line(error)}; install the same ncflow there")
    except ray.exceptions.RayError as error:
        return Findings(warning=f"{_name(node)} was lost by Ray: {_last_line(error)}")


def _machines(ray: Any) -> Sequence[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _is_fixed(ray: Any) -> bool:
    """Whether no autoscaler may add machines; false if that is not known. Ray has no public way to ask.

    The monitor of a cluster without an autoscaler invents a type for each machine: "node_" and its number.
    """
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        status = json.loads(ray.experimental.internal_kv._internal_kv_get(b"__autoscaling_status"))
        types = status["autoscaler_report"]["node_type_mapping"]
        return bool(types) and all(kind == f"node_{number}" for number, kind in types.items())
    return False


def _last_line(error: BaseException) -> str:
    """The last line of an error of Ray: tracebacks of another process come first."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _join(ray: Any, address: str | None) -> None:
    """Connect to Ray, or start it. Raises ValueError if no cluster answers at an address, or if it refuses us."""
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        where = address or os.environ.get("RAY_ADDRESS")
        if not where:
            raise
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"cannot join the Ray cluster at {where}: {reason}. Check that it runs and this machine is part of it. A "
            "cluster with tokens needs RAY_AUTH_MODE=token and the same token on every machine"
        ) from error


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # `uv run` would install everything again
    import ray

    return ray


PATIENCE = 15.0  # seconds that Ray may need to start its workers, without a warning
ANSWER = 120.0  # seconds for a machine to say whether it can train
LOST = -1  # exit code of a task that Ray lost
