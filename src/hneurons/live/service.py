"""The service: a thread that runs the batch, a queue before it, and listeners that hear what becomes of their jobs."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Generator
from typing import Any

from hneurons.errors import BusyError, ClosedError, PromptTooLongError, UsageError
from hneurons.live.batch import Batch
from hneurons.live.jobs import Done, Event, Failed, Job, Listener, Service
from hneurons.live.monitor import Monitor
from hneurons.live.prompts import chat_text, context_of
from hneurons.live.row import Row
from hneurons.memory import ran_out
from hneurons.models.load import StudyModel
from hneurons.neurons.card import Card
from hneurons.neurons.dial import checked_alpha

log = logging.getLogger("hneurons.live")


class BatchService:
    """Makes responses with a model and a card in a thread of its own; see `Service`.

    Args:
        model: the model under study, or a pair of a transformers model and its tokenizer.
        card: the card of that model.
        max_batch: responses made at a time.
        max_waiting: jobs that may wait for their turn.
        max_tokens: that a response may have at most.
        threshold: risk from which a response is flagged; the card's own if not given.
        top: neurons to name with each token and response.

    Raises:
        CardError: the card is of another model.
    """

    def __init__(
        self,
        model: StudyModel | tuple[Any, Any],
        card: Card,
        *,
        max_batch: int = 32,
        max_waiting: int = 128,
        max_tokens: int = 1024,
        threshold: float | None = None,
        top: int = 5,
    ) -> None:
        self.monitor = Monitor(model, card, threshold=threshold, top=top)
        self.max_batch, self.max_waiting, self.max_tokens = max_batch, max_waiting, max_tokens
        self._queue: deque[Row] = deque()
        self._running = 0
        self._closed = self._drop = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="hneurons-batch", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """The model's name."""
        return self.monitor.model.name

    @property
    def card(self) -> Card:
        """Whose neurons are watched and turned."""
        return self.monitor.card

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs in the batch."""
        return self._running

    @property
    def context(self) -> int:
        """Tokens that a prompt and its response may have together."""
        return context_of(self.monitor.model)

    def submit(self, job: Job, listener: Listener) -> Row:
        """Take a job on; see `Service.submit`."""
        row = self._row(job, listener)
        with self._changed:
            if self._closed:
                raise ClosedError("The service takes no more jobs.")
            if len(self._queue) >= self.max_waiting:
                raise BusyError(f"{len(self._queue)} jobs wait already.", "Try again later.")
            self._queue.append(row)
            self._changed.notify()
        return row

    def close(self, *, drain: bool = True) -> None:
        """Take no more jobs; finish those begun or waiting (`drain`), or end them at once. Returns when idle."""
        with self._changed:
            self._closed = True
            self._drop = self._drop or not drain
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> BatchService:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(drain=kind is None)

    def _row(self, job: Job, listener: Listener) -> Row:
        for alpha in (job.alpha, job.policy.alpha if job.policy else 1.0):
            checked_alpha(alpha)
        model = self.monitor.model
        text = job.prompt if isinstance(job.prompt, str) else chat_text(model, job.prompt)
        ids = tuple(model.encode(text))
        if not ids:
            raise UsageError("The prompt is empty.", "Give some text.")
        room = self.context - len(ids)
        if room < 1:
            raise PromptTooLongError(
                f"The prompt has {len(ids):,} tokens; {self.name} reads {self.context:,} with the response.",
                "Shorten it.",
            )
        if job.max_tokens is not None and not job.max_tokens >= 1:
            raise UsageError(f"max_tokens must be positive, not {job.max_tokens}.")
        wanted = min(self.max_tokens, job.max_tokens or self.max_tokens)
        return Row(self.monitor, job, text, ids, min(room, wanted), listener)

    def _work(self) -> None:
        with Batch(self.monitor) as batch:
            while True:
                with self._changed:
                    while not self._queue and not batch.rows and not self._closed:
                        self._running = 0
                        self._changed.wait()
                    if self._drop:
                        for row in (*self._queue, *batch.rows):
                            row.cancel()
                    new = self._next(self.max_batch - len(batch.rows))
                    self._running = len(batch.rows) + len(new)
                    if self._closed and not self._running:
                        return
                try:
                    batch.step(new)
                except Exception as error:
                    log.exception("A forward pass failed")
                    memory = ran_out(error)
                    for row in {id(row): row for row in (*batch.drop(), *new)}.values():
                        row.fail("The machine is out of memory." if memory else "The model failed on this batch.")

    def _next(self, room: int) -> list[Row]:
        """Rows whose turn has come. Cancelled ones are told so whether or not there is room."""
        for row in [row for row in self._queue if row.cancelled]:
            self._queue.remove(row)
            row.stop()
        return [self._queue.popleft() for _ in range(min(room, len(self._queue)))]


def events(service: Service, job: Job) -> Generator[Event]:
    """What becomes of a job; ends with `Done` or `Failed`. Closing the generator cancels the job."""
    heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
    ticket = service.submit(job, heard.put)
    try:
        while True:
            event = heard.get()
            yield event
            if isinstance(event, Done | Failed):
                return
    finally:
        ticket.cancel()
