"""The sparse probe: L1 logistic regression over contributions, exact, with its certificate.

    minimise over theta, b:   C * sum_i log(1 + exp(-y_i (theta . x_i + b)))  +  ||theta||_1        (y_i = +-1)

(Gao et al. 2025, sec. 3.2, with the intercept b not penalised.) The solver walks C upwards with warm starts. It keeps
a working set of neurons, solves on it by iteratively reweighted lasso (scikit-learn's coordinate descent does the
inner problem), then checks the optimality conditions on *all* neurons and takes in those that violate them. Its
residual is the largest violation, relative to the penalty: |C g_j| <= 1 where theta_j = 0, C g_j = -sign(theta_j)
elsewhere, sum of g over rows = 0 for the intercept.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, lasso_path

Floats = NDArray[np.float64]
TOLERANCE = 1e-6
_LASSO_PATH: Any = lasso_path  # its annotations are narrower than what it takes
BLOCK = 4096  # columns that are widened to float64 at a time


@dataclass(frozen=True)
class Fit:
    """One solution on the path."""

    C: float
    support: NDArray[np.intp]
    """Neurons with a weight other than zero, ascending."""
    weights: Floats
    """Their weights, same order."""
    intercept: float
    objective: float
    residual: float
    """Largest violation of the optimality conditions, as a share of the penalty; 0 is exact."""

    def score(self, features: NDArray[np.float32]) -> Floats:
        """theta . x + b of each row of (rows, neurons): (rows,)."""
        return features[:, self.support].astype(np.float64) @ self.weights + self.intercept


def smallest_c(features: NDArray[np.float32], positive: NDArray[np.bool_]) -> float:
    """The C below which every weight is zero."""
    residual = positive.mean() - positive.astype(np.float64)
    return 1.0 / max(float(np.abs(_gradient(features, residual)).max()), 1e-300)


def path_grid(lowest: float, highest: float, points: int) -> list[float]:
    """`points` values of C from just above `lowest` to `highest`, evenly spaced in the logarithm."""
    return [float(c) for c in np.geomspace(lowest * 1.05, max(highest, lowest * 1.1), points)]


def l1_path(
    features: NDArray[np.float32],
    positive: NDArray[np.bool_],
    grid: Sequence[float],
    *,
    solver: str = "exact",
    tick: Callable[[], None] = lambda: None,
) -> list[Fit]:
    """Solutions for every C of `grid`, ascending, each warm-started from the one before.

    Args:
        features: contributions, (rows, neurons), finite.
        positive: which rows are of the positive class, (rows,); both classes must occur.
        grid: values of C, ascending.
        solver: `exact`, or `liblinear` as the public reference uses it (penalises the intercept too).
        tick: called after each C.
    """
    assert features.ndim == 2
    assert positive.shape == (len(features),)
    assert 0 < positive.sum() < len(positive)
    state = _Problem(features, positive)
    fits: list[Fit] = []
    for c in grid:
        fits.append(_liblinear(state, c) if solver == "liblinear" else state.solve(c))
        tick()
    return fits


def _gradient(features: NDArray[np.float32], residual: Floats) -> Floats:
    """features.T @ residual with float64 accumulation, one block of columns at a time."""
    out = np.empty(features.shape[1])
    for start in range(0, features.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        out[part] = residual @ features[:, part].astype(np.float64)
    return out


class _Problem:
    """Data and warm-start state of one path."""

    def __init__(self, features: NDArray[np.float32], positive: NDArray[np.bool_]) -> None:
        self.features = features
        self.target = positive.astype(np.float64)
        share = self.target.mean()
        self.intercept = float(np.log(share / (1 - share)))
        self.theta = np.zeros(features.shape[1])
        self.gradient = _gradient(features, share - self.target)
        self.last_penalty = float(np.abs(self.gradient).max())

    def solve(self, c: float) -> Fit:
        penalty = 1.0 / c
        # Sequential strong rule: discard what is unlikely to enter between the last penalty and this one. The
        # check of the optimality conditions on all neurons below makes up for where the rule errs.
        likely = np.abs(self.gradient) >= max(2 * penalty - self.last_penalty, 0.5 * penalty)
        if self.last_penalty < penalty:
            likely = np.abs(self.gradient) >= penalty
        working = np.flatnonzero(likely | (self.theta != 0))
        if len(working) > 2000:
            order = np.argsort(-np.abs(self.gradient[working]) - 1e9 * (self.theta[working] != 0))
            working = np.sort(working[order[:2000]])
        residual = np.inf
        for _ in range(50):
            block = self.features[:, working].astype(np.float64)
            weights, self.intercept = _reweighted_lasso(
                block, self.target, penalty, self.theta[working], self.intercept
            )
            self.theta[:] = 0.0
            self.theta[working] = weights
            error = expit(block @ weights + self.intercept) - self.target
            self.gradient = _gradient(self.features, error)
            residual = self._residual(penalty, error)
            outside = np.abs(self.gradient) > penalty * (1 + TOLERANCE)
            outside[working] = False
            entering = np.flatnonzero(outside)
            if residual <= TOLERANCE or not len(entering):
                break
            worst = entering[np.argsort(-np.abs(self.gradient[entering]))[: max(200, len(working))]]
            working = np.union1d(working, worst)
        self.last_penalty = penalty
        support = np.flatnonzero(self.theta)
        return self.fit(c, support, self.theta[support], self.intercept, residual)

    def _residual(self, penalty: float, error: Floats) -> float:
        active = self.theta != 0
        on = np.abs(self.gradient[active] + penalty * np.sign(self.theta[active]))
        off = np.maximum(np.abs(self.gradient[~active]) - penalty, 0.0)
        scale = max(len(error), 1)
        worst = max(float(on.max(initial=0.0)), float(off.max(initial=0.0))) / penalty
        return max(worst, abs(float(error.sum())) / scale)

    def fit(self, c: float, support: NDArray[np.intp], weights: Floats, intercept: float, residual: float) -> Fit:
        margin = self.features[:, support].astype(np.float64) @ weights + intercept
        loss = float(np.logaddexp(0.0, np.where(self.target > 0, -margin, margin)).sum())
        return Fit(c, support, weights, intercept, c * loss + float(np.abs(weights).sum()), residual)


def _reweighted_lasso(
    block: Floats, target: Floats, penalty: float, theta: Floats, intercept: float
) -> tuple[Floats, float]:
    """Minimise sum logloss + penalty ||theta||_1 over the columns of `block`, with a free intercept."""
    rows = len(target)
    if not block.shape[1]:
        share = float(target.mean())
        return theta, float(np.log(share / (1 - share)))

    def objective(weights: Floats, offset: float) -> float:
        margin = block @ weights + offset
        loss = np.logaddexp(0.0, margin) - target * margin
        return float(loss.sum() + penalty * np.abs(weights).sum())

    value = objective(theta, intercept)
    for _ in range(100):
        margin = block @ theta + intercept
        chance = expit(margin)
        curvature = np.maximum(chance * (1 - chance), 1e-10)
        response = margin + (target - chance) / curvature
        # The free intercept of a weighted least-squares problem is removed by centring with the same weights.
        share = curvature / curvature.sum()
        centre, middle = share @ block, float(share @ response)
        root = np.sqrt(curvature)
        design = np.asfortranarray((block - centre) * root[:, None])
        aim = (response - middle) * root
        gram, moment = design.T @ design, design.T @ aim
        with warnings.catch_warnings():
            # The line search and the certificate judge the result, not the inner solver's own tolerance.
            warnings.simplefilter("ignore", ConvergenceWarning)
            _, found, _ = _LASSO_PATH(
                design,
                aim,
                alphas=[penalty / rows],
                precompute=gram,
                Xy=moment,
                coef_init=theta.copy(),
                tol=1e-12,
                max_iter=20000,
            )
        step_theta = np.asarray(found)[:, 0] - theta
        step_intercept = middle - float(centre @ (theta + step_theta)) - intercept
        size = 1.0
        while size > 1e-8:
            trial, offset = theta + size * step_theta, intercept + size * step_intercept
            new = objective(trial, offset)
            if new <= value:
                break
            size *= 0.5
        else:
            break
        gained = value - new
        theta, intercept, value = trial, offset, new
        if gained <= 1e-13 * max(abs(value), 1.0):
            break
    return theta, intercept


def _liblinear(problem: _Problem, c: float) -> Fit:
    """The public reference's solver. It penalises the intercept, so its solution is that of another objective."""
    model = LogisticRegression(l1_ratio=1.0, C=c, solver="liblinear", tol=1e-6, max_iter=20000, random_state=0)
    model.fit(problem.features, problem.target > 0)
    weights = model.coef_[0].astype(np.float64)
    support = np.flatnonzero(weights)
    intercept: Any = model.intercept_
    problem.theta[:], problem.intercept = weights, float(intercept[0])
    error = expit(problem.features[:, support].astype(np.float64) @ weights[support] + problem.intercept)
    error -= problem.target
    problem.gradient = _gradient(problem.features, error)
    residual = problem._residual(1.0 / c, error)  # pyright: ignore[reportPrivateUsage]
    return problem.fit(c, support, weights[support], problem.intercept, residual)
