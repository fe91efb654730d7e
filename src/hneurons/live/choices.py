"""The jobs of one request, from the service's thread to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool

from hneurons.errors import HNeuronsError, PromptTooLongError
from hneurons.live import faults
from hneurons.live.jobs import Done, Event, Failed, Job, Ticket
from hneurons.live.serving import Serving

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Choices:
    """The jobs of one request: one a choice."""

    def __init__(self, serving: Serving, jobs: Sequence[Job]) -> None:
        self._serving, self._jobs = serving, jobs
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._lock = threading.Lock()
        self._tickets: list[Ticket] = []
        self.cancelled = False
        self._gone = False  # whether it was the client who hung up

    async def submit(self) -> None:
        """Take all jobs to the service, or none.

        Raises:
            ApiError: the service refuses one, or the client hung up meanwhile.
        """
        # In a thread: long prompts take a while to be cut into tokens, and others stream meanwhile.
        try:
            await run_in_threadpool(self._submit)
        except HNeuronsError as error:
            raise faults.refused(error) from error
        if self.cancelled:
            raise self._why()

    def _submit(self) -> None:
        for index, job in enumerate(self._jobs):
            if self.cancelled:
                return
            ticket = self._serving.service.submit(job, partial(self._hear, index))
            with self._lock:
                self._tickets.append(ticket)
                late = self.cancelled
            if late:
                ticket.cancel()
            limit = self._serving.settings.max_prompt_tokens
            if limit is not None and ticket.prompt_tokens > limit:
                raise PromptTooLongError(f"The prompt has {ticket.prompt_tokens} tokens; at most {limit} here.")

    def _hear(self, index: int, event: Event) -> None:
        if isinstance(event, Done):
            self._serving.metrics.count(event)
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

    def cancel(self) -> None:
        """Make no more of them; any thread may call this, more than once."""
        with self._lock:
            self.cancelled = True
            tickets = tuple(self._tickets)
        for ticket in tickets:
            ticket.cancel()

    def _why(self) -> faults.ApiError:
        """Why the jobs were cancelled: nobody else does."""
        return faults.gone() if self._gone else faults.closing()

    async def events(self, patience: float | None = None) -> AsyncGenerator[tuple[int, Event] | None]:
        """What comes back until all jobs have ended: number of the choice, event.

        None whenever nothing came for `patience` seconds.

        Raises:
            ApiError: a job failed, or was cancelled.
        """
        left = len(self._jobs)
        while left:
            try:
                index, event = await asyncio.wait_for(self._queue.get(), patience)
            except TimeoutError:
                yield None
                continue
            if isinstance(event, Failed):
                raise faults.failed(event.message)
            if isinstance(event, Done):
                left -= 1
                if event.reason == "cancelled":
                    raise self._why()
            yield index, event

    @contextlib.asynccontextmanager
    async def listening(self, receive: Receive) -> AsyncGenerator[None]:
        """Cancel the jobs when the client hangs up, and whatever is left of them at the end."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._gone = True
            self.cancel()

        self._serving.active.add(self)
        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()
            self.cancel()
            self._serving.active.discard(self)
