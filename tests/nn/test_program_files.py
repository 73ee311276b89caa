"""Programs of whole classifiers: pictures in, logits out, as the classifier gives them, for every backbone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from ncflow.extras import MissingPackage
from ncflow.nn import BACKBONES, HEADS, Classifier, PictureClassifier, create_backbone, create_head, exports
from ncflow.nn.exports import FORMATS, export

# tests/trials/exports.py writes and checks every backbone in every format, in about six minutes.
FAST = ["resnet20", "vgg11"]


def model_of(backbone: str, head: str = "linear", *, mode: str = "RGB") -> PictureClassifier:
    torch.manual_seed(0)
    body = create_backbone(backbone, image_size=32)
    classifier = Classifier(body, create_head(head, body.num_features, 5, class_counts=[5, 4, 3, 2, 1]))
    channels = 3 if mode == "RGB" else 1
    moments = {"pixel_mean": [0.5] * channels, "pixel_std": [0.25] * channels}
    return PictureClassifier(classifier, image_mode=mode, image_size=32, **moments).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("backbone", FAST)
def test_a_program_gives_the_logits_of_its_classifier_for_any_batch(tmp_path: Path, backbone: str, kind: str) -> None:
    model, file = model_of(backbone, mode="L" if backbone == "vgg11" else "RGB"), tmp_path / f"model.{kind}"
    export(model, file, kind, {"class_names": list("abcde")})
    run = FORMATS[kind].read(file)
    for batch in (1, 7):
        pictures = torch.randint(0, 256, (batch, 32, 32, 3), dtype=torch.uint8)
        torch.testing.assert_close(run(pictures), model(pictures), rtol=1e-4, atol=1e-4, check_dtype=True)


@pytest.mark.slow
@pytest.mark.parametrize("head", [head for head in HEADS if head != "linear"])
def test_programs_of_every_head_pass_their_check(tmp_path: Path, head: str) -> None:
    export(model_of("vgg11", head), tmp_path / "model.pt2", "pt2", {})


def test_the_trial_of_exports_names_every_backbone_that_reads_pictures() -> None:
    text = (Path(__file__).parents[1] / "trials" / "exports.py").read_text()
    assert "BACKBONES" in text and set(FAST) <= set(BACKBONES)


def test_a_program_that_gives_other_logits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("vgg11")
    for change in (1e-3, torch.nan):
        row = FORMATS["onnx"]._replace(
            packages=(),
            write=lambda model, file, facts: None,
            read=lambda file, change=change: lambda pictures: model(pictures) + change,
        )
        monkeypatch.setitem(FORMATS, "onnx", row)
        with pytest.raises(ValueError, match="the onnx program differs from the classifier"):
            export(model, tmp_path / "model.onnx", "onnx", {})


def test_facts_are_kept_in_the_program(tmp_path: Path) -> None:
    facts = {"class_names": ["é", "b"]}
    export(model_of("vgg11"), tmp_path / "model.pt2", "pt2", facts)
    kept = {"ncflow.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=kept)
    assert json.loads(kept["ncflow.json"]) == facts


def test_a_missing_package_is_one_message_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(MissingPackage, match="onnxruntime, which is not installed; install it with `pip install "):
        export(model_of("vgg11"), tmp_path / "model.onnx", "onnx", {})
    assert not list(tmp_path.iterdir())


def test_the_check_sees_pictures_that_are_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = model_of("vgg11"), []

    def run(pictures: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(pictures.shape))
        return model(pictures)

    exports.compare(run, model, "pt2")
    assert shapes == [(3, 32, 32, 3), (1, 32, 32, 1), (2, 39, 67, 4)]
