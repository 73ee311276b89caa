"""Snapshots that several files of tests read and none may change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ncflow.data.snapshot import Snapshot


@pytest.fixture(scope="session")
def digits(tmp_path_factory, datasets_cache) -> Snapshot:
    return Snapshot.create(tmp_path_factory.mktemp("snapshots") / "digits", name="digits", imb_factor=0.02, seed=0)


@pytest.fixture(scope="session")
def flowers(tmp_path_factory) -> Path:
    """A folder of pictures of various sizes, modes and formats: 5 roses and 3 tulips to train on, 2 of each to test."""
    root, random = tmp_path_factory.mktemp("data") / "flowers", np.random.RandomState(0)
    kinds = [("RGB", "png"), ("L", "png"), ("RGB", "jpg"), ("RGBA", "png"), ("P", "gif")]
    for split, counts in {"train": {"rose": 5, "tulip": 3}, "test": {"rose": 2, "tulip": 2}}.items():
        for class_name, count in counts.items():
            (root / split / class_name).mkdir(parents=True)
            for i, (mode, suffix) in enumerate(kinds[:count]):
                height, width = random.randint(20, 60, 2)
                pixels = random.randint(0, 256, (height, width, 3)).astype(np.uint8)
                Image.fromarray(pixels).convert(mode).save(root / split / class_name / f"{i}.{suffix}")
    return root


@pytest.fixture(scope="session")
def flower_snapshot(flowers, tmp_path_factory, datasets_cache) -> Snapshot:
    path = tmp_path_factory.mktemp("snapshots") / "flowers"
    return Snapshot.create(path, name="imagefolder", root=flowers, imb_factor=-1)
