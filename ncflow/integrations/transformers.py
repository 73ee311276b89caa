"""A callback for the Trainer of transformers that measures neural collapse, and metrics of logits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ncflow.checks import check_counts, check_targets, check_whole
from ncflow.integrations.collecting import IGNORED
from ncflow.integrations.passes import Collected, collect, in_order, split_metrics
from ncflow.metrics.accuracy import accuracies
from ncflow.metrics.calibration import expected_calibration_error
from ncflow.metrics.moments import float64_chunks


class NeuralCollapseCallback(TrainerCallback):  # type: ignore[misc]
    """Log every collapse metric of the training data as nc1/pinv, and of the evaluation data as eval_nc1/pinv.

    It measures at each evaluation, and adds the values to those that `evaluate` returns. So metric_for_best_model may
    be one of them. With `every_n_epochs` it measures at the end of every n-th epoch instead. A second pass evaluates
    the samples in order, in eval mode. It changes neither the weights nor the random numbers of the training. Processes
    share the pass.

    The trainer logs the values, so all its reporters get them. `layer` names the last linear layer, by default it is
    found. `train_dataset` replaces the trainer's, for example one without augmentation. class_counts (K,) are the sizes
    of the training classes, by default counted. Causal language models are measured on the next token. Raises
    ValueError before the training for a model without a last linear layer.

    Example::

        trainer = Trainer(model, arguments, train_dataset=train, eval_dataset=test)
        trainer.add_callback(NeuralCollapseCallback(trainer))
    """

    def __init__(
        self,
        trainer: Any,
        *,
        every_n_epochs: int | None = None,
        layer: str | None = None,
        train_dataset: Any = None,
        class_counts: Any = None,
    ) -> None:
        if every_n_epochs is not None:
            check_whole(every_n_epochs=every_n_epochs)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError("NeuralCollapseCallback needs the whole model on each device; FSDP and DeepSpeed split it")
        self.trainer, self.every_n_epochs, self.layer = trainer, every_n_epochs, layer
        self.train_dataset, self.class_counts = train_dataset, class_counts

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Find the layer with one batch, so that a model without one is refused before the training."""
        self._collect(self._train(), batches=1)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure every n-th epoch."""
        if self.every_n_epochs and round(state.epoch) % self.every_n_epochs == 0:
            datasets = self.trainer.eval_dataset
            if not isinstance(datasets, Mapping):
                datasets = {} if datasets is None else {"": datasets}
            self._log({"_".join(filter(None, ("eval", name))): dataset for name, dataset in datasets.items()})

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **given: Any) -> None:
        """Measure at an evaluation, and add the values of its split to the metrics that it returns."""
        if self.every_n_epochs is None:
            split = next((key.removesuffix("_runtime") for key in metrics if key.endswith("_runtime")), "eval")
            logged = self._log({split: given["eval_dataloader"].dataset})
            metrics |= {key: value for key, value in logged.items() if key.startswith(f"{split}_")}

    def _log(self, datasets: Mapping[str, Any]) -> dict[str, float]:
        chosen = {"train": self._train(), **datasets}
        splits = {name: self._collect(dataset) for name, dataset in chosen.items() if dataset is not None}
        found = split_metrics(splits, class_counts=self.class_counts, device=self.trainer.args.device)
        values = {
            metric if split == "train" else f"{split}_{metric}": value
            for split, metrics in found.items()
            for metric, value in metrics.items()
        }
        self.trainer.log(dict(values))
        return values

    def _train(self) -> Any:
        return self.trainer.train_dataset if self.train_dataset is None else self.train_dataset

    def _collect(self, dataset: Any, *, batches: int | None = None) -> Collected:
        model, key = self.trainer.model, self.trainer.label_names[0]
        shifted = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()

        def run(batch: Any) -> Tensor:
            targets = batch.pop(key)
            with self.trainer.compute_loss_context_manager():
                model(**batch)
            return _next_tokens(targets) if shifted else targets

        loader = self.trainer.get_test_dataloader(dataset)
        ordered = in_order(loader, range(len(dataset)) if hasattr(dataset, "__len__") else None)
        return collect(model, self._on_device(ordered, batches), run, layer=self.layer, device=self.trainer.args.device)

    def _on_device(self, loader: Any, batches: int | None) -> Iterator[dict[str, Any]]:
        device = self.trainer.args.device
        for k, batch in enumerate(loader):
            if k == batches:
                return
            yield {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def logit_metrics(*, class_counts: Any = None) -> Callable[[Any], dict[str, float]]:
    """Return a compute_metrics for the Trainer: accuracies and calibration of its logits, acc/balanced and so on.

    class_counts (K,) are the sizes of the training classes. They define the groups acc/many, acc/medium and acc/few,
    and acc/tail20; without them all classes are equal, and these groups are absent. The first predictions are the
    logits (N, K), or (N, T, K) of sequences; targets of -100 are left out.

    Example::

        Trainer(model, arguments, compute_metrics=logit_metrics(class_counts=[500, 100, 5]), ...)
    """

    def compute(predicted: Any) -> dict[str, float]:
        logits, targets = _kept(predicted.predictions, predicted.label_ids)
        return _logit_metrics(logits, targets, class_counts)

    return compute


def _logit_metrics(logits: Tensor, targets: Tensor, class_counts: Any) -> dict[str, float]:
    num_classes = logits.shape[1]
    check_targets(targets, num_classes)
    counts = torch.ones(num_classes) if class_counts is None else check_counts(class_counts, num_classes)
    parts = [_decided(*chunk) for chunk in float64_chunks(logits, targets)]
    predictions, ranks, confidences, losses = (torch.cat(column) for column in zip(*parts, strict=True))
    found = accuracies(predictions, ranks, targets, counts)
    if class_counts is None:
        found = {name: value for name, value in found.items() if name not in ("many", "medium", "few", "tail20")}
    return {
        **{f"acc/{name}": float(value) for name, value in found.items()},
        "calibration/ece": float(expected_calibration_error(confidences, predictions == targets)),
        "calibration/nll": float(losses.mean()),
    }


def _decided(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prediction, number of classes above the target, confidence and cross-entropy (N,) of each sample."""
    confidences, predictions = logits.softmax(1).max(1)
    ranks = (logits > logits.gather(1, targets.unsqueeze(1))).sum(1)
    return predictions, ranks, confidences, F.cross_entropy(logits, targets, reduction="none")


def _kept(predictions: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and targets (N,) of an EvalPrediction without the targets that a loss leaves out."""
    predictions = predictions[0] if isinstance(predictions, tuple | list) else predictions
    logits, labels = torch.as_tensor(np.asarray(predictions)), torch.as_tensor(np.asarray(targets))
    if labels.is_floating_point() or logits.shape[:-1] != labels.shape or not logits.is_floating_point():
        found = f"predictions {tuple(logits.shape)} {logits.dtype} and targets {tuple(labels.shape)} {labels.dtype}"
        raise ValueError(f"expected logits (N, K) and whole numbers (N,) as targets, got {found}")
    chosen = labels != IGNORED
    return logits[chosen], labels[chosen].long()


def _next_tokens(targets: Tensor) -> Tensor:
    """The target (B, T) of each position of a causal model: the next token. The last position has none."""
    return F.pad(targets[:, 1:], (0, 1), value=IGNORED)
