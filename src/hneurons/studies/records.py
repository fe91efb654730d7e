"""Journal lines back into dataclasses."""

from __future__ import annotations

from typing import Any

from hneurons.models.load import StudyModel
from hneurons.neurons.cett import Passage
from hneurons.types import Example, Label, Question, Response, Span, Verdict


def question_from_json(row: dict[str, Any]) -> Question:
    """A line of questions.jsonl."""
    return Question(row["id"], row["question"], tuple(row["answers"]), row["domain"])


def response_from_json(row: dict[str, Any]) -> Response:
    """A line of responses.jsonl."""
    return Response(
        question_id=str(row["question_id"]),
        sample=int(row["sample"]),
        text=str(row["text"]),
        token_ids=tuple(row["token_ids"]),
        logprobs=tuple(row["logprobs"]),
        finish_reason=str(row["finish_reason"]),
        verdict=Verdict(row["verdict"]) if row["verdict"] else None,
        judge=str(row["judge"]),
        thinking=str(row.get("thinking", "")),
        thinking_tokens=int(row.get("thinking_tokens", 0)),
    )


def example_from_json(row: dict[str, Any]) -> Example:
    """A line of examples.jsonl."""
    return Example(
        question_id=str(row["question_id"]),
        question=str(row["question"]),
        label=Label(row["label"]),
        split=str(row["split"]),
        group=str(row["group"]),
        response=response_from_json(row["response"]),
        answer_chars=Span(**row["answer_chars"]),
        answer_tokens=Span(**row["answer_tokens"]),
        prompt_tokens=int(row["prompt_tokens"]),
        agreement=int(row["agreement"]),
        domain=str(row["domain"]),
        extra=dict(row["extra"]),
    )


def passage_of(model: StudyModel, example: Example) -> Passage:
    """The tokens that are teacher forced for an example: prompt and response, as they were when it was sampled."""
    prompt = model.prompt_ids(example.question)
    span = example.answer_tokens
    ids, response = (*prompt, *example.response.token_ids), example.response
    return Passage(example.question_id, ids, len(prompt), (span.start, span.end), response.thinking_tokens)
