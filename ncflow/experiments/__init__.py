"""Groups of runs that answer one question each: listed, expanded to configurations, written as YAML."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ncflow.dotted import flatten
from ncflow.experiments.groups import EXPERIMENTS, PUBLISHED, quickstart
from ncflow.files import write_text
from ncflow.lookup import lookup
from ncflow.nn.heads import HEAD_ALIASES, HEADS
from ncflow.params import Params, make_params
from ncflow.yaml_files import dump_yaml

__all__ = ["EXPERIMENTS", "PUBLISHED", "expand", "quickstart", "write_configs"]


def expand(
    group: str,
    base: Params,
    *,
    head: str | None = None,
    overrides: Iterable[str] = (),
    announce: Callable[[str], None] = lambda line: None,
) -> list[Params]:
    """The configurations of a group, with `head` in every run and overrides such as "dataset.name=digits" on top.

    Published groups do not depend on `base`. Runs that an override has made the same, as those on several data sets
    are on one, are listed once, and `announce` hears of it; different runs of the same name are a ValueError.
    """
    experiment = lookup(EXPERIMENTS, group, "experiment group")
    if group in PUBLISHED:
        runs = PUBLISHED[group]().runs(head=head, overrides=overrides)
    else:
        if head is not None:
            lookup(HEADS, HEAD_ALIASES.get(head, head), "head")
        runs = list(experiment(_group_base(group, base, head, overrides)))
        if head is not None and any(run.head.name != HEAD_ALIASES.get(head, head) for run in runs):
            raise ValueError(f"group '{group}' chooses its heads itself and ignores --head {head}; leave --head out")
    distinct: dict[str, Params] = {}
    for run in runs:
        distinct.setdefault(run.digest(), run)
    _refuse_namesakes(distinct.values())
    if len(distinct) < len(runs):
        announce(f"{group}: its {len(runs)} runs come down to {len(distinct)}; the others would be repeats")
    return list(distinct.values())


def write_configs(group: str, folder: str | Path, base: Params | None = None, **options: Any) -> list[Path]:
    """Write each run of a group to `folder`/<group>/<exp_name>.yaml and return the files; options as of `expand`."""
    runs = expand(group, base or Params(), **options)
    files = [Path(folder) / group / f"{run.exp_name}.yaml" for run in runs]
    for run, file in zip(runs, files, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, dump_yaml(run.resolved()))
    return files


def _group_base(group: str, base: Params, head: str | None, overrides: Iterable[str]) -> Params:
    """The user's parameters, named after the group unless an override names them; others narrow their grid.

    These are `head`, and an override of seed or head.name.
    """
    overrides = list(overrides)
    # Only what the user set: options of a head that was not chosen must not meet an override that chooses another.
    base = make_params(base.model_dump(mode="json", exclude_unset=True), overrides)
    grid = base.grid.model_dump() | ({"head": [head]} if head else {})
    chosen = {override.partition("=")[0].strip() for override in overrides}
    grid |= {"seed": [base.seed]} if "seed" in chosen else {}
    grid |= {"head": [base.head.name]} if {"head", "head.name"} & chosen else {}
    name = base.exp_name if "exp_name" in chosen else group
    return make_params(base.model_dump(mode="json") | {"exp_name": name, "grid": grid})


def _refuse_namesakes(runs: Iterable[Params]) -> None:
    first: dict[str, Params] = {}
    for run in runs:
        other = first.setdefault(run.exp_name, run)
        if other is not run:
            one, two = flatten(run.resolved()), flatten(other.resolved())
            keys = ", ".join(key for key in one | two if one.get(key) != two.get(key))
            raise ValueError(f"two runs called {run.exp_name} differ in {keys}; override that, too, or less")
