"""The schedule of a suite: skip finished jobs, start missing jobs when there is room, and restart killed jobs."""

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
    """Run every job until it is done or failed, and yield after each check of all jobs.

    `pause` is the time between two checks in seconds. Finished runs are skipped, unless `force` is set; this includes
    runs that others finish meanwhile. Jobs wait while another process trains their run. `prepare` makes the snapshot
    for some parameters; it is called in this process before the first job that needs it. A job that was killed or
    crashed is restarted up to `retries` times. A job that reports an error of the user is not restarted. An error, or
    closing this generator early, ends all running jobs in order.
    """
    running: dict[str, Running] = {}
    prepare = _once(prepare)
    try:
        for job in jobs:
            job.forced = force
            if job.is_spared():
                job.state, job.reason = JobState.DONE, "before; --force trains it again"
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
    """Start a waiting job, unless another process trains or has trained it, for example one of a killed suite."""
    if job.is_claimed():
        job.reason = ELSEWHERE
    elif problem := prepare(job.params):
        job.state, job.reason = JobState.FAILED, problem
    elif job.is_spared():  # checked last: a snapshot may take long
        job.state, job.reason = JobState.DONE, "by another process"
    else:
        job.note_replaced()
        running[job.name] = engine.start(job)
        job.attempts += 1
        job.reason, job.ended = "", 0.0


def _look_at(job: Job, running: dict[str, Running], retries: int) -> None:
    """Record that a job has started or, in a later check, how it ended; a killed job waits again."""
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
    """State and reason of a job whose process has ended. Exit code 0 alone does not prove that the model exists."""
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
    """`prepare`, called once for each data set; returns the error as text, empty if there is none."""
    problems: dict[str, str] = {}

    def prepare_once(params: Params) -> str:
        key = params.dataset.model_dump_json()
        if key not in problems:
            try:
                prepare(params)
                problems[key] = ""
            except Exception as error:  # any error: jobs on other data sets continue
                problems[key] = f"no snapshot: {error or type(error).__name__}"
        return problems[key]

    return prepare_once


def _end(running: Sequence[Running]) -> None:
    """End all attempts; ask all of them first, so that they end in parallel."""
    for attempt in running:
        attempt.ask_to_end()
    for attempt in running:
        attempt.end()


ELSEWHERE = "another process trains it"
BARE = "does not hold the final model of its configuration; see its log, then rerun the same suite"
LAG = 60.0  # seconds until a file from another machine is visible here: NFS caches missing files
