"""Chunks of questions that are sampled before their turn, where the engine has room for several at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from hneurons.answers.batch import Pair, judge_all
from hneurons.answers.judge import Judge
from hneurons.types import Label, Question, Response, Verdict

Work = Callable[[Sequence[Question], set[Label]], list[Response]]
"""Judged responses to a chunk, given the labels of which there are enough."""


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


class Lookahead:
    """The next chunks, begun with what is known now; a chunk that knew too little when its turn comes is done again,
    so that the outcome is that of one chunk after the other."""

    def __init__(self, pool: ThreadPoolExecutor, work: Work, chunks: Mapping[int, Sequence[Question]], ahead: int):
        self._pool = pool
        self._work = work
        self._chunks = chunks
        self._left = sorted(chunks)
        self._ahead = ahead
        self._begun: dict[int, tuple[Future[list[Response]], set[Label]]] = {}

    def take(self, number: int, full: set[Label]) -> list[Response]:
        """The responses to that chunk, whose turn it is."""
        while self._left and len(self._begun) < self._ahead:
            self._begin(self._left.pop(0), full)
        if number not in self._begun or self._begun[number][1] != full:
            for other, (future, _) in list(self._begun.items()):
                if future.cancel() or other == number:
                    self._begin(other, full)
        return self._begun.pop(number)[0].result()

    def _begin(self, number: int, full: set[Label]) -> None:
        self._begun[number] = self._pool.submit(self._work, self._chunks[number], full), full


@contextmanager
def lookahead(work: Work, chunks: Mapping[int, Sequence[Question]], ahead: int) -> Generator[Lookahead]:
    """See `Lookahead`; `chunks` are taken in the order of their numbers, `ahead` are in work at a time."""
    pool = ThreadPoolExecutor(ahead)
    try:
        yield Lookahead(pool, work, chunks, ahead)
    finally:
        # Those whose results nobody wants any more end with the engine.
        pool.shutdown(wait=False, cancel_futures=True)
