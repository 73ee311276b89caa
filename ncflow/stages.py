"""One function per stage of dvc.yaml: snapshot, train, evaluate, posthoc, report. Each reads and writes files."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

import ncflow
from ncflow.assembly import (
    Built,
    analysis,
    build_classifier,
    check,
    is_extendable,
    load_splits,
    preprocessing,
    refuse_to_extend,
    snapshot_name,
    start,
)
from ncflow.data import Batches, Snapshot
from ncflow.data.manifest import find_manifest
from ncflow.dotted import flatten
from ncflow.extras import require
from ncflow.files import checksum, write_text
from ncflow.imports import IMPORTED, checkpoint_sha256, run_digest
from ncflow.interruption import RESUMES, end_if_asked, interruptible, watched
from ncflow.lookup import fact, lookup
from ncflow.measuring import FeatureSplit, Measurement, read_features, series, stream_features, write_features
from ncflow.measuring import measure as measure_features
from ncflow.measuring.models import Question, collect_features, open_model
from ncflow.measuring.pictures import load_pictures
from ncflow.nn import HEADS, Classifier
from ncflow.params import Params, make_params
from ncflow.posthoc import POSTHOC, Unseen, freeze_features, measure_posthoc
from ncflow.project import git_commit
from ncflow.recording import describe_run, log_history, log_model, record
from ncflow.reports import Table, arms, findings, summary_table, verdict
from ncflow.reports.made import PAGE, is_up_to_date, listed, remember
from ncflow.runs.layout import FINAL_MODEL, is_finished
from ncflow.runs.posthoc import PostHoc, write_posthoc
from ncflow.runs.provenance import FIRST_RESIZING, DataVersion, Hardware, Provenance, read_provenance
from ncflow.runs.reader import Run, load_run, load_runs
from ncflow.runs.writer import RunFolder, load_model, write_measured
from ncflow.suite import Claimed, claimed, refuse_finished
from ncflow.tracking import SCHEMES, fetched_model, has_finished, log_to_finished, runs_address, start_run
from ncflow.trained import lacks, load_trained, preprocessing_of, read_run_params, refuse_other_checkpoint
from ncflow.training import (
    Splits,
    StateFolder,
    agree,
    create_accelerator,
    evaluate_splits,
    explained_faults,
    from_first,
    keep_freed_memory,
    refuse_unshared,
    resolve_precision,
)
from ncflow.training.evaluation import extract, gather_rows

STATES = Path(".ncflow", "state")  # in the project, not in a run's folder, which DVC empties
FINISHED = Path(".ncflow", "finished")  # the last states of finished runs that `--extend` can continue
ELSEWHERE = 1e-2  # tolerance of metrics of other hardware or code, which rounds differently
IDENTITY = ("config", "snapshot")  # the tags that tell which MLflow run is the run of a folder


def snapshot(params: Params, path: Path) -> Snapshot:
    """Stage snapshot: return the long-tailed data of these parameters at `path`; create it if it is missing."""
    return Snapshot.obtain(path, **params.dataset.model_dump())


def train(
    params: Params,
    *,
    folder: Path,
    data: Path,
    root: Path,
    group: str | None = None,
    suite: str | None = None,
    trial: int | None = None,
    processes: int | None = None,
    extend: bool = False,
    unless_finished: bool = False,
) -> Path:
    """Stage train: train one configuration in one MLflow run and one run folder, and return the folder.

    `data` is the snapshot's folder, created if it is missing. `root` is the project with the MLflow store. `group` is
    a tag shared by the runs of one comparison. `suite` is a tag of the suite that started this run. `trial` is its
    number in a search, a tag. `processes`, if given, is the required number of processes.

    A stopped run with equal configuration and snapshot resumes after its last finished epoch, in the same MLflow run.
    SIGTERM raises Interrupted.

    `extend` resumes from the last state of a finished run, in a new MLflow run. That run has fewer epochs and no other
    difference. Raises ValueError where there is no such run, or where its epochs would differ in a longer run.

    `unless_finished` raises Claimed if the run is finished. Without it, training moves a finished run aside.
    """
    train = params.train
    with interruptible(RESUMES), explained_faults(batch_size=train.batch_size, precision=train.precision):
        require("mlflow")
        built = check(params)  # before any file is written
        keep_freed_memory()
        accelerator = create_accelerator(train.device)
        with _claimed_by_all(params, root, accelerator, unless_finished=unless_finished):
            _train(
                params,
                built,
                accelerator,
                folder,
                data,
                root,
                tags={"group": group, "suite": suite, "trial": None if trial is None else str(trial)},
                processes=processes,
                extend=extend,
            )
    return folder


def _train(
    params: Params,
    built: Built | None,
    accelerator: Any,
    folder: Path,
    data: Path,
    root: Path,
    *,
    tags: Mapping[str, str | None],
    processes: int | None,
    extend: bool,
) -> None:
    """Train in this process, alone or as one of several. The caller holds the claim on the run."""
    if processes not in (None, accelerator.num_processes):
        raise ValueError(f"requested {processes} processes, but Accelerate started {accelerator.num_processes}")
    agree(accelerator, {**flatten(params.resolved()), "--extend": extend, "--import": IMPORTED})
    refuse_unshared(accelerator, root)
    images = snapshot(params, data)
    weights = checkpoint_sha256(params)
    agree(accelerator, {"the snapshot's digest": images.digest, "the checkpoint's sha256": weights})
    states = StateFolder(root / STATES / _run_id(params, images, weights))
    shortest = make_params(params.resolved(), ["train.epochs=1"])
    finished = StateFolder(root / FINISHED / _run_id(shortest, images, weights))
    precision = resolve_precision(params.train.precision, accelerator.device)
    if extend:
        _extend(params, finished, states, accelerator)
    training = start(params, images, accelerator, precision, states, built)
    provenance = replace(
        _provenance(params, images, root, Hardware.of(accelerator, precision)),
        extended_from=states.began_after(),
        checkpoint_sha256=weights,
        storage=training.splits.places,
    )
    main = accelerator.is_main_process
    with (
        watched() if accelerator.num_processes > 1 else nullcontext(),
        start_run(
            root=root,
            name=params.exp_name,
            config=params.experiment(),
            tags=_tags(params, provenance, **tags),
            color=fact(HEADS[params.head.name], "color"),  # the same color in the report and in MLflow
            attempt=states.token() if main else None,
            also=params.tracking.also,
            watched=True,
            enabled=main,
        ) as run,
    ):
        if main:
            run.dataset(provenance.snapshot.name, images.digest, images.path)
            files = RunFolder(folder, kept=states.files, epoch=training.done)
            record(params, training, images, files, states, provenance, run)
            last = files.read_epoch(files.epochs)[1]
            run.describe(describe_run(params, provenance, last, epochs=files.epochs, group=tags["group"]))
        else:
            for epoch in training.records:
                epoch.state()  # every process takes part in collecting the state
                end_if_asked()
    if main and is_extendable(params):
        states.archive(finished.path)
    elif main:
        states.remove()


@contextmanager
def _claimed_by_all(params: Params, root: Path, accelerator: Any, *, unless_finished: bool) -> Iterator[None]:
    """Hold the claim on the run in the first process. Every process raises Claimed if it cannot."""
    with ExitStack() as stack:
        taken = None
        if accelerator.is_main_process:
            try:
                stack.enter_context(claimed(root, params.exp_name))
                if unless_finished:
                    refuse_finished(params, root)
            except Claimed as error:
                taken = error.finished
        if (finished := from_first(accelerator, taken)) is not None:
            raise Claimed(params.exp_name, finished=finished)
        yield


def _run_id(params: Params, images: Snapshot, checkpoint: str | None) -> str:
    """The name of a run's states. Two runs share it only if their name, configuration, weights and pixels are equal."""
    used = preprocessing(params, images)
    resized = images.manifest["image_size"] != [used.resize, used.resize] and used.resizing != FIRST_RESIZING
    rule = f"-{used.resizing}" if resized else ""
    return f"{params.exp_name}-{run_digest(params, checkpoint)}-{images.digest[:12]}{rule}"


def _extend(params: Params, finished: StateFolder, states: StateFolder, accelerator: Any) -> None:
    """Start a run from the last state of a finished run. Every process calls it."""
    done = finished.finished_epoch()
    begun = states.finished_epoch() > 0  # an extension that was interrupted resumes from its own states
    accelerator.wait_for_everyone()  # every process must look before the first one writes
    if begun:
        return
    if not done:
        refuse_to_extend(params, max(params.train.epochs // 2, 1))  # such a run leaves no state
        raise ValueError(
            f"--extend found no finished run '{params.exp_name}' that differs only in train.epochs in "
            f"{finished.path.parent}; train without --extend"
        )
    if done >= params.train.epochs:
        raise ValueError(
            f"--extend expects more epochs than the finished run has, got train.epochs={params.train.epochs} and a run "
            f"of {done}; raise train.epochs"
        )
    refuse_to_extend(params, done)
    if accelerator.is_main_process:
        states.begin_after(finished)
    accelerator.wait_for_everyone()


def evaluate(folder: Path, data: Path, out: Path) -> dict[str, Any]:
    """Stage evaluate: measure the checkpoint again on every split and write the metrics to `out` as JSON.

    If a launcher started several processes, each measures a share of every split.
    Raises ValueError where the metrics differ from the last ones of training: then the checkpoint is not that model.
    On the CPU and with the code that trained it, they are equal to the last bit. A GPU sums in another order each time.
    """
    params, provenance, classifier, splits, accelerator = _load_trained(folder, data)
    results = evaluate_splits(
        classifier,
        splits,
        replace(analysis(params, classifier, splits.class_counts), solver=False, features=False),
        accelerator=accelerator,
    )
    measured = {split: result.metrics for split, result in results.items()}
    logged = load_runs([folder])[0].analyses[-1]
    there = provenance.hardware
    same = there is not None and there == Hardware.of(accelerator, there.precision) and there.device == "cpu"
    same &= (provenance.ncflow, provenance.torch) == (ncflow.__version__, torch.__version__)
    _refuse_if_different(measured, logged, tolerance=0.0 if same else ELSEWHERE, folder=folder)
    if accelerator.is_main_process:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(measured, indent=1) + "\n")
    return measured


def posthoc(folder: Path, data: Path, methods: Sequence[str] = (), *, out: Path | None = None) -> dict[str, Any]:
    """Stage posthoc: measure classifiers on the frozen features of a checkpoint, on every split but the training split.

    `methods` are rows of POSTHOC; without any, all that the run allows. Options are chosen on the validation split, or
    are the stated defaults. The results join those of earlier calls in `<folder>.posthoc.json`; `out` gets the numbers.
    Returns what `measure_posthoc` returns for this call. Raises ValueError for a method that needs what the run lacks.
    """
    for name in methods:
        lookup(POSTHOC, name, "post-hoc method")
    params, provenance, classifier, splits, accelerator = _load_trained(folder, data)

    def rows(batches: Batches) -> Unseen:
        features, logits, _ = extract(classifier, batches)
        return Unseen(gather_rows(accelerator, features), gather_rows(accelerator, logits), batches.targets)

    train = rows(splits.train)
    unseen = {"test": rows(splits.test)} | ({} if splits.validation is None else {"val": rows(splits.validation)})
    head = classifier.head
    frozen = freeze_features(train.features, train.targets, head.weight, head.bias, splits.class_counts)
    results = measure_posthoc(frozen, unseen, methods=methods, lacks=lacks(params, validated="val" in unseen))
    if accelerator.is_main_process:
        sha256 = provenance.final_model_sha256 or checksum(folder / FINAL_MODEL)
        measured = {split: results[split] for split in unseen}
        new = PostHoc(ncflow.__version__, sha256, measured, results["options"], results["chosen_by"])
        write_posthoc(folder, new)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, json.dumps(measured | {"options": results["options"]}, indent=1) + "\n")
    return results


def features(folder: Path, data: Path, out: Path) -> Path:
    """Write features, targets, logits and classifier of every split of a finished run to one .npz file."""
    _, provenance, classifier, splits, accelerator = _load_trained(folder, data)
    head, names = classifier.head, provenance.snapshot.class_names
    batches = {"train": splits.train, "test": splits.test}
    batches |= {} if splits.validation is None else {"val": splits.validation}
    found = {}
    for split, each in batches.items():
        rows, logits, _ = extract(classifier, each)
        end_if_asked()
        found[split] = FeatureSplit(
            gather_rows(accelerator, rows),
            each.targets,
            head.weight,
            head.bias,
            gather_rows(accelerator, logits),
            list(splits.class_counts),
            names,
        )
    return write_features(out, found) if accelerator.is_main_process else out


def measure(
    files: Sequence[Path], train: Path | None, out: Path, *, stream: bool = False
) -> dict[str, dict[str, float]]:
    """Measure the features in files, and write `out`: metrics.json, and the layout of a run, which reports read.

    Several files are a series: the last number in each name is its epoch. `train` is a file of the training features,
    if one file holds unseen ones. `stream` reads them part by part and leaves out the metrics that need all samples
    together. Returns the metrics of the last epoch. Raises ValueError for files that do not fit each other, and if
    `out` is the folder of a trained run.
    """
    if is_finished(out):
        raise ValueError(f"{out} is the folder of a trained run; choose another --name or --out")
    if train is not None and len(files) > 1:
        raise ValueError(f"--train belongs to one file, got {len(files)}; put the splits of each epoch in one file")
    one = _streamed if stream else _measured_file
    return _write_measures(out, {epoch: one(file, train) for epoch, file in series(files).items()})


def measure_model(asked: Question, out: Path, root: Path, *, save: Path | None = None) -> dict[str, dict[str, float]]:
    """Measure a trained model on pictures, and write `out` as `measure` does for its features.

    `save` gets the features as a file that `measure` reads. Raises ValueError for a model or data that do not fit.
    """
    if is_finished(out):
        raise ValueError(f"{out} is the folder of a trained run; choose another --name or --out")
    if save is not None and save.suffix != ".npz":
        raise ValueError(f"--save-features writes .npz, got {save}")
    pictures = load_pictures(asked.data)
    stored = fetched_model(root, asked.model) if asked.model.startswith(SCHEMES) else nullcontext()
    with stored as file:
        model = open_model(asked, num_classes=len(pictures["train"].class_names), file=file)
        with tqdm(total=sum(map(len, pictures.values())), desc=out.name, unit="picture", disable=None) as bar:
            layer, splits = collect_features(
                model,
                pictures,
                layer=asked.layer,
                features_only=asked.features_only,
                device=create_accelerator(asked.device).device,
                batch_size=asked.batch_size,
                num_workers=0 if isinstance(pictures["train"].images, np.ndarray) else min(4, os.cpu_count() or 1),
                progress=lambda count: bar.update(count),
            )
    if save is not None:
        write_features(save, splits)
    weights = asked.checkpoint or Path(asked.model)
    model_section = {
        "name": asked.model,
        "checkpoint": weights.name if weights.is_file() else None,
        "checkpoint_sha256": checksum(weights) if weights.is_file() else None,
        "pretrained": asked.pretrained,
        "random_weights": asked.random_weights,
        "layer": layer,
        "preprocessing": model.preprocessing.described(),
    }
    data = {"name": asked.data.partition(":")[0], "class_counts": splits["train"].class_counts}
    return _write_measures(out, {1: _measured(splits)}, {"model": model_section, "dataset": data})


def _write_measures(
    out: Path, analyses: Mapping[int, tuple[Any, Any]], sections: Mapping[str, Any] | None = None
) -> dict[str, dict[str, float]]:
    """Write analyses by epoch in the layout of a run, and metrics.json; return the metrics of the last epoch."""
    names = {"dataset": "measured", "model": out.name, "head": "measured"}
    config: dict[str, Any] = {"exp_name": out.name, "seed": 0, "train": {}}
    write_measured(out, config | {key: {"name": name} for key, name in names.items()} | dict(sections or {}), analyses)
    last = dict(analyses[max(analyses)][0])
    write_text(out / "metrics.json", json.dumps(last, indent=1) + "\n")
    return last


def track_measured(out: Path, root: Path) -> None:
    """Log measured features as an MLflow run with the tag `measured`; the same numbers again are the same run."""
    run = load_run(out)
    numbers = [{"epoch": record["epoch"]} for record in run.history]  # loss and time are unknown
    content = hashlib.sha256(json.dumps(run.analyses, sort_keys=True).encode()).hexdigest()[:12]
    with (
        interruptible(),
        start_run(
            root=root,
            name=run.name,
            config=run.config,
            tags={"group": run.name, "head": run.head, "measured": True},
            attempt=f"measured-{run.name}-{content}",
        ) as logger,
    ):
        log_history(numbers, run.analyses, logger)
        logger.artifacts(out)


def _measured_file(file: Path, train: Path | None) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """The metrics and the geometry of the splits of a file, with the training split of another one if it is named."""
    content = {path: read_features(path) for path in {file, train} if path is not None}
    places = _places(file, content[file], train)
    return _measured({name: _found(content[path], split, path) for name, (path, split) in places.items()})


def _streamed(file: Path, train: Path | None) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """As `_measured_file`, for features that are read part by part; the parts of a split are in no memory together."""
    first = {path: next(stream_features(path)) for path in {file, train} if path is not None}
    places = _places(file, first[file], train)

    def batches(path: Path, split: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for part in stream_features(path):
            found = _found(part, split, path)
            yield found.features, found.targets

    heads = {name: _found(first[path], split, path) for name, (path, split) in places.items()}
    given = next((split for split in heads.values() if split.weight is not None), heads["train"])
    options: dict[str, Any] = {"weight": given.weight, "bias": given.bias, "class_names": given.class_names}
    options["class_counts"] = heads["train"].class_counts
    on_train = measure_features(batches(*places["train"]), **options)
    metrics = dict(on_train.metrics)
    for name, place in places.items():
        if name != "train":
            both = measure_features(batches(*place), train=batches(*places["train"]), **options)
            metrics[name] = both.metrics["test"]
    return metrics, _geometry(on_train, given)


def _places(file: Path, splits: Mapping[str, Any], train: Path | None) -> dict[str, tuple[Path, str]]:
    """Split -> its file and its name there."""
    if train is not None:
        if set(splits) != {"train"}:
            raise ValueError(f"{file} has the splits {', '.join(splits)} itself; leave --train out")
        return {"train": (train, "train"), "test": (file, "train")}
    if "train" not in splits:
        raise ValueError(f"{file} holds no training split, got {', '.join(splits)}; name one with --train")
    return {name: (file, name) for name in splits}


def _found(splits: Mapping[str, FeatureSplit], name: str, path: Path) -> FeatureSplit:
    if name not in splits:
        raise ValueError(f"{path} lacks the split '{name}', got {', '.join(splits)}; give each shard the same splits")
    return splits[name]


def _measured(splits: Mapping[str, FeatureSplit]) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """The metrics of each split, and the geometry that a dump of a run holds."""
    seen = splits["train"]
    given = next((split for split in splits.values() if split.weight is not None), seen)
    options: dict[str, Any] = {"weight": given.weight, "bias": given.bias, "class_names": given.class_names}
    options["class_counts"] = seen.class_counts
    on_train = measure_features(seen.features, seen.targets, **options)
    metrics = dict(on_train.metrics)
    for name, split in splits.items():
        if name != "train":
            pair = (seen.features, seen.targets)
            metrics[name] = measure_features(split.features, split.targets, train=pair, **options).metrics["test"]
    predictions, targets = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    if given.weight is not None and "test" in splits:
        logits = splits["test"].features @ given.weight.mT + (0 if given.bias is None else given.bias)
        predictions, targets = logits.argmax(1), splits["test"].targets.long()
    return metrics, _geometry(on_train, given) | {"predictions": predictions, "targets": targets}


def _geometry(measured: Measurement, classifier: FeatureSplit) -> dict[str, torch.Tensor]:
    """What a dump of a run holds, without predictions."""
    nothing = torch.zeros(0, dtype=torch.long)
    return {
        "predictions": nothing,
        "targets": nothing,
        "class_means": measured.class_means,
        "class_counts": measured.class_counts.long(),
        **({} if classifier.weight is None else {"weight": classifier.weight}),
        **({} if classifier.bias is None else {"bias": classifier.bias}),
    }


def track_posthoc(folder: Path, root: Path) -> bool:
    """Log the post-hoc results of a run to its finished MLflow run; return whether MLflow has that run."""
    run, params = load_run(folder), read_run_params(folder)
    assert run.posthoc is not None
    tags = _tags(params, read_provenance(folder))
    with interruptible():
        return log_to_finished(root, {name: tags[name] for name in IDENTITY}, run.posthoc.as_metrics(), step=run.epoch)


def result(folder: Path) -> str:
    """The last analysis of a finished run, in one line."""
    last = load_runs([folder])[0].analyses[-1]
    return f"epoch {last['epoch']}: {headline(last)}"


def headline(metrics: Mapping[str, Any]) -> str:
    """The main results in one line: balanced accuracy and nc1, where they are defined."""
    shown = {"test balanced accuracy": ("test", "acc/balanced", "{:.1%}"), "train nc1": ("train", "nc1/pinv", "{:.2e}")}
    values = {name: (metrics[split].get(key), text) for name, (split, key, text) in shown.items()}
    return ", ".join(f"{name} {text.format(value)}" for name, (value, text) in values.items() if value is not None)


def report(
    folders: Sequence[Path],
    out: Path,
    *,
    title: str,
    about: str = "",
    root: Path | None = None,
    again: bool = True,
    show: Callable[[Table], None] = lambda table: None,
) -> tuple[Path, Table]:
    """Stage report: write the page `out`/index.html; return it and the summary table of the runs in `folders`.

    `about` is a sentence on what the comparison is for, such as a group's hypothesis. The page links each run to its
    page in MLflow, in the store of the project in `root`. Without `again`, a report that is up to date is not drawn.
    `show` gets the table before anything is written, so it is shown in a project that may only be read, too.
    """
    files = listed(folders)
    runs = load_runs(folders)
    table, compared = summary_table(runs), arms(runs)
    table = table._replace(notes=(*table.notes, *filter(None, [verdict(compared)]), *findings(compared)))
    show(table)
    links = {} if root is None else _links(runs, root)
    made_of = (files, title, about, links, IMPORTED)
    if again or not is_up_to_date(out, *made_of):
        from ncflow.reports.page import write_page  # imports matplotlib

        write_page(runs, out, title=title, about=about, defaults=flatten(Params().resolved()), links=links)
        remember(out, *made_of)
    return out / PAGE, table


def _links(runs: Sequence[Run], root: Path) -> dict[str, str]:
    """Run -> address of its page in MLflow. Runs without provenance, or with unknown rows, have none."""
    found = {}
    for run, of in ((run, run.provenance) for run in runs):
        if of is None:
            continue
        with suppress(ValueError):
            config = run_digest(make_params(run.config), of.checkpoint_sha256, of.imports)
            found[run.name] = runs_address(root, dict(zip(IDENTITY, (config, of.snapshot.digest), strict=True)))
    return {name: address for name, address in found.items() if address}


def figures(folders: Sequence[Path]) -> dict[str, str]:
    """Figure -> the data that it needs; of the runs in `folders`, why they lack it."""
    from ncflow.reports.paper import FIGURES, lacking

    if not folders:
        return {name: f"needs {row.needs}" for name, row in FIGURES.items()}
    return {
        name: f"absent: {reason}" if reason else "available" for name, reason in lacking(load_runs(folders)).items()
    }


def figure(name: str, folders: Sequence[Path], file: Path, *, wide: bool = False, along: str = "") -> None:
    """Write one figure of the runs in `folders` as .pdf, .svg or .png, or its data as .csv."""
    from ncflow.reports.canvas import COLUMN, WIDE
    from ncflow.reports.paper import write_figure  # imports matplotlib

    write_figure(name, load_runs(folders), file, WIDE if wide else COLUMN, along=along)


def sync(folder: Path, data: Path, root: Path) -> str | None:
    """Log a finished run folder to MLflow as training does; return its name, or None where MLflow has it already.

    A finished MLflow run of the same configuration on the same snapshot is the same run. Metrics of every epoch, tags,
    files and the model are logged. Pictures of single epochs are only in the report. If it is stopped, the same command
    completes the run. `data` holds snapshots. An older run does not hold how its pictures were normalized: its model is
    logged only if `data` has its snapshot. Raises ValueError for a folder that is unfinished or damaged.
    """
    run, params = load_run(folder), read_run_params(folder)
    if not is_finished(folder):
        raise ValueError(f"run folder '{folder}' is unfinished: no {FINAL_MODEL} in it; let its training end")
    provenance = read_provenance(folder)
    tags = _tags(params, provenance)
    found = find_manifest(data, provenance.snapshot.digest)
    with interruptible():
        if has_finished(root, {name: tags[name] for name in IDENTITY}):
            return None
        with start_run(
            root=root,
            name=params.exp_name,
            config=params.experiment(),
            tags=tags,
            color=fact(HEADS[params.head.name], "color"),
            attempt=f"sync-{tags['config']}-{tags['snapshot'][:12]}",
        ) as logger:
            logger.dataset(provenance.snapshot.name, provenance.snapshot.digest, found or folder)
            log_history(run.history, run.analyses, logger)
            if run.posthoc is not None:
                logger.metrics(run.posthoc.as_metrics(), step=run.epoch)
            logger.artifacts(folder)
            logger.describe(describe_run(params, provenance, run.analyses[-1], epochs=run.epoch))
            known = replace(provenance, preprocessing=preprocessing_of(params, provenance, data))
            if known.preprocessing is not None:
                log_model(load_trained(folder).classifier, params, known, run.analyses[-1], logger, step=run.epoch)
            else:
                logging.getLogger("ncflow").warning(
                    "%s: no model is logged, because its normalization is known only from its snapshot %s; fetch that "
                    "with `dvc pull` before `ncflow sync`",
                    folder,
                    data / provenance.snapshot.name,
                )
    return params.exp_name


def snapshot_of(folder: Path, data: Path) -> Path:
    """The snapshot in folder `data` that a run was trained on. Found by digest, as its source may have moved."""
    made = read_provenance(folder).snapshot
    if found := find_manifest(data, made.digest):
        return found
    usual = data / made.name
    if usual.is_dir():  # damaged or another one: reading it raises the error
        return usual
    raise ValueError(
        f"{data} has no snapshot that {folder} was trained on: expected {usual.name}; fetch it with `dvc pull`, or "
        "name it with --snapshot"
    )


class _Trained(NamedTuple):
    """A finished run, loaded: its parameters and provenance, the classifier on its device, the batches of its data."""

    params: Params
    provenance: Provenance
    classifier: Classifier
    splits: Splits
    accelerator: Any


def _load_trained(folder: Path, data: Path) -> _Trained:
    """Load a finished run. Raises ValueError where snapshot or checkpoint are not those of the training."""
    params = read_run_params(folder)
    provenance = read_provenance(folder)
    images = Snapshot.load(data)
    if images.digest != provenance.snapshot.digest:
        raise ValueError(
            f"{folder} was trained on another snapshot than {data}; run `dvc repro`, or name the right snapshot with "
            "--snapshot"
        )
    accelerator = create_accelerator(params.train.device)
    classifier = build_classifier(params, images.num_classes, class_counts=images.class_counts)
    load_model(folder / FINAL_MODEL, classifier)
    refuse_other_checkpoint(folder, provenance)
    classifier.to(accelerator.device).to(memory_format=torch.channels_last)
    resizing = FIRST_RESIZING if provenance.preprocessing is None else provenance.preprocessing.resizing
    splits = load_splits(params, images, accelerator, resizing=resizing)
    return _Trained(params, provenance, classifier, splits, accelerator)


def _provenance(params: Params, images: Snapshot, root: Path, hardware: Hardware) -> Provenance:
    return Provenance(
        ncflow=ncflow.__version__,
        torch=torch.__version__,
        git_commit=git_commit(root),
        snapshot=DataVersion(snapshot_name(params), images.digest, images.class_names),
        hardware=hardware,
        imports=dict(IMPORTED),
        preprocessing=preprocessing(params, images),
    )


def _tags(
    params: Params,
    provenance: Provenance,
    group: str | None = None,
    suite: str | None = None,
    trial: str | None = None,
) -> dict[str, Any]:
    return {
        "group": group or params.exp_name,
        "suite": suite,
        "trial": trial,
        "head": params.head.name,
        "loss": params.train.loss,
        "dataset": params.dataset.name,
        "model": params.model.name,
        "seed": params.seed,
        "config": run_digest(params, provenance.checkpoint_sha256),
        "snapshot": provenance.snapshot.digest,
        "git_commit": provenance.git_commit,
        "hardware": provenance.hardware,
    }


def _refuse_if_different(measured: dict[str, Any], logged: dict[str, Any], *, tolerance: float, folder: Path) -> None:
    for split, metrics in measured.items():
        # The steps of a solver are no property of the checkpoint, and are not measured again. Other rounding may choose
        # another τ for the adjusted logits, which changes their accuracies by more than the tolerance.
        left_out = ("head/riemannian_", *(("posthoc/",) if tolerance else ()))
        new_rows = {name for name in metrics if name.startswith("layers/")} - logged[split].keys()  # earlier versions
        for name in sorted(name for name in metrics.keys() | logged[split] if not name.startswith(left_out)):
            if name in new_rows:
                continue
            new, old = metrics.get(name, math.nan), logged[split].get(name, math.nan)
            if not math.isclose(new, old, rel_tol=tolerance, abs_tol=tolerance):
                raise ValueError(
                    f"{folder}: {split}/{name} of the checkpoint is {new!r}, but training measured {old!r} last; "
                    "the checkpoint is not the model that was trained, so train it again"
                )
