"""A pass in the middle of a training: each sample once, in any number of processes, and no trace of it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from two_processes import on_two

from ncflow import measure
from ncflow.integrations import passes
from ncflow.integrations.passes import Collected, collect, in_order, split_metrics, unchanged_random_numbers


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(10))


def split(seed: int, count: int = 12) -> Collected:
    generator = torch.Generator().manual_seed(seed)
    features, weight = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (count, 3))
    return Collected(features, torch.arange(count) % 3, weight, weight[:, 0])


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"shuffle": True, "drop_last": True},
        {"sampler": WeightedRandomSampler([1.0] * 10, 4)},
        {"batch_size": None, "shuffle": True},
        {"batch_size": 1, "batch_sampler": BatchSampler(RandomSampler(range(10)), 4, drop_last=True)},
    ],
)
def test_a_loader_gives_each_sample_once_and_in_order(options):
    loader = DataLoader(range(10), **({"batch_size": 4} | options))
    found = list(in_order(loader))
    assert torch.cat([torch.as_tensor(batch).reshape(-1) for batch in found]).tolist() == list(range(10))
    assert len(found) == (10 if loader.batch_size is None and loader.batch_sampler is None else 3)


def test_other_samples_than_all_stay_those():
    assert [int(k) for k in in_order(DataLoader(range(10), sampler=SubsetRandomSampler([8, 1, 5])))] == [1, 5, 8]
    assert torch.cat(list(in_order(DataLoader(Stream(), batch_size=4)))).tolist() == list(range(10))
    assert torch.cat(list(in_order(DataLoader(range(10), sampler=[3]), range(2, 4)))).tolist() == [2, 3]


@pytest.mark.parametrize(
    "loader, message",
    [
        ([1, 2], "expected one torch DataLoader, got list; pass a DataLoader of the training samples as train_loader="),
        (DataLoader(range(4), sampler=[3, 3]), "the samples of a list are not known in advance; pass a DataLoader"),
        (DataLoader(range(4), batch_sampler=[[3, 3]]), "not known in advance"),
    ],
)
def test_unknown_samples_are_refused(loader, message):
    with pytest.raises(ValueError, match=message):
        in_order(loader)


def test_random_numbers_continue_as_if_there_were_no_pass():
    def draw():
        return random.random(), np.random.rand(), float(torch.rand(1))

    inside = []
    for _ in range(2):
        draw()
        with unchanged_random_numbers():
            inside.append(draw())
    assert inside[0] == inside[1]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = draw(), draw()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    first = draw()
    with pytest.raises(KeyError), unchanged_random_numbers():
        draw()
        raise KeyError
    assert (first, draw()) == expected


def test_splits_are_measured_with_the_training_split():
    train, val, test = split(0), split(1), split(2)
    found = split_metrics({"train": train, "val": val, "test": test}, class_counts=[5, 4, 3])
    rows = {"weight": train.weight, "bias": train.bias, "class_counts": [5, 4, 3]}
    assert found["train"] == measure(*train[:2], **rows).metrics["train"]
    for name, other in (("val", val), ("test", test)):
        assert found[name] == measure(*other[:2], train=train[:2], **rows).metrics["test"]
    assert split_metrics({"train": train}, class_counts=[5, 4, 3]) == {"train": found["train"]}
    alone = measure(*test[:2], weight=test.weight, bias=test.bias).metrics["train"]
    assert split_metrics({"test": test}) == {"test": alone}


def test_features_that_are_not_finite_give_a_warning():
    train = split(0)
    with pytest.warns(UserWarning, match="no collapse metrics in this epoch: .*finite"):
        assert split_metrics({"train": train._replace(features=train.features * torch.nan)}) == {}


def measure_on_one_of_two(rank: int, folder: str) -> None:
    """The first process has one sample more, and both exchange few rows at a time."""
    passes.CHUNK = 2
    train = split(0, 11)
    model = nn.Linear(4, 3).double()
    model.load_state_dict({"weight": train.weight, "bias": train.bias})
    loader = in_order(DataLoader(list(zip(train.features, train.targets, strict=True)), batch_size=3))

    def run(batch):
        model(batch[0])
        return batch[1]

    found = collect(model, loader, run)
    torch.save({"rows": len(found.targets), "metrics": split_metrics({"train": found})}, f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_measure_as_one(tmp_path):
    on_two(measure_on_one_of_two, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    train = split(0, 11)
    expected = measure(*train[:2], weight=train.weight, bias=train.bias).metrics["train"]
    assert first["rows"] == 11 and second["rows"] == 0
    assert first["metrics"] == second["metrics"]
    assert first["metrics"]["train"] == pytest.approx(expected, rel=1e-10)
