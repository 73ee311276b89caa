"""Which run a stage of dvc.yaml is: read from params.yaml and the stage's name, so that no value reaches a shell."""

from __future__ import annotations

import os
import re
from itertools import product
from pathlib import Path
from typing import NamedTuple

import yaml

from ncflow.experiments.groups import quickstart
from ncflow.lookup import lookup
from ncflow.params import Params
from ncflow.runs.layout import CONFIG, run_folder

STAGE = "DVC_STAGE"  # DVC tells each command which stage it is, such as train@linear-0


class PipelineRun(NamedTuple):
    """One run of the pipeline: its parameters, and where its run folder and its evaluation lie."""

    params: Params
    folder: Path
    evaluation: Path


def pipeline_snapshot(params: Params, root: Path) -> Path:
    """The snapshot folder of the pipeline."""
    return root / "data" / params.exp_name


def refuse_unwatched(params: Params, root: Path) -> None:
    """Raise where the snapshot stage of dvc.yaml does not depend on the folder of the data.

    DVC would then not notice that the data changed. A dependency cannot follow `dataset.root`, which may be null.
    """
    if params.dataset.root is None:
        return
    folder = Path(params.dataset.root).expanduser()
    lists = (folder / name for name in (params.dataset.lists or {}).values())
    watched = _watched(params.dataset.root, root)
    for path in (folder, *lists):
        place = (root / path).resolve()
        if not watched & {place, *place.parents}:
            raise ValueError(
                f"dvc.yaml does not watch {path} of dataset.root={params.dataset.root}, so that DVC would not notice "
                f"when the data changes; add {path} to the deps of its stage snapshot"
            )


def _watched(data: str, root: Path) -> set[Path]:
    """What the snapshot stage depends on; ${dataset.root} may be among it, which DVC takes where it is not null."""
    deps = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["snapshot"].get("deps", [])
    names = [name for dep in deps for name in (dep if isinstance(dep, dict) else [dep])]  # a dict has options of a path
    plain = (Path(name.replace("${dataset.root}", data)).expanduser() for name in names)
    return {(root / path).resolve() for path in plain}


def pipeline_runs(params: Params, root: Path) -> dict[str, PipelineRun]:
    """Every run of the grid, by the name that DVC gives its matrix item, such as linear-0."""
    points = product(params.grid.head, params.grid.seed)
    return {
        f"{head}-{seed}": PipelineRun(
            run,
            run_folder(root, run.exp_name),
            root / "reports" / params.exp_name / "evaluation" / f"{head}_seed{seed}.json",
        )
        for (head, seed), run in zip(points, quickstart(params), strict=True)
    }


def forget_earlier_grids(params: Params, root: Path) -> list[Path]:
    """Delete evaluations of runs that the grid no longer has, and return the run folders that it no longer has.

    The report depends on the folder of evaluations: with a file left over, its hash would fit no other clone. DVC keeps
    a copy of each evaluation in its cache. Run folders stay, since training them took time.
    """
    runs = pipeline_runs(params, root).values()
    folder = root / "reports" / params.exp_name / "evaluation"
    for file in set(folder.glob("*.json")) - {run.evaluation for run in runs}:
        file.unlink()
    names = re.compile(rf"{re.escape(params.exp_name)}_[a-z_]+_seed\d+")
    found = (path for path in sorted((root / "models").glob("*_seed*")) if names.fullmatch(path.name))
    return [path for path in found if path not in {run.folder for run in runs} and (path / CONFIG).is_file()]


def pipeline_run(params: Params, root: Path) -> PipelineRun:
    """The run of the stage that DVC has started; a ValueError outside of one."""
    stage = os.environ.get(STAGE, "")
    if "@" not in stage:
        raise ValueError(
            f"--pipeline is for the stages of dvc.yaml, which DVC names in {STAGE}, got '{stage}'; run `dvc repro`"
        )
    return lookup(pipeline_runs(params, root), stage.rpartition("@")[2], "run of the grid")
