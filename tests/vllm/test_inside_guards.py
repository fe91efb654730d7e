"""Engines that would give wrong numbers without an error don't start, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up import Play

from hneurons.answers.engine import WORKER
from hneurons.neurons.card import Card

DRAFT = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
CONNECTOR = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
ENGINES: dict[str, tuple[dict[str, Any], str | None]] = {
    "fine": ({"worker_extension_cls": WORKER}, None),
    "no extension": ({}, "worker_extension_cls"),
    "compiled": ({"enforce_eager": False}, "--enforce-eager"),
    "embeddings": ({"worker_extension_cls": WORKER, "enable_prompt_embeds": True}, "--enable-prompt-embeds"),
    "newer runner": ({"variables": {"VLLM_USE_V2_MODEL_RUNNER": "1"}}, "VLLM_USE_V2_MODEL_RUNNER=0"),
    "adapters": ({"enable_lora": True}, "--enable-lora"),
    "several engines": ({"data_parallel_size": 2}, "an engine of its own"),
    "stages": ({"pipeline_parallel_size": 2}, "tensor_parallel_size"),
    "a draft": ({"speculative_config": DRAFT}, "speculative configuration"),
    "a connector": ({"kv_transfer_config": CONNECTOR}, "--kv-transfer-config"),
}


def test_vllms_own_configurations_are_told_apart(play: Play, folder: Path):
    """Of vLLM's real configuration objects, none of which is started."""
    engines = {name: options for name, (options, _) in ENGINES.items()}
    found = play("check", {"model": str(folder), "engines": engines})
    for name, (_, remedy) in ENGINES.items():
        assert (found[name] is None) is (remedy is None), (name, found[name])
        assert remedy is None or remedy in found[name]


def test_a_card_of_another_architecture_is_refused_before_the_model_is_loaded(
    play: Play, folder: Path, card: Card, tmp_path: Path
):
    other = card.model.model_copy(update={"architecture": "MistralForCausalLM"})
    card.model_copy(update={"model": other}).save(tmp_path / "neurons.json")
    output = play("dial", {"model": str(folder), "rounds": [], "engine": {}}, fails=True, HNEURONS_CARD=str(tmp_path))
    assert "is of a MistralForCausalLM; vLLM serves a LlamaForCausalLM" in output


@pytest.mark.parametrize(
    ("engine", "variables", "line"),
    [
        ({"enforce_eager": False}, {}, "vLLM runs compiled graphs, which skip hooks without a word. Start it with"),
        ({"enable_lora": True}, {}, "Use either adapters (--enable-lora) or hooks, not both."),
        ({}, {"HNEURONS_CARD": "/nowhere.json"}, "Can't read the card /nowhere.json"),
        ({}, {"HNEURONS_ALPHA": "1000"}, "HNEURONS_ALPHA='1000' is no alpha. Give a number from 0 to 100."),
    ],
)
def test_an_engine_with_the_plugin_does_not_start(
    play: Play, folder: Path, card_file: Path, engine: dict[str, Any], variables: dict[str, str], line: str
):
    told = {"model": str(folder), "rounds": [], "engine": engine}
    output = play("dial", told, fails=True, **{"HNEURONS_CARD": str(card_file), **variables})
    assert line in output
    assert "Starting to load model" not in output


def test_a_card_of_another_model_is_refused_when_the_model_is_loaded(
    play: Play, folder: Path, card: Card, tmp_path: Path
):
    narrow = card.model.model_copy(update={"width": 1537, "neurons": 30 * 1537})
    card.model_copy(update={"model": narrow}).save(tmp_path / "neurons.json")
    told = {"model": str(folder), "rounds": [], "engine": {}}
    output = play("dial", told, fails=True, HNEURONS_CARD=str(tmp_path), VLLM_ENABLE_V1_MULTIPROCESSING="0")
    assert "doesn't have the 30 feed-forward layers of this model" in output


def test_without_a_card_the_plugin_does_nothing(play: Play, folder: Path):
    """vLLM serves as if it weren't there: what it refuses with a card starts."""
    told = {"model": str(folder), "rounds": [[{"prompt": [1, 2, 3], "asked": {"alpha": "nonsense"}}]], "tokens": 2}
    found = play("dial", {**told, "scores": False, "bare": True, "engine": {"enable_lora": True}}, HNEURONS_CARD="")
    assert [len(each["ids"]) for each in found["rounds"][0]] == [2]


def test_a_card_of_a_deeper_model_is_refused_before_the_model_is_loaded(
    play: Play, folder: Path, card: Card, tmp_path: Path
):
    """Its first layers are as wide."""
    deeper = card.model.model_copy(update={"layers": 40, "neurons": 40 * 1536})
    card.model_copy(update={"model": deeper}).save(tmp_path / "neurons.json")
    output = play("dial", {"model": str(folder), "rounds": [], "engine": {}}, fails=True, HNEURONS_CARD=str(tmp_path))
    assert "is of a model with 40 layers; vLLM serves 30" in output
    assert "Starting to load model" not in output
