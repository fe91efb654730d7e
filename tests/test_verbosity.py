"""Truth by verbosity: exact spans, balanced cells, and effects that were planted come out."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from hneurons.answers.normalise import contains, normalise
from hneurons.runfolder import dumps
from hneurons.stats import Interval
from hneurons.studies import verbosity as module
from hneurons.studies.verbosity import TEMPLATES, Cell, rewrites, two_by_two
from hneurons.types import Example, Label, Question, Response, Span


def asked(i: int, question: str, answers: tuple[str, ...], domain: str = "geo") -> Question:
    return Question(f"q{i}", question, answers, domain)


def answered(question: Question, label: Label, answer: str, before: str = "It is ") -> Example:
    text = f"{before}{answer}."
    response = Response(question.id, 0, text, (1, 2, 3), (-0.1,) * 3, "stop")
    span = Span(len(before), len(before) + len(answer))
    return Example(
        question.id,
        question.question,
        label,
        "test",
        f"g{question.id}",
        response,
        span,
        Span(1, 2),
        9,
        10,
        question.domain,
    )


CAPITALS = [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Peru", "Lima"), ("Kenya", "Nairobi")]
QUESTIONS = [asked(i, f"What is the capital of {land}?", (city,)) for i, (land, city) in enumerate(CAPITALS)] + [
    asked(10, "How many legs has a spider?", ("8", "eight"), "animals"),
    asked(11, "How many legs has an ant?", ("6", "six"), "animals"),
    asked(12, "Which city is the seat of the EU?", ("Brussels",), "politics"),
]
BY_ID = {question.id: question for question in QUESTIONS}


def corpus() -> list[Example]:
    right = [answered(BY_ID[f"q{i}"], Label.FAITHFUL, CAPITALS[i][1]) for i in range(3)]
    return [*right, *(answered(BY_ID[f"q{i}"], Label.HALLUCINATED, "Atlantis") for i in (3, 4, 10))]


def test_four_cells_a_question_with_the_models_own_answer_in_half():
    made = rewrites(corpus(), QUESTIONS)
    assert not made.dropped
    assert [row.cell for row in made.rows] == list(Cell) * 6
    assert [row.question_id for row in made.rows[::4]] == ["q0", "q1", "q2", "q3", "q4", "q10"]
    assert Counter((row.own, row.cell.wrong) for row in made.rows) == dict.fromkeys(
        [(own, wrong) for own in (True, False) for wrong in (True, False)], 6
    )
    for row in made.rows:
        answer = row.text[row.answer.start : row.answer.end]
        accepted = BY_ID[row.question_id].answers
        assert (answer in accepted) == (not row.cell.wrong)
        assert (row.text == answer) == (not row.cell.long)
        assert row.group == f"g{row.question_id}"
    assert made.rows[14].text == "Atlantis"
    assert made.rows[12].text == "Lima"


def test_right_and_wrong_stand_in_the_same_sentence():
    for rows in np.split(np.array(rewrites(corpus(), QUESTIONS).rows, dtype=object), 6):
        frames = {(row.text[: row.answer.start], row.text[row.answer.end :]) for row in rows if row.cell.long}
        assert frames == {TEMPLATES[rows[0].template]}
        assert len({row.template for row in rows}) == 1


def test_wrong_answers_are_borrowed_from_the_same_domain_and_type():
    for seed in range(20):
        rows = rewrites(corpus(), QUESTIONS, seed).rows
        borrowed = [row.text for row in rows if row.cell is Cell.WRONG_SHORT and not row.own]
        assert len(borrowed) == 3
        assert set(borrowed) <= {city for _, city in CAPITALS}
    few = [answered(BY_ID["q12"], Label.FAITHFUL, "Brussels"), answered(BY_ID["q3"], Label.HALLUCINATED, "Atlantis")]
    rows = rewrites(few, QUESTIONS).rows
    # No other question of its domain: then of its type.
    assert rows[2].text in {city for _, city in CAPITALS}


def test_a_wrong_answer_holds_no_right_one():
    questions = [
        asked(0, "What is the capital of France?", ("Paris", "the City of Light")),
        asked(1, "What is the capital of the old France?", ("Old Paris",)),
        asked(2, "What is the largest city of light?", ("Light",)),
        asked(3, "What is the capital of Peru?", ("Lima",)),
    ]
    examples = [answered(questions[0], Label.FAITHFUL, "Paris"), answered(questions[3], Label.HALLUCINATED, "Cuzco")]
    for seed in range(10):
        assert rewrites(examples, questions, seed).rows[2].text == "Lima"


def test_what_gives_no_rewrite_is_counted():
    invented = asked(20, "Who makes volor pri?", ())
    lonely = asked(21, "Is water wet?", ("yes",))
    examples = [
        *corpus()[:4],
        answered(invented, Label.HALLUCINATED, "Pfizer"),
        answered(lonely, Label.FAITHFUL, "yes"),
        answered(BY_ID["q4"], Label.HALLUCINATED, "New Nairobi"),
        answered(asked(99, "Who?", ("x",)), Label.FAITHFUL, "x"),
    ]
    made = rewrites(examples, [*QUESTIONS, invented, lonely])
    assert made.dropped == {"no accepted answer": 2, "no wrong answer": 1, "answers alike": 1, "class full": 2}
    assert len(made.rows) == 8
    assert sum(made.dropped.values()) + len(made.rows) // 4 == len(examples)
    assert rewrites([], QUESTIONS).rows == []
    only = rewrites(corpus()[:3], QUESTIONS)
    assert (only.rows, only.dropped) == ([], {"class full": 3})


def test_which_of_the_larger_class_are_left_out_depends_on_the_seed():
    examples = corpus()[:4]
    kept = {rewrites(examples, QUESTIONS, seed).rows[0].question_id for seed in range(12)}
    assert kept == {"q0", "q1", "q2"}


def test_an_examples_texts_depend_on_no_other():
    whole = {row.question_id: row for row in rewrites(corpus(), QUESTIONS, 7).rows if row.cell is Cell.WRONG_LONG}
    part = rewrites([corpus()[1], corpus()[4]], QUESTIONS, 7).rows
    assert [row for row in part if row.cell is Cell.WRONG_LONG] == [whole["q1"], whole["q4"]]
    assert {row.template for seed in range(30) for row in rewrites(corpus(), QUESTIONS, seed).rows} == set(
        range(len(TEMPLATES))
    )


ANSWERS = st.text(min_size=1, max_size=20).filter(lambda text: bool(normalise(text)))


@settings(max_examples=60)
@given(st.lists(st.tuples(ANSWERS, ANSWERS), min_size=2, max_size=6), st.integers(0, 5))
def test_spans_are_exact_whatever_the_answers_hold(pairs: list[tuple[str, str]], seed: int):
    questions = [asked(i, "What is it?", (right,)) for i, (right, _) in enumerate(pairs)]
    examples = [
        answered(question, label, pair[label is Label.HALLUCINATED], before="")
        for i, (question, pair) in enumerate(zip(questions, pairs, strict=True))
        for label in [list(Label)[i % 2]]
    ]
    made = rewrites(examples, questions, seed)
    assert len(made.rows) % 8 == 0
    assert sum(made.dropped.values()) + len(made.rows) // 4 == len(examples)
    for start in range(0, len(made.rows), 4):
        rows = made.rows[start : start + 4]
        i = int(rows[0].question_id[1:])
        texts = [row.text[row.answer.start : row.answer.end] for row in rows]
        assert texts[0] == texts[1] == pairs[i][0]
        assert texts[2] == texts[3]
        assert texts[2] in {answer for pair in pairs for answer in pair}
        right, wrong = normalise(texts[0]), normalise(texts[2])
        assert not contains(right, wrong)
        assert not contains(wrong, right)
        for row in rows:
            before, after = TEMPLATES[row.template] if row.cell.long else ("", "")
            assert row.text == before + row.text[row.answer.start : row.answer.end] + after


def test_no_template_says_anything_about_the_answer():
    said = {word for template in TEMPLATES for word in normalise(" ".join(template))}
    assert not said & {"not", "maybe", "perhaps", "probably", "wrong", "right", "correct", "true", "false", "sure"}
    assert min(len(normalise(" ".join(template))) for template in TEMPLATES) >= 9


# -- effects ------------------------------------------------------------------------------------------------


def planted(
    truth: float, verbosity: float, interaction: float = 0.0, n: int = 100, seed: int = 0
) -> tuple[Any, Any, Any]:
    """Scores, cells and questions of n questions whose cells differ by what is planted, in noise of 1."""
    rng = np.random.default_rng([3, seed])
    cells = list(Cell) * n
    wrong, long = np.array([c.wrong for c in cells], bool), np.array([c.long for c in cells], bool)
    scores = truth * wrong + verbosity * long + interaction * (wrong & long) + rng.normal(size=4 * n)
    return scores, cells, [f"q{i // 4}" for i in range(4 * n)]


def test_planted_effects_come_out_in_standard_deviations():
    found = [two_by_two(*planted(0.8, 2.0, 0.6, seed=seed), draws=200) for seed in range(20)]
    # The interaction adds half of itself to both main effects.
    for name, want in (("truth", 1.1), ("verbosity", 2.3), ("interaction", 0.6), ("pooled_sd", 1.0)):
        assert np.mean([one[name]["value"] for one in found]) == pytest.approx(want, abs=0.12)
        assert sum(one[name]["low"] <= want <= one[name]["high"] for one in found) >= 16
    assert {one["finding"] for one in found} == {"verbosity more than truth"}


def test_units_do_not_matter():
    scores, cells, clusters = planted(0.8, 2.0)
    one, other = (two_by_two(each, cells, clusters, draws=200) for each in (scores, 1000 * scores - 7))
    for name in ("truth", "verbosity", "interaction", "ratio", "excess", "auroc"):
        assert json.dumps(one[name])[:60] == json.dumps(other[name])[:60]
    assert other["pooled_sd"]["value"] == pytest.approx(1000 * one["pooled_sd"]["value"], rel=1e-5)


def test_numbers_against_plain_formulas():
    scores, cells, clusters = planted(0.5, 1.0, 0.3, n=30)
    one = two_by_two(scores, cells, clusters, draws=100)
    groups = {cell: scores[[i for i, each in enumerate(cells) if each is cell]] for cell in Cell}
    mean = {cell: group.mean() for cell, group in groups.items()}
    sd = math.sqrt(np.mean([group.var(ddof=1) for group in groups.values()]))
    assert one["pooled_sd"]["value"] == pytest.approx(sd, abs=1e-6)
    assert one["cells"] == {str(cell): {**one["cells"][str(cell)], "n": 30} for cell in Cell}
    for cell in Cell:
        assert one["cells"][str(cell)]["value"] == pytest.approx(mean[cell], abs=1e-6)
    truth = np.mean([mean[c] for c in Cell if c.wrong]) - np.mean([mean[c] for c in Cell if not c.wrong])
    verbosity = np.mean([mean[c] for c in Cell if c.long]) - np.mean([mean[c] for c in Cell if not c.long])
    crossed = (mean[Cell.WRONG_LONG] - mean[Cell.RIGHT_LONG]) - (mean[Cell.WRONG_SHORT] - mean[Cell.RIGHT_SHORT])
    assert one["truth"]["value"] == pytest.approx(truth / sd, abs=1e-6)
    assert one["verbosity"]["value"] == pytest.approx(verbosity / sd, abs=1e-6)
    assert one["interaction"]["value"] == pytest.approx(crossed / sd, abs=1e-6)
    assert one["ratio"]["value"] == pytest.approx(abs(verbosity / truth), abs=1e-5)
    assert one["excess"]["value"] == pytest.approx((abs(verbosity) - abs(truth)) / sd, abs=1e-6)
    for name, long in (("short", False), ("long", True)):
        rows = [i for i, cell in enumerate(cells) if cell.long is long]
        want = roc_auc_score([cells[i].wrong for i in rows], scores[rows])
        assert one["auroc"][name]["value"] == pytest.approx(want, abs=1e-6)
    assert (one["n"], one["questions"]) == (120, 30)


def test_findings_of_planted_worlds():
    assert two_by_two(*planted(2.0, 0.5), draws=200)["finding"] == "truth more than verbosity"
    assert two_by_two(*planted(2.0, -0.5), draws=200)["finding"] == "truth more than verbosity"
    assert two_by_two(*planted(0.7, -2.0), draws=200)["finding"] == "verbosity more than truth"
    assert two_by_two(*planted(1.0, 1.0), draws=200)["finding"] == "truth and verbosity alike"
    assert two_by_two(*planted(0.0, 1.0), draws=200)["finding"] == "truth not seen"
    assert two_by_two(*planted(-1.0, 1.0), draws=200)["finding"] == "truth not seen"
    assert two_by_two(*planted(2.0, 0.5, n=20), draws=200)["finding"] != "too little data"
    assert two_by_two(*planted(2.0, 0.5, n=19), draws=200)["finding"] == "too little data"


def test_questions_are_drawn_whole():
    # What a question adds to all four cells cancels in the effects and must not widen their intervals.
    scores, cells, clusters = planted(1.0, 0.0, n=60)
    noisy = scores + np.repeat(10 * np.random.default_rng(1).normal(size=60), 4)
    one = two_by_two(noisy, cells, clusters, draws=400)
    apart = two_by_two(noisy, cells, list(range(240)), draws=400)
    width, loose = (each["truth"]["high"] - each["truth"]["low"] for each in (one, apart))
    assert width < loose / 3


@pytest.mark.parametrize("n", [0, 1, 30])
def test_scores_that_never_differ_give_nulls(n: int):
    _, cells, clusters = planted(0, 0, n=n)
    one = two_by_two(np.zeros(4 * n), cells, clusters, draws=50)
    json.loads(dumps(one))
    assert one["truth"]["value"] is None
    assert one["ratio"]["value"] is None
    assert one["finding"] == "too little data"


def test_sentences_say_how_far():
    near, far = Interval(0.5, 0.4, 0.6, 50), Interval(2.0, 1.8, 2.2, 50)
    word, sentence = module._finding(50, near, far, Interval(4.0, 3.0, 5.0, 50), Interval(1.5, 1.2, 1.8, 50))
    assert word == "verbosity more than truth"
    assert "0.500 [0.400, 0.600] standard deviations from right to wrong" in sentence
    assert "2.000 [1.800, 2.200] from short to long, 4.0 times as far" in sentence
