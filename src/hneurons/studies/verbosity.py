"""Truth by verbosity: the same answers, right and wrong, written short and long, two by two.

Contributions averaged over a response encode its length more strongly than its truth. Here both are set by hand: each
question gets its right answer and a wrong one, each once bare and once in a sentence, and the same sentence for both.
What the score does between right and wrong is then truth, and between short and long verbosity: nothing else moves.

The texts are teacher forced, so the model reads answers that it need not have said. For half of the questions the right
answer is the model's own and for the other half the wrong one, so that "its own words" is balanced against truth.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from hneurons.answers.normalise import contains, normalise
from hneurons.runfolder import Json
from hneurons.stats import Bootstrap, Interval, cluster_weights, percentile_interval, weighted_auroc
from hneurons.studies.answertype import answer_type
from hneurons.studies.existence import LEAST_PER_CLASS
from hneurons.types import Example, Label, Question, Span

Floats = NDArray[np.float64]
TEMPLATES: tuple[tuple[str, str], ...] = (
    ("The answer to this question is ", ", as far as it is commonly known and written about."),
    ("This is a question with a single answer, and that answer is ", "."),
    (
        "Thank you for this question. The answer that you are looking for is ",
        ". Let me know if you need anything else.",
    ),
    (
        "To answer the question as it was asked: ",
        ". That is the whole answer, and nothing else needs to be added to it.",
    ),
    ("The short answer is ", ", and the long answer is the same, since there is only one thing to be named here."),
)
"""What stands before and after the answer in a long response. None of them says anything about the answer."""
NO_ACCEPTED, NO_WRONG, SAME, UNBALANCED = "no accepted answer", "no wrong answer", "answers alike", "class full"
TRUTH, VERBOSITY, BOTH, NEITHER, TOO_LITTLE = (
    "truth more than verbosity",
    "verbosity more than truth",
    "truth and verbosity alike",
    "truth not seen",
    "too little data",
)


class Cell(StrEnum):
    """One of the four ways to write an answer."""

    RIGHT_SHORT = "right short"
    RIGHT_LONG = "right long"
    WRONG_SHORT = "wrong short"
    WRONG_LONG = "wrong long"

    @property
    def wrong(self) -> bool:
        """Whether the answer is wrong."""
        return self in (Cell.WRONG_SHORT, Cell.WRONG_LONG)

    @property
    def long(self) -> bool:
        """Whether it stands in a sentence."""
        return self in (Cell.RIGHT_LONG, Cell.WRONG_LONG)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A response that was written by template."""

    question_id: str
    question: str
    group: str
    """That of the example it comes from."""
    cell: Cell
    text: str
    answer: Span
    """Characters of `text` that hold the answer, and nothing else."""
    own: bool
    """Whether the answer is the one that the model gave."""
    template: int
    """Index into `TEMPLATES` of the question's long responses."""


@dataclass(frozen=True)
class Rewrites:
    """Four responses a question, in the order of `Cell`, and the questions that gave none, with the reason."""

    rows: list[Rewrite]
    dropped: dict[str, int]


def rewrites(examples: Sequence[Example], questions: Sequence[Question], seed: int = 0) -> Rewrites:
    """The four responses of as many faithful as hallucinated examples, in the order of `examples`.

    The right answer of a faithful example is the model's own, its wrong one the right answer of another question of the
    same domain and answer type, else of the same type; that of a hallucinated example is the model's own, and the
    right one is the question's first accepted answer. A wrong answer never holds a right one, nor is it part of one.

    Args:
        examples: held out from the probe.
        questions: all that were asked; wrong answers are borrowed from them.
        seed: which answer is borrowed, which template is used, which examples of the larger class are left out.
    """
    by_id = {question.id: question for question in questions}
    pool = _Pool(questions)
    dropped: Counter[str] = Counter()
    made: dict[Label, list[tuple[int, str, str]]] = {label: [] for label in Label}
    for row, example in enumerate(examples):
        # One generator an example: what it gets doesn't depend on which others there are.
        rng = np.random.default_rng([seed, *example.question_id.encode()])
        question = by_id.get(example.question_id)
        if question is None or not question.answers:
            dropped[NO_ACCEPTED] += 1
            continue
        own = example.response.text[example.answer_chars.start : example.answer_chars.end]
        faithful = example.label is Label.FAITHFUL
        right = own if faithful else question.answers[0]
        wrong = pool.wrong(question, right, rng) if faithful else own
        if wrong is None:
            dropped[NO_WRONG] += 1
        elif not normalise(right) or not normalise(wrong) or _alike(wrong, (right, *question.answers)):
            dropped[SAME] += 1
        else:
            made[example.label].append((row, right, wrong))
    fewest = min(len(found) for found in made.values())
    rng = np.random.default_rng(seed)
    chosen: list[tuple[int, str, str]] = []
    for found in made.values():
        dropped[UNBALANCED] += len(found) - fewest
        chosen += [found[i] for i in rng.permutation(len(found))[:fewest].tolist()]
    rows = [each for row, right, wrong in sorted(chosen) for each in _four(examples[row], right, wrong, seed)]
    return Rewrites(rows, {reason: count for reason, count in dropped.items() if count})


def _four(example: Example, right: str, wrong: str, seed: int) -> list[Rewrite]:
    rng = np.random.default_rng([seed, 1, *example.question_id.encode()])
    template = int(rng.integers(len(TEMPLATES)))
    rows: list[Rewrite] = []
    for cell in Cell:
        answer = wrong if cell.wrong else right
        before, after = TEMPLATES[template] if cell.long else ("", "")
        span = Span(len(before), len(before) + len(answer))
        own = cell.wrong is (example.label is Label.HALLUCINATED)
        text = before + answer + after
        rows.append(Rewrite(example.question_id, example.question, example.group, cell, text, span, own, template))
    return rows


class _Pool:
    """Right answers by domain and type, to borrow wrong ones from."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.shelves: dict[tuple[str, ...], dict[str, None]] = {}
        for question in questions:
            for answer in question.answers[:1]:
                kind = str(answer_type(question.question, answer))
                for key in ((kind,), (question.domain, kind)):
                    self.shelves.setdefault(key, {})[answer] = None

    def wrong(self, question: Question, right: str, rng: np.random.Generator) -> str | None:
        """An answer to another question that is none to this one, of its domain and type if there is one."""
        kind = str(answer_type(question.question, question.answers[0]))
        for key in ((question.domain, kind), (kind,)):
            shelf = list(self.shelves.get(key, {}))
            for i in rng.permutation(len(shelf)).tolist():
                if not _alike(shelf[i], (right, *question.answers)):
                    return shelf[i]
        return None


def _alike(wrong: str, right: Sequence[str]) -> bool:
    """Whether an answer is, holds or is part of a right one."""
    first, others = normalise(wrong), [normalise(answer) for answer in right]
    return any(first == other or contains(first, other) or contains(other, first) for other in others)


def two_by_two(
    scores: Floats, cells: Sequence[Cell], clusters: Sequence[object], *, draws: int = 2000, seed: int = 0
) -> Json:
    """How far truth and verbosity each move the score.

    With the means m of the four cells, in units of the pooled standard deviation within cells:
    truth = wrong minus right, averaged over short and long; verbosity = long minus short, averaged over right and
    wrong; interaction = truth among the long minus truth among the short. Positive truth is what the probe should show.

    Args:
        scores: probe score of each rewrite: (rewrites,), finite.
        cells: its cell.
        clusters: its question, the unit of the bootstrap.
        draws: bootstrap resamples.
        seed: of the bootstrap.
    """
    scores = np.asarray(scores, dtype=np.float64)
    assert scores.shape == (len(cells),) == (len(clusters),)
    wrong, long = np.array([cell.wrong for cell in cells], bool), np.array([cell.long for cell in cells], bool)
    members = {str(cell): np.array([each is cell for each in cells], bool) for cell in Cell}
    shared = Bootstrap(wrong, cluster_weights(clusters, draws, seed))
    # The data themselves stand first: every number comes from the same lines of code as its draws.
    weights = np.concatenate([np.ones((1, len(scores))), shared.weights])
    means, size = _means(scores, members, weights)
    right_short, right_long, wrong_short, wrong_long = (means[str(cell)] for cell in Cell)
    with np.errstate(divide="ignore", invalid="ignore"):
        truth = (wrong_short + wrong_long - right_short - right_long) / (2 * size)
        verbosity = (right_long + wrong_long - right_short - wrong_short) / (2 * size)
        interaction = (wrong_long - right_long - wrong_short + right_short) / size
        ratio = np.abs(verbosity) / np.abs(truth)
    questions = len({str(cluster) for cluster in clusters})
    effects = {"truth": truth, "verbosity": verbosity, "interaction": interaction}
    found = {name: _interval(values, questions) for name, values in effects.items()}
    times = _interval(ratio, questions)
    excess = _interval(np.abs(verbosity) - np.abs(truth), questions)
    aurocs: Json = {}
    for name, rows in (("short", np.flatnonzero(~long)), ("long", np.flatnonzero(long))):
        part = Bootstrap(wrong[rows], shared.weights[:, rows])
        aurocs[name] = part.interval(weighted_auroc, scores[rows]).to_json()
    word, sentence = _finding(questions, found["truth"], found["verbosity"], times, excess)
    return {
        "format": "hneurons.verbosity/1",
        "n": len(scores),
        "questions": questions,
        "finding": word,
        "sentence": sentence,
        "cells": {name: _interval(values, int(members[name].sum())).to_json() for name, values in means.items()},
        "pooled_sd": _interval(size, len(scores)).to_json(),
        **{name: effect.to_json() for name, effect in found.items()},
        "ratio": times.to_json(),
        "excess": excess.to_json(),
        "auroc": aurocs,
    }


def _means(
    scores: Floats, members: Mapping[str, NDArray[np.bool_]], weights: Floats
) -> tuple[dict[str, Floats], Floats]:
    """Mean of each cell and the standard deviation within cells, pooled with n - 1 a cell, of each row of weights."""
    means: dict[str, Floats] = {}
    squares, freedom = np.zeros(len(weights)), np.zeros(len(weights))
    for name, rows in members.items():
        here = weights[:, rows]
        total = here.sum(axis=1)
        mean = np.divide(here @ scores[rows], total, out=np.full(len(weights), np.nan), where=total > 0)
        squares += (here * (scores[rows] - mean[:, None]) ** 2).sum(axis=1)
        freedom += np.maximum(total - 1, 0)
        means[name] = mean
    return means, np.sqrt(np.divide(squares, freedom, out=np.full(len(weights), np.nan), where=freedom > 0))


def _interval(values: Floats, n: int) -> Interval:
    """The first value with the percentiles of the others."""
    return percentile_interval(float(values[0]), values[1:], n)


def _finding(
    questions: int, truth: Interval, verbosity: Interval, times: Interval, excess: Interval
) -> tuple[str, str]:
    """The first that applies, on 95 % intervals:

    1. fewer than 20 questions, or a number that is undefined: too little data;
    2. truth is not above 0: truth not seen;
    3. |verbosity| - |truth| is above 0: verbosity more than truth; below 0: truth more than verbosity; else alike.
    """
    told = f"The score moves by {truth} standard deviations from right to wrong and by {verbosity} from short to long"
    if questions < LEAST_PER_CLASS or not math.isfinite(truth.low) or not math.isfinite(excess.low):
        return TOO_LITTLE, (
            f"Too little data to tell truth from verbosity: {questions} questions; {LEAST_PER_CLASS} with scores that "
            "differ are needed."
        )
    if not truth.low > 0:
        return NEITHER, (
            f"{told}: with the words given, it does not tell right from wrong. The verdict may then rest on how "
            "the model speaks when it errs, and not on the error."
        )
    if excess.low > 0:
        return VERBOSITY, f"{told}, {times.value:.1f} times as far: compare risks only between answers of one style."
    if excess.high < 0:
        return TRUTH, f"{told}: truth counts for more than style; the verdict is untouched."
    return BOTH, f"{told}: neither is seen to count for more; compare risks with care between short and long answers."
