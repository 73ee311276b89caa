"""Checkpoints: a backbone is found under any prefix, in the usual files, or refused by name; parts can be frozen."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from ncflow.nn import Classifier, create_backbone, create_head, freeze, load_checkpoint
from ncflow.nn.checkpoints import TRAINABLE


def make(seed: int, *, head: str = "linear", num_classes: int = 5, backbone: str = "resnet20") -> Classifier:
    torch.manual_seed(seed)
    body = create_backbone(backbone, image_size=8)
    return Classifier(body, create_head(head, body.num_features, num_classes))


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


PREFIXES = ["", "module.", "model.", "backbone.", "module.model.encoder.", "_orig_mod.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
def test_a_backbone_is_found_under_any_prefix(tmp_path, prefix, nest):
    trained, fresh = make(1), make(2)
    state = {f"{prefix}{key}": tensor for key, tensor in trained.backbone.state_dict().items()}
    state |= {f"{prefix}fc.weight": torch.zeros(7, 64), "epoch": torch.tensor(3)}
    torch.save(state if nest is None else {nest: state, "epoch": 3}, tmp_path / "mine.pth")
    note = load_checkpoint(tmp_path / "mine.pth", fresh)
    assert equal(fresh.backbone, trained.backbone) and not equal(fresh.head, trained.head)
    assert note == "started from mine.pth: backbone; the head is new"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_our_own_checkpoint_brings_its_head(tmp_path, suffix):
    from safetensors.torch import save_file

    trained, fresh, file = make(1), make(2), tmp_path / f"final_model{suffix}"
    save_file(trained.state_dict(), file) if suffix == ".safetensors" else torch.save(trained.state_dict(), file)
    assert load_checkpoint(file, fresh).endswith("backbone and head")
    assert equal(fresh, trained)


@pytest.mark.parametrize("other", [{"head": "nearest_etf"}, {"num_classes": 7}])
def test_a_head_of_another_kind_or_size_stays_new(tmp_path, other):
    trained, fresh = make(1), make(2, **other)
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth", fresh).endswith("the head is new")
    assert equal(fresh.backbone, trained.backbone)


def test_a_checkpoint_of_another_backbone_names_three_keys_of_each_side(tmp_path):
    torch.save({f"module.{k}": v for k, v in make(1, backbone="resnet18").state_dict().items()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a.pth is no checkpoint of this backbone.*it lacks .*, .*, .* and \d+ more"):
        load_checkpoint(tmp_path / "a.pth", make(2))


def test_tensors_of_other_shapes_are_named_with_both_shapes(tmp_path):
    state = make(1).state_dict()
    key = next(iter(state))
    torch.save(state | {key: torch.zeros(1, 2, 3, 3)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"shapes differ in backbone\.\S+ \(1, 2, 3, 3\), expected \(16, 3, 3, 3\)"):
        load_checkpoint(tmp_path / "a.pth", make(2))


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps({"a": 1}), pickle.dumps(Evil())])
def test_a_file_that_is_no_checkpoint_is_refused_and_never_unpickled(tmp_path, content, capsys):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.pth (is no checkpoint of tensors alone|holds no tensors)"):
        load_checkpoint(tmp_path / "a.pth", make(1))
    assert "unpickled" not in capsys.readouterr().out


def test_a_missing_checkpoint_is_named():
    with pytest.raises(ValueError, match=r"no checkpoint nowhere.pth; .* model.checkpoint"):
        load_checkpoint("nowhere.pth", make(1))


# --- what learns ---


def learning(classifier: Classifier) -> set[str]:
    return {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}


def test_the_choices_of_trainable_parts_are_nested():
    parts = {}
    for choice in TRAINABLE:
        classifier = make(1)
        freeze(classifier, choice)
        parts[choice] = learning(classifier)
    assert parts["head"] == {"head.weight"}
    assert parts["head"] < parts["norm_bias"] < parts["all"] == {name for name, _ in make(1).named_parameters()}
    of_backbone = parts["norm_bias"] - parts["head"]
    assert all(parameter.ndim == 1 for name, parameter in make(1).named_parameters() if name in of_backbone)


def test_a_frozen_backbone_keeps_its_batch_statistics():
    classifier = make(1)
    freeze(classifier, "head")
    before = {name: tensor.clone() for name, tensor in classifier.backbone.state_dict().items()}
    classifier.train()(torch.randn(4, 3, 8, 8), torch.arange(4))
    assert classifier.head.training and not classifier.backbone.training
    for name, tensor in classifier.backbone.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="model.trainable=head leaves nothing to learn.*; try head.name=linear"):
        freeze(make(1, head="fixed_etf"), "head")
