"""What is taken from a source, option by option: each does what it says, in an order in which none spoils another."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ncflow.data import Snapshot, load_source
from ncflow.data.images import ImageSource
from ncflow.data.longtail import hold_out, longtail_counts, longtail_indices
from ncflow.data.noise import noisy_targets
from ncflow.data.recipe import Parts, Recipe

PROFILES = [{"imb_factor": 0.02}, {"imb_type": "step", "imb_factor": 0.1}, {"imb_type": "none"}]


@pytest.fixture(scope="module")
def source() -> ImageSource:
    """2,000 samples in ten equal classes, each image the number of its sample."""
    targets = np.random.RandomState(0).permutation(np.arange(2000) % 10)
    images = np.arange(2000, dtype=np.uint16).view(np.uint8).reshape(2000, 1, 2)
    return ImageSource("numbers", images, targets, [str(k) for k in range(10)])


def take(source: ImageSource, **choices: Any) -> Parts:
    return Recipe("numbers", **choices).apply(source)


def counts(targets: np.ndarray) -> list[int]:
    return np.bincount(targets, minlength=10).tolist()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seed", range(3))
def test_without_options_it_is_the_long_tail_of_the_source(source, profile, seed):
    parts = take(source, seed=seed, **profile)
    expected = longtail_indices(source.targets, 10, seed=seed, **({"imb_type": "exp", "imb_factor": 0.01} | profile))
    assert parts.train.tolist() == expected.tolist() and len(parts.held_out) == 0
    assert np.array_equal(parts.source.targets, source.targets)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("label_noise", [0.0, 0.3])
def test_held_out_samples_are_as_balanced_as_the_source_and_never_trained(source, profile, label_noise):
    parts = take(source, val_fraction=0.1, label_noise=label_noise, **profile)
    assert counts(source.targets[parts.held_out]) == [20] * 10
    assert not set(parts.held_out) & set(parts.train)
    assert counts(parts.source.targets[parts.train])[0] in range(170, 181)  # of N // K = 180, what the class has


def test_neither_imbalance_nor_noise_changes_what_is_held_out(source):
    held_out = [take(source, val_fraction=0.1, **profile).held_out.tolist() for profile in PROFILES]
    held_out.append(take(source, val_fraction=0.1, label_noise=0.5, imb_factor=0.5).held_out.tolist())
    assert all(each == held_out[0] for each in held_out)
    assert held_out[0] == hold_out(source.targets, 10, fraction=0.1, seed=0)[1].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_wrong_labels_follow_the_profile_and_spoil_every_class_alike(source, seed):
    """Noise on a finished tail would give the rarest class more strangers than samples of its own."""
    parts = take(source, seed=seed, label_noise=0.3, imb_factor=0.05, samples_per_class=150)
    labels, truth = parts.source.targets[parts.train], source.targets[parts.train]
    assert counts(labels) == longtail_counts(150, 10, imb_factor=0.05)
    for group in (labels < 3, labels > 5):
        share = (labels != truth)[group].mean()
        assert abs(share - 0.3) < 4 * (0.21 / group.sum()) ** 0.5
    flooded = counts(noisy_targets(truth, 10, fraction=0.3, seed=seed))
    assert flooded[9] > 2 * counts(labels)[9]


def test_labels_are_wrong_only_among_what_may_be_trained_on(source):
    parts = take(source, val_fraction=0.2, label_noise=0.25, imb_factor=-1)
    wrong = parts.source.targets != source.targets
    assert wrong.sum() == 400 == wrong[parts.train].sum()  # a quarter of 1,600
    assert parts.source.images is source.images


def test_samples_per_class_and_min_samples_are_the_ends_of_the_tail(source):
    parts = take(source, imb_factor=0.001, samples_per_class=40, min_samples=2)
    assert counts(source.targets[parts.train]) == longtail_counts(40, 10, imb_factor=0.001, n_min=2)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"samples_per_class": 201},
            "samples_per_class must be between 1 and 200, those of the largest class; got 201",
        ),
        ({"imb_factor": 0.001}, "without a sample; min_samples 1 gives it one"),
        ({"imb_factor": -1, "min_samples": 1}, "min_samples 1 cannot change the native imbalance"),
        ({"imb_type": "none", "samples_per_class": 200, "label_noise": 0.2}, "ask class .* for 200 of its 1"),
        ({"val_fraction": 1.0}, r"fraction to hold out must be in \(0, 1\)"),
        ({"label_noise": 1.0}, r"label noise must be in \[0, 1\)"),
    ],
)
def test_what_a_source_cannot_give_is_refused(source, choices, message):
    with pytest.raises(ValueError, match=message):
        take(source, **choices)


def test_a_class_too_small_for_the_tail_options_is_named(source):
    smaller = replace(source, targets=np.where(source.targets == 3, 2, source.targets))
    smaller.targets[:5] = 3
    for choices in ({"samples_per_class": 100, "imb_type": "none"}, {"min_samples": 6, "imb_factor": 0.5}):
        with pytest.raises(ValueError, match=r"ask class 3 for (100|6) of its 5 samples; lower them"):
            take(smaller, **choices)


def test_the_name_says_every_choice_that_is_not_the_default():
    assert Recipe("digits", imb_factor=0.02).folder_name == "digits-exp-0.02-seed0"
    choices = {"val_fraction": 0.1, "label_noise": 0.25, "samples_per_class": 50, "min_samples": 1}
    everything = Recipe("digits", root="x", imb_type="step", seed=3, **choices)
    assert everything.folder_name == "digits-step-0.01-val0.1-noise0.25-max50-min1-seed3"
    names = {Recipe("digits", **{option: value}).folder_name for option, value in choices.items()}
    assert len(names) == 4


def test_name_and_description_include_the_given_options_of_a_source():
    plain, chosen = Recipe("parquet"), Recipe("parquet", label_column="../fine label")
    digest = hashlib.sha256(b"../fine label").hexdigest()
    assert chosen.folder_name == f"parquet-exp-0.01-label_column=.._fine_label.{digest[:8]}-seed0"
    assert chosen.description() == plain.description() | {"label_column": "../fine label"}


# --- as a snapshot ---

EVERYTHING = {"imb_factor": 0.1, "val_fraction": 0.1, "label_noise": 0.2, "samples_per_class": 80, "min_samples": 10}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, datasets_cache) -> Snapshot:
    return Snapshot.create(tmp_path_factory.mktemp("snapshots") / "mixed", name="digits", **EVERYTHING)


def test_a_snapshot_has_the_third_split_and_says_what_was_chosen(mixed):
    assert mixed.splits == ("train", "val", "test")
    assert EVERYTHING.items() <= mixed.manifest.items()
    parts, source = Recipe("digits", **EVERYTHING).apply(load_source("digits")), load_source("digits")
    assert mixed.targets("train").tolist() == parts.source.targets[parts.train].tolist()
    assert mixed.targets("val").tolist() == source.targets[parts.held_out].tolist()
    assert mixed.targets("test").tolist() == load_source("digits", split="test").targets.tolist()
    pixels = [source.encoded(index) for index in parts.held_out]
    assert list(mixed.encoded_images("val")) == pixels


def test_a_snapshot_counts_the_labels_that_training_sees_and_the_true_ones(mixed):
    parts, source = Recipe("digits", **EVERYTHING).apply(load_source("digits")), load_source("digits")
    assert mixed.class_counts == longtail_counts(80, 10, imb_factor=0.1, n_min=10)
    assert mixed.manifest["clean_class_counts"] == counts(source.targets[parts.train]) != mixed.class_counts
    assert mixed.manifest["val_class_counts"] == mixed.targets("val").bincount().tolist()
    assert mixed.manifest["test_class_counts"] == [36] * 10


def test_without_the_options_there_is_no_trace_of_them(digits):
    assert digits.splits == ("train", "test")
    assert not {"val_class_counts", "clean_class_counts"} & digits.manifest.keys()
    with pytest.raises(ValueError, match="unknown split 'val'. Choices: train, test"):
        digits.targets("val")


@pytest.mark.parametrize("option", ["val_fraction", "label_noise", "samples_per_class", "min_samples"])
def test_a_snapshot_without_an_option_is_not_taken_for_one_with_it(mixed, option):
    others = {name: value for name, value in EVERYTHING.items() if name != option}
    assert Snapshot.obtain(mixed.path, name="digits", **EVERYTHING) == mixed
    with pytest.raises(
        ValueError, match=f"holds another snapshot: {option} is {EVERYTHING[option]}, asked for (0|None)"
    ):
        Snapshot.obtain(mixed.path, name="digits", **others)


def test_an_older_manifest_has_the_defaults_where_it_says_nothing(digits):
    new = ("val_fraction", "label_noise", "samples_per_class", "min_samples")
    older = replace(digits, manifest={key: value for key, value in digits.manifest.items() if key not in new})
    older._refuse_if_other(Recipe("digits", imb_factor=0.02))
    with pytest.raises(ValueError, match="min_samples is 0, asked for 1"):
        older._refuse_if_other(Recipe("digits", imb_factor=0.02, min_samples=1))
    with pytest.raises(ValueError, match="label_column is None, asked for 'fine'"):
        older._refuse_if_other(Recipe("digits", imb_factor=0.02, label_column="fine"))


def test_unconstrained_features_have_nothing_to_validate_on(tmp_path, datasets_cache):
    with pytest.raises(ValueError, match="'ufm10' has no unseen samples"):
        Snapshot.create(tmp_path / "ufm", name="ufm10", imb_type="none", val_fraction=0.1)
    assert not (tmp_path / "ufm").exists()


def test_classes_become_rare_in_the_order_that_is_given(tmp_path, datasets_cache, caplog):
    plain = Snapshot.create(tmp_path / "plain", name="digits", imb_factor=0.1)
    order = [str(k) for k in reversed(range(10))]
    turned = Snapshot.create(tmp_path / "turned", name="digits", imb_factor=0.1, class_order=order)
    assert turned.class_names == plain.class_names
    assert turned.class_counts[:9] == plain.class_counts[:0:-1]  # of class 0 there are fewer than the profile asks for
    assert "1 classes have fewer samples than the profile asks for: 0 has 142 of 143" in caplog.text
    assert plain.manifest["asked_class_counts"][0] == 143 and "asked_class_counts" not in turned.manifest


def test_frequency_makes_the_smallest_classes_rare(tmp_path, datasets_cache):
    from users import write_folders

    root = write_folders(tmp_path / "pics", {"a": 5, "b": 200, "c": 40})
    choices = {"name": "imagefolder", "root": root, "imb_factor": 0.02, "class_order": "frequency"}
    assert Snapshot.create(tmp_path / "snapshot", **choices).class_counts == [1, 81, 11]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["0", "1"], "missing: 2, 3, 4"),
        ([*map(str, range(10)), "x"], "unknown: x"),
        (["0", "0", *map(str, range(1, 10))], "given twice: 0"),
        ("size", "unknown class_order 'size'"),
    ],
)
def test_an_order_must_name_every_class_once(order, message):
    with pytest.raises(ValueError, match=message):
        Recipe("digits", class_order=order).apply(load_source("digits"))
