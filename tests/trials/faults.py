"""Provoke every fault that a long training may meet, for real, and hold what comes of it against what should.

    python tests/trials/faults.py [name ...]

Each fault has a project of its own, in a temporary folder, and meets the command that a user types. A line for each:
what was expected and what came. The exit code counts those that are not as expected.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import content
import disks
import killed
import limits
import stores
from kill import say
from trial import NotOk, Project, Skipped

from ncflow.lookup import lookup
from ncflow.tracking.stores import _QUIET as QUIET


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"default: all of {', '.join(FAULTS)}")
    parser.add_argument("--absence", type=float, default=10.0, help="seconds for which MLflow's server is gone")
    asked = parser.parse_args()
    faults = {name: lookup(FAULTS, name, "fault") for name in asked.names or FAULTS}
    _mount_unseen()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "NCFLOW_IMPORT"):
        os.environ.pop(name, None)  # a user's own store is left alone
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= QUIET | {"TRIALS": folder, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        projects = {name: Project(Path(folder, name), asked.absence) for name in faults}
        sys.exit(sum(not tried(name, fault, projects[name]) for name, fault in faults.items()))


def tried(name: str, fault: Callable[[Project], str], project: Project) -> bool:
    """Try one fault and say what came; whether it was as expected, or could not be provoked here."""
    began = time.monotonic()
    try:
        came, verdict = fault(project), "ok"
    except Skipped as reason:
        came, verdict = str(reason), "skipped"
    except NotOk as reason:
        came, verdict = str(reason), "NOT ok"
    except Exception:
        came, verdict = traceback.format_exc(), "NOT ok"
    came = came.replace(str(project.root), ".")
    say(
        f"{name}: {verdict} ({time.monotonic() - began:.0f} s)",
        f"  command:  {project.typed[0] if project.typed else '-'}",
        f"  expected: {fault.__doc__}",
        f"  came:     {came}",
    )
    project.end()
    return verdict != "NOT ok"


def _mount_unseen() -> None:
    """Become a process whose mounts no other one sees, and that may make them, where the system lets it."""
    unshare = shutil.which("unshare")
    if unshare and "UNSHARED" not in os.environ:
        as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = [unshare, "--mount", *as_root, sys.executable, *sys.argv]
        os.environ["UNSHARED"] = "1"
        if os.spawnv(os.P_WAIT, unshare, [*command[: 2 + len(as_root)], "true"]) == 0:
            os.execv(unshare, command)


FAULTS: dict[str, Callable[[Project], str]] = {
    "disk_full_checkpoint": disks.checkpoint,
    "disk_full_run_folder": disks.run_folder,
    "disk_full_artifact": disks.artifact,
    "disk_full_database": disks.database,
    "disk_full_snapshot": disks.snapshot,
    "read_only_models": disks.read_only,
    "server_away": stores.server_away,
    "server_lost": stores.server_lost,
    "database_locked": stores.database_locked,
    "snapshot_bit": content.snapshot_bit,
    "source_missing": content.source_missing,
    "state_truncated": content.state_truncated,
    "state_foreign": content.state_foreign,
    "loss_not_finite": limits.not_a_number,
    "loss_diverged_at_once": limits.diverged_at_once,
    "out_of_memory": limits.out_of_memory,
    "worker_killed": killed.worker,
    "suite_killed": killed.driver,
}

if __name__ == "__main__":
    main()
