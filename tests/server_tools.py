"""A server with the fake service, and clients for it."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import openai
import pytest
import uvicorn

from fake_service import FakeService
from hneurons.live.jobs import Done
from hneurons.live.server import ServerSettings, bind, create_app

SAY = [{"role": "user", "content": "What is the capital of Australia?"}]
COUNT = [{"role": "user", "content": "Please count."}]


@dataclass
class Live:
    """A server at a port of this machine."""

    url: str
    service: FakeService
    app: Any
    key: str = "none"

    def http(self, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"} if self.key != "none" else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False, **options)

    def openai(self, key: str | None = None, retries: int = 0) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(trust_env=False)
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=retries, timeout=20, http_client=http
        )

    def asynchronous(self) -> openai.AsyncOpenAI:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=30, http_client=http
        )

    def post(self, body: Any, path: str = "/v1/chat/completions") -> httpx.Response:
        with self.http() as client:
            return client.post(path, json=body)


@contextmanager
def live(service: FakeService, **settings: Any) -> Iterator[Live]:
    """Serve in a thread; everything has ended when the block does."""
    chosen = ServerSettings(**settings)
    app = create_app(service, chosen)
    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", service, app, chosen.key or "none")
    finally:
        service.close(drain=False)
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module", name="server")
def plain_server() -> Iterator[Live]:
    """A server of its own for a file of tests, with the settings that it has by itself."""
    with live(FakeService()) as running:
        yield running


@pytest.fixture(name="client")
def official_client(server: Live) -> Iterator[openai.OpenAI]:
    """OpenAI's own client of the file's server."""
    with server.openai() as opened:
        yield opened


def wait_for(true: Callable[[], Any], seconds: float = 30.0) -> None:
    """Until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def hang_up(server: Live, body: dict[str, Any], when: Callable[[], Any]) -> None:
    """Send a request, and close the connection without an answer once something is so."""
    data = json.dumps({"model": server.service.name, **body}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        wait_for(when)


def ended(service: FakeService, reason: str) -> list[Done]:
    """Responses that ended so."""
    return [done for done in service.endings if done.reason == reason]


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The data of server-sent events; the last line must be the mark of the end."""
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(line) for line in data[:-1]]


@contextmanager
def log_lines() -> Iterator[list[dict[str, Any]]]:
    """What the server logs meanwhile, as it would stand on stderr."""
    from hneurons.live.journal import JsonLines

    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonLines(log_text=False).format(record)))

    logger, handler = logging.getLogger("hneurons"), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
