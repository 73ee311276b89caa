"""What this process may use of its machine: CPUs and free memory, also in a container and with other processes."""

from __future__ import annotations

import os
from pathlib import Path

MEMORY = Path("/proc/meminfo")
GROUPS = Path("/sys/fs/cgroup")  # of a container: its limits
LIMITS = {"memory.max": "memory.current", "memory/memory.limit_in_bytes": "memory/memory.usage_in_bytes"}


def num_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(memory: Path = MEMORY, groups: Path = GROUPS) -> int | None:
    """Bytes of main memory that programs can still get, also in a container; None where the system does not report."""
    try:
        (line,) = [line for line in memory.read_text().splitlines() if line.startswith("MemAvailable:")]
        found = [1024 * int(line.split()[1])]
    except (OSError, ValueError):
        return None
    for limit, used in LIMITS.items():
        try:
            found.append(int((groups / limit).read_text()) - int((groups / used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(min(found), 0)


def processes_here(num_processes: int) -> int:
    """How many of the processes are on this machine, as launchers report it; all of them where they do not."""
    reported = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(reported) if reported.isdecimal() and 0 < int(reported) <= num_processes else num_processes
