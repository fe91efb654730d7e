"""What is the same for every engine: a request as the tokens that the model continues, drawn tokens as a response."""

from __future__ import annotations

from collections.abc import Sequence

from hneurons.answers.engine import Request
from hneurons.answers.text import decode, pieces
from hneurons.answers.thinking import Marks, left_open, thinking_tokens
from hneurons.errors import ServiceError
from hneurons.models.load import StudyModel
from hneurons.types import Response

BROKEN_OFF = ("abort", "error")
"""Reasons for the end of a response that isn't one: vLLM ends what is under way when it is stopped or paused."""


class Transcript:
    """Keeps what was encoded and decoded before.

    Args:
        model: tokenizer, template and end-of-turn tokens; its weights aren't needed.
    """

    def __init__(self, model: StudyModel) -> None:
        self.model = model
        self.ends = frozenset(model.end_ids)
        """Tokens that end a turn; the one that was drawn is part of a response's ids."""
        self._prompts: dict[str | tuple[str, ...], tuple[int, ...]] = {}
        self._opened: dict[str | tuple[str, ...], Marks | None] = {}
        self._pieces: dict[int, str] = {}
        self._raw_pieces: dict[int, str] = {}

    def prompt(self, request: Request) -> tuple[int, ...]:
        """Token ids that the model continues."""
        if request.said not in self._prompts:
            self._prompts[request.said] = tuple(self.model.prompt_ids(request.said))
        return self._prompts[request.said]

    def opened(self, request: Request) -> Marks | None:
        """The marks of a thinking block that the prompt leaves open."""
        if request.said not in self._opened:
            self._opened[request.said] = left_open(self.model.prompt(request.said))
        return self._opened[request.said]

    def ends_line(self, token: int) -> bool:
        """Whether a response ends before this token: a base model goes on with the next question after its line."""
        if self.model.has_chat_template:
            return False
        if token not in self._pieces:
            self._pieces[token] = decode(self.model, [token])
        return "\n" in self._pieces[token]

    def raw_piece(self, token: int) -> str:
        """What the token writes by itself, special tokens included."""
        if token not in self._raw_pieces:
            self._raw_pieces[token] = pieces(self.model, [token])[0]
        return self._raw_pieces[token]

    def response(self, request: Request, tokens: Sequence[int], logprobs: Sequence[float], reason: str) -> Response:
        """The response that these tokens are, its thinking block apart.

        Args:
            request: what it responds to.
            tokens: as they were drawn, the end of the turn included.
            logprobs: one a token, at temperature 1 over the whole vocabulary.
            reason: `stop` or `length`.
        """
        spoken = [token for token in tokens if token not in self.ends]
        count = thinking_tokens([self.raw_piece(token) for token in spoken], self.opened(request) is not None)
        text, thought = decode(self.model, spoken[count:]), decode(self.model, spoken[:count])
        if count and count == len(spoken):
            count = len(tokens)  # nothing was said: the end of the turn too is no part of a response
        rounded = tuple(round(value, 6) for value in logprobs)
        return Response(
            request.question.id, request.sample, text, tuple(tokens), rounded, reason,
            thinking=thought, thinking_tokens=count,
        )  # fmt: skip

    def cut(self, request: Request, tokens: Sequence[int], logprobs: Sequence[float], reason: str | None) -> Response:
        """The response of tokens that were drawn elsewhere, cut where this package's own engine would have stopped.

        Args:
            request: what it responds to.
            tokens: as they were drawn.
            logprobs: one a token.
            reason: why they ended, as vLLM and OpenAI's servers say it.

        Raises:
            ServiceError: they were broken off, as by a server that is shut down.
        """
        if reason in BROKEN_OFF:
            raise ServiceError(
                f"A response was broken off after {len(tokens)} tokens ({reason}).",
                "See that the engine runs, then run the same command again, which continues.",
            )
        for end, token in enumerate(tokens):
            if self.ends_line(token):
                return self.response(request, tokens[:end], logprobs[:end], "stop")
            if token in self.ends:
                return self.response(request, tokens[: end + 1], logprobs[: end + 1], "stop")
        return self.response(request, tokens, logprobs, "stop" if reason == "stop" else "length")
