"""Existence: how well the H-Neurons predict on held-out examples, against controls, and the verdict by rule.

The rule, word for word, is in docs/verdict.md; change both together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from hneurons.neurons.card import Card
from hneurons.neurons.choose import TrainingData, auroc
from hneurons.neurons.probe import l1_path, path_grid, smallest_c
from hneurons.settings import IdentifySettings
from hneurons.stats import (
    Bootstrap,
    Interval,
    accuracy_at,
    minimum_detectable_auroc,
    weighted_auprc,
    weighted_auroc,
)

Floats = NDArray[np.float64]
LEAST_PER_CLASS = 20
DETECTABLE = 0.65
SUPPORTED, NOT_SUPPORTED, TOO_LITTLE = "supported", "not supported", "too little data"
ADDS = "adds to length and log-probability"
CHEAP = ("length", "mean log-probability")


@dataclass(frozen=True)
class EvaluationData:
    """Held-out examples: features of the answer region and what is known without the neurons."""

    features: NDArray[np.float32]
    hallucinated: NDArray[np.bool_]
    length: Floats
    """Response tokens."""
    logprob: Floats
    """Mean token log-probability of the response."""
    clusters: list[str]
    """Question ids, the unit of the bootstrap."""

    @property
    def cheap(self) -> Floats:
        """Length and mean log-probability: (examples, 2)."""
        return np.column_stack([self.length, self.logprob])


def random_columns(card: Card, seed: int, layer_matched: bool) -> NDArray[np.intp]:
    """As many random neurons as the probe uses, none of them its own; layer-matched: as many in each layer."""
    rng = np.random.default_rng([seed, int(layer_matched)])
    own = card.columns
    if not layer_matched:
        free = np.setdiff1d(np.arange(card.model.neurons), own)
        return np.sort(rng.choice(free, size=min(len(own), len(free)), replace=False))
    starts = card.model.layout.starts
    picks: list[NDArray[np.intp]] = []
    for layer in range(card.model.layers):
        inside = own[(own >= starts[layer]) & (own < starts[layer + 1])]
        free = np.setdiff1d(np.arange(starts[layer], starts[layer + 1]), inside)
        picks.append(rng.choice(free, size=min(len(inside), len(free)), replace=False))
    return np.sort(np.concatenate(picks))


def control_scores(
    columns: NDArray[np.intp], train: TrainingData, validation: EvaluationData, test: EvaluationData
) -> tuple[Floats, Floats]:
    """Scores on validation and test of the same classifier on other neurons.

    Its C is the best of ten on the validation examples, an advantage that the H-Neurons' own probe doesn't get.
    """
    if not len(columns):
        return np.zeros(len(validation.length)), np.zeros(len(test.length))
    features, positive = train.of_neurons(columns).design()
    lowest = smallest_c(features, positive)
    fits = l1_path(features, positive, path_grid(lowest, 1000 * lowest, 10))
    held_out = np.ascontiguousarray(validation.features[:, columns])
    best = max(fits, key=lambda fit: auroc(validation.hallucinated, fit.score(held_out)))
    return best.score(held_out), best.score(np.ascontiguousarray(test.features[:, columns]))


def cheap_scores(fit_on: Floats, hallucinated: NDArray[np.bool_], apply_to: Floats) -> Floats:
    """Log-odds of a logistic regression on plain numbers with squares and products: (examples, numbers) -> (examples,).

    The squares matter: where very short and very long answers are both wrong, a straight line in length is blind to it,
    and neurons that merely measure length would seem to add something.
    """
    curved = PolynomialFeatures(2, include_bias=False)
    model = make_pipeline(StandardScaler(), curved, StandardScaler(), LogisticRegression(class_weight="balanced"))
    return np.asarray(model.fit(fit_on, hallucinated).decision_function(apply_to), dtype=np.float64)


def evaluate(
    card: Card,
    train: TrainingData,
    validation: EvaluationData,
    test: EvaluationData,
    settings: IdentifySettings,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The evaluation of one data set: H-Neurons, controls, baselines, increment, curves.

    Returns a data-set object of evaluation.json (docs/run-folder.md).
    """
    draws = Bootstrap.of(test.hallucinated, test.clusters, draws=settings.bootstrap, seed=settings.seed)
    score, held_out = card.score(test.features), card.score(validation.features)
    risk = card.risk(score)
    random: dict[str, dict[str, Any]] = {}
    for kind, matched in (("uniform", False), ("layer_matched", True)):
        count = settings.random_sets // 2 + (0 if matched else settings.random_sets % 2)
        pairs: list[tuple[Floats, Floats]] = []
        for seed in range(count):
            columns = random_columns(card, settings.seed * 1000 + seed, matched)
            pairs.append(control_scores(columns, train, validation, test))
            tick()
        aurocs = [auroc(test.hallucinated, scores) for _, scores in pairs]
        accuracies = [_calibrated_accuracy(draws, validation.hallucinated, *pair).value for pair in pairs]
        random[kind] = {
            "auroc": aurocs,
            "accuracy": accuracies,
            "mean_auroc": float(np.mean(aurocs)),
            "difference": draws.difference(weighted_auroc, score, [s for _, s in pairs]).to_json(),
        }
    baselines: dict[str, Any] = {}
    columns = {"length": [0], "mean log-probability": [1], "length + mean log-probability": [0, 1]}
    for name, used in columns.items():
        fitted = cheap_scores(validation.cheap[:, used], validation.hallucinated, test.cheap[:, used])
        baselines[name] = {
            "auroc": draws.interval(weighted_auroc, fitted).to_json(),
            "accuracy": draws.interval(accuracy_at(0.0), fitted).to_json(),
        }
    cheap = cheap_scores(validation.cheap, validation.hallucinated, test.cheap)
    combined = cheap_scores(
        np.column_stack([validation.cheap, held_out]),
        validation.hallucinated,
        np.column_stack([test.cheap, score]),
    )
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


def _calibrated_accuracy(draws: Bootstrap, labels: NDArray[np.bool_], held_out: Floats, scores: Floats) -> Interval:
    return draws.interval(accuracy_at(0.0), cheap_scores(held_out[:, None], labels, scores[:, None]))


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
            "passed": _above(own["auroc"], 0.5),
            "detail": f"AUROC {_text(own['auroc'])}; its interval must lie above 0.5",
        },
        {
            "name": "better than as many random neurons",
            "passed": all(_above(difference, 0.0) for difference in random.values()),
            "detail": f"AUROC difference {_text(random['uniform'])} to uniform and {_text(random['layer_matched'])} to "
            "layer-matched sets; both intervals must lie above 0",
        },
        {
            "name": ADDS,
            "passed": _above(increment, 0.0),
            "detail": f"AUROC gain {_text(increment)}; its interval must lie above 0",
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
            f"held-out answers with AUROC {_text(own['auroc'])}, better than random neurons, and they add to length "
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
            f"in held-out answers with AUROC {_text(own['auroc'])}, better than random neurons, but no gain over "
            f"length and log-probability was seen: {_text(increment)}."
        )
    else:
        word = NOT_SUPPORTED
        sentence = (
            f"Not supported: AUROC {_text(own['auroc'])} on held-out answers. Not shown: {'; '.join(failed)}. "
            f"An AUROC of {detectable:.2f} would have been found with this many examples."
        )
    return {
        "verdict": word,
        "sentence": sentence,
        "minimum_detectable_auroc": round(detectable, 4),
        "checks": checks,
    }


def _above(interval: dict[str, Any], bound: float) -> bool:
    return interval["low"] is not None and interval["low"] > bound


def _text(interval: dict[str, Any]) -> str:
    if interval["low"] is None:
        return "undefined"
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
