"""Groups of runs that answer one question each: list them, expand them to configurations, write them as YAML."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ncflow.dotted import flatten
from ncflow.experiments.axes import Axis, parse_axes, setting
from ncflow.experiments.group_files import GroupFile, find_group_files, read_group
from ncflow.experiments.groups import EXPERIMENTS, MAIN, PUBLISHED, main, quickstart
from ncflow.experiments.names import joined, ordered, short_keys
from ncflow.experiments.sweeps import MOST_RUNS, choose, representatives, sweep
from ncflow.files import write_text
from ncflow.lookup import lookup
from ncflow.nn.heads import HEAD_ALIASES, HEADS
from ncflow.params import Params, make_params
from ncflow.yaml_files import dump_yaml, parse_yaml

__all__ = ["EXPERIMENTS", "MOST_RUNS", "PUBLISHED", "expand", "hypothesis", "list_groups", "posthoc_methods"]
__all__ += ["quickstart", "representatives", "suite_name", "write_configs"]


def expand(
    group: str,
    base: Params,
    *,
    head: str | None = None,
    overrides: Iterable[str] = (),
    grid: Iterable[str] = (),
    groups: Path | None = None,
    most: int = MOST_RUNS,
    announce: Callable[[str], None] = lambda line: None,
) -> list[Params]:
    """The configurations of a group, with `head` in every run and overrides such as "dataset.name=digits" on top.

    `grid` holds axes such as "train.lr=0.3,0.1": the group is repeated for every combination of their values, for at
    most `most` runs. In `main` the axes replace the section grid of `base`. `groups` is a folder with files of groups.
    Published groups do not depend on `base`. An override may make runs equal, for example runs on several data sets.
    Equal runs are listed once, and `announce` is called with a message. Raises ValueError for an unknown group or head
    and for a head that the group ignores. Raises ValueError for different runs of the same name, and for an axis along
    which runs do not differ.
    """
    overrides = list(overrides)
    if head is not None:
        lookup(HEADS, HEAD_ALIASES.get(head, head), "head")
    file = _group_file(group, groups)
    axes = _axes(file, parse_axes(grid), _pinned(overrides, head))
    if not (axes or file):
        return _runs(group, base, head, overrides, announce)
    single = file is not None or group == MAIN
    if unused := [key for override in overrides if single and (key := override.partition("=")[0]).startswith("grid")]:
        raise ValueError(f"--set {unused[0]} changes nothing here; use --grid, such as --grid seed=0..4")
    if group == MAIN and "grid" in base.model_fields_set:
        announce(f"{group}: --grid replaces the section grid of the parameters")
    announce = _once(announce)

    def repeat(choice: Mapping[str, Any]) -> list[Params]:
        if single:
            return [_single(group, base, file, choice, head, overrides)]
        one = choice.get("head.name", head) if group in PUBLISHED else head  # with the options that a group gives it
        settings = [setting(key, value) for key, value in choice.items() if one == head or key != "head.name"]
        return _runs(group, choose(base, settings), one, [*settings, *overrides], announce)

    with _named_file(file):
        return sweep(axes, repeat, most=most)


def suite_name(group: str, base: Params, *, overrides: Iterable[str] = (), grid: Iterable[str] = ()) -> str:
    """The name of a suite, its report and its tag: that of the group and of what `grid` varies, as main_lr_head."""
    overrides = list(overrides)
    given = any(override.partition("=")[0].strip() == "exp_name" for override in overrides)
    named = group == MAIN or (group == quickstart.__name__ and given)  # their runs begin with exp_name
    name = make_params(base.model_dump(mode="json", exclude_unset=True), overrides).exp_name if named else group
    keys = [axis.key for axis in parse_axes(grid)]
    short = short_keys(keys)
    return joined([name, *(short[key] for key in ordered(keys))])


def list_groups(groups: Path | None = None) -> dict[str, str]:
    """Name -> summary of all groups, at last those in the folder `groups`. Raises ValueError for a wrong file."""
    rows = {name: (group.__doc__ or "").strip().partition("\n")[0] for name, group in EXPERIMENTS.items()}
    files = {name: read_group(file, EXPERIMENTS) for name, file in find_group_files(groups).items()}
    return rows | {name: " ".join(file.hypothesis.split()) for name, file in files.items()}


def hypothesis(group: str, groups: Path | None = None) -> str:
    """What a group expects and why, in sentences: from its file, or from its function; empty for `main`."""
    if (file := _group_file(group, groups)) is not None:
        expected = f" Expected: {file.expected}" if file.expected else ""
        return " ".join(f"Hypothesis: {file.hypothesis}{expected}".split())
    text = inspect.getdoc(EXPERIMENTS[group]) if group in EXPERIMENTS and group != MAIN else None
    return " ".join((text or "").partition("\n\n")[2].split())


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


def _runs(
    group: str, base: Params, head: str | None, overrides: Sequence[str], announce: Callable[[str], None]
) -> list[Params]:
    """The distinct runs of a group of EXPERIMENTS."""
    experiment = lookup(EXPERIMENTS, group, "experiment group")
    if group in PUBLISHED:
        grid = PUBLISHED[group]()
        fixed = grid.has_own_heads
        runs = [] if head is not None and fixed else grid.runs(head=head, overrides=overrides)
    else:
        base = _group_base(group, base, head, overrides)
        runs = list(experiment(base))
        fixed = head is not None and any(run.head.name != HEAD_ALIASES.get(head, head) for run in runs)
    if head is not None and fixed:
        raise ValueError(f"group '{group}' chooses its heads itself and ignores --head {head}; leave --head out")
    if experiment in (main, quickstart) and base.grid.loss and base.train.loss not in {run.train.loss for run in runs}:
        announce(f"{group}: grid.loss={base.grid.loss} replaces train.loss={base.train.loss}")
    distinct: dict[str, Params] = {}
    for run in runs:
        distinct.setdefault(run.digest(), run)
    _refuse_namesakes(distinct.values())
    if len(distinct) < len(runs):
        announce(f"{group}: its {len(runs)} runs come down to {len(distinct)}; the others would be repeats")
    return list(distinct.values())


def _group_file(group: str, folder: Path | None) -> GroupFile | None:
    """The group's file, or None for a row of EXPERIMENTS. Raises ValueError for an unknown group."""
    files = find_group_files(folder)
    if group in files:
        return read_group(files[group], EXPERIMENTS)
    if folder and group not in EXPERIMENTS and (folder / f"{group}.yml").is_file():
        raise ValueError(f"{folder / group}.yml: the file of a group ends in .yaml; rename it to {group}.yaml")
    lookup({**EXPERIMENTS, **files}, group, "experiment group")
    return None


def _axes(file: GroupFile | None, given: Sequence[Axis], pinned: Mapping[str, str]) -> list[Axis]:
    """The axes of a group's file, or the given ones in their place, then others; pinned keys have no axis."""
    for axis in given:
        if option := pinned.get(axis.slot):
            raise ValueError(f"--grid {axis.key} and {option} set the same key; leave one of them out")
    own = {axis.slot: axis for axis in (file.axes if file else ()) if axis.slot not in pinned}
    return list((own | {axis.slot: axis for axis in given}).values())


def _pinned(overrides: Iterable[str], head: str | None) -> dict[str, str]:
    """What every run has from an option: the slot of an axis -> that option."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    slots = {Axis(key, ()).slot: f"--set {key}" for key in keys}
    return slots if head is None else {"head": "--head"} | slots


@contextmanager
def _named_file(file: GroupFile | None) -> Iterator[None]:
    """Inside, errors of a group from a file name the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file.file}: {error}" if file else str(error)) from None


def _single(
    group: str,
    base: Params,
    file: GroupFile | None,
    choice: Mapping[str, Any],
    head: str | None,
    overrides: Sequence[str],
) -> Params:
    """The run of one choice in a group that lists no runs: `main`, or a group in a file."""
    base = make_params(base.model_dump(mode="json", exclude_unset=True, exclude={"grid"}))
    settings = [setting(key, value) for key, value in {**choice, **({"head.name": head} if head else {})}.items()]
    common = choose(base, file.base) if file else base
    name = [] if group == MAIN else [setting("exp_name", group)]
    return make_params(choose(common, settings).model_dump(mode="json", exclude_unset=True), [*name, *overrides])


def _once(announce: Callable[[str], None]) -> Callable[[str], None]:
    """`announce`, for each line once."""
    said = set[str]()

    def announce_once(line: str) -> None:
        if line not in said:
            said.add(line)
            announce(line)

    return announce_once


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
    name = base.exp_name if "exp_name" in chosen or group == MAIN else group
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
