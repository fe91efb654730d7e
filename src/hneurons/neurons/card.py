"""The card: the file that holds a model's H-Neurons. Plain JSON, checked against the model it is applied to."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, NonNegativeInt, ValidationError

from hneurons.errors import CardError
from hneurons.extras import need
from hneurons.layout import Layout, spread
from hneurons.neurons import risk
from hneurons.neurons.matrix import Matrix
from hneurons.neurons.risk import Guarantee, Part
from hneurons.runfolder import hash_json, write_text
from hneurons.types import NeuronId

CARD_FORMAT = "hneurons.card/1"
LARGEST_CARD = 1 << 28
"""Bytes. A card is read whole, and may be anybody's file."""
Floats = NDArray[np.float64]


class CardModel(Part):
    """The model that a card belongs to."""

    id: str
    revision: str | None = None
    architecture: str
    layers: int = Field(gt=0, le=100_000)
    """Decoder layers."""
    width: NonNegativeInt | list[NonNegativeInt]
    """Neurons of a layer, or of each; 0 for a layer without feed-forward neurons."""
    neurons: int = Field(gt=0)
    experts: NonNegativeInt | list[NonNegativeInt] | None = None
    """Routed experts of a layer, or of each; only in a model that has some."""
    shared: NonNegativeInt | list[NonNegativeInt] | None = None
    """Neurons of a layer, or of each, that belong to no routed expert; only in a model that has some."""
    added = ("experts", "shared")

    @property
    def widths(self) -> list[int]:
        """Neurons of each decoder layer, in order of depth."""
        return list(spread(self.width, self.layers))

    @property
    def layout(self) -> Layout:
        """Where each neuron's column is."""
        widths = self.widths
        if self.experts is None or self.shared is None:
            none = (0,) * len(widths)
            return Layout(tuple(widths), none, none)
        experts, shared = spread(self.experts, self.layers), spread(self.shared, self.layers)
        each = [(w - s) // n if n else 0 for w, n, s in zip(widths, experts, shared, strict=True)]
        return Layout(shared, experts, tuple(each))


class Probe(Part):
    """The linear classifier behind the H-Neurons."""

    feature: Literal["cett"] = "cett"
    region: str = "answer"
    aggregation: Literal["mean"] = "mean"
    labelling: str
    other: str
    penalty: Literal["l1"] = "l1"
    C: float
    solver: str
    intercept: float
    calibration: risk.Calibration
    threshold: float = 0.5
    """On the risk."""
    guarantee: Guarantee | None = None
    """On the score."""
    added = ("guarantee",)


class WeightedNeuron(Part):
    """A neuron with its weight in the probe."""

    layer: int = Field(ge=0)
    expert: int | None = None
    index: int = Field(ge=0)
    weight: float

    @property
    def id(self) -> NeuronId:
        """Layer, expert and index."""
        return NeuronId(self.layer, self.expert, self.index)


class HNeurons(list[WeightedNeuron]):
    """The H-Neurons of a card: those with positive weight, the largest first."""

    def __init__(self, neurons: list[WeightedNeuron], total: int) -> None:
        super().__init__(sorted((n for n in neurons if n.weight > 0), key=lambda n: -n.weight))
        self.total = total

    @property
    def share(self) -> float:
        """As a share of all feed-forward neurons."""
        return len(self) / self.total

    def __repr__(self) -> str:
        return f"{len(self)} of {self.total:,} ({1000 * self.share:.2f} per mille)"


def neurons_hash(neurons: Iterable[tuple[float, float | None, float, float]]) -> str:
    """A hash of layer, expert, index and weight of neurons, in any order: studies record by it whose they are."""
    rows = sorted(
        [int(layer), -1 if expert is None else int(expert), int(index), float(weight)]
        for layer, expert, index, weight in neurons
    )
    return hash_json(rows)


class Card(Part):
    """H-Neurons of one model, with the probe they come from and what it was worth."""

    format: Literal["hneurons.card/1"] = CARD_FORMAT
    model: CardModel
    probe: Probe
    neurons: list[WeightedNeuron]
    """Every neuron with a weight other than zero."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)

    @property
    def h_neurons(self) -> HNeurons:
        """Neurons with positive weight, the largest first."""
        return HNeurons(self.neurons, self.model.neurons)

    @property
    def columns(self) -> NDArray[np.intp]:
        """Feature column of each entry of `neurons`, when all layers are laid side by side."""
        return self.model.layout.columns(neuron.id for neuron in self.neurons)

    @property
    def weights(self) -> Floats:
        """Weight of each entry of `neurons`."""
        return np.array([neuron.weight for neuron in self.neurons], dtype=np.float64)

    @property
    def neurons_hash(self) -> str:
        """What tells these neurons, with their weights, from those of another card."""
        return neurons_hash((n.layer, n.expert, n.index, n.weight) for n in self.neurons)

    def score(self, features: Matrix) -> Floats:
        """Probe score of each row of contributions: (rows, all neurons) -> (rows,)."""
        return features[:, self.columns].astype(np.float64) @ self.weights + self.probe.intercept

    def risk(self, score: ArrayLike) -> Floats:
        """Calibrated probability of hallucination for probe scores, for classes of equal size."""
        return self.probe.calibration.risk(score)

    def check_fits(self, model: dict[str, Any]) -> None:
        """Refuse a model (`StudyModel.describe()`) that this card doesn't belong to.

        Raises:
            CardError: says what differs.
        """
        own = self.model.model_dump()
        same = ("architecture", "layers", "width", "neurons", "experts", "shared")
        wrong = [
            f"{key} {own.get(key)} in the card, {model.get(key)} in the model"
            for key in same
            if own.get(key) != model.get(key)
        ]
        if wrong:
            raise CardError(
                f"The card of {self.model.id} doesn't fit {model['id']}: {'; '.join(wrong)}.",
                "Use the card of this model, or identify its own H-Neurons.",
            )

    def save(self, path: str | Path) -> None:
        """Write the card as JSON, atomically."""
        write_text(Path(path), self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Card:
        """Read a card.

        Raises:
            CardError: the file is missing or is no card.
        """
        try:
            if Path(path).stat().st_size > LARGEST_CARD:
                raise CardError(f"{path} is not a card (too large).", "Give the neurons.json of a run.")
            card = cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise CardError(f"Can't read the card {path} ({error}).", "Give the neurons.json of a run.") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CardError(
                f"{path} is not a card ({where}: {first['msg']}).", "Give the neurons.json of a run."
            ) from error
        card.check_self(path)
        return card

    def check_self(self, source: object = "card") -> None:
        """Refuse a card that contradicts itself.

        Raises:
            CardError: a neuron outside the model, twice the same neuron, or counts that don't add up.
        """
        model = self.model
        given = [value for value in (model.width, model.experts, model.shared) if isinstance(value, list)]
        problem = ""
        if any(len(value) != model.layers for value in given) or sum(model.widths) != model.neurons:
            problem = "layers, width and neurons don't add up"
        elif (model.experts is None) != (model.shared is None) or model.layout.widths != model.widths:
            problem = "width, experts and shared don't add up"
        elif any(not model.layout.has(neuron.id) for neuron in self.neurons):
            problem = "it names a neuron outside the model"
        elif len({neuron.id for neuron in self.neurons}) != len(self.neurons):
            problem = "it names a neuron twice"
        elif not all(math.isfinite(neuron.weight) and neuron.weight for neuron in self.neurons):
            problem = "it holds a zero weight"
        if problem:
            raise CardError(f"{source} is not a valid card: {problem}.", "Identify the H-Neurons again.")

    def to_pandas(self) -> Any:
        """A DataFrame with a row a neuron of the probe: layer, expert, index, weight."""
        columns = list(WeightedNeuron.model_fields)
        return need("pandas", "pandas").DataFrame([neuron.model_dump() for neuron in self.neurons], columns=columns)

    def __repr__(self) -> str:
        return f"<Card of {self.model.id}: H-Neurons {self.h_neurons!r}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{n.layer}</td><td>{n.index}</td><td>{n.weight:.3f}</td></tr>" for n in self.h_neurons[:20]
        )
        head = "<tr><th>layer</th><th>index</th><th>weight</th></tr>"
        return f"<p>{html.escape(repr(self)[1:-1])}</p><table>{head}{rows}</table>"
