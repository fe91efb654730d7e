"""The worker's part of measuring, on a fake of vLLM's worker; tests/vllm has the same with vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fake_vllm as fake
from hneurons.errors import NumericError, UnsupportedModelError, UsageError
from hneurons.layout import Layout
from hneurons.neurons.cett import Passage
from hneurons.types import REGIONS, Region
from hneurons.vllm.features import join, runs
from hneurons.vllm.locate import find_downs
from hneurons.vllm.pooling import KEY, Pooler
from hneurons.vllm.rows import Passes

PASSAGES = [
    Passage("a", (3, 5, 7, 11, 2, 9, 30), 4, (0, 2)),
    Passage("b", (1, 2, 3, 4, 5), 2, (1, 3)),
    Passage("c", (39, 8, 7), 1, (0, 2)),
]


def worker(rank: int = 0, ranks: int = 1, *, bias: bool = False) -> tuple[fake.Runner, Pooler]:
    runner = fake.Runner(fake.Model(rank, ranks, bias=bias))
    pooler = Pooler(find_downs(runner.model, fake.LAYOUT))
    Passes(runner, pooler.begin, pooler.end)
    return runner, pooler


def ask(runner: fake.Runner, passages: Sequence[Passage] = PASSAGES, first: int = 0) -> None:
    for number, passage in enumerate(passages, first):
        ranges = [runs(passage.mask(region)) for region in REGIONS]
        extra: dict[str, Any] = {KEY: {"number": number, "ranges": ranges}}
        name = f"{passage.name}{first or ''}"
        runner.add(name, [*passage.ids, 0, 0], len(passage.ids), **extra)


def joined(*workers: Pooler, first: int = 0) -> np.ndarray:
    numbers = range(first, first + len(PASSAGES))
    return join([each.take(numbers) for each in workers], PASSAGES, fake.LAYOUT, len(REGIONS)).dense()


def expected() -> np.ndarray:
    rows = []
    for passage in PASSAGES:
        shares = fake.contributions(passage.ids)
        masks = [passage.mask(region) for region in REGIONS]
        rows.append([shares[m].mean(0) if m.any() else np.zeros(shares.shape[1]) for m in masks])
    return np.array(rows)


def test_equals_the_definition_in_one_pass_with_padding():
    runner, pooler = worker()
    runner.padding = 3
    ask(runner)
    runner.step({"a": 7, "b": 5, "c": 3})
    np.testing.assert_allclose(joined(pooler), expected(), rtol=1e-4, atol=1e-6)


def test_equals_it_when_prompts_are_cut_and_other_requests_come_between():
    runner, pooler = worker()
    ask(runner)
    runner.add("other", [1, 2, 3, 4, 5, 6], 6)
    for counts in ({"a": 2, "other": 3}, {"b": 5, "a": 1}, {"c": 1, "a": 4, "other": 3}, {"c": 2, "b": 1, "a": 1}):
        runner.step(counts)
    np.testing.assert_allclose(joined(pooler), expected(), rtol=1e-4, atol=1e-6)


def test_two_ranks_give_what_one_gives():
    workers = [worker(rank, 2) for rank in range(2)]
    for runner, _ in workers:
        ask(runner)
        runner.step({"a": 7, "b": 5, "c": 3})
    np.testing.assert_allclose(joined(*(pooler for _, pooler in workers)), expected(), rtol=1e-4, atol=1e-6)


def test_neurons_that_no_rank_or_two_ranks_measured_are_refused():
    for ranks, count in (((0,), 12), ((0, 0), 0)):
        workers = [worker(rank, 2) for rank in ranks]
        for runner, _ in workers:
            ask(runner)
            runner.step({"a": 7, "b": 5, "c": 3})
        with pytest.raises(UsageError, match=f"measured {count} of the model's 24 neurons once"):
            joined(*(pooler for _, pooler in workers))


def test_a_bias_that_is_added_later_belongs_to_the_output():
    runner, pooler = worker(bias=True)
    ask(runner)
    runner.step({"a": 7, "b": 5, "c": 3})
    first = fake.Model().layers[0].mlp
    x = fake.Model().embedding[PASSAGES[2].ids[0]]
    z = first.z(x)
    share = z.abs() * first.down.norm(dim=0) / (first.down @ z + 1).norm()
    np.testing.assert_allclose(joined(pooler)[2, REGIONS.index(Region.PROMPT), :8], share, rtol=1e-4, atol=1e-6)


def test_a_preempted_request_begins_anew():
    runner, pooler = worker()
    ask(runner)
    runner.step({"a": 5, "b": 5, "c": 3})
    runner.computed["a"] = 0
    runner.step({"a": 7})
    np.testing.assert_allclose(joined(pooler), expected(), rtol=1e-4, atol=1e-6)


def test_requests_that_an_interrupted_call_left_behind_change_nothing():
    runner, pooler = worker()
    ask(runner, PASSAGES[::-1])
    runner.step({"c": 2, "b": 1})
    ask(runner, first=10)
    runner.step({"a10": 7, "a": 7, "b10": 5, "b": 4, "c10": 3, "c": 1})
    np.testing.assert_allclose(joined(pooler, first=10), expected(), rtol=1e-4, atol=1e-6)


def test_a_prefix_that_vllm_took_from_its_cache_is_refused():
    runner, pooler = worker()
    ask(runner)
    runner.computed["a"] = 2
    runner.step({"a": 5, "b": 5, "c": 3})
    with pytest.raises(UsageError, match=r"'a' are incomplete: vLLM skipped tokens 0 to 2.*without prefix caching"):
        joined(pooler)


@pytest.mark.parametrize("counts", [{"b": 5, "c": 3}, {"a": 6, "b": 5, "c": 3}])
def test_a_passage_that_was_not_read_to_its_end_is_refused(counts: dict[str, int]):
    runner, pooler = worker()
    ask(runner)
    runner.step(counts)
    with pytest.raises(UsageError, match="'a' are incomplete: the hooks were not called for all of its tokens"):
        joined(pooler)


def test_hooks_that_a_compiled_graph_skips_are_noticed():
    runner, pooler = worker()
    for layer in runner.model.layers:
        layer.mlp.down_proj._forward_hooks.clear()
    ask(runner)
    runner.step({"a": 7, "b": 5, "c": 3})
    with pytest.raises(UsageError, match="hooks were not called"):
        joined(pooler)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_names_layer_and_passage(value: float):
    runner, pooler = worker()
    runner.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda _, inputs: (inputs[0].masked_fill(torch.arange(15)[:, None] == 14, value),)
    )
    ask(runner)
    runner.step({"a": 7, "b": 5, "c": 3})  # rows go c, b, a
    with pytest.raises(NumericError, match="layer 1 on example 'a'"):
        joined(pooler)


def test_an_infinite_output_is_no_contribution_of_zero():
    runner, pooler = worker()
    infinite = torch.full((15, fake.HIDDEN), torch.inf)
    runner.model.layers[2].mlp.down_proj.register_forward_hook(lambda *_: (infinite, None), prepend=True)
    ask(runner)
    runner.step({"a": 7, "b": 5, "c": 3})
    with pytest.raises(NumericError, match="layer 2 on example 'a'"):
        joined(pooler)


def test_dummy_passes_and_requests_of_others_leave_nothing():
    runner, pooler = worker()
    runner._dummy_run(8)
    runner.add("other", [1, 2, 3], 3)
    runner.step({"other": 3})
    runner.step({})
    ask(runner)
    runner.step({"a": 7, "b": 5, "c": 3})
    np.testing.assert_allclose(joined(pooler), expected(), rtol=1e-4, atol=1e-6)


def test_ranges_are_those_of_the_mask():
    assert runs(np.array([True, True, False, True, False, False, True])) == [[0, 2], [3, 4], [6, 7]]
    assert runs(np.zeros(3, dtype=bool)) == []


def test_layers_of_another_model_are_refused():
    model = fake.Model()
    wider = Layout((fake.WIDTH, 9, fake.WIDTH), (0,) * 3, (0,) * 3)
    with pytest.raises(UnsupportedModelError, match="3 feed-forward layers of this model; it has 3 at layers"):
        find_downs(model, wider)
    with pytest.raises(UnsupportedModelError, match="doesn't have the 2 feed-forward"):
        find_downs(model, Layout((fake.WIDTH,) * 2, (0,) * 2, (0,) * 2))


def test_a_layer_without_neurons_is_no_gap():
    model = fake.Model()
    model.layers[1] = nn.Module()
    downs = find_downs(model, Layout((fake.WIDTH, 0, fake.WIDTH), (0,) * 3, (0,) * 3))
    assert [down.layer for down in downs] == [0, 2]


@pytest.mark.parametrize("missing", range(3))
def test_some_of_the_layers_are_not_the_model(missing: int):
    """A shallower model has the first layers of a deeper one."""
    model = fake.Model()
    model.layers[missing] = nn.Module()
    with pytest.raises(UnsupportedModelError, match="3 feed-forward layers of this model; it has 2 at layers"):
        find_downs(model, fake.LAYOUT)


def test_attention_is_no_feed_forward_layer():
    model = fake.Model()
    attention: Any = nn.Module()
    attention.qkv_proj = fake.QKVParallelLinear(fake.HIDDEN, fake.WIDTH)
    attention.attn = fake.Attention()
    attention.o_proj = fake.RowParallelLinear(torch.zeros(fake.HIDDEN, fake.WIDTH))
    model.layers[0].self_attn = attention
    assert [down.path for down in find_downs(model, fake.LAYOUT)] == [f"layers.{i}.mlp.down_proj" for i in range(3)]


def test_fused_experts_are_refused():
    model = fake.Model()
    model.layers[2].experts = fake.FusedMoE()
    with pytest.raises(UnsupportedModelError, match=r"fused experts.*--engine hf"):
        find_downs(model, fake.LAYOUT)


def test_an_output_that_a_later_layer_sums_over_ranks_is_refused():
    model = fake.Model(0, 2)
    model.layers[0].mlp.down_proj.reduce_results = False
    with pytest.raises(UnsupportedModelError, match="leaves the sum over ranks"):
        find_downs(model, fake.LAYOUT)


def test_two_candidates_in_a_layer_are_refused():
    model = fake.Model()
    model.layers[1].second = fake.MLP(5, 0, 1, bias=False)
    with pytest.raises(UnsupportedModelError, match="two modules that look like a down projection"):
        find_downs(model, fake.LAYOUT)
