"""What is known of an answer without its neurons: numbers that cost nothing, and a classifier on them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

Floats = NDArray[np.float64]


def cheap_scores(fit_on: Floats, hallucinated: NDArray[np.bool_], apply_to: Floats) -> Floats:
    """Log-odds of a logistic regression on plain numbers with squares and products: (examples, numbers) -> (examples,).

    The squares matter: where very short and very long answers are both wrong, a straight line in length is blind to it,
    and neurons that merely measure length would seem to add something.
    """
    curved = PolynomialFeatures(2, include_bias=False)
    model = make_pipeline(StandardScaler(), curved, StandardScaler(), LogisticRegression(class_weight="balanced"))
    return np.asarray(model.fit(fit_on, hallucinated).decision_function(apply_to), dtype=np.float64)
