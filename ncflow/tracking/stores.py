"""The store of runs: its address, and how many processes open its database at the same time."""

from __future__ import annotations

import itertools
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from ncflow.tracking.moved import ARTIFACTS, follow_project, location_of


def tracking_uri(root: Path) -> str:
    """The URI of the store: MLFLOW_TRACKING_URI if set, else `mlflow.db` in `root`.

    A relative file or folder in MLFLOW_TRACKING_URI is relative to `root`. MLflow's own commands use the same default
    when they run in `root`. DVC runs temporary and queued experiments in a copy of the project below `.dvc/tmp/exps`
    and deletes the copy. Such a copy uses the store of the original project, so its runs are kept.
    """
    root = _original(root)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///"):
        return sqlite_uri(root / sqlite_file(uri))
    if urlsplit(uri).scheme in ("", "file") and uri not in _NAMED_STORES:
        return (root / unquote(urlsplit(uri).path)).as_uri()
    return uri


def sqlite_uri(file: Path) -> str:
    """The URI of a database file; only the characters that SQLAlchemy would misread are quoted."""
    return f"sqlite:///{str(file).replace('%', '%25').replace('?', '%3F')}"


def sqlite_file(uri: str) -> Path:
    """The file of a URI from `sqlite_uri`; may be relative."""
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def is_writable(uri: str) -> bool:
    """Whether the user may write to a store: a database needs its file and its folder; a server counts as writable."""
    if not uri.startswith("sqlite:///"):
        return True
    file = sqlite_file(uri)
    return os.access(file.parent, os.W_OK) and (not file.exists() or os.access(file, os.W_OK))


def exists(uri: str) -> bool:
    """Whether a store exists: a database needs its file; a server counts as existing."""
    return not uri.startswith("sqlite:///") or sqlite_file(uri).exists()


@contextmanager
def store(root: Path) -> Iterator[Any]:
    """Yield the module mlflow, set to the project's store; the earlier setting returns on exit.

    The first process creates the database while the others wait. MLflow's own creation destroys the database when
    several processes start together. A read-only store is opened without changes.

    Raises OSError for a store that fails, and ValueError where the store needs a package that is not installed. No
    message has the password of the store.
    """
    mlflow, uri = _import_mlflow(), tracking_uri(root)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        if uri.startswith("sqlite:///"):
            _open_database(uri, root)
        elif urlsplit(uri).scheme.partition("+")[0] in DATABASES:
            _log_in(uri)
        mlflow.set_tracking_uri(uri)
        yield mlflow
    except ModuleNotFoundError as error:
        if error.name not in DRIVERS:
            raise
        raise ValueError(
            f"MLflow's store {urlsplit(uri).scheme}://… needs the package {error.name}, which is not "
            f"installed; install it with `uv pip install {DRIVERS[error.name]}`"
        ) from error
    except mlflow.exceptions.MlflowException as error:
        reason = getattr(error.__cause__, "orig", error)  # of a database: without the SQL statement
        shows_secret = without_secrets(error, uri) != str(error)  # then a traceback would show it, too
        raise failed(uri, reason) from (None if shows_secret else error)
    finally:
        # A variable that set the store stays the only setting: MLflow must follow the user who changes it later.
        mlflow.set_tracking_uri(None)
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow removes only what it has set last
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def write_shared(mlflow: Any, write: Callable[[], None]) -> None:
    """Call `write`, which writes a row that several runs share. Call it again if another process was first.

    MLflow looks for such a row and inserts a missing one. Two processes that do so together both insert it, and the
    database refuses the second. The next call finds the row. Other failures are raised at once.
    """
    for _ in range(_CONTENDERS):
        try:
            return write()
        except mlflow.exceptions.MlflowException as error:
            if not re.search(_THERE_ALREADY, str(error), re.IGNORECASE):
                raise
    return write()


def failed(uri: str, reason: object) -> OSError:
    """The error for a store that fails: its address, the reason and the remedy, without passwords."""
    text, address = without_secrets(reason, uri), without_secrets(uri)
    if (host := urlsplit(address).netloc.rpartition("@")[2]) and host not in text:
        text = f"{text} ({address})"
    return OSError(f"MLflow's store failed, fix it and rerun the same command: {text}{advice_on(text)}")


def advice_on(text: str) -> str:
    """What to try after an error of a server with this text, as a sentence to append; empty if nothing is known."""
    return next((f". {advice}" for words, advice in _ADVICE.items() if re.search(words, text)), "")


def without_secrets(text: object, uri: str | None = None) -> str:
    """A text without the password of any address in it, and without those of `uri` and of MLflow's variables."""
    shown = str(text)
    inside = urlsplit(uri or os.environ.get("MLFLOW_TRACKING_URI", "")).password or ""
    for secret in {inside, unquote(inside), *(os.environ.get(name, "") for name in _SECRETS)} - {""}:
        shown = shown.replace(secret, "…")
    return re.sub(r"(//[^/@:\s]*):[^/@\s]*@", r"\1:…@", shown)


def artifact_root(root: Path) -> str:
    """The folder of artifacts, `mlruns` in the project; MLflow alone would use the current folder."""
    return location_of(_original(root) / ARTIFACTS)


def _import_mlflow() -> Any:
    """MLflow, imported on first use; telemetry and messages are off unless the user turns them on."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    # For a database error MLflow would also print SQL statements and a traceback. The error is enough.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow


def _make_real_parents() -> None:
    """Make MLflow create the folder of a database under its real name; MLflow would use the quoted name."""
    from mlflow.store.db import utils

    make = getattr(utils._make_parent_dirs_if_sqlite, "__wrapped__", utils._make_parent_dirs_if_sqlite)
    utils._make_parent_dirs_if_sqlite = wraps(make)(lambda uri: make(unquote(uri)))


def _open_database(uri: str, root: Path) -> None:
    """Create missing tables, the default experiment and MLFLOW_EXPERIMENT_NAME's; one process at a time.

    Update the locations if the project has moved. Write nothing to a read-only store.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Engine, event
    from sqlalchemy.exc import DatabaseError

    _make_real_parents()
    if not event.contains(Engine, "connect", _wait_for_others):
        event.listen(Engine, "connect", _wait_for_others)
    file, project = sqlite_file(uri).resolve(), _original(root)
    if misread := _MISREAD.search(str(project)):
        _tell(
            f"MLflow cannot load models from {project}: it misreads {misread[0]!r} in a folder's name. Rename the "
            "folder, or load the checkpoints of the run folders"
        )
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
            reason = f"{getattr(error, 'orig', error)}; fix it, then rerun the same command"
            raise OSError(f"MLflow's store {file} cannot be opened: {reason}") from error
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if experiment and tables.get_experiment_by_name(experiment) is None:
            tables.create_experiment(experiment)


def _log_in(uri: str) -> None:
    """Open a database server once, because MLflow would repeat a wrong password for minutes."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        create_engine(uri, poolclass=NullPool).connect().close()
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", error)).split())
        raise failed(uri, reason) from None  # its text may hold the whole address


def _create_tables(file: Path, root: Path) -> None:
    """Create a database completely or not at all: one killed between two migrations of MLflow never opens again."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    partial = file.with_name(f"{file.name}.partial")
    try:
        # SQLite would apply a left-over journal to the new database of the same name.
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
    """Let SQLite wait for the locks of others from the first query, as long as MLflow's later sessions do."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA busy_timeout = 20000")


def _original(root: Path) -> Path:
    """The original project if `root` is a temporary copy by DVC; else `root`.

    DVC copies the whole git repository. If the project is a subfolder of it, the copy has the same subfolder.
    """
    root = root.resolve()
    if not (copy := _DVC_COPY.fullmatch(root.as_posix())):
        return root
    project, rest = Path(copy["project"]), Path(copy["rest"].lstrip("/"))
    repository = next((folder for folder in (project, *project.parents) if (folder / ".git").exists()), project)
    below = project.relative_to(repository)
    return project / (rest.relative_to(below) if rest.is_relative_to(below) else rest)


_MISREAD = re.compile(r"%[0-9A-Fa-f]{2}|[\x00-\x1f]")  # MLflow decodes a model's path twice, and writes it to YAML
DATABASES = ("postgresql", "mysql", "mssql")
# Text of an error -> what to try; the first row that matches.
_ADVICE = {
    r"authentication failed|Access denied": "Correct the user and the password of the database",
    r"error code 40[13]\b|\b40[13] Client Error|UNAUTHENTICATED|PERMISSION_DENIED": (
        "Correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    ),
    # It also closes the connection if it refuses an upload before it has read all of it.
    r"error code 50\d\b|\b50\d Server Error|too many 50\d\b|INTERNAL_ERROR|Connection(Reset| reset| aborted)": (
        "The server's log has the reason"
    ),
    r"maintenance mode": "Use a database: MLFLOW_TRACKING_URI=sqlite:///mlflow.db, or unset the variable",
    r"Connection refused|Max retries|resolve|timed out|timeout": ("Start the server, or correct MLFLOW_TRACKING_URI"),
}
# What a database says of a row that is there: SQLite, PostgreSQL, MySQL, SQL Server.
_THERE_ALREADY = r"unique constraint|duplicate (key|entry)|unique key"
_CONTENDERS = 8  # each failure means that another process has written a row
_SECRETS = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "PGPASSWORD",
)
# Module that SQLAlchemy or MLflow imports for a store -> the package to install.
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
_NAMED_STORES = ("databricks", "databricks-uc", "uc")  # stores of MLflow that look like folders
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    # It would continue one MLflow run for all runs of a Databricks job.
    "MLFLOW_ENABLE_SGC_RUN_RESUMPTION_FOR_DATABRICKS_JOBS": "false",
}
