"""One benchmark of the impact study: its items asked at every alpha in every arm, judged, and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from hneurons.answers.engine import Engine, Request, Sampling
from hneurons.errors import HNeuronsError, TooFewExamplesError
from hneurons.runfolder import Json
from hneurons.studies.arms import NONE, Arm
from hneurons.studies.benchmarks.base import Benchmark, Case, Item, ItemSet, Outcome, OutcomeJudge
from hneurons.studies.benchmarks.llm import outcome_agreement
from hneurons.studies.impact_tables import Outcomes, Sweep
from hneurons.studies.impact_verdict import verdict
from hneurons.studies.ledger import Ledger, chunked, fill, short_hash
from hneurons.studies.turned import OpenEngine, sample
from hneurons.types import Question, Response

UNSCALED = "unscaled"
"""The arm of first turns that are answered before the neurons are scaled."""
CODES = {Outcome.COMPLIANT: 1.0, Outcome.RESISTED: 0.0, Outcome.UNPARSABLE: np.nan}
NGRAM = 4
SHOWN = 3
"""Prompts of each kind whose replies a report shows side by side."""


def repetition(tokens: Sequence[int]) -> float:
    """Share of the 4-grams of a reply that came before in it; 0.0 for a reply of fewer than four tokens."""
    grams = [tuple(tokens[i : i + NGRAM]) for i in range(len(tokens) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass
class Talk:
    """A conversation under way."""

    item: Item
    alpha: float = 1.0
    turns: list[str] = field(default_factory=list[str])
    """What was said, user and assistant in turn."""
    made: list[Response] = field(default_factory=list[Response])
    """The replies of this engine; earlier ones are in `turns` alone."""

    @property
    def replies(self) -> tuple[str, ...]:
        """What the model said."""
        return tuple(self.turns[1::2])

    @property
    def case(self) -> Case:
        """What a judge sees."""
        return Case(self.item, self.replies, bool(self.made) and self.made[-1].finish_reason == "length")

    def row(self, arm: str) -> Json:
        """The line of the journal, outcomes left out."""
        return {
            "item": self.item.id,
            "asked": short_hash(asdict(self.item)),
            "arm": arm,
            "alpha": self.alpha,
            "replies": list(self.replies),
            "tokens": sum(len(response.said) for response in self.made),
            "finish_reasons": [response.finish_reason for response in self.made],
            "cut": any(response.finish_reason == "length" for response in self.made),
            "repetition": round(float(np.mean([repetition(response.said) for response in self.made])), 6),
        }


def converse(engine: Engine, talks: Sequence[Talk], benchmark: Benchmark, sampling: Sampling, most: int | None) -> None:
    """Go on with conversations, all at once, until they are over or have `most` replies.

    The random numbers of a reply depend on the item and the turn, not on alpha.
    """
    live = list(talks)
    while live:
        asked: list[tuple[Talk, str]] = []
        for talk in live:
            over = most is not None and len(talk.replies) >= most
            said = (
                talk.item.prompt if not talk.turns else None if over else benchmark.next_turn(talk.item, talk.replies)
            )
            if said is not None:
                asked.append((talk, said))
        for talk, said in asked:
            talk.turns.append(said)
        requests = [
            Request(Question(t.item.id, t.item.prompt, ()), len(t.replies), tuple(t.turns), t.alpha) for t, _ in asked
        ]
        for (talk, _), response in zip(asked, sample(engine, requests, sampling), strict=True):
            talk.turns.append(response.text)
            talk.made.append(response)
        live = [talk for talk, _ in asked]


class Compliance:
    """The stages of one benchmark over one ledger: ask, judge, count.

    Args:
        benchmark: what is asked.
        items: that fit the model.
        ledger: where the rows go.
        judges: the first one's outcomes are the headline.
        sampling: of this study.
        open_engine: opens the engine of an arm.
        keep: whether replies are written down.
        chunk: items asked together.
        together: sets of neurons that are in work at a time.
    """

    def __init__(
        self, benchmark: Benchmark, items: ItemSet, ledger: Ledger, judges: Sequence[OutcomeJudge], sampling: Sampling,
        open_engine: OpenEngine, *, keep: bool, chunk: int, together: int = 1,
    ) -> None:  # fmt: skip
        self.benchmark = benchmark
        self.items = items
        self.ledger = ledger
        self.judges = {f"{judge.name}@{short_hash(judge.describe())}": judge for judge in judges}
        self.sampling = sampling
        self.open_engine = open_engine
        self.keep = keep
        self.chunk = chunk
        self.together = together
        self._judging = threading.Lock()
        self._first: dict[str, tuple[str, ...]] = {}
        ledger.check_asked({item.id: short_hash(asdict(item)) for item in items.items})

    # -- asking -----------------------------------------------------------------------------------

    def ask(self, arms: Sequence[Arm], alphas: Sequence[float], tick: Callable[[int], None]) -> None:
        """Fill the ledger. What an earlier judge failed at is judged first.

        Raises:
            JudgeError: a judge failed; what was generated is kept, and judged when the study goes on.
        """
        known = {item.id: item for item in self.items.items}
        unjudged = [
            row
            for (item, arm, _), row in self.ledger.rows.items()
            if item in known and arm != UNSCALED and row.get("replies") and not self._is_judged(row)
        ]
        for part in chunked(unjudged, 8 * self.chunk):
            cases = [Case(known[row["item"]], tuple(row["replies"]), _last_cut(row)) for row in part]
            self._judge([dict(row) for row in part], cases)
        for chunk in chunked(self.items.items, self.chunk):
            admitted = self._admitted(chunk)
            tick((len(chunk) - len(admitted)) * (1 + len(arms) * (len(alphas) - 1)))
            if admitted:
                self._firsts(chunk)  # before neurons are scaled
                fill(
                    self.ledger, [admitted], lambda item: item.id, arms, alphas, self.open_engine, self._make,
                    whole=self._is_judged, tick=tick, together=self.together,
                )  # fmt: skip

    def _is_judged(self, row: Json) -> bool:
        return all(key in row.get("outcomes", {}) for key in self.judges)

    def _make(self, engine: Engine, items: Sequence[Item], arm: Arm, alphas: tuple[float, ...]) -> None:
        talks = [Talk(item, alpha) for item in items for alpha in alphas]
        for talk in talks:
            replies = self._first.get(talk.item.id, ())
            for n, reply in enumerate(replies):
                said = talk.item.prompt if n == 0 else self.benchmark.next_turn(talk.item, replies[:n])
                talk.turns += [str(said), reply]
        converse(engine, talks, self.benchmark, self.sampling, None)
        self._judge([talk.row(arm.name) for talk in talks], [talk.case for talk in talks])

    def _judge(self, rows: Sequence[Json], cases: Sequence[Case]) -> None:
        """Judge rows and write them down; those that a failing judge left over as well, if replies are kept."""
        for row in rows:
            row["outcomes"] = dict(row.get("outcomes", {}))
        try:
            for key, judge in self.judges.items():
                left = [n for n, row in enumerate(rows) if key not in row["outcomes"]]
                with self._judging:
                    found = judge.judge_many([cases[n] for n in left])
                for n, outcome in zip(left, found, strict=True):
                    rows[n]["outcomes"][key] = str(outcome)
        except HNeuronsError:
            if self.keep:
                self.ledger.add(rows)
            raise
        self.ledger.add(rows if self.keep else [_without_replies(row) for row in rows])

    # -- first turns ------------------------------------------------------------------------------

    def _admitted(self, items: Sequence[Item]) -> list[Item]:
        """The items that count, by the replies of the unscaled turns."""
        if not self.benchmark.unscaled_turns:
            return list(items)
        if any((item.id, UNSCALED, 1.0) not in self.ledger.rows for item in items):
            self._firsts(items)
        return [item for item in items if self.ledger.rows[item.id, UNSCALED, 1.0]["admitted"]]

    def _firsts(self, items: Sequence[Item]) -> None:
        """Learn the replies of the unscaled turns; they are asked again where they are not written down."""
        count = self.benchmark.unscaled_turns
        for item in items:
            row = self.ledger.rows.get((item.id, UNSCALED, 1.0), {})
            if "replies" in row:
                self._first[item.id] = tuple(row["replies"])
        if not count or all(item.id in self._first for item in items):
            return
        talks = [Talk(item) for item in items]
        with self.open_engine(NONE.neurons) as engine:
            converse(engine, talks, self.benchmark, self.sampling, count)
        rows: list[Json] = []
        for talk in talks:
            self._first[talk.item.id] = talk.replies
            rows.append({**talk.row(UNSCALED), "admitted": self.benchmark.admits(talk.item, talk.replies)})
        self.ledger.add(rows if self.keep else [_without_replies(row) for row in rows])

    # -- counting ---------------------------------------------------------------------------------

    def table(self, arms: Sequence[Arm], alphas: Sequence[float], *, draws: int, seed: int) -> Json:
        """Items, numbers, agreement and verdict of the benchmark object of impact.json.

        Raises:
            TooFewExamplesError: no item is admitted.
        """
        items = self._admitted(self.items.items)
        if not items:
            raise TooFewExamplesError(
                f"{self.benchmark.title}: none of {len(self.items.items)} items counts; the model gets none right.",
                "Ask more or easier items.",
            )
        headline = next(iter(self.judges))
        outcomes: dict[str, Outcomes] = {}
        for arm in arms:
            rows = [[self.ledger.get(item.id, arm.name, alpha) for alpha in alphas] for item in items]
            outcomes[arm.name] = Outcomes(
                np.array([[CODES[Outcome(row["outcomes"][headline])] for row in each] for each in rows]),
                np.array([[bool(row["cut"]) for row in each] for each in rows]),
                np.array([[float(row["tokens"]) for row in each] for each in rows]),
                np.array([[float(row["repetition"]) for row in each] for each in rows]),
            )
        sweep = Sweep(tuple(alphas), outcomes, {arm.name: arm.kind for arm in arms}, draws, seed)
        found = sweep.table()
        for arm in arms:
            found["arms"][arm.name] = {**arm.to_json(), **found["arms"][arm.name]}
        judges = list(self.judges.values())
        return {
            "judge": judges[0].name,
            "judges": {judge.name: judge.describe() for judge in judges},
            "items": {
                "asked": len(self.items.items),
                "not admitted": len(self.items.items) - len(items),
                "dropped": self.items.dropped,
            },
            **found,
            "agreement": self._agreement({item.id for item in items}, draws, seed),
            "examples": [] if self.benchmark.private else self._examples(items, arms[0].name, alphas, headline),
            "verdict": verdict(sweep, self.benchmark.title),
        }

    def _examples(self, items: Sequence[Item], arm: str, alphas: Sequence[float], headline: str) -> list[Json]:
        """Replies to one prompt at alpha 0, 1 and 3, or the nearest: of the first items, and of some that change."""
        shown = sorted({min(alphas, key=lambda there: abs(there - alpha)) for alpha in (0.0, 1.0, 3.0)})
        rows = {item.id: [self.ledger.get(item.id, arm, alpha) for alpha in shown] for item in items}
        whole = [item for item in items if all(row.get("replies") for row in rows[item.id])]
        changed = [i for i in whole[SHOWN:] if len({row["outcomes"][headline] for row in rows[i.id]}) > 1]
        chosen = [(item, "first asked") for item in whole[:SHOWN]]
        chosen += [(item, "outcome changes") for item in changed[:SHOWN]]
        return [
            {
                "item": item.id, "prompt": item.prompt, "chosen": why,
                "replies": [
                    {"alpha": alpha, "reply": row["replies"][-1], "outcome": row["outcomes"][headline],
                     "cut": row["cut"]}
                    for alpha, row in zip(shown, rows[item.id], strict=True)
                ],
            }
            for item, why in chosen
        ]  # fmt: skip

    def _agreement(self, items: set[str], draws: int, seed: int) -> Json | None:
        if len(self.judges) < 2:
            return None
        keys, judges = list(self.judges), list(self.judges.values())
        rows = [row for (item, arm, _), row in self.ledger.rows.items() if item in items and arm != UNSCALED]
        rows = [row for row in rows if self._is_judged(row)]
        first, second = ([Outcome(row["outcomes"][key]) for row in rows] for key in keys[:2])
        names = (judges[0].name, judges[1].name)
        ids = [str(row["item"]) for row in rows]
        return outcome_agreement(first, second, ids, names, draws=draws, seed=seed).to_json()


def _without_replies(row: Json) -> Json:
    return {key: value for key, value in row.items() if key != "replies"}


def _last_cut(row: Json) -> bool:
    return bool(row["finish_reasons"]) and row["finish_reasons"][-1] == "length"


def sampling_of(benchmark: Benchmark, seed: int, max_new_tokens: int | None, thinking: int | None) -> Sampling:
    """The benchmark's decoding with the study's seed and limits."""
    limit = max_new_tokens or benchmark.decoding.max_new_tokens
    return replace(benchmark.decoding, seed=seed, max_new_tokens=limit, thinking=thinking or 0)
