"""Stock models: published weights arrive where there is a network; elsewhere an error says what was tried.

The downloads are replaced: by weights that can be recognized, or by a network that fails.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from ncflow.nn.backbones import BACKBONES, create_backbone

OFFLINE = "no route to host"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object, **options: object) -> None:
        raise URLError(OFFLINE)

    from timm.models import _builder
    from torchvision.models import WeightsEnum

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # nor a cache
    answer_to_a_probe(monkeypatch, fail)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    for loader in ("load_state_dict_from_hf", "load_state_dict_from_url", "load_custom_from_hf"):
        monkeypatch.setattr(_builder, loader, fail)


def answer_to_a_probe(monkeypatch: pytest.MonkeyPatch, head: Callable[..., None]) -> None:
    """Let Hugging Face's server answer a first request as `head` does."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=head))


def serve(monkeypatch: pytest.MonkeyPatch, weights: dict[str, Tensor]) -> None:
    """Let both libraries download these weights."""
    from timm.models import _builder
    from torchvision.models import WeightsEnum

    answer_to_a_probe(monkeypatch, lambda url, timeout: None)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *args, **options: dict(weights))
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *args, **options: dict(weights))


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where torchvision looks for a ShuffleNet before it downloads one, which here is never."""
    from torchvision.models import get_model_weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("wanted a network"))
    file = tmp_path / "hub" / "checkpoints" / Path(get_model_weights("shufflenet_v2_x1_0")["DEFAULT"].url).name
    file.parent.mkdir(parents=True)
    return file


class Malicious:
    """Pickled, it calls that function wherever it is unpickled."""

    def __init__(self, function: Callable[..., object], *given: object) -> None:
        self.call = function, given

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def filled(module: nn.Module) -> dict[str, Tensor]:
    """A state dict of the module's shapes, each tensor filled with a number of its own."""
    numbers = enumerate(module.state_dict().items(), start=1)
    return {name: torch.full(value.shape, number * 1e-3, dtype=value.dtype) for number, (name, value) in numbers}


WITH_WEIGHTS = [name for name, builder in BACKBONES.items() if "pretrained" in inspect.signature(builder).parameters]


def test_rows_whose_architecture_nobody_published_have_no_weights():
    assert set(WITH_WEIGHTS).isdisjoint({"free_features", "resnet20", "resnet32", "vit_tiny", "convnext_tiny"})
    assert {"resnet18", "vgg11", "densenet121", "dinov3_small"} <= set(WITH_WEIGHTS)


@pytest.mark.parametrize("name", [*WITH_WEIGHTS, "timm/test_vit"])
def test_without_a_network_the_error_names_attempts_and_remedy(no_network, name):
    device = "cpu" if name == "regnet_y_400mf" else "meta"  # it computes its widths in tensors
    with torch.device(device), pytest.raises(ValueError) as error:
        create_backbone(name, image_size=32, pretrained=True)
    message = str(error.value)
    assert "no pretrained weights for t" in message and OFFLINE in message and "choose pretrained: false" in message
    assert isinstance(error.value.__cause__, URLError)


def test_a_silent_hugging_face_is_asked_once_and_quoted(monkeypatch, tmp_path):
    """Nothing waits, no request follows: only the first is replaced here, and the client's own would raise."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    def fail(url: str, timeout: float) -> None:
        raise URLError(OFFLINE)

    answer_to_a_probe(monkeypatch, fail)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: pytest.fail(f"waited for {seconds} s"))
    with pytest.raises(ValueError, match=f"no pretrained weights for timm's test_vit: URLError: .*{OFFLINE}"):
        create_backbone("timm/test_vit", pretrained=True)


@pytest.mark.parametrize("reachable", [True, False])
def test_a_silent_hugging_face_leaves_the_cache_unchanged(monkeypatch, reachable):
    import timm
    from huggingface_hub import constants
    from timm.models import _builder

    def answer(url: str, timeout: float) -> None:
        assert url == constants.ENDPOINT and 0 < timeout <= 10
        if not reachable:
            raise URLError(OFFLINE)

    def load(*args: object, **options: object) -> dict[str, Tensor]:
        offline.append(constants.HF_HUB_OFFLINE)
        return filled(timm.create_model("test_vit"))

    offline: list[bool] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    answer_to_a_probe(monkeypatch, answer)
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", load)
    body = create_backbone("timm/test_vit", pretrained=True).body
    assert body.cls_token.unique().numel() == 1  # the weights of the cache, or of the network
    assert offline == [not reachable] and constants.HF_HUB_OFFLINE is False


def test_a_model_that_timm_has_no_weights_for_is_refused_by_name():
    with pytest.raises(ValueError, match="no pretrained weights for timm's test_vit4: RuntimeError: No pretrained"):
        create_backbone("timm/test_vit4", pretrained=True)


def test_a_users_mistake_is_not_taken_for_a_missing_network():
    with pytest.raises(ValueError, match="unknown stem"):
        create_backbone("resnet18", stem="cifra", pretrained=True)
    with pytest.raises(ValueError, match="unknown timm model"):
        create_backbone("timm/test_vitt", pretrained=True)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "chosen", [{}, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "0", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}]
)
def test_a_cached_checkpoint_is_loaded_and_the_environment_restored(monkeypatch, cached, zipped, chosen):
    from torchvision.models import get_model

    for name in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    weights = filled(get_model("shufflenet_v2_x1_0"))
    torch.save(weights, cached, _use_new_zipfile_serialization=zipped)
    body = create_backbone("shufflenet_v2", pretrained=True).body.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in body.items())
    assert dict(os.environ) == before


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("function", "named"), [(os.mkdir, f"{os.name}.mkdir"), (shutil.copytree, "shutil.copytree")])
def test_a_cached_checkpoint_with_code_is_refused_and_not_run(cached, tmp_path, zipped, function, named):
    mark = tmp_path / "mark"
    given = (str(mark),) if function is os.mkdir else (str(cached.parent), str(mark))
    code = Malicious(function, *given)
    torch.save({"conv1.0.weight": code}, cached, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError) as error:
        create_backbone("shufflenet_v2", pretrained=True)
    message = str(error.value)
    assert message.startswith(f"{cached} should hold") and "GLOBAL" in message and f"{named} " in message
    assert "Delete it, and it is downloaded again" in message and "trust" not in message and len(message) < 500
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"half of a file"])
def test_a_cached_checkpoint_that_is_none_is_refused_by_its_file(cached, content):
    cached.write_bytes(content)
    with pytest.raises(ValueError, match=f"{cached} should hold .* Delete it, and it is downloaded again"):
        create_backbone("shufflenet_v2", pretrained=True)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_published_weights_fill_a_resnet_but_not_a_stem_of_another_shape(monkeypatch, stem):
    from torchvision.models import get_model

    weights = filled(get_model("resnet18"))
    serve(monkeypatch, weights)
    body = create_backbone("resnet18", stem=stem, pretrained=True).body.state_dict()
    same = {name for name in body if torch.equal(body[name], weights[name])}
    assert set(weights) - same == ({"conv1.weight"} if stem == "cifar" else set()) | {"fc.weight", "fc.bias"}


def test_published_vgg_weights_keep_their_order(monkeypatch):
    from torchvision.models.vgg import cfgs, make_layers

    from ncflow.nn import convnets

    features = make_layers(cfgs["A"], batch_norm=True)
    features.load_state_dict(filled(features))
    monkeypatch.setattr(convnets, "torchvision_body", lambda *args, **options: SimpleNamespace(features=features))
    ours, images = create_backbone("vgg11", pretrained=True).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), features.eval()(images).mean((2, 3)))


def test_published_googlenet_weights_leave_no_auxiliary_classifier(monkeypatch):
    from torchvision.models import GoogLeNet

    with torch.device("meta"):
        shapes = GoogLeNet(init_weights=False)
    serve(monkeypatch, filled(shapes))
    body = create_backbone("googlenet", pretrained=True).body
    assert body.aux1 is None and body.aux2 is None
    assert body.conv1.conv.weight.unique().numel() == 1


@pytest.mark.parametrize("name", ["dinov2_small", "dinov3_small", "EVA-02", "EVA-02_orig", "repvit_m1"])
def test_published_timm_weights_fill_the_body_whatever_the_image_size(monkeypatch, name):
    published = {
        "dinov2_small": "vit_small_patch14_dinov2",
        "dinov3_small": "vit_small_patch16_dinov3",
        "EVA-02": "eva02_tiny_patch14_224",
        "EVA-02_orig": "eva02_tiny_patch14_224",
        "repvit_m1": "repvit_m1",
    }
    import timm

    with torch.device("meta"):
        shapes = timm.create_model(published[name], num_classes=0)
    weights = filled(shapes)
    serve(monkeypatch, weights)
    body = create_backbone(name, image_size=32, pretrained=True).body.state_dict()
    filled_from = {key for key in body if key in weights and body[key].unique().numel() == 1}
    assert len(filled_from) > 0.95 * len(weights) - 2
