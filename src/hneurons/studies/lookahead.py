"""Chunks of questions that are sampled before their turn, where the engine has room for several at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from hneurons.answers.batch import Pair, judge_all
from hneurons.answers.judge import Judge
from hneurons.types import Label, Question, Response, Verdict

Work = Callable[[Sequence[Question], set[Label], Callable[[int], None]], list[Response]]
"""Judged responses to a chunk, given the labels of which there are enough, and what to call after each round."""


class OneByOne:
    """A judge that several threads use, in turn."""

    def __init__(self, judge: Judge) -> None:
        self.name = judge.name
        self._judge = judge
        self._lock = threading.Lock()

    def judge(self, question: Question, text: str) -> Verdict:
        """See `Judge`."""
        return self.judge_many([(question, text)])[0]

    def judge_many(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """See `BatchJudge`."""
        with self._lock:
            return judge_all(self._judge, pairs)


class _DroppedError(Exception):
    """Nobody wants this chunk any more."""


@dataclass
class _Begun:
    full: set[Label]
    dropped: threading.Event = field(default_factory=threading.Event)
    responses: Future[list[Response]] = field(default_factory=Future[list[Response]])

    def tick(self, _: int) -> None:
        """Called between rounds of sampling: ends those of a chunk that was dropped."""
        if self.dropped.is_set():
            raise _DroppedError


class Lookahead:
    """The next chunks, begun with what is known now; a chunk that knew too little when its turn comes is done again,
    so that the outcome is that of one chunk after the other."""

    def __init__(
        self, pool: ThreadPoolExecutor, work: Work, chunks: Mapping[int, Sequence[Question]], ahead: int
    ) -> None:
        self._pool = pool
        self._work = work
        self._chunks = chunks
        self._left = sorted(chunks)
        self._ahead = ahead
        self._begun: dict[int, _Begun] = {}

    def take(self, number: int, full: set[Label]) -> list[Response]:
        """The responses to that chunk, whose turn it is."""
        for stale in [other for other, begun in self._begun.items() if begun.full != full]:
            self._begun[stale].dropped.set()
            self._begin(stale, full)
        while self._left and len(self._begun) < self._ahead:
            self._begin(self._left.pop(0), full)
        # Known until it is there: an interrupt meanwhile ends it as well.
        found = self._begun[number].responses.result()
        del self._begun[number]
        return found

    def drop(self) -> None:
        """End what is in work after its round."""
        for begun in self._begun.values():
            begun.dropped.set()

    def _begin(self, number: int, full: set[Label]) -> None:
        begun = self._begun[number] = _Begun(full)
        begun.responses = self._pool.submit(self._work, self._chunks[number], full, begun.tick)


@contextmanager
def lookahead(work: Work, chunks: Mapping[int, Sequence[Question]], ahead: int) -> Generator[Lookahead]:
    """See `Lookahead`; `chunks` are taken in the order of their numbers, `ahead` are in work at a time."""
    # Chunks that were dropped have a round to end while others begin.
    pool = ThreadPoolExecutor(2 * ahead)
    coming = Lookahead(pool, work, chunks, ahead)
    try:
        yield coming
    finally:
        coming.drop()
        pool.shutdown(wait=False, cancel_futures=True)
