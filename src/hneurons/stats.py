"""Intervals, paired differences and effect sizes. Every number a study prints comes from here, with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata
from scipy.stats import t as student

Floats = NDArray[np.float64]
Metric = Callable[[Floats, NDArray[np.bool_], Floats], Floats]
"""(scores (n,), positive (n,), weights (draws, n)) -> value of each draw (draws,), NaN where undefined."""


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % interval and the number of examples behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> dict[str, float | int | None]:
        """Interval object of the run folder; undefined numbers are null."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {**{k: round(v, 6) if math.isfinite(v) else None for k, v in numbers.items()}, "n": self.n}


def weighted_auroc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve of each row of example weights; ties count half."""
    # Sums of weights between distinct scores; the pairs then follow from cumulated sums, for all draws at once.
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    sorted_weights, sorted_positive = weights[:, order], positive[order]
    positives = np.add.reduceat(sorted_weights * sorted_positive, starts, axis=1)
    negatives = np.add.reduceat(sorted_weights * ~sorted_positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = (positives * (below + 0.5 * negatives)).sum(axis=1)
    total = positives.sum(axis=1) * negatives.sum(axis=1)
    return np.divide(pairs, total, out=np.full(len(weights), np.nan), where=total > 0)


def weighted_auprc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Average precision of each row of example weights (area under precision over recall, as a step function)."""
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(-scores, kind="stable")
    sorted_scores = scores[order]
    last = np.append(sorted_scores[1:] != sorted_scores[:-1], True)  # thresholds lie between distinct scores
    hits = np.cumsum(weights[:, order] * positive[order], axis=1)[:, last]
    flagged = np.cumsum(weights[:, order], axis=1)[:, last]
    gained = np.diff(hits, axis=1, prepend=0.0)
    precision = np.divide(hits, flagged, out=np.zeros_like(hits), where=flagged > 0)
    total = hits[:, -1]
    return np.divide((precision * gained).sum(axis=1), total, out=np.full(len(weights), np.nan), where=total > 0)


def accuracy_at(threshold: float) -> Metric:
    """Metric: share of examples on the right side of `threshold` (flagged when the score reaches it)."""

    def accuracy(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
        right = (scores >= threshold) == positive
        total = weights.sum(axis=1)
        return np.divide(weights @ right, total, out=np.full(len(weights), np.nan), where=total > 0)

    return accuracy


def cluster_weights(clusters: Sequence[object], draws: int, seed: int) -> Floats:
    """Bootstrap weights (draws, n): whole clusters (questions) are drawn with replacement."""
    _, index = np.unique(np.asarray([str(cluster) for cluster in clusters]), return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    rng = np.random.default_rng(seed)
    picks = rng.multinomial(count, np.full(count, 1.0 / count), size=draws) if count else np.zeros((draws, 0))
    return picks[:, index].astype(np.float64)


@dataclass(frozen=True)
class Bootstrap:
    """One set of resamples, shared by every metric so that differences are paired."""

    positive: NDArray[np.bool_]
    weights: Floats
    """(draws, n)"""

    @classmethod
    def of(cls, positive: ArrayLike, clusters: Sequence[object], *, draws: int = 2000, seed: int = 0) -> Bootstrap:
        """Resamples of examples with these labels, clustered by question."""
        return cls(np.asarray(positive, dtype=bool), cluster_weights(clusters, draws, seed))

    def distribution(self, metric: Metric, scores: ArrayLike) -> tuple[float, Floats]:
        """The metric on the data itself and on each resample."""
        values = np.asarray(scores, dtype=np.float64)
        point = metric(values, self.positive, np.ones((1, len(values))))[0]
        return float(point), metric(values, self.positive, self.weights)

    def interval(self, metric: Metric, scores: ArrayLike) -> Interval:
        """Percentile interval of the metric."""
        return percentile_interval(*self.distribution(metric, scores), len(self.positive))

    def difference(self, metric: Metric, scores: ArrayLike, others: Sequence[ArrayLike]) -> Interval:
        """The metric of `scores` minus the mean metric of `others`, paired over the same resamples."""
        point, draws = self.distribution(metric, scores)
        rest = [self.distribution(metric, other) for other in others]
        mean_point = float(np.mean([value for value, _ in rest]))
        mean_draws = np.mean([values for _, values in rest], axis=0)
        return percentile_interval(point - mean_point, draws - mean_draws, len(self.positive))


def quantile_groups(values: Floats, most: int) -> NDArray[np.intp]:
    """The group of each value, 0 the lowest: its rank among the distinct values, or at most `most` quantile groups.

    Equal values are never parted, so groups can be fewer and of unequal size.
    """
    distinct = np.unique(values)
    edges = distinct
    if len(distinct) > most:
        # In whole numbers: 0.55 * 400 is 220.00000000000003, and `np.quantile` would take the next value.
        edges = np.sort(values)[-(-np.arange(1, most) * len(values) // most) - 1]
    return np.unique(np.searchsorted(np.unique(edges), values), return_inverse=True)[1]


def stratified_auroc(strata: NDArray[Any]) -> Metric:
    """Metric: share of pairs of a positive and a negative *of the same stratum* that are in order; ties count half.

    Every pair counts alike, so a stratum's weight is the number of its pairs. NaN without any.
    """
    groups = [np.flatnonzero(strata == name) for name in np.unique(strata)]

    def metric(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
        ordered, total = np.zeros(len(weights)), np.zeros(len(weights))
        for rows in groups:
            here = weights[:, rows]
            pairs = (here @ positive[rows]) * (here @ ~positive[rows])
            if pairs.any():
                ordered += pairs * np.nan_to_num(weighted_auroc(scores[rows], positive[rows], here))
                total += pairs
        return np.divide(ordered, total, out=np.full(len(weights), np.nan), where=total > 0)

    return metric


def rank_correlation(values: Floats) -> Metric:
    """Metric: Spearman's correlation of the scores with `values`, whatever the labels; NaN where one is constant."""

    def metric(scores: Floats, _: NDArray[np.bool_], weights: Floats) -> Floats:
        total = weights.sum(axis=1, keepdims=True)
        share = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
        first, second = (_weighted_ranks(each, share) for each in (scores, values))
        first -= (share * first).sum(axis=1, keepdims=True)
        second -= (share * second).sum(axis=1, keepdims=True)
        size = np.sqrt((share * first**2).sum(axis=1) * (share * second**2).sum(axis=1))
        shared = (share * first * second).sum(axis=1)
        return np.divide(shared, size, out=np.full(len(weights), np.nan), where=size > 1e-12)

    return metric


def _weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """Mid-ranks of (n,) values in each row of (draws, n) weights."""
    distinct, place = np.unique(values, return_inverse=True)
    if not len(distinct):
        return np.zeros_like(weights)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(distinct)))
    sums = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(sums, axis=1) - sums / 2)[:, place]


def percentile_interval(value: float, draws: Floats, n: int) -> Interval:
    """A value with the 95 % interval of its resamples; undefined ones are left out."""
    known = draws[np.isfinite(draws)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    return Interval(value, float(low), float(high), n)


def minimum_detectable_auroc(positives: int, negatives: int, *, power: float = 0.8) -> float:
    """Smallest AUROC that a two-sided 5 % test against 0.5 finds with this power.

    Uses the standard error of the Mann-Whitney statistic under the null (Hanley & McNeil 1982); 1.0 if never.
    """
    if not positives or not negatives:
        return 1.0
    error = math.sqrt((positives + negatives + 1) / (12 * positives * negatives))
    return min(1.0, 0.5 + float(norm.ppf(0.975) + norm.ppf(power)) * error)


# -- curves: a value of each item at each alpha ---------------------------------------------------------


def weighted_means(values: Floats, weights: Floats) -> Floats:
    """Mean of each column under each row of item weights: (n, k) and (draws, n) -> (draws, k).

    NaN marks a value that an item lacks; a column without any is NaN.
    """
    known = np.isfinite(values)
    sums, counts = weights @ np.where(known, values, 0.0), weights @ known.astype(np.float64)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def slope_weights(x: ArrayLike) -> Floats:
    """Numbers w with which `w @ y` is the least-squares slope of y over x: (k,); NaN for fewer than two places."""
    places = np.asarray(x, dtype=np.float64)
    deviations = places - (places.sum() / max(len(places), 1))
    size = float((deviations**2).sum())
    return deviations / size if size > 1e-12 else np.full(len(deviations), np.nan)


def curve_ranks(x: ArrayLike, curves: Floats) -> Floats:
    """Spearman's correlation of each curve with x: (draws, k) -> (draws,); NaN for a flat or unknown curve."""
    ranks = np.apply_along_axis(rankdata, 1, curves)
    own = rankdata(np.asarray(x)) - (curves.shape[1] + 1) / 2
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    size = np.sqrt((centred**2).sum(axis=1) * (own**2).sum())
    found = np.divide(centred @ own, size, out=np.full(len(curves), np.nan), where=size > 1e-12)
    return np.where(np.isfinite(curves).all(axis=1), found, np.nan)


def slope_error(draws: Floats, weights: Floats, n: int) -> float:
    """Standard error of a slope from its resamples, never 0.

    Two made-up items are added, one that flips up and one that flips down with all its weight: where no item moved,
    the resamples alone would be certain that none ever does (after Agresti & Coull's "plus two").

    Args:
        draws: the slope of each resample.
        weights: those of `slope_weights`.
        n: items.
    """
    known = draws[np.isfinite(draws)]
    most = float(weights[weights > 0].sum())
    spread = float(known.var()) if len(known) else math.inf
    return math.sqrt(spread + 2 * (most / (n + 2)) ** 2)


def minimum_detectable(error: float, *, power: float = 0.8) -> float:
    """Smallest effect that a two-sided 5 % test against 0 finds with this power, given its standard error."""
    return float(norm.ppf(0.975) + norm.ppf(power)) * error


def one_more(values: Sequence[float]) -> tuple[float, float]:
    """Mean of some values, and how far above it the 95 % prediction interval for one more of their kind reaches.

    t distribution, as for a single case against a small group (Crawford & Howell 1998); NaN for fewer than two values.
    """
    count = len(values)
    if count < 2:
        return (float(np.mean(values)) if count else math.nan), math.nan
    reach = float(student.ppf(0.975, count - 1)) * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / count)
    return float(np.mean(values)), reach
