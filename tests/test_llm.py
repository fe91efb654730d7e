import io
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict

from hneurons.answers.endpoint import Endpoint, endpoint
from hneurons.answers.llm import Ask, Estimate, LLMClient
from hneurons.errors import JudgeError, MissingExtraError, RunError, StorageError, UsageError
from llm_server import Fail, Hang, LLMServer, Raw, Say, in_turn

KEY = "sk-Zq83-very-secret_0417"


class Word(BaseModel):
    model_config = ConfigDict(extra="forbid")
    word: Literal["yes", "no"]


YES = '{"word": "yes"}'


@pytest.fixture
def server() -> Iterator[LLMServer]:
    with LLMServer(Say(YES)) as running:
        yield running


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def client(server: LLMServer, folder: Path, **settings: Any) -> LLMClient:
    pytest.importorskip("openai", reason="needs the extra `judge`")
    return LLMClient(Endpoint(**{"model": "m", "base_url": server.url, "timeout": 5, "retries": 2, **settings}), folder)


def question(text: str) -> Ask:
    return Ask((text,), Word)


def word(reply: BaseModel | None) -> str | None:
    assert reply is None or isinstance(reply, Word)
    return reply.word if reply else None


def rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "replies.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# -- the request and the reply


def test_a_strict_schema_is_sent_and_the_reply_validated(server: LLMServer, tmp_path: Path):
    with client(server, tmp_path, temperature=0.5) as asked:
        assert word(asked.ask(Ask(("a", "b", "c"), Word))) == "yes"
    sent = server.requests[0]
    assert sent["model"] == "m"
    assert sent["temperature"] == 0.5
    assert [(turn["role"], turn["content"]) for turn in sent["messages"]] == [
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]
    shape = sent["response_format"]["json_schema"]
    assert shape["strict"] is True
    assert shape["schema"]["properties"]["word"]["enum"] == ["yes", "no"]
    assert shape["schema"]["required"] == ["word"]
    assert shape["schema"]["additionalProperties"] is False
    assert f"Bearer {KEY}" in server.headers[0].values()


def test_a_temperature_of_none_is_not_sent(server: LLMServer, tmp_path: Path):
    with client(server, tmp_path, temperature=None) as asked:
        asked.ask(question("a"))
    assert "temperature" not in server.requests[0]


@pytest.mark.parametrize(
    "content",
    ["```json\n" + YES + "\n```", "```\n" + YES + "```", "<think>no? yes</think>\n" + YES, f"  {YES}\n"],
)
def test_wrappings_are_let_go(server: LLMServer, tmp_path: Path, content: str):
    server.script = Say(content)
    with client(server, tmp_path) as asked:
        assert word(asked.ask(question("a"))) == "yes"
    assert len(server.requests) == 1


INVALID = [
    Say('{"word": "ye'),
    Say('{"word": "maybe"}'),
    Say('{"answer": "yes"}'),
    Say('{"word": "yes", "but": "no"}'),
    Say(f"{YES}{YES}"),
    Say(f"Surely {YES}"),
    Say("yes"),
    Say("[]"),
    Say(""),
    Say(None),
    Raw(b'{"choices": []}'),
    Raw(b'{"choices": [{"message": {"content": "{\\"word\\": \\"yes\\"'),
    Raw(b"<html>busy</html>"),
    Raw(b""),
]


@pytest.mark.parametrize("bad", INVALID, ids=str)
def test_an_invalid_reply_is_asked_for_again(server: LLMServer, tmp_path: Path, bad: Say | Raw):
    server.script = in_turn(bad, bad, Say(YES))
    with client(server, tmp_path) as asked:
        assert word(asked.ask(question("a"))) == "yes"
        assert asked.counts.invalid == 2
        assert asked.counts.unparsable == 0
    assert len(server.requests) == 3
    assert [turn["role"] for turn in server.requests[2]["messages"]] == ["user", "assistant", "user"]
    assert server.requests[2]["messages"][0]["content"] == "a"


@pytest.mark.parametrize("bad", INVALID[:3], ids=str)
def test_after_three_invalid_replies_there_is_none_and_nothing_is_cached(server: LLMServer, tmp_path: Path, bad: Say):
    server.script = bad
    with client(server, tmp_path) as asked:
        assert asked.ask(question("a")) is None
        assert asked.counts.to_json() == {
            "requests": 3,
            "cached": 0,
            "invalid": 3,
            "unparsable": 1,
            "prompt_tokens": 300,
            "completion_tokens": 21,
        }
    assert rows(tmp_path) == []


# -- failures that pass


@pytest.mark.parametrize("failure", [Fail(429), Fail(500), Fail(503), Fail(408), Fail(409)], ids=str)
def test_a_passing_failure_is_tried_again(server: LLMServer, tmp_path: Path, failure: Fail):
    server.script = in_turn(failure, failure, Say(YES))
    with client(server, tmp_path) as asked:
        assert word(asked.ask(question("a"))) == "yes"
    assert len(server.requests) == 3


def test_retry_after_is_honoured(server: LLMServer, tmp_path: Path):
    server.script = in_turn(Fail(429, wait_ms=None, headers={"retry-after": "1.2"}), Say(YES))
    with client(server, tmp_path) as asked:
        asked.ask(question("a"))
    # Longer than the library's own first wait, which is at most 0.5 s.
    assert server.times[1] - server.times[0] >= 1.2


def test_a_hanging_request_is_tried_again(server: LLMServer, tmp_path: Path):
    server.script = in_turn(Hang(), Say(YES))
    with client(server, tmp_path, timeout=1.5) as asked:
        assert word(asked.ask(question("a"))) == "yes"


def test_a_connection_that_breaks_within_the_reply_is_tried_again(server: LLMServer, tmp_path: Path):
    server.script = in_turn(Raw(b'{"choices": [', promised=50), Say(YES))
    with client(server, tmp_path) as asked:
        assert word(asked.ask(question("a"))) == "yes"
        assert asked.counts.invalid == 0


# -- failures that stay


@pytest.mark.parametrize(
    ("behaviour", "told", "sent"),
    [
        (Fail(401), "refused the API key (HTTP 401). Set OPENAI_API_KEY", 1),
        (Fail(403), "refused the API key (HTTP 403). Set OPENAI_API_KEY", 1),
        (Fail(404), "has no model m under http://", 1),
        (Fail(429, "slow down"), "limits the rate or the quota (HTTP 429, at most 2 retries): slow down. Lower", 3),
        (Fail(500, "on fire"), "failed with HTTP 500: on fire. Try later.", 3),
        (Fail(418, "a teapot"), "failed with HTTP 418: a teapot. Change the setting", 1),
        (Raw(b"{", promised=9), "Can't reach", 3),
        (Hang(), "sent nothing for 1.5 s, 3 times in a row", 3),
    ],
    ids=str,
)
def test_a_failure_that_stays_is_a_one_line_error(
    server: LLMServer, tmp_path: Path, behaviour: Any, told: str, sent: int
):
    server.script = behaviour
    settings = {"timeout": 1.5} if isinstance(behaviour, Hang) else {}
    with client(server, tmp_path, **settings) as asked, pytest.raises(JudgeError) as caught:
        asked.ask(question("a"))
    assert told in str(caught.value)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    assert len(server.requests) == sent


def test_a_server_that_is_not_there(tmp_path: Path):
    with LLMServer(Say(YES)) as gone:
        asked = client(gone, tmp_path, retries=1)
    with asked, pytest.raises(JudgeError, match="Can't reach 127"):
        asked.ask(question("a"))


def test_a_prompt_that_the_endpoint_refuses_stops_nothing(server: LLMServer, tmp_path: Path):
    def script(request: dict[str, Any], _: int):
        filtered = "bad" in request["messages"][0]["content"]
        return Fail(400, "filtered", code="content_filter") if filtered else Say(YES)

    server.script = script
    with client(server, tmp_path) as asked:
        assert [word(reply) for reply in asked.each(asked.ask, [question("bad"), question("good")])] == [None, "yes"]
        assert asked.counts.unparsable == 1
        asked.ask(question("better"))
    assert server.requests[-1]["response_format"]["type"] == "json_schema"


# -- response formats


@pytest.mark.parametrize(("knows", "tries"), [("json_object", 2), (None, 3)])
@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_format_is_not_tried_again(
    server: LLMServer, tmp_path: Path, knows: str | None, tries: int, status: int
):
    def script(request: dict[str, Any], _: int):
        wanted = request.get("response_format", {}).get("type")
        return Say(YES) if wanted in (None, knows) else Fail(status, "response_format is not supported")

    server.script = script
    with client(server, tmp_path) as asked:
        assert word(asked.ask(question("a"))) == "yes"
        assert len(server.requests) == tries
        assert word(asked.ask(question("b"))) == "yes"
    assert len(server.requests) == tries + 1


def test_what_no_format_helps_is_an_error_and_changes_none(server: LLMServer, tmp_path: Path):
    server.script = Fail(400, "Unsupported value: 'temperature'")
    with client(server, tmp_path) as asked:
        with pytest.raises(JudgeError, match="'temperature'"):
            asked.ask(question("a"))
        server.script = Say(YES)
        asked.ask(question("a"))
    assert server.requests[-1]["response_format"]["type"] == "json_schema"


# -- the cache


def test_what_was_answered_is_not_asked_again(server: LLMServer, tmp_path: Path):
    with client(server, tmp_path) as asked:
        asked.ask(question("a"))
    server.script = Fail(500)
    with client(server, tmp_path) as asked:
        assert word(asked.ask(question("a"))) == "yes"
        assert asked.counts.cached == 1
    assert len(server.requests) == 1
    (row,) = rows(tmp_path)
    assert row["reply"] == {"word": "yes"}
    assert row["answered_by"] == "m-snapshot"


class Other(BaseModel):
    word: str


@pytest.mark.parametrize(
    ("settings", "ask"),
    [
        ({"model": "n"}, question("a")),
        ({"temperature": 1.0}, question("a")),
        ({"temperature": None}, question("a")),
        ({}, question("A")),
        ({}, Ask(("a", "b", "a"), Word)),
        ({}, Ask(("a",), Other)),
    ],
)
def test_another_model_temperature_prompt_or_schema_is_asked(
    server: LLMServer, tmp_path: Path, settings: dict, ask: Ask
):
    with client(server, tmp_path) as asked:
        asked.ask(question("a"))
    with client(server, tmp_path, **settings) as asked:
        asked.ask(ask)
    assert len(server.requests) == 2


def test_a_cut_last_line_costs_one_request(server: LLMServer, tmp_path: Path):
    with client(server, tmp_path) as asked:
        for text in "abc":
            asked.ask(question(text))
    path = tmp_path / "replies.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with client(server, tmp_path) as asked:
        for text in "abc":
            assert word(asked.ask(question(text))) == "yes"
    assert len(server.requests) == 4
    assert len(rows(tmp_path)) == 3


def test_a_damaged_cache_is_a_one_line_error(server: LLMServer, tmp_path: Path):
    (tmp_path / "replies.jsonl").write_text("{not json\n{}\n")
    with pytest.raises(RunError, match="line 1"):
        client(server, tmp_path)


@pytest.mark.parametrize("row", ["{}", '{"key": 3}'])
def test_a_row_of_another_kind_is_passed_over(server: LLMServer, tmp_path: Path, row: str):
    (tmp_path / "replies.jsonl").write_text(row + "\n")
    with client(server, tmp_path) as asked:
        assert word(asked.ask(question("a"))) == "yes"


def test_a_cached_reply_that_no_longer_fits_is_asked_again(server: LLMServer, tmp_path: Path):
    with client(server, tmp_path) as asked:
        asked.ask(question("a"))
    path = tmp_path / "replies.jsonl"
    path.write_text(path.read_text().replace('{"word": "yes"}', '{"word": "maybe"}'))
    with client(server, tmp_path) as asked:
        assert word(asked.ask(question("a"))) == "yes"
    assert len(server.requests) == 2


def test_a_full_disk_stops_with_one_line(server: LLMServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with client(server, tmp_path) as asked:
        asked.ask(question("a"))
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            asked.ask(question("b"))
        monkeypatch.undo()
    assert len(rows(tmp_path)) == 1


def test_threads_write_whole_lines_and_processes_share_a_cache(server: LLMServer, tmp_path: Path):
    asks = [question(f"{n}") for n in range(60)]
    with client(server, tmp_path, concurrency=16) as one, client(server, tmp_path, concurrency=16) as two:
        workers = [threading.Thread(target=c.each, args=(c.ask, asks)) for c in (one, two)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len({row["key"] for row in rows(tmp_path)}) == 60
    sent = len(server.requests)
    with client(server, tmp_path) as asked:
        assert len(asked.each(asked.ask, asks)) == 60
    assert len(server.requests) == sent


def test_a_killed_job_goes_on_with_what_is_missing(server: LLMServer, tmp_path: Path):
    child = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, sys.argv[3])
        from pathlib import Path
        from hneurons.answers.endpoint import Endpoint
        from hneurons.answers.llm import LLMClient
        from test_llm import question
        asked = LLMClient(Endpoint(model="m", base_url=sys.argv[1], concurrency=2), Path(sys.argv[2]))
        asked.each(asked.ask, [question(str(n)) for n in range(12)])
        """
    )
    reached = threading.Event()

    def script(_: dict[str, Any], number: int):
        if number < 6:
            return Say(YES)
        reached.set()
        return Hang()

    server.script = script
    process = subprocess.Popen(
        [sys.executable, "-c", child, server.url, str(tmp_path), str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert reached.wait(60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = len(rows(tmp_path))
    assert 4 <= kept <= 6
    time.sleep(0.3)  # a request may be on its way
    server.script, before = Say(YES), len(server.requests)
    with client(server, tmp_path) as asked:
        replies = asked.each(asked.ask, [question(str(n)) for n in range(12)])
    assert [word(reply) for reply in replies] == ["yes"] * 12
    assert len(server.requests) - before == 12 - kept


# -- many at a time


def test_concurrency_is_bounded_and_used_and_order_kept(server: LLMServer, tmp_path: Path):
    first = threading.Barrier(3)

    def script(request: dict[str, Any], number: int):
        text = request["messages"][0]["content"]
        if number < 3:
            first.wait(20)
        return Say('{"word": "%s"}' % ("yes" if int(text) % 3 else "no"), seconds=0.05 if number % 2 else 0.02)

    server.script = script
    with client(server, tmp_path, concurrency=3) as asked:
        replies = asked.each(asked.ask, [question(str(n)) for n in range(20)])
    assert [word(reply) for reply in replies] == ["yes" if n % 3 else "no" for n in range(20)]
    assert server.most_at_once == 3


def test_equal_ones_are_asked_once(server: LLMServer, tmp_path: Path):
    with client(server, tmp_path) as asked:
        assert len(asked.each(asked.ask, [question("a"), question("b")] * 10)) == 20
    assert len(server.requests) == 2


def test_the_first_failure_ends_a_batch_and_keeps_what_was_answered(server: LLMServer, tmp_path: Path):
    server.script = lambda _, number: Fail(401) if number == 5 else Say(YES, seconds=0.01)
    with client(server, tmp_path, concurrency=2) as asked, pytest.raises(JudgeError, match="401"):
        asked.each(asked.ask, [question(str(n)) for n in range(200)])
    assert len(server.requests) < 20
    assert len(rows(tmp_path)) == len(server.requests) - 1


def test_max_calls_stops_before_the_next_request(server: LLMServer, tmp_path: Path):
    with client(server, tmp_path, max_calls=3, concurrency=2) as asked:
        with pytest.raises(JudgeError, match="limit of 3 requests to m"):
            asked.each(asked.ask, [question(str(n)) for n in range(10)])
        kept = [n for n in range(10) if asked.estimate([question(str(n))]).cached]
        assert len(kept) == 3
        assert word(asked.ask(question(str(kept[0])))) == "yes"
    assert len(server.requests) == 3


# -- the estimate


def test_an_estimate_asks_nothing_and_knows_what_it_cannot_know(server: LLMServer, tmp_path: Path):
    with client(server, tmp_path) as asked:
        estimate = asked.estimate([question("x" * 400), question("y" * 400), question("x" * 400)])
    assert estimate == Estimate(2, 0, 200, 24, None, None)
    assert str(estimate) == (
        "2 requests (0 more in the cache), about 200 + 24 tokens, cost unknown (no prices given), time unknown"
    )
    assert server.requests == []
    assert json.loads(json.dumps(estimate.to_json()))["cost"] is None


def test_a_probe_measures_tokens_and_time_and_its_answers_are_kept(server: LLMServer, tmp_path: Path):
    server.script = Say(YES, seconds=0.1)
    asks = [question(f"{n:03}" + "x" * 47) for n in range(43)]  # 50 bytes, 100 tokens each says the server
    with client(server, tmp_path, concurrency=4, prompt_price=10, completion_price=1000) as asked:
        estimate = asked.estimate(asks, probe=3)
        assert len(server.requests) == 3
        assert (estimate.calls, estimate.cached) == (40, 3)
        assert (estimate.prompt_tokens, estimate.completion_tokens) == (4000, 280)
        assert estimate.cost == pytest.approx((4000 * 10 + 280 * 1000) / 1e6)
        assert estimate.seconds is not None
        assert estimate.seconds >= 0.1 * 40 / 4
        assert "cost about 0.32" in str(estimate)
        asked.each(asked.ask, asks)
        assert len(server.requests) == 43
        done = asked.estimate(asks, probe=3)
    assert (done.calls, done.cached, done.prompt_tokens, done.cost, done.seconds) == (0, 43, 0, 0.0, 0.0)
    assert len(server.requests) == 43


def test_other_models_replies_are_no_measure(server: LLMServer, tmp_path: Path):
    with client(server, tmp_path, model="other") as asked:
        asked.ask(question("a"))
    with client(server, tmp_path) as asked:
        assert asked.estimate([question("a")]).seconds is None


# -- the key


def everything(root: logging.Logger) -> Iterator[logging.Logger]:
    yield root
    yield from (each for each in logging.Logger.manager.loggerDict.values() if isinstance(each, logging.Logger))


@pytest.mark.parametrize(
    "behaviour",
    [
        Fail(500, f"your key {KEY} made me fail"),
        Fail(500, "x" * 190 + KEY),
        Fail(400, f"Authorization: Bearer {KEY}"),
        Fail(401, f"Incorrect API key provided: {KEY}"),
        Fail(404, f"no model for {KEY}"),
        Fail(429, KEY),
        Say(json.dumps({"word": KEY})),
        Say(YES),
    ],
    ids=lambda b: type(b).__name__ + str(getattr(b, "status", "")),
)
def test_the_key_is_in_no_file_log_repr_or_traceback(
    server: LLMServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], behaviour: Fail | Say
):
    server.script = behaviour
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    levels = {each: each.level for each in everything(logging.getLogger())}
    for each in levels:
        each.setLevel(logging.DEBUG)
    logging.getLogger().addHandler(handler)
    shown: list[str] = []
    try:
        with client(server, tmp_path, retries=1) as asked:
            try:
                shown.append(repr(asked.each(asked.ask, [question("a"), Ask(("b",), Other)])))
            except JudgeError as error:
                shown.append(repr(error))
                shown += traceback.format_exception(error)
                frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
                shown += [repr(f.f_locals) for f in frames if f.f_code.co_filename != __file__]
                chain: BaseException | None = error
                while chain:
                    shown.append(repr(chain))
                    chain = chain.__cause__ or chain.__context__
            shown += [repr(asked), str(asked.where), repr(vars(asked)), repr(vars(asked._chat)), str(asked.counts)]
            shown.append(repr(asked.where.key()))
    finally:
        logging.getLogger().removeHandler(handler)
        for each, level in levels.items():
            each.setLevel(level)
    captured = capfd.readouterr()
    files = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    # The prompt may tell the server what it said; nothing else may hold the key or the beginning of it.
    for text in (*shown, files, captured.out, captured.err):
        assert KEY[:10] not in text
    assert KEY not in log.getvalue()
    assert log.getvalue()  # something was logged
    assert KEY in str(server.headers)  # and the key was sent


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("OTHER_KEY", "  ")
    where = endpoint(model="m", base_url="https://judge.example/v1", key_env="OTHER_KEY")
    with pytest.raises(JudgeError, match=r"OTHER_KEY is not set, and judge\.example needs an API key"):
        where.key()


@pytest.mark.parametrize("value", ["two words", "sk-’quoted’", 'a"b', "a\nb"])
def test_what_cannot_be_a_key_is_not_shown(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(JudgeError) as caught:
        endpoint(model="m").key()
    assert value not in str(caught.value)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "127.8.0.1", "[::1]", "0.0.0.0", "a.localhost"])
def test_this_machine_needs_no_key(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert endpoint(model="m", base_url=f"http://{name}:8000/v1").key() is None


@pytest.mark.parametrize("name", ["localhost.example", "10.0.0.1", "judge", "1127.0.0.1"])
def test_other_machines_do(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(JudgeError):
        endpoint(model="m", base_url=f"http://{name}:8000/v1").key()


def test_without_a_key_a_dummy_is_sent_and_nothing_redacted(
    server: LLMServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OPENAI_API_KEY")
    server.script = Fail(418, "none of that")
    with client(server, tmp_path) as asked, pytest.raises(JudgeError, match="none of that"):
        asked.ask(question("a"))
    assert "Bearer none" in server.headers[0].values()


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": f"https://me:{KEY}@judge.example/v1"},
        {"base_url": f"https://judge.example/v1?key={KEY}"},
        {"base_url": f"https://judge.example:{KEY}/v1"},
        {"base_url": "judge.example/v1"},
        {"base_url": "ftp://judge.example"},
        {"base_url": "http://[::1/v1"},
        {"model": ""},
        {"concurrency": 0},
        {"timeout": float("nan")},
        {"temprature": 1},
    ],
)
def test_wrong_settings_are_a_usage_error_that_repeats_no_secret(settings: dict[str, Any]):
    with pytest.raises(UsageError, match=next(iter(settings))) as caught:
        endpoint(**{"model": "m", **settings})
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"hneurons\[judge\]"):
        LLMClient(endpoint(model="m"), tmp_path)


def test_a_proxy_in_the_environment_does_not_come_between(
    server: LLMServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with client(server, tmp_path, retries=0) as asked:
        assert word(asked.ask(question("a"))) == "yes"
