"""Convolutional networks: stock architectures up to their pooled maps, without dropout before the head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from ncflow.lookup import lookup
from ncflow.nn.cifar_resnets import conv
from ncflow.nn.endings import ends_in
from ncflow.nn.necks import Backbone
from ncflow.nn.stock import timm_body, torchvision_body


@ends_in("relu")
def resnet18(
    *,
    image_size: int = 32,
    stem: str | None = None,
    neck: str = "none",
    num_features: int | None = None,
    pretrained: bool = False,
) -> Backbone:
    """ResNet-18, stem="cifar" (3x3) up to 128 pixels, else "imagenet"; d = 512. He et al. 2016."""
    body = _resnet("resnet18", stem or _usual_stem(image_size), pretrained)
    return Backbone(body, 512, neck=neck, project_to=num_features, layers=RESNET)


@ends_in("relu")
def resnet34(
    *,
    image_size: int = 32,
    stem: str | None = None,
    neck: str = "none",
    num_features: int | None = None,
    pretrained: bool = False,
) -> Backbone:
    """ResNet-34, stem="cifar" (3x3) up to 128 pixels, else "imagenet"; d = 512. He et al. 2016."""
    body = _resnet("resnet34", stem or _usual_stem(image_size), pretrained)
    return Backbone(body, 512, neck=neck, project_to=num_features, layers=RESNET)


@ends_in("relu")
def resnet50(
    *,
    image_size: int = 32,
    stem: str | None = None,
    neck: str = "none",
    num_features: int | None = None,
    pretrained: bool = False,
) -> Backbone:
    """ResNet-50, stem="cifar" (3x3) up to 128 pixels, else "imagenet"; d = 2048. He et al. 2016."""
    body = _resnet("resnet50", stem or _usual_stem(image_size), pretrained)
    return Backbone(body, 2048, neck=neck, project_to=num_features, layers=RESNET)


@ends_in("relu")
def vgg11(
    *, image_size: int = 32, neck: str = "none", num_features: int | None = None, pretrained: bool = False
) -> Backbone:
    """VGG-11 with batch norms, its maps pooled; d = 512. Simonyan and Zisserman 2015."""
    body = _vgg("vgg11_bn", (1, 1, 2, 2, 2), image_size, pretrained)
    return Backbone(body, 512, neck=neck, project_to=num_features)


@ends_in("relu")
def vgg16(
    *, image_size: int = 32, neck: str = "none", num_features: int | None = None, pretrained: bool = False
) -> Backbone:
    """VGG-16 with batch norms, its maps pooled; d = 512. Simonyan and Zisserman 2015."""
    body = _vgg("vgg16_bn", (2, 2, 3, 3, 3), image_size, pretrained)
    return Backbone(body, 512, neck=neck, project_to=num_features)


@ends_in("relu")
def mobilenet_v2(*, neck: str = "none", num_features: int | None = None, pretrained: bool = False) -> Backbone:
    """MobileNetV2, inverted residuals; d = 1280. Sandler et al. 2018."""
    body = torchvision_body("mobilenet_v2", "classifier", pretrained=pretrained)
    return Backbone(body, 1280, neck=neck, project_to=num_features, layers=_in_order("features", len(body.features)))


@ends_in("relu")
def shufflenet_v2(*, neck: str = "none", num_features: int | None = None, pretrained: bool = False) -> Backbone:
    """ShuffleNetV2 x1.0, channel shuffles; d = 1024. Ma et al. 2018."""
    body = torchvision_body("shufflenet_v2_x1_0", "fc", pretrained=pretrained)
    return Backbone(body, 1024, neck=neck, project_to=num_features, layers=SHUFFLENET)


@ends_in("relu")
def regnet_y_400mf(*, neck: str = "none", num_features: int | None = None, pretrained: bool = False) -> Backbone:
    """RegNetY-400MF, squeeze and excitation in a regular design; d = 440. Radosavovic et al. 2020."""
    body = torchvision_body("regnet_y_400mf", "fc", pretrained=pretrained)
    return Backbone(body, 440, neck=neck, project_to=num_features, layers=REGNET)


@ends_in("relu")
def densenet121(
    *, image_size: int = 32, neck: str = "none", num_features: int | None = None, pretrained: bool = False
) -> Backbone:
    """DenseNet-121, every layer takes all earlier outputs; d = 1024. Huang et al. 2017."""
    _refuse_small("DenseNet-121", image_size, 29)
    body = torchvision_body("densenet121", "classifier", pretrained=pretrained)
    return Backbone(body, 1024, neck=neck, project_to=num_features, layers=DENSENET)


@ends_in("silu")
def efficientnet_b0(
    *, neck: str = "none", num_features: int | None = None, pretrained: bool = False, drop_path: float = 0.2
) -> Backbone:
    """EfficientNet-B0, depth, width and resolution scaled together; d = 1280. Tan and Le 2019."""
    rate = {"stochastic_depth_prob": drop_path}
    body = torchvision_body("efficientnet_b0", "classifier", pretrained=pretrained, **rate)
    return Backbone(body, 1280, neck=neck, project_to=num_features, layers=_in_order("features", len(body.features)))


@ends_in("relu")
def googlenet(
    *, image_size: int = 32, neck: str = "none", num_features: int | None = None, pretrained: bool = False
) -> Backbone:
    """GoogLeNet with batch norms and without auxiliary classifiers; d = 1024. Szegedy et al. 2015."""
    _refuse_small("GoogLeNet", image_size, 15)
    fresh = {} if pretrained else {"aux_logits": False, "init_weights": True}
    body = torchvision_body("googlenet", "fc", pretrained=pretrained, **fresh)
    body.dropout = nn.Identity()
    return Backbone(body, 1024, neck=neck, project_to=num_features, layers=GOOGLENET)


@ends_in("batch_norm")
def convnext_tiny(
    *, image_size: int = 32, neck: str = "none", num_features: int | None = None, drop_path: float = 0.0
) -> Backbone:
    """ConvNeXt-Tiny with a batch norm in place of every LayerNorm; d = 768. Liu et al. 2022."""
    _refuse_small("ConvNeXt-Tiny", image_size, 32)
    body = timm_body("convnext_tiny", pretrained=False, drop_path=drop_path, norm_layer="batchnorm2d", conv_mlp=True)
    return Backbone(body, 768, neck=neck, project_to=num_features, layers=STAGED)


@ends_in("relu")
def mobilenetv4_small(
    *,
    neck: str = "batch_norm",
    num_features: int | None = None,
    pretrained: bool = False,
    drop_path: float = 0.0,
) -> Backbone:
    """MobileNetV4-Small of convolutions only, with a BatchNorm neck; d = 1280. Qin et al. 2024."""
    body = timm_body("mobilenetv4_conv_small", pretrained=pretrained, drop_path=drop_path)
    layers = {"stem": "bn1"} | _in_order("blocks", len(body.blocks))
    return Backbone(body, 1280, neck=neck, project_to=num_features, layers=layers)


@ends_in("linear")
def repvit_m1(*, neck: str = "batch_norm", num_features: int | None = None, pretrained: bool = False) -> Backbone:
    """RepViT-M1, a MobileNet structured like a transformer, with a BatchNorm neck; d = 384. Wang et al. 2024."""
    body = timm_body("repvit_m1", pretrained=pretrained)
    return Backbone(body, 384, neck=neck, project_to=num_features, layers=STAGED)


def _usual_stem(image_size: int) -> str:
    return "cifar" if image_size <= 128 else "imagenet"


def _resnet(model: str, stem: str, pretrained: bool) -> Any:
    """Build a ResNet. A stem for small images always starts at random, because the published stem has another shape."""
    build_stem = lookup(STEMS, stem, "stem")
    body = torchvision_body(model, "fc", pretrained=pretrained)
    if not (pretrained and stem == "imagenet"):
        body.conv1, body.maxpool = build_stem()
    return body


def _vgg(model: str, depths: Sequence[int], image_size: int, pretrained: bool) -> nn.Sequential:
    """Five stages that end in a max pool. torchvision's builder would first draw 120 M weights of a classifier."""
    _refuse_small("VGG", image_size, 32)
    channels = (3, 64, 128, 256, 512, 512)
    stages = {f"layer{k + 1}": _vgg_stage(channels[k], channels[k + 1], depth) for k, depth in enumerate(depths)}
    body = nn.Sequential(OrderedDict(stages, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
    if pretrained:
        weights = torchvision_body(model, "classifier", pretrained=True).features.state_dict()
        body.load_state_dict(dict(zip(body.state_dict(), weights.values(), strict=True)))
    return body


def _vgg_stage(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    def layers() -> Iterator[nn.Module]:
        for k in range(depth):
            # The biases do nothing before a batch norm, but the published networks and parameter counts have them.
            yield conv(channels if k else in_channels, channels, 3, bias=True)
            yield nn.BatchNorm2d(channels)
            yield nn.ReLU(inplace=True)
        yield nn.MaxPool2d(2)

    return nn.Sequential(*layers())


def _refuse_small(model: str, image_size: int, smallest: int) -> None:
    if image_size < smallest:
        raise ValueError(
            f"{model} halves its maps too often for small images: it needs image_size >= {smallest}, "
            f"got {image_size}; resize the images or choose a ResNet"
        )


def _in_order(container: str, length: int) -> dict[str, str]:
    return _same(*(f"{container}.{k}" for k in range(length)))


def _same(*paths: str) -> dict[str, str]:
    """Map each path to itself: stages named as in the body."""
    return dict(zip(paths, paths, strict=True))


# name -> (first convolution, pooling after it) of an ImageNet ResNet
STEMS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "cifar": lambda: (conv(3, 64, 3), nn.Identity()),
    "imagenet": lambda: (conv(3, 64, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1)),
}

# stage -> module of the body, for `ncflow.nn.layers.capture`
RESNET = {"stem": "maxpool"} | _same("layer1", "layer2", "layer3", "layer4")
SHUFFLENET = {"stem": "maxpool"} | _same("stage2", "stage3", "stage4", "conv5")
REGNET = {"stem": "stem"} | {f"block{k}": f"trunk_output.block{k}" for k in (1, 2, 3, 4)}
DENSENET = {"stem": "features.pool0"} | {f"denseblock{k}": f"features.denseblock{k}" for k in (1, 2, 3, 4)}
GOOGLENET = {"stem": "maxpool2"} | _same(
    *(f"inception{level}{name}" for level, names in {3: "ab", 4: "abcde", 5: "ab"}.items() for name in names)
)
STAGED = {"stem": "stem"} | _same("stages.0", "stages.1", "stages.2", "stages.3")
