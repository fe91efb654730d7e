import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hneurons.answers.consistency import (
    ABSTAINED,
    FULL,
    MIXED,
    UNPARSABLE,
    Rule,
    most_frequent,
    sample_questions,
)
from hneurons.answers.engine import Request, Sampling, uniforms
from hneurons.answers.fake import FakeEngine
from hneurons.types import Label, Question, Response, Verdict

C, W, A, U = Verdict.CORRECT, Verdict.WRONG, Verdict.ABSTAINED, Verdict.UNPARSABLE
SAMPLING = Sampling(seed=3)


class LetterJudge:
    """The response is the verdict."""

    name = "letter"

    def judge(self, question: Question, text: str) -> Verdict:
        return Verdict(text)


def asked(probabilities: list[tuple[float, float, float]]) -> tuple[list[Question], FakeEngine]:
    """A question for each (correct, wrong, abstained); what is left is unparsable."""
    questions = [Question(f"q{i}", f"Question {i}?", ("x",)) for i in range(len(probabilities))]
    table = dict(zip((question.id for question in questions), probabilities, strict=True))

    def answer(question: Question, random: float) -> str:
        for verdict, chance in zip((C, W, A), table[question.id], strict=True):
            if random < chance:
                return str(verdict)
            random -= chance
        return str(U)

    return questions, FakeEngine(answer)


def every_verdict(questions: list[Question], engine: FakeEngine, samples: int) -> dict[str, list[Verdict]]:
    """What full sampling would find."""
    return {
        question.id: [
            Verdict(engine.answer(question, float(uniforms(SAMPLING, Request(question, k))[0]))) for k in range(samples)
        ]
        for question in questions
    }


def by_question(responses: list[Response]) -> dict[str, list[Verdict]]:
    found: dict[str, list[Verdict]] = {}
    for response in sorted(responses, key=lambda r: r.sample):
        assert response.verdict is not None
        found.setdefault(response.question_id, []).append(response.verdict)
    return found


CERTAIN = st.sampled_from([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)])
MOSTLY = st.sampled_from([(0.9, 0.1, 0.0), (0.1, 0.9, 0.0), (0.05, 0.9, 0.05), (0.9, 0.0, 0.1), (0.4, 0.5, 0.05)])
PROBABILITIES = st.lists(CERTAIN | MOSTLY, min_size=1, max_size=12)
RULES = st.integers(1, 10).flatmap(lambda n: st.builds(Rule, st.just(n), st.integers(n // 2 + 1, n)))


@given(PROBABILITIES, RULES)
def test_the_kept_set_is_that_of_full_sampling(probabilities, rule: Rule):
    questions, engine = asked(probabilities)
    found = by_question(sample_questions(engine, LetterJudge(), questions, SAMPLING, rule))
    for name, complete in every_verdict(questions, engine, rule.samples).items():
        assert found[name] == complete[: len(found[name])]
        assert rule.label(found[name]) == rule.label(complete)


@given(PROBABILITIES, RULES)
def test_no_sample_is_drawn_for_a_question_that_is_decided(probabilities, rule: Rule):
    questions, engine = asked(probabilities)
    found = by_question(sample_questions(engine, LetterJudge(), questions, SAMPLING, rule))
    ends = list(itertools.accumulate(rule.rounds()))
    for verdicts in found.values():
        at = ends.index(len(verdicts))
        assert at == 0 or rule.open_labels(verdicts[: ends[at - 1]])
        assert len(verdicts) == rule.samples or not rule.open_labels(verdicts)
    assert sum(engine.calls) == sum(len(verdicts) for verdicts in found.values())


@given(st.integers(1, 60))
def test_rounds_make_up_the_samples_and_start_small(samples: int):
    rounds = Rule(samples, samples).rounds()
    assert sum(rounds) == samples
    assert min(rounds) >= 1
    assert rounds[:2] == [1, 1][:samples]


@given(PROBABILITIES, RULES, st.sets(st.sampled_from(list(Label)), max_size=2))
def test_a_full_class_gets_no_more_samples(probabilities, rule: Rule, full: set[Label]):
    questions, engine = asked(probabilities)
    found = by_question(sample_questions(engine, LetterJudge(), questions, SAMPLING, rule, full))
    ends = list(itertools.accumulate(rule.rounds()))
    for name, complete in every_verdict(questions, engine, rule.samples).items():
        verdicts = found[name]
        at = ends.index(len(verdicts))
        assert at == 0 or rule.open_labels(verdicts[: ends[at - 1]]) - full
        label = rule.label(complete)
        if label is not None and label not in full:
            assert verdicts == complete
        if len(verdicts) < rule.samples and rule.open_labels(verdicts):
            assert rule.drop_reason(verdicts) == FULL
            assert rule.open_labels(verdicts) <= full


def test_with_both_classes_full_one_round_is_all():
    questions, engine = asked([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
    responses = sample_questions(engine, LetterJudge(), questions, SAMPLING, Rule(10, 10), list(Label))
    assert len(responses) == 2


def test_responses_carry_verdict_and_judge():
    questions, engine = asked([(1.0, 0.0, 0.0)])
    responses = sample_questions(engine, LetterJudge(), questions, SAMPLING, Rule(3, 3))
    assert [(r.sample, r.verdict, r.judge) for r in responses] == [(k, C, "letter") for k in range(3)]


@given(PROBABILITIES, RULES, st.sets(st.sampled_from(list(Label)), max_size=2))
def test_ticks_sum_to_the_questions(probabilities, rule: Rule, full: set[Label]):
    questions, engine = asked(probabilities)
    ticks: list[int] = []
    sample_questions(engine, LetterJudge(), questions, SAMPLING, rule, full, ticks.append)
    assert sum(ticks) == len(questions)
    assert min(ticks) >= 0


# -- the rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "verdicts", "label"),
    [
        (Rule(3, 3), [C, C, C], Label.FAITHFUL),
        (Rule(3, 3), [W, W, W], Label.HALLUCINATED),
        (Rule(3, 3), [C, C, W], None),
        (Rule(3, 3), [W, W, A], None),
        (Rule(3, 3), [A, A, A], None),
        (Rule(3, 3), [U, W, W], None),
        (Rule(3, 3), [C, C], None),
        (Rule(5, 4), [C, W, C, C, C], Label.FAITHFUL),
        (Rule(5, 4), [W, C, W, W, W], Label.HALLUCINATED),
        # A refusal kills "hallucinated" whatever the others are, and counts as one miss for "faithful".
        (Rule(5, 4), [W, W, W, W, A], None),
        (Rule(5, 4), [C, C, C, C, A], Label.FAITHFUL),
        (Rule(5, 4), [C, C, C, A, A], None),
        # An unparsable response is one miss for either.
        (Rule(5, 4), [W, W, W, W, U], Label.HALLUCINATED),
        (Rule(5, 4), [C, C, C, C, U], Label.FAITHFUL),
        (Rule(1, 1), [C], Label.FAITHFUL),
        (Rule(1, 1), [W], Label.HALLUCINATED),
    ],
)
def test_label(rule: Rule, verdicts: list[Verdict], label: Label | None):
    assert rule.label(verdicts) is label


@given(RULES, st.data())
def test_open_labels_are_those_that_some_future_gives(rule: Rule, data: st.DataObject):
    verdicts = data.draw(st.lists(st.sampled_from(Verdict), max_size=rule.samples))
    left = rule.samples - len(verdicts)
    futures = {rule.label([*verdicts, *[verdict] * left]) for verdict in (C, W)} - {None}
    assert rule.open_labels(verdicts) == futures


@given(RULES, st.data())
def test_the_order_of_the_samples_does_not_matter(rule: Rule, data: st.DataObject):
    verdicts = data.draw(st.lists(st.sampled_from(Verdict), min_size=rule.samples, max_size=rule.samples))
    shuffled = data.draw(st.permutations(verdicts))
    assert rule.label(verdicts) == rule.label(shuffled)


@pytest.mark.parametrize(
    ("verdicts", "reason"),
    [
        ([C, W], MIXED),
        ([C, C, W], MIXED),
        ([A], ABSTAINED),
        ([W, A], ABSTAINED),
        ([C, A], ABSTAINED),
        ([U], UNPARSABLE),
        ([C, U], UNPARSABLE),
        ([C, W, A], MIXED),
        ([C], FULL),
        ([W, W], FULL),
    ],
)
def test_drop_reason(verdicts: list[Verdict], reason: str):
    assert Rule(3, 3).drop_reason(verdicts) == reason


# -- the representative -------------------------------------------------------------------------------


def said(*texts: str) -> list[Response]:
    return [Response("q", sample, text, (), (), "stop") for sample, text in enumerate(texts)]


def test_most_frequent_and_of_equals_the_first_sampled():
    assert most_frequent(said("a", "b", "B", "c"), str.lower).text == "b"
    assert most_frequent(said("b", "a", "a", "b"), str).sample == 0
    assert most_frequent(said("x", "y", "z")[::-1], str).text == "x"


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.randoms())
def test_most_frequent_does_not_depend_on_the_order_of_the_list(texts: list[str], random):
    responses = said(*texts)
    chosen = most_frequent(responses, str)
    assert texts.count(chosen.text) == max(map(texts.count, texts))
    assert chosen.sample == texts.index(chosen.text)
    random.shuffle(responses)
    assert most_frequent(responses, str) == chosen
