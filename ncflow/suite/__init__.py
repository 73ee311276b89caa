"""Many runs on many devices: find missing runs, run them in parallel, show their progress, report their results."""

from ncflow.suite.engines import ENGINES, Engine, create_engine
from ncflow.suite.jobs import (
    UNLESS_FINISHED,
    Claimed,
    Job,
    JobState,
    claimed,
    is_finished_run,
    make_jobs,
    refuse_finished,
)
from ncflow.suite.launcher import is_first, is_launched, launch
from ncflow.suite.schedule import run_suite
from ncflow.suite.table import failures, watch
from ncflow.suite.track import track

__all__ = [
    "ENGINES",
    "UNLESS_FINISHED",
    "Claimed",
    "Engine",
    "Job",
    "JobState",
    "claimed",
    "create_engine",
    "failures",
    "is_finished_run",
    "is_first",
    "is_launched",
    "launch",
    "make_jobs",
    "refuse_finished",
    "run_suite",
    "track",
    "watch",
]
