"""The table of all collapse metrics: every name and its formula of an analysis, None where it is not defined."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ncflow.metrics import drift, imbalance, nc1, nc2, nc3, nc4, nc5, squared_error
from ncflow.metrics.accuracy import GROUPS, SHOTS
from ncflow.metrics.analysis import Analysis
from ncflow.metrics.calibration import expected_calibration_error
from ncflow.metrics.frame import Frame
from ncflow.metrics.moments import ClassMoments

Formula = Callable[[Analysis], Tensor | None]


def _of_means(formula: Callable[[ClassMoments], Tensor]) -> Formula:
    return lambda a: formula(a.present) if a.means else None


def _of_centered_means(formula: Callable[[Frame], Tensor | None]) -> Formula:
    return lambda a: formula(a.means) if a.means else None


def _of_rows(formula: Callable[[Frame], Tensor | None]) -> Formula:
    return lambda a: formula(a.rows) if a.rows else None


def _of_both(formula: Callable[[Frame, Frame], Tensor | None]) -> Formula:
    return lambda a: formula(a.dual_rows, a.means) if a.dual_rows and a.means else None


def _of_group(formula: Callable[[ClassMoments, Tensor], Tensor]) -> Callable[[str, Analysis], Tensor | None]:
    return lambda group, a: formula(a.present, a.shot_groups[group]) if a.means and group in a.shot_groups else None


def _alignment_of_group(group: str, a: Analysis) -> Tensor | None:
    if not (a.dual_rows and a.means and group in a.shot_groups):
        return None
    return nc3.alignments(a.dual_rows.rows, a.means.rows, a.means.blur)[a.shot_groups[group]].mean()


def _of_uncentered_means(formula: Callable[[Frame], Tensor | None]) -> Formula:
    return lambda a: formula(a.uncentered_means) if a.uncentered_means else None


def _accuracy(group: str, a: Analysis) -> Tensor | None:
    return a.accuracies.get(group)


def _pinv(a: Analysis) -> Tensor | None:
    return nc1.pinv(a.present, a.variances) if a.means and a.variances is not None else None


def _vci(a: Analysis) -> Tensor | None:
    return None if a.whitened is None else nc1.vci(a.present, a.whitened)


def _numerical_rank(a: Analysis) -> Tensor | None:
    return nc1.numerical_rank(a.spectra[0]) if a.samples else None


def _equinorm_gap(a: Analysis) -> Tensor | None:
    return (nc2.equinorm(a.rows.rows) - nc2.equinorm(a.means.rows)).abs() if a.rows and a.means else None


def _etf_gap(rows: Frame, means: Frame) -> Tensor | None:
    return nc3.etf_gap(rows, means) if rows.has_one_nearest_etf and means.has_one_nearest_etf else None


def _ncc_mismatch(a: Analysis) -> Tensor | None:
    return nc4.ncc_mismatch(a.decisions, a.nearest, a.nearest_rounding) if a.decisions and a.nearest_differ else None


def _ncc_accuracy(a: Analysis) -> Tensor | None:
    if a.samples is None or a.nearest_classes is None:
        return None
    return nc4.ncc_accuracy(a.nearest_classes, a.samples[1], a.nearest, a.nearest_rounding)


def _ood_cosine(a: Analysis) -> Tensor | None:
    if a.ood is None:
        return None
    return nc5.ood_cosine(a.present.means, a.ood.means[0], a.present.rounding.level(), a.ood.rounding.level())


def _least_squares(part: int, a: Analysis) -> Tensor | None:
    return None if a.least_squares is None else a.least_squares[part]


def _squared_error_of_classifier(a: Analysis) -> Tensor | None:
    if a.least_squares is None or a.within_cov is None or a.classifier is None:
        return None
    loss = squared_error.loss(a.present, a.within_cov, *(rows[a.moments.counts > 0] for rows in a.classifier))
    return (loss - sum(a.least_squares)).clamp(min=0)


def _margins(a: Analysis) -> Tensor | None:
    defined = a.decisions and a.rows and a.rows.differs and a.features_differ
    return a.decisions.margins if a.decisions and defined else None


def _calibration(a: Analysis) -> Tensor | None:
    if a.samples is None or a.decisions is None:
        return None
    return expected_calibration_error(a.decisions.confidences, a.decisions.predictions == a.samples[1])


def _nll(a: Analysis) -> Tensor | None:
    return a.decisions.losses.mean() if a.decisions else None


def _seli_error_weight(a: Analysis) -> Tensor | None:
    return imbalance.seli_error(a.rows.gram, a.seli[0]) if a.rows and a.seli else None


def _seli_error_means(a: Analysis) -> Tensor | None:
    return imbalance.seli_error(a.means.gram, a.seli_means) if a.means and a.seli_means is not None else None


def _norm_slope(frame: Frame | None, sizes: Tensor) -> Tensor | None:
    if frame is None or not bool((sizes > 0).all() and (sizes != sizes[0]).any()):
        return None
    return imbalance.norm_slope(frame.rows, sizes, frame.blur)


def _majority_minority_cosine(a: Analysis) -> Tensor | None:
    if a.rows is None or len(a.class_counts) < 3:
        return None
    return imbalance.majority_minority_cosine(a.rows.rows, a.class_counts)


FRAME_METRICS: dict[str, Callable[[Frame], Tensor | None]] = {
    "nc2/equinorm": lambda frame: nc2.equinorm(frame.rows),
    "nc2/equiangularity": lambda frame: nc2.equiangularity(frame.rows, frame.blur) if len(frame.rows) > 2 else None,
    "nc2/maximal_angle": lambda frame: nc2.maximal_angle(frame.rows, frame.blur),
    "nc2/etf_error": lambda frame: nc2.etf_error(frame.gram),
    "nc2/etf_distance": lambda frame: frame.etf_distance if frame.has_nearest_etf else None,
}
UNCENTERED_METRICS: dict[str, Callable[[Frame], Tensor | None]] = {
    "nc2/orthogonal_error": lambda frame: nc2.orthogonal_error(frame.gram),
    "nc2/orthogonal_distance": lambda frame: frame.orthogonal_distance if frame.has_room_for_orthogonal_rows else None,
}
METRICS: dict[str, Formula] = {
    **{f"acc/{group}": partial(_accuracy, group) for group in GROUPS},
    "nc1/pinv": _pinv,
    "nc1/quotient": _of_means(nc1.quotient),
    "nc1/cdnv": _of_means(nc1.cdnv),
    **{f"nc1/quotient_{group}": partial(_of_group(nc1.quotient_of), group) for group in SHOTS},
    **{f"nc1/cdnv_{group}": partial(_of_group(nc1.cdnv_of), group) for group in SHOTS},
    "nc1/vci": _vci,
    "nc1/numerical_rank": _numerical_rank,
    **{f"{name}_means": _of_centered_means(formula) for name, formula in FRAME_METRICS.items()},
    **{f"{name}_weight": _of_rows(formula) for name, formula in FRAME_METRICS.items()},
    **{f"{name}_means": _of_uncentered_means(formula) for name, formula in UNCENTERED_METRICS.items()},
    **{f"{name}_weight": _of_rows(formula) for name, formula in UNCENTERED_METRICS.items()},
    "nc2/equinorm_gap": _equinorm_gap,
    "nc2/gnc2_log": _of_centered_means(lambda frame: nc2.gnc2_log(frame.rows, frame.blur)),
    "nc2/gnc2_spread": _of_centered_means(
        lambda frame: nc2.gnc2_spread(frame.rows, frame.blur) if len(frame.rows) > 2 else None
    ),
    "nc3/self_duality": _of_both(lambda rows, means: nc3.self_duality(rows.rows, means.rows)),
    "nc3/etf_error": _of_both(lambda rows, means: nc3.etf_error(rows.rows, means.rows)),
    "nc3/alignment": _of_both(lambda rows, means: nc3.alignment(rows.rows, means.rows, means.blur)),
    **{f"nc3/alignment_{group}": partial(_alignment_of_group, group) for group in SHOTS},
    "nc3/uniformity": _of_both(lambda rows, means: nc3.uniformity(rows.rows, means.rows)),
    "nc3/etf_gap": _of_both(_etf_gap),
    "nc4/ncc_mismatch": _ncc_mismatch,
    "nc4/ncc_accuracy": _ncc_accuracy,
    "nc5/ood_cosine": _ood_cosine,
    "squared_error/within": partial(_least_squares, 0),
    "squared_error/means": partial(_least_squares, 1),
    "squared_error/classifier": _squared_error_of_classifier,
    "bias/collapse": lambda a: nc4.bias_collapse(*a.classifier, a.moments.sample_mean) if a.classifier else None,
    "margin/mean": lambda a: None if (margins := _margins(a)) is None else margins.mean(),
    "margin/min": lambda a: None if (margins := _margins(a)) is None else margins.min(),
    "drift/norm": lambda a: drift.norm(a.present),
    "drift/norm_balanced": lambda a: drift.norm_balanced(a.present),
    "drift/relative": lambda a: drift.relative(a.present),
    "imbalance/minority_cosine": lambda a: imbalance.minority_cosine(a.rows.rows, a.class_counts) if a.rows else None,
    "imbalance/majority_minority_cosine": _majority_minority_cosine,
    "imbalance/seli_error_weight": _seli_error_weight,
    "imbalance/seli_error_means": _seli_error_means,
    "imbalance/norm_slope": lambda a: _norm_slope(a.rows, a.class_counts),
    "imbalance/norm_slope_means": lambda a: _norm_slope(a.means, a.class_counts[a.moments.counts > 0]),
    "calibration/ece": _calibration,
    "calibration/nll": _nll,
}
SCATTER = {
    "nc1/vci",
    "squared_error/within",
    "squared_error/means",
    "squared_error/classifier",
}  # the metrics that need the whole within-class scatter
SPECTRA = {"nc1/numerical_rank"}  # those that look at each class alone, where its part of the scatter comes for free
