"""Which judge and span finder a run uses, and how far they agree with the rules that need no network."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hneurons.answers.agreement import SpanPair, judge_agreement, span_overlap
from hneurons.answers.batch import find_all, judge_all
from hneurons.answers.engine import Engine
from hneurons.answers.judge import JUDGES, AliasJudge, Judge
from hneurons.answers.spans import RuleSpanFinder, SpanFinder
from hneurons.errors import UsageError
from hneurons.neurons.cett import Extractor
from hneurons.runfolder import write_json
from hneurons.studies.collect import Collection, Tools
from hneurons.studies.records import response_from_json
from hneurons.types import Question, Region, Span, Verdict

LLM = "llm"
FINDERS = ("rule", LLM)
TYPICAL = "The answer to that question is a name of some words."
"""A response as long as many, to estimate what judging costs before there are any."""
PROBE = 3
"""Requests sent to estimate the time."""


@dataclass(frozen=True)
class Judging:
    """Judge and span finder by name, and the endpoint that `llm` asks."""

    judge: str = "alias"
    spans: str = "rule"
    endpoint: dict[str, Any] = field(default_factory=dict[str, Any])
    """Settings of `hneurons.answers.endpoint.endpoint`; those that are None take their defaults."""

    def __post_init__(self) -> None:
        if self.judge not in (*JUDGES, LLM):
            raise UsageError(f"There is no judge {self.judge!r}.", f"Judges: {', '.join((*JUDGES, LLM))}.")
        if self.spans not in FINDERS:
            raise UsageError(f"There is no span finder {self.spans!r}.", f"Span finders: {', '.join(FINDERS)}.")
        if self.asks and not self.endpoint.get("model"):
            raise UsageError("The LLM judge needs the name of its model.", "Give --judge-model, and --judge-url.")

    @property
    def asks(self) -> bool:
        """Whether a language model is asked."""
        return LLM in (self.judge, self.spans)


@contextmanager
def open_tools(
    chosen: Judging,
    cache: Path,
    questions: Sequence[Question],
    samples: int,
    say: Callable[[str], None],
    engine: Engine | None = None,
    extractor: Callable[[Sequence[Region]], Extractor] | None = None,
) -> Generator[Tools]:
    """Judge and span finder, closed at the end. What asking will cost is said first, what was asked at the end.

    Args:
        chosen: which.
        cache: folder of the replies; a run that is continued asks nothing again.
        questions: that will be asked.
        samples: responses a question at most.
        say: gets the sentences.
        engine: draws the responses.
        extractor: makes what measures the contributions.

    Raises:
        JudgeError: there is no key, or the endpoint doesn't answer.
        MissingExtraError: `openai` isn't installed.
    """
    if not chosen.asks:
        yield Tools(engine, JUDGES[chosen.judge](), RuleSpanFinder(), extractor)
        return
    from hneurons.answers.endpoint import endpoint
    from hneurons.answers.llm import LLMClient
    from hneurons.answers.llmjudge import LLMJudge, LLMSpanFinder

    where = endpoint(**{key: value for key, value in chosen.endpoint.items() if value is not None})
    with LLMClient(where, cache) as client:
        judge: Judge = LLMJudge(client) if chosen.judge == LLM else JUDGES[chosen.judge]()
        finder: SpanFinder = LLMSpanFinder(client) if chosen.spans == LLM else RuleSpanFinder()
        if isinstance(judge, LLMJudge):
            sample = questions[:200]
            # A run that is continued knows how long its judge takes.
            probe = 0 if (cache / "replies.jsonl").exists() else PROBE
            one = judge.estimate([(question, TYPICAL) for question in sample], probe=probe)
            times = len(questions) * samples / max(len(sample), 1)
            most = replace(
                one,
                calls=round((one.calls + one.cached) * times),
                cached=0,
                prompt_tokens=round(one.prompt_tokens * times),
                completion_tokens=round(one.completion_tokens * times),
                cost=None if one.cost is None else one.cost * times,
                seconds=None if one.seconds is None else one.seconds * times,
            )
            say(f"Judging every response would take: {most}. Questions that drop out early make it less.")
        try:
            yield Tools(engine, judge, finder, extractor)
        finally:
            counts = client.counts
            say(f"Asked {where.model} {counts.requests:,} times; {counts.cached:,} replies came from the cache.")


def agree(data: Collection) -> None:
    """agreement.json: how far the run's judge and span finder agree with the alias judge and the rule finder."""
    by_id = {question.id: question for question in data.questions.questions}
    responses = [response_from_json(row) for row in data.folder.journal("responses.jsonl").read()]
    judge, finder = data.tools.judge, data.tools.finder
    found: dict[str, Any] = {"format": "hneurons.agreement/1", "judges": None, "spans": None}
    if judge.name != AliasJudge.name:
        alias = judge_all(AliasJudge(), [(by_id[r.question_id], r.text) for r in responses])
        own = [response.verdict or Verdict.UNPARSABLE for response in responses]
        ids = [response.question_id for response in responses]
        found["judges"] = judge_agreement(alias, own, ids, (AliasJudge.name, judge.name)).to_json()
    if finder.name != RuleSpanFinder.name:
        rule = find_all(RuleSpanFinder(), [(e.question, e.response.text) for e in data.kept])
        pairs = [
            SpanPair(e.question_id, e.response.text, marked, Span(e.answer_chars.start, e.answer_chars.end))
            for e, marked in zip(data.kept, rule, strict=True)
        ]
        found["spans"] = span_overlap(pairs, (RuleSpanFinder.name, finder.name)).to_json()
    write_json(data.folder / "agreement.json", found)


def needs_agreement(tools: Tools) -> bool:
    """Whether the run's judge or span finder is another than the rules."""
    return (tools.judge.name, tools.finder.name) != (AliasJudge.name, RuleSpanFinder.name)
