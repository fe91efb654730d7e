"""One response while it is being made: its tokens, its text, its risk, and what its policy says to all that."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hneurons.answers.text import decode
from hneurons.answers.thinking import left_open
from hneurons.live.jobs import Action, Done, Event, Failed, FinishReason, Job, Listener, Mark, Piece, Reading, Token
from hneurons.live.monitor import Floats, Monitor
from hneurons.live.prompts import question_of
from hneurons.live.textstream import TextStream

SECOND_SEED = 0x5EC0
log = logging.getLogger("hneurons.live")


class Row:
    """A row of the batch.

    Args:
        monitor: reads the risk.
        job: what is wanted.
        prompt: the text to go on from.
        ids: its tokens.
        room: tokens that the response may have.
        listener: told what happens.
    """

    def __init__(
        self, monitor: Monitor, job: Job, prompt: str, ids: tuple[int, ...], room: int, listener: Listener
    ) -> None:
        self.monitor = monitor
        self.job = job
        self.ids = ids
        self.alpha = job.alpha
        self.cancelled = False
        self.over = False
        """Whether `Done` or `Failed` was said."""
        self._listener = listener
        self._room = room
        self._opened = left_open(prompt) is not None
        self._question = question_of(job.prompt) if isinstance(job.prompt, tuple) else job.prompt
        self.watched = job.monitor or job.policy is not None
        """Whether its risk is wanted."""
        self._drawn = 0  # of a first try
        self._first: Reading | None = None  # of a first try that was risky
        self._seed = job.seed if job.seed is not None else secrets.randbits(63)
        self._begin(self._seed)

    def _begin(self, seed: int) -> None:
        self.said: list[int] = []
        """Tokens drawn, without the end of turn."""
        self.ending: FinishReason | None = None
        """Why it ends once its last token was read."""
        self._ended = 0  # whether the end of turn was drawn
        self._random = np.random.default_rng(seed)
        self._stream = TextStream(self._decode, self.job.stop)
        self._acted = False  # whether the policy stopped it
        self._terms: list[Floats] = []
        self._sum = 0.0
        self._held: list[Piece] = []

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.ids)

    def cancel(self) -> None:
        """Make no more of it; any thread."""
        self.cancelled = True

    @property
    def holds(self) -> bool:
        """Whether what is made must not be shown yet."""
        policy = self.job.policy
        return policy is not None and policy.action in ("abstain", "regenerate") and self._first is None

    @property
    def before(self) -> tuple[int, float]:
        """How many tokens were read, and the sum of their scores."""
        return len(self._terms), self._sum

    def uniform(self) -> float:
        """The random number of the next token."""
        return float(self._random.random())

    def drawn(self, token: Token, ends: set[int]) -> None:
        """Take the next token in."""
        if token.id in ends:
            self._ended = 1
            self.ending = "stop"
            return
        self.said.append(token.id)
        text = self._stream.add(token.id)
        self._show(Piece(text, (token,)))
        if self._stream.stopped:
            self.ending = "stop"
        elif len(self.said) == self._room:
            self.ending = "length"

    @property
    def goes_on(self) -> bool:
        """Whether its last token has to go through the model: for the next one, or for its own risk."""
        return self.ending is None or (self.watched and len(self._terms) < len(self.said))

    def read(self, terms: Floats, mark: Mark) -> None:
        """Take in the risk of the token that was read last."""
        self._terms.append(terms)
        self._sum += mark.score
        if self.job.monitor:
            self._show(Piece(marks=(mark,)))
        policy = self.job.policy
        if policy is not None and policy.action == "stop" and mark.running >= self._threshold:
            self._acted, self.ending = True, "stop"

    def finish(self) -> bool:
        """Say how it ended; False if it begins anew instead."""
        rest = self._stream.end()
        if rest:
            self._show(Piece(rest))
        reading = self._reading()
        count = self._drawn + len(self.said) + self._ended
        policy, first = self.job.policy, self._first
        if first is not None:
            return self._done(self._stream.text, first, count, self.alpha, "regenerate")
        acted = policy if policy is not None and reading is not None and reading.flagged else None
        if acted and acted.action == "abstain":
            self._say(Piece(acted.text))
            return self._done(acted.text, reading, count, self.alpha, "abstain")
        if acted and acted.action == "regenerate":
            self._first = reading
            self._drawn, self.alpha = count, acted.alpha
            self._begin(self._seed ^ SECOND_SEED)
            return False
        for piece in self._held:
            self._say(piece)
        warned = acted and acted.action == "warn"
        action: Action | None = "warn" if warned else "stop" if self._acted else None
        return self._done(self._stream.text, reading, count, self.alpha, action)

    def stop(self) -> None:
        """End it where it is."""
        if not self.over:
            text = "" if self.holds else self._stream.text
            count = self._drawn + len(self.said) + self._ended
            self.over = True
            self._say(Done(text, "cancelled", len(self.ids), count, self._first, self.alpha))

    def fail(self, message: str) -> None:
        """Say that it can't be made."""
        if not self.over:
            self.over = True
            self._say(Failed(message))

    def _done(self, text: str, reading: Reading | None, count: int, alpha: float, action: Action | None) -> bool:
        assert self.ending is not None
        self.over = True
        self._say(Done(text, self.ending, len(self.ids), count, reading, alpha, action))
        return True

    @property
    def _threshold(self) -> float:
        policy = self.job.policy
        return self.monitor.threshold if policy is None or policy.threshold is None else policy.threshold

    def _reading(self) -> Reading | None:
        count = len(self._terms)
        while self._stream.stopped and count and len(self._decode(self.said[: count - 1])) >= len(self._stream.text):
            count -= 1  # what wrote the stop string alone is no part of the response
        if not count:
            return None
        terms = np.stack(self._terms[:count])
        said = self.said[:count]
        return self.monitor.reading(self._question, said, terms, opened=self._opened, threshold=self._threshold)

    def _decode(self, ids: Sequence[int]) -> str:
        return decode(self.monitor.model, ids)

    def _show(self, piece: Piece) -> None:
        if self.holds:
            self._held.append(piece)
        else:
            self._say(piece)

    def _say(self, event: Event) -> None:
        try:
            self._listener(event)
        except Exception:
            # Whoever listens must not bring down the rows of others: a closed connection is this row's end alone.
            log.exception("A listener failed")
            self.cancelled = True


def uniforms(rows: Sequence[Row]) -> Tensor:
    """The random number of each row's next token: (rows,)."""
    return torch.tensor([row.uniform() for row in rows], dtype=torch.float64)
