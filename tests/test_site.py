"""The site: it builds without a warning, and its reference has every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ncflow

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "api"


def test_the_reference_has_every_public_name_once():
    pages = "".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    listed = re.findall(r"^::: ncflow\.(\w+)$", pages, flags=re.MULTILINE)
    assert sorted(listed) == sorted({*ncflow.__all__} - {"__version__"})


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link_or_an_unknown_name(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api" / "geometry.html").read_text(encoding="utf-8")
    assert 'id="ncflow.nearest_etf"' in page and "unit rows with pairwise cosine" in page


@pytest.mark.parametrize("name", sorted({*ncflow.__all__} - {"__version__"}))
def test_every_public_name_is_explained(name):
    value = getattr(ncflow, name)
    if callable(value):
        assert value.__doc__ and not value.__doc__.startswith(f"{name}(")  # not the signature of a dataclass
