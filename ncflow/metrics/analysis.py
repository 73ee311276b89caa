"""An analysis: the measurements of a split and the values that several metrics share, each computed once on demand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ncflow.geometry import seli_frame
from ncflow.metrics import nc1, squared_error
from ncflow.metrics.accuracy import accuracies, class_recalls
from ncflow.metrics.frame import Frame
from ncflow.metrics.moments import ClassMoments, GramSum, variances_along, variances_of
from ncflow.metrics.nc4 import Decisions, decide, mean_gaps, nearest_classes
from ncflow.metrics.priors import prior_accuracies
from ncflow.metrics.rounding import EPS, Rounding, differ
from ncflow.metrics.shots import shot_groups
from ncflow.metrics.spectra import spectral_ratios


@dataclass(frozen=True)
class Analysis:
    """The moments of a split, optionally its samples and a classifier, and statistics of the training split.

    samples: features (N, d) and targets (N,). classifier: weight (K, d) and bias (K,) in float64. class_counts (K,).
    train_means (K, d), NaN for a class without one. ood: the moments of features of no known class, as a single class.
    scatter: whether Σ_W is requested; it is computed from the samples where the moments do not hold it. margins:
    whether the decisions have them. weight_eps and means_eps: the precision of the input weight and train_means. A
    property that is not defined is None.
    """

    moments: ClassMoments
    class_counts: Tensor
    samples: tuple[Tensor, Tensor] | None = None
    classifier: tuple[Tensor, Tensor] | None = None
    train_means: Tensor | None = None
    ood: ClassMoments | None = None
    scatter: bool = False
    margins: bool = False
    weight_eps: float = EPS
    means_eps: float = EPS

    @cached_property
    def present(self) -> ClassMoments:
        """The moments of the K' classes that have samples."""
        return self.moments.present()

    @cached_property
    def means(self) -> Frame | None:
        """The centered class means (K', d), None if they do not differ."""
        return self.present.frame if self.present.frame.differs else None

    @cached_property
    def rows(self) -> Frame | None:
        """The classifier's rows (K, d), None for a single class."""
        return self._classifier_frame(slice(None)) if self.classifier and len(self.class_counts) > 1 else None

    @cached_property
    def dual_rows(self) -> Frame | None:
        """The classifier's rows (K', d) of the classes that have samples."""
        seen = self.moments.counts > 0
        return self.rows if self.rows is None or bool(seen.all()) else self._classifier_frame(seen)

    def _classifier_frame(self, classes: Tensor | slice) -> Frame:
        assert self.classifier is not None
        weight = self.classifier[0][classes]
        return Frame(weight, Rounding.of(weight, self.weight_eps))

    @cached_property
    def spectra(self) -> tuple[Tensor, Tensor | None]:
        """Squared ratios of nuclear to Frobenius norm (K',) of each class, and Σ_W (d, d) if requested."""
        assert self.samples is not None
        wanted = self.scatter and self.moments.within_scatter is None
        total = GramSum(self.moments.means.shape[1], self.moments.means.device) if wanted else None
        ratios = spectral_ratios(*self.samples, self.moments, scatter=total)
        return ratios, None if total is None else total.total() / self.moments.num_samples

    @cached_property
    def within_cov(self) -> Tensor | None:
        """Σ_W (d, d)."""
        if self.moments.within_scatter is not None:
            return self.moments.within_cov
        return self.spectra[1] if self.samples and self.scatter else None

    @cached_property
    def variances(self) -> Tensor | None:
        """Within-class variances along the axes of the means."""
        _, axes = self.present.between_axes
        if self.within_cov is not None:
            return variances_of(self.within_cov, axes)
        return variances_along(*self.samples, self.moments, axes) if self.samples else None

    @cached_property
    def whitened(self) -> Tensor | None:
        """The centered means (d, r), whitened by Σ_W. None if Σ_W is unknown or the means do not differ."""
        return nc1.whiten(self.present, self.within_cov) if self.means and self.within_cov is not None else None

    @cached_property
    def least_squares(self) -> tuple[Tensor, Tensor] | None:
        """The least squared error of any classifier: its part within classes, and its part of the class means."""
        return None if self.whitened is None else squared_error.least_squares(self.present, self.whitened)

    @cached_property
    def uncentered_means(self) -> Frame | None:
        """The class means (K', d), not centered. None if they do not differ."""
        return Frame(self.present.means, self.present.rounding) if self.means else None

    @cached_property
    def shot_groups(self) -> dict[str, Tensor]:
        """Masks (K',) of the many-, medium- and few-shot classes among those with samples, without empty groups."""
        groups = shot_groups(self.class_counts[self.moments.counts > 0])
        return {name: group for name, group in groups.items() if bool(group.any())}

    @cached_property
    def seli(self) -> tuple[Tensor, Tensor]:
        """SELI's classifier and class means (K, K). Every class needs training samples."""
        return seli_frame(self.class_counts, device=self.class_counts.device)

    @cached_property
    def seli_means(self) -> Tensor:
        """SELI's class means (K', K') of the classes that have samples, all of which need training samples."""
        seen = self.moments.counts > 0
        if bool(seen.all()):
            return self.seli[1]
        return seli_frame(self.class_counts[seen], device=self.class_counts.device)[1]

    @cached_property
    def nearest(self) -> Tensor:
        """The class means (K, d) that samples are compared with for the nearest class mean."""
        return self.moments.means_or_nan if self.train_means is None else self.train_means

    @cached_property
    def nearest_rounding(self) -> Rounding:
        """The rounding of the means in `nearest`."""
        if self.train_means is None:
            return self.present.rounding
        known = self.train_means[self.train_means.isfinite().all(1)]
        return Rounding.of(known, torch.clamp(self.moments.eps, min=self.means_eps))

    @cached_property
    def nearest_gaps(self) -> Tensor:
        """The distance (K,) of each mean in `nearest` to the nearest other one, NaN for a class without a mean."""
        separation = self.present.frame.pairs[2]
        if self.train_means is not None or separation is None:
            return mean_gaps(self.nearest, self.moments.sample_mean)
        gaps = torch.full_like(self.moments.counts, torch.nan)
        gaps[self.moments.counts > 0] = separation.nearest
        return gaps

    @cached_property
    def nearest_differ(self) -> bool:
        """Whether `nearest` holds several different means, so that a nearest one is defined."""
        known = self.nearest[self.nearest.isfinite().all(1)]
        return len(known) > 1 and differ(known, self.nearest_rounding)

    @cached_property
    def nearest_classes(self) -> Tensor | None:
        """The class (N,) of the nearest mean for every sample, None if `nearest_differ` is false."""
        if self.samples is None or not self.nearest_differ:
            return None
        if self.decisions is not None:
            return self.decisions.nearest_means
        return nearest_classes(*self.samples, self.nearest, self.moments.sample_mean, self.nearest_gaps)

    @cached_property
    def features_differ(self) -> bool:
        """Whether the features differ. Equal features have equal means, and a scatter that is only rounding."""
        spread = (self.present.within_traces / self.present.counts).max().sqrt()
        return self.means is not None or bool(spread > self.present.rounding.level())

    @cached_property
    def decisions(self) -> Decisions | None:
        """The classifier's decision for every sample."""
        if self.samples is None or self.classifier is None:
            return None
        blurs = self.rows.known_rounding.level() if self.rows else 0.0, self.present.rounding.level()
        center, gaps = self.moments.sample_mean, self.nearest_gaps
        return decide(*self.samples, *self.classifier, self.nearest, center, *blurs, gaps, with_margins=self.margins)

    @cached_property
    def accuracies(self) -> dict[str, Tensor]:
        """The accuracies of all groups that have a class."""
        if self.samples is None or self.decisions is None:
            return {}
        decided, targets = self.decisions, self.samples[1]
        return accuracies(decided.predictions, decided.ranks, targets, self.class_counts, recalls=self.recalls)

    @cached_property
    def prior_accuracies(self) -> dict[str, Tensor]:
        """The accuracy under each long-tailed test prior."""
        return {} if self.recalls is None else prior_accuracies(self.recalls, self.class_counts)

    @cached_property
    def recalls(self) -> Tensor | None:
        """The recall of each class (K,), NaN for a class without samples. None without samples or a classifier."""
        if self.samples is None or self.decisions is None:
            return None
        return class_recalls(self.decisions.predictions, self.samples[1], len(self.class_counts))
