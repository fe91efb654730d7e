"""Answers requests: whole, or as a stream of server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from hneurons.live import faults
from hneurons.live.choices import Choices
from hneurons.live.faults import ApiError
from hneurons.live.jobs import Done, Event, Piece
from hneurons.live.record import Record, record_of
from hneurons.live.serving import Serving, serving_of
from hneurons.live.telling import Teller

KEEP_ALIVE_SECONDS = 15.0
"""Silence after which a stream sends a comment, before a proxy takes it for dead."""


async def answer(request: Request, teller: Teller) -> Response:
    """Put a request's jobs to the service and answer with what comes back.

    Raises:
        ApiError: the service refuses or fails.
    """
    serving = serving_of(request)
    if serving.draining:
        raise faults.closing()
    told = Telling(serving, record_of(request.scope), teller)
    return Stream(told) if teller.wanted.stream else JSONResponse(await told.whole(request.receive))


class Telling:
    """One request while it is answered."""

    def __init__(self, serving: Serving, record: Record, teller: Teller) -> None:
        self._serving, self._record, self._teller = serving, record, teller
        wanted = teller.wanted
        record.told |= {"model": wanted.model, "alpha": wanted.jobs[0].alpha, "stream": wanted.stream}

    async def whole(self, receive: Receive) -> dict[str, Any]:
        """The body, once all is said."""
        async with aclosing(self._events(receive, None)) as events:
            async for heard in events:
                if heard is not None:
                    self._teller.hear(*heard)
        return self._teller.whole()

    async def stream(self, receive: Receive) -> AsyncGenerator[bytes]:
        """The events of a stream, as they come."""
        async with aclosing(self._events(receive, KEEP_ALIVE_SECONDS)) as events:
            async for heard in events:
                if heard is None:
                    yield b": still here\n\n"
                    continue
                for chunk in self._teller.chunks(*heard):
                    yield _event(chunk)
        if (last := self._teller.last_chunk()) is not None:
            yield _event(last)
        yield b"data: [DONE]\n\n"

    async def _events(self, receive: Receive, patience: float | None) -> AsyncGenerator[tuple[int, Event] | None]:
        choices = Choices(self._serving, self._teller.wanted.jobs)
        first = True
        try:
            async with choices.listening(receive):
                await choices.submit()
                async with aclosing(choices.events(patience)) as events:
                    async for heard in events:
                        if first and heard is not None and isinstance(heard[1], Piece):
                            first = False
                            self._serving.metrics.first_token.observe(self._record.age)
                            self._record.told["first_token_seconds"] = round(self._record.age, 4)
                        yield heard
        finally:
            self._write()

    def _write(self) -> None:
        """What the log tells of the responses."""
        ended = [heard.done for heard in self._teller.heard if heard.done is not None]
        told = self._record.told
        told["choices"] = [_ending(done, self._serving.settings.log_text) for done in ended]
        told["prompt_tokens"] = ended[0].prompt_tokens if ended else None


def _ending(done: Done, log_text: bool) -> dict[str, Any]:
    reading = done.reading
    told: dict[str, Any] = {"tokens": done.completion_tokens, "finish": done.reason, "action": done.action}
    if reading is not None:
        told |= {"risk": round(reading.risk, 4), "flagged": reading.flagged}
    return told | ({"text": done.text} if log_text else {})


class Stream(Response):
    """Server-sent events. Nothing is sent before the first, so that a job that is refused gets its own status."""

    media_type = "text/event-stream"

    def __init__(self, telling: Telling) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._telling = telling

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what is said as it is said."""
        begun = False
        try:
            async with aclosing(self._telling.stream(receive)) as events:
                async for event in events:
                    if not begun:
                        begun = True
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        except ApiError as fault:
            if not begun:
                raise
            record_of(scope).told |= {"status": fault.status, "code": fault.code}
            await send({"type": "http.response.body", "body": _event(fault.body), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
