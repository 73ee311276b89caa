"""Groups of runs that answer one question each: list them, expand them to configurations, write them as YAML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ncflow.dotted import flatten
from ncflow.experiments.groups import EXPERIMENTS, PUBLISHED, quickstart
from ncflow.files import write_text
from ncflow.lookup import lookup
from ncflow.nn.heads import HEAD_ALIASES, HEADS
from ncflow.params import Params, make_params
from ncflow.yaml_files import dump_yaml, parse_yaml

__all__ = ["EXPERIMENTS", "PUBLISHED", "expand", "posthoc_methods", "quickstart", "write_configs"]


def expand(
    group: str,
    base: Params,
    *,
    head: str | None = None,
    overrides: Iterable[str] = (),
    announce: Callable[[str], None] = lambda line: None,
) -> list[Params]:
    """The configurations of a group, with `head` in every run and overrides such as "dataset.name=digits" on top.

    Published groups do not depend on `base`. An override may make runs equal, for example runs on several data sets.
    Equal runs are listed once, and `announce` is called with a message. Raises ValueError for an unknown group or head
    and for a head that the group ignores. Raises ValueError for different runs of the same name.
    """
    experiment = lookup(EXPERIMENTS, group, "experiment group")
    if head is not None:
        lookup(HEADS, HEAD_ALIASES.get(head, head), "head")
    if group in PUBLISHED:
        grid = PUBLISHED[group]()
        fixed = grid.has_own_heads
        runs = [] if head is not None and fixed else grid.runs(head=head, overrides=overrides)
    else:
        runs = list(experiment(_group_base(group, base, head, overrides)))
        fixed = head is not None and any(run.head.name != HEAD_ALIASES.get(head, head) for run in runs)
    if head is not None and fixed:
        raise ValueError(f"group '{group}' chooses its heads itself and ignores --head {head}; leave --head out")
    if experiment is quickstart and base.grid.loss and base.train.loss not in {run.train.loss for run in runs}:
        announce(f"{group}: grid.loss={base.grid.loss} replaces train.loss={base.train.loss}")
    distinct: dict[str, Params] = {}
    for run in runs:
        distinct.setdefault(run.digest(), run)
    _refuse_namesakes(distinct.values())
    if len(distinct) < len(runs):
        announce(f"{group}: its {len(runs)} runs come down to {len(distinct)}; the others would be repeats")
    return list(distinct.values())


def posthoc_methods(group: str) -> list[str]:
    """The rows of POSTHOC that a suite of a group measures on each finished run; most groups have none."""
    return list(PUBLISHED[group]().posthoc) if group in PUBLISHED else []


def write_configs(group: str, folder: str | Path, base: Params | None = None, **options: Any) -> list[Path]:
    """Write each run of a group to `folder`/<group>/<exp_name>.yaml and return the files; options as in `expand`."""
    runs = expand(group, base or Params(), **options)
    files = [Path(folder) / group / f"{run.exp_name}.yaml" for run in runs]
    for run, file in zip(runs, files, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, dump_yaml(run.resolved()))
    return files


def _group_base(group: str, base: Params, head: str | None, overrides: Iterable[str]) -> Params:
    """The user's parameters, named after the group unless an override sets the name.

    `head`, and an override of seed, head.name or train.loss, narrow the grid.
    """
    overrides = list(overrides)
    # Use only what the user set: default options of one head must not meet an override that chooses another head.
    base = make_params(base.model_dump(mode="json", exclude_unset=True), overrides)
    grid = base.grid.model_dump() | ({"head": [head]} if head else {})
    chosen = {override.partition("=")[0].strip() for override in overrides}
    grid |= {"seed": [base.seed]} if "seed" in chosen else {}
    grid |= {"head": [base.head.name]} if {"head", "head.name"} & chosen else {}
    grid |= {"loss": [base.train.loss]} if grid["loss"] and _sets_loss(overrides) else {}
    name = base.exp_name if "exp_name" in chosen else group
    return make_params(base.model_dump(mode="json") | {"exp_name": name, "grid": grid})


def _sets_loss(overrides: Iterable[str]) -> bool:
    """Whether an override sets train.loss, by its own key or in a whole section train."""
    for override in overrides:
        key, _, text = override.partition("=")
        section = parse_yaml(text) if key.strip() == "train" else None
        if key.strip() == "train.loss" or (isinstance(section, Mapping) and "loss" in section):
            return True
    return False


def _refuse_namesakes(runs: Iterable[Params]) -> None:
    first: dict[str, Params] = {}
    for run in runs:
        other = first.setdefault(run.exp_name, run)
        if other is not run:
            one, two = flatten(run.resolved()), flatten(other.resolved())
            keys = ", ".join(key for key in one | two if one.get(key) != two.get(key))
            raise ValueError(f"two runs called {run.exp_name} differ in {keys}; override all of these, or fewer keys")
