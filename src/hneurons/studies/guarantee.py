"""Thresholds with a guarantee: what may go unflagged, chosen on calibration answers and checked on test answers.

`control` promises a bound on the hallucinated share of the unflagged answers, `control_misses` one on the unflagged
share of the hallucinated answers. What exactly is promised, and when it isn't, is in docs/guarantee.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from hneurons.errors import NumericError, TooFewExamplesError, UsageError
from hneurons.neurons.calibration import interval_at_prevalence, proportion
from hneurons.neurons.risk import Guarantee
from hneurons.stats import Floats

Labels = NDArray[np.bool_]
MORE = "Asking more questions helps, and so does allowing a larger share with a higher alpha."


@dataclass(frozen=True)
class Answers:
    """Scored answers with known labels, one a cluster."""

    scores: Floats
    hallucinated: Labels

    @classmethod
    def of(cls, scores: ArrayLike, hallucinated: ArrayLike, clusters: Sequence[object] | None = None) -> Answers:
        """The first answer of each cluster, in the order given.

        Answers to the same question aren't independent, and the promises count independent ones.

        Raises:
            NumericError: a score is NaN or infinite.
            UsageError: the lengths differ.
        """
        values, labels = np.asarray(scores, dtype=np.float64), np.asarray(hallucinated, dtype=bool)
        names = [str(cluster) for cluster in (range(len(values)) if clusters is None else clusters)]
        if values.ndim != 1 or values.shape != labels.shape or len(names) != len(values):
            raise UsageError(
                f"{values.shape} scores, {labels.shape} labels and {len(names)} clusters don't belong together.",
                "Give one of each for every answer.",
            )
        if not np.isfinite(values).all():
            raise NumericError("A score is NaN or infinite.", "Leave that answer out, or look at its activations.")
        rows = np.sort(np.unique(np.array(names, dtype=str), return_index=True)[1])
        return cls(values[rows], labels[rows])

    def with_prevalence(self, prevalence: float, seed: int) -> Answers:
        """A random part of the answers, drawn as if a share `prevalence` of all answers were hallucinated.

        The number of hallucinated ones is random too, as it is in a draw of answers; where the faithful ones don't
        suffice for it, there are more hallucinated ones than drawn, which can only make a promise more careful.
        """
        rng = np.random.default_rng(seed)
        bad, good = np.flatnonzero(self.hallucinated), np.flatnonzero(~self.hallucinated)
        size = min(len(bad), int(len(good) / (1 - prevalence)))
        count = max(int(rng.binomial(size, prevalence)), size - len(good))
        rows = np.concatenate([rng.permutation(bad)[:count], rng.permutation(good)[: size - count]])
        return Answers(self.scores[rows], self.hallucinated[rows])


# -- the hallucinated share of the unflagged answers ------------------------------------------------


def least_answers(alpha: float = 0.05, delta: float = 0.1) -> int:
    """The fewest calibration answers from which `control` can promise anything.

    Without one hallucinated answer among k unflagged ones a larger share than alpha is refuted only when
    (1 - alpha)^k <= delta; one more answer sets the threshold.
    """
    unflagged = max(1, math.ceil(math.log(delta) / math.log1p(-alpha)) - 1)
    while p_value(0, unflagged, alpha) > delta:
        unflagged += 1
    return unflagged + 1


def p_value(hallucinated: ArrayLike, unflagged: ArrayLike, alpha: float) -> Floats:
    """Exact p-value of "more than alpha of the unflagged answers are hallucinated": the lower binomial tail.

    `hallucinated` of `unflagged` calibration answers; the arrays have one shape. 1 where nothing is unflagged.
    """
    return np.asarray(binom.cdf(hallucinated, unflagged, alpha), dtype=np.float64)


def candidate_ranks(n: int, alpha: float, delta: float, least_share: float) -> NDArray[np.intp]:
    """How many of `n` calibration answers the candidate thresholds leave unflagged, ascending.

    The fewest that tolerate no hallucinated answer at all, the fewest that tolerate one, two, ...; from the first that
    is `least_share` of all onwards. It depends on nothing but the arguments, as fixed-sequence testing requires.
    """
    unflagged = np.arange(1, n)
    tolerated = binom.ppf(delta, unflagged, alpha)
    tolerated -= p_value(tolerated, unflagged, alpha) > delta
    distinct, first = np.unique(tolerated, return_index=True)
    ranks = unflagged[first][distinct >= 0]
    return ranks[min(int(np.searchsorted(ranks, least_share * n)), max(len(ranks) - 1, 0)) :]


def control(
    scores: ArrayLike,
    hallucinated: ArrayLike,
    clusters: Sequence[object] | None = None,
    *,
    alpha: float = 0.05,
    delta: float = 0.1,
    least_share: float = 0.1,
    prevalence: float | None = None,
    seed: int = 0,
) -> Guarantee:
    """The threshold that leaves most answers unflagged while at most `alpha` of the unflagged ones are hallucinated.

    With probability 1 - delta over the calibration answers, whatever their number. Learn then Test (Angelopoulos et
    al. 2021) with exact binomial p-values: candidates are tested one after the other, the strictest first, each at
    level delta, until one fails. Exact where the hallucinated share of the answers below a threshold, once above
    alpha, stays above it as the threshold rises.

    Args:
        scores: Probe scores of calibration answers that the probe wasn't fitted on, or anything else that rises with
            the risk: (answers,).
        hallucinated: Their labels: (answers,).
        clusters: Question ids; the first answer of each is used. By default each answer is its own.
        alpha: The largest hallucinated share of the unflagged answers.
        delta: Chance of calibration answers that make the promise false.
        least_share: The smallest unflagged share worth a promise: where the tests begin.
        prevalence: Share of hallucinated answers where the threshold will be used; answers are left out at random
            until the calibration data have it. None: it is that of the calibration data.
        seed: Of the answers left out.

    Raises:
        TooFewExamplesError: so few answers that no result could have led to a promise; says how many are needed.
        UsageError: an argument out of range.
        NumericError: a score is NaN or infinite.
    """
    _check(alpha=alpha, delta=delta, least_share=least_share, prevalence=prevalence)
    answers = Answers.of(scores, hallucinated, clusters)
    if prevalence is not None:
        answers = answers.with_prevalence(prevalence, seed)
    n, needed = len(answers.scores), least_answers(alpha, delta)
    if n < needed:
        left = "" if prevalence is None else f" left at a prevalence of {_percent(prevalence)}"
        raise TooFewExamplesError(
            f"Only {n} calibration answers{left}: to promise at most {_percent(alpha)} hallucinated ones among the "
            f"unflagged with {_percent(1 - delta)} confidence takes {needed}, even if none of them is.",
            f"{MORE} A higher delta settles for less confidence.",
        )
    order = np.argsort(answers.scores, kind="stable")
    ordered = answers.scores[order]
    wrong = np.concatenate([[0], np.cumsum(answers.hallucinated[order])])
    candidates = ordered[candidate_ranks(n, alpha, delta, least_share)]
    unflagged = np.searchsorted(ordered, candidates)  # ties with the threshold are flagged
    passed = p_value(wrong[unflagged], unflagged, alpha) <= delta
    count = len(passed) if passed.all() else int(passed.argmin())
    threshold = float(candidates[count - 1]) if count else None
    kept = int(unflagged[count - 1]) if count else 0
    promise = f"at most {_percent(alpha)} of the unflagged answers are hallucinated"
    if count:
        sentence = f"Flag scores from {threshold:.4g} up: with {_percent(1 - delta)} confidence {promise}"
        sentence += f" ({wrong[kept]} of {kept} in the calibration data)."
    else:
        sentence = f"Flag everything: that {promise} can't be promised with {_percent(1 - delta)} confidence. Of the "
        sentence += f"{unflagged[0]} calibration answers with a score below {candidates[0]:.4g}, "
        sentence += f"{wrong[unflagged[0]]} are. {MORE}"
    return Guarantee(
        method="learn then test",
        alpha=alpha,
        delta=delta,
        threshold=threshold,
        n=n,
        flagged_share_on_calibration=(n - kept) / n,
        prevalence=prevalence,
        sentence=sentence,
    )


# -- the unflagged share of the hallucinated answers -------------------------------------------------


def control_misses(
    scores: ArrayLike, hallucinated: ArrayLike, clusters: Sequence[object] | None = None, *, alpha: float = 0.05
) -> Guarantee:
    """The highest threshold at which at most `alpha` of the hallucinated answers go unflagged.

    On average over calibration data, and whatever the share of hallucinated answers. Conformal risk control
    (Angelopoulos et al. 2024) of the loss "hallucinated and not flagged", given that the answer is hallucinated.

    Args:
        scores: As in `control`.
        hallucinated: As in `control`.
        clusters: As in `control`.
        alpha: The largest unflagged share of the hallucinated answers.

    Raises:
        TooFewExamplesError: so few hallucinated answers that everything would have to be flagged.
        UsageError: an argument out of range.
        NumericError: a score is NaN or infinite.
    """
    _check(alpha=alpha)
    answers = Answers.of(scores, hallucinated, clusters)
    ordered = np.sort(answers.scores[answers.hallucinated])
    rank = math.floor(alpha * (len(ordered) + 1) + 1e-9)
    if rank < 1:
        raise TooFewExamplesError(
            f"Only {len(ordered)} hallucinated calibration answers: to miss at most {_percent(alpha)} of them takes "
            f"{math.ceil(1 / alpha - 1e-9) - 1}.",
            MORE,
        )
    threshold = float(ordered[rank - 1])
    return Guarantee(
        method="conformal risk control",
        alpha=alpha,
        threshold=threshold,
        n=len(answers.scores),
        flagged_share_on_calibration=float((answers.scores >= threshold).mean()),
        sentence=f"Flag scores from {threshold:.4g} up: on average at most {_percent(alpha)} of the hallucinated "
        f"answers go unflagged ({int((ordered < threshold).sum())} of {len(ordered)} in the calibration data).",
    )


# -- what came of it --------------------------------------------------------------------------------


def achieved(
    guarantee: Guarantee, scores: ArrayLike, hallucinated: ArrayLike, clusters: Sequence[object] | None = None
) -> dict[str, Any]:
    """What a guarantee comes to on test answers: the object of docs/guarantee.md, with exact intervals.

    Raises:
        UsageError: the lengths differ.
        NumericError: a score is NaN or infinite.
    """
    answers = Answers.of(scores, hallucinated, clusters)
    flagged, wrong = guarantee.flag(answers.scores), answers.hallucinated
    misses, passes = int((wrong & ~flagged).sum()), int((~wrong & ~flagged).sum())
    if guarantee.method == "learn then test":
        rate = proportion(misses, misses + passes)
        if guarantee.prevalence is not None and rate.n:
            rate = interval_at_prevalence(rate, guarantee.prevalence, float(wrong.mean()))
    else:
        rate = proportion(misses, int(wrong.sum()))
    return {
        "n": len(wrong),
        "hallucinated": int(wrong.sum()),
        "rate": rate.to_json(),
        "exceeded": bool(rate.low > guarantee.alpha) if math.isfinite(rate.low) else None,
        "unflagged": proportion(misses + passes, len(wrong)).to_json(),
        "flagged_hallucinated": proportion(int((wrong & flagged).sum()), int(wrong.sum())).to_json(),
        "flagged_faithful": proportion(int((~wrong & flagged).sum()), int((~wrong).sum())).to_json(),
    }


def promises(
    calibration: Answers,
    test: Answers,
    *,
    alpha: float = 0.05,
    delta: float = 0.1,
    prevalence: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Both guarantees from calibration answers and what they come to on test answers: the object of docs/guarantee.md.

    Too few answers for one of them is a result too: it then holds the problem and the remedy.
    """
    known = (calibration.scores, calibration.hallucinated)
    made: dict[str, Callable[[], Guarantee]] = {
        "unflagged": lambda: control(*known, alpha=alpha, delta=delta, prevalence=prevalence, seed=seed),
        "missed": lambda: control_misses(*known, alpha=alpha),
    }
    found: dict[str, Any] = {}
    for name, make in made.items():
        try:
            guarantee = make()
        except TooFewExamplesError as error:
            found[name] = {"guarantee": None, "problem": error.problem, "remedy": error.remedy, "test": None}
            continue
        result = achieved(guarantee, test.scores, test.hallucinated)
        found[name] = {"guarantee": guarantee.model_dump(mode="json"), "problem": None, "remedy": None, "test": result}
    return found


def _check(**shares: float | None) -> None:
    for name, value in shares.items():
        if value is not None and not 0 < value < 1:
            raise UsageError(f"{name} is {value}.", f"Give a {name} between 0 and 1.")


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
