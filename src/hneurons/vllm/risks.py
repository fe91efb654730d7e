"""Risks of responses that vLLM made with the plugin: what its workers scored, put together and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hneurons.answers.calls import calling
from hneurons.answers.text import decode
from hneurons.answers.thinking import left_open
from hneurons.errors import UsageError
from hneurons.live.jobs import Reading
from hneurons.live.reading import Reader
from hneurons.live.replies import answer_in, finite
from hneurons.neurons.card import Card
from hneurons.vllm.dial import outside

Floats = NDArray[np.float64]
CALL = "hneurons_scores"
"""The plugin's call in a worker."""


@dataclass(frozen=True)
class Scored:
    """The tokens of one response that went through the model, each with its score."""

    prompt: tuple[int, ...]
    """Its last tokens."""
    ids: tuple[int, ...]
    """From the response's first token on; the token drawn last never went through, unless another step had begun."""
    scores: Floats
    ends: frozenset[int] = frozenset()
    """Tokens that end a response and are no part of it."""


def gathered(replies: Sequence[str], intercept: float) -> dict[tuple[str, int], Scored]:
    """What all workers scored, by the client's name of the request and the number of the choice.

    Each worker knows the terms of its own neurons: a score is their sum and the probe's intercept.
    """
    found: dict[tuple[str, int], Scored] = {}
    workers: list[dict[str, Any]] = [json.loads(reply) for reply in replies]
    for name, own in (workers[0] if workers else {}).items():
        scores = sum(np.asarray(worker[name]["scores"], dtype=np.float64) for worker in workers) + intercept
        found[outside(name)] = Scored(
            tuple(own["prompt"]), tuple(own["ids"]), np.asarray(scores), frozenset(own["ends"])
        )
    return found


@dataclass
class _Tokenizer:
    tokenizer: Any


class Teller:
    """Tells risks in the shape that `hneurons serve` has.

    Args:
        tokenizer: of the model.
        card: of the model.
    """

    def __init__(self, tokenizer: Any, card: Card) -> None:
        self._card = card
        self._writer = _Tokenizer(tokenizer)
        self._reader = Reader(self._writer, card, card.probe.threshold)

    def reading(self, scored: Scored, said: str, kept: int | None = None) -> Reading | None:
        """What the probe says of a response.

        Args:
            scored: its tokens.
            said: what was asked.
            kept: how many tokens the response has; until the end of turn if not given.
        """
        ids, scores = self._said(scored, kept)
        if not ids:
            return None
        opened = left_open(self._writer.tokenizer.decode(list(scored.prompt))) is not None
        return self._reader.read(said, ids, scores, opened=opened)

    def tell(self, scored: Scored | None, said: str, text: str | None = None, kept: int | None = None) -> Any:
        """The object `hneurons` of a choice, its numbers null where nothing was scored.

        Args:
            scored: its tokens; None where no worker has any.
            said: what was asked.
            text: the response as the client gets it: cut at a stop string, say.
            kept: how many tokens it has, where that is known.
        """
        if scored is not None and text is not None:
            kept = self._within(scored, text, kept)
        reading = scored and self.reading(scored, said, kept)
        if scored is None or reading is None:
            return {
                "risk": None, "flagged": None, "threshold": None, "response_risk": None, "answer": None, "tokens": [],
            }  # fmt: skip
        ids, scores = self._said(scored, kept)
        told = decode(self._writer, ids)
        counts = np.arange(1, len(ids) + 1)
        risks, running = self._card.risk(scores), self._card.risk(np.cumsum(scores) / counts)
        tokens: list[Any] = [
            {"text": decode(self._writer, [token]), "risk": finite(risk), "running": finite(mean)}
            for token, risk, mean in zip(ids, risks.tolist(), running.tolist(), strict=True)
        ]
        if text is not None and text.startswith(told) and text != told:
            # Drawn, but never read: its risk is nobody's knowledge.
            tokens.append({"text": text[len(told) :], "risk": None, "running": None})
        return {
            "risk": finite(reading.risk), "flagged": reading.flagged, "threshold": reading.threshold,
            "response_risk": finite(reading.response_risk), "answer": answer_in(told, reading), "tokens": tokens,
        }  # fmt: skip

    def _said(self, scored: Scored, kept: int | None) -> tuple[list[int], Floats]:
        """The tokens that were said, and their scores: without the end of turn and what was read after it."""
        ids = list(scored.ids if kept is None else scored.ids[:kept])
        end = next((place for place, token in enumerate(ids) if token in scored.ends), len(ids))
        return ids[:end], scored.scores[:end]

    def _within(self, scored: Scored, text: str, kept: int | None) -> int:
        """How many tokens wrote the text, and none that only a stop string cut off."""
        ids, _ = self._said(scored, kept)
        if not text:  # all of it in a tool call, or cut while it thought
            return 0
        if not decode(self._writer, ids).startswith(text):
            return len(ids)
        while ids and len(decode(self._writer, ids[:-1])) >= len(text):
            ids.pop()
        return len(ids)


def _text(choice: Any) -> str | None:
    """What it says; None where the parameters leave texts out (`detokenize=False`), which stop strings don't allow."""
    return choice.text if choice.text or isinstance(choice.stop_reason, str) else None


def risks(llm: Any, outputs: Sequence[Any], questions: Sequence[str], card: Card) -> list[list[Any]]:
    """The object `hneurons` of each choice of each output of `llm.generate`, which asked for the monitor.

    Args:
        llm: a `vllm.LLM` with the plugin.
        outputs: what `generate` or `chat` returned; each can be asked about once. Of some four million scored tokens
            more, the oldest are forgotten: ask before.
        questions: what each of them was asked: it tells what in a response is its answer.
        card: the plugin's.

    Raises:
        UsageError: there are more or fewer questions than outputs.
        ServiceError: vLLM fails.
    """
    if len(outputs) != len(questions):
        raise UsageError(f"{len(outputs)} outputs, but {len(questions)} questions.", "Give one a prompt.")
    with calling(llm, "told what it had scored"):
        replies = llm.collective_rpc(CALL, args=([output.request_id for output in outputs],))
    scored = gathered(replies, card.probe.intercept)
    teller = Teller(llm.get_tokenizer(), card)
    return [
        [
            teller.tell(scored.get((output.request_id, choice.index)), said, _text(choice), len(choice.token_ids))
            for choice in output.outputs
        ]
        for output, said in zip(outputs, questions, strict=True)
    ]
