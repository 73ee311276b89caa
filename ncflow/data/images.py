"""Labeled images of one split, as pixels in memory or as picture files, with one interface."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ncflow.lookup import lookup

Pixels = npt.NDArray[np.uint8]


class DatasetMissing(ValueError):
    """A source that is neither on disk nor downloadable. The message explains how to provide it."""


class SplitMissing(DatasetMissing):
    """A source without the requested split."""


class PictureDamaged(ValueError):
    """A picture that cannot be decoded. The message gives the reason, and the caller adds the name."""


class PictureFile(Protocol):
    """The content of one picture file, read on demand: a Path, or a row of a Parquet file."""

    @property
    def name(self) -> str: ...

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True, eq=False)
class ImageSource:
    """N labeled images: `images` is uint8 (N,H,W) or (N,H,W,3), or N picture files; targets (N,) int64.

    `notes` are notes for the user on how the images were read, one per line. `lists` are the files that list them.
    `is_training` is true if a test split is the training split on purpose, as for unconstrained features.
    """

    name: str
    images: Pixels | Sequence[PictureFile]
    targets: npt.NDArray[np.int64]
    class_names: list[str]
    notes: tuple[str, ...] = ()
    lists: tuple[Path, ...] = ()
    is_training: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def files(self) -> list[Path]:
        """The files that the images and their classes are read from; empty for built-in data."""
        return [*self.lists, *_files(self.images)]

    def encoded(self, index: int) -> bytes:
        """The image as file content: PNG for pixels, the original bytes for a picture file."""
        image = self.images[index]
        if not isinstance(image, np.ndarray):
            return image.read_bytes()
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        return buffer.getvalue()

    def label(self, index: int) -> str:
        """The name of an image for messages: its file, or its number."""
        try:
            image = self.images[index]
        except ValueError:  # a row without a picture; its error names the row
            return f"picture {index} of {self.name}"
        return f"picture {index} of {self.name}" if isinstance(image, np.ndarray) else printable(str(image))

    def take(self, indices: npt.NDArray[np.int64]) -> ImageSource:
        """Select the images of `indices`, in this order."""
        images = self.images
        chosen = images[indices] if isinstance(images, np.ndarray) else Chosen(images, indices.tolist())
        return replace(self, images=chosen, targets=self.targets[indices])

    @cached_property
    def hashes(self) -> list[bytes]:
        """sha256 of the content of each image. An unreadable image has the hash of empty content and is named later."""
        return [hashlib.sha256(self._content(index)).digest() for index in range(len(self))]

    def _content(self, index: int) -> bytes:
        with suppress(OSError, ValueError):
            image = self.images[index]
            return image.tobytes() if isinstance(image, np.ndarray) else image.read_bytes()
        return b""

    @cached_property
    def checksum(self) -> str:
        """sha256 over class names, targets and the content of every image, independent of their location."""
        digest = hashlib.sha256(repr((self.class_names, self.targets.tolist())).encode())
        digest.update(b"".join(self.hashes))
        return digest.hexdigest()


@dataclass(frozen=True)
class Chosen(Sequence[Any]):
    """A part of a sequence of pictures, selected by their numbers."""

    pictures: Sequence[Any]
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.pictures[self.rows[index]]


def _files(images: Any) -> list[Path]:
    """The files behind a sequence of pictures."""
    if isinstance(images, np.ndarray):
        return []
    if isinstance(images, Chosen):
        found = _files(images.pictures)
        return [found[row] for row in images.rows] if len(found) == len(images.pictures) else found
    return list(images.files) if hasattr(images, "files") else list(images)


def decode_image(content: bytes) -> Image.Image:
    """Decode a picture file's content to an upright 8-bit image of mode L (grayscale) or RGB.

    16-bit values are scaled by their range, and floats must lie in [0, 1]. Other numbers have no known range.
    Raises PictureDamaged if the content cannot be decoded.
    """
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > LARGEST:  # a decompression bomb, for which Pillow would only warn
            raise PictureDamaged(f"{image.width}x{image.height} pixels are more than {LARGEST}; make it smaller")
        image.load()
        return _upright(lookup(_CONVERSIONS, image.mode, "image mode")(image), orientation(image))
    except MemoryError:
        raise
    except Exception as error:  # on damaged files Pillow's decoders raise errors of any kind
        reason = " ".join(str(error).split()).replace("<_io.BytesIO object at ", "<file at ")
        raise PictureDamaged(reason or type(error).__name__) from error


def printable(name: str) -> str:
    """A name that can be printed and stored. Bytes that are not UTF-8 become \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def orientation(image: Image.Image) -> int | None:
    """The EXIF orientation of a picture; None if EXIF is missing or damaged, or holds no number."""
    with suppress(Exception):
        found = image.getexif().get(ORIENTATION)
        return found if isinstance(found, int) else None
    return None


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    turn = None if orientation is None else _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _gray(image: Image.Image) -> Image.Image:
    return image.convert("L")


def _color(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """0..65535 becomes 0..255."""
    return Image.fromarray(np.rint(np.asarray(image).astype(np.float64) / 257).astype(np.uint8))


def _whole_numbers(image: Image.Image) -> Image.Image:
    """Whole numbers of 32 bits. Older versions of Pillow open a 16-bit PNG in this mode."""
    if image.format != "PNG":
        raise PictureDamaged("whole numbers of 32 bits have no known range of gray; convert it to 8 or 16 bits")
    return _sixteen_bits(image)


def _floats(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # also rejects NaN
        found = f"{pixels.min():g} to {pixels.max():g}"
        raise PictureDamaged(f"floats must lie in [0, 1] to be gray, got {found}; scale it, or convert it to 8 bits")
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))


def _by_steps(*modes: str) -> Callable[[Image.Image], Image.Image]:
    def convert(image: Image.Image) -> Image.Image:
        for mode in modes:
            image = image.convert(mode)
        return image

    return convert


LARGEST = 2**26 + 2**24  # pixels of one picture: 9,000 by 9,000, a little below Pillow's own limit
ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_CONVERSIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    **dict.fromkeys(("1", "L", "LA"), _gray),
    **dict.fromkeys(("RGB", "RGBA", "P", "CMYK", "YCbCr", "HSV", "PA", "RGBX"), _color),
    "La": _by_steps("LA", "L"),
    "RGBa": _by_steps("RGBA", "RGB"),
    **dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), _sixteen_bits),
    "I": _whole_numbers,
    "F": _floats,
}
