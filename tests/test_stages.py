"""The stages, end to end on real digits: one run folder and one MLflow run for each configuration, and their proof."""

import errno
import html
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
from urllib.parse import parse_qs

import numpy as np
import pytest
import torch

from ncflow import assembly, recording, stages, tracking
from ncflow.data import Snapshot
from ncflow.interruption import Interrupted
from ncflow.nn import BACKBONES, HEADS
from ncflow.params import Params, make_params, read_config
from ncflow.suite import Claimed
from ncflow.tensors import read_tensors, write_tensors
from ncflow.training import Diverged
from ncflow.training.faults import OutOfMemory
from ncflow.yaml_files import dump_yaml

SMALL = {
    "dataset": {"name": "digits", "imb_factor": 0.02},
    "model": {"name": "resnet20", "image_size": 8},
    "train": {"epochs": 3, "batch_size": 64, "analyze_freq": 2, "save_logits": True},
}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project folder with a store, a cache and a snapshot of its own."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.chdir(root)
        yield root


def configure(name: str, **overrides: object) -> Params:
    return make_params(SMALL | {"exp_name": name}, [f"{key}={value}" for key, value in overrides.items()])


def train(project: Path, params: Params) -> Path:
    folder = project / "models" / params.exp_name
    return stages.train(params, folder=folder, data=project / "data" / "digits", root=project, group="test")


def runs_named(project: Path, name: str) -> list:
    with tracking.store(project) as mlflow:
        return mlflow.search_runs(
            ["0"], filter_string=f"attributes.run_name = '{name}'", output_format="list", order_by=["start_time"]
        )


LAST = [*HEADS][-1:]  # when it is there, the runs of all other heads are there, too


@pytest.fixture(scope="module", params=HEADS)
def head(request):
    return request.param


@pytest.fixture(scope="module")
def folder(project, head):
    """A finished run of each head."""
    return train(project, configure(head, **{"head.name": head}))


def test_a_run_leaves_the_first_seeds_files(folder):
    names = {path.name for path in folder.iterdir()}
    analyses = {
        f"{kind}_epoch_{n}{ending}" for n in (2, 3) for kind, ending in (("metrics", ".json"), ("raw_geo", ".pt"))
    }
    assert names == analyses | {"config.yaml", "provenance.json", "history.json", "final_model.pth"}
    geometry = torch.load(folder / "raw_geo_epoch_3.pt", weights_only=True)
    assert {"predictions", "targets", "drift_vector", "logits", "class_means", "weight"} <= geometry.keys()
    assert geometry["logits"].shape == (360, 10)


def test_a_run_is_one_finished_flat_mlflow_run(project, folder, head):
    (run,) = runs_named(project, head)
    assert run.info.status == "FINISHED"
    assert run.data.params["cfg.head.name"] == head
    assert "mlflow.parentRunId" not in run.data.tags
    provenance = json.loads((folder / "provenance.json").read_text())
    expected = {"group": "test", "head": head, "dataset": "digits", "seed": "0"}
    expected["snapshot"] = provenance["snapshot"]["digest"]
    assert expected.items() <= run.data.tags.items()
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.digest == provenance["snapshot"]["digest"][:36]


def test_mlflow_has_every_metric_of_both_splits_at_each_analysis(project, folder, head):
    (run,) = runs_named(project, head)
    last = json.loads((folder / "metrics_epoch_3.json").read_text())
    for split in ("train", "test"):
        for name, value in last[split].items():
            assert run.data.metrics[f"{split}/{name}"] == pytest.approx(value, rel=1e-12), name
    with tracking.store(project) as mlflow:
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/nc1/pinv")
        losses = mlflow.MlflowClient().get_metric_history(run.info.run_id, "fit/loss")
    assert [point.step for point in history] == [2, 3]
    assert [point.step for point in losses] == [1, 2, 3]


def test_mlflow_has_the_folder_the_pictures_and_the_class_table(project, folder, head):
    (run,) = runs_named(project, head)
    with tracking.store(project) as mlflow:
        files = {file.path for file in mlflow.artifacts.list_artifacts(run_id=run.info.run_id)}
        pictures = [
            file.path for file in mlflow.artifacts.list_artifacts(run_id=run.info.run_id, artifact_path="images")
        ]
        table = mlflow.load_table("class_accuracies.json", run_ids=[run.info.run_id])
    assert {path.name for path in folder.iterdir()} <= files
    for key in ("cosines", "confusion"):
        assert {step for step in range(5) if any(re.search(rf"{key}.step.{step}\D", path) for path in pictures)} == {
            2,
            3,
        }
    assert list(table["train samples"][:10]) == [142, 92, 59, 38, 25, 16, 10, 6, 4, 2]


def test_a_table_that_would_grow_large_has_the_last_analysis_only(project, monkeypatch):
    monkeypatch.setattr(recording, "MOST_ROWS", 19)
    train(project, configure("many", **{"train.epochs": 2, "train.analyze_freq": 1}))
    (run,) = runs_named(project, "many")
    with tracking.store(project) as mlflow:
        table = mlflow.load_table("class_accuracies.json", run_ids=[run.info.run_id])
    assert table["step"].tolist() == [2] * 10


def test_the_logged_model_classifies_test_pictures_like_training(project, folder, head):
    (run,) = runs_named(project, head)
    images = Snapshot.load(project / "data" / "digits").dataset("test")["image"]
    pictures = np.stack([np.array(image) for image in images])[..., None]
    logits = torch.load(folder / "raw_geo_epoch_3.pt", weights_only=True)["logits"]
    with tracking.store(project) as mlflow:
        (model,) = mlflow.search_logged_models(
            ["0"], filter_string=f"source_run_id = '{run.info.run_id}'", output_format="list"
        )
        server = mlflow.pyfunc.load_model(model.model_uri)
    found = torch.from_numpy(server.predict(pictures))
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))
    assert torch.equal(found.argmax(1), logits.argmax(1))
    facts = server.metadata.metadata
    assert (model.name, facts["run"], facts["head"], facts["loss"]) == (head, head, head, "ce")
    assert facts["test_metrics"]["acc/balanced"] == run.data.metrics["test/acc/balanced"]
    assert facts["snapshot"] == run.data.tags["snapshot"] and facts["class_names"] == [
        str(digit) for digit in range(10)
    ]
    linked = {metric.dataset_name for metric in model.metrics if metric.key.startswith("test/")}
    assert linked == {"digits-exp-0.02-seed0"}


def test_the_checkpoint_is_the_model_to_the_last_bit(project, folder, head):
    measured = stages.evaluate(folder, project / "data" / "digits", project / "evaluation.json")
    last = json.loads((folder / "metrics_epoch_3.json").read_text())
    assert measured == {"train": last["train"], "test": last["test"]}


def test_of_several_processes_each_evaluates_its_share_and_one_of_them_writes(project, folder, tmp_path, monkeypatch):
    other = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1, is_main_process=False)
    measure = Mock(side_effect=stages.evaluate_splits)
    monkeypatch.setattr(stages, "evaluate_splits", measure)
    monkeypatch.setattr(stages, "create_accelerator", lambda device: other)
    assert stages.evaluate(folder, project / "data" / "digits", tmp_path / "out.json").keys() == {"train", "test"}
    assert measure.call_args.kwargs["accelerator"] is other  # whose processes share the samples out
    assert not (tmp_path / "out.json").exists()


def test_a_checkpoint_that_is_not_the_model_is_refused(project, folder, head, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    state = torch.load(copy / "final_model.pth", weights_only=True)
    state["backbone.body.stem.0.weight"] += 0.05
    torch.save(state, copy / "final_model.pth")
    with pytest.raises(ValueError, match="final_model.pth is not the file that training wrote"):
        stages.evaluate(copy, project / "data" / "digits", tmp_path / "out.json")
    provenance = json.loads((copy / "provenance.json").read_text())
    del provenance["final_model_sha256"]  # of a run of an earlier version
    (copy / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(ValueError, match="the checkpoint is not the model that was trained"):
        stages.evaluate(copy, project / "data" / "digits", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_checkpoint_changed_by_a_trifle_is_refused_on_any_hardware(project, folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    state = torch.load(copy / "final_model.pth", weights_only=True)
    torch.save({name: tensor * 1.001 if tensor.is_floating_point() else tensor for name, tensor in state.items()},
               copy / "final_model.pth")  # fmt: skip
    provenance = json.loads((copy / "provenance.json").read_text())
    provenance["hardware"]["processes"] = 8
    (copy / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(ValueError, match="sha256"):
        stages.evaluate(copy, project / "data" / "digits", tmp_path / "out.json")


@pytest.mark.parametrize("package", ["ncflow", "torch"])
def test_equal_bits_are_asked_of_equal_versions_only(project, folder, tmp_path, package):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    last = max(copy.glob("metrics_epoch_*.json"), key=lambda file: int(file.stem.rpartition("_")[2]))
    metrics = json.loads(last.read_text())
    metrics["train"]["nc2/etf_error_means"] *= 1 + 1e-9
    last.write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match="train/nc2/etf_error_means of the checkpoint is"):
        stages.evaluate(copy, project / "data" / "digits", tmp_path / "out.json")
    provenance = json.loads((copy / "provenance.json").read_text())
    provenance[package] = "0.0.1"
    (copy / "provenance.json").write_text(json.dumps(provenance))
    assert stages.evaluate(copy, project / "data" / "digits", tmp_path / "out.json")


def test_another_models_checkpoint_is_described_by_three_names_per_kind(project, folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    torch.save({f"layer{k}.weight": torch.zeros(2) for k in range(50)}, copy / "final_model.pth")
    with pytest.raises(
        ValueError, match=r"it lacks .* and \d+ more; it has in addition layer0.weight, .* and 47 more"
    ) as error:
        stages.evaluate(copy, project / "data" / "digits", tmp_path / "out.json")
    assert len(str(error.value)) < 700


def test_a_run_finds_its_snapshot_by_content(project, folder, tmp_path):
    shutil.copytree(project / "data" / "digits", tmp_path / "renamed")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("[")
    assert stages.snapshot_of(folder, tmp_path) == tmp_path / "renamed"
    with pytest.raises(ValueError, match=r"has no snapshot that .* expected digits-exp-0.02-seed0; fetch it"):
        stages.snapshot_of(folder, tmp_path / "renamed")
    usual = tmp_path / "nothing" / "digits-exp-0.02-seed0"
    usual.mkdir(parents=True)
    assert stages.snapshot_of(folder, tmp_path / "nothing") == usual  # its reader says what is wrong with it


def test_a_checkpoint_is_not_evaluated_on_another_snapshot(project, folder, tmp_path):
    other = make_params(SMALL, ["dataset.seed=1"])
    stages.snapshot(other, tmp_path / "other")
    with pytest.raises(ValueError, match="was trained on another snapshot"):
        stages.evaluate(folder, tmp_path / "other", tmp_path / "out.json")


def test_the_same_seed_gives_the_same_numbers_and_keeps_both_runs(project):
    params = configure("twice", **{"head.name": "nearest_etf", "train.epochs": 2})
    first = json.loads((train(project, params) / "metrics_epoch_2.json").read_text())
    second = json.loads((train(project, params) / "metrics_epoch_2.json").read_text())
    other = train(project, configure("twice", **{"head.name": "nearest_etf", "train.epochs": 2, "seed": 1}))
    assert first == second
    assert json.loads((other / "metrics_epoch_2.json").read_text()) != first
    assert {path.name for path in other.parent.glob("twice*")} == {"twice", "twice.1", "twice.2"}


def test_every_data_option_in_one_run(project, tmp_path):
    """Validation part, label noise, fewer samples, a floor, balanced full batches: trained, logged, measured again."""
    data = {"dataset.val_fraction": 0.2, "dataset.label_noise": 0.1, "dataset.samples_per_class": 50}
    how = {"train.batch_size": "full", "train.sampling": "class_balanced", "train.epochs": 1}
    params = configure("options", **data, **how, **{"dataset.min_samples": 3})
    assert assembly.snapshot_name(params) == "digits-exp-0.02-val0.2-noise0.1-max50-min3-seed0"
    folder, where = project / "models" / "options", project / "data" / "options"
    stages.train(params, folder=folder, data=where, root=project)
    last = json.loads((folder / "metrics_epoch_1.json").read_text())
    (run,) = runs_named(project, "options")
    assert last["val"].keys() == last["test"].keys() and last["val"] != last["test"]
    for name, value in last["val"].items():
        assert run.data.metrics[f"val/{name}"] == pytest.approx(value, rel=1e-12), name
    with tracking.store(project) as mlflow:
        table = mlflow.load_table("class_accuracies.json", run_ids=[run.info.run_id])
    assert "val accuracy" in table and min(table["train samples"]) == 3 and max(table["train samples"]) == 50
    measured = stages.evaluate(folder, where, tmp_path / "evaluation.json")
    assert measured == {split: last[split] for split in ("train", "val", "test")}


def test_an_infinite_loss_fails_the_run_and_keeps_its_log(project):
    # Weight decay at a huge rate flips and grows the weights tenfold a step, until they overflow in a later epoch.
    params = configure(
        "diverged", **{"train.lr": 10, "train.weight_decay": 10, "train.schedule": "none", "train.analyze_freq": 1}
    )
    params = make_params(params.model_dump(mode="json"), ["train.epochs=40", "train.momentum=0"])
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at epoch \d+, step \d+, learning rate 10"):
        train(project, params)
    (run,) = runs_named(project, "diverged")
    assert run.info.status == "FAILED"
    assert "the loss is" in run.data.tags["error"]
    folder = project / "models" / "diverged"
    assert not (folder / "final_model.pth").exists()
    epochs = len(json.loads((folder / "history.json").read_text()))
    with tracking.store(project) as mlflow:
        logged = mlflow.MlflowClient().get_metric_history(run.info.run_id, "fit/loss")
        files = {file.path for file in mlflow.artifacts.list_artifacts(run_id=run.info.run_id)}
    assert len(logged) == epochs > 0
    assert "history.json" in files


def stop_after(epoch: int, how: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen when an epoch is logged, before its state is written."""
    log = recording.log_epoch

    def log_and_stop(record, *rest, **options):
        log(record, *rest, **options)
        if record.epoch == epoch:
            how()

    monkeypatch.setattr(recording, "log_epoch", log_and_stop)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


class Small(torch.nn.Sequential):
    """A backbone that is quick to train."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16), torch.nn.ReLU())


@pytest.fixture
def quick(monkeypatch):
    """Without what takes long and is not the question."""
    monkeypatch.setitem(BACKBONES, "small", Small)
    monkeypatch.setattr(tracking.RunLogger, "model", lambda *arguments, **options: "")


def test_a_process_of_a_suite_leaves_a_run_that_is_finished_by_then(project, quick, monkeypatch):
    params = configure("raced", **{"model.name": "small"})
    folder = project / "models" / "raced"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_yaml(params.resolved()))
    (folder / "final_model.pth").touch()
    monkeypatch.setattr(stages, "_train", trained := Mock())
    where = {"folder": folder, "data": project / "data" / "digits", "root": project}
    with pytest.raises(Claimed, match="models/raced is finished"):
        stages.train(params, **where, unless_finished=True)
    assert not trained.called
    stages.train(params, **where)
    assert trained.called


def test_after_sigterm_a_run_resumes_with_the_same_outcome(project, quick, monkeypatch):
    """Although DVC deletes the folder before it runs the stage again, and another configuration had it meanwhile."""
    options = {"model.name": "small", "head.name": "nearest_etf"}
    whole = train(project, configure("whole", **options))
    params, other = (configure("stopped", **options, **{"train.lr": rate}) for rate in (0.1, 0.05))
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
        stop_after(2, terminate, patch)
        train(project, params)
    assert stop.value.code == 75
    (run,) = runs_named(project, "stopped")
    assert run.info.status == "KILLED" and "SIGTERM" in run.data.tags["error"]
    (state,) = (project / stages.STATES).glob("stopped-*")
    shutil.rmtree(project / "models" / "stopped")

    folder = train(project, other)
    assert len(json.loads((folder / "history.json").read_text())) == 3
    assert state.exists() and len(runs_named(project, "stopped")) == 2

    folder = train(project, params)
    assert json.loads((project / "models" / "stopped.1" / "history.json").read_text())[0]["lr"] == 0.05
    for file in whole.glob("*_epoch_*"):
        assert (folder / file.name).read_bytes() == file.read_bytes(), file.name
    assert (folder / "final_model.pth").read_bytes() == (whole / "final_model.pth").read_bytes()
    assert not list((project / stages.STATES).glob("stopped-*"))
    resumed = next(each for each in runs_named(project, "stopped") if each.info.run_id == run.info.run_id)
    assert resumed.info.status == "FINISHED" and "error" not in resumed.data.tags
    with tracking.store(project) as mlflow:
        for key, steps in {"fit/loss": [1, 2, 3], "test/nc1/pinv": [2, 3]}.items():
            points = mlflow.MlflowClient().get_metric_history(run.info.run_id, key)
            assert [point.step for point in points] == steps
        table = mlflow.load_table("class_accuracies.json", run_ids=[run.info.run_id])
    assert sorted(table["step"]) == [2] * 10 + [3] * 10


STEADY = {"train.schedule": "none", "train.analyze_freq": 1}


def extend(project: Path, params: Params) -> Path:
    folder = project / "models" / params.exp_name
    return stages.train(params, folder=folder, data=project / "data" / "digits", root=project, extend=True)


def test_an_extended_run_equals_one_that_was_long_from_the_start(project, quick):
    train(project, configure("long", **STEADY, **{"train.epochs": 2}))
    longer = extend(project, configure("long", **STEADY, **{"train.epochs": 4}))
    whole = train(project, configure("whole", **STEADY, **{"train.epochs": 4}))

    ours, theirs = (torch.load(folder / "final_model.pth") for folder in (longer, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [[epoch["loss"] for epoch in json.loads((f / "history.json").read_text())] for f in (longer, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert (project / "models" / "long.1" / "final_model.pth").is_file()  # the run of two epochs

    short, run = runs_named(project, "long")
    with tracking.store(project) as mlflow:
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "test/acc/overall")
    assert [metric.step for metric in history] == [1, 2, 3, 4] and short.data.params["cfg.train.epochs"] == "2"

    again = extend(project, configure("long", **STEADY, **{"train.epochs": 5}))  # an extended run can be extended
    assert len(json.loads((again / "history.json").read_text())) == 5


def test_a_finished_state_that_does_not_fit_is_not_extended(project, quick):
    train(project, configure("odd", **STEADY, **{"train.epochs": 1}))
    (file,) = (project / ".ncflow" / "finished").glob("odd-*/epoch_1.pt")
    state = read_tensors(file)
    state["model"]["head.weight"] = state["model"]["head.weight"][:7]
    write_tensors(file, state)
    longer = configure("odd", **STEADY, **{"train.epochs": 2})
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'odd' after epoch 1 that does not fit: .*; train without --extend"):
            extend(project, longer)
    file.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"epoch_1.pt .*; train without --extend"):
        extend(project, longer)
    folder = train(project, longer)
    assert json.loads((folder / "provenance.json").read_text())["extended_from"] is None


def test_an_interrupted_extension_resumes_from_its_own_epochs(project, quick, monkeypatch):
    train(project, configure("cut", **STEADY, **{"train.epochs": 1}))
    longer = configure("cut", **STEADY, **{"train.epochs": 3})
    with monkeypatch.context() as patch:
        stop_after(2, terminate, patch)
        with pytest.raises(Interrupted):
            extend(project, longer)
    folder = train(project, longer)  # no longer needs the option, and stays known as an extension
    assert json.loads((folder / "provenance.json").read_text())["extended_from"] == 1
    assert len(json.loads((folder / "history.json").read_text())) == 3
    assert len(runs_named(project, "cut")) == 2


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"train.schedule": "cosine"}, {}, "train.schedule=cosine depend on train.epochs"),
        ({"train.warmup": 0.5}, {}, "train.schedule=none and train.warmup=0.5 depend"),
        ({"train.reweight": 0.9, "train.reweight_after": 0.5}, {}, "train.reweight_after=0.5 is a share"),
        ({}, {"train.epochs": 2}, "expects more epochs than the finished run has, got train.epochs=2"),
        ({}, {"train.lr": 0.01}, "found no finished run 'short' that differs only in train.epochs"),
    ],
)
def test_a_run_that_cannot_be_extended_is_refused_with_the_reason(project, quick, before, after, words):
    options = STEADY | {"train.epochs": 2} | before
    train(project, configure("short", **options))
    with pytest.raises(ValueError, match=re.escape(words)):
        extend(project, configure("short", **options | {"train.epochs": 4} | after))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_sigterm_that_python_drops_ends_the_run_after_its_epoch(project, quick, monkeypatch):
    class Deaf:
        def __del__(self):
            terminate()

    params = configure("deaf", **{"model.name": "small"})
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(2, Deaf, patch)
        train(project, params)
    (state,) = (project / stages.STATES).glob("deaf-*")
    assert (state / "epoch_2.pt").exists() and not (state / "epoch_3.pt").exists()
    (run,) = runs_named(project, "deaf")
    assert run.info.status == "KILLED" and "SIGTERM" in run.data.tags["error"]


def test_a_run_resumed_in_another_store_has_every_step_once(project, quick, monkeypatch, capsys):
    """Two epochs here, of which one is finished; two there, and then the rest here again."""

    def fail() -> None:
        raise RuntimeError("gone")

    params = configure("moved", **{"model.name": "small", "train.epochs": 5})
    notes, points = [], {}
    for store, last in (("mlflow", 2), ("other", 4), ("mlflow", 5)):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}.db")
        with monkeypatch.context() as patch, suppress(RuntimeError):
            if last < 5:
                stop_after(last, fail, patch)
            train(project, params)
        notes += re.findall(r"epochs (\d to \d) were logged to another", capsys.readouterr().err)
        (run,) = runs_named(project, "moved")
        with tracking.store(project) as mlflow:
            for key in ("fit/loss", "fit/lr", "test/nc1/pinv"):
                history = mlflow.MlflowClient().get_metric_history(run.info.run_id, key)
                points[store, key] = {point.step: point.value for point in history}
                assert len(history) == len(points[store, key])
    assert notes == ["1 to 1", "3 to 3"]
    assert {key: [*values] for key, values in points.items()} == {
        **{("mlflow", f"fit/{name}"): [1, 2, 3, 4, 5] for name in ("loss", "lr")},
        **{("other", f"fit/{name}"): [1, 2, 3, 4] for name in ("loss", "lr")},
        ("mlflow", "test/nc1/pinv"): [2, 4, 5],
        ("other", "test/nc1/pinv"): [2, 4],
    }
    for epoch in json.loads((project / "models" / "moved" / "history.json").read_text()):
        assert points["mlflow", "fit/loss"][epoch["epoch"]] == epoch["loss"]
    for (_, key), values in points.items():
        assert values.items() <= points["mlflow", key].items()


def test_a_full_disk_is_named_and_nothing_that_was_finished_is_lost(project, quick, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    params = configure("full", **{"model.name": "small"})
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"cannot write .*epoch_2.pt: No space left"):
        stop_after(2, lambda: patch.setattr(torch, "save", full), patch)
        train(project, params)
    (run,) = runs_named(project, "full")
    assert run.info.status == "FAILED" and "No space left" in run.data.tags["error"]
    folder = project / "models" / "full"
    assert not list(folder.glob(".*")) and not (folder / "final_model.pth").exists()
    assert [epoch["epoch"] for epoch in json.loads((train(project, params) / "history.json").read_text())] == [1, 2, 3]
    (run,) = runs_named(project, "full")
    assert run.info.status == "FINISHED" and "error" not in run.data.tags


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(), "can't allocate memory"],
)
def test_running_out_of_memory_names_the_options_that_need_less(project, quick, monkeypatch, error):
    def fail() -> None:
        raise RuntimeError(f"DefaultCPUAllocator: {error}") if isinstance(error, str) else error

    stop_after(1, fail, monkeypatch)
    with pytest.raises(OutOfMemory, match=r"train.batch_size=64; try train.batch_size=32, or train.precision=bf16"):
        train(project, configure("memory", **{"model.name": "small", "train.precision": "fp32"}))


@pytest.mark.parametrize("head", LAST, indirect=True, scope="module")
def test_the_report_lines_up_the_heads(project, folder, tmp_path):
    folders = sorted(path for path in (project / "models").iterdir() if path.name in HEADS)
    page, table = stages.report(folders, tmp_path / "report", title="heads")
    text = page.read_text()
    assert page.name == "index.html" and 'src="http' not in text and 'href="http' not in text
    assert [row.cells[0] for row in table.rows] == [path.name for path in folders]


@pytest.mark.parametrize(
    ("measured", "logged", "refused"),
    [
        ({"layers/stem/nc1": 1.0, "layers/stem/ncc_accuracy": 0.5}, {"layers/stem/nc1": 1.0}, False),  # earlier version
        ({"layers/stem/nc1": 2.0}, {"layers/stem/nc1": 1.0}, True),
        ({}, {"layers/stem/nc1": 1.0}, True),
        ({"nc1/pinv": 1.0}, {}, True),
    ],
)
def test_only_metrics_of_layers_may_be_new_in_an_evaluation(measured, logged, refused, tmp_path):
    with pytest.raises(ValueError, match="is not the model") if refused else nullcontext():
        stages._refuse_if_different({"train": measured}, {"train": logged}, tolerance=0.0, folder=tmp_path)


@pytest.mark.parametrize("head", LAST, indirect=True, scope="module")
def test_the_table_is_shown_where_the_page_cannot_be_written(folder, tmp_path):
    shown = []
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        stages.report([folder], tmp_path / "file" / "report", title="one", show=shown.append)
    assert [len(table.rows) for table in shown] == [1]


@pytest.mark.parametrize("head", LAST, indirect=True, scope="module")
def test_a_link_of_the_report_finds_the_run_in_mlflow(project, folder, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    page, _ = stages.report([folder], tmp_path / "report", title="one", root=project)
    links = {html.unescape(link) for link in re.findall(r'href="(http[^"]*)"', page.read_text())}
    (searched,) = {parse_qs(link.partition("?")[2])["searchFilter"][0] for link in links}
    with tracking.store(project) as mlflow:
        found = mlflow.search_runs(["0"], searched, output_format="list")
    assert found and {run.info.run_name for run in found} == {folder.name}


@pytest.mark.slow
def test_a_run_folder_is_logged_to_another_store_once_and_whole(project, folder, tmp_path, monkeypatch):
    """As after `dvc pull` in a second clone: the folder is there, MLflow's store is empty."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    assert stages.sync(folder, project / "data", tmp_path) == read_config(folder / "config.yaml")["exp_name"]
    assert stages.sync(folder, project / "data", tmp_path) is None
    with tracking.store(tmp_path) as mlflow:
        (there,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
        client, history = mlflow.MlflowClient(), json.loads((folder / "history.json").read_text())
        losses = client.get_metric_history(there.info.run_id, "fit/loss")
        assert [(entry.step, entry.value) for entry in losses] == [(r["epoch"], r["loss"]) for r in history]
        last = json.loads(max(folder.glob("metrics_epoch_*.json")).read_text())
        assert {f"test/{name}": value for name, value in last["test"].items()}.items() <= there.data.metrics.items()
        files = {file.path for file in mlflow.artifacts.list_artifacts(run_id=there.info.run_id)}
        assert {"config.yaml", "final_model.pth", "provenance.json"} <= files
        assert len(mlflow.search_logged_models(["0"], output_format="list")) == 1
        assert there.data.tags["config"] and there.info.status == "FINISHED"


def test_an_unfinished_run_folder_is_not_logged(project, folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "final_model.pth").unlink()
    with pytest.raises(ValueError, match="is unfinished: no final_model.pth"):
        stages.sync(copy, project / "data", tmp_path)


def test_elsewhere_another_tau_of_adjusted_logits_is_no_other_checkpoint(tmp_path):
    """A τ is chosen among a few values. Rounding may choose another one, with other accuracies."""
    logged = {"test": {"acc/balanced": 0.5, "posthoc/logit_adjustment/acc/balanced": 0.6}}
    measured = {"test": {"acc/balanced": 0.5, "posthoc/logit_adjustment/acc/balanced": 0.7}}
    stages._refuse_if_different(measured, logged, tolerance=stages.ELSEWHERE, folder=tmp_path)
    with pytest.raises(ValueError, match="test/posthoc/logit_adjustment/acc/balanced of the checkpoint is 0.7"):
        stages._refuse_if_different(measured, logged, tolerance=0.0, folder=tmp_path)
