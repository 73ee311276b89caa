"""A suite that trained nothing keeps its report; a change in anything that a report depends on makes a new one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import write_run

from ncflow import stages
from ncflow.reports import made, page
from ncflow.runs.layout import posthoc_file

PLAIN = {"title": "a", "about": "b"}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the reports that were drawn; only their page is written."""
    titles = []

    def write_page(runs: object, out: Path, *, title: str, **options: object) -> Path:
        titles.append(title)
        out.mkdir(exist_ok=True)
        (out / "index.html").write_text(f"{title}, drawn")
        (out / "table.md").write_text("")
        return out / "index.html"

    monkeypatch.setattr(page, "write_page", write_page)
    return titles


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path / "models" / name, epochs=(3,)) for name in ("a", "b")]


def report(folders: list[Path], out: Path, **options: object) -> Path:
    return stages.report(folders, out, **PLAIN | {"again": False} | options)[0]


def test_a_report_of_the_same_runs_is_drawn_once(folders, tmp_path, drawn):
    first, second = (report(folders, tmp_path / "r") for _ in range(2))
    assert first == second == tmp_path / "r" / "index.html" and drawn == ["a"]


def test_the_command_report_always_draws(folders, tmp_path, drawn):
    for _ in range(2):
        stages.report(folders, tmp_path / "r", **PLAIN)
    assert len(drawn) == 2


def edit(file: Path) -> None:
    """Other content of the same size and time, as an editor or `cp -p` may leave it."""
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b", ", b" ,", 1) or b" ")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def record(out: Path) -> Path:
    return out.parent / ".r.made"


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


CHANGES: dict[str, Callable[[list[Path], Path], object]] = {
    "a run more": lambda folders, out: folders.append(write_run(folders[0].parent / "c", epochs=(3,))),
    "a run less": lambda folders, out: folders.pop(),
    "an edited run": lambda folders, out: edit(folders[0] / "history.json"),
    "a figure removed": lambda folders, out: (out / "table.md").unlink(),
    "an edited page": lambda folders, out: edit(out / "index.html"),
    "no page": lambda folders, out: (out / "index.html").unlink(),
    "a record of another kind": lambda folders, out: record(out).write_bytes(b"\xff"),
    "a record that is a folder": lambda folders, out: replace_by_folder(record(out)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_report_depends_on_makes_a_new_one(change, folders, tmp_path, drawn):
    out = tmp_path / "r"
    report(folders, out)
    CHANGES[change](folders, out)
    report(folders, out)
    assert len(drawn) == 2


@pytest.mark.parametrize("text", PLAIN)
def test_other_words_make_a_new_report(text, folders, tmp_path, drawn):
    report(folders, tmp_path / "r")
    report(folders, tmp_path / "r", **{text: "other"})
    assert len(drawn) == 2


def test_other_code_or_another_matplotlib_makes_a_new_report(folders, tmp_path, drawn, monkeypatch):
    report(folders, tmp_path / "r")
    monkeypatch.setattr(made, "version", lambda package: "other")
    report(folders, tmp_path / "r")
    monkeypatch.setattr(made, "PACKAGE", tmp_path)
    report(folders, tmp_path / "r")
    assert len(drawn) == 3


def test_a_post_hoc_file_next_to_a_run_makes_a_new_report(folders):
    before = made.listed(folders)
    posthoc_file(folders[0]).touch()
    assert made.listed(folders) != before


def test_a_run_that_changes_while_it_is_drawn_is_drawn_again(folders, tmp_path, drawn, monkeypatch):
    draw = page.write_page

    def draw_slowly(*arguments: object, **options: object) -> Path:
        edit(folders[0] / "history.json")
        return draw(*arguments, **options)

    monkeypatch.setattr(page, "write_page", draw_slowly)
    report(folders, tmp_path / "r")
    report(folders, tmp_path / "r")
    assert len(drawn) == 2


def test_a_missing_run_is_named_as_ever(tmp_path):
    with pytest.raises(ValueError, match="missing"):
        report([tmp_path / "missing"], tmp_path / "r")


@pytest.mark.slow
def test_the_report_that_is_kept_is_the_one_that_would_be_drawn(folders, tmp_path):
    kept = report(folders, tmp_path / "r")
    before = {file.name: file.read_bytes() for file in (tmp_path / "r").rglob("*") if file.is_file()}
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "r").rglob("*")}
    assert report(folders, tmp_path / "r") == kept
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "r").rglob("*")}
    report(folders, tmp_path / "r", again=True)
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "r").rglob("*") if file.is_file()}
