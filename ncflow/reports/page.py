"""The report: one self-contained HTML page, with its figures and numbers in files next to it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from ncflow.files import folder_next_to, replace_folder
from ncflow.reports.against_published import comparisons
from ncflow.reports.against_theory import lengths_figure, predictions, theory_table, without_theory
from ncflow.reports.arms import Arm, arms, facets, knobs, labels
from ncflow.reports.curves import classwise_figure, curves_figure
from ncflow.reports.exports import PLOTS, write_curves, write_plots, write_statistics, write_summary
from ncflow.reports.figures import confusion_figure, cosine_figure, to_png
from ncflow.reports.findings import findings
from ncflow.reports.highlights import highlights, present
from ncflow.reports.knobs import knob_figures
from ncflow.reports.predictions import ASSUMPTIONS, predict
from ncflow.reports.priors import priors_figure
from ncflow.reports.tables import as_html, summary_table
from ncflow.runs.reader import Run, config_differences, load_runs

PAGE, FIGURES = "index.html", "figures"
FEW = 6  # more pictures of arms than this are folded


class Picture(NamedTuple):
    """A figure in a section of the page; `name` is the name of its file."""

    section: str
    name: str
    about: str
    figure: Figure


def write_report(
    run_folders: Iterable[str | Path], out_dir: str | Path, *, title: str = "Neural collapse report"
) -> Path:
    """Write index.html, figures/*.png, summary.json and the CSV files of `exports`; return the page's path.

    Once all files are complete, they replace those of an earlier report, including all its figures. Raises ValueError
    for a run folder that is missing, unfinished or damaged.
    """
    runs = load_runs(run_folders)
    out_dir = Path(out_dir)
    sections: dict[str, list[dict[str, Any]]] = {}
    with folder_next_to(out_dir) as new:
        (new / FIGURES).mkdir()
        for picture in _pictures(arms(runs)):
            png = to_png(picture.figure)
            (new / FIGURES / f"{picture.name}.png").write_bytes(png)
            inches = picture.figure.get_figwidth()
            shown = {"name": picture.name, "about": picture.about, "inches": inches, "image": _data_uri(png)}
            sections.setdefault(picture.section, []).append(shown)
        write_summary(runs, new / "summary.json")
        write_curves(runs, new / "curves.csv")
        write_plots(runs, new)
        write_statistics(runs, new / "statistics.csv")
        (new / PAGE).write_text(_render(runs, sections, title), encoding="utf-8")
        out_dir.mkdir(exist_ok=True)
        replace_folder(new / FIGURES, out_dir / FIGURES)
        for name in ("summary.json", "curves.csv", *PLOTS, "statistics.csv", PAGE):
            (new / name).replace(out_dir / name)
    return out_dir / PAGE


def _pictures(compared: Sequence[Arm]) -> Iterator[Picture]:
    """Yield the figures of the report, drawn one by one: those of a large group do not fit into memory together."""
    for key in knobs(compared):
        for title, figure in knob_figures(compared, key).items():
            yield Picture("knobs", _file_name("knob", key, title), title, figure)
    for title, members in facets(compared).items():
        yield Picture("curves", _file_name("curves", title), title, curves_figure(members, title))
        yield Picture("classwise", _file_name("classwise", title), title, classwise_figure(members, title))
        if under_priors := priors_figure(members, title):
            yield Picture("priors", _file_name("priors", title), title, under_priors)
        for theory, predicted in predictions(members).items():
            figure = lengths_figure(predicted, title)
            yield Picture(theory, _file_name("theory", theory, title), title, figure)
    for arm in compared:
        yield from _portraits(arm.representative)


def _portraits(run: Run) -> Iterator[Picture]:
    """The cosine and confusion matrices of one run."""
    dump, counts, about = run.dump, run.dump["class_counts"], f"{run.name}, epoch {run.epoch}"
    prediction = predict(run)
    ideal = (prediction.theory, prediction.optimum.class_means, prediction.optimum.weight) if prediction else None
    known: dict[str, Any] = {"class_counts": counts, "class_names": run.class_names, "title": about}
    cosines = cosine_figure(dump["class_means"], dump.get("weight"), predicted=ideal, **known)
    yield Picture("cosines", f"cosines_{run.name}", about, cosines)
    if len(dump["targets"]):  # measured features may lack a test split, or a classifier
        confusion = confusion_figure(dump["predictions"], dump["targets"], len(counts), **known)
        yield Picture("confusion", f"confusion_{run.name}", about, confusion)


def _render(runs: Sequence[Run], sections: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    compared = arms(runs)
    names = dict(zip(compared, labels(compared), strict=True))
    validated = any(run.best_epoch is not None for run in runs)
    return environment.get_template("page.html.j2").render(
        title=title,
        runs=runs,
        arms=names,
        few=FEW,
        sections=sections,
        findings=findings(compared),
        summary=as_html(summary_table(runs)),
        validated=validated,
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
        shared=_shared_config(runs),
        training=[_training(run) for run in runs],
    )


def _file_name(*parts: str) -> str:
    """Join the non-empty parts, without characters that a file system may reject."""
    return "_".join(re.sub(r"[^\w.=+-]+", "-", part).strip("-") for part in parts if part)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _datasets(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each data set once, with its class counts and its runs."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        counts = [int(count) for count in run.dump["class_counts"]]
        key = json.dumps([run.config.get("dataset"), counts])
        config = {"name": "unknown"} | run.config.get("dataset", {})
        entry = found.setdefault(key, {"config": config, "counts": counts, "runs": []})
        entry["runs"].append(run.name)
    return list(found.values())


def _shared_config(runs: Sequence[Run]) -> dict[str, Any]:
    """The options that all runs share."""
    differing = config_differences(runs)
    return {key: value for key, value in runs[0].options.items() if key not in differing}


def _training(run: Run) -> dict[str, Any]:
    """The last epoch of the history, with the run's name and its total seconds."""
    return run.history[-1] | {"run": run.name, "seconds": sum(record["seconds"] for record in run.history)}
