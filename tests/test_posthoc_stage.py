"""The stage and the command posthoc, on small trained runs: results, their file, MLflow, report, and refusals."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from ncflow import cli, stages, tracking
from ncflow.nn import BACKBONES
from ncflow.params import make_params
from ncflow.posthoc import POSTHOC
from ncflow.runs.layout import posthoc_file
from ncflow.runs.posthoc import read_posthoc
from ncflow.runs.reader import load_run

SMALL = {
    "dataset": {"name": "digits", "imb_factor": 0.02},
    "model": {"name": "small", "image_size": 8},
    "train": {"epochs": 4, "batch_size": 64, "analyze_freq": 4},
}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Small(torch.nn.Sequential):
    """A backbone that is quick to train."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16), torch.nn.ReLU())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project folder with its own store."""
    root = tmp_path_factory.mktemp("project")
    (root / "params.yaml").write_text("exp_name: main\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "small", Small)
        patch.setattr(tracking.RunLogger, "model", lambda *arguments, **options: "")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.chdir(root)
        yield root


def train(project: Path, name: str, *overrides: str) -> Path:
    params = make_params(SMALL | {"exp_name": name}, overrides)
    stages.train(params, folder=project / "models" / name, data=project / "data" / name, root=project)
    return project / "models" / name


@pytest.fixture(scope="module")
def validated(project):
    """A run with a validation part."""
    return train(project, "validated", "dataset.val_fraction=0.2")


@pytest.fixture(scope="module")
def plain(project):
    """A run without a validation part."""
    return train(project, "plain")


@pytest.fixture
def data(project):
    return project / "data"


@pytest.fixture(autouse=True)
def no_results(project):
    """Each test starts without results."""
    yield
    for file in (project / "models").glob("*.posthoc.json"):
        file.unlink()


def logged(project: Path, name: str) -> dict[str, float]:
    with tracking.store(project) as mlflow:
        (run,) = mlflow.search_runs(["0"], filter_string=f"attributes.run_name = '{name}'", output_format="list")
    assert run.info.status == "FINISHED"
    return dict(run.data.metrics)


def command(monkeypatch, capsys, *words: str, code: int | None = 0) -> str:
    monkeypatch.setattr(sys, "argv", ["ncflow", "posthoc", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr()
    assert end.value.code == code, printed.err
    return printed.out + printed.err


def test_every_method_is_measured_on_every_unseen_split(validated, data):
    results = stages.posthoc(validated, data / "validated")
    assert {*results["chosen_by"]} == {*POSTHOC} and not results["skipped"]
    for split in ("test", "val"):
        for name in POSTHOC:
            assert 0 <= results[split][f"posthoc/{name}/acc/balanced"] <= 1
    last = load_run(validated).analyses[-1]
    for split in ("test", "val"):
        own = {name: value for name, value in results[split].items() if name.startswith("acc/")}
        assert own.items() <= last[split].items() and own
    assert {results["chosen_by"][name] for name in ("crt", "tau_norm")} == {"val"}


def test_a_run_without_validation_data_uses_the_stated_defaults(plain, data):
    results = stages.posthoc(plain, data / "plain")
    assert results["options"]["posthoc/logit_adjustment/tau"] == 1.0
    assert {*results["chosen_by"].values()} == {"default", ""} and "val" not in results


def test_the_file_is_next_to_the_folder_and_later_calls_join_it(plain, data, tmp_path):
    before = {file.name: file.read_bytes() for file in plain.iterdir()}
    stages.posthoc(plain, data / "plain", ["ncm", "tau_norm"])
    results = stages.posthoc(plain, data / "plain", ["lws"], out=tmp_path / "out" / "numbers.json")
    assert {file.name: file.read_bytes() for file in plain.iterdir()} == before
    found = json.loads(posthoc_file(plain).read_text())
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert numbers == {"test": results["test"], "options": results["options"]}
    assert [*found["chosen_by"]] == ["ncm", "tau_norm", "lws"]
    assert found["final_model_sha256"] == json.loads(before["provenance.json"])["final_model_sha256"]
    alone = stages.posthoc(plain, data / "plain", ["tau_norm"])
    assert alone["test"].items() <= found["test"].items()


def test_results_of_another_checkpoint_are_replaced_and_ignored_by_a_run(plain, data):
    stages.posthoc(plain, data / "plain", ["ncm"])
    changed = json.loads(posthoc_file(plain).read_text()) | {"final_model_sha256": "another"}
    posthoc_file(plain).write_text(json.dumps(changed))
    run = load_run(plain)
    assert run.posthoc is None
    assert run.note == "plain.posthoc.json is ignored: it is of another checkpoint than plain; rerun `ncflow posthoc`"
    stages.posthoc(plain, data / "plain", ["lws"])
    assert read_posthoc(plain).methods == ["lws"] and load_run(plain).note is None


def test_a_changed_checkpoint_is_refused(plain, data, tmp_path):
    copy = Path(shutil.copytree(plain, tmp_path / "copy"))
    state = torch.load(copy / "final_model.pth", weights_only=True)
    torch.save({name: tensor * 1.001 for name, tensor in state.items()}, copy / "final_model.pth")
    with pytest.raises(ValueError, match="final_model.pth is not the file that training wrote"):
        stages.posthoc(copy, data / "plain")
    assert not posthoc_file(copy).exists()


@pytest.mark.parametrize(
    ("override", "method", "reason"),
    [
        ("train.loss=mse", "logit_adjustment", "logits that are log-probabilities, but loss 'mse' has other logits"),
        ("train.loss=balanced_softmax", "multiplicative", "does not correct for class sizes.*balanced_softmax"),
        ("train.sampling=class_balanced", "logit_adjustment", "does not correct for class sizes.*class_balanced"),
        ("train.reweight=0.99", "logit_adjustment", "does not correct for class sizes.*reweight=0.99"),
    ],
)
def test_a_method_that_needs_what_the_run_lacks_is_skipped_or_refused(project, data, override, method, reason):
    folder = train(project, "lacking", override, "train.epochs=1")
    assert method in stages.posthoc(folder, data / "lacking")["skipped"]
    with pytest.raises(ValueError, match=f"{method} needs .*{reason}"):
        stages.posthoc(folder, data / "lacking", [method])


def test_mlflow_has_the_results_on_the_runs_own_run(project, validated, data):
    results = stages.posthoc(validated, data / "validated", ["ncm", "tau_norm"])
    assert stages.track_posthoc(validated, project)
    found = logged(project, "validated")
    for split in ("test", "val"):
        for name in ("ncm", "tau_norm"):
            key = f"posthoc/{name}/acc/balanced"
            assert found[f"{split}/{key}"] == pytest.approx(results[split][key])
    assert found["posthoc/tau_norm/tau"] == results["options"]["posthoc/tau_norm/tau"]
    assert found["test/acc/balanced"] == pytest.approx(results["test"]["acc/balanced"])


def test_without_a_run_in_mlflow_nothing_is_created(plain, data, tmp_path):
    stages.posthoc(plain, data / "plain", ["ncm"])
    assert not stages.track_posthoc(plain, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_synced_run_takes_its_results_along(plain, data, tmp_path):
    stages.posthoc(plain, data / "plain", ["ncm"])
    assert stages.sync(plain, data, tmp_path) == "plain"
    expected = read_posthoc(plain).as_metrics()
    assert expected and expected.items() <= logged(tmp_path, "plain").items()


def test_the_command_prints_the_run_and_every_method(validated, monkeypatch, capsys):
    printed = command(monkeypatch, capsys, str(validated), "--methods", "ncm,crt", "--methods", "tau_norm")
    lines = [line.split("  ")[0] for line in printed.splitlines()]
    assert [line for line in lines if line in {"the run itself", *POSTHOC}] == [
        "the run itself",
        "ncm",
        "crt",
        "tau_norm",
    ]
    assert "(by val)" in printed and "not logged" not in printed
    assert {"balanced", "many", "medium", "few"} <= {*printed.split()}


def test_the_command_says_that_mlflow_lacks_the_run(project, plain, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'empty.db'}")
    printed = command(monkeypatch, capsys, str(plain), "--methods", "ncm")
    assert "not logged: MLflow has no finished run of" in printed and "ncflow sync models/plain" in printed
    assert "not logged" not in command(monkeypatch, capsys, str(plain), "--methods", "ncm", "--no-track")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected a run folder"),
        (("models/plain", "--methods", "nmc"), "unknown post-hoc method 'nmc'. Did you mean 'ncm'"),
        (("models/nothing",), "no run folder at 'models/nothing'"),
        (("models/plain", "--pipeline"), "--pipeline reads everything from params.yaml; leave out folder"),
    ],
)
def test_a_wrong_call_is_one_message(plain, monkeypatch, capsys, words, message):
    assert message in command(monkeypatch, capsys, *words, code=65)


def test_a_report_has_the_methods_of_the_run(plain, data, tmp_path):
    stages.posthoc(plain, data / "plain", ["ncm", "crt"])
    page, table = stages.report([plain], tmp_path / "report", title="x")
    assert [row.cells[0] for row in table.rows] == ["linear", "linear, post hoc: ncm", "linear, post hoc: crt"]
    assert "linear, post hoc: crt" in page.read_text()


def test_measured_features_of_a_run_give_its_own_metrics(validated, data, tmp_path):
    file = stages.features(validated, data / "validated", tmp_path / "features.npz")
    measured = stages.measure([file], None, tmp_path / "out")
    logged = load_run(validated).analyses[-1]
    assert set(measured) == {"train", "val", "test"}
    for split, metrics in measured.items():
        assert metrics == {name: logged[split][name] for name in metrics}
        others = {name.split("/")[0] for name in logged[split].keys() - metrics.keys()}
        assert others <= {"posthoc", "head", "objective", "layers"}


def test_a_report_of_all_that_lies_in_models_skips_the_files_next_to_runs(plain, data, monkeypatch):
    stages.posthoc(plain, data / "plain", ["ncm"])
    reported = []
    monkeypatch.setattr(cli, "_report", lambda folders, *others: reported.extend(folders))
    monkeypatch.setattr(sys, "argv", ["ncflow", "report", str(plain), str(posthoc_file(plain))])
    with pytest.raises(SystemExit):
        cli.main()
    assert reported == [plain]


def test_the_pipelines_report_forgets_runs_that_left_the_grid(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("exp_name: main\ngrid: {head: [linear], loss: [ce], seed: [0]}\n")
    folder = tmp_path / "reports" / "main" / "posthoc"
    folder.mkdir(parents=True)
    for name in ("linear_ce_seed0", "linear_ce_seed7", "fixed_etf_ce_seed0"):
        (folder / f"{name}.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_report", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["ncflow", "report", "--pipeline"])
    with pytest.raises(SystemExit):
        cli.main()
    assert [file.name for file in folder.iterdir()] == ["linear_ce_seed0.json"]
