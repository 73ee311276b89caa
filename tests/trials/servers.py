"""Run the commands of docs/servers.md on real servers on loopback, and compare what comes with what should come.

    python tests/trials/servers.py [name ...]

PostgreSQL and OpenSSH are Debian's, the bucket is moto's. All of it is in a temporary folder and ends with the trial.
The exit code is 0 if all holds, 77 with the reason if a package or a right is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from kill import say
from server_faults import FAULTS
from services import POSTGRES, SSHD
from site_of_servers import Site
from trial import NotOk, Project, Skipped

from ncflow.lookup import lookup
from ncflow.tracking.stores import _QUIET as QUIET

MODULES = {
    "psycopg": "'psycopg[binary]'",
    "boto3": "boto3",
    "moto": "'moto[server]'",
    "dvc_s3": "dvc-s3",
    "dvc_ssh": "dvc-ssh",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"default: all of {', '.join(FAULTS)}")
    asked = parser.parse_args()
    outcomes = {name: lookup(FAULTS, name, "outcome") for name in asked.names or FAULTS}
    if missing := lacks():
        say(f"skipped: {missing}")
        sys.exit(77)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end, too
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "AWS_", "PG", "NCFLOW_"))]:
        del os.environ[name]  # a user's own servers are left alone
    with here() as folder, Site(folder) as site:
        sys.exit(any([not tried(site, name, outcome) for name, outcome in outcomes.items()]))


def lacks() -> str:
    """What this machine lacks for the trial, with the command that brings it; empty for nothing."""
    if packages := [package for module, package in MODULES.items() if find_spec(module) is None]:
        return f"install with `uv pip install {' '.join(packages)}`"
    if not POSTGRES or not SSHD or not shutil.which("psql"):
        return "install with `apt-get install postgresql openssh-server`"
    return "" if os.geteuid() == 0 else "only root may start PostgreSQL as user postgres"


@contextmanager
def here() -> Iterator[Path]:
    """A temporary folder, with an environment for the commands of the page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # user postgres has a folder in it
        (folder / "plain").mkdir()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.environ |= QUIET | {"TRIALS": f"{folder}/plain", "PATH": path, "HOME": name, "DVC_NO_ANALYTICS": "true"}
        os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PGPASSFILE": "/dev/null"}
        os.environ |= {f"GIT_{role}_{what}": "trial" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        yield folder


def tried(site: Site, name: str, outcome: Callable[[Site, Project], str]) -> bool:
    """Try one outcome and say what came; whether it was as expected, or could not be provoked here."""
    began, project = time.monotonic(), Project(site.folder / "projects" / name)
    try:
        came, verdict = outcome(site, project), "ok"
    except Skipped as reason:
        came, verdict = str(reason), "skipped"
    except NotOk as reason:
        came, verdict = str(reason), "NOT ok"
    except subprocess.CalledProcessError as error:
        came, verdict = f"{error.cmd[-1]}: {error.stdout or ''}{error.stderr or ''}"[-3000:], "NOT ok"
    except Exception:
        came, verdict = traceback.format_exc(), "NOT ok"
    seconds = time.monotonic() - began
    came = site.without_secrets(came.replace(str(project.root), "."))
    say(f"{name}: {verdict} ({seconds:.0f} s)", f"  expected: {outcome.__doc__}", f"  came:     {came}")
    sys.stdout.flush()
    site.set_aside(project)
    return verdict != "NOT ok"


if __name__ == "__main__":
    main()
