"""What a run leaves in MLflow, however it ends, wherever it was started and however many start together."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
import traceback
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pytest
import torch
from PIL import Image
from sqlalchemy import create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from ncflow import tracking
from ncflow.interruption import Interrupted, end_if_asked, interruptible, undisturbed
from ncflow.project import ROOT_MARKS, git_commit, project_root
from ncflow.tracking import stores
from ncflow.tracking.runs import _opened_run


class TinyClassifier(torch.nn.Module):
    """Pictures (B, H, W, C) uint8 -> logits (B, 4), with a batch norm that training mode would move."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU())
        self.head = torch.nn.Linear(6, 4, bias=False)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.backbone(pictures.permute(0, 3, 1, 2) / 255).mean(dim=(2, 3)))
        return logits


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_") and name not in stores._QUIET]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One project, and so one database, for the whole file; its name needs quoting in an address."""
    folder = tmp_path_factory.mktemp("project with 5%")
    (folder / "params.yaml").touch()
    return folder


def read(root: Path, run_id: str | None) -> Any:
    with tracking.store(root) as mlflow:
        return mlflow.get_run(run_id)


def artifacts_of(run: Any) -> Path:
    return Path(url2pathname(urlsplit(run.info.artifact_uri).path))


# Where runs are kept


@pytest.mark.parametrize("mark", ROOT_MARKS)
def test_the_project_root_is_the_nearest_marked_folder_upward(tmp_path: Path, mark: str) -> None:
    (tmp_path / mark).touch()
    (tmp_path / "inner" / "deep").mkdir(parents=True)
    assert project_root(tmp_path / "inner" / "deep") == tmp_path
    (tmp_path / "inner" / mark).touch()
    assert project_root(tmp_path / "inner" / "deep") == tmp_path / "inner"


def test_a_folder_of_no_project_is_its_own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path


@pytest.mark.parametrize("copy", [".dvc/tmp/exps/tmpab12", ".dvc/tmp/exps/standalone/tmpab12"])
@pytest.mark.parametrize("project", [".", "sub/project"])
def test_a_temporary_dvc_copy_uses_the_store_of_the_real_project(
    tmp_path: Path, copy: str, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / project, tmp_path / copy / project):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dvc.yaml").touch()
    inner, real = tmp_path / copy / project, tmp_path / project
    assert project_root(inner) == inner.resolve()
    assert tracking.tracking_uri(inner) == tracking.tracking_uri(real)
    assert stores.artifact_root(inner) == stores.artifact_root(real) == str(real.resolve() / "mlruns")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./kept")
    assert tracking.tracking_uri(inner) == (real.resolve() / "kept").as_uri()


@pytest.mark.parametrize("below", ["sub", "research/tails"])
@pytest.mark.parametrize("copy", [".dvc/tmp/exps/standalone/tmpabc", ".dvc/tmp/exps/tmpabc"])
def test_a_project_in_a_subfolder_of_its_repository_keeps_one_store(tmp_path: Path, below: str, copy: str) -> None:
    (tmp_path / ".git").mkdir()
    project = tmp_path / below
    inner = project / copy / below
    inner.mkdir(parents=True)
    for folder in (project, inner):
        (folder / "dvc.yaml").touch()
    assert tracking.tracking_uri(inner) == tracking.tracking_uri(project)
    assert stores.artifact_root(inner) == str(project / "mlruns")


def test_the_default_store_is_the_one_mlflow_uses_in_the_project(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    theirs = stores._import_mlflow().get_tracking_uri()
    assert stores.sqlite_file(tracking.tracking_uri(root)) == stores.sqlite_file(theirs)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("sqlite:///runs/a.db", "sqlite:////project/runs/a.db"),
        ("sqlite:////elsewhere/a.db", "sqlite:////elsewhere/a.db"),
        ("./mlruns", "file:///project/mlruns"),
        ("file:///elsewhere/mlruns", "file:///elsewhere/mlruns"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("postgresql://user@host/runs", "postgresql://user@host/runs"),
        ("databricks", "databricks"),
    ],
)
def test_a_relative_address_is_taken_from_the_root(given: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking.tracking_uri(Path("/project")) == meant


@pytest.mark.parametrize("before", ["http://127.0.0.1:9", None])
def test_leaving_a_store_restores_the_one_before(root: Path, before: str | None, monkeypatch: Any) -> None:
    uri = tracking.tracking_uri(root)
    with monkeypatch.context() as patch:
        patch.setattr(stores, "tracking_uri", lambda root: uri)
        if before:
            patch.setenv("MLFLOW_TRACKING_URI", before)
        with tracking.store(root) as mlflow:
            with tracking.store(root):
                pass
            assert mlflow.get_tracking_uri() == uri
        assert os.environ.get("MLFLOW_TRACKING_URI") == before
        if before:
            assert mlflow.get_tracking_uri() == before
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:10")
        assert mlflow.get_tracking_uri() == "http://127.0.0.1:10"  # the variable still decides


def test_artifacts_of_any_experiment_are_kept_in_the_project(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for experiment in ("Default", "imbalance"):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
        with tracking.start_run(root=root, name="a", config={}) as run:
            run.artifact(root / "params.yaml")
        kept = artifacts_of(read(root, run.run_id))
        assert kept.is_relative_to(root / "mlruns") and (kept / "params.yaml").is_file()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_eight_processes_starting_together_on_no_database_all_succeed_in_silence(tmp_path: Path) -> None:
    script = """
        import multiprocessing, sys
        from pathlib import Path
        from ncflow import tracking
        from ncflow.tracking import stores

        def start(number):
            together.wait()
            with tracking.start_run(root=Path(sys.argv[1]), name=f"run {number}", config={"seed": number}) as run:
                run.metrics({"loss": number}, step=0)

        stores._import_mlflow()
        import mlflow.store.tracking.sqlalchemy_store

        fork = multiprocessing.get_context("fork")
        together = fork.Barrier(8)
        processes = [fork.Process(target=start, args=(number,)) for number in range(8)]
        for process in processes: process.start()
        for process in processes: process.join()
        sys.exit(sum(process.exitcode != 0 for process in processes))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    environment = os.environ | {"MLFLOW_EXPERIMENT_NAME": "eight"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with tracking.store(tmp_path) as mlflow:
        runs = mlflow.search_runs(experiment_names=["eight"])
    assert sorted(runs["params.cfg.seed"]) == sorted("01234567") and set(runs["status"]) == {"FINISHED"}


@pytest.mark.slow
def test_a_database_whose_creation_was_killed_between_two_migrations_is_created_anew(tmp_path: Path) -> None:
    """Its own journal is still there, and so is that of a database which somebody has deleted."""
    script = """
        import os, signal, sys
        from pathlib import Path
        from alembic.runtime.migration import HeadMaintainer
        from ncflow import tracking

        def update(self, step):
            before(self, step)
            if "1bd49d398cd23" in self.heads:
                os.kill(os.getpid(), signal.SIGKILL)

        before, HeadMaintainer.update_to_step = HeadMaintainer.update_to_step, update
        with tracking.store(Path(sys.argv[1])):
            pass
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / "mlflow.db-journal").write_bytes(b"of another database" * 100)
    with tracking.start_run(root=tmp_path, name="again", config={}) as run:
        pass
    assert read(tmp_path, run.run_id).info.status == "FINISHED"
    assert {file.name for file in tmp_path.iterdir()} <= {"mlflow.db", "mlflow.db.lock"}


def test_a_database_that_cannot_be_completed_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    def fill_the_disk(*arguments: object) -> None:
        raise OperationalError("CREATE TABLE", None, Exception("database or disk is full"))

    stores._import_mlflow()
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._upgrade_db", fill_the_disk)
        with pytest.raises(OSError, match=r"mlflow.db cannot be opened: database or disk is full; fix it"):
            tracking.store(tmp_path).__enter__()
    assert {file.name for file in tmp_path.iterdir()} <= {"mlflow.db.lock"}


# What a run holds, and how it ends


def test_a_run_holds_its_config_its_tags_and_its_metrics_by_step(root: Path) -> None:
    config = {"train": {"lr": 0.1, "milestones": [1, 2]}, "seed": 3, "head": {"temperature": None}}
    with tracking.start_run(root=root, name="linear", config=config, tags={"seed": 3, "commit": None}) as run:
        for step in (0, 3):
            run.metrics({"test/nc1/pinv": 1.0 / (step + 1), "train/loss": 2.0}, step=step)
    held = read(root, run.run_id)
    assert held.data.params == {"cfg.train.lr": "0.1", "cfg.train.milestones": "[1, 2]", "cfg.seed": "3"}
    assert held.data.tags["seed"] == "3" and "commit" not in held.data.tags
    assert (held.info.run_name, held.info.status) == ("linear", "FINISHED")
    with tracking.store(root) as mlflow:
        history = mlflow.MlflowClient().get_metric_history(run.run_id, "test/nc1/pinv")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (3, 0.25)]


def test_neither_many_parameters_nor_long_ones_are_refused(root: Path) -> None:
    config = {"layers": {str(number): number for number in range(250)}, "names": "n" * 9000}
    with tracking.start_run(root=root, name="large", config=config) as run:
        pass
    params = read(root, run.run_id).data.params
    assert len(params) == 251 and set(params["cfg.names"]) == {"n"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("loss is not finite " + "!" * 9000), "FAILED"),
        (KeyboardInterrupt("stop"), "KILLED"),
        (SystemExit(3), "KILLED"),
    ],
)
def test_an_error_ends_the_run_and_keeps_what_was_logged(root: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), tracking.start_run(root=root, name="broken", config={}) as run:
        run.metrics({"loss": 1.0}, step=0)
        raise error
    held = read(root, run.run_id)
    assert held.info.status == status and held.data.metrics == {"loss": 1.0}
    assert held.data.tags["error"].startswith(f"{type(error).__name__}: {error}"[:100])


def test_a_terminated_process_ends_its_run_and_gets_its_signals_back(root: Path) -> None:
    with (
        pytest.raises(Interrupted) as stop,
        tracking.start_run(root=root, name="terminated", config={}) as run,
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert stop.value.code == 75
    assert read(root, run.run_id).info.status == "KILLED"
    assert read(root, run.run_id).data.tags["error"].endswith("rerun the same command")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class Deaf:
    """Its deletion is where SIGTERM comes, and where Python drops what that raises."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dropped_sigterm_is_remembered_and_the_next_one_handled() -> None:
    with pytest.raises(Interrupted), interruptible():
        end_if_asked()
        Deaf()
        with pytest.raises(Interrupted):
            end_if_asked()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    end_if_asked()  # of the signal before nothing is left


@pytest.mark.parametrize("number, error", [(signal.SIGTERM, Interrupted), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_drops_is_raised_at_the_next_look(number: int, error: type[BaseException]) -> None:
    class Dropping:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    with interruptible():
        Dropping()
        with pytest.raises(error):
            end_if_asked()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.parametrize("number, error", [(signal.SIGTERM, Interrupted), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_waits_for_the_end_of_what_must_not_be_disturbed(number: int, error: type[BaseException]) -> None:
    done = []
    with pytest.raises(error), interruptible():
        with undisturbed():
            os.kill(os.getpid(), number)
            time.sleep(0.1)
            done.append("written")
        done.append("never")
    assert done == ["written"]


def test_a_job_of_the_background_keeps_ignoring_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            end_if_asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_impatient_user_is_not_kept_waiting() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible(), undisturbed():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        pytest.fail("the third Ctrl-C is not waited for")


DEAF = """
import sys
from datetime import timedelta
from torch.distributed import TCPStore
from ncflow.interruption import interruptible, watched
store = TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=60))
with interruptible("it resumes"), watched(1.0):
    print("waiting", flush=True)
    store.get("what nobody sets")
"""


def test_sigterm_ends_a_process_that_waits_for_a_dead_peer() -> None:
    waiting = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert waiting.stdout is not None
    waiting.stdout.readline()
    time.sleep(0.5)
    waiting.terminate()
    _, said = waiting.communicate(timeout=20)
    assert waiting.returncode == 75
    assert "stopped by SIGTERM; it resumes, while it waited for another process" in said


WRITER = """
import sys
from pathlib import Path
from ncflow import tracking
from ncflow.interruption import end_if_asked, interruptible
with interruptible(), tracking.start_run(root=Path(sys.argv[1]), name="a", config={"a": 1}) as run:
    print(run.run_id, flush=True)
    for step in range(10**6):
        run.metrics({f"metric {k}": 0.5 for k in range(60)}, step)
        end_if_asked()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_while_logging_end_the_run_with_a_reason(root: Path, number: int) -> None:
    """An exception inside of a transaction left it open, and the last words waited for their own lock."""
    command = [sys.executable, "-c", WRITER, str(root)]
    for moment in range(3):
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert writer.stdout is not None
        run_id = writer.stdout.readline().strip()
        time.sleep(0.05 + 0.021 * moment)
        writer.send_signal(number)
        writer.wait(timeout=15)
        run = read(root, run_id)
        assert run.info.status == "KILLED"
        assert run.data.tags["error"].startswith(("Interrupted", "KeyboardInterrupt"))


def test_a_second_sigterm_does_not_disturb_the_clearing_up() -> None:
    cleared = []

    @contextmanager
    def clearing(what: str) -> Iterator[None]:
        try:
            yield
        finally:
            with suppress(ValueError):  # one that goes wrong in between
                raise ValueError(what)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            cleared.append(what)

    def jobs() -> Iterator[None]:
        with clearing("generator"):
            yield

    with pytest.raises(Interrupted), interruptible(), clearing("with"), closing(jobs()) as running:
        next(running)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except SystemExit:
            with clearing("except"):
                pass
            raise
    assert cleared == ["except", "generator", "with"]


def test_a_run_that_is_continued_loses_its_error(root: Path) -> None:
    config = {"seed": 1}
    with pytest.raises(OSError), tracking.start_run(root=root, name="resumed", config=config, attempt="7") as first:
        raise OSError("disk full")
    with tracking.start_run(root=root, name="resumed", config=config, attempt="7") as second:
        second.metrics({"loss": 0.5}, step=1)
    held = read(root, first.run_id)
    assert first.run_id == second.run_id and held.info.status == "FINISHED" and "error" not in held.data.tags


def test_another_attempt_and_a_deleted_run_get_a_run_of_their_own(root: Path) -> None:
    ids = []
    for attempt in ("8", "9", "9"):
        with tracking.start_run(root=root, name="attempt", config={}, attempt=attempt) as run:
            ids.append(run.run_id)
    assert ids[0] != ids[1] == ids[2]
    with tracking.store(root) as mlflow:
        mlflow.delete_run(ids[1])
    with tracking.start_run(root=root, name="attempt", config={}, attempt="9") as run:
        assert run.run_id not in ids


def test_what_is_said_again_after_an_interruption_is_there_once(root: Path, tmp_path: Path) -> None:
    """Killed between the parts of step 2, which is then done again, and goes on to step 3."""
    image, runs = np.zeros((8, 6, 3), np.uint8), []
    for steps in ((1, 2), (2, 3)):
        with tracking.start_run(root=root, name="again", config={}, attempt="again") as run:
            runs.append(run.run_id)
            run.dataset("digits", "d", tmp_path)
            for step in steps:
                run.metrics({"loss": step + 10 * (steps == (2, 3))}, step=step)
                run.images({"gram": image}, step=step)
                run.table({"class": [0, 1]}, "table.json", step=step)
            uri = run.model(TinyClassifier(), card=tracking.ModelCard())
    assert runs[0] == runs[1]
    held = read(root, runs[0])
    files = sorted(file.name for file in (artifacts_of(held) / "images").iterdir())
    with tracking.store(root) as mlflow:
        points = mlflow.MlflowClient().get_metric_history(runs[0], "loss")
        table = mlflow.load_table("table.json", run_ids=[runs[0]])
        models = mlflow.search_logged_models(filter_string=f"source_run_id = '{runs[0]}'", output_format="list")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 2.0), (3, 13.0)]
    assert [name[:11] for name in files] == [f"gram+step+{step}" for step in (1, 2, 3) for _ in (".png", ".webp")]
    assert list(table["step"]) == [1, 1, 2, 2, 3, 3]
    assert [model.model_uri for model in models] == [uri] and len(held.inputs.dataset_inputs) == 1


def test_a_model_that_was_left_incomplete_is_replaced(root: Path) -> None:
    with tracking.start_run(root=root, name="incomplete", config={}, attempt="incomplete") as run:
        run.mlflow.initialize_logged_model(name="model", source_run_id=run.run_id)
        uri = run.model(TinyClassifier(), card=tracking.ModelCard())
    with tracking.store(root) as mlflow:
        models = mlflow.search_logged_models(filter_string=f"source_run_id = '{run.run_id}'", output_format="list")
    assert [(model.model_uri, model.status) for model in models] == [(uri, "READY")]


def test_image_files_are_named_as_mlflow_names_them(root: Path) -> None:
    """The image grid finds key and step in the name; MLflow's own differ in time and random part only."""
    image = np.zeros((8, 600, 3), np.uint8)
    with tracking.start_run(root=root, name="names", config={}) as run:
        run.images({"ours": image}, step=3)
        run.mlflow.log_image(image, key="mlflows", step=3, synchronous=True)
        assert "mlflow.loggedImages" in read(root, run.run_id).data.tags
    folder = artifacts_of(read(root, run.run_id)) / "images"
    ours, theirs = (sorted(folder.glob(f"{key}+*")) for key in ("ours", "mlflows"))
    sizes = [[Image.open(file).size for file in files] for files in (ours, theirs)]
    plain = [[re.sub(r"\+timestamp\+\d+\+[0-9a-f-]{36}", "", file.name) for file in files] for files in (ours, theirs)]
    assert plain[0] == [name.replace("mlflows", "ours") for name in plain[1]] and sizes[0] == sizes[1]


def test_a_store_that_fails_is_named_and_hides_no_other_failure(root: Path, monkeypatch: Any) -> None:
    with tracking.store(root) as mlflow:
        full = mlflow.exceptions.MlflowException("database or disk is full")

    def fail(*args: object, **options: object) -> None:
        raise full

    failure = pytest.raises(OSError, match="MLflow's store failed, fix it .*: database or disk is full")
    with failure, tracking.start_run(root=root, name="full", config={}) as run, monkeypatch.context() as patch:
        patch.setattr(run.mlflow, "log_metrics", fail)
        run.metrics({"loss": 1.0}, step=1)
    assert read(root, run.run_id).info.status == "FAILED"
    first = pytest.raises(ValueError, match="the first failure")
    with monkeypatch.context() as patch, first, tracking.start_run(root=root, name="full", config={}) as run:
        patch.setattr(run.mlflow, "set_tags", fail)
        raise ValueError("the first failure")
    assert read(root, run.run_id).info.status == "FAILED"


def test_a_server_that_is_not_there_is_named_before_anything_is_logged(root: Path, monkeypatch: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    failure = pytest.raises(OSError, match=f"MLflow's store failed, fix it .*{address}")
    with failure, tracking.start_run(root=root, name="away", config={}, attempt="away"):
        pytest.fail("a run without a store")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    failure = pytest.raises(
        OSError, match=r"MLflow's store .*mlflow.db cannot be opened: file is not a database; fix it"
    )
    with failure, tracking.store(tmp_path):
        pytest.fail("a store without a database")


def test_a_locked_store_is_waited_for_from_the_start(root: Path) -> None:
    with tracking.store(root):
        engine = create_engine(tracking.tracking_uri(root))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 20_000  # milliseconds; SQLite's own: 5,000
    engine.dispose()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), "refused by the server"])
def test_artifacts_that_cannot_be_written_are_named_with_their_place(root: Path, monkeypatch: Any, error: Any) -> None:
    with tracking.start_run(root=root, name="artifacts", config={}) as run, monkeypatch.context() as patch:
        failure = run.mlflow.exceptions.MlflowException(error) if isinstance(error, str) else error
        where = run.mlflow.active_run().info.artifact_uri
        words = error if isinstance(error, str) else error.strerror

        def fail(*arguments: object) -> None:
            raise failure

        patch.setattr(run.mlflow, "log_artifact", fail)
        with pytest.raises(OSError, match=re.escape(f"cannot write MLflow's artifacts to {where}: {words}; make room")):
            run.artifact(root / "params.yaml")


@pytest.mark.parametrize("place", ["address", "variable"])
def test_no_message_and_no_tag_holds_a_password(root: Path, monkeypatch: Any, place: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    login = "me:se%40cret@" if place == "address" else ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{login}{host}")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "se@cret")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    failed = pytest.raises(OSError, match=f"{host}.*Start the server, or correct MLFLOW_TRACKING_URI")
    with failed as failure, tracking.store(root) as mlflow:
        mlflow.search_runs(["0"], output_format="list")
    shown = [line for line in traceback.format_exception(failure.value) if not line.startswith("  File")]
    assert "cret" not in "".join(shown)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ValueError, match="se@cret"), tracking.start_run(root=root, name="leaks", config={}) as run:
        raise ValueError("http://me:se@cret@host refused se@cret")
    assert "cret" not in read(root, run.run_id).data.tags["error"]


def test_a_database_that_refuses_is_asked_once(root: Path, monkeypatch: Any) -> None:
    asked = []

    def refuse(uri: str, **options: object) -> Any:
        asked.append(uri)
        raise OperationalError("", None, Exception("password authentication failed for user mlflow, secret"))

    monkeypatch.setattr("sqlalchemy.create_engine", refuse)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://mlflow:secret@db.example:5432/mlflow")
    failed = pytest.raises(OSError, match="db.example:5432.*Correct the user and the password")
    with failed as failure, tracking.store(root):
        pytest.fail("a store without a login")
    assert len(asked) == 1 and "secret" not in str(failure.value)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("API request failed with error code 401 != 200", "MLFLOW_TRACKING_PASSWORD"),
        ("403 Client Error: FORBIDDEN", "MLFLOW_TRACKING_PASSWORD"),
        ("500 Server Error: INTERNAL SERVER ERROR", "The server's log has the reason"),
        ("too many 500 error responses", "The server's log has the reason"),
        ("Max retries exceeded (Caused by ProtocolError('Connection aborted.'))", "The server's log has the reason"),
        ("Connection refused by 127.0.0.1:5000", "Start the server"),
        ("database is locked", ""),
    ],
)
def test_errors_of_a_server_come_with_advice(text: str, advice: str) -> None:
    assert advice in stores.advice_on(text) and bool(stores.advice_on(text)) == bool(advice)


def test_errors_of_a_bucket_are_messages_without_its_secret(root: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-key")
    error = type("ClientError", (Exception,), {"__module__": "botocore.exceptions"})
    with tracking.start_run(root=root, name="bucket", config={}) as run, monkeypatch.context() as patch:

        def fail(*arguments: object) -> None:
            raise error("NoSuchBucket: runs, secret-key")

        patch.setattr(run.mlflow, "log_artifact", fail)
        with pytest.raises(OSError, match="cannot write MLflow's artifacts to .*NoSuchBucket") as failure:
            run.artifact(root / "params.yaml")
    assert "secret-key" not in str(failure.value)


def test_keeping_a_failed_runs_files_hides_no_failure(root: Path, monkeypatch: Any) -> None:
    name, asked = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", []

    def fail(*arguments: object) -> None:
        asked.append(os.environ[name])
        raise OSError("away")

    for patience in ("7", None):
        monkeypatch.setenv(name, patience) if patience else monkeypatch.delenv(name)
        with tracking.start_run(root=root, name="kept", config={}) as run, monkeypatch.context() as patch:
            patch.setattr(run.mlflow, "log_artifacts", fail)
            run.keep(root)
        assert os.environ.get(name) == patience
    assert asked == ["1", "1"]


def test_the_opened_mlflow_run_is_taken_by_one_configuration(root: Path, monkeypatch: Any) -> None:
    with tracking.store(root) as mlflow:
        client = mlflow.MlflowClient()
        opened = client.create_run("0").info.run_id
        client.log_param(opened, "exp", "quickstart")
    taken = []
    for exp in ("linear", "fixed_etf"):
        monkeypatch.setenv("MLFLOW_RUN_ID", opened)
        with tracking.start_run(root=root, name=exp, config={"exp": exp}) as run:
            taken.append(run.run_id)
    assert taken[0] == opened != taken[1]
    assert read(root, opened).data.params == {"exp": "quickstart", "cfg.exp": "linear"}
    assert read(root, opened).info.run_name == "linear"


def test_a_process_that_does_not_log_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"source": tmp_path, "digest": "d", "model": TinyClassifier(), "step": 0}
    given |= {"card": tracking.ModelCard(), "values": {"loss": 1.0}, "columns": {"class": [0]}}
    given |= {"images": {"gram": np.zeros((2, 2, 3), np.uint8)}}
    with tracking.start_run(root=tmp_path, name="second process", config={}, enabled=False) as run:
        for name, method in inspect.getmembers(run, inspect.ismethod):
            wanted = [key for key, p in inspect.signature(method).parameters.items() if p.default is p.empty]
            if not name.startswith("_"):
                method(**{key: given.get(key, "x") for key in wanted})
    assert run.run_id is None and list(tmp_path.iterdir()) == []


# What a run logs besides numbers


def test_images_are_kept_by_key_and_step(root: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3)).astype(np.uint8)
    with tracking.start_run(root=root, name="images", config={}) as run:
        for step in (0, 3):
            run.images({"gram": image, "confusion": image}, step=step)
    folder = artifacts_of(read(root, run.run_id)) / "images"
    names = {file.name.partition("+timestamp+")[0] for file in folder.glob("*.png")}
    assert names == {f"{key}+step+{step}" for key in ("gram", "confusion") for step in (0, 3)}


def test_tables_of_several_runs_are_read_as_one(root: Path) -> None:
    runs = []
    for accuracy in ([0.9, 0.1], [0.8, 0.5]):
        with tracking.start_run(root=root, name="table", config={}) as run:
            run.table({"class": np.arange(2), "accuracy": accuracy}, "class_accuracy.json", step=0)
        runs.append(run.run_id)
    with tracking.store(root) as mlflow:
        table = mlflow.load_table("class_accuracy.json", run_ids=runs, extra_columns=["run_id"])
    assert table.groupby("run_id")["accuracy"].apply(list).to_dict() == {runs[0]: [0.9, 0.1], runs[1]: [0.8, 0.5]}


def test_files_and_folders_are_copied(root: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with tracking.start_run(root=root, name="files", config={}) as run:
        run.artifacts(tmp_path, "run")
        run.artifact(tmp_path / "metrics.json")
    kept = artifacts_of(read(root, run.run_id))
    assert (kept / "run" / "metrics.json").read_text() == (kept / "metrics.json").read_text() == "{}"


def test_the_data_version_is_an_input_of_the_run(root: Path, tmp_path: Path) -> None:
    with tracking.start_run(root=root, name="data", config={}) as run:
        run.dataset("digits-exp0.02", "0123456789abcdef" * 4, tmp_path)
    (version,) = read(root, run.run_id).inputs.dataset_inputs
    assert (version.dataset.name, version.dataset.digest) == ("digits-exp0.02", ("0123456789abcdef" * 4)[:36])
    assert json.loads(version.dataset.source) == {"uri": tmp_path.as_uri()} and [tag.value for tag in version.tags] == [
        "training"
    ]


def test_data_inside_of_the_project_have_a_relative_place(root: Path) -> None:
    with tracking.start_run(root=root, name="inside", config={}) as run:
        run.dataset("mine", "m", root / "data" / "mine")
    (version,) = read(root, run.run_id).inputs.dataset_inputs
    assert json.loads(version.dataset.source) == {"uri": "data/mine"}


def test_a_clock_that_is_set_back_gives_no_negative_duration(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    for fails in (False, True):
        with suppress(ZeroDivisionError), tracking.start_run(root=root, name="back", config={}) as run:
            monkeypatch.setattr(time, "time", lambda: now() - 7200)
            if fails:
                raise ZeroDivisionError
        monkeypatch.undo()
        info = read(root, run.run_id).info
        assert info.status == ("FAILED" if fails else "FINISHED")
        assert 0 <= info.end_time - info.start_time < 600_000


@pytest.mark.parametrize(
    ("remote", "kept"),
    [("/home/jane/ncflow", False), ("../ncflow", False), ("file:///home/jane/n", False), ("C:\\n", False)]
    + [("https://example.org/n.git", True), ("git@example.org:n.git", True), ("ssh://git@example.org/n", True)],
)
def test_a_git_remote_that_is_a_path_is_not_logged(root: Path, monkeypatch: Any, remote: str, kept: bool) -> None:
    from mlflow.tracking.context.git_context import GitRunContext

    tags = {"mlflow.source.git.commit": "c" * 40, "mlflow.source.git.repoURL": remote}
    monkeypatch.setattr(GitRunContext, "_git_info", tags)
    with tracking.start_run(root=root, name="cloned", config={}) as run:
        uri = run.model(TinyClassifier(), card=tracking.ModelCard()) if not kept else ""
    found = [read(root, run.run_id).data.tags]
    if uri:
        with tracking.store(root) as mlflow:
            found.append(mlflow.get_logged_model(uri.removeprefix("models:/")).tags)
    for logged in found:
        assert logged["mlflow.source.git.commit"] == "c" * 40
        assert ("mlflow.source.git.repoURL" in logged) == kept


def test_two_runs_that_log_one_data_version_together_both_have_it(root: Path, tmp_path: Path) -> None:
    with tracking.store(root) as mlflow:
        origin = mlflow.data.sources.LocalArtifactDatasetSource(tmp_path.as_uri())
        version = mlflow.data.meta_dataset.MetaDataset(origin, name="shared", digest="d" * 36)
    raced, inputs = [], [mlflow.entities.DatasetInput(version._to_mlflow_entity())]

    def log_in_another_run(session: Session, *_: object) -> None:
        if not raced and any(row.__tablename__ == "datasets" for row in session.new):  # looked for, and not found
            raced.append(session)
            mlflow.MlflowClient().log_inputs(other.info.run_id, inputs)

    with tracking.start_run(root=root, name="first", config={}) as run:
        other = mlflow.MlflowClient().create_run("0")
        event.listen(Session, "before_flush", log_in_another_run)
        run.dataset("shared", "d" * 64, tmp_path)
        event.remove(Session, "before_flush", log_in_another_run)
    assert raced
    for run_id in (run.run_id, other.info.run_id):
        assert [version.dataset.name for version in read(root, run_id).inputs.dataset_inputs] == ["shared"]


def test_a_store_that_refuses_a_row_for_good_is_an_error(root: Path) -> None:
    calls = []
    with tracking.store(root) as mlflow:

        def refuse():
            calls.append(None)
            raise mlflow.exceptions.MlflowException(texts[0])

        for texts, expected in ((["UNIQUE constraint failed: t.a"], 9), (["database is locked"], 1)):
            calls.clear()
            with pytest.raises(mlflow.exceptions.MlflowException, match=texts[0]):
                stores.write_shared(mlflow, refuse)
            assert len(calls) == expected


def test_the_logged_model_classifies_as_the_classifier_does(root: Path) -> None:
    classifier = TinyClassifier().train()
    with tracking.start_run(root=root, name="model", config={}) as run:
        uri = run.model(classifier, card=tracking.ModelCard())
    assert classifier.training
    classifier.eval()
    with tracking.store(root) as mlflow:
        loaded, server = mlflow.pytorch.load_model(uri), mlflow.pyfunc.load_model(uri)
    assert loaded.state_dict().keys() == classifier.state_dict().keys()
    for batch, height, width in ((1, 8, 8), (5, 9, 30)):
        pictures = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)
        torch.testing.assert_close(loaded(pictures), classifier(pictures))
        np.testing.assert_allclose(server.predict(pictures.numpy()), classifier(pictures).detach(), rtol=1e-5)
    with pytest.raises(Exception, match="uint8"):  # pictures that somebody has normalized
        server.predict(np.zeros((1, 8, 8, 3), np.float32))


def test_a_model_that_fits_in_no_temporary_folder_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tracking.start_run(root=root, name="full", config={}) as run:
        monkeypatch.setattr("ncflow.tracking.runs.disk_usage", lambda folder: SimpleNamespace(free=1000))
        with pytest.raises(OSError, match="cannot write .*needs .* bytes there, and 1000 are free; make room"):
            run.model(TinyClassifier(), card=tracking.ModelCard())


def test_an_unknown_run_is_named_without_the_stores_password(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    with tracking.store(root) as mlflow:
        monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://u:sEcret9@127.0.0.1:1")
        with pytest.raises(ValueError, match="expected MLFLOW_RUN_ID to name a run in http://u:…@") as failure:
            _opened_run(mlflow)
    assert "sEcret9" not in "".join(traceback.format_exception(failure.value))


def test_a_model_has_its_card_its_data_and_its_steps_metrics(root: Path, tmp_path: Path) -> None:
    card = tracking.ModelCard("drift_0.1", "of digits", {"head": "linear"}, {"class_names": ["é", "b"], "top": 0.5})
    with tracking.start_run(root=root, name="drift_0.1", config={"seed": 3}) as run:
        run.dataset("digits", "d" * 64, tmp_path)
        for step in (1, 2):
            run.metrics({"test/acc/overall": step / 4, "fit/loss": 1.0 / step}, step=step)
        uri = run.model(TinyClassifier(), card=card, step=2)
    with tracking.store(root) as mlflow:
        held = mlflow.get_logged_model(uri.removeprefix("models:/"))
        metadata = mlflow.pyfunc.load_model(uri).metadata
        points = mlflow.MlflowClient().get_metric_history(run.run_id, "test/acc/overall")
    assert (held.name, held.params["cfg.seed"], held.source_run_id) == ("drift_0_1", "3", run.run_id)
    assert held.tags["mlflow.note.content"] == "of digits" and held.tags["head"] == "linear"
    assert not held.tags["mlflow.user"] and os.sep not in held.tags["mlflow.source.name"]  # names stay home
    assert (metadata.metadata, metadata.run_id) == (card.metadata, run.run_id)
    linked = {metric.key: (metric.step, metric.value, metric.dataset_name) for metric in held.metrics}
    assert linked == {"test/acc/overall": (2, 0.5, "digits"), "fit/loss": (2, 0.5, None)}
    assert [(point.step, point.value) for point in points] == [(1, 0.25), (2, 0.5)]  # and none twice


def test_each_run_registers_one_version_of_its_model(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ids = []
    for attempt in ("first", "first", "second"):  # the first is done again after an interruption
        with tracking.start_run(root=root, name="registered", config={}, attempt=f"registered-{attempt}") as run:
            card = tracking.ModelCard(description=f"of {attempt}", register="my model")
            run.model(TinyClassifier(), card=card)
            ids.append(run.run_id)
    with tracking.store(root) as mlflow:
        client = mlflow.MlflowClient()
        versions = client.search_model_versions("name = 'my model'", order_by=["version_number ASC"])
        loaded = mlflow.pytorch.load_model("models:/my model/2")
    assert [version.run_id for version in versions] == [ids[0], ids[2]]
    assert [version.description for version in versions] == ["of first", "of second"]
    assert loaded(torch.zeros(1, 8, 8, 3, dtype=torch.uint8)).shape == (1, 4)
    assert capfd.readouterr() == ("", "")


# Around the runs


def test_mlflow_and_torch_are_imported_on_first_use_only() -> None:
    heavy = "import sys, ncflow.tracking; sys.exit(any(name in sys.modules for name in ('mlflow', 'torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", heavy]).returncode == 0


def test_the_commit_says_whether_the_tree_is_dirty(tmp_path: Path) -> None:
    def git(*command: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *command], cwd=tmp_path, capture_output=True, text=True).stdout.strip()

    assert git_commit(tmp_path) is None
    git("init")
    assert git_commit(tmp_path) is None
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "a tag, which is not the hash")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "untracked").touch()
    assert git_commit(tmp_path) == commit and len(commit) == 40
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"


def test_the_ui_refuses_a_port_in_use_and_a_remote_store(root: Path, monkeypatch: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} .* in use"), tracking.ui(root, port=port):
            pass
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    with pytest.raises(ValueError, match="open http://tracking.example"), tracking.ui(root):
        pass


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_the_ui_answers_once_entered_and_is_gone_after_leaving(root: Path) -> None:
    port = free_port()
    with tracking.ui(root, port=port) as (server, address):
        assert server.poll() is None and address == tracking.ui_address(port)
        with urllib.request.urlopen(address) as page:
            assert b"MLflow" in page.read()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["--experiment", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"])
def test_the_ui_opens_on_the_experiment_that_is_meant(root: Path, asked: str, monkeypatch: Any) -> None:
    with tracking.store(root) as mlflow:
        name = f"tails {asked}"
        number = mlflow.create_experiment(name)
    if asked != "--experiment":
        monkeypatch.setenv(asked, number if asked.endswith("ID") else name)
    monkeypatch.setattr(tracking.pages, "_wait_for", lambda *_: None)  # the address is known before it answers
    with tracking.ui(root, port=free_port(), experiment=name if asked == "--experiment" else None) as (_, address):
        assert f"/experiments/{number}/" in address
    with tracking.store(root) as mlflow:
        assert "mlflow.sharedViewState.ncflow" in mlflow.get_experiment(number).tags


@pytest.mark.parametrize(
    ("environment", "start"),
    [
        ({}, "http://127.0.0.1:5000/#/experiments/0/runs?workflowType=machine_learning&"),
        ({"MLFLOW_EXPERIMENT_ID": "7"}, "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning&"),
        (
            {"MLFLOW_TRACKING_URI": "https://ann:secret@host:8443/mlflow/"},
            "https://host:8443/mlflow/#/experiments/0/runs?workflowType=machine_learning&",
        ),
        ({"MLFLOW_EXPERIMENT_NAME": "tails"}, None),
    ],
)
def test_the_address_of_runs_is_their_servers_without_a_password(environment, start, root: Path, monkeypatch: Any):
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    address = tracking.runs_address(root, {"config": "12ab", "snapshot": "34cd"})
    assert address == (
        start and f"{start}searchFilter=tags.config%20%3D%20%2712ab%27%20and%20tags.snapshot%20%3D%20%2734cd%27"
    )


def test_a_missing_or_deleted_experiment_is_refused_by_name(root: Path, monkeypatch: Any) -> None:
    with tracking.store(root) as mlflow:
        number = mlflow.create_experiment("gone")
        mlflow.delete_experiment(number)
    restore = rf"'gone' was deleted.*experiments restore --experiment-id {number}"
    with pytest.raises(ValueError, match=restore), tracking.ui(root, experiment="gone"):
        pass
    absent = pytest.raises(ValueError, match="no experiment 'other' of --experiment.*Default")
    with absent, tracking.ui(root, experiment="other"):
        pass
    for variable, value in (("MLFLOW_EXPERIMENT_NAME", "gone"), ("MLFLOW_EXPERIMENT_ID", number)):
        monkeypatch.setenv(variable, value)
        with pytest.raises(ValueError, match=restore), tracking.start_run(root=root, name="a", config={}):
            pass
        monkeypatch.delenv(variable)


@pytest.mark.parametrize("deleted", ["run", "experiment"])
def test_a_deletion_during_training_is_named_with_the_restore_command(
    root: Path, deleted: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"doomed {deleted}")
    said = pytest.raises(ValueError, match=rf"{deleted} '.*' was deleted.*{deleted}s restore --{deleted}-id")
    with said, tracking.start_run(root=root, name="mine", config={}, attempt=f"doomed {deleted}") as run:
        run.metrics({"loss": 1.0}, step=1)
        if deleted == "run":
            run.mlflow.delete_run(run.run_id)
        else:
            run.mlflow.delete_experiment(run.mlflow.active_run().info.experiment_id)
        run.metrics({"loss": 0.5}, step=2)
    with tracking.store(root) as mlflow:  # as the message says
        if deleted == "run":
            mlflow.MlflowClient().restore_run(run.run_id)
        else:
            mlflow.MlflowClient().restore_experiment(mlflow.get_run(run.run_id).info.experiment_id)
    with tracking.start_run(root=root, name="mine", config={}, attempt=f"doomed {deleted}") as again:
        again.metrics({"loss": 0.5}, step=2)
    assert again.run_id == run.run_id


COMMANDS = {
    "the project's own": ({}, f"`uv run ncflow ui`, then {tracking.ui_address()}"),
    "an experiment": ({"MLFLOW_EXPERIMENT_NAME": "my tails"}, "`uv run ncflow ui --experiment 'my tails'`"),
    "the usual one": ({"MLFLOW_EXPERIMENT_ID": "0"}, f"`uv run ncflow ui`, then {tracking.ui_address()}"),
    "another store": (
        {"MLFLOW_TRACKING_URI": "sqlite:////else where/a.db"},
        f"`MLFLOW_TRACKING_URI='sqlite:////else where/a.db' uv run ncflow ui`, then {tracking.ui_address()}",
    ),
    "a server": ({"MLFLOW_TRACKING_URI": "https://me:secret@tracking.example"}, "open https://me:…@tracking.example"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_the_hint_opens_the_store_and_the_experiment_that_were_used(tmp_path, case, monkeypatch) -> None:
    variables, command = COMMANDS[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert tracking.ui_command(tmp_path) == command


def test_the_hint_names_the_project_where_it_is_another_folder(tmp_path, monkeypatch) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path)
    assert tracking.ui_command(tmp_path / "project").startswith(f"`uv run ncflow ui` in {tmp_path / 'project'}, then")


def test_a_store_without_its_driver_is_one_message_with_the_install_command(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@127.0.0.1:1/runs")
    for driver in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, driver, None)  # as where it is not installed
    message = r"postgresql://… needs the package psycopg.*uv pip install '?psycopg"
    with pytest.raises(ValueError, match=message) as error, tracking.start_run(root=tmp_path, name="a", config={}):
        pass
    assert "secret" not in str(error.value)


def test_an_unknown_run_of_the_environment_is_told_by_its_variable(root: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    unknown = pytest.raises(ValueError, match=f"MLFLOW_RUN_ID to name a run in .*, got '{'0' * 32}'")
    with unknown, tracking.start_run(root=root, name="a", config={}):
        pass
