"""What every trial of a fault needs: a project of its own, the real command in it, and a look at what it left."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import yaml
from kill import PRELOADED, differences, outcome

from ncflow import cli, stages

PARAMS = {
    "exp_name": "run",
    "dataset": {"name": "digits", "imb_factor": 0.02},
    "model": {"name": "resnet20", "image_size": 8},
    "head": {"name": "nearest_etf"},
    "train": {"epochs": 4, "batch_size": 64, "analyze_freq": 2, "precision": "fp32"},
}
SNAPSHOT = Path("data", "digits-exp-0.02-seed0")
Limit = Callable[[], object]


class NotOk(AssertionError):
    """What came is not what was expected."""


class Skipped(Exception):
    """The fault cannot be provoked on this machine."""


def attempted(outcome: Callable[[], str]) -> tuple[str, str]:
    """What came of an outcome, and the verdict: holds or FAILS."""
    try:
        return outcome(), "holds"
    except NotOk as reason:
        return str(reason), "FAILS"
    except subprocess.CalledProcessError as error:
        return f"{error.cmd}: {error.stdout or ''}{error.stderr or ''}"[-3000:], "FAILS"
    except Exception:
        return traceback.format_exc(), "FAILS"


@dataclass
class Command:
    """A command under way in a process of its own, and what it says."""

    process: multiprocessing.process.BaseProcess
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def message(self) -> str:
        """Its last word to the user, in one line."""
        return " ".join(self.text.rpartition("ncflow: ")[2].split()) if "ncflow: " in self.text else ""

    def wait(self, code: int = 0, *, saying: str = "", seconds: float = 300) -> Command:
        """Wait for its end, which must be with this exit code and a message that holds these words, each of them."""
        self.process.join(seconds)
        came = self.process.exitcode
        expect(came == code, f"exit code {came} instead of {code}: {self.text[-2000:]}")
        expect("Traceback" not in self.text, f"a traceback: {self.text[-3000:]}")
        for words in saying.split("…"):
            expect(words.strip() in self.message, f"'{self.message}' does not say '{words.strip()}'")
        return self

    def freeze_at(self, pattern: str, root: Path) -> Command:
        """Stop it in the moment a file appears, for the fault to happen now; `thaw` lets it go on."""
        wait_for(lambda: any(root.glob(pattern)) or not self.process.is_alive(), pattern)
        expect(self.process.is_alive(), f"it ended before {pattern}: {self.text[-2000:]}")
        os.kill(self.process.pid or 0, signal.SIGSTOP)
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def thaw(self) -> Command:
        os.kill(self.process.pid or 0, signal.SIGCONT)
        return self


@dataclass
class Project:
    """A folder with parameters of a small run, in which commands are given."""

    root: Path
    absence: float = 10.0  # seconds for which a server is gone
    environment: dict[str, str] = field(default_factory=dict)
    typed: list[str] = field(default_factory=list)
    started: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root.mkdir(exist_ok=True)
        (self.root / "params.yaml").write_text(yaml.safe_dump(PARAMS))

    def ncflow(self, *words: str, limit: Limit | None = None) -> Command:
        """`ncflow words`, by the function that the console script calls; `limit` acts on its process first."""
        log = self.root / f"log{len(self.typed)}.txt"
        self.typed.append(" ".join(["ncflow", *words]))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        process = context.Process(target=_call, args=(words, self.root, log, self.environment, limit))
        process.start()
        self.started.append(Command(process, log))
        return self.started[-1]

    def end(self) -> None:
        """Leave nothing of it: a trial that goes wrong may leave a command under way, or frozen."""
        for command in self.started:
            command.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def finishes_as_if_nothing_had_been(self) -> Command:
        """Training again: it ends as if it had never met a fault, in files, numbers and MLflow."""
        last = self.ncflow("train").wait()
        self.as_if_nothing_had_been()
        return last

    def as_if_nothing_had_been(self) -> None:
        """Files, numbers and MLflow's run are those of a run that never met a fault."""
        expected = untroubled()
        with self.surroundings():
            found = differences(outcome(self.root, "run"), expected)
        expect(not found, "; ".join(found[:5]))

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Inside, this process has the environment of the project's commands."""
        before = dict(os.environ)
        os.environ |= self.environment
        try:
            yield
        finally:
            os.environ.clear()
            os.environ |= before

    def nothing_half_written(self, *, states: bool = True) -> None:
        """No temporary file is left, no model of an unfinished run, and its states load, if there must be any."""
        hidden = [path for folder in ("models", "data", ".ncflow/state") for path in (self.root / folder).rglob(".*")]
        left = [path.name for path in hidden if not path.name.endswith((".lock", ".source.json"))]
        expect(not left, f"left behind: {left}")
        expect(not (self.root / "models" / "run" / "final_model.pth").exists(), "a final model of an unfinished run")
        files = list((self.root / stages.STATES).glob("run-*/epoch_*.pt"))
        expect(bool(files) == states, f"states: {[file.name for file in files]}")
        for file in files:
            torch.load(file, weights_only=True)


def expect(condition: object, otherwise: str) -> None:
    if not condition:
        raise NotOk(otherwise)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        expect(time.monotonic() < until, f"waited {seconds:.0f} s for {what}")
        time.sleep(0.01)


@cache
def untroubled() -> dict[str, Any]:
    """The outcome of the run of PARAMS that meets no fault."""
    project = Project(Path(mkdtemp(dir=os.environ["TRIALS"])))
    project.ncflow("train").wait()
    return outcome(project.root, "run")


def _call(words: tuple[str, ...], root: Path, log: Path, environment: dict[str, str], limit: Limit | None) -> None:
    """A command, in this process."""
    stream = log.open("w")
    for standard in (sys.stdout, sys.stderr):
        os.dup2(stream.fileno(), standard.fileno())
    torch.set_num_threads(1)
    os.chdir(root)
    os.environ |= environment
    sys.argv = ["ncflow", *words]
    if limit:
        limit()
    cli.main()
