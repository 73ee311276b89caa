"""Streams of features: batches and parts of files give the numbers of the whole, and are in no memory together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ncflow import stages
from ncflow.measuring import measure, read_features, stream_features, write_features
from ncflow.measuring.files import FeatureSplit
from ncflow.metrics import METRICS

K, D = 6, 4
SEEDS = range(3)
OF_SAMPLES = {
    name for name in METRICS if name.startswith(("acc/", "prior/", "nc4/", "nc5/", "margin/", "calibration/"))
}
OF_SAMPLES |= {"nc1/numerical_rank"}


def features(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(K, (count,), generator=generator)
    centers = torch.randn(K, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return centers[targets] + 0.1 * torch.randn(count, D, generator=generator, dtype=torch.float64), targets


WEIGHT = torch.randn(K, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def batches(pair, size: int):
    yield from zip(*(part.split(size) for part in pair), strict=True)


def folder_of_shards(folder: Path, train, test, size: int = 30) -> Path:
    folder.mkdir()
    for number, ((h, y), (u, v)) in enumerate(zip(batches(train, size), batches(test, size), strict=True)):
        splits = {"train": FeatureSplit(h, y, WEIGHT), "test": FeatureSplit(u, v, WEIGHT)}
        write_features(folder / f"{number:03}.npz", splits)
    return folder


@pytest.mark.parametrize("size", [1, 7, 200])
@pytest.mark.parametrize("seed", SEEDS)
def test_batches_give_every_metric_that_moments_define(seed, size):
    train, test = features(seed, 90), features(seed + 50, 60)
    whole = measure(*test, train=train, weight=WEIGHT)
    found = measure(batches(test, size), train=batches(train, size), weight=WEIGHT)
    for split in ("train", "test"):
        assert whole.metrics[split].keys() - found.metrics[split].keys() == whole.metrics[split].keys() & OF_SAMPLES
        for name, value in found.metrics[split].items():
            assert value == pytest.approx(whole.metrics[split][name], rel=1e-9, abs=1e-12), name
    torch.testing.assert_close(found.class_means, whole.class_means)
    assert found.class_counts.tolist() == whole.class_counts.tolist()


def test_a_stream_of_arrays_needs_no_number_of_classes():
    h, y = features(0, 90)
    found = measure(zip(h.numpy()[:, None], y.numpy()[:, None], strict=True))
    assert found.metrics["train"] == pytest.approx(measure(batches((h, y), 90)).metrics["train"], rel=1e-9, abs=1e-12)


def test_arrays_in_give_arrays_out():
    h, y = (part.numpy() for part in features(0, 30))
    found = measure(h, y)
    assert isinstance(found.class_means, np.ndarray) and isinstance(found.class_counts, np.ndarray)


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        ([], "expected at least one batch of the features, got none"),
        ([torch.zeros(3, 2)], "expected batches of a pair, features and targets, got Tensor"),
        ([(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))], r"targets must be integers \(2,\)"),
        ([(torch.full((2, 3), torch.nan), torch.zeros(2, dtype=torch.long))], "in 2 of 2 rows, the first is row 0"),
    ],
)
def test_a_wrong_batch_is_refused(stream, words):
    with pytest.raises(ValueError, match=words):
        measure(stream)


def test_the_first_wrong_row_is_counted_over_the_stream():
    h, y = features(0, 20)
    h[13] = torch.inf
    with pytest.raises(ValueError, match="in 1 of 5 rows, the first is row 13"):
        measure(batches((h, y), 5))


def test_features_without_targets_are_no_stream():
    with pytest.raises(ValueError, match=r"features need targets \(N,\); or give an iterable of batches"):
        measure(torch.zeros(3, 2))


@pytest.mark.parametrize("seed", SEEDS)
def test_shards_are_streamed_to_the_numbers_of_the_whole_folder(seed, tmp_path):
    train, test = features(seed, 90), features(seed + 50, 90)
    folder = folder_of_shards(tmp_path / "shards", train, test)
    whole = stages.measure([folder], None, tmp_path / "whole")
    found = stages.measure([folder], None, tmp_path / "found", stream=True)
    assert json.loads((tmp_path / "found" / "metrics.json").read_text()) == found
    for split in ("train", "test"):
        assert set(whole[split]) - set(found[split]) == set(whole[split]) & OF_SAMPLES
        expected = {name: whole[split][name] for name in found[split]}
        assert found[split] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_only_one_shard_is_read_at_a_time(tmp_path):
    folder = folder_of_shards(tmp_path / "shards", features(0, 90), features(1, 90))
    parts = stream_features(folder)
    assert len(next(parts)["train"].targets) == 30
    (folder / "001.npz").write_bytes(b"damaged")  # later parts have not been opened yet
    with pytest.raises(ValueError, match=r"001\.npz is damaged"):
        next(parts)


def test_a_shard_without_a_split_is_named(tmp_path):
    folder = folder_of_shards(tmp_path / "shards", features(0, 60), features(1, 60))
    write_features(folder / "001.npz", {"train": FeatureSplit(*features(0, 9))})
    with pytest.raises(ValueError, match=r"shards lacks the split 'test', got train; give each shard the same splits"):
        stages.measure([folder], None, tmp_path / "out", stream=True)


def test_arrays_in_a_folder_are_mapped_and_left_as_they_are(tmp_path):
    h, y = features(0, 50)
    np.save(tmp_path / "features.npy", h.numpy())
    np.save(tmp_path / "targets.npy", y.numpy())
    content = (tmp_path / "features.npy").read_bytes()
    split = read_features(tmp_path)["train"]
    assert torch.equal(split.features, h)
    split.features.mul_(2)  # a private map: the file keeps its numbers
    assert (tmp_path / "features.npy").read_bytes() == content
