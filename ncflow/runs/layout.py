"""The names of the files in a run folder, in the first seed's layout.

`models/<exp_name>/` holds the configuration, the history of all epochs and the final model. Each analysis adds a file
of metrics and a file of tensors. A run is finished if its final model exists.
"""

from __future__ import annotations

import re
from pathlib import Path

CONFIG = "config.yaml"
HISTORY = "history.json"
PROVENANCE = "provenance.json"
FINAL_MODEL = "final_model.pth"
METRICS, GEOMETRY = "metrics_epoch_{}.json", "raw_geo_epoch_{}.pt"  # of an epoch
EPOCH_FEATURES = "features_epoch_{}.pt"  # likewise, with train.save_features
POSTHOC = "{}.posthoc.json"  # of a run's name, next to its folder: DVC empties the folder before it trains
EVALUATION, FEATURES = "{}.evaluation.json", "{}.features.npz"  # likewise
PROGRAMS = {"pt2": "{}.pt2", "onnx": "{}.onnx"}  # likewise
SPLITS = ("train", "val", "test")  # in the order of tables
LAST_EPOCH = 10**9


def run_folder(root: Path, name: str) -> Path:
    """The folder of a run in a project."""
    return root / "models" / name


def finished_runs(root: Path) -> list[Path]:
    """The folders of a project's finished runs, by name."""
    return sorted(file.parent for file in (root / "models").glob(f"*/{FINAL_MODEL}"))


def posthoc_file(folder: Path) -> Path:
    """The file of the post-hoc classifiers of the run in a folder."""
    return folder.with_name(POSTHOC.format(folder.name))


def evaluation_file(folder: Path) -> Path:
    """The file of the second evaluation of the run in a folder."""
    return folder.with_name(EVALUATION.format(folder.name))


def features_file(folder: Path) -> Path:
    """The file of the features of the run in a folder."""
    return folder.with_name(FEATURES.format(folder.name))


def program_file(folder: Path, kind: str) -> Path:
    """The file of the exported classifier of the run in a folder; `kind` is pt2 or onnx."""
    return folder.with_name(PROGRAMS[kind].format(folder.name))


def is_next_to_run(path: Path) -> bool:
    """Whether a path is one of the files next to a run folder, as `models/*` in a shell names them, too."""
    names = (POSTHOC, EVALUATION, FEATURES, *PROGRAMS.values())
    return path.is_file() and path.name.endswith(tuple(name.format("") for name in names))


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder is finished: its final model exists."""
    return (folder / FINAL_MODEL).is_file()


def epoch_of(file: Path) -> int | None:
    """The epoch that a file of metrics or tensors belongs to, None for any other file."""
    for pattern in (METRICS, GEOMETRY, EPOCH_FEATURES):
        before, after = pattern.split("{}")
        number = re.fullmatch(rf"{re.escape(before)}(\d{{1,9}}){re.escape(after)}", file.name, re.ASCII)
        if number:
            return int(number[1])
    return None


def files_of_epochs(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern (METRICS or GEOMETRY), sorted by epoch: 9 before 10."""
    epochs = {file: epoch_of(file) for file in folder.glob(pattern.format("*"))}
    return [file for _, file in sorted((epoch, file) for file, epoch in epochs.items() if epoch is not None)]
