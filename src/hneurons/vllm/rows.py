"""Which rows of a flattened batch belong to which request, and a hold on an engine's real forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rows:
    """The rows of one request in the batch of a pass: its tokens from position `first` on."""

    request: str
    start: int
    stop: int
    first: int
    """Position of the first of these tokens in prompt and response, 0 being the prompt's first."""
    state: Any
    """What the model runner knows of the request: `prompt_token_ids`, `sampling_params`, ..."""

    @property
    def settings(self) -> dict[str, Any]:
        """The extra arguments that came with the request."""
        return getattr(self.state.sampling_params, "extra_args", None) or {}

    @property
    def ends(self) -> list[int]:
        """Tokens that end the response."""
        told = self.state.sampling_params
        ends = {getattr(told, "eos_token_id", None), *(getattr(told, "stop_token_ids", None) or ())}
        return sorted(end for end in ends if end is not None)


def rows_of(runner: Any, scheduled: Any) -> list[Rows]:
    """The requests of a batch, in the order of its rows.

    Args:
        runner: vLLM's model runner, its input batch brought up to date with `scheduled`.
        scheduled: vLLM's `SchedulerOutput`.

    Raises:
        RuntimeError: the counts don't add up, so that rows would go to the wrong requests.
    """
    found: list[Rows] = []
    start = 0
    for place, request in enumerate(runner.input_batch.req_ids):
        stop = start + scheduled.num_scheduled_tokens[request]
        first = int(runner.input_batch.num_computed_tokens_cpu[place])
        found.append(Rows(request, start, stop, first, runner.requests[request]))
        start = stop
    requests, tokens = len(scheduled.num_scheduled_tokens), scheduled.total_num_scheduled_tokens
    if (len(found), start) != (requests, tokens):
        raise RuntimeError(
            f"hneurons: vLLM's batch has {start} rows of {len(found)} requests, but {tokens} of {requests} are due."
        )
    return found


class Passes:
    """Tells `begin` and `end` of every real forward pass of a model runner; profile runs have none of both.

    Args:
        runner: vLLM's model runner; its `execute_model` is wrapped.
        begin: gets the rows of the batch before the model runs.
        end: is called after it.
    """

    def __init__(
        self,
        runner: Any,
        begin: Callable[[Sequence[Rows]], None],
        end: Callable[[], None],
    ) -> None:
        self._runner, self._begin, self._end = runner, begin, end
        self._scheduled: Any = None
        inner = runner.execute_model

        def execute_model(scheduled: Any, *args: Any, **named: Any) -> Any:
            self._scheduled = scheduled
            try:
                return inner(scheduled, *args, **named)
            finally:
                self._scheduled = None

        runner.execute_model = execute_model
        runner.model.register_forward_pre_hook(self._before)
        runner.model.register_forward_hook(self._after)

    def _before(self, *_: Any) -> None:
        if self._scheduled is not None and self._scheduled.total_num_scheduled_tokens:
            self._begin(rows_of(self._runner, self._scheduled))

    def _after(self, *_: Any) -> None:
        if self._scheduled is not None and self._scheduled.total_num_scheduled_tokens:
            self._end()
