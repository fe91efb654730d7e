"""Sampling against two plain ways, on the wall clock, and the tokens that deciding questions takes.

    python benchmarks/sampling.py tokens          tokens generated until every question is decided
    python benchmarks/sampling.py one-by-one      10 samples a question, one prompt at a time, ten times over
    python benchmarks/sampling.py generate        10 samples a question, `model.generate` on padded batches

`tokens` draws all 10 samples of some questions, picks a set of which a quarter is consistent, and decides it again with
the same random numbers by rounds: the kept questions must be the same. Counted are tokens that were computed; samples
of a question that agree so far share them. Temperature 1 is the paper's; 0.3, the demo's, is in `by_temperature`.

The two on the wall clock draw all 10 samples of every question on both sides, from the same distribution, up to the
same number of tokens; nothing is gained by stopping early. Both sides have all CPUs. Ours gets as many questions as a
run asks together; the plain way, whose time grows with them in proportion, gets the first of these, and times are
compared a token. `generate` gets the size of batch that is the fastest of a few.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from measure import all_cpus, in_turn, options, scaled, seconds, show, way

import hneurons as hn
from hneurons.answers.consistency import Rule, right_verdict, sample_questions
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.answers.judge import AliasJudge
from hneurons.types import Question, Response, Verdict

SAMPLES, RULE = 10, Rule(10, 10)
BATCHES = (4, 8, 16)
"""Prompts of a batch, each with 10 samples, that are tried for `generate`."""
USUAL = Sampling()

measurement = way("tokens", "one-by-one", "generate")
given = options(
    __doc__, questions=320 if measurement == "tokens" else 128, rounds=3,
    plainly={"tokens": 0, "one-by-one": 8, "generate": 32}[measurement],
)  # fmt: skip
threads = all_cpus()
model = hn.load_model("smollm2-135m", device="cpu")
few, short = (3, 6) if measurement == "tokens" else (1, 3)  # of a quick test: questions, and tokens of a response
asked = list(hn.load_questions("starter", limit=few if given.quick else given.questions, seed=0).questions)
most = short if given.quick else USUAL.max_new_tokens
told = {
    "model": model.name, "samples": SAMPLES, "top_k": USUAL.top_k, "top_p": USUAL.top_p, "max_new_tokens": most,
}  # fmt: skip


def full(questions: Sequence[Question], sampling: Sampling) -> list[Response]:
    """All samples of every question."""
    requests = [Request(question, k) for question in questions for k in range(SAMPLES)]
    return HFEngine(model).sample(requests, sampling)


def count(responses: Sequence[Response]) -> int:
    return sum(len(response.token_ids) for response in responses)


# -- tokens -------------------------------------------------------------------------------------------


class Counting:
    """The engine, with the tokens that it computed: samples of a question drawn together share what they agree on."""

    def __init__(self) -> None:
        self.engine = HFEngine(model)
        self.computed = 0

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        responses = self.engine.sample(requests, sampling)
        self.computed += len(
            {(r.question_id, r.token_ids[: end + 1]) for r in responses for end in range(len(r.token_ids))}
        )
        return responses


def by_question(responses: Sequence[Response]) -> dict[str, list[Response]]:
    """The responses to each question, in the order of the samples."""
    found: dict[str, list[Response]] = {}
    for response in sorted(responses, key=lambda response: response.sample):
        found.setdefault(response.question_id, []).append(response)
    return found


def label(question: Question, responses: Sequence[Response]) -> str | None:
    judge = AliasJudge()
    return RULE.label([judge.judge(question, response.text) for response in responses], right_verdict(question))


def least(question: Question, responses: Sequence[Response]) -> int:
    """Tokens that no scheme which looks at one sample at a time and shares no token could go below."""
    verdicts: list[Verdict] = []
    for number, response in enumerate(responses, 1):
        verdicts.append(AliasJudge().judge(question, response.text))
        if not RULE.open_labels(verdicts, right_verdict(question)):
            return count(responses[:number])
    return count(responses)


def tokens(temperature: float) -> dict[str, Any]:
    """Tokens by rounds, as a share of those of full sampling, on a set of which a quarter is consistent."""
    sampling = Sampling(temperature=temperature, max_new_tokens=most)
    whole = by_question(full(asked, sampling))
    labels = {question.id: label(question, whole[question.id]) for question in asked}
    consistent = [question for question in asked if labels[question.id]]
    mixed = [question for question in asked if not labels[question.id]]
    size = min(len(consistent), len(mixed) // 3)
    chosen = [*consistent[:size], *mixed[: 3 * size]] or asked[:4]  # of a quick test, where nothing is consistent
    engine = Counting()
    decided = by_question(sample_questions(engine, AliasJudge(), chosen, sampling, RULE))
    again = {question.id: label(question, decided[question.id]) for question in chosen}
    assert again == {key: labels[key] for key in again}, "the kept set differs from that of full sampling"
    alike = [a.token_ids == whole[key][a.sample].token_ids for key, mine in decided.items() for a in mine]
    every = sum(count(whole[question.id]) for question in chosen)
    drawn = sum(count(mine) for mine in decided.values())
    return {
        "ratio": round(engine.computed / every, 4),
        "questions": len(chosen),
        "consistent": size,
        "consistent of all asked": len(consistent),
        "same_kept_set": True,
        "responses that are the same to the token": round(sum(alike) / len(alike), 4),
        "if no tokens were shared": round(drawn / every, 4),
        "one sample at a time, no tokens shared": round(sum(least(q, whole[q.id]) for q in chosen) / every, 4),
        "tokens a question, full sampling": round(every / len(chosen), 1),
    }


# -- the wall clock -----------------------------------------------------------------------------------


@torch.inference_mode()
def generate(questions: Sequence[Question], samples: int) -> int:
    """Plainly, with transformers: one left-padded batch. Returns the number of tokens in the responses."""
    prompts = [model.prompt_ids(question.question) for question in questions]
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[model.end_ids[0]] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = model.model.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, num_return_sequences=samples, max_new_tokens=most,
        temperature=USUAL.temperature, top_k=USUAL.top_k, top_p=USUAL.top_p, eos_token_id=model.end_ids,
        pad_token_id=model.end_ids[0],
    )  # fmt: skip
    said = out[:, longest:]
    ended = torch.isin(said, torch.tensor(model.end_ids))
    return int(torch.where(ended.any(dim=1), ended.int().argmax(dim=1) + 1, said.shape[1]).sum())


def one_by_one(questions: Sequence[Question]) -> int:
    return sum(generate([question], 1) for question in questions for _ in range(SAMPLES))


def padded_batches(questions: Sequence[Question], size: int) -> int:
    parts = [questions[start : start + size] for start in range(0, len(questions), size)]
    return sum(generate(part, SAMPLES) for part in parts)


def wall_clock() -> None:
    sampling, said = Sampling(max_new_tokens=most), dict[str, int]()
    some = asked[: 1 if given.quick else given.plainly]
    settings = {**told, "temperature": USUAL.temperature, "threads": threads, "questions of the plain way": len(some)}
    work, name, target = one_by_one, "one prompt at a time", 15
    generate(some[:1], 1)  # both are warm before they are timed
    full(asked[:4], sampling)
    if measurement == "generate":
        tried = {size: seconds(partial(padded_batches, some, size)) for size in ((1,) if given.quick else BATCHES)}
        best = min(tried, key=lambda size: tried[size])
        work, name, target = partial(padded_batches, size=best), "`generate` on padded batches", 2
        settings |= {"prompts a batch of generate": best, "seconds by prompts a batch": tried}

    def ours() -> None:
        said["ours"] = count(full(asked, sampling))

    def other() -> None:
        torch.manual_seed(0)
        said["other"] = work(some)

    measured = in_turn(ours, other, 1 if given.quick else given.rounds, warm=False)
    measured = scaled(measured, said["ours"] / said["other"])
    show(
        f"sampling: wall time against {name}", measured["speedup"], target, "min", len(asked), settings,
        tokens=said, **measured,
    )  # fmt: skip


if measurement == "tokens":
    found = {str(temperature): tokens(temperature) for temperature in (1.0, 0.3)}
    first = found["1.0"]
    show(
        "sampling: generated tokens per decided question", first["ratio"], 0.35, "max", first["questions"],
        {**told, "temperature": 1.0, "consistent": first["consistent"]}, by_temperature=found,
    )  # fmt: skip
else:
    wall_clock()
