"""A store whose project has moved: MLflow keeps absolute paths, which then lead to where the project was before."""

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
# Every column of MLflow's tables that holds where files lie. Experiments come first: they say where new files will go.
COLUMNS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
PATTERN = re.compile(rf"(?P<project>/.*)/{ARTIFACTS}/(?P<rest>[^/].*)")


@dataclass(frozen=True)
class _Row:
    """A location in a table, the project below which it lies, and the way from its artifacts on."""

    table: str
    key: int
    location: str
    project: str
    rest: str


def follow_project(database: Path, project: Path, *, writable: bool) -> str | None:
    """Make the locations in an SQLite store lead to `project`, which holds it; says what was done, if anything.

    A location is changed where the project has moved or was copied: it lies below another project, and its file is
    here or is there no more. Others stay, such as a folder that the user chose. All changes are one transaction, and
    the database before it is kept next to it. A store that may not be written stays, and the text says what that means.
    """
    if not database.is_relative_to(project):  # a store that several projects share
        return None
    with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=20)) as connection:
        rows = list(_rows(connection, project))
    here = project / ARTIFACTS
    left = {row.project for row in rows if (here / row.rest).exists()}
    left |= {row.project for row in rows if row.rest == "0" and not _exists(Path(row.project, ARTIFACTS))}
    moved = [row for row in rows if row.project in left and _follows(row, here)]
    if not moved:
        return None
    before = ", ".join(sorted({row.project for row in moved}))
    if not writable:
        return (
            f"{database} says that its files lie below {before}, but the project is now {project}, and the store may "
            "not be written: files of its runs are not shown; open a copy of the project that you may write"
        )
    for row in moved:
        if row.table == "logged_models":
            _rewrite_model(here / row.rest / "MLmodel", row.location, location_of(here / row.rest))
    backup = database.with_name(f"{database.name}.before-move-{time.strftime('%Y%m%dT%H%M%S')}")
    with closing(sqlite3.connect(database, timeout=20)) as connection, closing(sqlite3.connect(backup)) as copy:
        connection.backup(copy)
        with connection:  # all of them or none
            for row in moved:
                change = f"UPDATE {row.table} SET {COLUMNS[row.table]} = ? WHERE rowid = ?"
                connection.execute(change, (location_of(here / row.rest), row.key))
    return (
        f"the project has moved from {before} to {project}: {len(moved)} paths in {database.name} follow it; the store "
        f"before is {backup.name}"
    )


def location_of(path: Path) -> str:
    """A path as MLflow keeps it: plain, or a URI where MLflow would take a part of the path for something else."""
    return path.as_uri() if any(sign in str(path) for sign in "%?#") else str(path)


def _rows(connection: sqlite3.Connection, project: Path) -> Iterator[_Row]:
    """All locations below the artifacts of another project; none where no experiment lies there."""
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
        if table == "experiments" and not found:  # of thousands of runs none needs to be looked at
            return


def _path(location: str) -> str:
    """The local path of a location; empty for one on a server."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return unquote(parts.path)
    return location if location.startswith("/") else ""


def _follows(row: _Row, here: Path) -> bool:
    """Whether this location is to be changed: always where new files go, else where the file is here or nowhere."""
    return row.table == "experiments" or (here / row.rest).exists() or not _exists(Path(_path(row.location)))


def _exists(path: Path) -> bool:
    """Whether something is there that this user may see."""
    try:
        return path.exists()
    except PermissionError:
        return False


def _rewrite_model(file: Path, before: str, after: str) -> None:
    """The description of a logged model names its place, too."""
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        changed = re.sub(rf"(?m)^(artifact_path: ).*{re.escape(before)}.*$", lambda line: f"{line[1]}{after}", text)
        if changed != text:
            write_text(file, changed)
