"""A completions server on this machine, as vLLM's or one of texts alone; it misbehaves as a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, Any]]


@dataclass
class CompletionsServer:
    """Answers a request body with what `say` makes of it: status and body."""

    say: Callable[[dict[str, Any]], Reply]
    names: list[str] | None = field(default_factory=lambda: ["tiny-llama"])
    """What it lists as served; None: it has no such page."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> CompletionsServer:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                owner.headers.append({name.lower(): value for name, value in self.headers.items()})
                if owner.names is None:
                    self.send(404, {"error": {"message": "not found"}})
                else:
                    made = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in owner.names]
                    self.send(200, {"object": "list", "data": made})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with owner._lock:
                    owner.requests.append(body)
                    owner._at_once += 1
                    owner.most_at_once = max(owner.most_at_once, owner._at_once)
                time.sleep(0.01)  # so that others come meanwhile
                with owner._lock:
                    owner._at_once -= 1
                self.send(*owner.say(body))

            def send(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def completion(text: str, logprobs: list[float] | None, reason: str = "stop", ids: list[int] | None = None) -> Reply:
    choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason}
    if logprobs is not None:
        choice["logprobs"] = {"tokens": ["?"] * len(logprobs), "token_logprobs": logprobs}
    if ids is not None:
        choice["token_ids"] = ids
    return 200, {"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}


def refusal(status: int, message: str = "no reason") -> Reply:
    return status, {"error": {"message": message, "type": "error", "param": None, "code": None}}
