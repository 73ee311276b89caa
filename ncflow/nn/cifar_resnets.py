"""ResNets for CIFAR: three stages of narrow blocks, on maps of full, half and quarter size. He et al. 2016."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ncflow.nn.endings import ends_in
from ncflow.nn.necks import Backbone


@ends_in("relu")
def resnet20(*, neck: str = "none", num_features: int | None = None) -> Backbone:
    """ResNet-20 for CIFAR, 0.27 M parameters; d = 64. He et al. 2016, section 4.2."""
    return Backbone(_body(20), 64, neck=neck, project_to=num_features)


@ends_in("relu")
def resnet32(*, neck: str = "none", num_features: int | None = None) -> Backbone:
    """ResNet-32 for CIFAR, 0.46 M parameters, the usual choice for CIFAR-LT; d = 64. He et al. 2016, section 4.2."""
    return Backbone(_body(32), 64, neck=neck, project_to=num_features)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A): subsample, pad new channels with zeros."""

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, channels - in_channels
        self.conv1, self.bn1 = conv(in_channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, S, S) -> (B, channels, S / stride, S / stride)."""
        residual = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.new_channels:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        return torch.relu(residual + x)


def conv(in_channels: int, channels: int, kernel_size: int, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the map's size up to its stride, with He fan-out init. Batch norms need no bias."""
    layer = nn.Conv2d(in_channels, channels, kernel_size, stride, padding=kernel_size // 2, bias=bias)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _body(depth: int) -> nn.Sequential:
    """Depth 6n + 2: a stem, then n blocks each of width 16, 32 and 64."""
    n = (depth - 2) // 6
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(conv(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
            layer1=nn.Sequential(*(BasicBlock(16, 16) for _ in range(n))),
            layer2=nn.Sequential(BasicBlock(16, 32, stride=2), *(BasicBlock(32, 32) for _ in range(n - 1))),
            layer3=nn.Sequential(BasicBlock(32, 64, stride=2), *(BasicBlock(64, 64) for _ in range(n - 1))),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )
