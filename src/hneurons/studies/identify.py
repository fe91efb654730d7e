"""Identify: from questions to the card, the evaluation and the report, stage by stage over one run folder.

Each stage reads what the one before left on disk and can be killed at any moment: run again, it continues. What was
done in whole chunks is kept; a chunk that was cut is done again from the same random numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hneurons.answers.consistency import Rule, sample_questions
from hneurons.answers.engine import Engine, Sampling
from hneurons.answers.judge import AliasJudge, Judge
from hneurons.answers.spans import RuleSpanFinder, SpanFinder
from hneurons.answers.text import span_text, token_offsets
from hneurons.answers.thinking import left_open
from hneurons.errors import TooFewExamplesError, UsageError
from hneurons.models.load import StudyModel, as_study_model
from hneurons.neurons.blockstore import BlockStore, feature_store
from hneurons.neurons.card import Card
from hneurons.neurons.cett import Passage, PooledExtractor, batches
from hneurons.neurons.choose import LEAST_TO_CALIBRATE, TrainingData, calibrate, choose_probe
from hneurons.neurons.features import FeatureStore
from hneurons.neurons.tokens import showcase_rows, token_scores
from hneurons.progress import Progress, default_progress
from hneurons.questions.sources import QuestionSet, load_questions
from hneurons.results import Run
from hneurons.runfolder import Json, RunFolder, dumps, write_json, write_text
from hneurons.settings import IdentifySettings
from hneurons.studies.examples import make_examples
from hneurons.studies.existence import EvaluationData, evaluate, verdict
from hneurons.studies.records import example_from_json, passage_of, response_from_json
from hneurons.types import REGIONS, Example, Label, Region, Response, Span, to_json

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
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Run:
    """Find the H-Neurons of `model`, evaluate them on held-out questions and write the report into `out`.

    Args:
        model: from `load_model`, or a pair of a transformers model and its tokenizer.
        questions: `starter`, the path of a .jsonl, .json or .csv file, or what `load_questions` returned, which is
            taken as it is.
        out: run folder; a run that was begun there with the same settings is continued.
        settings: the paper's by default.
        engine: draws the responses; transformers in this process by default.
        judge: gives verdicts; `AliasJudge` by default.
        finder: marks answers; `RuleSpanFinder` by default.
        notes: sentences for the report.
        progress: bars on a terminal by default.

    Raises:
        HNeuronsError: one of its children (see `hneurons.errors`), with the remedy in the message.
    """
    settings = settings or IdentifySettings()
    study = replace(as_study_model(model), thinking=settings.thinking is not None)
    if settings.thinking is None and left_open(study.prompt("Who?")):
        raise UsageError(f"{study.name} always thinks before it answers.", "Give its budget, e.g. --thinking 1000.")
    if not isinstance(questions, QuestionSet):
        questions = load_questions(questions, limit=settings.limit, seed=settings.seed)
    pipeline = _Identify(
        study, questions, RunFolder(out), settings, engine, judge, finder, progress or default_progress()
    )
    all_notes = [*notes, *([] if study.has_chat_template else [TEMPLATE_NOTE])]
    with pipeline.folder:
        pipeline.run(all_notes)
    return Run(out)


class _Identify:
    """The stages, and what they share."""

    def __init__(
        self,
        model: StudyModel,
        questions: QuestionSet,
        folder: RunFolder,
        settings: IdentifySettings,
        engine: Engine | None,
        judge: Judge | None,
        finder: SpanFinder | None,
        progress: Progress,
    ) -> None:
        self.model = model
        self.questions = questions
        self.folder = folder
        self.settings = settings
        self.engine = engine
        self.judge = judge or AliasJudge()
        self.finder = finder or RuleSpanFinder()
        self.progress = progress
        self.rule = Rule(settings.samples, settings.needed)

    def run(self, notes: list[str]) -> None:
        recorded = {
            "questions": self.questions.name,
            **self.settings.model_dump(),
            "judge": self.judge.name,
            "span_finder": self.finder.name,
        }
        data = {self.questions.name: {"sha256": self.questions.sha256, "questions": len(self.questions.questions)}}
        self.folder.start(model=self.model.describe(), settings=recorded, data=data, notes=notes)
        for stage in (self.sample, self.examples, self.extract, self.fit, self.evaluate, self.report):
            if not self.folder.done(stage.__name__):
                with self.folder.stage(stage.__name__):
                    stage()

    # -- stages -----------------------------------------------------------------------------------

    def sample(self) -> None:
        """responses.jsonl: judged responses, chunk by chunk of questions, until both classes are full."""
        asked = self.questions.questions
        write_text(self.folder / "questions.jsonl", "".join(dumps(to_json(q)) + "\n" for q in asked))
        journal, chunks = self.folder.journal("responses.jsonl"), self.folder.journal("progress.jsonl")
        finished = {int(line["chunk"]) for line in chunks.read()}
        rows = journal.read()
        known = {(str(row["question_id"]), int(row["sample"])) for row in rows}
        done: dict[str, list[Response]] = {}
        for row in rows:
            response = response_from_json(row)
            done.setdefault(response.question_id, []).append(response)
        engine = self.engine or self._engine()
        sampling = Sampling(
            self.settings.temperature,
            self.settings.top_k,
            self.settings.top_p,
            self.settings.max_new_tokens,
            self.settings.seed,
            self.settings.thinking or 0,
        )
        size, written = self.settings.chunk, len(rows)
        counts: Counter[Label] = Counter()
        with self.progress.bar("Sampling answers", len(asked)) as tick:
            for number, start in enumerate(range(0, len(asked), size)):
                part = asked[start : start + size]
                full = {label for label in Label if counts[label] >= self.settings.per_class}
                if len(full) == len(Label):
                    tick(len(asked) - start)
                    break
                if number in finished:
                    tick(len(part))
                    fresh = [response for question in part for response in done.get(question.id, [])]
                else:
                    fresh = sample_questions(engine, self.judge, part, sampling, self.rule, full, tick)
                    new = [r for r in fresh if (r.question_id, r.sample) not in known]
                    journal.append({**to_json(r), "mean_logprob": round(r.mean_logprob, 6)} for r in new)
                    chunks.append([{"chunk": number, "responses": len(fresh)}])
                    written += len(new)
                counts.update(self._labels(fresh))
        self.folder.count(questions=len(asked), responses=written)

    def _engine(self) -> Engine:
        from hneurons.answers.hf import HFEngine

        return HFEngine(self.model)

    def _labels(self, responses: Sequence[Response]) -> list[Label]:
        verdicts: dict[str, list[Any]] = {}
        for response in responses:
            verdicts.setdefault(response.question_id, []).append(response.verdict)
        return [label for given in verdicts.values() if (label := self.rule.label(given))]

    def examples(self) -> None:
        """examples.jsonl: a labelled, split example a consistent question."""
        responses = [response_from_json(row) for row in self.folder.journal("responses.jsonl").read()]
        kept = make_examples(
            self.model,
            self.questions.questions,
            responses,
            self.rule,
            self.finder,
            per_class=self.settings.per_class,
            shares=(self.settings.train, self.settings.validation),
            seed=self.settings.seed,
        )
        labels = Counter(str(example.label) for example in kept.examples)
        splits = {
            name: {str(label): sum(e.split == name and e.label == label for e in kept.examples) for label in Label}
            for name in ("train", "validation", "test")
        }
        self.folder.count(**{str(label): labels[str(label)] for label in Label}, dropped=kept.dropped, splits=splits)
        for label in Label:
            # Cross-validation needs two a fold and class, calibration some: say so before the long extraction.
            if splits["train"][label] < 2 * self.settings.folds or splits["validation"][label] < LEAST_TO_CALIBRATE:
                raise TooFewExamplesError(
                    f"Only {labels[str(label)]} {label} examples among {len(self.questions.questions)} questions: "
                    f"{splits['train'][label]} to train on ({2 * self.settings.folds} needed), "
                    f"{splits['validation'][label]} to calibrate on ({LEAST_TO_CALIBRATE} needed).",
                    "Ask more questions (easier ones for faithful answers, harder ones for hallucinated), lower "
                    "--temperature, or loosen --agreement.",
                )
        text = "".join(dumps(to_json(example)) + "\n" for example in kept.examples)
        write_text(self.folder / "examples.jsonl", text)

    def extract(self) -> None:
        """features/: mean contribution of every neuron over each region of each example."""
        examples, store = self._kept, self._store
        passages = [passage_of(self.model, example) for example in examples]
        written = store.written()
        extractor = PooledExtractor(self.model, store.regions)
        plan = batches([len(passage.ids) for passage in passages], self.settings.batch_tokens)
        with self.progress.bar("Measuring contributions", len(examples)) as tick:
            left = [rows for rows in plan if not written.issuperset(rows)]
            tick(len(examples) - sum(len(rows) for rows in left))
            groups = [[passages[row] for row in rows] for rows in left]
            for rows, found in zip(left, extractor.many(groups), strict=True):
                store.write(rows, found)
                tick(len(rows))

    def fit(self) -> None:
        """path.json and neurons.json: the path over C, the chosen probe, its calibration."""
        train, validation = self._training("train"), self._training("validation")
        total = (self.settings.folds + 1) * (1 if self.settings.C else self.settings.path_points)
        with self.progress.bar("Fitting the probe", total) as tick:
            choice = choose_probe(train, validation, self.settings, lambda: tick(1))
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
        }
        write_json(self.folder / "path.json", path)
        fit = choice.fit
        calibration = calibrate(fit.score(validation.answer), validation.hallucinated)
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
                },
                "neurons": [
                    {**asdict(neuron), "weight": float(weight)}
                    for neuron, weight in zip(self.model.layout.ids(fit.support), fit.weights, strict=True)
                ],
                "provenance": {
                    "package": self.folder.manifest["package"]["version"],
                    "questions": self.questions.sha256,
                    "examples": {str(label): self.folder.manifest["counts"][str(label)] for label in Label},
                    "seed": self.settings.seed,
                },
            }
        )
        card.save(self.folder / "neurons.json")

    def evaluate(self) -> None:
        """evaluation.json, and the metrics on the card."""
        card = Card.load(self.folder / "neurons.json")
        validation, test = self._evaluation("validation"), self._evaluation("test")
        with self.progress.bar("Comparing with controls", self.settings.random_sets) as tick:
            result = evaluate(card, self._training("train"), validation, test, self.settings, lambda: tick(1))
        shown = [example for example in self._kept if example.split == "test"]
        risks = card.risk(card.score(test.features)).tolist()
        rows = showcase_rows(risks, [str(example.label) for example in shown], 6)
        evaluation: Json = {
            "format": "hneurons.evaluation/1",
            "verdict": verdict(result),
            "datasets": {self.questions.name: result},
            "showcase": [self._shown(card, shown[row], risks[row]) for row in rows],
        }
        write_json(self.folder / "evaluation.json", evaluation)
        numbers = {key: result["h_neurons"][key] for key in ("auroc", "auprc", "accuracy")}
        card.model_copy(update={"metrics": {self.questions.name: numbers}}).save(self.folder / "neurons.json")

    def report(self) -> None:
        """report.html and figures/."""
        from hneurons.report.page import write_report

        self.progress.say("Writing the report")
        write_report(self.folder.path)

    # -- what the stages read ---------------------------------------------------------------------

    @cached_property
    def _kept(self) -> list[Example]:
        """What the stage `examples` wrote; asked for by later stages only."""
        return [example_from_json(row) for row in self.folder.journal("examples.jsonl").read()]

    @cached_property
    def _store(self) -> FeatureStore | BlockStore:
        regions = [*REGIONS, *([Region.THINKING] if self.settings.thinking else [])]
        if any(self.model.layout.experts):
            # Features of many experts are large: only the regions that the probe reads.
            regions = [Region.ANSWER, Region.OTHER] + ([Region.PROMPT] if self.settings.other == "all" else [])
        return feature_store(self.folder / "features", len(self._kept), self.model.layout, regions)

    def _rows(self, split: str) -> tuple[list[Example], list[int]]:
        rows = [row for row, example in enumerate(self._kept) if example.split == split]
        return [self._kept[row] for row in rows], rows

    def _training(self, split: str) -> TrainingData:
        (examples, rows), store = self._rows(split), self._store
        other = has_other = None
        if self.settings.labelling == "3-vs-1":
            counts = np.array([len(e.response.said) - (e.answer_tokens.end - e.answer_tokens.start) for e in examples])
            other = store.read(Region.OTHER, rows)
            if self.settings.other == "all":
                prompts = np.array([example.prompt_tokens for example in examples])
                share = (counts / (counts + prompts)).astype(np.float32)[:, None]
                other = (share * other + (1 - share) * store.read(Region.PROMPT, rows)).astype(np.float32)
                counts = counts + prompts
            has_other = counts > 0
        return TrainingData(
            store.read(Region.ANSWER, rows),
            other,
            has_other if has_other is not None else np.zeros(len(rows), bool),
            np.array([example.label is Label.HALLUCINATED for example in examples], dtype=bool),
            np.array([example.group for example in examples]),
        )

    def _evaluation(self, split: str) -> EvaluationData:
        examples, rows = self._rows(split)
        return EvaluationData(
            self._store.read(Region.ANSWER, rows),
            np.array([example.label is Label.HALLUCINATED for example in examples], dtype=bool),
            np.array([len(example.response.said) for example in examples], dtype=np.float64),
            np.array([example.response.mean_logprob for example in examples]),
            [example.question_id for example in examples],
        )

    def _shown(self, card: Card, example: Example, risk: float) -> Json:
        passage: Passage = passage_of(self.model, example)
        before = example.response.thinking_tokens
        risks = card.risk(token_scores(self.model, card, passage))[before:]
        text = example.response.text
        offsets = token_offsets(self.model, example.response.said, text)
        span = Span(example.answer_tokens.start - before, example.answer_tokens.end - before)
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
