from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from completions_server import CompletionsServer, Reply, completion, refusal
from hneurons.answers.engine import NONSENSE, OtherEngine, Request, Sampling, seed_of
from hneurons.answers.openai import RETOKENISED, OpenAIEngine
from hneurons.errors import ServiceError, UsageError
from hneurons.models.outline import Outline, load_outline
from hneurons.types import Question

pytest.importorskip("openai", reason="needs the extra `judge`")
ASKED = [Request(Question(name, f"Who is {name}?", ("x",)), k) for name in ("a", "b") for k in range(3)]
SHORT = Sampling(max_new_tokens=6, seed=3)
PARIS = "Paris, in Vienna"
KEY = "sk-Zq83-very-secret_0417"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Outline:
    return load_outline(tiny.save(tmp_path_factory.mktemp("models") / "tiny-llama"), device="cpu")


@pytest.fixture
def server(model: Outline) -> Iterator[CompletionsServer]:
    """Says Paris, with token ids as vLLM does."""
    with CompletionsServer(lambda _: with_ids(model)) as running:
        yield running


def with_ids(model: Outline, text: str = PARIS) -> Reply:
    ids = [*model.tokenizer.encode(text, add_special_tokens=False), 2]
    return completion(text, [-0.25 - i for i in range(len(ids))], ids=ids)


MADE: list[OpenAIEngine] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Whatever engines a test makes."""
    yield
    while MADE:
        MADE.pop().close()


def engine(
    model: Outline, server: CompletionsServer, served: str | None = None, *, dial: bool = False, **options: Any
) -> OpenAIEngine:
    MADE.append(OpenAIEngine(model, server.url, served, {"retries": 1, "timeout": 5, **options}, dial=dial))
    return MADE[-1]


def texts_alone(text: str, logprobs: list[float] | None) -> Any:
    """A server that refuses token ids, and whatever isn't OpenAI's or top_k."""

    def say(body: dict[str, Any]) -> Reply:
        known = isinstance(body["prompt"], str) and "return_token_ids" not in body and "stop_token_ids" not in body
        return completion(text, logprobs) if known else refusal(422, "prompt must be a string")

    return say


# -- what is asked and what comes back ----------------------------------------------------------------


def test_a_request_a_response_with_prompt_ids_and_a_seed_of_its_own(model: Outline, server: CompletionsServer):
    made = engine(model, server)
    assert isinstance(made, OtherEngine)
    responses = made.sample(ASKED, SHORT)
    assert [(r.question_id, r.sample) for r in responses] == [(r.question.id, r.sample) for r in ASKED]
    by_seed = {body["seed"]: body for body in server.requests}
    assert len(by_seed) == len(server.requests) == len(ASKED)
    for request in ASKED:
        body = by_seed[seed_of(SHORT, request)]
        assert body["prompt"] == model.prompt_ids(request.said)
        told = {key: body[key] for key in ("model", "max_tokens", "temperature", "top_p", "top_k", "logprobs")}
        assert told == {
            "model": "tiny-llama", "max_tokens": 6, "temperature": 1.0, "top_p": 0.9, "top_k": 50, "logprobs": 1,
        }  # fmt: skip
        assert (body["stop_token_ids"], body["repetition_penalty"]) == ([2], 1.0)
        assert "stop" not in body
        assert body["vllm_xargs"] == {"hneurons": '{"alpha": 1.0}'}  # whatever the server's default is


def test_tokens_and_logprobs_of_the_server_are_kept(model: Outline, server: CompletionsServer):
    ids = model.tokenizer.encode(PARIS, add_special_tokens=False)
    made = engine(model, server)
    (response,) = made.sample(ASKED[:1], SHORT)
    assert (response.text, response.token_ids, response.finish_reason) == (PARIS, (*ids, 2), "stop")
    assert response.logprobs == tuple(-0.25 - i for i in range(len(ids) + 1))
    assert RETOKENISED not in made.notes


def test_the_token_limit_is_a_length(model: Outline, server: CompletionsServer):
    ids = model.tokenizer.encode("Paris", add_special_tokens=False)
    server.say = lambda _: completion("Paris", [-0.5] * len(ids), "length", ids)
    assert engine(model, server).sample(ASKED[:1], SHORT)[0].finish_reason == "length"


def test_a_base_model_stops_at_its_newline(tmp_path: Path, server: CompletionsServer):
    base = load_outline(tiny.save(tmp_path / "base", chat=False), device="cpu")
    ids = base.tokenizer.encode("Paris\n", add_special_tokens=False)
    server.say = lambda _: completion("Paris", [-0.5] * len(ids), ids=ids)
    (response,) = engine(base, server, "tiny-llama").sample(ASKED[:1], SHORT)
    assert (response.text, response.finish_reason) == ("Paris", "stop")
    assert len(response.token_ids) == len(response.logprobs) == len(ids) - 1
    assert server.requests[0]["stop"] == ["\n"]


def test_no_more_requests_at_once_than_wanted(model: Outline, server: CompletionsServer):
    many = [Request(Question(f"q{i}", f"Who is {i}?", ("x",)), 0) for i in range(24)]
    engine(model, server, concurrency=3).sample(many, SHORT)
    assert 2 <= server.most_at_once <= 3


def test_a_server_that_fails_once_is_asked_again(model: Outline, server: CompletionsServer):
    answers = iter([refusal(503)])
    server.say = lambda _: next(answers, None) or with_ids(model)
    assert engine(model, server).sample(ASKED[:1], SHORT)[0].text == PARIS
    assert len(server.requests) == 2


def test_alphas_go_out_only_where_the_plugin_is_said_to_be(model: Outline, server: CompletionsServer):
    turned = [Request(ASKED[0].question, 0, alpha=0.5)]
    with pytest.raises(UsageError, match="turns no neurons"):
        engine(model, server).sample(turned, SHORT)
    assert not server.requests
    plain = server.say
    server.say = lambda body: (
        refusal(400, "hneurons is no JSON") if NONSENSE in str(body["vllm_xargs"]) else plain(body)
    )
    engine(model, server, dial=True).sample(turned, SHORT)
    assert server.requests[1]["vllm_xargs"] == {"hneurons": '{"alpha": 0.5}'}


def test_a_server_without_the_plugin_turns_nothing(model: Outline, server: CompletionsServer):
    """vLLM ignores what it doesn't know: every alpha would answer as 1."""
    turned = [Request(ASKED[0].question, 0, alpha=0.5)]
    plain = server.say
    for say in (plain, lambda _: refusal(400, "unknown argument vllm_xargs")):
        server.say = say
        with pytest.raises(ServiceError, match=r"no plugin.*HNEURONS_CARD"):
            engine(model, server, dial=True).sample(turned, SHORT)


def test_a_response_that_was_broken_off_is_none(model: Outline, server: CompletionsServer):
    """As by vLLM when it is stopped."""
    server.say = lambda _: completion("", [], "abort", ids=[])
    with pytest.raises(ServiceError, match=r"broken off after 0 tokens .abort."):
        engine(model, server).sample(ASKED[:1], SHORT)


def test_a_thinking_budget_is_refused(model: Outline, server: CompletionsServer):
    with pytest.raises(UsageError, match="thinking"):
        engine(model, server).sample(ASKED, Sampling(thinking=9))


# -- servers that return no ids -----------------------------------------------------------------------


def test_a_server_of_texts_gets_texts_and_its_responses_are_tokenised_here(model: Outline, server: CompletionsServer):
    ids = model.tokenizer.encode(PARIS, add_special_tokens=False)
    server.say = texts_alone(PARIS, [-0.5 - i for i in range(len(ids) + 1)])
    made = engine(model, server)
    responses = made.sample(ASKED[:1], SHORT)
    assert responses[0].token_ids == (*ids, 2)
    assert responses[0].logprobs == tuple(-0.5 - i for i in range(len(ids) + 1))
    assert made.notes.count(RETOKENISED) == 1
    assert server.requests[-1]["prompt"] == model.prompt(ASKED[0].said)
    assert server.requests[-1]["top_k"] == 50
    assert "vllm_xargs" not in server.requests[-1]
    before = len(server.requests)
    made.sample(ASKED[1:2], SHORT)
    assert len(server.requests) == before + 1  # it isn't tried with ids again


def test_of_a_server_of_texts_the_name_must_tell_the_model(model: Outline, server: CompletionsServer):
    """Ids of another model's tokens may be refused just as ids by a server that takes texts alone."""
    ids = model.tokenizer.encode(PARIS, add_special_tokens=False)
    server.say = texts_alone(PARIS, [-0.5] * (len(ids) + 1))
    server.names = ["another"]
    with pytest.raises(ServiceError, match=r"serves 'another'.*--served-model another"):
        engine(model, server).sample(ASKED[:1], SHORT)
    assert engine(model, server, "another").sample(ASKED[:1], SHORT)[0].text == PARIS


def test_log_probabilities_as_llama_cpp_has_them(model: Outline, server: CompletionsServer):
    ids = model.tokenizer.encode(PARIS, add_special_tokens=False)
    tokens = [{"id": 1, "token": "x", "bytes": [120], "logprob": -0.5 - i, "top_logprobs": []} for i in range(len(ids))]
    choice = {"index": 0, "text": PARIS, "logprobs": {"content": tokens}, "finish_reason": "length"}
    server.say = lambda _: (200, {"object": "text_completion", "model": "m", "choices": [choice]})
    (response,) = engine(model, server).sample(ASKED[:1], SHORT)
    assert response.logprobs == tuple(-0.5 - i for i in range(len(ids)))


def test_a_server_that_refuses_ids_must_have_the_name_whatever_it_tells(model: Outline, server: CompletionsServer):
    """It may have refused them because they are another model's."""
    ids = [*model.tokenizer.encode(PARIS, add_special_tokens=False), 2]
    told = {"content": [{"id": token, "logprob": -0.5} for token in ids]}
    reply = {"choices": [{"text": PARIS, "logprobs": told, "finish_reason": "stop"}], "usage": {"completion_tokens": 0}}
    server.say = lambda body: (200, reply) if isinstance(body["prompt"], str) else refusal(400, "token out of range")
    assert engine(model, server).sample(ASKED[:1], SHORT)[0].text == PARIS
    server.names = ["another"]
    with pytest.raises(ServiceError, match=r"serves 'another'.*--served-model another"):
        engine(model, server).sample(ASKED[:1], SHORT)


def test_a_server_that_takes_ids_and_tells_none_must_have_the_name_too(model: Outline, server: CompletionsServer):
    """Another model writes something to any ids."""
    server.say = lambda _: completion(PARIS, [-0.5])
    assert engine(model, server).sample(ASKED[:1], SHORT)[0].text == PARIS
    server.names = ["another"]
    with pytest.raises(ServiceError, match=r"serves 'another'.*--served-model another"):
        engine(model, server).sample(ASKED[:1], SHORT)
    assert engine(model, server, "another").sample(ASKED[:1], SHORT)[0].text == PARIS


def test_ids_that_llama_cpp_tells_among_the_log_probabilities_are_kept(model: Outline, server: CompletionsServer):
    ids = [*model.tokenizer.encode(PARIS, add_special_tokens=False), 2]
    content = [{"id": token, "token": "x", "logprob": -0.5 - i} for i, token in enumerate(ids)]
    choice = {"index": 0, "text": PARIS, "logprobs": {"content": content}, "finish_reason": "stop"}
    for counted, whole in ((len(ids), True), (len(ids) + 1, False)):  # it leaves out tokens that write part of a letter
        reply = {"choices": [choice], "usage": {"completion_tokens": counted}}
        server.say = lambda _, reply=reply: (200, reply)
        made = engine(model, server)
        (response,) = made.sample(ASKED[:1], SHORT)
        assert response.token_ids == tuple(ids)
        assert response.logprobs == tuple(-0.5 - i for i in range(len(ids)))
        assert (RETOKENISED not in made.notes) is whole


def test_tokens_cut_otherwise_keep_the_mean(model: Outline, server: CompletionsServer):
    server.say = texts_alone(PARIS, [-1.0, -3.0])
    (response,) = engine(model, server).sample(ASKED[:1], SHORT)
    assert len(response.token_ids) > 2
    assert set(response.logprobs) == {-2.0}


def test_a_text_that_the_server_would_read_as_other_tokens_is_refused(
    model: Outline, server: CompletionsServer, monkeypatch: pytest.MonkeyPatch
):
    server.say = texts_alone(PARIS, [-1.0])
    monkeypatch.setattr(type(model), "encode", lambda self, text: [7, 8])
    with pytest.raises(ServiceError, match="token ids"):
        engine(model, server).sample(ASKED[:1], SHORT)


# -- servers that can't be used -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (completion(PARIS, None), "returns no log-probabilities"),
        (completion(PARIS, []), "returns no log-probabilities"),
        (completion("Paris", [-1.0], ids=[70, 71]), "2 tokens with 1 log-probabilities"),
        (completion("Something else", [-1.0], ids=[70]), "serves another model than tiny-llama"),
        (completion("", [-1.0], ids=[50_000]), "serves another model than tiny-llama"),
        (refusal(400, "maximum context length is 64"), "maximum context length is 64"),
        (refusal(500), "failed with HTTP 500"),
        ((200, {"hello": "world"}), "no completion"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(model: Outline, server: CompletionsServer, reply: Reply, words: str):
    server.say = lambda _: reply
    with pytest.raises(ServiceError, match=words) as caught:
        engine(model, server).sample(ASKED, SHORT)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_a_server_that_does_not_answer_is_one_clear_line(model: Outline):
    with CompletionsServer(lambda _: refusal(500)) as gone:
        made = engine(model, gone, retries=0)
    with pytest.raises(ServiceError, match=r"Can't reach 127\.0\.0\.1"):
        made.sample(ASKED, SHORT)


def test_the_served_name_is_looked_up(model: Outline, server: CompletionsServer):
    server.names = ["other", "another"]
    with pytest.raises(ServiceError, match=r"no model 'tiny-llama'.*other, another") as caught:
        engine(model, server).sample(ASKED, SHORT)
    assert "--served-model" in caught.value.remedy
    engine(model, server, "another").sample(ASKED[:1], SHORT)
    assert server.requests[-1]["model"] == "another"
    server.names = ["the only one"]
    engine(model, server).sample(ASKED[:1], SHORT)
    assert server.requests[-1]["model"] == "the only one"
    with pytest.raises(ServiceError, match="no model 'mine'"):
        engine(model, server, "mine").sample(ASKED[:1], SHORT)
    again = engine(model, server)
    for _ in range(2):  # closed, it looks for the name anew
        again.sample(ASKED[:1], SHORT)
        again.close()
    server.names = None  # a server that doesn't list them is asked all the same
    engine(model, server, "mine").sample(ASKED[:1], SHORT)
    assert server.requests[-1]["model"] == "mine"


# -- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "ftp://host"}, {"base_url": "http://user:pass@host/v1"}, {"options": {"speling": 1}},
        {"options": {"concurrency": 0}}, {"options": {"max_calls": 5}}, {"options": {"temperature": 0.2}},
    ],
)  # fmt: skip
def test_a_wrong_setting_is_a_usage_error(model: Outline, settings: dict[str, Any]):
    with pytest.raises(UsageError, match=r"engines\.md") as caught:
        OpenAIEngine(model, **{"base_url": "http://localhost:1/v1", **settings})
    assert "pass" not in caught.value.problem.replace("password", "")


def test_the_key_comes_from_the_environment_and_is_in_no_error(
    model: Outline, server: CompletionsServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MY_KEY", KEY)
    server.say = lambda _: refusal(400, f"not with {KEY}")
    made = engine(model, server, key_env="MY_KEY")
    with pytest.raises(ServiceError) as caught:
        made.sample(ASKED[:1], SHORT)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value)
    assert "[key]" in str(caught.value)
    assert KEY not in repr(made.setup)
    assert made.setup == {
        "base_url": server.url, "served_model": "tiny-llama", "key_env": "MY_KEY", "args": {"retries": 1, "timeout": 5},
    }  # fmt: skip


def test_it_can_be_closed_and_used_again(model: Outline, server: CompletionsServer):
    made = engine(model, server)
    made.sample(ASKED[:1], SHORT)
    made.close()
    made.close()
    assert made.sample(ASKED[:1], SHORT)[0].text == PARIS
