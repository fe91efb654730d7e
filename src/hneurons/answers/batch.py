"""Judges and span finders that are faster on many responses at a time, as those that ask an endpoint are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from hneurons.answers.judge import Judge
from hneurons.answers.spans import SpanFinder
from hneurons.types import Question, Span, Verdict

Pair = tuple[Question, str]
"""A question and a response to it."""


@runtime_checkable
class BatchJudge(Protocol):
    """A judge that is faster on many responses at a time."""

    def judge_many(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """A verdict for each pair, in order."""
        ...


@runtime_checkable
class BatchSpanFinder(Protocol):
    """A span finder that is faster on many responses at a time."""

    def find_many(self, pairs: Sequence[tuple[str, str]]) -> list[Span | None]:
        """A span for each (question, response), in order."""
        ...


def judge_all(judge: Judge, pairs: Sequence[Pair]) -> list[Verdict]:
    """A verdict for each pair, in order; all at once where the judge can."""
    if isinstance(judge, BatchJudge):
        return judge.judge_many(pairs)
    return [judge.judge(question, text) for question, text in pairs]


def find_all(finder: SpanFinder, pairs: Sequence[tuple[str, str]]) -> list[Span | None]:
    """A span for each (question, response), in order; all at once where the finder can."""
    if isinstance(finder, BatchSpanFinder):
        return finder.find_many(pairs)
    return [finder.find(question, response) for question, response in pairs]
