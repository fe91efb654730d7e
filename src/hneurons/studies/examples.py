"""From judged responses to labelled examples: representative response, answer span, groups and splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hneurons.answers.batch import find_all
from hneurons.answers.consistency import Rule, most_frequent, right_verdict
from hneurons.answers.normalise import normalise
from hneurons.answers.spans import SpanFinder, to_token_span
from hneurons.answers.text import span_text, token_offsets
from hneurons.models.load import StudyModel
from hneurons.types import Example, Label, Question, Response, Span, Verdict

NO_SPAN, NO_TOKENS, CLASS_FULL, NOT_ASKED = "no answer span", "no answer tokens", "class full", "not asked"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Kept:
    """Examples with the reasons and numbers of what was dropped."""

    examples: list[Example]
    dropped: dict[str, int]


def make_examples(
    model: StudyModel,
    questions: Sequence[Question],
    responses: Iterable[Response],
    rule: Rule,
    finder: SpanFinder,
    *,
    per_class: int,
    shares: tuple[float, float] | None,
    seed: int,
) -> Kept:
    """One example a consistent question, at most `per_class` of a class, split without leaks.

    Args:
        model: tokenizer and template, to find the answer's tokens.
        questions: in the order they were asked.
        responses: all judged responses.
        rule: which questions count as consistent.
        finder: marks the answer; it sees question and response, never the label or the accepted answers.
        per_class: largest number of examples of a class.
        shares: of the training and the validation split; None puts everything into the test split.
        seed: for the splits.
    """
    by_question: dict[str, list[Response]] = {}
    for response in responses:
        by_question.setdefault(response.question_id, []).append(response)
    dropped: Counter[str] = Counter()
    chosen: list[tuple[Question, Label, list[Response], Response]] = []
    for question in questions:
        found = by_question.get(question.id)
        if not found:
            dropped[NOT_ASKED] += 1
            continue
        right = right_verdict(question)
        verdicts = [response.verdict or Verdict.UNPARSABLE for response in found]
        label = rule.label(verdicts, right)
        if label is None:
            dropped[rule.drop_reason(verdicts, right)] += 1
            continue
        wanted = right if label is Label.FAITHFUL else Verdict.WRONG
        agreeing = [response for response in found if response.verdict is wanted]
        chosen.append((question, label, agreeing, most_frequent(agreeing, normalise)))
    spans = find_all(finder, [(question.question, response.text) for question, _, _, response in chosen])
    examples: list[Example] = []
    counts: Counter[Label] = Counter()
    for (question, label, agreeing, response), span in zip(chosen, spans, strict=True):
        made = _example(model, question, label, response, span, len(agreeing))
        if isinstance(made, str):
            dropped[made] += 1
        elif counts[label] >= per_class:
            dropped[CLASS_FULL] += 1
        else:
            counts[label] += 1
            examples.append(made)
    return Kept(split(examples, questions, shares, seed), dict(dropped))


def _example(
    model: StudyModel, question: Question, label: Label, response: Response, chars: Span | None, agreement: int
) -> Example | str:
    if chars is None and response.verdict is Verdict.ABSTAINED and response.text:
        chars = Span(0, len(response.text))  # a refusal claims nothing: all of it is the answer
    if chars is None:
        return NO_SPAN
    tokens = to_token_span(chars, token_offsets(model, response.said, response.text))
    if tokens is None:
        return NO_TOKENS
    before = response.thinking_tokens
    return Example(
        question_id=question.id,
        question=question.question,
        label=label,
        split="",
        group="",
        response=response,
        answer_chars=chars,
        answer_tokens=Span(tokens.start + before, tokens.end + before),
        prompt_tokens=len(model.prompt_ids(question.question)),
        agreement=agreement,
        domain=question.domain,
    )


def split(
    examples: Sequence[Example], questions: Sequence[Question], shares: tuple[float, float] | None, seed: int
) -> list[Example]:
    """Give each example its group and split.

    Two examples share a group when they share a question, the answer given, or an accepted answer, directly or through
    others; a group never crosses splits, so that a probe can't score by having seen the answer. Groups go, the largest
    first, to the split that lacks most of their class.
    """
    accepted = {question.id: question.answers[:1] for question in questions}
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for example in examples:
        given = span_text(example.response.text, example.answer_chars)
        texts = (given, *accepted[example.question_id])
        keys = [f"answer:{' '.join(normalise(text))}" for text in texts]
        for key in keys:
            parents[root(f"question:{example.question_id}")] = root(key)
    grouped: dict[str, list[Example]] = {}
    for example in examples:
        grouped.setdefault(root(f"question:{example.question_id}"), []).append(example)

    def order(item: tuple[str, list[Example]]) -> tuple[int, str]:
        names = min(example.question_id for example in item[1])
        return -len(item[1]), hashlib.sha256(f"{seed}/{names}".encode()).hexdigest()

    goal: dict[str, float] = {"test": 1.0}
    if shares is not None:
        goal = dict(zip(SPLITS, (*shares, 1 - sum(shares)), strict=True))
    totals = Counter(example.label for example in examples)
    have = {name: Counter[Label]() for name in goal}
    chosen: dict[str, tuple[str, str]] = {}
    for _, members in sorted(grouped.items(), key=order):
        labels = Counter(example.label for example in members)

        def lacking(name: str, labels: Counter[Label] = labels) -> float:
            return sum(n * (goal[name] - have[name][label] / totals[label]) / goal[name] for label, n in labels.items())

        target = max(goal, key=lacking)
        have[target].update(labels)
        group = min(example.question_id for example in members)
        for example in members:
            chosen[example.question_id] = (group, target)
    return [
        replace(example, group=chosen[example.question_id][0], split=chosen[example.question_id][1])
        for example in examples
    ]
