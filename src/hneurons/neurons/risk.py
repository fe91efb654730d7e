"""What a probe's score is worth, as the card holds it: a calibrated risk, and a threshold with a promise."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)
from scipy.special import expit

MOST_KNOTS = 10_000
Floats = NDArray[np.float64]
Brier = dict[Literal["platt", "isotonic"], float]


class Part(BaseModel):
    """A part of the card: frozen, strict about names and numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", allow_inf_nan=False)

    added: ClassVar[tuple[str, ...]] = ()
    """Fields left out of the file while they are None, so that a card without them is the card it always was."""

    @model_serializer(mode="wrap")
    def _short(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialise(self)
        return {k: v for k, v in fields.items() if v is not None or k not in self.added}


class Platt(Part):
    """risk = sigmoid(slope * score + offset) (Platt 1999), for classes of equal size."""

    method: Literal["platt"] = "platt"
    slope: float
    offset: float
    n: int
    """Examples that it was fitted on."""
    brier: Brier | None = None
    """Cross-validated Brier score of both methods, classes weighted alike; None where they weren't compared."""
    added = ("brier",)

    def risk(self, score: ArrayLike) -> Floats:
        """Risk of each score, of the same shape."""
        return expit(self.slope * np.asarray(score, dtype=np.float64) + self.offset)


class Isotonic(Part):
    """Risk that never falls as the score rises (Zadrozny & Elkan 2002), for classes of equal size.

    Straight lines between the knots, constant outside them.
    """

    method: Literal["isotonic"]
    knots: list[tuple[Annotated[float, Field(ge=-1e100, le=1e100)], Annotated[float, Field(ge=0, le=1)]]] = Field(
        min_length=1, max_length=MOST_KNOTS
    )
    """(score, risk), scores ascending, risks never falling."""
    n: int
    """Examples that it was fitted on."""
    brier: Brier | None = None
    """As in `Platt`."""
    added = ("brier",)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        pairs = zip(self.knots, self.knots[1:], strict=False)
        if any(right[0] <= left[0] or right[1] < left[1] for left, right in pairs):
            raise ValueError("knots must ascend in score and never fall in risk")
        return self

    def risk(self, score: ArrayLike) -> Floats:
        """Risk of each score, of the same shape."""
        scores, risks = zip(*self.knots, strict=True)
        return np.asarray(np.clip(np.interp(np.asarray(score, dtype=np.float64), scores, risks), 0.0, 1.0))


def _method(value: Any) -> str:
    # Cards that don't name a method are older than the choice.
    return str(value.get("method", "platt") if isinstance(value, dict) else getattr(value, "method", ""))


Calibration = Annotated[Annotated[Platt, Tag("platt")] | Annotated[Isotonic, Tag("isotonic")], Discriminator(_method)]


class Guarantee(Part):
    """A threshold on the probe's score and what it promises of data like its calibration data (docs/guarantee.md)."""

    method: Literal["learn then test", "conformal risk control"]
    """Learn then test bounds the hallucinated share of the unflagged answers; conformal risk control the unflagged
    share of the hallucinated ones."""
    alpha: float = Field(gt=0, lt=1)
    """The largest share allowed."""
    delta: float | None = Field(default=None, gt=0, lt=1)
    """Chance of calibration data that mislead; None: `alpha` holds on average over calibration data."""
    threshold: float | None
    """A score that reaches it is flagged; None: nothing can be promised of any threshold, so everything is flagged."""
    n: NonNegativeInt
    """Calibration answers used, one a cluster."""
    flagged_share_on_calibration: float = Field(ge=0, le=1)
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    """Share of hallucinated answers where the threshold is to be used; None: that of the calibration data."""
    sentence: str

    @property
    def feasible(self) -> bool:
        """Whether any answer may go unflagged."""
        return self.threshold is not None

    def flag(self, score: ArrayLike) -> NDArray[np.bool_]:
        """Which scores are flagged, of the same shape; NaN is."""
        scores = np.asarray(score, dtype=np.float64)
        return np.ones(scores.shape, dtype=bool) if self.threshold is None else ~(scores < self.threshold)
