"""Metrics against scikit-learn, intervals and power against simulation."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from hneurons.stats import (
    Bootstrap,
    Interval,
    accuracy_at,
    cluster_weights,
    minimum_detectable_auroc,
    weighted_auprc,
    weighted_auroc,
)


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, labels of both classes, and integer weights (draws, n) some of which are zero."""
    n = draw(st.integers(2, 25))
    values = st.integers(-3, 3) | st.floats(-1e6, 1e6, width=32)
    scores = draw(st.lists(values, min_size=n, max_size=n))
    positive = [True, False, *draw(st.lists(st.booleans(), min_size=n - 2, max_size=n - 2))]
    weights = draw(st.lists(st.lists(st.integers(0, 4), min_size=n, max_size=n), min_size=1, max_size=3))
    for row in weights:
        row[0], row[1] = max(row[0], 1), max(row[1], 1)
    return np.array(scores, float), np.array(positive), np.array(weights, float)


@settings(max_examples=150)
@given(scored())
def test_metrics_equal_scikit_learns(case: tuple[np.ndarray, np.ndarray, np.ndarray]):
    scores, positive, weights = case
    reference: dict[Any, Any] = {
        weighted_auroc: lambda w: roc_auc_score(positive, scores, sample_weight=w),
        weighted_auprc: lambda w: average_precision_score(positive, scores, sample_weight=w),
        accuracy_at(0.5): lambda w: accuracy_score(positive, scores >= 0.5, sample_weight=w),
    }
    for metric, wanted in reference.items():
        found = metric(scores, positive, weights)
        assert found.shape == (len(weights),)
        np.testing.assert_allclose(found, [wanted(row) for row in weights], atol=1e-12)


def test_a_perfect_and_a_useless_score():
    positive = np.array([False, False, True, True])
    ones = np.ones((1, 4))
    assert weighted_auroc(np.arange(4.0), positive, ones) == [1.0]
    assert weighted_auroc(-np.arange(4.0), positive, ones) == [0.0]
    assert weighted_auroc(np.zeros(4), positive, ones) == [0.5]
    assert weighted_auprc(np.zeros(4), positive, ones) == [0.5]


@pytest.mark.parametrize("flagged", [True, False])
@pytest.mark.parametrize("n", [1, 5])
def test_one_class_missing_is_undefined(flagged: bool, n: int):
    draws = Bootstrap.of(np.full(n, flagged), range(n), draws=100)
    interval = draws.interval(weighted_auroc, np.arange(n, dtype=float))
    assert all(map(math.isnan, (interval.value, interval.low, interval.high)))
    assert interval.to_json() == {"value": None, "low": None, "high": None, "n": n}
    difference = draws.difference(weighted_auroc, np.arange(n, dtype=float), [np.zeros(n)])
    assert difference.to_json()["value"] is None
    if not flagged:
        assert math.isnan(draws.interval(weighted_auprc, np.arange(n, dtype=float)).value)


def test_no_examples_at_all_is_undefined():
    draws = Bootstrap.of([], [], draws=100)
    for metric in (weighted_auroc, weighted_auprc, accuracy_at(0.0)):
        assert draws.interval(metric, []).to_json() == {"value": None, "low": None, "high": None, "n": 0}


def test_resamples_that_lack_a_class_are_left_out():
    # 1 of 6 is positive: about a third of the resamples have none.
    draws = Bootstrap.of([True, *[False] * 5], range(6), draws=300)
    _, values = draws.distribution(weighted_auroc, [9.0, 1, 2, 3, 4, 5])
    assert 60 < np.isnan(values).sum() < 150
    assert draws.interval(weighted_auroc, [9.0, 1, 2, 3, 4, 5]) == Interval(1.0, 1.0, 1.0, 6)


# -- the bootstrap ------------------------------------------------------------------------------------


def simulated(rng: np.random.Generator, n: int, auroc: float) -> tuple[np.ndarray, np.ndarray]:
    """Normal scores, half of them shifted so that the true AUROC is `auroc`."""
    positive = np.arange(n) % 2 == 0
    return rng.normal(size=n) + positive * math.sqrt(2) * norm.ppf(auroc), positive


@pytest.mark.parametrize("true", [0.6, 0.8])
def test_interval_holds_the_truth_about_95_times_in_100(true: float):
    rng = np.random.default_rng(7)
    inside = 0
    for seed in range(200):
        scores, positive = simulated(rng, 120, true)
        interval = Bootstrap.of(positive, range(120), draws=400, seed=seed).interval(weighted_auroc, scores)
        assert interval.low <= interval.value <= interval.high
        inside += interval.low <= true <= interval.high
    assert 0.90 <= inside / 200 <= 0.98


def test_interval_of_the_difference_holds_the_truth_about_95_times_in_100():
    # Two scores that share most of their noise: the pairing has to be used for the interval to be this narrow.
    rng = np.random.default_rng(8)
    inside, widths, lone = 0, [], []
    for seed in range(200):
        first, positive = simulated(rng, 120, 0.75)
        second = first - positive * math.sqrt(2) * (norm.ppf(0.75) - norm.ppf(0.65)) + 0.1 * rng.normal(size=120)
        true = 0.75 - norm.cdf(norm.ppf(0.65) / math.sqrt(1 + 0.01))  # var 1.01 each class
        draws = Bootstrap.of(positive, range(120), draws=400, seed=seed)
        interval = draws.difference(weighted_auroc, first, [second])
        inside += interval.low <= true <= interval.high
        widths.append(interval.high - interval.low)
        lone.append(np.diff([getattr(draws.interval(weighted_auroc, first), end) for end in ("low", "high")])[0])
    assert 0.90 <= inside / 200 <= 0.99
    assert np.mean(widths) < 0.6 * np.mean(lone)


def test_a_score_differs_from_itself_by_exactly_nothing():
    rng = np.random.default_rng(0)
    scores, positive = simulated(rng, 60, 0.7)
    draws = Bootstrap.of(positive, range(60), draws=500)
    for metric in (weighted_auroc, weighted_auprc, accuracy_at(0.3)):
        difference = draws.difference(metric, scores, [scores, scores])
        assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_difference_is_to_the_mean_of_the_others():
    rng = np.random.default_rng(1)
    scores, positive = simulated(rng, 80, 0.8)
    others = [rng.normal(size=80) for _ in range(3)]
    draws = Bootstrap.of(positive, range(80), draws=200)
    alone = [float(roc_auc_score(positive, other)) for other in others]
    found = draws.difference(weighted_auroc, scores, others)
    assert found.value == pytest.approx(roc_auc_score(positive, scores) - np.mean(alone))
    assert found.low < found.value < found.high


def test_copies_of_rows_inside_clusters_add_no_certainty():
    rng = np.random.default_rng(2)
    scores, positive = simulated(rng, 100, 0.7)
    once = Bootstrap.of(positive, range(100), draws=1000).interval(weighted_auroc, scores)
    clusters = list(np.repeat(np.arange(100), 4))
    many = Bootstrap.of(np.repeat(positive, 4), clusters, draws=1000).interval(weighted_auroc, np.repeat(scores, 4))
    assert many.value == pytest.approx(once.value)
    assert many.high - many.low == pytest.approx(once.high - once.low, rel=1e-9)
    # The same rows taken for independent questions would look twice as certain.
    naive = Bootstrap.of(np.repeat(positive, 4), range(400), draws=1000).interval(weighted_auroc, np.repeat(scores, 4))
    assert naive.high - naive.low < 0.65 * (many.high - many.low)


def test_clusters_are_drawn_whole_and_by_seed():
    clusters = ["a", "b", "a", "c", "b", "a"]
    weights = cluster_weights(clusters, 500, seed=3)
    assert weights.shape == (500, 6)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 5]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.15)
    assert (weights == cluster_weights(clusters, 500, seed=3)).all()
    assert (weights != cluster_weights(clusters, 500, seed=4)).any()


# -- intervals ----------------------------------------------------------------------------------------


def test_interval_text_and_json():
    interval = Interval(0.76543211, 0.7, 0.81, 212)
    assert str(interval) == "0.765 [0.700, 0.810]"
    assert interval.to_json() == {"value": 0.765432, "low": 0.7, "high": 0.81, "n": 212}
    assert json.loads(json.dumps(Interval(math.nan, -math.inf, 0.5, 3).to_json(), allow_nan=False)) == {
        "value": None,
        "low": None,
        "high": 0.5,
        "n": 3,
    }


# -- power --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("positives", "negatives"), [(40, 40), (100, 100), (150, 60)])
def test_minimum_detectable_auroc_is_found_four_times_in_five(positives: int, negatives: int):
    auroc = minimum_detectable_auroc(positives, negatives)
    rng = np.random.default_rng(positives)
    error = math.sqrt((positives + negatives + 1) / (12 * positives * negatives))
    positive = np.arange(positives + negatives) < positives
    found = 0
    for _ in range(1000):
        scores = rng.normal(size=len(positive)) + positive * math.sqrt(2) * norm.ppf(auroc)
        value = weighted_auroc(scores, positive, np.ones((1, len(positive))))[0]
        found += abs(value - 0.5) > 1.96 * error
    assert 0.75 <= found / 1000 <= 0.86


def test_minimum_detectable_auroc_falls_with_n_and_rises_with_power():
    sizes = [minimum_detectable_auroc(n, n) for n in (5, 10, 20, 40, 80, 1000)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    assert minimum_detectable_auroc(100, 20) == minimum_detectable_auroc(20, 100)
    assert minimum_detectable_auroc(50, 50, power=0.9) > minimum_detectable_auroc(50, 50)
    assert minimum_detectable_auroc(10**6, 10**6) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("positives", "negatives"), [(0, 10), (10, 0), (0, 0), (1, 1)])
def test_minimum_detectable_auroc_of_next_to_nothing_is_never(positives: int, negatives: int):
    assert minimum_detectable_auroc(positives, negatives) == 1.0
