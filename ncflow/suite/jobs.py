"""A job: one configuration to train, the files that show whether it is done, and the lock of its run."""

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
from ncflow.imports import IMPORTED, checkpoint_sha256, run_digest
from ncflow.params import Params, load_params
from ncflow.runs.layout import CONFIG, HISTORY, is_finished, run_folder
from ncflow.runs.provenance import read_provenance
from ncflow.yaml_files import dump_yaml


class Claimed(SystemExit):
    """Another process trains or has trained this run. If not caught, it ends this process with `Exit.TAKEN`."""

    def __init__(self, name: str, *, finished: bool = False) -> None:
        super().__init__(Exit.TAKEN)
        self.name, self.finished = name, finished

    def __str__(self) -> str:
        if self.finished:
            return f"models/{self.name} is finished; train it again without {UNLESS_FINISHED}"
        return f"another process trains models/{self.name}; wait until it ends, or end it"


class JobState(StrEnum):
    """The state of a job, in the order of a suite's summary."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Job:
    """One configuration, its state, and the reason for the state."""

    params: Params
    root: Path
    arguments: tuple[str, ...]
    state: JobState = JobState.WAITING
    reason: str = ""
    attempts: int = 0
    started: float = 0.0  # seconds of a monotonic clock
    ended: float = 0.0
    epochs_before: int = 0  # epochs that a resumed run had before
    replaced: int = 0  # mtime of the history of a finished run that training will move aside
    forced: bool = False  # train it even if it is finished

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
        """The file to which its process writes how it ended."""
        return self.log.with_name(f"{self.name}.result.json")

    def epochs_done(self) -> int:
        """The number of epochs in the history in the run folder; 0 if there is no history.

        The history of an earlier finished run does not count. It stays there until training moves it aside.
        """
        with suppress(OSError, ValueError):
            if self._history.stat().st_mtime_ns != self.replaced:
                return len(json.loads(self._history.read_text()))
        return 0

    def note_replaced(self) -> None:
        """Remember the history that training will replace, if any. Call it before training starts."""
        self.replaced = 0
        with suppress(OSError):
            if is_finished(self.folder):
                self.replaced = self._history.stat().st_mtime_ns

    @property
    def _history(self) -> Path:
        return self.folder / HISTORY

    def has_model(self) -> bool:
        """Whether the run folder holds the final model of exactly this configuration."""
        return _has_model(self.folder, self.params)

    def is_finished(self) -> bool:
        """Whether the final model exists, no unfinished state is left, and no process trains the run."""
        return is_finished_run(self.params, self.root) and not self.is_claimed()

    def is_spared(self) -> bool:
        """Whether to skip it because its run is finished; false if `forced` is set."""
        return not self.forced and self.is_finished()

    def is_claimed(self) -> bool:
        """Whether a process trains this run now, for example one that another suite left behind."""
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
    """One job per configuration; writes the configuration files.

    `command` holds the arguments of Python that start training. `options` are more arguments, the same for all jobs.
    """
    tags = ("--group", group, "--suite", suite, *options)
    return [Job(params, root, (*command, "--config", str(_write_config(params, root)), *tags)) for params in configs]


def refuse_finished(params: Params, root: Path) -> None:
    """Raise Claimed if a run is finished. Call it inside `claimed`: the run cannot finish elsewhere after this check.

    A suite looks before it starts a process. Until that process holds the claim, another suite may train a short run.
    """
    if is_finished_run(params, root):
        raise Claimed(params.exp_name, finished=True)


@contextmanager
def claimed(root: Path, name: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock on models/<name>: inside, no other process trains it.

    If another process holds it, raises Claimed, or waits until it is free. It is a file lock. The system releases it
    when the process ends, even after a crash.
    """
    file = root / ".ncflow" / "locks" / f"{name}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(blocking=wait)
    except TimeoutError:
        raise Claimed(name) from None
    try:
        yield
    finally:
        lock.release()


def is_finished_run(params: Params, root: Path) -> bool:
    """Whether the final model of a configuration exists and no unfinished state is left."""
    if not _has_model(run_folder(root, params.exp_name), params):
        return False
    with suppress(ValueError):  # a finished run does not need its checkpoint any more
        digest = run_digest(params, checkpoint_sha256(params))
        return not any((root / ".ncflow" / "state").glob(f"{params.exp_name}-{digest}*"))
    return True


def _has_model(folder: Path, params: Params) -> bool:
    """Whether `folder` holds the final model of a configuration equal to `params`, except for its name.

    Files that the user imports, and the checkpoint, must have the same content.
    """
    if not is_finished(folder):
        return False
    with suppress(ValueError):  # no configuration, or one that this version cannot read
        return load_params(folder / CONFIG).digest() == params.digest() and _has_same_files(folder, params)
    return False


def _has_same_files(folder: Path, params: Params) -> bool:
    """Whether a run used files of the same content: those that the user imports, and the checkpoint if it is there."""
    try:
        made = read_provenance(folder)
    except ValueError:
        return not IMPORTED
    with suppress(ValueError):
        return made.imports == IMPORTED and made.checkpoint_sha256 == checkpoint_sha256(params)
    return made.imports == IMPORTED


def _write_config(params: Params, root: Path) -> Path:
    """Write the configuration to a file named by its digest: a waiting job reads it later, as may other suites."""
    file = root / ".ncflow" / "suite" / f"{params.exp_name}-{params.digest()}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")  # another suite may write the same file now
    try:
        temporary.write_text(dump_yaml(params.resolved()))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


UNLESS_FINISHED = "--unless-finished"  # the option of `ncflow train` that calls `refuse_finished`
