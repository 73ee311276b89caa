"""The images of a split as uint8 (b,C,S,S), by sample index: stored on the device, or decoded for each batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from ncflow.data.images import PictureDamaged, decode_image
from ncflow.data.manifest import damaged
from ncflow.data.snapshot import Snapshot


class Pictures(Protocol):
    """Interface of both classes: yield one uint8 tensor (b,C,S,S) on the device for each list of sample indices."""

    def __call__(self, batches: Sequence[Tensor]) -> Iterator[Tensor]: ...


class Resident:
    """Every image of a split in one uint8 tensor (N,C,S,S) on the device. A batch is an indexing operation."""

    def __init__(self, snapshot: Snapshot, split: str, *, image_size: int, device: torch.device) -> None:
        mode = snapshot.manifest["image_mode"]
        size, file = snapshot.manifest["image_size"], snapshot.file(split)
        rows = enumerate(snapshot.encoded_images(split))
        decoded = (_decoded(file, row, content, mode, size) for row, content in rows)
        together = 64 if size else 1  # images of various sizes are resized one by one
        chunks = iter(lambda: list(islice(decoded, together)), [])
        self.images = torch.cat([fit_square(torch.stack(chunk), image_size) for chunk in chunks]).to(device)

    def __call__(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        for indices in at_once(batches, self.images.device):
            yield self.images[indices]


class Streamed:
    """Images that stay on disk. Worker processes read, decode and resize those of the next batches."""

    def __init__(
        self, snapshot: Snapshot, split: str, *, image_size: int, device: torch.device, num_workers: int
    ) -> None:
        self.images = _DecodedImages(snapshot, split, image_size)
        self.device = device
        self.num_workers = num_workers

    def __call__(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        on_gpu = self.device.type == "cuda"
        plan = [indices.tolist() for indices in batches]
        loader = DataLoader(self.images, batch_sampler=plan, num_workers=self.num_workers, pin_memory=on_gpu)
        for images in loader:
            yield images.to(self.device, non_blocking=True)


def at_once(parts: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Move all parts to the device in one transfer. Each one from ordinary memory waits for the GPU's pending work."""
    sizes = [len(part) for part in parts]
    return torch.split(torch.cat(list(parts)).to(device), sizes) if sizes else ()


class _DecodedImages(Dataset[Tensor]):
    """One image (C,S,S) per index, decoded from the memory-mapped data set."""

    def __init__(self, snapshot: Snapshot, split: str, image_size: int) -> None:
        from datasets import Image

        self.rows = snapshot.dataset(split).select_columns("image").cast_column("image", Image(decode=False))
        self.mode = snapshot.manifest["image_mode"]
        self.file = snapshot.file(split)
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        content = self.rows[index]["image"]["bytes"]
        return fit_square(_decoded(self.file, index, content, self.mode)[None], self.image_size)[0]


def decode(content: bytes, mode: str) -> Tensor:
    """Decode a picture file's content to uint8: (1,H,W) if mode is L, (3,H,W) if it is RGB."""
    pixels = torch.from_numpy(np.array(decode_image(content).convert(mode)))
    return pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1)


def _decoded(file: Path, row: int, content: bytes, mode: str, size: list[int] | None = None) -> Tensor:
    """Decode a row of a snapshot's file. Raises SnapshotDamaged if it is no picture or has another size."""
    try:
        pixels = decode(content, mode)
    except PictureDamaged as error:
        raise damaged(file, f"row {row}: {error}") from error
    if size is not None and list(pixels.shape[1:]) != size:
        raise damaged(file, f"row {row} is of {list(pixels.shape[1:])} pixels, but the manifest has another size")
    return pixels


def fit_square(images: Tensor, size: int) -> Tensor:
    """Resize uint8 (b,C,H,W) -> (b,C,size,size): antialiased bilinear on the shorter side, center of the longer."""
    height, width = images.shape[-2:]
    scale = size / min(height, width)
    resized = (round(height * scale), round(width * scale))
    if resized != (height, width):
        images = interpolate(images.float(), resized, mode="bilinear", antialias=True).round().clamp(0, 255).byte()
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    return images[..., top : top + size, left : left + size]
