"""MLflow's UI on the project's store, opened on a page that lines the runs up."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from ncflow.interruption import interruptible
from ncflow.tracking.experiments import find_experiment
from ncflow.tracking.stores import artifact_root, is_writable, sqlite_file, sqlite_uri, store, tracking_uri

VIEW = "mlflow.sharedViewState.ncflow"  # the tag in which MLflow keeps a view that users share
EVERYWHERE = ("0.0.0.0", "::", "")  # a server that answers at all addresses of its machine


def ui_address(port: int = 5000, *, host: str = "127.0.0.1", experiment_id: str = "0") -> str:
    """The address that opens MLflow straight on the runs of an experiment, with the columns that `ui` was given."""
    host = socket.gethostname() if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey=ncflow"


def ui_command(root: Path) -> str:
    """The command that opens the UI on the runs that commands in this environment write, to be typed in `root`."""
    uri, words = os.environ.get("MLFLOW_TRACKING_URI"), ["uv run ncflow ui"]
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
    if urlsplit(uri or "").scheme in ("http", "https"):
        return f"open {_without_password(str(uri))}" + (f", experiment {experiment}" if experiment != "0" else "")
    if uri and tracking_uri(root) != sqlite_uri(root / "mlflow.db"):
        words.insert(0, f"MLFLOW_TRACKING_URI={shlex.quote(_without_password(tracking_uri(root)))}")
    if experiment not in ("0", "Default"):
        words.append(f"--experiment {shlex.quote(experiment)}")
    where = "" if Path.cwd().is_relative_to(root) else f" in {root}"
    return f"`{' '.join(words)}`{where}" + (f", then {ui_address()}" if experiment in ("0", "Default") else "")


def _without_password(uri: str) -> str:
    """An address that may be shown: of what stands before its @ only the name."""
    return re.sub(r"(//[^/@:]*):[^/@]*@", r"\1:…@", uri)


@contextmanager
def ui(
    root: Path,
    *,
    port: int = 5000,
    host: str = "127.0.0.1",
    columns: Sequence[str] = ("attributes.Dataset",),
    experiment: str | None = None,
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """MLflow's server on the project's store and the address that it answers at, stopped on leaving.

    `columns` of the runs table read like `metrics.test/acc/few`, `params.cfg.seed`, `tags.head`. `experiment` is a name
    or an ID; default: the one that the environment names, else MLflow's default. A store that may not be written to is
    shown as it is, without these columns unless they are kept in it. Raises ValueError for an experiment that is not
    there, a port in use, and runs that are on a server already.
    """
    uri, cwd = tracking_uri(root), None
    if urlsplit(uri).scheme in ("http", "https"):
        raise ValueError(f"the runs are on a server already: open {_without_password(uri)}")
    if _answers(host, port):
        raise ValueError(f"port {port} of {host} is in use; stop what answers there or take another, e.g. {port + 1}")
    if uri.startswith("sqlite:///"):
        file = sqlite_file(uri)
        if not file.exists() and not is_writable(uri):
            raise ValueError(f"{file} is not there, and may not be made: expected a project with runs in MLflow")
        server_uri, cwd = sqlite_uri(Path(file.name)), file.parent  # relative, as MLflow would quote the folder's name
    else:
        server_uri = uri
    where = ["--backend-store-uri", server_uri, "--default-artifact-root", artifact_root(root)]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--host", host, "--port", str(port), "--workers", "1"]
    with store(root) as mlflow, interruptible():
        found = find_experiment(mlflow, experiment)
        view = _view(columns)
        if is_writable(uri) and found.tags.get(VIEW) != view:
            mlflow.MlflowClient().set_experiment_tag(found.experiment_id, VIEW, view)
        silent = subprocess.DEVNULL
        # The environment as the store has made it, without telemetry; and without jobs, which saves four processes.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=silent, stderr=silent, start_new_session=True
        )
        try:
            _wait_for(server, shlex.join(command), host, port)
            yield server, ui_address(port, host=host, experiment_id=found.experiment_id)
        finally:
            _stop(server)


def _view(columns: Sequence[str]) -> str:
    """A view as MLflow keeps those that users share, in a tag of the experiment; left to itself it shows no metric."""
    parts = (column.partition(".") for column in columns)
    return json.dumps({"selectedColumns": [f"{kind}.`{name}`" for kind, _, name in parts]})


def _answers(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        with socket.create_connection(("localhost" if host in EVERYWHERE else host, port), timeout=5):
            return True
    except socket.gaierror as error:
        raise ValueError(f"expected the name or the address of this machine, got --host {host}: {error}") from error
    except OSError:
        return False


def _wait_for(server: subprocess.Popen[bytes], command: str, host: str, port: int) -> None:
    """Return when the server answers; it says nothing itself, so the error tells how to hear it."""
    while not _answers(host, port):
        if server.poll() is not None:
            raise RuntimeError(f"MLflow's server stopped with status {server.returncode}; to see why, run: {command}")
        time.sleep(0.1)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server with the worker it has started, which is why it leads a process group of its own."""
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(server.pid, signal.SIGTERM)
        else:  # Windows
            server.terminate()
    server.wait()
