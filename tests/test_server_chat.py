"""Chat completions as the official client sees them, against a server on this machine."""

from __future__ import annotations

import math

import openai
import pytest

from fake_service import FakeService
from server_tools import COUNT, SAY, Live, chunks_of, live, official_client, plain_server  # noqa: F401

NAME = "fake-135m"


# -- what OpenAI's API has ------------------------------------------------------------------------------


def test_a_whole_response(client: openai.OpenAI):
    reply = client.chat.completions.create(model=NAME, messages=SAY)
    assert reply.object == "chat.completion"
    assert reply.model == NAME
    choice = reply.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "The capital of Australia is Sydney.")
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 10
    assert reply.usage.completion_tokens == 8
    assert reply.usage.total_tokens == 18


def test_a_stream_writes_what_the_whole_response_says(client: openai.OpenAI):
    whole = client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "parrot"}])
    stream = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "parrot"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert "🦜" in (whole.choices[0].message.content or "")
    assert not any("\ufffd" in (delta.content or "") for delta in deltas)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_has_no_usage_unless_it_is_asked_for(server: Live):
    response = server.post({"model": NAME, "messages": SAY, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert all("usage" not in chunk and len(chunk["choices"]) == 1 for chunk in chunks_of(response))


def test_choices_have_seeds_of_their_own(client: openai.OpenAI, server: Live):
    def drawn(**options: int) -> list[str | None]:
        say = [{"role": "user", "content": "hello"}]
        reply = client.chat.completions.create(model=NAME, messages=say, **options)
        return [choice.message.content for choice in reply.choices]

    three = drawn(n=3, seed=7)
    assert len(set(three)) == 3
    assert three == drawn(n=3, seed=7) == [*drawn(seed=7), *drawn(seed=8), *drawn(seed=9)]
    assert drawn(seed=-1) == drawn(seed=-1)  # generators that refuse negative seeds never see one
    assert all((job.seed or 0) >= 0 for job in server.service.jobs)


def test_a_prompt_counts_once_however_many_choices(client: openai.OpenAI):
    one = client.chat.completions.create(model=NAME, messages=SAY).usage
    four = client.chat.completions.create(model=NAME, messages=SAY, n=4).usage
    assert one is not None
    assert four is not None
    assert four.prompt_tokens == one.prompt_tokens
    assert four.completion_tokens == 4 * one.completion_tokens


def test_choices_of_a_stream_are_told_apart(client: openai.OpenAI):
    said: dict[int, str] = {0: "", 1: ""}
    ends: list[int] = []
    say = [{"role": "user", "content": "hello"}]
    for chunk in client.chat.completions.create(model=NAME, messages=say, n=2, seed=3, stream=True):
        choice = chunk.choices[0]
        said[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    whole = client.chat.completions.create(model=NAME, messages=say, n=2, seed=3)
    assert [said[0], said[1]] == [choice.message.content for choice in whole.choices]
    assert sorted(ends) == [0, 1]


@pytest.mark.parametrize("stop", [" Austr", [" Nowhere", " is Syd"], ["The"]])
def test_stop_strings_end_the_response_and_are_no_part_of_it(client: openai.OpenAI, stop: str | list[str]):
    reply = client.chat.completions.create(model=NAME, messages=SAY, stop=stop)
    text = reply.choices[0].message.content or ""
    first = [stop] if isinstance(stop, str) else stop
    assert text == "The capital of Australia is Sydney.".split(next(s for s in first if s != " Nowhere"))[0]
    assert reply.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(model=NAME, messages=SAY, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length_ends_a_response(client: openai.OpenAI, name: str):
    reply = client.chat.completions.create(model=NAME, messages=COUNT, **{name: 5})
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].message.content == "1 2 3 4 5"
    assert reply.usage.completion_tokens == 5


def test_logprobs_of_each_token_and_its_alternatives(client: openai.OpenAI):
    say = [{"role": "user", "content": "parrot"}]
    reply = client.chat.completions.create(model=NAME, messages=say, logprobs=True, top_logprobs=3)
    assert reply.choices[0].logprobs is not None
    content = reply.choices[0].logprobs.content or []
    assert [token.token for token in content][:2] == ["The", " parrot"]
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token
        assert token.bytes == (None if "\ufffd" in token.token else list(token.token.encode()))
    assert any("\ufffd" in token.token for token in content)  # halves of the parrot
    streamed = client.chat.completions.create(model=NAME, messages=say, logprobs=True, top_logprobs=3, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in streamed]
    assert [token for part in parts if part for token in part.content or []] == content


def test_logprobs_without_alternatives(client: openai.OpenAI):
    reply = client.chat.completions.create(model=NAME, messages=SAY, logprobs=True)
    assert reply.choices[0].logprobs is not None
    assert all(token.top_logprobs == [] for token in reply.choices[0].logprobs.content or [])


def test_messages_may_have_parts_and_developer_is_system(client: openai.OpenAI, server: Live):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    say = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": parts},
    ]
    client.chat.completions.create(model=NAME, messages=say)
    turns = server.service.jobs[-1].prompt
    assert [(turn.role, turn.content) for turn in turns if not isinstance(turn, str)] == [
        ("system", "Be short."), ("user", "x"), ("assistant", "y"), ("user", "one\ntwo"),
    ]  # fmt: skip


def test_a_reply_can_be_sent_back_as_it_came(client: openai.OpenAI):
    reply = client.chat.completions.create(model=NAME, messages=SAY)
    again = [*SAY, reply.choices[0].message.model_dump(), {"role": "user", "content": "Are you sure?"}]
    answer = client.chat.completions.create(model=NAME, messages=again)
    assert answer.choices[0].message.content == "You are right, I was wrong."


def test_sampling_reaches_the_service(client: openai.OpenAI, server: Live):
    client.chat.completions.create(
        model=NAME, messages=SAY, temperature=0.3, top_p=0.8, max_tokens=9, stop="\n", extra_body={"top_k": 40}
    )
    job = server.service.jobs[-1]
    assert (job.temperature, job.top_p, job.top_k, job.max_tokens, job.stop) == (0.3, 0.8, 40, 9, ("\n",))
    client.chat.completions.create(model=NAME, messages=SAY, top_p=0)
    assert (server.service.jobs[-1].temperature, server.service.jobs[-1].top_p) == (0, 1)
    client.chat.completions.create(model=NAME, messages=SAY)
    job = server.service.jobs[-1]
    assert (job.temperature, job.top_p, job.top_k, job.max_tokens, job.seed) == (1, 1, 0, None, None)


def test_what_changes_nothing_is_accepted(client: openai.OpenAI):
    reply = client.chat.completions.create(
        model=NAME, messages=SAY, user="u", metadata={"a": "b"}, store=False, service_tier="auto",
        presence_penalty=0, frequency_penalty=0.0, logit_bias={}, response_format={"type": "text"}, tools=[],
        modalities=["text"], tool_choice="none", parallel_tool_calls=True, seed=None, stop=None, n=None,
    )  # fmt: skip
    assert reply.choices[0].message.content


def test_the_models_are_positions_of_the_dial(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == [NAME, f"{NAME}@0", f"{NAME}@2"]
    assert client.models.retrieve(f"{NAME}@0.5").id == f"{NAME}@0.5"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


# -- the extension --------------------------------------------------------------------------------------


def test_each_choice_has_a_reading(client: openai.OpenAI, server: Live):
    choice = client.chat.completions.create(model=NAME, messages=SAY).choices[0]
    read = choice.model_extra["hneurons"]
    assert (read["alpha"], read["flagged"], read["threshold"], read["action"]) == (1, True, 0.5, None)
    assert read["risk"] > 0.8 > read["response_risk"]
    assert read["answer"] == {"start": 28, "end": 34, "text": "Sydney"}
    tokens = read["tokens"]
    assert "".join(token["text"] for token in tokens) == choice.message.content
    assert max(tokens, key=lambda token: token["risk"])["text"] == " Sydney"
    assert tokens[-1]["running"] == read["response_risk"]
    logits = [math.log(token["risk"] / (1 - token["risk"])) for token in tokens[:3]]
    assert math.isclose(tokens[2]["running"], 1 / (1 + math.exp(-sum(logits) / 3)), abs_tol=1e-5)
    known = {(neuron.layer, neuron.index) for neuron in server.service.card.neurons}
    for top in (read["top"], *(token["top"] for token in tokens)):
        assert {(each["layer"], each["index"]) for each in top} <= known
        assert [abs(each["value"]) for each in top] == sorted((abs(each["value"]) for each in top), reverse=True)


def test_a_stream_tells_each_risk_one_step_after_its_token(server: Live):
    whole = server.post({"model": NAME, "messages": SAY}).json()["choices"][0]["hneurons"]
    chunks = [c["choices"][0] for c in chunks_of(server.post({"model": NAME, "messages": SAY, "stream": True}))]
    seen: list[int] = []
    risks: dict[int, float] = {}
    for chunk in chunks[1:-1]:
        for risk in chunk["hneurons"]["risks"]:
            assert risk["index"] in seen
            risks[risk["index"]] = risk["risk"]
        seen += [token["index"] for token in chunk["hneurons"]["tokens"]]
    assert seen == list(range(len(whole["tokens"])))
    assert [risks[i] for i in seen] == [token["risk"] for token in whole["tokens"]]
    assert chunks[-2]["delta"] == {}  # the last token's risk comes when all is said
    assert chunks[-1]["finish_reason"] == "stop"
    assert chunks[-1]["hneurons"] == {key: value for key, value in whole.items() if key != "tokens"}


@pytest.mark.parametrize(
    ("model", "extension", "alpha"),
    [
        (NAME, {}, 1), (f"{NAME}@0", {}, 0), (f"{NAME}@2", {}, 2), (f"{NAME}@0.25", {}, 0.25),
        (NAME, {"alpha": 3}, 3), (f"{NAME}@0", {"alpha": 0}, 0), (f"{NAME}@100", {"alpha": 100.0}, 100),
    ],
)  # fmt: skip
def test_the_dial(client: openai.OpenAI, server: Live, model: str, extension: dict[str, float], alpha: float):
    say = [{"role": "user", "content": "hello there"}]
    reply = client.chat.completions.create(model=model, messages=say, extra_body={"hneurons": extension})
    assert f"Alpha is {alpha:g}." in (reply.choices[0].message.content or "")
    assert reply.choices[0].model_extra["hneurons"]["alpha"] == alpha
    assert reply.model == model
    assert server.service.jobs[-1].alpha == alpha


def test_a_name_and_an_alpha_that_contradict(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=f"{NAME}@0", messages=SAY, extra_body={"hneurons": {"alpha": 1}})
    assert caught.value.param == "hneurons.alpha"


@pytest.mark.parametrize("model", ["gpt-9", f"{NAME}@", f"{NAME}@-1", f"{NAME}@nan", f"{NAME}@101", f"{NAME}@1e1", ""])
def test_unknown_models(client: openai.OpenAI, model: str):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=model, messages=SAY)
    assert caught.value.code == "model_not_found"


def test_the_plain_name_may_stand_for_another_alpha():
    with live(FakeService(), alpha=0.5) as server:
        assert server.post({"model": NAME, "messages": SAY}).json()["choices"][0]["hneurons"]["alpha"] == 0.5
        assert server.post({"model": f"{NAME}@1", "messages": SAY}).json()["choices"][0]["hneurons"]["alpha"] == 1
        body = {"model": NAME, "messages": SAY, "hneurons": {"alpha": 2}}
        assert server.post(body).json()["choices"][0]["hneurons"]["alpha"] == 2


def test_names_with_slashes_and_at_signs():
    with live(FakeService(name="acme/tiny@v2")) as server:
        for model, alpha in (("acme/tiny@v2", 1), ("acme/tiny@v2@0", 0)):
            reply = server.post({"model": model, "messages": SAY}).json()
            assert reply["choices"][0]["hneurons"]["alpha"] == alpha
        assert server.post({"model": "acme/tiny", "messages": SAY}).status_code == 404
        with server.openai() as client:
            assert client.models.retrieve("acme/tiny@v2@2").id == "acme/tiny@v2@2"


def test_without_the_monitor(server: Live):
    body = {"model": NAME, "messages": SAY, "hneurons": {"monitor": False}}
    read = server.post(body).json()["choices"][0]["hneurons"]
    assert (read["alpha"], read["risk"], read["flagged"], read["top"]) == (1, None, None, [])
    assert {token["risk"] for token in read["tokens"]} == {None}
    chunks = chunks_of(server.post(body | {"stream": True}))
    assert all("hneurons" not in chunk["choices"][0] for chunk in chunks[:-1])
    assert all(chunk["choices"][0]["delta"] for chunk in chunks[:-1])  # nothing is sent that says nothing


def test_policies(server: Live):
    def reply(content: str = SAY[0]["content"], **policy: object) -> tuple[str, dict[str, object]]:
        body = {"model": NAME, "messages": [{"role": "user", "content": content}], "hneurons": {"policy": policy}}
        choice = server.post(body).json()["choices"][0]
        streamed = chunks_of(server.post(body | {"stream": True}))
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed)
        assert text == choice["message"]["content"]
        summary = {key: value for key, value in choice["hneurons"].items() if key != "tokens"}
        assert streamed[-1]["choices"][0]["hneurons"] == summary
        return text, choice["hneurons"]

    text, read = reply(action="warn")
    assert (text, read["action"]) == ("The capital of Australia is Sydney.", "warn")
    text, read = reply(action="abstain", text="No idea.")
    assert (text, read["action"], read["tokens"], read["answer"]) == ("No idea.", "abstain", [], None)
    assert read["flagged"] is True
    text, read = reply(action="regenerate", alpha=0)
    assert (text, read["action"], read["alpha"]) == ("The capital of Australia is Canberra.", "regenerate", 0)
    text, read = reply(action="stop", threshold=0.35)
    assert (text, read["action"]) == ("The capital of Australia is Sydney", "stop")
    text, read = reply("What is the capital of France?", action="abstain")
    assert (text, read["action"]) == ("The capital of France is Paris.", None)
    text, read = reply(action="abstain", threshold=0.99)
    assert (text, read["action"], read["flagged"]) == ("The capital of Australia is Sydney.", None, False)


def test_the_card(server: Live):
    with server.http() as client:
        card = client.get("/hneurons/card").json()
    own = server.service.card
    assert (card["name"], card["layers"], card["total"]) == (NAME, 30, 30 * 1536)
    assert card["widths"] == [1536] * 30
    assert card["h_neurons"] == len(own.h_neurons)
    assert [neuron["weight"] for neuron in card["neurons"]] == own.weights.tolist()
    assert all(neuron["column"] == neuron["index"] for neuron in card["neurons"])
    assert card["threshold"] == 0.5
    assert card["guarantee"] is None
    assert card["metrics"] == own.metrics
    assert card["verdict"] == "On held-out questions of starter their AUROC was 0.78 [0.72, 0.84]; 0.5 is chance."
    assert card["limits"]["context"] == 512


def test_the_card_of_a_mixture():
    service = FakeService()
    model = service.card.model.model_dump() | {
        "layers": 2,
        "width": [8, 20],
        "neurons": 28,
        "experts": [0, 4],
        "shared": [8, 8],
    }
    ids = [(0, None, 5), (1, None, 5), (1, 0, 2), (1, 3, 1)]
    neurons = [{"layer": layer, "expert": expert, "index": index, "weight": 1.0} for layer, expert, index in ids]
    service.card = type(service.card).model_validate(service.card.model_dump() | {"model": model, "neurons": neurons})
    with live(service) as server, server.http() as client:
        card = client.get("/hneurons/card").json()
    assert [neuron["column"] for neuron in card["neurons"]] == [5, 5, 8 + 2, 8 + 3 * 3 + 1]
