"""Runs in MLflow. Only this package imports mlflow."""

from ncflow.tracking.charts import Page
from ncflow.tracking.mirrors import MIRRORS, check_mirrors
from ncflow.tracking.models import SCHEMES, fetched_model
from ncflow.tracking.pages import runs_address, ui, ui_address, ui_command
from ncflow.tracking.runs import ModelCard, RunLogger, has_finished, log_to_finished, start_run
from ncflow.tracking.stores import store, tracking_uri

__all__ = [
    "MIRRORS",
    "SCHEMES",
    "ModelCard",
    "Page",
    "RunLogger",
    "check_mirrors",
    "fetched_model",
    "has_finished",
    "log_to_finished",
    "runs_address",
    "start_run",
    "store",
    "tracking_uri",
    "ui",
    "ui_address",
    "ui_command",
]
