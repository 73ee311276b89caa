"""--check refuses what training would refuse, before anything is loaded, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from users import NAMES, write_folders, write_labelled

from ncflow import assembly, rehearsal
from ncflow.data.sources import count_classes
from ncflow.nn import BACKBONES, refuse_missing_weights
from ncflow.params import make_params


def check(*overrides: str) -> None:
    assembly.check(make_params({}, overrides))


@pytest.mark.parametrize("quick", [True, False], ids=["numbers", "shapes"])
def test_images_too_small_for_a_model_are_refused_with_a_size(monkeypatch, quick):
    monkeypatch.setattr(rehearsal, "QUICK_SIZE", 1024 if quick else 0)
    with pytest.raises(ValueError, match=r"cannot take images of model.image_size=32: .*; try model.image_size=96"):
        check("model.name=timm/inception_v3")


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_passes_at_the_usual_size(name):
    size = {"free_features": 8}.get(name, 32)
    data = "ufm10" if name == "free_features" else "digits"
    check(f"model.name={name}", f"model.image_size={size}", f"dataset.name={data}")


@pytest.mark.parametrize("head", ["linear", "fixed_etf", "nearest_etf"])
@pytest.mark.parametrize("quick", [True, False], ids=["numbers", "shapes"])
def test_a_check_draws_no_random_numbers_of_the_process(monkeypatch, head, quick):
    monkeypatch.setattr(rehearsal, "QUICK_SIZE", 1024 if quick else 0)
    params = make_params({}, [f"head.name={head}"])
    classifier = assembly.build_classifier(params, 10)
    before = torch.get_rng_state()
    rehearsal.rehearse(classifier, torch.nn.functional.cross_entropy, image_size=8, num_classes=10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("head", ["fixed_etf", "nearest_etf"])
def test_a_head_without_room_is_refused_before_imagenet_is_read(head):
    with pytest.raises(ValueError, match="needs num_features >= num_classes - 1, got 512 and 1000"):
        check("dataset.name=imagenet_lt", "dataset.imb_factor=-1", f"head.name={head}", "model.name=resnet18")


def test_a_users_classes_are_counted_from_the_data(tmp_path, datasets_cache):
    root = write_folders(tmp_path / "pics", {"a": 2, "b": 2, "c": 2})
    write_labelled(tmp_path / "rows" / "train.parquet", NAMES * 2, NAMES)
    assert count_classes("imagefolder", root) == count_classes("imagenet", root) == 3
    assert count_classes("parquet", tmp_path / "rows") == 3
    assert count_classes("imagenet", tmp_path / "nothing") == 1000
    assert count_classes("imagefolder", tmp_path / "nothing") is None
    with pytest.raises(ValueError, match="got 1 and 3"):
        check("dataset.name=imagefolder", f"dataset.root={root}", "head.name=fixed_etf", "model.num_features=1")


WEIGHTLESS = [
    "resnet20",
    "resnet32",
    "vit_tiny",
    "convnext_tiny",
    "free_features",
    "vit_tiny_orig",
    "timm/cspresnet50d",
]


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_weights_that_nobody_published_are_refused_without_a_network(name):
    with pytest.raises(ValueError, match="has no published weights|timm has no weights|free"):
        check(f"model.name={name}", "model.pretrained=true")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "EVA-02", "timm/resnet18", "timm/resnet18.a1_in1k"])
def test_published_weights_are_not_asked_for_by_a_check(name):
    refuse_missing_weights(name)
