"""Transfer: planted neurons shared by domains carry over, those of one domain don't; no cell is in sample."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cards import probe
from hneurons.errors import TooFewExamplesError
from hneurons.neurons.calibration import calibrate
from hneurons.neurons.card import Card
from hneurons.neurons.choose import TrainingData
from hneurons.neurons.probe import l1_path, smallest_c
from hneurons.runfolder import dumps
from hneurons.settings import IdentifySettings
from hneurons.stats import Interval
from hneurons.studies import transfer as module
from hneurons.studies.transfer import (
    domain_calibration_test,
    domain_counts,
    outside_domains,
    per_domain_calibration,
    risk_in,
    transfer_matrix,
    warning,
)

NEURONS = 60
SETTINGS = IdentifySettings(folds=3, path_points=5, bootstrap=200, max_share=0.5)


def part(
    seed: int, columns: list[int], n: int = 120, shift: float = 1.5, groups: list[str] | None = None
) -> TrainingData:
    """Examples of a domain whose hallucinations raise these neurons."""
    rng = np.random.default_rng([9, seed])
    label = rng.permutation(n) % 2 == 0
    features = np.abs(rng.normal(size=(n, NEURONS))).astype(np.float32)
    features[np.ix_(label, columns)] += shift
    names = np.array(groups or [f"{seed}-{i}" for i in range(n)])
    return TrainingData(features, None, np.zeros(n, bool), label, names)


def cell(result: dict[str, Any], train: str, test: str) -> dict[str, Any]:
    return next(one["auroc"] for one in result["cells"] if (one["train"], one["test"]) == (train, test))


@pytest.mark.parametrize("multiple", [None, 5.0])
def test_shared_neurons_transfer_and_others_do_not(multiple: float | None):
    parts = {"a": part(0, [3, 4]), "b": part(1, [3, 4]), "c": part(2, [40, 41])}
    ticks: list[int] = []
    result = transfer_matrix(parts, SETTINGS, multiple=multiple, tick=lambda: ticks.append(1))
    assert json.loads(dumps(result)) == result
    assert len(ticks) == 9
    assert len(result["cells"]) == 9
    for name in parts:
        assert cell(result, name, name)["low"] > 0.8
    for one, other in (("a", "b"), ("b", "a")):
        assert cell(result, one, other)["low"] > 0.8
    for one, other in (("a", "c"), ("b", "c"), ("c", "a"), ("c", "b")):
        assert 0.3 < cell(result, one, other)["value"] < 0.7
    assert result["finding"] == "transfers in part"
    assert result["in_domain"]["value"] == pytest.approx(
        np.mean([cell(result, n, n)["value"] for n in parts]), abs=1e-6
    )
    across = np.mean([cell(result, a, b)["value"] for a in parts for b in parts if a != b])
    assert result["across"]["value"] == pytest.approx(across, abs=1e-6)
    assert result["loss"]["value"] == pytest.approx(result["in_domain"]["value"] - across, abs=2e-6)
    assert result["loss"]["low"] > 0
    for row in result["parts"]:
        assert len(row["C"]) == len(row["positives"]) == 3
        assert (row["n"], row["faithful"], row["hallucinated"]) == (120, 60, 60)
    assert ("cross-validation" in result["rule"]) == (multiple is None)


def test_findings_of_planted_worlds():
    same = transfer_matrix({"a": part(0, [3, 4]), "b": part(1, [3, 4])}, SETTINGS, multiple=5)
    assert same["finding"] == "transfers"
    apart = transfer_matrix({"a": part(0, [3, 4]), "b": part(1, [30, 31])}, SETTINGS, multiple=5)
    assert apart["finding"] == "does not transfer"


def test_noise_is_at_chance_on_the_diagonal():
    found = []
    for seed in range(6):
        parts = {"a": part(2 * seed, [], n=60), "b": part(2 * seed + 1, [], n=60)}
        result = transfer_matrix(parts, SETTINGS, multiple=8)
        assert min(row["positives"][0] for row in result["parts"]) > 0
        found.append(result["in_domain"]["value"])
    # In sample the same probes come to 0.9 and more.
    data = part(0, [], n=60)
    fit = l1_path(data.answer, data.hallucinated, [8 * smallest_c(data.answer, data.hallucinated)])[0]
    assert roc_auc_score(data.hallucinated, fit.score(data.answer)) > 0.9
    assert abs(np.mean(found) - 0.5) < 0.08


def test_a_group_never_meets_itself_not_even_in_another_part():
    # Each group has a neuron of its own, which gives its label away to whoever has seen the group.
    groups = [f"g{i // 4}" for i in range(120)]
    rng = np.random.default_rng(0)
    label = (rng.permutation(30) % 2 == 0).repeat(4)
    parts = {}
    for name in "ab":
        features = np.abs(rng.normal(size=(120, NEURONS))).astype(np.float32) * 0.01
        features[np.arange(120), np.arange(120) // 4 + 30 * label] += 1.0
        parts[name] = TrainingData(features, None, np.zeros(120, bool), label, np.array(groups))
    fit = l1_path(parts["a"].answer, label, [100 * smallest_c(parts["a"].answer, label)])[0]
    assert roc_auc_score(label, fit.score(parts["b"].answer)) > 0.95
    result = transfer_matrix(parts, SETTINGS, multiple=100)
    for one in result["cells"]:
        assert one["auroc"]["value"] < 0.75
    folds = module._folds(parts, 3, 0)
    for group in set(groups):
        rows = np.array(groups) == group
        assert len({*folds["a"][rows], *folds["b"][rows]}) == 1
    assert set(folds["a"]) == {0, 1, 2}


def test_a_cell_counts_pairs_of_one_fold_only():
    parts = {"a": part(0, [3], 60, 0.8), "b": part(2, [3], 60, 0.8)}
    result = transfer_matrix(parts, SETTINGS, multiple=20)
    folds = module._folds(parts, 3, SETTINGS.seed)
    ordered = total = 0.0
    scores = np.zeros(60)
    for fold in range(3):
        train = parts["a"].take(np.flatnonzero(folds["a"] != fold))
        fit = l1_path(train.answer, train.hallucinated, [20 * smallest_c(train.answer, train.hallucinated)])[0]
        rows = folds["b"] == fold
        scores[rows] = fit.score(parts["b"].answer[rows])
        label = parts["b"].hallucinated[rows]
        pairs = label.sum() * (~label).sum()
        ordered += pairs * roc_auc_score(label, scores[rows])
        total += pairs
    assert cell(result, "a", "b")["value"] == pytest.approx(ordered / total, abs=1e-6)
    assert abs(roc_auc_score(parts["b"].hallucinated, scores) - ordered / total) > 1e-3
    assert cell(result, "a", "b")["n"] == 60


def test_small_parts_are_skipped_with_the_reason():
    lonely = part(3, [3], groups=["one"] * 40 + ["two"] * 80)
    parts = {"a": part(0, [3]), "small": part(1, [3], n=38), "b": part(2, [3]), "lonely": lonely}
    result = transfer_matrix(parts, SETTINGS)
    assert set(result["skipped"]) == {"small", "lonely"}
    assert (
        result["skipped"]["small"] == "only 19 hallucinated examples, 20 needed; only 19 faithful examples, 20 needed"
    )
    assert {row["name"] for row in result["parts"]} == {"a", "b"}
    assert len(result["cells"]) == 4


@pytest.mark.parametrize("names", ["", "a"])
def test_fewer_than_two_parts_are_too_little_data(names: str):
    result = transfer_matrix({name: part(0, [3]) for name in names}, SETTINGS, multiple=5)
    json.loads(dumps(result))
    assert result["finding"] == "too little data"
    assert result["across"]["value"] is None
    assert result["loss"]["value"] is None
    assert len(result["cells"]) == len(names)
    assert (result["in_domain"]["value"] is None) == (not names)


def test_a_given_c_is_not_used():
    parts = {"a": part(0, [3]), "b": part(1, [3])}
    given = transfer_matrix(parts, SETTINGS.model_copy(update={"C": 1e-9}))
    assert given == transfer_matrix(parts, SETTINGS)


def test_the_bounds_of_the_finding():
    def interval(low: float, high: float) -> Interval:
        return Interval((low + high) / 2, low, high, 100)

    inside = interval(0.7, 0.8)
    assert module._finding(2, inside, interval(0.51, 0.6), interval(-0.01, 0.1))[0] == "transfers"
    assert module._finding(2, inside, interval(0.51, 0.6), interval(0.01, 0.1))[0] == "transfers in part"
    assert module._finding(2, inside, interval(0.5, 0.6), interval(0.01, 0.1))[0] == "does not transfer"


# -- calibration --------------------------------------------------------------------------------------------


def domains_of(rng: Any) -> tuple[Any, Any, list[str]]:
    """Scores of two large domains, one of them off by 3, and of a small one."""
    names = ["geo"] * 200 + ["law"] * 200 + ["art"] * 39
    label = rng.permutation(len(names)) % 2 == 0
    scores = 2 * label - 1 + rng.normal(size=len(names)) + 3 * np.array([name == "law" for name in names])
    return scores, label, names


def test_each_large_domain_has_a_calibration_of_its_own():
    scores, label, names = domains_of(np.random.default_rng(0))
    found = per_domain_calibration(scores, label, names)
    assert json.loads(dumps(found)) == found
    assert found["covered"] == ["geo", "law"]
    assert found["left_to_pooled"] == {"art": 39}
    assert found["pooled"] == calibrate(scores, label).model_dump(mode="json")
    law = np.array(names) == "law"
    assert found["domains"]["law"] == calibrate(scores[law], label[law]).model_dump(mode="json")
    # Half of the examples are hallucinated, and the middle between the classes is at 3 there.
    assert risk_in(found, np.array([3.0]), "law")[0] == pytest.approx(0.5, abs=0.1)
    assert risk_in(found, np.array([3.0]), "geo")[0] > 0.95
    np.testing.assert_allclose(risk_in(found, scores[law], "law").mean(), 0.5, atol=0.03)
    want = calibrate(scores, label).risk([1.5])[0]
    for name in ("art", "never seen", None):
        assert risk_in(found, np.array([1.5]), name)[0] == pytest.approx(want)


def test_what_calibrating_by_domain_is_worth_is_measured_on_test_answers():
    found = per_domain_calibration(*domains_of(np.random.default_rng(0)))
    scores, label, names = domains_of(np.random.default_rng(1))
    clusters = list(range(len(names)))
    test = domain_calibration_test(found, scores, label, names, clusters, draws=200, seed=0)
    assert json.loads(dumps(test)) == test
    assert test["n"] == 400
    covered = np.array([name != "art" for name in names])
    for key, domains in (("own", names), ("pooled", [None] * len(names))):
        risks = np.array([risk_in(found, scores[[i]], name)[0] for i, name in enumerate(domains)])[covered]
        squared = (risks - label[covered]) ** 2
        halves = [squared[label[covered] == value].mean() for value in (False, True)]  # classes of equal size
        assert test[key]["value"] == pytest.approx(np.mean(halves), abs=1e-6)
    # "law" is off by 3, which the common one can't know.
    assert test["difference"]["value"] == pytest.approx(test["own"]["value"] - test["pooled"]["value"], abs=2e-6)
    assert test["difference"]["high"] < 0
    rows = np.flatnonzero(~covered)
    few = domain_calibration_test(
        found, scores[rows], label[rows], ["art"] * len(rows), rows.tolist(), draws=20, seed=0
    )
    assert few is None


def test_too_few_examples_even_to_pool():
    with pytest.raises(TooFewExamplesError, match="at least 3 are needed"):
        per_domain_calibration(np.arange(10.0), np.arange(10) < 2, ["x"] * 10)


# -- cards ---------------------------------------------------------------------------------------------------


def card(**provenance: Any) -> Card:
    model = {"id": "m", "architecture": "none", "layers": 1, "width": 4, "neurons": 4}
    neurons = [{"layer": 0, "index": 1, "weight": 1.0}]
    return Card.model_validate({"model": model, "probe": probe(0.0), "neurons": neurons, "provenance": provenance})


def test_domains_that_a_card_was_not_calibrated_on():
    known = card(domains=domain_counts(["geo", "art", "geo"]))
    assert known.provenance["domains"] == {"art": 1, "geo": 2}
    assert outside_domains(known, ["geo", "law", "art", "law", "bio"]) == {"bio": 1, "law": 2}
    assert outside_domains(known, ["geo"]) == {}
    assert outside_domains(card(domains={"geo": 0}), ["geo"]) == {"geo": 1}
    assert outside_domains(card(), ["law", "geo"]) == {}, "it doesn't say"


def test_the_warning_names_some_of_them():
    assert warning({}) == ""
    assert "not calibrated on: bio, law. " in warning({"bio": 1, "law": 2})
    assert "(no domain)" in warning({"": 3})
    assert "not calibrated on: a, b, c, d, e and 2 more. " in warning(dict.fromkeys("abcdefg", 1))
