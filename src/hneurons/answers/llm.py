"""Asks a language model behind an OpenAI-compatible endpoint and takes only replies that fit a schema.

Every valid reply is kept in `replies.jsonl` of a cache folder, so that an interrupted job asks for what is missing and
a repeated one asks nothing. The API key comes from the environment and reaches no file, log or error.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from hneurons.answers.chat import Chat, Completion, Usage
from hneurons.answers.connection import each
from hneurons.answers.endpoint import Endpoint
from hneurons.answers.replies import ReplyCache
from hneurons.answers.thinking import thinking_length
from hneurons.errors import JudgeError
from hneurons.runfolder import Json, dumps, hash_json

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")

INVALID_RETRIES = 2
"""How often a reply that doesn't fit the schema is asked for again."""
USUAL_COMPLETION = 12
"""Tokens of a reply, until some have been measured."""
_FENCE = re.compile(r"```\w*\s*(.*?)\s*```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to the model: what was said, user and assistant in turn, and the shape of the reply."""

    turns: tuple[str, ...]
    schema: type[BaseModel]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns as chat messages. Instructions stand in the first: not every model knows a system role."""
        return [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(self.turns)]

    @property
    def size(self) -> int:
        """Bytes of UTF-8."""
        return sum(len(turn.encode("utf-8", "replace")) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job will take."""

    calls: int
    """Requests to make."""
    cached: int
    """Answers that are there already."""
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """In the currency of the prices; None without prices."""
    seconds: float | None
    """None until an answer's time has been measured."""

    def __str__(self) -> str:
        tokens = f"about {self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        cost = "cost unknown (no prices given)" if self.cost is None else f"cost about {self.cost:.2f}"
        took = "time unknown" if self.seconds is None else f"about {self.seconds / 60:.1f} min"
        return f"{self.calls:,} requests ({self.cached:,} more in the cache), {tokens}, {cost}, {took}"

    def to_json(self) -> Json:
        """The fields by name; what is unknown is null."""
        return asdict(self)


@dataclass(slots=True)
class Counts:
    """What a client has done since it was made."""

    requests: int = 0
    """Sent to the endpoint; those that `Endpoint.retries` repeats count once."""
    cached: int = 0
    invalid: int = 0
    """Replies that did not fit the schema."""
    unparsable: int = 0
    """Questions given up after `INVALID_RETRIES`."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def to_json(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


class LLMClient:
    """Asks one model, with a cache on the disk. Thread-safe; needs the extra `judge`.

    Args:
        where: the endpoint.
        cache: folder of `replies.jsonl`; clients of several models and processes may share it. Use a new one when the
            model behind a name has changed.

    Raises:
        MissingExtraError: `openai` is not installed.
        JudgeError: no API key.
    """

    def __init__(self, where: Endpoint, cache: Path) -> None:
        self.where = where
        self.counts = Counts()
        self._chat = Chat(where)
        self._cache = ReplyCache(cache, where.model)
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """`llm:` and the model's name, by which a run records whoever asks it."""
        return f"llm:{self.where.model}"

    def __enter__(self) -> LLMClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._chat.close()

    def ask(self, ask: Ask) -> BaseModel | None:
        """The model's reply, an `ask.schema`; None when it gave no valid one in `1 + INVALID_RETRIES` attempts.

        Raises:
            JudgeError: the endpoint fails, refuses, or `max_calls` is reached. What was answered is in the cache.
        """
        key = self._cache_key(ask)
        known = self._cache.get(key)
        if known is not None and (reply := _fit(dumps(known), ask.schema)) is not None:
            self._count(cached=1)
            return reply
        turns = ask.turns
        for _ in range(1 + INVALID_RETRIES):
            began = time.monotonic()
            completion = self._send(Ask(turns, ask.schema))
            if completion is None:
                break
            # An endpoint may echo the key.
            said, usage = self._chat.redact(completion.text), completion.usage or Usage()
            self._count(prompt_tokens=usage.prompt_tokens or 0, completion_tokens=usage.completion_tokens or 0)
            if (reply := _fit(said, ask.schema)) is not None:
                row = {
                    "key": key,
                    "model": self.where.model,
                    "answered_by": completion.model,
                    "reply": reply.model_dump(mode="json"),
                    "bytes": Ask(turns, ask.schema).size,
                    "prompt_tokens": usage.prompt_tokens,
                    "completion_tokens": usage.completion_tokens,
                    "seconds": round(time.monotonic() - began, 3),
                }
                self._cache.add(json.loads(self._chat.redact(dumps(row))))
                return reply
            self._count(invalid=1)
            # At temperature 0 the same words would bring the same reply.
            shown = said.strip()[:500] or "(nothing)"
            turns = (*ask.turns, shown, "That was not the JSON object asked for. Reply with that object only.")
        self._count(unparsable=1)
        return None

    def each(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`function` of each item, in order; `concurrency` at a time, equal items once.

        The first error ends it: what is under way is finished, the rest is not begun.
        """
        return each(function, items, self.where.concurrency)

    def estimate(self, asks: Sequence[Ask], *, probe: int = 0) -> Estimate:
        """What asking all of these takes, from the replies in the cache.

        Args:
            asks: what is to be asked; equal ones count once.
            probe: ask so many of those missing first, to measure; their answers are kept.
        """
        unique = list(dict.fromkeys(asks))
        missing = [ask for ask in unique if self._cache.get(self._cache_key(ask)) is None]
        if probe and missing:
            self.each(self.ask, missing[:probe])
            missing = [ask for ask in missing if self._cache.get(self._cache_key(ask)) is None]
        past = self._cache.past
        prompt = sum(ask.size for ask in missing) * past.tokens_per_byte
        completion = len(missing) * (past.mean_completion or USUAL_COMPLETION)
        prices = (self.where.prompt_price, self.where.completion_price)
        cost = None if None in prices else (prompt * (prices[0] or 0) + completion * (prices[1] or 0)) / 1e6
        seconds = past.mean_seconds
        if seconds is not None:
            seconds *= len(missing) / max(1, min(self.where.concurrency, len(missing)))
        return Estimate(len(missing), len(unique) - len(missing), round(prompt), round(completion), cost, seconds)

    def _cache_key(self, ask: Ask) -> str:
        schema = ask.schema.model_json_schema()
        return hash_json([self.where.model, ask.messages, schema, self.where.temperature])

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)

    def _send(self, ask: Ask) -> Completion | None:
        limit = self.where.max_calls
        with self._lock:
            if limit is not None and self.counts.requests >= limit:
                raise JudgeError(
                    f"The limit of {limit:,} requests to {self.where.model} is reached.",
                    "Raise it and run the same command again: what was answered is kept.",
                )
            self.counts.requests += 1
        return self._chat.complete(ask.messages, ask.schema)


def _fit(text: str, schema: type[BaseModel]) -> BaseModel | None:
    """The reply as a `schema`; a thinking block before it and a code fence around it are let go."""
    said = text[thinking_length(text) :].strip()
    fenced = _FENCE.fullmatch(said)
    for candidate in (text, said, fenced.group(1) if fenced else ""):
        try:
            return schema.model_validate_json(candidate)
        except ValidationError:
            continue
    return None
