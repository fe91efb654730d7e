"""One exact L1 fit against scikit-learn's liblinear, on 4,000 x 46,080 contributions of real answers.

    python benchmarks/l1_one_c.py [--quick]

`ratio` is that at C = 1, the public reference's; `by_C` has a larger C too, where more neurons get a weight and less is
won. liblinear gets the matrix in one piece, as it wants it; the time to make that isn't counted. Its objective is that
of its weights with the best intercept for them, and ours must be no larger. liblinear uses one thread, and so does ours
here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from l1_data import FEATURES, liblinear, objective, training
from measure import in_turn, options, show
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from hneurons.neurons.matrix import Matrix
from hneurons.neurons.probe import l1_path

C, LARGER, REPEATS = 1.0, 3.0, 3


def compare(
    features: Matrix, dense: NDArray[np.float32], positive: NDArray[np.bool_], c: float, repeats: int
) -> dict[str, Any]:
    """Both solvers at one C, in turn."""
    found: dict[str, Any] = {}

    def ours() -> None:
        (found["fit"],) = l1_path(features, positive, [c])

    def other() -> None:
        found["model"] = liblinear(dense, positive, c)

    # Both run for seconds to minutes: a round to warm up would double the time and change nothing.
    measured = in_turn(ours, other, repeats, warm=False)
    fit, model = found["fit"], found["model"]
    reached = objective(model, dense, positive, c)
    assert fit.objective <= reached * (1 + 1e-12), "not as good as liblinear"
    return {
        "C": c,
        **measured,
        "objective": fit.objective,
        "liblinear_objective": reached,
        "residual": fit.residual,
        "nonzeros": len(fit.support),
        "liblinear_nonzeros": int((model.coef_ != 0).sum()),
        "liblinear_iterations": int(model.n_iter_.max()),
    }


def main() -> None:
    quick = options(__doc__).quick
    features, positive = training(quick).design()
    dense, repeats = np.asarray(features), 1 if quick else REPEATS
    found = [compare(features, dense, positive, (10 if quick else 1) * c, repeats) for c in (C, LARGER)]
    show(
        "L1: one C against liblinear",
        found[0]["speedup"],
        10.0,
        "min",
        len(dense),
        {
            "rows": len(dense),
            "neurons": dense.shape[1],
            "C": found[0]["C"],
            "threads": 1,
            "liblinear": "scikit-learn's, tol 1e-4, at most 1,000 iterations",
            "features": FEATURES[quick],
        },
        range=found[0]["range"],
        rounds=repeats,
        by_C=found,
    )


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
