"""Confounds: explained where the score is the confound, untouched where it isn't; pairs counted by brute force."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from hneurons.errors import MissingExtraError
from hneurons.runfolder import dumps
from hneurons.stats import Interval, percentile_interval, quantile_groups, rank_correlation, stratified_auroc
from hneurons.studies import confounds as module
from hneurons.studies.answertype import AnswerType, answer_type
from hneurons.studies.confounds import (
    FREQUENCY,
    LEAST_IN_STRATUM,
    MOST_STRATA,
    REST,
    confound_values,
    confounds,
    within_strata,
    word_frequency,
)
from hneurons.types import Example, Label, Response, Span

N = 240


def world(seed: int, *, length: float = 0.0, truth: float = 0.0, n: int = N) -> tuple[Any, Any, Any, list[str]]:
    """Scores, labels, lengths in tokens and clusters.

    Args:
        seed: of everything.
        length: how strongly both label and score follow the length.
        truth: what a hallucination adds to the score.
        n: examples.
    """
    rng = np.random.default_rng([5, seed])
    size = rng.normal(size=n)
    label = rng.random(n) < 1 / (1 + np.exp(-1.5 * length * size))
    scores = length * size + 0.5 * rng.normal(size=n) + truth * label
    return scores, label, np.round(np.exp(2.2 + 0.5 * size)), [f"q{i}" for i in range(n)]


def inside(interval: dict[str, Any], value: float) -> bool:
    return interval["low"] <= value <= interval["high"]


# -- worlds with a known truth ------------------------------------------------------------------------


def test_a_score_of_length_alone_is_explained_by_length():
    found = [within_strata(*world(seed, length=1.0), draws=200, name="response length") for seed in range(12)]
    assert np.mean([one["auroc"]["value"] for one in found]) > 0.75
    assert abs(np.mean([one["within"]["value"] for one in found]) - 0.5) < 0.02
    # Quarters alone would leave about 0.56, and the interval above 0.5 in a third of such worlds.
    assert sum(one["within"]["low"] > 0.5 for one in found) <= 1
    assert sum(one["finding"] == "explained" for one in found) >= 11
    for one in found:
        assert abs(one["confound"]["within"]["value"] - 0.5) < 0.05
        assert one["confound"]["auroc"]["value"] > 0.7
        assert one["spearman"]["faithful"]["low"] > 0.5


def test_a_score_of_truth_alone_is_left_as_it_was():
    for seed in range(3):
        one = within_strata(*world(seed, truth=0.7), draws=200)
        assert one["finding"] == "not explained"
        assert inside(one["difference"], 0.0)
        assert abs(one["within"]["value"] - one["auroc"]["value"]) < 0.06
        assert inside(one["spearman"]["faithful"], 0.0) or inside(one["spearman"]["hallucinated"], 0.0)


def test_a_score_of_both_is_explained_in_part():
    one = within_strata(*world(2, length=1.0, truth=0.5, n=800), draws=200, name="response length")
    assert one["finding"] == "partly explained"
    assert 0.5 < one["within"]["low"] < one["within"]["value"] < one["auroc"]["value"]
    assert f"response length explains {one['difference']['value']:.3f} [" in one["sentence"]


def test_noise_has_nothing_to_explain():
    found = [within_strata(*world(seed), draws=200, name="answer length") for seed in range(8)]
    nothing = [one["sentence"] for one in found if one["finding"] == "nothing to explain"]
    assert len(nothing) >= 7
    assert all(sentence.endswith("there is nothing for answer length to explain.") for sentence in nothing)


def test_a_category_that_settles_the_label_explains_it():
    rng = np.random.default_rng(1)
    kinds = rng.integers(0, 4, size=400)
    label = rng.random(400) < np.array([0.1, 0.35, 0.65, 0.9])[kinds]
    scores = kinds + 0.3 * rng.normal(size=400)
    names = [f"type {kind}" for kind in kinds]
    one = within_strata(scores, label, names, list(range(400)), draws=200, name="answer type")
    assert one["finding"] == "explained"
    assert one["confound"] is None
    assert one["spearman"] is None
    assert one["within"]["low"] < 0.5 < one["auroc"]["low"]


def test_few_partners_are_too_little_data():
    label = np.repeat([True, False], 40)
    values = np.concatenate([np.arange(40) % 2, np.arange(40) % 2 + 2]).astype(float)
    values[:8] = 2.0
    one = within_strata(label + 0.1 * np.arange(80), label, values, list(range(80)), draws=100, name="length")
    assert one["finding"] == "too little data"
    assert "only 8 examples of the smaller class have a partner" in one["sentence"]
    assert one["within"]["n"] == 8 + 20


def test_no_partner_at_all_gives_nulls():
    label = np.repeat([True, False], 30)
    one = within_strata(np.arange(60.0), label, label.astype(float), list(range(60)), draws=100)
    assert one["within"]["value"] is None
    assert one["difference"]["low"] is None
    assert one["pairs_share"] == 0
    assert one["finding"] == "too little data"
    json.loads(dumps(one))


@pytest.mark.parametrize(
    ("plain", "equal", "difference", "fewest", "word"),
    [
        ((0.6, 0.7), (0.55, 0.7), (-0.05, 0.05), 20, "not explained"),
        ((0.6, 0.7), (0.55, 0.7), (-0.05, 0.05), 19, "too little data"),
        ((0.6, 0.7), (0.55, 0.7), (0.01, 0.1), 20, "partly explained"),
        ((0.6, 0.7), (0.5, 0.7), (0.01, 0.1), 20, "explained"),
        ((0.6, 0.7), (0.5, 0.7), (0.0, 0.1), 20, "unclear"),
        ((0.5, 0.7), (0.55, 0.7), (0.01, 0.1), 20, "nothing to explain"),
        ((math.nan, math.nan), (0.55, 0.7), (0.01, 0.1), 20, "nothing to explain"),
    ],
)
def test_the_rule_of_the_finding(plain: Any, equal: Any, difference: Any, fewest: int, word: str):
    def interval(bounds: tuple[float, float]) -> Interval:
        return Interval(sum(bounds) / 2, *bounds, 100)

    found, sentence = module._finding("x", interval(plain), interval(equal), interval(difference), fewest)
    assert found == word
    assert sentence.endswith(".")
    assert ("verdict" in sentence) == (word != "nothing to explain")


# -- oracles --------------------------------------------------------------------------------------------


def brute_force(scores: Any, positive: Any, strata: Any) -> float:
    """Share of ordered pairs, counted one by one."""
    ordered, total = 0.0, 0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            if strata[i] == strata[j]:
                total += 1
                ordered += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    return ordered / total if total else math.nan


SMALL = st.integers(2, 24).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, n, elements=st.integers(0, 4).map(float)),
        arrays(np.bool_, n),
        arrays(np.int64, n, elements=st.integers(0, 3)),
        arrays(np.int64, n, elements=st.integers(0, 3)),
    )
)


@settings(max_examples=60)
@given(SMALL)
def test_stratified_auroc_counts_pairs_of_a_stratum(data: Any):
    scores, positive, strata, copies = data
    metric = stratified_auroc(strata)
    got = metric(scores, positive, np.stack([np.ones(len(scores)), copies.astype(float)]))
    # A weight of k is the example k times over.
    again = np.repeat(np.arange(len(scores)), copies)
    want = [brute_force(scores, positive, strata), brute_force(scores[again], positive[again], strata[again])]
    np.testing.assert_allclose(got, want, equal_nan=True, atol=1e-12)


def test_one_stratum_is_the_plain_auroc():
    scores, label, _, _ = world(0, truth=0.5)
    got = stratified_auroc(np.zeros(N))(scores, label, np.ones((1, N)))[0]
    assert got == pytest.approx(roc_auc_score(label, scores), abs=1e-12)


@settings(max_examples=60)
@given(SMALL)
def test_rank_correlation_is_spearmans(data: Any):
    scores, positive, values, copies = data
    got = rank_correlation(values.astype(float))(scores, positive, np.stack([np.ones(len(scores)), copies * 1.0]))
    for value, rows in zip(got, (np.arange(len(scores)), np.repeat(np.arange(len(scores)), copies)), strict=True):
        if len(set(scores[rows])) < 2 or len(set(values[rows])) < 2:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(spearmanr(scores[rows], values[rows]).statistic, abs=1e-9)


@given(arrays(np.float64, st.integers(1, 60), elements=st.integers(0, 30).map(float)), st.integers(1, 12))
def test_quantile_groups_keep_order_and_equals(values: Any, most: int):
    groups = quantile_groups(values, most)
    order = np.argsort(values, kind="stable")
    assert (np.diff(groups[order]) >= 0).all()
    assert all((groups[order][1:] == groups[order][:-1])[np.diff(values[order]) == 0])
    assert sorted(set(groups.tolist())) == list(range(groups.max() + 1))
    assert groups.max() < most or len(set(values)) <= most
    if len(set(values)) <= most:
        assert groups.max() + 1 == len(set(values))


def test_quantile_groups_are_of_even_size_without_ties():
    groups = quantile_groups(np.random.default_rng(0).normal(size=400), 20)
    assert Counter(groups.tolist()) == Counter(dict.fromkeys(range(20), 20))


def test_percentile_interval_leaves_out_the_undefined():
    interval = percentile_interval(0.5, np.array([math.nan, *np.linspace(0, 1, 1001)]), 7)
    assert (interval.low, interval.high, interval.n) == (pytest.approx(0.025), pytest.approx(0.975), 7)
    assert percentile_interval(0.5, np.array([math.nan]), 7).to_json()["low"] is None


# -- the parts of a result --------------------------------------------------------------------------------


def test_quarters_of_a_number_and_their_auroc():
    scores, label, lengths, clusters = world(4, length=0.3, truth=0.5)
    one = within_strata(scores, label, lengths, clusters, draws=200)
    assert 3 <= len(one["strata"]) <= 4
    assert sum(row["faithful"] + row["hallucinated"] for row in one["strata"]) == N == one["n"]
    for row in one["strata"]:
        rows = (lengths >= row["low"]) & (lengths <= row["high"])
        assert (row["faithful"], row["hallucinated"]) == ((rows & ~label).sum(), (rows & label).sum())
        assert row["name"] == f"{row['low']:.4g} to {row['high']:.4g}"
        assert row["auroc"]["value"] == pytest.approx(roc_auc_score(label[rows], scores[rows]), abs=1e-6)
        assert inside(row["auroc"], row["auroc"]["value"])
    assert one["matched_strata"] <= MOST_STRATA
    strata = quantile_groups(lengths, 20)
    assert one["within"]["value"] == pytest.approx(brute_force(scores, label, strata), abs=1e-6)
    share = np.mean(strata[label][:, None] == strata[~label][None, :])
    assert one["pairs_share"] == pytest.approx(share, abs=1e-6)
    assert one["difference"]["value"] == pytest.approx(one["auroc"]["value"] - one["within"]["value"], abs=2e-6)


def test_small_categories_are_shown_together_but_compared_apart():
    rng = np.random.default_rng(0)
    sizes = {"big": 60, "also big": 50, "small": 19, "tiny": 16, "one class": 9}
    names = [name for name, size in sizes.items() for _ in range(size)]
    label = rng.random(len(names)) < 0.5
    label[-9:] = True
    # One small category scores far higher and is hallucinated more: between categories that would count as skill.
    tiny = np.array([name == "tiny" for name in names])
    label[tiny] = np.arange(16) < 12
    scores = rng.normal(size=len(names)) + label + 5 * tiny
    one = within_strata(scores, label, names, list(range(len(names))), draws=200)
    rows = {row["name"]: row for row in one["strata"]}
    assert set(rows) == {"big", "also big", REST}
    rest = np.array([sizes[name] < 2 * LEAST_IN_STRATUM for name in names])
    array = np.array(names)
    want = brute_force(scores[rest], label[rest], array[rest])
    assert rows[REST]["auroc"]["value"] == pytest.approx(want, abs=1e-6)
    assert abs(want - roc_auc_score(label[rest], scores[rest])) > 0.02
    assert rows[REST]["faithful"] + rows[REST]["hallucinated"] == 44
    assert one["within"]["value"] == pytest.approx(brute_force(scores, label, array), abs=1e-6)


def test_a_stratum_with_few_of_a_class_has_no_auroc():
    label = np.arange(80) % 2 == 0
    label[:20] = [True] * (20 - LEAST_IN_STRATUM + 1) + [False] * (LEAST_IN_STRATUM - 1)
    values = np.repeat(np.arange(4.0), 20)
    rows = within_strata(np.arange(80.0), label, values, list(range(80)), draws=100)["strata"]
    assert [row["auroc"]["value"] is None for row in rows] == [True, False, False, False]
    assert [row["name"] for row in rows] == ["0", "1", "2", "3"]


def test_examples_without_a_value_are_left_out_and_counted():
    scores, label, lengths, clusters = world(1, truth=0.5)
    lengths[:15] = math.nan
    one = within_strata(scores, label, lengths, clusters, draws=100)
    rest = within_strata(scores[15:], label[15:], lengths[15:], clusters[15:], draws=100)
    assert (one.pop("left_out"), rest.pop("left_out")) == (15, 0)
    assert one == rest


def test_the_bootstrap_draws_clusters_whole():
    scores, label, lengths, clusters = world(1, truth=0.3, n=120)
    twice = [np.concatenate([each, each]) for each in (scores, label, lengths)]
    apart = within_strata(*twice, list(range(240)), draws=400)["auroc"]
    whole = within_strata(*twice, clusters * 2, draws=400)["auroc"]
    assert apart["value"] == whole["value"]
    assert whole["high"] - whole["low"] > 1.25 * (apart["high"] - apart["low"])


# -- from examples ------------------------------------------------------------------------------------------


def example(i: int, label: Label, text: str = "It is Paris.", answer: str = "Paris", domain: str = "geo") -> Example:
    start = text.index(answer)
    thinking = 2
    tokens = tuple(range(thinking + len(text.split())))
    response = Response(f"q{i}", 0, text, tokens, (-0.1,) * len(tokens), "stop", thinking_tokens=thinking)
    return Example(
        question_id=f"q{i}",
        question="What is the capital of France?",
        label=label,
        split="test",
        group=f"q{i}",
        response=response,
        answer_chars=Span(start, start + len(answer)),
        answer_tokens=Span(thinking + 1, thinking + 1 + len(answer.split())),
        prompt_tokens=9,
        agreement=10,
        domain=domain,
    )


def many(n: int = 60) -> list[Example]:
    answers = ["Paris", "New York", "Bandar Seri Begawan", "1871"]
    return [
        example(i, list(Label)[i % 2], f"It {'really ' * (i % 5)}is {answers[i % 4]}.", answers[i % 4], f"d{i % 3}")
        for i in range(n)
    ]


def without_wordfreq(package: str, extra: str) -> Any:
    raise MissingExtraError(package, extra)


def test_the_confounds_of_examples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "need", without_wordfreq)
    values, skipped = confound_values(many())
    assert list(values) == ["response length", "answer length", "question domain"]
    assert values["response length"][:6].tolist() == [3, 5, 7, 6, 7, 4]
    assert values["answer length"][:4].tolist() == [1, 2, 3, 1]
    assert skipped["answer type"] == "all examples are alike"
    assert "pip install 'hneurons[confounds]'" in skipped[FREQUENCY]


def test_the_study_over_examples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "need", without_wordfreq)
    examples, ticks = many(80), []
    scores = np.random.default_rng(0).normal(size=80)
    result = confounds(scores, examples, draws=100, seed=3, tick=lambda: ticks.append(1))
    assert json.loads(dumps(result)) == result
    assert set(result["confounds"]) == {"response length", "answer length", "question domain"}
    assert len(ticks) == 3
    label = np.array([one.label is Label.HALLUCINATED for one in examples])
    domains = [one.domain for one in examples]
    ids = [one.question_id for one in examples]
    want = within_strata(scores, label, domains, ids, draws=100, seed=3, name="question domain")
    assert result["confounds"]["question domain"] == want
    again = confounds(scores, examples, draws=100, seed=3)
    assert dumps(again) == dumps(result)


def test_word_frequency_is_the_mean_over_words():
    wordfreq = pytest.importorskip("wordfreq", reason="the extra `confounds` is not installed")
    assert word_frequency("water") > word_frequency("Paris") > word_frequency("Begawan") > 0
    assert word_frequency("zzxqyv") == 0
    words = [wordfreq.zipf_frequency(word, "en") for word in ("new", "york")]
    assert word_frequency("New York!") == pytest.approx(np.mean(words))
    assert math.isnan(word_frequency("?!"))


def test_word_frequency_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "need", without_wordfreq)
    with pytest.raises(MissingExtraError, match=r"hneurons\[confounds\]"):
        word_frequency("Paris")


# -- answer types -------------------------------------------------------------------------------------------

TYPED = [
    ("In what year did World War I end?", "1918", AnswerType.DATE),
    ("When was the Eiffel Tower finished?", "1889", AnswerType.DATE),
    ("when did the sims 4 toddlers come out", "January 2017", AnswerType.DATE),
    ("What month comes after July?", "August", AnswerType.DATE),
    ("The B-52s were formed in which year?", "1976", AnswerType.DATE),
    ("How many legs does a spider have?", "eight", AnswerType.NUMBER),
    ("What is 7 plus 7?", "14", AnswerType.NUMBER),
    ("What is the atomic number of carbon?", "6", AnswerType.NUMBER),
    ("how long do nhl players stay on waivers", "24 hours", AnswerType.NUMBER),
    ("What is the number system with base sixteen called?", "Hexadecimal", AnswerType.OTHER),
    ("Who wrote Dracula?", "Bram Stoker", AnswerType.PERSON),
    ("In the Bible, who built the ark?", "Noah", AnswerType.PERSON),
    ("By whom was Hamlet written?", "Shakespeare", AnswerType.PERSON),
    ("Which Japanese artist made the Great Wave?", "Hokusai", AnswerType.PERSON),
    ("What is the name of the author of Emma?", "Jane Austen", AnswerType.PERSON),
    ("Which filmmaker directed The Piano?", "Jane Campion", AnswerType.PERSON),
    ("What do you call a person who sings?", "singer", AnswerType.OTHER),
    ("Where is the Prado?", "Madrid", AnswerType.PLACE),
    ("What is the capital of the US state of Ohio?", "Columbus", AnswerType.PLACE),
    ("What is the longest river in Africa?", "Nile", AnswerType.PLACE),
    ("In which US state is the Grand Canyon?", "Arizona", AnswerType.PLACE),
    ("Bamako is the capital of which country?", "Mali", AnswerType.PLACE),
    ("Which mountain range contains the highest peaks?", "Himalayas", AnswerType.PLACE),
    ("What is the state flower of Texas?", "Bluebonnet", AnswerType.OTHER),
    ("What is the currency of the country Japan?", "Yen", AnswerType.OTHER),
    ("When he left swimming, what did Weissmuller do?", "acting", AnswerType.OTHER),
    ("Which of these, a cat or a dog, barks?", "dog", AnswerType.OTHER),
    ("Is Paris in France?", "It certainly is", AnswerType.YES_NO),
    ("Two is the only even prime number?", "TRUE", AnswerType.YES_NO),
    ("Is it a cat or a dog?", "cat", AnswerType.OTHER),
    ("Which chemical element has 28 protons?", "Nickel", AnswerType.OTHER),
    ("What is a baby cat called?", "Kitten", AnswerType.OTHER),
    ("Answer me.", "4 July 1776", AnswerType.DATE),
    ("Answer me.", "1,500", AnswerType.NUMBER),
    ("Answer me.", "twenty-one", AnswerType.NUMBER),
    ("Answer me.", "May", AnswerType.OTHER),
    ("", "", AnswerType.OTHER),
]


@pytest.mark.parametrize(("question", "answer", "kind"), TYPED)
def test_answer_types(question: str, answer: str, kind: AnswerType):
    assert answer_type(question, answer) is kind


@settings(max_examples=40)
@given(st.text(max_size=80), st.text(max_size=40))
def test_every_answer_has_a_type_that_case_does_not_change(question: str, answer: str):
    assert answer_type(question, answer) in AnswerType
    assert answer_type(question.casefold(), answer) is answer_type(question, answer)
