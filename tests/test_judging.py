"""Runs that a language model judges: estimate, agreement, resume, errors, and no key anywhere."""

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from hneurons.answers.judge import AliasJudge
from hneurons.cli.common import judging_again
from hneurons.errors import HNeuronsError, UsageError
from hneurons.questions.sources import QuestionSet, load_questions
from hneurons.results import Run
from hneurons.settings import IdentifySettings
from hneurons.studies.collect import Tools
from hneurons.studies.evaluate import evaluate_run, recorded_judging
from hneurons.studies.identify import identify
from hneurons.studies.judging import Judging, open_tools
from hneurons.types import Question, Verdict
from llm_server import Fail, LLMServer, Say

pytest.importorskip("openai")
pytestmark = pytest.mark.usefixtures("no_figures")
KEY = "sk-very-secret-5512"
SETTINGS = IdentifySettings(
    samples=2, folds=3, random_sets=2, bootstrap=100, per_class=40, path_points=4, chunk=16, max_share=0.2, refits=2
)


def reply(request: dict[str, Any], number: int) -> Say:
    """A judge that thinks as the alias judge does, and a span finder that quotes the last word."""
    said = request["messages"][0]["content"]
    data, _ = json.JSONDecoder().raw_decode(said[said.rindex('{"question"') :])
    text = data["response"]
    if "accepted_answers" not in data and "quote" in said.lower():
        return Say(json.dumps({"answer": text.split()[-1].strip(".")}))
    question = Question("q", data["question"], tuple(data.get("accepted_answers", ())))
    return Say(json.dumps({"verdict": str(AliasJudge().judge(question, text))}))


@pytest.fixture
def server():
    with LLMServer(reply) as running:
        yield running


@pytest.fixture
def questions(tmp_path: Path) -> QuestionSet:
    return load_questions(tiny.write_questions(tmp_path / "cities.jsonl", 90))


def judged(questions: QuestionSet, out: Path, url: str, said: list[str], spans: str = "llm", **endpoint: Any) -> Run:
    model = tiny.study()
    chosen = Judging("llm", spans, {"model": "j-1", "base_url": url, "retries": 1, **endpoint})
    engine = tiny.ScriptedEngine(model, tiny.half_right)
    with open_tools(chosen, out / "judge-cache", questions.questions, SETTINGS.samples, said.append, engine) as tools:
        return identify(
            model, questions, out, SETTINGS, engine=tools.engine, judge=tools.judge, finder=tools.finder
        )  # fmt: skip


def test_a_run_judged_by_a_model(
    server: LLMServer, questions: QuestionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    said: list[str] = []
    prices = {"prompt_price": 2.0, "completion_price": 8.0}
    run = judged(questions, tmp_path / "out", server.url, said, **prices)
    assert said[0].startswith("Judging every response would take: 180 requests")
    assert "cost" in said[0]
    assert run.manifest["settings"]["judge"] == run.manifest["settings"]["span_finder"] == "llm:j-1"
    agreement = json.loads((tmp_path / "out/agreement.json").read_text())
    assert agreement["judges"]["kappa"]["value"] == 1.0
    assert not agreement["judges"]["degenerate"]
    assert agreement["spans"]["exact"]["value"] == 1.0
    asked = len(server.requests)
    # Both samples of a question say the same, so each question is judged once and marked once.
    assert asked <= 3 + 90 + 90
    assert {h.get("Authorization", h.get("authorization")) for h in server.headers} == {f"Bearer {KEY}"}
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    # Another run of the same responses asks nothing again.
    (tmp_path / "again").mkdir()
    (tmp_path / "out/judge-cache").rename(tmp_path / "again/judge-cache")
    again = judged(questions, tmp_path / "again", server.url, said)
    assert len(server.requests) == asked
    assert again.verdict == run.verdict
    assert (run.path / "neurons.json").read_bytes() == (again.path / "neurons.json").read_bytes()


def test_an_endpoint_that_fails_in_the_middle_loses_nothing(
    server: LLMServer, questions: QuestionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.script = lambda request, number: reply(request, number) if number < 40 else Fail(500, f"broke {KEY}")
    said: list[str] = []
    with pytest.raises(HNeuronsError) as caught:
        judged(questions, tmp_path / "out", server.url, said, concurrency=1)
    assert KEY not in str(caught.value) + "".join(said)
    assert "\n" not in str(caught.value)
    kept = (tmp_path / "out/judge-cache/replies.jsonl").read_text().splitlines()
    assert len(kept) == 40
    server.script = reply
    before = len(server.requests)
    run = judged(questions, tmp_path / "out", server.url, said)
    assert run.evaluation["datasets"]
    fresh = [json.dumps(request["messages"]) for request in server.requests[before:]]
    earlier = [json.dumps(request["messages"]) for request in server.requests[:40]]
    assert set(fresh).isdisjoint(earlier)


def test_a_judge_that_always_says_the_same(server: LLMServer, questions: QuestionSet, tmp_path: Path):
    server.script = Say('{"verdict": "correct"}')
    with pytest.raises(HNeuronsError, match="0 hallucinated"):
        judged(questions, tmp_path / "out", server.url, [], spans="rule")
    assert (tmp_path / "out/responses.jsonl").exists()


def usual(**given: str | None) -> dict[str, Any]:
    return {"max_calls": None, "prompt_price": None, "completion_price": None, **given}


def test_evaluate_asks_the_same_model_again(server: LLMServer, questions: QuestionSet, tmp_path: Path):
    run = judged(questions, tmp_path / "out", server.url, [], spans="rule")
    where = {"base_url": server.url, "key_env": "OPENAI_API_KEY"}
    assert recorded_judging(run.manifest) == Judging("llm", "rule", {"model": "j-1", **where})
    assert judging_again(run.manifest, None, None, None, None, None).endpoint == usual(model="j-1", **where)
    # A key goes where it went before, and nowhere else unless that is said.
    other = judging_again(run.manifest, None, None, None, "http://elsewhere/v1", None)
    assert other.endpoint == usual(model="j-1", base_url="http://elsewhere/v1", key_env=None)
    with pytest.raises(UsageError, match="asked a language model"):
        evaluate_run(run, [questions], tiny.study())
    model = tiny.study()
    towns = [Question(f"n{i}", f"Which town is number {i}?", (name,)) for i, name in enumerate(tiny.names(60, 9), 500)]
    chosen = Judging("llm", "rule", {"model": "j-1", "base_url": server.url})
    engine = tiny.ScriptedEngine(model, tiny.half_right)
    with open_tools(chosen, run.path / "judge-cache", towns, 1, lambda _: None, engine) as tools:
        done = evaluate_run(run, [QuestionSet("towns", tuple(towns))], model, tools=tools)
    assert done.evaluation["datasets"]["towns"]["answers"]["correct"] == sum(map(tiny.right, towns))
    agreement = json.loads((run.path / "on/towns/agreement.json").read_text())
    assert agreement["judges"]["judges"] == ["alias", "llm:j-1"]
    assert agreement["spans"] is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gpt", "rule"), "There is no judge 'gpt'"),
        (("alias", "mine"), "There is no span finder 'mine'"),
        (("llm", "rule"), "needs the name of its model"),
        (("alias", "llm"), "needs the name of its model"),
    ],
)
def test_wrong_choices(arguments: tuple[str, str], says: str):
    with pytest.raises(UsageError, match=says):
        Judging(*arguments)


def test_rules_need_no_endpoint(tmp_path: Path):
    with open_tools(Judging("substring"), tmp_path / "cache", [], 1, pytest.fail) as tools:
        assert isinstance(tools, Tools)
        assert (tools.judge.name, tools.finder.name) == ("substring", "rule")
        assert tools.judge.judge(Question("q", "Who?", ("Art",)), "Bartholomew") is Verdict.CORRECT
    assert not (tmp_path / "cache").exists()
