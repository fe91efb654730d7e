"""Calls into vLLM: what goes wrong in them as one line, and a `vllm.LLM` that can be used after it, where that can be.

A call that fails or is interrupted leaves its requests with vLLM, which would answer them among the next call's or,
after a failed pass in this process, schedule them for ever. One whose process is killed leaves vLLM waiting for it.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from hneurons.errors import HNeuronsError, ServiceError

AGAIN = (
    "Run the same command again, which continues; if memory was short, with a smaller --engine-arg max_num_seqs or "
    "gpu_memory_utilization."
)
LOOK = 1.0
"""Seconds between two looks at whether vLLM's process lives."""


@contextmanager
def calling(llm: Any, done: str) -> Generator[None]:
    """A block that calls `llm`; what goes wrong inside is one line with its remedy, and no request stays behind.

    Args:
        llm: a `vllm.LLM`.
        done: what it did, for the line.

    Raises:
        ServiceError: it failed: a worker out of memory, or gone; each kind of worker raises something else.
    """
    over, lost = threading.Event(), list[Exception]()
    core = llm.llm_engine.engine_core
    if is_apart(core):
        threading.Thread(target=_watch, args=(core, over, lost), daemon=True, name="hneurons-vllm").start()
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # of a process that is gone
            _forget(llm)
        if isinstance(error, HNeuronsError) or not isinstance(error, Exception):
            raise
        why = line(lost[0] if lost else error)
        raise ServiceError(f"vLLM failed while it {done}: {why}.", AGAIN) from error
    finally:
        over.set()


def is_apart(core: Any) -> bool:
    """Whether vLLM's engine runs in a process of its own, as it does unless told otherwise."""
    return hasattr(core, "resources")


def is_dead(llm: Any) -> bool:
    """Whether the process of that `vllm.LLM` ended; it answers nothing any more."""
    core = llm.llm_engine.engine_core
    return is_apart(core) and bool(core.resources.engine_dead)


def line(error: Exception) -> str:
    """An error of vLLM's in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}".rstrip(".")


def _forget(llm: Any) -> None:
    engine = llm.llm_engine
    engine.abort_request(list(engine.output_processor.request_states), internal=True)


def _watch(core: Any, over: threading.Event, lost: list[Exception]) -> None:
    """Wake who waits for an engine that was killed, by the system for want of memory, say: vLLM only notes that."""
    while not over.wait(LOOK):
        if core.resources.engine_dead:
            lost.append(ChildProcessError("its process ended; the system ends those for which it lacks memory"))
            core.outputs_queue.put(lost[0])
            for future in list(core.utility_results.values()):
                with suppress(Exception):  # answered in this moment
                    future.set_exception(lost[0])
            return
