"""Small data as users bring it: pictures of one strong color per class, in the real formats."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

NAMES = ["cat", "dog", "owl"]  # red, green, blue
RANDOM = np.random.RandomState(0)


def picture(name: str, size: int = 8) -> Image.Image:
    pixels = RANDOM.randint(0, 60, (size, size, 3)).astype(np.uint8)
    pixels[..., NAMES.index(name) if name in NAMES else 0] += 150
    return Image.fromarray(pixels)


def png(name: str) -> bytes:
    buffer = io.BytesIO()
    picture(name).save(buffer, "PNG")
    return buffer.getvalue()


def write_labelled(file: Path, rows: Sequence[str], names: Sequence[str]) -> None:
    """A Parquet file as `datasets` writes it: numbers follow the order of `names`."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Picture

    columns = {"image": [{"bytes": png(row), "path": None} for row in rows], "label": [names.index(r) for r in rows]}
    features = Features(image=Picture(), label=ClassLabel(names=list(names)))
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(str(file))


def write_plain(file: Path, rows: Sequence[str], labels: Any, *, image: str = "image", label: str = "label") -> None:
    """A Parquet file with labels as they are given."""
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({image: [{"bytes": png(row), "path": None} for row in rows], label: labels}), file)


def write_folders(root: Path, counts: Mapping[str, int], splits: Sequence[str] = ("train", "test")) -> Path:
    """root/<split>/<class>/<i>.png; 3 of each class outside of train."""
    for split in splits:
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count if split == "train" else 3):
                picture(name).save(root / split / name / f"{i}.png")
    return root


def color(content: bytes) -> str:
    """The class that a picture shows."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return NAMES[int(pixels.mean((0, 1)).argmax())]
