"""Every source gives the same kind of thing, is found where torchvision keeps it, or says how to get it."""

from __future__ import annotations

import os
import pickle
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from ncflow import assembly
from ncflow.data import published
from ncflow.data.images import DatasetMissing, decode_image
from ncflow.data.published import PUBLISHED
from ncflow.data.recipe import SOURCE_OPTIONS
from ncflow.data.sources import SOURCES, _read_digits, load_source
from ncflow.params import make_params

RANDOM = np.random.RandomState(0)
COUNTS = {"train": 40, "test": 20}


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root: Path, folder: str = "MNIST") -> dict[str, np.ndarray]:
    written = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        written[split] = RANDOM.randint(0, 256, (COUNTS[split], 28, 28)).astype(np.uint8)
        labels = (np.arange(COUNTS[split]) % 10).astype(np.uint8)
        write_idx(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", written[split])
        write_idx(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", labels)
    return written


def write_fashion_mnist(root: Path) -> dict[str, np.ndarray]:
    return write_mnist(root, "FashionMNIST")


def write_cifar(root: Path, folder: str, files: dict[str, list[str]], label: str, meta: tuple[str, str, int]):
    (root / folder).mkdir(parents=True)
    written: dict[str, np.ndarray] = {}
    for split, names in files.items():
        written[split] = RANDOM.randint(0, 256, (COUNTS[split], 32, 32, 3)).astype(np.uint8)
        labels = np.arange(COUNTS[split]) % 10
        for name, rows in zip(names, np.array_split(np.arange(COUNTS[split]), len(names)), strict=True):
            data = written[split][rows].transpose(0, 3, 1, 2).reshape(len(rows), -1)
            (root / folder / name).write_bytes(pickle.dumps({"data": data, label: labels[rows].tolist()}))
    meta_file, key, num_classes = meta
    (root / folder / meta_file).write_bytes(pickle.dumps({key: [f"class {k}" for k in range(num_classes)]}))
    return written


def write_cifar10(root: Path) -> dict[str, np.ndarray]:
    files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    return write_cifar(root, "cifar-10-batches-py", files, "labels", ("batches.meta", "label_names", 10))


def write_cifar100(root: Path) -> dict[str, np.ndarray]:
    files = {"train": ["train"], "test": ["test"]}
    return write_cifar(root, "cifar-100-python", files, "fine_labels", ("meta", "fine_label_names", 100))


def write_svhn(root: Path) -> dict[str, np.ndarray]:
    from scipy.io import savemat

    written = {}
    for split, count in COUNTS.items():
        written[split] = RANDOM.randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        labels = np.arange(count) % 10
        labels[labels == 0] = 10  # how SVHN writes the digit 0
        content = {"X": written[split].transpose(1, 2, 3, 0), "y": labels[:, None]}
        savemat(root / f"{split}_32x32.mat", content)
    return written


def write_emnist(root: Path) -> dict[str, np.ndarray]:
    written = {}
    for split, count in COUNTS.items():
        written[split] = RANDOM.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        sideways = np.ascontiguousarray(written[split].transpose(0, 2, 1))  # how EMNIST's files hold the letters
        write_idx(root / "EMNIST" / "raw" / f"emnist-balanced-{split}-images-idx3-ubyte", sideways)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(root / "EMNIST" / "raw" / f"emnist-balanced-{split}-labels-idx1-ubyte", labels)
    return written


def write_stl10(root: Path) -> dict[str, np.ndarray]:
    folder = root / "stl10_binary"
    folder.mkdir()
    written = {}
    for split, count in COUNTS.items():
        written[split] = RANDOM.randint(0, 256, (count, 96, 96, 3)).astype(np.uint8)
        (folder / f"{split}_X.bin").write_bytes(written[split].transpose(0, 3, 2, 1).tobytes())  # columns first
        (folder / f"{split}_y.bin").write_bytes((np.arange(count) % 10 + 1).astype(np.uint8).tobytes())
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("".join(f"class {k}\n" for k in range(10)))
    return written


LOOK_ALIKES = {
    "mnist": write_mnist,
    "fmnist": write_fashion_mnist,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "svhn": write_svhn,
    "emnist": write_emnist,
    "stl10": write_stl10,
}
NUM_CLASSES = {"cifar100": 100, "emnist": 47}  # of the others 10


@pytest.fixture
def any_checksum(monkeypatch):
    """The look-alikes have torchvision's format but not its checksums."""
    import torchvision.datasets as vision

    for module in (vision.cifar, vision.svhn, vision.stl10):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: os.path.isfile(path))


@pytest.fixture
def no_network(monkeypatch):
    def urlopen(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_data_set_is_read_where_torchvision_keeps_it(name, split, tmp_path, any_checksum, no_network):
    written = LOOK_ALIKES[name](tmp_path)
    source = load_source(name, tmp_path, split)
    assert np.array_equal(source.images, written[split])
    assert source.targets.tolist() == [k % 10 for k in range(COUNTS[split])]
    assert source.targets.dtype == np.int64
    assert len(set(source.class_names)) == len(source.class_names) == NUM_CLASSES.get(name, 10)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_data_set_names_its_folder_and_how_to_provide_it(name, tmp_path, no_network, monkeypatch):
    monkeypatch.setattr(published, "DEBIAN_FASHION_MNIST", tmp_path / "no-package")
    with pytest.raises(DatasetMissing) as error:
        load_source(name, tmp_path)
    message = str(error.value)
    assert str(tmp_path / PUBLISHED[name].expected) in message
    assert "no network" in message and "download=True" in message and "NCFLOW_DATA_ROOT" in message
    assert ("apt-get install dataset-fashion-mnist" in message) == (name == "fmnist")


def test_a_damaged_file_is_not_read(tmp_path, no_network):
    write_cifar10(tmp_path)
    with pytest.raises(DatasetMissing, match="missing or damaged"):
        load_source("cifar10", tmp_path)


def test_the_environment_names_the_default_root(tmp_path, monkeypatch):
    written = write_mnist(tmp_path)
    monkeypatch.setenv("NCFLOW_DATA_ROOT", str(tmp_path))
    assert np.array_equal(load_source("mnist").images, written["train"])


@pytest.mark.skipif(not published.DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_comes_from_debians_package(tmp_path, no_network):
    source = load_source("fmnist", tmp_path)
    assert source.images.shape == (60000, 28, 28)
    assert np.bincount(source.targets).tolist() == [6000] * 10
    assert source.class_names[0] == "T-shirt/top"
    assert sorted(os.listdir(tmp_path / "FashionMNIST" / "raw")) == [
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
    ]


def test_digits_are_split_once_and_for_all():
    from sklearn.datasets import load_digits

    for ours, theirs in zip(_read_digits(), load_digits(return_X_y=True), strict=True):
        assert np.array_equal(ours, theirs)
    train, test = load_source("digits"), load_source("digits", split="test")
    assert np.bincount(test.targets).tolist() == [36] * 10
    assert len(train) + len(test) == 1797
    assert train.images.dtype == np.uint8 and train.images.max() == 255
    everything = sorted(image.tobytes() for image in np.rint(load_digits().images * 255 / 16).astype(np.uint8))
    assert sorted(image.tobytes() for image in [*train.images, *test.images]) == everything
    assert test.checksum == load_source("digits", split="test").checksum != train.checksum


def write_picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (12, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.randint(0, 256, (*size[::-1], 3)).astype(np.uint8)).convert(mode).save(path)


@pytest.fixture(params=["test", "val"])
def pictures(tmp_path, request):
    for split in ("train", request.param):
        write_picture(tmp_path / split / "cat" / "1.png")
        write_picture(tmp_path / split / "cat" / "deeper" / "2.JPG")
        write_picture(tmp_path / split / "dog" / "1.png")
        (tmp_path / split / "dog" / "notes.txt").write_text("not a picture")
        (tmp_path / split / ".hidden").mkdir()
    return tmp_path


def test_a_folder_of_pictures_is_a_source(pictures):
    for split in ("train", "test"):
        source = load_source("imagefolder", pictures, split)
        assert source.class_names == ["cat", "dog"]
        assert source.targets.tolist() == [0, 0, 1]
        assert [path.name for path in source.images] == ["1.png", "2.JPG", "1.png"]
        assert source.encoded(0) == source.images[0].read_bytes()


@pytest.mark.parametrize("name", ["imagenet", "imagenet_lt"])
def test_imagenet_is_read_from_its_folders(name, pictures):
    source, folder = load_source(name, pictures), load_source("imagefolder", pictures)
    assert source.name == name
    assert (source.checksum, source.class_names) == (folder.checksum, folder.class_names)


def test_the_checksum_follows_the_content_and_not_the_place(pictures, tmp_path):
    before = load_source("imagefolder", pictures).checksum
    moved = pictures.rename(tmp_path.parent / f"{tmp_path.name}-moved")
    assert load_source("imagefolder", moved).checksum == before
    write_picture(moved / "train" / "cat" / "1.png")
    assert load_source("imagefolder", moved).checksum != before


def test_a_folder_without_what_is_needed_says_what_is_expected(tmp_path):
    for name in ("imagefolder", "imagenet", "imagenet_lt", "parquet"):
        with pytest.raises(DatasetMissing, match=f"'{name}' needs dataset.root"):
            load_source(name)
    write_picture(tmp_path / "train" / "cat" / "1.png")
    with pytest.raises(DatasetMissing, match=r"no test split: expected .*test/<class>/<picture> or .*val/"):
        load_source("imagefolder", tmp_path, "test")
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match="no picture of class dog"):
        load_source("imagefolder", tmp_path)
    write_picture(tmp_path / "test" / "cow" / "1.png")
    with pytest.raises(ValueError, match="does not have: cow"):
        load_source("imagefolder", tmp_path, "test")


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [("1", "png", "L"), ("L", "png", "L"), ("LA", "png", "L"), ("P", "gif", "RGB"), ("RGBA", "png", "RGB")]
    + [("RGB", "bmp", "RGB"), ("CMYK", "jpg", "RGB")],
)
def test_every_usual_kind_of_picture_becomes_gray_or_rgb(tmp_path, mode, suffix, expected):
    write_picture(tmp_path / f"picture.{suffix}", mode)
    image = decode_image((tmp_path / f"picture.{suffix}").read_bytes())
    assert (image.mode, image.size) == (expected, (12, 9))


def test_a_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    Image.new("RGB", (12, 9)).save(tmp_path / "photo.jpg", exif=exif)
    assert decode_image((tmp_path / "photo.jpg").read_bytes()).size == (9, 12)


def test_every_source_describes_itself_in_one_line():
    lines = [load.__doc__.splitlines()[0] for load in SOURCES.values()]
    assert len(set(lines)) == len(lines)
    assert not any("partial" in line for line in lines)


VALUES = {"lists": {"train": "train.txt"}}  # of options that are no text


@pytest.mark.parametrize("option", SOURCE_OPTIONS)
def test_an_option_that_a_source_does_not_take_is_refused(option):
    assert len(load_source("digits", **{option: None})) == 1437
    with pytest.raises(ValueError, match=f"unknown option of dataset 'digits' '{option}'"):
        load_source("digits", **{option: VALUES.get(option, "x")})
    with pytest.raises(ValueError, match=f"unknown option of dataset 'digits' '{option}'"):
        assembly.check(make_params({"dataset": {option: VALUES.get(option, "x")}}))


def test_an_unknown_data_set_or_split_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="Did you mean 'cifar10'"):
        load_source("cifar-10")
    for name in SOURCES:
        with pytest.raises(ValueError, match="unknown split 'valid'. Did you mean 'val'\\? Choices: train, test, val"):
            load_source(name, split="valid")
