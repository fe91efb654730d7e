"""What the log is to tell of a request, collected on its way."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

PLACE = "hneurons.record"


@dataclass
class Record:
    """What is known of a request."""

    id: str = field(default_factory=lambda: f"req_{uuid.uuid4().hex}")
    began: float = field(default_factory=time.perf_counter)
    told: dict[str, Any] = field(default_factory=dict[str, Any])
    """What its handlers add to the line."""

    @property
    def age(self) -> float:
        """Seconds since it came."""
        return time.perf_counter() - self.began


def begin_record(scope: Scope) -> Record:
    """A new record for a request."""
    record = scope[PLACE] = Record()
    return record


def record_of(scope: Scope) -> Record:
    """The record of a request."""
    record = scope[PLACE]
    assert isinstance(record, Record)
    return record
