"""What the live part passes around: a job (something to be said) and what comes back while it is said. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from hneurons.neurons.card import Card
from hneurons.types import NeuronId, Span

Action = Literal["warn", "abstain", "regenerate", "stop"]
FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do when the risk is high. A risk is high when it reaches `threshold`."""

    action: Action
    """`warn`: say so in the response. `stop`: end it at the token that makes the running risk high. `abstain`: say
    `text` instead. `regenerate`: answer once more with `alpha`, and keep that answer. The last two hold the text back
    until its risk is known."""
    threshold: float | None = None
    """None: the threshold of the card."""
    text: str = "I don't know."
    alpha: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """One response wanted."""

    prompt: str | tuple[Message, ...]
    """Text to go on from as it is, or a conversation for the chat template."""
    max_tokens: int | None = None
    """None: as many as the context has room for, at most the service's own limit."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 for no limit."""
    seed: int | None = None
    """The same seed draws the same response; None: a seed of its own."""
    stop: tuple[str, ...] = ()
    """Texts that end the response and are no part of it."""
    top_logprobs: int = 0
    """Alternatives to report for each token."""
    alpha: float = 1.0
    """What the card's H-Neurons are multiplied by."""
    monitor: bool = True
    """Whether risks are computed."""
    policy: Policy | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A token, as soon as it is drawn."""

    index: int
    """0 is the first of the response."""
    id: int
    text: str
    """What it writes by itself, special tokens left out; parts of a character show as U+FFFD."""
    logprob: float
    """Natural-log probability at temperature 1, before top-k and top-p."""
    top: tuple[tuple[int, str, float], ...] = ()
    """Alternatives, the likeliest first: id, text, log-probability."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The risk of a token: known once the model has read it, one step after it was drawn."""

    index: int
    score: float
    """Probe score of the token's contributions."""
    risk: float
    """Calibrated risk of that score."""
    running: float
    """Risk of the mean score up to this token."""
    top: tuple[tuple[NeuronId, float], ...] = ()
    """The neurons that count most here, weight times contribution, the largest first in size."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the probe says of a whole response."""

    scores: tuple[float, ...]
    """Of each token that was said; the end-of-turn token isn't one."""
    score: float
    """Of their mean: the answer's if one was found, else all tokens'."""
    risk: float
    """Calibrated risk of `score`."""
    flagged: bool
    """Whether the risk reaches the threshold."""
    threshold: float
    response_risk: float
    """Risk of the mean over all tokens."""
    answer: Span | None
    """Characters of the response that carry its claim, as the rule span finder marks them: what the probe was made
    for."""
    answer_tokens: Span | None
    top: tuple[tuple[NeuronId, float], ...] = ()
    """The neurons that count most, weight times mean contribution over the same tokens, the largest first in size."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A step of a response that is being made.

    `text` is new text that is safe to show: whole characters, and never the beginning of a stop string. `tokens` and
    `marks` are those that became known, marks usually one step after their token.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a response. The texts of its pieces, joined, are `text`."""

    text: str
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    """All that were drawn, those of a first try included."""
    reading: Reading | None
    """None without the monitor, or when nothing was said. After `regenerate` or `abstain`, of the answer that was
    judged risky: that of a second answer isn't comparable with the calibration."""
    alpha: float
    """What made the text."""
    action: Action | None = None
    """The policy's, if it acted."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The response could not be made."""

    message: str
    """One line, fit for a user."""


Event = Piece | Done | Failed
Listener = Callable[[Event], None]
"""Called in the service's thread, in order; must not block. `Done` and `Failed` are the last."""


class Ticket(Protocol):
    """A job that was taken on."""

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        ...

    def cancel(self) -> None:
        """Make no more of it. A `Done` with reason `cancelled` follows; any thread may call this, more than once."""
        ...


class Service(Protocol):
    """Makes responses, many at a time."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def card(self) -> Card:
        """Whose neurons are watched and turned."""
        ...

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        ...

    @property
    def running(self) -> int:
        """Jobs in the batch."""
        ...

    @property
    def context(self) -> int:
        """Tokens that a prompt and its response may have together."""
        ...

    def submit(self, job: Job, listener: Listener) -> Ticket:
        """Take a job on; any thread may call this.

        Raises:
            UsageError: a bad alpha, an empty prompt, or a conversation that the model's template refuses.
            PromptTooLongError: a prompt that leaves no room in the context.
            BusyError: too many jobs wait.
            ClosedError: the service takes no more jobs.
        """
        ...

    def close(self, *, drain: bool = True) -> None:
        """Take no more jobs; finish those begun (`drain`) or end them at once. Returns when the service is idle."""
        ...
