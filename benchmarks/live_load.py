"""Many clients at once on `hneurons serve`, with mixed alphas: no error, no answer of another alpha, memory flat.

    python benchmarks/live_load.py                        64 clients for two minutes
    python benchmarks/live_load.py --clients 8 --time 10

First every prompt is asked alone at every alpha; then all clients ask at random, streaming and not, and some hang up.
An answer is right when it is the one given alone. Batches of other sizes round otherwise, so that where two tokens are
all but equally likely, the text may part there: such answers are counted apart, and only if the two tokens'
log-probabilities differ by less than 0.001. In the end the server gets SIGTERM while it is busy: what was begun must be
finished. Prints one JSON object; the exit status is 1 if anything went wrong.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from live_model import make_run, prompts, serve
from measure import options
from openai import APIError, AsyncOpenAI

import hneurons as hn

ALPHAS = (0.0, 0.5, 1.0, 2.0, 3.0)
CLOSE = 1e-3
given = options(__doc__, clients=64, time=120, prompts=12, tokens=16, port=8792, seed=0)
model = hn.load_model("smollm2-135m", device="cpu")
name, asked = model.name, prompts(given.prompts)


@dataclass
class Tally:
    """What happened."""

    right: int = 0
    ties: int = 0
    wrong: list[str] = field(default_factory=list[str])
    errors: list[str] = field(default_factory=list[str])
    hung_up: int = 0
    memory: list[int] = field(default_factory=list[int])
    """Resident bytes of the server, once a second."""


async def ask(client: AsyncOpenAI, text: str, alpha: float, *, stream: bool = False) -> tuple[str, Any]:
    """The answer, and its log-probabilities where it isn't streamed."""
    wanted: dict[str, Any] = {
        "model": f"{name}@{alpha:g}", "messages": [{"role": "user", "content": text}], "max_tokens": given.tokens,
        "temperature": 0,
    }  # fmt: skip
    if not stream:
        made = await client.chat.completions.create(**wanted, logprobs=True, top_logprobs=2)
        return made.choices[0].message.content or "", made.choices[0].logprobs
    said = ""
    async for chunk in await client.chat.completions.create(**wanted, stream=True):
        said += "".join(choice.delta.content or "" for choice in chunk.choices)
    return said, None


def tied(alone: Any, said: str) -> bool:
    """Whether an answer parts from the one given alone where the two likeliest tokens are all but equally likely."""
    text = ""
    for token in alone.content:
        if not said.startswith(text + token.token):
            best = token.top_logprobs
            return abs(best[0].logprob - best[1].logprob) < CLOSE
        text += token.token
    return False


async def client_loop(number: int, known: dict[tuple[str, float], tuple[str, Any]], tally: Tally, until: float) -> None:
    chance = random.Random(f"{given.seed}/{number}")
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{given.port}/v1", api_key="none", max_retries=0) as client:
        while time.monotonic() < until:
            text, alpha = chance.choice(asked), chance.choice(ALPHAS)
            try:
                if chance.random() < 0.05:
                    stream = await client.chat.completions.create(
                        model=name, messages=[{"role": "user", "content": text}], max_tokens=200, stream=True
                    )
                    async for _ in stream:
                        break
                    await stream.close()
                    tally.hung_up += 1
                    continue
                said, _ = await ask(client, text, alpha, stream=chance.random() < 0.5)
            except APIError as error:
                tally.errors.append(f"{type(error).__name__}: {error}")
                continue
            right, logprobs = known[text, alpha]
            if said == right:
                tally.right += 1
            elif tied(logprobs, said):
                tally.ties += 1
            else:
                tally.wrong.append(f"alpha {alpha}, {text!r}: {said!r} instead of {right!r}")


async def watch_memory(pid: int, tally: Tally) -> None:
    while True:
        status = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1]
        tally.memory.append(1024 * int(status.split()[0]))
        await asyncio.sleep(1)


async def drained(process: Any) -> tuple[int, int]:
    """SIGTERM while eight answers are being made: how many were finished, and the exit status."""
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{given.port}/v1", api_key="none", max_retries=0) as client:
        begun = [asyncio.create_task(ask(client, text, 1.0)) for text in (asked * 8)[:8]]
        await asyncio.sleep(0.3)
        process.terminate()
        ends = await asyncio.gather(*begun, return_exceptions=True)
    status = await asyncio.to_thread(process.wait, 60)
    return sum(not isinstance(end, BaseException) for end in ends), status


async def main(process: Any) -> dict[str, Any]:
    tally = Tally()
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{given.port}/v1", api_key="none") as client:
        known = {(text, alpha): await ask(client, text, alpha) for text in asked for alpha in ALPHAS}
    differ = sum(len({known[text, alpha][0] for alpha in ALPHAS}) > 1 for text in asked)
    memory = asyncio.create_task(watch_memory(process.pid, tally))
    until = time.monotonic() + given.time
    await asyncio.gather(*(client_loop(number, known, tally, until) for number in range(given.clients)))
    memory.cancel()
    third = max(len(tally.memory) // 3, 1)
    first, last = max(tally.memory[third : 2 * third] or [1]), max(tally.memory[2 * third :] or [1])
    finished, status = await drained(process)
    good = not tally.errors and not tally.wrong and tally.right > 0 and finished == 8 and status == 0
    return {
        "name": "server under load", "passed": good and last <= 1.05 * first, "clients": given.clients,
        "seconds": given.time, "answers": tally.right + tally.ties + len(tally.wrong), "right": tally.right,
        "ties": tally.ties, "wrong": len(tally.wrong), "errors": len(tally.errors), "hung up": tally.hung_up,
        "prompts whose answer depends on alpha": f"{differ} of {len(asked)}",
        "memory, last third against the middle": round(last / first, 4), "peak MiB": max(tally.memory) >> 20,
        "finished after SIGTERM": f"{finished} of 8", "exit status": status,
        "examples": (tally.wrong + tally.errors)[:5],
    }  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        server = serve(make_run(Path(folder) / "run", model), given.port)
        del model  # the server has its own
        result = asyncio.run(main(server))
    print(json.dumps(result))
    sys.exit(0 if result["passed"] else 1)
