"""Published numbers are typed rows; a wrong cell is named with its file, line, column and value."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import pytest

import ncflow
from ncflow.data import SOURCES
from ncflow.reports import against_published
from ncflow.reports.published import COLUMNS, FILE, Published, published_numbers, read_published

RIGHT = {
    "method": "CE",
    "dataset": "cifar10",
    "imb_factor": "0.01",
    "backbone": "ResNet-32",
    "epochs": "200",
    "value": "70.4",
    "source": "somebody",
    "link": "https://example.org/page",
    "split": "drawn at random",
    "notes": "",
}
WRONG = {
    "method": ["", " CE"],
    "dataset": ["", "cifar-10", "CIFAR10"],
    "imb_factor": ["", "100", "0", "-2", "nan", "a"],
    "backbone": [""],
    "epochs": ["0", "-1", "1.5", "two", "²"],
    "value": ["", "0", "100.1", "-3", "nan", "70,4"],
    "source": ["", "somebody "],
    "link": ["http://example.org", "example.org"],
    "split": [""],
}


def write(file: Path, *rows: dict[str, str]) -> Path:
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, Published._fields)
        writer.writeheader()
        writer.writerows(rows)
    return file


def test_a_row_becomes_a_typed_number(tmp_path: Path) -> None:
    (number,) = read_published(write(tmp_path / "numbers.csv", RIGHT))
    assert number == Published(
        *("CE", "cifar10", 0.01, "ResNet-32", 200, 70.4, "somebody"),
        *("https://example.org/page", "drawn at random", ""),
    )
    assert number.setting == ("cifar10", 0.01, "ResNet-32")


@pytest.mark.parametrize("column", ["epochs", "link", "notes"])
def test_what_a_source_does_not_say_is_empty(tmp_path: Path, column: str) -> None:
    (number,) = read_published(write(tmp_path / "numbers.csv", RIGHT | {column: ""}))
    assert not getattr(number, column)


@pytest.mark.parametrize("column, text", [(column, text) for column, texts in WRONG.items() for text in texts])
def test_a_wrong_cell_is_named_with_its_place(tmp_path: Path, column: str, text: str) -> None:
    file = write(tmp_path / "numbers.csv", RIGHT, RIGHT | {"method": "focal", column: text})
    with pytest.raises(ValueError) as error:
        read_published(file)
    assert str(error.value) == f"{file}, line 3: {column} must be {COLUMNS[column][1]}, got '{text}'"


def test_a_number_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "numbers.csv", RIGHT, RIGHT | {"value": "71.0"})
    with pytest.raises(ValueError, match="line 3: CE of somebody is listed twice"):
        read_published(file)


@pytest.mark.parametrize("other", [{"split": "another"}, {"source": "another"}, {"imb_factor": "0.02"}])
def test_a_method_may_have_several_splits_sources_and_factors(tmp_path: Path, other: dict[str, str]) -> None:
    assert len(read_published(write(tmp_path / "numbers.csv", RIGHT, RIGHT | other))) == 2


@pytest.mark.parametrize("header", ["method,value", "", ",".join(reversed(Published._fields))])
def test_other_columns_are_refused(tmp_path: Path, header: str) -> None:
    file = tmp_path / "numbers.csv"
    file.write_text(header + "\n")
    with pytest.raises(ValueError, match="expected the columns method,dataset,imb_factor"):
        read_published(file)


@pytest.mark.parametrize("line", ["CE,cifar10", ",".join([*RIGHT.values(), "more"])])
def test_a_line_of_another_length_is_refused(tmp_path: Path, line: str) -> None:
    file = write(tmp_path / "numbers.csv")
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ValueError, match="line 2: expected 10 cells"):
        read_published(file)


def test_the_file_is_a_part_of_the_package() -> None:
    assert FILE.is_relative_to(Path(ncflow.__file__).parent) and FILE.name == "published.csv"
    assert FILE.parent.name == "experiments"


def test_every_number_says_where_it_stands() -> None:
    numbers = published_numbers()
    assert {number.dataset for number in numbers} <= {*SOURCES}
    assert all(number.link or number.source.startswith("ncflow ") for number in numbers)
    links = {(number.source, number.link) for number in numbers}
    assert len(links) == len({source for source, _ in links})  # one page per source


# As printed at the sources: error rates in the galleries, accuracies elsewhere.
SPOT_CHECKS = {
    ("LDAM-DRW", "cifar10", 0.01, "BagofTricks-LT gallery A"): 100 - 22.27,
    ("LDAM-DRW", "cifar10", 0.01, "BagofTricks-LT gallery B"): 100 - 24.61,
    ("balanced softmax", "cifar100", 0.02, "BagofTricks-LT gallery A"): 100 - 53.45,
    ("mixup", "cifar100", 0.01, "BagofTricks-LT gallery B"): 100 - 60.10,
    ("remix + balanced softmax", "cifar100", 0.01, "BagofTricks-LT combinations"): 100 - 51.97,
    ("MiSLAS", "cifar10", 0.02, "MiSLAS"): 85.7,
    ("CE, weight decay 5e-3", "cifar100", 0.01, "LTR-weight-balancing"): 47.18,
    ("LWS", "imagenet_lt", -1.0, "classifier-balancing"): 49.9,
}


@pytest.mark.parametrize("key", SPOT_CHECKS)
def test_numbers_are_those_of_their_sources(key: tuple[str, str, float, str]) -> None:
    (value,) = (n.value for n in published_numbers() if (n.method, n.dataset, n.imb_factor, n.source) == key)
    assert value == pytest.approx(SPOT_CHECKS[key], abs=1e-9)


def test_our_own_numbers_are_those_of_the_committed_runs() -> None:
    """Every arm of docs/results is in the table, with the mean and the spread of its seeds."""
    heads = {"linear": "", "fixed_etf": ", fixed ETF", "nearest_etf": ", nearest ETF"}
    names = {"ce": "CE", "balanced_softmax": "balanced softmax", "mixup + balanced_softmax": "mixup + balanced softmax"}
    names |= {"ce, logits adjusted (tau 1)": "CE + logits adjusted"}
    names |= {f"ce, then {row}": name for name, row in against_published.POSTHOC.items()}
    values: dict[str, list[float]] = {}
    with (Path(ncflow.__file__).parents[1] / "docs" / "results" / "fashion-mnist-lt.csv").open() as file:
        for run in csv.DictReader(file):
            values.setdefault(names[run["method"]] + heads[run["head"]], []).append(100 * float(run["acc/balanced"]))
    ours = {n.method: n for n in published_numbers() if n.dataset == "fmnist" and n.source.startswith("ncflow ")}
    assert ours.keys() == values.keys()
    for method, seeds in values.items():
        assert ours[method].value == round(statistics.fmean(seeds), 1)
        assert f"std {statistics.stdev(seeds):.1f};" in ours[method].notes
