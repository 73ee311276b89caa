"""A new row is one function and one line: everything else follows, here from the user's file `mine.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked import Outcome, run_commands

import ncflow
from ncflow import tracking

MINE = Path(__file__).with_name("mine.py")
CHOICES = [  # a row of each kind in one run
    *("head.name=mine", "head.scale=3.0"),
    *("train.loss=mine", "train.loss_options.margin=1.0"),
    *("train.optimizer=mine", "train.optimizer_options.nesterov=false"),
    *("model.name=mine", "model.options.width=16"),
    *("dataset.name=mine", "dataset.options.brightness=150"),
    *("train.penalties.mine=0.01", "train.penalty_options.mine.power=4"),
    *("train.augment=[flip, mine]", "train.augment_options.mine.darker=0.7"),
    *("train.mix=mine", "train.mix_options.share=0.8"),
]
SHORT = ["train.epochs=1", "train.batch_size=32", "model.image_size=8", "dataset.imb_factor=0.5"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder."""
    root = tmp_path_factory.mktemp("mine")
    (root / "params.yaml").write_text("exp_name: mine\n")
    return root


def run(root: Path, *commands: list[str]) -> list[str]:
    """What commands print that import the user's file and must succeed."""
    done = run_commands([["--import", str(MINE), *words] for words in commands], root)
    assert not [outcome for outcome in done if outcome.code]
    return [outcome.text for outcome in done]


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


@pytest.mark.slow
def test_rows_of_a_users_file_are_checked_trained_logged_and_reported(root, monkeypatch):
    options = settings(*SHORT, *CHOICES, "exp_name=all")
    checked, _, reported, _, measured = run(
        root,
        ["train", "--check", *options],
        ["train", *options],
        ["report", "models/all", "--out", "reports/all"],
        ["evaluate", "models/all"],
        ["posthoc", "models/all", "--methods", "mine,ncm"],
    )
    assert checked.count("name: mine") == 3
    for words in ("loss: mine", "optimizer: mine", "mix: mine", "- mine", "mine: 0.01"):
        assert words in checked
    folder = root / "models" / "all"
    metrics = json.loads((folder / "metrics_epoch_1.json").read_text())
    assert metrics["train"]["mine/width"] > 0
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tracking.store(root) as mlflow:
        query = {"filter_string": "attributes.run_name = 'all'", "search_all_experiments": True}
        (logged,) = mlflow.search_runs(**query, output_format="list")
    assert logged.data.metrics["train/mine/width"] == metrics["train"]["mine/width"]
    assert logged.data.params["cfg.head.scale"] == "3.0" and logged.info.status == "FINISHED"
    page = (root / "reports" / "all" / "index.html").read_text()
    assert "mine/" in reported and "largest norm of a class mean" in page
    assert "mine" in measured
    assert ncflow.read_runs([folder])["mine/width"].notna().any()


@pytest.mark.slow
def test_a_users_group_is_listed_and_run_as_a_suite(root):
    suite = ["suite", "mine", *settings(*SHORT, "model.name=mine")]
    listed, _ = run(root, ["experiments", "mine"], suite)
    assert "mine_0" in listed
    assert {"mine_0", "mine_1"} <= {folder.name for folder in (root / "models").iterdir()}


REFUSED = {  # a setting with a misspelled option -> words of the message
    "head={name: mine, scle: 1}": "unknown key 'head.scle'. Did you mean 'head.scale'?",
    "head={name: mine, scale: wide}": "head.scale: Input should be a valid number",
    "head={name: fixed_frame, frame: min}": "Did you mean 'mine'",
    "train={loss: mine, loss_options: {margn: 1}}": "unknown option of loss 'mine' 'margn'",
    "train={mix: mine, mix_options: {shar: 1}}": "unknown option of mix 'mine' 'shar'. Did you mean 'share'?",
    "train={penalties: {mine: 1}, penalty_options: {mine: {pow: 1}}}": "unknown option of penalty 'mine' 'pow'",
    "train={augment: mine, augment_options: {mine: {dark: 1}}}": "unknown option of augmentation 'mine' 'dark'",
    "dataset={name: mine, options: {bright: 1}}": "unknown option of dataset 'mine' 'bright'",
}
LISTED = {  # a command -> what it shows of a user's row
    "models": "One convolution and a mean.",
    "datasets": "Three classes of noisy squares.",
    "experiments": "Two margins.",
    "metrics": "| `mine/width` | largest norm of a class mean | [0, ∞) |",
    "rows heads": "mine                 Rows that learn, scaled by a constant.",
    "rows losses": "margin=0.5",
    "rows optimizers": "nesterov=True",
    "rows penalties": "power=2",
    "rows frames": "The same direction for all classes.",
    "rows posthoc": "shift=0.0",
    "rows mixes": "share=0.9",
    "rows augmentations": "darker=0.5",
    "train --check --set head={name:\xa0fixed_frame,frame:\xa0mine}": "frame: mine",
}


@pytest.fixture(scope="module")
def outcomes(root: Path) -> dict[str, Outcome]:
    """How each of these commands ends, with the user's file imported."""
    words = {setting: ["train", "--check", "--set", setting] for setting in REFUSED}
    words |= {command: [word.replace("\xa0", " ") for word in command.split(" ")] for command in LISTED}
    done = run_commands([["--import", str(MINE), *each] for each in words.values()], root)
    return dict(zip(words, done, strict=True))


@pytest.mark.parametrize("setting", REFUSED)
def test_a_misspelled_option_of_a_users_row_is_refused(outcomes, setting):
    code, text = outcomes[setting]
    assert code == 65 and REFUSED[setting] in text


@pytest.mark.parametrize("command", LISTED)
def test_a_users_row_is_in_the_tables_that_are_listed(outcomes, command):
    code, text = outcomes[command]
    assert code == 0 and LISTED[command] in text, text
