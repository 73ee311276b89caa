"""The share of a machine that each job requests from Ray, and whether any machine can hold it."""

from __future__ import annotations

import math
from collections.abc import Sequence


def share_of_machine(
    machines: list[dict[str, float]], *, processes: int, jobs: int | None, jobs_per_gpu: int | None
) -> dict[str, float]:
    """The CPUs and GPUs that a job requests from Ray; together the jobs use the whole machine.

    With GPUs, each process takes one GPU or 1/`jobs_per_gpu` of one, and CPUs in proportion. Without GPUs, `jobs` are
    spread over the machines; the default is one per machine. Jobs that have less than a CPU each share one. Machines
    without CPUs, such as a head that only coordinates, do not count. Raises ValueError if no machine has enough GPUs.
    """
    machines = [machine for machine in machines if machine.get("CPU", 0) > 0]
    with_gpus = [machine for machine in machines if machine.get("GPU", 0) > 0]
    if with_gpus or jobs_per_gpu:
        gpus = processes / (jobs_per_gpu or 1)
        most = max((machine["GPU"] for machine in with_gpus), default=math.inf)
        if gpus > most:
            raise ValueError(
                f"a job of {processes} processes needs {gpus:g} GPUs of one machine, the largest has {most:g}"
            )
        if not with_gpus:  # an autoscaler may bring them
            return {"num_cpus": max(int(gpus), 1), "num_gpus": _part(gpus)}
        per_gpu = min(machine["CPU"] / machine["GPU"] for machine in with_gpus)
        return {"num_cpus": _cpus(per_gpu * gpus), "num_gpus": _part(gpus)}
    jobs_per_machine = math.ceil((jobs or 1) / max(len(machines), 1))
    fewest = min((machine["CPU"] for machine in machines), default=1.0)
    return {"num_cpus": _cpus(fewest / jobs_per_machine), "num_gpus": 0}


def refuse_too_large(request: dict[str, float], machines: Sequence[dict[str, float]]) -> None:
    """Raise ValueError if no machine has the CPUs and GPUs that a job requests, even when it is idle."""
    needed = {"CPU": request["num_cpus"], "GPU": request["num_gpus"]}
    if any(all(machine.get(name, 0) >= number for name, number in needed.items()) for machine in machines):
        return
    there = "; ".join(f"{machine.get('CPU', 0):g} CPUs and {machine.get('GPU', 0):g} GPUs" for machine in machines)
    raise ValueError(
        f"each run requests {needed['CPU']:g} CPUs and {needed['GPU']:g} GPUs of one machine, and no machine of "
        f"the Ray cluster has them. The machines have {there or 'nothing'}. Add a machine first, or change "
        "--jobs-per-gpu and --processes"
    )


def _cpus(number: float) -> float:
    """Whole CPUs, and at least a part of one."""
    return int(number) if number >= 1 else _part(number)


def _part(number: float) -> float:
    """A number of CPUs or GPUs in the unit of Ray, 1/10000, rounded down: the parts must not exceed the whole."""
    return math.floor(number * 1e4 + 1e-6) / 1e4
