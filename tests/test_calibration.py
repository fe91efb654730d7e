"""Risk: recovers the chances it was drawn with, never falls with the score, and its calibration error is what it is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import beta
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from hneurons.errors import TooFewExamplesError
from hneurons.neurons.calibration import (
    at_prevalence,
    brier,
    calibrate,
    calibration_error,
    equal_mass_bins,
    isotonic,
    platt,
    proportion,
    reliability,
)
from hneurons.neurons.risk import Isotonic


def drawn(chance: Any, n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = 2 * rng.normal(size=n)
    return scores, rng.random(n) < chance(scores)


def sigmoid(scores: np.ndarray) -> np.ndarray:
    return expit(0.8 * scores)


def steps(scores: np.ndarray) -> np.ndarray:
    return np.where(scores > 2, 0.95, np.where(scores > -2, 0.5, 0.05))


def ones(n: int) -> np.ndarray:
    return np.ones((1, n))


# -- the two fits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chance", "fit", "far"), [(sigmoid, platt, 0.03), (sigmoid, isotonic, 0.1), (steps, isotonic, 0.1)]
)
def test_a_fit_recovers_the_chances(chance: Any, fit: Any, far: float):
    scores, label = drawn(chance, 6000)
    grid = np.array([-3.5, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 3.5])
    np.testing.assert_allclose(fit(scores, label).risk(grid), chance(grid), atol=far)


@pytest.mark.parametrize("fit", [platt, isotonic])
def test_a_risk_of_one_half_is_neutral_whatever_the_base_rate(fit: Any):
    scores, label = drawn(sigmoid, 8000)
    rare = np.flatnonzero(~label | (np.arange(8000) % 10 == 0))
    assert label[rare].mean() < 0.12
    whole, thinned = fit(scores, label), fit(scores[rare], label[rare])
    np.testing.assert_allclose(thinned.risk([-2, 0, 2]), whole.risk([-2, 0, 2]), atol=0.12)


@pytest.mark.parametrize("fit", [platt, isotonic])
def test_a_probe_that_predicts_the_opposite_is_not_turned_round(fit: Any):
    scores, label = drawn(lambda s: expit(-2 * s), 200)
    risk = fit(scores, label).risk(np.linspace(-3, 3, 50))
    assert (np.diff(risk) >= 0).all()
    np.testing.assert_allclose(risk[10:-10], 0.5, atol=0.05)


SCORES = st.lists(
    st.tuples(st.floats(-1e6, 1e6) | st.integers(-3, 3).map(float), st.booleans()), min_size=2, max_size=60
).filter(lambda rows: 0 < sum(label for _, label in rows) < len(rows))


@settings(max_examples=100)
@given(SCORES, st.lists(st.floats(-1e7, 1e7), min_size=2, max_size=30))
def test_isotonic_risk_never_falls_and_is_no_certainty(rows: list[tuple[float, bool]], asked: list[float]):
    scores, label = (np.array(column) for column in zip(*rows, strict=True))
    fitted = isotonic(scores, label)
    risk = fitted.risk(np.sort(asked))
    assert (np.diff(risk) >= -1e-12).all()
    margin = 1 / (len(rows) + 2)
    assert risk.min() >= margin - 1e-12
    assert risk.max() <= 1 - margin + 1e-12
    assert Isotonic.model_validate_json(fitted.model_dump_json()) == fitted


def test_isotonic_risk_is_the_weighted_share_where_the_score_is_one_of_two():
    label = np.array([True] * 30 + [False] * 10 + [True] * 10 + [False] * 30)
    fitted = isotonic(np.array([1.0] * 40 + [0.0] * 40), label)
    np.testing.assert_allclose(fitted.risk([0.0, 0.5, 1.0]), [0.25, 0.5, 0.75])


# -- the choice ---------------------------------------------------------------------------------------


def test_isotonic_is_chosen_for_steps_and_platt_for_a_sigmoid():
    chosen = {
        chance.__name__: [calibrate(*drawn(chance, 400, seed)).method for seed in range(5)]
        for chance in (steps, sigmoid)
    }
    assert chosen["steps"].count("isotonic") >= 4
    assert chosen["sigmoid"].count("platt") >= 4


def test_both_scores_are_recorded_and_the_better_one_is_kept():
    for chance in (steps, sigmoid):
        found = calibrate(*drawn(chance, 1500))
        assert found.brier is not None
        assert found.brier[found.method] == min(found.brier.values())
        assert 0.05 < min(found.brier.values()) <= max(found.brier.values()) < 0.25
        assert found.n == 1500


def test_few_examples_are_not_compared():
    scores, label = drawn(steps, 99)
    assert calibrate(scores, label) == platt(scores, label)
    assert calibrate(*drawn(steps, 100)).brier is not None


def test_groups_are_kept_whole():
    # Every score comes ten times with the same label: a step function that has seen its copy predicts each one.
    rng = np.random.default_rng(0)
    label = rng.random(60) < 0.5
    scores, many = np.repeat(rng.normal(size=60), 10), np.repeat(label, 10)
    apart, whole = calibrate(scores, many), calibrate(scores, many, list(np.repeat(np.arange(60), 10)))
    assert apart.method == "isotonic"
    assert whole.method == "platt"
    assert apart.brier is not None
    assert whole.brier is not None
    assert whole.brier["isotonic"] > apart.brier["isotonic"] + 0.02
    few = calibrate(scores, many, list(np.repeat(np.arange(8), 75)))
    assert few == platt(scores, many)


@pytest.mark.parametrize("count", [0, 2, 28, 30])
def test_too_few_of_a_class(count: int):
    with pytest.raises(TooFewExamplesError, match="in the validation split; at least 3"):
        calibrate(np.arange(30.0), np.arange(30) < count)


# -- prevalence and intervals -------------------------------------------------------------------------


def test_at_prevalence_is_bayes_rule():
    risk = np.array([0.0, 0.2, 0.5, 0.8, 1.0])
    np.testing.assert_allclose(at_prevalence(risk, 0.5), risk)
    assert at_prevalence(0.5, 0.1) == pytest.approx(0.1)
    # Thinning hallucinated answers ninefold: of 80 hallucinated and 20 faithful ones 80/9 and 20 are left.
    assert at_prevalence(0.8, 0.1) == pytest.approx((80 / 9) / (80 / 9 + 20))
    np.testing.assert_allclose(at_prevalence(at_prevalence(risk, 0.03), 0.5, was=0.03), risk)
    assert np.isnan(at_prevalence(np.nan, 0.1))


@pytest.mark.parametrize(("count", "n"), [(0, 10), (3, 10), (10, 10), (7, 211)])
def test_proportions_have_the_interval_of_the_beta_quantiles(count: int, n: int):
    found = proportion(count, n)
    assert found.value == count / n
    assert found.low == pytest.approx(beta.ppf(0.025, count, n - count + 1) if count else 0.0)
    assert found.high == pytest.approx(beta.ppf(0.975, count + 1, n - count) if count < n else 1.0)
    assert proportion(0, 0).to_json() == {"value": None, "low": None, "high": None, "n": 0}


# -- calibration error and reliability ----------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(5, 80), st.booleans())
def test_the_diagram_and_the_error_are_those_of_scikit_learn(seed: int, n: int, ties: bool):
    rng = np.random.default_rng(seed)
    risk = rng.random(n).round(1 if ties else 6)
    label = rng.random(n) < 0.5
    label[:2] = True, False
    found = reliability(risk, label, range(n), prevalence=None, bins=5, draws=20)
    rate, mean = calibration_curve(label, risk, n_bins=5, strategy="quantile")
    np.testing.assert_allclose([row["risk"] for row in found["bins"]], mean, atol=1e-6)
    np.testing.assert_allclose([row["rate"]["value"] for row in found["bins"]], rate, atol=1e-6)
    counts = np.array([row["rate"]["n"] for row in found["bins"]])
    assert counts.sum() == n
    assert found["ece"]["value"] == pytest.approx((counts * abs(rate - mean)).sum() / n, abs=1e-5)
    assert found["brier"]["value"] == pytest.approx(brier_score_loss(label, risk), abs=1e-5)


def test_bins_have_equal_mass_and_keep_ties_together():
    rng = np.random.default_rng(0)
    assert np.bincount(equal_mass_bins(rng.random(200), 10)).tolist() == [20] * 10
    tied = np.repeat([0.1, 0.2, 0.9], [50, 5, 5])
    bins = equal_mass_bins(tied, 10)
    assert all(len(set(bins[tied == value])) == 1 for value in (0.1, 0.2, 0.9))
    assert equal_mass_bins(np.full(7, 0.5), 10).tolist() == [0] * 7


def test_prevalence_weights_the_classes():
    # As if each faithful answer were there nine times.
    rng = np.random.default_rng(1)
    label = np.arange(200) % 2 == 0
    risk = np.clip(0.1 + 0.2 * label + 0.2 * rng.random(200), 0, 1)
    copies = np.where(label, 1, 9)
    bins = equal_mass_bins(risk, 10)
    many = [np.repeat(values, copies) for values in (risk, label, bins)]
    for weighted, plain in (
        (calibration_error(bins, 0.1), calibration_error(many[2], None)),
        (brier(0.1), brier(None)),
    ):
        assert weighted(risk, label, ones(200))[0] == pytest.approx(plain(many[0], many[1], ones(1000))[0])
    found = reliability(risk, label, range(200), prevalence=0.1, draws=20)
    for index, row in enumerate(found["bins"]):
        inside = many[2] == index
        assert row["rate"]["value"] == pytest.approx(many[1][inside].mean(), abs=1e-6)
        assert row["risk"] == pytest.approx(many[0][inside].mean(), abs=1e-6)
        assert row["rate"]["low"] <= row["rate"]["value"] <= row["rate"]["high"]
        assert row["rate"]["n"] == 20


def test_a_calibrated_risk_has_the_error_of_chance_and_a_boastful_one_more():
    scores, label = drawn(sigmoid, 1000)
    honest = reliability(sigmoid(scores), label, range(1000), draws=200)
    boastful = reliability(expit(4 * scores), label, range(1000), draws=200)
    assert honest["ece"]["value"] < 1.6 * honest["ece_if_calibrated"]
    assert boastful["ece"]["low"] > 2 * boastful["ece_if_calibrated"]
    assert boastful["ece"]["value"] > 3 * honest["ece"]["value"]
    assert boastful["brier"]["low"] > honest["brier"]["high"]


def test_the_error_of_chance_is_what_perfect_risks_show():
    risk = np.linspace(0.02, 0.98, 300)
    error = calibration_error(equal_mass_bins(risk, 10))
    label = np.random.default_rng(0).random((100, 300)) < risk
    shown = [error(risk, row, ones(300))[0] for row in label]
    found = reliability(risk, label[0], range(300), draws=2)
    assert np.mean(shown) == pytest.approx(found["ece_if_calibrated"], rel=0.12)


@pytest.mark.parametrize("label", [[], [True] * 5, [False] * 5])
def test_what_is_undefined_is_null(label: list[bool]):
    found = reliability(np.linspace(0.2, 0.8, len(label)), np.array(label, bool), range(len(label)), draws=5)
    json.dumps(found, allow_nan=False)
    assert found["n"] == len(label)
    assert found["ece"]["value"] is None
    assert found["ece_if_calibrated"] is None
    assert found["brier"]["value"] is None
