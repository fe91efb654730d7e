"""A chat-completions server on this machine that answers, or misbehaves, as a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Say:
    """A completion with this content."""

    content: str | None
    seconds: float = 0.0
    """To wait before."""


@dataclass(frozen=True)
class Fail:
    """An error status with a JSON body; `wait_ms` goes out as `retry-after-ms`."""

    status: int
    message: str = "no reason"
    code: str | None = None
    wait_ms: int | None = 5
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """Status 200 with this body; `promised` bytes more are announced than sent."""

    body: bytes
    promised: int = 0


class Hang:
    """Nothing, until the client or the server gives up."""


Behaviour = Say | Fail | Raw | Hang
Script = Callable[[dict[str, Any], int], Behaviour]
"""(request body, number of the request from 0) -> what to do."""


class LLMServer:
    """Runs in a thread while the context is open; `script` may be replaced between requests."""

    def __init__(self, script: Script | Behaviour) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> LLMServer:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                owner._answer(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # the client has hung up, as it should have

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self.headers.append(dict(handler.headers.items()))
            self.times.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            behaviour = self.script(request, number) if callable(self.script) else self.script
            if isinstance(behaviour, Say):
                self._closed.wait(behaviour.seconds)
        finally:
            with self._lock:  # before the reply: the client may be back before this thread goes on
                self._at_once -= 1
        match behaviour:
            case Say(content):
                message = {"role": "assistant", "content": content}
                body = {
                    "id": "chat-1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": f"{request['model']}-snapshot",
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
                }
                _send(handler, 200, json.dumps(body).encode())
            case Fail(status, message, code, wait_ms, headers):
                body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
                wait = {} if wait_ms is None else {"retry-after-ms": str(wait_ms)}
                _send(handler, status, json.dumps(body).encode(), {**wait, **headers})
            case Raw(content, promised):
                _send(handler, 200, content, promised=promised)
            case Hang():
                self._closed.wait(30)
                handler.close_connection = True


def _send(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None, promised: int = 0
) -> None:
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(body) + promised))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
    if promised:
        handler.close_connection = True


def in_turn(*behaviours: Behaviour) -> Script:
    """One after the other; the last again and again."""
    return lambda _, number: behaviours[min(number, len(behaviours) - 1)]
