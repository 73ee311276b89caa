"""The run of a stage of dvc.yaml, from params.yaml and the stage's name, so that no value reaches a shell."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import yaml

from ncflow.experiments.groups import quickstart
from ncflow.lookup import lookup
from ncflow.params import Params
from ncflow.runs.layout import CONFIG, posthoc_file, run_folder

STAGE = "DVC_STAGE"  # environment variable: DVC sets it to the stage, such as train@linear-ce-0


class PipelineRun(NamedTuple):
    """One run of the pipeline: its parameters, its run folder, and the metrics files of two of its stages."""

    params: Params
    folder: Path
    evaluation: Path
    posthoc: Path


def pipeline_snapshot(params: Params, root: Path) -> Path:
    """The snapshot folder of the pipeline."""
    return root / "data" / params.exp_name


def refuse_unwatched(params: Params, root: Path) -> None:
    """Raise ValueError if dvc.yaml does not depend on the files that the parameters name: the data, and a checkpoint.

    Without the dependency, DVC does not notice changes of these files. The keys may be null, so a dependency cannot
    always refer to them.
    """
    checkpoint = params.model.checkpoint
    if params.dataset.root is not None:
        folder = Path(params.dataset.root).expanduser()
        lists = (folder / name for name in (params.dataset.lists or {}).values())
        _refuse_unwatched("dataset.root", params.dataset.root, [folder, *lists], "snapshot", root)
    if checkpoint is not None:
        _refuse_unwatched("model.checkpoint", checkpoint, [Path(checkpoint).expanduser()], "train", root)


def _refuse_unwatched(key: str, value: str, paths: Sequence[Path], stage: str, root: Path) -> None:
    watched = _watched(stage, key, value, root)
    for path in paths:
        place = (root / path).resolve()
        if not watched & {place, *place.parents}:
            raise ValueError(
                f"dvc.yaml does not watch {path} of {key}={value}: DVC would not notice its changes; "
                f"add {path} to the deps of its stage {stage}"
            )


def _watched(stage: str, key: str, value: str, root: Path) -> set[Path]:
    """The dependencies of a stage; `${key}` among them is replaced by its value."""
    deps = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage].get("deps", [])
    names = [name for dep in deps for name in (dep if isinstance(dep, dict) else [dep])]  # a dict: path -> options
    plain = (Path(name.replace(f"${{{key}}}", value)).expanduser() for name in names)
    return {(root / path).resolve() for path in plain}


def pipeline_runs(params: Params, root: Path) -> dict[str, PipelineRun]:
    """Every run of the grid, by the name of its matrix item in DVC, such as linear-ce-0."""
    if not params.grid.loss:
        raise ValueError("dvc.yaml trains every loss of grid.loss, got none; set it in params.yaml, such as [ce]")
    points, reports = product(params.grid.head, params.grid.loss, params.grid.seed), root / "reports" / params.exp_name
    return {
        f"{head}-{loss}-{seed}": PipelineRun(
            run,
            run_folder(root, run.exp_name),
            *(reports / stage / f"{head}_{loss}_seed{seed}.json" for stage in ("evaluation", "posthoc")),
        )
        for (head, loss, seed), run in zip(points, quickstart(params), strict=True)
    }


def shared_with_pipeline(runs: Sequence[Params], params: Params, root: Path) -> str:
    """A warning if `dvc repro` would replace some of the runs, which have names of the pipeline; else empty."""
    names = {run.exp_name for run in quickstart(params)} if (root / "dvc.yaml").is_file() else set()
    shared = [run.exp_name for run in runs if run.exp_name in names]
    if not shared:
        return ""
    others = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
    return (
        f"{shared[0]}{others}: dvc.yaml has runs of the same names. `dvc repro` trains these again and replaces their "
        "folders. To keep both, add --set exp_name=NAME here"
    )


def forget_earlier_grids(params: Params, root: Path) -> list[Path]:
    """Delete the metrics files of runs that left the grid; return the folders and results of such runs, which stay.

    The report depends on the folders of these files. With an old file in one, its hash would match no other clone. DVC
    keeps a copy of each file in its cache. Run folders stay, because training them took time.
    """
    runs = pipeline_runs(params, root).values()
    kept = {file for run in runs for file in (run.evaluation, run.posthoc)}
    for file in {file for each in kept for file in each.parent.glob("*.json")} - kept:
        file.unlink()
    names = re.compile(rf"{re.escape(params.exp_name)}_.+_seed\d+")
    found = (path for path in sorted((root / "models").glob("*_seed*")) if names.fullmatch(path.name))
    left = [path for path in found if path not in {run.folder for run in runs} and (path / CONFIG).is_file()]
    return [path for folder in left for path in (folder, posthoc_file(folder)) if path.exists()]


def pipeline_run(params: Params, root: Path) -> PipelineRun:
    """The run of the stage that DVC has started. Raises ValueError outside a stage."""
    stage = os.environ.get(STAGE, "")
    if "@" not in stage:
        raise ValueError(
            f"--pipeline is only for stages of dvc.yaml: expected a stage in {STAGE}, got '{stage}'; run `dvc repro`"
        )
    return lookup(pipeline_runs(params, root), stage.rpartition("@")[2], "run of the grid")
