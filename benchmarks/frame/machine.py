"""The machine in the words of a result page: what computes and how much of it, never what it is called."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where everything is measured
# What decides the speed of matrix products, the best last
INSTRUCTIONS = ["avx2", "avx512_f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16"]


def describe_machine() -> dict[str, Any]:
    """Processor, cores, instruction sets, threads, memory, GPU, versions."""
    capabilities = torch.cpu.get_capabilities()
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instruction_sets": [name for name in INSTRUCTIONS if capabilities.get(name)],
        "threads": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
        "gpu": torch.cuda.get_device_name() if DEVICE.type == "cuda" else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()


def _memory_gb() -> int | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
