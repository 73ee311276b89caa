"""Run a group of experiments: train the missing runs, write the report, track the results with DVC."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from rich.console import Console

from ncflow import stages, suite
from ncflow.assembly import check, snapshot_name
from ncflow.consistency import refuse_contradictions
from ncflow.experiments import representatives
from ncflow.extras import require
from ncflow.params import Params
from ncflow.runs.posthoc import belongs_to, read_posthoc
from ncflow.suite import Engine, Job, JobState
from ncflow.tracking import start_run

Report = Callable[[list[Path], Path, str], None]  # arguments: run folders, folder of the page, title


def run_group(
    group: str,
    configs: Sequence[Params],
    *,
    root: Path,
    engine: Engine,
    report: Report,
    say: Callable[[str], None],
    retries: int = 1,
    force: bool = False,
    extend: bool = False,
    track: bool = False,
    posthoc: Sequence[str] = (),
) -> None:
    """Run the missing runs of `configs` and report on the finished runs. Raises ValueError with the failed runs.

    `posthoc` are rows of POSTHOC, measured on each finished run that lacks them. `track` puts snapshots and runs under
    DVC's control. The other options are those of `suite.run_suite`.
    """
    require("mlflow", *(["dvc"] if track else []))
    name = f"{group}-{time.strftime('%Y%m%dT%H%M%S')}"
    options = [*(["--extend"] if extend else []), *([] if force else [suite.UNLESS_FINISHED])]
    jobs = suite.make_jobs(configs, group=group, root=root, suite=name, options=options)
    page = root / "reports" / group

    def prepare(params: Params) -> None:
        stages.snapshot(params, snapshot_path(params, root))

    with opened_run(name, root, several=len(jobs) > 1) as log_page, _failures_told(jobs):
        looks = suite.run_suite(jobs, engine=engine, prepare=prepare, retries=retries, force=force)
        with closing(looks):
            suite.watch(looks, jobs, say=say, console=Console(force_terminal=_is_live()))
        done = [job for job in jobs if job.state == JobState.DONE]
        for job in done if posthoc else []:
            _measure_posthoc(job, posthoc, root)
        if done:
            report([job.folder for job in done], page, group)
            log_page(page)
        if done and track:
            data = {snapshot_path(job.params, root) for job in done}
            folders = suite.track(group, root=root, runs=[job.folder for job in done], snapshots=data)
            say(f"tracked by DVC; to share the group, commit suites/ and `dvc push -R {' '.join(folders)}`")


def _is_live() -> bool:
    """Whether the output can be drawn again and again: a terminal, and no cell of a notebook, which keeps each drawing.

    Rich would also draw into a file where FORCE_COLOR is set, as notebooks and CI services do.
    """
    return sys.stdout.isatty() and "JPY_PARENT_PID" not in os.environ


def check_values(configs: Sequence[Params]) -> None:
    """Check one run with each value that varies, as `ncflow train --check` does, and every run for contradictions.

    Raises ValueError with the name of the first run that cannot train.
    """
    checks = [(check, representatives(configs)), (refuse_contradictions, configs)]
    for refuse, runs in checks:
        for params in runs:
            try:
                refuse(params)
            except ValueError as error:
                raise ValueError(f"nothing was trained, because {params.exp_name} cannot run: {error}") from None


def _measure_posthoc(job: Job, methods: Sequence[str], root: Path) -> None:
    """Measure post-hoc classifiers on a finished run, unless its file has them. Another suite may be doing so: wait."""
    with suite.claimed(root, f"{job.name}.posthoc", wait=True):
        found = read_posthoc(job.folder)
        if found is not None and belongs_to(found, job.folder) and set(methods) <= set(found.methods):
            return
        stages.posthoc(job.folder, snapshot_path(job.params, root), methods)
        stages.track_posthoc(job.folder, root)


def snapshot_path(params: Params, root: Path) -> Path:
    """Where a project keeps the snapshot of these parameters."""
    return root / "data" / snapshot_name(params)


@contextmanager
def opened_run(name: str, root: Path, *, several: bool) -> Iterator[Callable[[Path], None]]:
    """Yield a function that logs the report to the MLflow run that `mlflow run` opened.

    That MLflow run belongs to a suite of several runs. The suite's exit code sets its status. In a suite of one run it
    belongs to that run, and the function does nothing.
    """
    if not (several and os.environ.get("MLFLOW_RUN_ID")):
        yield lambda page: None
        return
    with start_run(root=root, name=f"suite {name}", config={}, tags={"suite": name}) as run:
        yield lambda page: run.artifacts(page, "report")


@contextmanager
def _failures_told(jobs: Sequence[Job]) -> Iterator[None]:
    """Raise ValueError for failed jobs at the end. After another error, print them instead."""
    try:
        yield
    except BaseException:
        if failed := _failures(jobs):
            print(f"ncflow: {failed}", file=sys.stderr)
        raise
    if failed := _failures(jobs):
        raise ValueError(failed)


def _failures(jobs: Sequence[Job]) -> str:
    count = sum(job.state == JobState.FAILED for job in jobs)
    return f"{count} of {len(jobs)} runs failed:\n{suite.failures(jobs)}" if count else ""
