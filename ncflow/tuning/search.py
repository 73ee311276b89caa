"""The search: ask for trials while there is room, train them as jobs, prune them, and record how they end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ncflow.dotted import flatten
from ncflow.exits import Exit
from ncflow.experiments import expand
from ncflow.experiments.sweeps import choose
from ncflow.params import Params, make_params
from ncflow.suite import UNLESS_FINISHED, Engine, Job, JobState, make_jobs, run_suite
from ncflow.suite.engines import Running
from ncflow.suite.process import Ending
from ncflow.tuning.objective import Objective
from ncflow.tuning.space import Dimension, configure, first_values

if TYPE_CHECKING:
    from ncflow.tuning.study import Study, Trial


def base_run(
    group: str, params: Params, space: list[Dimension], *, overrides: list[str], groups: Path | None = None
) -> Params:
    """The one run of a group whose values of `space` are searched; of `main` the parameters without their grid.

    Raises ValueError for a group whose runs differ in other keys, and for a key in `space` and in `overrides`.
    """
    pinned = {override.partition("=")[0].strip() for override in overrides}
    if both := [each.key for each in space if each.key in pinned or each.slot in pinned]:
        raise ValueError(f"--space {both[0]} and --set {both[0]} set the same key; leave one of them out")
    if group == "main":
        return make_params(params.model_dump(mode="json", exclude_unset=True, exclude={"grid"}), overrides)
    settings = first_values(space)
    runs = expand(group, params, overrides=overrides, groups=groups)
    fixed = [choose(run, settings) for run in runs]
    if len({run.digest() for run in fixed}) > 1:
        options = [flatten(run.experiment()) for run in fixed]
        keys = [key for key in options[0] if key != "exp_name" and len({repr(each.get(key)) for each in options}) > 1]
        raise ValueError(
            f"a search varies one run, and the {len(runs)} runs of {group} differ in {', '.join(keys)}; set these with "
            f"--set, or put them into --space"
        )
    return runs[0]


def open_study(
    name: str,
    space: list[Dimension],
    objective: Objective,
    base: Params,
    *,
    group: str,
    root: Path,
    seed: int = 0,
    prune_after: int | None = 0,
) -> Study:
    """The study of a search in .ncflow/tune/<name>, created if it is missing.

    Raises ValueError if there is one of another space, objective, base run or seed; the message has both.
    """
    from ncflow.tuning.study import Study  # imports optuna

    identity = {
        "space": "; ".join(sorted(map(str, space))),
        "objective": f"{objective.key} ({objective.direction})",
        "base run": f"{group} {base.digest()}",
        "seed": str(seed),
    }
    folder, direction = root / ".ncflow" / "tune" / name, objective.direction
    return Study(folder, space=space, direction=direction, identity=identity, seed=seed, prune_after=prune_after)


@dataclass
class Search:
    """One search: the run that it varies, its objective, and where its trials train."""

    name: str
    base: Params
    objective: Objective
    root: Path
    study: Study
    say: Callable[[str], None]
    pause: float = 0.2  # seconds between two checks of all trials
    jobs: list[Job] = field(default_factory=list)  # the schedule reads this list, and it grows
    trials: dict[str, Trial] = field(default_factory=dict)  # those that train here, by the name of their run

    def run(self, engine: Engine, prepare: Callable[[Params], Any], *, most: int, retries: int = 1) -> None:
        """Train until the study has `most` trials. Trials that other processes train are left to them.

        Raises ValueError if the first trials all fail. An interruption ends all trials; the next process resumes them.
        """
        prunable = PrunableEngine(engine)
        looks = run_suite(self.jobs, engine=prunable, prepare=prepare, retries=retries, pause=self.pause)
        with closing(looks):
            for _ in looks:
                for job in [job for job in self.jobs if job.name in self.trials]:
                    self._look_at(job, self.trials[job.name], prunable)
                while not self._waits() and prunable.has_room() and self._begin(most):
                    pass

    def _begin(self, most: int) -> bool:
        """Add the job of the next trial; false if there is none."""
        trial = self.study.begin(most)
        if trial is None:
            return False
        name = run_name(self.name, trial.number)
        try:
            params = configure(self.base, trial.values, name)
        except ValueError as error:
            self._end(trial, name, reason=str(error))
            return True
        options = ["--trial", str(trial.number), UNLESS_FINISHED]
        (job,) = make_jobs([params], group=self.name, root=self.root, suite=self.name, options=options)
        self.jobs.append(job)
        self.trials[name] = trial
        self.say(f"{name} {'resumes' if trial.reported else 'starts'}: {shown(trial.values)}")
        return True

    def _look_at(self, job: Job, trial: Trial, engine: PrunableEngine) -> None:
        """Report new values of a trial that trains, and record how one has ended."""
        curve = self.objective.curve(job.folder, known=trial.reported if job.state != JobState.DONE else ())
        if job.state == JobState.RUNNING:
            done = job.epochs_done()  # without those of an earlier run, which training will move aside
            curve = {epoch: value for epoch, value in curve.items() if epoch <= done}
            if self.study.report(trial, curve):
                epoch = max(curve)
                engine.prune(job.name, f"pruned after epoch {epoch}, {self.objective.key} {curve[epoch]:.4g}")
        elif job.state == JobState.DONE:
            last = curve.get(max(curve, default=0)) if curve else None
            self._end(trial, job.name, objective=last, reason="" if curve else f"it has no {self.objective.key}")
        elif job.state == JobState.FAILED:
            self._end(trial, job.name, pruned=engine.has_pruned(job.name), reason=job.reason)

    def _end(
        self, trial: Trial, name: str, *, objective: float | None = None, pruned: bool = False, reason: str = ""
    ) -> None:
        self.study.end(trial, objective=objective, pruned=pruned, reason=reason)
        self.trials.pop(name, None)
        result = f"{self.objective.key} {objective:.4g}" if objective is not None else reason
        self.say(f"{name} {'done' if objective is not None else 'ends' if pruned else 'failed'}: {result}")
        if objective is None and not pruned:
            self._refuse_if_all_fail()

    def _waits(self) -> bool:
        """Whether a job has not started. One at a time: a later trial knows more, and Ray would take them all."""
        return any(job.state == JobState.WAITING for job in self.jobs)

    def _refuse_if_all_fail(self) -> None:
        ended = [trial for trial in self.study.trials() if trial.state != "running"]
        if len(ended) >= TRIES and all(trial.state == "fail" for trial in ended):
            log = self.root / ".ncflow" / "suite" / f"{run_name(self.name, ended[-1].number)}.log"
            raise ValueError(
                f"all {len(ended)} trials of {self.name} failed, so the search stops; the last one: "
                f"{ended[-1].reason}\n  log: {log}\nCorrect the space, and start another search with --name"
            )


class PrunableEngine:
    """An engine whose running jobs can be pruned: SIGTERM ends them, and they are not restarted."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._running: dict[str, Prunable] = {}

    def has_room(self) -> bool:
        return self._engine.has_room()

    def start(self, job: Job) -> Prunable:
        self._running[job.name] = Prunable(self._engine.start(job))
        return self._running[job.name]

    def prune(self, name: str, reason: str) -> None:
        """Ask a job to end. It saves its state, and its MLflow run is KILLED."""
        self._running[name].prune(reason)

    def has_pruned(self, name: str) -> bool:
        return name in self._running and bool(self._running[name].reason)


class Prunable:
    """A running job; `reason` is set once it is pruned."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self.reason = ""

    def has_started(self) -> bool:
        return self._running.has_started()

    def poll(self) -> Ending | None:
        ending = self._running.poll()
        pruned = ending is not None and self.reason and ending.code != Exit.DONE
        return Ending(Exit.CHANGE, self.reason) if pruned else ending  # with this code, nobody restarts it

    def prune(self, reason: str) -> None:
        if not self.reason:
            self.reason = reason
            self._running.ask_to_end()

    def ask_to_end(self) -> None:
        self._running.ask_to_end()

    def end(self) -> None:
        self._running.end()


def run_name(name: str, number: int) -> str:
    """The name of a trial's run."""
    return f"{name}_trial{number:02d}"


def shown(values: dict[str, Any]) -> str:
    """Values as text, such as "train.lr=0.0123, head.name=linear"."""
    texts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in values.items()}
    return ", ".join(f"{key}={text}" for key, text in texts.items())


TRIES = 3  # trials that may fail before one succeeds
