"""Collect: from questions to features of the answers, stage by stage over one folder.

Each stage reads what the one before left on disk and can be killed at any moment: run again, it continues. What was
done in whole chunks is kept; a chunk that was cut is done again from the same random numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from hneurons.answers.consistency import Rule, right_verdict, sample_questions
from hneurons.answers.engine import Engine, OtherEngine, Sampling
from hneurons.answers.judge import AliasJudge, Judge
from hneurons.answers.llmjudge import Asks
from hneurons.answers.spans import RuleSpanFinder, SpanFinder
from hneurons.errors import UnsupportedModelError
from hneurons.models.load import StudyModel
from hneurons.models.outline import Outline, has_weights
from hneurons.neurons.blockstore import BlockStore, feature_store
from hneurons.neurons.cett import Extractor, PooledExtractor, plan, usual_tokens
from hneurons.neurons.choose import TrainingData
from hneurons.neurons.features import FeatureStore
from hneurons.neurons.matrix import Matrix, Stored
from hneurons.neurons.readout import Readout, read_out
from hneurons.progress import Progress
from hneurons.questions.sources import QuestionSet
from hneurons.runfolder import Json, RunFolder, dumps, write_text
from hneurons.settings import IdentifySettings
from hneurons.studies.examples import Kept, make_examples
from hneurons.studies.lookahead import OneByOne, lookahead
from hneurons.studies.records import example_from_json, passage_of, response_from_json
from hneurons.studies.tables import EvaluationData
from hneurons.types import REGIONS, Example, Label, Question, Region, Response, to_json

HF = "hf"
"""The name of the engine in transformers."""
WITHOUT_WEIGHTS = (
    "The model's weights were held by another engine alone: hidden states and entropies (with the peers that read "
    "them) and the risk of single tokens are left out."
)


@dataclass(frozen=True)
class Tools:
    """What answers, judges and marks; each a Protocol with a shipped fake."""

    engine: Engine | None = None
    """Draws the responses; transformers in this process by default."""
    judge: Judge = field(default_factory=AliasJudge)
    finder: SpanFinder = field(default_factory=RuleSpanFinder)
    extractor: Callable[[Sequence[Region]], Extractor] | None = None
    """Makes what measures the contributions over those regions; transformers in this process by default."""
    ahead: int = 1
    """Chunks of questions that the engine samples at a time; they are judged one by one."""

    @property
    def engine_name(self) -> str:
        """How a run records its engine; one without a name is transformers, here or on other machines."""
        return str(getattr(self.engine, "name", HF))

    @property
    def endpoint(self) -> Json | None:
        """Where the language model is asked that judges or marks, and which variable has the key; None for rules."""
        for tool in (self.judge, self.finder):
            if isinstance(tool, Asks):
                return {"base_url": tool.client.where.base_url, "key_env": tool.client.where.key_env}
        return None

    @property
    def features_name(self) -> str:
        """How a run records what measured its features."""
        return str(getattr(self.extractor, "name", HF))


class Collection:
    """The stages that the studies of a data set share, and what they wrote.

    Args:
        folder: where everything goes; opened by the caller.
        model: the model under study.
        questions: what is asked.
        settings: of sampling, labelling and extraction.
        tools: engine, judge and span finder.
        progress: bars.
        held_out: put every example into the test split.
    """

    def __init__(
        self,
        folder: RunFolder,
        model: StudyModel,
        questions: QuestionSet,
        settings: IdentifySettings,
        tools: Tools,
        progress: Progress,
        *,
        held_out: bool = False,
    ) -> None:
        self.folder = folder
        self.model = model
        self.questions = questions
        self.settings = settings
        self.tools = tools
        self.progress = progress
        self.held_out = held_out
        self.rule = Rule(settings.samples, settings.needed)

    def start(self, notes: list[str], **recorded: Any) -> None:
        """Write the manifest, or check that the folder holds the same work."""
        settings = {
            "questions": self.questions.name,
            **self.settings.model_dump(),
            "judge": self.tools.judge.name,
            "span_finder": self.tools.finder.name,
            "engine": self.tools.engine_name,
            "features": self.tools.features_name,
            **recorded,
        }
        if not has_weights(self.model):
            notes = [*notes, WITHOUT_WEIGHTS]
            self.progress.say(WITHOUT_WEIGHTS)
        data = {self.questions.name: {"sha256": self.questions.sha256, "questions": len(self.questions.questions)}}
        defaults = {**IdentifySettings().model_dump(), "engine": HF, "features": HF}
        self.folder.start(
            model=self.model.describe(), settings=settings, data=data, notes=notes, defaults=defaults,
            kept=self._kept(),
        )  # fmt: skip

    def _kept(self) -> Json:
        """How a later command gets at the same model, engine and language model that judges."""
        engine, judge = self.tools.engine, self.tools.endpoint
        return {
            "location": self.model.location,
            **({"ffn": self.model.ffn} if self.model.ffn is not None else {}),
            **({"engine": engine.setup} if isinstance(engine, OtherEngine) else {}),
            **({"judge": judge} if judge else {}),
        }

    def run(self, stages: Sequence[Callable[[], None]]) -> None:
        """Do those stages, named by their functions, that aren't done."""
        for stage in stages:
            if not self.folder.done(stage.__name__):
                with self.folder.stage(stage.__name__):
                    stage()

    @cached_property
    def engine(self) -> Engine:
        """The engine given, or transformers in this process."""
        if self.tools.engine is not None:
            return self.tools.engine
        from hneurons.answers.hf import HFEngine

        return HFEngine(self.weights)

    @property
    def weights(self) -> StudyModel:
        """The model with its weights in this process. An outline's are loaded now, in place of the engine's.

        Raises:
            UsageError: they are not to be loaded.
        """
        if not isinstance(self.model, Outline):
            return self.model
        if isinstance(self.tools.engine, OtherEngine):
            self.tools.engine.close()
        return self.model.whole

    def extractor(self, regions: Sequence[Region]) -> Extractor:
        """What measures contributions: the one given, or transformers in this process."""
        make = self.tools.extractor
        return make(regions) if make else PooledExtractor(self.weights, regions)

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, padding included."""
        return self.settings.batch_tokens or usual_tokens(self.model.device)

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
        size, written = self.settings.chunk, len(rows)
        parts = {number: asked[start : start + size] for number, start in enumerate(range(0, len(asked), size))}
        left = {number: part for number, part in parts.items() if number not in finished}
        counts: Counter[Label] = Counter()
        with self.progress.bar("Sampling answers", len(asked)) as tick, self._sampler(left, tick) as fresh_of:
            for number, part in parts.items():
                full = {label for label in Label if counts[label] >= self.settings.per_class}
                if len(full) == len(Label):
                    tick(len(asked) - number * size)
                    break
                if number in finished:
                    tick(len(part))
                    fresh = [response for question in part for response in done.get(question.id, [])]
                else:
                    fresh = fresh_of(number, full)
                    new = [r for r in fresh if (r.question_id, r.sample) not in known]
                    journal.append({**to_json(r), "mean_logprob": round(r.mean_logprob, 6)} for r in new)
                    if isinstance(self.tools.engine, OtherEngine):
                        self.folder.note(*self.tools.engine.notes)
                    chunks.append([{"chunk": number, "responses": len(fresh)}])
                    written += len(new)
                counts.update(self._labels(part, fresh))
        source = {key: getattr(self.questions, key) for key in ("origin", "mapping", "dropped")}
        self.folder.count(questions=len(asked), responses=written, source=source)

    @contextmanager
    def _sampler(
        self, parts: Mapping[int, Sequence[Question]], tick: Callable[[int], None]
    ) -> Generator[Callable[[int, set[Label]], list[Response]]]:
        """What gives the judged responses to a part by its number, asked for in rising order."""
        how = sampling(self.settings)

        def work(judge: Judge) -> Callable[..., list[Response]]:
            return lambda part, full, tick: sample_questions(self.engine, judge, part, how, self.rule, full, tick)

        if self.tools.ahead == 1:
            alone = work(self.tools.judge)
            yield lambda number, full: alone(parts[number], full, tick)
            return
        with lookahead(work(OneByOne(self.tools.judge)), parts, self.tools.ahead) as coming:

            def take(number: int, full: set[Label]) -> list[Response]:
                fresh = coming.take(number, full)
                tick(len(parts[number]))
                return fresh

            yield take

    def _labels(self, questions: Sequence[Any], responses: Sequence[Response]) -> list[Label]:
        verdicts: dict[str, list[Any]] = {}
        for response in responses:
            verdicts.setdefault(response.question_id, []).append(response.verdict)
        labels = [self.rule.label(verdicts.get(q.id, []), right_verdict(q)) for q in questions]
        return [label for label in labels if label]

    def make(self, per_class: int) -> Kept:
        """Examples of the judged responses, at most `per_class` of each label; writes nothing but the counts."""
        kept = make_examples(
            self.model,
            self.questions.questions,
            [response_from_json(row) for row in self.folder.journal("responses.jsonl").read()],
            self.rule,
            self.tools.finder,
            per_class=per_class,
            shares=None if self.held_out else (self.settings.train, self.settings.validation),
            seed=self.settings.seed,
        )
        labels = Counter(str(example.label) for example in kept.examples)
        self.folder.count(**{str(label): labels[str(label)] for label in Label}, dropped=kept.dropped)
        return kept

    def keep(self, examples: Sequence[Example]) -> None:
        """examples.jsonl: a labelled, split example a question."""
        write_text(self.folder / "examples.jsonl", "".join(dumps(to_json(example)) + "\n" for example in examples))

    def extract(self) -> None:
        """features/: mean contribution of every neuron over each region of each example."""
        examples, store = self.kept, self.store
        passages = [passage_of(self.model, example) for example in examples]
        written = store.written()
        planned = plan(self.model, passages, self.batch_tokens)
        with self.progress.bar("Measuring contributions", len(examples)) as tick:
            left = [rows for rows in planned if not written.issuperset(rows)]
            tick(len(examples) - sum(len(rows) for rows in left))
            groups = [[passages[row] for row in rows] for rows in left]
            if not left:
                return
            # Closed at once if a write fails: it has hooks on the model.
            with closing(self.extractor(store.regions).many(groups)) as measured:
                for rows, found in zip(left, measured, strict=True):
                    store.write(rows, found)
                    tick(len(rows))

    def read_out(self) -> None:
        """readout/: hidden states, log-probabilities and entropies, for the peers of the H-Neurons."""
        if not has_weights(self.model):
            return
        passages = [passage_of(self.model, example) for example in self.kept]
        folder = self.folder / "readout"
        folder.mkdir(exist_ok=True)
        with self.progress.bar("Reading hidden states", len(passages)) as tick:
            try:
                found = read_out(self.weights, passages, self.batch_tokens, tick)
            except UnsupportedModelError as error:
                self.progress.say(f"Without hidden states and entropies: {error.problem}")
                return
        found.save(folder)

    # -- what the stages wrote --------------------------------------------------------------------

    @cached_property
    def kept(self) -> list[Example]:
        """What `keep` wrote; asked for by later stages only."""
        return [example_from_json(row) for row in self.folder.journal("examples.jsonl").read()]

    @cached_property
    def store(self) -> FeatureStore | BlockStore:
        """The features, in the order of `kept`."""
        regions = [*REGIONS, *([Region.THINKING] if self.settings.thinking else [])]
        if any(self.model.layout.experts):
            # Features of many experts are large: only the regions that the probe reads.
            regions = [Region.ANSWER, Region.OTHER] + ([Region.PROMPT] if self.settings.other == "all" else [])
        return feature_store(self.folder / "features", len(self.kept), self.model.layout, regions)

    @cached_property
    def readout(self) -> Readout | None:
        """What `read_out` wrote; None where the model doesn't allow it."""
        folder = self.folder / "readout"
        return Readout.load(folder) if (folder / "readout.jsonl").exists() else None

    @cached_property
    def samples_by_question(self) -> dict[str, list[str]]:
        """Texts of all responses to each question."""
        texts: dict[str, list[str]] = {}
        for row in self.folder.journal("responses.jsonl").read():
            texts.setdefault(str(row["question_id"]), []).append(str(row["text"]))
        return texts

    def rows(self, split: str | None) -> tuple[list[Example], list[int]]:
        """Examples of a split (of all splits: None), and which rows of the features they are."""
        rows = [row for row, example in enumerate(self.kept) if split in (None, example.split)]
        return [self.kept[row] for row in rows], rows

    def training(self, split: str | None) -> TrainingData:
        """What the probe is fitted on."""
        examples, rows = self.rows(split)
        other = has_other = None
        if self.settings.labelling == "3-vs-1":
            counts = np.array([len(e.response.said) - (e.answer_tokens.end - e.answer_tokens.start) for e in examples])
            rest = None
            if self.settings.other == "all":
                prompts = np.array([example.prompt_tokens for example in examples])
                rest = Region.PROMPT, (counts / (counts + prompts)).astype(np.float32)[:, None]
                counts = counts + prompts
            other = Stored(self.store, Region.OTHER, np.array(rows, dtype=np.intp), rest).loaded()
            has_other = counts > 0
        return TrainingData(
            self.features(Region.ANSWER, rows),
            other,
            has_other if has_other is not None else np.zeros(len(rows), bool),
            np.array([example.label is Label.HALLUCINATED for example in examples], dtype=bool),
            np.array([example.group for example in examples]),
        )

    def features(self, region: Region, rows: Sequence[int]) -> Matrix:
        """Contributions of those rows: an array, or, where it would be large, a matrix that stays on disk."""
        return Stored(self.store, region, np.array(rows, dtype=np.intp)).loaded()

    def evaluation(self, split: str) -> EvaluationData:
        """What the probe is judged by."""
        examples, rows = self.rows(split)
        return EvaluationData(
            self.features(Region.ANSWER, rows),
            np.array([example.label is Label.HALLUCINATED for example in examples], dtype=bool),
            np.array([len(example.response.said) for example in examples], dtype=np.float64),
            np.array([example.response.mean_logprob for example in examples]),
            [example.question_id for example in examples],
        )


def sampling(settings: IdentifySettings) -> Sampling:
    """How the responses are drawn."""
    return Sampling(
        settings.temperature,
        settings.top_k,
        settings.top_p,
        settings.max_new_tokens,
        settings.seed,
        settings.thinking or 0,
    )
