"""What is told of a response, in the shapes of the API."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hneurons.live.jobs import Done, Mark, Reading, Token
from hneurons.live.shapes import (
    Alternative,
    Answer,
    ChatLogprobs,
    Summary,
    TextLogprobs,
    TokenLogprob,
    TokenRisk,
    TopNeuron,
)
from hneurons.neurons.card import Card
from hneurons.types import NeuronId

DIGITS = 6
"""Of risks and values: a token has several, and a stream many tokens."""
LOWEST_LOGPROB = -9999.0
"""What OpenAI tells for a token that is next to impossible."""


def finite(value: float) -> float | None:
    """The number to six digits after the point; None for what JSON can't hold."""
    return round(value, DIGITS) if math.isfinite(value) else None


def top_neurons(top: tuple[tuple[NeuronId, float], ...]) -> list[TopNeuron]:
    """Neurons with finite values, in their order."""
    return [
        {"layer": id.layer, "expert": id.expert, "index": id.index, "value": round(value, DIGITS)}
        for id, value in top
        if math.isfinite(value)
    ]


def token_risk(token: Token, mark: Mark | None) -> TokenRisk:
    """A token with its risk, if it has one."""
    if mark is None:
        return {"text": token.text, "risk": None, "running": None, "top": []}
    return {
        "text": token.text, "risk": finite(mark.risk), "running": finite(mark.running), "top": top_neurons(mark.top),
    }  # fmt: skip


def answer_in(text: str, reading: Reading) -> Answer | None:
    """The characters of a response that carry its claim; None if none were found."""
    if reading.answer is None:
        return None
    start, end = reading.answer.start, reading.answer.end
    return {"start": start, "end": end, "text": text[start:end]}


def summary(done: Done) -> Summary:
    """What there is to say of a response, without its tokens."""
    reading = done.reading
    if reading is None:
        return {
            "alpha": done.alpha, "risk": None, "flagged": None, "threshold": None, "response_risk": None,
            "answer": None, "action": done.action, "top": [],
        }  # fmt: skip
    shown = done.action not in ("abstain", "regenerate")  # otherwise the reading is of another text
    return {
        "alpha": done.alpha, "risk": finite(reading.risk), "flagged": reading.flagged, "threshold": reading.threshold,
        "response_risk": finite(reading.response_risk), "answer": answer_in(done.text, reading) if shown else None,
        "action": done.action,
        "top": top_neurons(reading.top),
    }  # fmt: skip


def alternative(text: str, logprob: float) -> Alternative:
    """A token with its log-probability; its bytes are unknown when it holds part of a character."""
    logprob = max(logprob, LOWEST_LOGPROB) if math.isfinite(logprob) else LOWEST_LOGPROB
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def chat_logprobs(tokens: Sequence[Token]) -> ChatLogprobs:
    """Log-probabilities of tokens, as chat completions have them."""
    content: list[TokenLogprob] = [
        {**alternative(token.text, token.logprob), "top_logprobs": [alternative(t, p) for _, t, p in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[Token], offset: int) -> TextLogprobs:
    """Log-probabilities of tokens, the first of them at `offset`, as completions have them."""
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [alternative(token.text, token.logprob)["logprob"] for token in tokens],
        # Two tokens may write the same; the likelier one stays.
        "top_logprobs": [{t: alternative(t, p)["logprob"] for _, t, p in reversed(token.top)} for token in tokens],
        "text_offset": offsets,
    }


def worth(card: Card) -> str | None:
    """How well the H-Neurons predicted on held-out questions, in a sentence; None if the card doesn't tell."""
    for data, numbers in card.metrics.items():
        auroc: Any = numbers.get("auroc") if isinstance(numbers, dict) else None
        if isinstance(auroc, dict) and isinstance(auroc.get("value"), int | float):
            low, high = auroc.get("low"), auroc.get("high")
            known = isinstance(low, int | float) and isinstance(high, int | float)
            interval = f" [{low:.2f}, {high:.2f}]" if known else ""
            return f"On held-out questions of {data} their AUROC was {auroc['value']:.2f}{interval}; 0.5 is chance."
    return None
