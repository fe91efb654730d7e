"""The origin study: a run's card on its base model and back, weights, lists of checkpoints, resume, refusals."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import tiny
from hneurons import cli
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.normalise import normalise
from hneurons.answers.text import span_text
from hneurons.errors import CardError, HNeuronsError, PairError, RunError, RunMismatchError, UsageError
from hneurons.models.load import load_model
from hneurons.neurons.card import Card
from hneurons.neurons.features import FeatureStore
from hneurons.questions.sources import QuestionSet
from hneurons.report import page
from hneurons.results import Run
from hneurons.settings import IdentifySettings
from hneurons.studies.backward import unseen
from hneurons.studies.collect import Tools
from hneurons.studies.evaluate import evaluate_run
from hneurons.studies.identify import identify
from hneurons.studies.origin import origin
from hneurons.studies.records import example_from_json
from hneurons.studies.tracing import PARTLY, verdict
from hneurons.types import Question, Response
from test_identify import documented, misfits

SETTINGS = IdentifySettings(
    samples=3,
    folds=3,
    random_sets=3,
    bootstrap=100,
    per_class=40,
    path_points=5,
    chunk=16,
    max_share=0.2,
    refits=2,
    C=5.0,
)
DOCS = Path(__file__).parents[1] / "docs/run-folder.md"


class Scripted(tiny.ScriptedEngine):
    """Answers for any model: all have one tokenizer. Dies on call number `at`, as a killed process would."""

    def __init__(self, at: int = 10**9) -> None:
        super().__init__(tiny.study(), tiny.half_right)
        self.left = at
        self.asked: list[Request] = []

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.asked += requests
        return super().sample(requests, sampling)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def made_from(folder: Path, out: Path, seed: int, size: float = 0.03) -> Path:
    """A tuned copy of a model folder."""
    network = tiny.network("llama")
    generator = torch.Generator().manual_seed(seed)
    for value in network.parameters():
        value.data += size * torch.randn(value.shape, generator=generator)
    shutil.copytree(folder, out)
    network.save_pretrained(out)
    return out


@pytest.fixture(scope="module", autouse=True)
def no_report() -> Iterator[None]:
    """Drawing takes longer than all else here; test_report_origin.py looks at the report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write_report", lambda _: None)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, two models tuned from it, and a run on the second, evaluated on one more data set."""
    home = tmp_path_factory.mktemp("origin")
    base = tiny.save(home / "base")
    made_from(base, home / "half", 1, 0.02)
    tuned = load_model(made_from(base, home / "tuned", 1))
    questions = tiny.write_questions(home / "cities.jsonl", 160)
    run = identify(tuned, questions, home / "run", SETTINGS, engine=Scripted())
    names = tiny.names(400, 5)
    towns = tuple(Question(f"n{i}", f"Which town is number {i}?", (names[i - 1000],)) for i in range(1000, 1060))
    evaluate_run(run, [QuestionSet("towns", towns)], tuned, tools=Tools(Scripted()))
    return home


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    return shutil.copytree(home / "run", tmp_path / "run")


def lose_model(run: Path) -> None:
    """As if the run's model had been moved."""
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | {"location": str(run / "gone")}))


@pytest.fixture(scope="module")
def done(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The study of both checkpoints; tests read it only."""
    run = shutil.copytree(home / "run", tmp_path_factory.mktemp("done") / "run")
    bases = [home / "base", home / "half"]
    return origin(run, bases, model=home / "tuned", tools=Tools(Scripted()))


def answers(done: Run, number: int = 0) -> Path:
    return done.path / done.origin["checkpoints"][number]["answers"]


# -- the numbers --------------------------------------------------------------------------------------


def test_the_file_is_as_documented(done: Run):
    section = DOCS.read_text(encoding="utf-8").split("## origin.json\n")[1]
    example = json.loads(re.search(r"```json\n(.*?)\n```", section, re.S)[1])  # pyright: ignore
    text = json.dumps(example).replace("triviaqa", "cities")
    assert misfits(json.loads(text), done.origin, "origin.json") == []
    json.dumps(done.origin, allow_nan=False)
    assert set(documented()) >= {"run.json"}


def test_the_unchanged_card_is_scored_on_the_base_models_answers(done: Run):
    found = done.origin["checkpoints"][0]["datasets"]
    assert list(found) == ["cities", "towns"]
    for name, data in found.items():
        folder = answers(done) / "on" / name
        examples = lines(folder / "examples.jsonl")
        truth = np.array([row["label"] == "hallucinated" for row in examples])
        assert truth.sum() == (~truth).sum() == data["faithful"] == data["hallucinated"] > 10
        store = FeatureStore(folder / "features", len(examples), 144)
        scores = done.card.score(store.read("answer", np.arange(len(truth))))
        assert data["h_neurons"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)
        assert len(data["random"]["uniform"]["auroc"]) == len(data["random"]["layer_matched"]["auroc"]) == 3
        assert data["run"] == done.evaluation["datasets"][name]["h_neurons"]["auroc"]


def test_features_are_the_base_models_own(done: Run, home: Path):
    from hneurons.neurons.cett import PooledExtractor
    from hneurons.studies.records import passage_of

    model = load_model(home / "base")
    asked = [example_from_json(row) for row in lines(answers(done) / "on/cities/examples.jsonl")]
    store = FeatureStore(answers(done) / "on/cities/features", len(asked), 144)
    plain = replace(model, lead="")
    direct = PooledExtractor(plain)([passage_of(plain, asked[0])])[0][0]
    np.testing.assert_allclose(store.read("answer", [0])[0], direct, rtol=2e-3, atol=1e-4)
    other = load_model(home / "tuned")
    wrong = PooledExtractor(replace(other, lead=""))([passage_of(replace(other, lead=""), asked[0])])[0][0]
    assert not np.allclose(store.read("answer", [0])[0], wrong, rtol=2e-3, atol=1e-4)


def test_the_prompt_is_the_papers(done: Run, home: Path):
    manifest = json.loads((answers(done) / "on/cities/run.json").read_text())
    assert manifest["model"]["lead"] == ""
    assert manifest["model"]["chat_template"] is False
    assert manifest["settings"]["samples"] == 1
    model = load_model(home / "base")
    assert replace(model, lead="").prompt("Who?") == "Who?\nAnswer:"
    assert replace(model, lead="Where?\nAnswer: Here\n\n").prompt("Who?") == "Where?\nAnswer: Here\n\nWho?\nAnswer:"
    assert not replace(model, lead="").has_chat_template
    assert "chat_template" in model.describe()
    assert "lead" not in model.describe()


def test_nothing_that_a_probe_knows_is_scored(done: Run):
    examples = [example_from_json(row) for row in lines(done.path / "examples.jsonl")]
    by_id = {row["id"]: row for row in lines(done.path / "questions.jsonl")}

    def keys(names: list[str]) -> set[Any]:
        return {normalise(by_id[n]["question"]) for n in names} | {normalise(by_id[n]["answers"][0]) for n in names}

    known = [e for e in examples if e.split != "test"]
    tested = [e.question_id for e in examples if e.split == "test"]
    asked = [row["question_id"] for row in lines(answers(done) / "on/cities/responses.jsonl")]
    assert not keys(asked) & keys([e.question_id for e in known])
    assert not {normalise(by_id[n]["answers"][0]) for n in asked} & {
        normalise(span_text(e.response.text, e.answer_chars)) for e in known
    }
    assert set(tested) <= set(asked)
    left_out = done.origin["checkpoints"][0]["datasets"]["cities"]["left_out"]
    assert left_out == len(by_id) - len(lines(answers(done) / "on/cities/questions.jsonl")) >= len(known)
    own = [row["id"] for row in lines(answers(done) / "own/questions.jsonl")]
    assert own
    assert not keys(own) & keys(tested)


def test_unseen_leaves_out_by_text_and_by_answer(done: Run):
    examples = [example_from_json(row) for row in lines(done.path / "examples.jsonl")][:1]
    given = span_text(examples[0].response.text, examples[0].answer_chars)
    name = examples[0].question_id
    source = [Question(name, examples[0].question, ("Accepted",))]
    asked = [
        Question("x1", examples[0].question.upper(), ("Other",)), Question("x2", "New?", (given,)),
        Question("x3", "Newer?", ("accepted",)), Question("x4", "Newest?", ("Third",)), Question("x5", "Nothing?", ()),
        Question("x6", "Shown?", ("Fourth",)),
    ]  # fmt: skip
    kept = unseen(asked, examples, source, [Question("s", "shown?", ("Z",))])
    assert [question.id for question in kept] == ["x4", "x5"]


def test_the_upper_bound_is_the_checkpoints_own_card_on_what_neither_knows(done: Run):
    entry = done.origin["checkpoints"][0]
    card = Card.load(answers(done) / "own/neurons.json")
    assert entry["own_card"]["h_neurons"] == len(card.h_neurons)
    own = [row for row in lines(answers(done) / "own/examples.jsonl") if row["split"] != "test"]
    known = {row["question_id"] for row in own}
    examples = lines(answers(done) / "on/cities/examples.jsonl")
    found = entry["datasets"]["cities"]["own"]
    store = FeatureStore(answers(done) / "on/cities/features", len(examples), 144)
    rows = [i for i, row in enumerate(examples) if row["question_id"] not in known]
    assert found["auroc"]["n"] <= len(rows) < len(examples)
    if found["auroc"]["n"] == len(rows):
        truth = np.array([examples[i]["label"] == "hallucinated" for i in rows])
        features = store.read("answer", np.array(rows))
        values = [roc_auc_score(truth, each.score(features)) for each in (card, done.card)]
        assert found["auroc"]["value"] == pytest.approx(values[0], abs=1e-6)
        assert found["transferred"]["value"] == pytest.approx(values[1], abs=1e-6)
        assert found["difference"]["value"] == pytest.approx(values[1] - values[0], abs=1e-6)
    # And the other way: the checkpoint's card on the run's own test answers.
    examples = lines(done.path / "examples.jsonl")
    rows = [i for i, row in enumerate(examples) if row["split"] == "test"]
    truth = np.array([examples[i]["label"] == "hallucinated" for i in rows])
    features = FeatureStore(done.path / "features", len(examples), 144).read("answer", np.array(rows))
    back = entry["own_card"]["on_run"]["cities"]
    assert back["n"] == len(rows)
    assert back["h_neurons"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, card.score(features)), abs=1e-6)


def test_the_list_has_drift_along_it_and_the_overlap_of_the_sets(done: Run):
    first, second = done.origin["checkpoints"]
    assert [first["name"], second["name"]] == ["base", "half"]
    assert [first["drift"]["to"], second["drift"]["to"]] == ["tuned", "tuned"]
    assert [first["drift_to_next"]["to"], second["drift_to_next"]["to"]] == ["half", "tuned"]
    assert first["drift"]["parts"]["up"]["median"] > first["drift_to_next"]["parts"]["up"]["median"] > 0
    found = done.origin["overlap"]
    assert found["names"] == ["tuned", "base", "half"]
    sets = [{n.id for n in card.h_neurons} for card in
            (done.card, *(Card.load(answers(done, i) / "own/neurons.json") for i in range(2)))]  # fmt: skip
    assert found["counts"] == [len(each) for each in sets]
    assert [pair["shared"] for pair in found["pairs"]] == [len(sets[a] & sets[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    ranks = first["drift"]["ranks"]
    assert len(ranks) == len(sets[0]) == first["drift"]["count"]
    assert np.mean([row["rank"] for row in ranks]) == pytest.approx(first["drift"]["mean"]["value"], abs=1e-5)


def test_planted_drift_of_the_h_neurons_shows_in_their_mean_rank(home: Path, run: Path, tmp_path: Path):
    """The base differs from the run's model in its H-Neurons alone, then in all others alone."""
    from safetensors.torch import load_file, save_file

    card = Card.load(run / "neurons.json")
    mine = {(n.layer, n.index) for n in card.h_neurons}
    assert 5 <= len(mine) < 70
    for name, moved in (("own", True), ("others", False)):
        folder = shutil.copytree(home / "tuned", tmp_path / name)
        weights = load_file(folder / "model.safetensors")
        for layer in range(3):
            for index in range(48):
                if ((layer, index) in mine) is moved:
                    up = weights[f"model.layers.{layer}.mlp.up_proj.weight"]
                    up[index] += 0.2 * torch.randn(32, generator=torch.Generator().manual_seed(layer * 48 + index))
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        drift = origin(run, folder, model=home / "tuned", answers=False).origin["checkpoints"][0]["drift"]
        ranks = [row["rank"] for row in drift["ranks"]]
        if moved:
            assert max(ranks) < len(mine) / 144
            assert drift["finding"] != "changed less"
        else:
            assert min(ranks) > 1 - len(mine) / 144
            assert drift["permutation"]["p"] < 0.001


def test_weights_only_asks_nothing(home: Path, run: Path):
    done = origin(run, str(home / "base"), model=home / "tuned", answers=False, tools=Tools(Scripted(at=0)))
    entry = done.origin["checkpoints"][0]
    assert entry["datasets"] == {}
    assert entry["drift"]["neurons"] == 144
    assert "not asked" in entry["verdict"]["sentence"]


def test_the_same_weights_are_reported(home: Path, run: Path):
    done = origin(run, home / "tuned", model=home / "tuned", answers=False)
    drift = done.origin["checkpoints"][0]["drift"]
    assert drift["same_weights"]
    assert drift["finding"] == "the same weights"
    assert drift["mean"]["value"] == 0.5
    assert "same feed-forward weights" in done.origin["checkpoints"][0]["verdict"]["sentence"]


# -- few-shot, chat, own ------------------------------------------------------------------------------


def test_few_shot_examples_stand_before_each_question_and_are_asked_nowhere(home: Path, run: Path):
    options: dict[str, Any] = {"model": home / "tuned", "own": False, "limit": 60}
    done = origin(run, home / "base", few_shot=3, tools=Tools(Scripted()), **options)
    shown = done.origin["settings"]["few_shot"]
    assert len(shown) == 3
    manifest = json.loads((answers(done) / "on/cities/run.json").read_text())
    assert manifest["model"]["lead"].count("\nAnswer: ") == 3
    assert all(question in manifest["model"]["lead"] for question in shown)
    assert not set(shown) & {row["question"] for row in lines(answers(done) / "on/cities/questions.jsonl")}
    assert done.origin["checkpoints"][0]["own_card"] is None
    assert len(lines(answers(done) / "on/cities/questions.jsonl")) <= 60
    before = answers(done)
    again = origin(run, home / "base", few_shot=2, tools=Tools(Scripted()), **options)
    assert answers(again) != before, "other prompts have a folder of their own"
    file = home / "shown.jsonl"
    file.write_text('{"question": "Which is it?", "answers": ["This"]}\n')
    with_file = origin(run, home / "base", few_shot=file, tools=Tools(Scripted()), **options)
    assert with_file.origin["settings"]["few_shot"] == ["Which is it?"]
    with pytest.raises(UsageError, match="training questions"):
        origin(run, home / "base", few_shot=1000, **options)
    with pytest.raises(UsageError, match="--chat"):
        origin(run, home / "base", few_shot=1, chat=True, **options)


def test_chat_asks_through_the_template(home: Path, run: Path):
    done = origin(run, home / "base", model=home / "tuned", chat=True, own=False, tools=Tools(Scripted()))
    manifest = json.loads((answers(done) / "on/cities/run.json").read_text())
    assert manifest["model"]["chat_template"] is True
    assert done.origin["settings"]["prompt"] == "chat template"


def test_too_few_answers_for_a_card_of_its_own_are_said(home: Path, run: Path):
    class Wrong(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.answer = lambda question, sample: "The city is Nowhere."

    done = origin(run, home / "base", model=home / "tuned", tools=Tools(Wrong()))
    entry = done.origin["checkpoints"][0]
    assert "faithful" in entry["own_card"]["problem"]
    assert "faithful" in entry["datasets"]["cities"]["problem"]
    assert done.origin["overlap"] is None
    assert entry["verdict"]["checks"][0]["passed"] is None


# -- resume -------------------------------------------------------------------------------------------


def test_killed_anywhere_it_goes_on_and_ends_the_same(home: Path, run: Path, tmp_path: Path):
    whole = shutil.copytree(run, tmp_path / "whole")
    counting = Scripted()
    options: dict[str, Any] = {"model": home / "tuned"}
    origin(whole, home / "base", tools=Tools(counting), **options)
    asked = 0
    for at in (1, 3, 4):
        engine = Scripted(at=at)
        with pytest.raises(KeyboardInterrupt):
            origin(run, home / "base", tools=Tools(engine), **options)
        asked += len(engine.asked)
    engine = Scripted()
    origin(run, home / "base", tools=Tools(engine), **options)
    assert asked > 0
    assert (run / "origin.json").read_bytes() == (whole / "origin.json").read_bytes()
    again = Scripted(at=0)
    origin(run, home / "base", tools=Tools(again), **options)
    assert (run / "origin.json").read_bytes() == (whole / "origin.json").read_bytes()
    with pytest.raises(RunMismatchError):
        origin(run, home / "base", tools=Tools(Scripted()), limit=20, **options)


# -- what is refused ----------------------------------------------------------------------------------


def refused(kind: type[HNeuronsError], work: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_refused_before_anything_is_asked(home: Path, run: Path, tmp_path: Path):
    other = tiny.save(tmp_path / "qwen", "qwen2")
    told = refused(PairError, lambda: origin(run, [home / "base", other], model=home / "tuned"))
    assert "architecture" in told
    assert not (run / "origin").exists()
    lose_model(run)
    assert "model" in refused(UsageError, lambda: origin(run, home / "base"))
    assert "twice" in refused(UsageError, lambda: origin(run, [home / "base"] * 2, model=home / "tuned"))
    refused(UsageError, lambda: origin(run, [], model=home / "tuned"))
    refused(CardError, lambda: origin(run, other, model=other))
    assert "no origin study" in refused(RunError, lambda: Run(run).origin)
    (run / "evaluation.json").unlink()
    refused(RunError, lambda: origin(run, home / "base", model=home / "tuned"))


@pytest.fixture
def hneurons(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command in this process: (status, stdout, stderr)."""

    def command(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["hneurons", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, *capfd.readouterr()

    return command


def test_the_command(home: Path, run: Path, hneurons: Callable[..., Any]):
    given = ["origin", run, "--base", home / "base", "--base", home / "half", "--weights-only"]
    status, out, _ = hneurons(*given, "--model", home / "tuned", "--json")
    assert status == 0
    assert [entry["name"] for entry in json.loads(out)["checkpoints"]] == ["base", "half"]
    status, out, _ = hneurons(*given, "--model", home / "tuned")
    assert "base: " in out
    assert f"Report:  {(run / 'report.html').resolve()}" in out
    assert hneurons(*given)[0] == 0  # the run knows where its model is
    lose_model(run)
    status, _, err = hneurons(*given)
    assert status == 2
    assert "--model" in err.splitlines()[-1]
    status, _, err = hneurons("origin", run, "--base", run / "nowhere", "--model", home / "tuned")
    assert status == 1
    assert "nowhere" in err.splitlines()[-1]
    assert "Traceback" not in err


# -- the verdict --------------------------------------------------------------------------------------


def interval(value: float, half: float) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": 200}


def entry(auroc: float, gain: float, finding: str, n: int = 100) -> dict[str, Any]:
    random = {kind: {"difference": interval(gain, 0.05)} for kind in ("uniform", "layer_matched")}
    data = {"faithful": n, "hallucinated": n, "h_neurons": {"auroc": interval(auroc, 0.05)}, "random": random}
    return {"datasets": {"own": data}, "drift": {"finding": finding, "sentence": "Weights."}}


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (entry(0.7, 0.1, "changed less"), "supported"),
        (entry(0.7, 0.1, "not seen to change less"), PARTLY),
        (entry(0.52, 0.1, "changed less"), PARTLY),
        (entry(0.7, 0.01, "not seen to change less"), "not supported"),
        (entry(0.52, 0.0, "not seen to change less", 40), "too little data"),
        (entry(0.7, 0.1, "not seen to change less", 15), "too little data"),
        (entry(0.7, 0.1, "too few H-Neurons", 15), "too little data"),
        (entry(0.7, 0.1, "too few H-Neurons"), PARTLY),
        (entry(0.5, 0.0, "the same weights"), "too little data"),
    ],
)
def test_the_rule_of_the_verdict(made: dict[str, Any], word: str):
    found = verdict(made, "own")
    assert found["verdict"] == word
    assert found["sentence"].startswith(word.capitalize())
    assert len(found["checks"]) == 3
