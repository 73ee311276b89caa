"""Check that the files of a run folder hold what a report needs; errors name the file and the key.

A folder may come from anyone, so every file is checked before anything is drawn.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from ncflow.runs.damage import check_epoch, check_mapping, damaged, is_number
from ncflow.runs.layout import SPLITS, epoch_of

NUMBERS = ("epoch", "seconds", "loss", "accuracy")  # of each record of the history
MAYBE = ("lr", "images_per_second")  # likewise, in files of most versions
SUMMARY = ("overall_acc", "tail_acc", "drift_norm", "lr", "loss")  # the first seed's keys of an analysis, if there
SECTIONS = ("dataset", "model", "head", "train")  # of a configuration
ROWS = ("class_means",)  # of a dump: (K, d); measured features may lack the classifier's "weight"
SAMPLES = ("predictions", "targets")  # (N,)


def whole_history(file: Path, history: object) -> tuple[dict[str, Any], ...]:
    """The records of the epochs in their order, at least one, each with NUMBERS. Raises ValueError otherwise."""
    if not isinstance(history, list) or not history:
        raise damaged(file, "a list of records, one for each epoch", history)
    for place, record in enumerate(history):
        check_mapping(file, record, f"record {place + 1}")
        check_epoch(file, record.get("epoch"), f"epoch of record {place + 1}")
        for name in NUMBERS:
            if not is_number(record.get(name)):
                raise damaged(file, f"a number as {name} of record {place + 1}", record.get(name))
        for name in MAYBE:
            if not (record.get(name) is None or is_number(record[name])):
                raise damaged(file, f"a number as {name} of record {place + 1}", record[name])
        if not record["seconds"] >= 0:
            raise damaged(file, f"at least 0 as seconds of record {place + 1}", record["seconds"])
        if place and record["epoch"] <= history[place - 1]["epoch"]:
            raise damaged(file, f"an epoch after {history[place - 1]['epoch']} in record {place + 1}", record["epoch"])
    return tuple(history)


def whole_analysis(file: Path, analysis: object) -> dict[str, Any]:
    """The metrics of one epoch by split, at least one of them finite. Raises ValueError otherwise."""
    check_mapping(file, analysis, "the analysis")
    assert isinstance(analysis, dict)
    check_epoch(file, analysis.get("epoch"), "epoch")
    if analysis["epoch"] != epoch_of(file):
        raise damaged(file, f"epoch {epoch_of(file)}, as its name says,", analysis["epoch"])
    for name in SUMMARY:
        if not (analysis.get(name) is None or is_number(analysis[name])):
            raise damaged(file, f"a number as {name}", analysis[name])
    for split in SPLITS:
        if split not in analysis and split == "val":
            continue
        check_mapping(file, analysis.get(split), split)
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
            check_mapping(file, config[section], section)
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
    check_mapping(file, dump, "the dump")
    assert isinstance(dump, dict)
    for name in ("class_counts", *ROWS, *SAMPLES):
        if not isinstance(dump.get(name), torch.Tensor):
            raise damaged(file, f"a tensor as {name}", dump.get(name))
    counts, features = dump["class_counts"], dump["class_means"].shape[-1:]
    for name, tensor in dump.items():
        if not isinstance(tensor, torch.Tensor):
            raise damaged(file, f"a tensor as {name}", tensor)
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_complex():
            found = f"{tensor.layout} {tensor.dtype} on {tensor.device.type}"
            raise damaged(file, f"a dense tensor of real numbers on the CPU as {name}", found)
    rows = [name for name in (*ROWS, "weight") if name in dump]
    fits = counts.ndim == 1 and features != (0,) and all(dump[name].shape == (len(counts), *features) for name in rows)
    fits = fits and dump["targets"].ndim == 1 and dump["targets"].shape == dump["predictions"].shape
    if not fits:
        shapes = ", ".join(f"{name} {tuple(dump[name].shape)}" for name in ("class_counts", *rows, *SAMPLES))
        raise damaged(file, "class_counts (K,), class_means and weight (K, d), d >= 1, and samples (N,)", shapes)
    for name in ("class_counts", *SAMPLES):
        if dump[name].is_floating_point() or dump[name].is_complex() or dump[name].dtype == torch.bool:
            raise damaged(file, f"whole numbers as {name}", str(dump[name].dtype))
    if len(counts) and int(counts.min()) < 0:
        raise damaged(file, "at least 0 as class_counts", str(int(counts.min())))
    for name in SAMPLES:
        labels = dump[name]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(counts):
            raise damaged(file, f"{name} in 0..{len(counts) - 1}", f"{int(labels.min())}..{int(labels.max())}")
    return dump
