"""The card round-trips, refuses what contradicts itself, and fits only its own model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hneurons.errors import CardError
from hneurons.neurons.card import Card, HNeurons, WeightedNeuron
from hneurons.runfolder import hash_json
from hneurons.types import NeuronId

NEURONS = [
    {"layer": 0, "expert": None, "index": 2, "weight": 1.5},
    {"layer": 1, "expert": None, "index": 0, "weight": -2.0},
    {"layer": 2, "expert": None, "index": 4, "weight": 3.0},
]


def plain(neurons: list[dict[str, Any]] | None = None, **model: Any) -> dict[str, Any]:
    """A card as JSON holds it: three layers of 5 neurons."""
    return {
        "format": "hneurons.card/1",
        "model": {
            "id": "tiny",
            "revision": None,
            "architecture": "LlamaForCausalLM",
            "layers": 3,
            "width": 5,
            "neurons": 15,
            **model,
        },
        "probe": {
            "feature": "cett",
            "region": "answer",
            "aggregation": "mean",
            "labelling": "3-vs-1",
            "other": "response",
            "penalty": "l1",
            "C": 3.0,
            "solver": "exact",
            "intercept": -1.25,
            "calibration": {"method": "platt", "slope": 2.0, "offset": 0.5, "n": 120},
            "threshold": 0.5,
        },
        "neurons": NEURONS if neurons is None else neurons,
        "metrics": {"starter": {"auroc": {"value": 0.76, "low": 0.7, "high": 0.81, "n": 212}}},
        "provenance": {"package": "0.1.0", "seed": 0},
    }


def isotonic(knots: Any) -> dict[str, Any]:
    """The plain card with an isotonic calibration."""
    return changed("probe.calibration", {"method": "isotonic", "knots": knots, "n": 300})


PROMISE = {
    "method": "learn then test", "alpha": 0.05, "delta": 0.1, "threshold": -0.25, "n": 400,
    "flagged_share_on_calibration": 0.6, "prevalence": None, "sentence": "Flag scores from -0.25 up.",
}  # fmt: skip


def card(neurons: list[dict[str, Any]] | None = None, **model: Any) -> Card:
    return Card.model_validate(plain(neurons, **model))


def changed(path: str, value: Any) -> dict[str, Any]:
    """The plain card with the entry at the dotted path set to a value."""
    result: Any = json.loads(json.dumps(plain()))
    *parents, last = path.split(".")
    spot = result
    for part in parents:
        spot = spot[int(part)] if isinstance(spot, list) else spot[part]
    spot[int(last) if isinstance(spot, list) else last] = value
    return result


def stored(folder: Path, value: Any) -> Path:
    path = folder / "neurons.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


# -- round trip ---------------------------------------------------------------------------------------


def test_the_documented_card_loads_and_is_saved_as_it_was(tmp_path: Path):
    path = stored(tmp_path, plain())
    loaded = Card.load(path)
    loaded.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == plain()
    assert Card.load(tmp_path / "again.json") == loaded == card()


@pytest.mark.parametrize(
    "value",
    [
        isotonic([[-2.0, 0.05], [0.1, 0.5], [3.0, 0.5], [3.5, 0.995]]),
        isotonic([[0.0, 0.5]]),
        changed("probe.calibration.brier", {"platt": 0.19, "isotonic": 0.2}),
        changed("probe.guarantee", PROMISE),
        changed("probe.guarantee", {**PROMISE, "method": "conformal risk control", "delta": None, "threshold": None}),
        changed("probe.guarantee", {**PROMISE, "prevalence": 0.1}),
    ],
    ids=["isotonic", "one knot", "compared", "guarantee", "infeasible", "prevalence"],
)
def test_cards_with_isotonic_risk_or_a_guarantee_are_saved_as_they_were(tmp_path: Path, value: Any):
    loaded = Card.load(stored(tmp_path, value))
    loaded.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == value
    assert Card.load(tmp_path / "again.json") == loaded


def test_a_card_from_before_the_choice_of_method_loads_as_platt(tmp_path: Path):
    old = plain()
    del old["probe"]["calibration"]["method"]
    loaded = Card.load(stored(tmp_path, old))
    assert loaded == card()
    assert loaded.probe.guarantee is None


WEIGHTS = st.floats(allow_nan=False, allow_infinity=False).filter(bool)


@st.composite
def cards(draw: st.DrawFn) -> Card:
    widths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    places = [(layer, index) for layer, width in enumerate(widths) for index in range(width)]
    chosen = draw(st.lists(st.sampled_from(places), unique=True, max_size=8))
    neurons = [{"layer": layer, "index": index, "weight": draw(WEIGHTS)} for layer, index in chosen]
    width = widths[0] if len(set(widths)) == 1 else widths
    value = plain(neurons)
    value["model"] |= {"layers": len(widths), "width": width, "neurons": sum(widths), "id": draw(st.text(max_size=8))}
    value["probe"]["intercept"] = draw(st.floats(allow_nan=False, allow_infinity=False))
    return Card.model_validate(value)


@settings(max_examples=80)
@given(cards())
def test_every_card_survives_the_file_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, one: Card):
    path = tmp_path_factory.getbasetemp() / "card.json"
    one.save(path)
    again = Card.load(path)
    assert again == one
    assert [n.weight.hex() for n in again.neurons] == [n.weight.hex() for n in one.neurons]
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == "hneurons.card/1"


# -- refusals -----------------------------------------------------------------------------------------

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "not a card"),
        ("not json", "not a card"),
        ("[]", "not a card"),
        ("{}", "model"),
        (json.dumps(plain())[:-40], "not a card"),
        (changed("format", "hneurons.card/2"), "format"),
        (changed("neurons.0.weight", NAN), "neurons.0.weight"),
        (changed("neurons.2.weight", INFINITY), "neurons.2.weight"),
        (changed("neurons.1.weight", "NaN"), "neurons.1.weight"),
        (changed("neurons.1.weight", None), "neurons.1.weight"),
        (changed("neurons.1.weight", 0.0), "zero weight"),
        (changed("probe.intercept", NAN), "probe.intercept"),
        (changed("probe.calibration.slope", -INFINITY), "probe.calibration.platt.slope"),
        (changed("probe.calibration", None), "probe.calibration"),
        (changed("probe.calibration.method", "beta"), "probe.calibration"),
        (changed("probe.calibration.method", []), "probe.calibration"),
        (changed("probe.calibration.method", "isotonic"), "probe.calibration.isotonic.knots"),
        (changed("probe.calibration.knots", [[0.0, 0.5]]), "probe.calibration.platt.knots"),
        (changed("probe.calibration.brier", {"beta": 0.2}), "probe.calibration.platt.brier"),
        (changed("neurons.0.index", 5), "outside the model"),
        (changed("neurons.0.index", 10**30), "not a"),
        (changed("neurons.0.index", -1), "neurons.0.index"),
        (changed("neurons.0.index", 1.5), "neurons.0.index"),
        (changed("neurons.0.layer", 3), "outside the model"),
        (changed("neurons.0.layer", -1), "neurons.0.layer"),
        (changed("neurons.1", NEURONS[0]), "twice"),
        (changed("neurons.1", {**NEURONS[0], "weight": 9.0}), "twice"),
        (changed("neurons", {}), "neurons"),
        (changed("model.neurons", 16), "don't add up"),
        (changed("model.layers", 2), "don't add up"),
        (changed("model.layers", 0), "model.layers"),
        (changed("model.width", [5, 5]), "don't add up"),
        (changed("model.width", [5, 5, 6]), "don't add up"),
        (changed("model.wdith", 5), "model.wdith"),
        (changed("probe.threshhold", 0.5), "probe.threshhold"),
        (changed("neurons.0.wieght", 1), "neurons.0.wieght"),
        (changed("extra", 1), "extra"),
        (changed("probe.feature", "activation"), "probe.feature"),
        (changed("probe.aggregation", "max"), "probe.aggregation"),
    ],
)  # fmt: skip
def test_a_card_that_is_wrong_is_refused_in_one_line(tmp_path: Path, value: Any, says: str):
    path = stored(tmp_path, value)
    with pytest.raises(CardError) as caught:
        Card.load(path)
    assert says in caught.value.problem
    assert str(path) in caught.value.problem
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_an_absurd_number_of_layers_is_refused(tmp_path: Path):
    # A shared card is somebody else's file: a large number in it must not cost memory or end in a traceback.
    with pytest.raises(CardError, match="card"):
        Card.load(stored(tmp_path, changed("model.layers", 10**25)))


@pytest.mark.parametrize("width", [[20, -5, 0], [0, 0, 15], -5])
def test_widths_are_positive(tmp_path: Path, width: Any):
    value = plain([{"layer": 0, "index": 0, "weight": 1.0}], width=width)
    with pytest.raises(CardError):
        Card.load(stored(tmp_path, value))


@pytest.mark.parametrize(
    "knots",
    [
        [],
        None,
        5,
        [0.1, 0.2],
        [[0.0]],
        [[0.0, 0.1, 0.2]],
        [[1.0, 0.1], [0.0, 0.2]],
        [[0.0, 0.1], [0.0, 0.2]],
        [[0.0, 0.3], [1.0, 0.2]],
        [[0.0, NAN]],
        [[NAN, 0.5]],
        [[INFINITY, 0.5]],
        [[0.0, "NaN"]],
        [[-1e308, 0.1], [1e308, 0.9]],
        [[0.0, 1e9]],
        [[0.0, -1e-9]],
        [[float(i), 0.5] for i in range(10_001)],
    ],
)
def test_hostile_knots_are_refused(tmp_path: Path, knots: Any):
    with pytest.raises(CardError, match=r"probe\.calibration\.isotonic"):
        Card.load(stored(tmp_path, isotonic(knots)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "hope"), ("alpha", 0.0), ("alpha", 1.0), ("alpha", NAN), ("delta", 1.5), ("threshold", INFINITY),
        ("threshold", "everything"), ("n", -1), ("flagged_share_on_calibration", 1.1), ("prevalence", 0), ("more", 1),
    ],
)  # fmt: skip
def test_a_hostile_guarantee_is_refused(tmp_path: Path, name: str, value: Any):
    with pytest.raises(CardError, match=f"probe.guarantee.{name}"):
        Card.load(stored(tmp_path, changed("probe.guarantee", {**PROMISE, name: value})))


def test_a_file_too_large_for_a_card_is_not_read(tmp_path: Path):
    path = tmp_path / "neurons.json"
    with path.open("wb") as file:
        file.truncate(1 << 36)  # sparse: a list of 1e9 knots takes about as much
    with pytest.raises(CardError, match="too large"):
        Card.load(path)


def test_files_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "latin.json").write_bytes('{"format": "é"}'.encode("latin-1"))
    for name in ("missing.json", ".", "latin.json"):
        with pytest.raises(CardError, match="Can't read the card"):
            Card.load(tmp_path / name)


def test_a_card_cannot_be_changed():
    with pytest.raises(ValidationError):
        card().probe = card().probe  # pyright: ignore[reportAttributeAccessIssue]


# -- the model it belongs to --------------------------------------------------------------------------

MODEL: dict[str, Any] = {"id": "tiny", "architecture": "LlamaForCausalLM", "layers": 3, "width": 5, "neurons": 15}


def test_its_own_model_fits():
    card().check_fits(MODEL)
    card().check_fits({**MODEL, "dtype": "float32", "id": "a copy under another name"})


@pytest.mark.parametrize(
    ("differs", "says"),
    [
        (
            {"architecture": "Qwen2ForCausalLM"},
            ["architecture LlamaForCausalLM in the card, Qwen2ForCausalLM in the model"],
        ),
        (
            {"layers": 4, "neurons": 20},
            ["layers 3 in the card, 4 in the model", "neurons 15 in the card, 20 in the model"],
        ),
        ({"width": [5, 4, 6]}, ["width 5 in the card, [5, 4, 6] in the model"]),
    ],
)
def test_a_misfit_says_what_differs_and_only_that(differs: dict[str, Any], says: list[str]):
    with pytest.raises(CardError) as caught:
        card().check_fits({**MODEL, **differs})
    for part in says:
        assert part in caught.value.problem
    for key in set(MODEL) - set(differs) - {"id"}:
        assert f"{key} " not in caught.value.problem.split(": ", 1)[1]
    assert "tiny" in caught.value.problem


# -- what it says -------------------------------------------------------------------------------------


def test_h_neurons_are_the_positive_ones_the_largest_first():
    found = card().h_neurons
    assert [neuron.id for neuron in found] == [NeuronId(2, None, 4), NeuronId(0, None, 2)]
    assert found.share == pytest.approx(2 / 15)


def test_h_neurons_say_how_many_of_how_many():
    neurons = [WeightedNeuron(layer=0, index=i, weight=1.0) for i in range(38)]
    negative = [WeightedNeuron(layer=1, index=i, weight=-1.0) for i in range(5)]
    assert repr(HNeurons(neurons + negative, 348_160)) == "38 of 348,160 (0.11 per mille)"
    assert repr(card()) == "<Card of tiny: H-Neurons 2 of 15 (133.33 per mille)>"


@pytest.mark.parametrize(("width", "columns"), [(5, [2, 5, 14]), ([5, 3, 7], [2, 5, 12]), ([3, 1, 11], [2, 3, 8])])
def test_columns_and_scores_with_layers_of_unequal_width(width: Any, columns: list[int]):
    one = card(width=width)
    one.check_self()
    assert one.columns.tolist() == columns
    assert one.weights.tolist() == [1.5, -2.0, 3.0]
    features = np.random.default_rng(0).random((4, 15)).astype(np.float32)
    wanted = 1.5 * features[:, columns[0]] - 2.0 * features[:, columns[1]] + 3.0 * features[:, columns[2]] - 1.25
    np.testing.assert_allclose(one.score(features), wanted, rtol=1e-6)
    assert one.score(features).dtype == np.float64


def test_risk():
    one = card()
    scores = np.array([-0.25, 0.0, 1.0, -1e6, 1e6])
    np.testing.assert_allclose(one.risk(scores), [0.5, 1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(-2.5)), 0.0, 1.0])
    assert one.risk(-0.25) == 0.5
    assert one.risk(np.zeros((2, 3))).shape == (2, 3)


def test_isotonic_risk_runs_straight_between_its_knots_and_flat_outside():
    one = Card.model_validate(isotonic([[-1.0, 0.1], [1.0, 0.5], [2.0, 0.9]]))
    np.testing.assert_allclose(one.risk([-9, -1, 0, 1, 1.5, 2, 1e300]), [0.1, 0.1, 0.3, 0.5, 0.7, 0.9, 0.9])
    assert one.risk(0.0) == pytest.approx(0.3)
    assert one.risk(np.zeros((2, 3))).shape == (2, 3)
    assert (Card.model_validate(isotonic([[0.0, 0.4]])).risk([-1, 0, 1]) == 0.4).all()


def test_a_guarantee_flags_from_its_threshold_up():
    promise = Card.model_validate(changed("probe.guarantee", PROMISE)).probe.guarantee
    assert promise is not None
    assert promise.feasible
    assert promise.flag([-1.0, -0.25, 0.0, NAN]).tolist() == [False, True, True, True]
    nothing = promise.model_copy(update={"threshold": None})
    assert not nothing.feasible
    assert nothing.flag([[-1e9, NAN]]).tolist() == [[True, True]]


def test_a_card_without_neurons_scores_its_intercept():
    one = card([])
    one.check_self()
    np.testing.assert_array_equal(one.score(np.ones((3, 15), np.float32)), [-1.25] * 3)
    assert repr(one.h_neurons) == "0 of 15 (0.00 per mille)"


def test_the_hash_tells_neurons_and_weights_apart_and_nothing_else():
    own = card().neurons_hash
    assert own == hash_json([[0, -1, 2, 1.5], [1, -1, 0, -2.0], [2, -1, 4, 3.0]])  # as runs have it on the disk
    assert card(NEURONS[::-1], id="other").neurons_hash == own
    assert card(NEURONS[:2]).neurons_hash != own
    for key, value in {"layer": 1, "index": 3, "expert": 0, "weight": 1.25}.items():
        assert card([{**NEURONS[0], key: value}, *NEURONS[1:]]).neurons_hash != own


def test_html_shows_the_neurons_and_escapes_the_name():
    text = card(id="<script>alert(1)</script>&")._repr_html_()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in text
    assert "<td>2</td><td>4</td><td>3.000</td>" in text
    assert "-2.000" not in text
    assert text.count("<tr>") == text.count("</tr>") == 3


def test_to_pandas():
    frame = card().to_pandas()
    assert list(frame.columns) == ["layer", "expert", "index", "weight"]
    assert frame["weight"].tolist() == [1.5, -2.0, 3.0]
    assert frame["layer"].tolist() == [0, 1, 2]


def test_to_pandas_without_neurons_has_its_columns():
    assert list(card([]).to_pandas().columns) == ["layer", "expert", "index", "weight"]
