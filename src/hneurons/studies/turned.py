"""Engines that turn neurons: what the impact study samples from."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from hneurons.answers.engine import Engine, Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.memory import ran_out
from hneurons.models.load import StudyModel
from hneurons.neurons.scaling import scale
from hneurons.types import NeuronId, Response

OpenEngine = Callable[[Sequence[NeuronId]], AbstractContextManager[Engine]]
"""Opens an engine that scales these neurons by the alpha of each request; given none, an engine for alpha 1 alone."""


@runtime_checkable
class Scorer(Protocol):
    """An engine that can also read a given text."""

    def nll(self, ids: Sequence[int], alphas: Sequence[float]) -> list[float]:
        """Negative log-likelihood of tokens after the first, summed, at each alpha; in nats."""
        ...


class TurnedEngine(HFEngine):
    """Transformers in this process, with neurons turned inside a block of `scale`."""

    @torch.inference_mode()
    def nll(self, ids: Sequence[int], alphas: Sequence[float]) -> list[float]:
        """Negative log-likelihood of tokens after the first, summed, at each alpha; all alphas in one batch."""
        self.turn(list(alphas))
        rows = torch.tensor([list(ids)] * len(alphas), device=self.model.device)
        logits: Tensor = self.model.model(input_ids=rows, use_cache=False).logits
        sums: list[float] = []
        for row in logits:  # one at a time: in float32 the logits of a large vocabulary are large
            target = rows[0, 1:].to(row.device)
            sums.append(float(torch.nn.functional.cross_entropy(row[:-1].float(), target, reduction="sum")))
        return sums


def in_process(model: StudyModel) -> OpenEngine:
    """Engines of transformers in this process, that turn neurons by `scale`."""

    @contextmanager
    def open_engine(neurons: Sequence[NeuronId]) -> Generator[Engine]:
        if not neurons:
            yield TurnedEngine(model)
            return
        with scale(model, neurons, torch.ones(1)) as dial:

            def turn(alphas: list[float]) -> None:
                dial.alpha = torch.tensor(alphas)

            yield TurnedEngine(model, on_rows=turn)

    return open_engine


def sample(engine: Engine, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
    """One response a request; where they don't fit into memory together, in halves.

    Raises:
        RuntimeError: not even one fits.
    """
    if not requests:
        return []
    try:
        return engine.sample(requests, sampling)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not ran_out(error) or len(requests) == 1:
            raise
    # Outside of the handler, which would keep the tensors of the failed pass alive.
    half = len(requests) // 2
    return sample(engine, requests[:half], sampling) + sample(engine, requests[half:], sampling)
