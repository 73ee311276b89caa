"""Many runs on many devices: which are missing, what runs them side by side, how far they are, what became of them."""

from ncflow.suite.engines import ENGINES, create_engine
from ncflow.suite.jobs import RESUME, Claimed, Job, claimed, make_jobs
from ncflow.suite.process import PROCESSES
from ncflow.suite.schedule import run_suite
from ncflow.suite.table import failures, watch
from ncflow.suite.track import track

__all__ = [
    "ENGINES",
    "PROCESSES",
    "RESUME",
    "Claimed",
    "Job",
    "claimed",
    "create_engine",
    "failures",
    "make_jobs",
    "run_suite",
    "track",
    "watch",
]
