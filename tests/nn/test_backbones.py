"""Backbones: what holds for every row of the registry, and the published sizes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncflow.nn.backbones import (
    BACKBONES,
    MODEL_ALIASES,
    backbone_size,
    create_backbone,
    list_backbones,
    resolve_alias,
)
from ncflow.nn.classifier import Classifier
from ncflow.nn.heads import LinearHead
from ncflow.nn.layers import capture, stages
from ncflow.nn.necks import Backbone

SIZE = 32
SHAPES_ONLY = {"regnet_y_400mf": "cpu"}  # the others build on "meta"; this one computes its widths in tensors
TIMM = ["timm/test_resnet", "timm/test_vit", "timm/test_mambaout"]  # plain convnet; fixed size; features after an MLP
DEEP = {"resnet50", "resnet50_ln", "resnet50_bn", "densenet121", "convnext_tiny", "vgg16"}
ROWS = [name for name in BACKBONES if name != "free_features"]  # which reads numbers rather than pictures
# parameters at K = 10 on 32x32 images, with a linear classifier without bias
COUNTS = {
    "resnet18": 11_173_952,
    "resnet20": 269_712,
    "resnet32": 464_144,
    "resnet34": 21_276_992 + 10 * 512,
    "resnet50": 23_520_832,
    "vgg11": 9_231_104,
    "vgg16": 14_728_256,
    "mobilenet_v2": 2_236_672,
    "shufflenet_v2": 1_263_844,
    "regnet_y_400mf": 3_907_544,
    "densenet121": 6_964_096,
    "efficientnet_b0": 4_020_348,
    "googlenet": 5_610_144,
    "convnext_tiny": 27_827_808,  # as with LayerNorm: a batch norm has as many parameters
    "mobilenetv4_small": 2_508_384,
    "repvit_m1": 4_718_320,
    "vit_tiny": 18_979_328,
    "vit_tiny_orig": 18_979_328,  # one norm for another
    "dinov2_small": 21_536_640,
    "dinov3_small": 21_591_552,
    "EVA-02": 5_455_680,
    "EVA-02_orig": 5_455_680,
    "resnet18_ln": 11_173_952 + 2 * 512,
    "resnet18_bn": 11_173_952 + 2 * 512,
    "resnet50_ln": 23_520_832 + 2 * 2048,
    "resnet50_bn": 23_520_832 + 2 * 2048,
}
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in DEEP else name for name in [*ROWS, *MODEL_ALIASES, *TIMM]
]


@pytest.fixture(params=NAMES, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def built(name: str) -> nn.Module:
    """One model for all tests of a row: they leave parameters and buffers as they were."""
    return build(name)


@pytest.fixture
def backbone(built: nn.Module) -> Iterator[nn.Module]:
    before = {key: value.clone() for key, value in built.named_buffers()}
    built.zero_grad()
    yield built.train()
    for key, value in built.named_buffers():
        value.copy_(before[key])


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(BACKBONES)
    yield
    BACKBONES.clear()
    BACKBONES.update(before)


def images(batch: int = 2, size: int = SIZE) -> Tensor:
    """(B, 3, S, S) Gaussian noise."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def build(name: str, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    return create_backbone(name, image_size=SIZE, **options)


def relative(error: Tensor, scale: Tensor) -> float:
    return (error.norm() / scale.norm()).item()


def test_logits_are_the_heads_map_and_gradients_reach_every_parameter(backbone):
    """In training from one forward; in eval mode, with a bias, too."""
    classifier = Classifier(backbone, LinearHead(backbone.num_features, 10, bias=True))
    nn.init.normal_(classifier.head.bias)
    weight, bias = classifier.head.weight, classifier.head.bias
    runs: list[int] = []
    counter = backbone.register_forward_hook(lambda module, inputs, features: runs.append(len(features)))
    with torch.no_grad():
        tested = classifier.eval()(images())
    batch = images().requires_grad_()
    output = classifier.train()(batch)
    counter.remove()
    assert runs == [2, 2]
    for logits, features in (tested, output):
        assert features.shape == (2, backbone.num_features)
        torch.testing.assert_close(logits, features @ weight.T + bias)
    F.cross_entropy(output.logits, torch.tensor([0, 1])).backward()
    assert batch.grad.isfinite().all() and batch.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())
    assert next(backbone.parameters()).grad.abs().sum() > 0


def test_parameter_counts_with_ten_classes_are_the_published_ones(name, backbone):
    parameters = sum(p.numel() for p in backbone.parameters()) + 10 * backbone.num_features
    assert parameters == COUNTS.get(name, parameters)


@torch.no_grad()
def test_in_eval_mode_features_do_not_depend_on_the_batch(backbone):
    batch = images(3)
    together = backbone.eval()(batch)
    alone = torch.cat([backbone(batch[i : i + 1]) for i in (2, 1, 0)]).flip(0)
    assert relative(together - alone, together) < 1e-5
    assert relative(together[0] - together[1], together) > 1e-3, "the features ignore the image"


def test_a_batch_of_one_trains_through_unchanged_running_statistics(backbone):
    before = {key: value.clone() for key, value in backbone.named_buffers()}
    (backbone(images(1)) * torch.randn(backbone.num_features)).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in backbone.named_buffers())
    first = next(backbone.parameters()).grad
    assert first.isfinite().all() and first.abs().sum() > 0
    assert all(module.training for module in backbone.modules())


@torch.no_grad()
def test_channels_last_changes_only_the_order_of_sums(backbone):
    expected = backbone.eval()(images())
    channels_last = backbone.to(memory_format=torch.channels_last)(images().to(memory_format=torch.channels_last))
    backbone.to(memory_format=torch.contiguous_format)
    assert relative(channels_last - expected, expected) < 1e-5


def test_bf16_autocast_trains_and_stays_near_float32(backbone):
    backbone.eval()
    with torch.no_grad():
        expected = backbone(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = backbone(images())
    (features.float() * torch.randn(features.shape)).sum().backward()
    assert relative(features.float() - expected, expected) < 0.1
    assert next(backbone.parameters()).grad.isfinite().all()


@torch.no_grad()
def test_the_stages_are_captured_from_the_forward_that_gives_the_features(name, backbone):
    expected = backbone.eval()(images())
    with capture(backbone) as layers:
        features = backbone(images())
    assert torch.equal(features, expected)
    assert list(layers) == list(stages(backbone)) and len(layers) >= (4 if name in COUNTS else 1)
    for layer in layers.values():
        assert layer.ndim == 2 and len(layer) == 2 and layer.shape[1] >= 8
        assert layer.isfinite().all() and relative(layer[0] - layer[1], layer) > 1e-4


@pytest.mark.parametrize("name", ["resnet20", "vgg11", "vit_tiny", "timm/test_resnet"])
@torch.no_grad()
def test_one_seed_gives_one_backbone_and_another_seed_another(name):
    first, same, other = (build(name, seed).eval()(images(1)) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other)


def test_every_row_has_a_one_line_summary_and_keyword_only_options():
    assert list_backbones() == sorted(BACKBONES)
    for name in ROWS:
        builder = BACKBONES[name]
        assert len((inspect.getdoc(builder) or "").splitlines()[0]) > 20, name
        kinds = {p.kind for p in inspect.signature(builder).parameters.values()}
        assert kinds == {inspect.Parameter.KEYWORD_ONLY}, name
        assert {"neck", "num_features"} <= set(inspect.signature(builder).parameters), name


SMALLEST = {"vgg11": 32, "vgg16": 32, "densenet121": 29, "googlenet": 15, "convnext_tiny": 32}


@pytest.mark.parametrize("name, smallest", SMALLEST.items())
def test_the_images_refused_are_exactly_those_that_the_network_would_fail_on(name, smallest):
    with torch.device("meta"):
        backbone = create_backbone(name, image_size=smallest)
        assert backbone(torch.empty(2, 3, smallest, smallest)).shape == (2, backbone.num_features)
        with pytest.raises((RuntimeError, ValueError)):
            backbone(torch.empty(2, 3, smallest - 1, smallest - 1))
        with pytest.raises(ValueError, match=f"needs image_size >= {smallest}, got {smallest - 1}"):
            create_backbone(name, image_size=smallest - 1)


def test_the_size_of_a_backbone_draws_no_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    parameters, num_features = backbone_size("resnet20", num_features=5)
    assert torch.equal(torch.get_rng_state(), before)
    backbone = create_backbone("resnet20", num_features=5)
    assert (parameters, num_features) == (sum(p.numel() for p in backbone.parameters()), 5)


@pytest.mark.parametrize("name", ROWS)
def test_an_8x8_image_is_large_enough_or_refused_at_once(name):
    with torch.device(SHAPES_ONLY.get(name, "meta")):
        try:
            backbone = create_backbone(name, image_size=8)
        except ValueError as error:
            assert "got 8" in str(error) and "resize the images" in str(error)
        else:
            assert backbone(torch.empty(2, 3, 8, 8)).shape == (2, backbone.num_features)


def test_an_alias_is_its_row_with_options():
    for alias, (row, implied) in MODEL_ALIASES.items():
        assert alias not in BACKBONES
        assert resolve_alias(alias, {"num_features": 7, "stem": None}) == (row, {"num_features": 7, **implied})
        assert set(implied) <= set(inspect.signature(BACKBONES[row]).parameters)
    torch.manual_seed(0)
    alias = create_backbone("resnet18_bn").state_dict()
    assert isinstance(create_backbone("resnet18_ln").neck, nn.LayerNorm)
    torch.manual_seed(0)
    row = create_backbone("resnet18", neck="batch_norm").state_dict()
    assert all(torch.equal(alias[key], row[key]) for key in row) and alias.keys() == row.keys()


def test_an_option_that_contradicts_the_alias_is_refused():
    assert resolve_alias("resnet18_ln", {"neck": "layer_norm"}) == ("resnet18", {"neck": "layer_norm"})
    with pytest.raises(ValueError, match="'resnet18_ln' has neck='layer_norm', got 'none'; use 'resnet18' instead"):
        create_backbone("resnet18_ln", neck="none")


def test_a_users_row_comes_before_an_alias(registered):
    BACKBONES["resnet18_ln"] = lambda *, neck="none": Backbone(nn.Flatten(), 48, neck=neck)
    assert create_backbone("resnet18_ln", neck="none").num_features == 48


@torch.no_grad()
def test_only_the_original_vit_tiny_ends_with_a_layer_norm():
    original, ours = build("vit_tiny_orig").eval(), build("vit_tiny", neck="none").eval()
    assert original(images()).mean(1).abs().max() < 1e-5
    assert ours(images()).mean(1).abs().max() > 1e-3
    assert isinstance(original.neck, nn.Identity) and isinstance(build("vit_tiny").neck, nn.BatchNorm1d)


@torch.no_grad()
def test_only_the_original_eva_ends_with_a_layer_norm():
    original, ours = build("EVA-02_orig").eval(), build("EVA-02", neck="none").eval()
    assert original(images()).mean(1).abs().max() < 1e-5
    assert ours(images()).mean(1).abs().max() > 1e-4
    assert isinstance(original.neck, nn.Identity)


def test_dinov3_is_dinov3_and_dinov2_is_beside_it():
    """Rotary positions and four registers, against learned positions and neither."""
    with torch.device("meta"):
        second, third = (create_backbone(f"dinov{k}_small", image_size=32).body for k in (2, 3))
    assert third.reg_token.shape[1] == 4 and third.rope is not None and third.pos_embed is None
    assert second.reg_token is None and second.pos_embed is not None


def test_convnext_has_no_layer_norm_left():
    with torch.device("meta"):
        names = {type(module).__name__ for module in create_backbone("convnext_tiny").modules()}
    assert "BatchNorm2d" in names and not any("LayerNorm" in name for name in names)


def test_no_dropout_stands_between_the_last_layer_and_the_head():
    with torch.device("meta"):
        for name in ("mobilenet_v2", "efficientnet_b0", "googlenet"):
            dropouts = [m for m in create_backbone(name).modules() if isinstance(m, nn.Dropout) and m.p > 0]
            assert not dropouts, name


@torch.no_grad()
@pytest.mark.parametrize("stem, size", {"cifar": 4, "imagenet": 1}.items())
def test_a_stem_sets_the_size_of_the_last_map(stem, size):
    backbone = create_backbone("resnet18", stem=stem).eval()
    maps: list[Tensor] = []
    backbone.body.layer4.register_forward_hook(lambda module, inputs, output: maps.append(output))
    assert backbone(images(1)).shape == (1, 512)
    assert maps[0].shape == (1, 512, size, size)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_stem_follows_the_image_size_and_can_be_chosen(name):
    def kernel(**options):
        return create_backbone(name, **options).body.conv1.kernel_size[0]

    assert (kernel(image_size=32), kernel(image_size=224)) == (3, 7)
    assert (kernel(image_size=32, stem="imagenet"), kernel(image_size=224, stem="cifar")) == (7, 3)


def test_convolutions_start_with_he_fan_out_variance():
    for name in ("resnet18", "resnet20", "vgg11"):
        for module in build(name).modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


@torch.no_grad()
def test_patch_size_sets_the_number_of_tokens():
    with torch.device("meta"):
        for patch_size in (4, 8, 16):
            tokens = (SIZE // patch_size) ** 2 + 1
            assert build("vit_tiny", patch_size=patch_size).body.seq_length == tokens
            assert build("EVA-02", patch_size=patch_size).body.pos_embed.shape[1] == tokens
    with pytest.raises(ValueError, match="image_size divisible by patch_size, got 32 and 5"):
        build("vit_tiny", patch_size=5)
    with pytest.raises(ValueError, match="image_size >= patch_size, got 32 and 33"):
        build("dinov2_small", patch_size=33)


def test_an_option_given_as_none_keeps_the_default_of_the_builder():
    assert isinstance(build("vit_tiny", neck=None, final_norm=None, stem=None).neck, nn.BatchNorm1d)
    assert build("resnet20", pretrained=None, num_features=None).num_features == 64


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("resnet81", {}, "unknown backbone 'resnet81'. Did you mean 'resnet18'"),
        ("resnet18_lm", {}, "unknown backbone 'resnet18_lm'. Did you mean 'resnet18_ln'"),
        ("timm/test_rezznet", {}, "unknown timm model 'test_rezznet'. Did you mean 'test_resnet'"),
        ("resnet18", {"stemm": "cifar"}, "unknown option of backbone 'resnet18' 'stemm'. Did you mean 'stem'"),
        ("resnet20", {"stem": "cifar"}, "unknown option of backbone 'resnet20' 'stem'"),
        ("resnet20", {"pretrained": True}, "unknown option of backbone 'resnet20' 'pretrained'"),
        ("timm/test_vit", {"nek": "batch_norm"}, "Did you mean 'neck'"),
        ("resnet18", {"stem": "cifra"}, "unknown stem 'cifra'. Did you mean 'cifar'"),
        ("resnet20", {"neck": "batchnorm"}, "unknown neck 'batchnorm'. Did you mean 'batch_norm'"),
        ("resnet20", {"num_features": 0}, "num_features must be >= 1"),
    ],
)
def test_unknown_names_and_options_are_refused_with_the_nearest_spelling(name, options, message):
    with pytest.raises(ValueError) as error:
        create_backbone(name, **options)
    assert message in str(error.value)


def test_the_list_of_choices_mentions_timm_without_printing_it():
    with pytest.raises(ValueError, match="timm/<name>"):
        create_backbone("wide_resnet")
    with pytest.raises(ValueError) as error:
        create_backbone("timm/wide_resnet")
    assert len(str(error.value)) < 300


def test_a_users_own_backbone_takes_its_own_options(registered):
    def mine(*, width: int = 7) -> nn.Module:
        return Backbone(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, width)), width)

    BACKBONES["mine"] = mine
    assert "mine" in list_backbones()
    assert create_backbone("mine", image_size=SIZE).num_features == 7
    assert create_backbone("mine", width=5)(images()).shape == (2, 5)
    with pytest.raises(ValueError, match="Did you mean 'width'"):
        create_backbone("mine", widht=5)


def test_image_size_reaches_the_builders_that_depend_on_it(registered):
    seen: list[int] = []
    BACKBONES["sized"] = lambda *, image_size: seen.append(image_size) or nn.Identity()
    create_backbone("sized", image_size=48)
    assert seen == [48]
    assert create_backbone("timm/test_vit", image_size=64)(images(2, 64)).shape == (2, 64)
