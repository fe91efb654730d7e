"""Identify: from questions to the card, the evaluation and the report, stage by stage over one run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hneurons.answers.engine import Engine
from hneurons.answers.judge import AliasJudge, Judge
from hneurons.answers.spans import RuleSpanFinder, SpanFinder
from hneurons.answers.text import span_text, token_offsets
from hneurons.answers.thinking import left_open
from hneurons.errors import TooFewExamplesError, UsageError
from hneurons.models.load import StudyModel, as_study_model
from hneurons.models.outline import has_weights
from hneurons.neurons.calibration import LEAST_TO_CALIBRATE, calibrate
from hneurons.neurons.card import Card
from hneurons.neurons.cett import Passage
from hneurons.neurons.choose import choose_probe
from hneurons.neurons.tokens import showcase_rows, token_scores
from hneurons.progress import Progress, default_progress
from hneurons.questions.sources import QuestionSet, load_questions
from hneurons.results import Run
from hneurons.runfolder import Json, RunFolder, write_json
from hneurons.settings import IdentifySettings
from hneurons.studies.collect import Collection, Tools
from hneurons.studies.examples import SPLITS
from hneurons.studies.existence import verdict
from hneurons.studies.guarantee import control
from hneurons.studies.judging import agree, needs_agreement
from hneurons.studies.records import passage_of
from hneurons.studies.review import Reviewer
from hneurons.studies.stability import along_path
from hneurons.studies.suppression import Suppression
from hneurons.studies.transfer import domain_counts
from hneurons.types import Example, Label

TEMPLATE_NOTE = (
    "The tokenizer has no chat template: each question was asked as 'Question: ... Answer:', and a response ends with "
    "its first line."
)


def identify(
    model: StudyModel | tuple[Any, Any],
    questions: str | Path | QuestionSet = "starter",
    out: str | Path = "runs/identify",
    settings: IdentifySettings | None = None,
    *,
    engine: Engine | None = None,
    judge: Judge | None = None,
    finder: SpanFinder | None = None,
    tools: Tools | None = None,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Run:
    """Find the H-Neurons of `model`, evaluate them on held-out questions and write the report into `out`.

    Args:
        model: from `load_model`, or a pair of a transformers model and its tokenizer; where another engine holds the
            weights, from `load_outline`.
        questions: `starter`, the path of a .jsonl, .json or .csv file, or what `load_questions` returned, which is
            taken as it is.
        out: run folder; a run that was begun there with the same settings is continued.
        settings: the paper's by default.
        engine: draws the responses; transformers in this process by default.
        judge: gives verdicts; `AliasJudge` by default.
        finder: marks answers; `RuleSpanFinder` by default.
        tools: in place of these three, all in one with what measures contributions, as another engine or a cluster
            gives them.
        notes: sentences for the report.
        progress: bars on a terminal by default.

    Raises:
        HNeuronsError: one of its children (see `hneurons.errors`), with the remedy in the message.
    """
    if tools and (engine or judge or finder):
        raise UsageError("Both `tools` and engine, judge or finder are given.", "Put them into the `Tools`.")
    settings = settings or IdentifySettings()
    study = replace(as_study_model(model), thinking=settings.thinking is not None)
    if settings.thinking is None and left_open(study.prompt("Who?")):
        raise UsageError(f"{study.name} always thinks before it answers.", "Give its budget, e.g. --thinking 1000.")
    if settings.choose == "joint" and not has_weights(study):
        raise UsageError(
            "The joint rule for C silences neurons in transformers, where the weights aren't to be loaded.",
            "Choose C otherwise (no --preset paper), or use --features hf.",
        )
    if not isinstance(questions, QuestionSet):
        questions = load_questions(questions, limit=settings.limit, seed=settings.seed)
    tools = tools or Tools(engine, judge or AliasJudge(), finder or RuleSpanFinder())
    with RunFolder(out) as folder:
        data = Collection(folder, study, questions, settings, tools, progress or default_progress())
        data.start([*notes, *([] if study.has_chat_template or study.lead is not None else [TEMPLATE_NOTE])])
        _Identify(data).run()
    return Run(out)


class _Identify:
    """The stages of one run: those of the collection, then probe, evaluation and report."""

    def __init__(self, collection: Collection) -> None:
        self.data = collection
        self.model = collection.model
        self.folder = collection.folder
        self.settings = collection.settings
        self.progress = collection.progress

    def run(self) -> None:
        data = self.data
        stages = [data.sample, self.examples, data.extract, data.read_out, self.fit, self.evaluate, self.report]
        if needs_agreement(data.tools):
            stages.insert(2, self.agree)
        data.run(stages)

    def agree(self) -> None:
        """agreement.json: how far the judge agrees with the rules."""
        agree(self.data)

    # -- stages -----------------------------------------------------------------------------------

    def examples(self) -> None:
        """examples.jsonl: a labelled, split example a consistent question."""
        kept = self.data.make(self.settings.per_class).examples
        splits = {
            name: {str(label): sum(e.split == name and e.label == label for e in kept) for label in Label}
            for name in SPLITS
        }
        self.folder.count(splits=splits)
        for label in Label:
            # Cross-validation needs two a fold and class, calibration some: say so before the long extraction.
            if splits["train"][label] < 2 * self.settings.folds or splits["validation"][label] < LEAST_TO_CALIBRATE:
                raise TooFewExamplesError(
                    f"Only {sum(e.label == label for e in kept)} {label} examples among "
                    f"{len(self.data.questions.questions)} questions: "
                    f"{splits['train'][label]} to train on ({2 * self.settings.folds} needed), "
                    f"{splits['validation'][label]} to calibrate on ({LEAST_TO_CALIBRATE} needed).",
                    "Ask more questions (easier ones for faithful answers, harder ones for hallucinated), lower "
                    "--temperature, or loosen --agreement.",
                )
        self.data.keep(kept)

    def fit(self) -> None:
        """path.json and neurons.json: the path over C, the chosen probe, its calibration."""
        train, validation = self.data.training("train"), self.data.training("validation")
        total = (self.settings.folds + 1) * (1 if self.settings.C else self.settings.path_points)
        suppressed = Suppression(self.data).accuracies if self.settings.choose == "joint" else None
        with self.progress.bar("Fitting the probe", total) as tick:
            choice = choose_probe(train, validation, self.settings, lambda: tick(1), suppressed)
        path = {
            "format": "hneurons.path/1",
            "labelling": self.settings.labelling,
            "penalty": "l1",
            "solver": self.settings.solver,
            "rows": choice.rows,
            "positives": choice.positives,
            "neurons": self.model.neurons,
            "rule": choice.rule,
            "chosen": choice.chosen,
            "points": choice.points,
            "stability": along_path(choice.fits, choice.chosen),
        }
        write_json(self.folder / "path.json", path)
        fit = choice.fit
        held = fit.score(validation.answer)
        calibration = calibrate(held, validation.hallucinated, validation.groups.tolist(), seed=self.settings.seed)
        examples, _ = self.data.rows("validation")
        try:
            guarantee = control(held, validation.hallucinated, [e.question_id for e in examples])
        except TooFewExamplesError:
            guarantee = None  # evaluation.json says how many examples it takes
        domains = domain_counts(example.domain for example in examples if example.domain)
        described = self.model.describe()
        card = Card.model_validate(
            {
                "model": {
                    key: described[key]
                    for key in ("id", "revision", "architecture", "layers", "width", "neurons", "experts", "shared")
                    if key in described
                },
                "probe": {
                    "labelling": self.settings.labelling,
                    "other": self.settings.other,
                    "C": fit.C,
                    "solver": self.settings.solver,
                    "intercept": fit.intercept,
                    "calibration": calibration,
                    "guarantee": guarantee,
                },
                "neurons": [
                    {**asdict(neuron), "weight": float(weight)}
                    for neuron, weight in zip(self.model.layout.ids(fit.support), fit.weights, strict=True)
                ],
                "provenance": {
                    "package": self.folder.manifest["package"]["version"],
                    "questions": self.data.questions.sha256,
                    "examples": {str(label): self.folder.manifest["counts"][str(label)] for label in Label},
                    "seed": self.settings.seed,
                    "domains": domains,
                },
            }
        )
        card.save(self.folder / "neurons.json")

    def evaluate(self) -> None:
        """evaluation.json, and the metrics on the card."""
        card, data = Card.load(self.folder / "neurons.json"), self.data
        reviewer = Reviewer(data, card)
        result = reviewer.dataset(data, "test")
        review = reviewer.probe()
        shown, _ = data.rows("test")
        risks = card.risk(card.score(data.evaluation("test").features)).tolist()
        # The risk of each token takes a forward pass of its own.
        rows = [] if not has_weights(self.model) else showcase_rows(risks, [str(example.label) for example in shown], 6)
        evaluation: Json = {
            "format": "hneurons.evaluation/1",
            "verdict": verdict(result),
            "datasets": {data.questions.name: result},
            **review,
            "verbosity": reviewer.verbosity(),
            "showcase": [self._shown(card, shown[row], risks[row]) for row in rows],
        }
        write_json(self.folder / "evaluation.json", evaluation)
        numbers = {key: result["h_neurons"][key] for key in ("auroc", "auprc", "accuracy")}
        card.model_copy(update={"metrics": {data.questions.name: numbers}}).save(self.folder / "neurons.json")

    def report(self) -> None:
        """report.html and figures/."""
        from hneurons.report.page import write_report

        self.progress.say("Writing the report")
        write_report(self.folder.path)

    def _shown(self, card: Card, example: Example, risk: float) -> Json:
        passage: Passage = passage_of(self.model, example)
        before = example.response.thinking_tokens
        risks = card.risk(token_scores(self.data.weights, card, passage))[before:]
        text = example.response.text
        offsets = token_offsets(self.model, example.response.said, text)
        span = example.said_span
        return {
            "question": example.question,
            "label": str(example.label),
            "risk": round(risk, 6),
            "flagged": bool(risk >= card.probe.threshold),
            "answer": span_text(text, example.answer_chars),
            "tokens": [
                {"text": text[start:end], "risk": round(float(value), 6), "answer": span.start <= i < span.end}
                for i, ((start, end), value) in enumerate(zip(offsets, risks, strict=True))
                if end > start
            ],
        }
