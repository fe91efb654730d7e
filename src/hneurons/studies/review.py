"""Review: what a sceptic would ask of a probe, measured by default.

Of every data set: peers on the same examples, and confounds. Of the probe: stability, transfer between domains,
calibration, a threshold with a guarantee, and truth against verbosity. A part that can't be had says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from hneurons.answers.spans import to_token_span
from hneurons.answers.text import token_offsets
from hneurons.errors import TooFewExamplesError
from hneurons.neurons.calibration import reliability
from hneurons.neurons.card import Card
from hneurons.neurons.cett import Passage, plan
from hneurons.neurons.choose import TrainingData
from hneurons.neurons.probe import smallest_c
from hneurons.runfolder import Json
from hneurons.studies import peers, stability
from hneurons.studies.collect import Collection
from hneurons.studies.confounds import confounds
from hneurons.studies.controls import Controls, make_controls
from hneurons.studies.existence import evaluate
from hneurons.studies.guarantee import Answers, achieved, promises
from hneurons.studies.tables import EvaluationData
from hneurons.studies.transfer import (
    FOLDS,
    domain_calibration_test,
    outside_domains,
    per_domain_calibration,
    transfer_matrix,
)
from hneurons.studies.verbosity import Rewrite, rewrites, two_by_two
from hneurons.types import Region, Span

Floats = NDArray[np.float64]
VERBOSITY_QUESTIONS = 100


def problem(error: TooFewExamplesError) -> Json:
    """A part that could not be had, and what would help."""
    return {"problem": error.problem, "remedy": error.remedy}


class Reviewer:
    """What is fitted on a run's own examples, and applied to every data set.

    Args:
        own: the run's own collection.
        card: its H-Neurons.
        controls: classifiers on random neurons; fitted here when not given.
    """

    def __init__(self, own: Collection, card: Card, controls: Controls | None = None) -> None:
        self.own = own
        self.card = card
        self.settings = own.settings
        self.train = own.training("train")
        self.validation = own.evaluation("validation")
        self.controls = self._controls() if controls is None else controls
        self._peers = {split: peer_data(own, split) for split in ("train", "validation")}

    def _controls(self) -> Controls:
        sets, seed = self.settings.random_sets, self.settings.seed
        with self.own.progress.bar("Comparing with controls", 2 * sets) as tick:
            return make_controls(self.card, self.train, self.validation, sets=sets, seed=seed, tick=lambda: tick(1))

    def dataset(self, data: Collection, split: str) -> Json:
        """The object of evaluation.json for one data set."""
        test = data.evaluation(split)
        examples, _ = data.rows(split)
        score = self.card.score(test.features)
        result = evaluate(self.card, self.controls, self.validation, test, self.settings)
        draws, seed = self.settings.bootstrap, self.settings.seed
        result["peers"] = self._compare(peer_data(data, split), score, test)
        result["confounds"] = confounds(score, examples, draws=draws, seed=seed)
        result["reliability"] = reliability(
            self.card.risk(score), test.hallucinated, test.clusters, draws=draws, seed=seed
        )
        promise = self.card.probe.guarantee
        result["guarantee"] = achieved(promise, score, test.hallucinated, test.clusters) if promise else None
        result["outside_domains"] = outside_domains(self.card, (example.domain for example in examples))
        return result

    def _compare(self, test_data: peers.PeerData, score: Floats, test: EvaluationData) -> Json:
        known, held = self._peers["train"], self._peers["validation"]
        try:
            found = peers.peer_scores(
                known, held, test_data, self.train.hallucinated, self.validation.hallucinated,
                samples=self.settings.samples,
            )  # fmt: skip
        except TooFewExamplesError as error:
            return problem(error)
        scores = {"validation": self.card.score(self.validation.features), "test": score}
        labels = {"validation": self.validation.hallucinated, "test": test.hallucinated}
        return peers.compare_peers(scores, found, labels, test.clusters, self.settings.bootstrap, self.settings.seed)

    def probe(self) -> Json:
        """Stability, transfer between domains, calibration by domain, and guarantees: parts of evaluation.json."""
        own, card, settings = self.own, self.card, self.settings
        both = self.train.join(own.training("validation"))
        columns = card.columns[card.weights > 0]
        C, solver, seed = card.probe.C, settings.solver, settings.seed
        share = settings.train / (settings.train + settings.validation)

        found: Json = {}
        refits = (settings.refits, settings.refits // 2)
        try:
            with own.progress.bar("Fitting the probe again and again", sum(refits)) as tick:
                found["stability"] = {
                    "bootstrap": stability.selection(
                        self.train, C, solver, columns, refits=refits[0], seed=seed, tick=lambda: tick(1)
                    ),
                    "splits": stability.over_splits(
                        both, share, C, solver, columns, refits=refits[1], seed=seed, tick=lambda: tick(1)
                    ),
                }
        except TooFewExamplesError as error:
            found["stability"] = problem(error)
        validation, test = self.validation, own.evaluation("test")
        held, scored = card.score(validation.features), card.score(test.features)
        domains = [example.domain for example in own.rows("validation")[0]]
        by_domain = per_domain_calibration(held, validation.hallucinated, domains)
        tested = [example.domain for example in own.rows("test")[0]]
        by_domain["test"] = domain_calibration_test(
            by_domain, scored, test.hallucinated, tested, test.clusters, draws=settings.bootstrap, seed=seed
        )
        found["domain_calibration"] = by_domain
        found["guarantees"] = promises(
            Answers.of(held, validation.hallucinated, validation.clusters),
            Answers.of(scored, test.hallucinated, test.clusters),
        )
        found["transfer"] = self.transfer(self.by_domain())
        return found

    def transfer(self, parts: Mapping[str, TrainingData]) -> Json:
        """The matrix of probes trained on each part and tested on each.

        C is the same multiple of each part's smallest C as it is for the card: choosing it anew for every part and fold
        would take longer than everything else.
        """
        multiple = self.card.probe.C / smallest_c(*self.train.design())
        try:
            with self.own.progress.bar("Training on one part, testing on another", len(parts) * FOLDS) as tick:
                return transfer_matrix(parts, self.settings, multiple=multiple, tick=lambda: tick(1))
        except TooFewExamplesError as error:
            return problem(error)

    def by_domain(self) -> dict[str, TrainingData]:
        """All the run's examples by domain of the question."""
        whole = self.own.training(None)
        domains = np.array([example.domain for example in self.own.kept])
        return {str(name): whole.take(np.flatnonzero(domains == name)) for name in np.unique(domains)}

    def verbosity(self) -> Json:
        """The same test answers right and wrong, short and long: evaluation.json's `verbosity`."""
        examples, _ = self.own.rows("test")
        made = rewrites(examples, self.own.questions.questions, self.settings.seed)
        rows = made.rows[: 4 * VERBOSITY_QUESTIONS]
        if not rows:
            return {"problem": "No test answer could be rewritten.", "remedy": "Ask more questions."}
        scores = score_rewrites(self.own, self.card, rows)
        draws, seed = self.settings.bootstrap, self.settings.seed
        found = two_by_two(scores, [r.cell for r in rows], [r.question_id for r in rows], draws=draws, seed=seed)
        return {**found, "dropped": made.dropped}


def peer_data(data: Collection, split: str) -> peers.PeerData:
    """What other predictors see of the examples of a split."""
    examples, rows = data.rows(split)
    said = [np.array(e.response.logprobs[e.response.thinking_tokens :] or (0.0,)) for e in examples]
    spans = [e.said_span for e in examples]
    numbers: dict[str, Floats] = {
        peers.LENGTH: np.array([len(e.response.said) for e in examples], dtype=np.float64),
        peers.MEAN_LOGPROB: np.array([values.mean() for values in said]),
        peers.MIN_LOGPROB: np.array([values.min() for values in said]),
        peers.ANSWER_LOGPROB: np.array([v[s.start : s.end].mean() for v, s in zip(said, spans, strict=True)]),
    }
    if data.settings.samples > 1:
        texts = data.samples_by_question
        found = [peers.self_consistency(texts[e.question_id], e.response.text) for e in examples]
        numbers[peers.SELF_CONSISTENCY] = np.array([share for share, _ in found])
        numbers[peers.DISTINCT] = np.array([float(count) for _, count in found])
    readout = data.readout
    if readout is None:
        return peers.PeerData(numbers, data.features(Region.ANSWER, rows))
    numbers[peers.ENTROPY] = readout.mean_entropy[rows]
    return peers.PeerData(numbers, data.features(Region.ANSWER, rows), readout.hidden[rows])


def score_rewrites(data: Collection, card: Card, rows: Sequence[Rewrite]) -> Floats:
    """The probe's score of texts that the model is made to say: (rows,)."""
    model = data.model
    lead = "" if model.has_chat_template else " "  # after "Answer:" a base model goes on with a space
    end = model.tokenizer.eos_token_id
    passages: list[Passage] = []
    for row in rows:
        text = lead + row.text
        ids = tuple(model.tokenizer.encode(text, add_special_tokens=False))
        chars = Span(row.answer.start + len(lead), row.answer.end + len(lead))
        tokens = to_token_span(chars, token_offsets(model, ids, text))
        assert tokens is not None, "a templated answer has tokens"
        prompt = model.prompt_ids(row.question)
        whole = (*prompt, *ids, *((end,) if isinstance(end, int) else ()))
        passages.append(Passage(row.question_id, whole, len(prompt), (tokens.start, tokens.end)))
    planned = plan(model, passages, data.batch_tokens)
    extractor = data.extractor([Region.ANSWER])
    scores = np.zeros(len(rows))
    with data.progress.bar("Rewriting answers", len(rows)) as tick:
        groups = [[passages[row] for row in part] for part in planned]
        with closing(extractor.many(groups)) as measured:
            for part, found in zip(planned, measured, strict=True):
                scores[part] = card.score(found.dense()[:, 0])
                tick(len(part))
    return scores
