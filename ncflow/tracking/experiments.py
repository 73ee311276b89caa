"""MLflow's experiments: which one to use, and errors for deleted ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ncflow.tracking.moved import ARTIFACTS, is_gone, project_of


def find_experiment(mlflow: Any, asked: str | None = None) -> Any:
    """The experiment with the requested name or ID, else that of the environment, else MLflow's default.

    Raises ValueError if it does not exist. Raises ValueError with the command that restores it if it was deleted.
    """
    if asked is not None:
        found, source = _by_name(mlflow, asked) or _by_id(mlflow, asked), "--experiment"
    elif name := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        found, asked, source = _by_name(mlflow, name), name, "MLFLOW_EXPERIMENT_NAME"
    else:
        asked = os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"
        found, source = _by_id(mlflow, asked), "MLFLOW_EXPERIMENT_ID"
    if found is None:
        names = sorted(experiment.name for experiment in mlflow.search_experiments())
        raise ValueError(f"no experiment '{asked}' of {source} in MLflow; expected one of {', '.join(names)}")
    if found.lifecycle_stage == "deleted":
        raise ValueError(
            f"experiment '{found.name}' was deleted in MLflow; restore it with `uv run mlflow experiments restore "
            f"--experiment-id {found.experiment_id}`, or name another one in MLFLOW_EXPERIMENT_NAME"
        )
    return found


def refuse_deleted(mlflow: Any, run_id: str) -> None:
    """Raise ValueError with the command that restores a run or its experiment, if it was deleted."""
    run = mlflow.get_run(run_id)
    find_experiment(mlflow, run.info.experiment_id)
    if run.info.lifecycle_stage == "deleted":
        raise ValueError(
            f"run '{run.info.run_name}' was deleted in MLflow; restore it with `uv run mlflow runs restore --run-id "
            f"{run_id}`, then rerun the same command to resume it; otherwise the command starts a new run"
        )


def refuse_missing_place(experiment: Any, root: Path) -> None:
    """Raise OSError if an experiment keeps its files in another project, which is gone: MLflow would create it again.

    Projects that share a store share its experiments, and each one's files lie where it was first used.
    """
    other = project_of(experiment.artifact_location, experiment.experiment_id)
    if other is not None and is_gone(other):
        raise OSError(
            f"experiment '{experiment.name}' in MLflow keeps its files in {other / ARTIFACTS}, but {other} does not "
            f"exist; move that project back, or set MLFLOW_EXPERIMENT_NAME to a new name: its files will lie in {root}"
        )


def _by_name(mlflow: Any, name: str) -> Any:
    return mlflow.get_experiment_by_name(name)


def _by_id(mlflow: Any, experiment_id: str) -> Any:
    try:
        return mlflow.get_experiment(experiment_id)
    except mlflow.exceptions.MlflowException:  # no such ID, or text that is no ID
        return None
