import inspect
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from hneurons.answers.consistency import Rule
from hneurons.answers.normalise import normalise
from hneurons.answers.spans import RuleSpanFinder
from hneurons.models.load import StudyModel
from hneurons.studies.examples import SPLITS, make_examples, split
from hneurons.types import Example, Label, Question, Response, Span, Verdict, to_json

C, W, A, U = Verdict.CORRECT, Verdict.WRONG, Verdict.ABSTAINED, Verdict.UNPARSABLE
RULE = Rule(3, 3)


def question(number: int, *answers: str) -> Question:
    return Question(f"q{number:03}", f"What is the name of city number {number}?", answers or (f"Answer{number}",))


def response(model: StudyModel, asked: Question, sample: int, text: str, verdict: Verdict) -> Response:
    ids = (*model.tokenizer.encode(text, add_special_tokens=False), 2)
    return Response(asked.id, sample, text, ids, (-0.5,) * len(ids), "stop", verdict, "test")


def responses(model: StudyModel, asked: Question, texts: list[str], verdicts: list[Verdict]) -> list[Response]:
    return [response(model, asked, k, *pair) for k, pair in enumerate(zip(texts, verdicts, strict=True))]


def made(model: StudyModel, questions, given_responses, *, rule=RULE, finder=None, per_class=100, seed=0):
    return make_examples(
        model, questions, given_responses, rule, finder or RuleSpanFinder(),
        per_class=per_class, shares=(0.5, 0.2), seed=seed,
    )  # fmt: skip


# -- one example --------------------------------------------------------------------------------------


def test_the_representative_is_the_most_frequent_of_the_agreeing(llama: StudyModel):
    asked = question(1)
    texts = ["Oslo.", "Answer1!", "The city is Bergen.", "bergen", "the city is  bergen"]
    kept = made(llama, [asked], responses(llama, asked, texts, [W, C, W, W, W]), rule=Rule(5, 4))
    assert [example.response.text for example in kept.examples] == ["The city is Bergen."]
    assert (kept.examples[0].label, kept.examples[0].agreement) == (Label.HALLUCINATED, 4)


def test_of_equally_frequent_ones_the_first_sampled(llama: StudyModel):
    asked = question(1)
    given_responses = responses(llama, asked, ["Oslo.", "Bergen.", "Narvik."], [W, W, W])
    kept = made(llama, [asked], given_responses[::-1])
    assert kept.examples[0].response.text == "Oslo."


def test_the_span_in_tokens_covers_the_span_in_characters(llama: StudyModel):
    asked = question(1)
    kept = made(llama, [asked], responses(llama, asked, ["The city is Bjørnøya ☕."] * 3, [W] * 3))
    example = kept.examples[0]
    ids = example.response.token_ids[example.answer_tokens.start : example.answer_tokens.end]
    marked = example.response.text[example.answer_chars.start : example.answer_chars.end]
    assert "Bjørnøya" in marked
    assert marked in llama.tokenizer.decode(ids)
    assert "city" not in llama.tokenizer.decode(ids)
    assert example.prompt_tokens == len(llama.prompt_ids(asked.question))


class Spy:
    """The rule finder, writing down what it was given."""

    name = "spy"

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def find(self, question: str, response: str) -> Span | None:
        self.seen.append((question, response))
        return RuleSpanFinder().find(question, response)


def test_the_finder_sees_question_and_response_only(llama: StudyModel):
    assert list(inspect.signature(RuleSpanFinder().find).parameters) == ["question", "response"]
    asked, spy = question(1, "Secret"), Spy()
    made(llama, [asked], responses(llama, asked, ["The city is Oslo."] * 3, [W] * 3), finder=spy)
    assert set(spy.seen) == {(asked.question, "The city is Oslo.")}
    assert all(type(part) is str for call in spy.seen for part in call)


def test_labels_and_gold_answers_change_no_span(llama: StudyModel):
    texts = ["The city is Oslo.", "Bergen, of course", "It was the year 1925", "I think Narvik is right"]
    questions = [question(i, "Oslo") for i in range(len(texts))]
    spans = []
    for verdict, gold in ((W, "Oslo"), (C, "Oslo"), (W, "nothing"), (C, "city"), (W, "I think")):
        given_responses = [
            r for q, text in zip(questions, texts, strict=True) for r in responses(llama, q, [text] * 3, [verdict] * 3)
        ]
        kept = made(llama, [replace(q, answers=(gold,)) for q in questions], given_responses)
        spans.append([(e.question_id, e.answer_chars, e.answer_tokens) for e in kept.examples])
    assert len(spans[0]) == 4
    assert all(other == spans[0] for other in spans[1:])


# -- counts -------------------------------------------------------------------------------------------

KINDS = {
    "faithful": (["The city is Oslo."] * 3, [C] * 3),
    "hallucinated": (["The city is Narvik."] * 3, [W] * 3),
    "mixed verdicts": (["The city is Oslo.", "The city is Narvik."], [C, W]),
    "abstained": (["I don't know."], [A]),
    "unparsable": (["..."], [U]),
    "no answer span": (["..."] * 3, [W] * 3),
    "class full": (["The city is Oslo."], [C]),
    "not asked": ([], []),
}


@settings(max_examples=40)
@given(st.lists(st.sampled_from(list(KINDS)), max_size=25), st.integers(1, 8))
def test_every_question_is_kept_or_counted(llama: StudyModel, kinds: list[str], per_class: int):
    questions = [question(i) for i in range(len(kinds))]
    given_responses = [r for q, kind in zip(questions, kinds, strict=True) for r in responses(llama, q, *KINDS[kind])]
    kept = made(llama, questions, given_responses, per_class=per_class)
    labels = Counter(str(example.label) for example in kept.examples)
    assert len(questions) == len(kept.examples) + sum(kept.dropped.values())
    over = 0
    for label in ("faithful", "hallucinated"):
        assert labels[label] == min(kinds.count(label), per_class)
        over += max(kinds.count(label) - per_class, 0)
    for reason in ("mixed verdicts", "abstained", "unparsable", "no answer span", "not asked"):
        assert kept.dropped.get(reason, 0) == kinds.count(reason)
    assert kept.dropped.get("class full", 0) == kinds.count("class full") + over
    assert all(kept.dropped.values())


def test_a_full_class_keeps_the_first_that_were_asked(llama: StudyModel):
    questions = [question(i) for i in range(6)]
    given_responses = [r for q in questions for r in responses(llama, q, [f"It is {q.answers[0]}."] * 3, [C] * 3)]
    kept = made(llama, questions, given_responses[::-1], per_class=4)
    assert [example.question_id for example in kept.examples] == ["q000", "q001", "q002", "q003"]


# -- splits -------------------------------------------------------------------------------------------


def example(number: int, answer: str, label: Label) -> Example:
    text = f"It is {answer}."
    said = Response(f"q{number:03}", 0, text, (5, 6), (-1.0, -1.0), "stop")
    span = Span(6, 6 + len(answer))
    return Example(f"q{number:03}", f"Question {number}?", label, "", "", said, span, Span(0, 1), 3, 3)


LABELS = st.sampled_from(list(Label))
SHARED = st.lists(
    st.tuples(
        st.sampled_from(["Oslo", "oslo", "The Oslo", "Bergen", "Narvik", "21", "twenty-one", "Tromsø", "Tromso"])
        | st.integers(0, 40).map(lambda n: f"Place{n}"),
        st.sampled_from(["Oslo", "Rome", "Narvik"]) | st.integers(0, 40).map(lambda n: f"Place{n}"),
        LABELS,
    ),
    max_size=40,
)


def parts(rows: list[tuple[str, str, Label]], seed: int = 0) -> list[Example]:
    examples = [example(i, given_answer, label) for i, (given_answer, _, label) in enumerate(rows)]
    questions = [question(i, gold) for i, (_, gold, _) in enumerate(rows)]
    return split(examples, questions, (0.5, 0.2), seed)


@given(SHARED, st.integers(0, 3))
def test_no_answer_and_no_group_crosses_splits(rows, seed: int):
    examples = parts(rows, seed)
    assert [e.question_id for e in examples] == [f"q{i:03}" for i in range(len(rows))]
    homes: dict[tuple[str, ...], set[str]] = {}
    groups: dict[tuple[str, ...], set[str]] = {}
    for (given_answer, gold, _), made_example in zip(rows, examples, strict=True):
        assert made_example.split in SPLITS
        for answer in (normalise(given_answer), normalise(gold)):
            homes.setdefault(answer, set()).add(made_example.split)
            groups.setdefault(answer, set()).add(made_example.group)
    assert all(len(names) == 1 for names in homes.values())
    assert all(len(names) == 1 for names in groups.values())


@given(SHARED)
def test_splits_are_the_same_each_time(rows):
    assert [to_json(e) for e in parts(rows)] == [to_json(e) for e in parts(rows)]


@given(st.lists(LABELS, min_size=40, max_size=120), st.integers(0, 5))
def test_splits_have_their_share_of_each_class(labels: list[Label], seed: int):
    examples = parts([(f"Place{i}", f"Gold{i}", label) for i, label in enumerate(labels)], seed)
    for label in Label:
        total = labels.count(label)
        for name, share in zip(SPLITS, (0.5, 0.2, 0.3), strict=True):
            assert abs(sum(e.split == name and e.label == label for e in examples) - share * total) <= 2


@given(st.lists(st.tuples(st.integers(0, 25), LABELS), min_size=80, max_size=160))
def test_splits_are_fair_when_answers_are_shared(rows):
    examples = parts([(f"Place{n}", f"Place{n}", label) for n, label in rows])
    biggest = max(Counter(n for n, _ in rows).values())
    for name, share in zip(SPLITS, (0.5, 0.2, 0.3), strict=True):
        own = sum(e.split == name for e in examples)
        assert abs(own - share * len(rows)) <= 2 * biggest


def test_another_seed_splits_otherwise():
    rows = [(f"Place{i}", f"Gold{i}", Label.FAITHFUL) for i in range(30)]
    assert [e.split for e in parts(rows, 0)] != [e.split for e in parts(rows, 1)]


@pytest.mark.parametrize("label", Label)
def test_one_class_alone_can_be_split(label: Label):
    examples = parts([(f"Place{i}", f"Gold{i}", label) for i in range(20)])
    assert Counter(e.split for e in examples) == {"train": 10, "validation": 4, "test": 6}


def test_the_example_of_a_run_uses_its_own_question(llama: StudyModel):
    questions = [question(i, name) for i, name in enumerate(tiny.names(4))]
    given_responses = [r for q in questions for r in responses(llama, q, [f"It is {q.answers[0]}."] * 3, [C] * 3)]
    kept = made(llama, questions, given_responses)
    for asked, built in zip(questions, kept.examples, strict=True):
        assert built.question == asked.question
        marked = built.response.text[built.answer_chars.start : built.answer_chars.end]
        assert marked == asked.answers[0]
