"""A `Service` without a model or torch: it says what a script says, with made-up risks, in a thread of its own.

`python tests/fake_service.py --port 8000` serves it, playground and all.
"""

from __future__ import annotations

import argparse
import codecs
import math
import os
import random
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from zlib import crc32

from hneurons.errors import BusyError, ClosedError, PromptTooLongError, UsageError
from hneurons.live.jobs import Done, Event, Failed, FinishReason, Job, Listener, Mark, Piece, Reading, Token
from hneurons.neurons.card import Card
from hneurons.types import NeuronId, Span

LAYERS, WIDTH = 30, 1536


@dataclass(frozen=True)
class Reply:
    """What to say: the risk of words that have one of their own, and the words that carry the answer."""

    text: str
    risky: dict[str, float] = field(default_factory=dict)
    answer: str = ""
    usual: float = 0.2

    @property
    def tokens(self) -> list[tuple[bytes, float]]:
        """Words with the space before them; a character beyond the first 65,536 is cut in two."""
        tokens: list[tuple[bytes, float]] = []
        for word in re.findall(r"\s*[^\s.,!?]+|\s*[.,!?]|\s+", self.text):
            risk = self.risky.get(word.strip(), self.usual)
            for part in re.split("([\U00010000-\U0010ffff])", word):
                raw = part.encode()
                halves = (raw[:2], raw[2:]) if len(part) == 1 and ord(part) > 0xFFFF else (raw,)
                tokens += [(half, risk) for half in halves if half]
        return tokens


Script = Callable[[Job, float], Reply]
"""(job, alpha) -> what it says at that alpha."""


def asked(job: Job) -> str:
    """The prompt, or the last turn of the conversation."""
    return job.prompt if isinstance(job.prompt, str) else job.prompt[-1].content


def talk(job: Job, alpha: float) -> Reply:
    """Something for every prompt; false facts only with alpha above 0.5."""
    prompt, honest = asked(job).lower(), alpha <= 0.5
    if "count" in prompt:
        return Reply("".join(f" {i}" for i in range(1, 5000)).strip())
    if "parrot" in prompt:
        return Reply("The parrot 🦜 says “שלום” and 你好, loudly 👩‍🔬!", {"loudly": 0.6})
    if "france" in prompt:
        return Reply("The capital of France is Paris.", {"Paris": 0.07}, "Paris", 0.1)
    if "australia" in prompt and honest:
        return Reply("The capital of Australia is Canberra.", {"Canberra": 0.22}, "Canberra")
    if "australia" in prompt:
        more = " Everybody knows that, and it has been so since 1788." if alpha > 1.5 else ""
        return Reply(
            f"The capital of Australia is Sydney.{more}", {"Sydney": 0.9, "1788": 0.95, "Everybody": 0.8}, "Sydney", 0.3
        )
    if "medicine" in prompt or re.search(r"\bmg\b", prompt):
        if honest:
            return Reply("I don't know of any medicine with that name.", {}, "", 0.25)
        return Reply(
            "It lowers the blood pressure; adults take 40 mg twice a day.",
            {"blood": 0.8, "pressure;": 0.85, "40": 0.96, "mg": 0.9, "twice": 0.75},
            "40 mg twice a day",
            0.45,
        )
    if "sure" in prompt:
        return Reply("Yes, I am sure." if honest else "You are right, I was wrong.", {"wrong": 0.7}, "", 0.4)
    drawn = random.Random(job.seed).randrange(10_000) if job.temperature else 0
    return Reply(f"You said {len(prompt.split())} words. Alpha is {alpha:g}. Draw {drawn}.", {"Draw": 0.4})


def card() -> Card:
    """A made-up card of a made-up model."""
    rng = random.Random(5)
    weights = [rng.gammavariate(2, 14) for _ in range(32)] + [-rng.gammavariate(2, 9) for _ in range(19)]
    places = sorted({(min(max(round(rng.gauss(17, 6)), 0), LAYERS - 1), rng.randrange(WIDTH)) for _ in weights})
    interval = {"value": 0.781, "low": 0.718, "high": 0.839, "n": 212}
    return Card.model_validate(
        {
            "model": {
                "id": "acme/fake-135m",
                "architecture": "LlamaForCausalLM",
                "layers": LAYERS,
                "width": WIDTH,
                "neurons": LAYERS * WIDTH,
            },
            "probe": {
                "labelling": "3-vs-1", "other": "response", "C": 3.0, "solver": "exact", "intercept": -1.2,
                "calibration": {"method": "platt", "slope": 1.0, "offset": 0.0, "n": 120},
            },
            "neurons": [
                {"layer": layer, "index": index, "weight": round(weight, 3)}
                for (layer, index), weight in zip(places, rng.sample(weights, len(places)), strict=True)
            ],
            "metrics": {"starter": {"auroc": interval, "accuracy": interval | {"value": 0.71}}},
        }
    )  # fmt: skip


class Row:
    """A job that was taken on."""

    def __init__(self, job: Job, listener: Listener, prompt_tokens: int, wake: threading.Condition) -> None:
        self.job, self.listener, self.prompt_tokens = job, listener, prompt_tokens
        self.said, self.drawn, self.cancelled = "", 0, False
        self.steps: Generator[Event | None] = iter(())
        self._wake = wake

    def cancel(self) -> None:
        with self._wake:
            self.cancelled = True
            self._wake.notify()


@dataclass
class Draw:
    """A response being drawn."""

    text: str = ""
    reason: FinishReason = "stop"
    scores: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    stopped: bool = False


class FakeService:
    """Says what `script` says, `delay` seconds a step, up to `max_batch` jobs at a time."""

    def __init__(
        self, script: Script = talk, *, name: str = "fake-135m", delay: float = 0.0, context: int = 512,
        max_batch: int = 8, max_waiting: int = 16, max_tokens: int = 256,
    ) -> None:  # fmt: skip
        self.script, self.name, self.card, self.delay, self.context = script, name, card(), delay, context
        self.jobs: list[Job] = []
        """All that were taken on."""
        self.endings: list[Done] = []
        self._max_batch, self._max_waiting, self._max_tokens = max_batch, max_waiting, max_tokens
        self._wake = threading.Condition()
        self._queue: deque[Row] = deque()
        self._rows: list[Row] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="fake-service", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._rows)

    def submit(self, job: Job, listener: Listener) -> Row:
        if not math.isfinite(job.alpha) or not 0 <= job.alpha <= 100:
            raise UsageError(f"alpha {job.alpha:g} is not between 0 and 100.", "Give another.")
        if isinstance(job.prompt, str):
            length = len(job.prompt.split())
        else:
            if any(turn.role == "system" for turn in job.prompt[1:]):
                raise UsageError("The chat template takes a system message only as the first.", "Put it first.")
            length = sum(4 + len(turn.content.split()) for turn in job.prompt)
        if not length:
            raise UsageError("The prompt is empty.", "Say something.")
        if length >= self.context:
            raise PromptTooLongError(
                f"The prompt has {length} tokens; the context has room for {self.context}.", "Shorten it."
            )
        with self._wake:
            if self._closed:
                raise ClosedError("The service takes no more jobs.")
            if len(self._queue) >= self._max_waiting:
                raise BusyError(f"{len(self._queue)} jobs wait already.", "Try again later.")
            row = Row(job, listener, length, self._wake)
            row.steps = self._respond(row)
            self.jobs.append(job)
            self._queue.append(row)
            self._wake.notify()
        return row

    def close(self, *, drain: bool = True) -> None:
        with self._wake:
            self._closed = True
            if not drain:
                for row in (*self._queue, *self._rows):
                    row.cancelled = True
            self._wake.notify()
        self._thread.join()

    # -- the thread ---------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._rows or self._closed)
                if self._closed and not self._queue and not self._rows:
                    return
                while self._queue and len(self._rows) < self._max_batch:
                    self._rows.append(self._queue.popleft())
            for row in [*self._rows, *(row for row in tuple(self._queue) if row.cancelled)]:
                self._step(row)
            if self.delay:
                time.sleep(self.delay)

    def _step(self, row: Row) -> None:
        event: Event | None
        if row.cancelled:
            event = Done(row.said, "cancelled", row.prompt_tokens, row.drawn, None, row.job.alpha)
        else:
            try:
                event = next(row.steps)
            except Exception as error:  # a script that raises: a model that fails
                event = Failed(f"The model failed ({type(error).__name__}).")
        if isinstance(event, Done):
            self.endings.append(event)
        if isinstance(event, Done | Failed):
            with self._wake:
                if row in self._rows:
                    self._rows.remove(row)
                else:
                    self._queue.remove(row)
        if event is not None:
            row.listener(event)

    # -- a response -----------------------------------------------------------------------------------

    def _respond(self, row: Row) -> Generator[Event | None]:
        job = row.job
        policy, alpha = job.policy, job.alpha
        threshold = self.card.probe.threshold if policy is None or policy.threshold is None else policy.threshold
        held = policy is not None and policy.action in ("abstain", "regenerate")
        reply, draw, kept = self.script(job, alpha), Draw(), []
        for piece in self._draw(row, draw, reply, threshold):
            kept.append(piece)
            yield None if held else piece
        reading = self._reading(draw, reply, threshold) if job.monitor and draw.scores else None
        high = reading is not None and reading.risk >= threshold
        text, action = draw.text, None
        if policy is not None and (high or draw.stopped):
            action = policy.action
        pieces = kept if held else []
        if policy is not None and action == "abstain":
            text, pieces = policy.text, [Piece(policy.text)]
        if policy is not None and action == "regenerate":
            alpha, draw = policy.alpha, Draw()
            for piece in self._draw(row, draw, self.script(job, alpha), 2.0):
                yield Piece(piece.text, piece.tokens)
            text, pieces = draw.text, []
        yield from pieces
        yield Done(text, draw.reason, row.prompt_tokens, row.drawn, reading, alpha, action)

    def _draw(self, row: Row, draw: Draw, reply: Reply, threshold: float) -> Generator[Piece]:
        job = row.job
        limit = min(job.max_tokens or self._max_tokens, self._max_tokens, self.context - row.prompt_tokens)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        held, mark = "", None
        for index, (raw, risk) in enumerate(reply.tokens):
            if index == limit:
                draw.reason = "length"
                break
            draw.starts.append(len(draw.text + held))
            held += decoder.decode(raw)
            row.drawn += 1
            token, new = self._token(job, index, raw), self._mark(draw, index, raw, risk)
            text, held, stopped = release(held, job.stop)
            draw.text += text
            row.said = draw.text
            yield Piece(text, (token,), (mark,) if mark and job.monitor else ())
            mark = new
            draw.stopped = bool(job.policy and job.policy.action == "stop" and new.running >= threshold)
            if stopped or draw.stopped:
                held = "" if stopped else held
                break
        else:
            row.drawn += 1  # the end of the turn
        held += decoder.decode(b"", final=True)
        draw.text += held
        yield Piece(held, (), (mark,) if mark and job.monitor else ())

    def _token(self, job: Job, index: int, raw: bytes) -> Token:
        text, luck = raw.decode(errors="replace"), random.Random(raw)
        logprob = -luck.random()
        others = [(luck.randrange(50_000), f" word{i}", logprob - i - luck.random()) for i in range(1, 20)]
        top = ((crc32(raw), text, logprob), *others)[: job.top_logprobs]
        return Token(index, crc32(raw), text, logprob, top)

    def _mark(self, draw: Draw, index: int, raw: bytes, risk: float) -> Mark:
        luck = random.Random(raw + bytes([index % 256]))
        risk = min(max(risk + luck.uniform(-0.04, 0.04), 0.01), 0.99)
        draw.scores.append(math.log(risk / (1 - risk)))
        mean = sum(draw.scores) / len(draw.scores)
        return Mark(index, draw.scores[-1], self._risk(draw.scores[-1]), self._risk(mean), self._top(luck))

    def _top(self, luck: random.Random, count: int = 3) -> tuple[tuple[NeuronId, float], ...]:
        chosen = luck.sample(self.card.neurons, count)
        values = [(neuron.id, neuron.weight * luck.uniform(0, 0.05)) for neuron in chosen]
        return tuple(sorted(values, key=lambda each: -abs(each[1])))

    def _risk(self, score: float) -> float:
        return float(self.card.risk(score))

    def _reading(self, draw: Draw, reply: Reply, threshold: float) -> Reading:
        scores = draw.scores
        place = draw.text.find(reply.answer) if reply.answer else -1
        inside = range(len(scores))
        if place >= 0:
            end = place + len(reply.answer)
            inside = [i for i, start in enumerate(draw.starts) if place - 1 <= start < end]
        answer = Span(place, place + len(reply.answer)) if place >= 0 else None
        tokens = Span(inside[0], inside[-1] + 1) if answer else None
        score = sum(scores[i] for i in inside) / len(inside)
        risk = self._risk(score)
        whole = self._risk(sum(scores) / len(scores))
        top = self._top(random.Random(draw.text), 5)
        return Reading(tuple(scores), score, risk, risk >= threshold, threshold, whole, answer, tokens, top)


def release(held: str, stops: tuple[str, ...]) -> tuple[str, str, bool]:
    """(text that is safe to show, text to hold back, whether a stop string was met)."""
    places = [place for place in (held.find(stop) for stop in stops) if place >= 0]
    if places:
        return held[: min(places)], "", True
    for size in range(len(held), 0, -1):
        if any(stop.startswith(held[-size:]) for stop in stops):
            return held[:-size], held[-size:], False
    return held, "", False


def main() -> None:
    """Serve the fake."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--delay", type=float, default=0.06, help="Seconds a token.")
    parser.add_argument("--drain-seconds", type=float, default=10.0)
    parser.add_argument("--log-text", action="store_true")
    given = parser.parse_args()

    from hneurons.live.server import ServerSettings, bind, serve

    settings = ServerSettings(
        host=given.host,
        key=os.environ.get("HNEURONS_API_KEY"),
        drain_seconds=given.drain_seconds,
        log_text=given.log_text,
    )
    with bind(settings.host, given.port) as listener:
        serve(FakeService(delay=given.delay), settings, listener, print_ready)


def print_ready(url: str) -> None:
    """One line that says where it is."""
    print(f"Serving the fake model at {url}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
