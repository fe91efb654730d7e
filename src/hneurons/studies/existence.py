"""Existence: how well the H-Neurons predict on held-out examples, against controls, and the verdict by rule.

The rule, word for word, is in docs/verdict.md; change both together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from hneurons.intervals import above, shown
from hneurons.neurons.card import Card
from hneurons.settings import IdentifySettings
from hneurons.stats import (
    Bootstrap,
    accuracy_at,
    minimum_detectable_auroc,
    weighted_auprc,
    weighted_auroc,
)
from hneurons.studies.cheap import cheap_scores
from hneurons.studies.controls import Controls, compare_controls
from hneurons.studies.tables import EvaluationData

Floats = NDArray[np.float64]
LEAST_PER_CLASS = 20
DETECTABLE = 0.65
SUPPORTED, NOT_SUPPORTED, TOO_LITTLE = "supported", "not supported", "too little data"
ADDS = "adds to length and log-probability"
CHEAP = ("length", "mean log-probability")


def evaluate(
    card: Card,
    controls: Controls,
    validation: EvaluationData,
    test: EvaluationData,
    settings: IdentifySettings,
) -> dict[str, Any]:
    """The evaluation of one data set: H-Neurons, controls, baselines, increment, curves.

    Args:
        card: the H-Neurons.
        controls: classifiers on random neurons (`make_controls`).
        validation: examples of the run on which thresholds and cheap baselines are fitted.
        test: the examples to evaluate on.
        settings: bootstrap draws and seed.

    Returns a data-set object of evaluation.json (docs/run-folder.md).
    """
    draws = Bootstrap.of(test.hallucinated, test.clusters, draws=settings.bootstrap, seed=settings.seed)
    score, held_out = card.score(test.features), card.score(validation.features)
    risk = card.risk(score)
    random = compare_controls(score, controls, validation, test, draws)
    baselines: dict[str, Any] = {}
    columns = {"length": [0], "mean log-probability": [1], "length + mean log-probability": [0, 1]}
    for name, used in columns.items():
        fitted = cheap_scores(validation.cheap[:, used], validation.hallucinated, test.cheap[:, used])
        baselines[name] = {
            "auroc": draws.interval(weighted_auroc, fitted).to_json(),
            "accuracy": draws.interval(accuracy_at(0.0), fitted).to_json(),
        }
    cheap = cheap_scores(validation.cheap, validation.hallucinated, test.cheap)
    combined = cheap_scores(validation.cheap, validation.hallucinated, test.cheap, (held_out, score))
    positives = int(test.hallucinated.sum())
    negatives = len(test.hallucinated) - positives
    fpr, tpr = ([0.0, 1.0], [0.0, 1.0])
    if positives and negatives:
        fpr, tpr = (curve.tolist() for curve in roc_curve(test.hallucinated, score)[:2])
    return {
        "split": "test",
        "n": len(test.hallucinated),
        "faithful": negatives,
        "hallucinated": positives,
        "questions": len(set(test.clusters)),
        "h_neurons": {
            "count": len(card.h_neurons),
            "probe_neurons": len(card.neurons),
            "share_per_mille": 1000 * card.h_neurons.share,
            "auroc": draws.interval(weighted_auroc, score).to_json(),
            "auprc": draws.interval(weighted_auprc, score).to_json(),
            "accuracy": draws.interval(accuracy_at(card.probe.threshold), risk).to_json(),
            "threshold": card.probe.threshold,
            "base_rate_accuracy": max(positives, negatives) / (positives + negatives),
        },
        "random": random,
        "baselines": baselines,
        "increment": {
            "over": list(CHEAP),
            "baseline": draws.interval(weighted_auroc, cheap).to_json(),
            "combined": draws.interval(weighted_auroc, combined).to_json(),
            "difference": draws.difference(weighted_auroc, combined, [cheap]).to_json(),
        },
        "roc": {"fpr": fpr, "tpr": tpr},
        "risks": {
            "faithful": risk[~test.hallucinated].round(6).tolist(),
            "hallucinated": risk[test.hallucinated].round(6).tolist(),
        },
    }


def verdict(result: dict[str, Any]) -> dict[str, Any]:
    """The verdict on existence, by the rule of docs/verdict.md, from a data-set object of `evaluate`."""
    detectable = minimum_detectable_auroc(result["hallucinated"], result["faithful"])
    own = result["h_neurons"]
    random = {kind: result["random"][kind]["difference"] for kind in ("uniform", "layer_matched")}
    increment = result["increment"]["difference"]
    checks = [
        {
            "name": "there are H-Neurons",
            "passed": own["count"] > 0,
            "detail": f"{own['count']} neurons with positive weight; at least one",
        },
        {
            "name": "predicts better than chance",
            "passed": above(own["auroc"], 0.5),
            "detail": f"AUROC {shown(own['auroc'])}; its interval must lie above 0.5",
        },
        {
            "name": "better than as many random neurons",
            "passed": all(above(difference, 0.0) for difference in random.values()),
            "detail": f"AUROC difference {shown(random['uniform'])} to uniform and {shown(random['layer_matched'])} to "
            "layer-matched sets; both intervals must lie above 0",
        },
        {
            "name": ADDS,
            "passed": above(increment, 0.0),
            "detail": f"AUROC gain {shown(increment)}; its interval must lie above 0",
        },
    ]
    smallest = min(result["hallucinated"], result["faithful"])
    failed = [str(check["name"]) for check in checks if not check["passed"]]
    if smallest < LEAST_PER_CLASS:
        word = TOO_LITTLE
        sentence = (
            f"Too little data to say: only {smallest} test examples of the smaller class, {LEAST_PER_CLASS} needed."
        )
    elif not failed:
        word = SUPPORTED
        sentence = (
            f"Supported: {own['count']} H-Neurons ({own['share_per_mille']:.2f} per mille) predict hallucination in "
            f"held-out answers with AUROC {shown(own['auroc'])}, better than random neurons, and they add to length "
            "and log-probability."
        )
    elif detectable > DETECTABLE:
        word = TOO_LITTLE
        sentence = (
            f"Too little data to say: with {result['n']} test examples only an AUROC of {detectable:.2f} or more could "
            f"be told from chance. Not shown: {'; '.join(failed)}."
        )
    elif failed == [ADDS]:
        word = NOT_SUPPORTED
        sentence = (
            f"Not supported: {own['count']} H-Neurons ({own['share_per_mille']:.2f} per mille) predict hallucination "
            f"in held-out answers with AUROC {shown(own['auroc'])}, better than random neurons, but no gain over "
            f"length and log-probability was seen: {shown(increment)}."
        )
    else:
        word = NOT_SUPPORTED
        sentence = (
            f"Not supported: AUROC {shown(own['auroc'])} on held-out answers. Not shown: {'; '.join(failed)}. "
            f"An AUROC of {detectable:.2f} would have been found with this many examples."
        )
    return {
        "verdict": word,
        "sentence": sentence,
        "minimum_detectable_auroc": round(detectable, 4),
        "checks": checks,
    }
