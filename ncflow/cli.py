"""The command line. Each command imports its stage only when it runs, which keeps `ncflow --help` fast."""

from __future__ import annotations

import math
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ncflow.params import Params

app = typer.Typer(
    help="Train classifiers on long-tailed images, watch neural collapse emerge or break, and compare runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
TABLES = {  # of named rows with options; models, datasets, metrics and experiments also have own commands
    "heads": "ncflow.nn:HEADS",
    "frames": "ncflow.geometry:FRAMES",
    "losses": "ncflow.nn:LOSSES",
    "penalties": "ncflow.nn:PENALTIES",
    "optimizers": "ncflow.training:OPTIMIZERS",
    "schedules": "ncflow.training:SCHEDULES",
    "samplings": "ncflow.data:SAMPLINGS",
    "augmentations": "ncflow.data:AUGMENTATIONS",
    "mixes": "ncflow.data:MIXES",
    "posthoc": "ncflow.posthoc:POSTHOC",
    "models": "ncflow.nn:BACKBONES",
    "datasets": "ncflow.data:SOURCES",
}
PROCESSES = "NCFLOW_PROCESSES"  # the number of processes that a suite sets for each run
GROUPS = "groups"  # the folder of a project with files of groups
IMPORT = "NCFLOW_IMPORT"  # the files of --import, for `dvc repro`, `mlflow run` and all their child processes
Config = Annotated[Path | None, typer.Option(help="YAML file; default: the project's params.yaml, if it exists.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key; can be repeated.")]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUES", help="Vary a key: train.lr=0.3,0.1 or seed=0..4; repeat it for all combinations."
    ),
]
MaxRuns = Annotated[int, typer.Option("--max-runs", min=1, help="The most runs that --grid or a group's file makes.")]
Head = Annotated[str, typer.Option(help="Use this head in every run.")]
Data = Annotated[Path | None, typer.Option("--snapshot", help="Snapshot folder; default: data/<its name>.")]
Extend = Annotated[
    bool, typer.Option("--extend", help="Resume from the finished run that differs only in having fewer train.epochs.")
]
Pipeline = Annotated[bool, typer.Option("--pipeline", help="Do the work of the DVC stage that runs this command.")]


def _show_version(asked: bool) -> None:
    if asked:
        from ncflow import __version__

        _say(f"ncflow {__version__}")
        raise typer.Exit


@app.callback()
def rows_of_your_own(
    import_: Annotated[
        list[Path] | None,
        typer.Option("--import", metavar="FILE", envvar=IMPORT, help="Python file that adds rows to ncflow's tables."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit.")
    ] = False,
) -> None:
    files = [file.resolve() for file in import_ or []]
    if not files:
        return
    from ncflow.imports import import_file

    for file in files:
        import_file(file)
    os.environ[IMPORT] = os.pathsep.join(map(str, files))  # child processes import them as well


@app.command()
def snapshot(
    config: Config = None,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder to create; default: data/<its name>.")] = None,
    pipeline: Pipeline = False,
) -> None:
    """Freeze a long-tailed training split and its test split on disk."""
    from ncflow import stages
    from ncflow.experiments.pipeline import pipeline_snapshot, refuse_unwatched

    params = _load(config, set_)
    if pipeline:
        _refuse_beside_pipeline(config=config, set=set_, out=out)
        refuse_unwatched(params, _root())
        out = pipeline_snapshot(params, _root())
    made = stages.snapshot(params, out or _snapshot_path(params))
    _say(f"{made.path}: {made.num_classes} classes, training samples {made.class_counts}")


@app.command()
def train(
    config: Config = None,
    set_: Set = None,
    data: Data = None,
    group: Annotated[str | None, typer.Option(help="Tag shared by the runs of one comparison.")] = None,
    suite: Annotated[str | None, typer.Option(help="Tag of the suite that starts this run.")] = None,
    trial: Annotated[int | None, typer.Option(min=0, help="Tag: its number in the search that starts it.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, envvar=PROCESSES, help="Processes that train it together; default: one.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Resolve and print the configuration; train nothing.")] = False,
    extend: Extend = False,
    unless_finished: Annotated[
        bool, typer.Option("--unless-finished", help="Exit with 76 if the run is finished, instead of training again.")
    ] = False,
    pipeline: Pipeline = False,
) -> None:
    """Train one configuration: one MLflow run, one folder models/<exp_name>/.

    After any stop, the same command resumes after the last finished epoch. SIGTERM ends it with exit code 75.
    """
    params = _load(config, set_)
    if pipeline:
        from ncflow.experiments.pipeline import pipeline_run, pipeline_snapshot, refuse_unwatched

        _refuse_beside_pipeline(config=config, set=set_, snapshot=data, group=group)
        refuse_unwatched(params, _root())
        data, group = pipeline_snapshot(params, _root()), params.exp_name
        params = pipeline_run(params, _root()).params
    from ncflow.suite import claimed, is_first, is_launched, launch

    if processes and processes > 1 and not (check or is_launched()):
        with claimed(_root(), params.exp_name):
            pass  # reject a run in training before several processes wait for each other
        sys.exit(launch(["-m", "ncflow", *sys.argv[1:]], processes))
    from ncflow import assembly, stages  # imports torch: report errors in the parameters first
    from ncflow.runs.layout import run_folder
    from ncflow.training import skip_compiler

    skip_compiler()
    if check:
        from ncflow.yaml_files import dump_yaml

        assembly.check(params)
        _say(dump_yaml(params.resolved()).rstrip())
        return
    root = _root()
    folder = run_folder(root, params.exp_name)
    data = data or _snapshot_path(params)
    stages.train(
        params,
        folder=folder,
        data=data,
        root=root,
        group=group,
        suite=suite,
        trial=trial,
        processes=processes,
        extend=extend,
        unless_finished=unless_finished,
    )
    if is_first():
        _say(f"finished: {folder}\n{stages.result(folder)}\nnext: `uv run ncflow report {_shown(folder)}`")


@app.command()
def evaluate(
    folder: Annotated[Path | None, typer.Argument(help="Run folder, such as models/main_linear_ce_seed0.")] = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the metrics.")] = None,
    pipeline: Pipeline = False,
) -> None:
    """Recompute every metric from the checkpoint; fail if it is not the trained model."""
    from ncflow import stages
    from ncflow.runs.layout import evaluation_file
    from ncflow.suite import is_first

    if pipeline:
        from ncflow.experiments.pipeline import pipeline_run, pipeline_snapshot

        _refuse_beside_pipeline(folder=folder, snapshot=data, out=out)
        params = _load(None, None)
        data, (_, folder, out, _) = pipeline_snapshot(params, _root()), pipeline_run(params, _root())
    if folder is None:
        raise ValueError("expected a run folder, such as `ncflow evaluate models/main_linear_ce_seed0`, got none")
    data = data or stages.snapshot_of(folder, _root() / "data")
    metrics = stages.evaluate(folder, data, out or evaluation_file(folder))
    count = sum(map(len, metrics.values()))
    if is_first():
        _say(f"{folder}: the checkpoint is the model that was trained ({count} metrics measured again)")
        _say(stages.headline(metrics))


@app.command()
def posthoc(
    folder: Annotated[Path | None, typer.Argument(help="Run folder, such as models/main_linear_ce_seed0.")] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="Methods, such as ncm,crt; can be repeated; default: all that apply."),
    ] = None,
    data: Data = None,
    no_track: Annotated[bool, typer.Option("--no-track", help="Do not log the results to MLflow.")] = False,
    pipeline: Pipeline = False,
) -> None:
    """Measure other classifiers on the frozen features of a finished run; `ncflow rows posthoc` lists them."""
    from ncflow import stages
    from ncflow.reports import as_text, posthoc_table
    from ncflow.runs.posthoc import read_posthoc
    from ncflow.suite import is_first
    from ncflow.training import skip_compiler

    skip_compiler()
    out = None
    if pipeline:
        from ncflow.experiments.pipeline import pipeline_run, pipeline_snapshot

        _refuse_beside_pipeline(folder=folder, methods=methods, snapshot=data)
        params = _load(None, None)
        data, (_, folder, _, out) = pipeline_snapshot(params, _root()), pipeline_run(params, _root())
    if folder is None:
        raise ValueError("expected a run folder, such as `ncflow posthoc models/main_linear_ce_seed0`, got none")
    data = data or stages.snapshot_of(folder, _root() / "data")
    chosen = [name.strip() for text in methods or () for name in text.split(",") if name.strip()]
    if methods and not chosen:
        raise ValueError(f"--methods names no method, got {', '.join(map(repr, methods))}; leave it out to measure all")
    results = stages.posthoc(folder, data, chosen, out=out)
    if not is_first():
        return
    found = read_posthoc(folder)
    assert found is not None
    _say(as_text(posthoc_table(found)))
    for name, reason in results["skipped"].items():
        _say(f"skipped {name}: {reason}")
    if not no_track and not stages.track_posthoc(folder, _root()):
        _say(f"not logged: MLflow has no finished run of {folder}; `ncflow sync {_shown(folder)}` logs both")


@app.command()
def features(
    folder: Annotated[Path, typer.Argument(help="Run folder, such as models/main_linear_ce_seed0.")],
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: <run folder>.features.npz.")] = None,
) -> None:
    """Write features, targets, logits and classifier of every split of a finished run to one .npz file."""
    from ncflow import stages
    from ncflow.runs.layout import features_file
    from ncflow.suite import is_first

    out = out or features_file(folder)
    stages.features(folder, data or stages.snapshot_of(folder, _root() / "data"), out)
    if is_first():
        _say(f"{out}: measure it with `uv run ncflow measure {_shown(out)}`")


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="Run folder, such as models/main_linear_ce_seed0.")],
    pictures: Annotated[list[Path], typer.Argument(help="Picture files, or folders of pictures.")],
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the table to this file.")] = None,
) -> None:
    """Classify pictures with a finished run: class, confidence, and the class for equally frequent classes.

    Pictures that cannot be read are named at the end, with exit code 65. The others are classified.
    """
    from ncflow.deploy import predict

    found = predict(folder, pictures, _root() / "data")
    if csv:
        found.write_csv(csv)
    table = [*([list(found.rows[0])] if found.rows else []), *([*row.values()] for row in found.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for note in found.notes:
        _say(note)
    if csv:
        _say(f"written: {csv}")
    if found.damaged:
        lines = "".join(f"\n  {name}: {reason}" for name, reason in found.damaged.items())
        total = len(found.damaged) + len(found.rows)
        raise ValueError(f"{len(found.damaged)} of {total} pictures cannot be read; replace them:{lines}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Run folder, such as models/main_linear_ce_seed0.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX; default: a program of torch.export.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write; default: <run folder>.pt2 or .onnx.")] = None,
) -> None:
    """Write a finished run's classifier, with its preprocessing, as a program that needs no ncflow."""
    from ncflow.deploy import export
    from ncflow.runs.layout import program_file

    kind = "onnx" if onnx else "pt2"
    file = export(folder, _root() / "data", out or program_file(folder, kind), kind)
    _say(f"{file}: pictures (B, H, W, C) uint8 of any size -> logits (B, K); checked against the classifier")


@app.command()
def measure(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Features: .npz, .pt, .pth, .safetensors or .parquet; several are epochs."),
    ] = None,
    train: Annotated[Path | None, typer.Option(help="The training features, if the file holds unseen ones.")] = None,
    name: Annotated[str | None, typer.Option(help="Name in reports; default: that of the file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: models/<name>.")] = None,
    no_track: Annotated[bool, typer.Option("--no-track", help="Do not log the results to MLflow.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="In place of features: timm/<name>, torchvision/<name>, a .pt2 or TorchScript file, models:/…"
        ),
    ] = None,
    data: Annotated[str, typer.Option(metavar="SOURCE[:ROOT]", help="Pictures, such as imagefolder:pics.")] = "",
    checkpoint: Annotated[Path | None, typer.Option(help="The model's weights: .pth, .pt or .safetensors.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Use the library's published weights.")] = False,
    random_weights: Annotated[
        int | None, typer.Option(min=0, metavar="SEED", help="Use random weights, as a baseline.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="The classifier, such as fc; default: the last linear.")] = None,
    features_only: Annotated[
        bool, typer.Option("--features-only", help="Leave out the metrics of the classifier.")
    ] = False,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Resize the shorter side to this; default: as the library does.")
    ] = None,
    mean: Annotated[str, typer.Option(help="Pixel mean in [0, 1], such as 0.5 or 0.49,0.48,0.45.")] = "",
    std: Annotated[str, typer.Option(help="Pixel standard deviation, likewise.")] = "",
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in a batch.")] = 256,
    save_features: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the features, as .npz.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read files part by part; leaves out metrics that need all samples.")
    ] = False,
) -> None:
    """Measure features, or any trained model on pictures: every metric of each split, for reports next to runs."""
    from ncflow import stages
    from ncflow.measuring.models import Question
    from ncflow.params import name_of
    from ncflow.runs.layout import run_folder

    if (not files) == (model is None):
        raise ValueError("expected files of features, or --model and --data; one of the two")
    options: dict[str, Any] = {"data": data, "checkpoint": checkpoint, "pretrained": pretrained, "layer": layer}
    options |= {"random_weights": random_weights, "features_only": features_only, "image_size": image_size}
    options |= {"mean": _channels("--mean", mean), "std": _channels("--std", std)}
    if files:
        used = [key for key, value in options.items() if value not in (None, "") and value is not False]
        if given := [f"--{key.replace('_', '-')}" for key in used]:
            raise ValueError(f"files of features need no model; leave out {', '.join(given)}")
        if save_features:
            raise ValueError("--save-features writes the features of a --model; the files hold them already")
        out = out or run_folder(_root(), name_of("--name", name or files[-1].stem))
        measured = stages.measure(files, train, out, stream=stream)
    else:
        assert model is not None
        if stream:
            raise ValueError("--stream reads files of features part by part; a --model gives them in batches anyway")
        if not data or train:
            raise ValueError("--model needs --data SOURCE[:ROOT], such as imagefolder:pics, and no --train")
        asked = Question(model=model, device=device, batch_size=batch_size, **options)
        out = out or run_folder(_root(), name_of("--name", name or asked.name))
        measured = stages.measure_model(asked, out, _root(), save=save_features)
    if not no_track:
        stages.track_measured(out, _root())
    names = list(dict.fromkeys(name for metrics in measured.values() for name in metrics))
    _say(f"{'':32}" + "".join(f"{split:>14}" for split in measured))
    for name in names:
        values = (f"{metrics[name]:14.6g}" if name in metrics else f"{'—':>14}" for metrics in measured.values())
        _say(f"{name:32}" + "".join(values))
    _say(f"written: {out / 'metrics.json'}\nnext: `uv run ncflow report {_shown(out)}` and any runs to compare with")


@app.command()
def report(
    folders: Annotated[list[Path] | None, typer.Argument(help="Run folders; default: the grid of params.yaml.")] = None,
    config: Config = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the page; default: reports/<exp_name>.")] = None,
    pipeline: Pipeline = False,
) -> None:
    """Compare runs: print a table, and write figures and one self-contained page."""
    from ncflow.experiments import quickstart
    from ncflow.experiments.pipeline import forget_earlier_grids
    from ncflow.runs.layout import is_next_to_run, run_folder

    params = _load(config, None)
    if pipeline:
        _refuse_beside_pipeline(folders=folders, config=config, out=out)
        if left := forget_earlier_grids(params, _root()):
            _say(f"no longer in the grid of params.yaml; delete what you do not need: {', '.join(map(str, left))}")
    folders = folders or [run_folder(_root(), run.exp_name) for run in quickstart(params)]
    folders = [path for path in folders if not is_next_to_run(path)]  # a shell's models/* names these files as well
    _report(folders, out or _root() / "reports" / params.exp_name, params.exp_name)


@app.command()
def figure(
    name: Annotated[str, typer.Argument(help="Figure, such as curves; `ncflow figure --list` lists them.")] = "",
    folders: Annotated[list[Path] | None, typer.Argument(help="Run folders; default: the grid of params.yaml.")] = None,
    config: Config = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write: .pdf, .svg, .png or .csv.")] = None,
    wide: Annotated[bool, typer.Option("--wide", help="As wide as a page's text, 6.75 in; default: a column.")] = False,
    along: Annotated[str, typer.Option(metavar="KEY", help="Option of the figure knob, such as train.lr.")] = "",
    list_: Annotated[bool, typer.Option("--list", help="List the figures, and why these runs lack some.")] = False,
) -> None:
    """Write one figure of runs at the size of a paper, or its data; `ncflow report` writes all of them."""
    from ncflow import stages
    from ncflow.experiments import quickstart
    from ncflow.runs.layout import is_next_to_run, run_folder

    if list_:
        folders = [path for path in ([Path(name)] if name else []) + (folders or []) if not is_next_to_run(path)]
        for each, text in stages.figures(folders).items():
            _say(f"{each:12} {text}")
        return
    if not name or out is None:
        raise ValueError("expected a figure and a file, such as `ncflow figure curves models/* --out curves.pdf`")
    folders = folders or [run_folder(_root(), run.exp_name) for run in quickstart(_load(config, None))]
    stages.figure(name, [path for path in folders if not is_next_to_run(path)], out, wide=wide, along=along)
    _say(f"written: {out}")


@app.command()
def sync(
    folders: Annotated[list[Path] | None, typer.Argument(help="Run folders; default: all in models/.")] = None,
) -> None:
    """Log finished run folders to MLflow's store, for example after `dvc pull`; each folder once."""
    from ncflow import stages
    from ncflow.runs.layout import finished_runs
    from ncflow.tracking import ui_command

    root = _root()
    chosen = folders or finished_runs(root)
    if not chosen:
        raise ValueError(f"no finished run in {root / 'models'}; fetch some with `dvc pull`, or name their folders")
    for folder in chosen:
        logged = stages.sync(folder, root / "data", root)
        _say(f"{folder}: " + ("logged to MLflow" if logged else "is in MLflow already"))
    _say(f"compare runs: {ui_command(root)}")


@app.command()
def suite(
    group: Annotated[str, typer.Argument(help="Experiment group; `ncflow experiments` lists them.")] = "quickstart",
    config: Config = None,
    set_: Set = None,
    grid: Grid = None,
    head: Head = "",
    processes: Annotated[str, typer.Option(help="Processes per run; default: one per GPU, or one.")] = "",
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at the same time; default: one, on Ray all.")] = None,
    jobs_per_gpu: Annotated[int | None, typer.Option(min=1, help="Runs that share a GPU.")] = None,
    engine: Annotated[str, typer.Option(help="Where the runs execute: local or ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray cluster to join, e.g. auto; default: start one.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often to restart a killed run.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Also train finished runs again.")] = False,
    extend: Extend = False,
    track: Annotated[bool, typer.Option("--track", help="Put snapshots and runs under DVC's control.")] = False,
    max_runs: MaxRuns = 1000,
) -> None:
    """Run the missing runs of a group of experiments, several at a time, and write the report of the group.

    A group is a row of `ncflow experiments`, or a file groups/<name>.yaml. `--grid` repeats it for all combinations of
    values. Finished runs are skipped and interrupted runs resume. After a failed run the others continue; the exit
    code is then 65. On SIGTERM the suite stops its runs and exits with 75. The same command resumes it.
    """
    from ncflow.experiments import PUBLISHED, expand, hypothesis, posthoc_methods, suite_name
    from ncflow.experiments.pipeline import shared_with_pipeline
    from ncflow.params import split_overrides
    from ncflow.suite import create_engine, is_finished_run

    params, axes = _load(config, None), split_overrides(grid or [])
    options: dict[str, Any] = {"overrides": split_overrides(set_ or []), "grid": axes}
    name = suite_name(group, params, **options)
    options |= {"groups": _root() / GROUPS, "most": max_runs}
    configs = expand(group, params, head=head or None, **options, announce=_say)
    machines = create_engine(engine, processes=_count(processes), jobs=jobs, jobs_per_gpu=jobs_per_gpu, address=address)
    from ncflow.group import check_values, run_group  # imports torch: report errors in the options first

    if axes or set_ or group not in PUBLISHED:  # the published grids are known to be right
        check_values([run for run in configs if force or not is_finished_run(run, _root())])
    if warning := shared_with_pipeline(configs, params, _root()):
        _say(warning)
    about = hypothesis(group, options["groups"])
    run_group(
        name,
        configs,
        root=_root(),
        engine=machines,
        report=partial(_report, about=about, again=False),
        say=_say,
        retries=retries,
        force=force,
        extend=extend,
        track=track,
        posthoc=posthoc_methods(group),
    )


@app.command()
def tune(
    group: Annotated[str, typer.Argument(help="Group whose run is varied; main: the parameters.")] = "main",
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=RANGE", help="Search a key: train.lr=log(1e-3,1), uniform(0,1), 5..20 or a list; repeat it."
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials of the search, with those of earlier processes.")] = 40,
    objective: Annotated[str, typer.Option(help="Metric of val or train; never of test.")] = "val/acc/balanced",
    direction: Annotated[str, typer.Option(help="maximize or minimize; default: as the metric improves.")] = "",
    name: Annotated[str, typer.Option(help="Name of the search and its runs; default: <group>_tune.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search; runs have the key seed.")] = 0,
    no_prune: Annotated[bool, typer.Option("--no-prune", help="Train every trial to its last epoch.")] = False,
    prune_after: Annotated[int, typer.Option(min=0, help="Prune no trial up to this epoch.")] = 0,
    config: Config = None,
    set_: Set = None,
    processes: Annotated[str, typer.Option(help="Processes per run; default: one per GPU, or one.")] = "",
    jobs: Annotated[int | None, typer.Option(min=1, help="Trials at the same time; default: one, on Ray all.")] = None,
    jobs_per_gpu: Annotated[int | None, typer.Option(min=1, help="Trials that share a GPU.")] = None,
    engine: Annotated[str, typer.Option(help="Where the trials execute: local or ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray cluster to join, e.g. auto; default: start one.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often to restart a killed trial.")] = 1,
) -> None:
    """Search the options of a run with Optuna: every trial is an ordinary run, and bad trials are pruned early.

    After any stop, the same command resumes. Several processes with the same command share the trials. The report names
    the best configuration, and the command that measures it on the test split. The search does not look at that split.
    """
    from ncflow import tuning
    from ncflow.extras import require
    from ncflow.params import name_of, split_overrides
    from ncflow.suite import create_engine

    require("mlflow", "optuna")
    if no_prune and prune_after:
        raise ValueError(f"--no-prune prunes no trial, so --prune-after {prune_after} has no effect; leave out one")
    root, target = _root(), tuning.parse_objective(objective, direction)
    name = name_of("--name", name or f"{group}_tune")
    dimensions, overrides = tuning.parse_space(space or []), split_overrides(set_ or [])
    base = tuning.base_run(group, _load(config, None), dimensions, overrides=overrides, groups=root / GROUPS)
    dimensions, corners = tuning.fit_space(dimensions, base)
    machines = create_engine(engine, processes=_count(processes), jobs=jobs, jobs_per_gpu=jobs_per_gpu, address=address)
    from ncflow.group import check_values, snapshot_path
    from ncflow.stages import snapshot as make_snapshot

    check_values(corners)
    if target.split == "val" and not base.dataset.val_fraction:
        tuning.refuse_without_validation(make_snapshot(base, snapshot_path(base, root)).splits, target)
    after = None if no_prune else prune_after
    study = tuning.open_study(name, dimensions, target, base, group=group, root=root, seed=seed, prune_after=after)
    search = tuning.Search(name, base, target, root, study, _say)
    search.run(machines, lambda run: make_snapshot(run, snapshot_path(run, root)), most=trials, retries=retries)
    found = tuning.write_results(study, base, dimensions, target, root, name=name)
    _say(tuning.as_message(found, root))


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="Published configuration; default: list all of them.")] = None,
    set_: Set = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: 0, 1, …")] = 3,
    processes: Annotated[str, typer.Option(help="Processes per run; default: one per GPU, or one.")] = "",
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at the same time; default: one, on Ray all.")] = None,
    jobs_per_gpu: Annotated[int | None, typer.Option(min=1, help="Runs that share a GPU.")] = None,
    engine: Annotated[str, typer.Option(help="Where the runs execute: local or ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray cluster to join, e.g. auto; default: start one.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often to restart a killed run.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Also train finished runs again.")] = False,
) -> None:
    """Run a published configuration with several seeds, and compare its accuracy with the published number.

    It runs as a suite: finished runs are skipped and interrupted runs resume. With overrides that change the experiment
    there is no verdict.
    """
    from ncflow.experiments.published import conclude, configurations, differences, listing
    from ncflow.params import split_overrides
    from ncflow.reports import as_text
    from ncflow.suite import create_engine

    if name is None:
        _say(as_text(listing()))
        return
    configs = configurations(name, seeds=seeds, overrides=split_overrides(set_ or []))
    machines = create_engine(engine, processes=_count(processes), jobs=jobs, jobs_per_gpu=jobs_per_gpu, address=address)
    from ncflow.group import run_group
    from ncflow.runs.layout import run_folder
    from ncflow.runs.reader import load_runs

    changed = differences(name, configs[0])
    run_group(
        f"reproduce_{name}{'_changed' if changed else ''}",
        configs,
        root=_root(),
        engine=machines,
        report=partial(_report, again=False),
        say=_say,
        retries=retries,
        force=force,
    )
    runs = load_runs(run_folder(_root(), config.exp_name) for config in configs)
    _say(f"\n{name}\n{conclude(name, runs, changed)}")


@app.command()
def experiments(
    group: Annotated[str | None, typer.Argument(help="Show the runs of this group.")] = None,
    config: Config = None,
    set_: Set = None,
    grid: Grid = None,
    head: Head = "",
    write: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the runs to DIR/<group>/<run>.yaml.")] = None,
    max_runs: MaxRuns = 1000,
) -> None:
    """List the experiment groups, or the runs of one; write their configurations."""
    from ncflow.experiments import expand, list_groups, write_configs
    from ncflow.params import split_overrides

    params, axes = _load(config, None), split_overrides(grid or [])
    if axes and not group:
        raise ValueError("--grid varies the runs of one group, such as `ncflow experiments main --grid seed=0..4`")
    options: dict[str, Any] = {"head": head or None, "overrides": split_overrides(set_ or []), "grid": axes}
    options |= {"groups": _root() / GROUPS, "most": max_runs}
    summaries = {} if group else list_groups(_root() / GROUPS)
    groups = [group] if group else list(summaries)
    if write:
        files = [file for name in groups for file in write_configs(name, write, params, **options)]
        _say(f"{len(files)} configurations in {write}")
    elif group:
        for run in expand(group, params, **options, announce=_say):
            _say(f"{run.exp_name}  (config {run.digest()})")
    else:
        for name in groups:
            _say(f"{name:12} {len(expand(name, params, **options)):3} runs  {summaries[name]}")


@app.command()
def models() -> None:
    """List the backbones."""
    from ncflow.nn import BACKBONES, MODEL_ALIASES, backbone_size

    _say(f"{'model':20} {'parameters':>12} {'d':>5}  without classifier, for 32x32 images")
    for name, builder in sorted(BACKBONES.items()):
        count, num_features = backbone_size(name, image_size=32)
        _say(f"{name:20} {count:12,} {num_features:5}  {_summary(builder)}")
    for name, (row, options) in MODEL_ALIASES.items():
        count, num_features = backbone_size(name, image_size=32)
        meaning = ", ".join(f"{option}={value}" for option, value in options.items())
        _say(f"{name:20} {count:12,} {num_features:5}  {row} with {meaning}")
    _say(f"{'timm/<name>':20} {'':12} {'':5}  Any timm model without its classifier.")


@app.command()
def rows(
    table: Annotated[str | None, typer.Argument(help="List the rows of this table and their options.")] = None,
) -> None:
    """List the tables, or the rows of one: names, options with their defaults, descriptions."""
    import importlib

    from ncflow.lookup import lookup, options_of

    if table is None:
        for name, home in TABLES.items():
            _say(f"{name:14} {home.replace(':', '.')}")
        return
    module, _, variable = lookup(TABLES, table, "table").partition(":")
    for name, row in getattr(importlib.import_module(module), variable).items():
        _say(f"{name:20} {_summary(row)}")
        for option, parameter in options_of(row).items():
            default = "" if parameter.default is parameter.empty else f"={parameter.default}"
            _say(f"{'':20}   {option}{default}")


@app.command()
def metrics() -> None:
    """List the metrics: formula, range, value at collapse, reference."""
    from ncflow.metrics.table import as_markdown

    _say(as_markdown())


@app.command()
def datasets() -> None:
    """List the data sets."""
    from ncflow.data import SOURCES

    for name, load in SOURCES.items():
        _say(f"{name:14} {_summary(load)}")


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="Run this benchmark.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Most pairs of measurements per case.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Small cases only: test function, not speed.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: benchmarks/results.")] = None,
    budget: Annotated[float, typer.Option(min=0, help="Seconds to share among the cases; each has three pairs.")] = 300,
) -> None:
    """List the benchmarks and what they take, or run one: measure ncflow and a baseline in turn, write a dated page."""
    import subprocess
    import time

    from ncflow.lookup import lookup

    scripts = _benchmarks()
    if name is None:
        for each, summary in scripts.items():
            _say(f"{each:14} {_duration(each)[0]:14} {summary}")
        return
    lookup(scripts, name, "benchmark")
    if not quick:
        _say(f"{name} takes: {', '.join(filter(None, _duration(name)))}")
    options = ["--pairs", str(pairs), "--budget", str(budget), *(["--quick"] if quick else [])]
    options += ["--out", str(out.resolve())] if out else []
    started = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    code = subprocess.run(command, cwd=_root(), check=False).returncode
    _say(f"{name} took: {(time.monotonic() - started) / 60:.1f} min")
    sys.exit(code)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the UI.")] = 5000,
    host: Annotated[str, typer.Option(help="Address of the UI; 0.0.0.0: all addresses of this machine.")] = "127.0.0.1",
    experiment: Annotated[
        str | None, typer.Option(metavar="NAME", help="MLflow experiment to open; default: set by the environment.")
    ] = None,
) -> None:
    """Start the MLflow UI on this machine and print the address of the page with the runs."""
    from ncflow import tracking
    from ncflow.metrics import METRICS
    from ncflow.posthoc import POSTHOC
    from ncflow.reports.highlights import highlights, shown_in

    views = highlights()
    rest = {name.rpartition("/")[0] for name in METRICS}
    rest |= {f"posthoc/{row}{part}" for row in POSTHOC for part in ("", "/acc")}
    page = tracking.Page(
        ["tags.head", "tags.loss", *(f"metrics.{key}" for key in views)],
        charts={key: views[key] for key in shown_in("curves")},
        images=("cosines", "confusion"),
        folded=[f"{split}/{name}" for split in ("test", "train", "val") for name in sorted(rest)],
    )
    with tracking.ui(_root(), port=port, host=host, page=page, experiment=experiment) as (server, address):
        _say(f"compare runs at {address} (Ctrl-C stops)")
        server.wait()


def main() -> None:
    """Run the command line. Errors that the user can fix are printed as one message. `Exit` lists the exit codes."""
    from ncflow.exits import leave_result, refuse
    from ncflow.extras import MissingPackage
    from ncflow.interruption import interruptible

    try:
        with interruptible():
            app()
    except (ValueError, FloatingPointError, MemoryError, OSError, MissingPackage) as error:
        refuse(error)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        ours = type(stop) is not SystemExit  # Interrupted and Claimed contain the reason
        leave_result(code, str(stop) if ours else "")
        if ours:
            print(f"ncflow: {stop}", file=sys.stderr)
        raise
    except KeyboardInterrupt as stop:
        print(f"ncflow: {stop}" if str(stop) else "ncflow: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except BaseException as error:
        leave_result(1, f"{type(error).__name__}: {error}")
        raise


def _shown(folder: Path) -> str:
    """A folder as the user would type it in the current folder."""
    here = Path.cwd()
    return shlex.quote(str(folder.relative_to(here) if folder.is_relative_to(here) else folder))


def _summary(row: Any) -> str:
    """The first line of a row's docstring; a user's row may have none."""
    return (row.__doc__ or "").strip().partition("\n")[0]


def _load(config: Path | None, overrides: list[str] | None) -> Params:
    from ncflow.params import load_params, split_overrides

    default = _root() / "params.yaml"
    return load_params(config or (default if default.is_file() else None), split_overrides(overrides or []))


def _refuse_beside_pipeline(**options: object) -> None:
    """A stage of dvc.yaml reads everything from params.yaml. Options that it would ignore are an error."""
    if given := [name for name, value in options.items() if value]:
        raise ValueError(f"--pipeline reads everything from params.yaml; leave out {', '.join(given)}")


def _root() -> Path:
    from ncflow.project import project_root

    return project_root()


def _snapshot_path(params: Params) -> Path:
    from ncflow.group import snapshot_path

    return snapshot_path(params, _root())


def _benchmarks() -> dict[str, str]:
    """Name -> first line of the scripts in benchmarks/. They are part of a clone, not of the package."""
    import ast

    folder = _root() / "benchmarks"
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: benchmarks come with a clone of the repository; run this in one")
    files = sorted(folder.glob("[!_]*.py"))
    return {file.stem: (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0] for file in files}


def _duration(name: str) -> tuple[str, str]:
    """How long a benchmark took on its newest page that says so, and where; pages of --quick do not count."""
    import json

    pages = sorted((_root() / "benchmarks" / "results").glob(f"{name}-[0-9]*[0-9].json"), reverse=True)
    for record in (json.loads(page.read_text()) for page in pages):
        if "seconds" in record:
            machine = record["machine"]
            return (
                f"{record['seconds'] / 60:.1f} min",
                f"on {machine['cpu']}, {machine['cores']} cores, {record['date']}",
            )
    return "not measured", ""


def _report(folders: list[Path], out: Path, title: str, about: str = "", *, again: bool = True) -> None:
    from ncflow import stages
    from ncflow.reports import Table, as_text
    from ncflow.tracking import ui_command

    def show(table: Table) -> None:
        _say(f"\n{as_text(table)}")

    page, _ = stages.report(folders, out, title=title, about=about, root=_root(), again=again, show=show)
    _say(f"\nreport:       {page}\ncompare runs: {ui_command(_root())}")


def _count(text: str) -> int | None:
    if text and not (text.isascii() and text.isdigit() and 0 < int(text[:10]) < 2**31):
        raise ValueError(f"processes must be a positive whole number, got '{text}'")
    return int(text) if text else None


def _channels(option: str, text: str) -> tuple[float, ...] | None:
    """One number for each channel, from one number or three."""
    try:
        values = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        values = (math.nan,)
    if len(values) not in (0, 1, 3) or not all(map(math.isfinite, values)) or (option == "--std" and 0 in values):
        raise ValueError(f"{option} expects one number or three, such as 0.49,0.48,0.45, got '{text}'")
    return values * 3 if len(values) == 1 else values or None


def _say(text: str) -> None:
    print(text, flush=True)
