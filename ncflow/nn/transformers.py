"""Vision transformers: patches as tokens, and a class token as the features."""

from __future__ import annotations

from typing import Any

from torch import nn

from ncflow.nn.endings import ends_in
from ncflow.nn.necks import Backbone
from ncflow.nn.stock import timm_body


@ends_in("linear", final_norm="layer_norm")
def vit_tiny(
    *,
    image_size: int = 32,
    patch_size: int = 4,
    final_norm: bool = False,
    neck: str = "batch_norm",
    num_features: int | None = None,
) -> Backbone:
    """ViT of depth 6 on 4x4 patches, with a BatchNorm neck in place of the final LayerNorm; d = 512."""
    from torchvision.models import VisionTransformer

    if image_size % patch_size:
        raise ValueError(
            f"a ViT needs image_size divisible by patch_size, got {image_size} and {patch_size}; "
            "resize the images or choose another patch_size"
        )
    body = VisionTransformer(image_size, patch_size, num_layers=6, num_heads=8, hidden_dim=512, mlp_dim=2048)
    body.heads = nn.Identity()
    if not final_norm:
        body.encoder.ln = nn.Identity()
    layers = {"stem": "conv_proj"} | {f"blocks.{k}": f"encoder.layers.encoder_layer_{k}" for k in range(6)}
    return Backbone(body, body.hidden_dim, neck=neck, project_to=num_features, layers=layers)


@ends_in("layer_norm")
def dinov2_small(
    *,
    image_size: int = 32,
    patch_size: int = 14,
    neck: str = "batch_norm",
    num_features: int | None = None,
    pretrained: bool = False,
    drop_path: float = 0.0,
) -> Backbone:
    """DINOv2 ViT-S on 14x14 patches, with a BatchNorm neck; d = 384. Oquab et al. 2024."""
    body = _small_vit(
        "vit_small_patch14_dinov2", image_size, patch_size, pretrained, drop_path, init_values=LAYER_SCALE
    )
    return Backbone(body, 384, neck=neck, project_to=num_features, layers=TWELVE_BLOCKS)


@ends_in("layer_norm")
def dinov3_small(
    *,
    image_size: int = 32,
    patch_size: int = 16,
    neck: str = "batch_norm",
    num_features: int | None = None,
    pretrained: bool = False,
    drop_path: float = 0.0,
) -> Backbone:
    """DINOv3 ViT-S on 16x16 patches with registers and a BatchNorm neck; d = 384. Siméoni et al. 2025."""
    model = "vit_small_patch16_dinov3"
    options = {"init_values": LAYER_SCALE, "global_pool": "token"}
    body = _small_vit(model, image_size, patch_size, pretrained, drop_path, **options)
    return Backbone(body, 384, neck=neck, project_to=num_features, layers=TWELVE_BLOCKS)


@ends_in("linear", final_norm="layer_norm")
def eva02_tiny(
    *,
    image_size: int = 32,
    patch_size: int = 14,
    final_norm: bool = False,
    neck: str = "batch_norm",
    num_features: int | None = None,
    pretrained: bool = False,
    drop_path: float = 0.0,
) -> Backbone:
    """EVA-02-Tiny on 14x14 patches, with a BatchNorm neck, not the final LayerNorm; d = 192. Fang et al. 2024."""
    # The published weights end in a norm of averaged tokens. A model with a class token lacks it: so not strict.
    options = {"global_pool": "token"} | ({"pretrained_strict": False} if pretrained else {})
    body = _small_vit("eva02_tiny_patch14_224", image_size, patch_size, pretrained, drop_path, **options)
    if not final_norm:
        body.norm = nn.Identity()
    return Backbone(body, 192, neck=neck, project_to=num_features, layers=TWELVE_BLOCKS)


def _small_vit(model: str, image_size: int, patch_size: int, pretrained: bool, drop_path: float, **options: Any) -> Any:
    """Build timm's model. It ignores pixels beyond the last whole patch: of 32x32 images 14x14 patches cover 28x28."""
    if image_size < patch_size:
        raise ValueError(
            f"{model} needs image_size >= patch_size, got {image_size} and {patch_size}; "
            "resize the images or choose a smaller patch_size"
        )
    sizes = {"img_size": image_size, "patch_size": patch_size}
    return timm_body(model, pretrained=pretrained, drop_path=drop_path, **sizes, **options)


# As in a plain ViT. Published training starts at 1e-5. Then the class token of random weights is the same for all
# images up to rounding, and no geometry can be measured.
LAYER_SCALE = 1.0
# stage -> module of the body, for `ncflow.nn.layers.capture`
TWELVE_BLOCKS = {"stem": "patch_embed"} | {f"blocks.{k}": f"blocks.{k}" for k in range(12)}
