"""The monitor: what a card's neurons say of a response, token by token while it is made, or of a given text.

The probe is linear, so the score of a mean contribution is the mean score of the tokens. It was made for the tokens
that carry an answer's claim; while a response grows nobody knows them yet, so what runs along is the score of all
tokens so far, and once the response is whole the rule span finder marks its answer, whose score is the one that the
calibration knows.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hneurons.answers.thinking import left_open
from hneurons.errors import UsageError
from hneurons.live.jobs import Event, Job, Mark, Reading
from hneurons.live.prompts import Prompt, as_messages, chat_text, context_of, question_of
from hneurons.live.reading import Reader
from hneurons.models.load import StudyModel, as_study_model
from hneurons.models.structure import backbone
from hneurons.neurons.card import Card
from hneurons.neurons.cett import batches, usual_tokens
from hneurons.neurons.scaling import scale
from hneurons.neurons.watch import Watcher
from hneurons.types import NeuronId, Span

Floats = NDArray[np.float64]


@dataclass
class Gauge:
    """The scores of what a model reads inside a block of `Monitor.watch`."""

    monitor: Monitor
    passes: list[Tensor] = field(default_factory=list[Tensor])
    """Terms of the score of each forward pass: (rows, tokens, neurons)."""

    @property
    def scores(self) -> Floats:
        """Probe score of every token read so far, prompts included: (rows, tokens).

        Raises:
            UsageError: the passes had different numbers of rows, so that they don't belong to one batch.
        """
        if len({len(terms) for terms in self.passes}) > 1:
            raise UsageError(
                "The batch changed its rows while it was watched.",
                "Open a block of its own for each call of generate, and sample without beams.",
            )
        if not self.passes:
            return np.zeros((0, 0))
        return np.concatenate([self.monitor.scores(terms.cpu().numpy()) for terms in self.passes], axis=1)

    @property
    def risks(self) -> Floats:
        """Calibrated risk of each of those scores: (rows, tokens)."""
        return self.monitor.card.risk(self.scores)


class Monitor:
    """Computes the risk of hallucination from a card's neurons alone.

    Args:
        model: the model under study, or a pair of a transformers model and its tokenizer.
        card: the card of that model.
        threshold: risk from which a response is flagged; the card's own if not given.
        top: neurons to name with each token and response.

    Raises:
        CardError: the card is of another model.
        UsageError: the threshold is no probability.
    """

    def __init__(
        self, model: StudyModel | tuple[Any, Any], card: Card, *, threshold: float | None = None, top: int = 5
    ) -> None:
        self.model = as_study_model(model)
        self.card = card
        self.threshold = card.probe.threshold if threshold is None else threshold
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"The threshold must be a risk between 0 and 1, not {self.threshold:g}.")
        self.top = top
        self.watcher = Watcher(self.model, card)
        self._ids = [neuron.id for neuron in card.neurons]
        self._reader = Reader(self.model, card, self.threshold)

    def scores(self, terms: Floats) -> Floats:
        """Probe scores from terms as `watch` gives them: (..., neurons) -> (...)."""
        return terms.sum(-1) + self.card.probe.intercept

    def marks(self, terms: Floats, before: Sequence[tuple[int, float]]) -> list[Mark]:
        """The risk of one token of each of several responses.

        Args:
            terms: of those tokens: (responses, neurons).
            before: of each response, how many tokens came before, and the sum of their scores.
        """
        scores = self.scores(terms)
        means = [(total + score) / (count + 1) for (count, total), score in zip(before, scores.tolist(), strict=True)]
        risks = self.card.risk(np.concatenate([scores, means])).tolist()
        return [
            Mark(count, score, risk, running, named)
            for (count, _), score, risk, running, named in zip(
                before, scores.tolist(), risks[: len(means)], risks[len(means) :], self._largest(terms), strict=True
            )
        ]

    def reading(
        self, said: str, ids: Sequence[int], terms: Floats, *, opened: bool = False, threshold: float | None = None
    ) -> Reading | None:
        """What the probe says of a whole response; None when nothing was said.

        Args:
            said: what was asked: it tells what in the response is the answer.
            ids: tokens of the response without the end of turn.
            terms: of those tokens: (tokens, neurons).
            opened: whether the prompt left a thinking block open.
            threshold: in place of the monitor's.
        """
        found = self._reader.read(said, ids, self.scores(terms), opened=opened, threshold=threshold)
        if found is None:
            return None
        thought = len(ids) - len(found.scores)
        answer = found.answer_tokens or Span(thought, len(ids))
        return replace(found, top=self._largest(terms[answer.start : answer.end].mean(0, keepdims=True))[0])

    @contextmanager
    def watch(self) -> Generator[Gauge]:
        """Watch whatever runs the model in this thread inside the block: `generate`, a loop of one's own, a pass."""
        gauge = Gauge(self)
        with self.watcher.on(gauge.passes.append):
            yield gauge

    def score(self, prompt: Prompt, response: str) -> Reading | None:
        """The reading of a given response, in one forward pass; None when it says nothing."""
        return next(iter(self.score_many([(prompt, response)])))

    def score_many(
        self, pairs: Iterable[tuple[Prompt, str]], *, alpha: float = 1.0, batch_tokens: int | None = None
    ) -> list[Reading | None]:
        """The readings of given responses, in order.

        Args:
            pairs: what was asked, and the response to it.
            alpha: what the H-Neurons are multiplied by meanwhile.
            batch_tokens: tokens of a batch, padding included; as many as suit the device by default.

        Raises:
            UsageError: a prompt and its response are longer than the model's context.
        """
        turns = [(as_messages(prompt), response) for prompt, response in pairs]
        given = [(question_of(asked), chat_text(self.model, asked), response) for asked, response in turns]
        ids = [(self.model.encode(prompt), self.tokens(response)) for _, prompt, response in given]
        context = context_of(self.model)
        for asked, said in ids:
            if len(asked) + len(said) > context:
                raise UsageError(
                    f"A prompt and its response have {len(asked) + len(said):,} tokens; {self.model.name} reads "
                    f"{context:,}.",
                    "Shorten it.",
                )
        found: dict[int, Reading | None] = {}
        most = batch_tokens or usual_tokens(self.model.device)
        for rows in batches([len(asked) + len(said) for asked, said in ids], most):
            full = [asked + said for asked, said in (ids[row] for row in rows)]
            longest = max(len(one) for one in full)
            tokens = torch.zeros(len(full), longest, dtype=torch.long)
            mask = torch.zeros(len(full), longest, dtype=torch.long)
            for place, one in enumerate(full):
                tokens[place, : len(one)] = torch.tensor(one)
                mask[place, : len(one)] = 1
            device = self.model.device
            with self.watch() as gauge, scale(self.model, self.card, alpha), torch.inference_mode():
                backbone(self.model.model)(input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False)
            for place, row in enumerate(rows):
                asked, said = ids[row]
                terms = gauge.passes[0][place, len(asked) : len(asked) + len(said)].cpu().numpy()
                question, prompt, _ = given[row]
                found[row] = self.reading(question, said, terms, opened=left_open(prompt) is not None)
        return [found[row] for row in range(len(ids))]

    def generate(self, prompt: Prompt, **options: Any) -> Generator[Event]:
        """Say something and give its pieces with their risks as they become known; `Done` comes last.

        Args:
            prompt: a question, put as it is, or a conversation.
            options: fields of `Job`: alpha, temperature, max_tokens, stop, seed, policy, ...

        Raises:
            UsageError: see `Service.submit`.
        """
        from hneurons.live.service import BatchService, events  # which watches with a monitor

        with BatchService(self.model, self.card, threshold=self.threshold, top=self.top) as service:
            yield from events(service, Job(as_messages(prompt), **options))

    def tokens(self, response: str) -> list[int]:
        """Tokens of a given response."""
        made: Any = self.model.tokenizer(response, add_special_tokens=False)
        return list(made["input_ids"])

    def _largest(self, terms: Floats) -> list[tuple[tuple[NeuronId, float], ...]]:
        """The neurons that count most in each row of terms: (rows, neurons)."""
        places = np.argsort(-np.abs(terms), axis=-1)[:, : self.top]
        values = terms[np.arange(len(terms))[:, None], places].round(6).tolist()
        return [
            tuple((self._ids[place], value) for place, value in zip(row, own, strict=True))
            for row, own in zip(places.tolist(), values, strict=True)
        ]
