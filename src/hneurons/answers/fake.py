"""An engine without a model, for tests and examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hneurons.answers.engine import Request, Sampling, uniforms
from hneurons.types import Question, Response


class FakeEngine:
    """Answers by a function of the question and one uniform random number; one token a character."""

    def __init__(self, answer: Callable[[Question, float], str]) -> None:
        self.answer = answer
        self.calls: list[int] = []
        """Number of requests of each call."""

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """One response a request."""
        self.calls.append(len(requests))
        responses: list[Response] = []
        for request in requests:
            text = self.answer(request.question, float(uniforms(sampling, request)[0]))[: sampling.max_new_tokens]
            ids = tuple(ord(letter) for letter in text)
            responses.append(
                Response(request.question.id, request.sample, text, ids, (-0.1,) * len(ids), finish_reason="stop")
            )
        return responses
