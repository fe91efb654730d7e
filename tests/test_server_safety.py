"""Who may come in, what the log and the metrics tell, and what the playground's files may do."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest

from fake_service import FakeService
from hneurons.errors import UsageError
from hneurons.live.pages import playground
from hneurons.live.server import ServerSettings, bind, create_app
from server_tools import SAY, Live, live, log_lines, wait_for

NAME = "fake-135m"
KEY = "correct-horse-battery"
BODY: dict[str, Any] = {"model": NAME, "messages": SAY}
CLOSED = ["/v1/models", "/hneurons/card", "/metrics", "/openapi.json", "/nowhere"]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(FakeService()) as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    with live(FakeService(), key=KEY) as running:
        yield running


# -- the token ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org", ""])
def test_no_other_address_without_a_token(host: str):
    for key in (None, ""):
        with pytest.raises(UsageError, match=r"this machine only.* Set MY_KEY to a secret"):
            create_app(FakeService(), ServerSettings(host=host, key=key, key_variable="MY_KEY"))
    create_app(FakeService(), ServerSettings(host=host, key=KEY))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_token(host: str):
    create_app(FakeService(), ServerSettings(host=host))


@pytest.mark.parametrize("key", ["two words", "new\nline", "schlüssel", "tab\t"])
def test_tokens_that_no_header_can_carry(key: str):
    with pytest.raises(UsageError) as caught:
        create_app(FakeService(), ServerSettings(key=key))
    assert key not in str(caught.value)


def test_the_token_is_in_no_repr():
    assert KEY not in repr(ServerSettings(key=KEY))


def test_with_the_token_everything_is_open(locked: Live):
    with locked.openai() as client:
        assert client.chat.completions.create(model=NAME, messages=SAY).choices
    with locked.http() as http:
        assert [http.get(path).status_code for path in CLOSED] == [200, 200, 200, 200, 404]


@pytest.mark.parametrize(
    "header",
    ["", KEY, f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer {KEY.upper()}",
     f"Bearer {KEY} {KEY}", "Bearer \xff"],
)  # fmt: skip
def test_without_it_only_health_and_the_page_are(locked: Live, header: str):
    headers = {"authorization": header.encode("latin-1")} if header else {}
    with httpx.Client(base_url=locked.url, headers=headers, trust_env=False) as client:
        before = len(locked.service.jobs)
        for response in [client.get(path) for path in CLOSED] + [client.post("/v1/chat/completions", json=BODY)]:
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert KEY not in response.text
        assert len(locked.service.jobs) == before
        assert client.get("/health").status_code == 200
        assert {client.get(path).status_code for path in playground()} == {200}


def test_the_client_knows_what_is_wrong(locked: Live):
    with locked.openai(key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


# -- the host -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "a@127.0.0.1"]
)
def test_other_hosts_are_turned_away(server: Live, host: str):
    with server.http() as client:
        for path in ("/", "/health", "/v1/models", "/hneurons/card"):
            response = client.get(path, headers={"host": host})
            assert response.status_code == 400
            assert "fake" not in response.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:80"])
def test_own_names_are_known(server: Live, host: str):
    with server.http() as client:
        assert client.get("/v1/models", headers={"host": host}).status_code == 200


def test_behind_a_token_any_name_will_do():
    with live(FakeService(), host="0.0.0.0", key=KEY) as server, server.http() as client:
        assert client.get("/v1/models", headers={"host": "models.example.org"}).status_code == 200


def test_no_page_of_another_site_may_read(server: Live):
    ask = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    with server.http() as client:
        for response in (
            client.options("/v1/chat/completions", headers=ask),
            client.get("/v1/models", headers=ask),
            client.post("/v1/chat/completions", json=BODY, headers=ask),
        ):
            assert not [name for name in response.headers if name.startswith("access-control-")]
        assert client.options("/v1/chat/completions", headers=ask).status_code == 405


def test_an_address_that_is_taken_or_not_there():
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UsageError, match=r"Can't listen at 127\.0\.0\.1:\d+ .* Give another --port"):
            bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match=r"Can't listen at no\.such\.host\.invalid"):
        bind("no.such.host.invalid", 0)


# -- the playground -------------------------------------------------------------------------------------


def test_the_page_may_load_nothing_from_elsewhere(server: Live):
    with server.http() as client:
        page = client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        rules = page.headers["content-security-policy"].split("; ")
        assert "default-src 'self'" in rules
        assert not [rule for rule in rules if "unsafe" in rule or "http" in rule or "*" in rule]
        assert page.headers["x-content-type-options"] == "nosniff"
        assert client.head("/").status_code == 200
        html = page.text
        assert not re.search(r"<script(?![^>]*\bsrc=)", html)
        assert not re.search(r"\son\w+=|\sstyle=|<style", html)
        for link in re.findall(r'(?:src|href)="([^"#]+)"', html):
            assert client.get(f"/{link.lstrip('/')}").status_code == 200, link


@pytest.mark.parametrize(
    "path",
    ["/../server.py", "/%2e%2e/server.py", "/..%2fserver.py", "/playground/index.html", "/index.html", "//etc/passwd",
     "/app.js/", "/app.js%00", "/.", "/__init__.py", "/v1/models/../../server.py", "/app.js\\..\\server.py"],
)  # fmt: skip
def test_a_path_reaches_no_other_file(server: Live, path: str):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:  # clients tidy paths up
        raw.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"import" not in answer


# -- the log --------------------------------------------------------------------------------------------


def test_a_line_a_request_without_what_was_said(server: Live):
    with log_lines() as lines:
        said = {
            "model": f"{NAME}@0",
            "messages": [{"role": "user", "content": "Zanzibar count"}],
            "max_tokens": 3,
            "n": 2,
        }
        response = server.post(said)
        server.post(said | {"stream": True, "user": "Zanzibar"})
        server.post({"model": "Zanzibar", "messages": [{"role": "user", "content": "Zanzibar"}]})
        server.post(BODY | {"Zanzibar": 1})
        with server.http() as client:
            client.get("/Zanzibar?Zanzibar", headers={"authorization": "Bearer Zanzibar"})
        wait_for(lambda: len(lines) == 5)
    assert "Zanzibar" not in json.dumps(lines)
    assert "1 2 3" not in json.dumps(lines)
    first = lines[0]
    assert first["id"] == response.headers["x-request-id"]
    assert (first["event"], first["level"], first["method"]) == ("request", "info", "POST")
    assert first["route"] == "/v1/chat/completions"
    assert (first["status"], first["model"], first["alpha"], first["stream"]) == (200, f"{NAME}@0", 0, False)
    assert first["prompt_tokens"] == 6
    assert [choice["finish"] for choice in first["choices"]] == ["length", "length"]
    assert 0 < first["choices"][0]["risk"] < 1
    assert 0 < first["first_token_seconds"] <= first["seconds"]
    assert lines[1]["stream"] is True
    assert [line.get("code") for line in lines[2:]] == ["model_not_found", "unknown_parameter", "not_found"]
    assert len({line["id"] for line in lines}) == 5


def test_text_is_logged_on_request():
    with live(FakeService(), log_text=True) as server, log_lines() as lines:
        server.post(BODY)
        server.post({"model": NAME, "prompt": "Zanzibar"}, "/v1/completions")
        wait_for(lambda: len(lines) == 2)
    assert lines[0]["prompt"] == SAY
    assert lines[0]["choices"][0]["text"] == "The capital of Australia is Sydney."
    assert lines[1]["prompt"] == ["Zanzibar"]


def test_no_token_in_the_log(locked: Live):
    with log_lines() as lines:
        locked.post(BODY)
        with locked.openai(key="wrong-but-secret") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        wait_for(lambda: len(lines) == 2)
    assert lines[1]["status"] == 401
    assert KEY not in json.dumps(lines)
    assert "wrong-but-secret" not in json.dumps(lines)


# -- the metrics ----------------------------------------------------------------------------------------


def numbers(server: Live) -> dict[str, float]:
    with server.http() as client:
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    rows = (line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in rows}


def test_the_metrics():
    with live(FakeService()) as server:
        server.post(BODY)
        server.post(BODY | {"stream": True, "hneurons": {"policy": {"action": "abstain"}}})
        server.post({"model": NAME, "messages": [{"role": "user", "content": "capital of france"}]})
        server.post({"model": NAME, "messages": [{"role": "user", "content": "count"}], "max_tokens": 4})
        server.post({"model": "other", "messages": SAY})
        with server.http() as client:
            client.get("/made-up-1")
            client.get("/made-up-2")
        wait_for(lambda: numbers(server).get('hneurons_requests_total{route="other",status="404"}') == 2)
        found = numbers(server)
    chat = 'route="/v1/chat/completions"'
    assert found[f'hneurons_requests_total{{{chat},status="200"}}'] == 4
    assert found[f'hneurons_requests_total{{{chat},status="404"}}'] == 1
    assert found[f"hneurons_request_seconds_count{{{chat}}}"] == 5
    assert found["hneurons_first_token_seconds_count"] == 4
    assert found["hneurons_generated_tokens_total"] == 8 + 8 + 8 + 4
    assert found["hneurons_risk_count"] == 4
    assert found['hneurons_risk_bucket{le="0.5"}'] == 2
    assert found["hneurons_flags_total"] == 2
    assert found['hneurons_policy_actions_total{action="abstain"}'] == 1
    assert found['hneurons_responses_total{reason="stop"}'] == 3
    assert found['hneurons_responses_total{reason="length"}'] == 1
    assert found["hneurons_running"] == found["hneurons_waiting"] == 0
    assert not [name for name in found if "made-up" in name]


def test_each_server_counts_for_itself():
    with live(FakeService()) as one, live(FakeService()) as two:
        one.post(BODY)
        assert numbers(one)["hneurons_risk_count"] == 1
        assert numbers(two)["hneurons_risk_count"] == 0


def test_what_runs_and_waits_is_shown():
    service = FakeService(delay=0.01, max_batch=1)
    with live(service) as server, server.openai() as client:
        say = [{"role": "user", "content": "count"}]
        streams = [client.chat.completions.create(model=NAME, messages=say, n=2, stream=True)]
        wait_for(lambda: numbers(server)["hneurons_running"] == numbers(server)["hneurons_waiting"] == 1)
        for stream in streams:
            stream.close()
        wait_for(lambda: numbers(server).get('hneurons_responses_total{reason="cancelled"}', 0) >= 1)
