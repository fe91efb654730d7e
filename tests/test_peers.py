"""Peers: planted worlds whose answer is known, exact L2 probes, no leak of test labels, and null worlds."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from hneurons.errors import TooFewExamplesError
from hneurons.neurons import dense
from hneurons.neurons.dense import l2_probe, row_space
from hneurons.runfolder import dumps
from hneurons.studies import peers as module
from hneurons.studies.cheap import cheap_scores
from hneurons.studies.peers import (
    ALL_NEURONS,
    ANSWER_LOGPROB,
    CHEAP,
    CHEAP_TOGETHER,
    DISTINCT,
    ENTROPY,
    HIDDEN_STATES,
    LENGTH,
    MEAN_LOGPROB,
    MIN_LOGPROB,
    SELF_CONSISTENCY,
    Peer,
    PeerData,
    compare_peers,
    number_costs,
    peer_scores,
    self_consistency,
)

SPLITS = ("train", "validation", "test")
SIZES = {"train": 120, "validation": 100, "test": 150}
LAYERS, GOOD_LAYER = 5, 3
Labels = dict[str, np.ndarray]
Data = dict[str, PeerData]


def world(
    seed: int, shifts: dict[str, float] | None = None, *, features: float = 0.0, hidden: float = 0.0, **sizes: int
):
    """Data and labels by split: each number is noise plus its shift times the label."""
    rng = np.random.default_rng([5, seed])
    data: Data = {}
    labels: Labels = {}
    for split in SPLITS:
        n = sizes.get(split, SIZES[split])
        label = rng.permutation(n) % 2 == 0
        numbers = {name: rng.normal(size=n) + label * (shifts or {}).get(name, 0.0) for name in number_costs()}
        neurons = rng.normal(size=(n, 260)).astype(np.float32)
        neurons[:, 7:260:9] += features * label[:, None]
        states = rng.normal(size=(n, LAYERS, 20)).astype(np.float32)
        states[:, GOOD_LAYER, ::3] += hidden * label[:, None]
        data[split], labels[split] = PeerData(numbers, neurons, states), label
    return data, labels


def h_scores(labels: Labels, shift: float, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([6, seed])
    return {split: rng.normal(size=len(label)) + shift * label for split, label in labels.items()}


def scored(data: Data, labels: Labels, **options: Any) -> list[Peer]:
    return peer_scores(*(data[split] for split in SPLITS), labels["train"], labels["validation"], **options)


def study(data: Data, labels: Labels, own: dict[str, np.ndarray], draws: int = 300) -> dict[str, Any]:
    clusters = [f"q{i}" for i in range(len(labels["test"]))]
    result = compare_peers(own, scored(data, labels), labels, clusters, draws)
    assert json.loads(dumps(result)) == result
    return result


def only(data: Data, *names: str) -> Data:
    """The data with these numbers alone and no arrays."""
    return {split: PeerData({name: part.numbers[name] for name in names}) for split, part in data.items()}


def covers(interval: dict[str, Any], value: float = 0.0) -> bool:
    return interval["low"] <= value <= interval["high"]


# -- worlds with a known truth ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CHEAP, SELF_CONSISTENCY, DISTINCT])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_number_beats_h_neurons_which_add_nothing(name: str, sign: int):
    data, labels = world(1, {name: sign * 8.0})
    row = study(only(data, name), labels, h_scores(labels, 0.5))["peers"][name]
    assert row["auroc"]["value"] > 0.99
    assert row["accuracy"]["value"] > 0.97
    assert row["difference"]["high"] < 0
    assert abs(row["h_adds"]["value"]) < 0.01
    assert row["adds_to_h"]["low"] > 0.1


def test_h_neurons_that_know_more_than_noise():
    data, labels = world(2)
    result = study(data, labels, h_scores(labels, 2.0))
    assert result["h_neurons"]["auroc"]["value"] > 0.85
    assert result["h_neurons"]["accuracy"]["value"] > 0.75
    assert set(result["peers"]) == {*number_costs(), CHEAP_TOGETHER, ALL_NEURONS, HIDDEN_STATES}
    for row in result["peers"].values():
        assert row["difference"]["low"] > 0
        assert row["h_adds"]["low"] > 0
        assert row["adds_to_h"]["value"] < 0.03
        assert abs(row["auroc"]["value"] - 0.5) < 0.2
    assert result["increment"]["difference"]["low"] > 0.1


def test_a_peer_that_is_the_h_score_differs_by_nothing():
    _, labels = world(3)
    own = h_scores(labels, 1.0)
    twin = Peer("twin", module.H_COST, "train", own["validation"][:, None], own["test"][:, None])
    result = compare_peers(own, [twin], labels, range(150), 200)
    row = result["peers"]["twin"]
    assert row["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 150}
    assert row["auroc"] == result["h_neurons"]["auroc"]
    assert row["accuracy"] == result["h_neurons"]["accuracy"]
    assert abs(row["h_adds"]["value"]) < 0.01
    assert abs(row["adds_to_h"]["value"]) < 0.01
    assert result["increment"] is None


def test_two_halves_of_the_truth_add_to_each_other():
    data, labels = world(4, {MIN_LOGPROB: -1.2}, test=400)
    row = study(only(data, MIN_LOGPROB), labels, h_scores(labels, 1.2))["peers"][MIN_LOGPROB]
    assert row["h_adds"]["low"] > 0
    assert row["adds_to_h"]["low"] > 0
    assert abs(row["difference"]["value"]) < 0.1
    # Neither is better by itself, both together are: the three differences are of the same three numbers.
    assert row["difference"]["value"] == pytest.approx(row["h_adds"]["value"] - row["adds_to_h"]["value"], abs=3e-6)


def test_a_number_is_curved():
    # Very short and very long answers are wrong.
    _, labels = world(5)
    rng = np.random.default_rng(0)
    numbers = {}
    for split, label in labels.items():
        size = rng.normal(size=len(label))
        size[label] = np.sign(size[label]) * (3 + np.abs(size[label]))
        numbers[split] = PeerData({LENGTH: size})
    assert study(numbers, labels, h_scores(labels, 0.0))["peers"][LENGTH]["auroc"]["value"] > 0.95


def test_probes_find_what_was_planted():
    data, labels = world(6, features=1.0, hidden=1.5)
    result = study(data, labels, h_scores(labels, 0.3))
    assert result["peers"][ALL_NEURONS]["auroc"]["value"] > 0.9
    assert result["peers"][ALL_NEURONS]["accuracy"]["value"] > 0.8
    hidden = result["peers"][HIDDEN_STATES]
    assert hidden["chosen"]["layer"] == GOOD_LAYER
    assert hidden["auroc"]["value"] > 0.9
    by_layer = hidden["chosen"]["validation_auroc_by_layer"]
    assert int(np.argmax(by_layer)) == GOOD_LAYER
    assert by_layer[GOOD_LAYER] == hidden["validation_auroc"]
    assert max(value for layer, value in enumerate(by_layer) if layer != GOOD_LAYER) < 0.75
    assert result["peers"][HIDDEN_STATES]["difference"]["high"] < 0


def test_the_best_cheap_number_is_chosen_on_validation_among_those_without_further_samples():
    data, labels = world(7, {ENTROPY: 1.5, SELF_CONSISTENCY: 8.0, DISTINCT: 8.0, LENGTH: 0.5})
    result = study(only(data, *number_costs()), labels, h_scores(labels, 1.0), 100)
    assert result["increment"]["over"] == [ENTROPY]
    row = result["peers"][ENTROPY]
    assert result["increment"]["difference"] == row["h_adds"]
    assert result["increment"]["baseline"] == row["auroc"]
    gain = result["increment"]["combined"]["value"] - result["increment"]["baseline"]["value"]
    assert gain == pytest.approx(row["h_adds"]["value"], abs=1e-5)
    # The one that is best on test only is not taken.
    data["test"].numbers[MIN_LOGPROB][:] = 9.0 * labels["test"]
    assert study(only(data, *number_costs()), labels, h_scores(labels, 1.0), 100)["increment"]["over"] == [ENTROPY]


def test_all_cheap_numbers_together_know_more_than_each():
    data, labels = world(8, {LENGTH: 1.0, MEAN_LOGPROB: -1.0, ENTROPY: 1.0})
    result = study(only(data, *number_costs()), labels, h_scores(labels, 0.0))["peers"]
    best = max(result[name]["auroc"]["value"] for name in CHEAP)
    assert result[CHEAP_TOGETHER]["auroc"]["value"] > best + 0.03
    assert result[CHEAP_TOGETHER]["cost"]["extra_forward_passes"] == 1
    without = scored(only(data, LENGTH, MIN_LOGPROB, SELF_CONSISTENCY), labels)
    together = next(peer for peer in without if peer.name == CHEAP_TOGETHER)
    assert together.cost.extra_forward_passes == 0
    assert together.test.shape == (150, 2)


# -- the numbers --------------------------------------------------------------------------------------


def test_values_are_those_of_scikit_learn():
    data, labels = world(9, {LENGTH: 0.7}, features=0.4)
    own = h_scores(labels, 0.6)
    result = study(data, labels, own)
    row = result["peers"][LENGTH]
    held, truth = labels["validation"], labels["test"]
    first, second = (data[split].numbers[LENGTH][:, None] for split in ("validation", "test"))
    alone = cheap_scores(first, held, second)
    # Curved in the number, straight in the score, written out.
    centre, spread = first.mean(), first.std()
    parts = []
    for number, score in ((first, own["validation"]), (second, own["test"])):
        scaled = (number[:, 0] - centre) / spread
        parts.append(np.column_stack([scaled, scaled**2, score]))
    scaler = StandardScaler().fit(parts[0])
    model = LogisticRegression(class_weight="balanced").fit(scaler.transform(parts[0]), held)
    both = model.decision_function(scaler.transform(parts[1]))
    expected = {
        "auroc": roc_auc_score(truth, alone),
        "accuracy": ((alone >= 0) == truth).mean(),
        "difference": roc_auc_score(truth, own["test"]) - roc_auc_score(truth, alone),
        "h_adds": roc_auc_score(truth, both) - roc_auc_score(truth, alone),
        "adds_to_h": roc_auc_score(truth, both) - roc_auc_score(truth, own["test"]),
        "combined": roc_auc_score(truth, both),
    }
    for name, value in expected.items():
        # Two ways to the same fit may order a pair of all but equal scores otherwise: 1 of 75 * 75.
        tolerance = 1e-3 if name in ("combined", "h_adds", "adds_to_h") else 2e-6
        assert row[name]["value"] == pytest.approx(value, abs=tolerance), name
        assert row[name]["n"] == 150
        assert row[name]["low"] < row[name]["value"] < row[name]["high"]
    assert row["validation_auroc"] == pytest.approx(roc_auc_score(held, cheap_scores(first, held, first)), abs=1e-6)
    assert result["h_neurons"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, own["test"]), abs=1e-6)
    assert (result["n"], result["faithful"], result["hallucinated"], result["questions"]) == (150, 75, 75, 150)
    probe = result["peers"][ALL_NEURONS]
    peer = next(peer for peer in scored(data, labels) if peer.name == ALL_NEURONS)
    assert probe["auroc"]["value"] == pytest.approx(roc_auc_score(truth, peer.test[:, 0]), abs=1e-6)
    assert probe["validation_auroc"] == pytest.approx(roc_auc_score(held, peer.validation[:, 0]), abs=1e-6)


def test_intervals_are_clustered_by_question():
    data, labels = world(10, {LENGTH: 0.7})
    own = h_scores(labels, 0.6)
    few = scored(only(data, LENGTH), labels)
    once = compare_peers(own, few, labels, range(150), 300)
    again = np.repeat(np.arange(150), 3)
    copied = [replace(peer, test=peer.test[again]) for peer in few]
    many = compare_peers(
        {**own, "test": own["test"][again]}, copied, {**labels, "test": labels["test"][again]}, again.tolist(), 300
    )
    assert (many["n"], many["questions"]) == (450, 150)
    for name in ("auroc", "difference", "h_adds", "adds_to_h", "accuracy"):
        for end in ("value", "low", "high"):
            assert many["peers"][LENGTH][name][end] == pytest.approx(once["peers"][LENGTH][name][end], abs=2e-6)


def test_the_same_seed_gives_the_same_comparison():
    data, labels = world(11, {LENGTH: 0.7})
    few, own = scored(only(data, LENGTH), labels), h_scores(labels, 0.6)
    first, same, other = (compare_peers(own, few, labels, range(150), 200, seed) for seed in (1, 1, 2))
    assert first == same
    assert first["peers"][LENGTH]["auroc"] != other["peers"][LENGTH]["auroc"]


def test_a_score_that_points_the_wrong_way_on_validation_has_no_say():
    _, labels = world(12)
    own = h_scores(labels, 3.0)
    own["validation"] = -own["validation"]
    # Calibrated, it flags everything: half right.
    assert compare_peers(own, [], labels, range(150), 100)["h_neurons"]["accuracy"]["value"] == 0.5


def test_costs_are_stated():
    data, labels = world(13)
    costs = {name: row["cost"] for name, row in study(data, labels, h_scores(labels, 0.0), 100)["peers"].items()}
    passes = {name: cost["extra_forward_passes"] for name, cost in costs.items()}
    more = {name: cost["extra_samples"] for name, cost in costs.items()}
    assert {name for name, count in passes.items() if count} == {ENTROPY, CHEAP_TOGETHER, ALL_NEURONS, HIDDEN_STATES}
    assert {name: count for name, count in more.items() if count} == {SELF_CONSISTENCY: 9, DISTINCT: 9}
    assert all(cost["note"] and "\n" not in cost["note"] for cost in costs.values())
    four = {peer.name: peer.cost.extra_samples for peer in scored(only(data, SELF_CONSISTENCY), labels, samples=4)}
    assert four == {SELF_CONSISTENCY: 3}


# -- leaks --------------------------------------------------------------------------------------------


def test_test_labels_choose_nothing():
    data, labels = world(14, {ENTROPY: 0.8, LENGTH: 0.7}, features=0.3, hidden=0.5)
    own = h_scores(labels, 1.0)
    straight = study(data, labels, own)
    flipped = study(data, {**labels, "test": ~labels["test"]}, own)
    assert straight["increment"]["over"] == flipped["increment"]["over"]
    for name, row in straight["peers"].items():
        assert flipped["peers"][name]["chosen"] == row["chosen"]
        assert flipped["peers"][name]["validation_auroc"] == row["validation_auroc"]
        assert flipped["peers"][name]["auroc"]["value"] == pytest.approx(1 - row["auroc"]["value"], abs=2e-6)


def test_test_examples_choose_nothing():
    data, labels = world(15, features=0.3, hidden=0.5)
    other, _ = world(16, features=3.0, hidden=-2.0)
    first = {peer.name: peer for peer in scored(data, labels)}
    second = {peer.name: peer for peer in scored({**data, "test": other["test"]}, labels)}
    for name, peer in first.items():
        assert second[name].chosen == peer.chosen
        np.testing.assert_array_equal(second[name].validation, peer.validation)
        assert not np.array_equal(second[name].test, peer.test)


def test_the_layer_is_chosen_on_validation_and_not_on_training():
    data, labels = world(17, hidden=2.0)
    # Another layer knows the training labels only.
    data["train"].hidden[:, 1, :] += 9.0 * labels["train"][:, None]
    data["validation"].hidden[:, 1, :] *= 0.01
    peer = next(peer for peer in scored(data, labels) if peer.name == HIDDEN_STATES)
    assert peer.chosen["layer"] == GOOD_LAYER


def test_the_c_is_chosen_on_validation():
    data, labels = world(18, features=0.35)
    parts = [data[split].features for split in SPLITS]
    found = l2_probe(parts[0], labels["train"], parts[1], labels["validation"], parts[2])
    each = [l2_probe(parts[0], labels["train"], parts[1], labels["validation"], parts[2], [c]) for c in dense.GRID]
    reached = [roc_auc_score(labels["validation"], probe.validation) for probe in each]
    assert np.isclose(found.C * 260, dense.GRID[int(np.argmax(reached))])
    assert found.validation_auroc == pytest.approx(max(reached))
    assert len(set(reached)) > 2


# -- null worlds --------------------------------------------------------------------------------------


def test_where_h_neurons_are_noise_the_increment_covers_zero_about_95_times_in_100():
    covered = above = 0
    for seed in range(100):
        data, labels = world(100 + seed, {ENTROPY: 0.8}, train=6)
        result = study(only(data, ENTROPY), labels, h_scores(labels, 0.0, seed))
        gain = result["increment"]["difference"]
        covered += covers(gain)
        above += gain["low"] > 0
    assert covered >= 88
    assert above <= 5


def test_where_h_neurons_measure_length_they_add_nothing():
    above = 0
    for seed in range(40):
        data, labels = world(300 + seed, {LENGTH: 1.0}, train=6)
        rng = np.random.default_rng(seed)
        own = {split: part.numbers[LENGTH] + 0.3 * rng.normal(size=len(labels[split])) for split, part in data.items()}
        result = study(only(data, LENGTH), labels, own)
        above += result["increment"]["difference"]["low"] > 0
        assert result["h_neurons"]["auroc"]["value"] > 0.6
    assert above <= 4


# -- the exact L2 probe -------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.01, 1.0, 1000.0])
@pytest.mark.parametrize("width", [10, 60, 61, 400])
@pytest.mark.parametrize("balanced", [True, False])
def test_the_row_space_fit_is_scikit_learns_on_the_features(
    width: int, c: float, balanced: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dense, "BLOCK", 64)
    rng = np.random.default_rng(width)
    scales = np.exp(rng.normal(size=width)) * 0.01
    train, validation, test = ((rng.normal(size=(n, width)) * scales + 0.02).astype(np.float32) for n in (60, 15, 25))
    train[:, 3] = 0.1  # a neuron that never moves
    train[7] = train[8]  # twice the same example
    label = rng.permutation(60) < (30 if balanced else 18)
    found = l2_probe(train, label, validation, rng.permutation(15) % 2 == 0, test, [c])
    scaler = StandardScaler().fit(train.astype(np.float64))
    reference = LogisticRegression(C=c / width, class_weight="balanced", tol=1e-10, max_iter=100_000)
    reference.fit(scaler.transform(train.astype(np.float64)), label)
    assert found.C * width == pytest.approx(c)
    for scores, part in ((found.validation, validation), (found.test, test)):
        expected = reference.decision_function(scaler.transform(part.astype(np.float64)))
        np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@settings(max_examples=40)
@given(st.integers(2, 12), st.integers(1, 30), st.integers(1, 6), st.integers(0, 1000), st.booleans())
def test_the_row_space_keeps_products_with_training_rows(rows: int, width: int, more: int, seed: int, ties: bool):
    rng = np.random.default_rng(seed)
    train, other = (rng.normal(size=(n, width)).astype(np.float32) for n in (rows, more))
    if ties:
        train[0] = train[1]
    scaler = StandardScaler().fit(train.astype(np.float64))
    plain = [scaler.transform(part.astype(np.float64)) / np.sqrt(width) for part in (train, other)]
    found = row_space(train, other)
    assert found[0].shape[1] == found[1].shape[1] <= rows
    np.testing.assert_allclose(found[0] @ found[0].T, plain[0] @ plain[0].T, atol=1e-9)
    np.testing.assert_allclose(found[1] @ found[0].T, plain[1] @ plain[0].T, atol=1e-6)


# -- what comes in ------------------------------------------------------------------------------------


def test_self_consistency_is_of_normalised_texts():
    texts = ["Paris", "paris.", "The Paris", "Lyon", "Lyon!", "I don't know"]
    assert self_consistency(texts, "PARIS") == (0.5, 3)
    assert self_consistency(texts, "lyon") == (2 / 6, 3)
    assert self_consistency(["Rome"] * 10, "Rome") == (1.0, 1)
    assert self_consistency(["1,500", "1500"], "1500") == (1.0, 1)


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["Paris", "paris!", "Lyon", "Rome", "rome"]), min_size=1, max_size=10), st.randoms())
def test_self_consistency_is_a_share_that_order_does_not_change(texts: list[str], random: Any):
    share, distinct = self_consistency(texts, texts[0])
    shuffled = random.sample(texts, len(texts))
    assert self_consistency(shuffled, texts[0]) == (share, distinct)
    assert 1 / len(texts) <= share <= 1
    assert (share == 1) == (distinct == 1)


def test_only_what_all_splits_have_is_compared():
    data, labels = world(19)
    data["train"] = PeerData({}, None, data["train"].hidden)
    data["test"] = PeerData({LENGTH: data["test"].numbers[LENGTH]}, data["test"].features, data["test"].hidden)
    ticks: list[int] = []
    found = scored(data, labels, tick=lambda: ticks.append(1))
    assert [peer.name for peer in found] == [LENGTH, HIDDEN_STATES]
    assert len(ticks) == LAYERS


def test_a_number_that_never_changes_is_at_chance():
    _, labels = world(20)
    same = {split: PeerData({SELF_CONSISTENCY: np.ones(len(label))}) for split, label in labels.items()}
    result = study(same, labels, h_scores(labels, 1.0))
    assert result["peers"][SELF_CONSISTENCY]["auroc"]["value"] == 0.5
    assert result["peers"][SELF_CONSISTENCY]["h_adds"]["low"] > 0
    assert result["increment"] is None


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_missing_class_is_too_few_examples(split: str):
    data, labels = world(21)
    with pytest.raises(TooFewExamplesError, match="training" if split == "train" else split):
        scored(data, {**labels, split: np.ones(SIZES[split], bool)})


def test_a_test_set_of_one_class_is_undefined_and_written_as_null():
    data, labels = world(22)
    result = study(data, {**labels, "test": np.ones(150, bool)}, h_scores(labels, 1.0), 100)
    undefined = {"value": None, "low": None, "high": None, "n": 150}
    for row in result["peers"].values():
        assert row["auroc"] == row["difference"] == row["h_adds"] == row["adds_to_h"] == undefined
        assert row["accuracy"]["value"] is not None
    assert result["increment"]["difference"] == undefined


@pytest.mark.parametrize(
    "wrong",
    [
        {"numbers": {"shoe size": np.ones(3)}},
        {"numbers": {LENGTH: np.array([1.0, np.nan])}},
        {"numbers": {LENGTH: np.ones(3), ENTROPY: np.ones(4)}},
        {"numbers": {LENGTH: np.ones(3)}, "features": np.ones((4, 2), np.float32)},
    ],
)
def test_data_that_contradict_themselves_are_refused(wrong: dict[str, Any]):
    with pytest.raises(AssertionError):
        PeerData(**wrong)


def test_scores_of_other_examples_are_refused():
    data, labels = world(23)
    few, own = scored(only(data, ANSWER_LOGPROB), labels), h_scores(labels, 0.0)
    compare_peers(own, few, labels, range(150), 100)
    for split in ("validation", "test"):
        with pytest.raises(AssertionError):
            compare_peers({**own, split: own[split][1:]}, few, labels, range(150), 100)
        with pytest.raises(AssertionError):
            compare_peers(own, [replace(few[0], **{split: getattr(few[0], split)[1:]})], labels, range(150), 100)
    with pytest.raises(AssertionError):
        compare_peers(own, few, labels, range(149), 100)


def test_needs_no_torch():
    code = "import sys; import hneurons.studies.peers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
