"""The probe of a made-up card."""

from __future__ import annotations

from typing import Any


def probe(intercept: float, calibration: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "labelling": "3-vs-1",
        "other": "response",
        "C": 1.0,
        "solver": "exact",
        "intercept": intercept,
        "calibration": calibration or {"slope": 1.0, "offset": 0.0, "n": 10},
    }
