"""The plain data that flows from questions to examples. Frozen, torch-free, one JSON object each."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What a judge says of one response."""

    CORRECT = "correct"
    WRONG = "wrong"
    ABSTAINED = "abstained"
    """A refusal or "I don't know": neither faithful nor hallucinated."""
    UNPARSABLE = "unparsable"
    """The judge could not tell; never counted as right or wrong."""


class Label(StrEnum):
    """The class of a kept example."""

    FAITHFUL = "faithful"
    HALLUCINATED = "hallucinated"


class Region(StrEnum):
    """Which tokens a feature averages over."""

    ANSWER = "answer"
    """Response tokens that carry the factual claim."""
    OTHER = "other"
    """Response tokens outside the answer, the end-of-turn token included."""
    RESPONSE = "response"
    """All response tokens after the thinking block."""
    PROMPT = "prompt"
    """All tokens before the response: chat template and question."""
    THINKING = "thinking"
    """The thinking block of a reasoning model; no other region has any of its tokens."""


REGIONS = (Region.ANSWER, Region.OTHER, Region.RESPONSE, Region.PROMPT)
"""The regions of every example; a reasoning model's have `Region.THINKING` too."""


@dataclass(frozen=True, slots=True)
class NeuronId:
    """One feed-forward intermediate unit."""

    layer: int
    expert: int | None
    """None in a dense layer."""
    index: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its accepted answers."""

    id: str
    question: str
    answers: tuple[str, ...]
    """Accepted answers, the canonical one first; empty when the right reply is to abstain (NonExist)."""
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled response to one question."""

    question_id: str
    sample: int
    """0-based number of the sample."""
    text: str
    token_ids: tuple[int, ...]
    """Generated tokens, the end-of-turn token included when it was generated."""
    logprobs: tuple[float, ...]
    """Natural-log probability of each token under the model at temperature 1, before top-k and top-p."""
    finish_reason: str
    """`stop` (the model ended its turn) or `length` (cut by the token limit)."""
    verdict: Verdict | None = None
    judge: str = ""
    thinking: str = ""
    """The thinking block, which `text` leaves out."""
    thinking_tokens: int = 0
    """How many of `token_ids`, from the first, belong to it."""

    @property
    def said(self) -> tuple[int, ...]:
        """The tokens after the thinking block, which write `text`."""
        return self.token_ids[self.thinking_tokens :]

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the tokens after the thinking block; 0.0 if there are none."""
        said = self.logprobs[self.thinking_tokens :]
        return sum(said) / len(said) if said else 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range: characters `[start, end)` of the response, or tokens `[start, end)` of it."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"span [{self.start}, {self.end}) is empty or negative")


@dataclass(frozen=True, slots=True)
class Example:
    """One kept response: what a row of the feature arrays stands for."""

    question_id: str
    question: str
    label: Label
    split: str
    """`train`, `validation` or `test`."""
    group: str
    """Examples with the same group never cross splits or folds: same question or same normalised answer."""
    response: Response
    answer_chars: Span
    answer_tokens: Span
    """Tokens of the response, 0 = the first generated token, thinking included."""
    prompt_tokens: int
    agreement: int
    """How many samples agreed with the label."""
    domain: str = ""
    extra: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def said_span(self) -> Span:
        """The answer's tokens, counted from the first after the thinking block."""
        before = self.response.thinking_tokens
        return Span(self.answer_tokens.start - before, self.answer_tokens.end - before)


def to_json(value: Any) -> dict[str, Any]:
    """The plain dict of one of this module's dataclasses, as the journals hold it."""
    return asdict(value)
