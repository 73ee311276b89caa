"""A trained model takes pictures: predictions, the model in MLflow and programs agree with training's evaluation."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ncflow import cli, deploy, stages, tracking
from ncflow.nn import posthoc_adjustment
from ncflow.nn.exports import FORMATS
from ncflow.params import make_params
from ncflow.runs.reader import load_run
from ncflow.trained import load_trained

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
COUNTS = {"ant": 6, "bee": 4, "wasp": 2}  # training pictures; more for the test split, in another order of sizes


class Trial:
    """A project with pictures of various sizes and a run of one epoch."""

    def __init__(self, root: Path, *, gray: bool) -> None:
        self.root, self.gray = root, gray
        (root / "params.yaml").touch()
        self.files = [file for split in ("train", "test") for file in self.write(split)][-9:]  # of the test split
        source = {"name": "imagefolder", "root": str(root / "pictures"), "imb_factor": -1}
        train = {"epochs": 1, "batch_size": 4, "precision": "fp32", "device": "cpu", "save_logits": True}
        train |= {"augment": ["random_resized_crop"]} if gray else {}  # which stores a margin around test pictures
        values = {"exp_name": "mine.0", "dataset": source, "train": train, "model": {"name": "resnet20"}}
        values["model"] |= {"image_size": 16} if gray else {}
        params = make_params(values)
        self.folder = stages.train(params, folder=root / "models" / "mine.0", data=root / "data" / "s", root=root)
        self.logits = load_run(self.folder).dump["logits"]

    def write(self, split: str) -> list[Path]:
        """Noise around another shade for each class, in several formats."""
        random = np.random.default_rng(split == "test")
        files = []
        for shade, (name, count) in enumerate(COUNTS.items()):
            folder = self.root / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(3 if split == "test" else count):
                shape = (*random.integers(9, 50, 2).tolist(), 3)[: 2 if self.gray else 3]
                file = folder / f"{number}.{('png', 'jpg', 'bmp')[number % 3]}"
                Image.fromarray(random.integers(60 * shade, 60 * shade + 120, shape, dtype=np.uint8)).save(file)
                files.append(file)
        return files

    @property
    def pictures(self) -> list[np.ndarray]:
        """The test pictures (1, H, W, C)."""
        return [np.array(Image.open(file))[None].reshape(1, *Image.open(file).size[::-1], -1) for file in self.files]


@pytest.fixture(scope="module", params=["gray", "colour"])
def trial(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.chdir(root)
        yield Trial(root, gray=request.param == "gray")


@pytest.fixture
def older(trial: Trial, tmp_path: Path) -> Path:
    """The run, as a version wrote it that did not keep how pictures are normalized."""
    folder = Path(shutil.copytree(trial.folder, tmp_path / "mine.0"))
    values = json.loads((folder / "provenance.json").read_text())
    del values["preprocessing"]
    (folder / "provenance.json").write_text(json.dumps(values))
    return folder


def logged_model(root: Path) -> Any:
    """The model in a project's store, as a server loads it."""
    with tracking.store(root) as mlflow:
        (model,) = mlflow.search_logged_models(["0"], output_format="list")
        return mlflow.pyfunc.load_model(model.model_uri)


def assert_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.slow
def test_the_logged_model_gives_the_logits_of_training_on_each_test_picture(trial: Trial) -> None:
    server = logged_model(trial.root)
    assert_alike(torch.cat([torch.from_numpy(server.predict(picture)) for picture in trial.pictures]), trial.logits)
    facts = server.metadata.metadata
    assert (facts["run"], facts["dataset"], facts["class_names"]) == ("mine.0", "imagefolder", list(COUNTS))


@pytest.mark.slow
def test_predictions_are_those_of_evaluation_without_the_snapshot(trial: Trial, tmp_path: Path) -> None:
    found = deploy.predict(trial.folder, [trial.root / "pictures" / "test"], tmp_path)
    names = list(COUNTS)
    assert [row["file"] for row in found.rows] == [str(file) for file in trial.files]
    assert [row["class"] for row in found.rows] == [names[index] for index in trial.logits.argmax(1).tolist()]
    confidences = trial.logits.double().softmax(1).amax(1).tolist()
    assert [float(row["confidence"]) for row in found.rows] == pytest.approx(confidences, abs=1e-3)
    tau = load_run(trial.folder).final("test/posthoc/logit_adjustment/tau")
    adjusted = posthoc_adjustment(trial.logits, list(COUNTS.values()), tau=tau).argmax(1)
    assert [row["adjusted_class"] for row in found.rows] == [names[index] for index in adjusted.tolist()]
    assert not found.damaged and not found.notes


@pytest.mark.slow
def test_sync_logs_the_same_model_without_the_snapshot(trial: Trial, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    assert stages.sync(trial.folder, tmp_path, tmp_path) == "mine.0"
    server = logged_model(tmp_path)
    assert_alike(torch.cat([torch.from_numpy(server.predict(picture)) for picture in trial.pictures]), trial.logits)


@pytest.mark.slow
def test_an_older_run_needs_its_snapshot_to_take_pictures(trial: Trial, older: Path, tmp_path: Path) -> None:
    found = deploy.predict(older, trial.files, trial.root / "data")
    assert found == deploy.predict(trial.folder, trial.files, tmp_path)
    with pytest.raises(ValueError, match="of an older ncflow and does not hold how its pictures were normalized"):
        deploy.predict(older, trial.files, tmp_path)


@pytest.mark.slow
def test_an_older_run_without_snapshot_logs_no_model(
    older: Path, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    with caplog.at_level(logging.WARNING, logger="ncflow"):
        stages.sync(older, tmp_path, tmp_path)
    assert "no model is logged" in caplog.text
    with tracking.store(tmp_path) as mlflow:
        assert not mlflow.search_logged_models(["0"], output_format="list")


@pytest.mark.slow
def test_evaluation_resizes_as_the_training_did_wherever_pixels_are(trial: Trial, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trial.folder, tmp_path / "mine.0"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"] = {"workers": 2, "resident_bytes": 0}  # training stored them
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["preprocessing"]["resizing"] == ("float32" if trial.gray else "uint8")
    assert set(provenance["storage"]) == {"train", "test"}
    assert stages.evaluate(folder, trial.root / "data" / "s", tmp_path / "out.json")  # equal to the last bit
    if not trial.gray:
        provenance["preprocessing"]["resizing"] = "float32"
        (folder / "provenance.json").write_text(json.dumps(provenance))
        with pytest.raises(ValueError, match="of the checkpoint is"):
            stages.evaluate(folder, trial.root / "data" / "s", tmp_path / "out.json")


@pytest.mark.slow
def test_damaged_pictures_are_named_and_the_others_classified(
    trial: Trial, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    folder = Path(shutil.copytree(trial.root / "pictures" / "test" / "ant", tmp_path / "new"))
    (folder / "1.jpg").write_bytes(trial.files[1].read_bytes()[:40])
    (folder / "notes.txt").write_text("no picture")
    words = ["predict", str(trial.folder), str(folder), str(trial.files[4]), "--csv", str(tmp_path / "a" / "b.csv")]
    monkeypatch.setattr(sys, "argv", ["ncflow", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    out, err = capsys.readouterr()
    assert exit_.value.code == 65 and "1 of 4 pictures cannot be read" in err and f"{folder / '1.jpg'}: " in err
    with (tmp_path / "a" / "b.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names, order = list(COUNTS), trial.logits.argmax(1).tolist()
    assert [row["file"] for row in rows] == [str(folder / "0.png"), str(folder / "2.bmp"), str(trial.files[4])]
    assert [row["class"] for row in rows] == [names[order[index]] for index in (0, 2, 4)]
    assert all(" ".join(row.values()) in " ".join(out.split()) for row in rows)


@pytest.mark.parametrize(
    ("loss", "columns", "reason"),
    [
        ("balanced_softmax", ["file", "class", "confidence"], "has corrected the class sizes already"),
        ("mse", ["file", "class"], "are not log-probabilities"),
    ],
)
def test_columns_without_a_meaning_are_left_out_with_a_reason(
    trial: Trial, tmp_path: Path, loss: str, columns: list[str], reason: str
) -> None:
    folder = Path(shutil.copytree(trial.folder, tmp_path / "other"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["train"]["loss"] = loss
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    found = deploy.predict(folder, trial.files, tmp_path)
    assert list(found.rows[0]) == columns and all(reason in note for note in found.notes) and found.notes


def test_paths_without_pictures_are_refused_before_anything_loads(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no picture .*nowhere; expected files, or folders of pictures"):
        deploy.predict(tmp_path, [tmp_path / "nowhere"], tmp_path)
    with pytest.raises(ValueError, match=r"has no picture; expected suffixes \.png"):
        deploy.predict(tmp_path, [tmp_path], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_an_exported_run_gives_the_logits_of_training(trial: Trial, tmp_path: Path, kind: str) -> None:
    file = deploy.export(trial.folder, tmp_path, tmp_path / "out" / f"mine.{kind}", kind)
    run = FORMATS[kind].read(file)
    found = torch.cat([run(torch.from_numpy(picture)) for picture in trial.pictures]).detach()
    if kind == "pt2":
        assert_alike(found, trial.logits)
    torch.testing.assert_close(found, trial.logits, rtol=1e-2, atol=1e-2 * float(trial.logits.abs().max()))
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_an_export_removes_what_a_killed_one_left(trial: Trial, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(deploy, "export_model", lambda model, file, kind, facts: file.write_bytes(b"whole"))
    left = tmp_path / ".mine.pt2-abcd0123"
    left.mkdir()
    (left / "model.pt2").write_bytes(b"half")
    os.utime(left, (0, 0))
    file = deploy.export(trial.folder, tmp_path, tmp_path / "mine.pt2", "pt2")
    assert file.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [("config.yaml", "foo: 1", "unknown key 'foo'"), ("config.yaml", "grid: null", "grid: Input should be a valid")]
    + [("provenance.json", "[]", "expected a mapping as the provenance")],
)
def test_a_damaged_file_of_the_run_is_named(trial: Trial, tmp_path: Path, file: str, change: str, words: str) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(trial.folder, folder)
    before = "" if change == "[]" else (folder / file).read_text() + "\n"
    (folder / file).write_text(before + change)
    with pytest.raises(ValueError, match=words) as failure:
        load_trained(folder)
    assert str(folder / file) in str(failure.value)


def test_a_program_that_fails_its_check_is_not_left(trial: Trial, tmp_path: Path, monkeypatch: Any) -> None:
    write = FORMATS["pt2"].write
    row = FORMATS["pt2"]._replace(
        write=lambda model, file, facts: file.write_bytes(b"any"), read=lambda file: lambda pictures: torch.zeros(1)
    )
    monkeypatch.setitem(FORMATS, "pt2", row)
    with pytest.raises(ValueError, match="the pt2 program differs from the classifier"):
        deploy.export(trial.folder, tmp_path, tmp_path / "mine.pt2", "pt2")
    assert not list(tmp_path.iterdir()) and write is not row.write


def test_another_checkpoint_is_refused(trial: Trial, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trial.folder, tmp_path / "copy"))
    state = torch.load(folder / "final_model.pth", weights_only=True)
    torch.save(state | {"head.weight": state["head.weight"] + 1}, folder / "final_model.pth")
    with pytest.raises(ValueError, match="is not the file that training wrote"):
        load_trained(folder)
    (folder / "final_model.pth").unlink()
    with pytest.raises(ValueError, match="is unfinished: no final_model.pth"):
        load_trained(folder)
