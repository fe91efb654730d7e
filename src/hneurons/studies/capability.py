"""What else alpha changes: right, wrong and refused answers, fluency and length, beside compliance.

Questions are asked as `identify` asks them, greedily; a plain text is read, not written, for perplexity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from hneurons.answers.engine import Engine, Request, Sampling
from hneurons.answers.judge import AliasJudge
from hneurons.errors import HNeuronsError
from hneurons.models.load import StudyModel
from hneurons.questions.sources import QuestionSet, load_questions
from hneurons.runfolder import Json, hash_json
from hneurons.stats import Floats, cluster_weights, percentile_interval
from hneurons.studies.arms import Arm
from hneurons.studies.compliance import repetition
from hneurons.studies.impact_tables import mean_intervals
from hneurons.studies.ledger import Ledger, chunked, fill, short_hash
from hneurons.studies.turned import OpenEngine, Scorer, sample
from hneurons.types import Question, Verdict

WINDOW = 128
"""Tokens of the plain text that are read together."""
SHARES = {"right": Verdict.CORRECT, "wrong": Verdict.WRONG, "abstained": Verdict.ABSTAINED,
          "unparsable": Verdict.UNPARSABLE}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A question of a set, under an id that no other set has."""

    id: str
    question: Question


@dataclass(frozen=True)
class Window:
    """Some tokens of the plain text, with what the tokenizer puts first."""

    id: str
    ids: tuple[int, ...]


def plain_text() -> str:
    """About 2,000 words of plain English prose, written for this package."""
    return resources.files("hneurons.studies").joinpath("plain_text.txt").read_text(encoding="utf-8")


def windows(model: StudyModel, text: str) -> list[Window]:
    """The text in windows of `WINDOW` tokens; a last one of fewer than half is left out."""
    opening: list[int] = list(model.tokenizer("")["input_ids"])  # pyright: ignore[reportArgumentType]
    ids: list[int] = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]
    size = WINDOW - len(opening)
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    whole = [part for part in parts if 2 * len(part) >= size]
    return [Window(f"text/{n}", (*opening, *part)) for n, part in enumerate(whole)]


def load_sets(names: Sequence[str], limit: int, seed: int) -> tuple[list[QuestionSet], Json]:
    """The question sets that can be had, and why others can't: name -> problem and remedy."""
    sets: list[QuestionSet] = []
    skipped: Json = {}
    for name in names:
        try:
            sets.append(load_questions(name, limit=limit, seed=seed, allow_empty=True))
        except HNeuronsError as error:
            skipped[name] = {"problem": error.problem, "remedy": error.remedy}
    return sets, skipped


class Capability:
    """The capability curve over one ledger.

    Args:
        sets: of questions; those with answers are answerable, the others ask for a refusal.
        skipped: sets that can't be had, and why.
        text: windows of plain text.
        ledger: where the rows go.
        sampling: greedy.
        open_engine: opens the engine of an arm.
        chunk: questions asked together.
        together: sets of neurons and chunks that are in work at a time.
    """

    def __init__(
        self, sets: Sequence[QuestionSet], skipped: Json, text: Sequence[Window], ledger: Ledger, sampling: Sampling,
        open_engine: OpenEngine, *, chunk: int, together: int = 1,
    ) -> None:  # fmt: skip
        self.sets = sets
        self.skipped = dict(skipped)
        self.text = text
        self.ledger = ledger
        self.sampling = sampling
        self.open_engine = open_engine
        self.chunk = chunk
        self.together = together
        self.asked = {one.name: [Asked(f"{one.name}/{q.id}", q) for q in one.questions] for one in sets}
        every = [asked for each in self.asked.values() for asked in each]
        hashes = {asked.id: _hash(asked) for asked in every} | {window.id: short_hash(window.ids) for window in text}
        ledger.check_asked(hashes)

    def rows(self, arms: int, alphas: int) -> int:
        """Rows that a whole ledger has."""
        return (sum(map(len, self.asked.values())) + len(self.text)) * (1 + arms * (alphas - 1))

    def ask(self, arms: Sequence[Arm], alphas: Sequence[float], tick: Callable[[int], None]) -> None:
        """Fill the ledger."""
        for each in self.asked.values():
            chunks = chunked(each, self.chunk)
            self._fill(chunks, arms, alphas, self._answer, tick)
        self._fill(chunked(self.text, self.chunk), arms, alphas, self._read, tick)

    def _fill(
        self, parts: Sequence[Sequence[Any]], arms: Sequence[Arm], alphas: Sequence[float],
        make: Callable[[Engine, Sequence[Any], Arm, tuple[float, ...]], None], tick: Callable[[int], None],
    ) -> None:  # fmt: skip
        fill(
            self.ledger, parts, lambda one: one.id, arms, alphas, self.open_engine, make, tick=tick,
            together=self.together,
        )  # fmt: skip

    def _answer(self, engine: Engine, asked: Sequence[Asked], arm: Arm, alphas: tuple[float, ...]) -> None:
        pairs = [(one, alpha) for one in asked for alpha in alphas]
        requests = [Request(one.question, 0, alpha=alpha) for one, alpha in pairs]
        judge = AliasJudge()
        self.ledger.add(
            {
                "item": one.id,
                "asked": _hash(one),
                "arm": arm.name,
                "alpha": alpha,
                "text": response.text,
                "tokens": len(response.said),
                "cut": response.finish_reason == "length",
                "repetition": round(repetition(response.said), 6),
                "verdict": str(judge.judge(one.question, response.text)),
            }
            for (one, alpha), response in zip(pairs, sample(engine, requests, self.sampling), strict=True)
        )

    def _read(self, engine: Engine, text: Sequence[Window], arm: Arm, alphas: tuple[float, ...]) -> None:
        rows: list[Json] = []
        for window in text:
            # An engine that can't read a text leaves no perplexity; `table` says so.
            sums = engine.nll(window.ids, alphas) if isinstance(engine, Scorer) else [None] * len(alphas)
            rows += [
                {"item": window.id, "asked": short_hash(window.ids), "arm": arm.name, "alpha": alpha,
                 "nll": None if value is None else round(value, 6), "tokens": len(window.ids) - 1}
                for alpha, value in zip(alphas, sums, strict=True)
            ]  # fmt: skip
        self.ledger.add(rows)

    def table(self, arms: Sequence[Arm], alphas: Sequence[float], *, draws: int, seed: int) -> Json:
        """The `capability` object of impact.json."""
        tokens = sum(len(window.ids) - 1 for window in self.text)
        return {
            "questions": {
                one.name: {"n": len(one.questions), "sha256": one.sha256, "answerable": _answerable(one)}
                for one in self.sets
            },
            "text": {
                "tokens": tokens,
                "windows": len(self.text),
                "sha256": hash_json([window.ids for window in self.text]),
            },
            "skipped": self.skipped,
            "arms": {arm.name: {**arm.to_json(), "by_alpha": self._curve(arm, alphas, draws, seed)} for arm in arms},
        }

    def _curve(self, arm: Arm, alphas: Sequence[float], draws: int, seed: int) -> list[Json]:
        sets = {name: self._shares(arm, alphas, each, draws, seed) for name, each in self.asked.items()}
        answerable = [one for each in self.sets if _answerable(each) for one in self.asked[each.name]]
        refusals = self._shares(arm, alphas, answerable, draws, seed)
        perplexity = self._perplexity(arm, alphas, draws, seed)
        return [
            {
                "alpha": alpha,
                "perplexity": perplexity[i],
                "over_refusal": refusals[i]["abstained"],
                "questions": {name: each[i] for name, each in sets.items()},
            }
            for i, alpha in enumerate(alphas)
        ]

    def _shares(
        self, arm: Arm, alphas: Sequence[float], asked: Sequence[Asked], draws: int, seed: int
    ) -> list[dict[str, Json]]:
        rows = [[self.ledger.get(one.id, arm.name, alpha) for alpha in alphas] for one in asked]
        weights = cluster_weights(range(len(asked)), draws, seed)

        def means(value: Callable[[Json], float]) -> list[Json]:
            values = np.array([[value(row) for row in each] for each in rows], dtype=np.float64)
            return mean_intervals(values.reshape(len(asked), len(alphas)), weights)

        columns = {
            **{key: means(lambda row, verdict=verdict: row["verdict"] == verdict) for key, verdict in SHARES.items()},
            **{key: means(lambda row, key=key: float(row[key])) for key in ("cut", "tokens", "repetition")},
        }
        return [{key: values[i] for key, values in columns.items()} for i in range(len(alphas))]

    def _perplexity(self, arm: Arm, alphas: Sequence[float], draws: int, seed: int) -> list[Json]:
        rows = [[self.ledger.get(window.id, arm.name, alpha) for alpha in alphas] for window in self.text]
        empty = [percentile_interval(np.nan, np.zeros(0), 0).to_json() for _ in alphas]
        if not rows or any(row["nll"] is None for each in rows for row in each):
            return empty
        sums: Floats = np.array([[float(row["nll"]) for row in each] for each in rows])
        tokens = np.array([float(each[0]["tokens"]) for each in rows])
        weights = cluster_weights(range(len(rows)), draws, seed)
        point = np.exp(sums.sum(axis=0) / tokens.sum())
        spread = np.exp(weights @ sums / (weights @ tokens)[:, None])
        return [percentile_interval(float(p), spread[:, i], len(rows)).to_json() for i, p in enumerate(point)]


def _answerable(questions: QuestionSet) -> bool:
    return all(question.answers for question in questions.questions)


def _hash(asked: Asked) -> str:
    return short_hash([asked.question.question, list(asked.question.answers)])
