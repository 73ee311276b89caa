"""collapse_metrics: every documented metric, by its definition, in its range, and absent where it is not defined."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import references
import torch

from ncflow.geometry import simplex_etf
from ncflow.metrics import ClassMoments, analysis, collapse_metrics, moment_metrics
from ncflow.metrics.table import METRICS, as_markdown, layer_rows

SEEDS = range(4)
COUNTS = (150, 60, 30, 20, 8, 3)
DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
PROBLEMS = {
    "ordinary": references.draw_problem(0),
    "hardly separable": references.draw_problem(1, spread=20),
    "deep collapse": references.draw_problem(2, spread=1e-6),
    "offset": references.draw_problem(3, offset=1000),
    "absent classes": references.draw_problem(4, sizes=(9, 0, 7, 0, 5, 4)),
    "one sample per class": references.draw_problem(5, sizes=(1,) * 6),
    "imbalance of 100": references.draw_problem(6, sizes=(200, 80, 30, 12, 5, 2)),
    "as many features as an ETF needs": references.draw_problem(7, num_features=5),
    "too few features for an ETF": references.draw_problem(8, num_features=3),
    "one feature": references.draw_problem(9, num_features=1),
    "two classes": references.draw_problem(10, sizes=(9, 4), class_counts=(150, 8)),
    "classifier turned around": dataclasses.replace(p := references.draw_problem(11), weight=-p.weight),
}


def documented() -> dict[str, list[str]]:
    """name -> the cells behind it, of the table in docs/metrics.md."""
    rows = [
        line
        for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and "`layers/" not in line
    ]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {name.strip("`"): rest for name, *rest in cells}


def evaluate(problem: references.Problem, **options) -> dict[str, float]:
    ood = None if problem.ood is None else torch.from_numpy(problem.ood)
    return collapse_metrics(*problem.tensors, class_counts=problem.class_counts, **{"ood_features": ood} | options)


def number(text: str, num_classes: int) -> float:
    """A number as the table writes it."""
    k = num_classes
    symbols = {
        "∞": math.inf,
        "−∞": -math.inf,
        "√K": math.sqrt(k),
        "√2": math.sqrt(2),
        "2/√3": 2 / math.sqrt(3),
        "½": 0.5,
        "√(2−2√(1−1/K))": math.sqrt(2 - 2 * math.sqrt(1 - 1 / k)),
        "2−2√(1−1/K)": 2 - 2 * math.sqrt(1 - 1 / k),
        "−log 2": -math.log(2),
        "K/(K−1)": k / (k - 1),
        "−1/(K−1)": -1 / (k - 1),
        "−½ log(2K/(K−1))": -0.5 * math.log(2 * k / (k - 1)),
    }
    return symbols[text] if text in symbols else float(text.replace("−", "-"))


def collapsed(num_classes: int, num_features: int, per_class: int) -> references.Problem:
    etf = simplex_etf(num_classes, num_features, dtype=torch.float64).numpy()
    targets = np.arange(num_classes).repeat(per_class)
    features = 3 * etf[targets] + 2
    return references.Problem(features, targets, 5 * etf, -5 * etf @ features.mean(0), [per_class] * num_classes)


def test_the_document_the_definitions_and_the_code_name_the_same_metrics():
    assert set(METRICS) == set(references.METRICS), "write its definition in tests/references.py"
    assert as_markdown() in DOCUMENT.read_text(encoding="utf-8"), "put the table that `ncflow metrics` prints there"
    assert as_markdown(layer_rows()) in DOCUMENT.read_text(encoding="utf-8")
    assert list(documented()) == list(METRICS)
    assert set(evaluate(PROBLEMS["ordinary"])) == set(documented())


@pytest.mark.parametrize("seed", SEEDS)
def test_every_metric_is_what_its_definition_says(seed):
    problem = references.draw_problem(seed, spread=1)
    expected = {name: definition(problem) for name, definition in references.METRICS.items()}
    assert evaluate(problem) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["ordinary", "absent classes", "two classes", "too few features for an ETF", "offset"])
def test_what_is_not_absent_is_what_its_definition_says(name):
    found = evaluate(PROBLEMS[name])
    expected = {metric: references.METRICS[metric](PROBLEMS[name]) for metric in found}
    assert found == pytest.approx(expected, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_value_is_finite_and_in_its_documented_range(name):
    table, problem = documented(), PROBLEMS[name]
    for metric, value in evaluate(problem).items():
        low, high = (number(end, len(problem.weight)) for end in table[metric][1][1:-1].split(", "))
        assert math.isfinite(value)
        assert low <= value <= high + 1e-12, metric


@pytest.mark.parametrize("num_classes, num_features", [(10, 16), (6, 5), (3, 3)])
@pytest.mark.parametrize("per_class", [7, 50, 101])
def test_collapse_has_its_documented_values(num_classes, num_features, per_class):
    found, table = evaluate(collapsed(num_classes, num_features, per_class)), documented()
    fixed = {name: cells[2] for name, cells in table.items() if name in found and cells[2] != "—"}
    assert len(fixed) > 25
    expected = {name: number(text, num_classes) for name, text in fixed.items()}
    assert {name: found[name] for name in fixed} == pytest.approx(expected, abs=1e-11)


def test_every_metric_but_sizes_ignores_scale_and_rotation():
    """Scaling the features by 2 and the classifier by 1/2 leaves the logits; sizes of features and of W move."""
    problem = PROBLEMS["ordinary"]
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
    found = evaluate(problem)
    arrays = {"features": problem.features, "weight": problem.weight, "ood": problem.ood}
    turned = dataclasses.replace(problem, **{name: array @ turn for name, array in arrays.items()})
    assert evaluate(turned) == pytest.approx(found, rel=1e-9)
    scaled = evaluate(dataclasses.replace(problem, features=2 * problem.features, weight=problem.weight / 2))
    sizes = {"drift/norm": 2 * found["drift/norm"], "drift/norm_balanced": 2 * found["drift/norm_balanced"]}
    assert scaled == pytest.approx(found | sizes, rel=1e-9)


def test_the_names_of_the_classes_do_not_matter():
    problem, order = PROBLEMS["ordinary"], np.array([3, 5, 0, 1, 4, 2])
    back = np.argsort(order)
    renamed = references.Problem(
        problem.features,
        back[problem.targets],
        problem.weight[order],
        problem.bias[order],
        np.array(COUNTS)[order],
        problem.ood,
    )
    assert evaluate(renamed) == pytest.approx(evaluate(problem), rel=1e-9)


# What is absent, and why.
OF_THE_MEANS = {name for name in references.METRICS if name.startswith(("nc1/", "nc3/"))} - {"nc1/numerical_rank"}
OF_THE_MEANS |= {name for name in references.METRICS if name.endswith("_means") or name.startswith("squared_error/")}
OF_THE_MEANS |= {"nc2/equinorm_gap", "nc2/gnc2_log", "nc2/gnc2_spread"}
OF_THE_NEAREST = {"nc4/ncc_mismatch", "nc4/ncc_accuracy"}
ETFS = {"nc2/etf_distance_means", "nc2/etf_distance_weight", "nc3/etf_gap"}
MARGINS = {"margin/mean", "margin/min"}
MANY_CLASSES = {"nc2/margin_means", "nc2/margin_weight"}
ORTHOGONAL = {"nc2/orthogonal_distance_means", "nc2/orthogonal_distance_weight"}
ONE_PAIR = {"nc2/equiangularity_means", "nc2/equiangularity_weight", "nc2/gnc2_spread"}


def of_group(group: str) -> set[str]:
    """The metrics of the classes of a group."""
    return {name for name in references.METRICS if name.endswith(f"_{group}")} | {f"acc/{group}"}


@pytest.mark.parametrize(
    "case, absent",
    [
        ("ordinary", set()),
        ("too few features for an ETF", ETFS | ORTHOGONAL),
        ("as many features as an ETF needs", ORTHOGONAL),
        ("two classes", ONE_PAIR | {"acc/top5", "imbalance/majority_minority_cosine"} | of_group("medium")),
        ("absent classes", set()),
    ],
)
def test_only_what_is_not_defined_is_absent(case, absent):
    assert set(references.METRICS) - set(evaluate(PROBLEMS[case])) == absent


def test_one_class_alone_has_neither_nc1_nor_nc2_nor_nc3():
    problem = references.draw_problem(0, sizes=(12, 0, 0, 0, 0, 0))
    absent = set(references.METRICS) - set(evaluate(problem))
    assert absent == OF_THE_MEANS | OF_THE_NEAREST | {"acc/medium", "acc/few", "acc/tail20"}
    features, targets, *_ = problem.tensors
    alone = {"drift/norm", "drift/norm_balanced", "drift/relative", "nc1/numerical_rank"}
    assert set(collapse_metrics(features, targets)) == alone
    with_classifier = collapse_metrics(features, targets, torch.ones(1, 8), torch.ones(1))
    assert set(with_classifier) >= {"bias/collapse", "acc/overall"} | alone
    assert not any(name.startswith(("nc2", "nc3", "imbalance", "margin", "squared")) for name in with_classifier)


@pytest.mark.parametrize("feature", [0.0, 0.1, 1 / 3])
@pytest.mark.parametrize("repeat", [1, 50])
def test_a_network_that_died_has_no_geometry(feature, repeat):
    """All features equal: rounding must not pass for a difference of classes."""
    problem = references.draw_problem(0)
    same = np.full((73 * repeat, 8), feature) + (feature != 0) * np.linspace(0, 1, 8)
    dead = dataclasses.replace(problem, features=same, targets=np.tile(problem.targets, repeat))
    rank = {"nc1/numerical_rank", "drift/relative", "nc5/ood_cosine"} if feature == 0 else set()
    assert set(references.METRICS) - set(evaluate(dead)) == OF_THE_MEANS | OF_THE_NEAREST | MARGINS | rank


@pytest.mark.parametrize("row", [0.0, 0.1])
def test_a_classifier_of_equal_rows_has_neither_margin_nor_nearest_etf(row):
    dead = dataclasses.replace(PROBLEMS["ordinary"], weight=np.full((6, 8), row))
    found = evaluate(dead)
    gone = MARGINS | {"nc2/etf_distance_weight", "nc3/etf_gap"}
    if row == 0:  # no norm and no direction either
        gone |= {"nc2/equinorm_weight", "nc2/equinorm_gap", "nc2/equiangularity_weight", "nc2/etf_error_weight"}
        gone |= {"nc2/maximal_angle_weight", "nc2/orthogonal_error_weight", "nc2/orthogonal_distance_weight"}
        gone |= {name for name in references.METRICS if name.startswith("nc3/alignment")}
        gone |= {"nc2/max_cosine_weight", "nc2/margin_weight"}
        gone |= {"nc3/self_duality", "nc3/etf_error", "imbalance/minority_cosine"}
        gone |= {"imbalance/majority_minority_cosine", "imbalance/seli_error_weight", "imbalance/norm_slope"}
    assert set(references.METRICS) - set(found) == gone


def test_collapsed_minorities_have_no_single_nearest_etf_but_a_distance():
    problem = PROBLEMS["ordinary"]
    weight = problem.weight.copy()
    weight[5] = weight[4]
    absent = set(references.METRICS) - set(evaluate(dataclasses.replace(problem, weight=weight)))
    assert absent == {"nc3/etf_gap"}


def test_without_a_classifier_only_the_features_are_measured():
    features, targets, *_ = PROBLEMS["ordinary"].tensors
    of_features = {name for name in OF_THE_MEANS if not name.startswith("nc3")} - {"nc2/equinorm_gap"}
    of_features |= {"nc1/numerical_rank", "drift/norm", "drift/norm_balanced", "drift/relative", "nc4/ncc_accuracy"}
    of_features -= {"squared_error/classifier"}
    found = collapse_metrics(features, targets, class_counts=COUNTS)
    assert set(found) == of_features
    whole = evaluate(PROBLEMS["ordinary"])
    assert found == {name: whole[name] for name in of_features}


def test_no_bias_is_a_bias_of_zero():
    features, targets, weight, bias = PROBLEMS["ordinary"].tensors
    assert collapse_metrics(features, targets, weight) == collapse_metrics(features, targets, weight, 0 * bias)


# What belongs to the training split.


def test_class_counts_default_to_those_of_the_features():
    problem = PROBLEMS["ordinary"]
    own = np.bincount(problem.targets).tolist()
    alone = collapse_metrics(*problem.tensors)
    assert alone == collapse_metrics(*problem.tensors, class_counts=own)
    given = evaluate(problem, ood_features=None)
    moved = {name for name, value in given.items() if value != alone.get(name)}
    groups = set.union(*map(of_group, ("many", "medium", "few")))
    assert moved >= {"acc/many", "imbalance/norm_slope", "imbalance/seli_error_weight", "imbalance/seli_error_means"}
    assert all(name.startswith(("acc/", "imbalance/")) or name in groups for name in moved)


def test_classes_without_training_samples_have_no_seli_geometry():
    problem = dataclasses.replace(PROBLEMS["ordinary"], class_counts=[150, 60, 30, 20, 8, 0])
    found = evaluate(problem)
    assert set(references.METRICS) - set(found) == {
        "imbalance/seli_error_means",
        "imbalance/seli_error_weight",
        "imbalance/norm_slope",
        "imbalance/norm_slope_means",
    }


def test_nearest_means_are_those_of_training_without_unseen_classes():
    problem = PROBLEMS["ordinary"]
    means = torch.from_numpy(problem.means)
    assert evaluate(problem, train_means=means) == pytest.approx(evaluate(problem), rel=1e-12)
    shifted = evaluate(problem, train_means=means.roll(1, 0))
    differing = {name for name, value in evaluate(problem).items() if value != pytest.approx(shifted[name], rel=1e-12)}
    assert differing == OF_THE_NEAREST
    means[1] = torch.nan
    _, targets, weight, _ = problem.tensors
    decided = evaluate(dataclasses.replace(problem, bias=np.where(np.arange(6) == 1, 1e6, 0)), train_means=means)
    assert decided["nc4/ncc_mismatch"] == 1  # the classifier always says 1, the nearest mean never


def test_the_number_of_classes_comes_from_whatever_is_given_by_class():
    features, targets, weight, bias = references.draw_problem(0, sizes=(25, 18, 12, 9, 6, 0)).tensors
    by_counts = collapse_metrics(features, targets, class_counts=COUNTS)
    assert by_counts == collapse_metrics(features, targets, class_counts=COUNTS, num_classes=6)
    assert "imbalance/minority_cosine" in collapse_metrics(features, targets, weight)
    with pytest.raises(ValueError, match="class_counts must hold 5 sizes"):
        collapse_metrics(features, targets, class_counts=COUNTS, num_classes=5)


def test_the_metrics_of_moments_are_a_part_of_all():
    features, targets, weight, bias = PROBLEMS["ordinary"].tensors
    moments = ClassMoments.from_features(features, targets, 6)
    found, whole = moment_metrics(moments, weight, bias, class_counts=COUNTS), evaluate(PROBLEMS["ordinary"])
    assert found == pytest.approx({name: whole[name] for name in found}, rel=1e-12)  # the scatter is summed otherwise
    missing = {name for name in whole if name.startswith(("acc/", "prior/", "margin/", "nc4/", "nc5/", "calibration/"))}
    assert set(whole) - set(found) == missing | {"nc1/numerical_rank"}


@pytest.mark.parametrize("case", PROBLEMS)
def test_one_metric_alone_is_what_it_is_among_all(case):
    """Without VCI the scatter is never built: nc1/pinv then comes from the samples."""
    whole = evaluate(PROBLEMS[case])
    for name in references.METRICS:
        alone = evaluate(PROBLEMS[case], only=[name])
        assert alone == pytest.approx({name: whole[name]} if name in whole else {}, rel=1e-9), name
    assert evaluate(PROBLEMS[case], only=[]) == {}


@pytest.mark.parametrize(
    "only, built",
    [
        (None, ["class by class"]),
        (["nc1/vci"], ["with the moments"]),
        (["nc1/vci", "nc1/numerical_rank", "nc1/pinv"], ["class by class"]),
        (["nc1/numerical_rank", "nc1/pinv", "nc4/ncc_mismatch"], []),
    ],
)
def test_the_scatter_is_built_once_and_only_where_needed(monkeypatch, only, built):
    from_features, ratios, found = ClassMoments.from_features, analysis.spectral_ratios, []

    def with_moments(*tensors, scatter=True):
        found.extend(["with the moments"] * scatter)
        return from_features(*tensors, scatter=scatter)

    def class_by_class(*samples, scatter=None):
        found.extend(["class by class"] * (scatter is not None))
        return ratios(*samples, scatter=scatter)

    monkeypatch.setattr(ClassMoments, "from_features", with_moments)
    monkeypatch.setattr(analysis, "spectral_ratios", class_by_class)
    evaluate(PROBLEMS["ordinary"], ood_features=None, only=only)
    assert found == built


def test_moments_that_are_known_are_not_computed_again(monkeypatch):
    features, targets, *_ = PROBLEMS["ordinary"].tensors
    known = ClassMoments.from_features(features, targets, 6)
    whole = evaluate(PROBLEMS["ordinary"], ood_features=None)
    monkeypatch.setattr(ClassMoments, "from_features", None)
    assert evaluate(PROBLEMS["ordinary"], ood_features=None, moments=known) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_scatter_that_the_moments_lack_is_taken_from_the_samples(case):
    features, targets, *_ = PROBLEMS[case].tensors
    bare = ClassMoments.from_features(features, targets, len(PROBLEMS[case].weight), scatter=False)
    assert evaluate(PROBLEMS[case], moments=bare) == pytest.approx(evaluate(PROBLEMS[case]), rel=1e-12)


def test_moments_without_a_scatter_have_the_metrics_that_need_none():
    features, targets, weight, bias = PROBLEMS["ordinary"].tensors
    full = moment_metrics(ClassMoments.from_features(features, targets, 6), weight, bias)
    bare = ClassMoments.from_features(features, targets, 6, scatter=False)
    need_it = {"nc1/vci", "nc1/pinv", "squared_error/within", "squared_error/means", "squared_error/classifier"}
    assert moment_metrics(bare, weight, bias) == {name: full[name] for name in full.keys() - need_it}
    assert bare.merge(bare).within_scatter is None


def test_an_unknown_metric_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="unknown metric 'nc1/pinvs'. Did you mean 'nc1/pinv'"):
        evaluate(PROBLEMS["ordinary"], only=["nc1/pinvs"])


# What comes in.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_taken_at_its_word_and_measured_in_float64(dtype):
    features, targets, *classifier = PROBLEMS["ordinary"].tensors
    low = [x.to(dtype) for x in (features, *classifier)]
    exact = [x.double() for x in low]
    found = collapse_metrics(low[0], targets.to(torch.uint8), *low[1:], class_counts=COUNTS)
    assert found == collapse_metrics(exact[0], targets, *exact[1:], class_counts=torch.tensor(COUNTS))
    with torch.autocast("cpu", torch.bfloat16):
        assert found == collapse_metrics(low[0], targets, *low[1:], class_counts=COUNTS)


@pytest.mark.filterwarnings("error")
def test_tensors_in_training_are_measured_without_a_graph_and_left_alone():
    tensors = PROBLEMS["ordinary"].tensors
    copies = [x.clone() for x in tensors]
    training = [x.requires_grad_() if x.is_floating_point() else x for x in tensors]
    assert collapse_metrics(*training) == collapse_metrics(*copies)
    for after, before in zip(tensors, copies, strict=True):
        assert torch.equal(after, before)


FEATURES, TARGETS, WEIGHT, BIAS = PROBLEMS["ordinary"].tensors
UNFIT = {
    "features must be floats .*torch.int64": (FEATURES.long(), TARGETS),
    r"features must be floats .*\(73,\)": (FEATURES[:, 0], TARGETS),
    r"features must be floats .*\(0, 8\)": (FEATURES[:0], TARGETS[:0]),
    r"features must be floats .*\(73, 0\)": (FEATURES[:, :0], TARGETS),
    r"targets must be integers \(73,\).*\(72,\)": (FEATURES, TARGETS[1:]),
    "targets must be integers.*torch.float64": (FEATURES, TARGETS.double()),
    "targets must be integers.*torch.bool": (FEATURES, TARGETS > 2),
    r"targets must lie in 0..5 for 6 classes, got 0..6": (FEATURES, TARGETS + (TARGETS == 5), WEIGHT),
    r"targets must lie in 0..5 for 6 classes, got -1..5": (FEATURES, TARGETS - (TARGETS == 0).long()),
    r"weight must have shape \(6, 8\), got \(6, 7\)": (FEATURES, TARGETS, WEIGHT[:, 1:]),
    r"bias must have shape \(6,\), got \(5,\)": (FEATURES, TARGETS, WEIGHT, BIAS[1:]),
    "weight holds NaN or infinities": (FEATURES, TARGETS, WEIGHT * torch.inf),
    "bias holds NaN or infinities": (FEATURES, TARGETS, WEIGHT, BIAS * torch.nan),
    "features hold NaN, infinities": (FEATURES / FEATURES.ge(-1), TARGETS, WEIGHT),
}


@pytest.mark.parametrize("message", UNFIT)
def test_unfit_tensors_are_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        collapse_metrics(*UNFIT[message])


@pytest.mark.parametrize("counts", [[1, 2, 3], [1, 2, 3, 4, 5, -6], [1, 2, 3, 4, 5, math.nan]])
def test_unfit_class_counts_are_refused(counts):
    with pytest.raises(ValueError, match="class_counts must hold 6 sizes >= 0, got"):
        collapse_metrics(FEATURES, TARGETS, WEIGHT, class_counts=counts)


def test_unfit_train_means_are_refused():
    with pytest.raises(ValueError, match=r"train_means must have shape \(6, 8\), got \(5, 8\)"):
        collapse_metrics(FEATURES, TARGETS, WEIGHT, train_means=WEIGHT[1:])


def test_the_metrics_need_torch_and_nothing_heavier():
    """torchmetrics alone takes seconds to import, and draws matplotlib and torchvision along."""
    program = """
import sys, torch
before = set(sys.modules)
import ncflow.metrics
ncflow.metrics.collapse_metrics(torch.eye(3), torch.arange(3))
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(loaded & {"torchmetrics", "matplotlib", "torchvision", "mlflow", "timm", "jax", "datasets", "scipy"}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_not_in_the_package():
    with pytest.raises(ImportError, match="NeuralColapse"):
        from ncflow.metrics import NeuralColapse  # noqa: F401


@pytest.mark.slow
def test_a_thousand_classes_are_feasible():
    """K = 1,000, d = 256, N = 10,000: well under a minute, where K²·d or N·K·d intermediate tensors would not be."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(10_000) % 1000
    weight = torch.randn(1000, 256, generator=generator)
    features = weight[targets] + 0.1 * torch.randn(10_000, 256, generator=generator)
    found = collapse_metrics(features, targets, weight)
    assert found["acc/overall"] == 1
    slopes = {"imbalance/norm_slope", "imbalance/norm_slope_means"}
    absent = ETFS | ORTHOGONAL | MANY_CLASSES | slopes | {"nc5/ood_cosine"} | of_group("many") | of_group("medium")
    assert set(references.METRICS) - set(found) == absent


ARRAYS = {
    "arrays": lambda a: a,
    "read-only": lambda a: (a.setflags(write=False), a)[1],
    "reversed twice": lambda a: a[::-1].copy()[::-1],
    "of the other byte order": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "columns first": lambda a: np.asfortranarray(a),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64"])
def test_arrays_and_targets_of_any_width_give_the_same_numbers(kind, dtype):
    problem = PROBLEMS["ordinary"]
    expected = collapse_metrics(*problem.tensors)
    features, targets, weight, bias = (tensor.numpy().copy() for tensor in problem.tensors)
    arrays = (features, targets.astype(dtype), weight, bias)
    found = collapse_metrics(*map(ARRAYS[kind], arrays))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int16])
def test_tensors_of_targets_of_any_width_give_the_same_numbers(dtype):
    features, targets, *classifier = PROBLEMS["ordinary"].tensors
    expected = collapse_metrics(features, targets, *classifier)
    assert collapse_metrics(features, targets.to(dtype), *classifier) == expected
