"""A path of 20 C with 5-fold cross-validation against as many separate liblinear fits, 4,000 x 46,080.

    python benchmarks/l1_path.py [--quick]

Ours is `choose_probe`, all of it: the path on all rows, the folds, and their scores. All 100 liblinear fits on folds
would take too long: a sample of them is measured, spread over the grid with the folds in turn, and each of the others
counts as the faster of the two measured ones that it lies between. liblinear's 20 fits on all rows are left out. Both
are in its favour. liblinear uses one thread, and so does ours here.
"""

from __future__ import annotations

import statistics
from functools import partial

import numpy as np
from l1_data import FEATURES, liblinear, training
from measure import options, show, timed
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from hneurons.neurons.choose import choose_probe
from hneurons.settings import IdentifySettings

POINTS, FOLDS = 20, 5
SAMPLED = (0, 5, 10, 15, 19)
"""Places in the grid that are measured; ours is measured again after each second one."""


def all_places(measured: dict[int, float], points: int) -> list[float]:
    """Seconds at each place of the grid; at one that wasn't measured, those of the faster neighbour that was."""
    before = [measured[max(place for place in measured if place <= i)] for i in range(points)]
    after = [measured[min(place for place in measured if place >= i)] for i in range(points)]
    return [min(pair) for pair in zip(before, after, strict=True)]


def main() -> None:
    quick = options(__doc__).quick
    data = training(quick)
    points = 4 if quick else POINTS
    settings = IdentifySettings(path_points=points, folds=FOLDS, max_share=1.0)
    took, choice = timed(lambda: choose_probe(data, data, settings))
    own, grid = [took], [fit.C for fit in choice.fits]
    features, positive = data.design()
    dense = np.asarray(features)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=settings.seed)
    inside = [
        data.design_rows(rows) for rows, _ in folds.split(dense[: len(data.groups)], data.hallucinated, data.groups)
    ]
    measured: dict[int, float] = {}
    for number, place in enumerate((0, 2, 3) if quick else SAMPLED):
        rows = inside[number % FOLDS]
        measured[place], _ = timed(partial(liblinear, dense[rows], positive[rows], grid[place]))
        if number % 2:
            own.append(timed(lambda: choose_probe(data, data, settings))[0])
    whole = FOLDS * sum(all_places(measured, points))
    show(
        "L1: path with cross-validation against liblinear",
        whole / statistics.median(own),
        30.0,
        "min",
        len(dense),
        {
            "rows": len(dense),
            "neurons": dense.shape[1],
            "points": points,
            "folds": FOLDS,
            "threads": 1,
            "liblinear": "scikit-learn's, tol 1e-4, at most 1,000 iterations, on copies of a fold's rows made before",
            "liblinear fits measured": f"{len(measured)} of {points * FOLDS}; each other as the faster one beside it",
            "features": FEATURES[quick],
        },
        range=[round(whole / took, 4) for took in (max(own), min(own))],
        seconds=own,
        liblinear_seconds_by_place=measured,
        liblinear_seconds=whole,
        ratio_if_all_were_the_fastest=FOLDS * points * min(measured.values()) / statistics.median(own),
        grid=grid,
        nonzeros=[len(fit.support) for fit in choice.fits],
        largest_residual=max(fit.residual for fit in choice.fits),
    )


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
