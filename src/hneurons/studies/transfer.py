"""Transfer: a probe of each domain or data set, tested on every other; and which domains a card is calibrated on.

Every cell of the matrix is out of sample, the diagonal too. Examples of all parts are divided by group into folds once;
the probe of a part is fitted on that part without one fold and scores that fold of *every* part. So all cells of a
column are of the same examples, no cell has seen a question or an answer that it is tested on, and probes of the
diagonal have no more training data than others. Scores of different folds come from different fits and aren't
comparable: the AUROC of a cell counts pairs inside a fold only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from sklearn.model_selection import StratifiedGroupKFold

from hneurons.errors import TooFewExamplesError
from hneurons.neurons.calibration import brier, calibrate
from hneurons.neurons.card import Card
from hneurons.neurons.choose import TrainingData, choose_probe
from hneurons.neurons.probe import Fit, l1_path, smallest_c
from hneurons.neurons.risk import Calibration, Isotonic, Platt
from hneurons.runfolder import Json
from hneurons.settings import IdentifySettings
from hneurons.stats import Bootstrap, Interval, cluster_weights, percentile_interval, stratified_auroc
from hneurons.studies.existence import LEAST_PER_CLASS

Floats = NDArray[np.float64]
Cell = tuple[float, Floats]
"""An AUROC, and that of each resample."""
FOLDS = 3
CROSS_VALIDATED = "C of each part by cross-validation inside its training folds"
SHOWN = 5
"""Domains that a warning names."""
HOLDS, WEAKER, FAILS, TOO_LITTLE = "transfers", "transfers in part", "does not transfer", "too little data"


def transfer_matrix(
    parts: Mapping[str, TrainingData],
    settings: IdentifySettings,
    *,
    multiple: float | None = None,
    folds: int = FOLDS,
    tick: Callable[[], None] = lambda: None,
) -> Json:
    """The AUROC of a probe of each part on each part.

    Args:
        parts: examples by domain or data set. Groups may occur in several parts; they are kept apart all the same.
        settings: of the probe, with its own `folds` for the cross-validation of C, and of the bootstrap. Its `C` isn't
            used: C counts rows, so one value doesn't suit parts of different size.
        multiple: if given, C is this multiple of the smallest C with a neuron of each part, without
            cross-validation and far faster; what the run's own C is of its smallest is the natural choice.
        folds: of the matrix.
        tick: called after each fit of a part and fold.
    """
    skipped = {name: reason for name, part in parts.items() if (reason := _too_few(part))}
    used = {name: part for name, part in parts.items() if name not in skipped}
    fits: dict[str, list[Fit]] = {}
    placed = _folds(used, folds, settings.seed) if used else {}
    for name, part in list(used.items()):
        try:
            fits[name] = []
            for fold in range(folds):
                inside = part.take(np.flatnonzero(placed[name] != fold))
                fits[name].append(_fit(inside, settings, multiple))
                tick()
        except TooFewExamplesError as error:
            skipped[name] = error.problem
            del used[name], fits[name]
    # One set of resamples for the whole matrix: a group that two parts share is drawn in both or in neither.
    names = list(used)
    everyone = [str(group) for part in used.values() for group in part.groups]
    weights = cluster_weights(everyone, settings.bootstrap, settings.seed)
    bounds = np.cumsum([0, *(len(part.groups) for part in used.values())])
    cells: list[Json] = []
    values: dict[tuple[str, str], Cell] = {}
    for column, test in enumerate(names):
        part, fold_of = used[test], placed[test]
        shared = Bootstrap(part.hallucinated, weights[:, bounds[column] : bounds[column + 1]])
        metric = stratified_auroc(fold_of)
        for train in names:
            scores = np.zeros(len(fold_of))
            for fold, fit in enumerate(fits[train]):
                rows = np.flatnonzero(fold_of == fold)
                scores[rows] = fit.score(part.answer[rows])
            point, draws = values[train, test] = shared.distribution(metric, scores)
            auroc = percentile_interval(point, draws, len(scores))
            cells.append({"train": train, "test": test, "auroc": auroc.to_json()})
    own = _mean([values[one, one] for one in names])
    other = _mean([values[train, test] for train in names for test in names if train != test])
    inside, across = (percentile_interval(*mean, len(everyone)) for mean in (own, other))
    lost = own[1] - other[1] if len(names) > 1 else np.zeros(0)
    loss = percentile_interval(own[0] - other[0], lost, len(everyone))
    word, sentence = _finding(len(names), inside, across, loss)
    return {
        "format": "hneurons.transfer/1",
        "folds": folds,
        "rule": CROSS_VALIDATED if multiple is None else f"C = {multiple:.4g} times the smallest C with a neuron",
        "finding": word,
        "sentence": sentence,
        "parts": [_described(name, used[name], fits[name]) for name in names],
        "skipped": skipped,
        "cells": cells,
        "in_domain": inside.to_json(),
        "across": across.to_json(),
        "loss": loss.to_json(),
    }


def _too_few(part: TrainingData) -> str:
    counts = {"hallucinated": int(part.hallucinated.sum()), "faithful": int((~part.hallucinated).sum())}
    return "; ".join(
        f"only {count} {name} examples, {LEAST_PER_CLASS} needed"
        for name, count in counts.items()
        if count < LEAST_PER_CLASS
    )


def _folds(parts: Mapping[str, TrainingData], folds: int, seed: int) -> dict[str, NDArray[np.intp]]:
    """The fold of each example of each part; a group has the same fold wherever it occurs."""
    groups = np.concatenate([part.groups.astype(str) for part in parts.values()])
    kinds = np.concatenate([2 * place + part.hallucinated.astype(np.intp) for place, part in enumerate(parts.values())])
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    found = np.zeros(len(groups), dtype=np.intp)
    for fold, (_, outside) in enumerate(splitter.split(groups, kinds, groups)):
        found[outside] = fold
    sizes = np.cumsum([len(part.groups) for part in parts.values()])[:-1]
    return dict(zip(parts, np.split(found, sizes), strict=True))


def _fit(train: TrainingData, settings: IdentifySettings, multiple: float | None) -> Fit:
    if multiple is None:
        return choose_probe(train, train, settings.model_copy(update={"C": None})).fit
    features, positive = train.design()
    if not 0 < positive.sum() < len(positive):
        raise TooFewExamplesError("A fold leaves one class only.", "Ask more questions.")
    return l1_path(features, positive, [multiple * smallest_c(features, positive)], solver=settings.solver)[0]


def _described(name: str, part: TrainingData, fits: Sequence[Fit]) -> Json:
    hallucinated = int(part.hallucinated.sum())
    return {
        "name": name,
        "n": len(part.hallucinated),
        "faithful": len(part.hallucinated) - hallucinated,
        "hallucinated": hallucinated,
        "C": [fit.C for fit in fits],
        "positives": [int((fit.weights > 0).sum()) for fit in fits],
    }


def _mean(values: Sequence[Cell]) -> Cell:
    """The mean over cells, and of each draw; NaN without cells."""
    if not values:
        return math.nan, np.zeros(0)
    return float(np.mean([point for point, _ in values])), np.mean([draws for _, draws in values], axis=0)


def _finding(parts: int, inside: Interval, across: Interval, loss: Interval) -> tuple[str, str]:
    """The first that applies, on 95 % intervals: fewer than two parts, too little data; the mean AUROC across parts is
    not above 0.5, does not transfer; the loss is above 0, transfers in part; else transfers.
    """
    if parts < 2 or not math.isfinite(loss.low):
        return TOO_LITTLE, f"Too little data to test transfer: {parts} of the parts have enough examples, 2 needed."
    told = f"Mean AUROC is {inside} inside a part and {across} across parts"
    if not across.low > 0.5:
        return FAILS, f"{told}: no transfer is seen, so the verdict holds for the parts that the probe was fitted on."
    if loss.low > 0:
        return WEAKER, f"{told}: the neurons transfer, but lose {loss}; recalibrate and re-evaluate in a new domain."
    return HOLDS, f"{told}: no loss is seen between them."


def per_domain_calibration(scores: Floats, hallucinated: NDArray[np.bool_], domains: Sequence[str]) -> Json:
    """Platt scaling of each domain with at least 20 held-out examples of each class, and the pooled one for the rest.

    Args:
        scores: probe score of each held-out example: (examples,).
        hallucinated: (examples,).
        domains: (examples,).
    """
    names, place = np.unique(np.asarray(domains, dtype=str), return_inverse=True)
    own: Json = {}
    pooled = calibrate(scores, hallucinated)
    for index, name in enumerate(names.tolist()):
        rows = place == index
        positives = int(hallucinated[rows].sum())
        if min(positives, int(rows.sum()) - positives) >= LEAST_PER_CLASS:
            own[name] = calibrate(scores[rows], hallucinated[rows]).model_dump(mode="json")
    return {
        "pooled": pooled.model_dump(mode="json"),
        "domains": own,
        "covered": list(own),
        "left_to_pooled": {name: int((place == i).sum()) for i, name in enumerate(names.tolist()) if name not in own},
    }


def risk_in(calibration: Json, scores: Floats, domain: str | None) -> Floats:
    """Risk of scores in a domain, by its own calibration where it has one: (examples,) -> (examples,).

    None stands for a domain of which nothing is known.
    """
    kind: TypeAdapter[Platt | Isotonic] = TypeAdapter(Calibration)
    own = None if domain is None else calibration["domains"].get(domain)
    return kind.validate_python(own or calibration["pooled"]).risk(scores)


def domain_calibration_test(
    calibration: Json,
    scores: Floats,
    hallucinated: NDArray[np.bool_],
    domains: Sequence[str],
    clusters: Sequence[object],
    *,
    draws: int,
    seed: int,
) -> Json | None:
    """What calibrating by domain is worth on test answers: Brier scores in the domains that have their own calibration.

    Returns `n`, the score by their `own`, by the `pooled` calibration, and the `difference`, paired; None without such
    answers.
    """
    names = np.asarray(domains, dtype=str)
    rows = np.flatnonzero([name in calibration["domains"] for name in names.tolist()])
    if not len(rows):
        return None
    own, pooled = np.zeros(len(rows)), risk_in(calibration, scores[rows], None)
    for name in np.unique(names[rows]).tolist():
        here = names[rows] == name
        own[here] = risk_in(calibration, scores[rows[here]], name)
    shared = Bootstrap.of(hallucinated[rows], [clusters[row] for row in rows.tolist()], draws=draws, seed=seed)
    return {
        "n": len(rows),
        "own": shared.interval(brier(), own).to_json(),
        "pooled": shared.interval(brier(), pooled).to_json(),
        "difference": shared.difference(brier(), own, [pooled]).to_json(),
    }


def domain_counts(domains: Iterable[str]) -> dict[str, int]:
    """How many there are of each domain, by name: what a card's `provenance["domains"]` holds."""
    return dict(sorted(Counter(domains).items()))


def outside_domains(card: Card, domains: Iterable[str]) -> dict[str, int]:
    """Those of `domains` that the card wasn't calibrated on, and how many; none if the card doesn't say on which."""
    known: dict[str, Any] = card.provenance.get("domains") or {}
    return domain_counts(domain for domain in domains if known and not known.get(domain))


def warning(outside: Mapping[str, int]) -> str:
    """The sentence that belongs beside risks in domains outside of the calibration; empty if there are none."""
    if not outside:
        return ""
    names = [domain or "(no domain)" for domain in outside]
    listed = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return (
        f"The card was not calibrated on: {listed}. Risks there may be off and the order of answers by risk less sure; "
        "evaluate the card on examples of your own first."
    )
