"""The worker's part of dial and monitor, on a fake of vLLM's worker; tests/vllm has the same with vLLM."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import fake_vllm as fake
from cards import probe
from hneurons.errors import CardError, UnsupportedModelError, UsageError
from hneurons.extras import check_vllm
from hneurons.neurons.card import Card
from hneurons.vllm.asked import Asked, asked, card_of_environment, default_alpha
from hneurons.vllm.dial import Turner, outside
from hneurons.vllm.engine import check_card, check_engine, check_extension
from hneurons.vllm.plugin import BODIES, attach, refuse_beams
from hneurons.vllm.risks import gathered
from hneurons.vllm.rows import Passes

NEURONS = [(0, 1, 0.9), (0, 6, -0.4), (1, 3, 0.2), (1, 5, 1.5), (2, 7, -1.0)]
CARD = Card.model_validate(
    {
        "model": {"id": "m", "architecture": "A", "layers": fake.LAYERS, "width": fake.WIDTH, "neurons": 24},
        "probe": probe(-0.25),
        "neurons": [{"layer": layer, "index": index, "weight": weight} for layer, index, weight in NEURONS],
    }
)
TURNED = [(0, 1), (1, 3), (1, 5)]


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch):
    """In place of vLLM's."""
    monkeypatch.setattr("hneurons.vllm.plugin._over_ranks", float)


def worker(rank: int = 0, ranks: int = 1, card: Card = CARD) -> tuple[fake.Runner, Turner]:
    runner = fake.Runner(fake.Model(rank, ranks))
    turner = Turner(runner, card)
    Passes(runner, turner.begin, turner.end)
    return runner, turner


def alone(tokens: list[int], alpha: float) -> torch.Tensor:
    """The model's output for tokens by themselves, its H-Neurons scaled the plain way."""
    model = fake.Model()
    for layer, index in TURNED:
        model.layers[layer].mlp.down[:, index] *= alpha
    return model(torch.tensor(tokens))


def told(alpha: float = 1.0, monitor: bool = False) -> dict[str, Any]:
    return Asked(alpha, monitor).told()


def test_alphas_of_one_batch_are_each_requests_own():
    runner, _ = worker()
    runner.padding = 2
    tokens = {"a": [3, 4, 5, 6], "b": [7, 8], "c": [9, 10, 11]}
    for name, alpha in (("a", 0.0), ("b", 1.0), ("c", 2.5)):
        runner.add(name, tokens[name], 2, hneurons=told(alpha))
    runner.step({"b": 1, "a": 3, "c": 2})
    for name, alpha, count in (("a", 0.0, 3), ("b", 1.0, 1), ("c", 2.5, 2)):
        torch.testing.assert_close(runner.outputs[name], alone(tokens[name][:count], alpha))
    # Bit for bit, also beside requests that are scaled.
    assert torch.equal(runner.outputs["b"], fake.Model()(torch.tensor([*[9, 10], 7, *[3, 4, 5], 0, 0]))[2:3])


def test_alpha_1_touches_nothing():
    runner, turner = worker()
    runner.add("a", [3, 4], 2, hneurons=told())
    runner.step({"a": 2})
    assert torch.equal(runner.outputs["a"], fake.Model()(torch.tensor([3, 4])))
    assert turner._plan is None


# The fake's other rank isn't scaled.
@pytest.mark.parametrize(("ranks", "alpha"), [(1, 1.0), (1, 3.0), (2, 1.0)])
def test_scores_are_the_probes(ranks: int, alpha: float):
    """Of z before it is scaled and h after, of the response's tokens alone, over prompts that are cut."""
    replies = []
    for rank in range(ranks):
        runner, turner = worker(rank, ranks)
        runner.add("a-12345678", [3, 4, 5, 6, 7], 2, hneurons=told(alpha, monitor=True))
        runner.add("0_b-12345678", [8, 9, 10], 1, hneurons=told(monitor=True))
        runner.add("c-12345678", [8, 9, 10], 1, hneurons=told(0.0))
        for counts in ({"a": 1, "0_b": 1}, {"a": 2, "c": 2}, {"a": 1, "0_b": 1, "c": 1}, {"a": 1, "0_b": 1}):
            runner.step({f"{name}-12345678": count for name, count in counts.items()})
        replies.append(turner.take(["a", "b", "c"]))
        assert json.loads(turner.take(["a", "b", "c"])) == {}  # given once
    found = gathered(replies, CARD.probe.intercept)
    assert set(found) == {("a", 0), ("b", 0)}
    assert (found["a", 0].prompt, found["a", 0].ids) == ((3, 4), (5, 6, 7))
    for name, tokens, own in (("a", (5, 6, 7), alpha), ("b", (9, 10), 1.0)):
        shares = fake.contributions(tokens, dict.fromkeys(TURNED, own))
        expected = sum(shares[:, 8 * layer + index] * weight for layer, index, weight in NEURONS) - 0.25
        np.testing.assert_allclose(found[name, 0].scores, expected, rtol=1e-5)


def test_tokens_that_end_a_response_are_told():
    runner, turner = worker()
    runner.add("a-12345678", [3, 4, 5], 1, hneurons=told(monitor=True))
    runner.requests["a-12345678"].sampling_params.eos_token_id = 2
    runner.requests["a-12345678"].sampling_params.stop_token_ids = [7, 5]
    runner.step({"a-12345678": 3})
    assert gathered([turner.take(["a"])], 0.0)["a", 0].ends == {2, 5, 7}


def test_a_preempted_response_is_scored_once():
    runner, turner = worker()
    runner.add("a-12345678", [3, 4, 5, 6, 7], 2, hneurons=told(monitor=True))
    runner.step({"a-12345678": 4})
    runner.computed["a-12345678"] = 0
    runner.step({"a-12345678": 3})
    runner.step({"a-12345678": 2})
    found = gathered([turner.take(["a"])], 0.0)["a", 0]
    assert found.ids == (5, 6, 7)
    assert found.scores.shape == (3,)
    assert np.isfinite(found.scores).all()


@pytest.mark.parametrize("preempted", [False, True])
def test_a_long_response_is_kept_in_few_tensors(monkeypatch: pytest.MonkeyPatch, preempted: bool):
    """What a pass leaves for a response keeps the tensor of the whole pass, and so does its prompt a list."""
    monkeypatch.setattr("hneurons.vllm.dial.JOINED", 4)
    ids = [3 + n % 30 for n in range(80)]
    (runner, turner), name = worker(), "a-12345678"
    runner.add(name, ids, 60, hneurons=told(monitor=True))
    runner.step({name: 60})
    for number in range(20):
        if preempted and number == 10:
            runner.computed[name] = 0
            runner.step({name: 60})
            runner.step({name: 10})
        runner.step({name: 1})
    own = turner._scored[name]
    assert len(own.ids) == len(own.scores) <= 4
    runner.add("b-12345678", [3, 4, 5], 1, hneurons=told(monitor=True))
    del runner.requests[name]
    runner.step({"b-12345678": 3})
    assert len(own.ids) == len(own.scores) == 1
    found = gathered([turner.take(["a"])], CARD.probe.intercept)["a", 0]
    assert found.prompt == tuple(ids[28:60])
    assert found.ids == tuple(ids[60:])
    shares = fake.contributions(ids[60:])
    expected = sum(shares[:, 8 * layer + index] * weight for layer, index, weight in NEURONS) - 0.25
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)


def test_results_that_nobody_fetches_do_not_pile_up(monkeypatch: pytest.MonkeyPatch):
    runner, turner = worker()
    monkeypatch.setattr("hneurons.vllm.dial.KEPT", 60)
    for number in range(50):
        name = f"{number}-12345678"
        runner.add(name, [3, 4, 5], 1, hneurons=told(monitor=True))
        runner.step({name: 3})
        if number == 45:
            assert json.loads(turner.take(["44"]))
        del runner.requests[name]
    assert [outside(name)[0] for name in turner._scored] == [str(number) for number in range(19, 50) if number != 44]
    assert json.loads(turner.take(["18"])) == {}
    assert json.loads(turner.take(["49"]))


def test_a_response_is_taken_before_its_request_is_gone():
    """As a server does."""
    runner, turner = worker()
    for name in ("a", "b"):
        runner.add(f"{name}-12345678", [3, 4, 5], 1, hneurons=told(monitor=True))
    runner.step({"a-12345678": 3})
    assert json.loads(turner.take(["a"]))
    del runner.requests["a-12345678"]
    runner.step({"b-12345678": 3})
    assert set(gathered([turner.take(["a", "b"])], 0.0)) == {("b", 0)}


def test_a_request_without_its_stamp_is_no_request_with_alpha_1():
    runner, _ = worker()
    runner.add("a", [3, 4], 2)
    with pytest.raises(RuntimeError, match="HNEURONS_CARD"):
        runner.step({"a": 2})


def test_hooks_that_are_skipped_are_noticed_in_every_pass():
    runner, _ = worker()
    runner.model.layers[1].mlp.down_proj._forward_pre_hooks.clear()
    runner.add("a", [3, 4], 2, hneurons=told(2.0))
    with pytest.raises(RuntimeError, match="2 of 3 hooks were called"):
        runner.step({"a": 2})


def test_the_order_of_another_model_runner_is_refused():
    runner, _ = worker()
    runner.add("a", [3, 4], 2, hneurons=told(2.0))
    scheduled = SimpleNamespace(num_scheduled_tokens={"a": 2}, total_num_scheduled_tokens=3, finished_req_ids=set())
    with pytest.raises(RuntimeError, match="2 rows of 1 requests, but 3 of 1 are due"):
        runner.execute_model(scheduled)


class Worker:
    """vLLM's, as far as `attach` needs it."""

    def __init__(self, model: fake.Model | None = None) -> None:
        self.model_runner: Any = None
        self._model = model

    def load_model(self) -> None:
        self.model_runner = fake.Runner(self._model)

    def compile_or_warm_up_model(self) -> str:
        return "warm"


def started(card: Card = CARD, model: fake.Model | None = None) -> Any:
    made: Any = Worker(model)
    attach(made, card)
    made.load_model()
    return made


def test_a_worker_is_tested_before_it_serves():
    made = started()
    assert made.compile_or_warm_up_model() == "warm"
    made.model_runner.add("a-12345678", [3, 4], 1, hneurons=told(monitor=True))
    made.model_runner.step({"a-12345678": 2})
    assert json.loads(made.hneurons_scores(["a"]))


def test_a_worker_whose_hooks_are_skipped_does_not_start():
    made = started()
    made.model_runner.model.layers[0].mlp.down_proj._forward_pre_hooks.clear()
    with pytest.raises(UnsupportedModelError, match="2 of 3 hooks were called"):
        made.compile_or_warm_up_model()


def test_a_worker_whose_logits_do_not_move_does_not_start():
    """Though attention, which nobody gave a batch, says something else each time."""
    model = fake.Model()
    for layer, index in TURNED:
        model.layers[layer].mlp.down_proj.own[:, index] = 0
    with pytest.raises(UnsupportedModelError, match="didn't change vLLM's logits"):
        started(model=model).compile_or_warm_up_model()


@pytest.mark.parametrize("sees", [False, True])
def test_the_test_says_something_of_models_that_see_pictures_too(sees: bool, caplog: pytest.LogCaptureFixture):
    """Whose embeddings are all zeros unless somebody writes them."""
    made = started()
    made.model_runner.supports_mm_inputs = sees
    assert made.compile_or_warm_up_model() == "warm"
    assert "can't tell" not in caplog.text
    assert not made.model_runner.inputs_embeds.gpu.any()
    assert not made.model_runner.input_ids.gpu.any()


def test_neurons_that_are_silent_in_the_test_are_no_fault(caplog: pytest.LogCaptureFixture):
    """As those of a model with ReLU may be."""
    model = fake.Model()
    for layer, index in TURNED:
        model.layers[layer].mlp.up[index] = 0
    assert started(model=model).compile_or_warm_up_model() == "warm"
    assert "can't tell" in caplog.text


def test_a_card_without_h_neurons_is_read_and_nobody_calls_them_silent(caplog: pytest.LogCaptureFixture):
    read = CARD.model_copy(update={"neurons": [n for n in CARD.neurons if n.weight < 0]})
    assert started(read).compile_or_warm_up_model() == "warm"
    assert "silent" not in caplog.text


def test_a_rank_without_neurons_of_the_card_runs_the_test_as_well():
    """The other ranks wait for its part of every sum."""
    own = CARD.model_copy(update={"neurons": [n for n in CARD.neurons if n.index < fake.WIDTH // 2]})
    for rank in range(2):
        runner, turner = worker(rank, 2, own)
        assert bool(turner._parts) is (rank == 0)
        ran: list[int] = []

        def logits(tokens: int, ran: list[int] = ran, runner: Any = runner, rank: int = rank) -> torch.Tensor | None:
            ran.append(tokens)
            out = runner.model(input_ids=torch.arange(tokens))
            return None if rank else runner.model.compute_logits(out)

        turner.test(logits, 7, lambda value: value + 1.0)
        assert ran == [7, 7, 7]


def test_a_card_of_another_model_is_refused_when_the_model_is_loaded():
    wider = CARD.model_copy(update={"model": CARD.model.model_copy(update={"width": 9, "neurons": 27})})
    with pytest.raises(UnsupportedModelError, match="Use the card of this model"):
        started(wider)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Asked(1.5)),
        ({}, Asked(1.5)),
        ({"alpha": 0}, Asked(0.0)),
        ('{"alpha": 2.0, "monitor": true}', Asked(2.0, True)),
        ({"monitor": True}, Asked(1.5, True)),
    ],
)
def test_what_a_request_asks(value: Any, expected: Asked):
    assert asked(value, 1.5) == expected


@pytest.mark.parametrize(
    "value",
    [
        "{", "[]", "null", 3, [], '{"alpha": 1e999}', {"alpha": -1}, {"alpha": 101}, {"alpha": math.nan},
        {"alpha": True}, {"alpha": "2"}, {"alpha": 10**400}, {"monitor": 1}, {"alfa": 2}, {"alpha": None},
        "[" * 100_000, {"alpha": [1.0]},
    ],
)  # fmt: skip
def test_a_request_that_asks_nonsense_is_refused_in_one_line(value: Any):
    with pytest.raises(UsageError) as caught:
        asked(value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_cached_prefixes_of_different_alphas_have_different_salts():
    salts = [Asked(alpha).salt for alpha in (1.0, 0.0, 2.0, 2.0000001)]
    # Alpha 1 too: a client's own salt comes before it, and could else be " hneurons alpha=0.0".
    assert len(set(salts)) == 4
    assert all(salts)


def test_environment(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HNEURONS_CARD", raising=False)
    monkeypatch.delenv("HNEURONS_ALPHA", raising=False)
    assert card_of_environment() is None
    assert default_alpha() == 1
    CARD.save(tmp_path / "neurons.json")
    for named in (tmp_path, tmp_path / "neurons.json"):
        monkeypatch.setenv("HNEURONS_CARD", str(named))
        assert card_of_environment() == CARD
    monkeypatch.setenv("HNEURONS_ALPHA", "0.5")
    assert default_alpha() == 0.5
    for bad in ("", "x", "nan", "-1", "1000"):
        monkeypatch.setenv("HNEURONS_ALPHA", bad)
        with pytest.raises(UsageError, match="HNEURONS_ALPHA"):
            default_alpha()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("7-1a2b3c4d", ("7", 0)),
        ("2_chatcmpl-ab-1a2b3c4d", ("chatcmpl-ab", 2)),
        ("cmpl-ab-0-1a2b3c4d", ("cmpl-ab-0", 0)),
        ("my_name-1a2b3c4d", ("my_name", 0)),
    ],
)
def test_names_that_clients_know(name: str, expected: tuple[str, int]):
    assert outside(name) == expected


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0.0", "dev", "0.3"])
def test_versions_that_were_not_tested_are_refused(version: str):
    with pytest.raises(UsageError, match=rf"vLLM {version} is outside .*>=0.32,<0.33"):
        check_vllm(version)


def test_tested_versions():
    for version in ("0.32.0", "0.32.1.post2+cpu"):
        check_vllm(version)


def config(**changes: Any) -> Any:
    made: Any = SimpleNamespace(
        compilation_config=SimpleNamespace(mode=0, cudagraph_mode=SimpleNamespace(name="NONE")),
        use_v2_model_runner=False,
        speculative_config=None,
        kv_transfer_config=None,
        lora_config=None,
        model_config=SimpleNamespace(
            runner_type="generate", architectures=["A"], get_total_num_hidden_layers=lambda: fake.LAYERS
        ),
        parallel_config=SimpleNamespace(data_parallel_size=1, pipeline_parallel_size=1, worker_extension_cls=""),
    )
    for path, value in changes.items():
        *parts, last = path.split("__")
        owner = made
        for part in parts:
            owner = getattr(owner, part)
        setattr(owner, last, value)
    return made


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"compilation_config__mode": 3}, "--enforce-eager"),
        ({"compilation_config__cudagraph_mode": SimpleNamespace(name="FULL")}, "--enforce-eager"),
        ({"use_v2_model_runner": True}, "VLLM_USE_V2_MODEL_RUNNER=0"),
        ({"speculative_config": object()}, "speculative"),
        ({"kv_transfer_config": object()}, "connector"),
        ({"lora_config": object()}, "--enable-lora"),
        ({"parallel_config__data_parallel_size": 2}, "engine of its own"),
        ({"parallel_config__pipeline_parallel_size": 2}, "tensor_parallel_size"),
        ({"model_config__enable_prompt_embeds": True}, "--enable-prompt-embeds"),
        ({"model_config__runner_type": "pooling"}, "--runner"),
    ],
)
def test_engines_that_would_give_wrong_numbers_are_refused(changes: dict[str, Any], remedy: str):
    with pytest.raises(UsageError, match=remedy):
        check_engine(config(**changes))


def test_engines_that_are_fine():
    check_engine(config())
    check_extension(config(parallel_config__worker_extension_cls="hneurons.vllm.worker.Extension"))
    with pytest.raises(UsageError, match="worker_extension_cls"):
        check_extension(config())


def test_a_card_of_another_architecture_is_refused():
    check_card(config(), CARD)
    text = CARD.model_copy(update={"model": CARD.model.model_copy(update={"architecture": "AForCausalLM"})})
    check_card(config(model_config__architectures=["AForConditionalGeneration"]), text)
    with pytest.raises(CardError, match="of a A; vLLM serves a LlamaForCausalLM"):
        check_card(config(model_config__architectures=["LlamaForCausalLM"]), CARD)


def test_a_card_of_a_deeper_model_is_refused():
    """The first layers of the deeper one are as wide."""
    with pytest.raises(CardError, match="with 3 layers; vLLM serves 2"):
        check_card(config(model_config__get_total_num_hidden_layers=lambda: 2), CARD)


def test_beams_that_ask_are_refused_and_others_are_not(monkeypatch: pytest.MonkeyPatch):
    module = next(iter(BODIES))

    class Body(SimpleNamespace):
        def to_beam_search_params(self, tokens: int) -> int:
            return tokens

    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{BODIES[module]: Body}))
    error = type("VLLMValidationError", (ValueError,), {"__init__": lambda self, text, parameter: None})
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.exceptions", SimpleNamespace(VLLMValidationError=error))
    refuse_beams()
    assert Body(vllm_xargs=None).to_beam_search_params(3) == 3
    assert Body(vllm_xargs={"other": 1}).to_beam_search_params(3) == 3
    with pytest.raises(error):
        Body(vllm_xargs={"hneurons": "{}"}).to_beam_search_params(3)
