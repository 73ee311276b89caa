"""Where runs are kept: the project, its store, and a database that many processes may open at once."""

from __future__ import annotations

import itertools
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from ncflow.tracking.moved import ARTIFACTS, follow_project, location_of


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI if set, a relative file or folder in it taken from `root`; else `mlflow.db` in `root`.

    The default is the store that MLflow's own commands use when typed in `root`. DVC runs temporary and queued
    experiments in a copy of the project below `.dvc/tmp/exps`, which it deletes: there the store is that of the project
    itself, so that what was tracked outlives the copy.
    """
    root = _original(root)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///"):
        return sqlite_uri(root / sqlite_file(uri))
    if urlsplit(uri).scheme in ("", "file") and uri not in _NAMED_STORES:
        return (root / unquote(urlsplit(uri).path)).as_uri()
    return uri


def sqlite_uri(file: Path) -> str:
    """A database's address, in which only what SQLAlchemy takes for something else is quoted."""
    return f"sqlite:///{str(file).replace('%', '%25').replace('?', '%3F')}"


def sqlite_file(uri: str) -> Path:
    """The file of such an address, relative or not."""
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def is_writable(uri: str) -> bool:
    """Whether a store may be written to, as far as one can tell: a database needs its file and its folder."""
    if not uri.startswith("sqlite:///"):
        return True
    file = sqlite_file(uri)
    return os.access(file.parent, os.W_OK) and (not file.exists() or os.access(file, os.W_OK))


@contextmanager
def store(root: Path) -> Iterator[Any]:
    """Inside, the module mlflow, which is yielded, reads and writes the project's store; outside, what it did before.

    The first to come creates the database while the others wait: MLflow's own creation breaks it for good when several
    processes start together. A store that may not be written to is opened as it is, to be looked at. One that fails is
    an OSError that says so.
    """
    mlflow, uri = _import_mlflow(), tracking_uri(root)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        if uri.startswith("sqlite:///"):
            _open_database(uri, root)
        mlflow.set_tracking_uri(uri)
        yield mlflow
    except ModuleNotFoundError as error:
        if error.name not in DRIVERS:
            raise
        raise ValueError(
            f"MLflow's store {urlsplit(uri).scheme}://… needs the package {error.name}, which is not here; install it "
            f"with `uv pip install {DRIVERS[error.name]}`"
        ) from error
    except mlflow.exceptions.MlflowException as error:
        reason = getattr(error.__cause__, "orig", error)  # of a database, without the statement that it refused
        raise OSError(f"MLflow's store failed, mend it and give the same command again: {reason}") from error
    finally:
        mlflow.set_tracking_uri(before)


def artifact_root(root: Path) -> str:
    """Where MLflow would put artifacts if it ran in `root`; left to itself it takes the folder it happens to run in."""
    return location_of(_original(root) / ARTIFACTS)


def _import_mlflow() -> Any:
    """MLflow, imported on first use, without telemetry and chatter unless the user asked for them."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    # Of a database that fails it would print the statements and its own insides, beside the error that says all.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow


def _make_real_parents() -> None:
    """Have MLflow make the folder of a database under its own name; it takes the quoted one, next to it."""
    from mlflow.store.db import utils

    make = getattr(utils._make_parent_dirs_if_sqlite, "__wrapped__", utils._make_parent_dirs_if_sqlite)
    utils._make_parent_dirs_if_sqlite = wraps(make)(lambda uri: make(unquote(uri)))


def _open_database(uri: str, root: Path) -> None:
    """Tables, default experiment and the one MLFLOW_EXPERIMENT_NAME asks for, where missing; one process at a time.

    Locations follow a project that has moved. Where nothing may be written, nothing is.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Engine, event
    from sqlalchemy.exc import DatabaseError

    _make_real_parents()
    if not event.contains(Engine, "connect", _wait_for_others):
        event.listen(Engine, "connect", _wait_for_others)
    file, project = sqlite_file(uri).resolve(), _original(root)
    if file.exists() and not is_writable(uri):
        _tell(follow_project(file, project, writable=False))
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        try:
            if not file.exists():
                _create_tables(file, root)
            _tell(follow_project(file, project, writable=True))
            tables = SqlAlchemyStore(uri, artifact_root(root))
        except (DatabaseError, sqlite3.DatabaseError) as error:
            reason = f"{getattr(error, 'orig', error)}; mend it, and give the same command again"
            raise OSError(f"MLflow's store {file} cannot be opened: {reason}") from error
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if experiment and tables.get_experiment_by_name(experiment) is None:
            tables.create_experiment(experiment)


def _create_tables(file: Path, root: Path) -> None:
    """A new database, complete or not there: killed between two of MLflow's migrations it would never open again."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    partial = file.with_name(f"{file.name}.partial")
    try:
        # A journal that outlived its database would be played back into the new one of that name.
        for name, ending in itertools.product((partial, file), ("-journal", "-wal", "-shm")):
            name.with_name(name.name + ending).unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
        SqlAlchemyStore(sqlite_uri(partial), artifact_root(root)).engine.dispose()
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _tell(text: str | None) -> None:
    if text:
        logging.getLogger("ncflow").warning("%s", text)


def _wait_for_others(connection: Any, record: object) -> None:
    """Let SQLite wait for the locks of others from the first look on, as long as MLflow's sessions do afterwards."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA busy_timeout = 20000")


def _original(root: Path) -> Path:
    """The project of which `root` is, if DVC made it, a temporary copy; else `root`.

    DVC copies the whole git repository. Of a project in a subfolder of it, the copy therefore has that subfolder again.
    """
    root = root.resolve()
    if not (copy := _DVC_COPY.fullmatch(root.as_posix())):
        return root
    project, rest = Path(copy["project"]), Path(copy["rest"].lstrip("/"))
    repository = next((folder for folder in (project, *project.parents) if (folder / ".git").exists()), project)
    below = project.relative_to(repository)
    return project / (rest.relative_to(below) if rest.is_relative_to(below) else rest)


# What SQLAlchemy and MLflow import for a store, and what brings it.
DRIVERS = {
    "psycopg2": "psycopg2-binary",
    "psycopg": "'psycopg[binary]'",
    "MySQLdb": "mysqlclient",
    "pymysql": "pymysql",
    "pyodbc": "pyodbc",
    "boto3": "boto3",
    "google": "google-cloud-storage",
    "azure": "azure-storage-blob azure-identity",
    "databricks": "databricks-sdk",
}
_DVC_COPY = re.compile(r"(?P<project>.*?)/\.dvc/tmp/exps/(standalone/)?[^/]+(?P<rest>(/.*)?)")
_NAMED_STORES = ("databricks", "databricks-uc", "uc")  # what MLflow takes for a store although it looks like a folder
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
