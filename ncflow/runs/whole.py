"""Check that the files of a run folder hold what a report needs; errors name the file and the key.

A folder may come from anyone, so every file is checked before anything is drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ncflow.runs.layout import LAST_EPOCH, SPLITS, epoch_of

NUMBERS = ("epoch", "seconds", "loss", "accuracy")  # of each record of the history
SECTIONS = ("dataset", "model", "head", "train")  # of a configuration
ROWS = ("class_means",)  # of a dump: (K, d); measured features may lack the classifier's "weight"
SAMPLES = ("predictions", "targets")  # (N,)


def whole_history(file: Path, history: object) -> tuple[dict[str, Any], ...]:
    """The records of the epochs, at least one, each with NUMBERS. Raises ValueError otherwise."""
    if not isinstance(history, list) or not history:
        raise damaged(file, "a list of records, one for each epoch", history)
    for place, record in enumerate(history):
        _check_mapping(file, record, f"record {place + 1}")
        _check_epoch(file, record.get("epoch"), f"epoch of record {place + 1}")
        for name in NUMBERS:
            if not is_number(record.get(name)):
                raise damaged(file, f"a number as {name} of record {place + 1}", record.get(name))
    return tuple(history)


def whole_analysis(file: Path, analysis: object) -> dict[str, Any]:
    """The metrics of one epoch by split, at least one of them finite. Raises ValueError otherwise."""
    _check_mapping(file, analysis, "the analysis")
    assert isinstance(analysis, dict)
    _check_epoch(file, analysis.get("epoch"), "epoch")
    if analysis["epoch"] != epoch_of(file):
        raise damaged(file, f"epoch {epoch_of(file)}, as its name says,", analysis["epoch"])
    for split in SPLITS:
        if split not in analysis and split == "val":
            continue
        _check_mapping(file, analysis.get(split), split)
        for name, value in analysis[split].items():
            if not is_number(value):
                raise damaged(file, f"a number as {split}/{name}", value)
    if not any(math.isfinite(value) for split in SPLITS for value in analysis.get(split, {}).values()):
        raise damaged(file, "a metric that is finite", "none")
    return analysis


def whole_config(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration, with the keys that every report needs. Raises ValueError if one is missing or wrong."""
    for section in SECTIONS:
        if section in config:
            _check_mapping(file, config[section], section)
    missing = [
        key
        for key, found in (("head.name", config.get("head", {})), ("seed", config))
        if key.split(".")[-1] not in found
    ]
    if missing:
        raise ValueError(f"'{file}' is not a resolved configuration: it lacks {', '.join(missing)}")
    if not isinstance(config["head"]["name"], str):
        raise damaged(file, "a name as head.name", config["head"]["name"])
    if not isinstance(config["seed"], int) or isinstance(config["seed"], bool):
        raise damaged(file, "a whole number as seed", config["seed"])
    return config


def whole_dump(file: Path, dump: object) -> dict[str, torch.Tensor]:
    """The tensors of an analysis, in shapes that fit each other. Raises ValueError otherwise."""
    _check_mapping(file, dump, "the dump")
    assert isinstance(dump, dict)
    for name in ("class_counts", *ROWS, *SAMPLES):
        if not isinstance(dump.get(name), torch.Tensor):
            raise damaged(file, f"a tensor as {name}", dump.get(name))
    counts, features = dump["class_counts"], dump["class_means"].shape[-1:]
    if not isinstance(dump.get("weight", counts), torch.Tensor):
        raise damaged(file, "a tensor as weight", dump["weight"])
    rows = [name for name in (*ROWS, "weight") if name in dump]
    fits = counts.ndim == 1 and all(dump[name].shape == (len(counts), *features) for name in rows)
    fits = fits and dump["targets"].ndim == 1 and dump["targets"].shape == dump["predictions"].shape
    if not fits:
        shapes = ", ".join(f"{name} {tuple(dump[name].shape)}" for name in ("class_counts", *rows, *SAMPLES))
        raise damaged(file, "class_counts (K,), class_means and weight (K, d), predictions and targets (N,)", shapes)
    for name in SAMPLES:
        labels = dump[name]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(counts):
            raise damaged(file, f"{name} in 0..{len(counts) - 1}", f"{int(labels.min())}..{int(labels.max())}")
    return dump


def is_number(value: object) -> bool:
    """Whether a value is a number that a figure can show; NaN and infinity are numbers, too."""
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LAST_EPOCH**2
    )


def damaged(file: Path, expected: str, found: object) -> ValueError:
    """The error that names the file, the expected content, and the kind of content found."""
    plain = isinstance(found, str) and re.fullmatch(r"[\w (),.+-]{1,120}", found)  # hide other foreign text
    shown = found if plain else "nothing" if found is None else type(found).__name__
    return ValueError(f"'{file}' is damaged: expected {expected}, got {shown}; train the run again")


def _check_mapping(file: Path, value: object, name: str) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise damaged(file, f"a mapping as {name}", value)


def _check_epoch(file: Path, value: object, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LAST_EPOCH:
        raise damaged(file, f"a whole number from 0 to {LAST_EPOCH} as {name}", value)
