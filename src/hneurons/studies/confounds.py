"""Confounds: whether the probe predicts hallucination, or something plain that goes along with it.

A confound (the response's length, the answer's type, ...) explains a prediction when nothing is left of it among
examples in which the confound is alike. So each study compares only pairs of a hallucinated and a faithful example
from the same stratum: the stratified Mann-Whitney statistic, an AUROC "at equal length".

The strata of a category are its values. Those of a number are its values too while they are few; else quantile groups,
as many as the data carry (a tenth of the examples, between 4 and 20). Four quarters, which are what a reader wants to
see, are too wide to compare in: inside a quarter the longer answers are still the more hallucinated ones, and a probe
of pure length would keep part of its AUROC. How much of the confound the strata leave is reported beside the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hneurons.errors import MissingExtraError
from hneurons.extras import need
from hneurons.runfolder import Json
from hneurons.stats import Bootstrap, Interval, quantile_groups, rank_correlation, stratified_auroc, weighted_auroc
from hneurons.studies.answertype import answer_type
from hneurons.studies.existence import LEAST_PER_CLASS
from hneurons.types import Example, Label

Floats = NDArray[np.float64]
Values = Floats | Sequence[str]
"""A number of each example (NaN where it has none), or a category."""
LEAST_IN_STRATUM = 10  # of each class, for a stratum to have an AUROC of its own
QUARTERS, MOST_STRATA = 4, 20
REST = "all others"
FREQUENCY = "answer word frequency"
NOTHING, TOO_LITTLE, UNEXPLAINED, PARTLY, EXPLAINED, UNCLEAR = (
    "nothing to explain",
    "too little data",
    "not explained",
    "partly explained",
    "explained",
    "unclear",
)


def confounds(
    scores: Floats,
    examples: Sequence[Example],
    *,
    draws: int = 2000,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Json:
    """Every confound of a set of held-out examples, each with what it means for the verdict.

    Args:
        scores: probe score of each example: (examples,).
        examples: with label, response and answer; `question_id` is the unit of the bootstrap.
        draws: bootstrap resamples.
        seed: of the bootstrap.
        tick: called after each confound.
    """
    values, skipped = confound_values(examples)
    hallucinated = np.array([example.label is Label.HALLUCINATED for example in examples], dtype=bool)
    clusters = [example.question_id for example in examples]
    found: Json = {}
    for name, value in values.items():
        found[name] = within_strata(scores, hallucinated, value, clusters, draws=draws, seed=seed, name=name)
        tick()
    return {"format": "hneurons.confounds/1", "n": len(examples), "confounds": found, "skipped": skipped}


def confound_values(examples: Sequence[Example]) -> tuple[dict[str, Values], dict[str, str]]:
    """The confounds of each example by name, and the reason of each that can't be had.

    Lengths are in tokens, those of a thinking block left out. A confound in which all examples are alike is none.
    """
    answers = [e.response.text[e.answer_chars.start : e.answer_chars.end] for e in examples]
    values: dict[str, Values] = {
        "response length": np.array([len(e.response.said) for e in examples], dtype=np.float64),
        "answer length": np.array([e.answer_tokens.end - e.answer_tokens.start for e in examples], dtype=np.float64),
        "answer type": [str(answer_type(e.question, answer)) for e, answer in zip(examples, answers, strict=True)],
        "question domain": [e.domain for e in examples],
    }
    skipped: dict[str, str] = {}
    try:
        values[FREQUENCY] = np.array([word_frequency(answer) for answer in answers])
    except MissingExtraError as error:
        skipped[FREQUENCY] = str(error)
    for name in list(values):
        if len(np.unique(values[name])) < 2:
            skipped[name] = "all examples are alike"
            del values[name]
    return values, skipped


def word_frequency(answer: str, language: str = "en") -> float:
    """Mean Zipf frequency of the words of `answer` in everyday text; NaN without a word.

    Zipf frequency is log10 of occurrences in a billion words (Speer 2022, `wordfreq`): 3 is once in a million, 0 is
    unknown. From outside on purpose: counted in the run's own responses, a word would be frequent *because* the model
    repeats it where it is sure, which is the label over again.

    Raises:
        MissingExtraError: `wordfreq` isn't installed.
    """
    wordfreq = need("wordfreq", "confounds")
    words: list[str] = wordfreq.tokenize(answer, language)
    return float(np.mean([wordfreq.zipf_frequency(word, language) for word in words])) if words else math.nan


def within_strata(
    scores: Floats,
    hallucinated: NDArray[np.bool_],
    values: Values,
    clusters: Sequence[object],
    *,
    draws: int = 2000,
    seed: int = 0,
    name: str = "the confound",
) -> Json:
    """How much of the AUROC is left among examples that are alike in one confound.

    Args:
        scores: (examples,), finite.
        hallucinated: (examples,).
        values: of the confound, (examples,); examples with NaN are left out and counted.
        clusters: unit of the bootstrap of each example.
        draws: bootstrap resamples.
        seed: of the bootstrap.
        name: what the sentence calls the confound.
    """
    scores, numeric = np.asarray(scores, dtype=np.float64), isinstance(values, np.ndarray)
    array = np.asarray(values)
    assert scores.shape == array.shape == hallucinated.shape == (len(clusters),)
    kept = np.flatnonzero(np.isfinite(array)) if numeric else np.arange(len(array))
    scores, hallucinated, array = scores[kept], hallucinated[kept], array[kept]
    shared = Bootstrap.of(hallucinated, [clusters[row] for row in kept.tolist()], draws=draws, seed=seed)
    strata = quantile_groups(array, _fineness(len(array))) if numeric else array
    alike = _with_partner(strata, hallucinated)
    within = stratified_auroc(strata)

    def lost(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
        return weighted_auroc(scores, positive, weights) - within(scores, positive, weights)

    plain = shared.interval(weighted_auroc, scores)
    equal = _subset(shared, alike).interval(stratified_auroc(strata[alike]), scores[alike])
    difference = shared.interval(lost, scores)
    fewest = int(min(hallucinated[alike].sum(), (~hallucinated[alike]).sum()))
    word, sentence = _finding(name, plain, equal, difference, fewest)
    own: Json | None = None
    correlation: Json | None = None
    if numeric:
        own = {
            "auroc": shared.interval(weighted_auroc, array).to_json(),
            "within": _subset(shared, alike).interval(stratified_auroc(strata[alike]), array[alike]).to_json(),
        }
        correlation = {}
        for label, rows in (
            ("faithful", np.flatnonzero(~hallucinated)),
            ("hallucinated", np.flatnonzero(hallucinated)),
        ):
            correlation[label] = _subset(shared, rows).interval(rank_correlation(array[rows]), scores[rows]).to_json()
    return {
        "kind": "number" if numeric else "category",
        "n": len(array),
        "left_out": len(values) - len(array),
        "finding": word,
        "sentence": sentence,
        "auroc": plain.to_json(),
        "within": equal.to_json(),
        "difference": difference.to_json(),
        "matched_strata": len(np.unique(strata[alike])),
        "pairs_share": _pairs_share(strata, hallucinated),
        "confound": own,
        "spearman": correlation,
        "strata": _rows(scores, array, strata, shared, numeric),
    }


def _fineness(examples: int) -> int:
    return min(max(examples // 10, QUARTERS), MOST_STRATA)


def _subset(shared: Bootstrap, rows: NDArray[np.intp]) -> Bootstrap:
    """The same resamples, seen on some of the examples."""
    return Bootstrap(shared.positive[rows], shared.weights[:, rows])


def _with_partner(strata: NDArray[Any], hallucinated: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Examples whose stratum has both classes."""
    both = np.intersect1d(strata[hallucinated], strata[~hallucinated])
    return np.flatnonzero(np.isin(strata, both))


def _pairs_share(strata: NDArray[Any], hallucinated: NDArray[np.bool_]) -> float | None:
    """Share of all pairs of a hallucinated and a faithful example that lie in one stratum."""
    total = int(hallucinated.sum()) * int((~hallucinated).sum())
    names = np.unique(strata)
    same = sum(int(hallucinated[strata == n].sum()) * int((~hallucinated)[strata == n].sum()) for n in names)
    return round(same / total, 6) if total else None


def _rows(scores: Floats, values: NDArray[Any], strata: NDArray[Any], shared: Bootstrap, numeric: bool) -> list[Json]:
    """The AUROC in each quarter of a number, or in each category; small categories go together.

    In the quarters all pairs count, in the small categories only those of the same category.
    """
    shown: Mapping[str, NDArray[np.intp]]
    if numeric:
        quarters = quantile_groups(values, QUARTERS)
        groups = [np.flatnonzero(quarters == quarter) for quarter in np.unique(quarters)]
        shown = {_range(values[rows]): rows for rows in groups}
    else:
        shown, small = {}, []
        for name in np.unique(values):
            rows = np.flatnonzero(values == name)
            if _fewest(shared, rows) >= LEAST_IN_STRATUM:
                shown[str(name)] = rows
            else:
                small.append(rows)
        if small:
            shown[REST] = np.sort(np.concatenate(small))
    out: list[Json] = []
    for name, rows in shown.items():
        auroc = Interval(math.nan, math.nan, math.nan, len(rows))
        if _fewest(shared, rows) >= LEAST_IN_STRATUM:
            metric = weighted_auroc if numeric else stratified_auroc(strata[rows])
            auroc = _subset(shared, rows).interval(metric, scores[rows])
        hallucinated = int(shared.positive[rows].sum())
        bounds = {"low": float(values[rows].min()), "high": float(values[rows].max())} if numeric else {}
        counts = {"faithful": len(rows) - hallucinated, "hallucinated": hallucinated}
        out.append({"name": name, **bounds, **counts, "auroc": auroc.to_json()})
    return out


def _fewest(shared: Bootstrap, rows: NDArray[np.intp]) -> int:
    positives = int(shared.positive[rows].sum())
    return min(positives, len(rows) - positives)


def _range(values: Floats) -> str:
    low, high = f"{values.min():.4g}", f"{values.max():.4g}"
    return low if low == high else f"{low} to {high}"


def _finding(name: str, plain: Interval, equal: Interval, difference: Interval, fewest: int) -> tuple[str, str]:
    """What the confound explains, and the sentence. The first that applies:

    1. fewer than 20 examples of a class have a partner of the other class in their stratum: too little data;
    2. the AUROC overall is not above 0.5: nothing to explain;
    3. the AUROC at equal confound is above 0.5: partly explained if the difference is above 0, else not explained;
    4. the difference is above 0: explained;
    5. otherwise unclear.

    "Above" is of the 95 % interval.
    """
    told = f"At equal {name} AUROC is {equal} against {plain} overall"
    if fewest < LEAST_PER_CLASS:
        return TOO_LITTLE, (
            f"Too little data to compare at equal {name}: only {fewest} examples of the smaller class have a partner. "
            f"The verdict is not tested against {name}."
        )
    if not plain.low > 0.5:
        return NOTHING, f"AUROC is {plain} overall, not above chance: there is nothing for {name} to explain."
    if equal.low > 0.5 and difference.low > 0:
        tail = f"{name} explains {difference} of it and the rest remains; read the verdict with the smaller number."
        return PARTLY, f"{told}: {tail}"
    if equal.low > 0.5:
        return UNEXPLAINED, f"{told}: {name} does not explain the prediction; the verdict is untouched."
    if difference.low > 0:
        tail = f"nothing above chance remains, so the neurons may measure {name} and not truth, whatever the verdict."
        return EXPLAINED, f"{told}: {tail}"
    return UNCLEAR, f"{told}: too wide to say whether {name} explains the prediction; the verdict leaves it open."
