"""JPEG files have the pixels that Pillow gives, whichever decoder reads them; squares are those of Pillow, nearly."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ncflow.data import decoding
from ncflow.data.decoding import RESIZINGS, decode, fit_square, jpeg_decoder, resizing_of
from ncflow.data.images import PictureDamaged, decode_image

SIZES = [(1, 1), (7, 9), (33, 17), (64, 48), (101, 152)]
RULES = sorted(RESIZINGS)


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth noise of three scales, and a little grain."""
    random = np.random.RandomState(seed)
    pixels = np.full((height, width, 3), 128.0) + 5 * random.randn(height, width, 1)
    for points, strength in ((3, 40), (9, 25), (30, 12)):
        waves = torch.from_numpy(random.randn(1, 3, points, points))
        pixels += strength * interpolate(waves, (height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def content(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(encoded: bytes, mode: str = "RGB") -> Tensor:
    pixels = torch.from_numpy(np.array(decode_image(encoded).convert(mode)))
    return pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that torchvision's decoder has given since."""
    given = []

    def watched(*inputs: object) -> Tensor:
        pixels = jpeg_decoder()(*inputs)
        given.append(tuple(pixels.shape))
        return pixels

    monkeypatch.setattr(decoding, "jpeg_decoder", lambda: watched)
    return given


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "colors at full resolution": {"subsampling": 0},
    "colors at half the width": {"subsampling": 1},
    "own tables": {"optimize": True},
    "restarts": {"restart_marker_blocks": 2},
    "RGB inside": {"keep_rgb": True},
}


@pytest.mark.parametrize("quality", [10, 75, 95])
@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_files_of_every_kind_have_the_pixels_of_pillow(kind, quality, quick):
    for height, width in SIZES:
        encoded = content(photograph(height, width), quality=quality, **JPEGS[kind])
        assert torch.equal(decode(encoded, "RGB"), by_pillow(encoded))
        assert torch.equal(decode(encoded, "L"), by_pillow(encoded, "L"))
    assert quick == [(3, height, width) for height, width in SIZES]


@pytest.mark.parametrize(("mode", "by_torchvision"), [("L", True), ("CMYK", False)])
def test_gray_and_print_colors_have_the_pixels_of_pillow(mode, by_torchvision, quick):
    for height, width in SIZES:
        encoded = content(photograph(height, width).convert(mode))
        assert torch.equal(decode(encoded, "RGB"), by_pillow(encoded))
    assert len(quick) == len(SIZES) * by_torchvision


@pytest.mark.parametrize("orientation", range(10))
def test_a_jpeg_file_is_turned_as_pillow_turns_it(orientation, quick):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for height, width in SIZES:
        encoded = content(photograph(height, width), exif=exif)
        assert torch.equal(decode(encoded, "RGB"), by_pillow(encoded))
    assert len(quick) == len(SIZES)


OTHERS = {
    "palette": lambda image: content(image.convert("P"), "PNG"),
    "palette with alpha": lambda image: content(image.convert("P"), "PNG", transparency=3),
    "alpha": lambda image: content(image.convert("RGBA"), "PNG"),
    "16 bits": lambda image: content(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG"),
    "GIF": lambda image: content(image, "GIF"),
    "BMP": lambda image: content(image, "BMP"),
    "WebP": lambda image: content(image, "WEBP"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_go_to_pillow(kind, quick):
    encoded = OTHERS[kind](photograph(20, 30))
    for mode in ("L", "RGB"):
        assert torch.equal(decode(encoded, mode), by_pillow(encoded, mode))
    assert not quick


def test_damaged_jpeg_files_are_those_that_pillow_rejects(capfd):
    encoded = content(photograph(40, 60), progressive=False)
    random = np.random.RandomState(0)
    rejected = 0
    for number in range(300):
        damaged = bytearray(encoded[: random.randint(9, len(encoded))] if number % 2 else encoded)
        for _ in range(number % 3 + 1):
            damaged[random.randint(3, len(damaged))] = random.randint(256)
        try:
            expected = by_pillow(bytes(damaged))
        except PictureDamaged as error:
            rejected += 1
            with pytest.raises(PictureDamaged, match=re.escape(str(error).partition(" at 0x")[0])):
                decode(bytes(damaged), "RGB")
        else:
            assert torch.equal(decode(bytes(damaged), "RGB"), expected)
    assert 100 < rejected < 300
    capfd.readouterr()  # libjpeg prints what it repairs


def test_a_picture_of_too_many_pixels_is_not_decoded(monkeypatch, quick):
    encoded = content(photograph(20, 30))
    monkeypatch.setattr(decoding, "LARGEST", 599)
    monkeypatch.setattr("ncflow.data.images.LARGEST", 599)
    with pytest.raises(PictureDamaged, match="30x20 pixels are more than 599"):
        decode(encoded, "RGB")
    assert not quick


def test_without_torchvision_pillow_decodes(monkeypatch):
    encoded = content(photograph(20, 30))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(torch.ops, "image", object())
    jpeg_decoder.cache_clear()
    try:
        assert jpeg_decoder() is None
        assert torch.equal(decode(encoded, "RGB"), by_pillow(encoded))
    finally:
        jpeg_decoder.cache_clear()


def squares(image: Image.Image, size: int) -> np.ndarray:
    """Pillow's resize, and the middle of it."""
    scale = size / min(image.size)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return np.array(resized.crop((left, top, left + size, top + size))).astype(int)


@pytest.mark.parametrize("resizing", RULES)
@pytest.mark.parametrize("quality", [50, 90])
def test_decoded_and_resized_pictures_are_those_of_pillow_within_one_level(resizing, quality):
    for height, width in [(375, 500), (500, 333), (100, 640), (60, 45)]:
        encoded = content(photograph(height, width), quality=quality)
        ours = fit_square(decode(encoded, "RGB")[None], 112, resizing)[0].permute(1, 2, 0).numpy().astype(int)
        differences = np.abs(ours - squares(Image.open(io.BytesIO(encoded)), 112))
        assert differences.max() <= 1 and differences.mean() < {"float32": 0.2, "uint8": 0.005}[resizing]


def test_the_layout_of_pixels_changes_no_bit():
    for seed in range(20):
        height, width = np.random.RandomState(seed).randint(1, 90, 2)
        pixels = torch.from_numpy(np.array(photograph(height, width, seed))).permute(2, 0, 1)
        together = torch.stack([pixels, pixels.flip(-1)])
        for resizing in RULES:
            fitted = fit_square(pixels[None], 24, resizing)
            assert torch.equal(fit_square(pixels.contiguous()[None], 24, resizing), fitted)
            assert torch.equal(fit_square(together, 24, resizing)[:1], fitted)
            together = together.contiguous(memory_format=torch.channels_last)
            assert torch.equal(fit_square(together, 24, resizing)[:1], fitted)


def test_gray_pictures_keep_their_rule_and_colors_have_the_quick_one():
    assert (resizing_of("L"), resizing_of("RGB")) == ("float32", "uint8")


def test_an_unknown_rule_of_resizing_is_refused():
    with pytest.raises(ValueError, match="unknown resizing 'uint16'"):
        fit_square(torch.zeros(1, 3, 9, 9, dtype=torch.uint8), 8, "uint16")
