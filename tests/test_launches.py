"""A launch of several processes holds the lock of its run as one: if another launch has it, all of them end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ncflow import stages
from ncflow.params import make_params
from ncflow.suite import Claimed, claimed

PARAMS = make_params({"exp_name": "run"})


def enter(root, *, first: bool):
    accelerator = SimpleNamespace(is_main_process=first, num_processes=2)
    return stages._claimed_by_all(PARAMS, root, accelerator, unless_finished=False)


def test_every_process_ends_if_the_first_cannot_claim_the_run(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(stages, "from_first", lambda accelerator, value: said.append(value) or said[0])
    with claimed(tmp_path, "run"):
        for first in (True, False):
            with pytest.raises(Claimed, match="another process trains models/run"), enter(tmp_path, first=first):
                pass
    assert said == [False, None]


def test_the_first_process_holds_the_claim_for_all_and_gives_it_back(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "from_first", lambda accelerator, value: None)
    with enter(tmp_path, first=True), enter(tmp_path, first=False), pytest.raises(Claimed), claimed(tmp_path, "run"):
        pass
    with claimed(tmp_path, "run"):
        pass
