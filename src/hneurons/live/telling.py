"""From what the service says to the bodies of responses: whole ones, and the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from hneurons.live.asking import Wanted
from hneurons.live.jobs import Done, Event, Job, Mark, Piece, Token
from hneurons.live.replies import chat_logprobs, finite, summary, text_logprobs, token_risk, top_neurons
from hneurons.live.shapes import (
    ChatChoice,
    ChunkChoice,
    Delta,
    Finish,
    NewRisk,
    News,
    Summary,
    TextChoice,
    Usage,
)

Chunk = TypeVar("Chunk", ChunkChoice, TextChoice)


@dataclass
class Heard:
    """What was heard of one choice."""

    tokens: dict[int, Token] = field(default_factory=dict[int, Token])
    marks: dict[int, Mark] = field(default_factory=dict[int, Mark])
    offset: int = 0
    """Characters of the tokens, as completions count them."""
    done: Done | None = None

    def hear(self, event: Event) -> None:
        """Keep what is new."""
        if isinstance(event, Piece):
            for token in event.tokens:
                self.tokens[token.index] = token
                self.offset += len(token.text)
            self.marks |= {mark.index: mark for mark in event.marks}
        elif isinstance(event, Done):
            self.done = event

    @property
    def ended(self) -> Done:
        """How it ended."""
        assert self.done is not None
        return self.done

    def summary(self) -> Summary:
        """All there is to say of it, with each token."""
        tokens = [token_risk(token, self.marks.get(token.index)) for token in self.in_order]
        return {**summary(self.ended), "tokens": tokens}

    @property
    def in_order(self) -> list[Token]:
        """Its tokens, as they follow one another."""
        return [self.tokens[index] for index in sorted(self.tokens)]


def finish(done: Done) -> Finish:
    """Why a response ended, in OpenAI's words."""
    return "length" if done.reason == "length" else "stop"


def news(piece: Piece) -> News:
    """Tokens and risks that became known."""
    risks: list[NewRisk] = [
        {
            "index": mark.index, "risk": finite(mark.risk), "running": finite(mark.running),
            "top": top_neurons(mark.top),
        }
        for mark in piece.marks
    ]  # fmt: skip
    return {"tokens": [{"index": token.index, "text": token.text} for token in piece.tokens], "risks": risks}


def _with_news(chunk: Chunk, piece: Piece, job: Job) -> Chunk | None:
    """The chunk with tokens and risks that became known; None if it says nothing."""
    if job.monitor and (piece.tokens or piece.marks):
        chunk["hneurons"] = news(piece)
    return chunk if piece.text or chunk["logprobs"] or "hneurons" in chunk else None


class Form(Protocol):
    """How one kind of request is answered."""

    whole: str
    """`object` of a whole response."""
    part: str
    """`object` of a chunk."""
    prefix: str
    """Of ids."""

    def choice(self, index: int, heard: Heard, wanted: Wanted) -> Any:
        """A response."""
        ...

    def opening(self, index: int) -> Any | None:
        """What a stream says before the first token of a choice."""
        ...

    def step(self, index: int, piece: Piece, heard: Heard, wanted: Wanted) -> Any | None:
        """What a piece adds; None if nothing. `heard` is what was heard before it."""
        ...

    def closing(self, index: int, done: Done) -> Any:
        """What a stream says after the last token of a choice."""
        ...


class ChatForm:
    """Chat completions."""

    whole, part, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def choice(self, index: int, heard: Heard, wanted: Wanted) -> ChatChoice:
        """A response."""
        done = heard.ended
        return {
            "index": index,
            "message": {"role": "assistant", "content": done.text, "refusal": None},
            "logprobs": chat_logprobs(heard.in_order) if wanted.logprobs else None,
            "finish_reason": finish(done),
            "hneurons": heard.summary(),
        }

    def opening(self, index: int) -> ChunkChoice:
        """Whose turn it is."""
        return _chunk(index, {"role": "assistant", "content": ""})

    def step(self, index: int, piece: Piece, heard: Heard, wanted: Wanted) -> ChunkChoice | None:
        """New text, log-probabilities, tokens and risks."""
        chunk = _chunk(index, {"content": piece.text} if piece.text else {})
        if wanted.logprobs and piece.tokens:
            chunk["logprobs"] = chat_logprobs(piece.tokens)
        return _with_news(chunk, piece, wanted.jobs[index])

    def closing(self, index: int, done: Done) -> ChunkChoice:
        """How it ended."""
        chunk = _chunk(index, {})
        chunk["finish_reason"], chunk["hneurons"] = finish(done), summary(done)
        return chunk


def _chunk(index: int, delta: Delta) -> ChunkChoice:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


class TextForm:
    """Completions of a text."""

    whole, part, prefix = "text_completion", "text_completion", "cmpl-"

    def choice(self, index: int, heard: Heard, wanted: Wanted) -> TextChoice:
        """A response."""
        done = heard.ended
        return {
            "index": index,
            "text": done.text,
            "logprobs": text_logprobs(heard.in_order, 0) if wanted.logprobs else None,
            "finish_reason": finish(done),
            "hneurons": heard.summary(),
        }

    def opening(self, index: int) -> None:
        """Nothing."""

    def step(self, index: int, piece: Piece, heard: Heard, wanted: Wanted) -> TextChoice | None:
        """New text, log-probabilities, tokens and risks."""
        chunk: TextChoice = {"index": index, "text": piece.text, "logprobs": None, "finish_reason": None}
        if wanted.logprobs and piece.tokens:
            chunk["logprobs"] = text_logprobs(piece.tokens, heard.offset)
        return _with_news(chunk, piece, wanted.jobs[index])

    def closing(self, index: int, done: Done) -> TextChoice:
        """How it ended."""
        return {
            "index": index, "text": "", "logprobs": None, "finish_reason": finish(done), "hneurons": summary(done),
        }  # fmt: skip


class Teller:
    """Tells one request's responses as they come."""

    def __init__(self, form: Form, wanted: Wanted) -> None:
        self.form, self.wanted = form, wanted
        self.heard = [Heard() for _ in wanted.jobs]
        self._opened: set[int] = set()
        self._head: dict[str, Any] = {
            "id": form.prefix + uuid.uuid4().hex, "created": int(time.time()), "model": wanted.model,
        }  # fmt: skip

    def chunks(self, index: int, event: Event) -> list[dict[str, Any]]:
        """The chunks of a stream that an event makes."""
        choices: list[Any] = []
        if index not in self._opened:
            self._opened.add(index)
            choices.append(self.form.opening(index))
        if isinstance(event, Piece):
            choices.append(self.form.step(index, event, self.heard[index], self.wanted))
        elif isinstance(event, Done):
            choices.append(self.form.closing(index, event))
        self.hear(index, event)
        return [self._part([choice]) for choice in choices if choice is not None]

    def hear(self, index: int, event: Event) -> None:
        """Keep an event for the whole response."""
        self.heard[index].hear(event)

    def last_chunk(self) -> dict[str, Any] | None:
        """The usage, if it is wanted."""
        return {**self._part([]), "usage": self.usage} if self.wanted.usage else None

    def whole(self) -> dict[str, Any]:
        """The body of a response that isn't streamed."""
        choices = [self.form.choice(index, heard, self.wanted) for index, heard in enumerate(self.heard)]
        return {**self._head, "object": self.form.whole, "choices": choices, "usage": self.usage}

    @property
    def usage(self) -> Usage:
        """Tokens used; a prompt counts once, however many choices it has."""
        each = len(self.heard) // self.wanted.prompts
        prompt = sum(heard.ended.prompt_tokens for heard in self.heard[::each])
        drawn = sum(heard.ended.completion_tokens for heard in self.heard)
        return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}

    def _part(self, choices: list[Any]) -> dict[str, Any]:
        usage = {"usage": None} if self.wanted.usage else {}
        return {**self._head, "object": self.form.part, "choices": choices, **usage}
