"""A classifier of pictures does exactly what the data path does with test pictures, in Python and as a stored graph."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ncflow.data import Snapshot, load_batches
from ncflow.data import decoding as data_path
from ncflow.nn import Output, PictureClassifier
from ncflow.nn.pictures import RESIZINGS, fit_square, luma

MODES = {"L": 1, "RGB": 3}
RULES = sorted(data_path.RESIZINGS)


class Flat(nn.Module):
    """A classifier whose logits are the images."""

    def forward(self, images: torch.Tensor) -> Output:
        return Output(images.flatten(1), images.flatten(1))


def model_of(mode: str, image_size: int = 8, resize: int | None = None, resizing: str = "float32") -> PictureClassifier:
    channels = MODES[mode]
    mean, std = [0.1, 0.5, 0.7][:channels], [0.2, 0.3, 0.0][:channels]  # a constant channel has std 0
    sizes = {"image_size": image_size, "resize": resize, "resizing": resizing}
    return PictureClassifier(Flat(), image_mode=mode, **sizes, pixel_mean=mean, pixel_std=std).eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_both_have_the_same_rules_of_resizing() -> None:
    assert sorted(RESIZINGS) == RULES


@pytest.mark.parametrize("resizing", RULES)
@pytest.mark.parametrize("size", [8, 17, 32])
def test_fitting_a_square_is_that_of_the_data_path_to_the_bit(size: int, resizing: str) -> None:
    for seed in range(30):
        height, width = np.random.default_rng(seed).integers(1, (20, 90, 200)[seed % 3], 2).tolist()
        images = noise(2, 3, height, width, seed=seed)
        fitted = fit_square(images, size, size, resizing)
        assert torch.equal(fitted.byte(), data_path.fit_square(images, size, resizing))


@pytest.mark.parametrize("resizing", RULES)
@pytest.mark.parametrize(("height", "width"), [(16, 25), (48, 75), (9, 33), (3, 64), (7, 500), (21, 50), (13, 13)])
def test_sizes_between_two_whole_numbers_are_rounded_as_by_the_data_path(
    height: int, width: int, resizing: str
) -> None:
    for size in (8, 16, 24, 40):
        images = noise(1, 1, height, width)
        fitted = fit_square(images, size, size, resizing)
        assert torch.equal(fitted.byte(), data_path.fit_square(images, size, resizing))


@pytest.mark.parametrize("resizing", RULES)
def test_a_margin_is_cropped_as_by_the_data_path(resizing: str) -> None:
    for height, width, resize, size in ((30, 41, 19, 16), (50, 20, 37, 32), (10, 11, 10, 7)):
        images = noise(2, 3, height, width)
        stored, start = data_path.fit_square(images, resize, resizing), (resize - size) // 2
        window = slice(start, start + size)
        assert torch.equal(fit_square(images, resize, size, resizing).byte(), stored[..., window, window])


def test_gray_values_of_colors_are_those_of_pillow() -> None:
    colors = noise(1, 3, 300, 300)
    pillow = np.array(Image.fromarray(colors[0].permute(1, 2, 0).numpy()).convert("L"))
    assert np.array_equal(luma(colors)[0, 0].numpy(), pillow)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", ["L", "LA", "RGB", "RGBA"])
def test_pictures_of_any_channels_are_read_as_the_decoder_reads_them(mode: str, channels: str) -> None:
    pixels = noise(13, 21, len(channels)).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, "PNG")
    decoded = data_path.decode(buffer.getvalue(), mode).permute(1, 2, 0)[None]
    model = model_of(mode)
    assert torch.equal(model(torch.from_numpy(pixels)[None]), model(decoded))


@pytest.mark.parametrize("gray", [True, False])
@pytest.mark.parametrize("augment", ["none", "random_resized_crop"])
def test_a_snapshot_of_various_sizes_gives_the_batches_of_training(tmp_path: Path, gray: bool, augment: str) -> None:
    files = write_pictures(tmp_path / "pics", gray=gray)
    snapshot = Snapshot.create(tmp_path / "snapshot", name="imagefolder", root=tmp_path / "pics", imb_factor=-1)
    batches = load_batches(snapshot, "test", image_size=16, augment=augment)
    (images, _), manifest = next(batches.ordered()), snapshot.manifest
    model = PictureClassifier(
        Flat(),
        image_mode=manifest["image_mode"],
        image_size=16,
        resize=18 if augment == "random_resized_crop" else None,
        pixel_mean=manifest["pixel_mean"],
        pixel_std=manifest["pixel_std"],
        resizing=data_path.resizing_of(manifest["image_mode"]),
    )
    assert manifest["image_mode"] == ("L" if gray else "RGB")
    ours = [
        model.prepare(torch.from_numpy(np.array(Image.open(file)))[None].reshape(1, *shape)) for file, shape in files
    ]
    assert torch.equal(torch.cat(ours), images)


@pytest.mark.parametrize(("mode", "resizing"), [("L", "float32"), ("RGB", "uint8"), ("RGB", "float32")])
def test_a_stored_graph_takes_pictures_of_any_size_batch_and_channels(tmp_path: Path, mode: str, resizing: str) -> None:
    model = model_of(mode, 8, 10, resizing)
    free = dict.fromkeys(range(4), torch.export.Dim.AUTO)
    program = torch.export.export(model, (noise(2, 9, 11, 3),), dynamic_shapes=(free,))
    torch.export.save(program, tmp_path / "model.pt2")
    stored = torch.export.load(tmp_path / "model.pt2").module()
    shapes = [(1, 8, 8, 1), (1, 10, 10, 3), (3, 10, 40, 4), (2, 16, 25, 2), (5, 1, 1, 3), (1, 300, 7, 3), (2, 9, 9, 9)]
    for shape in [*shapes, *((1, side, side + 3, 3) for side in range(1, 30))]:
        assert torch.equal(stored(noise(*shape)), model(noise(*shape)))
    with pytest.raises(Exception, match="dtype"):  # normalized numbers are another input
        stored(noise(1, 8, 8, 3) / 255)


def test_what_does_not_fit_is_refused() -> None:
    options = {"image_size": 8, "pixel_mean": [0.5], "pixel_std": [0.5]}
    with pytest.raises(ValueError, match="image mode 'CMYK'"):
        PictureClassifier(Flat(), image_mode="CMYK", **options)
    with pytest.raises(ValueError, match="unknown resizing 'uint16'"):
        PictureClassifier(Flat(), image_mode="L", resizing="uint16", **options)
    with pytest.raises(ValueError, match="mode RGB needs pixel_mean and pixel_std of length 3, got 1 and 1"):
        PictureClassifier(Flat(), image_mode="RGB", **options)
    with pytest.raises(ValueError, match="image_size <= resize, got 8 and 7"):
        PictureClassifier(Flat(), image_mode="L", resize=7, **options)


def write_pictures(root: Path, *, gray: bool) -> list[tuple[Path, tuple[int, ...]]]:
    """An image folder of two classes; its test files with their shapes (H, W, C)."""
    generator, test = np.random.default_rng(0), []
    for split in ("train", "test"):
        for number in range(6):
            height, width = generator.integers(5, 60, 2).tolist()
            shape = (height, width, 1 if gray else 3)
            file = root / split / "ab"[number // 3] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8).squeeze()).save(file)
            test += [(file, shape)] * (split == "test")
    return test
