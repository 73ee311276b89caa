"""Tables of runs: accuracy, collapse and drift of each, and statistics over runs that differ only in the seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from typing import NamedTuple

from ncflow.reports.arms import Arm, arms, short, value_text
from ncflow.reports.highlights import ADJUSTED, highlights, present, shown_in
from ncflow.runs.reader import Run

ABSENT = "—"


class Row(NamedTuple):
    """One line of cells; `aggregate` if it summarizes the runs above it, `posthoc` for a post-hoc classifier."""

    cells: tuple[str, ...]
    aggregate: bool = False
    posthoc: bool = False


class Table(NamedTuple):
    """Headings of two lines ("test acc/", "balanced %") and rows of cells; the first `words` columns hold words.

    `notes` are sentences below the table.
    """

    headings: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    words: int = 1
    notes: tuple[str, ...] = ()


class Moment(NamedTuple):
    """An epoch of each run in the table: its name, and how to read the epoch and a metric there."""

    name: str
    epoch: Callable[[Run], int | None]
    value: Callable[[Run, str], float | None]


def summary_table(runs: Sequence[Run]) -> Table:
    """A column per choice that distinguishes arms; a row per run at its last analysis, and at its best on validation.

    An arm of several seeds also has mean ± std (ddof = 1) and median (min–max). The test split selects nothing.
    The post-hoc classifiers of a run follow it, with the metrics that they have.
    """
    compared = arms(runs)
    keys = list(compared[0].choices)
    columns = present(shown_in("table"), runs)
    choices = [("", short(key, keys)) for key in keys]
    headings = (*choices, ("", "seed"), ("", "epoch"), *(_heading(key) for key in columns))
    rows = tuple(row for arm in compared for row in _arm_rows(arm, columns))
    return Table(headings, rows, words=len(keys), notes=tuple(run.note for run in runs if run.note))


def arm_table(runs: Sequence[Run]) -> Table:
    """The table of a paper: a row per arm, mean ± std over its seeds (ddof = 1) at the last analysis.

    Its columns are the choices, the number of runs, and the metrics of the summary. The std of one run is not known.
    """
    compared = arms(runs)
    keys = list(compared[0].choices)
    columns = present(shown_in("table"), runs)
    headings = (*(("", short(key, keys)) for key in keys), ("", "runs"), *(_heading(key) for key in columns))
    rows = []
    for arm in compared:
        values = ([value for run in arm.runs if (value := run.final(key)) is not None] for key in columns)
        cells = [_mean_and_std(key, found) if found else ABSENT for key, found in zip(columns, values, strict=True)]
        rows.append(Row((*map(value_text, arm.choices.values()), str(len(arm.runs)), *cells)))
    return Table(headings, tuple(rows), words=len(keys))


def as_text(table: Table) -> str:
    """The table as plain aligned text for a terminal."""
    lines = [*zip(*table.headings, strict=True), *(row.cells for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    upper, lower, *body = (_aligned(line, widths, table.words) for line in lines)
    return "\n".join([upper, lower, "  ".join("-" * width for width in widths), *body, *table.notes])


def as_markdown(table: Table) -> str:
    """The table as a Markdown pipe table, for GitHub and MLflow notes."""
    headings = [upper + lower for upper, lower in table.headings]
    rule = [":---"] * table.words + ["---:"] * (len(headings) - table.words)
    lines = [
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |"
        for line in [headings, rule, *(row.cells for row in table.rows)]
    ]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)])


def as_latex(table: Table) -> str:
    """The table as a LaTeX tabular with the rules of booktabs. It needs no other package."""
    columns = "l" * table.words + "r" * (len(table.headings) - table.words)
    upper, lower = zip(*table.headings, strict=True)
    heads = [" & ".join(map(_latex, line)) + r" \\" for line in (upper, lower) if any(line)]
    body = [" & ".join(map(_latex, row.cells)) + r" \\" for row in table.rows]
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *heads,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(["% Needs \\usepackage{booktabs}.", *lines])


def as_html(table: Table) -> str:
    """The table as an HTML `<table>`; rows have the classes "aggregate" and "posthoc"."""
    words = ['<th class="word">' if i < table.words else "<th>" for i in range(len(table.headings))]
    head = "".join(f"{th}{escape(a)}<br>{escape(b)}</th>" for th, (a, b) in zip(words, table.headings, strict=True))
    body = "".join(_html_row(row, table.words) for row in table.rows)
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in table.notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def format_value(key: str, value: float | None) -> str:
    """A metric as text: accuracies in percent, other metrics with three digits, an em dash if absent."""
    if value is None:
        return ABSENT
    return f"{100 * value:.1f}" if highlights()[key].percent else number(value)


def number(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits, zeros included: 0.130, not 0.13."""
    return f"{value:#.{digits}g}".rstrip(".")


def _arm_rows(arm: Arm, columns: Sequence[str]) -> Iterator[Row]:
    choices = tuple(value_text(value) for value in arm.choices.values())
    for moment in MOMENTS:
        members = [run for run in arm.runs if moment.epoch(run) is not None]
        for run in members:
            cells = [format_value(key, moment.value(run, key)) for key in columns]
            yield Row((*choices, str(run.seed), f"{moment.epoch(run)}{moment.name}", *cells))
            if moment is FINAL:
                yield from _posthoc_rows(arm, [run], columns)
        for name, write in AGGREGATES.items() if len(members) > 1 else ():
            cells = [write(key, values) if (values := _values(members, moment, key)) else ABSENT for key in columns]
            yield Row((*choices, f"{name} of {len(members)}", _span(members, moment) + moment.name, *cells), True)
        if moment is FINAL and len(members) > 1:
            yield from _posthoc_rows(arm, members, columns)


def _posthoc_rows(arm: Arm, runs: Sequence[Run], columns: Sequence[str]) -> Iterator[Row]:
    """A row per post-hoc classifier of one run; of several runs, mean ± std over those that have it."""
    several = len(runs) > 1
    for method in dict.fromkeys(name for run in runs if run.posthoc for name in run.posthoc.methods):
        having = [run for run in runs if run.posthoc and method in run.posthoc.methods]
        if several and len(having) < 2:
            continue
        moment = Moment("", FINAL.epoch, partial(_posthoc_value, method))
        cells = [_mean_and_std(key, values) if (values := _values(having, moment, key)) else ABSENT for key in columns]
        choices = {**arm.choices, "head.name": f"{arm.head}, post hoc: {method}"}.values()
        seed = f"mean ± std of {len(having)}" if several else str(runs[0].seed)
        yield Row((*map(value_text, choices), seed, _span(having, moment), *cells), aggregate=several, posthoc=True)


def _posthoc_value(method: str, run: Run, key: str) -> float | None:
    return run.posthoc.value(method, key) if run.posthoc else None


def _values(runs: Sequence[Run], moment: Moment, key: str) -> list[float]:
    """The values of the runs that have the metric."""
    values = (moment.value(run, key) for run in runs)
    return [value for value in values if value is not None]


def _span(runs: Sequence[Run], moment: Moment) -> str:
    epochs = sorted({epoch for run in runs if (epoch := moment.epoch(run)) is not None})
    return "–".join(str(epoch) for epoch in dict.fromkeys((epochs[0], epochs[-1])))


def _mean_and_std(key: str, values: list[float]) -> str:
    mean = format_value(key, statistics.fmean(values))
    if len(values) < 2:
        return mean
    std = statistics.stdev(values)
    return f"{mean} ± {format_value(key, std) if highlights()[key].percent else number(std, 2)}"


def _median_and_range(key: str, values: list[float]) -> str:
    median, low, high = (format_value(key, of(values)) for of in (statistics.median, min, max))
    return median if len(values) < 2 else f"{median} ({low}–{high})"


def _heading(key: str) -> tuple[str, str]:
    """The heading of "train/nc1/pinv" in two lines: the split and the group, then the metric."""
    split, _, metric = ("test/adjusted/balanced" if key == ADJUSTED else key).partition("/")
    group, _, name = metric.rpartition("/")
    return f"{split} {group}/", f"{name} %" if highlights()[key].percent else name


def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def _aligned(line: Sequence[str], widths: Sequence[int], words: int) -> str:
    cells = zip(line, widths, strict=True)
    return "  ".join(c.ljust(width) if i < words else c.rjust(width) for i, (c, width) in enumerate(cells))


def _html_row(row: Row, words: int) -> str:
    cells = "".join(
        f'<td class="word">{escape(c)}</td>' if i < words else f"<td>{escape(c)}</td>" for i, c in enumerate(row.cells)
    )
    classes = " ".join(name for name in ("aggregate", "posthoc") if getattr(row, name))
    return f'<tr class="{classes}">{cells}</tr>' if classes else f"<tr>{cells}</tr>"


FINAL = Moment("", lambda run: run.epoch, Run.final)
LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "—": "---",
}
MOMENTS = (FINAL, Moment(" best on val", lambda run: run.best_epoch, Run.best))
AGGREGATES = {"mean ± std": _mean_and_std, "median (min–max)": _median_and_range}
