"""The images of a split as uint8 (b,C,S,S), by sample index: stored on the device, or decoded for each batch."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ncflow.data.decoding import decode, fit_square
from ncflow.data.images import PictureDamaged, Pixels
from ncflow.data.manifest import damaged
from ncflow.data.snapshot import Snapshot

TOGETHER, PIXELS = 64, 2**21  # rows and pixels that one task decodes and resizes, where all pictures have one size
PART = 8  # pictures of a batch that one task decodes
AHEAD = 2  # batches that are decoded while the caller uses the one before

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pictures(Protocol):
    """Interface of both classes: yield one uint8 tensor (b,C,S,S) on the device for each list of sample indices.

    `place` says where the pixels are.
    """

    place: str

    def __call__(self, batches: Sequence[Tensor]) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class Decoding:
    """How files become pixels: the side S of the squares, a row of RESIZINGS, and the number of threads."""

    image_size: int
    resizing: str
    workers: int


class Resident:
    """Every image of a split in one uint8 tensor (N,C,S,S) on the device. A batch is an indexing operation."""

    def __init__(self, snapshot: Snapshot, split: str, how: Decoding, device: torch.device) -> None:
        mode = snapshot.manifest["image_mode"]
        size, file = snapshot.manifest["image_size"], snapshot.file(split)
        # Images of various sizes are resized one by one.
        together = max(1, min(TOGETHER, PIXELS // (size[0] * size[1]))) if size else 1

        def decoded(rows: list[tuple[int, bytes]]) -> Tensor:
            pixels = [_decoded(file, row, content, mode, size).permute(1, 2, 0).numpy() for row, content in rows]
            stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
            return fit_square(stacked, how.image_size, how.resizing).permute(0, 2, 3, 1)

        shape = sum(snapshot.counts_of(split)), how.image_size, how.image_size, len(mode)
        images, done = torch.empty(shape, dtype=torch.uint8, device=device), 0
        rows = enumerate(snapshot.encoded_images(split))
        chunks = iter(lambda: list(islice(rows, together)), [])
        with ThreadPoolExecutor(how.workers) as pool:
            for part in in_order(pool, decoded, chunks, ahead=2 * how.workers):
                images[done : done + len(part)] = part
                done += len(part)
        assert done == len(images)
        self.images = images.permute(0, 3, 1, 2)
        self.place = f"{images.nbytes} bytes on the device"

    def __call__(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        for indices in at_once(batches, self.images.device):
            yield self.images[indices]


class Streamed:
    """Images that stay on disk. Threads read, decode and resize those of the next batches.

    They are threads, not processes: decoders run without Python's lock. So nothing is copied between processes, and no
    epoch starts any. The first `kept` images stay in main memory once they are decoded.
    """

    def __init__(self, snapshot: Snapshot, split: str, how: Decoding, device: torch.device, *, kept: int = 0) -> None:
        self.contents = _Contents(snapshot, split)
        self.mode, self.file = snapshot.manifest["image_mode"], snapshot.file(split)
        self.how, self.device = how, device
        self.shape = how.image_size, how.image_size, len(self.mode)
        self.kept = np.empty((kept, *self.shape), dtype=np.uint8)  # no memory until it is used
        self.is_kept = np.zeros(kept, dtype=bool)
        self.pool = ThreadPoolExecutor(how.workers, thread_name_prefix="pictures")
        share = f", but for {kept} that stay in main memory" if kept else ""
        self.place = f"decoded for each batch by {how.workers} thread{'s' if how.workers > 1 else ''}{share}"

    def __call__(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        largest = max(map(len, batches), default=0)
        parts = (part for indices in batches for part in self._parts(indices.tolist()))
        for batch in in_order(self.pool, self._fill, parts, ahead=max(AHEAD * largest // PART, 2 * self.how.workers)):
            if batch is not None:
                yield batch.permute(0, 3, 1, 2).to(self.device, non_blocking=True)

    def _parts(self, indices: list[int]) -> Iterator[_Part]:
        """The tasks that fill one batch; the last one has the batch."""
        batch = torch.empty(len(indices), *self.shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        for start in range(0, max(len(indices), 1), PART):
            end = start + PART
            yield _Part(batch[start:end].numpy(), indices[start:end], batch if end >= len(indices) else None)

    def _fill(self, part: _Part) -> Tensor | None:
        for place, index in zip(part.places, part.indices, strict=True):
            if index < len(self.kept) and self.is_kept[index]:
                np.copyto(place, self.kept[index])
                continue
            pixels = _decoded(self.file, index, self.contents[index], self.mode)
            fitted = fit_square(pixels[None], self.how.image_size, self.how.resizing)[0]
            np.copyto(place, fitted.permute(1, 2, 0).numpy())  # torch would start threads for this
            if index < len(self.kept):
                np.copyto(self.kept[index], place)
                self.is_kept[index] = True  # last: another thread may decode the same image of a repeated sample
        return part.batch


class _Part(NamedTuple):
    """Where the pictures of some indices go, (k,S,S,C). The last part of a batch has the batch."""

    places: Pixels
    indices: list[int]
    batch: Tensor | None


class _Contents:
    """The content of each picture file of a split, from the memory-mapped data set."""

    def __init__(self, snapshot: Snapshot, split: str) -> None:
        column = snapshot.dataset(split).data.column("image")
        self.chunks = [chunk.field("bytes") for chunk in column.chunks]
        self.starts = list(accumulate(map(len, self.chunks), initial=0))

    def __getitem__(self, row: int) -> bytes:
        chunk = bisect_right(self.starts, row) - 1
        content: bytes | None = self.chunks[chunk][row - self.starts[chunk]].as_py()
        return content or b""


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], *, ahead: int
) -> Iterator[Result]:
    """Yield work(item) in the order of the items, with `ahead` of them begun before the caller asks for them."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def at_once(parts: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Move all parts to the device in one transfer. Each one from ordinary memory waits for the GPU's pending work."""
    sizes = [len(part) for part in parts]
    return torch.split(torch.cat(list(parts)).to(device), sizes) if sizes else ()


def _decoded(file: Path, row: int, content: bytes, mode: str, size: list[int] | None = None) -> Tensor:
    """Decode a row of a snapshot's file. Raises SnapshotDamaged if it is no picture or has another size."""
    try:
        pixels = decode(content, mode)
    except PictureDamaged as error:
        raise damaged(file, f"row {row}: {error}") from error
    if size is not None and list(pixels.shape[1:]) != size:
        raise damaged(file, f"row {row} is of {list(pixels.shape[1:])} pixels, but the manifest has another size")
    return pixels
