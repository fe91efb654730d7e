"""Clients that hang up, many at a time, and the end of the server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from fake_service import FakeService
from hneurons.live.choices import Choices
from hneurons.live.faults import ApiError
from hneurons.live.jobs import Job
from hneurons.live.server import ServerSettings
from hneurons.live.serving import Serving
from server_tools import COUNT, SAY, Live, ended, hang_up, live, log_lines, wait_for

NAME = "fake-135m"


# -- clients that hang up -------------------------------------------------------------------------------


def test_closing_a_stream_cancels_its_job():
    service = FakeService(delay=0.02)
    with live(service) as server, server.openai() as client:
        stream = client.chat.completions.create(model=NAME, messages=COUNT, stream=True)
        next(iter(stream))
        stream.close()
        wait_for(lambda: ended(service, "cancelled"))
        wait_for(lambda: not server.app.state.serving.active)


def test_hanging_up_on_a_whole_response_cancels_all_its_jobs():
    service = FakeService(delay=0.02, max_batch=2)
    with live(service) as server, log_lines() as lines:
        hang_up(server, {"messages": COUNT, "n": 4}, lambda: service.running == service.waiting == 2)
        wait_for(lambda: len(ended(service, "cancelled")) == 4)
        wait_for(lambda: lines)
        assert lines[0]["status"] == 499
        wait_for(lambda: not server.app.state.serving.active)


def test_an_asynchronous_client_that_is_cancelled():
    service = FakeService(delay=0.02)

    async def give_up(server: Live) -> None:
        async with server.asynchronous() as client:
            task = asyncio.create_task(client.chat.completions.create(model=NAME, messages=COUNT))
            while not service.running:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with live(service) as server:
        asyncio.run(give_up(server))
        wait_for(lambda: ended(service, "cancelled"))


def test_a_client_that_hangs_up_while_its_job_waits():
    service = FakeService(delay=0.02, max_batch=1)
    with live(service) as server, server.openai() as client:
        first = client.chat.completions.create(model=NAME, messages=COUNT, stream=True)
        wait_for(lambda: service.running == 1)
        hang_up(server, {"messages": SAY, "stream": True}, lambda: service.waiting == 1)
        wait_for(lambda: len(ended(service, "cancelled")) == 1)
        assert service.running == 1
        first.close()


def test_a_client_that_hangs_up_while_its_jobs_are_handed_in():
    begun, over = threading.Event(), threading.Event()

    class Slow(FakeService):
        def submit(self, *given: Any) -> Any:
            begun.set()
            over.wait(30)
            return super().submit(*given)

    service = Slow(delay=0.02)
    with live(service) as server:
        active = server.app.state.serving.active
        hang_up(server, {"messages": COUNT, "n": 4}, begun.is_set)
        wait_for(lambda: [choices.cancelled for choices in active] == [True])
        over.set()
        wait_for(lambda: not active)
        wait_for(lambda: len(ended(service, "cancelled")) == 1)
        assert len(service.jobs) == 1


def test_jobs_that_are_cancelled_before_they_are_handed_in():
    service = FakeService()

    async def late() -> None:
        choices = Choices(Serving(service, ServerSettings()), [Job("count")])
        choices.cancel()
        with pytest.raises(ApiError):
            await choices.submit()

    asyncio.run(late())
    assert service.jobs == []


def test_a_silent_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hneurons.live.answering.KEEP_ALIVE_SECONDS", 0.05)
    held = {"hneurons": {"policy": {"action": "abstain"}}}
    with live(FakeService(delay=0.1)) as server:
        response = server.post({"model": NAME, "messages": SAY, "stream": True, **held})
        assert response.text.startswith(": still here\n\n")
        with server.openai() as client:
            stream = client.chat.completions.create(model=NAME, messages=SAY, stream=True, extra_body=held)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "I don't know."


def test_half_a_request_does_no_harm():
    with live(FakeService()) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as half:
            half.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
                b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
            )
        assert server.post({"model": NAME, "messages": SAY}).status_code == 200
        assert len(server.service.jobs) == 1


def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hneurons.live.bodies.READ_SECONDS", 0.1)

    def slowly() -> Iterator[bytes]:
        yield b"{"
        threading.Event().wait(1)
        yield b"}"

    with live(FakeService()) as server, server.http() as client:
        response = client.post("/v1/completions", content=slowly(), headers={"content-type": "application/json"})
        assert response.status_code == 408
        assert response.json()["error"]["code"] == "request_timeout"


# -- many at a time -------------------------------------------------------------------------------------


def test_many_clients_each_get_their_own_alpha():
    service = FakeService(max_batch=16, max_waiting=200, delay=0.001)
    alphas = [0.0, 0.5, 1.0, 2.0]

    async def ask(client: openai.AsyncOpenAI, number: int) -> None:
        alpha, words = alphas[number % 4], 1 + number % 7
        say: Any = [{"role": "user", "content": " ".join(["hello"] * words)}]
        options: dict[str, Any] = {"messages": say, "temperature": 0}
        options["model"] = f"{NAME}@{alpha:g}" if number % 2 else NAME
        options["extra_body"] = {} if number % 2 else {"hneurons": {"alpha": alpha}}
        expected = f"You said {words} words. Alpha is {alpha:g}. Draw 0."
        if number % 3:
            reply = await client.chat.completions.create(**options)
            assert reply.choices[0].message.content == expected
            assert reply.choices[0].model_extra["hneurons"]["alpha"] == alpha
        else:
            stream = await client.chat.completions.create(**options, stream=True)
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == expected

    async def all_of_them(server: Any) -> None:
        async with server.asynchronous() as client:
            await asyncio.gather(*(ask(client, number) for number in range(96)))

    with live(service) as server:
        asyncio.run(all_of_them(server))
        assert {done.reason for done in service.endings} == {"stop"}
        wait_for(lambda: not server.app.state.serving.active)


# -- the end of the server ------------------------------------------------------------------------------


@contextmanager
def process(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The fake behind a server in a process of its own, and its URL."""
    script = Path(__file__).parent / "fake_service.py"
    command = [sys.executable, str(script), "--port", "0", *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop("HNEURONS_API_KEY", None)
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert running.stderr is not None
        yield running, running.stderr.readline().rsplit(" ", 1)[1].strip()
    finally:
        running.kill()
        running.communicate()


def begun(url: str, tokens: int) -> tuple[threading.Thread, list[str]]:
    """A stream that has begun, and its lines as they come."""
    lines: list[str] = []
    body = {"model": NAME, "messages": COUNT, "max_tokens": tokens, "stream": True}

    def read() -> None:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=20) as response:
            lines.extend(response.iter_lines())

    reader = threading.Thread(target=read)
    reader.start()
    return reader, lines


def test_sigterm_finishes_what_was_begun_and_begins_nothing_new():
    with process("--delay", "0.02") as (running, url), httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get("/health").json() == {"status": "ok"}
        reader, lines = begun(url, 200)
        wait_for(lambda: "hneurons_running 1.0" in client.get("/metrics").text)
        running.send_signal(signal.SIGTERM)
        wait_for(lambda: client.get("/health").status_code == 503)
        assert client.get("/health").json() == {"status": "draining"}
        new = client.post("/v1/chat/completions", json={"model": NAME, "messages": SAY})
        assert new.status_code == 503
        assert new.json()["error"]["code"] == "shutting_down"
        assert int(new.headers["retry-after"]) > 0
        reader.join()
        assert lines[-2] == "data: [DONE]"
        assert json.loads(lines[-4].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert running.wait(30) == 0


def test_the_time_to_drain_has_an_end():
    with process("--delay", "0.05", "--drain-seconds", "0.3") as (running, url):
        reader, lines = begun(url, 250)
        with httpx.Client(base_url=url, trust_env=False) as client:
            wait_for(lambda: "hneurons_running 1.0" in client.get("/metrics").text)
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
        reader.join()
        assert (
            json.loads([line for line in lines if line][-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
        )
        assert running.stderr is not None
        log = [json.loads(line) for line in running.stderr.read().splitlines()]
        assert log[-1]["route"] == "/v1/chat/completions"
        assert log[-1]["status"] == 503


def test_an_idle_server_ends_at_once():
    with process("--drain-seconds", "60") as (running, _):
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0
