"""Free features: the unconstrained-feature model. Its features are parameters; its images only number the samples.

Full-batch training with weight decay on features and classifier has the optima of `ncflow.theory`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from ncflow.nn.endings import ends_in

SIDE = 8  # pixels of a numbered image: 32 bits, and their complements below


class FreeFeatures(nn.Module):
    """Numbered images (B, 3, S, S) -> features (B, d): rows of the parameter `features` (num_samples, d).

    An image holds its sample's number as 8x8 black and white pixels, or enlarged to a multiple of that. Bit j, the
    lowest first, is pixel j in reading order; pixel j + 32 is its complement. Enlarging and normalizing keep which of
    the two is brighter; flips and crops do not. Features start Gaussian, of expected squared length 1. Raises
    ValueError for sizes below 1.
    """

    def __init__(self, num_samples: int, num_features: int) -> None:
        super().__init__()
        if num_samples < 1 or num_features < 1:
            raise ValueError(f"free features need num_samples and num_features >= 1, got {num_samples}, {num_features}")
        self.num_features = num_features
        self.features = nn.Parameter(torch.randn(num_samples, num_features) / num_features**0.5)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) -> features (B, d). Raises ValueError for a number that is not below num_samples."""
        numbers = sample_numbers(images)
        # An exported graph, such as MLflow stores, cannot read values; its indexing rejects such numbers.
        if not torch.compiler.is_exporting() and (largest := int(numbers.max())) >= len(self.features):
            raise ValueError(
                f"expected images that number {len(self.features)} samples from 0, got number {largest}; free features "
                "take the images of dataset 'ufm', not augmented"
            )
        return self.features[numbers]

    def extra_repr(self) -> str:
        return f"num_samples={len(self.features)}, num_features={self.num_features}"


def sample_numbers(images: Tensor) -> Tensor:
    """Return the numbers (B,) in images (B, C, S, S). Raises ValueError if S is not a multiple of 8."""
    if images.shape[-2] % SIDE or images.shape[-2] != images.shape[-1]:
        raise ValueError(f"free features need square images of a multiple of {SIDE} pixels, got {tuple(images.shape)}")
    bits, complements = adaptive_avg_pool2d(images[:, :1], SIDE).flatten(1).chunk(2, dim=1)
    places = torch.arange(SIDE**2 // 2, device=images.device)
    return ((bits > complements).long() << places).sum(1)


@ends_in("parameters")
def free_features(*, num_samples: int = 1000, num_features: int = 512) -> FreeFeatures:
    """The unconstrained-feature model: one free feature for each of N samples; d = 512. Mixon et al. 2022."""
    return FreeFeatures(num_samples, num_features)
