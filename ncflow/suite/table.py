"""The progress of a suite: a live table in a terminal, else one line per event; and the list of failures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ncflow.suite.jobs import Job, JobState

if TYPE_CHECKING:
    from rich.console import Console, Group


def watch(looks: Iterable[object], jobs: Sequence[Job], *, say: Callable[[str], None], console: Console) -> None:
    """Run a suite through its checks and show its jobs: live if `console` is a terminal, else as lines to `say`."""
    view = View(jobs)
    if not console.is_terminal:
        for _ in looks:
            for line in view.news():
                say(line)
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        for _ in looks:
            if view.is_due():
                live.update(view.screen(), refresh=True)
        live.update(view.screen(), refresh=True)


def failures(jobs: Iterable[Job]) -> str:
    """The failed jobs as text, with reason and log file; empty if no job failed."""
    return "\n".join(f"  {job.name}: {job.reason}\n    log: {job.log}" for job in jobs if job.state == JobState.FAILED)


@dataclass
class View:
    """The view of a suite: its jobs and its start on a monotonic clock, in seconds."""

    jobs: Sequence[Job]
    began: float = field(default_factory=time.monotonic)
    _told: dict[str, tuple[str, str]] = field(default_factory=dict)
    _drawn: float = 0.0

    def screen(self) -> Group:
        """The number of jobs in each state, and a table of the running and failed jobs."""
        from rich.console import Group
        from rich.table import Table

        table = Table("run", "state", "epoch", "")
        for job in self.jobs:
            if job.state in (JobState.RUNNING, JobState.FAILED):
                epoch = f"{job.epochs_done()}/{job.params.train.epochs}"
                table.add_row(job.name, job.state, epoch, _rate(job) if job.state == JobState.RUNNING else job.reason)
        return Group(self.summary(), *[table] * bool(table.row_count))

    def summary(self) -> str:
        """The summary, such as "3 waiting, 2 running, 1 done, 0 failed, 12.5 epochs/min, 4 min left"."""
        count = Counter(job.state for job in self.jobs)
        left = self.seconds_left()
        rate = [f"{60 * self.rate():.3g} epochs/min", f"{duration(left)} left"] if left else []
        return ", ".join([*(f"{count[state]} {state}" for state in JobState), *rate])

    def news(self) -> list[str]:
        """One line for each job whose state or reason has changed since the last call."""
        lines = []
        for job in self.jobs:
            now = (job.state, job.reason)
            if now != self._told.get(job.name) and now != (JobState.WAITING, ""):
                self._told[job.name] = now
                lines.append(f"[{self._ended()}/{len(self.jobs)}] {job.name} {_news(job)}{self._outlook(job)}")
        return lines

    def rate(self) -> float:
        """Epochs per second since the suite began, over all jobs."""
        trained = sum(job.epochs_done() - job.epochs_before for job in self.jobs if job.started)
        return max(trained, 0) / max(time.monotonic() - self.began, 1e-9)

    def seconds_left(self) -> float | None:
        """Seconds for the missing epochs at the average rate; None without a rate or without missing epochs."""
        missing = sum(
            job.params.train.epochs - (job.epochs_done() if job.state == JobState.RUNNING else 0)
            for job in self.jobs
            if job.state in (JobState.WAITING, JobState.RUNNING)
        )
        return missing / self.rate() if missing and self.rate() else None

    def is_due(self) -> bool:
        """Whether the last update is a second old; progress is read from files, which may be on a slow disk."""
        due = time.monotonic() - self._drawn > 1
        self._drawn = time.monotonic() if due else self._drawn
        return due

    def _ended(self) -> int:
        return sum(job.state in (JobState.DONE, JobState.FAILED) for job in self.jobs)

    def _outlook(self, job: Job) -> str:
        left = self.seconds_left() if job.state != JobState.RUNNING else None
        return f"; {duration(left)} left" if left else ""


def duration(seconds: float) -> str:
    """A duration as text, such as "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _news(job: Job) -> str:
    """The new state of a job, as text."""
    took = f" in {duration(job.ended - job.started)}" if job.ended and job.started else ""
    return {
        JobState.WAITING: f"waits: {job.reason}",
        JobState.RUNNING: f"attempt {job.attempts}" if job.attempts > 1 else "starts",
        JobState.DONE: f"done {job.reason or took.strip()}",
        JobState.FAILED: f"failed{took}: {job.reason}",
    }[job.state]


def _rate(job: Job) -> str:
    """Epochs per minute of this attempt, and the time left."""
    done = job.epochs_done()
    rate = (done - job.epochs_before) / max(time.monotonic() - job.started, 1e-9)
    left = (job.params.train.epochs - done) / rate if rate > 0 else None
    return f"{60 * rate:.3g} epochs/min, {duration(left)} left" if left is not None else ""
