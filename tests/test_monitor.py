from typing import Any

import numpy as np
import pytest
import torch

import tiny
from hneurons.errors import CardError, UsageError
from hneurons.live.jobs import Done, Message, Piece
from hneurons.live.monitor import Monitor
from hneurons.models.load import StudyModel
from hneurons.neurons.cett import Passage, PooledExtractor
from hneurons.neurons.scaling import scale
from hneurons.neurons.tokens import token_scores
from hneurons.types import Region, Span
from test_tokens import NEURONS, card_of

KINDS = ["llama", "gpt2", "opt", "gemma3"]


def monitor(kind: str = "llama", **options: Any) -> Monitor:
    model = tiny.study(kind, double=True)  # rounding aside, there is one right score
    return Monitor(model, card_of(model, NEURONS), **options)


def said(events: list[Any]) -> tuple[list[int], Done]:
    """Token ids that were written, and the end."""
    ids = [token.id for event in events if isinstance(event, Piece) for token in event.tokens]
    assert isinstance(events[-1], Done)
    return ids, events[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [1.0, 0.0, 2.0])
def test_streamed_scores_are_those_of_the_finished_text(kind: str, alpha: float):
    watcher = monitor(kind)
    events = list(watcher.generate("Where is Paris?", max_tokens=8, seed=3, alpha=alpha))
    ids, done = said(events)
    assert done.reading is not None
    asked = watcher.model.encode(watcher.model.chat([{"role": "user", "content": "Where is Paris?"}]))
    with scale(watcher.model, watcher.card, alpha):
        offline = token_scores(watcher.model, watcher.card, Passage("q", (*asked, *ids), len(asked), (0, 1)))
    np.testing.assert_allclose(done.reading.scores, offline, atol=1e-5)
    marks = [mark for event in events if isinstance(event, Piece) for mark in event.marks]
    assert [mark.index for mark in marks] == list(range(len(ids)))
    np.testing.assert_allclose([mark.score for mark in marks], offline, atol=1e-5)
    means = np.cumsum(offline) / np.arange(1, len(offline) + 1)
    np.testing.assert_allclose([mark.running for mark in marks], watcher.card.risk(means), atol=1e-5)
    assert marks[-1].running == pytest.approx(done.reading.response_risk, abs=1e-9)


def test_the_reading_of_an_answer_is_the_score_of_the_study():
    watcher = monitor()
    text = "The capital of France is Paris."
    reading = watcher.score("What is the capital of France?", text)
    assert reading is not None
    assert reading.answer is not None
    assert reading.answer_tokens is not None
    assert text[reading.answer.start : reading.answer.end] == "Paris"
    model = watcher.model
    asked = model.encode(model.chat([{"role": "user", "content": "What is the capital of France?"}]))
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    span = (reading.answer_tokens.start, reading.answer_tokens.end)
    features = PooledExtractor(model, [Region.ANSWER])([Passage("q", (*asked, *ids), len(asked), span)])
    score = watcher.card.score(features[:, 0])[0]
    assert reading.score == pytest.approx(score, abs=1e-5)
    assert reading.risk == pytest.approx(float(watcher.card.risk(score)), abs=1e-5)
    assert reading.flagged == (reading.risk >= 0.5)
    top = [abs(value) for _, value in reading.top]
    assert top == sorted(top, reverse=True)
    assert sum(value for _, value in reading.top) + watcher.card.probe.intercept == pytest.approx(score, abs=1e-4)


def test_a_response_without_an_answer_is_read_as_a_whole():
    reading = monitor().score("What is the capital of France?", "I don't know.")
    assert reading is not None
    assert reading.answer is None
    assert reading.score == pytest.approx(np.mean(reading.scores))
    assert reading.risk == reading.response_risk


def test_many_are_the_same_as_one_by_one_and_in_order():
    watcher = monitor()
    pairs = [(f"What is number {n}?" * (1 + n % 3), f"It is {n}." + " So it is." * (n % 4)) for n in range(7)]
    many = watcher.score_many(pairs, batch_tokens=200)
    for (prompt, text), reading in zip(pairs, many, strict=True):
        alone = watcher.score(prompt, text)
        assert alone is not None
        assert reading is not None
        np.testing.assert_allclose(reading.scores, alone.scores, atol=1e-5)
        assert reading.answer == alone.answer


@pytest.mark.parametrize("text", ["", " \n"])
def test_nothing_said_has_no_reading(text: str):
    assert monitor().score("Who?", text) is None


def test_the_thinking_block_counts_for_nothing():
    watcher = monitor()
    plain = watcher.score("What is the capital of France?", "The capital of France is Paris.")
    thought = watcher.score(
        "What is the capital of France?", "<think>France, so Paris or Vienna.</think>\nThe capital of France is Paris."
    )
    assert plain is not None
    assert thought is not None
    assert len(thought.scores) == len(plain.scores)
    assert thought.answer is not None
    assert thought.answer.start > 40
    assert thought.answer.end - thought.answer.start == len("Paris")


@pytest.mark.parametrize("kind", KINDS)
def test_watching_transformers_generate(kind: str):
    watcher = monitor(kind)
    model = watcher.model
    asked = torch.tensor([model.prompt_ids("Who?")])
    with watcher.watch() as gauge:
        written = model.model.generate(asked, max_new_tokens=5, do_sample=False, min_new_tokens=5)
    ids = tuple(written[0].tolist())
    offline = token_scores(model, watcher.card, Passage("q", ids, asked.shape[1], (0, 1)))
    assert gauge.scores.shape == (1, len(ids) - 1)  # the last token was drawn and not read
    np.testing.assert_allclose(gauge.scores[0, asked.shape[1] :], offline[:-1], atol=1e-5)
    np.testing.assert_allclose(gauge.risks, watcher.card.risk(gauge.scores))


def test_batches_of_different_rows_are_not_one_gauge():
    watcher = monitor()
    with watcher.watch() as gauge, torch.inference_mode():
        watcher.model.model(torch.tensor([[3, 4]]))
        watcher.model.model(torch.tensor([[3, 4], [5, 6]]))
    with pytest.raises(UsageError, match="changed its rows"):
        _ = gauge.scores


def test_the_threshold_is_the_cards_or_ones_own():
    assert monitor().threshold == 0.5
    reading = monitor(threshold=0.0).score("Who?", "I am.")
    assert reading is not None
    assert reading.flagged
    for threshold, flagged in ((reading.risk, True), (np.nextafter(reading.risk, 1), False)):  # from it on
        again = monitor(threshold=float(threshold)).score("Who?", "I am.")
        assert again is not None
        assert (again.risk, again.flagged) == (reading.risk, flagged)
    with pytest.raises(UsageError, match="between 0 and 1"):
        monitor(threshold=float("nan"))


def test_a_conversation_with_a_system_turn_is_read_after_its_last_question():
    watcher = monitor()
    turns = [Message("system", "Be brief."), {"role": "user", "content": "What is the capital of France?"}]
    reading = watcher.score(turns, "The capital of France is Paris.")
    assert reading is not None
    assert reading.answer == Span(25, 30)
    with pytest.raises(UsageError, match="no turn"):
        watcher.score([{"role": "robot", "content": "x"}], "y")
    with pytest.raises(UsageError, match="empty"):
        watcher.score([], "y")


def test_a_prompt_too_long_for_the_model_is_refused():
    with pytest.raises(UsageError, match="reads 256"):
        monitor().score("word " * 300, "yes")


def test_a_card_of_another_model_is_refused(llama: StudyModel):
    with pytest.raises(CardError, match="doesn't fit"):
        Monitor(llama, card_of(tiny.study("gpt2"), NEURONS))
