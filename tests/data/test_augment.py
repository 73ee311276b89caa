"""Augmentations: each image is changed as its own random numbers say, and by nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ncflow.data.augment import (
    AUGMENTATIONS,
    CROP_PADDING,
    RANDOM_NUMBERS,
    _each,
    create_augmentation,
    cut_one_by_one,
    cut_together,
)


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
OURS = list(REFERENCES)
SIZED = {name: create_augmentation(name, image_size=12) for name in AUGMENTATIONS}


@pytest.fixture(params=[1, 3], ids=["gray", "color"])
def images(request):
    return torch.randint(0, 256, (50, request.param, 12, 12), dtype=torch.uint8, generator=torch.manual_seed(0))


@pytest.mark.parametrize("name", OURS)
def test_the_batched_form_equals_one_image_at_a_time(name, images):
    uniform = torch.rand(len(images), RANDOM_NUMBERS, generator=torch.manual_seed(1))
    one_by_one = [REFERENCES[name](*pair) for pair in zip(images, uniform, strict=True)]
    augmented = AUGMENTATIONS[name](images, uniform)
    assert augmented.dtype == torch.uint8
    assert torch.equal(augmented, torch.stack(one_by_one))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_image_does_not_depend_on_its_neighbors(name, images):
    uniform = torch.rand(len(images), RANDOM_NUMBERS, generator=torch.manual_seed(1))
    together = SIZED[name](images, uniform)
    assert together.shape == images.shape and together.dtype == torch.uint8
    assert torch.equal(together[7:9], SIZED[name](images[7:9], uniform[7:9]))


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_an_augmentation_changes_images_and_no_generator(name, images):
    uniform = torch.rand(len(images), RANDOM_NUMBERS, generator=torch.manual_seed(1))
    before = torch.get_rng_state()
    assert not torch.equal(SIZED[name](images, uniform), images)
    assert torch.equal(torch.get_rng_state(), before)


def test_several_augmentations_apply_in_order_with_own_random_numbers(images):
    both = create_augmentation(["flip", "crop"], image_size=12)
    uniform = torch.rand(len(images), both.numbers, generator=torch.manual_seed(1))
    assert both.numbers == 2 * RANDOM_NUMBERS
    expected = AUGMENTATIONS["crop"](AUGMENTATIONS["flip"](images, uniform[:, :3]), uniform[:, 3:])
    assert torch.equal(both(images, uniform), expected)


def test_a_random_resized_crop_of_the_whole_area_is_nearly_the_image():
    image = torch.arange(144, dtype=torch.uint8).view(1, 1, 12, 12)
    whole = create_augmentation("random_resized_crop", image_size=12, options={"random_resized_crop": {"scale": 1.0}})
    assert (whole(image, torch.full((1, 3), 0.5)).int() - image.int()).abs().float().mean() < 10


def test_a_random_resized_crop_is_that_of_torchvision_to_the_bit(images):
    uniform = torch.rand(len(images), RANDOM_NUMBERS, generator=torch.manual_seed(1))
    theirs = _each(images, uniform, "RandomResizedCrop", size=9, scale=(0.08, 1.0), antialias=True)
    assert torch.equal(AUGMENTATIONS["random_resized_crop"](images, uniform, size=9), theirs)


@pytest.mark.parametrize("size", [8, 12, 31])
def test_crops_by_products_have_the_bits_of_crops_one_by_one(images, size):
    random = np.random.RandomState(size)
    sides = random.randint(1, 13, (len(images), 2))
    corners = (random.rand(len(images), 2) * (13 - sides)).astype(int)
    boxes = torch.from_numpy(np.concatenate([corners, sides], axis=1))
    assert torch.equal(cut_together(images, boxes, size), cut_one_by_one(images, boxes, size))


def test_crops_come_from_larger_pictures_and_evaluation_takes_the_middle():
    crops = create_augmentation(["random_resized_crop"], image_size=8)
    images = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8, generator=torch.manual_seed(0))
    assert crops(images, torch.rand(2, 3, generator=torch.manual_seed(1))).shape == (2, 3, 8, 8)
    assert torch.equal(crops.center(images), images[..., 2:10, 2:10])
    assert create_augmentation("flip").center(images) is images


@pytest.mark.parametrize(
    ("names", "options", "reason"),
    [
        ("fip", {}, "Did you mean 'flip'"),
        (["flip", "erasing"], {"erasing": {"probability": 2.0}}, "probability in"),
        ("rand_augment", {"rand_augment": {"magnitude": 31}}, "magnitude in 0..30"),
        ("random_resized_crop", {"random_resized_crop": {"scale": 0.0}}, "scale in"),
        ("random_resized_crop", {"random_resized_crop": {"size": 3}}, "unknown option"),
        ("flip", {"crop": {}}, "options of augmentation 'crop', which is not one of flip"),
        ("auto_augment", {"auto_augment": {"policy": "mnist"}}, "unknown policy"),
        (["flip", "flip"], {}, "expected different augmentations, each a change, got flip, flip; leave out flip"),
        (["none", "flip"], {}, "leave out none"),
    ],
)
def test_a_wrong_augmentation_or_option_is_refused(names, options, reason):
    with pytest.raises(ValueError, match=reason):
        create_augmentation(names, options=options)


def test_every_shift_of_the_crop_is_equally_frequent_and_within_the_padding():
    edges = torch.tensor([0.0, 1 - 2**-24])  # the ends of what torch.rand can give
    u = torch.cat([edges, (torch.arange(9) + 0.5) / 9])
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[..., 4, 4] = 255
    shifted = AUGMENTATIONS["crop"](image.expand(len(u), -1, -1, -1), torch.stack([u, u, u], dim=1))
    rows = shifted.flatten(1).argmax(1).div(9, rounding_mode="floor")
    assert rows.tolist() == [8, 0, *range(8, -1, -1)]
