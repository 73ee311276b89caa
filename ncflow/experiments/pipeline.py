"""Which run a stage of dvc.yaml is: read from params.yaml and the stage's name, so that no value reaches a shell."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import NamedTuple

from ncflow.experiments.groups import quickstart
from ncflow.lookup import lookup
from ncflow.params import Params

STAGE = "DVC_STAGE"  # DVC tells each command which stage it is, such as train@linear-0


class PipelineRun(NamedTuple):
    """One run of the pipeline: its parameters, and where its run folder and its evaluation lie."""

    params: Params
    folder: Path
    evaluation: Path


def pipeline_snapshot(params: Params, root: Path) -> Path:
    """The snapshot folder of the pipeline."""
    return root / "data" / params.exp_name


def pipeline_runs(params: Params, root: Path) -> dict[str, PipelineRun]:
    """Every run of the grid, by the name that DVC gives its matrix item, such as linear-0."""
    points = product(params.grid.head, params.grid.seed)
    return {
        f"{head}-{seed}": PipelineRun(
            run,
            root / "models" / run.exp_name,
            root / "reports" / params.exp_name / "evaluation" / f"{head}_seed{seed}.json",
        )
        for (head, seed), run in zip(points, quickstart(params), strict=True)
    }


def pipeline_run(params: Params, root: Path) -> PipelineRun:
    """The run of the stage that DVC has started; a ValueError outside of one."""
    stage = os.environ.get(STAGE, "")
    if "@" not in stage:
        raise ValueError(
            f"--pipeline is for the stages of dvc.yaml, which DVC names in {STAGE}, got '{stage}'; run `dvc repro`"
        )
    return lookup(pipeline_runs(params, root), stage.rpartition("@")[2], "run of the grid")
