"""MLflow's UI on the project's store, opened on the table of runs."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ncflow.interruption import interruptible
from ncflow.tracking.charts import VIEW, Page, shared_view
from ncflow.tracking.experiments import find_experiment
from ncflow.tracking.stores import (
    artifact_root,
    is_writable,
    sqlite_file,
    sqlite_uri,
    store,
    tracking_uri,
    without_secrets,
    write_shared,
)

PLAIN = Page()
EVERYWHERE = ("0.0.0.0", "::", "")  # hosts that mean all addresses of the machine
MODE = "workflowType=machine_learning"  # of pages of runs: MLflow would show those of language models


def ui_address(port: int = 5000, *, host: str = "127.0.0.1", experiment_id: str = "0") -> str:
    """The address that opens MLflow on the runs of an experiment, with the columns that `ui` was given."""
    host = socket.gethostname() if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    return (
        f"http://{host}:{port}/#/experiments/{experiment_id}/runs?{MODE}&compareRunsMode=CHART&viewStateShareKey=ncflow"
    )


def runs_address(root: Path, tags: Mapping[str, str]) -> str | None:
    """The address of MLflow's page with the runs that have all of these tags; None if it is not known.

    It is that of the server in MLFLOW_TRACKING_URI, without a password, or else of `ui` with its defaults. MLflow has
    no address for the experiment that MLFLOW_EXPERIMENT_NAME names.
    """
    server = urlsplit(tracking_uri(root))
    experiment = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if server.scheme == "databricks" or (os.environ.get("MLFLOW_EXPERIMENT_NAME") and not experiment):
        return None
    base = ui_address().partition("/#")[0]
    if server.scheme in ("http", "https"):
        base = server._replace(netloc=server.netloc.rpartition("@")[2]).geturl().rstrip("/")
    searched = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
    return f"{base}/#/experiments/{experiment or '0'}/runs?{MODE}&searchFilter={quote(searched)}"


def ui_command(root: Path) -> str:
    """The command, to run in `root`, that opens the UI on the runs written in this environment."""
    uri, words = os.environ.get("MLFLOW_TRACKING_URI"), ["uv run ncflow ui"]
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
    if urlsplit(uri or "").scheme in ("http", "https"):
        return f"open {without_secrets(str(uri))}" + (f", experiment {experiment}" if experiment != "0" else "")
    if uri and tracking_uri(root) != sqlite_uri(root / "mlflow.db"):
        words.insert(0, f"MLFLOW_TRACKING_URI={shlex.quote(without_secrets(tracking_uri(root)))}")
    if experiment not in ("0", "Default"):
        words.append(f"--experiment {shlex.quote(experiment)}")
    where = "" if Path.cwd().is_relative_to(root) else f" in {root}"
    return f"`{' '.join(words)}`{where}" + (f", then {ui_address()}" if experiment in ("0", "Default") else "")


@contextmanager
def ui(
    root: Path,
    *,
    port: int = 5000,
    host: str = "127.0.0.1",
    page: Page = PLAIN,
    experiment: str | None = None,
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start MLflow's server on the project's store and yield it with its address; stop it on exit.

    `page` has the columns and charts of the page of runs. `experiment` is a name or an ID; the default is that of
    the environment, else MLflow's default. A read-only store is shown unchanged, without this view unless it already
    has it. Raises ValueError for an unknown experiment, for a port in use, and if the runs are already on a server.
    """
    uri, cwd = tracking_uri(root), None
    if urlsplit(uri).scheme in ("http", "https"):
        raise ValueError(f"the runs are already on a server: open {without_secrets(uri)}")
    if _answers(host, port):
        raise ValueError(f"port {port} of {host} is in use; stop its program or use another port, e.g. {port + 1}")
    if uri.startswith("sqlite:///"):
        file = sqlite_file(uri)
        if not file.exists() and not is_writable(uri):
            raise ValueError(f"{file} does not exist and cannot be created: expected a project with runs in MLflow")
        server_uri, cwd = sqlite_uri(Path(file.name)), file.parent  # relative: MLflow would quote the folder's name
    else:
        server_uri = uri
    where = ["--backend-store-uri", server_uri, "--default-artifact-root", artifact_root(root)]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--host", host, "--port", str(port), "--workers", "1"]
    with store(root) as mlflow, interruptible():
        found = find_experiment(mlflow, experiment)
        view = shared_view(page, step=_newest_step(mlflow, found.experiment_id))
        if is_writable(uri) and found.tags.get(VIEW) != view:
            client = mlflow.MlflowClient()
            write_shared(mlflow, lambda: client.set_experiment_tag(found.experiment_id, VIEW, view))
        silent = subprocess.DEVNULL
        # The store has turned off telemetry in the environment. No job execution saves four processes.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=silent, stderr=silent, start_new_session=True
        )
        try:
            _wait_for(server, shlex.join(command), host, port)
            yield server, ui_address(port, host=host, experiment_id=found.experiment_id)
        finally:
            _stop(server)


def _newest_step(mlflow: Any, experiment_id: str) -> int:
    """The last epoch of the newest run of an experiment, whose images the page shows first; 0 without runs."""
    runs = mlflow.search_runs([experiment_id], "metrics.`fit/loss` > 0", max_results=1, output_format="list")
    return max((metric.step for run in runs for metric in run.data._metric_objs if metric.key == "fit/loss"), default=0)


def _answers(host: str, port: int) -> bool:
    """Whether a server listens at this address."""
    try:
        with socket.create_connection(("localhost" if host in EVERYWHERE else host, port), timeout=5):
            return True
    except socket.gaierror as error:
        raise ValueError(f"expected a name or an address of this machine, got --host {host}: {error}") from error
    except OSError:
        return False


def _wait_for(server: subprocess.Popen[bytes], command: str, host: str, port: int) -> None:
    """Return when the server answers. Its output is hidden, so the error names the command that shows it."""
    while not _answers(host, port):
        if server.poll() is not None:
            raise RuntimeError(f"MLflow's server stopped with status {server.returncode}; to see why, run: {command}")
        time.sleep(0.1)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its worker, which share a process group."""
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(server.pid, signal.SIGTERM)
        else:  # Windows
            server.terminate()
    server.wait()
