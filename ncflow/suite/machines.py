"""What a machine of a cluster needs before it trains: the same ncflow, the project's folder, GPUs that torch sees."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ncflow.suite.versions import other_version


@dataclass(frozen=True)
class Findings:
    """Why a machine cannot train, and what may surprise if it does; empty for nothing."""

    problem: str = ""
    warning: str = ""


def inspect_machine(marker: Path, made: Mapping[str, str], gpus: float = 0) -> Findings:
    """Compare this machine with the one that starts the suite.

    That machine has written the file `marker` in the project's folder and has the versions `made`. `gpus` is how many
    GPUs the cluster assigns here.
    """
    problem = other_version(made, "ncflow")
    if problem:
        return Findings(f"{problem}; install the same version on every machine")
    if not marker.exists():
        return Findings(unshared(marker.parents[2]))
    other_torch = other_version(made, "torch")
    warnings = [f"{other_torch}; results may differ by rounding"] if other_torch else []
    if gpus and not (seen := gpus_of_torch()):
        warnings.append(
            f"the cluster offers {gpus:g} GPUs of {socket.gethostname()}, but torch sees {seen}; runs train on its CPUs"
        )
    return Findings(warning=", and ".join(warnings))


def unshared(root: Path) -> str:
    """That this machine has another folder, or none, at the project's path."""
    return (
        f"{socket.gethostname()} does not see the project's folder {root}; mount the same folder there on every machine"
    )


@contextmanager
def marked(root: Path) -> Iterator[Path]:
    """Inside, the project's folder holds a new file, which no copy of the folder can have."""
    marker = root / ".ncflow" / "suite" / f".meeting-{uuid.uuid4().hex}"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)


def gpus_of_torch() -> int:
    """How many GPUs torch sees on this machine. A separate process asks: a scheduler may hide them from this one."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return int(asked.stdout) if asked.returncode == 0 else 0
