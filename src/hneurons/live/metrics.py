"""What the server counts and times, for Prometheus. Each server has a registry of its own."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hneurons.live.jobs import Done, Service

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
RISKS = tuple(i / 10 for i in range(1, 11))


class Metrics:
    """The numbers of one server."""

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "hneurons_requests", "Requests answered.", ["route", "status"], registry=registry
        )  # `_total` is appended
        self.seconds = Histogram(
            "hneurons_request_seconds",
            "From request to end of response.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "hneurons_first_token_seconds", "From request to first token.", buckets=SECONDS, registry=registry
        )
        self._prompt = Counter("hneurons_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._drawn = Counter("hneurons_generated_tokens", "Tokens drawn.", registry=registry)
        self._endings = Counter("hneurons_responses", "Responses by how they ended.", ["reason"], registry=registry)
        self._risk = Histogram("hneurons_risk", "Risk of responses.", buckets=RISKS, registry=registry)
        self._flags = Counter("hneurons_flags", "Responses that were flagged.", registry=registry)
        self._actions = Counter("hneurons_policy_actions", "What policies did.", ["action"], registry=registry)
        running = Gauge("hneurons_running", "Jobs in the batch.", registry=registry)
        running.set_function(lambda: service.running)
        waiting = Gauge("hneurons_waiting", "Jobs that have not begun.", registry=registry)
        waiting.set_function(lambda: service.waiting)

    def count(self, done: Done) -> None:
        """Count a response that ended."""
        self._endings.labels(done.reason).inc()
        self._prompt.inc(done.prompt_tokens)
        self._drawn.inc(done.completion_tokens)
        if done.action is not None:
            self._actions.labels(done.action).inc()
        if done.reading is not None and math.isfinite(done.reading.risk):
            self._risk.observe(done.reading.risk)
            self._flags.inc(done.reading.flagged)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
