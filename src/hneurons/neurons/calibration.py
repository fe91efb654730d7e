"""From scores to risk: Platt or isotonic, whichever predicts held-out answers better, and how far to trust it.

A risk is for classes of equal size, whatever the share of hallucinated answers it was fitted on: 0.5 is neutral.
`at_prevalence` turns it into the probability where hallucinations are rarer or more frequent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils.class_weight import compute_sample_weight

from hneurons.neurons.choose import need_both_classes
from hneurons.neurons.risk import Isotonic, Platt
from hneurons.stats import Bootstrap, Floats, Interval, Metric

Labels = NDArray[np.bool_]
LEAST_TO_CALIBRATE = 3  # of each class; a card from so few says so, and the verdict is "too little data"
LEAST_FOR_ISOTONIC = 100
"""Examples below which a step function through them is too rough to be worth comparing."""
FOLDS = 5


# -- fits -----------------------------------------------------------------------------------------


def platt(scores: Floats, hallucinated: Labels) -> Platt:
    """Platt scaling on held-out examples, classes weighted alike.

    A slope below zero would turn the probe round; it is set to zero then, and the risk says nothing, as it should.
    """
    spread = float(scores.std()) or 1.0
    model = LogisticRegression(C=1e3, class_weight="balanced").fit(scores[:, None] / spread, hallucinated)
    slope = float(model.coef_[0, 0]) / spread
    if slope <= 0:
        return Platt(slope=0.0, offset=0.0, n=len(scores))
    return Platt(slope=slope, offset=float(model.intercept_[0]), n=len(scores))


def isotonic(scores: Floats, hallucinated: Labels) -> Isotonic:
    """Isotonic regression on held-out examples, classes weighted alike.

    The risk stays 1 / (n + 2) away from 0 and 1: that n examples went one way is no certainty.
    """
    weights = compute_sample_weight("balanced", hallucinated)
    margin = 1 / (len(scores) + 2)
    model = IsotonicRegression(y_min=margin, y_max=1 - margin).fit(scores, hallucinated, sample_weight=weights)
    knots = zip(model.X_thresholds_.tolist(), model.y_thresholds_.tolist(), strict=True)
    return Isotonic(method="isotonic", knots=list(knots), n=len(scores))


def calibrate(
    scores: Floats, hallucinated: Labels, groups: Sequence[object] | None = None, *, seed: int = 0
) -> Platt | Isotonic:
    """The risk of a score, fitted on examples that the probe hasn't seen: Platt, or isotonic where that is better.

    Isotonic is chosen from `LEAST_FOR_ISOTONIC` examples on, when its cross-validated Brier score is lower than
    Platt's by more than one standard error. Both are recorded. Folds keep groups whole.

    Args:
        scores: Probe scores: (examples,).
        hallucinated: Their labels: (examples,).
        groups: Examples that never cross folds (`Example.group`); each its own by default.
        seed: Of the folds.

    Raises:
        TooFewExamplesError: a class has fewer than `LEAST_TO_CALIBRATE` examples.
    """
    need_both_classes(hallucinated, LEAST_TO_CALIBRATE, "in the validation split")
    straight = platt(scores, hallucinated)
    names = np.array([str(group) for group in (range(len(scores)) if groups is None else groups)])
    if len(scores) < LEAST_FOR_ISOTONIC or _fewest_groups(names, hallucinated) < 2 * FOLDS:
        return straight
    losses = _held_out_losses(scores, hallucinated, names, seed)
    weights = compute_sample_weight("balanced", hallucinated)
    brier = dict(zip(("platt", "isotonic"), (losses @ weights / weights.sum()).tolist(), strict=True))
    gains = (losses[0] - losses[1]) * weights
    by_group = np.bincount(np.unique(names, return_inverse=True)[1], gains)
    better = by_group.sum() > np.sqrt(len(by_group)) * by_group.std(ddof=1)
    chosen = isotonic(scores, hallucinated) if better else straight
    return chosen.model_copy(update={"brier": brier})


def _fewest_groups(groups: NDArray[np.str_], hallucinated: Labels) -> int:
    return min(len(set(groups[hallucinated])), len(set(groups[~hallucinated])))


def _held_out_losses(scores: Floats, hallucinated: Labels, groups: NDArray[np.str_], seed: int) -> Floats:
    """Squared error of Platt and of isotonic on each example while it is held out: (2, examples)."""
    losses = np.zeros((2, len(scores)))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for inside, outside in folds.split(scores[:, None], hallucinated, groups):
        for row, fit in enumerate((platt, isotonic)):
            risk = fit(scores[inside], hallucinated[inside]).risk(scores[outside])
            losses[row, outside] = (risk - hallucinated[outside]) ** 2
    return losses


# -- how well it is calibrated --------------------------------------------------------------------


def at_prevalence(risk: ArrayLike, prevalence: float, was: float = 0.5) -> Floats:
    """The probability of hallucination where a share `prevalence` of all answers is hallucinated, of the same shape.

    `was` is the share for which `risk` holds. Bayes' rule: the odds scale with the prior odds; scores are taken to be
    distributed within each class as before.
    """
    risk = np.asarray(risk, dtype=np.float64)
    up, down = risk * prevalence * (1 - was), (1 - risk) * (1 - prevalence) * was
    return np.divide(up, up + down, out=np.full(risk.shape, np.nan), where=up + down > 0)


def interval_at_prevalence(rate: Interval, prevalence: float, was: float) -> Interval:
    """`at_prevalence` of a share and of both ends of its interval."""
    value, low, high = at_prevalence([rate.value, rate.low, rate.high], prevalence, was).tolist()
    return Interval(value, low, high, rate.n)


def proportion(count: int, n: int) -> Interval:
    """`count` of `n` with the exact 95 % interval (Clopper & Pearson 1934); undefined for n = 0."""
    if not n:
        return Interval(np.nan, np.nan, np.nan, 0)
    low, high = binomtest(count, n).proportion_ci(method="exact")
    return Interval(count / n, float(low), float(high), n)


def equal_mass_bins(risk: Floats, bins: int) -> NDArray[np.intp]:
    """The bin of each risk, with as many examples in each bin as ties allow: (examples,), numbered from 0."""
    edges = np.quantile(risk, np.linspace(0, 1, bins + 1)[1:-1])
    return np.unique(np.searchsorted(edges, risk), return_inverse=True)[1]


def _class_weights(positive: Labels, weights: Floats, prevalence: float | None) -> Floats:
    """Weights (draws, n) scaled so that a share `prevalence` of each draw is positive; NaN where a class is missing."""
    if prevalence is None:
        return weights
    totals = np.stack([weights[:, ~positive].sum(axis=1), weights[:, positive].sum(axis=1)], axis=1)
    wanted = np.array([1 - prevalence, prevalence])
    both = (totals > 0).all(axis=1, keepdims=True)
    factors = np.divide(wanted, totals, out=np.full(totals.shape, np.nan), where=both)
    return weights * factors[:, positive.astype(int)]


def calibration_error(bin_of: NDArray[np.intp], prevalence: float | None = 0.5) -> Metric:
    """Metric: expected calibration error, the mean over bins of |share hallucinated - mean risk|, bins by their weight.

    `bin_of` is the bin of each example. With `prevalence`, examples are weighted to that share of hallucinated ones.
    """
    member = np.eye(int(bin_of.max()) + 1 if len(bin_of) else 0)[bin_of]

    def error(risk: Floats, positive: Labels, weights: Floats) -> Floats:
        weights = _class_weights(positive, weights, prevalence)
        gaps = np.abs((weights * (positive - risk)) @ member).sum(axis=1)
        total = weights.sum(axis=1)
        return np.divide(gaps, total, out=np.full(len(weights), np.nan), where=total > 0)

    return error


def brier(prevalence: float | None = 0.5) -> Metric:
    """Metric: mean squared difference between risk and label (Brier 1950), weighted as in `calibration_error`."""

    def score(risk: Floats, positive: Labels, weights: Floats) -> Floats:
        weights = _class_weights(positive, weights, prevalence)
        total = weights.sum(axis=1)
        return np.divide(weights @ (risk - positive) ** 2, total, out=np.full(len(weights), np.nan), where=total > 0)

    return score


def reliability(
    risk: Floats,
    hallucinated: Labels,
    clusters: Sequence[object],
    *,
    prevalence: float | None = 0.5,
    bins: int = 10,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Reliability diagram, expected calibration error and Brier score of test data (docs/guarantee.md).

    Args:
        risk: Risk of each answer for the share `prevalence` of hallucinated ones: (examples,).
        hallucinated: Labels: (examples,).
        clusters: Question ids, the unit of the bootstrap.
        prevalence: Examples are weighted to this share of hallucinated ones; None: they count as they are.
        bins: Of equal mass.
        draws: Resamples of the bootstrap.
        seed: Of the resamples.
    """
    bin_of = equal_mass_bins(risk, bins) if len(risk) else np.zeros(0, dtype=np.intp)
    error = calibration_error(bin_of, prevalence)
    resamples = Bootstrap.of(hallucinated, clusters, draws=draws, seed=seed)
    share = float(hallucinated.mean()) if len(risk) else np.nan
    weights = _class_weights(hallucinated, np.ones((1, len(risk))), prevalence)[0]
    rows: list[dict[str, Any]] = []
    for index in range(int(bin_of.max()) + 1 if len(risk) else 0):
        inside = bin_of == index
        rate = proportion(int(hallucinated[inside].sum()), int(inside.sum()))
        if prevalence is not None:
            rate = interval_at_prevalence(rate, prevalence, share)
        mean = float(np.average(risk[inside], weights=weights[inside])) if np.isfinite(weights).all() else None
        rows.append({"risk": None if mean is None else round(mean, 6), "rate": rate.to_json()})
    return {
        "n": len(risk),
        "prevalence": prevalence,
        "bins": rows,
        "ece": resamples.interval(error, risk).to_json(),
        "ece_if_calibrated": _chance_error(error, risk, share, prevalence, seed),
        "brier": resamples.interval(brier(prevalence), risk).to_json(),
    }


def _chance_error(error: Metric, risk: Floats, share: float, prevalence: float | None, seed: int) -> float | None:
    """Mean of the metric over labels drawn with these very risks: what chance alone makes of a perfect calibration."""
    if not 0 < share < 1:
        return None
    rng = np.random.default_rng(seed)
    chance = risk if prevalence is None else at_prevalence(risk, share, prevalence)
    drawn = [error(risk, rng.random(len(risk)) < chance, np.ones((1, len(risk))))[0] for _ in range(200)]
    known = np.array(drawn)[np.isfinite(drawn)]
    return round(float(known.mean()), 6) if len(known) else None
