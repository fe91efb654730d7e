"""The demo model live: risks while it talks, and several alphas in one batch, in float32 as it is served."""

import queue
from typing import Any

import numpy as np
import pytest
import torch

import hneurons
from cards import probe
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.answers.openai import OpenAIEngine
from hneurons.live.jobs import Done, Event, Failed, Job, Message, Piece
from hneurons.live.monitor import Monitor
from hneurons.live.service import BatchService
from hneurons.models.load import StudyModel
from hneurons.neurons.cett import Passage
from hneurons.neurons.tokens import token_scores
from server_tools import live

pytestmark = pytest.mark.real
QUESTIONS = (
    "What is the capital of France?",
    "Who wrote Hamlet?",
    "What is volor pri octacap used for, and who makes it?",
)
ALPHAS = (1.0, 0.0, 3.0)


@pytest.fixture(scope="module")
def card(model: StudyModel) -> Any:
    """A hundred neurons in most layers, of both signs."""
    described = model.describe()
    rng = np.random.default_rng(0)
    columns = np.sort(rng.choice(model.neurons, 100, replace=False))
    neurons = [
        {"layer": n.layer, "index": n.index, "weight": float(weight)}
        for n, weight in zip(model.layout.ids(columns), rng.normal(0, 3, len(columns)), strict=True)
    ]
    keys = ("id", "architecture", "layers", "width", "neurons")
    return hneurons.Card.model_validate(
        {"model": {key: described[key] for key in keys}, "probe": probe(0.1), "neurons": neurons}
    )


def answers(service: BatchService, jobs: list[Job]) -> list[list[Event]]:
    heard: list[list[Event]] = [[] for _ in jobs]
    over: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number, job in enumerate(jobs):

        def hear(event: Event, number: int = number) -> None:
            heard[number].append(event)
            if isinstance(event, Done | Failed):
                over.put(number)

        service.submit(job, hear)
    for _ in jobs:
        over.get(timeout=120)
    return heard


def test_a_mixed_batch_is_read_and_turned_as_each_response_alone(model: StudyModel, card: Any):
    jobs = [
        Job((Message("user", text),), max_tokens=24, temperature=0.0, alpha=alpha)
        for text in QUESTIONS
        for alpha in ALPHAS
    ]
    with BatchService(model, card) as service:
        heard = answers(service, jobs)
    for job, events in zip(jobs, heard, strict=True):
        done = events[-1]
        assert isinstance(done, Done)
        assert isinstance(job.prompt, tuple)
        asked = model.encode(model.chat([{"role": "user", "content": job.prompt[0].content}]))
        ids = [token.id for event in events if isinstance(event, Piece) for token in event.tokens]
        tokens = [token for event in events if isinstance(event, Piece) for token in event.tokens]
        with hneurons.scale(model, card, job.alpha):
            logits = model.model(torch.tensor([[*asked, *ids]])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
            offline = token_scores(model, card, Passage("q", (*asked, *ids), len(asked), (0, 1)))
        # Greedy: no token was likelier, but for rounding.
        assert float((logits.max(-1).values - logits[range(len(ids)), ids]).max()) < 1e-3
        np.testing.assert_allclose([t.logprob for t in tokens], logits[range(len(ids)), ids].detach(), atol=1e-3)
        assert done.reading is not None
        np.testing.assert_allclose(done.reading.scores, offline, atol=1e-5)


def test_what_it_says_is_scored_as_it_was_streamed(model: StudyModel, card: Any):
    monitor = Monitor(model, card)
    events = list(monitor.generate(QUESTIONS[0], max_tokens=24, temperature=0.0))
    done = events[-1]
    assert isinstance(done, Done)
    assert "Paris" in done.text
    assert done.reading is not None
    again = monitor.score(QUESTIONS[0], done.text)
    assert again is not None
    assert again.score == pytest.approx(done.reading.score, abs=1e-5)
    assert again.risk == pytest.approx(done.reading.risk, abs=1e-5)
    assert again.answer == done.reading.answer
    assert done.reading.answer is not None
    assert done.text[done.reading.answer.start : done.reading.answer.end] == "Paris"


def test_the_engine_for_servers_draws_greedily_what_is_drawn_here(model: StudyModel, card: Any):
    """`--engine openai` on `hneurons serve`, which takes and returns texts."""
    asked = hneurons.load_questions("starter", limit=8, seed=0).questions
    requests, greedy = [Request(question, 0) for question in asked], Sampling(temperature=0.0, max_new_tokens=24)
    here = HFEngine(model).sample(requests, greedy)
    with live(BatchService(model, card)) as server:
        engine = OpenAIEngine(model, f"{server.url}/v1")
        there = engine.sample(requests, greedy)
        engine.close()
    for mine, own in zip(there, here, strict=True):
        assert (mine.question_id, mine.text, mine.finish_reason) == (own.question_id, own.text, own.finish_reason)
        assert mine.mean_logprob == pytest.approx(own.mean_logprob, abs=0.02)  # of the end of the turn, or without
    assert sum(mine.token_ids == own.token_ids for mine, own in zip(there, here, strict=True)) >= 6
    assert any("no token ids" in note for note in engine.notes)
