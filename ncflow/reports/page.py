"""The report: one self-contained HTML page, with its figures, tables and numbers in files next to it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ncflow.files import folder_next_to, replace_folder
from ncflow.reports.against_published import comparisons
from ncflow.reports.against_theory import predictions, theory_table, without_theory
from ncflow.reports.arms import LINES, Arm, arms, facets, knobs, labels, lines
from ncflow.reports.canvas import COLUMN, WIDE
from ncflow.reports.exports import PLOTS, write_curves, write_plots, write_statistics, write_summary
from ncflow.reports.findings import findings, verdict
from ncflow.reports.highlights import highlights, present
from ncflow.reports.looks import CROWD, looks
from ncflow.reports.made import PAGE
from ncflow.reports.paper import FIGURES, write_rows
from ncflow.reports.predictions import ASSUMPTIONS
from ncflow.reports.rows import Lacking
from ncflow.reports.saving import to_bytes, to_svg
from ncflow.reports.tables import arm_table, as_html, as_latex, as_markdown, summary_table
from ncflow.runs.reader import Run, config_differences, load_runs

FOLDER = "figures"
TABLES = {"table.tex": as_latex, "table.md": as_markdown}
FEW = 6  # more arms or figures than this are folded
VITAL = {  # options that the page never folds away
    *("dataset.name", "dataset.imb_type", "dataset.imb_factor", "model.name", "head.name", "train.loss"),
    *("train.optimizer", "train.lr", "train.epochs", "train.batch_size", "train.weight_decay"),
}
MOST_ROWS = 50_000  # of a CSV file next to the page; `ncflow figure` writes any


class Part(NamedTuple):
    """A figure of the page before it is drawn: what its arms share, the arms, and the option of a knob."""

    about: str
    arms: Sequence[Arm]
    along: str = ""


class Picture(NamedTuple):
    """A figure of the page: its row of FIGURES, what its arms share, and the files next to the page."""

    chart: str
    about: str
    svg: str
    files: tuple[str, ...]


def write_report(run_folders: Iterable[str | Path], out_dir: str | Path, **options: Any) -> Path:
    """Load the runs in some folders and write their page; options as in `write_page`.

    Raises ValueError for a run folder that is missing, unfinished or damaged.
    """
    return write_page(load_runs(run_folders), out_dir, **options)


def write_page(
    runs: Sequence[Run],
    out_dir: str | Path,
    *,
    title: str = "Neural collapse report",
    about: str = "",
    defaults: Mapping[str, Any] | None = None,
    figures: Collection[str] | None = None,
    links: Mapping[str, str] | None = None,
) -> Path:
    """Write index.html, figures/, the table of arms, and the files of `exports`; return the page's path.

    Once all files are complete, they replace those of an earlier report, including all its figures. `about` says what
    the comparison is for. `defaults` are options by dotted key, which the page folds away. `figures` are rows of
    FIGURES; by default all that these runs have data for. `links` are addresses by name of a run.
    """
    out_dir, compared = Path(out_dir), arms(runs)
    with folder_next_to(out_dir) as new:
        (new / FOLDER).mkdir()
        pictures = list(_pictures(compared, FIGURES if figures is None else figures, new / FOLDER))
        write_summary(runs, new / "summary.json")
        write_curves(runs, new / "curves.csv")
        write_plots(runs, new)
        write_statistics(runs, new / "statistics.csv")
        for name, written in TABLES.items():
            (new / name).write_text(written(arm_table(runs)) + "\n", encoding="utf-8")
        page = _render(runs, compared, pictures, title=title, about=about, defaults=defaults or {}, links=links or {})
        (new / PAGE).write_text(page, encoding="utf-8")
        out_dir.mkdir(exist_ok=True)
        replace_folder(new / FOLDER, out_dir / FOLDER)
        for name in ("summary.json", "curves.csv", *PLOTS, "statistics.csv", *TABLES, PAGE):
            (new / name).replace(out_dir / name)
    return out_dir / PAGE


def few_of(compared: Sequence[Arm], most: int = CROWD) -> list[Arm]:
    """At most so many arms, at equal distances in their order."""
    if len(compared) <= most:
        return list(compared)
    return [compared[place * (len(compared) - 1) // (most - 1)] for place in range(most)]


def _pictures(compared: Sequence[Arm], wanted: Collection[str], folder: Path) -> Iterator[Picture]:
    """Draw the figures one by one and write their files; those of a large group do not fit into memory together."""
    number = 0
    for name, chart in FIGURES.items():
        for part in _parts(name, compared) if name in wanted else ():
            more = (part.along,) if part.along else ()
            try:
                data = chart.read(part.arms, *more)
            except Lacking:
                continue
            style = looks(chart.styled(part.arms, *more))
            number += 1
            svg = to_svg(chart.draw(data, style, WIDE), prefix=f"{number}-")
            stem = _file_name(name, part.along, part.about)
            (folder / f"{stem}.svg").write_text(svg, encoding="utf-8")
            (folder / f"{stem}.pdf").write_bytes(to_bytes(chart.draw(data, style, COLUMN), "pdf"))
            kinds = ["svg", "pdf"]
            if len(data) <= MOST_ROWS:
                write_rows(data, folder / f"{stem}.csv")
                kinds.append("csv")
            yield Picture(name, part.about, svg, tuple(f"{FOLDER}/{stem}.{kind}" for kind in kinds))


def _parts(name: str, compared: Sequence[Arm]) -> Iterator[Part]:
    """The arms of each figure of a row. Many arms share one figure as thin lines; others show a few of them."""
    chart = FIGURES[name]
    if name == "knob":
        for key in knobs(compared):
            crowd = len(lines(compared, along=key)) > CROWD
            groups = {"": list(compared)} if crowd else facets(compared, along=key)
            yield from (Part(about, members, key) for about, members in groups.items())
    elif chart.crowd and len(compared) > CROWD:
        yield Part("", compared)
    elif chart.spread_out:
        yield Part("", few_of(compared))
    else:
        shown = few_of(compared, LINES) if len(compared) > CROWD else compared
        yield from (Part(about, members) for about, members in facets(shown).items())


def _render(
    runs: Sequence[Run],
    compared: Sequence[Arm],
    pictures: Sequence[Picture],
    *,
    title: str,
    about: str,
    defaults: Mapping[str, Any],
    links: Mapping[str, str],
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = dict(zip(compared, labels(compared), strict=True))
    shared = _shared_config(runs)
    usual = {key: value for key, value in shared.items() if key not in VITAL and _is_usual(key, value, defaults)}
    return environment.get_template("page.html.j2").render(
        title=title,
        about=about,
        runs=runs,
        links=links,
        local=any(address.startswith("http://127.0.0.1") for address in links.values()),
        arms=names,
        few=FEW,
        few_arms=min(len(compared), CROWD),
        sections=_sections(pictures),
        charts=FIGURES,
        verdict=verdict(compared),
        findings=findings(compared),
        results=as_html(arm_table(runs)),
        summary=as_html(summary_table(runs)),
        validated=any(run.best_epoch is not None for run in runs),
        posthoc=any(run.posthoc and run.posthoc.methods for run in runs),
        theories=[
            {
                "name": name,
                "assumptions": ASSUMPTIONS[name],
                "arms": len(predicted),
                "table": as_html(theory_table(predicted, names)),
            }
            for name, predicted in predictions(compared).items()
        ],
        without_theory=without_theory(compared, names),
        published=[shown._asdict() | {"table": as_html(shown.table)} for shown in comparisons(names)],
        highlights={key: highlights()[key] for key in present(highlights(), runs)},
        datasets=_datasets(runs),
        differences={key: values for key, values in config_differences(runs).items() if key != "exp_name"},
        shared={key: value for key, value in shared.items() if key not in usual},
        usual=usual,
        training=[_training(run) for run in runs],
    )


def _sections(pictures: Sequence[Picture]) -> dict[str, dict[str, list[Picture]]]:
    """Section -> chart -> its pictures, in the order of FIGURES."""
    found: dict[str, dict[str, list[Picture]]] = {}
    for picture in pictures:
        found.setdefault(FIGURES[picture.chart].section, {}).setdefault(picture.chart, []).append(picture)
    return found


def _file_name(*parts: str) -> str:
    """Join the non-empty parts, without characters that a file system may reject."""
    return "_".join(re.sub(r"[^\w.=+-]+", "-", part).strip("-") for part in parts if part)


def _datasets(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each data set once, with its classes, their counts and its runs."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        counts = [int(count) for count in run.dump["class_counts"]]
        key = json.dumps([run.config.get("dataset"), counts])
        if key not in found:
            config = {name: value for name, value in run.config.get("dataset", {}).items() if value is not None}
            names = run.class_names or [str(number) for number in range(len(counts))]
            sizes = dict(sorted(enumerate(counts), key=lambda item: -item[1]))
            classes = [(names[number], count) for number, count in sizes.items()]
            found[key] = {"config": {"name": "unknown"} | config, "counts": counts, "classes": classes, "runs": []}
        found[key]["runs"].append(run.name)
    return list(found.values())


def _shared_config(runs: Sequence[Run]) -> dict[str, Any]:
    """The options that all runs share."""
    differing = config_differences(runs)
    return {key: value for key, value in runs[0].options.items() if key not in differing}


def _is_usual(key: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    """Whether an option is not set, or has its default."""
    return value is None or value in ({}, []) or (key in defaults and defaults[key] == value)


def _training(run: Run) -> dict[str, Any]:
    """The last epoch of the history, with the run's name and its total seconds."""
    return run.history[-1] | {"run": run.name, "seconds": sum(record["seconds"] for record in run.history)}
