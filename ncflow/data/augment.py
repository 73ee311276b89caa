"""Random changes of training images: pure functions of a batch and of one row of random numbers per image.

The caller passes the random numbers, one row per sample and epoch. So the change of an image does not depend on the
batch size, the number of processes or the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ncflow.data.decoding import in_uint8
from ncflow.lookup import check_options, explained_options, fact, facts, lookup, takes
from ncflow.resizing import along_last, weights

RANDOM_NUMBERS = 3  # per image and change, uniform in [0, 1): flip, vertical shift, horizontal shift
CROP_PADDING = 4
MARGIN = 256 / 224  # size of the stored image over the size of a random crop from it, as is usual on ImageNet

Change = Callable[[Tensor, Tensor], Tensor]
Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Augmentation:
    """Changes in order: images (b,C,s,s) uint8 and uniform (b, numbers) -> images (b,C,S,S) uint8.

    `crop_size` is S where a change takes a random part of the image and resizes it to S. Then s may be larger than S.
    """

    changes: Sequence[Change] = ()
    crop_size: int | None = None

    @property
    def numbers(self) -> int:
        """The random numbers that an image needs."""
        return RANDOM_NUMBERS * max(len(self.changes), 1)

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        for change, numbers in zip(self.changes, torch.split(uniform, RANDOM_NUMBERS, dim=1), strict=False):
            images = change(images, numbers)
        return images

    def center(self, images: Tensor) -> Tensor:
        """The images without random changes: the middle S×S of images that are stored larger for random crops."""
        if self.crop_size is None or images.shape[-1] == self.crop_size:
            return images
        start = (images.shape[-1] - self.crop_size) // 2
        return images[..., start : start + self.crop_size, start : start + self.crop_size]


def create_augmentation(
    names: str | Sequence[str], *, image_size: int = 32, options: Mapping[str, Mapping[str, Any]] | None = None
) -> Augmentation:
    """The augmentation of one name or of several names in order; `options` holds those of each name.

    Raises ValueError for a name or an option that does not exist, and for values out of range.
    """
    names = [names] if isinstance(names, str) else list(names)
    options = options or {}
    rows = [lookup(AUGMENTATIONS, name, "augmentation") for name in names]
    if len(names) > 1 and (odd := [name for name in names if name == "none" or names.count(name) > 1]):
        raise ValueError(f"expected different augmentations, each a change, got {', '.join(names)}; leave out {odd[0]}")
    if unused := [name for name in options if name not in names]:
        raise ValueError(f"options of augmentation '{unused[0]}', which is not one of {', '.join(names) or 'none'}")
    changes = []
    for name, row in zip(names, rows, strict=True):
        chosen = dict(options.get(name, {}))
        check_options(row, chosen, f"augmentation '{name}'")
        change = partial(row, **chosen, **({"size": image_size} if takes(row, "size") else {}))
        with explained_options(f"augmentation '{name}'", chosen):  # reject options out of range before the first epoch
            change(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8), torch.full((1, RANDOM_NUMBERS), 0.5))
        changes.append(change)
    return Augmentation(changes, image_size if any(fact(row, "crops") for row in rows) else None)


def unchanged(images: Tensor, uniform: Tensor) -> Tensor:
    """Images (b,C,S,S) as they are."""
    return images


def flip(images: Tensor, uniform: Tensor) -> Tensor:
    """Each image (b,C,S,S) mirrored left to right with probability 1/2; uniform (b,3)."""
    return torch.where(uniform[:, 0, None, None, None] < 0.5, images.flip(-1), images)


def crop(images: Tensor, uniform: Tensor) -> Tensor:
    """A random S×S window of each image (b,C,S,S) padded with 4 black pixels on every side; uniform (b,3)."""
    size, b = images.shape[-1], len(images)
    top, left = (uniform[:, 1:] * (2 * CROP_PADDING + 1)).long().unbind(1)
    window = torch.arange(size, device=images.device)
    rows = (top[:, None] + window).view(b, 1, size, 1)
    columns = (left[:, None] + window).view(b, 1, 1, size)
    sample = torch.arange(b, device=images.device).view(b, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return pad(images, [CROP_PADDING] * 4)[sample, channel, rows, columns]


def crop_flip(images: Tensor, uniform: Tensor) -> Tensor:
    """The standard CIFAR augmentation: crop, then flip."""
    return flip(crop(images, uniform), uniform)


@facts(crops=True)
def random_resized_crop(images: Tensor, uniform: Tensor, *, size: int, scale: float = 0.08) -> Tensor:
    """A random part of each image, `scale` to 1 of its area and 3/4 to 4/3 in shape, resized to S×S. Szegedy 2015."""
    if not 0 < scale <= 1:
        raise ValueError(f"random_resized_crop needs scale in (0, 1], got {scale}")
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(size, scale=(scale, 1.0), antialias=True)
    boxes = _drawn(uniform, lambda number: itemgetter(*BOX)(crop.make_params([images[number]])))
    cut = cut_one_by_one if images.device.type == "cpu" else cut_together
    return cut(images, torch.tensor(boxes), size)


def cut_one_by_one(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The boxes (b,4) of images (b,C,s,s) as images (b,C,size,size): top, left, height and width of each. On a CPU."""
    cut = images.new_empty(len(images), size, size, images.shape[1])
    for place, image, (top, left, height, width) in zip(cut, images, boxes.tolist(), strict=True):
        part = in_uint8(image[None, :, top : top + height, left : left + width], (size, size))
        place.copy_(part[0].permute(1, 2, 0))
    return cut.permute(0, 3, 1, 2)


def cut_together(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The same bits on any device, by two products for all images together."""
    top, left, height, width = boxes.to(images.device).double().unbind(1)
    places = torch.arange(images.shape[-1], dtype=torch.float64, device=images.device)
    resized = torch.full_like(top, size)
    pixels = images.double()  # neither TF32 nor autocast rounds these
    for start, length in ((left, width), (top, height)):
        along, unit = weights(places - start[:, None], length, resized, size)
        pixels = along_last(pixels, along[:, None], unit[:, None]).mT
    return pixels.byte()


def color_jitter(images: Tensor, uniform: Tensor, *, strength: float = 0.4, hue: float = 0.0) -> Tensor:
    """Brightness, contrast and saturation times factors in 1 ± `strength`; the hue moved by up to `hue` of a turn."""
    factors = {"brightness": strength, "contrast": strength, "saturation": strength}
    return _each(images, uniform, "ColorJitter", **factors, hue=hue)


def rand_augment(images: Tensor, uniform: Tensor, *, num_ops: int = 2, magnitude: int = 9) -> Tensor:
    """`num_ops` random changes of one `magnitude`, 0 to 30. Cubuk, Zoph, Shlens and Le 2020."""
    if not (num_ops >= 1 and 0 <= magnitude <= 30):
        raise ValueError(f"rand_augment needs num_ops >= 1 and magnitude in 0..30, got {num_ops} and {magnitude}")
    return _each(images, uniform, "RandAugment", num_ops=num_ops, magnitude=magnitude)


def auto_augment(images: Tensor, uniform: Tensor, *, policy: str = "cifar10") -> Tensor:
    """A random change of the policy learned on cifar10, imagenet or svhn. Cubuk, Zoph, Mané, Vasudevan and Le 2019."""
    from torchvision.transforms.v2 import AutoAugmentPolicy

    policies = {str(each.value): each for each in AutoAugmentPolicy}
    return _each(images, uniform, "AutoAugment", policy=lookup(policies, policy, "policy of auto_augment"))


def erasing(images: Tensor, uniform: Tensor, *, probability: float = 0.25) -> Tensor:
    """A random box of each image, 2 % to 33 % of its area, black with a `probability`. Zhong et al. 2020."""
    if not 0 <= probability <= 1:
        raise ValueError(f"erasing needs probability in [0, 1], got {probability}")
    return _each(images, uniform, "RandomErasing", p=probability)


def _each(images: Tensor, uniform: Tensor, transform: str, **options: Any) -> Tensor:
    """Each image through a transform of torchvision, with random numbers from its row of `uniform` (b,3) alone."""
    from torchvision.transforms import v2

    change = getattr(v2, transform)(**options)
    return torch.stack(_drawn(uniform, lambda number: change(images[number])))


def _drawn(uniform: Tensor, draw: Callable[[int], Drawn]) -> list[Drawn]:
    """draw(number) for each row of `uniform` (b,3), whose random numbers come from this row alone."""
    digits = (uniform.double().cpu() * 2**21).long()  # torch's uniform float32 have 24 random bits
    seeds = digits[:, 0] + (digits[:, 1] << 21) + (digits[:, 2] << 42)
    state = torch.get_rng_state()
    try:
        drawn = []
        for number, seed in enumerate(seeds.tolist()):
            torch.default_generator.manual_seed(seed)  # torchvision draws from it on every device
            drawn.append(draw(number))
    finally:
        torch.set_rng_state(state)
    return drawn


BOX = ("top", "left", "height", "width")  # torchvision's names

# A row: (images (b,C,s,s) uint8, uniform (b,3), options by keyword) -> images. `size` is S, for rows that resize to it.
# Its fact, optional: crops is True where it takes a random part of an image that may be larger than S
AUGMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "none": unchanged,
    "flip": flip,
    "crop": crop,
    "crop_flip": crop_flip,
    "random_resized_crop": random_resized_crop,
    "color_jitter": color_jitter,
    "rand_augment": rand_augment,
    "auto_augment": auto_augment,
    "erasing": erasing,
}
