"""Use a trained classifier: the classes of new pictures, and a program file that runs without ncflow."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import copyfileobj
from typing import NamedTuple

import torch
from torch import Tensor

from ncflow.data.decoding import decode, fit_square
from ncflow.data.folders import SUFFIXES, pictures_below
from ncflow.data.images import PictureDamaged, printable
from ncflow.files import folder_next_to, write_atomically, write_text
from ncflow.nn import posthoc_adjustment
from ncflow.nn.exports import FORMATS
from ncflow.nn.exports import export as export_model
from ncflow.trained import Trained, lacks, load_trained
from ncflow.training.evaluation import ADJUSTED, DEFAULT_TAU
from ncflow.training.hardware import reproducible_convolutions

AT_ONCE = 256  # pictures in one forward


class Predictions(NamedTuple):
    """The classes of pictures. `damaged` holds name -> reason; `notes` explain columns that are left out."""

    rows: list[dict[str, str]]  # file, class, and if known confidence and adjusted_class
    damaged: dict[str, str]
    notes: list[str]

    def write_csv(self, file: Path) -> None:
        """Write one line for each picture that could be read, completely or not at all."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]) if self.rows else ["file", "class"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text.getvalue())


def predict(folder: Path, paths: Sequence[Path], data: Path) -> Predictions:
    """Classify the pictures in files and folders with the run in `folder`, as training classified its test pictures.

    Pictures in folders are found at any depth, by suffix. `data` holds snapshots, which only older runs need.
    """
    files = list(_pictures(paths))
    trained = load_trained(folder)
    damaged: dict[str, str] = {}
    named, logits = _classify(trained, data, files, damaged)
    names, notes = [printable(name) for name in trained.class_names], []
    columns = {"file": named, "class": [names[index] for index in logits.argmax(1).tolist()]}
    missing = _missing_columns(trained)
    if "confidence" in missing:
        notes.append(missing["confidence"])
    else:
        columns["confidence"] = [f"{value:.4f}" for value in logits.double().softmax(1).amax(1).tolist()]
    if "adjusted_class" in missing:
        notes.append(missing["adjusted_class"])
    else:
        tau = trained.run.final(f"test/{ADJUSTED}/tau") or DEFAULT_TAU
        adjusted = posthoc_adjustment(logits, trained.class_counts, tau=tau).argmax(1)
        columns["adjusted_class"] = [names[index] for index in adjusted.tolist()]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Predictions(rows, damaged, notes)


def export(folder: Path, data: Path, out: Path, kind: str) -> Path:
    """Write the classifier of a run with its preprocessing as a program, a row of FORMATS; return the file.

    The file appears only after it was loaded and gave the classifier's logits. Raises ValueError where it does not.
    """
    trained = load_trained(folder)
    model = trained.pictures(data)
    facts = {"run": trained.run.name, "class_names": trained.class_names, "ncflow": trained.provenance.ncflow}
    with folder_next_to(out) as temporary:
        file = temporary / f"model.{kind}"  # torch wants its suffix
        export_model(model, file, kind, facts)
        with file.open("rb") as content:
            return write_atomically(out, lambda stream: copyfileobj(content, stream))


@torch.no_grad()
def _classify(trained: Trained, data: Path, files: Sequence[Path], damaged: dict[str, str]) -> tuple[list[str], Tensor]:
    """The names of the readable pictures and their logits (N, K); the others are added to `damaged`."""
    model = trained.pictures(data)
    device = "cuda" if trained.params.train.device == "auto" and torch.cuda.is_available() else "cpu"
    model.to(device).to(memory_format=torch.channels_last)
    named: list[str] = []
    logits = [torch.zeros(0, len(trained.class_counts))]
    with reproducible_convolutions(allow_tf32=False):
        for start in range(0, len(files), AT_ONCE):
            images = []
            for file in files[start : start + AT_ONCE]:
                name = printable(str(file))
                try:
                    picture = decode(file.read_bytes(), model.image_mode)
                except (OSError, PictureDamaged) as error:
                    damaged[name] = getattr(error, "strerror", None) or re.sub(r" <[^>]*>$", "", str(error))
                    continue
                named.append(name)
                images.append(fit_square(picture[None], model.resize, model.resizing))
            if images:
                margin = (model.resize - model.image_size) // 2
                window = slice(margin, margin + model.image_size)
                batch = model.normalize(torch.cat(images)[..., window, window].to(device).float())
                batch = batch.contiguous(memory_format=torch.channels_last)
                logits.append(model.classifier(batch).logits.cpu())
    return named, torch.cat(logits)


def _pictures(paths: Sequence[Path]) -> Iterator[Path]:
    """Every file, and every picture below a folder. Raises ValueError for a missing path and an empty folder."""
    for path in paths:
        if path.is_dir():
            found = pictures_below(path)
            if not found:
                raise ValueError(f"{printable(str(path))} has no picture; expected suffixes {' '.join(SUFFIXES)}")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise ValueError(f"no picture {printable(str(path))}; expected files, or folders of pictures")


def _missing_columns(trained: Trained) -> dict[str, str]:
    """The columns that have no meaning for a run -> the reason."""
    train, missing = trained.params.train, {}
    lacking = lacks(trained.params, validated=False)
    if "log_probabilities" in lacking:
        reason = f"the logits of loss '{train.loss}' are not log-probabilities"
        return {"confidence": f"no confidence: {reason}", "adjusted_class": f"no adjusted class: {reason}"}
    if "sizes_uncorrected" in lacking:
        missing["adjusted_class"] = (
            f"no adjusted class: training has corrected the class sizes already (train.loss={train.loss}, "
            f"train.sampling={train.sampling}, train.reweight={train.reweight})"
        )
    elif 0 in trained.class_counts:
        name = printable(trained.class_names[trained.class_counts.index(0)])
        missing["adjusted_class"] = f"no adjusted class: class {name} has no training sample, and so no prior"
    return missing


__all__ = ["FORMATS", "Predictions", "export", "predict"]
