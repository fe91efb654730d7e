"""Optional dependencies: imported when they are first needed, in one place."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hneurons.errors import MissingExtraError


def need(package: str, extra: str) -> Any:
    """The package as a module.

    Raises:
        MissingExtraError: it isn't installed; names the extra of this package that brings it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, extra) from error
