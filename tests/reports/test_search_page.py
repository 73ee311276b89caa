"""Figures of a search: where values stand on an axis, and a line for each trial."""

from __future__ import annotations

import pytest

from ncflow.reports.search import Coordinate, Tried, importance_figure, parallel_figure

LR = Coordinate("train.lr", low=1e-4, high=1.0, log=True)
HEAD = Coordinate("head.name", choices=("linear", "fixed_etf", "nearest_etf"))


def tried(number, lr, head, objective=None, state="complete"):
    return Tried(f"s_trial{number:02d}", state, {"train.lr": lr, "head.name": head}, objective)


def test_values_stand_by_their_scale():
    assert LR.place(1e-2) == pytest.approx(0.5)
    assert Coordinate("train.ema", low=0.0, high=0.8).place(0.2) == pytest.approx(0.25)
    assert [HEAD.place(head) for head in HEAD.choices] == [0.0, 0.5, 1.0]
    assert Coordinate("same", low=2.0, high=2.0).place(2.0) == 0.5


def test_ticks_are_the_ends_the_powers_of_ten_and_the_choices():
    assert {*LR.ticks().values()} == {"0.0001", "0.001", "0.01", "0.1", "1"}
    assert {*HEAD.ticks().values()} == {*HEAD.choices}


@pytest.mark.parametrize(("maximize", "best"), [(True, "s_trial01"), (False, "s_trial00")])
def test_a_line_for_each_trial_and_the_best_is_thick(maximize, best):
    trials = [tried(0, 0.1, "linear", 0.2), tried(1, 0.5, "fixed_etf", 0.7), tried(2, 1e-3, "linear", state="pruned")]
    figure = parallel_figure(trials, [LR, HEAD], "val/acc/balanced", maximize=maximize)
    axes = figure.axes[0]
    lines = {tuple(line.get_ydata()): line for line in axes.lines if len(line.get_xdata()) > 1 and line.get_lw() != 0.9}
    assert sorted(map(len, lines)) == [2, 3, 3]
    thick = max(lines.values(), key=lambda line: line.get_linewidth())
    assert thick.get_ydata()[-1] == (1.0 if maximize else 0.0)
    assert best in axes.get_title()


def test_the_most_important_key_is_at_the_top():
    axes = importance_figure({"train.lr": 0.2, "head.name": 0.8}, "val/acc/balanced").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["train.lr", "head.name"]
    assert [text.get_text() for text in axes.texts] == ["20 %", "80 %"]
