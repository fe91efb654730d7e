import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from hneurons.answers.agreement import (
    SpanPair,
    cohens_kappa,
    compare_finders,
    compare_judges,
    judge_agreement,
    span_overlap,
)
from hneurons.answers.judge import AliasJudge, FixedJudge
from hneurons.answers.spans import RuleSpanFinder
from hneurons.stats import cluster_weights
from hneurons.types import Question, Span, Verdict

C, W, A, U = Verdict.CORRECT, Verdict.WRONG, Verdict.ABSTAINED, Verdict.UNPARSABLE
VERDICT = st.sampled_from([C, W, A, U])


def sklearn_kappa(first: list[Verdict], second: list[Verdict], weights: np.ndarray | None = None) -> float:
    if len({*first, *second}) < 2:
        return math.nan  # where scikit-learn warns, and divides nothing by nothing
    return float(cohen_kappa_score([str(v) for v in first], [str(v) for v in second], sample_weight=weights))


@given(st.lists(st.tuples(VERDICT, VERDICT), min_size=1, max_size=40))
def test_kappa_is_scikit_learns(pairs: list[tuple[Verdict, Verdict]]):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    found = judge_agreement(first, second, range(len(pairs)), draws=50)
    assert found.kappa.value == pytest.approx(sklearn_kappa(first, second), nan_ok=True)
    assert found.disagreement.value == pytest.approx(np.mean([a != b for a, b in pairs]))
    assert found.kappa.n == found.disagreement.n == len(pairs)
    for a in Verdict:
        for b in Verdict:
            assert found.table[a][b] == pairs.count((a, b))


def test_the_interval_is_scikit_learns_over_questions_drawn_whole():
    rng = np.random.default_rng(3)
    questions = [f"q{n // 4:02}" for n in range(80)]
    first = [C if n // 4 % 2 else W for n in range(80)]
    second = [v if rng.random() < 0.8 else A for v in first]
    found = judge_agreement(first, second, questions, draws=200, seed=5)
    draws = [sklearn_kappa(first, second, w) for w in cluster_weights(questions, 200, 5) if w.any()]
    low, high = np.percentile(draws, [2.5, 97.5])
    assert (found.kappa.low, found.kappa.high) == pytest.approx((low, high))
    differs = np.array([a != b for a, b in zip(first, second, strict=True)])
    shares = [np.average(differs, weights=w) for w in cluster_weights(questions, 200, 5)]
    assert (found.disagreement.low, found.disagreement.high) == pytest.approx(tuple(np.percentile(shares, [2.5, 97.5])))


def test_answers_to_one_question_are_not_independent():
    first = [C, W] * 20
    second = [C, W] * 10 + [W, C] * 10
    apart = judge_agreement(first, second, range(40))
    together = judge_agreement(first, second, [n // 20 for n in range(40)])
    assert together.kappa.value == apart.kappa.value == 0
    assert (together.kappa.low, together.kappa.high) == (-1, 1)
    assert apart.kappa.low > -0.6


@pytest.mark.parametrize(
    ("first", "second", "kappa", "constant"),
    [
        ([C, C, C], [C, C, C], None, ["one", "two"]),
        ([C, C, C], [W, W, W], 0.0, ["one", "two"]),
        ([C, C, C], [C, W, C], 0.0, ["one"]),
        ([C, W, C], [U, U, U], 0.0, ["two"]),
        ([C, W, C], [C, W, C], 1.0, []),
        ([C, W], [W, C], -1.0, []),
        ([], [], None, ["one", "two"]),
    ],
)
def test_a_judge_that_always_says_the_same_is_named(first, second, kappa: float | None, constant: list[str]):
    found = judge_agreement(first, second, range(len(first)), ("one", "two"), draws=100)
    shown = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert shown["kappa"]["value"] == kappa
    assert shown["constant"] == constant
    assert shown["degenerate"] is bool(constant)
    assert ("kappa says nothing" in str(found)) is bool(constant)


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError):
        judge_agreement([C], [C, W], ["q"])


def test_kappa_of_many_tables_at_once():
    tables = np.array([[[20, 5], [10, 15]], [[1, 0], [0, 0]]])
    assert cohens_kappa(tables) == pytest.approx([0.4, math.nan], nan_ok=True)  # Cohen's textbook example


def test_judges_are_compared_on_the_same_responses():
    questions = [Question(f"q{n}", "What is the capital of France?", ("Paris",)) for n in range(4)]
    texts = ["Paris", "Lyon", "Paris", "I don't know"]
    found = compare_judges(AliasJudge(), FixedJudge(C), list(zip(questions, texts, strict=True)))
    shown = found.to_json()
    assert shown["judges"] == ["alias", "fixed"]
    assert shown["n"] == 4
    assert shown["disagreement"]["value"] == 0.5
    assert shown["table"]["correct"] == {"correct": 2, "wrong": 0, "abstained": 0, "unparsable": 0}
    assert shown["table"]["abstained"]["correct"] == 1
    assert shown["constant"] == ["fixed"]


# -- spans


def spans(size: int) -> st.SearchStrategy[Span | None]:
    some = st.tuples(st.integers(0, size - 1), st.integers(1, size)).filter(lambda p: p[0] < p[1])
    return st.one_of(st.none(), some.map(lambda p: Span(*p)))


@given(st.lists(st.tuples(spans(12), spans(12)), max_size=12))
def test_overlap_is_that_of_sets(marks: list[tuple[Span | None, Span | None]]):
    text = "ab, c d efgh"
    offsets = ((0, 2), (2, 4), (4, 5), (5, 7), (7, 12))

    def tokens(span: Span) -> set[int]:
        return {
            n for n, (start, end) in enumerate(offsets) if set(range(start, end)) & set(range(span.start, span.end))
        }

    def jaccard(one: set[int], two: set[int]) -> float:
        return len(one & two) / len(one | two)

    found = span_overlap([SpanPair(f"{n}", text, a, b, offsets) for n, (a, b) in enumerate(marks)], draws=20)
    both = [(a, b) for a, b in marks if a and b]
    assert found.found == {
        "both": len(both),
        "first": sum(bool(a) and not b for a, b in marks),
        "second": sum(bool(b) and not a for a, b in marks),
        "neither": sum(not a and not b for a, b in marks),
    }
    shown = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert shown["n"] == len(marks)
    assert shown["degenerate"] is not bool(both)
    assert shown["exact"]["n"] == len(both)
    if not both:
        assert shown["exact"]["value"] is shown["characters"]["value"] is shown["tokens"]["value"] is None
        return
    assert found.exact.value == pytest.approx(np.mean([a == b for a, b in both]))
    expected = np.mean([jaccard({*range(a.start, a.end)}, {*range(b.start, b.end)}) for a, b in both])
    assert found.characters.value == pytest.approx(expected)
    assert found.tokens.value == pytest.approx(np.mean([jaccard(tokens(a), tokens(b)) for a, b in both]))


def test_words_stand_in_for_tokens():
    found = span_overlap([SpanPair("q", "Paris, France", Span(0, 5), Span(0, 13))], draws=20)
    assert found.tokens.value == pytest.approx(1 / 3)
    assert found.characters.value == pytest.approx(5 / 13)
    assert found.exact.value == 0


def test_span_intervals_draw_questions_whole():
    same, other = SpanPair("a", "xy", Span(0, 1), Span(0, 1)), SpanPair("b", "xy", Span(0, 1), Span(1, 2))
    found = span_overlap([same] * 9 + [other] * 9)
    assert (found.exact.value, found.exact.low, found.exact.high) == (0.5, 0, 1)


class FirstWord:
    name = "first word"

    def find(self, question: str, response: str) -> Span | None:
        return Span(0, len(response.split()[0])) if response.strip() else None


def test_finders_are_compared_on_the_same_responses():
    asked = Question("q", "What is the capital of France?", ("Paris",))
    found = compare_finders(RuleSpanFinder(), FirstWord(), [(asked, "Paris"), (asked, "It is Paris"), (asked, "")])
    assert found.finders == ("rule", "first word")
    assert found.found == {"both": 2, "first": 0, "second": 0, "neither": 1}
    assert found.exact.value == 0.5
