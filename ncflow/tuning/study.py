"""The study of a search: a database of its trials. Only this module imports optuna, and only on demand.

The database is SQLite, as MLflow's default store. After kill -9, a transaction is complete or absent, and the system
releases the locks of the dead process. Writers wait for each other. A journal file would be faster with many writers.
But its lock stays for 30 s after a kill, and a line cut by a full disk makes it unreadable.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from ncflow.interruption import undisturbed
from ncflow.tracking.stores import sqlite_uri
from ncflow.tuning.space import Dimension

FILE, LOCK = "study.db", "study.lock"
FEWEST = 3  # different objectives from which importances have a meaning
PATIENCE = 60.0  # seconds that a writer waits for others


@dataclass
class Trial:
    """A trial that this process trains. It holds the trial's lock until it ends, or until the process dies."""

    number: int
    values: dict[str, Any]
    handle: optuna.trial.Trial
    lock: FileLock
    reported: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Tried:
    """A trial of the study: its state (running, complete, pruned, fail), values, objective, and reason of a failure."""

    number: int
    state: str
    values: dict[str, Any]
    objective: float | None = None
    reason: str = ""


class Study:
    """The trials of one search in `folder`, shared by all processes that open it.

    `identity` is what all of them must agree on, as text by name. Trial k depends on `seed`, on k, and on the trials
    that ended before it. No trial is pruned up to epoch `prune_after`; None prunes none. Raises ValueError if the
    folder holds another search.
    """

    def __init__(
        self,
        folder: Path,
        *,
        space: Sequence[Dimension],
        direction: Literal["maximize", "minimize"],
        identity: dict[str, str],
        seed: int = 0,
        prune_after: int | None = 0,
    ) -> None:
        self.folder, self.space = folder, space
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self._locked():
            self._study = optuna.create_study(
                study_name=folder.name,
                storage=optuna.storages.RDBStorage(
                    sqlite_uri(folder.resolve() / FILE), engine_kwargs={"connect_args": {"timeout": PATIENCE}}
                ),
                load_if_exists=True,
                sampler=SeededSampler(seed),
                pruner=_pruner(prune_after),
                direction=direction,
            )
            self._agree(identity)

    def begin(self, most: int) -> Trial | None:
        """The next trial for this process, None if there is none.

        First those that a dead process left behind, then new ones until the study has `most` trials.
        """
        with self._locked():
            known = self._study.get_trials(deepcopy=False)
            for left in (each for each in known if each.state == TrialState.RUNNING):
                if lock := self._claim(left.number):
                    return self._trial(optuna.trial.Trial(self._study, left._trial_id), lock)
            if len(known) >= most:
                return None
            handle = self._study.ask()
            lock = self._claim(handle.number)
            assert lock is not None, "a new trial belongs to nobody"
            return self._trial(handle, lock)

    def report(self, trial: Trial, curve: dict[int, float]) -> bool:
        """Add the new values of a trial by epoch, and return whether to prune it."""
        new = sorted(curve.keys() - trial.reported)
        with undisturbed():
            for epoch in new:
                trial.handle.report(curve[epoch], epoch)
            trial.reported |= set(new)
            return bool(new) and trial.handle.should_prune()

    def end(self, trial: Trial, *, objective: float | None = None, pruned: bool = False, reason: str = "") -> None:
        """End a trial with its objective, as pruned, or as failed with a reason."""
        state = TrialState.PRUNED if pruned else TrialState.FAIL if objective is None else TrialState.COMPLETE
        with self._locked():
            if reason:
                trial.handle.set_user_attr("reason", reason)
            self._study.tell(trial.number, objective if state == TrialState.COMPLETE else None, state=state)
        trial.lock.release()

    def trials(self) -> list[Tried]:
        """All trials, by number."""
        with undisturbed():
            return [
                Tried(
                    each.number,
                    each.state.name.lower(),
                    {key: self._decoded(key, value) for key, value in each.params.items()},
                    each.value if each.state == TrialState.COMPLETE else None,
                    str(each.user_attrs.get("reason", "")),
                )
                for each in self._study.get_trials(deepcopy=False)
            ]

    def importances(self) -> dict[str, float]:
        """Key -> share of the objective's variation, the largest first; empty for too few or equal trials."""
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        # Not PED-ANOVA, Optuna's default: it compares the best tenth with all, and a tenth of ten trials is one.
        if len({trial.objective for trial in self.trials()} - {None}) < FEWEST:
            return {}
        with undisturbed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
            except (ValueError, RuntimeError):
                return {}
        return {key: float(share) for key, share in found.items()} if all(map(math.isfinite, found.values())) else {}

    def _trial(self, handle: optuna.trial.Trial, lock: FileLock) -> Trial:
        """A trial with all its values. A process may have died before it chose the last of them."""
        values = {dimension.key: self._decoded(dimension.key, _suggest(handle, dimension)) for dimension in self.space}
        reported = self._study.get_trials(deepcopy=False)[handle.number].intermediate_values.keys()
        return Trial(handle.number, values, handle, lock, set(reported))

    def _decoded(self, key: str, value: Any) -> Any:
        dimension = next(each for each in self.space if each.key == key)
        return dimension.choices[_labels(dimension).index(value)] if dimension.choices else value

    def _claim(self, number: int) -> FileLock | None:
        """The lock of a trial, None if another process holds it. The system releases it when a process dies."""
        lock = FileLock(self.folder / f"trial{number:02d}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return lock

    def _agree(self, identity: dict[str, str]) -> None:
        """Store what the search is, or compare it with what the first process stored."""
        known = self._study.user_attrs
        for name, text in identity.items():
            if name not in known:
                self._study.set_user_attr(name, text)
            elif known[name] != text:
                raise ValueError(
                    f"the search {self.folder.name} has the {name} {known[name]}, got {text}; use the same {name}, or "
                    f"start another search with --name"
                )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the study: no other process changes it, and no signal interrupts a transaction."""
        with undisturbed(), warnings.catch_warnings(), FileLock(self.folder / LOCK):
            warnings.simplefilter("ignore")  # Optuna marks parts of itself as experimental
            try:
                yield
            except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
                reason = str(error.__cause__ or error).partition("\n")[0]
                raise OSError(f"the search {self.folder / FILE} cannot be read or written: {reason}") from error


def _pruner(after: int | None) -> optuna.pruners.BasePruner:
    """Prunes what is worse than the median of earlier trials, later than an epoch; None prunes nothing."""
    return optuna.pruners.NopPruner() if after is None else optuna.pruners.MedianPruner(n_warmup_steps=after + 1)


class SeededSampler(optuna.samplers.BaseSampler):
    """TPE with a new generator for each trial. One generator would repeat its first trials after a restart."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._samplers: dict[int, optuna.samplers.TPESampler] = {}

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def _of(self, trial: Any) -> optuna.samplers.TPESampler:
        if trial.number not in self._samplers:
            seed = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
            self._samplers[trial.number] = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return self._samplers[trial.number]


def _suggest(handle: optuna.trial.Trial, dimension: Dimension) -> Any:
    if dimension.choices:
        return handle.suggest_categorical(dimension.key, _labels(dimension))
    if dimension.whole:
        return handle.suggest_int(dimension.key, int(dimension.low), int(dimension.high), log=dimension.log)
    return handle.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log)


def _labels(dimension: Dimension) -> list[str]:
    """The choices as texts: Optuna takes no lists, and takes 1 and true for equal."""
    return [json.dumps(value) for value in dimension.choices]
