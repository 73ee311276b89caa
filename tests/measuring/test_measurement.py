"""Measuring features that somebody trained: the metrics of a run, from arrays, tensors and files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ncflow.measuring import FeatureSplit, measure, read_features, series, write_features
from ncflow.measuring.files import READERS
from ncflow.metrics import collapse_metrics

K, D = 4, 6


def features(seed: int = 0, count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % K
    return torch.randn(K, D, generator=torch.Generator().manual_seed(9))[targets] + 0.1 * torch.randn(
        count, D, generator=generator
    ), targets


WEIGHT = torch.randn(K, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("seed", range(3))
def test_measuring_gives_the_collapse_metrics(seed):
    h, y = features(seed)
    assert measure(h, y, weight=WEIGHT).metrics == {"train": collapse_metrics(h, y, WEIGHT)}


def test_arrays_and_tensors_give_the_same_numbers():
    h, y = features()
    assert measure(h.numpy(), y.numpy(), weight=WEIGHT.numpy()).metrics == measure(h, y, weight=WEIGHT).metrics


def test_unseen_features_are_compared_with_the_training_split():
    train, test = features(0, 60), features(1)
    measured = measure(*test, weight=WEIGHT, train=train).metrics
    assert measured["train"] == collapse_metrics(*train, WEIGHT)
    means = torch.stack([train[0][train[1] == k].double().mean(0) for k in range(K)])
    expected = collapse_metrics(*test, WEIGHT, class_counts=[15] * K, train_means=means)
    assert measured["test"] == pytest.approx(expected, rel=1e-9)


def test_classes_without_samples_are_named(recwarn):
    h, y = features()
    measure(h[y < 2], y[y < 2], weight=WEIGHT, class_names=["ant", "bee", "cat", "dog"])
    assert "no training sample of class cat, dog: metrics use the others" in str(recwarn[0].message)


def test_rows_that_are_not_finite_are_counted():
    h, y = features()
    h[[3, 7]] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in 2 of 40 rows, the first is row 3"):
        measure(h, y)


def test_targets_that_do_not_fit_are_refused():
    h, y = features()
    with pytest.raises(ValueError, match="targets must be integers"):
        measure(h, y[:-1])


# --- files ---


def write(file: Path, content: dict) -> Path:
    if file.suffix == ".npz":
        np.savez(file, **{key: np.asarray(value) for key, value in content.items()})
    elif file.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(content, file)
    elif file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"features": content["features"].tolist(), "label": content["targets"].tolist()}), file)
    else:
        torch.save(content, file)
    return file


@pytest.mark.parametrize("suffix", READERS)
def test_every_kind_of_file_holds_the_same_features(tmp_path, suffix):
    h, y = features()
    found = read_features(write(tmp_path / f"mine{suffix}", {"features": h, "targets": y}))
    assert list(found) == ["train"]
    assert torch.equal(found["train"].features.float(), h) and torch.equal(found["train"].targets, y)


def test_written_splits_are_read_back(tmp_path):
    train, test = (
        FeatureSplit(*features(seed), WEIGHT, class_counts=[10] * K, class_names=list("abcd")) for seed in (0, 1)
    )
    found = read_features(write_features(tmp_path / "all.npz", {"train": train, "test": test}))
    assert list(found) == ["train", "test"]
    for split, expected in (("train", train), ("test", test)):
        assert torch.equal(found[split].features, expected.features)
        assert torch.equal(found[split].weight, WEIGHT)
        assert found[split].class_names == list("abcd") and found[split].class_counts == [10] * K


def test_shards_in_a_folder_follow_each_other(tmp_path):
    h, y = features()
    whole = write_features(tmp_path / "whole.npz", {"train": FeatureSplit(h, y, WEIGHT)})
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, part in enumerate((slice(0, 7), slice(7, 30), slice(30, 40))):
        write_features(folder / f"part_{number}.npz", {"train": FeatureSplit(h[part], y[part], WEIGHT)})
    (joined,), (expected,) = (list(read_features(path).values()) for path in (folder, whole))
    assert torch.equal(joined.features, expected.features) and torch.equal(joined.targets, expected.targets)
    assert torch.equal(joined.weight, WEIGHT)


def test_a_folder_of_arrays_is_one_split(tmp_path):
    h, y = features()
    for name, array in (("features", h), ("targets", y), ("weight", WEIGHT)):
        np.save(tmp_path / f"{name}.npy", array.numpy())
    (found,) = read_features(tmp_path).values()
    assert torch.equal(found.features, h) and torch.equal(found.targets, y) and torch.equal(found.weight, WEIGHT)


def test_a_folder_without_features_and_shards_of_two_widths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds neither features.npy nor shards"):
        read_features(tmp_path)
    h, y = features()
    for name, width in (("a", D), ("b", D - 1)):
        write(tmp_path / f"{name}.npz", {"features": h[:, :width], "targets": y})
    with pytest.raises(ValueError, match="features of one width in all shards"):
        read_features(tmp_path)


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


def wrong_files(folder: Path) -> dict[str, Path]:
    h, y = features()
    (folder / "pickled.pt").write_bytes(pickle.dumps(Evil()))
    np.savez(folder / "objects.npz", features=np.array([Evil()], dtype=object), targets=np.arange(1))
    (folder / "text.npz").write_text("no archive")
    (folder / "mine.csv").write_text("1,2")
    return {
        "damaged, or holds more than arrays": folder / "pickled.pt",
        "damaged, or holds more than arrays.*pickle": folder / "objects.npz",
        "text.npz is damaged": folder / "text.npz",
        "ending '.csv'; expected one of .npz": folder / "mine.csv",
        "no file .*nowhere.npz": folder / "nowhere.npz",
        "unknown key 'feature'. Did you mean 'features'": write(folder / "key.npz", {"feature": h, "targets": y}),
        "expected a key 'targets', got features": write(folder / "no_targets.npz", {"features": h}),
        "expected a target for each of the features, got 40 and 39": write(
            folder / "short.npz", {"features": h, "targets": y[:-1]}
        ),
        "key 'targets' must hold numbers": write(
            folder / "names.npz", {"features": h, "targets": np.array(["a"] * 40)}
        ),
    }


@pytest.mark.parametrize("reason", range(9))
def test_a_wrong_file_is_refused_by_name(tmp_path, reason, capsys):
    message, file = list(wrong_files(tmp_path).items())[reason]
    with pytest.raises(ValueError, match=message) as caught:
        read_features(file)
    assert file.name in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


def test_the_command_writes_the_metrics_of_every_split(tmp_path):
    from ncflow import stages

    train, test = (FeatureSplit(*features(seed), WEIGHT) for seed in (0, 1))
    file = write_features(tmp_path / "all.npz", {"train": train, "test": test})
    measured = stages.measure([file], None, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == measured
    alone = [write_features(tmp_path / f"{name}.npz", {"train": s}) for name, s in (("seen", train), ("unseen", test))]
    assert stages.measure([alone[1]], alone[0], tmp_path / "two") == measured
    with pytest.raises(ValueError, match="has the splits train, test itself; leave --train out"):
        stages.measure([file], alone[0], tmp_path / "wrong")


def test_mlflow_has_measured_features_as_one_run(tmp_path, monkeypatch):
    from ncflow import stages, tracking

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    files = [write_features(tmp_path / f"e_{n}.npz", {"train": FeatureSplit(*features(n), WEIGHT)}) for n in (2, 4)]
    measured = stages.measure(files, None, tmp_path / "mine")
    for _ in range(2):  # the same numbers again are the same run
        stages.track_measured(tmp_path / "mine", tmp_path)
    with tracking.store(tmp_path) as mlflow:
        query = {"filter_string": "tags.measured = 'True'", "search_all_experiments": True}
        (run,) = mlflow.search_runs(**query, output_format="list")
        steps = [metric.step for metric in mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/nc1/pinv")]
    assert run.data.metrics["train/nc1/pinv"] == measured["train"]["nc1/pinv"]
    assert (run.info.run_name, run.info.status, steps) == ("mine", "FINISHED", [2, 4])


def test_the_command_line_prints_every_metric(tmp_path, monkeypatch, capsys):
    from ncflow import cli

    file = write_features(tmp_path / "mine.npz", {"train": FeatureSplit(*features(), WEIGHT)})
    monkeypatch.setattr("sys.argv", ["ncflow", "measure", str(file), "--out", str(tmp_path / "out"), "--no-track"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    printed = capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["train"]
    assert all(name in printed for name in metrics) and str(tmp_path / "out" / "metrics.json") in printed


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("splits", [("train",), ("train", "test")])
def test_a_report_shows_measured_features_next_to_a_run(tmp_path, make_run, weight, splits):
    from ncflow import stages

    files = []
    for epoch in (5, 10):
        found = {name: FeatureSplit(*features(seed), weight) for seed, name in enumerate(splits, epoch)}
        files.append(write_features(tmp_path / f"epoch_{epoch}.npz", found))
    measured = stages.measure(files[::-1], None, tmp_path / "mine")
    page, table = stages.report(
        [tmp_path / "mine", make_run("trained", num_classes=4)], tmp_path / "page", title="both"
    )
    assert [row.cells[0] for row in table.rows] == ["measured", "digits"]
    column = table.headings.index(("train nc1/", "pinv"))
    assert table.rows[0].cells[column] == f"{measured['train']['nc1/pinv']:#.3g}"
    assert "mine" in page.read_text()


@pytest.mark.parametrize(
    ("names", "reason"),
    [(["a.npz", "b_2.npz"], "a.npz has no epoch in its name"), (["a_1.npz", "b_01.npz"], "are both of epoch")],
)
def test_a_series_needs_an_epoch_in_each_name(names, reason):
    with pytest.raises(ValueError, match=reason):
        series([Path(name) for name in names])


def test_a_series_may_begin_with_the_initialization(tmp_path):
    from ncflow import stages
    from ncflow.runs.reader import load_run

    files = [
        write_features(tmp_path / f"epoch_{epoch}.npz", {"train": FeatureSplit(*features(epoch), WEIGHT)})
        for epoch in (0, 1)
    ]
    stages.measure(files, None, tmp_path / "mine")
    assert list(load_run(tmp_path / "mine").curve("train/nc1/pinv")) == [0, 1]
    stages.report([tmp_path / "mine"], tmp_path / "page", title="from the initialization")
    stages.measure(files[1:], None, tmp_path / "mine")  # what was measured before is gone
    assert list(load_run(tmp_path / "mine").curve("train/nc1/pinv")) == [1]


def test_a_trained_run_is_never_overwritten(tmp_path):
    from ncflow import stages

    (tmp_path / "final_model.pth").touch()
    with pytest.raises(ValueError, match="is the folder of a trained run; choose another --name"):
        stages.measure([tmp_path / "features.npz"], None, tmp_path)
