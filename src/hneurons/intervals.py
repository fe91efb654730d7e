"""Interval objects of the run folder as sentences and tables show them. Plain data, no array."""

from __future__ import annotations

from collections.abc import Sequence

from hneurons.runfolder import Json


def shown(interval: Json, times: float = 1, digits: int = 3) -> str:
    """The value with its interval, all multiplied by `times`: "0.760 [0.700, 0.810]"; "undefined" without bounds."""
    if interval["low"] is None:
        return "undefined"
    value, low, high = (times * interval[key] for key in ("value", "low", "high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def spread(values: Sequence[float], times: float = 1, digits: int = 3) -> str:
    """Mean and range of several numbers: "0.510 (0.430 to 0.580)"."""
    mean, low, high = (times * value for value in (sum(values) / len(values), min(values), max(values)))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def above(interval: Json, bound: float) -> bool:
    """Whether the whole interval lies above `bound`; an undefined one doesn't."""
    return interval["low"] is not None and interval["low"] > bound
