"""Published data sets through torchvision, in torchvision's folder layout: found, unpacked or downloaded."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ncflow.data.images import DatasetMissing, ImageSource

Contents = tuple[Any, Any, list[str]]  # images, targets, class names


@dataclass(frozen=True)
class Published:
    """One data set: torchvision's class, a summary, an expected file below the root, how to read and download it."""

    torchvision_name: str
    summary: str
    expected: str
    read: Callable[[Any, Path, str, bool], Contents]
    num_classes: int = 10
    download: str = "D('{root}', download=True)"


def load_published(name: str, root: Path | None, split: str) -> ImageSource:
    """Load a split from `root`, from Debian's package (Fashion-MNIST) or from the network, in this order.

    Raises DatasetMissing that explains how to provide the data.
    """
    root = root or default_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(root, name):
            images, targets, class_names = _read_or_fetch(name, root, split)
    except (RuntimeError, OSError) as error:
        raise DatasetMissing(_how_to_provide(name, root, error)) from error
    images = np.ascontiguousarray(images, dtype=np.uint8)
    return ImageSource(name, images, np.asarray(targets, dtype=np.int64), list(class_names))


def published_files(name: str, root: Path | None) -> list[Path]:
    """The files that a published data set is read from; empty if it is not unpacked. Nothing is downloaded."""
    expected = (root or default_root()) / PUBLISHED[name].expected
    if not expected.is_file():
        return []
    return [file for file in expected.parent.iterdir() if file.is_file() and not file.name.startswith(".")]


def default_root() -> Path:
    """The folder of published data sets: `NCFLOW_DATA_ROOT`, or `~/.cache/ncflow`."""
    return Path(os.environ.get("NCFLOW_DATA_ROOT") or "~/.cache/ncflow").expanduser()


def _one_at_a_time(root: Path, name: str) -> AbstractContextManager[Any]:
    """Lock a data set, so no process reads it while another unpacks it. A read-only folder needs no lock."""
    from filelock import FileLock

    return FileLock(root / f".{name}.lock") if os.access(root, os.W_OK) else nullcontext()


def _read_or_fetch(name: str, root: Path, split: str) -> Contents:
    import torchvision

    published = PUBLISHED[name]
    dataset = getattr(torchvision.datasets, published.torchvision_name)
    try:
        return published.read(dataset, root, split, False)
    except RuntimeError:  # torchvision's "not found or corrupted"
        if name == "fmnist":
            _unpack_debian_package(root / "FashionMNIST" / "raw")
        return published.read(dataset, root, split, True)


def _unpack_debian_package(raw: Path) -> None:
    """Unpack Debian's four files where torchvision looks for them. Each appears only when it is complete."""
    raw.mkdir(parents=True, exist_ok=True)
    for packed in DEBIAN_FASHION_MNIST.glob("*-ubyte.gz"):
        partial = raw / f".{packed.stem}.partial"
        partial.write_bytes(gzip.decompress(packed.read_bytes()))
        partial.replace(raw / packed.stem)


def _how_to_provide(name: str, root: Path, error: Exception) -> str:
    published = PUBLISHED[name]
    debian = name == "fmnist"
    reason = " ".join(str(error).split()) or type(error).__name__
    call = published.download.format(root=root)
    lines = [
        f"data set '{name}' is missing or damaged: looked for {root / published.expected} and related files"
        + (f", then for Debian's package in {DEBIAN_FASHION_MNIST}" if debian else "")
        + f", then tried to download it ({reason}). Provide it with one of:",
        "  apt-get install dataset-fashion-mnist" if debian else "",
        f'  python -c "from torchvision.datasets import {published.torchvision_name} as D; {call}"',
        "  the same command on a machine with a network; then copy the folder here",
        "  NCFLOW_DATA_ROOT=FOLDER or dataset.root=FOLDER, if torchvision's files are in FOLDER already",
    ]
    return "\n".join(line for line in lines if line)


def _read_mnist(dataset: Any, root: Path, split: str, download: bool) -> Contents:
    data = dataset(root, train=split == "train", download=download)
    # MNIST's class names are like "0 - zero"; Fashion-MNIST's have no number.
    return data.data.numpy(), data.targets.numpy(), [name.split(" - ")[0] for name in data.classes]


def _read_cifar(dataset: Any, root: Path, split: str, download: bool) -> Contents:
    data = dataset(root, train=split == "train", download=download)
    return data.data, data.targets, data.classes


def _read_svhn(dataset: Any, root: Path, split: str, download: bool) -> Contents:
    data = dataset(root, split=split, download=download)
    return data.data.transpose(0, 2, 3, 1), data.labels, [str(digit) for digit in range(10)]


def _read_emnist(dataset: Any, root: Path, split: str, download: bool) -> Contents:
    data = dataset(root, split="balanced", train=split == "train", download=download)
    return data.data.numpy().transpose(0, 2, 1), data.targets.numpy(), data.classes  # the file holds columns first


def _read_stl10(dataset: Any, root: Path, split: str, download: bool) -> Contents:
    data = dataset(root, split=split, download=download)
    return data.data.transpose(0, 2, 3, 1), data.labels, data.classes


DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

PUBLISHED = {
    "mnist": Published(
        "MNIST", "Handwritten digits: 60,000 and 10,000, gray 28×28.", "MNIST/raw/train-images-idx3-ubyte", _read_mnist
    ),
    "fmnist": Published(
        "FashionMNIST",
        "Fashion-MNIST, clothes in 10 classes: 60,000 and 10,000, gray 28×28.",
        "FashionMNIST/raw/train-images-idx3-ubyte",
        _read_mnist,
    ),
    "cifar10": Published(
        "CIFAR10", "Objects in 10 classes: 50,000 and 10,000, 32×32.", "cifar-10-batches-py/data_batch_1", _read_cifar
    ),
    "cifar100": Published(
        "CIFAR100",
        "Objects in 100 classes: 50,000 and 10,000, 32×32.",
        "cifar-100-python/train",
        _read_cifar,
        num_classes=100,
    ),
    "svhn": Published(
        "SVHN",
        "House numbers, digit by digit: 73,257 and 26,032, 32×32, naturally imbalanced.",
        "train_32x32.mat",
        _read_svhn,
        download="[D('{root}', split=s, download=True) for s in ('train', 'test')]",
    ),
    "emnist": Published(
        "EMNIST",
        "EMNIST balanced, letters and digits in 47 classes: 112,800 and 18,800, gray 28×28.",
        "EMNIST/raw/emnist-balanced-train-images-idx3-ubyte",
        _read_emnist,
        num_classes=47,
        download="D('{root}', split='balanced', download=True)",
    ),
    "stl10": Published(
        "STL10", "Objects in 10 classes: 5,000 and 8,000, 96×96.", "stl10_binary/train_X.bin", _read_stl10
    ),
}
