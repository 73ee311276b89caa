"""A damaged file of a study is an error that names the file."""

from __future__ import annotations

import pytest

pytest.importorskip("optuna")

from ncflow.params import make_params
from ncflow.tuning import open_study, parse_objective, parse_space


def test_a_damaged_study_names_its_file(tmp_path):
    file = tmp_path / ".ncflow/tune/s/study.db"
    file.parent.mkdir(parents=True)
    file.write_text("no database" * 100)
    objective, space = parse_objective("val/acc/balanced"), parse_space(["train.lr=log(1e-3,1)"])
    with pytest.raises(OSError, match=r"study\.db cannot be read or written: .*not a database"):
        open_study("s", space, objective, make_params({}), group="main", root=tmp_path)
