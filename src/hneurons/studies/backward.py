"""Backward transfer: a run's card on another checkpoint of its model, and that checkpoint's own card on the run's.

Every question set that the run was asked is put to the checkpoint as a base model is asked (Gao et al. 2025, sec. 5):
the question and a line that begins with "Answer:", which the model completes. What the run's probe was trained and
calibrated on is left out, by question and by answer; so is, where the two cards are compared, what the other one saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hneurons.answers.normalise import normalise
from hneurons.answers.text import span_text
from hneurons.errors import TooFewExamplesError
from hneurons.models.load import StudyModel
from hneurons.neurons.card import Card
from hneurons.neurons.choose import TrainingData
from hneurons.progress import Progress
from hneurons.questions.sources import QuestionSet
from hneurons.results import Run
from hneurons.runfolder import Json, RunFolder
from hneurons.settings import IdentifySettings
from hneurons.stats import Bootstrap, weighted_auroc
from hneurons.studies.collect import Collection, Tools
from hneurons.studies.controls import Controls, make_controls
from hneurons.studies.evaluate import folder_name, keep_balanced, recorded_settings, verdict_counts
from hneurons.studies.existence import evaluate
from hneurons.studies.identify import identify
from hneurons.studies.records import question_from_json
from hneurons.studies.tables import EvaluationData
from hneurons.types import Example, Question

KEPT = ("n", "faithful", "hallucinated", "questions", "h_neurons", "random", "baselines", "increment")
"""What of an evaluation origin.json holds."""
OTHER_PROMPTS = "A weak base model may need --few-shot 4, a chat model --chat."


@dataclass(frozen=True)
class Asked:
    """A question set that a run was asked."""

    name: str
    questions: tuple[Question, ...]
    left_out: int
    """Questions that the run's probe knows."""
    place: Path
    """Where the answers of the run's own model are."""


@dataclass(frozen=True)
class Plan:
    """How checkpoints are asked."""

    settings: IdentifySettings
    """Of the run."""
    per_class: int
    limit: int | None
    own: bool
    """Whether each checkpoint gets a card of its own."""
    lead: str | None
    """Before each question; None: through the chat template."""
    shown: tuple[Question, ...] = ()
    """The few-shot questions, which are asked nowhere."""

    @property
    def single(self) -> IdentifySettings:
        """Settings of the question sets: one sample a question."""
        changed = {"samples": 1, "agreement": None, "thinking": None, "per_class": self.per_class, "limit": self.limit}
        return self.settings.model_copy(update=changed)


def read_questions(folder: Path) -> tuple[Question, ...]:
    """The questions of a run or of a data set of one, as they were used."""
    rows = RunFolder(folder).journal("questions.jsonl").read()
    return tuple(map(question_from_json, rows))


def unseen(
    questions: Sequence[Question], known: Sequence[Example], source: Sequence[Question], also: Sequence[Question] = ()
) -> tuple[Question, ...]:
    """The questions that share neither their text nor their answer with any of `known`, nor their text with `also`.

    Answers are those given and the first accepted one, which `source` has.
    """
    accepted = {question.id: question.answers[0] for question in source if question.answers}
    texts = {normalise(example.question) for example in known} | {normalise(question.question) for question in also}
    answers = {normalise(span_text(e.response.text, e.answer_chars)) for e in known}
    answers |= {normalise(accepted[e.question_id]) for e in known if e.question_id in accepted}
    return tuple(
        question
        for question in questions
        if normalise(question.question) not in texts
        and not (question.answers and normalise(question.answers[0]) in answers)
    )


class Yardstick:
    """A card with what was fitted on the examples behind it: controls, thresholds, cheap baselines.

    Args:
        data: the collection of the run that the card is from.
        card: its H-Neurons.
    """

    def __init__(self, data: Collection, card: Card) -> None:
        self.data = data
        self.card = card
        self.settings = data.settings

    @cached_property
    def validation(self) -> EvaluationData:
        """Examples that thresholds are fitted on."""
        return self.data.evaluation("validation")

    @cached_property
    def controls(self) -> Controls:
        """Classifiers on random neurons."""
        train: TrainingData = self.data.training("train")
        sets, seed = self.settings.random_sets, self.settings.seed
        with self.data.progress.bar("Comparing with controls", 2 * sets) as tick:
            return make_controls(self.card, train, self.validation, sets=sets, seed=seed, tick=lambda: tick(1))

    def score(self, test: EvaluationData) -> Json:
        """How well the card predicts on those examples, beside random neurons and cheap numbers."""
        found = evaluate(self.card, self.controls, self.validation, test, self.settings)
        return {key: found[key] for key in KEPT}

    def seen(self) -> list[Example]:
        """Examples that the probe was trained or calibrated on."""
        return [example for example in self.data.kept if example.split != "test"]


def stored(path: Path, model: StudyModel, tools: Tools, progress: Progress) -> Collection:
    """What a run, or a data set of one, has on the disk. The model lends its layout only; nothing is asked."""
    folder = RunFolder(path)
    manifest = folder.load()
    questions = QuestionSet(next(iter(manifest["data"])), read_questions(path))
    return Collection(folder, model, questions, recorded_settings(manifest), tools, progress)


class Backward:
    """One checkpoint that is asked what the run was asked.

    Args:
        folder: where its answers go.
        model: the checkpoint, loaded, prompts as the plan wants them.
        plan: how it is asked.
        tools: judge and span finder of the run.
        progress: bars.
    """

    def __init__(self, folder: Path, model: StudyModel, plan: Plan, tools: Tools, progress: Progress) -> None:
        self.folder = folder
        self.model = model
        self.plan = plan
        self.tools = tools
        self.progress = progress

    def ask(self, asked: Asked) -> Collection:
        """One sample a question, as many faithful as hallucinated examples, their features; resumable.

        Raises:
            TooFewExamplesError: too few of a class; what was sampled is kept.
        """
        place = RunFolder(self.folder / "on" / folder_name(asked.name))
        questions = QuestionSet(asked.name, asked.questions[: self.plan.limit])
        data = Collection(place, self.model, questions, self.plan.single, self.tools, self.progress, held_out=True)

        def examples() -> None:
            keep_balanced(data)

        with place:
            data.start([], purpose="origin")
            data.run([data.sample, examples, data.extract])
        return data

    def own_card(self, questions: QuestionSet) -> Run | Json:
        """A card found on the checkpoint itself with the run's settings; a problem where that can't be."""
        settings = self.plan.settings.model_copy(update={"thinking": None, "limit": None})
        note = "Asked as a base model: the question, then 'Answer:' on a line of its own, which the model completes."
        notes = [] if self.model.lead is None else [note]
        try:
            return identify(
                self.model, questions, self.folder / "own", settings, engine=self.tools.engine, judge=self.tools.judge,
                finder=self.tools.finder, notes=notes, progress=self.progress,
            )  # fmt: skip
        except TooFewExamplesError as error:
            return {"problem": error.problem, "remedy": f"{error.remedy} {OTHER_PROMPTS}"}


def forward_and_back(
    back: Backward, yard: Yardstick, sets: Sequence[Asked], references: Json
) -> tuple[dict[str, Json], Json | None, Card | None]:
    """Results of a checkpoint: of each data set, of its own card on the run's answers, and that card.

    Args:
        back: the checkpoint.
        yard: the run's card.
        sets: the question sets, the run's own first.
        references: AUROC of the run's own model by data set.
    """
    own, card = None, None
    found: Json | None = None
    if back.plan.own:
        tested = [example for example in yard.data.kept if example.split == "test"]
        whole = yard.data.questions.questions
        pool = unseen(whole, tested, whole, back.plan.shown)
        made = back.own_card(QuestionSet(sets[0].name, pool))
        if isinstance(made, Run):
            own = Yardstick(stored(made.path, back.model, back.tools, back.progress), made.card)
            card = made.card
            found = {
                "h_neurons": len(card.h_neurons),
                "probe_neurons": len(card.neurons),
                "C": card.probe.C,
                "examples": card.provenance["examples"],
                "on_run": _on_run(own, yard, back, sets, references),
            }
        else:
            found = made
    results: dict[str, Json] = {}
    for asked in sets:
        try:
            data = back.ask(asked)
        except TooFewExamplesError as error:
            results[asked.name] = {"problem": error.problem, "remedy": f"{error.remedy} {OTHER_PROMPTS}"}
            continue
        test = data.evaluation("test")
        results[asked.name] = {
            **yard.score(test),
            "own": None if own is None else _upper_bound(yard, own, data, test),
            "run": references.get(asked.name),
            "answers": verdict_counts(data.folder),
            "left_out": asked.left_out,
        }
    return results, found, card


def _upper_bound(yard: Yardstick, own: Yardstick, data: Collection, test: EvaluationData) -> Json | None:
    """The checkpoint's own card beside the run's, on examples that neither knows; null where a class is missing."""
    fresh = take(test, _unknown_to(own, data, yard.data.questions.questions))
    if not fresh.hallucinated.any() or fresh.hallucinated.all():
        return None
    settings = own.settings
    draws = Bootstrap.of(fresh.hallucinated, fresh.clusters, draws=settings.bootstrap, seed=settings.seed)
    mine, transferred = own.card.score(fresh.features), yard.card.score(fresh.features)
    return {
        "auroc": draws.interval(weighted_auroc, mine).to_json(),
        "transferred": draws.interval(weighted_auroc, transferred).to_json(),
        "difference": draws.difference(weighted_auroc, transferred, [mine]).to_json(),
    }


def _on_run(own: Yardstick, yard: Yardstick, back: Backward, sets: Sequence[Asked], references: Json) -> Json:
    """The checkpoint's card on the answers of the run's own model, whose features are stored, by data set."""
    found: Json = {}
    for asked in sets:
        data = stored(asked.place, back.model, back.tools, back.progress)
        test = take(data.evaluation("test"), _unknown_to(own, data, yard.data.questions.questions))
        if test.hallucinated.any() and not test.hallucinated.all():
            found[asked.name] = {**own.score(test), "run": references.get(asked.name)}
    return found


def _unknown_to(own: Yardstick, data: Collection, source: Sequence[Question]) -> NDArray[np.intp]:
    """Which of the test examples share neither question nor answer with what a probe was fitted on."""
    fresh = {question.id for question in unseen(data.questions.questions, own.seen(), source)}
    return np.flatnonzero([example.question_id in fresh for example in data.rows("test")[0]])


def take(data: EvaluationData, rows: NDArray[np.intp]) -> EvaluationData:
    """Some of the examples."""
    clusters = [data.clusters[row] for row in rows]
    return EvaluationData(data.features[rows], data.hallucinated[rows], data.length[rows], data.logprob[rows], clusters)


def question_sets(run: Run, yard: Yardstick, shown: Sequence[Question]) -> list[Asked]:
    """What the run was asked: its own questions but those that its probe knows, then those of RUN/on."""
    whole = yard.data.questions
    known = unseen(whole.questions, yard.seen(), whole.questions, shown)
    sets = [Asked(whole.name, known, len(whole.questions) - len(known), run.path)]
    for place in sorted((run.path / "on").glob("*/run.json")):
        folder = RunFolder(place.parent)
        name = next(iter(folder.load()["data"]))
        if folder.done("extract"):
            questions = read_questions(place.parent)
            fresh = unseen(questions, (), (), shown)
            name = f"{name} (single samples)" if name == whole.name else name
            sets.append(Asked(name, fresh, len(questions) - len(fresh), place.parent))
    return sets


def lead_of(shown: Sequence[Question]) -> str:
    """Few-shot examples as the text before a question."""
    return "".join(f"{question.question}\nAnswer: {question.answers[0]}\n\n" for question in shown)
