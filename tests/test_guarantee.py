"""The promises hold over simulated draws, a rule without correction breaks them, and too little data is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import comb
from scipy.stats import binom, norm

from hneurons.errors import NumericError, TooFewExamplesError, UsageError
from hneurons.neurons.risk import Guarantee
from hneurons.studies.guarantee import (
    Answers,
    achieved,
    candidate_ranks,
    control,
    control_misses,
    least_answers,
    p_value,
    promises,
)

ALPHA, DELTA, DRAWS = 0.05, 0.1, 200
MOST_VIOLATIONS = int(binom.ppf(0.999, DRAWS, DELTA))
Rule = Callable[[np.ndarray, np.ndarray], "float | None"]


# -- the guarantee over 200 draws ---------------------------------------------------------------------


def answers(rng: np.random.Generator, base: float, apart: float, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Scores of faithful answers are standard normal, those of hallucinated ones `apart` higher."""
    wrong = rng.random(n) < base
    return rng.normal(size=n) + apart * wrong, wrong


def true_share(threshold: float, base: float, apart: float) -> float:
    """The hallucinated share of all answers below a threshold, of which a draw is a sample."""
    wrong, right = base * norm.cdf(threshold - apart), (1 - base) * norm.cdf(threshold)
    return float(wrong / (wrong + right))


def violations(rule: Rule, base: float, apart: float, at: float | None = None) -> tuple[int, int]:
    """In how many of 200 draws the rule's threshold breaks the promise, and in how many it gives one."""
    broken = given_one = 0
    for seed in range(DRAWS):
        threshold = rule(*answers(np.random.default_rng([seed, 7]), base, apart))
        given_one += threshold is not None
        broken += threshold is not None and true_share(threshold, at or base, apart) > ALPHA
    return broken, given_one


def learn_then_test(scores: np.ndarray, wrong: np.ndarray) -> float | None:
    return control(scores, wrong, alpha=ALPHA, delta=DELTA).threshold


def uncorrected(scores: np.ndarray, wrong: np.ndarray) -> float | None:
    """The highest threshold with at most 5 % hallucinated among the unflagged calibration answers."""
    order = np.argsort(scores)
    shares = np.cumsum(wrong[order]) / np.arange(1, len(scores) + 1)
    good = np.flatnonzero(shares[:-1] <= ALPHA)
    return float(scores[order][good[-1] + 1]) if len(good) else None


def untested_order(scores: np.ndarray, wrong: np.ndarray) -> float | None:
    """The highest threshold with a p-value of at most delta, whatever the others say: no correction for many tests."""
    order = np.argsort(scores)
    ranks = np.arange(1, len(scores))
    good = np.flatnonzero(p_value(np.cumsum(wrong[order])[:-1], ranks, ALPHA) <= DELTA)
    return float(scores[order][good[-1] + 1]) if len(good) else None


WORLDS = {"useless scores, a hair above alpha": (0.0501, 0.0), "weak": (0.08, 0.5), "strong": (0.5, 2.5)}


@pytest.mark.parametrize("world", WORLDS)
def test_the_promise_holds_over_200_draws(world: str):
    broken, _ = violations(learn_then_test, *WORLDS[world])
    assert broken <= MOST_VIOLATIONS


@pytest.mark.parametrize("world", WORLDS)
def test_the_empirical_share_alone_breaks_it(world: str):
    broken, _ = violations(uncorrected, *WORLDS[world])
    assert broken > 2 * MOST_VIOLATIONS


def test_so_does_testing_every_threshold_without_an_order():
    broken, _ = violations(untested_order, *WORLDS["useless scores, a hair above alpha"])
    assert broken > MOST_VIOLATIONS


def test_it_is_no_promise_of_nothing():
    broken, given_one = violations(learn_then_test, 0.5, 2.5)
    assert given_one > 0.8 * DRAWS
    assert broken < given_one / 4


def test_it_holds_at_another_prevalence_for_which_it_was_made():
    made = violations(lambda *drawn: control(*drawn, prevalence=0.2).threshold, 0.5, 1.5, at=0.2)
    assert made[0] <= MOST_VIOLATIONS
    assert made[1] > DRAWS / 4
    # A threshold for rare hallucinations, used where half of the answers are hallucinated:
    misused, _ = violations(lambda *drawn: control(*drawn, prevalence=0.2).threshold, 0.5, 1.5)
    assert misused > MOST_VIOLATIONS


@pytest.mark.parametrize("base", [0.1, 0.5])
def test_misses_are_bounded_on_average_and_no_more_than_needed(base: float):
    missed: list[float] = []
    for seed in range(DRAWS):
        made = control_misses(*answers(np.random.default_rng([seed, 3]), base, 1.0), alpha=0.1)
        assert made.threshold is not None
        missed.append(float(norm.cdf(made.threshold - 1.0)))
    assert 0.07 < np.mean(missed) <= 0.1 + 3 * np.std(missed) / np.sqrt(DRAWS)


# -- oracles ------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 40), st.integers(0, 40), st.floats(0.01, 0.6))
def test_p_values_are_sums_of_binomial_chances(more: int, wrong: int, alpha: float):
    n = wrong + more
    wanted = sum(comb(n, k) * alpha**k * (1 - alpha) ** (n - k) for k in range(wrong + 1))
    assert p_value(wrong, n, alpha) == pytest.approx(wanted, rel=1e-9)


def test_p_values_are_those_of_mapie():
    methods = pytest.importorskip("mapie.risk_control.methods")
    for n, wrong in [(45, 0), (77, 1), (64, 2), (128, 5)]:
        shares, sizes = np.array([wrong / n]), np.array([float(n)])
        found = methods.compute_hoeffding_bentkus_p_value(shares, sizes, ALPHA, binary=True)
        assert p_value(wrong, n, ALPHA) == pytest.approx(float(found[0, 0]))


def test_the_sequence_is_that_of_mapie():
    fwer = pytest.importorskip("mapie.risk_control.fwer_control")
    for seed in range(30):
        scores, wrong = answers(np.random.default_rng(seed), 0.2, 1.5)
        ranks = candidate_ranks(400, ALPHA, DELTA, 0.1)
        order = np.argsort(scores)
        values = p_value(np.cumsum(wrong[order])[ranks - 1], ranks, ALPHA)
        kept = fwer.control_fwer(values, DELTA, "fixed_sequence")
        wanted = scores[order][ranks[len(kept) - 1]] if len(kept) else None
        assert control(scores, wrong).threshold == wanted


def test_misses_are_those_of_mapie():
    methods = pytest.importorskip("mapie.risk_control.methods")
    scores, wrong = answers(np.random.default_rng(0), 0.5, 1.0)
    candidates = np.sort(scores[wrong])
    losses = (candidates[:, None] < candidates[None, :]).astype(float)
    bound = methods.get_r_hat_plus(losses, candidates, "crc", None, None, None)[1]
    assert control_misses(scores, wrong, alpha=0.1).threshold == candidates[bound <= 0.1].max()


@settings(max_examples=60)
@given(st.floats(0.005, 0.6), st.floats(0.005, 0.6))
def test_the_needed_number_is_the_least_that_suffices(alpha: float, delta: float):
    needed = least_answers(alpha, delta)
    clean = np.zeros(needed, dtype=bool)
    made = control(np.arange(needed), clean, alpha=alpha, delta=delta)
    assert made.feasible
    with pytest.raises(TooFewExamplesError, match=f"takes {needed}, "):
        control(np.arange(needed - 1), clean[1:], alpha=alpha, delta=delta)


def test_five_percent_with_ninety_percent_confidence_takes_45_unflagged_answers():
    assert least_answers(0.05, 0.1) == 45 + 1
    assert 0.95**45 <= 0.1 < 0.95**44
    assert least_answers(0.5, 0.25) == 3


def test_the_candidate_ranks_are_the_fewest_for_each_number_of_hallucinated_answers():
    ranks = candidate_ranks(400, ALPHA, DELTA, 0.1)
    assert ranks[:4].tolist() == [45, 77, 105, 132]
    for tolerated, rank in enumerate(ranks):
        assert p_value(tolerated, rank, ALPHA) <= DELTA < p_value(tolerated, rank - 1, ALPHA)
    assert candidate_ranks(400, ALPHA, DELTA, 0.25).tolist() == ranks[2:].tolist()
    assert candidate_ranks(60, ALPHA, DELTA, 0.99).tolist() == [45]


# -- what is made of the data -------------------------------------------------------------------------


def ladder(wrong_at: list[int], n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(float(n)), np.isin(np.arange(n), wrong_at)


@pytest.mark.parametrize(
    ("wrong_at", "threshold"),
    [([], 105.0), ([50], 105.0), ([44], None), ([45], 105.0), ([50, 60], 45.0), ([50, 80, 90], 77.0)],
)
def test_the_sequence_stops_at_the_first_rank_that_fails(wrong_at: list[int], threshold: float | None):
    made = control(*ladder(wrong_at))
    assert made.threshold == threshold
    assert made.feasible == (threshold is not None)
    assert made.flagged_share_on_calibration == pytest.approx(1 - (threshold or 0) / 120)
    assert (made.alpha, made.delta, made.n, made.method) == (0.05, 0.1, 120, "learn then test")
    assert made.sentence.startswith("Flag scores from" if threshold else "Flag everything: ")
    assert "90 % confidence" in made.sentence


def test_ties_with_the_threshold_are_flagged():
    scores = np.repeat([0.0, 1.0, 2.0], [45, 32, 43])  # candidates leave 45, 77 and 105 unflagged, and 77 with the tie
    made = control(scores, np.zeros(120, dtype=bool))
    assert made.threshold == 2.0
    assert made.flagged_share_on_calibration == pytest.approx(43 / 120)
    same = control(np.zeros(120), np.zeros(120, dtype=bool))
    assert not same.feasible
    assert "Of the 0 calibration answers with a score below 0, 0 are" in same.sentence


def test_one_answer_a_cluster_is_used():
    scores, wrong = ladder([50])
    clusters = [f"q{i}" for i in range(120)]
    again = control(np.tile(scores, 3), np.concatenate([wrong, ~wrong, ~wrong]), clusters * 3)
    assert again == control(scores, wrong, clusters) == control(scores, wrong)
    with pytest.raises(TooFewExamplesError, match="Only 40 calibration answers"):
        control(scores, wrong, [i // 3 for i in range(120)])
    assert Answers.of([5, 3, 4], [True, False, True], ["b", "a", "b"]).scores.tolist() == [5, 3]


def test_prevalence_leaves_out_hallucinated_answers_at_random():
    whole = Answers.of(*answers(np.random.default_rng(0), 0.5, 1.0))
    shares = [whole.with_prevalence(0.1, seed).hallucinated.mean() for seed in range(50)]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.02)
    assert len(set(shares)) > 5
    part = whole.with_prevalence(0.1, 0)
    assert len(set(part.scores.tolist())) == len(part.scores)
    pairs = set(zip(whole.scores.tolist(), whole.hallucinated.tolist(), strict=True))
    assert pairs >= set(zip(part.scores.tolist(), part.hallucinated.tolist(), strict=True))
    rare = Answers(whole.scores, np.arange(400) >= 10).with_prevalence(0.5, 0)
    assert (~rare.hallucinated).sum() <= 10
    assert rare.hallucinated.mean() >= 0.5


def test_too_few_answers_say_how_many_and_what_to_do():
    with pytest.raises(TooFewExamplesError) as caught:
        control(*ladder([], 45))
    assert "Only 45 calibration answers" in caught.value.problem
    assert "takes 46" in caught.value.problem
    assert "more questions" in caught.value.remedy
    with pytest.raises(TooFewExamplesError, match=r"Only 18 hallucinated calibration answers.* takes 19"):
        control_misses(np.arange(18.0), np.ones(18, dtype=bool))
    assert control_misses(np.arange(19.0), np.ones(19, dtype=bool)).threshold == 0.0


@pytest.mark.parametrize("values", [{"alpha": 0.0}, {"delta": 1.0}, {"least_share": 2.0}, {"prevalence": float("nan")}])
def test_shares_out_of_range(values: Any):
    with pytest.raises(UsageError, match=f"{next(iter(values))} is"):
        control(*ladder([]), **values)


def test_scores_that_are_no_numbers_or_do_not_match():
    for bad in (np.nan, np.inf):
        with pytest.raises(NumericError):
            control([bad] * 50, [False] * 50)
    for lengths in ((50, 49, 50), (50, 50, 49)):
        with pytest.raises(UsageError, match="belong together"):
            control(np.arange(lengths[0]), np.zeros(lengths[1], bool), list(range(lengths[2])))


# -- what came of it ----------------------------------------------------------------------------------


def made(threshold: float | None, **changes: Any) -> Guarantee:
    values = {"method": "learn then test", "alpha": 0.05, "delta": 0.1, "n": 400, "sentence": ""}
    return Guarantee.model_validate({**values, "threshold": threshold, "flagged_share_on_calibration": 0.5, **changes})


def test_the_achieved_rate_is_counted_on_test_answers():
    scores, wrong = ladder([3, 40, 100, 110], 120)
    found = achieved(made(60.0), scores, wrong)
    assert found["rate"]["value"] == pytest.approx(2 / 60, abs=1e-6)
    assert found["rate"]["n"] == 60
    assert found["exceeded"] is False
    assert found["unflagged"]["value"] == 0.5
    assert found["flagged_hallucinated"]["value"] == 0.5
    assert found["flagged_faithful"]["value"] == pytest.approx(58 / 116)
    misses = achieved(made(60.0, method="conformal risk control", delta=None), scores, wrong)
    assert (misses["rate"]["value"], misses["rate"]["n"]) == (0.5, 4)
    assert misses["exceeded"] is True
    assert achieved(made(60.0), scores, ~wrong)["exceeded"] is True


def test_the_achieved_rate_at_the_prevalence_it_was_made_for():
    scores, wrong = ladder([*range(0, 20, 2), *range(60, 110)], 120)  # half are hallucinated
    plain, rare = (achieved(made(60.0, prevalence=p), scores, wrong)["rate"] for p in (None, 0.1))
    assert wrong.mean() == 0.5
    assert plain["value"] == pytest.approx(10 / 60, abs=1e-6)
    assert rare["value"] == pytest.approx((10 / 9) / (10 / 9 + 50), abs=1e-6)  # each hallucinated one counts a ninth
    assert rare["low"] < rare["value"] < rare["high"] < plain["high"]


def test_both_promises_in_one_object():
    rng = np.random.default_rng(4)
    found = promises(Answers.of(*answers(rng, 0.5, 3.0)), Answers.of(*answers(rng, 0.5, 3.0)))
    json.dumps(found, allow_nan=False)
    assert found["unflagged"]["guarantee"]["method"] == "learn then test"
    assert found["missed"]["guarantee"]["method"] == "conformal risk control"
    assert found["unflagged"]["test"]["rate"]["value"] <= 0.05
    assert Guarantee.model_validate(found["missed"]["guarantee"]).feasible


def test_both_promises_where_they_cannot_be_made():
    rng = np.random.default_rng(4)
    test = Answers.of(*answers(rng, 0.5, 0.0))
    few = promises(Answers.of(*answers(rng, 0.5, 0.0, n=30)), test)
    hopeless = promises(Answers.of(*answers(rng, 0.5, 0.0)), test)
    json.dumps([few, hopeless], allow_nan=False)
    for name in ("unflagged", "missed"):
        assert few[name]["guarantee"] is None
        assert few[name]["test"] is None
        assert few[name]["problem"]
        assert few[name]["remedy"]
    assert hopeless["unflagged"]["guarantee"]["threshold"] is None
    assert hopeless["unflagged"]["test"]["rate"] == {"value": None, "low": None, "high": None, "n": 0}
    assert hopeless["unflagged"]["test"]["exceeded"] is None
