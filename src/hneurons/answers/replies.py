"""The replies of a judging model on the disk: a journal, so that no answer is paid for twice."""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from hneurons.runfolder import Journal, Json, storage_errors

USUAL_TOKENS_PER_BYTE = 0.25
"""Of English text, until the endpoint has reported its own count."""


@dataclass(slots=True)
class Past:
    """Totals over the replies of one model."""

    replies: int = 0
    seconds: float = 0.0
    counted: int = 0
    """Replies whose tokens the endpoint reported."""
    bytes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens_per_byte(self) -> float:
        """Prompt tokens for each byte of UTF-8."""
        return self.prompt_tokens / self.bytes if self.bytes else USUAL_TOKENS_PER_BYTE

    @property
    def mean_completion(self) -> float | None:
        """Tokens of a reply; None before the first."""
        return self.completion_tokens / self.counted if self.counted else None

    @property
    def mean_seconds(self) -> float | None:
        """Seconds of a request; None before the first."""
        return self.seconds / self.replies if self.replies else None

    def add(self, row: Json) -> None:
        """Take one row of the journal into the totals."""
        self.replies += 1
        self.seconds += row.get("seconds") or 0.0
        if row.get("prompt_tokens") and row.get("completion_tokens"):
            self.counted += 1
            self.bytes += row["bytes"]
            self.prompt_tokens += row["prompt_tokens"]
            self.completion_tokens += row["completion_tokens"]


class ReplyCache:
    """`replies.jsonl` in a folder; threads and processes may share it.

    A row: `key` (hash of model, messages, schema and temperature), `model`, `answered_by` (the endpoint's own name of
    the model), `reply`, `bytes` of the prompt, `prompt_tokens` and `completion_tokens` (null if not reported),
    `seconds`.

    Args:
        folder: made when the first reply is added.
        model: whose replies count in `past`.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.path = folder / "replies.jsonl"
        self.past = Past()
        self._model = model
        self._mutex = threading.Lock()
        self._replies: dict[str, Json] = {}
        if self.path.exists():
            with self._alone():
                rows = Journal(self.path).read()
            for row in rows:
                if {"key", "model", "reply"} <= row.keys():
                    self._take(row)

    def get(self, key: str) -> Json | None:
        """The reply of that key, None if there is none."""
        return self._replies.get(key)

    def add(self, row: Json) -> None:
        """Keep a row; it is on the disk when this returns."""
        with self._alone():
            Journal(self.path).append([row])
            self._take(row)

    def _take(self, row: Json) -> None:
        self._replies[row["key"]] = row["reply"]
        if row["model"] == self._model:
            self.past.add(row)

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        """Keep other threads and processes out: each repairs the journal before it writes."""
        with self._mutex, storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with (self.path.parent / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
