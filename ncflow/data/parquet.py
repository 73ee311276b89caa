"""A split as one Parquet file with columns image and label, as Hugging Face `datasets` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ncflow.data.images import ImageSource, decode_image, printable
from ncflow.data.longtail import Indices

ROWS_PER_GROUP = 1024  # rows held in memory at a time


@dataclass
class PixelSummary:
    """Statistics of a split's images: how often each value 0..255 occurs per channel, their sizes and modes.

    damaged: name -> reason, for images that cannot be decoded.
    """

    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), dtype=np.int64))
    sizes: set[tuple[int, int]] = field(default_factory=set)
    modes: set[str] = field(default_factory=set)
    damaged: dict[str, str] = field(default_factory=dict)

    def add(self, image: Image.Image) -> None:
        self.histogram += np.reshape(image.histogram(), (-1, 256))  # a gray image counts in all three channels
        self.sizes.add((image.height, image.width))
        self.modes.add(image.mode)

    def moments(self, channels: int) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of pixels in [0, 1]. Six digits are equal on every machine."""
        values = np.arange(256) / 255
        share = self.histogram[:channels] / self.histogram[:channels].sum(axis=1, keepdims=True)
        mean = share @ values
        std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
        return mean.round(6).tolist(), std.round(6).tolist()


def write_split(path: Path, source: ImageSource, indices: Indices) -> PixelSummary:
    """Write the chosen samples in the order of `indices`, some at a time. The summary names damaged pictures."""
    from datasets import ClassLabel, Features
    from datasets import Image as ImageFeature
    from pyarrow import Table, parquet

    summary = PixelSummary()
    schema = Features({"image": ImageFeature(), "label": ClassLabel(names=source.class_names)}).arrow_schema
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(indices), ROWS_PER_GROUP):
            chosen = indices[start : start + ROWS_PER_GROUP]
            images = [_row(source, index, summary) for index in chosen]
            writer.write_table(Table.from_pydict({"image": images, "label": source.targets[chosen]}, schema))
    return summary


class ContentDamaged(ValueError):
    """A Parquet file that holds no split. The message has no content of it, and the caller adds the name."""


def read_targets(path: Path) -> npt.NDArray[np.int64]:
    """Labels (N,) in stored order. Raises ContentDamaged if some are missing or no whole numbers."""
    from pyarrow import types

    with _opened(path) as file:
        if not types.is_integer(_type_of(file, "label")):
            raise ContentDamaged("its column label holds no whole numbers")
        labels = file.read(columns=["label"])["label"]
        if labels.null_count:
            raise ContentDamaged(f"{labels.null_count} rows have no label")
        return np.array(labels.to_numpy(), dtype=np.int64)


def read_images(path: Path) -> Iterator[bytes]:
    """Yield the content of each picture file in stored order. Raises ContentDamaged if one is missing."""
    from pyarrow import types

    with _opened(path) as file:
        image = _type_of(file, "image")
        found = {field.name: field.type for field in image} if types.is_struct(image) else {}
        if "bytes" not in found or not types.is_binary(found["bytes"]):
            raise ContentDamaged("its column image holds no content of pictures")
        row = 0
        for rows in file.iter_batches(ROWS_PER_GROUP, columns=["image.bytes"]):
            for content in rows["image"].field("bytes").to_pylist():
                if content is None:
                    raise ContentDamaged(f"row {row} has no picture")
                yield content
                row += 1


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a Parquet file. The errors of pyarrow may quote a damaged file, so their text is not shown."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # an error of the disk
            raise
        raise ContentDamaged(f"it is no Parquet file, or damaged inside ({type(error).__name__})") from error


def _type_of(file: Any, column: str) -> Any:
    if file.schema_arrow.get_field_index(column) < 0:  # missing, or duplicate
        raise ContentDamaged(f"it has not one column {column}")
    return file.schema_arrow.field(column).type


def _row(source: ImageSource, index: int, summary: PixelSummary) -> dict[str, Any]:
    try:
        image, content = source.images[index], source.encoded(index)
        summary.add(decode_image(content))
    except (OSError, ValueError) as error:
        summary.damaged[source.label(index)] = str(error)
        return {"bytes": None, "path": None}
    return {"bytes": content, "path": None if isinstance(image, np.ndarray) else printable(image.name)}
