"""Export whole classifiers of every backbone in every format, and compare each file with its classifier.

    python tests/trials/exports.py [backbone …]

It takes about six minutes on one core. It ends with 0 if all logits are equal: to 1e-5 of the largest logit for
torch.export, and to 1e-4 for ONNX. Pictures that ONNX resizes may differ by 1e-2, because its resizing rounds a few
pixels to the next gray value.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

from ncflow.nn import BACKBONES, Classifier, PictureClassifier, create_backbone, create_head
from ncflow.nn.exports import FORMATS, export

NUMBERED = {"free_features"}  # reads numbers of samples rather than pictures


def model_of(backbone: str) -> PictureClassifier:
    """A classifier of pictures with random weights, at a small size."""
    torch.manual_seed(0)
    body = create_backbone(backbone, image_size=32)
    classifier = Classifier(body, create_head("linear", body.num_features, 5))
    return PictureClassifier(classifier, image_mode="RGB", image_size=32, pixel_mean=[0.5] * 3, pixel_std=[0.25] * 3)


def main() -> int:
    failed = 0
    for backbone in sys.argv[1:] or [name for name in BACKBONES if name not in NUMBERED]:
        model = model_of(backbone).eval()
        for kind in FORMATS:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                try:
                    export(model, Path(folder) / f"model.{kind}", kind, {})
                    found = "equal"
                except Exception as error:
                    failed, found = failed + 1, f"{type(error).__name__}: {error}"
            sys.stdout.write(f"{backbone:20} {kind:5} {time.perf_counter() - start:6.1f} s  {found}\n")
            sys.stdout.flush()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
