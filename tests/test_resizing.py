"""The rule of resizing in whole numbers gives the bits of torch on a CPU, and weights that sum up to one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from ncflow.resizing import LARGEST_WEIGHT, resize_exactly, weights


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("largest", [12, 70, 400])
def test_whole_numbers_give_the_bits_of_torch(largest, channels):
    for seed in range(40 if largest < 400 else 8):
        random = np.random.RandomState(seed)
        height, width = random.randint(1, largest, 2)
        tall, wide = random.randint(2, largest, 2).tolist()
        images = torch.from_numpy(random.randint(0, 256, (2, height, width, channels)).astype(np.uint8))
        images = images.permute(0, 3, 1, 2)
        expected = interpolate(images, (tall, wide), mode="bilinear", antialias=True)
        assert torch.equal(resize_exactly(images, (tall, wide), (torch.arange(tall), torch.arange(wide))), expected)


def test_a_window_is_a_part_of_the_whole():
    images = torch.randint(0, 256, (1, 3, 30, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.arange(2, 9), torch.tensor([0, 19, 7])
    whole = resize_exactly(images, (12, 20), (torch.arange(12), torch.arange(20)))
    assert torch.equal(resize_exactly(images, (12, 20), (rows, columns)), whole[..., rows, :][..., columns])


@pytest.mark.parametrize(("size", "resized"), [(5, 5), (9, 4), (4, 9), (300, 7), (1, 8)])
def test_weights_are_whole_nearly_sum_up_to_the_unit_and_have_sixteen_bits(size, resized):
    places = torch.arange(size, dtype=torch.float64)
    whole, unit = weights(places, torch.tensor(float(size)), torch.tensor(float(resized)), resized)
    assert whole.shape == (resized, size) and torch.equal(whole, whole.round())
    assert whole.min() >= 0 and whole.max() < LARGEST_WEIGHT
    assert (whole.sum(1) - unit.squeeze()).abs().max() <= size / 2
    if size == resized:
        assert torch.equal(whole / unit, torch.eye(size, dtype=torch.float64))


def test_places_outside_of_a_picture_have_no_weight():
    places = torch.arange(20, dtype=torch.float64) - 6  # a picture of 8 pixels that starts at 6
    whole, unit = weights(places, torch.tensor(8.0), torch.tensor(5.0), 5)
    inside, same = weights(torch.arange(8, dtype=torch.float64), torch.tensor(8.0), torch.tensor(5.0), 5)
    assert torch.equal(whole[:, 6:14], inside) and torch.equal(unit, same)
    assert whole[:, :6].count_nonzero() == whole[:, 14:].count_nonzero() == 0
