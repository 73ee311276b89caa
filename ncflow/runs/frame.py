"""Many runs as one pandas table: one row per run, analysis and split, one column per metric and option."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ncflow.runs.layout import CONFIG, METRICS, SPLITS, files_of_epochs
from ncflow.runs.reader import Run, load_runs

if TYPE_CHECKING:
    import pandas as pd

INDEX = ["run", "epoch", "split"]


def read_runs(runs: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Read the analyses of many runs: rows (run, epoch, split), one column per metric and per configuration key.

    `runs` is a pattern such as "models/*", or a list of run folders. Each folder of a list must hold a run. A pattern
    skips folders without a configuration. It skips runs without an analysis with a warning. A metric or a key that a
    run lacks is NaN. Keys are dotted, as in --set.

    Raises ValueError if nothing matches, if two runs have the same name, or if a file is damaged.

    Examples:
        >>> frame = read_runs("models/*")  # doctest: +SKIP
        >>> frame.xs("test", level="split").groupby("head.name")["acc/balanced"].describe()  # doctest: +SKIP
    """
    found = _matches(str(runs)) if isinstance(runs, str | Path) else load_runs(runs)
    return as_frame(found)


def as_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """The table of `read_runs` for loaded runs."""
    import pandas as pd

    rows = [row for run in runs for row in _rows(run)]
    frame = pd.DataFrame(rows).set_index(INDEX)
    metrics = sorted(name for name in frame.columns if "/" in name)
    return frame[[*metrics, *(name for name in frame.columns if "/" not in name)]]


def _rows(run: Run) -> Iterable[dict[str, Any]]:
    for analysis in run.analyses:
        for split in (split for split in SPLITS if split in analysis):
            yield {"run": run.name, "epoch": analysis["epoch"], "split": split, **analysis[split], **run.options}


def _matches(pattern: str) -> list[Run]:
    if (Path(pattern) / CONFIG).is_file():  # a folder's name may hold [ or *
        return load_runs([pattern])
    folders = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
    folders = [folder for folder in folders if (folder / CONFIG).is_file()]
    if not folders:
        raise ValueError(f"no run folder matches '{pattern}'; expected folders such as models/<exp_name>")
    begun = []
    for folder in folders:
        if files_of_epochs(folder, METRICS):
            begun.append(folder)
        else:
            warnings.warn(f"{folder} is skipped: it has no analysis yet", stacklevel=3)
    return load_runs(begun)
