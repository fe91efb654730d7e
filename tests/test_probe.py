"""The sparse probe: its solutions satisfy the optimality conditions, recomputed here from the data alone."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from hneurons.neurons.probe import Fit, l1_path, path_grid, smallest_c

KINDS = ["independent", "correlated", "duplicates", "constants", "zeros", "sparse", "low rank"]


def problem(kind: str, seed: int, rows: int = 120, columns: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    X = rng.normal(size=(rows, columns))
    if kind == "correlated":  # at 0.99, by pairs; fewer of them, since coordinate descent is slow here
        X = (rng.normal(size=(rows, 1)) + 0.1 * X)[:, : columns // 3]
    if kind == "duplicates":
        X[:, columns // 2 :] = X[:, : columns // 2]
    if kind == "constants":
        X[:, ::3] = 4.0
    if kind == "zeros":
        X[:, ::2] = 0.0
    if kind == "sparse":
        X = np.abs(X) * (rng.random(X.shape) < 0.05)
    if kind == "low rank":
        X = rng.normal(size=(rows, 4)) @ rng.normal(size=(4, columns))
    signal = X[:, 1] - X[:, 4] + rng.normal(size=rows)
    return X.astype(np.float32), signal > np.quantile(signal, 0.7)


def stated_objective(X: np.ndarray, y: np.ndarray, C: float, theta: np.ndarray, b: float) -> float:
    sign = np.where(y, 1.0, -1.0)
    return C * float(np.logaddexp(0.0, -sign * (X.astype(float) @ theta + b)).sum()) + float(np.abs(theta).sum())


def weights_of(fit: Fit, columns: int) -> np.ndarray:
    theta = np.zeros(columns)
    theta[fit.support] = fit.weights
    return theta


def violation(X: np.ndarray, y: np.ndarray, fit: Fit) -> float:
    """Largest violation of the optimality conditions in units of the penalty."""
    theta = weights_of(fit, X.shape[1])
    margin = X.astype(float) @ theta + fit.intercept
    error = np.where(margin >= 0, 1 / (1 + np.exp(-np.abs(margin))), 1 - 1 / (1 + np.exp(-np.abs(margin)))) - y
    gradient = fit.C * (X.astype(float).T @ error)
    active = theta != 0
    on = np.abs(gradient + np.sign(theta))[active].max(initial=0.0)
    off = (np.abs(gradient) - 1)[~active].max(initial=0.0)
    return float(max(on, off, abs(error.sum()) / len(y)))


def fit_one(X: np.ndarray, y: np.ndarray, C: float) -> Fit:
    return l1_path(X, y, [C])[0]


# -- optimality ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_solutions_are_optimal(kind: str, seed: int):
    X, y = problem(kind, seed)
    lowest = smallest_c(X, y)
    for fit in l1_path(X, y, path_grid(lowest, 100 * lowest, 8)):
        assert violation(X, y, fit) < 2e-6
        assert fit.residual < 2e-6
        assert (np.diff(fit.support) > 0).all()
        assert (fit.weights != 0).all()
        theta = weights_of(fit, X.shape[1])
        assert fit.objective == pytest.approx(stated_objective(X, y, fit.C, theta, fit.intercept), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1e3, 1e5])
def test_solutions_are_optimal_at_any_scale(scale: float):
    X, y = problem("independent", 5)
    small = (X * np.float32(scale)).astype(np.float32)
    lowest = smallest_c(small, y)
    assert lowest == pytest.approx(smallest_c(X, y) / scale, rel=1e-4)
    for fit in l1_path(small, y, path_grid(lowest, 50 * lowest, 5)):
        assert violation(small, y, fit) < 2e-6


def test_columns_of_very_different_scales():
    X, y = problem("independent", 6)
    X = (X * np.geomspace(1e-4, 1e2, X.shape[1])).astype(np.float32)
    lowest = smallest_c(X, y)
    for fit in l1_path(X, y, path_grid(lowest, 1000 * lowest, 6)):
        assert violation(X, y, fit) < 2e-6


def test_columns_with_a_large_mean():
    # Contributions are positive: their mean is larger than their spread.
    X, y = problem("independent", 7)
    X = (0.01 * (X + 20)).astype(np.float32)
    lowest = smallest_c(X, y)
    for fit in l1_path(X, y, path_grid(lowest, 50 * lowest, 6)):
        assert violation(X, y, fit) < 2e-6


@pytest.mark.parametrize("rows", [30, 80])
def test_separable_data_at_a_large_C(rows: int):
    X, _ = problem("independent", 8, rows=rows, columns=300)
    y = X[:, 3] > 0.2
    lowest = smallest_c(X, y)
    for fit in l1_path(X, y, path_grid(lowest, 1e4 * lowest, 10)):
        assert violation(X, y, fit) < 2e-6
    assert ((fit.score(X) > 0) == y).all()


def test_a_single_row_of_a_class():
    X, _ = problem("independent", 9)
    y = np.arange(len(X)) == 5
    lowest = smallest_c(X, y)
    for fit in l1_path(X, y, path_grid(lowest, 30 * lowest, 4)):
        assert violation(X, y, fit) < 2e-6


def test_more_neurons_than_a_working_set_holds():
    # Every neuron but a few is a candidate at the first C, more than the solver takes in at once.
    rng = np.random.default_rng(0)
    y = np.arange(60) < 25
    X = (0.2 * rng.normal(size=(60, 3000)) + y[:, None]).astype(np.float32)
    lowest = smallest_c(X, y)
    for fit in l1_path(X, y, [1.5 * lowest, 20 * lowest]):
        assert violation(X, y, fit) < 2e-6


def test_no_neuron_says_anything():
    X = np.zeros((20, 5), dtype=np.float32)
    y = np.arange(20) < 5
    for C in (1.0, 1e3):
        fit = fit_one(X, y, C)
        assert len(fit.support) == 0
        assert fit.intercept == pytest.approx(np.log(5 / 15))
    lowest = smallest_c(X, y)
    assert np.isfinite(lowest)
    fits = l1_path(X, y, path_grid(lowest, 100 * lowest, 3))
    assert all(np.isfinite([fit.C, fit.objective, fit.residual]).all() and not len(fit.support) for fit in fits)


# -- against other solvers ----------------------------------------------------------------------------


def refitted_intercept(margin: np.ndarray, y: np.ndarray) -> float:
    """The intercept at which the mean predicted chance equals the share of positives, by bisection."""
    low, high = -1e3, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        with np.errstate(over="ignore"):
            mean = (1 / (1 + np.exp(-(margin + middle)))).mean()
        low, high = (middle, high) if mean < y.mean() else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [3.0, 30.0])
def test_never_worse_than_liblinear(kind: str, ratio: float):
    X, y = problem(kind, 11)
    C = ratio * smallest_c(X, y)
    own = fit_one(X, y, C)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(l1_ratio=1.0, C=C, solver="liblinear", tol=1e-8, max_iter=20000, random_state=0)
        model.fit(X.astype(float), y)
    theta = model.coef_[0]
    intercept = refitted_intercept(X.astype(float) @ theta, y)
    assert own.objective <= stated_objective(X, y, C, theta, intercept) * (1 + 1e-9)


def test_equals_saga():
    X, y = problem("independent", 12, rows=80, columns=12)
    C = 8 * smallest_c(X, y)
    own = fit_one(X, y, C)
    saga = LogisticRegression(l1_ratio=1.0, C=C, solver="saga", tol=1e-10, max_iter=50000, random_state=0)
    saga.fit(X.astype(float), y)
    assert 2 < len(own.support) < 12
    np.testing.assert_allclose(weights_of(own, 12), saga.coef_[0], atol=1e-5)
    assert own.intercept == pytest.approx(saga.intercept_[0], abs=1e-5)


@pytest.mark.parametrize("C", [0.05, 1.0])
def test_the_reference_solver_is_scikit_learns_liblinear(C: float):
    X, y = problem("independent", 13)
    fit = l1_path(X, y, [C], solver="liblinear")[0]
    model = LogisticRegression(l1_ratio=1.0, C=C, solver="liblinear", tol=1e-6, max_iter=20000, random_state=0)
    model.fit(X, y)
    np.testing.assert_array_equal(weights_of(fit, X.shape[1]), model.coef_[0])
    assert fit.intercept == model.intercept_[0]
    assert fit.objective == pytest.approx(stated_objective(X, y, C, model.coef_[0], fit.intercept))
    # It minimises another objective: the certificate says so, and the exact solver does better on the stated one.
    assert fit.residual == pytest.approx(violation(X, y, fit), rel=1e-6)
    assert fit.residual > 1e-3
    assert fit_one(X, y, C).objective < fit.objective


# -- the path -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["independent", "correlated", "sparse"])
def test_warm_starts_change_nothing(kind: str):
    X, y = problem(kind, 14)
    lowest = smallest_c(X, y)
    for warm in l1_path(X, y, path_grid(lowest, 100 * lowest, 7)):
        cold = fit_one(X, y, warm.C)
        assert warm.objective == pytest.approx(cold.objective, rel=1e-8)
        np.testing.assert_allclose(warm.score(X), cold.score(X), atol=1e-3 * np.abs(cold.score(X)).max())
        np.testing.assert_allclose(
            weights_of(warm, X.shape[1]),
            weights_of(cold, X.shape[1]),
            atol=1e-3 * max(np.abs(cold.weights).max(initial=0), 1e-9),
        )


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 3, 3, 0, 0], [2, 0, 3, 1]])
def test_any_order_of_C(order: list[int]):
    X, y = problem("independent", 15)
    values = smallest_c(X, y) * np.array([0.5, 2.0, 10.0, 60.0])
    grid = [float(values[i]) for i in order]
    ticks: list[int] = []
    fits = l1_path(X, y, grid, tick=lambda: ticks.append(1))
    assert [fit.C for fit in fits] == grid
    assert len(ticks) == len(grid)
    for fit in fits:
        assert violation(X, y, fit) < 2e-6


def test_fits_of_a_path_are_independent_of_later_ones():
    X, y = problem("independent", 16)
    lowest = smallest_c(X, y)
    grid = path_grid(lowest, 60 * lowest, 4)
    for early, alone in zip(l1_path(X, y, grid), l1_path(X, y, grid[:2]), strict=False):
        np.testing.assert_array_equal(early.weights, alone.weights)


def test_the_input_is_left_alone():
    X, y = problem("independent", 17)
    before = X.copy(), y.copy()
    X.flags.writeable = y.flags.writeable = False
    l1_path(X, y, [10 * smallest_c(X, y)])
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(y, before[1])


@pytest.mark.parametrize("kind", KINDS)
def test_smallest_c(kind: str):
    X, y = problem(kind, 18)
    lowest = smallest_c(X, y)
    below, above = fit_one(X, y, 0.999 * lowest), fit_one(X, y, 1.05 * lowest)
    assert len(below.support) == 0
    assert below.intercept == pytest.approx(np.log(y.mean() / (1 - y.mean())))
    assert len(above.support) > 0


def test_swapped_labels_turn_the_weights_round():
    X, y = problem("independent", 19)
    C = 10 * smallest_c(X, y)
    one, other = fit_one(X, y, C), fit_one(X, ~y, C)
    np.testing.assert_allclose(weights_of(one, 200), -weights_of(other, 200), atol=1e-4)
    assert one.intercept == pytest.approx(-other.intercept, abs=1e-4)


def test_path_grid():
    grid = path_grid(0.01, 1.0, 5)
    assert grid[0] == pytest.approx(0.0105)
    assert grid[-1] == pytest.approx(1.0)
    np.testing.assert_allclose(np.diff(np.log(grid)), np.diff(np.log(grid))[0])
    # A ratio too small for a path still gives an ascending one.
    assert path_grid(0.01, 0.01, 3) == sorted(set(path_grid(0.01, 0.01, 3)))


def test_score():
    fit = Fit(1.0, np.array([0, 2]), np.array([2.0, -1.0]), 0.5, 0.0, 0.0)
    X = np.array([[1, 9, 1], [0, 9, 3]], dtype=np.float32)
    np.testing.assert_allclose(fit.score(X), [1.5, -2.5])


@pytest.mark.parametrize("y", [np.ones(4, bool), np.zeros(4, bool), np.ones(3, bool)])
def test_wrong_shapes_and_single_classes_are_stopped(y: np.ndarray):
    with pytest.raises(AssertionError):
        l1_path(np.zeros((4, 2), np.float32), y, [1.0])
