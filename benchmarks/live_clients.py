"""Tokens/s and time to the first token of `hneurons serve` at 1, 8 and 32 clients, and of a bare loop.

    python benchmarks/live_clients.py

The clients are those of the official `openai` package, streaming, in a process of their own, each with one question,
the monitor on and off. The bare loop is `model.generate` behind a lock, one request after the other, as a server
without continuous batching runs it; it pays no HTTP. All write the same greedy answers. The ratio is tokens/s with the
monitor on at the largest number of clients, against the bare loop.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from live_model import make_run, prompts, serve, stop
from measure import all_cpus, options, show
from openai import AsyncOpenAI
from transformers.generation.streamers import BaseStreamer

import hneurons as hn

given = options(__doc__, rounds=3, tokens=48, port=8791)
threads = all_cpus()
sizes = (1, 2) if given.quick else (1, 8, 32)
length = 4 if given.quick else given.tokens
rounds = 1 if given.quick else given.rounds
model = hn.load_model("smollm2-135m", device="cpu")
Sample = tuple[float, list[float]]
"""Tokens/s, and seconds to the first token of each request."""


class First(BaseStreamer):
    """Notes when the first token came."""

    def __init__(self) -> None:
        self.calls, self.at = 0, 0.0

    def put(self, value: Any) -> None:
        self.calls += 1
        if self.calls == 2:  # the prompt comes first
            self.at = time.perf_counter()

    def end(self) -> None:
        pass


def bare(asked: list[str]) -> Sample:
    """All requests arrive at once and wait for their turn."""
    began, firsts, tokens = time.perf_counter(), [], 0
    for text in asked:
        ids = torch.tensor([model.encode(model.chat([{"role": "user", "content": text}]))])
        first = First()
        out = model.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, streamer=first
        )
        tokens += out.shape[1] - ids.shape[1]
        firsts.append(first.at - began)
    return tokens / (time.perf_counter() - began), firsts


async def served(asked: list[str], monitor: bool) -> Sample:
    """All requests at once, each from a client of its own."""

    async def one(text: str) -> tuple[float, int]:
        stream = await client.chat.completions.create(
            model=model.name, messages=[{"role": "user", "content": text}], max_tokens=length, temperature=0,
            stream=True, stream_options={"include_usage": True}, extra_body={"hneurons": {"monitor": monitor}},
        )  # fmt: skip
        first, tokens = 0.0, 0
        async for chunk in stream:
            first = first or time.perf_counter()
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        return first - began, tokens

    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{given.port}/v1", api_key="none", max_retries=0) as client:
        began = time.perf_counter()
        ends = await asyncio.gather(*(one(text) for text in asked))
        return sum(tokens for _, tokens in ends) / (time.perf_counter() - began), [first for first, _ in ends]


results: dict[str, dict[str, list[Sample]]] = {}
with tempfile.TemporaryDirectory() as folder:
    process = serve(make_run(Path(folder) / "run", model), given.port)
    try:
        for _ in range(rounds + 1):  # the first warms up
            for count in sizes:
                asked = prompts(count)
                kinds = results.setdefault(str(count), {})
                kinds.setdefault("monitor on", []).append(asyncio.run(served(asked, True)))
                kinds.setdefault("bare loop", []).append(bare(asked))
                kinds.setdefault("monitor off", []).append(asyncio.run(served(asked, False)))
    finally:
        stop(process)

table: dict[str, Any] = {}
for count, kinds in results.items():
    for kind, samples in kinds.items():
        kept = samples[1:] or samples
        table.setdefault(count, {})[kind] = {
            "tokens/s": round(statistics.median(rate for rate, _ in kept), 1),
            "first token, median s": round(statistics.median(statistics.median(firsts) for _, firsts in kept), 3),
            "first token, worst s": round(statistics.median(max(firsts) for _, firsts in kept), 3),
        }
most = str(max(sizes))
pairs = zip(results[most]["monitor on"][1:], results[most]["bare loop"][1:], strict=True)
ratios = [on[0] / loop[0] for on, loop in pairs] or [0.0]
show(
    "server: tokens/s with the monitor on, against a bare generate loop", statistics.median(ratios), 1.0, "min",
    int(most), {"model": model.name, "max_tokens": length, "threads": threads}, rounds=rounds,
    range=[round(min(ratios), 4), round(max(ratios), 4)], clients=table,
)  # fmt: skip
