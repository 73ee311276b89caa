"""The summary table says what the runs measured, and says it alike as text, Markdown and HTML."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from ncflow.reports.highlights import ADJUSTED, OPTIONAL, highlights, shown_in
from ncflow.reports.tables import (
    ABSENT,
    Row,
    Table,
    arm_table,
    as_html,
    as_latex,
    as_markdown,
    as_text,
    format_value,
    summary_table,
)
from ncflow.runs.reader import load_runs

MakeRun = Callable[..., Path]
FIXED_COLUMNS = 3  # head, seed, epoch
SHOWN = tuple(key for key in shown_in("table") if key not in OPTIONAL)  # without a validation part


def test_one_row_per_run_when_there_is_one_seed(three_heads: list[Path]) -> None:
    table = summary_table(load_runs(three_heads))
    assert [row.cells[:3] for row in table.rows] == [
        ("linear", "0", "12"),
        ("fixed_etf", "0", "12"),
        ("nearest_etf", "0", "12"),
    ]
    assert not any(row.aggregate for row in table.rows)


def test_every_column_names_a_highlight_its_split_and_its_metric(three_heads: list[Path]) -> None:
    headings = ["".join(heading) for heading in summary_table(load_runs(three_heads)).headings[FIXED_COLUMNS:]]
    assert [heading.removesuffix(" %").replace(" ", "/", 1) for heading in headings] == list(SHOWN)
    assert [heading.endswith("%") for heading in headings] == [highlights()[key].percent for key in SHOWN]


def test_cells_hold_the_final_values(three_heads: list[Path]) -> None:
    runs = load_runs(three_heads)
    for run, row in zip(runs, summary_table(runs).rows, strict=True):
        for key, cell in zip(SHOWN, row.cells[FIXED_COLUMNS:], strict=True):
            value = run.final(key)
            assert value is not None
            assert float(cell) == pytest.approx(100 * value if highlights()[key].percent else value, rel=5e-3)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_any_number_of_seeds_has_mean_std_median_and_range(make_run: MakeRun, seeds: int) -> None:
    runs = load_runs([make_run(f"run{seed}", seed=seed) for seed in range(seeds)])
    *_, mean_row, median_row = summary_table(runs).rows
    values = [100 * run.analyses[-1]["test"]["acc/balanced"] for run in runs]
    assert mean_row.cells[1] == f"mean ± std of {seeds}"
    assert mean_row.cells[FIXED_COLUMNS] == f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
    assert median_row.cells[1] == f"median (min–max) of {seeds}"
    expected = f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"
    assert median_row.cells[FIXED_COLUMNS] == expected
    assert [row.aggregate for row in summary_table(runs).rows] == [False] * seeds + [True, True]


def test_an_absent_metric_is_an_em_dash_in_rows_and_aggregates(make_run: MakeRun) -> None:
    runs = load_runs([make_run(f"run{seed}", seed=seed, without=("acc/few",)) for seed in (0, 1)])
    column = FIXED_COLUMNS + SHOWN.index("test/acc/few")
    cells = [row.cells[column] for row in summary_table(runs).rows]
    assert cells == [ABSENT] * 4


def test_an_aggregate_uses_the_runs_that_have_the_metric(make_run: MakeRun) -> None:
    runs = load_runs([make_run("a", seed=0), make_run("b", seed=1, without=("acc/few",))])
    column = FIXED_COLUMNS + SHOWN.index("test/acc/few")
    with_metric, without, mean, median = (row.cells[column] for row in summary_table(runs).rows)
    assert without == ABSENT
    assert with_metric == mean == median


def test_runs_that_stopped_at_different_epochs_show_the_span(make_run: MakeRun) -> None:
    runs = load_runs([make_run("a", seed=0, epochs=(3,)), make_run("b", seed=1, epochs=(3, 6))])
    assert [row.cells[2] for row in summary_table(runs).rows] == ["3", "6", "3–6", "3–6"]


def test_what_varies_has_a_column_of_its_own_and_names_its_values(make_run: MakeRun) -> None:
    settings = [("cifar10", 0.1), ("cifar10", 0.01), ("mnist", 0.1), ("mnist", 0.01)]
    paths = [
        make_run(f"run{i}", overrides={"dataset": {"name": name}, "train": {"drift_penalty": penalty}})
        for i, (name, penalty) in enumerate(settings)
    ]
    table = summary_table(load_runs(paths))
    assert [lower for _, lower in table.headings[:5]] == ["dataset", "drift_penalty", "head", "seed", "epoch"]
    assert [row.cells[:2] for row in table.rows] == [(name, str(penalty)) for name, penalty in settings]
    assert table.words == 3


def test_with_validation_each_run_has_its_best_epoch_below_its_last(make_run: MakeRun) -> None:
    accuracies = {0: (0.1, 0.8, 0.3, 0.2), 1: (0.1, 0.2, 0.9, 0.2)}
    runs = load_runs([make_run(f"run{seed}", seed=seed, validation=accuracies[seed]) for seed in accuracies])
    table = summary_table(runs)
    epochs = [row.cells[2] for row in table.rows]
    assert epochs == ["12"] * 4 + ["6 best on val", "9 best on val"] + ["6–9 best on val"] * 2
    heading = [lower for _, lower in table.headings]
    test, validation = heading.index("balanced %", 4), heading.index("balanced %")
    assert [row.cells[validation] for row in table.rows[4:6]] == ["80.0", "90.0"]
    for run, row in zip(runs, table.rows[4:6], strict=True):
        assert row.cells[test] == format_value("test/acc/balanced", run.best("test/acc/balanced"))


def test_a_run_without_validation_has_no_best_epoch_beside_others_that_have(make_run: MakeRun) -> None:
    table = summary_table(load_runs([make_run("with", validation=(0.1, 0.8, 0.3, 0.2)), make_run("without", seed=1)]))
    assert [row.cells[1:3] for row in table.rows if not row.aggregate] == [
        ("0", "12"),
        ("1", "12"),
        ("0", "6 best on val"),
    ]


def test_adjusted_accuracy_has_a_column_where_a_run_has_it(make_run: MakeRun) -> None:
    adjusted, plain = load_runs([make_run("a", seed=0), make_run("b", seed=1)])
    adjusted.analyses[-1]["test"][ADJUSTED.removeprefix("test/")] = 0.75
    table = summary_table([adjusted, plain])
    column = table.headings.index(("test adjusted/", "balanced %"))
    assert [row.cells[column] for row in table.rows[:2]] == ["75.0", ABSENT]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("test/acc/balanced", 0.8314, "83.1"),
        ("test/acc/balanced", 1.0, "100.0"),
        ("train/nc1/pinv", 0.13, "0.130"),
        ("train/nc1/pinv", 123.4, "123"),
        ("train/nc1/pinv", 1.234e-9, "1.23e-09"),
        ("train/nc1/pinv", 0.0, "0.00"),
        ("train/nc1/pinv", None, ABSENT),
    ],
)
def test_values_are_written_to_three_digits_and_accuracies_in_percent(key: str, value: float, text: str) -> None:
    assert format_value(key, value) == text


def test_text_is_aligned(three_heads_two_seeds: list[Path]) -> None:
    lines = as_text(summary_table(load_runs(three_heads_two_seeds))).splitlines()
    rule = lines[2]
    gaps = [match.span() for match in re.finditer(" +", rule)]
    assert {len(line) for line in lines} == {len(rule)}
    assert all(line[start:end].isspace() for line in lines for start, end in gaps)


@pytest.mark.parametrize("render", [as_text, as_markdown, as_html])
def test_every_rendering_holds_every_cell(three_heads: list[Path], render: Callable[[Table], str]) -> None:
    table = summary_table(load_runs(three_heads))
    rendered = render(table)
    assert all(cell in rendered for row in table.rows for cell in row.cells)


def test_markdown_keeps_its_columns_when_a_label_holds_a_bar() -> None:
    table = Table((("", "head"), ("test acc/", "balanced %")), (Row(("a|b", "1")),))
    assert as_markdown(table).splitlines() == ["| head | test acc/balanced % |", "| :--- | ---: |", r"| a\|b | 1 |"]


def test_html_escapes_labels_and_marks_aggregates() -> None:
    html = as_html(Table((("", "head"),), (Row(("<b>",)), Row(("all",), aggregate=True))))
    assert '<td class="word">&lt;b&gt;</td>' in html
    assert html.count('class="aggregate"') == 1


def test_the_table_of_arms_is_mean_and_std_over_seeds(make_run: MakeRun) -> None:
    heads = ("linear", "fixed_etf")
    runs = load_runs([make_run(f"{head}-{seed}", head=head, seed=seed) for head in heads for seed in (0, 1)])
    table = arm_table([*runs, *load_runs([make_run("alone", head="nearest_etf")])])
    assert [row.cells[:2] for row in table.rows] == [("linear", "2"), ("fixed_etf", "2"), ("nearest_etf", "1")]
    for row, members in zip(table.rows, (runs[:2], runs[2:]), strict=False):
        for cell, key in zip(row.cells[2:], SHOWN, strict=True):
            values = [run.final(key) for run in members]
            assert cell.split(" ± ")[0] == format_value(key, statistics.fmean(values))
    assert not any("±" in cell for cell in table.rows[-1].cells)


def test_latex_has_a_column_per_heading_and_escapes_its_letters() -> None:
    rows = (Row((r"a_b & 50% {$} \ ~ ^ #", "1.0 ± 0.5")), Row(("x", ABSENT)))
    lines = as_latex(Table((("", "head"), ("test acc/", "balanced %")), rows)).splitlines()
    assert lines[0] == r"% Needs \usepackage{booktabs}."
    assert lines[1] == r"\begin{tabular}{lr}" and lines[-1] == r"\end{tabular}"
    assert r"head & balanced \% \\" in lines
    escaped = r"a\_b \& 50\% \{\$\} \textbackslash{} \textasciitilde{} \textasciicircum{} \# & 1.0 $\pm$ 0.5 \\"
    assert escaped in lines and r"x & --- \\" in lines
