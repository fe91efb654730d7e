"""The embedded questions: enough of them, no duplicate, and no answer that gives another one away."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable

import pytest

from hneurons.answers.judge import AliasJudge
from hneurons.answers.normalise import contains, normalise
from hneurons.questions.sources import load_questions
from hneurons.types import Question, Verdict

QUESTIONS = sorted(load_questions("starter").questions, key=lambda question: question.id)
DOMAINS: dict[str, list[Question]] = defaultdict(list)
for one in QUESTIONS:
    DOMAINS[one.domain].append(one)
ALIASES = {question.id: {normalise(answer) for answer in question.answers} for question in QUESTIONS}


def test_there_are_enough_questions_of_enough_domains():
    assert len(QUESTIONS) >= 1500
    assert len(DOMAINS) >= 10
    assert all(name and len(questions) >= 50 for name, questions in DOMAINS.items())


def test_texts_are_clean():
    for question in QUESTIONS:
        for text in (question.question, *question.answers):
            assert text == " ".join(text.split()), question.id
            assert text.isprintable(), question.id
        assert question.question.endswith("?"), question.id
        assert len(set(question.answers)) == len(question.answers), question.id


def test_no_question_twice():
    count = Counter(normalise(question.question) for question in QUESTIONS)
    assert [" ".join(tokens) for tokens, times in count.items() if times > 1] == []


def test_no_alias_without_tokens():
    assert [question.id for question in QUESTIONS if () in ALIASES[question.id]] == []


def test_no_answer_inside_its_question():
    told = [
        (question.id, alias)
        for question in QUESTIONS
        for alias in ALIASES[question.id]
        if contains(normalise(question.question), alias)
    ]
    assert told == []


def test_no_answer_to_more_than_six_questions():
    count = Counter(alias for aliases in ALIASES.values() for alias in aliases)
    assert {alias: times for alias, times in count.items() if times > 6} == {}


def traps(aliases: Iterable[tuple[str, set[tuple[str, ...]]]]) -> list[tuple[str, str]]:
    """Pairs of questions without a common answer where an alias of the first is a part of an alias of the second."""
    listed = list(aliases)
    inside: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for number, (_, names) in enumerate(listed):
        for name in names:
            for start in range(len(name)):
                for end in range(start + 1, len(name) + 1):
                    if end - start < len(name):
                        inside[name[start:end]].add(number)
    return [
        (identifier, listed[number][0])
        for identifier, names in listed
        for name in names
        for number in sorted(inside[name])
        if not names & listed[number][1]
    ]


def test_the_trap_finder_finds_traps():
    art, war = {("art",)}, {("art", "of", "war")}
    assert traps([("a", art), ("b", war)]) == [("a", "b")]
    assert traps([("a", {("of",)}), ("b", war)]) == [("a", "b")]
    assert traps([("a", art), ("b", {("bart",), ("art",)})]) == []
    assert traps([("a", art), ("b", {*war, ("art",)})]) == []


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_answer_is_a_part_of_a_wrong_but_plausible_one(domain: str):
    assert traps((question.id, ALIASES[question.id]) for question in DOMAINS[domain]) == []


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_judge_takes_the_answer_and_refuses_others(domain: str):
    judge, rng = AliasJudge(), random.Random(domain)
    wrong: list[tuple[str, str, Verdict]] = []
    for question in DOMAINS[domain]:
        own = question.answers[0]
        given = [(own, Verdict.CORRECT), (f"The answer is {own}.", Verdict.CORRECT)]
        others = [other.answers[0] for other in rng.sample(DOMAINS[domain], 6) if other is not question][:5]
        given += [
            (other, Verdict.WRONG)
            for other in others
            if not any(contains(normalise(other), alias) for alias in ALIASES[question.id])
        ]
        wrong += [(question.id, text, got) for text, due in given if (got := judge.judge(question, text)) is not due]
    assert wrong == []
