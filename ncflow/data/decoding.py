"""The pixels of one picture file: decoded, upright, and resized to a square.

JPEG files take torchvision's decoder, which gives the bits of Pillow in half the time. Everything else, and every file
that it rejects, goes to Pillow, which also says what is wrong with a file.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ncflow.data.images import LARGEST, decode_image, orientation
from ncflow.lookup import lookup

JPEG = b"\xff\xd8\xff"
RGB = 3  # torchvision's number for this mode
UPRIGHT = 1


def decode(content: bytes, mode: str) -> Tensor:
    """Decode a picture file's content to uint8: (1,H,W) if mode is L, (3,H,W) if it is RGB. Channels lie together.

    Raises PictureDamaged if the content cannot be decoded.
    """
    if mode == "RGB" and content.startswith(JPEG) and (found := _quickly(content)) is not None:
        return found
    pixels = torch.from_numpy(np.array(decode_image(content).convert(mode)))
    return pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1)


def fit_square(images: Tensor, size: int, resizing: str) -> Tensor:
    """Resize uint8 (b,C,H,W) -> (b,C,size,size): antialiased bilinear on the shorter side, center of the longer.

    `resizing` is a row of RESIZINGS.
    """
    height, width = images.shape[-2:]
    scale = size / min(height, width)
    resized = (round(height * scale), round(width * scale))
    if resized != (height, width):
        images = lookup(RESIZINGS, resizing, "resizing")(images, resized)
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    return images[..., top : top + size, left : left + size]


def resizing_of(mode: str) -> str:
    """The resizing of new runs: gray pictures keep the one that they always had."""
    return "float32" if mode == "L" else "uint8"


def in_float32(images: Tensor, resized: tuple[int, int]) -> Tensor:
    """Rounded once, after both sides."""
    return interpolate(images.float(), resized, mode="bilinear", antialias=True).round().clamp(0, 255).byte()


def in_uint8(images: Tensor, resized: tuple[int, int]) -> Tensor:
    """Rounded after each side, as Pillow does. `ncflow.resizing` has the rule in full."""
    # This layout is the quick one, and the one in which torch takes pictures of every size.
    if len(images) == 1:  # whose strides do not tell
        images = images[0].permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return interpolate(images.contiguous(memory_format=torch.channels_last), resized, mode="bilinear", antialias=True)


def _quickly(content: bytes) -> Tensor | None:
    """Decode a JPEG file by torchvision to (3,H,W); None where Pillow must decide."""
    decoder = jpeg_decoder()
    if decoder is None:
        return None
    try:
        header = Image.open(io.BytesIO(content))
        if header.mode not in ("RGB", "L") or header.width * header.height > LARGEST:
            return None
        pixels: Tensor = decoder(torch.frombuffer(bytearray(content), dtype=torch.uint8), RGB, False)
    except Exception:  # either decoder has its own errors for damaged files
        return None
    if pixels.shape != (3, header.height, header.width):
        return None
    turn = _TURNS.get(orientation(header) or UPRIGHT)
    return pixels if turn is None else pixels.permute(0, *turn[0]).flip(turn[1])


@cache
def jpeg_decoder() -> Callable[..., Any] | None:
    """torchvision's operator (content, mode, whether EXIF turns the picture) -> pixels; None where it is missing.

    Only the library with the operator is loaded: importing all of torchvision takes seconds. torchvision announced to
    remove it. Pillow decodes then.
    """
    package = importlib.util.find_spec("torchvision")
    folders = list(package.submodule_search_locations or []) if package else []
    with suppress(OSError, RuntimeError):  # a library for another torch
        for library in (file for folder in folders for file in Path(folder).glob("image*") if file.suffix != ".py"):
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    return getattr(torch.ops.image, "decode_jpeg", None)


_TURNS: dict[
    int, tuple[tuple[int, int], tuple[int, ...]]
] = {  # EXIF orientation -> the sides in their new order, and the sides that are flipped then
    2: ((1, 2), (2,)),
    3: ((1, 2), (1, 2)),
    4: ((1, 2), (1,)),
    5: ((2, 1), ()),
    6: ((2, 1), (2,)),
    7: ((2, 1), (1, 2)),
    8: ((2, 1), (1,)),
}
# Name -> (images uint8 (b,C,H,W), (height, width)) -> images. The name is in a run's provenance
RESIZINGS: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {"float32": in_float32, "uint8": in_uint8}
