"""Slopes and curves against numpy and scipy; errors and prediction intervals against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import linregress, spearmanr

from hneurons.stats import (
    cluster_weights,
    curve_ranks,
    minimum_detectable,
    one_more,
    slope_error,
    slope_weights,
    weighted_means,
)

ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


@settings(max_examples=100)
@given(
    st.lists(st.floats(0, 100), min_size=2, max_size=9, unique=True).filter(lambda x: max(x) - min(x) > 1e-3),
    st.integers(0, 2**32),
)
def test_slope_is_the_least_squares_one(places: list[float], seed: int):
    values = np.random.default_rng(seed).random(len(places))
    wanted = linregress(places, values).slope
    assert slope_weights(places) @ values == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("places", [[], [1.0], [2.0, 2.0]])
def test_one_place_has_no_slope(places: list[float]):
    assert np.isnan(slope_weights(places)).all()


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32))
def test_weighted_means_leave_out_what_is_not_there(n: int, k: int, seed: int):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((n, k)) < 0.3, np.nan, rng.random((n, k)))
    weights = rng.integers(0, 3, (4, n)).astype(float)
    found = weighted_means(values, weights)
    for row, weight in zip(found, weights, strict=True):
        repeated = np.repeat(values, weight.astype(int), axis=0)
        for column in range(k):
            known = repeated[:, column][~np.isnan(repeated[:, column])]
            assert row[column] == pytest.approx(known.mean()) if len(known) else math.isnan(row[column])


def test_curve_ranks_are_spearmans():
    rng = np.random.default_rng(3)
    curves = rng.integers(0, 5, (50, 7)) / 5
    found = curve_ranks(ALPHAS, curves)
    for value, curve in zip(found, curves, strict=True):
        assert value == pytest.approx(spearmanr(ALPHAS, curve).statistic)
    assert curve_ranks(ALPHAS, np.array([np.arange(7.0), -np.arange(7.0)])).tolist() == [1.0, -1.0]
    flat = np.array([np.ones(7), [0, 1, 2, np.nan, 4, 5, 6]])
    assert np.isnan(curve_ranks(ALPHAS, flat)).all()


def test_slope_error_is_that_of_repeated_draws_of_items():
    rng, n = np.random.default_rng(1), 150
    weights = slope_weights(ALPHAS)

    def world() -> np.ndarray:
        latent = rng.random(n)
        return np.stack([latent + 0.3 * rng.random(n) < 0.3 + 0.1 * alpha for alpha in ALPHAS], axis=1).astype(float)

    slopes, errors = [], []
    for _ in range(150):
        values = world()
        slopes.append(weighted_means(values, np.ones((1, n)))[0] @ weights)
        draws = weighted_means(values, cluster_weights(range(n), 200, 0)) @ weights
        errors.append(slope_error(draws, weights, n))
    assert np.mean(errors) == pytest.approx(np.std(slopes), rel=0.2)


def test_where_no_item_moved_the_error_is_not_zero_and_falls_with_n():
    weights = slope_weights(ALPHAS)
    errors = [slope_error(np.zeros(100), weights, n) for n in (20, 100, 1000)]
    assert errors[0] > errors[1] > errors[2] > 0
    assert math.isinf(slope_error(np.full(5, np.nan), weights, 20))


def test_minimum_detectable_effect_is_found_four_times_in_five():
    effect = minimum_detectable(0.7)
    found = np.abs(effect + 0.7 * np.random.default_rng(0).normal(size=20_000)) > 1.96 * 0.7
    assert 0.78 < found.mean() < 0.82


@pytest.mark.parametrize("count", [2, 5, 20])
def test_one_more_is_above_the_bound_once_in_forty(count: int):
    rng, above = np.random.default_rng(count), 0
    for _ in range(20_000):
        values = rng.normal(size=count + 1)
        mean, reach = one_more(values[:-1].tolist())
        above += values[-1] > mean + reach
    assert 0.021 < above / 20_000 < 0.029
    assert math.isnan(one_more([1.0])[1])
