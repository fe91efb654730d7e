"""The outermost layer: gives each request an id, a line in the log and its place in the metrics, and catches all.

A line says what was done, never what was said: prompts and responses are in it only with `log_text`.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hneurons.live import faults
from hneurons.live.record import Record, begin_record
from hneurons.live.serving import Serving

log = logging.getLogger("hneurons.serve")
GONE = 499
"""nginx's status for a client that hung up."""
NO_ROUTE = "other"
"""Label of requests that came to no route: what clients make up must not become labels."""


class Journal:
    """Keeps the journal; no exception passes."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app, self._serving = app, serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and write down what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = begin_record(scope)
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.id
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            record.told |= _told(error, self._serving.settings.log_text)
            if not status:
                fault = faults.failed(f"Something went wrong here; the log has it under {record.id}.")
                await fault.response(scope)(scope, receive, watched)
        finally:
            self._write(scope, record, record.told.pop("status", status or GONE))

    def _write(self, scope: Scope, record: Record, status: int) -> None:
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        self._serving.metrics.requests.labels(route, status).inc()
        self._serving.metrics.seconds.labels(route).observe(record.age)
        level = logging.ERROR if "where" in record.told else logging.INFO
        line = {"id": record.id, "method": scope["method"], "route": route, "status": status}
        log.log(level, "request", extra={"told": line | {"seconds": round(record.age, 4)} | record.told})


def _told(error: BaseException, log_text: bool) -> dict[str, Any]:
    """What an exception is and where it came from. What it says is text that may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    told: dict[str, Any] = {"error": type(error).__name__, "where": where}
    return told | ({"message": str(error)} if log_text else {})


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, log_text: bool) -> None:
        super().__init__()
        self._log_text = log_text

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "told", {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= _told(record.exc_info[1], self._log_text)
        return json.dumps(line)


def log_to_stderr(log_text: bool) -> None:
    """Send the server's lines, and what uvicorn and the service have to say, to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(log_text))
    for name, level in (("hneurons", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
