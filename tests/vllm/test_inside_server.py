"""vLLM's OpenAI server with the plugin and its middleware: what clients get, and what they can't break."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from made_up import ALPHAS, QUESTIONS, TOKENS, check_same_run, greedy, prompts
from sampling import GREEDY_STUDY

import hneurons
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.openai import OpenAIEngine
from hneurons.live.monitor import Monitor
from hneurons.models.load import StudyModel
from hneurons.models.outline import load_outline
from hneurons.neurons.card import Card
from hneurons.studies.engines import Engines, open_engine
from hneurons.studies.turned import in_process


@pytest.fixture(scope="module")
def server(
    environment: dict[str, str], folder: Path, card_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", "m",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "512",
        "--kv-cache-memory-bytes", "200M", "--block-size", "32", "--max-num-seqs", "32",
        "--middleware", "hneurons.vllm.replies.Risks",
    ]  # fmt: skip
    with log.open("w") as out:
        running = subprocess.Popen(
            command, env={**environment, "HNEURONS_CARD": str(card_file)}, stdout=out, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}/v1"
    try:
        end = time.monotonic() + 200
        while True:
            assert running.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end, log.read_text()[-4000:]
            try:
                if httpx.get(f"{address}/models", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(1)
        yield address
        assert running.poll() is None, log.read_text()[-4000:]
    finally:
        running.terminate()
        running.wait(timeout=60)


def post(server: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server}/{path}", json={"model": "m", "temperature": 0.0, **body}, timeout=120)


def ask(question: str, alpha: float, **more: Any) -> dict[str, Any]:
    told = json.dumps({"alpha": alpha, "monitor": True})
    messages = [{"role": "user", "content": question}]
    return {"messages": messages, "max_tokens": 64, "vllm_xargs": {"hneurons": told}, **more}


def test_alphas_of_concurrent_clients_say_what_transformers_says(server: str, model: StudyModel, card: Card):
    pairs = [(prompt, alpha) for prompt in prompts(model) for alpha in ALPHAS]

    def one(pair: tuple[list[int], float]) -> list[int]:
        told = json.dumps({"alpha": pair[1]})
        reply = post(
            server,
            "completions",
            prompt=pair[0],
            max_tokens=TOKENS,
            return_token_ids=True,
            vllm_xargs={"hneurons": told},
        )
        assert reply.status_code == 200, reply.text
        (choice,) = reply.json()["choices"]
        assert "hneurons" not in choice
        return choice["token_ids"]

    with ThreadPoolExecutor(12) as pool:
        for _ in range(2):  # the second time prefixes are cached
            for (prompt, alpha), ids in zip(pairs, pool.map(one, pairs), strict=True):
                assert ids == greedy(model, card, alpha, prompt)


def test_the_engine_for_servers_draws_greedily_what_transformers_draws(server: str, model: StudyModel, card: Card):
    """`--engine openai`; and with its dial, as the impact study would have it."""
    asked = hneurons.load_questions("starter", limit=6, seed=0).questions
    greedy = Sampling(temperature=0.0, max_new_tokens=TOKENS)
    plain = [Request(question, 0) for question in asked]
    turned = [Request(question, 0, alpha=alpha) for question in asked for alpha in ALPHAS]
    outline = load_outline("smollm2-135m", device="cpu")
    for requests, engine in (
        (plain, OpenAIEngine(outline, server, "m")), (turned, OpenAIEngine(outline, server, dial=True))
    ):  # fmt: skip
        with in_process(model)([neuron.id for neuron in card.h_neurons]) as own_engine:
            here = own_engine.sample(requests, greedy)
        there = engine.sample(requests, greedy)
        engine.close()
        for mine, own in zip(there, here, strict=True):
            assert (mine.token_ids, mine.text, mine.finish_reason) == (own.token_ids, own.text, own.finish_reason)
            np.testing.assert_allclose(mine.logprobs, own.logprobs, atol=1e-3)
        assert not any("no token ids" in note for note in engine.notes)


def test_a_study_over_the_server_is_that_of_transformers(server: str, greedy_run: Path, tmp_path: Path):
    """`hneurons identify --engine openai`: sampled there, judged and measured here."""
    chosen = Engines("openai", base_url=server, served_model="m")
    with open_engine(chosen, "smollm2-135m", {"device": "cpu"}) as opened:
        run = hneurons.identify(opened.model, "starter", tmp_path / "run", GREEDY_STUDY, engine=opened.engine)
    assert run.manifest["settings"]["engine"] == "openai"
    check_same_run(run.path, greedy_run)


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_has_the_monitors_risks(server: str, model: StudyModel, card: Card, stream: bool):
    monitor = Monitor(model, card)
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server, api_key="none")
    pairs = [(question, alpha) for question in QUESTIONS for alpha in (0.0, 3.0)]

    def one(pair: tuple[str, float]) -> tuple[str, Any]:
        extra = ask(*pair)
        body = {"vllm_xargs": extra["vllm_xargs"]}
        made = client.chat.completions.create(
            model="m", messages=extra["messages"], max_tokens=64, temperature=0.0, stream=stream, extra_body=body
        )
        if not stream:
            return made.choices[0].message.content, made.choices[0].hneurons
        chunks = [chunk for chunk in made if chunk.choices]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return text, chunks[-1].choices[0].hneurons

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, pairs))
    whole = 0
    for (question, alpha), (text, told) in zip(pairs, found, strict=True):
        *_, done = monitor.generate(question, alpha=alpha, temperature=0.0, max_tokens=64)
        assert text == done.text
        assert told["alpha"] == alpha
        assert "".join(token["text"] for token in told["tokens"]) == text
        if done.reason == "stop" and done.reading is not None:
            whole += 1
            assert told["risk"] == pytest.approx(done.reading.risk, abs=1e-4)
            assert told["response_risk"] == pytest.approx(done.reading.response_risk, abs=1e-4)
            risks = [token["risk"] for token in told["tokens"]]
            np.testing.assert_allclose(risks, card.risk(done.reading.scores), atol=1e-3)
        else:
            assert told["tokens"][-1]["risk"] is None  # drawn last, never read
    assert whole >= 3


def test_several_choices_have_their_own_risks(server: str):
    reply = post(server, "chat/completions", **ask(QUESTIONS[1], 1.0, n=3, temperature=1.5, seed=4)).json()
    for choice in reply["choices"]:
        tokens = choice["hneurons"]["tokens"]
        assert "".join(token["text"] for token in tokens) == choice["message"]["content"]
        assert all(token["risk"] is not None for token in tokens[:-1])
    assert len({choice["hneurons"]["response_risk"] for choice in reply["choices"]}) == 3


def test_what_a_stop_string_cut_off_has_no_risk(server: str):
    whole = post(server, "chat/completions", **ask(QUESTIONS[0], 1.0)).json()["choices"][0]["message"]["content"]
    stop = " " + whole.split()[3]
    reply = post(server, "chat/completions", **ask(QUESTIONS[0], 1.0, stop=[stop])).json()["choices"][0]
    assert stop not in reply["message"]["content"]
    assert "".join(token["text"] for token in reply["hneurons"]["tokens"]) == reply["message"]["content"]


@pytest.mark.parametrize("told", ["{", '{"alpha": 1000}', '{"alpha": -1}', '{"alfa": 1}', '{"alpha": 1e999}', "[]"])
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_nonsense_gets_a_400_that_says_why(server: str, told: str, path: str):
    body: dict[str, Any] = {"vllm_xargs": {"hneurons": told}, "prompt": "Who?"}
    body |= ask("Who?", 1.0, vllm_xargs={"hneurons": told})
    body.pop("messages" if path == "completions" else "prompt")
    reply = post(server, path, **body)
    assert reply.status_code == 400, reply.text
    message = reply.json()["error"]["message"]
    assert "alpha" in message or "hneurons" in message
    assert "\n" not in message


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_beams_that_ask_are_refused_and_others_are_not(server: str, path: str):
    """vLLM makes the requests of a beam itself, without what the client's asked for."""
    question = {"prompt": "Who?"} if path == "completions" else {"messages": [{"role": "user", "content": "Who?"}]}
    body: dict[str, Any] = {"use_beam_search": True, "n": 2, "max_tokens": 4, **question}
    refused = post(server, path, **body, vllm_xargs={"hneurons": '{"alpha": 0}'})
    assert refused.status_code == 400, refused.text
    assert "beam search" in refused.json()["error"]["message"]
    assert post(server, path, **body).status_code == 200


def test_a_client_that_goes_away_leaves_the_server_as_it_was(server: str):
    body = {"model": "m", **ask("Tell me a long story.", 0.0, max_tokens=400, ignore_eos=True, stream=True)}
    with httpx.stream("POST", f"{server}/chat/completions", json=body, timeout=60) as reply:
        assert reply.status_code == 200
        next(reply.iter_lines())
    after = post(server, "chat/completions", **ask(QUESTIONS[0], 1.0)).json()["choices"][0]
    assert after["hneurons"]["risk"] is not None
