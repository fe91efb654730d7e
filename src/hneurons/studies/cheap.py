"""What is known of an answer without its neurons: numbers that cost nothing, and a classifier on them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

Floats = NDArray[np.float64]


def cheap_scores(
    fit_on: Floats,
    hallucinated: NDArray[np.bool_],
    apply_to: Floats,
    linear: tuple[Floats, Floats] | None = None,
) -> Floats:
    """Log-odds of a logistic regression on plain numbers with squares and products: (examples, numbers) -> (examples,).

    The squares matter: where very short and very long answers are both wrong, a straight line in length is blind to it,
    and neurons that merely measure length would seem to add something. Scores of a probe are log-odds already: they
    enter as they are, by `linear`, as (rows of `fit_on`, rows of `apply_to`). The square and the products of a score
    that says nothing would only cost AUROC, and "adds nothing" would read as "does harm".
    """
    curve = make_pipeline(StandardScaler(), PolynomialFeatures(2, include_bias=False)).fit(fit_on)
    known, wanted = curve.transform(fit_on), curve.transform(apply_to)
    if linear is not None:
        known, wanted = np.column_stack([known, linear[0]]), np.column_stack([wanted, linear[1]])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    return np.asarray(model.fit(known, hallucinated).decision_function(wanted), dtype=np.float64)
