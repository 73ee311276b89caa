"""The page is complete and needs nothing outside itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ncflow.reports import summary_table
from ncflow.reports.highlights import OPTIONAL, highlights
from ncflow.reports.page import write_report
from ncflow.reports.predictions import ASSUMPTIONS
from ncflow.runs.reader import SELECTION, load_runs

MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def report(three_heads_two_seeds: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(three_heads_two_seeds, tmp_path_factory.mktemp("report"), title="Digits & heads")


class Links(HTMLParser):
    """Collects every address that a browser would open by itself, and the tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_asks_for_nothing_outside_itself(report: Path) -> None:
    page = report.read_text()
    links = Links()
    links.feed(page)
    assert len(links.addresses) == 2 + 2 + 2 * 3  # curves, classwise; two theories; cosines and confusion of each arm
    assert all(address.startswith("data:image/png;base64,") for address in links.addresses)
    assert not re.search(r"https?://|url\(|@import|<script|<link", page)


def test_every_tag_is_closed(report: Path) -> None:
    links = Links()
    links.feed(report.read_text())
    assert links.open == []


def test_the_page_shows_every_cell_of_the_summary(report: Path, three_heads_two_seeds: list[Path]) -> None:
    page = report.read_text()
    for row in summary_table(load_runs(three_heads_two_seeds)).rows:
        assert "</td>".join(row.cells).replace("</td>", "</td><td>") in page


def test_the_page_explains_every_highlight(report: Path) -> None:
    page = report.read_text().replace("&#39;", "'")
    for key, highlight in highlights().items():
        assert (f"<code>{key}</code>" in page) == (key not in OPTIONAL)
        assert (highlight.meaning in page) == (key not in OPTIONAL)


def test_the_page_lists_class_counts_what_differs_and_what_is_shared(report: Path) -> None:
    page = report.read_text()
    assert "126, 84, 56, 37, 24, 16, 11, 7, 5, 3" in page
    assert "<th><code>head.name</code></th>" in page
    assert "<td>digits-nearest_etf-1</td><td>nearest_etf</td><td>5.0</td><td>1</td>" in page
    assert "<code>train.batch_size: 64</code>" in page
    assert "train.batch_size</code></th>" not in page


def test_titles_and_names_are_escaped(make_run: MakeRun, tmp_path: Path) -> None:
    page = write_report(
        [make_run("a<b>&c", head="nearest_etf")], tmp_path / "report", title="<script>alert(1)</script>"
    ).read_text()
    assert "<script" not in page
    assert "a&lt;b&gt;&amp;c" in page


def test_the_page_says_how_the_best_epoch_is_chosen(make_run: MakeRun, tmp_path: Path) -> None:
    validated = make_run("digits", head="nearest_etf", validation=(0.1, 0.8, 0.3, 0.2))
    page = write_report([validated], tmp_path / "report").read_text()
    assert "<td>6 best on val</td>" in page
    assert "Nothing is chosen on the test split" in page
    assert f"<code>{SELECTION}</code>" in page


def test_the_page_says_what_theory_assumes_where_it_applies(report: Path) -> None:
    page = report.read_text()
    told = {theory: assumptions in page for theory, assumptions in ASSUMPTIONS.items()}
    assert {theory for theory, is_told in told.items() if is_told} == {"ReLU", "fixed ETF, ReLU"}


def test_the_page_gives_one_line_where_no_theory_applies(report: Path) -> None:
    _, _, section = report.read_text().partition("<h2>Where no theory applies</h2>")
    lines = re.findall(r"<li>(.*)</li>", section.partition("<h2>")[0])
    assert lines == ["nearest_etf: no closed form is known for head.name=nearest_etf."]


def test_where_theory_applies_to_every_arm_the_page_has_no_reason(make_run: MakeRun, tmp_path: Path) -> None:
    page = write_report([make_run("digits", epochs=(3,))], tmp_path / "report").read_text()
    assert "Theory beside measurement: ReLU" in page and "Where no theory applies" not in page


def test_many_pictures_are_folded_away_and_the_knob_is_not(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ncflow.reports.page.FEW", 1)
    overrides = [{"train": {"lr": 0.5**i, "loss": "ce"}} for i in range(2)]
    runs = [make_run(f"run{o['train']['lr']}", head="nearest_etf", epochs=(3,), overrides=o) for o in overrides]
    page = write_report(runs, tmp_path / "report").read_text()
    folded = re.findall(r"<summary>(.*?): (\d+) figures", page)
    assert folded == [("Cosine matrices", "2"), ("Confusion matrices", "2")]
    assert "What the choice does" in page
    assert "Theory beside measurement" not in page


def test_one_run_alone_makes_a_report(make_run: MakeRun, tmp_path: Path) -> None:
    page = write_report([make_run("digits", head="nearest_etf", without=("acc/few",))], tmp_path / "report").read_text()
    assert "1 run in 1 arm:" in page
    assert "What differs" not in page
    assert "<td>—</td>" in page


def test_figures_lie_beside_the_page(report: Path) -> None:
    names = {file.name for file in (report.parent / "figures").iterdir()}
    heads = ("linear", "fixed_etf", "nearest_etf")
    assert names == {"curves.png", "classwise.png", "theory_ReLU.png", "theory_fixed-ETF-ReLU.png"} | {
        f"{k}_digits-{h}-0.png" for k in ("cosines", "confusion") for h in heads
    }
    assert all((report.parent / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_figures_of_one_section_share_one_scale(report: Path) -> None:
    image = r'<img(?: style="width: ([\d.]+)%")? src="[^"]*" alt="Cosine matrices: ([^"]*)-0, '
    images = re.findall(image, report.read_text())
    panels = {name: 3 if "nearest" in name else 5 for _, name in images}  # of the nearest ETF there is no theory
    assert {name: float(share or 100) for share, name in images} == {name: 20.0 * n for name, n in panels.items()}
    assert len(images) == 3


def test_the_same_runs_give_the_same_report(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("digits", head="nearest_etf")
    once, again = (write_report([run], tmp_path / name) for name in ("one", "two"))
    for file in ("index.html", "summary.json", "curves.csv", "statistics.csv"):
        assert (once.parent / file).read_bytes() == (again.parent / file).read_bytes()
