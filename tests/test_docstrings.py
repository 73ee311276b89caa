"""Docstrings of public names: every function and class has an example that runs, every published row a link."""

from __future__ import annotations

import doctest
import inspect
import re
import sys

import pytest

import ncflow
from ncflow import HEADS, LOSSES, MIXES, PENALTIES, POSTHOC

PUBLIC = sorted(name for name in ncflow.HOMES if callable(getattr(ncflow, name)))
UNPUBLISHED = {"linear", "fixed_frame", "ce", "drift", "feature_decay"}  # rows without a paper of their own
LINK = re.compile(r"https://(?:arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/10\.\d{4,}/\S+|\S+)")


def docstring(name: str) -> str:
    return inspect.getdoc(getattr(ncflow, name)) or ""


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = getattr(ncflow, name)
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(value, name, module=False, globs=inspected(value)) or [None]
    assert example and example.examples
    example.globs["folder"] = tmp_path
    runner, report = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), []
    assert runner.run(example, out=report.append).failed == 0, "".join(report)


def inspected(value: object) -> dict[str, object]:
    """The names that the example of a function or class sees: those of its module."""
    return dict(vars(sys.modules[inspect.unwrap(value).__module__]))


@pytest.mark.parametrize("row", [*HEADS, *LOSSES, *PENALTIES, *MIXES, *POSTHOC])
def test_a_row_from_a_paper_links_it(row):
    found = [table[row] for table in (HEADS, LOSSES, PENALTIES, MIXES, POSTHOC) if row in table]
    texts = [inspect.getdoc(each) or "" for each in found]
    assert all(LINK.search(text) for text in texts) or row in UNPUBLISHED


def test_only_rows_without_a_link_are_listed_as_unpublished():
    tables = HEADS | LOSSES | PENALTIES
    assert not [row for row in UNPUBLISHED if LINK.search(inspect.getdoc(tables[row]) or "")]
