"""Writer of a run folder: configuration, metrics and geometry of each analysis, and the final classifier.

The first seed's layout: `metrics_epoch_N.json`, `raw_geo_epoch_N.pt`, `final_model.pth`. Each file is written
completely or not at all. Every tensor file loads with `weights_only=True`.
"""

from __future__ import annotations

import filecmp
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ncflow.files import publish, write_text
from ncflow.runs.layout import CONFIG, EPOCH_FEATURES, FINAL_MODEL, GEOMETRY, HISTORY, METRICS, SPLITS, epoch_of
from ncflow.tensors import read_tensors, write_tensors
from ncflow.training.evaluation import Evaluation
from ncflow.training.loop import EpochRecord
from ncflow.training.state import differing_tensors
from ncflow.yaml_files import dump_yaml


class RunFolder:
    """Writer of a run's files in `path`. It moves an earlier finished run aside and never overwrites it.

    Every file is written to `kept` first; `path` holds a second name of it. A run that resumes after `epoch` therefore
    restores its files up to that epoch, even if someone emptied `path`.
    """

    def __init__(self, path: str | Path, *, kept: Path | None = None, epoch: int = 0) -> None:
        self.path = Path(path)
        self.kept = kept or self.path
        finished, ours = self.path / FINAL_MODEL, self.kept / FINAL_MODEL
        if finished.exists() and not (kept and ours.exists() and filecmp.cmp(ours, finished, shallow=False)):
            self.path.rename(_free_name(self.path))
        for folder in (self.kept, self.path):
            folder.mkdir(parents=True, exist_ok=True)
            _remove_later(folder, epoch if folder == self.kept else 0)
        for file in self.kept.iterdir():
            self._publish(file)
        self._history: list[dict[str, Any]] = _read_json(self.kept / HISTORY)[:epoch] if epoch else []

    @property
    def epochs(self) -> int:
        """The number of completed epochs."""
        return len(self._history)

    def read_epoch(self, epoch: int) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """The history's record of a completed epoch, and the metrics by split if the epoch was analyzed."""
        file = self.kept / METRICS.format(epoch)
        summary = _read_json(file) if file.exists() else {}
        return self._history[epoch - 1], {split: summary[split] for split in SPLITS if split in summary}

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file, such as the resolved configuration, and return its path."""
        return self._publish(write_text(self.kept / name, text))

    def write_record(
        self, record: EpochRecord, head: nn.Module, class_counts: Sequence[int], *, save_logits: bool = False
    ) -> dict[str, Any]:
        """Add an epoch to the history; if it was analyzed, write its metrics and geometry and return the metrics."""
        self._history.append({name: getattr(record, name) for name in NUMBERS})
        self.write_text(HISTORY, json.dumps(self._history, indent=1))
        if not record.analysis:
            return {}
        summary = summarize(record)
        self.write_text(METRICS.format(record.epoch), json.dumps(summary, indent=1))
        geometry = collect_geometry(record.analysis, head, class_counts, save_logits=save_logits)
        self._publish(write_tensors(self.kept / GEOMETRY.format(record.epoch), geometry))
        if features := collect_features(record.analysis, head, class_counts):
            self._publish(write_tensors(self.kept / EPOCH_FEATURES.format(record.epoch), features))
        return summary

    def write_model(self, classifier: nn.Module) -> Path:
        """Write the final classifier's state_dict and return its path. This marks the run as finished."""
        state = {name: tensor.detach().cpu() for name, tensor in classifier.state_dict().items()}
        return self._publish(write_tensors(self.kept / FINAL_MODEL, state))

    def _publish(self, file: Path) -> Path:
        return file if self.kept == self.path else publish(file, self.path / file.name)


def write_measured(
    folder: Path,
    config: Mapping[str, Any],
    analyses: Mapping[int, tuple[Mapping[str, Mapping[str, float]], Mapping[str, Tensor]]],
) -> None:
    """Write measured features in the layout of a run: epoch -> metrics by split, and geometry as in a dump.

    Reports then show them next to runs. There is no final model. Training loss and time are unknown: NaN and 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_later(folder, -1)  # epoch 0 is the initialization
    history = []
    for epoch, (metrics, geometry) in analyses.items():
        accuracy = metrics["train"].get("acc/overall", math.nan)
        history.append({"epoch": epoch, "lr": 0.0, "loss": math.nan, "accuracy": accuracy, "seconds": 0.0})
        write_text(folder / METRICS.format(epoch), json.dumps({"epoch": epoch, "test": {}, **metrics}, indent=1))
        write_tensors(folder / GEOMETRY.format(epoch), geometry)
    write_text(folder / HISTORY, json.dumps(history, indent=1))
    write_text(folder / CONFIG, dump_yaml(dict(config)))


def load_model(path: str | Path, classifier: nn.Module) -> None:
    """Load a state_dict saved by RunFolder. Raises ValueError that names a missing, damaged or foreign file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint {path}; train first, or fetch it with `dvc pull`")
    state = read_tensors(path)
    if other := differing_tensors(state, classifier.state_dict()):
        raise ValueError(f"{path} is not a checkpoint of this configuration: {other}")
    classifier.load_state_dict(state)


def _read_json(file: Path) -> Any:
    """The content of a file of an unfinished run. Raises ValueError that names a damaged file."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}; rename {file.parent.parent} to train from the start") from error


def summarize(record: EpochRecord) -> dict[str, Any]:
    """The content of metrics_epoch_N.json: the first seed's keys, then all metrics of every split.

    Under the seed's keys, accuracies are those of the test split. "tail_acc" is null if that split has no sample of the
    rarest classes. The drift is that of the training features. "analyze" is "streaming" where those are the features of
    training itself.
    """
    train, test = record.analysis["train"].metrics, record.analysis["test"].metrics
    return {
        "epoch": record.epoch,
        "overall_acc": test["acc/overall"],
        "tail_acc": test.get("acc/tail20"),
        "drift_norm": train["drift/norm"],
        "layer_wise_drift": {
            name.split("/")[1]: train[name] for name in train if re.fullmatch("layers/.*/drift", name)
        },
        "lr": record.lr,
        "loss": record.loss,
        **({"analyze": "streaming"} if record.analysis["train"].streamed else {}),
    } | {split: result.metrics for split, result in record.analysis.items()}


def collect_geometry(
    analysis: Mapping[str, Evaluation], head: nn.Module, class_counts: Sequence[int], *, save_logits: bool
) -> dict[str, Tensor]:
    """The content of raw_geo_epoch_N.pt: predictions on the test split, geometry of train features and classifier."""
    train, test = analysis["train"], analysis["test"]
    geometry = {
        "predictions": test.predictions,
        "targets": test.targets,
        "drift_vector": train.sample_mean,
        "class_means": train.class_means,
        "class_counts": torch.tensor(class_counts),
        "weight": head.weight,
        "bias": head.bias,
        "logits": test.logits if save_logits else None,
    }
    return {name: tensor.detach().cpu() for name, tensor in geometry.items() if isinstance(tensor, Tensor)}


def collect_features(
    analysis: Mapping[str, Evaluation], head: nn.Module, class_counts: Sequence[int]
) -> dict[str, Tensor]:
    """The content of features_epoch_N.pt, which `ncflow measure` reads; empty if the analysis kept no features."""
    kept = {split: result for split, result in analysis.items() if result.features is not None}
    if not kept:
        return {}
    found: dict[str, Any] = {"weight": head.weight, "bias": head.bias, "class_counts": torch.tensor(class_counts)}
    for split, result in kept.items():
        rows = {"features": result.features, "targets": result.targets, "logits": result.logits}
        found |= {f"{split}/{name}": tensor for name, tensor in rows.items()}
    return {name: tensor.detach().cpu() for name, tensor in found.items() if isinstance(tensor, Tensor)}


def _remove_later(folder: Path, epoch: int) -> None:
    """Delete the files that a run resumed after `epoch` will write: later epochs and the final model."""
    for file in folder.iterdir():
        if file.name == FINAL_MODEL or file.suffix == ".partial" or _is_later(file, epoch):
            file.unlink()


def _is_later(file: Path, epoch: int) -> bool:
    found = epoch_of(file)
    return found is not None and found > epoch


def _free_name(path: Path) -> Path:
    """`path`.1, or the next free number."""
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.{number}")


NUMBERS = ("epoch", "lr", "loss", "accuracy", "seconds", "images_per_second")  # of each record in the history
