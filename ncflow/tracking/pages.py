"""MLflow's UI on the project's store, opened on a page that lines the runs up."""

from __future__ import annotations

import json
import os
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

from ncflow.tracking.interruption import interruptible
from ncflow.tracking.stores import artifact_root, store, tracking_uri


def ui_address(port: int = 5000, *, host: str = "127.0.0.1", experiment_id: str = "0") -> str:
    """The address that opens MLflow straight on the runs of an experiment, with the columns that `ui` was given."""
    return f"http://{host}:{port}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey=ncflow"


@contextmanager
def ui(
    root: Path,
    *,
    port: int = 5000,
    host: str = "127.0.0.1",
    columns: Sequence[str] = ("attributes.Dataset",),
    experiment_id: str = "0",
) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server on the project's store, answering at `ui_address(port)` once entered, stopped on leaving.

    `columns` of the runs table read like `metrics.test/acc/few`, `params.cfg.seed`, `tags.head`.
    """
    uri = tracking_uri(root)
    if urlsplit(uri).scheme in ("http", "https"):
        raise ValueError(f"the runs are on a server already: open {uri}")
    if _answers(host, port):
        raise ValueError(f"port {port} of {host} is in use; stop what answers there or take another, e.g. {port + 1}")
    where = ["--backend-store-uri", uri, "--default-artifact-root", artifact_root(root)]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--host", host, "--port", str(port), "--workers", "1"]
    with store(root) as mlflow, interruptible():
        mlflow.MlflowClient().set_experiment_tag(experiment_id, "mlflow.sharedViewState.ncflow", _view(columns))
        silent = subprocess.DEVNULL
        # The environment as the store has made it, without telemetry; and without jobs, which saves four processes.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, env=environment, stdout=silent, stderr=silent, start_new_session=True)
        try:
            _wait_for(server, shlex.join(command), host, port)
            yield server
        finally:
            _stop(server)


def _view(columns: Sequence[str]) -> str:
    """A view as MLflow keeps those that users share, in a tag of the experiment; left to itself it shows no metric."""
    parts = (column.partition(".") for column in columns)
    return json.dumps({"selectedColumns": [f"{kind}.`{name}`" for kind, _, name in parts]})


def _answers(host: str, port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def _wait_for(server: subprocess.Popen[bytes], command: str, host: str, port: int) -> None:
    """Return when the server answers; it says nothing itself, so the error tells how to hear it."""
    while not _answers(host, port):
        if server.poll() is not None:
            raise RuntimeError(f"MLflow's server stopped with status {server.returncode}; to see why, run: {command}")
        time.sleep(0.1)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server with the worker it has started, which is why it leads a process group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    server.wait()
