"""A project that moves takes its store along; what lies elsewhere for a reason stays there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ncflow import tracking
from ncflow.tracking import stores

SIGNS = ["plain", "J Smith", "é", "50%", "%41", "a#b", "a?b", "a&b=c;d", "'quoted'", "a+b", "[x]", "汉字"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_") and name not in stores._QUIET]:
        monkeypatch.delenv(name)


def project(folder: Path, *, model: bool = False) -> tuple[Path, str]:
    """A project with one run, and that run's ID."""
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text("a: 1")
    with tracking.start_run(root=folder, name="mine", config={}) as run:
        run.artifact(folder / "params.yaml")
        if model:
            run.model(Small(), card=tracking.ModelCard())
    return folder, str(run.run_id)


class Small(torch.nn.Module):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.float().mean((1, 2))


def artifacts(root: Path, run_id: str) -> list[str]:
    with tracking.store(root) as mlflow:
        return [Path(file.path).name for file in mlflow.artifacts.list_artifacts(run_id=run_id)]


def first_metrics_of(root: Path, run_id: str) -> str:
    """The place of a run's artifacts, as MLflow has it."""
    with tracking.store(root) as mlflow:
        return str(mlflow.get_run(run_id).info.artifact_uri)


@pytest.mark.parametrize("sign", SIGNS)
def test_a_project_lives_and_moves_below_folders_of_any_name(tmp_path: Path, sign: str) -> None:
    root, run_id = project(tmp_path / sign / "proj")
    assert artifacts(root, run_id) == ["params.yaml"]
    assert [file.name for file in tmp_path.iterdir()] == [sign]  # and no folder of a quoted name
    moved = root.rename(tmp_path / sign / "else where %20#")
    assert artifacts(moved, run_id) == ["params.yaml"]
    with tracking.start_run(root=moved, name="next", config={}) as run:
        run.artifact(moved / "params.yaml")
    assert artifacts(moved, str(run.run_id)) == ["params.yaml"]
    assert [file.name for file in (tmp_path / sign).iterdir()] == [moved.name]


@pytest.mark.slow
@pytest.mark.parametrize("sign", ["plain", "50% [a#b?]"])
def test_a_logged_model_is_loaded_after_a_move(tmp_path: Path, sign: str) -> None:
    root, run_id = project(tmp_path / sign / "old", model=True)
    root = root.rename(tmp_path / sign / "new")
    with tracking.store(root) as mlflow:
        (model,) = mlflow.search_logged_models(["0"], output_format="list")
        pictures = torch.ones(2, 4, 5, 3, dtype=torch.uint8)
        assert mlflow.pytorch.load_model(model.model_uri)(pictures).shape == (2, 3)
    assert "old" not in (root / "mlruns" / "0" / "models" / model.model_id / "artifacts" / "MLmodel").read_text()


def test_the_store_before_a_move_is_kept_and_reported_once(tmp_path: Path, caplog: Any) -> None:
    root, run_id = project(tmp_path / "old")
    root = root.rename(tmp_path / "new")
    caplog.clear()
    artifacts(root, run_id)
    (line,) = (record.getMessage() for record in caplog.records)
    assert f"has moved from {tmp_path / 'old'} to {tmp_path / 'new'}: 2 paths" in line
    (backup,) = root.glob("mlflow.db.before-move-*")
    assert backup.name in line
    caplog.clear()
    artifacts(root, run_id)
    assert not caplog.records


def test_a_copy_has_its_own_files_and_leaves_the_original_alone(tmp_path: Path) -> None:
    root, run_id = project(tmp_path / "old")
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    assert first_metrics_of(copy, run_id).startswith(str(copy))
    with tracking.start_run(root=copy, name="next", config={}) as run:
        run.artifact(copy / "params.yaml")
    assert first_metrics_of(copy, str(run.run_id)).startswith(str(copy))
    assert first_metrics_of(root, run_id).startswith(str(root))
    assert len(list((root / "mlruns" / "0").iterdir())) == 1


def test_a_store_copied_without_files_reads_old_and_writes_own_ones(tmp_path: Path) -> None:
    root, run_id = project(tmp_path / "old")
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(root / "mlflow.db", copy)
    (copy / "mlruns").mkdir()
    (copy / "mlruns" / "0").mkdir()
    assert first_metrics_of(copy, run_id).startswith(str(root))
    with tracking.start_run(root=copy, name="next", config={}) as run:
        pass
    assert first_metrics_of(copy, str(run.run_id)).startswith(str(copy))


def test_a_place_that_the_user_chose_stays(tmp_path: Path) -> None:
    root, _ = project(tmp_path / "old")
    with tracking.store(root) as mlflow:
        number = mlflow.create_experiment("big", artifact_location=str(tmp_path / "disk" / "mlruns" / "big"))
        far = mlflow.create_experiment("far", artifact_location="s3://bucket/mlruns/7")
    root = root.rename(tmp_path / "new")
    with tracking.store(root) as mlflow:
        assert mlflow.get_experiment("0").artifact_location == str(root / "mlruns" / "0")
        assert mlflow.get_experiment(number).artifact_location == str(tmp_path / "disk" / "mlruns" / "big")
        assert mlflow.get_experiment(far).artifact_location == "s3://bucket/mlruns/7"


def test_a_store_that_projects_share_follows_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    root, run_id = project(tmp_path / "one")
    project(tmp_path / "two")
    assert first_metrics_of(tmp_path / "two", run_id).startswith(str(root))


def test_a_store_elsewhere_follows_the_project_that_brings_its_files(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'out' / 'shared.db'}")
    root, run_id = project(tmp_path / "old")
    moved = root.rename(tmp_path / "new")
    assert artifacts(moved, run_id) == ["params.yaml"]
    with tracking.start_run(root=moved, name="next", config={}) as run:
        run.artifact(moved / "params.yaml")
    assert artifacts(moved, str(run.run_id)) == ["params.yaml"]
    assert {file.name for file in tmp_path.iterdir()} == {"new", "out"}
    assert list((tmp_path / "out").glob("shared.db.before-move-*"))


def test_a_shared_store_whose_files_are_gone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    root, run_id = project(tmp_path / "one")
    shutil.rmtree(root)
    refused = pytest.raises(
        OSError, match=f"keeps its files in {root}/mlruns, but {root} does not exist.*EXPERIMENT_NAME"
    )
    with refused:
        project(tmp_path / "two")
    assert not root.exists()
    assert artifacts(tmp_path / "two", run_id) == []  # looking is no harm
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    root, run_id = project(tmp_path / "three")
    assert first_metrics_of(root, run_id).startswith(str(root))


def test_a_folder_whose_models_mlflow_cannot_load_is_named(tmp_path: Path, caplog: Any) -> None:
    project(tmp_path / "50% of #7")
    assert not caplog.records
    project(tmp_path / "a%20b")
    assert "MLflow cannot load models" in caplog.text and "'%20'" in caplog.text


def test_a_project_moves_with_a_database_of_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/a b.db")
    root, run_id = project(tmp_path / "old")
    assert artifacts(root.rename(tmp_path / "new"), run_id) == ["params.yaml"]


def test_a_store_that_may_not_be_written_is_read_and_left_alone(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    root, run_id = project(tmp_path / "old")
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    (root / "mlflow.db.lock").unlink()
    monkeypatch.setattr(stores, "is_writable", lambda uri: False)  # the tests may run as root, who may write anything
    assert artifacts(root, run_id) == ["params.yaml"]
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*") if file != root} == {
        file: time for file, time in before.items() if file.name != "mlflow.db.lock"
    }
    root = root.rename(tmp_path / "new")
    assert artifacts(root, run_id) == []
    assert "may not be written" in caplog.text
    assert not list(root.glob("*.before-move-*"))
