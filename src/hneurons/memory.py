"""Whether an error means that memory ran out: each device and library says so in words of its own."""

from __future__ import annotations

import errno

WORDS = ("out of memory", "not enough memory", "allocate memory", "alloc_failed")
"""Of CUDA, MPS and ROCm; of PyTorch's allocator on a CPU; of the operating system; of cuBLAS."""


def ran_out(error: BaseException | None) -> bool:
    """Whether that is what went wrong."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    short = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)
    return short or isinstance(error, MemoryError)
