"""Runs in MLflow, of which this is the only home."""

from ncflow.tracking.interruption import RESUMES, TEMPFAIL, Interrupted, end_if_asked, interruptible, watched
from ncflow.tracking.pages import ui, ui_address, ui_command
from ncflow.tracking.runs import RunLogger, has_finished, start_run
from ncflow.tracking.stores import git_commit, project_root, store, tracking_uri

__all__ = [
    "RESUMES",
    "TEMPFAIL",
    "Interrupted",
    "RunLogger",
    "end_if_asked",
    "git_commit",
    "has_finished",
    "interruptible",
    "project_root",
    "start_run",
    "store",
    "tracking_uri",
    "ui",
    "ui_address",
    "ui_command",
    "watched",
]
