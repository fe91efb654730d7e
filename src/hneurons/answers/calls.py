"""Calls into vLLM: what goes wrong in them as one line, and a `vllm.LLM` that can be used after it, where that can be.

A call that fails or is interrupted leaves its requests with vLLM, which would answer them among the next call's. Where
vLLM runs in this process it would schedule them for ever, and the keys and values of a pass that failed stay in its
prefix cache as if they had been computed. Of a process that is killed vLLM takes no notice, and waits.
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
BROKEN = "hneurons_broken"
"""Attribute of a `vllm.LLM` in this process of which a call was broken off."""
LOOK = 1.0
"""Seconds between two looks at whether vLLM's process lives."""


@contextmanager
def calling(llm: Any, done: str) -> Generator[None]:
    """A block that calls `llm`; what goes wrong inside is one line with its remedy, and no request stays behind.

    Where one did in this process, that `llm` isn't called again.

    Args:
        llm: a `vllm.LLM`.
        done: what it did, for the line.

    Raises:
        ServiceError: it failed: a worker out of memory, or gone; each kind of worker raises something else.
    """
    if hasattr(llm, BROKEN):
        raise ServiceError(
            "A call of this vLLM was broken off, and it runs in this process: it can't be used any more.",
            "Make a new one; without VLLM_ENABLE_V1_MULTIPROCESSING=0 it runs in a process of its own.",
        )
    over, lost = threading.Event(), list[Exception]()
    core = llm.llm_engine.engine_core
    try:
        if is_apart(core):
            threading.Thread(target=_watch, args=(core, over, lost), daemon=True, name="hneurons-vllm").start()
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
    """Whether that `vllm.LLM` can't be used any more."""
    core = llm.llm_engine.engine_core
    return bool(core.resources.engine_dead) if is_apart(core) else hasattr(llm, BROKEN)


def line(error: Exception) -> str:
    """An error of vLLM's in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}".rstrip(".")


def _forget(llm: Any) -> None:
    engine = llm.llm_engine
    left = list(engine.output_processor.request_states)
    if left and not is_apart(engine.engine_core):
        setattr(llm, BROKEN, True)
    if left:
        engine.abort_request(left, internal=True)


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
