"""What a search found: the table of its best trials, the best configuration as a file, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ncflow.files import write_text
from ncflow.params import Params
from ncflow.reports import Table, as_text
from ncflow.reports.tables import ABSENT, Row, number
from ncflow.tuning.objective import Objective
from ncflow.tuning.search import run_name
from ncflow.tuning.space import Dimension, configure
from ncflow.yaml_files import dump_yaml

if TYPE_CHECKING:
    from ncflow.tuning.study import Study, Tried

BEST = "best.yaml"
MOST_ROWS = 10


class Results(NamedTuple):
    """The table of the best trials, the report's page, and the file of the best configuration."""

    table: Table
    page: Path
    best: Path


def write_results(
    study: Study, base: Params, space: Sequence[Dimension], objective: Objective, root: Path, *, name: str
) -> Results:
    """Write page, figures and best configuration of a search to the project's folder reports/<name>.

    Raises ValueError if no trial is complete.
    """
    from ncflow.reports.search import Coordinate, Tried, write_page  # imports matplotlib

    trials = ranked(study.trials(), objective)
    if not trials or trials[0].objective is None:
        raise ValueError(f"no trial of {name} is complete, so there is no best one; raise --trials, or add --no-prune")
    out = root / "reports" / name
    best = out / BEST
    best.parent.mkdir(parents=True, exist_ok=True)
    write_text(best, dump_yaml(configure(base, trials[0].values, f"{name}_best").resolved()))
    table = trials_table(trials[:MOST_ROWS], space, objective, name=name)
    page = write_page(
        out,
        title=f"Search {name}",
        objective=objective.key,
        maximize=objective.maximize,
        coordinates=[Coordinate(each.key, each.choices, each.low, each.high, each.log) for each in space],
        trials=[
            Tried(run_name(name, each.number), each.state, each.values, each.objective, each.reason) for each in trials
        ],
        importances=study.importances(),
        table=table,
        command=best_command(best, root),
    )
    return Results(table, page, best)


def as_message(found: Results, root: Path) -> str:
    """The table, and what to do next."""
    command = best_command(found.best, root)
    return f"\n{as_text(found.table)}\n\nreport:       {found.page}\nbest on test: `{command}`"


def ranked(trials: Sequence[Tried], objective: Objective) -> list[Tried]:
    """Complete trials from the best to the worst, then the others by number."""
    sign = -1 if objective.maximize else 1
    complete = [trial for trial in trials if trial.objective is not None]
    others = [trial for trial in trials if trial.objective is None]
    return [*sorted(complete, key=lambda trial: (sign * (trial.objective or 0.0), trial.number)), *others]


def trials_table(trials: Sequence[Tried], space: Sequence[Dimension], objective: Objective, *, name: str) -> Table:
    """A row per trial: its run, its values, and its objective or how it ended."""
    keys = [dimension.key for dimension in space]
    split, _, metric = objective.key.partition("/")
    headings = (("", "run"), *(_heading(key) for key in keys), (f"{split}/{metric.rpartition('/')[0]}/", _end(metric)))
    rows = tuple(
        Row(
            (
                run_name(name, trial.number),
                *(_text(trial.values.get(key)) for key in keys),
                trial.state if trial.objective is None else number(trial.objective, 4),
            )
        )
        for trial in trials
    )
    return Table(headings, rows, words=1)


def best_command(best: Path, root: Path) -> str:
    """The command that trains the best configuration on five seeds; its report measures it on test."""
    return f"uv run ncflow suite main --config {best.relative_to(root)} --grid seed=0..4"


def _heading(key: str) -> tuple[str, str]:
    section, dot, last = key.rpartition(".")
    return section + dot, last


def _end(metric: str) -> str:
    return metric.rpartition("/")[2]


def _text(value: object) -> str:
    return ABSENT if value is None else number(value) if isinstance(value, float) else str(value)
