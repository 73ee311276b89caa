"""The order of a suite: what is done stays, what is missing starts when there is room, what was killed starts again."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from ncflow.exits import Exit
from ncflow.interruption import end_if_asked
from ncflow.params import Params
from ncflow.suite.engines import Engine, Running
from ncflow.suite.jobs import Job, JobState
from ncflow.suite.process import Ending


def run_suite(
    jobs: Sequence[Job],
    *,
    engine: Engine,
    prepare: Callable[[Params], Any],
    retries: int = 1,
    force: bool = False,
    pause: float = 0.2,
) -> Generator[None, None, None]:
    """Bring every job to its end, done or failed, and yield after every look at them, `pause` seconds apart.

    Jobs whose run is finished already, or by others before its turn, are not started, unless `force`d; jobs at which
    another process is at work are left to it. `prepare` makes the snapshot of some parameters, here and before the
    first job that needs it. A job that ended from outside is started again up to `retries` times; one that says what is
    wrong is not. Leaving early, by an error or by closing this generator, ends the jobs that are under way in order.
    """
    running: dict[str, Running] = {}
    prepare = _once(prepare)
    try:
        for job in jobs:
            job.anew = force
            if job.is_spared():
                job.state, job.reason = JobState.DONE, "before; --force trains it anew"
        yield
        while open_jobs := [job for job in jobs if job.state in (JobState.WAITING, JobState.RUNNING)]:
            for job in open_jobs:
                if job.name in running:
                    _look_at(job, running, retries)
                elif engine.has_room():
                    _start(job, running, engine, prepare)
            yield
            end_if_asked()
            time.sleep(pause)
    finally:
        _end(list(running.values()))


def _start(job: Job, running: dict[str, Running], engine: Engine, prepare: Callable[[Params], str]) -> None:
    """Start a waiting job, unless another process, perhaps one that a killed suite has left, is or was at it."""
    if job.is_claimed():
        job.reason = ELSEWHERE
    elif problem := prepare(job.params):
        job.state, job.reason = JobState.FAILED, problem
    elif job.is_spared():  # asked last: a snapshot may have taken long
        job.state, job.reason = JobState.DONE, "by another process"
    else:
        job.note_replaced()
        running[job.name] = engine.start(job)
        job.attempts += 1
        job.reason, job.ended = "", 0.0


def _look_at(job: Job, running: dict[str, Running], retries: int) -> None:
    """Note that a job has begun or, at a later look, so that each is seen, how it ended: a killed one waits again."""
    if job.state == JobState.WAITING and running[job.name].has_started():
        job.state, job.started = JobState.RUNNING, time.monotonic()
        job.epochs_before = 0 if job.replaced else job.epochs_done()
        return
    ending = running[job.name].poll()
    if ending is None:
        return
    job.ended = job.ended or time.monotonic()
    if ending.code == Exit.DONE and not job.has_model() and time.monotonic() < job.ended + LAG:
        return
    del running[job.name]
    job.state, job.reason = _outcome(job, ending, retries)


def _outcome(job: Job, ending: Ending, retries: int) -> tuple[JobState, str]:
    """State and reason of a job whose process has ended; its exit code alone does not say what it has trained."""
    if ending.code == Exit.DONE:
        if job.has_model():
            return JobState.DONE, ""
        return JobState.FAILED, f"ended with exit code 0, but models/{job.name} {BARE}"
    if ending.code == Exit.TAKEN:
        job.attempts, job.started = job.attempts - 1, 0.0
        return JobState.WAITING, ELSEWHERE
    again = job.attempts <= retries and ending.code != Exit.CHANGE
    return JobState.WAITING if again else JobState.FAILED, ending.reason


def _once(prepare: Callable[[Params], Any]) -> Callable[[Params], str]:
    """`prepare`, called once for each data set; gives what went wrong with it, or nothing."""
    problems: dict[str, str] = {}

    def prepare_once(params: Params) -> str:
        key = params.dataset.model_dump_json()
        if key not in problems:
            try:
                prepare(params)
                problems[key] = ""
            except Exception as error:  # whatever it is, the jobs on other data sets go on
                problems[key] = f"no snapshot: {error or type(error).__name__}"
        return problems[key]

    return prepare_once


def _end(running: Sequence[Running]) -> None:
    """All are asked first, so that they end side by side."""
    for attempt in running:
        attempt.ask_to_end()
    for attempt in running:
        attempt.end()


ELSEWHERE = "another process trains it"
BARE = "does not hold the final model of its configuration; see its log, then start the same suite again"
LAG = 60.0  # seconds until a file that another machine has written is seen here: NFS remembers what was not there
