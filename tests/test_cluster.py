"""Engine, extractor and studies over replicas give what one machine gives, whichever replica is lost."""

import copy
import itertools
import json
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import planted
import tiny
from fake_pool import Ends, FakeWorker, Nodes, replicas_of
from hneurons.answers import hf
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.answers.judge import AliasJudge
from hneurons.cluster.engine import ClusterEngine, ClusterExtractor
from hneurons.cluster.opening import Cluster
from hneurons.cluster.replica import KEPT, Draw, Loading, Replica, Shard
from hneurons.errors import ClusterError, MissingExtraError, NumericError
from hneurons.models.load import StudyModel, load_model
from hneurons.neurons.cett import Passage, PooledExtractor, beginning
from hneurons.questions.sources import QuestionSet
from hneurons.settings import IdentifySettings, ImpactSettings
from hneurons.studies.collect import Tools
from hneurons.studies.evaluate import evaluate_run
from hneurons.studies.identify import identify
from hneurons.studies.impact import impact
from hneurons.studies.lookahead import lookahead
from hneurons.studies.turned import in_process
from hneurons.types import REGIONS, Label, NeuronId, Question, Verdict

QUESTIONS = [Question(f"q{i}", f"What is the name of city number {i}{'?' * (i % 4)}", ("x",)) for i in range(23)]
SAMPLING = Sampling(temperature=1.0, max_new_tokens=8)
SETTINGS = IdentifySettings(
    samples=3, folds=3, random_sets=2, bootstrap=100, per_class=40, path_points=5, chunk=8, max_share=0.2,
    temperature=0.8, max_new_tokens=6, batch_tokens=600, refits=4,
)  # fmt: skip
SAME = ["questions.jsonl", "responses.jsonl", "examples.jsonl", "path.json", "neurons.json", "evaluation.json"]


def rounds() -> list[list[Request]]:
    """What consistency asks of one chunk: all, then fewer and fewer questions."""
    return [
        [Request(question, 0) for question in QUESTIONS],
        [Request(question, 1) for question in QUESTIONS[3:20]],
        [Request(question, sample) for question in QUESTIONS[5:9] for sample in (2, 3)],
    ]


class LosesAt(Nodes):
    """Takes a replica away when the shards with these numbers are begun, before or after they are done."""

    def __init__(self, make: Callable[[], StudyModel], before: set[int], after: set[int]) -> None:
        super().__init__(replica=lambda _: Replica(make()))
        self.before, self.after = before, after
        self.shards = itertools.count()

    def start(self) -> FakeWorker:
        worker = super().start()
        run = worker.run

        def lossy(shard: Shard) -> Any:
            number = next(self.shards)

            class Once:
                def __str__(self) -> str:
                    return str(shard)

                def do(inner, replica: Any) -> Any:
                    if number in self.before:
                        raise Ends("killed")
                    value = shard.do(replica)
                    if number in self.after:
                        raise Ends("killed")
                    return value

            return run(Once())

        worker.run = lossy  # type: ignore[method-assign]
        return worker


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Prefills of four prompts; the prompts of each that is made."""
    made: list[tuple[Any, ...]] = []
    real = hf.prefill

    def record(model: Any, prompts: Any, turn: Any) -> Any:
        made.append(tuple(prompts))
        return real(model, prompts, turn)

    monkeypatch.setattr(hf, "usual_batch", lambda _: 4)
    monkeypatch.setattr(hf, "prefill", record)
    return made


# -- sampling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(set(), set()), ({1}, set()), (set(), {0, 2}), ({0, 1}, {4})])
def test_responses_equal_those_of_one_machine(
    llama: StudyModel, small_batches: list[Any], before: set[int], after: set[int]
):
    alone = HFEngine(llama)
    expected = [alone.sample(requests, SAMPLING) for requests in rounds()]
    groups = set(small_batches)
    small_batches.clear()
    nodes = LosesAt(lambda: llama, before, after)
    with nodes.pool(2) as pool:
        engine = ClusterEngine(pool)
        assert [engine.sample(requests, SAMPLING) for requests in rounds()] == expected
        assert pool.lost == len(before) + len(after)
    # A replica that takes over in a later round prefills what the first round did, not what is left of it.
    assert set(small_batches) == groups


def test_later_rounds_go_where_the_prefill_is(llama: StudyModel, small_batches: list[Any]):
    with replicas_of(llama).pool(3) as pool:
        engine = ClusterEngine(pool)
        for requests in rounds():
            engine.sample(requests, SAMPLING)
    assert len(small_batches) == len(set(small_batches)) == 6


def test_a_replica_keeps_the_prefills_of_few_chunks(llama: StudyModel, small_batches: list[Any]):
    replica = Replica(llama)
    chunks = [tuple(Request(question, 0) for question in QUESTIONS[i : i + 3]) for i in range(0, 12, 3)]
    for number, asked in enumerate(chunks):
        Draw(str(number), asked, asked, SAMPLING).do(replica)
    made = len(small_batches)
    for number in reversed(range(len(chunks))):
        Draw(str(number), chunks[number], chunks[number], SAMPLING).do(replica)
    assert len(small_batches) - made == len(chunks) - KEPT


def test_nothing_asked_nothing_done(llama: StudyModel):
    with replicas_of(llama).pool(1) as pool:
        assert ClusterEngine(pool).sample([], SAMPLING) == []
        assert list(ClusterExtractor(pool, llama, REGIONS).many([])) == []
        assert pool.done == 0


def test_turned_neurons_equal_one_machine(llama: StudyModel):
    neurons = tuple(NeuronId(layer, None, index) for layer in range(3) for index in range(0, 40, 3))
    requests = [Request(question, 0, (), alpha) for question in QUESTIONS[:6] for alpha in (0.0, 1.0, 3.0)]
    ids = llama.tokenizer.encode("The capital of France is Paris, I think.")
    with in_process(llama)(neurons) as alone:
        expected, nll = alone.sample(requests, SAMPLING), alone.nll(ids, [0.0, 2.0])  # type: ignore[attr-defined]
    with replicas_of(llama).pool(2) as pool, Cluster(pool, llama).open_engine(neurons) as engine:
        assert engine.sample(requests, SAMPLING) == expected
        assert engine.nll(ids, [0.0, 2.0]) == nll  # type: ignore[attr-defined]
        assert expected != HFEngine(llama).sample([Request(r.question, 0) for r in requests], SAMPLING)


def test_a_model_that_thinks_does_so_on_the_replicas(monkeypatch: pytest.MonkeyPatch, llama: StudyModel):
    seen: list[bool] = []
    monkeypatch.setattr(HFEngine, "prepare", lambda self, _: seen.append(self.model.thinking))
    monkeypatch.setattr(HFEngine, "sample", lambda *_: [])
    request = Request(QUESTIONS[0], 0)
    for thinking in (0, 20):
        Draw(f"k{thinking}", (request,), (request,), Sampling(thinking=thinking)).do(Replica(llama))
    assert seen == [False, True]


# -- contributions ------------------------------------------------------------------------------------


def passages(model: StudyModel, count: int = 21) -> list[Passage]:
    made = []
    for question in QUESTIONS[:count]:
        prompt = model.prompt_ids(question.question)
        answer = model.tokenizer.encode("The city is Paris." * (1 + len(made) % 3), add_special_tokens=False)
        made.append(Passage(question.id, (*prompt, *answer), len(prompt), (1, 3)))
    return made


@pytest.mark.parametrize(("before", "after"), [(set(), set()), ({1, 5}, {3})])
def test_features_equal_those_of_one_machine(llama: StudyModel, before: set[int], after: set[int]):
    every = passages(llama)
    groups = [every[i : i + 2] for i in range(0, len(every), 2)]
    assert beginning(llama, every) is not None
    expected = [found.dense() for found in PooledExtractor(llama, REGIONS).many(groups)]
    with LosesAt(lambda: llama, before, after).pool(2) as pool:
        found = list(ClusterExtractor(pool, llama, REGIONS).many(groups))
        assert pool.lost == len(before) + len(after)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.dense(), other)


def test_a_part_of_the_batches_is_measured_as_with_all_of_them(llama: StudyModel):
    """Passages of which some begin otherwise: no part may go on from what only it begins with."""
    odd = Passage("odd", (9, 9, *passages(llama)[0].ids), 6, (0, 1))
    groups = [passages(llama)[:4], [odd]]
    with replicas_of(llama).pool(1) as pool:
        shards: list[Any] = []
        real = pool.submit
        pool.submit = lambda shard, home=None: shards.append(shard) or real(shard, home)  # type: ignore[method-assign]
        list(ClusterExtractor(pool, llama, REGIONS).many(groups))
        list(ClusterExtractor(pool, llama, REGIONS).many(groups[:1]))
    assert [shard.begin is None for shard in shards] == [True, False]


def test_an_error_of_a_replica_is_the_error_of_the_study(llama: StudyModel):
    broken = tiny.study()
    broken.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with replicas_of(broken).pool(1) as pool, pytest.raises(NumericError, match="activation in layer 1"):
        list(ClusterExtractor(pool, llama, REGIONS).many([passages(llama)[:2]]))


# -- a whole run --------------------------------------------------------------------------------------


class QuestionJudge:
    """Half of the questions are always answered right, half always wrong, whatever the random model says."""

    name = "by question"

    def judge(self, question: Question, text: str) -> Verdict:
        return Verdict.CORRECT if zlib.crc32(question.id.encode()) % 2 else Verdict.WRONG


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, no_figures: None) -> Path:
    """A run of one machine."""
    folder = tmp_path_factory.mktemp("alone")
    questions = tiny.write_questions(folder / "cities.jsonl", 84)
    identify(tiny.study(), questions, folder / "out", SETTINGS, judge=QuestionJudge(), finder=tiny.WholeFinder())
    return folder


def check_same(out: Path, alone: Path) -> None:
    for name in SAME:
        assert (out / name).read_bytes() == (alone / name).read_bytes(), name
    for region in REGIONS:
        one, other = np.load(out / f"features/{region}.npy"), np.load(alone / f"features/{region}.npy")
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [1, 3])
def test_a_run_over_replicas_is_the_run_of_one_machine(alone: Path, tmp_path: Path, size: int):
    shutil.copy(alone / "cities.jsonl", tmp_path)
    model = tiny.study()
    with LosesAt(lambda: model, {2, 7, 30}, {11, 40}).pool(size) as pool:
        tools = Cluster(pool, model).tools(Tools(judge=QuestionJudge(), finder=tiny.WholeFinder()))
        identify(model, tmp_path / "cities.jsonl", tmp_path / "out", SETTINGS, tools=tools)
        assert pool.lost >= 3
    check_same(tmp_path / "out", alone / "out")


def test_evaluate_over_replicas_is_that_of_one_machine(alone: Path, tmp_path: Path):
    model, tools = tiny.study(), Tools(judge=QuestionJudge(), finder=tiny.WholeFinder())
    towns = QuestionSet("towns", tuple(Question(f"t{i}", f"Where is town {i}?", ("x",)) for i in range(60)))
    runs = [shutil.copytree(alone / "out", tmp_path / name) for name in ("one", "many")]
    evaluate_run(runs[0], [towns], model, tools=tools)
    with LosesAt(lambda: model, {2}, {5, 9}).pool(3) as pool:
        evaluate_run(runs[1], [towns], model, tools=Cluster(pool, model).tools(tools))
        assert pool.lost == 3
    assert (runs[1] / "evaluation.json").read_bytes() == (runs[0] / "evaluation.json").read_bytes()
    for name in ("responses.jsonl", "examples.jsonl"):
        assert (runs[1] / "on/towns" / name).read_bytes() == (runs[0] / "on/towns" / name).read_bytes()
    for region in REGIONS:
        one, many = (np.load(run / f"on/towns/features/{region}.npy") for run in runs)
        np.testing.assert_array_equal(many, one)


@pytest.mark.parametrize("ahead", [2, 5, 40])
def test_chunks_begun_early_change_nothing_when_a_class_fills_up(tmp_path: Path, ahead: int):
    """Right answers are many and fill up first: from then on chunks are asked for the other class alone."""
    questions = tiny.write_questions(tmp_path / "cities.jsonl", 140)
    settings = SETTINGS.model_copy(update={"per_class": 22})

    def answer(question: Question, sample: int) -> str:
        right = zlib.crc32(question.id.encode()) % 4
        return f"The city is {question.answers[0] if right else tiny.names(2000, 1)[int(question.id[1:])]}."

    for name, tools in [("one", {}), ("many", {"ahead": ahead})]:
        model = tiny.study()
        engine = tiny.ScriptedEngine(model, answer)
        identify(
            model, questions, tmp_path / name, settings, tools=Tools(engine, AliasJudge(), tiny.WholeFinder(), **tools)
        )
    check_same(tmp_path / "many", tmp_path / "one")
    lines = (tmp_path / "one/responses.jsonl").read_text().splitlines()
    assert 3 * 140 > len(lines) > 3 * 44, "one class must fill up before the other for this to test anything"


def test_chunks_that_nobody_wants_end_after_their_round():
    """Chunk 1 is in its first round when it turns out that its faithful answers are not needed, then nothing is."""
    chunks = {number: [Question(f"c{number}", "Which?", ("x",))] for number in range(3)}
    begun, go, ended = threading.Barrier(4), threading.Event(), []

    def work(part: Sequence[Question], full: set[Label], tick: Callable[[int], None]) -> list[Any]:
        if not full:
            begun.wait(20)
        for step in range(3):
            if part[0].id != "c0" and not full:
                go.wait(20)
            try:
                tick(0)
            except Exception:
                ended.append((part[0].id, step))
                raise
        return [(part[0].id, len(full))]

    with lookahead(work, chunks, 3) as coming:
        threading.Thread(target=begun.wait, args=(20,)).start()
        assert coming.take(0, set()) == [("c0", 0)]
        assert coming.take(1, {Label.FAITHFUL}) == [("c1", 1)]
        go.set()
        assert coming.take(2, {Label.FAITHFUL}) == [("c2", 1)]
        pool = coming._pool
    pool.shutdown()
    assert sorted(ended) == [("c1", 0), ("c2", 0)]


def test_impact_over_replicas_is_that_of_one_machine(tmp_path: Path):
    options = ImpactSettings(
        random_sets=2, bootstrap=100, limit=10, chunk=4, alphas=(0, 1, 3), capability=("starter",), capability_limit=6
    )
    benchmark = planted.YesNo(turns=3, unscaled_turns=1)
    runs = [planted.write_run(tmp_path / name, planted.model()) for name in ("one", "many")]
    impact(runs[0], benchmark, planted.model(), options)
    models = [planted.model() for _ in range(8)]  # not in the replicas' threads: the random numbers are all threads'
    nodes, driver = LosesAt(models.pop, {3, 20}, {9}), models.pop()
    with nodes.pool(3) as pool:
        cluster = Cluster(pool, driver)
        impact(runs[1], benchmark, driver, options, open_engine=cluster.open_engine, together=cluster.ahead)
        assert pool.lost == 3
    assert sum(bool(worker.shards) for worker in nodes.started) > 3
    assert (runs[1] / "impact.json").read_bytes() == (runs[0] / "impact.json").read_bytes()
    for name in ("yes-no", "capability"):
        one, many = ((run / f"impact/{name}.jsonl").read_text().splitlines() for run in runs)
        assert len(set(one)) == len(one)
        assert sorted(many) == sorted(one)


def test_impact_that_fails_midway_keeps_what_the_others_have_in_work(tmp_path: Path):
    run, options = planted.write_run(tmp_path, planted.model()), ImpactSettings(
        random_sets=2, bootstrap=100, limit=6, alphas=(0, 1, 3), capability=()
    )  # fmt: skip
    benchmark, models = planted.YesNo(), [planted.model() for _ in range(12)]
    begun, failing = threading.Barrier(2), threading.Event()

    @contextmanager
    def open_engine(neurons: Sequence[NeuronId]) -> Iterator[Any]:
        if neurons:
            begun.wait(20)  # two sets of neurons are in work
            if set(neurons) == set(planted.PLANTED):
                failing.set()
                raise ClusterError("All replicas were lost.")
            failing.wait(20)
        with in_process(models.pop())(neurons) as engine:
            yield engine

    with pytest.raises(ClusterError, match="All replicas were lost"):
        impact(run, benchmark, planted.model(), options, open_engine=open_engine, together=2)
    rows = [json.loads(line) for line in (run / "impact/yes-no.jsonl").read_text().splitlines()]
    assert "h_neurons" not in {row["arm"] for row in rows}
    assert len({row["arm"] for row in rows}) == 2, "the unscaled arm, and the one that was in work"


# -- loading ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model") / "tiny-llama")


def test_a_replica_loads_the_model_of_the_driver(folder: Path):
    loading = Loading.of(load_model(folder), device="cpu")
    assert loading.model == str(folder.resolve())
    replica = Replica.load(loading, version("hneurons"))
    assert replica.about.workers >= 1
    request = Request(QUESTIONS[0], 0)
    assert Draw("k", (request,), (request,), SAMPLING).do(replica) == HFEngine(load_model(folder)).sample(
        [request], SAMPLING
    )


def test_a_node_with_another_version_or_another_model_is_refused(folder: Path, tmp_path: Path):
    loading = Loading.of(load_model(folder), device="cpu")
    with pytest.raises(ClusterError, match=r"has hneurons .*, this machine 99.0. Install the same version"):
        Replica.load(loading, "99.0")
    other = replace(loading, model=str(tiny.save(tmp_path / "other", "qwen2")))
    with pytest.raises(ClusterError, match="is another model than here"):
        Replica.load(other, version("hneurons"))


def test_a_model_in_memory_cant_be_loaded_by_nodes(llama: StudyModel):
    with pytest.raises(ClusterError, match=r"given as an object.*load_model"):
        Loading.of(llama, device="cpu")


@pytest.mark.parametrize("error", [MissingExtraError("ray", "ray"), ClusterError("A", "B."), NumericError("x")])
def test_errors_keep_problem_and_remedy_on_their_way_between_processes(error: Any):
    there = copy.copy(error)  # goes the way of pickle, without bytes
    assert type(there) is type(error)
    assert (str(there), there.problem, there.remedy) == (str(error), error.problem, error.remedy)
