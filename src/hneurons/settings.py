"""Every choice of a run, with the paper's defaults. Recorded in run.json; a misspelt name is an error."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hneurons.errors import UsageError

LARGEST_ALPHA = 100.0
"""What neurons may be multiplied by at most; more only makes numbers overflow."""


class IdentifySettings(BaseModel):
    """Settings of `identify`. Defaults follow Gao et al. 2025, sec. 3; docs/method.md says where and why not."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    samples: int = Field(default=10, ge=1)
    """Responses a question."""
    agreement: int | None = Field(default=None, ge=1)
    """How many of them must agree; all by default."""
    temperature: float = Field(default=1.0, ge=0, le=10)
    top_k: int = Field(default=50, ge=0)
    """0 for no limit."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    max_new_tokens: int = Field(default=50, ge=1)
    """After the thinking block, if there is one."""
    thinking: int | None = Field(default=None, ge=1)
    """Let a reasoning model think for so many tokens before it answers; otherwise it is told not to."""
    seed: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    """Use a random sample of this many questions."""
    per_class: int = Field(default=1000, ge=1)
    """Examples of each class after which sampling stops."""
    chunk: int = Field(default=256, ge=1)
    """Questions sampled together; a kill costs at most the work on one chunk."""
    labelling: Literal["3-vs-1", "1-vs-1"] = "3-vs-1"
    other: Literal["response", "all"] = "response"
    """What "the other tokens" are: those of the response, or of prompt and response (the public reference code)."""
    solver: Literal["exact", "liblinear"] = "exact"
    C: float | None = Field(default=None, gt=0)
    """Inverse penalty; chosen by cross-validation when not given."""
    choose: Literal["auroc", "joint"] = "auroc"
    """How C is chosen: by cross-validated AUROC, or by the paper's joint rule, which silences each C's H-Neurons."""
    suppression_questions: int = Field(default=200, ge=1)
    """Questions asked, greedily, for each C of the joint rule."""
    path_points: int = Field(default=20, ge=2, le=200)
    path_ratio: float = Field(default=100.0, gt=1)
    """The largest C tried, in units of the smallest with a neuron."""
    max_share: float = Field(default=0.01, gt=0, le=1)
    """Largest share of all neurons that the probe may use."""
    folds: int = Field(default=5, ge=2)
    train: float = Field(default=0.5, gt=0, lt=1)
    validation: float = Field(default=0.2, gt=0, lt=1)
    """Shares of the examples; the rest is the test set."""
    random_sets: int = Field(default=20, ge=2)
    """Random neuron sets to compare with, drawn uniformly; and as many layer-matched ones."""
    refits: int = Field(default=50, ge=2)
    """Bootstrap refits behind the stability of each H-Neuron; half as many with the split drawn anew."""
    bootstrap: int = Field(default=2000, ge=100)
    batch_tokens: int | None = Field(default=None, ge=64)
    """Tokens of a batch in extraction, padding included; as many as suit the device by default."""

    @model_validator(mode="after")
    def _consistent(self) -> IdentifySettings:
        if self.agreement is not None and self.agreement > self.samples:
            raise ValueError(f"agreement {self.agreement} is more than samples {self.samples}")
        if self.agreement is not None and 2 * self.agreement <= self.samples:
            raise ValueError("agreement must be more than half of samples")
        if self.choose == "joint" and self.C is not None:
            raise ValueError("choose = joint has nothing to choose when C is given")
        if self.train + self.validation >= 1:
            raise ValueError("train + validation must leave a share for the test set")
        return self

    @property
    def needed(self) -> int:
        """Samples that must agree."""
        return self.samples if self.agreement is None else self.agreement


class ImpactSettings(BaseModel):
    """Settings of `impact`. What a benchmark asks, and how it is decoded, is the benchmark's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    alphas: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    """In rising order; 1 is always among them."""
    limit: int | None = Field(default=200, ge=1)
    """Use a random sample of this many items of each benchmark."""
    random_sets: int = Field(default=5, ge=2, le=1000)
    """Random neuron sets to compare with, drawn uniformly; and as many layer-matched ones."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """In place of the benchmark's own limit."""
    seed: int = Field(default=0, ge=0)
    bootstrap: int = Field(default=2000, ge=100)
    chunk: int = Field(default=32, ge=1)
    """Items asked together, at all alphas; a kill costs at most the work on one chunk with one set of neurons."""
    keep_outputs: bool = False
    """Keep the replies to private benchmarks too."""
    capability: tuple[str, ...] = ("starter", "nonexist")
    """Question sets of the capability curve; none leaves it out."""
    capability_limit: int = Field(default=200, ge=1)
    """Questions of each."""
    capability_controls: bool = False
    """The capability curve for the other neuron sets too."""

    @field_validator("alphas")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        wrong = [alpha for alpha in value if not 0 <= alpha <= LARGEST_ALPHA]
        if wrong:
            raise ValueError(f"{wrong[0]:g} is not between 0 and {LARGEST_ALPHA:g}")
        if not {alpha for alpha in value if alpha != 1}:
            raise ValueError("give at least one besides 1, which changes nothing")
        return tuple(sorted({1.0, *value}))


PRESETS: dict[str, dict[str, Any]] = {
    # Gao et al. 2025, sec. 3: the defaults, and C by the joint rule.
    "paper": {"choose": "joint"},
    # What the public code does where it differs; its judge is `SubstringJudge`.
    "reference": {"other": "all", "solver": "liblinear", "C": 1.0},
}


def identify_settings(preset: str | None = None, **values: Any) -> IdentifySettings:
    """Settings from a preset and keywords, which win; wrong ones raise a one-line `UsageError`. None: the default."""
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"There is no preset {preset!r}.", f"Presets: {', '.join(PRESETS)}.")
    given = {key: value for key, value in values.items() if value is not None}
    with _one_line("identify"):
        return IdentifySettings(**{**PRESETS.get(preset or "", {}), **given})


def impact_settings(**values: Any) -> ImpactSettings:
    """Settings from keywords; wrong ones raise a one-line `UsageError`. None: the default."""
    with _one_line("impact"):
        return ImpactSettings(**{key: value for key, value in values.items() if value is not None})


@contextmanager
def _one_line(command: str) -> Generator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        problem = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{name}: {problem}.", f"See `hneurons {command} --help`.") from error


def demo_settings(limit: int | None = None) -> IdentifySettings:
    """Settings of `hneurons demo`: cooler and shorter than the paper's, since the demo model is very small."""
    asked = limit or DEMO_QUESTIONS
    return IdentifySettings(
        temperature=DEMO_TEMPERATURE,
        max_new_tokens=DEMO_TOKENS,
        limit=asked,
        per_class=DEMO_PER_CLASS,
        chunk=128,
        folds=5 if asked >= 500 else 3,
        refits=DEMO_REFITS,
    )


DEMO_TEMPERATURE = 0.3
DEMO_TOKENS = 24
DEMO_QUESTIONS = 1400
DEMO_PER_CLASS = 200
DEMO_REFITS = 20
DEMO_NOTE = (
    f"The demo samples at temperature {DEMO_TEMPERATURE} and at most {DEMO_TOKENS} tokens instead of the paper's 1.0 "
    "and 50: at 1.0 a model of 135 million parameters answers hardly any question right ten times out of ten."
)
