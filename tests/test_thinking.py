"""Thinking blocks: found in text and tokens, closed when the budget is used up, never part of an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import tiny
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.answers.text import decode, pieces
from hneurons.answers.thinking import MARKS, Budget, Marks, left_open, thinking_length, thinking_tokens
from hneurons.errors import UsageError
from hneurons.models.load import StudyModel
from hneurons.neurons.cett import Passage, PooledExtractor
from hneurons.runfolder import read_json
from hneurons.settings import IdentifySettings
from hneurons.studies.identify import identify
from hneurons.types import Question, Region, Response

THINK = MARKS[0]
WORDS = st.text(alphabet="abc <>/\n.", max_size=12).filter(
    lambda text: not any(mark in text for marks in MARKS for mark in marks[:2])
)
CUTS = st.lists(st.integers(1, 5), min_size=1, max_size=60)


def cut(text: str, sizes: list[int]) -> list[str]:
    """`text` in pieces of those sizes, over and over."""
    made, place, turn = [], 0, 0
    while place < len(text):
        made.append(text[place : place + sizes[turn % len(sizes)]])
        place, turn = place + sizes[turn % len(sizes)], turn + 1
    return made


# -- text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marks", MARKS)
def test_the_block_ends_after_its_mark_and_white_space(marks: Marks):
    block = f"{marks.opening}So, Paris?{marks.closing}\n\n"
    assert thinking_length(block + "Paris.") == len(block)
    assert thinking_length("\n" + block + "Paris.") == len(block) + 1
    opened = f"So, Paris?{marks.closing} "
    assert thinking_length(opened + "Paris.", opened=True) == len(opened)


@pytest.mark.parametrize(
    ("text", "opened", "rest"),
    [
        ("Paris.", False, "Paris."),
        ("", False, ""),
        ("a < b, think>", False, "a < b, think>"),
        ("<think>so", False, ""),
        ("so", True, ""),
        ("", True, ""),
        ("<think></think>Paris", False, "Paris"),
        ("<think>\n\n</think>\n\nParis", False, "Paris"),
        ("so</think>Paris", False, "Paris"),  # a mark of its own closes a block that was opened out of sight
        ("<think>a</think>Lyon<think>no</think>Paris", False, "Paris"),
        ("<think>a</think>Lyon <think>no, wait", False, ""),
        ("<think>the tag </think> is odd</think>Paris", False, "Paris"),
        ("[THINK]a[/THINK]Paris", False, "Paris"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>Paris", False, "Paris"),
    ],
)
def test_what_was_said(text: str, opened: bool, rest: str):
    assert text[thinking_length(text, opened) :] == rest


@given(thought=WORDS, said=WORDS, marks=st.sampled_from(MARKS), opened=st.booleans(), sizes=CUTS)
def test_tokens_and_text_agree_however_they_are_cut(
    thought: str, said: str, marks: Marks, opened: bool, sizes: list[int]
):
    text = ("" if opened else marks.opening) + thought + marks.closing + said
    length = thinking_length(text, opened)
    assert text[length:] == said.lstrip()
    tokens = cut(text, sizes)
    count = thinking_tokens(tokens, opened)
    assert len("".join(tokens[:count])) >= length  # no thinking among what is said
    assert count == 0 or len("".join(tokens[: count - 1])) < length  # and no token too many


@given(said=WORDS, sizes=CUTS)
def test_a_response_without_a_block_is_said_whole(said: str, sizes: list[int]):
    assert thinking_tokens(cut(said, sizes)) == 0


@given(thought=WORDS, sizes=CUTS, marks=st.sampled_from(MARKS))
def test_an_open_block_is_the_whole_response(thought: str, sizes: list[int], marks: Marks):
    tokens = cut(marks.opening + thought, sizes)
    assert thinking_tokens(tokens) == len(tokens)


def test_prompts_that_open_a_block():
    assert left_open("user: Who?\nassistant: <think>\n") == THINK
    assert left_open("user: Who?\nassistant: <think>\n\n</think>\n\n") is None
    assert left_open("What does <think> mean?\nassistant:") is None
    assert left_open("") is None


# -- the budget ---------------------------------------------------------------------------------------


def write(budget: Budget, tokens: list[str], force: dict[int, str], limit: int) -> list[str]:
    """What is written when a model wants to write `tokens`."""
    made: list[str] = []
    wanted = iter(tokens)
    while not budget.is_full(limit):
        number = budget.forced()
        piece = next(wanted, None) if number is None else force[number]
        if piece is None:
            break
        made.append(piece)
        budget.add(piece)
    return made


FORCE = {marks: [10 * i + 1, 10 * i + 2] for i, marks in enumerate(MARKS)}
WRITTEN = {
    10 * i + 1 + j: text for i, marks in enumerate(MARKS) for j, text in enumerate((marks.force[:3], marks.force[3:]))
}


@given(thought=WORDS, said=WORDS, marks=st.sampled_from(MARKS), opened=st.booleans(), sizes=CUTS,
       tokens=st.integers(1, 30), limit=st.integers(1, 20))  # fmt: skip
def test_the_budget_closes_the_block(
    thought: str, said: str, marks: Marks, opened: bool, sizes: list[int], tokens: int, limit: int
):
    begin = "" if opened else marks.opening
    long = cut(begin + thought + "and so on " * 40, sizes)
    budget = Budget(tokens, FORCE, marks if opened else None)
    made = write(budget, long + cut(said, sizes), WRITTEN, limit)
    text = "".join(made)
    assume(begin in text)
    # The mark stands after as many tokens as the budget has (those of the opening mark always get in).
    needed = next(n for n in range(len(made) + 1) if begin in "".join(made[:n]))
    before = next(n for n in range(len(made) + 1) if marks.force.strip() in "".join(made[:n]))
    assert before == max(tokens, needed) + 2
    assert len(made) - before <= limit
    assert budget.spoken <= limit


@given(said=WORDS, sizes=CUTS, limit=st.integers(1, 20))
def test_a_response_without_a_block_has_its_usual_limit(said: str, sizes: list[int], limit: int):
    tokens = cut(said, sizes)
    assert write(Budget(5, FORCE, None), tokens, WRITTEN, limit) == tokens[:limit]


def test_a_block_that_ends_in_time_is_left_alone():
    tokens = ["<think>", "so", "</think>", "\n", "Paris", "."]
    budget = Budget(10, FORCE, None)
    assert write(budget, tokens, WRITTEN, 50) == tokens
    assert budget.spoken == 3


# -- with a model -------------------------------------------------------------------------------------

TEMPLATE = tiny.CHATML.replace(
    "<|im_start|>assistant\n",
    "<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}",
)


def reasoner(template: str = TEMPLATE, *, thinking: bool = True) -> StudyModel:
    model = tiny.study()
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return StudyModel("reasoner", "object", model.model, tokenizer, None, model.ffns, thinking)


def test_the_template_is_told_whether_to_think():
    assert reasoner(thinking=True).prompt("Who?").endswith("<think>\n")
    assert reasoner(thinking=False).prompt("Who?").endswith("</think>\n\n")
    assert tiny.study().prompt("Who?") == reasoner(tiny.CHATML, thinking=True).prompt("Who?")


def test_sampling_keeps_to_both_budgets():
    model = reasoner()
    requests = [Request(Question(f"q{i}", f"Who is number {i}?", ()), 0) for i in range(6)]
    responses = HFEngine(model).sample(requests, Sampling(max_new_tokens=6, thinking=9, seed=3))
    force = model.tokenizer.encode(THINK.force, add_special_tokens=False)
    closed = 0
    for request, response in zip(requests, responses, strict=True):
        ids = [token for token in response.token_ids if token not in model.end_ids]
        assert len(response.logprobs) == len(response.token_ids)
        assert len(response.said) <= 6 + 1
        assert response.text == decode(model, [token for token in response.said if token not in model.end_ids])
        assert "think" not in response.text
        if list(ids[9 : 9 + len(force)]) == force:
            closed += 1
            assert response.thinking_tokens >= 9 + len(force)
        else:
            assert response.thinking_tokens == len(response.token_ids)  # the model ended its turn while thinking
            assert response.text == ""
        # Forced tokens have the model's own log-probability.
        prompt = model.prompt_ids(request.question.question)
        with torch.no_grad():
            logits = model.model(torch.tensor([[*prompt, *response.token_ids]])).logits[0].log_softmax(-1)
        for place, (token, value) in enumerate(zip(response.token_ids, response.logprobs, strict=True)):
            assert value == pytest.approx(float(logits[len(prompt) - 1 + place, token]), abs=1e-3)
    assert closed >= 3


def test_without_a_budget_nothing_changes():
    model = tiny.study()
    requests = [Request(Question("q", "Who?", ()), sample) for sample in range(4)]
    plain = HFEngine(model).sample(requests, Sampling(max_new_tokens=8))
    assert all(response.thinking_tokens == 0 for response in plain)
    assert all(response.said == response.token_ids for response in plain)
    with_budget = HFEngine(model).sample(requests, Sampling(max_new_tokens=8, thinking=5))
    assert [r.token_ids for r in with_budget] == [r.token_ids for r in plain]


def test_regions_never_share_a_token():
    passage = Passage("q", tuple(range(3, 30)), 10, (9, 12), thinking=6)
    masks = {region: passage.mask(region) for region in Region}
    parts = [Region.PROMPT, Region.THINKING, Region.ANSWER, Region.OTHER]
    assert np.sum([masks[region] for region in parts], axis=0).tolist() == [1] * 27
    assert masks[Region.THINKING].nonzero()[0].tolist() == list(range(10, 16))
    assert masks[Region.ANSWER].nonzero()[0].tolist() == [19, 20, 21]
    np.testing.assert_array_equal(masks[Region.RESPONSE], masks[Region.ANSWER] | masks[Region.OTHER])
    features = PooledExtractor(tiny.study(), [Region.THINKING])([passage])[0]
    assert features.any()


def test_mean_logprob_leaves_thinking_out():
    response = Response("q", 0, "x", (1, 2, 3, 4), (-9.0, -9.0, -1.0, -2.0), "stop", thinking_tokens=2)
    assert response.mean_logprob == -1.5
    assert Response("q", 0, "", (1,), (-9.0,), "stop", thinking_tokens=1).mean_logprob == 0.0


class Thinker(tiny.ScriptedEngine):
    """Thinks of the wrong name first."""

    def sample(self, requests: Any, sampling: Sampling) -> list[Response]:
        assert sampling.thinking == 40
        made: list[Response] = []
        for response in super().sample(requests, sampling):
            block = "Is it Wrongville? Hmm.\n</think>\n\n"
            ids = self.model.tokenizer.encode(block, add_special_tokens=False)
            count = thinking_tokens(pieces(self.model, [*ids, *response.token_ids[:-1]]), opened=True)
            assert count == len(ids)
            made.append(
                Response(response.question_id, response.sample, response.text, (*ids, *response.token_ids),
                         (*[-1.0] * len(ids), *response.logprobs), "stop", thinking=block, thinking_tokens=count)
            )  # fmt: skip
        return made


@pytest.mark.usefixtures("no_figures")
def test_a_whole_run_of_a_reasoning_model(tmp_path: Path):
    model = reasoner()
    path = tiny.write_questions(tmp_path / "questions.jsonl", 90)
    settings = IdentifySettings(samples=2, bootstrap=100, random_sets=2, path_points=4, folds=2, refits=4, thinking=40)
    run = identify(model, path, tmp_path / "run", settings, engine=Thinker(model, tiny.half_right))
    examples = [json.loads(line) for line in (run.path / "examples.jsonl").read_text().splitlines()]
    assert examples
    for example in examples:
        response, span = example["response"], example["answer_tokens"]
        assert span["start"] >= response["thinking_tokens"] > 0
        answer = decode(model, response["token_ids"][span["start"] : span["end"]])
        assert answer.strip() in response["text"]
    assert read_json(run.path / "features" / "layout.json")["regions"][-1] == "thinking"
    shown = run.evaluation["showcase"]
    assert all("Wrongville" not in "".join(token["text"] for token in one["tokens"]) for one in shown)
    assert all(any(token["answer"] for token in one["tokens"]) for one in shown)


def test_a_model_that_always_thinks_needs_a_budget(tmp_path: Path):
    model = reasoner(tiny.CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n"))
    path = tiny.write_questions(tmp_path / "questions.jsonl", 9)
    with pytest.raises(UsageError, match="--thinking"):
        identify(model, path, tmp_path / "run")
