"""Cross-entropy on frequent and rare classes. Below a threshold the rare classifiers coincide: minority collapse.

The problem is symmetric in the classes of a group g, which has K_g of the K classes. So a sample of class y in group g
has logits α_g (e_y - 1_g/K_g) + δ_g (1_g - K_g/K), with four numbers in total. Let q_g be the probability outside of
its group, and m_g as in `pressure`. The optimum has p_own - p_sibling = 1 - m_g, or α_g = 0 where m_g >= 1. It also has
δ_A : δ_B = q_A : q_B on the ellipse Σ_g K_g (q_g/m_g)² = K_A K_B/K. The remaining unknown is an angle on the ellipse,
found by bisection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from ncflow.theory.logs import log_one_minus, log_one_plus
from ncflow.theory.optimum import Counts, Optimum, check_problem, log_pressure, optimum_of_logits, shown
from ncflow.theory.roots import rising_root


def step_ce_optimum(class_counts: Counts, *, lambda_w: float, lambda_h: float) -> Optimum:
    """The optimum of cross-entropy without bias on classes of exactly two sizes, in any order.

    The classifiers of a group of size n coincide exactly when n <= N² λ_W λ_H. Three classes of 200 and three of n_B,
    N² λ_W λ_H = 10: the cosine of rare classifiers is 1, .688, .420, .208, .048 at n_B = 8, 12, 16, 24, 40. Raises
    ValueError for other than two sizes. Fang, He, Long and Su 2021; Hong and Ling 2023.
    """
    counts = check_problem(class_counts, lambda_w, lambda_h)
    if len(set(counts.tolist())) != 2:
        raise ValueError(f"expected classes of exactly two sizes, got class_counts={shown(counts)}")
    frequent, log_m = counts == counts.max(), log_pressure(counts, lambda_w=lambda_w, lambda_h=lambda_h)
    members = [frequent, ~frequent]
    groups = [_Group(int(of.sum()), int((~of).sum()), log_m[of][0].item()) for of in members]
    logits = torch.empty(len(counts), len(counts), dtype=torch.float64, device=counts.device)
    for of, group, (separation, gap) in zip(members, groups, _solve(*groups), strict=True):
        indicator = of.double()
        within = indicator.diag()[of] - indicator / group.num_classes
        logits[of] = separation * within + gap * (indicator - group.num_classes / len(counts))
    return optimum_of_logits(logits, counts, lambda_w=lambda_w, lambda_h=lambda_h)


@dataclass(frozen=True)
class _Group:
    """Classes of one size, as functions of log t. t = q/room in (0, 1) is q relative to its upper limit, the room.

    Uses logarithms, because m_g and q of vanishing weight decay are out of the range of float64.
    """

    num_classes: int
    num_others: int
    log_pressure: float

    @property
    def log_room(self) -> float:
        """log of the upper limit of q: m_g, or 1 where the classes of the group coincide."""
        return min(self.log_pressure, 0.0) if self.num_classes > 1 else 0.0

    @property
    def log_reach(self) -> float:
        """log t on the half axis of the ellipse, where q of the other group is 0."""
        share = self.num_others / (self.num_classes + self.num_others)
        return self.log_pressure - self.log_room + math.log(share) / 2

    def separation(self, log_t: float) -> float:
        """α, the logit of a sample's own class minus those of its siblings."""
        if not self.log_room:
            return 0.0
        log_sibling = self.log_room + log_one_minus(log_t) - math.log(self.num_classes)
        return log_one_plus(log_one_minus(self.log_room) - log_sibling)

    def gap(self, log_t: float) -> float:
        """δ, the mean logit of the own group minus that of the other. Falls from +inf at t = 0 to -inf at t = 1."""
        if log_t >= 0:
            return -math.inf
        odds = math.log(self.num_others / self.num_classes) + log_one_minus(log_t) - log_t
        return odds + self.separation(log_t) / self.num_classes


def _solve(a: _Group, b: _Group) -> list[tuple[float, float]]:
    """α and δ of both groups at the optimum."""

    def on_ellipse(log_slope: float) -> tuple[float, float]:
        """log t of both groups, half axes times cosine and sine of the angle whose tangent is e^log_slope."""
        cosine, sine = (-log_one_plus(sign * log_slope) / 2 for sign in (2, -2))
        return a.log_reach + cosine, b.log_reach + sine

    def imbalance(log_slope: float) -> float:
        log_a, log_b = on_ellipse(log_slope)
        log_ratio = log_a + a.log_room - log_b - b.log_room  # of q_a to q_b
        scale = max(log_ratio, 0.0)
        return a.gap(log_a) * math.exp(-scale) - b.gap(log_b) * math.exp(log_ratio - scale)

    on_it = on_ellipse(rising_root(imbalance, -STEEPEST, STEEPEST))
    if min(a.gap(on_it[0]), b.gap(on_it[1])) > 0:
        return [(group.separation(log_t), group.gap(log_t)) for group, log_t in zip((a, b), on_it, strict=True)]
    # One of the gaps is negative on the whole ellipse. The optimum lies inside, where the groups merge.
    return [(g.separation(rising_root(partial(_minus_gap, g), -STEEPEST, 0)), 0.0) for g in (a, b)]


def _minus_gap(group: _Group, log_t: float) -> float:
    return -group.gap(log_t)


STEEPEST = 100.0  # log of the largest tangent: class sizes of 1e30 : 1 need 40
