"""Processes that are killed at a chosen write, forked from a server that has imported the heavy libraries once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "hneurons.studies.evaluate",
        "hneurons.studies.identify",
        "hneurons.studies.impact",
        "hneurons.studies.turned",
        "hneurons.answers.hf",
        "hneurons.report.page",
        "matplotlib.pyplot",
    ]
)
KILLED = -signal.SIGKILL


def begin(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    child = CONTEXT.Process(target=target, args=arguments, daemon=True)
    child.start()
    return child


def run(target: Callable[..., None], *arguments: Any) -> int | None:
    """The exit code of a child that does this."""
    child = begin(target, *arguments)
    child.join(120)
    return child.exitcode


def die_at(count: int, counted: Callable[[], bool] = lambda: True) -> None:
    """Kill this process at the `count`-th write that is synced to the disk while `counted()`."""
    real, seen = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal seen
        seen += counted()
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)
        real(handle)

    os.fsync = fsync
