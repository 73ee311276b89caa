"""Pictures of any data set as batches for a model: decoded, transformed by the model's preprocessing, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ncflow.data import SOURCES, ImageSource, load_source
from ncflow.data.images import PictureDamaged, SplitMissing, decode_image
from ncflow.lookup import fact, lookup


def load_pictures(data: str) -> dict[str, ImageSource]:
    """The splits train and test of "<source>" or "<source>:<root>", and val if the source has one.

    A source without a test split has the training split alone. Raises ValueError for an unknown source, and for one
    without pictures.
    """
    name, _, root = data.partition(":")
    if fact(lookup(SOURCES, name, "data set"), "numbered"):
        raise ValueError(f"data set '{name}' has numbers in place of pictures; choose one with pictures")
    splits = {"train": load_source(name, root or None, "train")}
    for split in ("val", "test"):
        try:
            splits[split] = load_source(name, root or None, split)
        except SplitMissing:
            continue
    return splits


def picture_batches(
    source: ImageSource, transform: Callable[[Any], Tensor], *, batch_size: int, num_workers: int = 0
) -> Iterator[Tensor]:
    """Yield the pictures in stored order, (b, C, H, W) with b at most `batch_size`; a batch has pictures of one size.

    Raises ValueError that names a picture that cannot be decoded.
    """
    loader: DataLoader[Any] = DataLoader(
        _Transformed(source, transform), batch_size=batch_size, num_workers=num_workers, collate_fn=list
    )
    for pictures in loader:
        for _, same in groupby(pictures, key=lambda picture: picture.shape):
            yield torch.stack(list(same))


class _Transformed(Dataset[Tensor]):
    """Each picture as RGB, transformed."""

    def __init__(self, source: ImageSource, transform: Callable[[Any], Tensor]) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        image = self.source.images[index]
        if isinstance(image, np.ndarray):
            return self.transform(Image.fromarray(image).convert("RGB"))
        try:
            return self.transform(decode_image(image.read_bytes()).convert("RGB"))
        except PictureDamaged as error:
            raise ValueError(f"{self.source.label(index)} cannot be decoded: {error}") from error
