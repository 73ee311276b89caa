"""Turn the records of the training loop into files, MLflow entries, states to resume from, and a progress bar."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from tqdm.auto import tqdm

from ncflow.assembly import Training
from ncflow.data import Snapshot
from ncflow.data.labels import shown
from ncflow.files import checksum
from ncflow.interruption import end_if_asked
from ncflow.metrics import class_recalls
from ncflow.nn import Classifier, PictureClassifier
from ncflow.params import Params
from ncflow.reports.highlights import highlights
from ncflow.runs.layout import CONFIG, PROVENANCE, SPLITS
from ncflow.runs.provenance import Provenance
from ncflow.runs.writer import RunFolder
from ncflow.tracking import ModelCard, RunLogger
from ncflow.training import EpochRecord, StateFolder
from ncflow.yaml_files import dump_yaml

FIT = ("loss", "lr", "accuracy", "seconds", "images_per_second")  # fields of a record that MLflow logs
MOST_ROWS = 10_000  # of a table that grows with every analysis: MLflow rewrites it each time


def record(
    params: Params,
    training: Training,
    images: Snapshot,
    files: RunFolder,
    states: StateFolder,
    provenance: Provenance,
    run: RunLogger,
) -> None:
    """Write each training record to files, MLflow, state and progress bar; then write the final model.

    An epoch is finished once its state is written. A run that is killed before that repeats the epoch with the same
    result. Equal files replace its files, and MLflow logs each step once.
    """
    files.write_text(CONFIG, dump_yaml(params.resolved()))
    files.write_text(PROVENANCE, provenance.as_json())
    tqdm.write(f"{params.exp_name}: {provenance.hardware}", file=sys.stderr)  # shows the choice of `auto`
    if training.note:
        tqdm.write(f"{params.exp_name}: {training.note}", file=sys.stderr)
    if earlier := log_earlier(files, run):
        tqdm.write(f"{params.exp_name}: {earlier}", file=sys.stderr)
    if files.epochs:
        note = f"{params.exp_name}: resuming after epoch {files.epochs} of {training.epochs}"
        tqdm.write(note, file=sys.stderr)
    classifier, total = training.classifier, training.epochs
    bar = tqdm(training.records, params.exp_name, total, initial=files.epochs, unit="epoch", dynamic_ncols=True)
    shown: dict[str, str] = {}
    rows = images.num_classes * math.ceil(total / params.train.analyze_freq)
    try:
        end_if_asked()
        for record in bar:
            files.write_record(record, classifier.head, images.class_counts, save_logits=params.train.save_logits)
            tabled = rows <= MOST_ROWS or record.last
            log_epoch(record, classifier, images, run, tabled=tabled)
            states.write(record.state())
            shown |= {"loss": f"{record.loss:.4f}", "acc": f"{record.accuracy:.3f}"}
            if record.analysis:  # stays visible until the next analysis
                shown["nc1/pinv"] = f"{record.analysis['train'].metrics.get('nc1/pinv', math.nan):.2e}"
            bar.set_postfix(shown)
            end_if_asked()
        if training.stopped:
            tqdm.write(f"{params.exp_name}: {training.stopped}", file=sys.stderr)
            provenance = replace(provenance, stopped=asdict(training.stopped))
            files.write_text(PROVENANCE, provenance.as_json())  # before the final model, which marks a finished run
        checkpoint = files.write_model(classifier)
        files.write_text(PROVENANCE, replace(provenance, final_model_sha256=checksum(checkpoint)).as_json())
    except Exception:  # the failed run keeps its earlier measurements
        run.keep(files.path)
        raise
    run.artifacts(files.path)
    log_model(classifier, params, provenance, files.read_epoch(files.epochs)[1], run, step=files.epochs)


def log_model(
    classifier: Classifier,
    params: Params,
    provenance: Provenance,
    metrics: Mapping[str, Mapping[str, float]],
    run: RunLogger,
    *,
    step: int,
) -> None:
    """Log the final classifier as a model of pictures. `metrics` are those of the last epoch, `step`, by split."""
    assert provenance.preprocessing is not None
    model = PictureClassifier(classifier, **asdict(provenance.preprocessing))
    run.model(model, card=_card(params, provenance, metrics.get("test", {})), step=step)


def describe_run(
    params: Params,
    provenance: Provenance,
    last: Mapping[str, Mapping[str, float]],
    *,
    epochs: int,
    group: str | None = None,
) -> str:
    """What was trained on what, and with which result, in Markdown. `last` are the metrics by split after `epochs`."""
    where = f"Files: `models/{params.exp_name}/`."
    if group:
        where += f" Report of all runs of its group: `reports/{group}/index.html`."
    lines = [
        f"**{params.model.name}** with head **{params.head.name}** and loss **{params.train.loss}**, trained on "
        f"**{provenance.snapshot.name}** for {epochs} epochs, seed {params.seed}. {where}",
        "",
        "| metric | split | value |",
        "|---|---|---|",
    ]
    for key, view in highlights().items():
        split, _, name = key.partition("/")
        if name in last.get(split, {}):
            value = last[split][name]
            lines.append(f"| {view.title} | {split} | {f'{value:.1%}' if view.percent else f'{value:.4g}'} |")
    return "\n".join(lines)


def _card(params: Params, provenance: Provenance, test: Mapping[str, float]) -> ModelCard:
    """What MLflow shows of a run's model."""
    names = provenance.snapshot.class_names or []
    facts = {
        "head": params.head.name,
        "loss": params.train.loss,
        "model": params.model.name,
        "dataset": params.dataset.name,
        "snapshot": provenance.snapshot.digest,
        "ncflow": provenance.ncflow,
    }
    accuracy = f" Balanced test accuracy: {test['acc/balanced']:.1%}." if "acc/balanced" in test else ""
    description = (
        f"{params.model.name} with head {params.head.name} and loss {params.train.loss}, trained on "
        f"{provenance.snapshot.name}.{accuracy} It takes pictures (B, H, W, C) as uint8, of any size, gray or RGB, "
        f"and returns logits (B, K). Classes: {shown(names)}."
    )
    metadata = {"run": params.exp_name, **facts, "class_names": names, "test_metrics": dict(test)}
    return ModelCard(params.exp_name, description, facts, metadata, params.tracking.register)


def log_epoch(
    record: EpochRecord, classifier: Classifier, images: Snapshot, run: RunLogger, *, tabled: bool = True
) -> None:
    """Log the numbers of an epoch in one call; of an analysis also pictures and, if `tabled`, accuracies by class."""
    from ncflow.reports.figures import confusion_figure, cosine_figure, to_image

    numbers = {name: getattr(record, name) for name in FIT}
    metrics = {split: result.metrics for split, result in record.analysis.items()}
    run.metrics(_named(numbers, metrics), step=record.epoch)
    if record.analysis:
        counts = torch.tensor(images.class_counts)
        means, test = record.analysis["train"].class_means.cpu(), record.analysis["test"]
        known: dict[str, Any] = {"class_counts": counts, "class_names": images.class_names}
        cosines = cosine_figure(means, classifier.head.weight.detach().cpu(), **known)
        confusion = confusion_figure(
            test.predictions.cpu(), test.targets.cpu(), num_classes=images.num_classes, **known
        )
        run.images({"cosines": to_image(cosines), "confusion": to_image(confusion)}, step=record.epoch)
        if tabled:
            run.table(_class_table(record, images), "class_accuracies.json", step=record.epoch)


def log_earlier(files: RunFolder, run: RunLogger) -> str:
    """Log the numbers of finished epochs that this MLflow run lacks. Returns a note on which, empty for none."""
    first = run.logged.get("fit/loss", 0) + 1
    for epoch in range(first, files.epochs + 1):
        run.metrics(_named(*files.read_epoch(epoch)), step=epoch)
    if first > files.epochs:
        return ""
    return (
        f"epochs {first} to {files.epochs} were logged to another MLflow run; their metrics are now also in this run. "
        f"Their pictures and class accuracies are only in the other run; {files.path} has their data"
    )


def log_history(history: Sequence[Mapping[str, Any]], analyses: Sequence[Mapping[str, Any]], run: RunLogger) -> None:
    """Log the numbers of every epoch of a finished run, and the metrics of every analyzed epoch."""
    analyzed = {analysis["epoch"]: analysis for analysis in analyses}
    for record in history:
        metrics = {split: analyzed.get(record["epoch"], {}).get(split, {}) for split in SPLITS}
        run.metrics(_named({name: record[name] for name in FIT if name in record}, metrics), step=record["epoch"])


def _named(numbers: Mapping[str, float], metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """An epoch's numbers and each split's metrics by their names in MLflow."""
    named = {f"fit/{name}": numbers[name] for name in FIT if name in numbers}
    for split, values in metrics.items():
        named |= {f"{split}/{name}": value for name, value in values.items()}
    return named


def _class_table(record: EpochRecord, images: Snapshot) -> dict[str, list[Any]]:
    """Per class: training samples and accuracy on every split."""
    columns: dict[str, list[Any]] = {
        "class": images.class_names,
        "train samples": images.class_counts,
    }
    for split, result in record.analysis.items():
        columns[f"{split} accuracy"] = class_recalls(result.predictions, result.targets, images.num_classes).tolist()
    return columns
