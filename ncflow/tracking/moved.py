"""Update the store of a project that has moved: MLflow stores absolute paths, which are then wrong."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from ncflow.files import write_text

ARTIFACTS = "mlruns"
# All columns of MLflow's tables that hold locations. Experiments come first: they locate new files.
COLUMNS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
PATTERN = re.compile(rf"(?P<project>/.*)/{ARTIFACTS}/(?P<rest>[^/].*)")


@dataclass(frozen=True)
class _Row:
    """A location in a table, its project, and its path relative to the project's artifacts."""

    table: str
    key: int
    location: str
    project: str
    rest: str


def follow_project(database: Path, project: Path, *, writable: bool) -> str | None:
    """Update the locations in an SQLite store to `project`, which holds it; return a message, None if none changed.

    A location changes if the project has moved or was copied: it is below another project, and its file is here or no
    longer there. In a store outside of the project, which others may use as well, the other project must be gone and
    files of its runs must be here. Other locations stay, such as a folder that the user chose. All changes are one
    transaction. A backup of the database is saved next to it. A read-only store stays unchanged, and the message
    explains the effect.
    """
    with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=20)) as connection:
        rows = list(_rows(connection, project))
    here = project / ARTIFACTS
    left = {row.project for row in rows if (here / row.rest).exists()}
    left |= {row.project for row in rows if row.rest == "0" and not _exists(Path(row.project, ARTIFACTS))}
    if not database.is_relative_to(project):
        brought = {row.project for row in rows if row.table != "experiments" and (here / row.rest).exists()}
        left = {other for other in brought if is_gone(Path(other))}
    moved = [row for row in rows if row.project in left and _follows(row, here)]
    if not moved:
        return None
    before = ", ".join(sorted({row.project for row in moved}))
    if not writable:
        return (
            f"{database} has paths below {before}, but the project is now {project}, and the store "
            "may not be written: files of its runs are not shown; open a writable copy of the project"
        )
    backup = database.with_name(f"{database.name}.before-move-{time.strftime('%Y%m%dT%H%M%S')}")
    partial = backup.with_name(f"{backup.name}.partial")
    with closing(sqlite3.connect(database, timeout=20)) as connection:
        try:
            with closing(sqlite3.connect(partial)) as copy:
                connection.backup(copy)
            partial.replace(backup)
        finally:
            partial.unlink(missing_ok=True)
        for row in moved:
            if row.table == "logged_models":
                _rewrite_model(here / row.rest / "MLmodel", row.location, location_of(here / row.rest))
        with connection:  # all of them or none
            for row in moved:
                change = f"UPDATE {row.table} SET {COLUMNS[row.table]} = ? WHERE rowid = ?"
                connection.execute(change, (location_of(here / row.rest), row.key))
    return (
        f"the project has moved from {before} to {project}: {len(moved)} paths in {database.name} were updated; "
        f"the backup of the store is {backup.name}"
    )


def location_of(path: Path) -> str:
    """A path as MLflow stores it: plain, or a URI if the path has characters that MLflow would misread."""
    return path.as_uri() if any(sign in str(path) for sign in "%?#") else str(path)


def is_gone(folder: Path) -> bool:
    """Whether a folder does not exist; one that the user may not look for counts as existing."""
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def project_of(location: str, experiment_id: str) -> Path | None:
    """The project in whose artifacts an experiment keeps its files; None for a place that the user chose."""
    match = PATTERN.fullmatch(_path(location))
    return Path(match["project"]) if match and match["rest"] == experiment_id else None


def _rows(connection: sqlite3.Connection, project: Path) -> Iterator[_Row]:
    """All locations below the artifacts of another project; none if no experiment is there."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table, column in COLUMNS.items():
        if table not in tables:
            continue
        found = False
        for key, location in connection.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL"):
            match = PATTERN.fullmatch(_path(location))
            if match and match["project"] != str(project):
                found = True
                yield _Row(table, key, location, match["project"], match["rest"])
        if table == "experiments" and not found:  # skip thousands of runs
            return


def _path(location: str) -> str:
    """The local path of a location; empty for a location on a server."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return unquote(parts.path)
    return location if location.startswith("/") else ""


def _follows(row: _Row, here: Path) -> bool:
    """Whether to change a location: always for experiments, else if the file is here or does not exist."""
    return row.table == "experiments" or (here / row.rest).exists() or not _exists(Path(_path(row.location)))


def _exists(path: Path) -> bool:
    """Whether a path exists and the user may read it."""
    try:
        return path.exists()
    except PermissionError:
        return False


def _rewrite_model(file: Path, before: str, after: str) -> None:
    """Update the path in the description of a logged model."""
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        changed = re.sub(rf"(?m)^(artifact_path: ).*{re.escape(before)}.*$", lambda line: f"{line[1]}{after}", text)
        if changed != text:
            write_text(file, changed)
