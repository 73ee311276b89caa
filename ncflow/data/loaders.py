"""Batches of a snapshot on the device. Only sampling and seed decide their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncflow.data.augment import MARGIN, Augmentation, create_augmentation
from ncflow.data.decoding import resizing_of
from ncflow.data.machine import free_memory, num_cpus, processes_here
from ncflow.data.mix import RANDOM_NUMBERS, Mix, soft_targets
from ncflow.data.pictures import Decoding, Pictures, Resident, Streamed, at_once
from ncflow.data.sampling import SAMPLINGS, Sampling, shuffled
from ncflow.data.snapshot import Snapshot
from ncflow.lookup import lookup

DEVICE_SHARE, MAIN_SHARE = 0.5, 0.25  # of the free memory, for the pixels of one split
UNKNOWN = 2 * 2**30  # bytes for pixels where the system does not report its free memory
CACHED = 2**20  # numbers that stay in a CPU's cache

Batch = tuple[Tensor, Tensor]  # images (b,3,S,S) float32, targets (b,) int64 or shares (b,K) float32


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process takes."""

    process_index: int = 0
    num_processes: int = 1


@dataclass(frozen=True)
class Storage:
    """Where pixels are: up to `resident_bytes` on the device; above, `workers` threads decode each batch.

    Of a split that is decoded, as many pictures as fit `resident_bytes` stay in main memory. None takes a share of the
    free memory, and one thread for each CPU. Neither changes a result.
    """

    resident_bytes: int | None = None
    workers: int | None = None

    def bytes_on(self, device: torch.device, processes: int = 1) -> int:
        """The bytes of one split that may stay on the device, where so many processes share the main memory."""
        if self.resident_bytes is not None:
            return self.resident_bytes
        if device.type == "cuda":
            return int(torch.cuda.mem_get_info(device)[0] * DEVICE_SHARE)
        free = free_memory()
        return UNKNOWN if free is None else int(free * MAIN_SHARE / processes)

    def threads(self, processes: int = 1) -> int:
        """The threads that decode in one of so many processes on this machine."""
        return self.workers or max(1, num_cpus() // processes)


def load_batches(
    snapshot: Snapshot,
    split: str,
    *,
    image_size: int = 32,
    batch_size: int | None = 256,
    device: torch.device | str = "cpu",
    augment: str | Sequence[str] | Augmentation = "none",
    mix: Mix | None = None,
    sampling: str = "shuffled",
    seed: int = 0,
    share: Share = Share(),
    storage: Storage = Storage(),
    resizing: str | None = None,
) -> Batches:
    """Batches of this process's share of a split. `batch_size` counts the samples of all processes; None takes all.

    `augment` and `mix` change the training batches alone. If the augmentation crops large pictures, they are stored
    with a margin for that. `resizing` is that of an older run; None is that of new runs. Raises ValueError if a batch
    of all samples does not fit into the bytes that `storage` allows.

    Examples:
        >>> from ncflow import Snapshot
        >>> snapshot = Snapshot.create(folder / "digits", name="digits")
        >>> batches = load_batches(snapshot, "train", image_size=8, batch_size=32)
        >>> images, targets = next(batches.shuffled(epoch=1))
        >>> images.shape, targets.shape
        (torch.Size([32, 3, 8, 8]), torch.Size([32]))
    """
    device = torch.device(device)
    targets = snapshot.targets(split)
    if not isinstance(augment, Augmentation):
        augment = create_augmentation(augment, image_size=image_size)
    image_size = stored_size(snapshot, image_size, augment)
    here = processes_here(share.num_processes)
    decoding = Decoding(image_size, resizing or resizing_of(snapshot.manifest["image_mode"]), storage.threads(here))
    return Batches(
        pictures=_pictures(snapshot, split, decoding, storage, device, here, at_once=batch_size is None),
        targets=targets.to(device),
        pixel_mean=torch.tensor(snapshot.manifest["pixel_mean"], device=device),
        pixel_std=torch.tensor(snapshot.manifest["pixel_std"], device=device),
        augment=augment,
        mix=mix,
        num_classes=snapshot.num_classes,
        sampling=lookup(SAMPLINGS, sampling, "sampling"),
        batch_size=batch_size or max(len(targets), share.num_processes),
        seed=seed,
        process_index=share.process_index,
        num_processes=share.num_processes,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Batches:
    """Batches of one split for one process; targets (N,) are those of the whole split, in stored order.

    Examples:
        >>> from ncflow import Snapshot, load_batches
        >>> batches = load_batches(Snapshot.create(folder / "digits", name="digits"), "test", image_size=8)
        >>> batches.num_classes, len(batches.targets)
        (10, 360)
    """

    pictures: Pictures
    targets: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor
    augment: Augmentation
    batch_size: int
    num_classes: int
    mix: Mix | None = None
    sampling: Sampling = shuffled
    seed: int = 0
    process_index: int = 0
    num_processes: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.process_index < self.num_processes:
            raise ValueError(f"expected process_index below {self.num_processes} processes, got {self.process_index}")
        if self.batch_size < self.num_processes:
            raise ValueError(
                f"expected a batch_size of {self.num_processes} samples at least, one for each process, "
                f"got {self.batch_size}; use a larger one, or fewer processes"
            )

    @property
    def num_samples(self) -> int:
        """N, the number of samples of the whole split."""
        return len(self.targets)

    def __len__(self) -> int:
        """Training batches per epoch, the same for every process."""
        return len(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """The number of samples in each training batch of an epoch, over all processes."""
        return batch_sizes(self.num_samples, self.batch_size, self.num_processes)

    @property
    def share(self) -> Tensor:
        """Indices of the samples that this process measures. May be empty if there are fewer samples than processes."""
        return torch.arange(self.num_samples).tensor_split(self.num_processes)[self.process_index]

    def shuffled(self, epoch: int) -> Iterator[Batch]:
        """Yield this process's part of each augmented batch; the sampling draws N samples for (seed, epoch).

        Targets are classes (b,). In batches that `mix` has mixed they are shares (b,K) of the classes.
        """
        sizes = self.sizes
        labels = self.targets.cpu()
        order = self.sampling(labels, sizes, _generator(self.seed, epoch, 0))
        uniform = torch.rand(self.num_samples, self.augment.numbers, generator=_generator(self.seed, epoch, 1))
        # One row of random numbers per draw. A sample that is drawn once gets the row of its index.
        rows = order.argsort(stable=True).argsort()
        random = _generator(self.seed, epoch, 2)
        places = [self._places(size, random) for size in sizes]
        mine, chances = (
            [part[place.rows] for part, place in zip(torch.split(drawn, sizes), places, strict=True)]
            for drawn in (order, uniform[rows])
        )
        here = [at_once(parts, self.targets.device) for parts in (mine, chances)]
        for images, indices, chance, drawn, place in zip(self.pictures(mine), *here, mine, places, strict=True):
            batch = self._normalized(self.augment(images, chance))
            yield (batch, self.targets[indices]) if self.mix is None else self._mixed(batch, labels[drawn], place)

    def _places(self, size: int, random: torch.Generator) -> Places:
        """Where this process's samples and their partners lie in a batch of this size."""
        mine = torch.arange(size).tensor_split(self.num_processes)[self.process_index]
        if self.mix is None:
            return Places(mine)
        partners = torch.randperm(size, generator=random)[mine]
        uniform = torch.rand(RANDOM_NUMBERS, generator=random)
        if self.num_processes == 1:
            return Places(mine, partners, uniform)
        return Places(torch.cat([mine, partners]), torch.arange(len(mine), 2 * len(mine)), uniform)

    def _mixed(self, images: Tensor, labels: Tensor, place: Places) -> Batch:
        """The mixed images and their soft targets; the classes (b,) themselves if no sample has a part of another."""
        assert self.mix is not None and place.partner is not None and place.uniform is not None
        mixed, share = self.mix(images, labels, place.partner.to(images.device), place.uniform)
        own, other = labels[: len(place.partner)], labels[place.partner]
        targets = own if bool((share == 1).all()) else soft_targets(own, other, share, self.num_classes)
        return mixed, targets.to(images.device)

    def ordered(self) -> Iterator[Batch]:
        """Yield the unchanged samples in stored order: this process's contiguous `share`, `batch_size` at a time."""
        batches = torch.split(self.share, self.batch_size) if len(self.share) else ()
        here = at_once(batches, self.targets.device)
        for images, indices in zip(self.pictures(batches), here, strict=True):
            yield self._normalized(self.augment.center(images)), self.targets[indices]

    def _normalized(self, images: Tensor) -> Tensor:
        """uint8 (b,C,S,S) -> float32 (b,3,S,S) by the mean and std of the stored training pixels; gray is repeated.

        Channels lie together, as convolutions want them.
        """
        rows = images.permute(0, 2, 3, 1).flatten(2)  # (b,S,S*C): one long side is quicker than one of C
        width = images.shape[-1]
        mean, std = self.pixel_mean.repeat(width), self.pixel_std.clamp_min(1 / 255).repeat(width)  # a std may be 0
        at_once = len(rows) or 1
        if rows.device.type == "cpu":
            at_once = max(1, CACHED // max(rows[:1].numel(), 1))
        numbers = torch.empty(rows.shape, device=rows.device)
        for part, given in zip(torch.split(numbers, at_once), torch.split(rows, at_once), strict=True):
            part.copy_(given).div_(255).sub_(mean).div_(std)
        numbers = numbers.view(*rows.shape[:2], width, -1).permute(0, 3, 1, 2)
        return numbers.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


class Places(NamedTuple):
    """The rows of a batch that a process loads: its own samples and, if it has a part of the batch, their partners.

    partner (b,) are the partners' places among these rows. uniform are the random numbers of the batch.
    """

    rows: Tensor
    partner: Tensor | None = None
    uniform: Tensor | None = None


def _pictures(
    snapshot: Snapshot,
    split: str,
    decoding: Decoding,
    storage: Storage,
    device: torch.device,
    processes: int,
    *,
    at_once: bool,
) -> Pictures:
    """The pictures of a split, stored or decoded for each batch. Raises ValueError if all at once do not fit."""
    count, size = sum(snapshot.counts_of(split)), decoding.image_size
    pixels = count * len(snapshot.manifest["image_mode"]) * size**2  # L or RGB
    allowed = storage.bytes_on(device, processes)
    if pixels <= allowed:
        return Resident(snapshot, split, decoding, device)
    if at_once:
        raise ValueError(
            f"a full batch of {count} images of {size}x{size} takes {pixels} bytes, more than the {allowed} that may "
            "stay in memory; use a smaller batch size, smaller images, or data.resident_bytes"
        )
    kept = allowed if device.type == "cpu" else min(allowed, Storage().bytes_on(torch.device("cpu"), processes))
    return Streamed(snapshot, split, decoding, device, kept=kept * count // pixels)


def stored_size(snapshot: Snapshot, image_size: int, augment: Augmentation) -> int:
    """The size of the images that batches are cut from: with a margin for crops, but no larger than the pictures."""
    if augment.crop_size is None:
        return image_size
    wanted, stored = round(image_size * MARGIN), snapshot.manifest["image_size"]
    return wanted if not stored else max(image_size, min(wanted, *stored))


def batch_sizes(num_samples: int, batch_size: int, num_processes: int) -> list[int]:
    """Sizes of the batches that N samples make. A last batch that is too small is joined to the one before it.

    A batch of one sample is too small, because batch normalization cannot train on it. So is a batch with fewer samples
    than processes. One and two processes have the same batches. More processes may join a last batch that fewer keep.
    Raises ValueError if there are fewer samples than processes.
    """
    if num_samples < num_processes:
        raise ValueError(f"{num_samples} samples cannot be shared by {num_processes} processes; use fewer processes")
    full, rest = divmod(num_samples, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    if len(sizes) > 1 and sizes[-1] < max(num_processes, 2):
        sizes[-2:] = [sum(sizes[-2:])]
    return sizes


def _generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """An independent stream of random numbers for each seed, epoch and purpose."""
    (state,) = np.random.SeedSequence([seed, epoch, purpose]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))
