"""Post-hoc classifiers in reports: right after their run, over seeds, in the exported numbers, and for a terminal."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from ncflow.files import checksum
from ncflow.reports import arms, findings, posthoc_table
from ncflow.reports.page import write_report
from ncflow.reports.tables import ABSENT, as_html, as_markdown, as_text, summary_table
from ncflow.runs.posthoc import PostHoc, write_posthoc
from ncflow.runs.reader import load_runs

MakeRun = Callable[..., Path]
Make = Callable[..., Path]


@pytest.fixture
def make(make_run: MakeRun) -> Make:
    """A finished run whose post-hoc methods have these balanced accuracies."""

    def make(name: str, *, sha256: str = "", methods: dict[str, float], **options: object) -> Path:
        folder = make_run(name, **options)
        (folder / "final_model.pth").write_bytes(name.encode())
        own = {"acc/balanced": 0.5, "acc/few": 0.25}
        test = {f"posthoc/{m}/{key}": value for m, value in methods.items() for key in own}
        chosen = {f"posthoc/{m}/tau": 0.7 for m in methods if m != "ncm"}
        by = {m: "" if m == "ncm" else "val" for m in methods}
        sha256 = sha256 or checksum(folder / "final_model.pth")
        write_posthoc(folder, PostHoc("0.1.0", sha256, {"test": own | test}, chosen, by))
        return folder

    return make


def test_a_run_is_followed_by_its_methods_with_the_columns_they_have(make: Make) -> None:
    runs = load_runs([make("a", methods={"ncm": 0.625, "crt": 0.75}), make("b", head="fixed_etf", methods={})])
    table = summary_table(runs)
    assert [row.cells[:3] for row in table.rows] == [
        ("linear", "0", "12"),
        ("linear, post hoc: ncm", "0", "12"),
        ("linear, post hoc: crt", "0", "12"),
        ("fixed_etf", "0", "12"),
    ]
    headings = ["".join(heading) for heading in table.headings]
    cells = dict(zip(headings, table.rows[1].cells, strict=True))
    assert cells["test acc/balanced %"] == cells["test acc/few %"] == "62.5"
    assert cells["test acc/tail20 %"] == cells["train nc1/pinv"] == ABSENT
    assert [row.posthoc for row in table.rows] == [False, True, True, False]


def test_several_seeds_have_mean_and_std_of_each_method(make: Make) -> None:
    values = (0.5, 0.75)
    runs = load_runs(
        [
            make("a", seed=0, methods={"ncm": values[0], "lws": 0.3}),
            make("b", seed=1, methods={"ncm": values[1]}),
            make("c", seed=2, methods={}),
        ]
    )
    table = summary_table(runs)
    (last,) = [row for row in table.rows if row.aggregate and row.posthoc]  # lws has one seed only
    assert last.cells[:2] == ("linear, post hoc: ncm", "mean ± std of 2")
    balanced = ["".join(heading) for heading in table.headings].index("test acc/balanced %")
    assert last.cells[balanced] == f"62.5 ± {100 * statistics.stdev(values):.1f}"


def test_a_sentence_names_the_best_classifier_after_training(make: Make) -> None:
    first = [make("a", seed=0, methods={"ncm": 0.6, "crt": 0.9}), make("b", seed=1, methods={"ncm": 0.7})]
    other = make("c", head="fixed_etf", methods={"lws": 0.1})
    own = statistics.fmean(run.final("test/acc/balanced") or 0 for run in load_runs(first))
    (said, *_) = findings(arms(load_runs([*first, other])))  # crt has one seed only
    assert said == (
        "After training, ncm on the features of linear has the highest balanced test accuracy of 2 tried: 65.0 %, "
        f"{abs(65 - 100 * own):.1f} points {'above' if own <= 0.65 else 'below'} the trained classifier."
    )
    (said,) = findings(arms(load_runs([other])))
    assert said.startswith("After training, lws on the features has the highest") and "below the trained" in said
    assert findings(arms(load_runs([make("d", methods={})]))) == []


def test_results_of_another_checkpoint_are_left_out_with_a_note(make: Make, tmp_path: Path) -> None:
    folder = make("a", sha256="another", methods={"ncm": 0.6})
    table = summary_table(load_runs([folder]))
    assert len(table.rows) == 1
    for text in (
        as_text(table),
        as_markdown(table),
        as_html(table),
        write_report([folder], tmp_path / "r", figures=()).read_text(),
    ):
        assert "a.posthoc.json is ignored: it is of another checkpoint than a" in text and "post hoc: ncm" not in text


def test_the_page_says_what_post_hoc_means_only_where_it_is_used(make: Make, tmp_path: Path) -> None:
    used = write_report([make("a", methods={"<b>": 0.6})], tmp_path / "used", figures=()).read_text()
    unused = write_report([make("b", methods={})], tmp_path / "unused", figures=()).read_text()
    assert "linear, post hoc: &lt;b&gt;" in used and '<tr class="posthoc">' in used
    assert ('"Post hoc": another' in used, '"Post hoc": another' in unused) == (True, False)


def test_summary_and_statistics_hold_the_methods(make: Make, tmp_path: Path) -> None:
    folders = [make("a", seed=0, methods={"crt": 0.5}), make("b", seed=1, methods={"crt": 0.75})]
    write_report(folders, tmp_path / "r", figures=())
    (seeds,) = json.loads((tmp_path / "r" / "summary.json").read_text()).values()
    assert seeds["1"]["posthoc"] == {"crt": {"test/acc/balanced": 0.75, "test/acc/few": 0.75}}
    with (tmp_path / "r" / "statistics.csv").open() as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(rows["test/posthoc/crt/acc/balanced"]["mean"]) == 0.625
    assert float(rows["posthoc/crt/tau"]["mean"]) == 0.7


def test_the_terminal_shows_how_options_were_chosen(make: Make) -> None:
    (run,) = load_runs([make("a", methods={"tau_norm": 0.6, "ncm": 0.7})])
    assert run.posthoc is not None
    assert [row.cells for row in posthoc_table(run.posthoc).rows] == [
        ("the run itself", ABSENT, "50.0", ABSENT, ABSENT, "25.0"),
        ("tau_norm", "tau 0.7 (by val)", "60.0", ABSENT, ABSENT, "60.0"),
        ("ncm", ABSENT, "70.0", ABSENT, ABSENT, "70.0"),
    ]
