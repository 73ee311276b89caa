"""The command line: what is wrong is one message, and nothing heavy loads before it is needed."""

import hashlib
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from ncflow import cli, group, imports
from ncflow.exits import Exit
from ncflow.interruption import Interrupted

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project with the repository's parameters."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch, capsys, *words):
    """Exit code and output of `ncflow words`, through the function that the console script calls."""
    monkeypatch.setattr(sys, "argv", ["ncflow", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    out, err = capsys.readouterr()
    return exit_.value.code, out, err


@pytest.mark.parametrize("command", [command.callback.__name__ for command in cli.app.registered_commands])
def test_every_command_explains_itself(command):
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['ncflow', '--help']\n"
        "from ncflow.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'numpy', 'matplotlib', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_wrong_key_is_one_message_with_the_nearest_spelling(project, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "train", "--set", "train.learning_rate=1")
    assert code == Exit.CHANGE
    assert err.startswith("ncflow: unknown key 'train.learning_rate'")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("dataset.name", "cifar11", "data set"),
        ("model.name", "resnet21", "backbone"),
        ("train.loss", "cee", "loss"),
        ("train.optimizer", "sdg", "optimizer"),
        ("train.schedule", "cosin", "schedule"),
        ("train.augment", "crops", "augmentation"),
        ("train.loss_options.gama", "1", "option of loss 'ce'"),
        ("model.patch_size", "4", "option of backbone 'resnet20'"),
    ],
)
def test_an_unknown_name_is_refused_before_anything_is_made(project, monkeypatch, capsys, key, value, kind):
    code, _, err = run(monkeypatch, capsys, "train", "--set", f"{key}={value}")
    assert code == Exit.CHANGE
    assert f"unknown {kind} '{key.rpartition('.')[2] if 'option' in kind else value}'" in err
    assert sorted(path.name for path in project.iterdir()) == ["params.yaml"]


def test_check_prints_the_resolved_configuration_and_trains_nothing(project, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "train", "--check", "--set", "head.name=implicit", "--set", "train.lr=1e-3")
    config = yaml.safe_load(out)
    assert code == 0
    assert config["head"]["name"] == "nearest_etf"
    assert config["train"]["lr"] == 0.001
    assert not (project / "models").exists()


def test_an_imported_file_is_passed_on_to_every_started_process(project, monkeypatch, capsys):
    monkeypatch.setenv(cli.IMPORT, "")
    monkeypatch.setattr(imports, "IMPORTED", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("rows.py").write_text(
        "from ncflow.experiments import EXPERIMENTS\nEXPERIMENTS['mine'] = lambda base: [base]\n"
    )
    from ncflow.experiments import EXPERIMENTS

    monkeypatch.setattr("ncflow.experiments.EXPERIMENTS", dict(EXPERIMENTS))
    code, out, _ = run(monkeypatch, capsys, "--import", "rows.py", "experiments", "mine")
    assert (code, out.split()[0]) == (0, "mine")
    assert os.environ[cli.IMPORT] == str(project / "rows.py")
    (digest,) = imports.IMPORTED.values()
    assert hashlib.sha256(Path("rows.py").read_bytes()).hexdigest().startswith(digest)
    sys.modules.pop("rows")


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.py", "--import expects a Python file, got"), ("json.py", "the name json belongs to")],
)
def test_a_file_that_cannot_be_imported_as_itself_is_refused(project, monkeypatch, capsys, name, message):
    Path("json.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path])
    code, _, err = run(monkeypatch, capsys, "--import", name, "datasets")
    assert code == Exit.CHANGE
    assert err.startswith("ncflow: --import") and message in err


@pytest.mark.parametrize("command", ["train", "suite", "evaluate", "report"])
def test_sigterm_while_a_command_is_still_being_imported_says_start_me_again(project, command):
    (project / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(5)")
    words = [command, *(["models/run"] if command == "evaluate" else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (project, ROOT)))}
    done = subprocess.run([sys.executable, "-m", "ncflow", *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 75
    assert done.stderr == "ncflow: stopped by SIGTERM; rerun the same command\n"


def test_an_option_that_no_command_has_is_refused(project, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "suite", "quickstart", "--lr", "0.1")
    assert code == 2
    assert "--lr" in err


def test_processes_must_be_a_positive_whole_number(project, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "suite", "quickstart", "--processes", "two")
    assert code == Exit.CHANGE
    assert "processes must be a positive whole number, got 'two'" in err


def test_the_runs_of_a_group_can_be_listed(project, monkeypatch, capsys):
    assert "quickstart" in run(monkeypatch, capsys, "experiments")[1]
    out = run(monkeypatch, capsys, "experiments", "quickstart")[1]
    assert [line.split()[0] for line in out.splitlines()] == [
        f"quickstart_{head}_{loss}_seed0"
        for head in ("linear", "fixed_etf", "nearest_etf")
        for loss in ("ce", "balanced_softmax")
    ]


def test_every_group_is_listed_with_its_number_of_runs_and_its_question(project, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "experiments", "--set", "dataset.name=digits")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert list(lines) == ["quickstart", "main", *(f"exp{number}" for number in range(1, 17))]
    assert lines["exp1"] == "14 runs  Universality: 4 data sets × 14 models."


def test_what_an_override_makes_the_same_is_said(project, monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, "experiments", "exp8", "--set", "dataset.name=digits train.epochs=1")
    said, *runs = out.splitlines()
    assert said == "exp8: its 8 runs come down to 4; the others would be repeats"
    assert [line.split()[0] for line in runs] == [
        f"exp8_ablation_{model}_digits" for model in ("vit_tiny", "vit_tiny_orig", "EVA-02", "EVA-02_orig")
    ]


def test_the_runs_of_one_group_or_of_all_can_be_written(project, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "experiments", "exp10", "--write", "one", "--head", "fixed_etf")
    assert (code, out) == (0, "2 configurations in one\n")
    assert sorted(file.name for file in Path("one").rglob("*.yaml")) == [
        f"exp10_imagenet_lt_{model}_fixed_etf.yaml" for model in ("resnet18", "vgg11")
    ]
    run(monkeypatch, capsys, "experiments", "--write", "all")
    code, out, _ = run(monkeypatch, capsys, "train", "--check", "--config", "all/exp4/exp4_wd_resnet18_cifar10_0.yaml")
    assert code == 0
    assert yaml.safe_load(out) == yaml.safe_load(Path("all/exp4/exp4_wd_resnet18_cifar10_0.yaml").read_text())


def test_a_grid_multiplies_the_runs_that_are_listed_and_written(project, monkeypatch, capsys):
    grid = ["--grid", "train.lr=0.3,0.1 seed=0..1"]  # as `mlflow run -P grid=` passes it
    code, out, _ = run(monkeypatch, capsys, "experiments", "main", *grid)
    said, *lines = out.splitlines()
    names = ["main_lr0.3_seed0", "main_lr0.3_seed1", "main_lr0.1_seed0", "main_lr0.1_seed1"]
    assert (code, said) == (0, "main: --grid replaces the section grid of the parameters")
    assert [line.split()[0] for line in lines] == names
    run(monkeypatch, capsys, "experiments", "main", *grid, "--write", "written")
    assert sorted(file.stem for file in Path("written/main").iterdir()) == sorted(names)


def test_a_group_in_a_file_is_listed_like_any_other(project, monkeypatch, capsys):
    Path("groups").mkdir()
    Path("groups/rates.yaml").write_text("hypothesis: A low rate is slow.\ngrid: {train.lr: [0.3, 0.1]}\n")
    listed = run(monkeypatch, capsys, "experiments", "--set", "dataset.name=digits")[1]
    assert listed.splitlines()[-1].split(maxsplit=3) == ["rates", "2", "runs", "A low rate is slow."]
    out = run(monkeypatch, capsys, "experiments", "rates")[1]
    assert [line.split()[0] for line in out.splitlines()] == ["rates_lr0.3", "rates_lr0.1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["suite", "main", "--grid", "train.lrr=1,2"], "unknown key 'train.lrr'. Did you mean 'train.lr'?"),
        (["suite", "main", "--grid", "train.loss=ce,cee"], "main_cee cannot run: unknown loss 'cee'"),
        (
            ["suite", "main", "--grid", "head.name=nearest_etf,linear", "--grid", "train.loss=ce,dot_regression"],
            "linear_dot_regression cannot run: loss 'dot_regression' uses only the row of a sample's own class",
        ),
        (["suite", "main", "--grid", "seed=0..1000"], "1001 runs are more than 1000"),
        (["suite", "main", "--grid", "seed=0..9", "--max-runs", "9"], "10 runs are more than 9"),
        (["experiments", "--grid", "seed=0..9"], "--grid varies the runs of one group"),
        (["suite", "broken"], "broken.yaml: unknown key 'gird'. Did you mean 'grid'?"),
        (["suite", "wrong"], "wrong_focus cannot run: unknown loss 'focus'. Did you mean 'focal'?"),
        (["experiments"], "broken.yaml: unknown key 'gird'. Did you mean 'grid'?"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_is_made(project, monkeypatch, capsys, words, message):
    Path("groups").mkdir()
    Path("groups/broken.yaml").write_text("hypothesis: a\ngird: {seed: 0..4}\n")
    Path("groups/wrong.yaml").write_text("hypothesis: a\ngrid: {train.loss: [ce, focus]}\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == Exit.CHANGE
    assert err.startswith("ncflow: ") and message in err
    assert sorted(path.name for path in project.iterdir()) == ["groups", "params.yaml"]


def test_the_report_of_a_sweep_has_a_folder_of_its_axes(project, monkeypatch, capsys):
    asked = {}

    def all_done(jobs, **options):
        for job in jobs:
            job.state = "done"
        yield

    monkeypatch.setattr("ncflow.suite.run_suite", all_done)
    monkeypatch.setattr(
        cli, "_report", lambda folders, out, title, **options: asked.update(out=out, title=title, n=len(folders))
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run_code = run_suite_of(monkeypatch, "suite", "main", "--grid", "seed=0,1", "--grid", "train.lr=1,2")
    assert run_code == 0
    assert asked == {"out": project / "reports" / "main_lr_seed", "title": "main_lr_seed", "n": 4}


def run_suite_of(monkeypatch, *words):
    """The exit code of a suite that trains nothing."""
    monkeypatch.setattr(sys, "argv", ["ncflow", *words])
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    return 0


def test_a_suite_takes_overrides_in_one_piece(project, monkeypatch, capsys):
    from ncflow import suite

    asked = []

    def all_fail(jobs, **options):
        for job in jobs:
            asked.append(job.params)
            job.state, job.reason = "failed", "boom"
        yield

    monkeypatch.setattr(suite, "run_suite", all_fail)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, out, err = run(monkeypatch, capsys, "suite", "exp10", "--set", "dataset.name=digits train.epochs=1")
    assert code == Exit.CHANGE
    assert err.startswith("ncflow: 2 of 2 runs failed:\n  exp10")
    assert out.count("failed: boom") == 2
    assert {(config.dataset.name, config.train.epochs, config.train.lr) for config in asked} == {("digits", 1, 0.0125)}


@pytest.mark.parametrize(
    ("place", "error", "code", "words"),
    [
        ("ncflow.cli._report", ValueError("no room for the page"), 65, "no room for the page"),
        ("ncflow.suite.track", ValueError("DVC could not track exp10"), 65, "DVC could not track exp10"),
        ("ncflow.suite.track", Interrupted(), 75, "stopped by SIGTERM"),
    ],
)
def test_which_runs_of_a_suite_failed_is_said_whatever_else_goes_wrong(
    project, monkeypatch, capsys, place, error, code, words
):
    def one_fails(jobs, **options):
        jobs[0].state = "done"
        jobs[1].state, jobs[1].reason = "failed", "boom"
        yield

    def fail(*values, **options):
        raise error

    monkeypatch.setattr("ncflow.suite.run_suite", one_fails)
    monkeypatch.setattr(cli, "_report", lambda *values, **options: None)
    monkeypatch.setattr(place, fail)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ended, _, err = run(monkeypatch, capsys, "suite", "exp10", "--set", "dataset.name=digits", "--track")
    assert ended == code
    assert err.startswith("ncflow: 1 of 2 runs failed:\n  exp10_") and ": boom\n    log: " in err
    assert f"\nncflow: {words}" in err


@pytest.mark.parametrize("several", [True, False])
def test_the_opened_mlflow_run_belongs_to_the_suite_or_its_only_job(project, monkeypatch, several):
    """`mlflow run` sets its status by the exit code of the suite, which is that of one job, but not of one of many."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "opened")
    taken = []

    @contextmanager
    def start_run(**options):
        taken.append(os.environ.pop("MLFLOW_RUN_ID"))
        yield SimpleNamespace(artifacts=lambda page, path: taken.append((page, path)))

    monkeypatch.setattr("ncflow.group.start_run", start_run)
    with group.opened_run("exp8-now", project, several=several) as log_page:
        assert os.environ.get("MLFLOW_RUN_ID") == (None if several else "opened")
        log_page("page")
    assert taken == (["opened", ("page", "report")] if several else [])


def test_a_run_in_training_is_refused_with_its_own_exit_code(project, monkeypatch, capsys):
    from ncflow.suite import claimed

    with claimed(project, "busy"):
        code, _, err = run(monkeypatch, capsys, "train", "--set", "exp_name=busy")
    assert (code, err) == (76, "ncflow: another process trains models/busy; wait until it ends, or end it\n")


@pytest.mark.parametrize(("command", "name"), [("models", "resnet20"), ("datasets", "digits")])
def test_tables_can_be_listed(project, monkeypatch, capsys, command, name):
    code, out, _ = run(monkeypatch, capsys, command)
    assert code == 0
    assert any(line.split()[0] == name for line in out.splitlines())


def test_a_missing_configuration_file_is_named(project, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "train", "--config", "nowhere.yaml")
    assert code == Exit.CHANGE
    assert "no configuration file nowhere.yaml" in err


@pytest.mark.parametrize("count", ["\u00b2", "\u0663", "0", "-1", "1.0", " 2", "two", "9" * 5000])
def test_a_number_of_processes_that_is_none_is_one_message(project, monkeypatch, capsys, count):
    code, _, err = run(monkeypatch, capsys, "suite", "quickstart", "--processes", count)
    assert code == Exit.CHANGE
    assert err.startswith("ncflow: processes must be a positive whole number, got")
