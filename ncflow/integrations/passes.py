"""One pass over a data set in eval mode in the middle of a training, which then continues as if there were none.

All processes take part: each evaluates its share of the samples, and the first one receives the features of all.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ncflow.integrations.collecting import collect_features
from ncflow.measuring import measure
from ncflow.metrics import METRICS

CHUNK = 8192  # rows that processes exchange at a time, as devices hold less than a host
WHOLE = (RandomSampler, SequentialSampler, WeightedRandomSampler, DistributedSampler)  # samplers over a whole data set


class Collected(NamedTuple):
    """Features (N, d) and targets (N,) of all processes on the first one, and the layer's weight and bias."""

    features: Tensor
    targets: Tensor
    weight: Tensor
    bias: Tensor | None


def collect(
    model: nn.Module,
    batches: Iterable[Any],
    run: Callable[[Any], Any],
    *,
    layer: str | None = None,
    device: torch.device | str = "cpu",
) -> Collected:
    """Collect features and targets of batches. run(batch) calls the model and returns the targets.

    Mode and random numbers are afterwards as before. `device` is where processes exchange features. Raises ValueError
    for a model without a last linear layer.
    """
    with unchanged_random_numbers(), collect_features(model, layer) as collected:
        for batch in batches:
            collected.add(run(batch))
    found = collected.features, collected.targets, collected.weight, collected.bias
    if _world() > 1:
        return Collected(_gathered(found[0], device), _gathered(found[1], device), *found[2:])
    return Collected(*found)


def split_metrics(
    splits: Mapping[str, Collected], *, class_counts: Any = None, device: torch.device | str = "cpu"
) -> dict[str, dict[str, float]]:
    """split -> metric -> value, equal on all processes. "train", if there, is the training split of the others.

    Features that are not finite give a warning and no metrics, because a look at a training must not end it.
    """
    found: dict[str, dict[str, float]] = {}
    if _rank() == 0:
        try:
            found = _measured(splits, class_counts)
        except ValueError as error:
            warnings.warn(f"no collapse metrics in this epoch: {error}", stacklevel=2)
    if _world() > 1:
        return {split: _broadcast(found.get(split, {}), device) for split in splits}
    return found


def in_order(loader: Any, indices: Sequence[int] | None = None) -> DataLoader[Any]:
    """A new loader of the same samples, each once and in order: this process's share. The given one stays as it is.

    `indices` are the samples, by default those that the loader draws from.
    Raises ValueError for an object that is no DataLoader, and for a sampler whose samples are not known.
    """
    if not isinstance(loader, DataLoader):
        raise ValueError(f"expected one torch DataLoader, got {type(loader).__name__}; {REMEDY}")
    copied = ("num_workers", "collate_fn", "timeout", "worker_init_fn", "prefetch_factor", "multiprocessing_context")
    options: dict[str, Any] = {name: getattr(loader, name) for name in copied}
    options["pin_memory"] = loader.pin_memory and torch.cuda.is_available()
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    if isinstance(loader.dataset, IterableDataset):
        return DataLoader(loader.dataset, batch_size=batch_size, **options)
    chosen = _indices(loader) if indices is None else indices
    return DataLoader(loader.dataset, batch_size=batch_size, sampler=chosen[_rank() :: _world()], **options)


def share(batches: Iterable[Any]) -> Iterator[Any]:
    """Every n-th of the batches, for n processes: of a loader that each of them iterates as it is."""
    yield from islice(batches, _rank(), None, _world())


@contextmanager
def unchanged_random_numbers() -> Iterator[None]:
    """Inside, random numbers start from one seed; afterwards those of Python, NumPy and torch continue as before."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            random.seed(0)
            np.random.seed(0)
            torch.default_generator.manual_seed(0)  # not torch.manual_seed: it also seeds devices that start later
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _indices(loader: DataLoader[Any]) -> Sequence[int]:
    """The samples that a loader draws from."""
    batches = loader.batch_sampler  # type(…), because subclasses draw other samples
    known = batches is None or type(batches) is BatchSampler
    sampler = batches.sampler if isinstance(batches, BatchSampler) else loader.sampler
    if isinstance(sampler, SubsetRandomSampler) and known:
        return sorted(int(index) for index in sampler.indices)
    if type(sampler) not in WHOLE or not known:
        raise ValueError(f"the samples of a {type(sampler).__name__} are not known in advance; {REMEDY}")
    return range(len(loader.dataset))  # type: ignore[arg-type]


def _measured(splits: Mapping[str, Collected], class_counts: Any) -> dict[str, dict[str, float]]:
    train, others = splits.get("train"), {name: split for name, split in splits.items() if name != "train"}
    known: dict[str, Any] = {"class_counts": class_counts}
    if train is None:  # each split has only itself to compare with
        alone = {name: split._asdict() | known for name, split in others.items()}
        return {name: measure(**named).metrics["train"] for name, named in alone.items()}
    known |= {"weight": train.weight, "bias": train.bias}
    if not others:
        return measure(train.features, train.targets, **known).metrics
    found: dict[str, dict[str, float]] = {}
    for name, split in others.items():
        metrics = measure(split.features, split.targets, train=train[:2], **known).metrics
        found |= {"train": metrics["train"], name: metrics["test"]}
    return found


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _is_distributed() else 0


def _world() -> int:
    return dist.get_world_size() if _is_distributed() else 1


def _gathered(rows: Tensor, device: torch.device | str) -> Tensor:
    """The rows of all processes on the first, and none on the others. Processes may have different numbers of rows."""
    sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(_world())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=device))
    counts = [int(size) for size in sizes]
    kept: list[list[Tensor]] = [[] for _ in counts]
    for start in range(0, max(counts), CHUNK):
        length = min(CHUNK, max(counts) - start)
        part = rows.new_zeros(length, *rows.shape[1:], device=device)
        own = rows[start : start + length]
        part[: len(own)] = own
        parts = [torch.empty_like(part) for _ in counts]
        dist.all_gather(parts, part)
        if _rank() == 0:
            for k, count in enumerate(counts):
                kept[k].append(parts[k][: max(0, min(length, count - start))].cpu())
    return torch.cat([part for process in kept for part in process]) if _rank() == 0 else rows[:0]


def _broadcast(values: Mapping[str, float], device: torch.device | str) -> dict[str, float]:
    """The first process's values on all. A metric that is absent is NaN on the way."""
    names = sorted(METRICS)
    kind = torch.float32 if torch.device(device).type == "mps" else torch.float64
    row = torch.tensor([values.get(name, torch.nan) for name in names], dtype=kind, device=device)
    dist.broadcast(row, src=0)
    return {name: value for name, value in zip(names, row.tolist(), strict=True) if value == value}


REMEDY = "pass a DataLoader of the training samples as train_loader="
