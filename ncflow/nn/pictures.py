"""A classifier that takes pictures: uint8 of any size in, logits out. The preprocessing is part of its graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ncflow.lookup import lookup
from ncflow.nn.classifier import Classifier
from ncflow.resizing import resize_exactly


class PictureClassifier(nn.Module):
    """Pictures (B, H, W, C) uint8 of any size -> logits (B, K), as training classifies its test pictures.

    C is 1 for gray and 3 for RGB. With 2 or 4, the last channel is alpha, which is dropped. Gray becomes RGB by
    repetition, and RGB becomes gray by Pillow's weights, where `image_mode` (L or RGB) asks for it. The shorter side is
    resized to `resize`, antialiased, by the rule `resizing`; the middle image_size × image_size stays. `pixel_mean` and
    `pixel_std` (one number per channel) normalize values in [0, 1]. Raises ValueError for an unknown mode or rule, and
    for sizes that do not fit.

    Examples:
        >>> import torch
        >>> from ncflow import Classifier, LinearHead, create_backbone
        >>> classifier = Classifier(create_backbone("resnet20"), LinearHead(64, 10)).eval()
        >>> model = PictureClassifier(
        ...     classifier, image_mode="RGB", image_size=32, resize=32, pixel_mean=[0.5] * 3, pixel_std=[0.2] * 3
        ... )
        >>> model(torch.zeros(2, 40, 60, 3, dtype=torch.uint8)).shape
        torch.Size([2, 10])
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        classifier: Classifier,
        *,
        image_mode: str,
        image_size: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        resize: int | None = None,
        resizing: str = "float32",
    ) -> None:
        super().__init__()
        self.resizing = resizing
        lookup(RESIZINGS, resizing, "resizing")
        self.image_mode, self.channels = image_mode, lookup(CHANNELS, image_mode, "image mode")
        self.image_size, self.resize = image_size, resize or image_size
        if not 0 < self.image_size <= self.resize:
            raise ValueError(f"expected 0 < image_size <= resize, got {self.image_size} and {self.resize}")
        if not len(pixel_mean) == len(pixel_std) == self.channels:
            raise ValueError(
                f"mode {image_mode} needs pixel_mean and pixel_std of length {self.channels}, "
                f"got {len(pixel_mean)} and {len(pixel_std)}"
            )
        self.classifier = classifier
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(pixel_std).clamp_min(1 / 255).view(-1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.prepare(pictures)).logits
        return logits

    def prepare(self, pictures: Tensor) -> Tensor:
        """Pictures (B, H, W, C) uint8 -> the classifier's input (B, 3, S, S) float32."""
        return self.normalize(fit_square(self._channels(pictures), self.resize, self.image_size, self.resizing))

    def normalize(self, images: Tensor) -> Tensor:
        """Squares (B, 1 or 3, S, S) of values 0..255, as `image_mode` says -> the classifier's input."""
        images = (images / 255 - self.pixel_mean) / self.pixel_std
        return images.expand(-1, 3, -1, -1).contiguous()

    def _channels(self, pictures: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, channels, H, W): choices that a graph holds for every C."""
        chosen = cast(Tensor, torch.arange(3, device=pictures.device) * torch.sym_min(pictures.shape[3] // 3, 1))
        images = pictures.index_select(3, chosen).permute(0, 3, 1, 2)
        return images if self.channels == 3 else luma(images)


def luma(images: Tensor) -> Tensor:
    """RGB images (B, 3, H, W) uint8 -> gray (B, 1, H, W), the whole numbers that Pillow's `convert("L")` gives."""
    red, green, blue = images.int().unbind(1)
    gray: Tensor = (red * 19595 + green * 38470 + blue * 7471 + 2**15) >> 16
    return gray.unsqueeze(1)


def fit_square(images: Tensor, resize: int, size: int, resizing: str) -> Tensor:
    """Images (B, C, H, W) of values 0..255 -> their middle (B, C, size, size) in float32, with whole values.

    It is the rule of `ncflow.data`: antialiased bilinear, the shorter side to `resize`, rounded as the row `resizing`
    of RESIZINGS does. H and W may be symbols of a graph, so nothing here branches on them. Resizing to the same size
    changes no bit.
    """
    sides = torch.stack([torch.scalar_tensor(side, dtype=torch.float64) for side in images.shape[-2:]])
    sides = (sides * (resize / sides.min())).round().long()  # of tensors: a graph cannot store `round` of symbols
    tall, wide = cast(list[int], [side.item() for side in sides])
    for side in (tall, wide):
        torch._check(side >= size)
    # The data path crops twice: to a square of the stored size, then to the middle of that.
    starts = ((sides - resize) // 2 + (resize - size) // 2).to(images.device)
    rows, columns = torch.arange(size, device=images.device) + starts[:, None]
    return RESIZINGS[resizing](images, (tall, wide), (rows, columns))


def _in_float32(images: Tensor, resized: tuple[int, int], window: tuple[Tensor, Tensor]) -> Tensor:
    images = interpolate(images.float(), resized, mode="bilinear", antialias=True)
    return images.index_select(-2, window[0]).index_select(-1, window[1]).round().clamp(0, 255)


def _in_whole_numbers(images: Tensor, resized: tuple[int, int], window: tuple[Tensor, Tensor]) -> Tensor:
    return resize_exactly(images, resized, window).float()


# Name -> (images (B, C, H, W), their new sides, the rows and columns that stay) -> images of whole values
RESIZINGS: dict[str, Callable[[Tensor, tuple[int, int], tuple[Tensor, Tensor]], Tensor]] = {
    "float32": _in_float32,
    "uint8": _in_whole_numbers,
}
CHANNELS = {"L": 1, "RGB": 3}  # Pillow's modes of the stored pictures
