"""Augmentations: each image is changed as its own random numbers say, and by nothing else."""

from __future__ import annotations

import pytest
import torch

from ncflow.data.augment import AUGMENTATIONS, CROP_PADDING, RANDOM_NUMBERS


def flip_one(image, uniform):
    return image.flip(-1) if uniform[0] < 0.5 else image


def crop_one(image, uniform):
    channels, size, _ = image.shape
    padded = torch.zeros(channels, size + 2 * CROP_PADDING, size + 2 * CROP_PADDING, dtype=image.dtype)
    padded[:, CROP_PADDING:-CROP_PADDING, CROP_PADDING:-CROP_PADDING] = image
    top, left = (int(u * (2 * CROP_PADDING + 1)) for u in uniform[1:])
    return padded[:, top : top + size, left : left + size]


REFERENCES = {
    "none": lambda image, uniform: image,
    "flip": flip_one,
    "crop": crop_one,
    "crop_flip": lambda image, uniform: flip_one(crop_one(image, uniform), uniform),
}


@pytest.fixture(params=[1, 3], ids=["gray", "color"])
def images(request):
    return torch.randint(0, 256, (50, request.param, 12, 12), dtype=torch.uint8, generator=torch.manual_seed(0))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_batched_form_equals_one_image_at_a_time(name, images):
    uniform = torch.rand(len(images), RANDOM_NUMBERS, generator=torch.manual_seed(1))
    one_by_one = [REFERENCES[name](*pair) for pair in zip(images, uniform, strict=True)]
    augmented = AUGMENTATIONS[name](images, uniform)
    assert augmented.dtype == torch.uint8
    assert torch.equal(augmented, torch.stack(one_by_one))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_image_does_not_depend_on_its_neighbors(name, images):
    uniform = torch.rand(len(images), RANDOM_NUMBERS, generator=torch.manual_seed(1))
    together = AUGMENTATIONS[name](images, uniform)
    assert torch.equal(together[7:9], AUGMENTATIONS[name](images[7:9], uniform[7:9]))


def test_every_shift_of_the_crop_is_equally_frequent_and_within_the_padding():
    edges = torch.tensor([0.0, 1 - 2**-24])  # the ends of what torch.rand can give
    u = torch.cat([edges, (torch.arange(9) + 0.5) / 9])
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[..., 4, 4] = 255
    shifted = AUGMENTATIONS["crop"](image.expand(len(u), -1, -1, -1), torch.stack([u, u, u], dim=1))
    rows = shifted.flatten(1).argmax(1).div(9, rounding_mode="floor")
    assert rows.tolist() == [8, 0, *range(8, -1, -1)]
