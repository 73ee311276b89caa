"""A published configuration has the recipe of its source, and a verdict only if nothing else differs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from data.test_sources import write_cifar10
from run_folders import make_run
from typer.testing import CliRunner

from ncflow import cli
from ncflow.assembly import check
from ncflow.dotted import flatten
from ncflow.experiments.published import (
    METHODS,
    NEUTRAL,
    REPRODUCTIONS,
    conclude,
    configurations,
    differences,
    listing,
    tolerance,
)
from ncflow.nn import create_loss
from ncflow.params import Params
from ncflow.reports.against_published import MEASURED, method_of, setting_of
from ncflow.reports.published import published_numbers
from ncflow.runs.reader import Run, load_runs
from ncflow.training import create_schedule

__all__ = ["make_run"]

ROOT = Path(__file__).parents[1]
LOOK_ALIKE = "dataset.name=digits dataset.imb_factor=0.1 train.epochs=1 model.name=resnet20 model.image_size=8"
GALLERIES = [f"BagofTricks-LT gallery {page}" for page in "AB"]
MakeRun = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project whose child processes find this ncflow."""
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def reproduce(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `ncflow reproduce words` prints; it must succeed."""
    monkeypatch.setattr(sys, "argv", ["ncflow", "reproduce", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    out, err = capsys.readouterr()
    assert exit_.value.code == 0, err
    return out


def make_runs(make_run: MakeRun, *accuracies: float) -> list[Run]:
    """Runs that end with these accuracies, in percent."""
    folders = []
    for seed, accuracy in enumerate(accuracies):
        folder = make_run(f"run{seed}", seed=seed, epochs=(200,))
        file = folder / "metrics_epoch_200.json"
        analysis = json.loads(file.read_text())
        analysis["test"]["acc/balanced"] = accuracy / 100
        file.write_text(json.dumps(analysis))
        folders.append(folder)
    return load_runs(folders)


def lines(text: str) -> dict[str, str]:
    return {line[:16].strip(): line[17:] for line in text.splitlines()}


# --- the table ---


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_a_row_refers_to_one_published_number(name):
    row = REPRODUCTIONS[name]
    number = row.published
    assert (number.method, number.dataset, number.imb_factor, number.source) == row[:4]
    assert number in published_numbers() and number.backbone == "ResNet-32"
    assert row.differs and name == name.lower() and name.isidentifier()


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_a_recipe_is_a_valid_run_of_its_own_method_and_setting(name):
    row = REPRODUCTIONS[name]
    runs = configurations(name, seeds=2)
    check(runs[0])
    for seed, run in enumerate(runs):
        options = flatten(run.resolved())
        assert (method_of(options), setting_of(options)) == (row.method, row.published.setting)
        assert (run.seed, run.exp_name) == (seed, f"{name}_seed{seed}")
        assert run.train.epochs == row.published.epochs
        assert differences(name, run) == []


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_the_learning_rate_drops_after_80_and_90_percent(name):
    how = configurations(name, seeds=1)[0].train
    schedule = create_schedule(how.schedule, warmup=how.warmup, **how.schedule_options)
    factors = [schedule(epoch / how.epochs) for epoch in range(how.epochs)]
    gamma = how.schedule_options["gamma"]
    high, low = how.epochs * 8 // 10, how.epochs * 9 // 10
    assert factors[5:high] == [1] * (high - 5) and max(factors[:5]) < 1
    assert factors[high:low] == pytest.approx([gamma] * (low - high))
    assert factors[low:] == pytest.approx([gamma**2] * (how.epochs - low))


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_the_loss_of_a_recipe_exists_with_its_options(name):
    how = configurations(name, seeds=1)[0].train
    create_loss(how.loss, [50, 5, 1], reweight=how.reweight, **how.loss_options)


def test_the_list_has_every_configuration_with_its_number():
    table = listing()
    assert [row.cells[0] for row in table.rows] == list(REPRODUCTIONS)
    assert len(table.rows) == 4 * len(METHODS)
    for row in table.rows:
        published = REPRODUCTIONS[row.cells[0]].published
        assert float(row.cells[-2]) == published.value and published.source in row.cells


def test_the_command_without_a_name_lists_them():
    result = CliRunner().invoke(cli.app, ["reproduce"])
    assert result.exit_code == 0
    assert {*REPRODUCTIONS} <= {line.split()[0] for line in result.output.splitlines() if line.strip()}


# --- the tolerance ---


@pytest.mark.parametrize("factor", [0.01, 0.02])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_tolerance_bounds_what_another_split_changes(dataset, factor):
    allowed = tolerance(dataset, factor)
    values = {
        (n.method, n.source): n.value for n in published_numbers() if (n.dataset, n.imb_factor) == (dataset, factor)
    }
    methods = {method for method, source in values if source in GALLERIES} - {"CE"}
    gaps = [abs(values[method, GALLERIES[0]] - values[method, GALLERIES[1]]) for method in methods]
    assert len(gaps) == 7 and allowed in gaps and all(gap <= allowed for gap in gaps)
    assert 1 < allowed < 4


# --- overrides ---


@pytest.mark.parametrize("override", ["dataset.root=/data", "train.device=cpu", "train.precision=fp32"])
def test_an_override_that_changes_no_result_keeps_name_and_verdict(override):
    (run,) = configurations("ce_cifar10_100", seeds=1, overrides=[override])
    assert run.exp_name == "ce_cifar10_100_seed0"
    assert differences("ce_cifar10_100", run) == []


def test_an_override_that_changes_the_experiment_changes_the_name():
    runs = configurations("ce_cifar10_100", seeds=2, overrides=["train.lr=0.2", "dataset.seed=1", "train.device=cpu"])
    assert [run.exp_name for run in runs] == [f"ce_cifar10_100_changed_seed{seed}" for seed in range(2)]
    assert all(differences("ce_cifar10_100", run) == ["dataset.seed", "train.lr"] for run in runs)


def test_an_option_of_another_loss_is_a_difference():
    changes = ["train.loss=focal", "train.loss_options.gamma=1.0"]
    (run,) = configurations("ce_cifar10_100", seeds=1, overrides=changes)
    assert differences("ce_cifar10_100", run) == ["train.loss", "train.loss_options.gamma"]


def test_the_neutral_keys_exist():
    assert {*NEUTRAL} <= {*flatten(Params().resolved())}


@pytest.mark.parametrize("override", ["exp_name=mine", "seed=3", "grid.seed=[1]"])
def test_keys_that_the_configuration_sets_itself_are_refused(override):
    with pytest.raises(ValueError, match=f"{override.partition('=')[0].partition('.')[0]} cannot be overridden here"):
        configurations("ce_cifar10_100", overrides=[override])


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match="unknown published configuration 'ce_cifar10'.*ce_cifar10_100"):
        configurations("ce_cifar10")


def test_no_seed_is_refused():
    with pytest.raises(ValueError, match="at least 1 seed, got 0"):
        configurations("ce_cifar10_100", seeds=0)


# --- the end ---


@pytest.mark.parametrize(
    "share, word", [(0.0, "agrees"), (0.99, "agrees"), (-0.99, "agrees"), (1.01, "does not agree")]
)
def test_the_verdict_compares_the_gap_with_the_tolerance(make_run: MakeRun, share: float, word: str) -> None:
    name = "ldam_drw_cifar100_50"
    row = REPRODUCTIONS[name]
    gap = share * tolerance(row.dataset, row.imb_factor)
    runs = make_runs(make_run, *(row.published.value + gap + offset for offset in (-1, 0, 1)))
    shown = lines(conclude(name, runs, []))
    assert shown["verdict"].startswith(f"{word}: ") and shown["verdict"].endswith(f"{gap:+.1f} points")
    assert shown["measured"].startswith(f"{row.published.value + gap:.1f} ± 1.0 %") and "3 seeds" in shown["measured"]
    assert shown["published"].startswith(f"{row.published.value:g} %, {row.source}")
    assert shown["tolerance"].startswith(f"{tolerance(row.dataset, row.imb_factor):.2f} points")
    assert shown["known to differ"] == row.differs


def test_changed_runs_have_no_verdict(make_run: MakeRun) -> None:
    name = "ce_cifar10_100"
    runs = make_runs(make_run, REPRODUCTIONS[name].published.value)
    shown = lines(conclude(name, runs, ["dataset.name", "train.epochs"]))
    assert shown["verdict"] == "not comparable: differs in dataset.name, train.epochs"
    assert "±" not in shown["measured"] and "1 seed" in shown["measured"]


def test_runs_without_the_accuracy_are_refused(make_run: MakeRun) -> None:
    runs = load_runs([make_run("run", epochs=(3,), without=("acc/balanced",))])
    with pytest.raises(ValueError, match=f"ce_cifar10_100 needs {MEASURED} of every run, got it of 0 of 1"):
        conclude("ce_cifar10_100", runs, [])


# --- with the real things ---


@pytest.mark.slow
def test_a_look_alike_runs_to_its_end_without_a_verdict(project, monkeypatch, capsys):
    out = reproduce(monkeypatch, capsys, "ldam_drw_cifar10_100", "--seeds", "2", "--set", LOOK_ALIKE)
    shown = lines(out.partition("\nldam_drw_cifar10_100\n")[2])
    changed = "dataset.imb_factor, dataset.name, model.image_size, model.name, train.epochs"
    assert shown["verdict"] == f"not comparable: differs in {changed}"
    runs = load_runs(sorted((project / "models").iterdir()))
    assert [run.name for run in runs] == [f"ldam_drw_cifar10_100_changed_seed{seed}" for seed in range(2)]
    mean = 50 * sum(run.final(MEASURED) for run in runs)
    assert shown["measured"].startswith(f"{mean:.1f} ± ") and "at epoch 1, 2 seeds" in shown["measured"]
    assert (project / "reports" / "reproduce_ldam_drw_cifar10_100_changed" / "index.html").is_file()


@pytest.mark.slow
def test_cifar10_is_read_from_its_own_files(project, monkeypatch, capsys):
    """A few random images in the format of CIFAR-10, which has other checksums than the real files."""
    import torchvision.datasets as vision

    monkeypatch.setattr(vision.cifar, "check_integrity", lambda path, md5=None: os.path.isfile(path))
    write_cifar10(project / "cifar")
    small = "dataset.root=cifar dataset.min_samples=1 train.epochs=1 model.image_size=8"
    out = reproduce(monkeypatch, capsys, "mixup_cifar10_100", "--seeds", "1", "--set", small)
    shown = lines(out.partition("\nmixup_cifar10_100\n")[2])
    assert shown["verdict"] == "not comparable: differs in dataset.min_samples, model.image_size, train.epochs"
    assert shown["published"] == "72.8 %, MiSLAS: mixup, cifar10, 100:1"
    page = (project / "reports" / "reproduce_mixup_cifar10_100_changed" / "index.html").read_text()
    assert "<summary>MiSLAS</summary>" in page  # its data, imbalance and backbone are those of the source
