"""The image and the manifests of deploy/ are of this version, and .dockerignore passes what the image copies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import ncflow

ROOT = Path(__file__).parents[1]
MANIFESTS = sorted((ROOT / "deploy").glob("*.yaml"))
PAGES = [ROOT / "deploy" / "Dockerfile", ROOT / "deploy" / "README.md"]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_a_manifest_has_named_documents_without_merge_keys(file):
    documents = list(yaml.safe_load_all(file.read_text()))
    assert documents and all(document["kind"] and document["metadata"]["name"] for document in documents)
    assert "<<:" not in file.read_text()


@pytest.mark.parametrize("file", [*MANIFESTS, *PAGES], ids=lambda file: file.name)
def test_images_have_the_version_of_the_package(file):
    versions = re.findall(r"/ncflow:([\w.]+)", file.read_text())
    assert set(versions) <= {ncflow.__version__}
    assert versions or file.name == "volume.yaml"


def test_the_build_context_is_what_the_image_copies():
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    passed = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} == {*passed}
    assert all((ROOT / name).exists() for name in passed)


def test_the_manifests_are_listed_on_their_page():
    listed = re.findall(r"^\| `(\S+)` \|", (ROOT / "deploy" / "README.md").read_text(), re.MULTILINE)
    assert {"Dockerfile", *(file.name for file in MANIFESTS)} == {*listed}
