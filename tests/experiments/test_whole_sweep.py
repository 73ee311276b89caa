"""A sweep from a file, from the command to the figures of its report; more values train only what is new."""

from __future__ import annotations

import pytest
from forked import run_commands

from ncflow import tracking

TINY = """\
hypothesis: A tiny group.
base:
  dataset: {imb_factor: 0.1, samples_per_class: 20}
  model: {image_size: 8}
  train: {epochs: 1, analyze_freq: 1, weight_decay: 0.0}
grid:
  train.lr: [0.3, 0.01]
"""


SUITE = ["suite", "tiny", "--jobs", "2"]


@pytest.mark.slow
def test_a_sweep_is_trained_logged_and_drawn_and_grows(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("exp_name: main\n")
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "tiny.yaml").write_text(TINY)
    more = ["--grid", "train.lr=0.3,0.01,0.1"]
    first, again = run_commands([SUITE, [*SUITE, *more]], tmp_path)
    assert (first.code, again.code) == (0, 0), first.text + again.text
    names = {"tiny_lr0.3", "tiny_lr0.01"}
    assert first.text.count("starts") == 2
    report = tmp_path / "reports" / "tiny"
    assert (report / "index.html").is_file() and (report / "figures" / "knob_train.lr.pdf").is_file()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tracking.store(tmp_path) as mlflow:
        query = {"filter_string": "tags.group = 'tiny'", "search_all_experiments": True}
        logged = mlflow.search_runs(**query, output_format="list")
    assert {run.info.run_name for run in logged} == names
    assert {run.data.params["cfg.train.lr"] for run in logged} == {"0.3", "0.01"}

    assert again.text.count("done before") == 2 and again.text.count("starts") == 1
    assert {path.name for path in (tmp_path / "models").iterdir() if path.is_dir()} == names | {"tiny_lr0.1"}
    assert (tmp_path / "reports" / "tiny_lr" / "index.html").is_file()
