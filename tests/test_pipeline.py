"""The pipeline: a stage of dvc.yaml finds its run by its name, and no parameter reaches a shell."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from ncflow.experiments import expand
from ncflow.experiments.pipeline import (
    STAGE,
    forget_earlier_grids,
    pipeline_run,
    pipeline_runs,
    pipeline_snapshot,
    refuse_unwatched,
    shared_with_pipeline,
)
from ncflow.params import load_params, make_params

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
HOSTILE = "a; touch pwned; echo"


def dvc(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(["dvc", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path):
    """The repository's pipeline, over an empty project."""
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    for folder in ("data", "geometry", "metrics", "nn", "reports", "training"):
        (tmp_path / "ncflow" / folder).mkdir(parents=True)  # what the stages depend on
    dvc(tmp_path, "init", "--no-scm")
    return tmp_path


@pytest.mark.parametrize("stage", STAGES)
def test_no_parameter_is_pasted_into_a_shell_line(stage):
    assert "$" not in STAGES[stage]["cmd"]


def test_the_runs_are_named_as_dvc_names_its_matrix(project):
    stages = {line.split()[0] for line in dvc(project, "stage", "list").stdout.splitlines()}
    runs = pipeline_runs(load_params(project / "params.yaml"), project)
    assert stages == {
        "snapshot",
        "report",
        *(f"{stage}@{name}" for stage in ("train", "evaluate", "posthoc") for name in runs),
    }


def test_the_outputs_are_where_dvc_expects_them(project):
    params = load_params(project / "params.yaml")
    values = yaml.safe_load((project / "params.yaml").read_text())

    def outputs(stage: str, kind: str, item: dict[str, object]) -> list[Path]:
        text = STAGES[stage][kind][0].replace("${exp_name}", values["exp_name"])
        for key, value in item.items():
            text = text.replace(f"${{item.{key}}}", str(value))
        return [project / text]

    for run in pipeline_runs(params, project).values():
        item = {"head": run.params.head.name, "loss": run.params.train.loss, "seed": run.params.seed}
        assert outputs("train", "outs", item) == [run.folder]
        assert outputs("evaluate", "metrics", item) == [run.evaluation]
    assert outputs("snapshot", "outs", {}) == [pipeline_snapshot(params, project)]


def test_a_suite_that_dvc_would_replace_says_so(tmp_path):
    params = make_params({"exp_name": "main", "grid": {"head": ["linear"], "loss": ["ce", "mse"]}})
    runs = expand("main", params)
    assert shared_with_pipeline(runs, params, tmp_path) == ""  # there is no pipeline
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    warning = shared_with_pipeline(runs, params, tmp_path)
    assert warning.startswith("main_linear_ce_seed0 and 1 more: dvc.yaml has runs of the same names.")
    assert "--set exp_name=NAME" in warning
    for others in (
        expand("main", params, overrides=["exp_name=other"]),
        expand("main", params, grid=["seed=0,1"]),
        expand("quickstart", params),
    ):
        assert shared_with_pipeline(others, params, tmp_path) == ""


def test_a_run_is_found_by_its_stage(monkeypatch, tmp_path):
    params = make_params(
        {"exp_name": "main", "grid": {"head": ["linear", "implicit"], "loss": ["ce", "focal"], "seed": [0, 3]}}
    )
    monkeypatch.setenv(STAGE, "train@implicit-focal-3")
    run = pipeline_run(params, tmp_path)
    assert (run.params.head.name, run.params.train.loss, run.params.seed) == ("nearest_etf", "focal", 3)
    assert run.folder == tmp_path / "models" / "main_implicit_focal_seed3"


def test_a_pipeline_without_losses_is_refused(tmp_path):
    with pytest.raises(ValueError, match="grid.loss, got none; set it in params.yaml"):
        pipeline_runs(make_params({"grid": {"seed": [0]}}), tmp_path)


@pytest.mark.parametrize("stage", ["", "train", "train@linear-9"])
def test_a_stage_of_no_run_is_refused(monkeypatch, tmp_path, stage):
    monkeypatch.setenv(STAGE, stage)
    with pytest.raises(ValueError, match="run `dvc repro`|unknown run of the grid 'linear-9'"):
        pipeline_run(load_params(ROOT / "params.yaml"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [("exp_name",), ("grid", "head"), ("grid", "seed"), ("dataset", "name")])
def test_a_hostile_parameter_runs_no_command(project, keys):
    values = yaml.safe_load((project / "params.yaml").read_text())
    section = values
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = [HOSTILE] if keys[0] == "grid" else HOSTILE
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    done = dvc(project, "repro")
    assert done.returncode != 0
    assert not list(project.rglob("pwned"))


@pytest.mark.parametrize(
    ("deps", "watched"),
    [
        (["own/pics"], True),
        (["own"], True),
        (["${dataset.root}"], True),
        ([{"own/pics": {"hash": "md5"}}], True),
        (["ncflow/data"], False),
        (["own/pics/train"], False),
        (["own/pic"], False),
    ],
)
def test_a_folder_is_watched_by_itself_or_by_one_above(tmp_path, deps, watched):
    params = make_params({"dataset": {"name": "imagefolder", "root": "own/pics"}})
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"snapshot": {"deps": deps}}}))
    refused = pytest.raises(ValueError, match="add own/pics to the deps of its stage snapshot")
    with nullcontext() if watched else refused:
        refuse_unwatched(params, tmp_path)


@pytest.mark.parametrize(("deps", "watched"), [(["w.pth"], True), (["${model.checkpoint}"], True), (["other"], False)])
def test_a_checkpoint_is_watched_by_the_stage_that_trains(tmp_path, deps, watched):
    params = make_params({"model": {"checkpoint": "w.pth"}})
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": {"deps": deps}}}))
    refused = pytest.raises(ValueError, match="add w.pth to the deps of its stage train")
    with nullcontext() if watched else refused:
        refuse_unwatched(params, tmp_path)


def test_lists_elsewhere_are_watched_too(tmp_path):
    lists = {"train": "train.txt", "test": "../lists/test.txt"}
    params = make_params({"dataset": {"name": "listed", "root": "pics", "lists": lists}})
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"snapshot": {"deps": ["pics"]}}}))
    with pytest.raises(ValueError, match="does not watch pics/../lists/test.txt"):
        refuse_unwatched(params, tmp_path)
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"snapshot": {"deps": ["pics", "lists"]}}}))
    refuse_unwatched(params, tmp_path)


def test_folders_that_training_did_not_write_are_left_out_of_the_advice(tmp_path):
    for name in ("main_linear_seed7", "main_linear_seed8", "main_My-head2_ce_seed7"):
        (tmp_path / "models" / name).mkdir(parents=True)
    for name in ("main_linear_seed7", "main_My-head2_ce_seed7"):
        (tmp_path / "models" / name / "config.yaml").touch()
    (tmp_path / "models" / "main_linear_seed7.posthoc.json").touch()
    left = forget_earlier_grids(load_params(ROOT / "params.yaml"), tmp_path)
    assert [path.name for path in left] == [
        "main_My-head2_ce_seed7",
        "main_linear_seed7",
        "main_linear_seed7.posthoc.json",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("watch", ["pics", "${dataset.root}"])
def test_dvc_notices_changed_data_once_it_watches_the_folder(project, watch):
    from users import picture, write_folders

    write_folders(project / "pics", {"a": 6, "b": 6})
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["dataset"] |= {"name": "imagefolder", "root": "pics", "imb_factor": -1}
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    done = dvc(project, "repro", "snapshot")
    assert done.returncode != 0 and "add pics to the deps of its stage snapshot" in done.stderr
    text = (project / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(text.replace("deps: [ncflow/data]", f"deps: [ncflow/data, '{watch}']"))
    for added, told in ((0, "Running stage 'snapshot'"), (0, "up to date"), (1, "Running stage 'snapshot'")):
        for i in range(added):
            picture("a").save(project / "pics" / "train" / "a" / f"new{i}.png")
        done = dvc(project, "repro", "snapshot")
        assert done.returncode == 0 and told in done.stdout, done.stdout + done.stderr
    assert '"class_counts": [7, 6]' in (project / "data" / "main" / "manifest.json").read_text()
