"""The verdict on existence: supported where neurons were planted, never where there is nothing to find."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cards import probe
from hneurons.neurons.calibration import calibrate
from hneurons.neurons.card import Card
from hneurons.neurons.choose import TrainingData, choose_probe
from hneurons.runfolder import dumps
from hneurons.settings import IdentifySettings
from hneurons.stats import minimum_detectable_auroc
from hneurons.studies import existence
from hneurons.studies.controls import Control, make_controls, random_columns
from hneurons.studies.existence import DETECTABLE, LEAST_PER_CLASS, TOO_LITTLE, verdict
from hneurons.studies.tables import EvaluationData

LAYERS, WIDTH = 6, 100
NEURONS = LAYERS * WIDTH
SETTINGS = IdentifySettings(folds=3, path_points=6, random_sets=2, bootstrap=300, max_share=0.05)
PLANTED = np.arange(7, NEURONS, 75)  # 8 neurons, over all layers
Worlds = tuple[TrainingData, EvaluationData, EvaluationData]


def evaluate(
    card: Card,
    train: TrainingData,
    validation: EvaluationData,
    test: EvaluationData,
    settings: IdentifySettings,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The evaluation of a world with controls of its own."""
    controls = make_controls(card, train, validation, sets=settings.random_sets, seed=settings.seed, tick=tick)
    return existence.evaluate(card, controls, validation, test, settings)


def split(features: np.ndarray, other: np.ndarray, label: np.ndarray, cheap: np.ndarray, sizes: list[int]) -> Worlds:
    """Training, validation and test data of consecutive rows."""
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    names = np.array([f"q{i}" for i in range(len(label))])
    train = rows[0]
    held_out = [
        EvaluationData(features[part], label[part], cheap[part, 0], cheap[part, 1], names[part].tolist())
        for part in rows[1:]
    ]
    ones = np.ones(len(train), bool)
    return TrainingData(features[train], other[train], ones, label[train], names[train]), held_out[0], held_out[1]


def world(seed: int, *, shift: float = 0.0, everywhere: float = 0.0, length: float = 0.0, n: int = 200) -> Worlds:
    """Half of the rows for training, a fifth for validation, the rest for test.

    Args:
        seed: of everything.
        shift: what hallucinated answers add to the planted neurons.
        everywhere: what they add to every neuron.
        length: how strongly the label follows the length; the planted neurons then measure length.
        n: examples.
    """
    rng = np.random.default_rng([17, seed])
    size = rng.normal(size=n)
    if length:
        label = rng.random(n) < 1 / (1 + np.exp(-length * size))
    else:
        label = rng.permutation(n) % 2 == 0
    features, other = (np.abs(rng.normal(size=(n, NEURONS))).astype(np.float32) for _ in range(2))
    features[np.ix_(label, PLANTED)] += shift
    features[label] += everywhere
    if length:
        features[:, PLANTED] += size[:, None]
        other[:, PLANTED] += size[:, None]
    cheap = np.column_stack([10 + 2 * size, rng.normal(size=n)])
    sizes = [n // 2, n // 5]
    return split(features, other, label, cheap, [*sizes, n - sum(sizes)])


def card_of(columns: Any, weights: Any, intercept: float = 0.0, calibration: Any = None, width: Any = WIDTH) -> Card:
    widths = width if isinstance(width, list) else [width] * LAYERS
    starts = np.concatenate([[0], np.cumsum(widths)])
    layers = np.searchsorted(starts, columns, side="right") - 1
    return Card.model_validate(
        {
            "model": {
                "id": "synthetic",
                "architecture": "none",
                "layers": len(widths),
                "width": width,
                "neurons": int(starts[-1]),
            },
            "probe": probe(intercept, calibration),
            "neurons": [
                {"layer": int(layer), "index": int(column - starts[layer]), "weight": float(weight)}
                for layer, column, weight in zip(layers, columns, weights, strict=True)
            ],
        }
    )


def study(worlds: Worlds, labelling: str = "3-vs-1", **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The evaluation and its verdict, from choosing the probe onwards."""
    train, validation, test = worlds
    settings = SETTINGS.model_copy(update=changes)
    if labelling == "1-vs-1":
        train = replace(train, other=None)
    held_out = TrainingData(
        validation.features, None, np.zeros(len(validation.length), bool), validation.hallucinated, np.array([])
    )
    fit = choose_probe(train, held_out, settings).fit
    calibration = calibrate(fit.score(validation.features), validation.hallucinated)
    one = card_of(fit.support, fit.weights, fit.intercept, calibration)
    result = evaluate(one, train, validation, test, settings)
    return result, verdict(result)


def passed(found: dict[str, Any]) -> list[bool]:
    return [check["passed"] for check in found["checks"]]


# -- worlds with a known truth ------------------------------------------------------------------------


def test_planted_neurons_are_supported():
    result, found = study(world(0, shift=1.0))
    assert found["verdict"] == "supported"
    assert found["sentence"].startswith(f"Supported: {result['h_neurons']['count']} H-Neurons")
    assert passed(found) == [True, True, True, True]
    assert result["h_neurons"]["auroc"]["value"] > 0.9
    assert result["h_neurons"]["accuracy"]["value"] > 0.8
    assert result["random"]["uniform"]["mean_auroc"] < 0.65
    assert abs(result["baselines"]["length + mean log-probability"]["auroc"]["value"] - 0.5) < 0.2


def test_nothing_is_supported_at_most_once_in_twenty():
    found = [study(world(seed), path_points=4)[1] for seed in range(20)]
    assert sum(one["verdict"] == "supported" for one in found) <= 1
    # 60 test examples could not have told an AUROC of 0.65 from chance, so silence proves nothing.
    assert {one["verdict"] for one in found} <= {"supported", "too little data"}
    for one in found:
        if one["verdict"] == "too little data":
            assert f"only an AUROC of {one['minimum_detectable_auroc']:.2f} or more" in one["sentence"]
            assert one["minimum_detectable_auroc"] >= round(minimum_detectable_auroc(30, 30), 4)
            assert "Not shown: " in one["sentence"]


def test_nothing_in_much_data_is_not_supported():
    _, found = study(world(1, n=1000))
    assert found["verdict"] == "not supported"
    assert found["minimum_detectable_auroc"] < 0.65
    assert f"An AUROC of {found['minimum_detectable_auroc']:.2f} would have been found" in found["sentence"]


@pytest.mark.parametrize("seed", range(4))
def test_neurons_that_measure_length_are_not_supported(seed: int):
    result, found = study(world(seed, length=2.0, n=700), "1-vs-1")
    assert passed(found)[:2] == [True, True]
    assert result["h_neurons"]["auroc"]["value"] > 0.75
    assert result["random"]["uniform"]["mean_auroc"] < result["h_neurons"]["auroc"]["value"] - 0.1
    assert result["baselines"]["length"]["auroc"]["value"] > 0.75
    assert not passed(found)[3]
    assert found["verdict"] == "not supported"
    assert "no gain over length and log-probability was seen" in found["sentence"] or not passed(found)[2]


def test_neurons_that_add_to_length_are_supported():
    result, found = study(world(5, length=1.0, shift=1.0, n=700), "1-vs-1")
    assert found["verdict"] == "supported"
    assert result["increment"]["combined"]["value"] > result["increment"]["baseline"]["value"] > 0.6


def test_a_signal_that_every_neuron_carries_is_not_supported():
    result, found = study(world(6, everywhere=0.3, n=700), "1-vs-1", max_share=1.0)
    assert result["h_neurons"]["auroc"]["value"] > 0.75
    assert result["random"]["uniform"]["mean_auroc"] > 0.75
    assert passed(found) == [True, True, False, True]
    assert found["verdict"] == "not supported"
    assert "Not shown: better than as many random neurons." in found["sentence"]


def test_neurons_that_predict_the_opposite_are_not_supported():
    train, validation, test = world(7, shift=1.0, n=700)
    one = card_of(PLANTED, [-1.0] * len(PLANTED))
    result = evaluate(one, train, validation, test, SETTINGS)
    found = verdict(result)
    assert result["h_neurons"]["auroc"]["value"] < 0.1
    assert result["h_neurons"]["count"] == 0
    assert found["verdict"] == "not supported"
    assert passed(found)[:2] == [False, False]


def test_neurons_of_truth_alone_are_no_h_neurons():
    # The planted neurons fire for faithful answers: the probe predicts well with negative weights only.
    train, validation, test = world(0, n=400)
    for features, label in (
        (train.answer, train.hallucinated),
        (validation.features, validation.hallucinated),
        (test.features, test.hallucinated),
    ):
        features[np.ix_(~label, PLANTED)] += 1.0
    result, found = study((train, validation, test), "1-vs-1")
    assert result["h_neurons"]["count"] == 0
    assert result["h_neurons"]["probe_neurons"] > 0
    assert found["verdict"] != "supported"


def test_neurons_that_measure_length_in_another_way_are_not_supported():
    # Very short and very long answers are wrong; the planted neurons measure how far from the usual length it is.
    rng = np.random.default_rng(3)
    size = rng.normal(size=700)
    label = rng.random(700) < 1 / (1 + np.exp(-3 * (np.abs(size) - 0.67)))
    features, other = (np.abs(rng.normal(size=(700, NEURONS))).astype(np.float32) for _ in range(2))
    features[:, PLANTED] += np.abs(size)[:, None]
    cheap = np.column_stack([10 + 2 * size, rng.normal(size=700)])
    result, found = study(split(features, other, label, cheap, [350, 140, 210]), "1-vs-1")
    assert result["h_neurons"]["auroc"]["value"] > 0.7
    assert found["verdict"] != "supported"


def test_intervals_on_null_data_cover_one_half_at_the_stated_rate():
    settings = SETTINGS.model_copy(update={"random_sets": 1, "bootstrap": 400})
    one = card_of(PLANTED, [1.0] * len(PLANTED))
    worlds, below, above = 150, 0, 0
    # The interval depends on the card and the test data, so one world's controls do for all.
    train, validation, _ = world(1000)
    controls = make_controls(one, train, validation, sets=settings.random_sets, seed=settings.seed)
    for seed in range(worlds):
        _, _, test = world(1000 + seed)
        found = existence.evaluate(one, controls, validation, test, settings)["h_neurons"]["auroc"]
        below += found["high"] < 0.5
        above += found["low"] > 0.5
    # 95 % intervals miss in 1 of 20 draws, half of them on either side: 7.5 of 150, with a standard deviation of 2.7.
    assert 1 <= below + above <= 17
    assert max(below, above) <= 12


# -- what the evaluation holds ------------------------------------------------------------------------


def test_numbers_are_those_of_the_test_set():
    train, validation, test = world(8, shift=0.5, n=300)
    one = card_of(PLANTED, np.linspace(0.5, 1.5, len(PLANTED)), -8.0, {"slope": 0.5, "offset": 0.1, "n": 60})
    ticks: list[int] = []
    result = evaluate(one, train, validation, test, SETTINGS, lambda: ticks.append(1))
    score = one.score(test.features)
    risk = one.risk(score)
    assert json.loads(dumps(result)) == result
    assert len(ticks) == 2 * SETTINGS.random_sets
    assert result["n"] == result["faithful"] + result["hallucinated"] == result["questions"] == 90
    assert result["hallucinated"] == test.hallucinated.sum()
    own = result["h_neurons"]
    assert own["count"] == 8
    assert own["share_per_mille"] == pytest.approx(1000 * 8 / NEURONS)
    assert own["auroc"]["value"] == pytest.approx(roc_auc_score(test.hallucinated, score), abs=1e-6)
    assert own["accuracy"]["value"] == pytest.approx(((risk >= 0.5) == test.hallucinated).mean(), abs=1e-6)
    assert own["base_rate_accuracy"] == max(result["faithful"], result["hallucinated"]) / 90
    fpr, tpr = result["roc"]["fpr"], result["roc"]["tpr"]
    assert np.trapezoid(tpr, fpr) == pytest.approx(own["auroc"]["value"], abs=1e-6)
    np.testing.assert_allclose(result["risks"]["hallucinated"], risk[test.hallucinated], atol=1e-6)
    np.testing.assert_allclose(result["risks"]["faithful"], risk[~test.hallucinated], atol=1e-6)
    for kind in ("uniform", "layer_matched"):
        random = result["random"][kind]
        assert len(random["auroc"]) == len(random["accuracy"]) == 2
        assert len(set(random["auroc"])) == 2
        assert random["mean_auroc"] == pytest.approx(np.mean(random["auroc"]))
        assert random["difference"]["value"] == pytest.approx(own["auroc"]["value"] - random["mean_auroc"], abs=1e-5)
    gain = result["increment"]
    assert gain["difference"]["value"] == pytest.approx(gain["combined"]["value"] - gain["baseline"]["value"], abs=1e-5)
    assert set(result["baselines"]) == {"length", "mean log-probability", "length + mean log-probability"}


def test_the_same_seed_gives_the_same_evaluation():
    worlds = world(9, shift=0.5)
    one = card_of(PLANTED, [1.0] * len(PLANTED))
    first, again, other = (evaluate(one, *worlds, SETTINGS.model_copy(update={"seed": seed})) for seed in (1, 1, 2))
    assert first == again
    assert first["random"]["uniform"]["auroc"] != other["random"]["uniform"]["auroc"]


def test_intervals_are_clustered_by_question():
    train, validation, test = world(10, shift=0.4, n=300)
    one = card_of(PLANTED, [1.0] * len(PLANTED))
    four = np.repeat(np.arange(len(test.length)), 4)
    copied = EvaluationData(
        test.features[four],
        test.hallucinated[four],
        test.length[four],
        test.logprob[four],
        [test.clusters[i] for i in four],
    )
    once = evaluate(one, train, validation, test, SETTINGS)
    many = evaluate(one, train, validation, copied, SETTINGS)
    assert many["n"] == 4 * once["n"]
    assert many["questions"] == once["questions"]
    for end in ("value", "low", "high"):
        assert many["h_neurons"]["auroc"][end] == pytest.approx(once["h_neurons"]["auroc"][end], abs=1e-6)


def test_a_probe_without_neurons_is_no_better_than_chance():
    result = evaluate(card_of([], []), *world(11), SETTINGS)
    assert result["h_neurons"]["auroc"]["value"] == 0.5
    assert passed(verdict(result)) == [False, False, False, False]
    dumps(result)


@pytest.mark.parametrize("label", [True, False])
def test_a_test_set_of_one_class_is_too_little_data(label: bool):
    train, validation, test = world(12, shift=1.0)
    rows = np.flatnonzero(test.hallucinated == label)
    part = EvaluationData(
        test.features[rows],
        test.hallucinated[rows],
        test.length[rows],
        test.logprob[rows],
        [test.clusters[i] for i in rows],
    )
    result = evaluate(card_of(PLANTED, [1.0] * len(PLANTED)), train, validation, part, SETTINGS)
    dumps(result)
    assert verdict(result)["verdict"] == "too little data"


# -- controls -----------------------------------------------------------------------------------------

WIDTHS = [50, 100, 10, 40, 300, 100]


@pytest.mark.parametrize("width", [WIDTH, WIDTHS])
@pytest.mark.parametrize("matched", [False, True])
def test_random_neurons_are_as_many_and_none_of_its_own(width: Any, matched: bool):
    own = [0, 3, 49, 51, 150, 151, 152, 155, 159, 599]
    one = card_of(own, [1.0] * 5 + [-1.0] * 5, width=width)
    widths = width if isinstance(width, list) else [width] * LAYERS
    edges = np.concatenate([[0], np.cumsum(widths)])
    draws = [random_columns(one, seed, matched) for seed in range(20)]
    for columns in draws:
        assert len(set(columns.tolist())) == len(own)
        assert set(columns.tolist()).isdisjoint(own)
        assert columns.min() >= 0
        assert columns.max() < NEURONS
        if matched:
            np.testing.assert_array_equal(np.histogram(columns, edges)[0], np.histogram(own, edges)[0])
    assert len({tuple(columns) for columns in draws}) == 20
    np.testing.assert_array_equal(random_columns(one, 3, matched), draws[3])
    if not matched:
        assert any((np.histogram(c, edges)[0] != np.histogram(own, edges)[0]).any() for c in draws)


@pytest.mark.parametrize("matched", [False, True])
def test_random_neurons_of_a_layer_with_too_few_left(matched: bool):
    one = card_of(range(150, 158), [1.0] * 8, width=WIDTHS)
    columns = random_columns(one, 0, matched)
    assert len(columns) == (2 if matched else 8)
    assert set(columns.tolist()).isdisjoint(range(150, 158))
    assert len(random_columns(card_of([], []), 0, matched)) == 0


def test_controls_find_a_signal_that_is_there():
    train, validation, test = world(13, shift=1.0)
    found = Control.of(PLANTED, train, validation)
    assert roc_auc_score(test.hallucinated, found.score(test.features)) > 0.9
    assert roc_auc_score(validation.hallucinated, found.held_out) > 0.9
    np.testing.assert_allclose(found.score(validation.features), found.held_out)
    nothing = Control.of(PLANTED + 1, train, validation)
    assert roc_auc_score(test.hallucinated, nothing.score(test.features)) < 0.7


# -- the rule of docs/verdict.md ----------------------------------------------------------------------


def interval(value: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 1}


def numbers(
    auroc: Any = (0.76, 0.70, 0.81),
    uniform: Any = (0.1, 0.05, 0.2),
    matched: Any = (0.1, 0.05, 0.2),
    gain: Any = (0.05, 0.01, 0.1),
    faithful: int = 100,
    hallucinated: int = 100,
    count: int = 32,
) -> dict[str, Any]:
    return {
        "n": faithful + hallucinated,
        "faithful": faithful,
        "hallucinated": hallucinated,
        "h_neurons": {"count": count, "share_per_mille": 0.69, "auroc": interval(*auroc)},
        "random": {
            "uniform": {"difference": interval(*uniform)},
            "layer_matched": {"difference": interval(*matched)},
        },
        "increment": {"difference": interval(*gain)},
    }


AT_CHANCE, NO_GAIN, UNDEFINED = (0.55, 0.5, 0.6), (0.1, 0.0, 0.2), (None, None, None)


@pytest.mark.parametrize(
    ("changes", "word", "checks"),
    [
        ({}, "supported", [1, 1, 1, 1]),
        ({"count": 0}, "not supported", [0, 1, 1, 1]),
        ({"auroc": AT_CHANCE}, "not supported", [1, 0, 1, 1]),
        ({"auroc": (0.3, 0.2, 0.4)}, "not supported", [1, 0, 1, 1]),
        ({"uniform": NO_GAIN}, "not supported", [1, 1, 0, 1]),
        ({"matched": NO_GAIN}, "not supported", [1, 1, 0, 1]),
        ({"gain": NO_GAIN}, "not supported", [1, 1, 1, 0]),
        ({"gain": UNDEFINED}, "not supported", [1, 1, 1, 0]),
        ({"auroc": AT_CHANCE, "uniform": NO_GAIN, "gain": NO_GAIN}, "not supported", [1, 0, 0, 0]),
        # Too few examples of a class: nothing is said, whatever the numbers.
        ({"faithful": 20, "hallucinated": 20}, "supported", [1, 1, 1, 1]),
        ({"faithful": 19}, "too little data", [1, 1, 1, 1]),
        ({"hallucinated": 19, "faithful": 1000}, "too little data", [1, 1, 1, 1]),
        ({"hallucinated": 0, "auroc": UNDEFINED}, "too little data", [1, 0, 1, 1]),
        # A check that fails says something only if an AUROC of 0.65 would have been found.
        ({"gain": NO_GAIN, "faithful": 59, "hallucinated": 59}, "not supported", [1, 1, 1, 0]),
        ({"gain": NO_GAIN, "faithful": 58, "hallucinated": 58}, "too little data", [1, 1, 1, 0]),
        ({"auroc": AT_CHANCE, "faithful": 40, "hallucinated": 90}, "too little data", [1, 0, 1, 1]),
    ],
)
def test_the_rule(changes: dict[str, Any], word: str, checks: list[int]):
    result = numbers(**changes)
    found = verdict(result)
    assert found["verdict"] == word
    assert passed(found) == [bool(check) for check in checks]
    assert [check["name"] for check in found["checks"]] == [
        "there are H-Neurons",
        "predicts better than chance",
        "better than as many random neurons",
        "adds to length and log-probability",
    ]
    detectable = minimum_detectable_auroc(result["hallucinated"], result["faithful"])
    assert found["minimum_detectable_auroc"] == pytest.approx(detectable, abs=1e-4)
    assert "\n" not in found["sentence"]
    least = min(result["faithful"], result["hallucinated"])
    if word == "not supported" and passed(found) == [True, True, True, False]:
        gain = result["increment"]["difference"]
        assert "no gain over length and log-probability was seen" in found["sentence"]
        assert ("undefined" if gain["low"] is None else f"[{gain['low']:.3f}, {gain['high']:.3f}]") in found["sentence"]
    elif word != "supported" and least >= 20:
        assert f"{detectable:.2f}" in found["sentence"]
        for check in found["checks"]:
            assert (check["name"] in found["sentence"]) == (not check["passed"])
    if least < 20:
        assert f"only {least} test examples" in found["sentence"]
    dumps(found)


def test_the_page_on_the_verdict_has_the_numbers_of_the_code():
    page = (Path(__file__).parents[1] / "docs" / "verdict.md").read_text(encoding="utf-8")
    assert f"Fewer than **{LEAST_PER_CLASS}** test examples of either class: *{TOO_LITTLE}*" in page
    assert f"minimum detectable AUROC is above **{DETECTABLE}**: *{TOO_LITTLE}*" in page
    for check in verdict(numbers())["checks"]:
        assert f"| {check['name']} |" in page
    rows = [
        line.strip("| \n").split(" | ") for line in page.splitlines() if line.startswith(("| test ex", "| minimum"))
    ]
    assert rows[1][1:] == [f"{minimum_detectable_auroc(int(n), int(n)):.2f}" for n in rows[0][1:]]
    assert len(rows[0]) > 5
