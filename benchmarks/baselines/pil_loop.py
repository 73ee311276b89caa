"""Training as it is commonly written: images decoded, cropped and flipped one by one with PIL, float32, NCHW."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2


class Pictures(Dataset[tuple[Tensor, int]]):
    """Gray images (N, S, S) uint8 as PIL pictures of three channels, augmented and normalized."""

    def __init__(self, images: Tensor, targets: Tensor, mean: float, std: float, size: int) -> None:
        self.images, self.targets = images.numpy(), targets.tolist()
        steps = [v2.Resize(size), v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip(), v2.ToImage()]
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize([mean] * 3, [std] * 3)]
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index]).convert("RGB")), self.targets[index]


def pil_epoch(
    model: Callable[[Tensor], Tensor],
    pictures: Pictures,
    optimizer: torch.optim.Optimizer,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Callable[[], float]:
    """A function that trains `model`, images -> logits, for one epoch and returns the mean loss."""
    loader = DataLoader(
        pictures,
        batch_size,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=device.type == "cuda",
    )

    def epoch() -> float:
        total = 0.0
        for images, targets in loader:
            loss = F.cross_entropy(model(images.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(targets)  # the running loss that such loops show
        return total / len(pictures)

    return epoch
