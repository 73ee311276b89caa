"""Pictures as they come: upright whatever EXIF says, gray or RGB in 8 bits, or refused with what would help."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from ncflow.data.images import PictureDamaged, decode_image

PIXELS = np.random.RandomState(0).randint(0, 256, (6, 9, 3)).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(10))
def test_a_picture_is_turned_as_exif_says(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)
    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.array_equal(np.array(decode_image(content)), np.array(theirs))


def tags(*entries: bytes) -> bytes:
    """EXIF with these entries, of 12 bytes each."""
    return b"Exif\0\0MM\0*\0\0\0\x08" + len(entries).to_bytes(2, "big") + b"".join(entries) + b"\0\0\0\0"


SIX = b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
ODD = {
    "a number stored as text": (tags(SIX, b"\x01\x24\0\x02\0\0\0\x02a\0\0\0"), True),
    "orientation as text": (tags(b"\x01\x12\0\x02\0\0\0\x026\0\0\0"), False),
    "cut off": (tags(SIX)[:20], None),
    "nothing": (b"Exif\0\0", False),
    "noise": (b"Exif\0\0MM\0*" + bytes(range(40)), None),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_exif_harms_no_picture(case):
    exif, turned = ODD[case]
    size = decode_image(encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)).size
    assert size in ([(6, 9), (9, 6)] if turned is None else [(6, 9)] if turned else [(9, 6)])


MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB"}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_8_bits_become_gray_or_rgb_as_pillow_converts_them(mode):
    image = Image.fromarray(PIXELS).convert(mode)
    found = decode_image(encoded(image))
    assert found.mode == MODES[mode]
    assert np.array_equal(np.array(found), np.array(image.convert(MODES[mode])))


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_print_colors_become_rgb(kind):
    image = Image.fromarray(PIXELS).convert("CMYK")
    assert decode_image(encoded(image, kind)).mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_by_their_range(kind):
    deep = np.array([[0, 257, 1000], [32768, 65278, 65535]], dtype=np.uint16)
    found = decode_image(encoded(Image.fromarray(deep), kind))
    assert found.mode == "L" and np.array(found).tolist() == [[0, 1, 4], [128, 254, 255]]


def test_floats_between_0_and_1_are_gray():
    found = decode_image(encoded(Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)), "TIFF"))
    assert found.mode == "L" and np.array(found).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("value", [-0.1, 1.5, 255.0, float("nan")])
def test_other_floats_are_refused_with_their_range(value):
    content = encoded(Image.fromarray(np.array([[0, value]], dtype=np.float32)), "TIFF")
    with pytest.raises(PictureDamaged, match=r"floats must lie in \[0, 1\]"):
        decode_image(content)


def test_whole_numbers_of_32_bits_are_refused():
    content = encoded(Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)), "TIFF")
    with pytest.raises(PictureDamaged, match="32 bits have no known range"):
        decode_image(content)


@pytest.mark.parametrize("error", [SyntaxError, TypeError, KeyError, IndexError, AssertionError, RuntimeError])
def test_whatever_a_decoder_raises_is_a_damaged_picture(monkeypatch, error):
    def fail(*args: object) -> None:
        raise error("broken")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(PictureDamaged, match="broken"):
        decode_image(encoded(Image.fromarray(PIXELS)))


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.fromarray(PIXELS // k).convert("P") for k in (1, 2, 3)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    first = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(np.array(decode_image(content)), np.array(first))
