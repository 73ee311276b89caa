"""Faults of disks: full, at every place that is written to, or not to be written to at all.

The full disk is a small file system in memory, mounted over the folder where only these trials see it.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trial import SNAPSHOT, Project, Skipped, expect

from ncflow import stages

STATE = str(stages.STATES)
ROOM = 1_000_000  # bytes left for what is small, such as the history, when the disk fills; a state has two million


def checkpoint(project: Project) -> str:
    """the file named, the states of the epochs before kept, and the same command goes on from there"""
    return _fills_up(project, STATE, "cannot write … epoch_3.pt: No space left … the same command again", room=ROOM)


def run_folder(project: Project) -> str:
    """the file named, nothing half-written in models/, and the same command goes on"""
    return _fills_up(project, "models", "cannot write … history.json: No space left … the same command again")


def artifact(project: Project) -> str:
    """the place of the artifacts named, and the same command goes on in the same MLflow run, each step once"""
    return _fills_up(project, "mlruns", "cannot write … mlruns … No space left … the same command again")


def database(project: Project) -> str:
    """MLflow's store named, the states kept, and the same command goes on in the same MLflow run"""
    project.environment["MLFLOW_TRACKING_URI"] = "sqlite:///store/mlflow.db"
    return _fills_up(project, "store", "MLflow's store failed … database or disk is full … same command", megabytes=8)


def snapshot(project: Project) -> str:
    """the snapshot named, no half snapshot under data/, and the same command makes it and trains"""
    with mounted(project, "data", "-t", "tmpfs", "-o", "size=16k", "tmpfs"):
        ended = project.ncflow("train").wait(65, saying="cannot write … data … No space left … the same command")
        project.nothing_half_written(states=False)
        expect(not (project.root / SNAPSHOT).exists(), "half a snapshot is left")
    project.finishes_as_if_nothing_had_been()
    return ended.message


def read_only(project: Project) -> str:
    """the folder named before anything is trained, and the same command trains once it may be written"""
    (project.root / "models").mkdir()
    with mounted(project, "models", "--bind", str(project.root / "models")) as models:
        _run("mount", "-o", "remount,ro,bind", str(models))
        ended = project.ncflow("train").wait(65, saying="cannot write … models … Read-only … the same command")
    project.nothing_half_written(states=False)
    project.finishes_as_if_nothing_had_been()
    return ended.message


def _fills_up(project: Project, where: str, saying: str, *, room: int = 0, megabytes: int = 32) -> str:
    """Train until the second epoch is finished, when `where` fills up; cured, the same command must end it well."""
    with mounted(project, where, "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs") as disk:
        training = project.ncflow("train").freeze_at(f"{STATE}/run-*/epoch_2.pt", project.root)
        filler = _fill(disk / "filler", room)
        ended = training.thaw().wait(65, saying=saying)
        project.nothing_half_written()
        filler.unlink()
        project.finishes_as_if_nothing_had_been()
    return ended.message


@contextmanager
def mounted(project: Project, where: str, *what: str) -> Iterator[Path]:
    """Inside, a file system over a folder of the project."""
    folder = project.root / where
    folder.mkdir(parents=True, exist_ok=True)
    _run("mount", *what, str(folder))
    try:
        yield folder
    finally:
        _run("umount", "--lazy", str(folder))


def _run(*command: str) -> None:
    """A command of the system; where it may not be given, the trial is skipped."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Skipped(f"no mounts here: {getattr(error, 'stderr', '') or error}".strip()) from None


def _fill(file: Path, room: int) -> Path:
    """Fill the disk but for `room` bytes."""
    with file.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError as error:
            expect(error.errno == errno.ENOSPC, str(error))
        os.ftruncate(stream.fileno(), max(stream.tell() - room, 0))
    return file
