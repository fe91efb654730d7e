"""Runs whose responses another engine samples: what is recorded, when weights are loaded, what is left out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.judge import AliasJudge
from hneurons.errors import RunMismatchError, UsageError
from hneurons.models.load import load_model
from hneurons.models.outline import Outline, load_outline
from hneurons.neurons.cett import PooledExtractor
from hneurons.results import Run
from hneurons.settings import IdentifySettings
from hneurons.studies import engines as chosen
from hneurons.studies.collect import WITHOUT_WEIGHTS, Tools
from hneurons.studies.engines import Engines, engine_args, open_engine, recorded_engines
from hneurons.studies.evaluate import evaluate_run
from hneurons.studies.identify import identify
from hneurons.types import Response

pytestmark = pytest.mark.usefixtures("no_figures")
SETTINGS = IdentifySettings(
    samples=2, folds=2, random_sets=2, bootstrap=100, per_class=40, C=1.0, chunk=16, max_share=0.2, refits=2,
    batch_tokens=600,
)  # fmt: skip


class Elsewhere(tiny.ScriptedEngine):
    """Half right, as an engine outside of transformers; keeps what happens in `log`."""

    def __init__(self, model: Any, log: list[str], name: str = "vllm") -> None:
        super().__init__(model, tiny.half_right)
        self.name, self.log = name, log
        self.setup: dict[str, Any] = {"args": {"tensor_parallel_size": 2}}
        self.notes = ["Sampled elsewhere."]

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        self.log.append("sample")
        return super().sample(requests, sampling)

    def close(self) -> None:
        self.log.append("close")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def log() -> list[str]:
    return []


def outline_of(folder: Path, log: list[str], *, loads: bool = True) -> Outline:
    return load_outline(folder, device="cpu", loads=loads, say=log.append)


def study(tmp_path: Path, model: Any, engine: Any, settings: IdentifySettings = SETTINGS, **more: Any) -> Run:
    questions = tmp_path / "cities.jsonl"
    if not questions.exists():
        tiny.write_questions(questions, 90)
    return identify(model, questions, tmp_path / "out", settings, tools=Tools(engine, **more))


def test_the_weights_are_loaded_when_the_engine_has_made_room(folder: Path, log: list[str], tmp_path: Path):
    outline = outline_of(folder, log)
    run = study(tmp_path, outline, Elsewhere(outline, log))
    loading = log.index("Loading tiny-llama into transformers")
    assert log[loading - 1] == "close"
    assert "sample" in log[:loading]
    assert "sample" not in log[loading:]
    assert log.count("Loading tiny-llama into transformers") == 1
    assert run.manifest["settings"]["engine"] == "vllm"
    assert run.manifest["engine"] == {"args": {"tensor_parallel_size": 2}}
    assert run.manifest["notes"].count("Sampled elsewhere.") == 1
    assert WITHOUT_WEIGHTS not in run.manifest["notes"]
    assert run.evaluation["showcase"]


def test_the_run_is_that_of_a_loaded_model(folder: Path, log: list[str], tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    outline, whole = outline_of(folder, log), load_model(folder, device="cpu")
    one = study(tmp_path / "a", outline, Elsewhere(outline, log))
    other = study(tmp_path / "b", whole, Elsewhere(whole, log))
    for name in ("responses.jsonl", "examples.jsonl", "neurons.json", "evaluation.json"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name
    assert {path.name for path in one.path.iterdir()} == {path.name for path in other.path.iterdir()}
    assert one.manifest["model"] == other.manifest["model"]


def test_without_weights_only_what_needs_them_is_left_out(folder: Path, log: list[str], tmp_path: Path):
    outline, whole = outline_of(folder, log, loads=False), load_model(folder, device="cpu")
    run = study(
        tmp_path, outline, Elsewhere(outline, log), extractor=lambda regions: PooledExtractor(whole, regions)
    )  # fmt: skip
    assert WITHOUT_WEIGHTS in run.manifest["notes"]
    assert {stage["state"] for stage in run.manifest["stages"].values()} == {"done"}
    assert not (run.path / "readout").exists()
    assert run.evaluation["showcase"] == []
    assert "cells" in run.evaluation["verbosity"]  # measured by the extractor that was given
    assert np.load(run.path / "features/answer.npy", mmap_mode="r").shape[1] == outline.neurons
    assert run.report.is_file()
    assert not [line for line in log if "into transformers" in line]


def test_the_joint_rule_without_weights_is_refused_before_anything_is_asked(
    folder: Path, log: list[str], tmp_path: Path
):
    outline = outline_of(folder, log, loads=False)
    joint = SETTINGS.model_copy(update={"choose": "joint", "C": None})
    with pytest.raises(UsageError, match="joint rule"):
        study(tmp_path, outline, Elsewhere(outline, log), joint)
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_continued_by_another_engine(folder: Path, log: list[str], tmp_path: Path):
    outline = outline_of(folder, log)
    study(tmp_path, outline, Elsewhere(outline, log))
    with pytest.raises(RunMismatchError, match="engine: 'vllm' there, 'openai' now"):
        study(tmp_path, outline, Elsewhere(outline, log, "openai"))
    with pytest.raises(RunMismatchError, match="engine: 'vllm' there, 'hf' now"):
        study(tmp_path, outline, None)
    again = Elsewhere(outline, log)
    again.setup = {"args": {"tensor_parallel_size": 4}}  # how the same engine is set up may change
    log.clear()
    assert study(tmp_path, outline, again).manifest["engine"] == again.setup
    assert log == []


def test_a_run_from_before_engines_were_recorded_was_sampled_by_transformers(folder: Path, tmp_path: Path):
    model = load_model(folder, device="cpu")
    run = tiny.made_run(tmp_path, SETTINGS)
    manifest = json.loads((run.path / "run.json").read_text())
    assert manifest["settings"]["engine"] == "hf", "an engine without a name is taken for it"
    assert "engine" not in manifest
    del manifest["settings"]["engine"]
    assert recorded_engines(manifest).engine == "hf"
    (run.path / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(RunMismatchError, match="engine: 'hf' there, 'vllm' now"):
        study(tmp_path, model, Elsewhere(model, []))


def test_evaluate_samples_everything_before_it_loads(folder: Path, log: list[str], tmp_path: Path):
    outline = outline_of(folder, log)
    run = study(tmp_path, outline, Elsewhere(outline, log))
    sets = []
    for name in ("towns", "rivers"):
        rows = [
            {"id": f"n{i:03}", "question": f"Which of the {name} is number {i}?", "answers": [tiny.names(60)[i]]}
            for i in range(60)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sets.append(tmp_path / f"{name}.jsonl")
    log.clear()
    fresh = outline_of(folder, log)
    done = evaluate_run(run, sets, fresh, tools=Tools(Elsewhere(fresh, log)))
    assert {"towns", "rivers"} <= set(done.evaluation["datasets"])
    loading = log.index("Loading tiny-llama into transformers")
    assert "sample" not in log[loading:]
    assert log.count("Loading tiny-llama into transformers") == 1


# -- names and options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine": "sglang"}, "no engine 'sglang'"),
        ({"engine": "openai"}, "belong together"),
        ({"engine": "vllm", "base_url": "http://localhost:8000/v1"}, "belong together"),
        ({"engine": "hf", "args": {"max_model_len": 9}}, "--engine-arg"),
        ({"features": "vllm"}, "only where it samples"),
        ({"engine": "openai", "base_url": "http://h/v1", "features": "vllm"}, "only where it samples"),
        ({"engine": "vllm", "features": "gguf"}, "can't come from 'gguf'"),
    ],
)
def test_a_wrong_choice_of_engines_is_a_usage_error(settings: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        Engines(**settings)


def test_where_features_come_from():
    assert not Engines().in_vllm
    assert not Engines("openai", base_url="http://h/v1").in_vllm
    assert Engines("vllm", features="vllm").in_vllm
    assert not Engines("vllm", features="hf").in_vllm


def test_arguments_are_numbers_flags_json_or_text():
    given = ["max_model_len=99", "enforce-eager=true", "dtype=bfloat16", 'hf_overrides={"a": 1}', "x=a=b"]
    assert engine_args(given) == {
        "max_model_len": 99, "enforce_eager": True, "dtype": "bfloat16", "hf_overrides": {"a": 1}, "x": "a=b",
    }  # fmt: skip
    assert engine_args(None) == {}
    with pytest.raises(UsageError, match="max_model_len=4096"):
        engine_args(["max_model_len"])


def test_a_runs_own_engine_is_that_of_its_evaluation():
    manifest = {"settings": {"engine": "vllm"}, "engine": {"args": {"max_model_len": 9}}}
    assert recorded_engines(manifest) == Engines("vllm", args={"max_model_len": 9})
    again = recorded_engines(manifest, args={"seed": 7})
    assert again.args == {"max_model_len": 9, "seed": 7}
    assert recorded_engines({**manifest, "settings": {"engine": "vllm", "features": "vllm"}}).in_vllm
    assert recorded_engines(manifest, engine="hf") == Engines()
    server = {"settings": {"engine": "openai"}, "engine": {"base_url": "http://h/v1", "served_model": None}}
    assert recorded_engines(server, engine=None).base_url == "http://h/v1"
    server["engine"] |= {"key_env": "MINE", "args": {"timeout": 5}}
    assert recorded_engines(server) == Engines("openai", base_url="http://h/v1", key_env="MINE", args={"timeout": 5})
    assert recorded_engines(server, base_url="http://other/v1").key_env is None  # the key of one is no other's
    assert recorded_engines({"settings": {"engine": "of a user"}}) == Engines()


def test_opening_an_engine_loads_weights_only_for_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with open_engine(Engines(), str(folder), {"device": "cpu"}) as opened:
        assert not isinstance(opened.model, Outline)
        assert opened.engine is None
    log: list[str] = []
    monkeypatch.setattr(chosen, "_made", lambda choice, model, trust: Elsewhere(model, log))
    with open_engine(Engines("vllm", features="hf"), str(folder), {"device": "cpu"}) as opened:
        assert isinstance(opened.model, Outline)
        assert opened.model.loader
        assert opened.extractor is None
    assert log == ["close"]
    with open_engine(Engines("vllm", features="vllm"), str(folder), {"device": "cpu"}) as opened:
        assert isinstance(opened.model, Outline)
        assert opened.model.loader is None
        assert opened.extractor


def test_tools_and_a_judge_of_its_own_are_too_much(folder: Path, log: list[str], tmp_path: Path):
    with pytest.raises(UsageError, match="Both `tools` and"):
        identify(outline_of(folder, log), "starter", tmp_path / "out", tools=Tools(), judge=AliasJudge())
    assert not (tmp_path / "out").exists()
