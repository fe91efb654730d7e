"""What the review reads from a run: numbers of the peers, scores of rewritten answers, domains."""

import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from hneurons.answers.normalise import normalise
from hneurons.neurons.card import Card
from hneurons.neurons.cett import Passage
from hneurons.neurons.tokens import token_scores
from hneurons.progress import default_progress
from hneurons.questions.sources import QuestionSet, load_questions
from hneurons.results import Run
from hneurons.runfolder import RunFolder
from hneurons.settings import IdentifySettings
from hneurons.studies import peers
from hneurons.studies.collect import Collection, Tools
from hneurons.studies.controls import make_controls
from hneurons.studies.identify import identify
from hneurons.studies.review import Reviewer, peer_data, score_rewrites
from hneurons.studies.verbosity import Cell, rewrites
from hneurons.types import Question, Span

pytestmark = pytest.mark.usefixtures("no_figures")
SETTINGS = IdentifySettings(
    samples=3, folds=3, random_sets=2, bootstrap=100, per_class=40, path_points=4, chunk=16, max_share=0.2, refits=4
)


def answer(question: Question, sample: int) -> str:
    """`half_right`, put in another way by one sample of each third question."""
    said = tiny.half_right(question, sample)
    return said.replace("The city is", "It is") if sample == 2 and int(question.id[1:]) % 3 == 0 else said


def collect(folder: Path, *, chat: bool = True) -> Collection:
    opened = RunFolder(folder)
    opened.load()
    questions = load_questions(folder.parent / "cities.jsonl")
    return Collection(opened, tiny.study(chat=chat), questions, SETTINGS, Tools(), default_progress())


@pytest.fixture(scope="module", params=[True, False], ids=["chat", "base"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder, model = tmp_path_factory.mktemp("run"), tiny.study(chat=request.param)
    rows = [json.loads(line) for line in tiny.write_questions(folder / "cities.jsonl", 90).read_text().splitlines()]
    text = "".join(json.dumps({**row, "domain": "even" if i % 2 else "odd"}) + "\n" for i, row in enumerate(rows))
    (folder / "cities.jsonl").write_text(text)
    identify(model, folder / "cities.jsonl", folder / "out", SETTINGS, engine=tiny.ScriptedEngine(model, answer))
    return collect(folder / "out", chat=request.param)


def test_numbers_of_the_peers_are_those_of_the_responses(data: Collection):
    examples, rows = data.rows("test")
    found = peer_data(data, "test").numbers
    assert set(found) == set(peers.number_costs())
    responses = [json.loads(line) for line in (data.folder / "responses.jsonl").read_text().splitlines()]
    for place, (example, row) in enumerate(zip(examples, rows, strict=True)):
        logprobs = np.array(example.response.logprobs)
        span = example.answer_tokens
        assert found[peers.LENGTH][place] == len(example.response.token_ids)
        assert found[peers.MEAN_LOGPROB][place] == pytest.approx(logprobs.mean())
        assert found[peers.MIN_LOGPROB][place] == logprobs.min()
        assert found[peers.ANSWER_LOGPROB][place] == pytest.approx(logprobs[span.start : span.end].mean())
        texts = [normalise(r["text"]) for r in responses if r["question_id"] == example.question_id]
        own = normalise(example.response.text)
        assert found[peers.SELF_CONSISTENCY][place] == pytest.approx(np.mean([text == own for text in texts]))
        assert found[peers.DISTINCT][place] == len(set(texts))
        assert data.readout is not None
        assert found[peers.ENTROPY][place] == pytest.approx(data.readout.entropies[row].mean())
    assert len(set(found[peers.SELF_CONSISTENCY])) == 2


def test_rewritten_answers_are_scored_as_if_they_had_been_said(data: Collection):
    card = Card.load(data.folder / "neurons.json")
    examples, _ = data.rows("test")
    rows = rewrites(examples, data.questions.questions, 0).rows[:8]
    assert {row.cell for row in rows} == set(Cell)
    scores = score_rewrites(data, card, rows)
    tokenizer = data.model.tokenizer
    for row, score in zip(rows, scores, strict=True):
        lead = "" if data.model.has_chat_template else " "
        encoded = tokenizer(lead + row.text, add_special_tokens=False, return_offsets_mapping=True)
        inside = [
            i for i, (start, end) in enumerate(encoded["offset_mapping"])
            if start < row.answer.end + len(lead) and end > row.answer.start + len(lead)
        ]  # fmt: skip
        prompt = data.model.prompt_ids(row.question)
        ids = (*prompt, *encoded["input_ids"], tokenizer.eos_token_id)
        span = Span(inside[0], inside[-1] + 1)
        passage = Passage("by hand", ids, len(prompt), (span.start, span.end))
        # The score is linear in the contributions, so that of the average is the average of the tokens' scores.
        by_hand = token_scores(data.model, card, passage)[span.start : span.end].mean()
        assert score == pytest.approx(by_hand, rel=1e-4, abs=1e-4)


def test_domains_that_the_card_was_not_calibrated_on_are_counted(data: Collection):
    card = Card.load(data.folder / "neurons.json")
    assert set(card.provenance["domains"]) == {"even", "odd"}
    sizes = {"sets": 2, "seed": 0}
    controls = make_controls(card, data.training("train"), data.evaluation("validation"), **sizes)
    assert Reviewer(data, card, controls).dataset(data, "test")["outside_domains"] == {}
    narrow = card.model_copy(update={"provenance": {**card.provenance, "domains": {"odd": 5}}})
    outside = Reviewer(data, narrow, controls).dataset(data, "test")["outside_domains"]
    assert outside == {"even": sum(example.domain == "even" for example in data.rows("test")[0])}


def test_every_part_is_there_or_says_why(data: Collection):
    evaluation = Run(data.folder.path).evaluation
    for part in ("stability", "domain_calibration", "guarantees", "transfer", "verbosity"):
        assert evaluation[part], part
    by_domain = evaluation["domain_calibration"]
    assert (by_domain["test"] is None) == (not by_domain["covered"])
    promise = evaluation["guarantees"]["unflagged"]
    assert promise["guarantee"] or (promise["problem"] and promise["remedy"])
    assert len(evaluation["stability"]["bootstrap"]["neurons"]) >= len(Run(data.folder.path).card.h_neurons)


def test_without_test_answers_to_rewrite(data: Collection):
    card = Card.load(data.folder / "neurons.json")
    controls = make_controls(card, data.training("train"), data.evaluation("validation"), sets=2, seed=0)
    reviewer = Reviewer(data, card, controls)
    whole, reviewer.own.questions = reviewer.own.questions, QuestionSet("none", ())
    try:
        assert set(reviewer.verbosity()) == {"problem", "remedy"}
    finally:
        reviewer.own.questions = whole
