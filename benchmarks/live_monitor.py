"""Tokens/s of the service with the monitor on, against off; 104 neurons watched, spread over all layers.

    python benchmarks/live_monitor.py

Both sides write the same tokens (greedy), with 1, 8 and 32 responses at a time, until they end or have 128 tokens; the
last token of one that is cut is read once more, which counts. The ratio is that of the worst of the
three; `by_rows` has each.
"""

from __future__ import annotations

import queue

from live_model import make_card, prompts
from measure import all_cpus, in_turn, options, scaled, show

import hneurons as hn
from hneurons.live.jobs import Done, Failed, Job, Message
from hneurons.live.service import BatchService

given = options(__doc__, rounds=11, tokens=128)
threads = all_cpus()
model = hn.load_model("smollm2-135m", device="cpu")
rounds, length = (1, 4) if given.quick else (given.rounds, given.tokens)
sizes = (1, 2) if given.quick else (1, 8, 32)
found: dict[int, dict[str, object]] = {}

with BatchService(model, make_card(model), max_batch=max(sizes)) as service:
    for rows in sizes:
        asked = prompts(rows)
        drawn: dict[bool, int] = {}

        def write(monitor: bool) -> None:
            over: queue.SimpleQueue[Done | Failed] = queue.SimpleQueue()
            for text in asked:  # noqa: B023  # called inside the loop
                job = Job((Message("user", text),), max_tokens=length, temperature=0.0, monitor=monitor)
                service.submit(job, lambda event: over.put(event) if isinstance(event, Done | Failed) else None)
            ends = [over.get() for _ in asked]  # noqa: B023
            assert all(isinstance(end, Done) for end in ends)
            drawn[monitor] = sum(end.completion_tokens for end in ends)  # noqa: B023

        measured = in_turn(lambda: write(True), lambda: write(False), rounds)
        found[rows] = scaled(measured, drawn[True] / drawn[False])
        assert drawn[True] == drawn[False]

worst = min(found, key=lambda rows: float(found[rows]["speedup"]))  # pyright: ignore[reportArgumentType]
show(
    "monitor: tokens/s of the service, against without", found[worst]["speedup"], 0.97, "min", sum(sizes),
    {"model": model.name, "neurons": 104, "max_tokens": length, "threads": threads},
    range=found[worst]["range"], rounds=rounds, by_rows=found,
)  # fmt: skip
