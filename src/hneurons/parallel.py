"""Work on batches side by side on a CPU: a few workers with few threads each.

PyTorch's threads meet at a barrier after every operation; on a machine that others use as well, each barrier waits for
the slowest. Workers on batches of their own wait for nobody, and what they compute doesn't depend on how many they are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_WORKERS = 4  # more of them would queue for Python's interpreter lock


def worker_count(device: torch.device) -> int:
    """Workers for that device: one on an accelerator, up to four on a CPU."""
    if device.type != "cpu":
        return 1
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)), torch.get_num_threads()))


@contextmanager
def workers(device: torch.device, *, alone: bool = False, tasks: int | None = None) -> Generator[ThreadPoolExecutor]:
    """A pool of workers that share the CPU's threads.

    When the block fails, tasks not begun are dropped and those in work are waited for: they would read the model while
    its hooks come off, and hold their memory while the next try asks for some.

    Args:
        device: where the work is done.
        alone: one worker.
        tasks: how many there will be: no more workers than that, each with more threads.
    """
    count = 1 if alone else min(worker_count(device), tasks or MOST_WORKERS)
    threads = max(1, torch.get_num_threads() // count)
    # PyTorch keeps the number of threads per calling thread, so the caller's own stays as it was.
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def ordered(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int = 8
) -> Generator[Result]:
    """Results of `work` on each item, in order, at most `ahead` of them computed before they are taken."""
    return in_order(lambda item: pool.submit(work, item), items, ahead)


def in_order(submit: Callable[[Item], Future[Result]], items: Iterable[Item], ahead: int = 8) -> Generator[Result]:
    """Results of what `submit` begins for each item, in order, at most `ahead` of them begun before they are taken."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(submit(item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        while waiting:  # none is kept: one that failed holds what its work had in memory
            waiting.popleft().cancel()
