"""Run the job scripts of docs/clusters.md on a real SLURM of two nodes, and compare what comes with what should come.

    python tests/trials/slurm.py [name ...]

SLURM and munge are Debian's. All of it is in a temporary folder and ends with the trial. The exit code is 0 if all
holds, 1 if an outcome fails, 77 with the reason if a package or a right is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from kill import say
from servers import here
from site_of_slurm import Cluster
from slurm_outcomes import OUTCOMES
from trial import Project, attempted

from ncflow.lookup import lookup

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"default: all of {', '.join(OUTCOMES)}")
    names = parser.parse_args().names
    outcomes = {name: lookup(OUTCOMES, name, "outcome") for name in names or OUTCOMES}
    os.environ["PATH"] += ":/usr/sbin"  # Debian's folder of daemons
    if missing := lacks():
        say(f"skipped: {missing}")
        sys.exit(77)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # SLURM ends, too
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "SLURM", "SBATCH_", "SRUN_", "NCFLOW_"))]:
        del os.environ[name]  # a user's own servers are left alone
    with here() as folder, Cluster(folder) as cluster:
        os.environ["VIRTUAL_ENV"] = sys.prefix
        sys.exit(any([not tried(cluster, name, each) for name, each in outcomes.items()]))


def lacks() -> str:
    """What this machine lacks for the trial, with the command that brings it; empty for nothing."""
    if not all(shutil.which(program) for program in PROGRAMS):
        return "install with `apt-get install slurm-wlm munge`"
    if not shutil.which("uv"):
        return "install with `pip install uv`"
    own = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    if os.geteuid() or subprocess.run(own, check=False, capture_output=True).returncode:
        return "only root may start SLURM, and nodes with their own processes and mounts"
    return ""


def tried(cluster: Cluster, name: str, tried: Callable[[Cluster, Project], str]) -> bool:
    """Try one outcome and print its row; whether it holds."""
    began, project = time.monotonic(), Project(cluster.folder / "projects" / name)
    came, verdict = attempted(lambda: tried(cluster, project))
    came = came.replace(str(project.root), ".")
    say(
        f"{name:<20}{time.monotonic() - began:4.0f} s  {verdict}", f"  expected: {tried.__doc__}", f"  came:     {came}"
    )
    sys.stdout.flush()
    cluster.clear()
    return verdict == "holds"


if __name__ == "__main__":
    main()
