"""What a request asks of the dial and the monitor: `SamplingParams.extra_args["hneurons"]`, over HTTP `vllm_xargs`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hneurons.answers.engine import EXTENSION
from hneurons.errors import UsageError
from hneurons.neurons.card import Card
from hneurons.neurons.dial import checked_alpha

KEY = EXTENSION
"""Of the extra argument."""
CARD = "HNEURONS_CARD"
"""The environment variable that names the card: neurons.json, or the run folder that holds it."""
ALPHA = "HNEURONS_ALPHA"
"""The environment variable with the alpha of requests that give none."""
FORM = 'Give {"alpha": 0.5, "monitor": true}, over HTTP as a JSON string in vllm_xargs.'


@dataclass(frozen=True)
class Asked:
    """What one request wants."""

    alpha: float = 1.0
    """What the card's H-Neurons are multiplied by."""
    monitor: bool = False
    """Whether its tokens are scored."""

    @property
    def salt(self) -> str:
        """What tells cached prefixes of this alpha from others. Alpha 1 has one too: without it a client's own salt
        could be that of another alpha."""
        return f"hneurons alpha={self.alpha!r}"

    def told(self) -> dict[str, Any]:
        """As workers get it."""
        return {"alpha": self.alpha, "monitor": self.monitor}


def asked(value: Any, default: float = 1.0) -> Asked:
    """Read what a request gives: None, an object, or an object as a JSON string.

    Args:
        value: of the extra argument `KEY`.
        default: alpha of a request that gives none.

    Raises:
        UsageError: it is none of those, or alpha is none.
    """
    if value is None:
        return Asked(default)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"hneurons is no JSON ({error}).", FORM) from error
    if not isinstance(value, Mapping):
        raise UsageError(f"hneurons must be an object, not {value!r:.40}.", FORM)
    told = cast("Mapping[str, Any]", value)
    if unknown := set(told) - {"alpha", "monitor"}:
        raise UsageError(f"hneurons has no option {sorted(map(str, unknown))[0]!r:.40}.", FORM)
    alpha, monitor = told.get("alpha", default), told.get("monitor", False)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise UsageError(f"alpha must be a number, not {alpha!r:.40}.", FORM)
    if not isinstance(monitor, bool):
        raise UsageError(f"monitor must be true or false, not {monitor!r:.40}.", FORM)
    return Asked(_number(alpha), monitor)


def _number(alpha: float) -> float:
    try:
        checked_alpha(alpha)
        return float(alpha)
    except OverflowError as error:
        raise UsageError("alpha is too large.", FORM) from error


def card_of_environment() -> Card | None:
    """The card that the environment names; None where it names none.

    Raises:
        CardError: it can't be read.
    """
    named = os.environ.get(CARD)
    if not named:
        return None
    path = Path(named).expanduser()
    return Card.load(path / "neurons.json" if path.is_dir() else path)


def default_alpha() -> float:
    """The alpha of requests that give none.

    Raises:
        UsageError: the environment gives something else than an alpha.
    """
    given = os.environ.get(ALPHA, "1")
    try:
        return _number(float(given))
    except (ValueError, UsageError) as error:
        raise UsageError(f"{ALPHA}={given!r:.40} is no alpha.", "Give a number from 0 to 100.") from error
