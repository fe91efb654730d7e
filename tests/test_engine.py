import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from hneurons.answers.decoding import draw
from hneurons.answers.engine import Request, Sampling, uniforms
from hneurons.answers.hf import HFEngine
from hneurons.answers.text import decode, token_offsets
from hneurons.errors import NumericError
from hneurons.models.load import StudyModel
from hneurons.types import Question, Response

QUESTIONS = [
    Question("a", "Who?", ("x",)),
    Question("b", "What is the capital of France, and who wrote the novel?", ("x",)),
    Question("c", "Respond: naïve café ☕ or not?", ("x",)),
    Question("d", "In the year 1925?", ("x",)),
    Question("e", "What is it?", ("x",)),
]
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)


def requests(samples: int = 1) -> list[Request]:
    return [Request(question, sample) for question in QUESTIONS for sample in range(samples)]


def ended_by(model: StudyModel, *tokens: int) -> StudyModel:
    """The model with more end-of-turn tokens."""
    model.model.generation_config.eos_token_id = [2, *tokens]
    return model


def common(responses: list[Response], count: int) -> list[int]:
    """The most frequent tokens of the responses."""
    return [token for token, _ in Counter(t for r in responses for t in r.token_ids).most_common(count)]


# -- greedy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "phi3", "gemma3", "gpt-neox", "falcon"])
def test_greedy_equals_transformers(kind: str):
    model = tiny.study(kind)
    responses = HFEngine(model).sample(requests(), GREEDY)
    assert [(r.question_id, r.sample) for r in responses] == [(q.id, 0) for q in QUESTIONS]
    for question, response in zip(QUESTIONS, responses, strict=True):
        ids = torch.tensor([model.prompt_ids(question.question)])
        out = model.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
        )
        assert response.token_ids == tuple(out[0, ids.shape[1] :].tolist())


def test_the_prompts_have_different_lengths(llama: StudyModel):
    assert len({len(llama.prompt_ids(question.question)) for question in QUESTIONS}) == len(QUESTIONS)


# -- draw ---------------------------------------------------------------------------------------------


def reference(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities of softmax with temperature, top-k, then top-p."""
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    shares = np.exp((logits[order] - logits[order[0]]) / sampling.temperature)
    shares /= shares.sum()
    kept, total = [], 0.0
    for share in shares:
        kept.append(share)
        total += share
        if total >= sampling.top_p:
            break
    out = np.zeros(len(logits))
    out[order[: len(kept)]] = np.array(kept) / sum(kept)
    return out


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, 0, 1.0),
        Sampling(1.0, 5, 1.0),
        Sampling(1.0, 0, 0.7),
        Sampling(0.5, 8, 0.9),
        Sampling(2.0, 500, 0.95),
        Sampling(1.0, 1, 1.0),
    ],
)
def test_draw_follows_the_distribution(sampling: Sampling):
    logits = torch.randn(20, generator=torch.Generator().manual_seed(1)) * 1.5
    count = 20_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, logprobs = draw(logits.expand(count, -1), grid, sampling)
    frequencies = np.bincount(tokens.numpy(), minlength=20) / count
    # On an even grid each token's share is exact but for one point at either edge of its interval.
    np.testing.assert_allclose(frequencies, reference(logits.double().numpy(), sampling), atol=2 / count)
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1)[tokens])


def test_draw_takes_the_best_token_when_top_p_is_tiny_or_temperature_zero():
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(2))
    random = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for sampling in (Sampling(1.0, 0, 1e-9), Sampling(0.0, 0, 1.0), Sampling(0.0, 5, 0.5), Sampling(1e-4, 0, 1.0)):
        tokens, _ = draw(logits, random, sampling)
        assert torch.equal(tokens, logits.argmax(-1))


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.01, 5),
    st.integers(0, 14),
    st.floats(1e-6, 1),
)
def test_draw_never_leaves_what_top_k_and_top_p_keep(values, random, temperature, top_k, top_p):
    sampling = Sampling(temperature, top_k, top_p)
    token, logprob = draw(torch.tensor([values]), torch.tensor([random], dtype=torch.float64), sampling)
    better = sorted((v for v in values if v > values[int(token)]), reverse=True)
    assert not top_k or len(better) < top_k
    shares = np.exp((np.array(values) - max(values)) / temperature)
    if top_k:
        shares = np.sort(shares)[::-1][:top_k]
    before = np.exp((np.array(better) - max(values)) / temperature).sum() / shares.sum()
    assert before < top_p + 1e-9
    assert logprob[0] <= 1e-5


def test_draw_at_the_edges_of_the_random_numbers():
    logits = torch.tensor([[0.0, 1.0, -math.inf, 2.0]] * 2)
    tokens, _ = draw(logits, torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64), Sampling(1.0, 0, 1.0))
    assert tokens.tolist() == [3, 0]


# -- random numbers -----------------------------------------------------------------------------------


def test_uniforms_belong_to_seed_question_and_sample():
    def numbers(seed: int, question: Question, sample: int) -> tuple:
        return tuple(uniforms(Sampling(seed=seed), Request(question, sample)))

    first = numbers(0, QUESTIONS[0], 0)
    assert first == numbers(0, Question("a", "other text", ()), 0)
    others = [numbers(1, QUESTIONS[0], 0), numbers(0, QUESTIONS[1], 0), numbers(0, QUESTIONS[0], 1)]
    assert len({first, *others}) == 4
    assert all(0 <= number < 1 for number in first)
    assert len(first) == 50


def test_more_tokens_keep_the_first_random_numbers():
    request = Request(QUESTIONS[0], 3)
    short, long = uniforms(Sampling(max_new_tokens=5), request), uniforms(Sampling(max_new_tokens=9), request)
    np.testing.assert_array_equal(short, long[:5])


@pytest.fixture(scope="module")
def exact() -> StudyModel:
    """In float64, where the batch changes nothing that a random number could see; some frequent tokens end a turn."""
    model = tiny.study("llama", double=True)
    return ended_by(model, *common(HFEngine(model).sample(requests(6), Sampling(max_new_tokens=10)), 12))


def test_the_batch_changes_nothing(exact: StudyModel):
    sampling = Sampling(temperature=1.2, top_k=50, top_p=0.95, max_new_tokens=16, seed=5)
    wanted = requests(6)
    reference = HFEngine(exact).sample(wanted, sampling)
    assert {r.finish_reason for r in reference} == {"stop", "length"}
    assert len({len(r.token_ids) for r in reference}) > 4
    assert len({r.token_ids for r in reference}) > 20
    for rows in (1, 3, 7):
        assert HFEngine(exact, max_rows=rows).sample(wanted, sampling) == reference
    engine = HFEngine(exact)
    assert engine.sample(wanted[::-1], sampling)[::-1] == reference
    singly = [engine.sample([request], sampling)[0] for request in wanted]
    assert singly == reference
    assert HFEngine(exact).sample(wanted, sampling) == reference


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("temperature", [0.0, 0.15, 0.6])
def test_samples_share_a_row_until_they_part(kind: str, temperature: float):
    model = tiny.study(kind, double=True)
    sampling = Sampling(temperature, max_new_tokens=10, seed=2)
    singly = [HFEngine(model).sample([request], sampling)[0] for request in requests(5)]
    rows: list[int] = []

    def count(_: Any, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].shape[1] == 1:
            rows.append(len(inputs[0]))

    hook = model.model.get_input_embeddings().register_forward_pre_hook(count)
    together = HFEngine(model).sample(requests(5), sampling)
    hook.remove()
    assert [r.token_ids for r in together] == [r.token_ids for r in singly]
    for one, other in zip(together, singly, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-6)
    paths = {(r.question_id, r.token_ids[:end]) for r in together for end in range(1, len(r.token_ids))}
    # A row that nobody is in any more may stay until a fifth of them have gone.
    assert len(paths) <= sum(rows) <= 1.25 * len(paths)


def test_another_seed_changes_the_responses(exact: StudyModel):
    engine = HFEngine(exact)
    first, second = (engine.sample(requests(3), Sampling(seed=seed, max_new_tokens=8)) for seed in (0, 1))
    assert sum(a.token_ids != b.token_ids for a, b in zip(first, second, strict=True)) > 10


def test_samples_of_one_question_differ(exact: StudyModel):
    responses = HFEngine(exact).sample([Request(QUESTIONS[0], k) for k in range(8)], Sampling(max_new_tokens=8))
    assert len({response.token_ids for response in responses}) > 4


def test_no_requests_no_responses(llama: StudyModel):
    engine = HFEngine(llama)
    engine.sample(requests(), GREEDY)
    assert engine.sample([], GREEDY) == []


# -- what a response holds ----------------------------------------------------------------------------


def test_logprobs_are_those_of_a_full_pass(llama: StudyModel):
    for response in HFEngine(llama).sample(requests(2), Sampling(temperature=0.7, max_new_tokens=10)):
        question = next(q for q in QUESTIONS if q.id == response.question_id)
        prompt = llama.prompt_ids(question.question)
        with torch.no_grad():
            logits = llama.model(torch.tensor([[*prompt, *response.token_ids]])).logits[0]
        logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
        own = logprobs[torch.arange(len(response.token_ids)), torch.tensor(response.token_ids)]
        np.testing.assert_allclose(response.logprobs, own.numpy(), atol=1e-4)
        assert response.mean_logprob == pytest.approx(float(own.mean()), abs=1e-4)


def test_end_of_turn_is_in_the_ids_and_not_in_the_text():
    model = tiny.study()
    free = HFEngine(model).sample(requests(), GREEDY)
    end = free[1].token_ids[3]
    ended_by(model, end)
    for before, after in zip(free, HFEngine(model).sample(requests(), GREEDY), strict=True):
        if end in before.token_ids:
            cut = before.token_ids.index(end)
            assert after.finish_reason == "stop"
            assert after.token_ids == before.token_ids[: cut + 1]
            assert after.text == decode(model, before.token_ids[:cut])
            assert len(after.logprobs) == cut + 1
        else:
            assert (after.finish_reason, after.token_ids) == ("length", before.token_ids)
    assert any(end in response.token_ids for response in free)


def test_rows_that_leave_change_nothing_for_the_others():
    model = tiny.study(double=True)
    sampling = Sampling(temperature=1.0, max_new_tokens=14)
    free = HFEngine(model).sample(requests(4), sampling)
    ends = set(common(free, 6))
    ended_by(model, *ends)
    ended = HFEngine(model).sample(requests(4), sampling)
    for before, after in zip(free, ended, strict=True):
        cut = next((i for i, token in enumerate(before.token_ids) if token in ends), len(before.token_ids) - 1)
        assert after.token_ids == before.token_ids[: cut + 1]
    assert len({len(response.token_ids) for response in ended}) > 3


def test_the_token_limit_is_kept_and_named(llama: StudyModel):
    for limit in (1, 4):
        responses = HFEngine(llama).sample(requests(), Sampling(temperature=0, max_new_tokens=limit))
        assert {len(r.token_ids) for r in responses} == {limit}
        assert {r.finish_reason for r in responses} == {"length"}


def test_without_a_template_the_answer_ends_with_its_line():
    model = tiny.study(chat=False)
    newline = model.tokenizer.encode("\n", add_special_tokens=False)[0]
    free = HFEngine(model).sample(requests(4), Sampling(max_new_tokens=12))
    # Swap the output rows of a token that comes up often and of the newline.
    often = next(token for token in common(free, 5) if token != newline)
    head = model.model.lm_head.weight.data
    head[[often, newline]] = head[[newline, often]]
    responses = HFEngine(model).sample(requests(4), Sampling(max_new_tokens=12))
    stopped = [r for r in responses if r.finish_reason == "stop"]
    assert stopped
    assert not any("\n" in r.text for r in responses)
    assert not any(newline in r.token_ids for r in responses)
    assert all(len(r.token_ids) < 12 for r in stopped)


def test_with_a_template_a_newline_does_not_end_it():
    model = tiny.study()
    newline = model.tokenizer.encode("\n", add_special_tokens=False)[0]
    often = common(HFEngine(model).sample(requests(), GREEDY), 1)[0]
    head = model.model.lm_head.weight.data
    head[[often, newline]] = head[[newline, often]]
    assert any("\n" in r.text.strip("\n") or "\n" in r.text for r in HFEngine(model).sample(requests(), GREEDY))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error(value: float):
    model = tiny.study()
    model.model.lm_head.weight.data[3] = value
    with pytest.raises(NumericError, match="float32"):
        HFEngine(model).sample(requests(), Sampling(max_new_tokens=3))


# -- tokens and characters ----------------------------------------------------------------------------


def tiles(model: StudyModel, ids: tuple[int, ...], text: str) -> list[str]:
    """The text each token wrote, after checking that they lie end to end over the whole text."""
    offsets = token_offsets(model, ids, text)
    assert len(offsets) == len(ids)
    at = 0
    for start, end in offsets:
        assert start == at
        assert end >= start
        at = end
    assert at == len(text)
    return [text[start:end] for start, end in offsets]


@settings(max_examples=150)
@given(st.text(max_size=30), st.integers(0, 2))
def test_offsets_tile_the_text(llama: StudyModel, text: str, ends: int):
    assume("<|" not in text)
    ids = tuple(llama.tokenizer.encode(text, add_special_tokens=False)) + (2,) * ends
    assert decode(llama, ids) == text
    pieces = tiles(llama, ids, text)
    assert all(piece == "" for piece in pieces[len(pieces) - ends :])


@settings(max_examples=100)
@given(st.text("aé☕👩🏽‍🚀漢 n\u0301", min_size=1, max_size=12), st.data())
def test_offsets_tile_a_text_cut_within_a_character(llama: StudyModel, text: str, data: st.DataObject):
    ids = llama.tokenizer.encode(text, add_special_tokens=False)
    cut = tuple(ids[: data.draw(st.integers(1, len(ids)))])
    tiles(llama, cut, decode(llama, cut))


def test_a_character_belongs_to_the_token_that_completes_it(llama: StudyModel):
    text = "in ☕ the"
    ids = tuple(llama.tokenizer.encode(text, add_special_tokens=False))
    pieces = tiles(llama, ids, text)
    cup = next(i for i, piece in enumerate(pieces) if "☕" in piece)
    assert pieces[cup - 2 : cup] == ["", ""]
    assert decode(llama, ids[: cup + 1]).endswith("☕")
    assert not decode(llama, ids[:cup]).endswith("☕")


def test_end_of_turn_tokens_write_nothing(llama: StudyModel):
    assert token_offsets(llama, (2,), "") == [(0, 0)]
    assert token_offsets(llama, (), "") == []


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_the_few_that_are_left_go_together_wherever_they_were_prefilled(kind: str):
    model = tiny.study(kind, double=True)
    sampling = Sampling(0.6, max_new_tokens=6, seed=2)
    alone = {
        (r.question_id, r.sample): r for request in requests(2) for r in HFEngine(model).sample([request], sampling)
    }
    engine = HFEngine(model, prompts_a_batch=2)
    first = engine.sample([request for request in requests(2) if request.sample == 0], sampling)
    rows: list[int] = []

    def count(_: Any, inputs: tuple[Tensor, ...]) -> None:
        rows.append(len(inputs[0]))

    hook = model.model.get_input_embeddings().register_forward_pre_hook(count)
    second = engine.sample([request for request in requests(2) if request.sample == 1], sampling)
    hook.remove()
    for response in (*first, *second):
        expected = alone[response.question_id, response.sample]
        assert response.token_ids == expected.token_ids
        np.testing.assert_allclose(response.logprobs, expected.logprobs, atol=1e-6)
    # Plain caches can be joined; a sliding window can't.
    assert (max(rows) > 2) == (kind != "gemma3")
