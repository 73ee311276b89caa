"""A job: one configuration to train, the files that tell whether it is done, and the lock of who trains it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from filelock import FileLock

from ncflow.exits import Exit
from ncflow.imports import IMPORTED, run_digest
from ncflow.params import Params, load_params
from ncflow.runs.layout import CONFIG, HISTORY, is_finished, run_folder
from ncflow.runs.provenance import read_provenance
from ncflow.yaml_files import dump_yaml


class Claimed(SystemExit):
    """Another process trains this run. Not caught, it ends this process with the exit code for that."""

    def __init__(self, name: str) -> None:
        super().__init__(Exit.TAKEN)
        self.name = name

    def __str__(self) -> str:
        return f"another process trains models/{self.name}; wait until it ends, or end it"


class JobState(StrEnum):
    """How far a job is, in the order of a suite's summary."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Job:
    """One configuration, its state, and the reason for that."""

    params: Params
    root: Path
    arguments: tuple[str, ...]
    state: JobState = JobState.WAITING
    reason: str = ""
    attempts: int = 0
    started: float = 0.0  # seconds of a monotonic clock
    ended: float = 0.0
    epochs_before: int = 0  # of an interrupted run that is continued
    replaced: int = 0  # when the history was written that training will move aside, with all of a finished run
    anew: bool = False  # trained even where it is finished

    @property
    def name(self) -> str:
        return self.params.exp_name

    @property
    def folder(self) -> Path:
        return run_folder(self.root, self.name)

    @property
    def log(self) -> Path:
        return self.root / ".ncflow" / "suite" / f"{self.name}.log"

    @property
    def result(self) -> Path:
        """The file in which its process says how it ended."""
        return self.log.with_name(f"{self.name}.result.json")

    def epochs_done(self) -> int:
        """Epochs in the history that training keeps in the run folder; a waiting job has none.

        That of a finished run, which is there until training moves it aside, does not count.
        """
        with suppress(OSError, ValueError):
            if self._history.stat().st_mtime_ns != self.replaced:
                return len(json.loads(self._history.read_text()))
        return 0

    def note_replaced(self) -> None:
        """Before training starts: remember the history that it will replace, if it will."""
        self.replaced = 0
        with suppress(OSError):
            if is_finished(self.folder):
                self.replaced = self._history.stat().st_mtime_ns

    @property
    def _history(self) -> Path:
        return self.folder / HISTORY

    def has_model(self) -> bool:
        """Whether the run folder holds the final model of this very configuration."""
        return _has_model(self.folder, self.params)

    def is_finished(self) -> bool:
        """Whether there is the final model, and nothing is left to do for it."""
        unfinished = (self.root / ".ncflow" / "state").glob(f"{self.name}-{run_digest(self.params)}*")
        return self.has_model() and not any(unfinished) and not self.is_claimed()

    def is_spared(self) -> bool:
        """Whether it needs no training, as it is finished, by whomever; one that is trained `anew` does."""
        return not self.anew and self.is_finished()

    def is_claimed(self) -> bool:
        """Whether a training process, perhaps one that another suite has left behind, is at work on this run."""
        try:
            with claimed(self.root, self.name):
                return False
        except Claimed:
            return True


def make_jobs(
    configs: Iterable[Params],
    *,
    group: str,
    root: Path,
    suite: str,
    options: Sequence[str] = (),
    command: Sequence[str] = ("-m", "ncflow", "train"),
) -> list[Job]:
    """A job for each configuration, its file written; `command` is what Python is started with to train it.

    `options` are more options of that command, the same for all jobs.
    """
    tags = ("--group", group, "--suite", suite, *options)
    return [Job(params, root, (*command, "--config", str(_write_config(params, root)), *tags)) for params in configs]


@contextmanager
def claimed(root: Path, name: str) -> Iterator[None]:
    """Inside, no other process trains models/<name>; raises Claimed where one does.

    It is a lock on a file, which the system frees however the process ends.
    """
    file = root / ".ncflow" / "locks" / f"{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except TimeoutError:
        raise Claimed(name) from None
    try:
        yield
    finally:
        lock.release()


def _has_model(folder: Path, params: Params) -> bool:
    """Whether `folder` holds the final model of a configuration that differs from `params` in no more than its name.

    And, where files of the user's own were imported, of the same content of these.
    """
    if not is_finished(folder):
        return False
    with suppress(ValueError):  # no configuration, or one that this version does not understand
        return load_params(folder / CONFIG).digest() == params.digest() and _imported(folder) == IMPORTED
    return False


def _imported(folder: Path) -> dict[str, str]:
    """The digests of the files that a run had imported."""
    try:
        return read_provenance(folder).imports
    except ValueError:
        return {}


def _write_config(params: Params, root: Path) -> Path:
    """Under a name that only the same configuration has: a waiting job reads it later, beside jobs of other suites."""
    file = root / ".ncflow" / "suite" / f"{params.exp_name}-{params.digest()}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")  # another suite may be writing the same
    try:
        temporary.write_text(dump_yaml(params.resolved()))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file
