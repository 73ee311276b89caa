"""Published numbers stand next to runs of the same data, imbalance and backbone, one table per source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ncflow.nn import BACKBONES, LOSSES
from ncflow.posthoc import POSTHOC
from ncflow.reports import against_published
from ncflow.reports.against_published import HEADINGS, comparisons, method_of, setting_of
from ncflow.reports.arms import arms, labels
from ncflow.reports.page import write_report
from ncflow.reports.published import Published, published_numbers
from ncflow.runs.reader import Run, load_runs

MakeRun = Callable[..., Path]

DATA = {"name": "cifar10", "imb_type": "exp", "imb_factor": 0.01}
MODEL = {"name": "resnet32"}
OPTIONS: dict[str, Any] = {
    **{f"dataset.{key}": value for key, value in DATA.items()},
    **{f"model.{key}": value for key, value in MODEL.items()},
    "head.name": "linear",
    "head.normalize": False,
    "head.temperature": None,
    "train.loss": "ce",
}
COSINES = {"head.normalize": True, "head.temperature": 1.0}
METHODS = [
    ("CE", {}),
    ("CE", {"train.augment": "crop_flip", "train.lr": 7.0}),
    ("CE", {"train.loss": "logit_adjustment", "train.loss_options.tau": 0.0}),
    ("CE", {"train.loss": "vs", "train.loss_options.tau": 0.0, "train.loss_options.gamma": 0.0}),
    ("CE-DRW", {"train.reweight": 0.9999, "train.reweight_after": 0.8}),
    ("focal", {"train.loss": "focal"}),
    ("LDAM", {"train.loss": "ldam"} | COSINES),
    ("LDAM-DRW", {"train.loss": "ldam", "train.reweight": 0.9999} | COSINES),
    ("CDT", {"train.loss": "cdt"}),
    ("CDT", {"train.loss": "vs", "train.loss_options.tau": 0, "train.loss_options.gamma": 0.2}),
    ("balanced softmax", {"train.loss": "balanced_softmax"}),
    ("balanced softmax", {"train.loss": "arb"}),
    ("balanced softmax", {"train.loss": "logit_adjustment"}),
    ("balanced softmax", {"train.loss": "vs", "train.loss_options.gamma": 0.0}),
    ("mixup", {"train.mix": "mixup"}),
    ("mixup + balanced softmax", {"train.mix": "mixup", "train.loss": "balanced_softmax"}),
    ("remix + balanced softmax", {"train.mix": "remix", "train.loss": "balanced_softmax"}),
]
NO_METHOD = [
    {"head.name": "nearest_etf"},
    {"head.normalize": True},
    {"train.loss": "ldam"},
    {"train.loss": "vs"},
    {"train.loss": "logit_adjustment", "train.loss_options.tau": 0.5},
    {"train.loss": "mse"},
    {"train.loss": "class_balanced"},
    {"train.reweight": 0.9999, "train.reweight_after": 0.0},
    {"train.sampling": "class_balanced"},
    {"train.drift_penalty": 0.1},
    {"train.penalties.center": 0.1},
    {"train.label_smoothing": 0.1},
    {"train.sam": 0.05},
    {"train.ema": 0.99},
]
OTHER_SETTING = [
    {"dataset.imb_type": "step"},
    {"dataset.val_fraction": 0.1},
    {"dataset.label_noise": 0.1},
    {"dataset.samples_per_class": 100},
    {"model.name": "resnet20"},
    {"model.neck": "batch_norm"},
    {"model.num_features": 10},
    {"model.pretrained": True},
    {"model.drop_path": 0.1},
    {"model.trainable": "head"},
    {"model.options.width": 2},
]


def number(method: str, value: float = 70.0, **others: Any) -> Published:
    row = Published(method, "cifar10", 0.01, "ResNet-32", 200, value, "a page", "https://example.org", "random", "")
    return row._replace(**others)


def make_arm_runs(make_run: MakeRun, name: str, seeds: int = 3, **options: Any) -> list[Run]:
    """Runs of cross-entropy on cifar10 at 0.01 with a ResNet-32, but for the given options of training."""
    overrides = {"dataset": DATA, "model": MODEL, "train": {"loss": "ce", "lr": 0.1} | options}
    folders = [make_run(f"{name}-{s}", seed=s, epochs=(3,), overrides=overrides) for s in range(seeds)]
    return load_runs(folders)


def tables(runs: list[Run], numbers: list[Published]) -> list[list[dict[str, str]]]:
    """The rows of each table by heading."""
    names = [f"{upper} {lower}".strip() for upper, lower in HEADINGS]
    compared = arms(runs)
    found = comparisons(dict(zip(compared, labels(compared), strict=True)), numbers)
    return [[dict(zip(names, row.cells, strict=True)) for row in each.table.rows] for each in found]


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_configuration_has_the_name_of_its_method(method, options):
    assert method_of(OPTIONS | options) == method


@pytest.mark.parametrize("options", NO_METHOD)
def test_a_configuration_of_no_published_method_has_no_name(options):
    assert method_of(OPTIONS | options) is None


def test_a_setting_is_data_imbalance_and_backbone_as_papers_name_them():
    assert setting_of(OPTIONS) == ("cifar10", 0.01, "ResNet-32")
    native = {"dataset.name": "imagenet_lt", "dataset.imb_factor": -1.0, "model.name": "timm/resnext50_32x4d"}
    assert setting_of(OPTIONS | native) == ("imagenet_lt", -1.0, "ResNeXt-50")


@pytest.mark.parametrize("options", OTHER_SETTING)
def test_a_run_on_other_data_or_another_network_has_no_setting(options):
    assert setting_of(OPTIONS | options) is None


def test_the_names_in_the_tables_exist():
    assert {name for name in against_published.BACKBONES if "/" not in name} <= {*BACKBONES}
    assert {*against_published.LOSSES} <= {*LOSSES}
    assert {*against_published.POSTHOC.values()} <= {*POSTHOC}
    methods = {each.method for each in published_numbers()}
    assert {*against_published.POSTHOC} | {method for method, _ in METHODS if method != "CE-DRW"} <= methods
    assert {*against_published.BACKBONES.values()} <= {each.backbone for each in published_numbers()}


def test_the_measured_mean_stands_next_to_the_published_value(make_run: MakeRun) -> None:
    runs = make_arm_runs(make_run, "ce")
    values = [100 * run.final("test/acc/balanced") for run in runs]
    ((row,),) = tables(runs, [number("CE", 70.25)])
    mean = sum(values) / 3
    std = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    assert (row["method"], row["published top-1 %"], row["published epochs"]) == ("CE", "70.25", "200")
    assert row["measured balanced %"] == f"{mean:.1f} ± {std:.1f}"
    assert (row["measured seeds"], row["measured epochs"]) == ("3", "3")


def test_a_method_without_a_run_keeps_its_row(make_run: MakeRun) -> None:
    ((ce, ldam),) = tables(make_arm_runs(make_run, "ce", seeds=1), [number("CE"), number("LDAM")])
    assert ce["measured seeds"] == "1" and "±" not in ce["measured balanced %"]
    assert {ldam[key] for key in ldam if key.startswith("measured")} == {"—"} and ldam["arm"] == "—"


def test_every_arm_of_a_method_has_a_row(make_run: MakeRun) -> None:
    runs = [run for lr in (0.1, 0.2) for run in make_arm_runs(make_run, f"lr{lr}", seeds=1, lr=lr)]
    ((first, second),) = tables(runs, [number("CE")])
    assert (first["arm"], second["arm"]) == ("lr=0.1", "lr=0.2")


def test_sources_never_share_a_table(make_run: MakeRun) -> None:
    numbers = [number("CE", 70.0), number("CE", 80.0, source="another page"), number("LDAM", 71.0)]
    found = tables(make_arm_runs(make_run, "ce", seeds=1), numbers)
    assert [[row["published top-1 %"] for row in table] for table in found] == [["70", "71"], ["80"]]


@pytest.mark.parametrize("other", [{"imb_factor": 0.02}, {"dataset": "cifar100"}, {"backbone": "ResNet-34"}])
def test_numbers_of_another_setting_are_not_shown(make_run: MakeRun, other: dict[str, Any]) -> None:
    assert tables(make_arm_runs(make_run, "ce", seeds=1), [number("CE", **other)]) == []


def test_a_remark_stands_once_with_its_methods(make_run: MakeRun) -> None:
    runs = make_arm_runs(make_run, "ce", seeds=1)
    numbers = [number("CE", notes="the best epoch"), number("LDAM", notes="the best epoch"), number("CDT")]
    (found,) = comparisons({arms(runs)[0]: "ce"}, numbers)
    assert found.table.notes == ("CE, LDAM: the best epoch.",)
    assert (found.source, found.link) == ("a page", "https://example.org")


def test_a_post_hoc_classifier_counts_for_its_method(make_run: MakeRun) -> None:
    runs = make_arm_runs(make_run, "ce", seeds=2)
    (arm,) = arms(runs)
    for run, share in zip(arm.runs, (0.5, 0.7), strict=True):
        known = {("tau_norm", "test/acc/balanced"): share}
        run.__dict__["posthoc"] = SimpleNamespace(value=lambda name, key, known=known: known.get((name, key)))
    (found,) = comparisons({arm: "ce"}, [number("tau-norm"), number("cRT")])
    tau_norm, crt = (row.cells for row in found.table.rows)
    assert "60.0 ± 14.1" in tau_norm and "2" in tau_norm
    assert set(crt[-3:]) == {"—"}


def test_the_page_shows_the_tables_with_source_and_link(make_run: MakeRun, tmp_path: Path) -> None:
    runs = make_arm_runs(make_run, "ce", seeds=2)
    page = write_report([run.path for run in runs], tmp_path / "report", figures=()).read_text()
    assert "<h2>Published numbers</h2>" in page
    for each in published_numbers():
        if each.setting == ("cifar10", 0.01, "ResNet-32"):
            assert f"<summary>{each.source}</summary>" in page and f'href="{each.link}"' in page


def test_the_page_of_other_data_has_no_published_numbers(make_run: MakeRun, tmp_path: Path) -> None:
    assert (
        "Published numbers"
        not in write_report([make_run("digits", epochs=(3,))], tmp_path / "report", figures=()).read_text()
    )
