"""What `verify` found, as data: it prints itself, and goes to JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = "hneurons.verification/1"


@dataclass(frozen=True)
class Check:
    """One claim about a model."""

    name: str
    passed: bool
    detail: str
    error: float | None = None
    """The worst error found, relative."""
    tolerance: float | None = None


@dataclass(frozen=True)
class Part:
    """FFNs of one kind: the same module in several layers."""

    path: str
    """Module path with * for the layer."""
    layers: list[int]
    neurons: int
    """Of one layer."""
    experts: int
    """Routed experts of one layer; 0 in a dense part."""


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    model: str
    architecture: str
    dtype: str
    layers: int
    neurons: int
    parts: list[Part]
    checks: list[Check] = field(default_factory=list[Check])
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The plain dict that `hneurons verify --json` prints."""
        return {"format": FORMAT, "passed": self.passed, **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{self.model}: {self.architecture}, {self.dtype}, {self.neurons:,} neurons in {self.layers} layers"]
        for part in self.parts:
            kind = f"{part.experts} experts x {part.neurons // part.experts:,}" if part.experts else f"{part.neurons:,}"
            lines.append(f"  {part.path}  layers {ranges(part.layers)}: {kind} neurons")
        lines += [f"  {'ok  ' if check.passed else 'FAIL'}  {check.name}: {check.detail}" for check in self.checks]
        return "\n".join(lines)


def ranges(numbers: list[int]) -> str:
    """`0-3, 5` for 0, 1, 2, 3, 5."""
    pieces: list[str] = []
    for number in numbers:
        if pieces and int(pieces[-1].split("-")[-1]) == number - 1:
            pieces[-1] = f"{pieces[-1].split('-')[0]}-{number}"
        else:
            pieces.append(str(number))
    return ", ".join(pieces)
