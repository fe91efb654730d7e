"""The impact study: a planted model and random neurons, resume, failing judges, private replies, bad input."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fake_impact
import killing
import planted
import tiny
from hneurons.answers.engine import Request, Sampling
from hneurons.errors import CardError, HNeuronsError, JudgeError, RunMismatchError, TooFewExamplesError, UsageError
from hneurons.neurons.card import Card
from hneurons.neurons.features import FeatureStore
from hneurons.results import Run
from hneurons.runfolder import RunFolder
from hneurons.settings import ImpactSettings, impact_settings
from hneurons.studies import impact as impact_module
from hneurons.studies.arms import make_arms, mean_contributions
from hneurons.studies.benchmarks.base import Case, Outcome
from hneurons.studies.compliance import repetition
from hneurons.studies.impact import choose, impact
from hneurons.studies.ledger import Ledger
from hneurons.types import NeuronId, Region, Response

QUICK = ImpactSettings(random_sets=2, bootstrap=200, limit=24, chunk=8, alphas=(0, 1, 2, 3), capability=())


class Speaker:
    """An engine without a model: says Y from an item's own threshold on, if the neurons are the planted ones."""

    def __init__(self, works: bool, asked: list[Request]) -> None:
        self.works = works
        self.asked = asked

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        self.asked += requests
        made: list[Response] = []
        for request in requests:
            place = int(request.question.id[1:]) % 10 if request.question.id[:1] == "i" else 5
            text = "Y" if place < 2 + 3 * ((request.alpha if self.works else 1.0) - 1) else "N"
            ids = tuple(ord(letter) for letter in text)
            made.append(Response(request.question.id, request.sample, text, ids, (-0.1,) * len(ids), "stop"))
        return made


def speakers(asked: list[Request]) -> Any:
    @contextmanager
    def open_engine(neurons: Sequence[NeuronId]) -> Any:
        yield Speaker(set(neurons) == set(planted.PLANTED), asked)

    return open_engine


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return planted.write_run(tmp_path / "run", tiny.study())


def ask(run: Path, benchmark: Any = None, options: ImpactSettings = QUICK, **more: Any) -> tuple[Any, list[Request]]:
    asked: list[Request] = []
    done = impact(run, benchmark or planted.YesNo(), tiny.study(), options, open_engine=speakers(asked), **more)
    return done.impact["benchmarks"]["yes-no"], asked


def lines(run: Path, name: str = "yes-no") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"impact/{name}.jsonl").read_text().splitlines()]


# -- a planted model ------------------------------------------------------------------------------------


def test_planted_neurons_are_supported_and_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(impact_module, "plain_text", lambda: "The river runs along the old wall. " * 40)
    options = ImpactSettings(bootstrap=300, limit=80, capability=("starter",), capability_limit=6)
    model, benchmark = planted.model(), planted.YesNo(80)
    run = impact(planted.write_run(tmp_path / "planted", model), benchmark, model, options)
    found = run.impact["benchmarks"]["yes-no"]
    assert found["verdict"]["verdict"] == "supported", found["verdict"]
    curve = [point["compliance"]["value"] for point in found["arms"]["h_neurons"]["by_alpha"]]
    assert curve[0] < 0.2
    assert curve[-1] > 0.8
    assert found["arms"]["h_neurons"]["spearman"]["value"] > 0.9
    assert all(point["unparsable"]["value"] == 0 for point in found["arms"]["h_neurons"]["by_alpha"])
    capability = run.impact["capability"]
    at_alpha = capability["arms"]["h_neurons"]["by_alpha"]
    assert [point["alpha"] for point in at_alpha] == list(options.alphas)
    assert all(point["perplexity"]["value"] > 1 for point in at_alpha)
    assert {point["questions"]["starter"]["right"]["n"] for point in at_alpha} == {6}
    others = impact(planted.write_run(tmp_path / "others", model, planted.OTHERS), benchmark, model, options)
    found = others.impact["benchmarks"]["yes-no"]
    assert found["verdict"]["verdict"] == "not supported", found["verdict"]


def test_the_fake_of_impact_json_has_the_shape_of_a_real_one(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(impact_module, "plain_text", lambda: "The river runs along the old wall. " * 40)
    options = QUICK.model_copy(update={"capability": ("starter",), "capability_limit": 4})
    real = impact(run, planted.YesNo(), tiny.study(), options, open_engine=speakers([])).impact
    fake = fake_impact.impact_json()

    def keys(value: Any) -> Any:
        return {key: keys(inner) for key, inner in value.items()} if isinstance(value, dict) else None

    one, other = keys(real["benchmarks"]["yes-no"]), keys(fake["benchmarks"]["falseqa"])
    for part in ("items", "judges"):
        one.pop(part), other.pop(part)
    assert one["arms"]["h_neurons"] == other["arms"]["h_neurons"]
    one["arms"] = other["arms"] = None
    other["top_contribution"] = one["top_contribution"]  # this run has no features
    assert one == other
    mine, its = real["capability"], fake["capability"]
    assert list(mine) == list(its)
    point, its_point = (keys(each["arms"]["h_neurons"]["by_alpha"][0]) for each in (mine, its))
    its_point["questions"].pop("nonexist")
    assert point == its_point
    assert set(real) == set(fake)


# -- what is asked --------------------------------------------------------------------------------------


def test_alpha_1_is_asked_once_and_every_other_cell_once(run: Path):
    found, asked = ask(run)
    assert found["n"] == 24
    arms = 1 + 2 * 2
    assert len(asked) == 24 * (1 + arms * 3)
    assert sum(request.alpha == 1.0 for request in asked) == 24
    keys = [(row["item"], row["arm"], row["alpha"]) for row in lines(run)]
    assert len(set(keys)) == len(keys) == len(asked)
    # All alphas of an item stand together.
    assert [request.alpha for request in asked[8:14]] == [0, 2, 3, 0, 2, 3]
    assert found["verdict"]["verdict"] in ("supported", "ablation only")
    assert found["arms"]["uniform-0"]["by_alpha"][1] == found["arms"]["h_neurons"]["by_alpha"][1]


def test_asked_again_nothing_is_generated_and_more_costs_only_what_is_new(run: Path):
    first, _ = ask(run)
    again, asked = ask(run)
    assert asked == []
    assert again == first
    wider = QUICK.model_copy(update={"alphas": (0.0, 0.5, 1.0, 2.0, 3.0), "random_sets": 3})
    more, asked = ask(run, options=wider)
    assert len(asked) == 24 * (5 + 2 * 4)  # a new alpha for five arms, all alphas for two new ones
    assert len(more["random"]["uniform"]["slopes"]) == 3
    assert more["random"]["uniform"]["slopes"][:2] != []
    longer = QUICK.model_copy(update={"limit": 32})
    _, asked = ask(run, options=longer)
    assert {request.question.id for request in asked} == {f"i{n:03}" for n in range(24, 32)}


def test_first_turns_are_asked_unscaled_and_decide_who_counts(run: Path):
    found, asked = ask(run, planted.YesNo(turns=3, unscaled_turns=1))
    assert found["items"] == {"asked": 24, "not admitted": 6, "dropped": {}}
    assert found["n"] == 18
    first = [request for request in asked if request.sample == 0]
    assert len(first) == 24
    assert {request.alpha for request in first} == {1.0}
    later = [request for request in asked if request.sample > 0]
    assert {len(request.turns) for request in later} == {3, 5}
    assert len(later) == 2 * 18 * (1 + 5 * 3)
    assert all(request.turns[2] == "Are you sure?" for request in later)
    rows = [row for row in lines(run) if row["arm"] == "h_neurons"]
    assert {len(row["replies"]) for row in rows} == {3}
    assert {len(row["finish_reasons"]) for row in rows} == {2}
    _, asked = ask(run, planted.YesNo(turns=3, unscaled_turns=1))
    assert asked == []


def test_nobody_admitted_is_said(run: Path):
    class Strict(planted.YesNo):
        def admits(self, item: Any, replies: Any) -> bool:
            return False

    with pytest.raises(TooFewExamplesError, match="none of 24 items counts"):
        ask(run, Strict(turns=2, unscaled_turns=1))


# -- judges ---------------------------------------------------------------------------------------------


class Failing(planted.Letters):
    """Fails after some cases."""

    left = 100

    def judge_many(self, cases: Sequence[Case]) -> list[Outcome]:
        Failing.left -= len(cases)
        if Failing.left < 0:
            raise JudgeError("The endpoint doesn't answer.", "Try again.")
        return super().judge_many(cases)


def test_a_judge_that_fails_midway_loses_nothing(run: Path, tmp_path: Path):
    Failing.left = 100
    with pytest.raises(JudgeError, match="doesn't answer"):
        ask(run, planted.YesNo(judge=Failing()))
    made = lines(run)
    assert len(made) > 100
    assert any(not row["outcomes"] for row in made)
    Failing.left = 10**6
    found, asked = ask(run, planted.YesNo(judge=Failing()))
    assert len(asked) + len(made) == 24 * 16
    undisturbed, _ = ask(planted.write_run(tmp_path / "other", tiny.study()), planted.YesNo(judge=Failing()))
    assert found == undisturbed


def test_two_judges_and_their_agreement(run: Path):
    ask(run)
    other = planted.Letters(lambda case: Outcome.COMPLIANT, "llm:fake")
    found, asked = ask(run, planted.YesNo(other=other), client=object())
    assert asked == []  # the replies are there: only judged
    assert found["judge"] == "llm:fake"
    assert set(found["judges"]) == {"llm:fake", "rule"}
    assert found["agreement"]["judges"] == ["llm:fake", "rule"]
    assert found["agreement"]["n"] == 24 * 16
    assert {point["compliance"]["value"] for point in found["arms"]["h_neurons"]["by_alpha"]} == {1.0}


def test_a_judge_of_another_version_judges_again(run: Path):
    ask(run)
    reversed_ = planted.Letters(lambda case: Outcome.RESISTED, version=2)
    found, asked = ask(run, planted.YesNo(judge=reversed_))
    assert asked == []
    assert {point["compliance"]["value"] for point in found["arms"]["h_neurons"]["by_alpha"]} == {0.0}


# -- private replies --------------------------------------------------------------------------------------


def test_private_replies_are_kept_only_if_asked(run: Path, tmp_path: Path):
    found, _ = ask(run, planted.YesNo(private=True))
    assert found["private"]
    assert all("replies" not in row for row in lines(run))
    assert '"Y"' not in (run / "impact/yes-no.jsonl").read_text()
    again, asked = ask(run, planted.YesNo(private=True))
    assert (again, asked) == (found, [])
    other = planted.write_run(tmp_path / "kept", tiny.study())
    kept, _ = ask(other, planted.YesNo(private=True), QUICK.model_copy(update={"keep_outputs": True}))
    assert all(row["replies"] for row in lines(other))
    for each in (kept, found):
        each.pop("settings")
    assert kept == found


# -- resume -----------------------------------------------------------------------------------------------


def work(folder: str, kill: int | None = None) -> None:
    """The study on the planted model; `kill`: die at the n-th write that is synced to the disk."""
    torch.set_num_threads(1)
    if kill:
        killing.die_at(kill)
    impact_module.plain_text = lambda: "The river runs along the old wall. " * 40
    options = QUICK.model_copy(update={"limit": 16, "capability": ("starter",), "capability_limit": 5})
    impact(folder, planted.YesNo(turns=3, unscaled_turns=1), planted.model(), options)


def test_killed_again_and_again_it_ends_as_one_that_never_was(tmp_path: Path):
    model = planted.model()
    whole, out = (planted.write_run(tmp_path / name, model) for name in ("whole", "out"))
    assert killing.run(work, str(whole)) == 0
    rng, kills = random.Random(5), 0
    for at in [1, *(rng.randint(2, 7) for _ in range(4))]:
        kills += killing.run(work, str(out), at) == killing.KILLED
        text = out / "impact/yes-no.jsonl"
        if text.exists() and at % 2:  # what a kill in mid-line leaves
            text.write_bytes(text.read_bytes() + b'{"item": "i0')
    assert kills >= 4
    assert killing.run(work, str(out)) == 0
    assert (out / "impact.json").read_bytes() == (whole / "impact.json").read_bytes()
    for name in ("yes-no", "capability"):
        assert sorted(map(str, lines(out, name))) == sorted(map(str, lines(whole, name)))


@settings(max_examples=60)
@given(data=st.data())
def test_a_ledger_that_lost_its_end_asks_for_what_is_missing(tmp_path_factory: Any, data: st.DataObject):
    items, alphas = ["a", "b", "c"], (0.0, 2.0, 3.0)
    folder = RunFolder(tmp_path_factory.mktemp("ledger"))
    ledger = Ledger(folder, "x", {"seed": 0})
    rows = [{"item": item, "arm": "h", "alpha": alpha, "outcomes": {}} for item in items for alpha in alphas]
    kept = data.draw(st.integers(0, len(rows)))
    ledger.add(rows[:kept])
    ledger = Ledger(folder, "x", {"seed": 0})
    todo = ledger.todo(items, "h", alphas, lambda row: True)
    assert todo == (() if kept == len(rows) else alphas)
    ledger.add(rows)
    assert Ledger(folder, "x", {"seed": 0}).journal.read() == rows
    # Outcomes are added line by line, whichever order they come in.
    judged = [{**row, "outcomes": {f"j{n}": "compliant"}} for n in data.draw(st.permutations([1, 2])) for row in rows]
    ledger.add(judged)
    ledger.add(judged)
    again = Ledger(folder, "x", {"seed": 0})
    assert all(set(row["outcomes"]) == {"j1", "j2"} for row in again.rows.values())
    assert len(again.journal.read()) == 3 * len(rows)


def test_another_study_in_the_folder_is_refused(run: Path):
    ask(run)
    with pytest.raises(RunMismatchError, match="seed: 0 there, 1 now"):
        ask(run, options=QUICK.model_copy(update={"seed": 1}))
    with pytest.raises(RunMismatchError, match="decoding"):
        ask(run, planted.YesNo(decoding=Sampling(0.7)))
    with pytest.raises(RunMismatchError, match="not what was asked before"):
        ask(run, planted.YesNo(word="town"))
    (run / "impact/yes-no.study.json").unlink()
    with pytest.raises(RunMismatchError, match="is there without"):
        ask(run)


# -- arms -------------------------------------------------------------------------------------------------


def test_arms_are_as_many_neurons_and_none_of_the_probes(run: Path):
    card = Card.load(run / "neurons.json")
    neurons = [n.model_dump() for n in card.neurons]
    neurons[0]["weight"] = -1.0
    neurons += [{**neurons[0], "index": index} for index in range(12, 40)]
    card = Card.model_validate({**card.model_dump(), "neurons": neurons})
    rows = 40
    contributions = np.random.default_rng(0).random((rows, len(Region) - 1, card.model.neurons)).astype(np.float32)
    own = int(card.columns[1])
    contributions[:, :, [3, own, 70]] += 2.0
    store = FeatureStore(run / "features", rows, card.model.neurons)
    store.write(range(rows), contributions)
    means = mean_contributions(card, run)
    assert means is not None
    np.testing.assert_allclose(means, contributions[:, store.regions.index(Region.RESPONSE)].mean(axis=0), rtol=1e-2)
    arms = make_arms(card, run, 4, 0)
    assert [arm.kind for arm in arms] == ["h_neurons", *["uniform"] * 4, *["layer_matched"] * 4, "top_contribution"]
    assert {len(arm.neurons) for arm in arms} == {5}
    probe = {neuron.id for neuron in card.neurons}
    for arm in arms[1:9]:
        assert probe.isdisjoint(arm.neurons)
    assert len({arm.neurons for arm in arms}) == len(arms)
    for arm in arms[5:9]:
        layers = sorted(neuron.layer for neuron in arm.neurons)
        assert layers == sorted(neuron.layer for neuron in arms[0].neurons)
    top = arms[-1]
    assert set(card.model.layout.ids([3, 70])) <= set(top.neurons)
    assert top.skipped == 1
    assert card.model.layout.ids([own])[0] not in top.neurons
    assert make_arms(card, run, 2, 0)[:3] == arms[:3]


# -- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alphas", [(-1.0, 1.0), (float("nan"), 1.0), (float("inf"),), (1e9,), (1.0,), ()])
def test_bad_alphas_are_one_line(alphas: tuple[float, ...]):
    with pytest.raises(UsageError, match="alphas"):
        impact_settings(alphas=alphas)


def test_settings():
    assert impact_settings(alphas=(3.0, 0.0, 3.0)).alphas == (0.0, 1.0, 3.0)
    assert impact_settings(limit=None).limit == 200
    with pytest.raises(UsageError, match="random_sets"):
        impact_settings(random_sets=1)
    with pytest.raises(UsageError, match="alfas"):
        impact_settings(alfas=(1.0, 2.0))


@pytest.mark.parametrize("given", [[], ["falseqa", "falseqa"], "no-such", {"falsqa": None}])
def test_bad_benchmarks(given: Any):
    with pytest.raises(UsageError):
        choose(given)


def test_choose():
    assert [each.name for each in choose("falseqa")] == ["falseqa"]
    assert list(choose([("faitheval", "hub"), "falseqa"]).values()) == ["hub", None]
    benchmark = planted.YesNo()
    assert choose(benchmark) == {benchmark: None}
    with pytest.raises(UsageError, match="jailbreak"):
        choose("falseqa", "templates.txt")


def test_a_card_without_h_neurons_or_of_another_model(run: Path, tmp_path: Path):
    with pytest.raises(CardError, match="doesn't fit"):
        impact(run, planted.YesNo(), tiny.study("gpt2"), QUICK)
    empty = planted.write_run(tmp_path / "empty", tiny.study(), [])
    with pytest.raises(CardError, match="no H-Neurons"):
        ask(empty)
    with pytest.raises(HNeuronsError, match="configuration differs"):
        impact(run, planted.YesNo(), _other_config(), QUICK)
    assert not (run / "impact.json").exists()
    with pytest.raises(HNeuronsError, match="no impact study"):
        _ = Run(run).impact


def _other_config() -> Any:
    model = tiny.study()
    model.model.config.rms_norm_eps = 0.5
    return model


def test_items_that_do_not_fit_into_the_context_are_counted(run: Path):
    long = replace(planted.YesNo().load().items[0], id="i999", prompt="very " * 300)

    class Long(planted.YesNo):
        def load(self, *args: Any, **options: Any) -> Any:
            items = super().load(*args, **options)
            return replace(items, items=(*items.items, long))

    found, _ = ask(run, Long())
    assert found["items"]["dropped"] == {"longer than the model's context": 1}
    assert found["n"] == 24


def test_repetition():
    assert repetition([]) == repetition([1, 2, 3]) == repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([1, 2] * 4) == pytest.approx(3 / 5)
    assert repetition([7] * 10) == pytest.approx(6 / 7)


def test_replies_side_by_side_are_those_of_the_journal(run: Path):
    found = impact(run, planted.YesNo(), tiny.study(), QUICK, open_engine=speakers([])).impact["benchmarks"]["yes-no"]
    rows = [json.loads(line) for line in (run / "impact" / "yes-no.jsonl").read_text().splitlines()]
    said = {(row["item"], row["alpha"]): row["replies"][-1] for row in rows if row["arm"] in ("none", "h_neurons")}
    assert [each["chosen"] for each in found["examples"]][:3] == ["first asked"] * 3
    for each in found["examples"]:
        assert 1.0 in [reply["alpha"] for reply in each["replies"]]
        for reply in each["replies"]:
            assert reply["reply"] == said[each["item"], reply["alpha"]]
    changed = [each for each in found["examples"] if each["chosen"] == "outcome changes"]
    assert all(len({reply["outcome"] for reply in each["replies"]}) > 1 for each in changed)
