"""A finished run's card on other data sets: one sample a question, the run's own questions left out, resumable."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import hneurons
import tiny
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.judge import AliasJudge, FixedJudge, SubstringJudge
from hneurons.errors import CardError, RunError, TooFewExamplesError, UsageError
from hneurons.neurons.features import FeatureStore
from hneurons.progress import NoProgress
from hneurons.questions.sources import QuestionSet
from hneurons.results import Run
from hneurons.settings import IdentifySettings
from hneurons.studies.collect import Tools
from hneurons.studies.evaluate import PROTOCOL, evaluate_run, loading_recorded
from hneurons.studies.identify import identify
from hneurons.types import Question, Response, Verdict

pytestmark = pytest.mark.usefixtures("no_figures")
SETTINGS = IdentifySettings(
    samples=3, folds=3, random_sets=3, bootstrap=100, per_class=40, path_points=5, chunk=16, max_share=0.2, refits=4
)
NAMES = tiny.names(400, 5)


def asked(count: int, start: int = 1000, name: str = "towns") -> QuestionSet:
    """Questions that no run has seen; `tiny.half_right` answers about half of them right."""
    made = [Question(f"n{i}", f"What is the name of city number {i}?", (NAMES[i - start],)) for i in
            range(start, start + count)]  # fmt: skip
    return QuestionSet(name, tuple(made))


def answer(question: Question, sample: int) -> str:
    assert sample == 0, "one sample a question"
    return tiny.half_right(question, sample)


def tools(model: Any, script: Any = answer, **others: Any) -> Tools:
    return Tools(tiny.ScriptedEngine(model, script), **others)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.made_run(tmp_path_factory.mktemp("run"), SETTINGS).path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_numbers_are_those_of_the_card_on_the_new_answers(run: Path):
    model = tiny.study()
    before = json.loads((run / "evaluation.json").read_text())
    done = evaluate_run(run, [asked(80)], model, tools=tools(model))
    found = done.evaluation["datasets"]["towns"]
    examples = lines(run / "on/towns/examples.jsonl")
    hallucinated = np.array([row["label"] == "hallucinated" for row in examples])
    assert hallucinated.sum() == (~hallucinated).sum() == found["hallucinated"] == found["faithful"] > 20
    assert {row["split"] for row in examples} == {"test"}
    store = FeatureStore(run / "on/towns/features", len(examples), model.neurons)
    scores = done.card.score(store.read("answer", np.arange(len(examples))))
    assert found["h_neurons"]["auroc"]["value"] == pytest.approx(roc_auc_score(hallucinated, scores), abs=1e-6)
    right = (done.card.risk(scores) >= 0.5) == hallucinated
    assert found["h_neurons"]["accuracy"]["value"] == pytest.approx(right.mean(), abs=1e-6)
    assert len(found["random"]["uniform"]["auroc"]) == len(found["random"]["layer_matched"]["auroc"]) == 3
    assert found["protocol"] == PROTOCOL
    assert found["answers"]["correct"] == sum(tiny.right(q) for q in asked(80).questions)
    assert sum(found["answers"].values()) == 80
    # What the run had found of itself stays as it was.
    assert done.evaluation["datasets"]["cities"] == before["datasets"]["cities"]
    assert done.evaluation["verdict"] == before["verdict"]
    assert [part["name"] for part in done.evaluation["transfer_between_sets"]["parts"]] == ["cities", "towns"]
    assert "towns" in done.table()
    assert "towns" in (run / "report.html").read_text()


def test_questions_of_the_run_are_left_out(run: Path, made: Path):
    model = tiny.study()
    own = [Question(**row) for row in lines(made / "questions.jsonl")]
    shouted = [replace(q, id=f"n{2000 + i}", question=q.question.upper()) for i, q in enumerate(own)]
    mixed = QuestionSet("towns", (*shouted, *asked(60).questions))
    done = evaluate_run(run, [mixed], model, tools=tools(model))
    assert done.evaluation["datasets"]["towns"]["already_asked"] == 90
    assert {row["question_id"] for row in lines(run / "on/towns/responses.jsonl")} <= {
        f"n{i}" for i in range(1000, 1060)
    }
    with pytest.raises(UsageError, match="already asked every question of cities") as caught:
        evaluate_run(run, [QuestionSet("cities", tuple(own))], model, tools=tools(model))
    assert "--limit" in caught.value.remedy


class Noting(NoProgress):
    """Notes down what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_domains_outside_of_the_calibration_are_warned_of(run: Path):
    model, noting = tiny.study(), Noting()
    # These questions have no domain; those of the run are "made up".
    done = evaluate_run(run, [asked(60)], model, tools=tools(model), progress=noting)
    found = done.evaluation["datasets"]["towns"]
    assert found["outside_domains"] == {"": found["n"]}
    (said,) = noting.said
    assert said.startswith("towns: The card was not calibrated on: (no domain). Risks there may be off")
    assert "The card was not calibrated on 1 domain of" in (run / "report.html").read_text()
    alike = [replace(question, domain="made up") for question in asked(60, 1100).questions]
    evaluate_run(run, [QuestionSet("villages", tuple(alike))], model, tools=tools(model), progress=noting)
    assert noting.said == [said]


def test_the_run_s_own_data_set_gets_a_name_of_its_own(run: Path):
    model = tiny.study()
    done = evaluate_run(run, [asked(60, name="cities")], model, tools=tools(model))
    assert list(done.evaluation["datasets"]) == ["cities", "cities (single samples)"]


def test_a_refusal_is_faithful_where_nothing_exists(run: Path):
    model = tiny.study()
    invented = [Question(f"n{i}", f"Who wrote the novel {name}?", ()) for i, name in enumerate(NAMES[:60], 3000)]

    def reply(question: Question, sample: int) -> str:
        return "I don't know." if int(question.id[1:]) % 2 else "It was written by Miguel Sanchez."

    done = evaluate_run(run, [QuestionSet("nonexist", tuple(invented))], model, tools=tools(model, reply))
    found = done.evaluation["datasets"]["nonexist"]
    assert (found["faithful"], found["hallucinated"]) == (30, 30)
    assert found["answers"] == {"correct": 0, "wrong": 30, "abstained": 30, "unparsable": 0}
    labels = {row["label"]: row["response"]["text"] for row in lines(run / "on/nonexist/examples.jsonl")}
    assert labels == {"faithful": "I don't know.", "hallucinated": "It was written by Miguel Sanchez."}


def test_limit_and_per_class(run: Path):
    model = tiny.study()
    done = evaluate_run(run, [asked(300)], model, tools=tools(model), limit=100)
    assert sum(done.evaluation["datasets"]["towns"]["answers"].values()) == 100
    done = evaluate_run(run, [asked(300, name="more")], model, tools=tools(model), per_class=12)
    found = done.evaluation["datasets"]["more"]
    assert found["faithful"] == found["hallucinated"] == 12
    assert sum(found["answers"].values()) < 300


def test_one_class_missing_is_said_and_the_rest_is_done(run: Path):
    model = tiny.study()
    never = Tools(tiny.ScriptedEngine(model, answer), FixedJudge(Verdict.WRONG, "alias"))
    with pytest.raises(TooFewExamplesError, match="hard: only 0 faithful and 60 hallucinated"):
        evaluate_run(run, [asked(60, name="hard"), asked(60, 1100, "towns")], model, tools=never)
    assert len(lines(run / "on/hard/responses.jsonl")) == 60
    assert "transfer_between_sets" not in Run(run).evaluation, "there is one set only"

    class Hard(AliasJudge):
        def judge(self, question: Question, text: str) -> Verdict:
            return Verdict.WRONG if int(question.id[1:]) < 1100 else super().judge(question, text)

    sets = [asked(60, name="hard2"), asked(60, 1100, "towns2")]
    with pytest.raises(TooFewExamplesError, match="hard2"):
        evaluate_run(run, sets, model, tools=tools(model, judge=Hard()))
    assert list(Run(run).evaluation["datasets"]) == ["cities", "towns2"]


class Failing(tiny.ScriptedEngine):
    """Dies on the given call, as a killed process would, after what came before was written."""

    def __init__(self, *args: Any, at: int) -> None:
        super().__init__(*args)
        self.left = at

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().sample(requests, sampling)


def test_interrupted_it_goes_on_and_ends_the_same(run: Path, tmp_path: Path):
    model, whole = tiny.study(), shutil.copytree(run, tmp_path / "whole")
    sets = [asked(80), asked(60, 1100, "villages")]
    evaluate_run(whole, sets, model, tools=tools(model))
    total = 0
    for at in (0, 2, 3):
        engine = Failing(model, answer, at=at)
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(run, sets, model, tools=Tools(engine))
        total += engine.requests
    engine = tiny.ScriptedEngine(model, answer)
    evaluate_run(run, sets, model, tools=Tools(engine))
    assert total > 0
    assert total + engine.requests == 140, "nothing is asked twice"
    assert (run / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()
    for name in ("responses.jsonl", "examples.jsonl", "features/answer.npy"):
        assert (run / "on/villages" / name).read_bytes() == (whole / "on/villages" / name).read_bytes()
    again = tiny.ScriptedEngine(model, answer)
    evaluate_run(run, sets, model, tools=Tools(again))
    assert again.requests == 0


def test_another_model_is_refused(run: Path):
    other = tiny.study("qwen2")
    with pytest.raises(CardError, match="doesn't fit"):
        evaluate_run(run, [asked(40)], other, tools=tools(other))
    longer = tiny.study()
    longer.model.config.rope_theta = 5.0
    longer.model.config.max_position_embeddings = 77
    with pytest.raises(RunError, match="configuration differs"):
        evaluate_run(run, [asked(40)], longer, tools=tools(longer))
    with pytest.raises(UsageError, match="given as an object"):
        evaluate_run(run, [asked(40)])


@pytest.mark.parametrize("sets", [[], ["starter", "starter"]])
def test_data_sets_are_given_once(run: Path, sets: list[str]):
    with pytest.raises(UsageError, match="once"):
        evaluate_run(run, sets, tiny.study())


def test_an_unfinished_run_is_refused(run: Path):
    (run / "evaluation.json").unlink()
    with pytest.raises(RunError, match=r"evaluation\.json is missing"):
        evaluate_run(run, [asked(40)], tiny.study())


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("It was Bartholomew.", Verdict.CORRECT),  # "art" is in it: the fault that the alias judge doesn't have
        ("Not art.", Verdict.CORRECT),
        ("It was music.", Verdict.WRONG),
        ("I don't know.", Verdict.ABSTAINED),
        (" ", Verdict.UNPARSABLE),
    ],
)
def test_the_reference_judge(text: str, verdict: Verdict):
    question = Question("q", "What did she study?", ("Art",))
    assert SubstringJudge().judge(question, text) is verdict


def test_the_judge_of_the_run_is_used_again(run: Path):
    manifest = json.loads((run / "run.json").read_text())
    manifest["settings"]["judge"] = "somebody"
    (run / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="judged by 'somebody'"):
        evaluate_run(run, [asked(40)], tiny.study())


def test_a_model_in_a_folder_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tiny.save(tmp_path / "models" / "mine")
    model = hneurons.load_model(home, device="cpu", ffn="model.layers.*.mlp.down_proj")
    questions = tiny.write_questions(tmp_path / "cities.jsonl", 90)
    settings = SETTINGS.model_copy(update={"per_class": 30})
    identify(model, questions, tmp_path / "run", settings, engine=tiny.ScriptedEngine(model, tiny.half_right))
    assert loading_recorded(Run(tmp_path / "run").manifest)[1]["ffn"] == "model.layers.*.mlp.down_proj"
    monkeypatch.chdir(tmp_path / "run")  # the folder's name alone leads nowhere from here
    evaluate_run(tmp_path / "run", [asked(60)], tools=tools(model))
    moved = home.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="--model"):
        evaluate_run(tmp_path / "run", [asked(60, 1200, "more")], tools=tools(model))
    done = evaluate_run(tmp_path / "run", [asked(60, 1200, "more")], str(moved), tools=tools(model))
    assert {"towns", "more"} <= set(done.evaluation["datasets"])
    # A run goes on with its model in another place.
    again = hneurons.load_model(moved, device="cpu")
    object.__setattr__(again, "name", model.name)
    identify(again, questions, tmp_path / "run", settings, engine=tiny.ScriptedEngine(model, tiny.half_right))
    assert Run(tmp_path / "run").manifest["location"] == str(moved)
