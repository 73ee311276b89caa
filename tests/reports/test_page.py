"""The page is complete and needs nothing outside itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from ncflow.experiments import hypothesis
from ncflow.reports import arms, summary_table, verdict
from ncflow.reports.highlights import OPTIONAL, highlights
from ncflow.reports.looks import CROWD
from ncflow.reports.page import few_of, write_report
from ncflow.reports.paper import lacking
from ncflow.reports.predictions import ASSUMPTIONS
from ncflow.reports.tables import arm_table, as_latex, as_markdown
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

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Elements of pictures close themselves."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_asks_for_nothing_outside_itself(report: Path) -> None:
    page = report.read_text()
    links = Links()
    links.feed(page)
    assert all((report.parent / address).is_file() for address in links.addresses)  # offered, not loaded
    loaded = re.findall(r'(?:src|xlink:href)="([^"]*)"', page)
    assert loaded and all(address.startswith(("#", "data:image/png;base64,")) for address in loaded)
    assert not re.search(r"url\((?!#)|@import|<link|<script [^>]", page)
    assert len(page.partition("<script>")[2].partition("</script>")[0]) < 10_000


def test_every_id_in_the_page_is_unique(report: Path) -> None:
    ids = re.findall(r' id="([^"]*)"', report.read_text())
    assert ids and len(ids) == len(set(ids))


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
    assert "0: 126, 1: 84, 2: 56, 3: 37, 4: 24, 5: 16, 6: 11, 7: 7, 8: 5, 9: 3" in page
    assert "<th><code>head.name</code></th>" in page
    assert "<td>digits-nearest_etf-1</td><td>nearest_etf</td><td>5.0</td><td>1</td>" in page
    assert "<code>train.batch_size: 64</code>" in page
    assert "train.batch_size</code></th>" not in page


def test_titles_and_names_are_escaped(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("a<b>&c", head="nearest_etf")
    words = {"title": "<script>alert(1)</script>", "about": "<script>alert(2)</script>"}
    page = write_report([run], tmp_path / "report", figures=["curves"], **words).read_text()
    assert "<script>alert" not in page and page.count("&lt;script&gt;alert") == 3
    assert "a&lt;b&gt;&amp;c" in page


def test_runs_are_linked_where_their_address_is_known(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("a", head="nearest_etf"), make_run("b", head="linear")]
    links = {"a": 'http://127.0.0.1:5000/#/x?searchFilter="1"&y'}
    page = write_report(runs, tmp_path / "report", figures=(), links=links).read_text()
    address = 'href="http://127.0.0.1:5000/#/x?searchFilter=&#34;1&#34;&amp;y"'
    assert page.count(address) == 3  # its seed on top, and its name in two tables
    assert page.count('rel="noreferrer">a</a>') == 2 and ">b</a>" not in page
    assert "while <code>ncflow ui</code> is running" in page


def test_the_page_says_how_the_best_epoch_is_chosen(make_run: MakeRun, tmp_path: Path) -> None:
    validated = make_run("digits", head="nearest_etf", validation=(0.1, 0.8, 0.3, 0.2))
    page = write_report([validated], tmp_path / "report", figures=()).read_text()
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
    page = write_report([make_run("digits", epochs=(3,))], tmp_path / "report", figures=()).read_text()
    assert "Theory beside measurement: ReLU" in page and "Where no theory applies" not in page


def test_many_pictures_are_folded_away_and_few_are_not(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [{"train": {"lr": 0.5**i, "loss": "ce"}} for i in range(8)]
    runs = [make_run(f"run{o['train']['lr']}", head="nearest_etf", epochs=(3,), overrides=o) for o in overrides]
    monkeypatch.setattr("ncflow.reports.page.FEW", 1)
    page = write_report(runs, tmp_path / "report", figures=["knob", "groups"]).read_text()
    assert re.findall(r"<summary>(.*?): (\d+) figures", page) == [("groups", "2")]
    assert "What the choice does" in page
    assert "Theory beside measurement" not in page


def test_of_many_arms_a_few_are_shown_in_detail_and_the_page_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    overrides = [{"train": {"lr": 0.5**i, "loss": "ce"}} for i in range(CROWD + 1)]
    runs = [make_run(f"run{o['train']['lr']}", head="nearest_etf", epochs=(3,), overrides=o) for o in overrides]
    page = write_report(runs, tmp_path / "report", figures=["confusion", "priors", "correlation"])
    assert f"show at most {CROWD} of the {CROWD + 1} arms" in page.read_text()
    data = {name: pd.read_csv(page.parent / "figures" / f"{name}.csv") for name in ("confusion", "correlation")}
    assert {name: frame["arm"].nunique() for name, frame in data.items()} == {
        "confusion": CROWD,
        "correlation": CROWD + 1,
    }


def test_a_few_of_many_are_at_equal_distances() -> None:
    assert few_of(list(range(5)), 12) == list(range(5))
    assert few_of(list(range(100)), 12) == [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]


def test_options_that_are_not_set_or_have_their_default_are_folded_away(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("digits", overrides={"dataset": {"name": "digits", "root": None, "seed": 0, "min_samples": 3}})
    defaults = {"dataset.seed": 0, "dataset.min_samples": 0, "dataset.name": "digits"}
    page = write_report([folder], tmp_path / "report", figures=(), defaults=defaults).read_text()
    shown, _, folded = page.partition("What all runs share")[2].partition("<details>")
    for key, is_shown in {"dataset.name": True, "dataset.min_samples": True, "dataset.seed": False}.items():
        assert (f"<code>{key}:" in shown) == is_shown and (f"<code>{key}:" in folded) != is_shown
    assert "<code>dataset.root: None</code>" in folded and "root: None" not in page.partition("<h2>Configuration")[0]


def test_the_page_says_which_arm_leads_and_what_the_comparison_is_for(
    report: Path, three_heads_two_seeds: list[Path]
) -> None:
    runs = load_runs(three_heads_two_seeds)
    assert f'<p class="verdict">{verdict(arms(runs))}</p>' in report.read_text()


def test_the_hypothesis_of_a_group_is_on_the_page(make_run: MakeRun, tmp_path: Path) -> None:
    page = write_report([make_run("digits")], tmp_path / "report", figures=(), about=hypothesis("exp6"))
    assert "Hypothesis: the drift causes the low tail accuracy" in page.read_text()


def test_the_table_of_arms_lies_next_to_the_page_for_a_paper(report: Path, three_heads_two_seeds: list[Path]) -> None:
    table = arm_table(load_runs(three_heads_two_seeds))
    assert (report.parent / "table.tex").read_text() == as_latex(table) + "\n"
    assert (report.parent / "table.md").read_text() == as_markdown(table) + "\n"


def test_one_run_alone_makes_a_report(make_run: MakeRun, tmp_path: Path) -> None:
    page = write_report(
        [make_run("digits", head="nearest_etf", without=("acc/few",))], tmp_path / "report", figures=()
    ).read_text()
    assert "1 run in 1 arm:" in page
    assert "What differs" not in page
    assert "<td>—</td>" in page


def test_figures_lie_beside_the_page_as_vectors_and_as_data(report: Path, three_heads_two_seeds: list[Path]) -> None:
    missing = lacking(load_runs(three_heads_two_seeds))
    names = {name for name, reason in missing.items() if not reason}
    files = {file.name: file.read_bytes() for file in (report.parent / "figures").iterdir()}
    assert set(files) == {f"{name}.{kind}" for name in names for kind in ("svg", "pdf", "csv")}
    assert {"curves", "classwise", "cosines", "confusion", "theory", "norms", "spectra"} <= names
    starts = {"svg": b"<svg", "pdf": b"%PDF", "csv": b"arm,"}
    assert all(content.startswith(starts[name.rpartition(".")[2]]) for name, content in files.items())
    page = report.read_text()
    assert all(files[f"{name}.svg"].decode() in page for name in names)


def test_the_same_runs_give_the_same_report(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("digits", head="nearest_etf")
    once, again = (
        write_report([run], tmp_path / name, figures=["curves", "cosines"]).parent for name in ("one", "two")
    )
    files = sorted(file.relative_to(once) for file in once.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(again) for file in again.rglob("*") if file.is_file())
    assert all((once / file).read_bytes() == (again / file).read_bytes() for file in files)
