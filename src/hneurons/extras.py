"""Optional dependencies: imported when they are first needed, in one place."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from hneurons.errors import MissingExtraError, UsageError

VLLM = ((0, 32), (0, 33))
"""Releases of vLLM that were tested: from the first of these versions on, before the second."""


def need(package: str, extra: str) -> Any:
    """The package as a module.

    Raises:
        MissingExtraError: it isn't installed; names the extra of this package that brings it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, extra) from error


def need_vllm() -> Any:
    """vLLM as a module: engines and hooks depend on its internals, so no release that wasn't tested will do.

    Raises:
        MissingExtraError: it isn't installed.
        UsageError: see `check_vllm`.
    """
    vllm = need("vllm", "vllm")
    check_vllm(str(vllm.__version__))
    return vllm


def check_vllm(version: str) -> None:
    """Refuse a release of vLLM that wasn't tested.

    Raises:
        UsageError: it is too old or too new.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    first, end = VLLM
    if not found or not first <= (int(found[1]), int(found[2])) < end:
        low, high = (".".join(map(str, each)) for each in VLLM)
        raise UsageError(
            f"vLLM {version} is outside >={low},<{high}: hneurons is tested with {low}.",
            f"Install vLLM {low} (make vllm), or serve a LoRA export, which needs nothing of hneurons in the server.",
        )
