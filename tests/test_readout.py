"""Hidden states and token statistics against transformers' own logits and hidden states of one sequence at a time."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import architectures
import tiny
from hneurons.errors import HNeuronsError, NumericError, RunError, UnsupportedModelError
from hneurons.models.ffn import find_ffns
from hneurons.models.load import StudyModel
from hneurons.neurons import readout
from hneurons.neurons.cett import Passage
from hneurons.neurons.readout import Readout, read_out

# One of each way to make logits and hidden states: plain, wrapped, capped, scaled, several streams, recurrent, experts.
KINDS = [
    "LlamaForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Gemma2ForCausalLM",
    "Gemma3nForCausalLM",
    "CohereForCausalLM",
    "GraniteForCausalLM",
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "OPTForCausalLM",
    "BloomForCausalLM",
    "MptForCausalLM",
    "FalconForCausalLM",
    "RecurrentGemmaForCausalLM",
    "FalconH1ForCausalLM",
    "MixtralForCausalLM",
    "GptOssForCausalLM",
    "Llama4ForConditionalGeneration",
]


def passages(seed: int = 0) -> list[Passage]:
    """Of different length, one with a thinking block; answers at the start, in the middle, at the end, everything."""
    rng = np.random.default_rng(seed)
    shapes = [(5, 6, (0, 2), 0), (9, 7, (2, 5), 0), (3, 9, (7, 9), 4), (6, 3, (0, 3), 0), (1, 1, (0, 1), 0)]
    return [
        Passage(f"q{i}", tuple(rng.integers(3, 330, prompt + response).tolist()), prompt, answer, thinking)
        for i, (prompt, response, answer, thinking) in enumerate(shapes)
    ]


def oracle(model: Any, passage: Passage) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden means (layers + 1, hidden), log-probabilities and entropies, from one unpadded sequence and plain sums."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([passage.ids]), use_cache=False, output_hidden_states=True)
    chance = torch.softmax(output.logits[0].double(), dim=-1).numpy()
    first = passage.prompt_tokens + passage.thinking
    logprobs = [math.log(chance[at - 1, passage.ids[at]]) for at in range(first, len(passage.ids))]
    entropies = [-sum(p * math.log(p) for p in chance[at - 1] if p) for at in range(first, len(passage.ids))]
    start, end = (passage.prompt_tokens + edge for edge in passage.answer)
    # Gemma 3n hands out four streams; the first is the one that its configuration calls active.
    states = [state[0] if state.dim() == 4 else state for state in output.hidden_states]
    hidden = np.stack([state[0, start:end].float().mean(dim=0).numpy() for state in states])
    return hidden, np.array(logprobs), np.array(entropies)


def check(found: Readout, model: Any, given_passages: list[Passage], tolerance: float = 1e-4) -> None:
    assert found.names == tuple(passage.name for passage in given_passages)
    for row, passage in enumerate(given_passages):
        hidden, logprobs, entropies = oracle(model, passage)
        scale = np.abs(hidden).max()
        np.testing.assert_allclose(found.hidden[row], hidden, rtol=tolerance, atol=tolerance * scale)
        np.testing.assert_allclose(found.logprobs[row], logprobs, atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(found.entropies[row], entropies, atol=tolerance, rtol=tolerance)
        start, end = (edge - passage.thinking for edge in passage.answer)
        expected = {
            "mean_logprob": logprobs.mean(),
            "min_logprob": logprobs.min(),
            "answer_mean_logprob": logprobs[start:end].mean(),
            "mean_entropy": entropies.mean(),
            "max_entropy": entropies.max(),
        }
        for name, value in expected.items():
            summary = getattr(found, name)
            assert summary.shape == (len(given_passages),)
            assert summary[row] == pytest.approx(value, abs=10 * tolerance), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_equals_transformers_on_one_sequence_at_a_time(kind: str):
    row = architectures.row(kind)
    if not architectures.exists(row):
        pytest.skip(f"this transformers has no {kind}")
    made = architectures.network(row)
    model = StudyModel(kind, "object", made, tiny.tokenizer(), None, find_ffns(made))
    batch = passages()
    found = read_out(model, batch)
    assert found.hidden.shape == (5, len(row.widths) + 1, architectures.HIDDEN)
    assert found.hidden.dtype == np.float32
    check(found, made, batch)


@pytest.mark.parametrize("batch_tokens", [1, 20, 4096])
def test_the_size_of_a_batch_changes_nothing(llama: StudyModel, batch_tokens: int):
    batch = passages(1)
    ticks: list[int] = []
    check(read_out(llama, batch, batch_tokens, ticks.append), llama.model, batch)
    assert sum(ticks) == len(batch)
    assert (len(ticks) > 1) == (batch_tokens < 60)


def test_logits_widened_in_parts_are_the_same(llama: StudyModel, monkeypatch: pytest.MonkeyPatch):
    batch = passages()
    whole = read_out(llama, batch)
    monkeypatch.setattr(readout, "AT_ONCE", 2)
    again = read_out(llama, batch)
    for name in ("logprobs", "entropies"):
        for first, second in zip(getattr(whole, name), getattr(again, name), strict=True):
            np.testing.assert_allclose(first, second, atol=2e-6)


def test_bfloat16_gives_what_the_model_says_widened():
    made = architectures.network(architectures.row("LlamaForCausalLM"), dtype=torch.bfloat16)
    model = StudyModel("narrow", "object", made, tiny.tokenizer(), None, find_ffns(made))
    one = passages()[1:2]  # alone: in bfloat16 a padded batch rounds otherwise
    found = read_out(model, one)
    check(found, made, one, 1e-4)
    assert found.hidden.dtype == np.float32


# -- the LM head --------------------------------------------------------------------------------------


def head_shapes(model: StudyModel) -> tuple[list[tuple[int, ...]], Any]:
    shapes: list[tuple[int, ...]] = []
    head = model.model.get_output_embeddings()
    return shapes, head.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))


def test_the_lm_head_sees_response_positions_only():
    model = tiny.study()
    shapes, handle = head_shapes(model)
    read_out(model, passages())
    handle.remove()
    assert sum(math.prod(shape[:-1]) for shape in shapes) == 6 + 7 + (9 - 4) + 3 + 1


def test_no_batch_has_more_logits_than_the_limit(monkeypatch: pytest.MonkeyPatch):
    model = tiny.study()
    batch = passages()
    monkeypatch.setattr(readout, "MOST_LOGITS", 330 * 9)
    shapes, handle = head_shapes(model)
    found = read_out(model, batch)
    handle.remove()
    assert max(math.prod(shape[:-1]) for shape in shapes) <= 9
    assert len(shapes) > 1
    check(found, model.model, batch)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=25), st.integers(1, 200), st.integers(0, 80)
)
def test_the_plan_is_a_partition_within_both_budgets(shapes: list[tuple[int, int]], tokens: int, said: int):
    given_passages = [Passage("q", tuple(range(p + r)), p, (0, 1)) for p, r in shapes]
    plan = readout._plan(given_passages, tokens, said)
    assert sorted(row for rows in plan for row in rows) == list(range(len(shapes)))
    for rows in plan:
        assert rows
        if len(rows) > 1:
            assert len(rows) * max(sum(shapes[row]) for row in rows) <= tokens
            assert sum(shapes[row][1] for row in rows) <= said


def hooks(model: StudyModel) -> int:
    return sum(len(m._forward_pre_hooks) for m in model.model.modules())


def test_the_hook_comes_off_and_others_are_left_alone():
    model = tiny.study()
    before = hooks(model)
    with readout._Reader(model):
        assert hooks(model) == before + 1
        with torch.no_grad():
            assert model.model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 330)
    assert hooks(model) == before
    model.model.model.embed_tokens.weight.data[:] = float("nan")
    with pytest.raises(NumericError):
        read_out(model, passages())
    assert hooks(model) == before


# -- what is refused ----------------------------------------------------------------------------------


def test_a_bad_number_names_its_example():
    model = tiny.study()
    batch = passages()
    token = batch[1].ids[10]
    assert not any(token in passage.ids for i, passage in enumerate(batch) if i != 1)
    model.model.model.embed_tokens.weight.data[token] = float("nan")
    with pytest.raises(NumericError, match="on example 'q1'"):
        read_out(model, batch)


def test_padding_may_hold_anything(llama: StudyModel):
    state = torch.arange(24.0).reshape(2, 4, 3)
    state[0, 2:], state[1, 0] = float("nan"), float("inf")
    answer = torch.tensor([[True, True, False, False], [False, False, True, False]])
    found = readout._Reader(llama)._mean(state, answer)
    torch.testing.assert_close(found, torch.tensor([[1.5, 2.5, 3.5], [18.0, 19.0, 20.0]]))


def test_a_token_that_can_not_be_said_is_an_error():
    model = tiny.study()
    batch = passages()
    model.model.lm_head.register_forward_hook(
        lambda _, __, out: out.index_fill(-1, torch.tensor([batch[0].ids[-1]]), -torch.inf)
    )
    with pytest.raises(NumericError, match="q0"):
        read_out(model, batch[:1])


def test_tokens_that_can_not_be_said_leave_the_entropy_finite():
    model = tiny.study()
    one = passages()[:1]
    unused = next(token for token in range(3, 330) if token not in one[0].ids)
    model.model.lm_head.register_forward_hook(lambda _, __, out: out.index_fill(-1, torch.tensor([unused]), -torch.inf))
    check(read_out(model, one), model.model, one)


@pytest.mark.parametrize(
    "wrong",
    [{"prompt_tokens": 0}, {"answer": (0, 99)}, {"answer": (2, 2)}, {"thinking": 1, "answer": (0, 2)}],
)
def test_a_passage_that_contradicts_itself_is_refused(llama: StudyModel, wrong: dict[str, Any]):
    with pytest.raises(AssertionError):
        read_out(llama, [replace(passages()[0], **wrong)])


def test_a_model_without_what_is_read_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = tiny.study()
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "get_output_embeddings", lambda: None)
        with pytest.raises(UnsupportedModelError, match="no LM head"):
            read_out(model, passages())
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda **given: forward(**{**given, "output_hidden_states": False}))
    with pytest.raises(UnsupportedModelError, match="hidden states"):
        read_out(model, passages())


# -- on disk ------------------------------------------------------------------------------------------


def same(first: Readout, second: Readout) -> None:
    assert (first.names, first.answers) == (second.names, second.answers)
    np.testing.assert_array_equal(first.hidden, second.hidden)
    for name in ("logprobs", "entropies"):
        for one, other in zip(getattr(first, name), getattr(second, name), strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_is_loaded_equals_what_was_saved(llama: StudyModel, tmp_path: Path):
    found = read_out(llama, passages())
    found.save(tmp_path / "readout")
    same(Readout.load(tmp_path / "readout"), found)
    assert sorted(path.name for path in (tmp_path / "readout").iterdir()) == ["hidden.npy", "readout.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "readout" / "readout.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["q0", "q1", "q2", "q3", "q4"]
    assert [len(line["logprobs"]) for line in lines] == [6, 7, 5, 3, 1]
    assert lines[2]["answer"] == [3, 5]
    other = read_out(llama, passages(5)[:2])
    other.save(tmp_path / "readout")
    same(Readout.load(tmp_path / "readout"), other)


def test_nothing_to_read(llama: StudyModel, tmp_path: Path):
    found = read_out(llama, [])
    assert found.mean_logprob.shape == (0,)
    found.save(tmp_path)
    same(Readout.load(tmp_path), found)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


DAMAGES = {
    "no lines": lambda folder: (folder / "readout.jsonl").unlink(),
    "no states": lambda folder: (folder / "hidden.npy").unlink(),
    "cut states": lambda folder: cut(folder / "hidden.npy"),
    "cut lines": lambda folder: cut(folder / "readout.jsonl"),
    "other lines": lambda folder: (folder / "readout.jsonl").write_text('{"a": 1}\n' * 5),
    "narrow states": lambda folder: np.save(folder / "hidden.npy", np.zeros((5, 4, 32), np.float16)),
    "flat states": lambda folder: np.save(folder / "hidden.npy", np.zeros((5, 4), np.float32)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_a_run_error(llama: StudyModel, tmp_path: Path, damage: str):
    read_out(llama, passages()).save(tmp_path)
    DAMAGES[damage](tmp_path)
    with pytest.raises(RunError) as caught:
        Readout.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_killed_while_saving_leaves_nothing_half_true(
    llama: StudyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read_out(llama, passages()).save(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(readout, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        read_out(llama, passages(3)).save(tmp_path)
    with pytest.raises(HNeuronsError):
        Readout.load(tmp_path)
