"""A finished run, loaded without its data: parameters, provenance, the classifier, and how it takes pictures."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from ncflow.assembly import build_classifier, preprocessing
from ncflow.data import Snapshot
from ncflow.data.manifest import find_manifest
from ncflow.files import checksum
from ncflow.lookup import fact
from ncflow.nn import LOSSES, Classifier, PictureClassifier
from ncflow.params import Params, make_params, read_config
from ncflow.runs.layout import CONFIG, FINAL_MODEL, PROVENANCE, is_finished
from ncflow.runs.provenance import FIRST_RESIZING, Preprocessing, Provenance, read_provenance
from ncflow.runs.reader import Run, load_run
from ncflow.runs.writer import load_model


class Trained(NamedTuple):
    """A finished run with its classifier on the CPU."""

    run: Run
    params: Params
    provenance: Provenance
    classifier: Classifier

    @property
    def class_counts(self) -> list[int]:
        """Training samples of each of the K classes."""
        counts: list[int] = self.run.dump["class_counts"].tolist()
        return counts

    @property
    def class_names(self) -> list[str]:
        """The names of the K classes, or their numbers where an older run has no names."""
        return self.run.class_names or [str(number) for number in range(len(self.class_counts))]

    def pictures(self, data: Path) -> PictureClassifier:
        """The classifier with its preprocessing. Raises ValueError where neither run nor `data` holds that."""
        found = preprocessing_of(self.params, self.provenance, data)
        if found is None:
            raise ValueError(
                f"{self.run.path} is of an older ncflow and does not hold how its pictures were normalized; fetch its "
                f"snapshot {data / self.provenance.snapshot.name} with `dvc pull`, or train it again"
            )
        return PictureClassifier(self.classifier, **asdict(found)).eval()


def load_trained(folder: Path) -> Trained:
    """Load a finished run. Raises ValueError where it is unfinished, or its checkpoint is not that of training."""
    run = load_run(folder)
    if not is_finished(folder):
        raise ValueError(f"run folder '{folder}' is unfinished: no {FINAL_MODEL} in it; let its training end")
    params, provenance = read_run_params(folder), read_provenance(folder)
    counts = run.dump["class_counts"].tolist()
    classifier = build_classifier(params, len(counts), class_counts=counts)
    load_model(folder / FINAL_MODEL, classifier)
    refuse_other_checkpoint(folder, provenance)
    return Trained(run, params, provenance, classifier)


def read_run_params(folder: Path) -> Params:
    """The parameters of a run. Raises ValueError that names the file and the key of what this version cannot read."""
    file = folder / CONFIG
    try:
        return make_params(read_config(file))
    except ValueError as error:
        if str(file) in str(error):
            raise
        raise ValueError(f"'{file}' is damaged, or of another version: {error}") from None


def refuse_other_checkpoint(folder: Path, provenance: Provenance) -> None:
    """Raise ValueError if the checkpoint is not the file that training wrote."""
    if provenance.final_model_sha256 not in (None, checksum(folder / FINAL_MODEL)):
        raise ValueError(
            f"{folder / FINAL_MODEL} is not the file that training wrote: {PROVENANCE} has another sha256; "
            "the checkpoint is not the model that was trained, so train it again or fetch it with `dvc pull`"
        )


def preprocessing_of(params: Params, provenance: Provenance, data: Path) -> Preprocessing | None:
    """How a run takes pictures: from its provenance, or for older runs from its snapshot in the folder `data`."""
    if provenance.preprocessing is not None:
        return provenance.preprocessing
    found = find_manifest(data, provenance.snapshot.digest)
    return None if found is None else replace(preprocessing(params, Snapshot.load(found)), resizing=FIRST_RESIZING)


def lacks(params: Params, *, validated: bool) -> dict[str, str]:
    """What post-hoc methods may need and this run does not have: a key of NEEDS -> the reason."""
    train, found = params.train, {}
    loss = LOSSES[train.loss]
    if not fact(loss, "log_probabilities", True):
        found["log_probabilities"] = f"loss '{train.loss}' has other logits; choose another method, such as ncm"
    corrected = fact(loss, "corrects_sizes", False) or train.sampling == "class_balanced" or train.reweight is not None
    if corrected and not validated:
        found["sizes_uncorrected"] = (
            f"the run has train.loss={train.loss}, train.sampling={train.sampling} and "
            f"train.reweight={train.reweight}, and no validation data; choose another method, such as ncm, or train "
            "with dataset.val_fraction > 0"
        )
    return found
