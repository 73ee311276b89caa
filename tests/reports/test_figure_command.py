"""`ncflow figure` lists figures, says why some are absent, and writes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ncflow import cli
from ncflow.reports.paper import FIGURES

MakeRun = Callable[..., Path]
DOCS = Path(__file__).parents[2] / "docs" / "figures.md"


def output_of(*words: object) -> str:
    result = CliRunner().invoke(cli.app, ["figure", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_list_says_what_each_figure_needs() -> None:
    rows = dict(line.split(maxsplit=1) for line in output_of("--list").splitlines())
    assert rows == {name: f"needs {chart.needs}" for name, chart in FIGURES.items()}


def test_with_runs_the_list_gives_the_reason_for_an_absent_figure(make_run: MakeRun) -> None:
    rows = dict(
        line.split(maxsplit=1) for line in output_of("--list", make_run("a"), make_run("b", seed=1)).splitlines()
    )
    assert rows["curves"] == "available"
    assert rows["reliability"] == "absent: no run has logits in its dump; train with train.save_logits=true"


def test_a_figure_is_written_as_wide_as_asked(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("a")
    for words, points in ((), 'width="234pt"'), (("--wide",), 'width="486pt"'):
        output_of("classwise", folder, "--out", tmp_path / "x.svg", *words)
        assert points in (tmp_path / "x.svg").read_text()


def test_a_figure_without_a_file_is_refused_with_an_example() -> None:
    with pytest.raises(ValueError, match="such as `ncflow figure curves"):
        output_of("curves")


def test_the_page_on_figures_describes_each_of_them() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert [name for name in FIGURES if f"| `{name}` |" not in page] == []
