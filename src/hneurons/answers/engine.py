"""The swap point for whatever makes the responses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hneurons.types import Question, Response

EXTENSION = "hneurons"
"""Key of this package's settings among those of a request to vLLM, and of its results in a reply."""
NONSENSE = "no settings"
"""What this package's plugin refuses under that key; a vLLM without the plugin ignores it."""
WORKER = "hneurons.vllm.worker.Extension"
"""vLLM's `worker_extension_cls`, where contributions are to be measured in its workers."""
CLOSING = 32
"""Room for the tokens that open and close a thinking block."""


@dataclass(frozen=True)
class Sampling:
    """How a response is drawn. The defaults are the paper's (Gao et al. 2025, sec. 3)."""

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 50
    top_p: float = 0.9
    max_new_tokens: int = 50
    """After the thinking block, if there is one."""
    seed: int = 0
    thinking: int = 0
    """Thinking tokens after which the block is closed; 0 if the model isn't to think."""

    @property
    def steps(self) -> int:
        """Tokens that a response may have at most: thinking, the mark that closes it, and what is said."""
        return self.max_new_tokens + (self.thinking + CLOSING if self.thinking else 0)


@dataclass(frozen=True)
class Request:
    """One response wanted: sample number `sample` of `question`."""

    question: Question
    sample: int
    turns: tuple[str, ...] = ()
    """A conversation in place of the question: user, assistant, user, ..., the user last. Its turns are said as they
    are, while a question is asked for "the answer only"."""
    alpha: float = 1.0
    """The scale of the neurons that the engine turns; 1 changes nothing."""

    @property
    def said(self) -> str | tuple[str, ...]:
        """What the model is to continue: the question's text, or the turns."""
        return self.turns or self.question.question


class Engine(Protocol):
    """Draws responses."""

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """One response a request, in the order of the requests."""
        ...


@runtime_checkable
class OtherEngine(Protocol):
    """An engine outside of transformers, as a run records it."""

    @property
    def name(self) -> str:
        """By which runs tell engines apart: one that began with another isn't continued."""
        ...

    @property
    def setup(self) -> dict[str, Any]:
        """How it was set up, without secrets; may change when a run is continued."""
        ...

    @property
    def notes(self) -> list[str]:
        """Sentences about its responses that a reader of the run should know."""
        ...

    def close(self) -> None:
        """Let go of the weights and connections it holds; it takes them up again when it is asked to sample."""
        ...


def uniforms(sampling: Sampling, request: Request) -> NDArray[np.float64]:
    """The random numbers of one response, one a token: (steps,).

    They depend on the seed, the question's id and the sample number alone, not on the batch the request is in, nor on
    alpha: the same question at two alphas is drawn with the same numbers.
    """
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(_key(sampling, request)[:16], "little")))
    return generator.random(sampling.steps)


def seed_of(sampling: Sampling, request: Request) -> int:
    """The seed of one response for engines that draw by themselves; depends on what `uniforms` depends on.

    31 bits: what every server takes.
    """
    return int.from_bytes(_key(sampling, request)[:4], "little") >> 1


def _key(sampling: Sampling, request: Request) -> bytes:
    return hashlib.sha256(f"{sampling.seed}/{request.question.id}/{request.sample}".encode()).digest()
