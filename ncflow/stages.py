"""One function per stage of dvc.yaml: snapshot, train, evaluate, report. Each reads files and leaves files.

Here the rooms of the house meet: parameters become a classifier, batches and a training run, and what the loop yields
becomes files, MLflow entries and a progress bar.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from tqdm.auto import tqdm

import ncflow
from ncflow.consistency import refuse_contradictions
from ncflow.data import AUGMENTATIONS, SAMPLINGS, SOURCES, Batches, Snapshot, load_batches
from ncflow.data.sources import NUM_CLASSES
from ncflow.lookup import lookup
from ncflow.metrics import class_recalls
from ncflow.nn import Classifier, create_backbone, create_head, create_loss
from ncflow.params import Params, make_params, read_yaml
from ncflow.reports import Table, read_runs, summary_table, write_report
from ncflow.reports.curves import HEAD_LOOKS
from ncflow.tracking import RunLogger, git_commit, interruptible, start_run
from ncflow.training import (
    EpochRecord,
    RunFolder,
    StateFolder,
    create_accelerator,
    create_optimizer,
    create_schedule,
    describe,
    evaluate_splits,
    explained_faults,
    fit,
    initialize,
    load_model,
    parameter_groups,
    remove_affine,
    resolve_precision,
    set_seed,
)

CONFIG, PROVENANCE = "config.yaml", "provenance.json"
STATES = Path(".ncflow", "state")  # below the project, where DVC, which empties a run's folder, does not look
MEASURED_AT_ONCE = 256  # samples per process, where training takes the whole split at once
ELSEWHERE = 1e-2  # how far metrics may differ on other hardware, whose convolutions round differently


def snapshot(params: Params, path: Path) -> Snapshot:
    """Stage snapshot: the long-tailed data of these parameters at `path`, created unless it is there already."""
    return Snapshot.obtain(path, **params.dataset.model_dump())


def train(
    params: Params,
    *,
    folder: Path,
    data: Path,
    root: Path,
    group: str | None = None,
    suite: str | None = None,
    processes: int | None = None,
) -> Path:
    """Stage train: one configuration, one MLflow run, one run folder. Returns the folder.

    `data` is the snapshot's folder, created if need be; `root` the project, whose MLflow store is used; `group` a tag
    that holds the runs of one comparison together, `suite` one of the suite that started this run; `processes`, if
    given, how many of them must take part.

    A run of the same configuration on the same snapshot that was stopped, however it was, goes on after its last
    finished epoch, in the same MLflow run. SIGTERM raises Interrupted.
    """
    how = params.train
    with interruptible(), explained_faults(batch_size=how.batch_size, precision=how.precision):
        check(params)
        accelerator = create_accelerator(how.device)
        if processes not in (None, accelerator.num_processes):
            raise ValueError(f"asked for {processes} processes, but Accelerate started {accelerator.num_processes}")
        images = snapshot(params, data)
        states = StateFolder(root / STATES / f"{params.exp_name}-{params.digest()}-{images.digest[:12]}")
        resume = states.newest(accelerator)
        precision = resolve_precision(how.precision, accelerator.device)
        classifier, batches, records = _start(params, images, accelerator, precision, resume)
        provenance = _provenance(params, images, root, describe(accelerator, precision))
        main = accelerator.is_main_process
        with start_run(
            root=root,
            name=params.exp_name,
            config=params.resolved(),
            tags=_tags(params, provenance, group, suite),
            color=HEAD_LOOKS[params.head.name]["color"],  # a head has one color in the report and in MLflow
            attempt=states.token() if main else None,
            enabled=main,
        ) as run:
            if main:
                run.dataset(provenance["snapshot"]["name"], images.digest, images.path)
                files = RunFolder(folder, kept=states.files, epoch=resume["epoch"] if resume else 0)
                _record(params, records, classifier, images, files, states, provenance, run, example=batches["test"])
            else:
                for record in records:
                    record.state()  # each process has a part of it
        if main:
            states.remove()
    return folder


def evaluate(folder: Path, data: Path, out: Path) -> dict[str, Any]:
    """Stage evaluate: the tracked checkpoint's metrics on every split, measured anew and written to `out` as JSON.

    Raises ValueError where they differ from what training measured last: then the checkpoint is not that model. On the
    machine that trained it they are equal to the last bit.
    """
    params = make_params(read_yaml(folder / CONFIG))
    provenance = json.loads((folder / PROVENANCE).read_text())
    images = Snapshot.load(data)
    if images.digest != provenance["snapshot"]["digest"]:
        raise ValueError(f"{folder} was trained on another snapshot than {data}; run `dvc repro`, or name its own")
    accelerator = create_accelerator(params.train.device)
    classifier = build_classifier(params, images.num_classes)
    load_model(folder / "final_model.pth", classifier)
    classifier.to(accelerator.device).to(memory_format=torch.channels_last)
    batches = _load_splits(params, images, accelerator)
    analysis = evaluate_splits(
        classifier,
        batches["train"],
        batches["test"],
        validation=batches.get("val"),
        class_counts=images.class_counts,
        layers=params.train.analyze_layers,
        posthoc_tau=params.train.posthoc_tau,
    )
    measured = {split: result.metrics for split, result in analysis.items()}
    logged = read_runs([folder])[0].analyses[-1]
    same = provenance["hardware"] == describe(accelerator, provenance["hardware"].rpartition(", ")[2])
    _refuse_if_different(measured, logged, tolerance=0.0 if same else ELSEWHERE, folder=folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(measured, indent=1) + "\n")
    return measured


def report(folders: Sequence[Path], out: Path, *, title: str) -> tuple[Path, Table]:
    """Stage report: the page at `out`/index.html, and the summary table of the runs in `folders`."""
    return write_report(folders, out, title=title), summary_table(read_runs(folders))


def check(params: Params) -> None:
    """Refuse unknown names, wrong options and contradictions before anything is loaded or trained.

    Of a source that tells its number of classes only when it is read, what depends on it is checked after the snapshot.
    """
    lookup(SOURCES, params.dataset.name, "data set")
    lookup(AUGMENTATIONS, params.train.augment, "augmentation")
    lookup(SAMPLINGS, params.train.sampling, "sampling")
    refuse_contradictions(params)
    per_class = [len(option) for option in params.train.loss_options.values() if isinstance(option, list)]
    num_classes = NUM_CLASSES.get(params.dataset.name, max(per_class, default=2))
    classifier = build_classifier(params, num_classes)
    _schedule(params)
    _optimizer(params, classifier)
    _criterion(params, torch.ones(num_classes), reweight=params.train.reweight)


def build_classifier(params: Params, num_classes: int, *, pretrained: bool = False) -> Classifier:
    """The backbone and head of these parameters, freshly initialized from torch's global generator.

    `pretrained` downloads the published weights that the parameters ask for; without, they only shape the model.
    """
    options = params.model.options(num_classes)
    backbone = create_backbone(params.model.name, **options if pretrained else options | {"pretrained": None})
    if not params.model.affine:
        remove_affine(backbone)
    num_features = cast(int, backbone.num_features)
    head = create_head(params.head.name, num_features, num_classes, **params.head.model_dump(exclude={"name"}))
    return Classifier(backbone, head)


def snapshot_name(params: Params) -> str:
    """The name of the snapshot of these parameters, such as digits-exp-0.02-seed0."""
    return Snapshot.default_name(**params.dataset.model_dump(exclude={"root"}))


def _start(
    params: Params, images: Snapshot, accelerator: Any, precision: str, resume: dict[str, Any] | None
) -> tuple[Classifier, dict[str, Batches], Iterator[EpochRecord]]:
    """The classifier, the batches of every split, and the training that is about to begin or to go on."""
    how = params.train
    set_seed(params.seed)
    classifier = build_classifier(params, images.num_classes, pretrained=True)
    initialize(how.optimizer, classifier)
    classifier.to(accelerator.device)
    batches = _load_splits(params, images, accelerator)
    counts = torch.tensor(images.class_counts, device=accelerator.device)
    records = fit(
        classifier,
        batches["train"],
        batches["test"],
        validation=batches.get("val"),
        criterion=_criterion(params, counts),
        optimizer=_optimizer(params, classifier),
        epochs=how.epochs,
        class_counts=images.class_counts,
        schedule=_schedule(params),
        deferred=(how.reweight_after, _criterion(params, counts, reweight=how.reweight)) if how.reweight else None,
        drift_weight=how.drift_penalty,
        feature_weight=how.feature_decay,
        analyze_freq=how.analyze_freq,
        analyze_layers=how.analyze_layers,
        analyze_solver=how.analyze_solver,
        posthoc_tau=how.posthoc_tau,
        precision=precision,
        accelerator=accelerator,
        resume=resume,
    )
    return classifier, batches, records


def _provenance(params: Params, images: Snapshot, root: Path, hardware: str) -> dict[str, Any]:
    return {
        "ncflow": ncflow.__version__,
        "torch": torch.__version__,
        "git_commit": git_commit(root),
        "snapshot": {"name": snapshot_name(params), "digest": images.digest},
        "hardware": hardware,
    }


def _criterion(params: Params, class_counts: torch.Tensor, *, reweight: float | None = None) -> Any:
    return create_loss(params.train.loss, class_counts, reweight=reweight, **params.train.loss_options)


def _schedule(params: Params) -> Any:
    how = params.train
    return create_schedule(how.schedule, warmup=how.warmup, **how.schedule_options)


def _optimizer(params: Params, classifier: Classifier) -> torch.optim.Optimizer:
    how = params.train
    options = {"lr": how.lr, "weight_decay": how.weight_decay, "momentum": how.momentum} | how.optimizer_options
    return create_optimizer(how.optimizer, parameter_groups(classifier, decay=how.decay), **options)


def _load_splits(params: Params, images: Snapshot, accelerator: Any) -> dict[str, Batches]:
    return {
        split: load_batches(
            images,
            split,
            image_size=params.model.image_size,
            batch_size=_batch_size(params, split, accelerator.num_processes),
            device=accelerator.device,
            augment=params.train.augment,
            sampling=params.train.sampling,
            seed=params.seed,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        for split in images.splits
    }


def _batch_size(params: Params, split: str, num_processes: int) -> int | None:
    """Samples per batch; None for the whole of the training split. The others, only measured, need not fit at once."""
    size = params.train.batch_size
    if size != "full":
        return cast(int, size)
    return None if split == "train" else MEASURED_AT_ONCE * num_processes


def _tags(params: Params, provenance: dict[str, Any], group: str | None, suite: str | None) -> dict[str, Any]:
    return {
        "group": group or params.exp_name,
        "suite": suite,
        "head": params.head.name,
        "dataset": params.dataset.name,
        "model": params.model.name,
        "seed": params.seed,
        "config": params.digest(),
        "snapshot": provenance["snapshot"]["digest"],
        "git_commit": provenance["git_commit"],
        "hardware": provenance["hardware"],
    }


def _record(
    params: Params,
    records: Iterator[EpochRecord],
    classifier: Classifier,
    images: Snapshot,
    files: RunFolder,
    states: StateFolder,
    provenance: dict[str, Any],
    run: RunLogger,
    *,
    example: Batches,
) -> None:
    """Consume the training records: files, MLflow, state, progress bar; then the final model.

    An epoch is finished once its state is written. Whatever is killed before does it again, with the same outcome:
    files are replaced by their equals, and MLflow takes each step once.
    """
    files.write_text(CONFIG, yaml.safe_dump(params.resolved(), sort_keys=False))
    files.write_text(PROVENANCE, json.dumps(provenance, indent=1))
    bar = tqdm(records, params.exp_name, params.train.epochs, initial=files.epochs, unit="epoch", dynamic_ncols=True)
    shown: dict[str, str] = {}
    try:
        for record in bar:
            files.write_record(record, classifier.head, images.class_counts, save_logits=params.train.save_logits)
            _log_epoch(record, classifier, images, run)
            states.write(record.state())
            shown |= {"loss": f"{record.loss:.4f}", "acc": f"{record.accuracy:.3f}"}
            if record.analysis:  # the last nc1 stays in sight until the next analysis
                shown["nc1/pinv"] = f"{record.analysis['train'].metrics.get('nc1/pinv', math.nan):.2e}"
            bar.set_postfix(shown)
        files.write_model(classifier)
    except Exception:  # what was measured before a failure stays with the failed run
        with suppress(OSError):  # which must not hide the failure, such as a full disk
            run.artifacts(files.path)
        raise
    run.artifacts(files.path)
    pixels, _ = next(example.ordered())
    run.model(classifier, pixels, step=params.train.epochs)


def _log_epoch(record: EpochRecord, classifier: Classifier, images: Snapshot, run: RunLogger) -> None:
    """All numbers of an epoch in one call; of an analysis also its pictures and the accuracy of each class."""
    from ncflow.reports.figures import confusion_figure, cosine_figure, to_image

    values = {name: getattr(record, name) for name in ("loss", "lr", "accuracy", "seconds", "images_per_second")}
    metrics = {f"fit/{name}": value for name, value in values.items()}
    for split, result in record.analysis.items():
        metrics |= {f"{split}/{name}": value for name, value in result.metrics.items()}
    run.metrics(metrics, step=record.epoch)
    if record.analysis:
        counts = torch.tensor(images.class_counts)
        means, test = record.analysis["train"].class_means.cpu(), record.analysis["test"]
        cosines = cosine_figure(means, classifier.head.weight.detach().cpu(), class_counts=counts)
        confusion = confusion_figure(
            test.predictions.cpu(), test.targets.cpu(), num_classes=images.num_classes, class_counts=counts
        )
        run.images({"cosines": to_image(cosines), "confusion": to_image(confusion)}, step=record.epoch)
        run.table(_class_table(record, images), "class_accuracies.json", step=record.epoch)


def _class_table(record: EpochRecord, images: Snapshot) -> dict[str, list[Any]]:
    """Per class: training samples and accuracy on every split."""
    columns: dict[str, list[Any]] = {
        "class": images.class_names,
        "train samples": images.class_counts,
    }
    for split, result in record.analysis.items():
        columns[f"{split} accuracy"] = class_recalls(result.predictions, result.targets, images.num_classes).tolist()
    return columns


def _refuse_if_different(measured: dict[str, Any], logged: dict[str, Any], *, tolerance: float, folder: Path) -> None:
    for split, metrics in measured.items():
        # How a solver's search went is no property of the checkpoint, and is not repeated.
        expected = {name for name in logged[split] if not name.startswith("head/riemannian_")}
        for name in sorted(metrics.keys() | expected):
            new, old = metrics.get(name, math.nan), logged[split].get(name, math.nan)
            if not math.isclose(new, old, rel_tol=tolerance, abs_tol=tolerance):
                raise ValueError(
                    f"{folder}: {split}/{name} of the checkpoint is {new!r}, but training measured {old!r} last; "
                    "the checkpoint is not the model that was trained, so train it again"
                )
