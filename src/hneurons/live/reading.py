"""What a probe says of a whole response, from the scores of its tokens: needs a tokenizer and a card, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hneurons.answers.spans import RuleSpanFinder
from hneurons.answers.text import Writes, decode, pieces, tokens_of
from hneurons.answers.thinking import thinking_tokens
from hneurons.live.jobs import Reading
from hneurons.neurons.card import Card
from hneurons.types import Span

Floats = NDArray[np.float64]


@dataclass
class Reader:
    """Reads responses from the scores of their tokens."""

    model: Writes
    """Who has the tokenizer."""
    card: Card
    threshold: float
    _finder: RuleSpanFinder = field(default_factory=RuleSpanFinder)

    def read(
        self, said: str, ids: Sequence[int], scores: Floats, *, opened: bool = False, threshold: float | None = None
    ) -> Reading | None:
        """What the probe says of a whole response; None when nothing was said.

        Args:
            said: what was asked: it tells what in the response is the answer.
            ids: tokens of the response without the end of turn.
            scores: probe scores of those tokens: (tokens,).
            opened: whether the prompt left a thinking block open.
            threshold: in place of the reader's.
        """
        thought = thinking_tokens(pieces(self.model, ids), opened)
        text = decode(self.model, ids[thought:])
        if not text.strip():
            return None
        scores = scores[thought:]
        chars = self._finder.find(said, text)
        tokens = chars and tokens_of(self.model, ids[thought:], text, chars)
        answer = slice(tokens.start, tokens.end) if tokens else slice(None)
        score, response = float(scores[answer].mean()), float(scores.mean())
        risk, response_risk = self.card.risk([score, response]).tolist()
        threshold = self.threshold if threshold is None else threshold
        shift = len(decode(self.model, ids[:thought]))
        return Reading(
            scores=tuple(scores.tolist()),
            score=score,
            risk=risk,
            flagged=risk >= threshold,
            threshold=threshold,
            response_risk=response_risk,
            answer=Span(chars.start + shift, chars.end + shift) if chars and tokens else None,
            answer_tokens=Span(tokens.start + thought, tokens.end + thought) if tokens else None,
        )
