"""A run is told apart by what its user's own files contained, not by where they were."""

from __future__ import annotations

import sys

import pytest

from ncflow import imports
from ncflow.params import make_params


@pytest.fixture
def digest_with(tmp_path, monkeypatch):
    """The digest of a run after a file with some content was imported from a folder."""

    def digest(content: str, folder: str) -> str:
        file = tmp_path / folder / "rows_of_mine.py"
        file.parent.mkdir()
        file.write_text(content)
        with monkeypatch.context() as patch:
            patch.setattr(imports, "IMPORTED", {})
            patch.setattr(sys, "path", [*sys.path])
            imports.import_file(file)
            del sys.modules["rows_of_mine"]
            return imports.run_digest(make_params({}))

    return digest


def test_a_run_is_another_one_where_an_imported_file_has_another_content(digest_with):
    first, same, other = digest_with("a = 1", "here"), digest_with("a = 1", "there"), digest_with("a = 2", "again")
    assert first == same != other
    assert make_params({}).digest() not in (first, other)


def test_without_imported_files_a_run_is_its_configuration():
    params = make_params({"train": {"lr": 0.3}})
    assert imports.IMPORTED == {} and imports.run_digest(params) == params.digest()
