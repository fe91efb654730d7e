"""Keep the questions whose samples all agree, and stop sampling the others as soon as they can't.

A question is *faithful* when `agreement` of its `samples` responses are correct, *hallucinated* when that many are
wrong and none is a refusal (Gao et al. 2025, sec. 3). Both need all 10 of 10 by default. To a question without an
accepted answer, about something that doesn't exist, a refusal is the faithful response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from hneurons.answers.batch import judge_all
from hneurons.answers.engine import Engine, Request, Sampling
from hneurons.answers.judge import Judge
from hneurons.types import Label, Question, Response, Verdict

MIXED, ABSTAINED, UNPARSABLE, FULL = "mixed verdicts", "abstained", "unparsable", "class full"


def right_verdict(question: Question) -> Verdict:
    """The verdict on a faithful response to this question."""
    return Verdict.CORRECT if question.answers else Verdict.ABSTAINED


@dataclass(frozen=True)
class Rule:
    """How many samples a question gets, and how many must agree."""

    samples: int = 10
    agreement: int = 10

    def open_labels(self, verdicts: Sequence[Verdict], right: Verdict = Verdict.CORRECT) -> set[Label]:
        """The labels that the question can still get, whatever the samples to come; `right` is `right_verdict`."""
        left = self.samples - len(verdicts)
        labels: set[Label] = set()
        if verdicts.count(right) + left >= self.agreement:
            labels.add(Label.FAITHFUL)
        wrong_possible = verdicts.count(Verdict.WRONG) + left >= self.agreement
        if wrong_possible and Verdict.ABSTAINED not in verdicts:
            labels.add(Label.HALLUCINATED)
        return labels

    def label(self, verdicts: Sequence[Verdict], right: Verdict = Verdict.CORRECT) -> Label | None:
        """The label of a question all of whose samples are in, None if it gets none."""
        if len(verdicts) < self.samples:
            return None
        labels = self.open_labels(verdicts, right)
        # With agreement at or below half of the samples both could hold: then it is neither.
        return labels.pop() if len(labels) == 1 else None

    def drop_reason(self, verdicts: Sequence[Verdict], right: Verdict = Verdict.CORRECT) -> str:
        """Why a question without label was dropped."""
        if self.open_labels(verdicts, right) and len(verdicts) < self.samples:
            return FULL
        if right in verdicts and Verdict.WRONG in verdicts:
            return MIXED
        if Verdict.ABSTAINED in verdicts:
            return ABSTAINED
        return UNPARSABLE if Verdict.UNPARSABLE in verdicts else MIXED

    def rounds(self) -> list[int]:
        """Samples a question gets in each round: few while most questions still drop out, then more."""
        sizes: list[int] = []
        while sum(sizes) < self.samples:
            sizes.append(min(1 if len(sizes) < 2 else len(sizes), self.samples - sum(sizes)))
        return sizes


def sample_questions(
    engine: Engine,
    judge: Judge,
    questions: Sequence[Question],
    sampling: Sampling,
    rule: Rule,
    full: Iterable[Label] = (),
    tick: Callable[[int], None] = lambda _: None,
) -> list[Response]:
    """Judged responses to `questions`, round by round; a question that can get no wanted label gets no more.

    Args:
        engine: draws the responses.
        judge: gives each its verdict.
        questions: what is asked; one batch as far as the engine can.
        sampling: temperature and so on.
        rule: how many samples, how many must agree.
        full: labels of which there are enough examples already.
        tick: called with the number of questions that were decided, and with 0 before each round is judged.
    """
    unwanted = set(full)
    verdicts: dict[str, list[Verdict]] = {question.id: [] for question in questions}
    judged: list[Response] = []
    alive = list(questions)
    taken = 0
    for size in rule.rounds():
        requests = [Request(question, taken + k) for question in alive for k in range(size)]
        if not requests:
            break
        by_id = {question.id: question for question in alive}
        responses = engine.sample(requests, sampling)
        tick(0)  # that nobody wants the questions any more is heard before a judge is paid for them
        given = judge_all(judge, [(by_id[response.question_id], response.text) for response in responses])
        for response, verdict in zip(responses, given, strict=True):
            verdicts[response.question_id].append(verdict)
            judged.append(replace(response, verdict=verdict, judge=judge.name))
        taken += size
        before = len(alive)
        alive = [q for q in alive if rule.open_labels(verdicts[q.id], right_verdict(q)) - unwanted]
        tick(before - len(alive))
    tick(len(alive))
    return judged


def most_frequent(responses: Sequence[Response], key: Callable[[str], object]) -> Response:
    """The response whose `key(text)` is the most frequent; of equals the one sampled first."""
    counts: dict[object, int] = {}
    for response in responses:
        counts[key(response.text)] = counts.get(key(response.text), 0) + 1
    best = max(counts.values())
    ordered = sorted(responses, key=lambda response: response.sample)
    return next(response for response in ordered if counts[key(response.text)] == best)
