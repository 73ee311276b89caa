"""docs/integrations.md: every block runs, in order, as a reader copies them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(BLOCKS) == 4
    printed = re.findall(r"^(?:tensor\()?\d+\.\d+", capsys.readouterr().out, flags=re.MULTILINE)
    assert len(printed) >= 5
    assert (tmp_path / "train.npz").is_file()
    assert "eval_acc/few" not in names["metrics"] and "eval_acc/medium" in names["metrics"]
