"""Repetitions belong together, what sets others apart has a name, and no picture holds more than an eye can follow."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from ncflow.reports.arms import LINES, Arm, arms, choice_keys, facets, knobs, labels, lines, short
from ncflow.runs.reader import Run, load_runs

MakeRun = Callable[..., Path]


def run_of(name: str = "run", seed: int = 0, **options: Any) -> Run:
    """A run with this configuration and nothing else: `train_lr=1` sets train.lr."""
    config: dict[str, Any] = {"exp_name": name, "seed": seed, "head": {"name": "linear"}}
    for key, value in options.items():
        section, _, last = key.partition("_")
        config.setdefault(section, {})[last] = value
    return Run(Path(name), config, (), ())


def grid(**axes: list[Any]) -> list[Run]:
    return [run_of(**dict(zip(axes, values, strict=True))) for values in product(*axes.values())]


def test_runs_that_differ_only_in_seeds_form_one_arm_sorted_by_them() -> None:
    runs = [run_of(f"run{seed}", seed, dataset_seed=seed, head_rotation_seed=seed) for seed in (2, 0, 1)]
    (arm,) = arms(runs)
    assert [run.seed for run in arm.runs] == [0, 1, 2]
    assert arm.representative.seed == 0
    assert labels([arm]) == ["linear"]


def test_every_run_is_in_exactly_one_arm(three_heads_two_seeds: list[Path]) -> None:
    runs = load_runs(three_heads_two_seeds)
    members = [run.name for arm in arms(runs) for run in arm.runs]
    assert sorted(members) == sorted(run.name for run in runs)


def test_a_label_says_what_varies_and_nothing_else() -> None:
    compared = arms(grid(head_name=["linear", "fixed_etf"], train_lr=[0.1, 0.01], train_loss=["ce"]))
    assert labels(compared) == ["linear, lr=0.1", "linear, lr=0.01", "fixed_etf, lr=0.1", "fixed_etf, lr=0.01"]
    assert labels(compared[:2]) == ["lr=0.1", "lr=0.01"]
    assert labels(compared[::2]) == ["linear", "fixed_etf"]


@pytest.mark.parametrize(
    "settings, knob",
    [
        pytest.param([("sgd", 0.1), ("adam", 1e-3), ("adamw", 1e-3)], "train.optimizer", id="a rate per optimizer"),
        pytest.param([("sgd", 0.1), ("adam", 1e-3)], "train.optimizer", id="one to one: the first in the file"),
    ],
)
def test_what_another_choice_settles_is_no_choice(settings: list[tuple[str, float]], knob: str) -> None:
    runs = [run_of(train_optimizer=name, train_lr=lr) for name, lr in settings]
    assert choice_keys(runs) == [knob, "head.name"]
    assert len(arms(runs)) == len(settings)


def test_options_of_a_head_or_a_width_are_no_choices() -> None:
    runs = [
        run_of(dataset_name=data, model_width=width, head_name=head, head_temperature=temperature)
        for data, width in (("ufm10", 64), ("ufm100", 128))
        for head, temperature in (("linear", None), ("fixed_etf", 5.0))
    ]
    assert choice_keys(runs) == ["dataset.name", "head.name"]


def test_keys_that_only_together_tell_runs_apart_are_all_choices() -> None:
    runs = grid(train_lr=[0.1, 0.2], train_decay=[0, 1])
    assert set(choice_keys(runs)) == {"train.lr", "train.decay", "head.name"}
    assert len(arms(runs)) == 4


@pytest.mark.parametrize(
    "axes, expected",
    [
        ({"train_lr": [1, 2], "model_name": ["a", "b"]}, ["train.lr"]),
        ({"dataset_name": ["a", "b"], "model_name": ["a", "b"]}, ["model.name"]),
        ({"dataset_name": ["a", "b"], "head_name": ["linear", "fixed_etf"]}, ["dataset.name"]),
        ({"head_name": ["linear", "fixed_etf"]}, []),
    ],
)
def test_the_knob_is_what_the_comparison_turns(axes: dict[str, list[Any]], expected: list[str]) -> None:
    assert knobs(arms(grid(**axes))) == expected


@pytest.mark.parametrize(
    "axes, along, pictures",
    [
        ({"dataset_name": list("abcd"), "model_name": list("ABCDEFGHIJKLMN")}, None, 12),  # exp1: 5 + 5 + 4 models
        ({"dataset_name": list("abcd"), "model_name": list("ABCDEFGHIJKLMN")}, "model.name", 1),
        ({"dataset_name": list("ab"), "model_name": list("ABC"), "train_f": list(range(10))}, None, 12),  # exp2
        ({"dataset_name": list("ab"), "model_name": list("ABC"), "train_f": list(range(10))}, "train.f", 2),
        ({"dataset_name": list("ab"), "model_name": list("ABC"), "train_f": list(range(4))}, None, 6),  # exp5
        ({"dataset_name": list("ab"), "model_name": list("ABC")}, None, 2),  # exp9
        ({"head_name": ["linear", "fixed_etf", "nearest_etf"]}, None, 1),  # the quickstart
        ({"train_f": list(range(7))}, None, 2),
    ],
)
def test_pictures_hold_few_lines_of_one_data_set_and_together_all_arms(
    axes: dict[str, list[Any]], along: str | None, pictures: int
) -> None:
    compared = arms(grid(**axes))
    found = facets(compared, along)
    assert len(found) == pictures
    assert all(len(lines(members, along)) <= LINES for members in found.values())
    assert sorted(map(id, compared)) == sorted(id(arm) for members in found.values() for arm in members)


def test_titles_say_what_a_picture_has_in_common() -> None:
    compared = arms(grid(dataset_name=["cifar10", "mnist"], model_name=["vgg11"], train_f=list(range(8))))
    assert list(facets(compared)) == ["cifar10 (1 of 2)", "cifar10 (2 of 2)", "mnist (1 of 2)", "mnist (2 of 2)"]
    assert list(facets(compared[:2])) == [""]


def test_a_line_joins_the_arms_along_one_choice() -> None:
    def values(line: list[Arm]) -> list[tuple[Any, Any]]:
        return [(arm.choices["model.name"], arm.choices["train.lr"]) for arm in line]

    compared = arms(grid(train_lr=[0.1, 0.2], model_name=["a", "b"]))
    assert [values(line) for line in lines(compared, "train.lr")] == [
        [("a", 0.1), ("a", 0.2)],
        [("b", 0.1), ("b", 0.2)],
    ]


def test_names_are_short_while_they_are_unique() -> None:
    assert short("dataset.imb_factor", ["dataset.imb_factor", "model.name"]) == "imb_factor"
    assert short("train.momentum", ["train.momentum", "head.momentum"]) == "train.momentum"
    assert short("model.name", ["model.name", "dataset.name"]) == "model"
