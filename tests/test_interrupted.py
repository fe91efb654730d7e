"""What a call that fails or is interrupted leaves behind: no hook, no work that goes on, nothing for the next call."""

import gc
import os
import signal
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from fake_pool import Do, Nodes
from hneurons import identify
from hneurons.answers import connection, hf
from hneurons.answers.decoding import draw
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.cluster.engine import ClusterEngine
from hneurons.cluster.pool import Pool
from hneurons.models.load import StudyModel
from hneurons.neurons.blockstore import BlockStore
from hneurons.neurons.cett import Passage, PooledExtractor
from hneurons.neurons.features import FeatureStore
from hneurons.neurons.scaling import scale
from hneurons.parallel import in_order, workers
from hneurons.runfolder import RunFolder
from hneurons.studies.arms import Arm
from hneurons.studies.ledger import Ledger, fill
from hneurons.studies.lookahead import lookahead
from hneurons.types import Question
from test_identify import QUESTIONS, SETTINGS
from test_scaling import logits, some, study

CPU = torch.device("cpu")


def hooks(model: StudyModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_is_in_work_ends_before_the_block_does(error: type[BaseException]):
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        time.sleep(0.2)
        ended.set()

    def fail() -> None:
        with workers(CPU) as pool:
            pool.submit(work)
            assert begun.wait(20)
            raise error

    with pytest.raises(error):
        fail()
    assert ended.is_set()


def test_shards_that_nobody_waits_for_any_more_are_not_done():
    """A cluster that is kept open would do them before the next study's."""
    done: list[int] = []
    slow, held = threading.Event(), threading.Event()

    def work(number: int) -> None:
        held.wait(20)
        done.append(number)

    with Nodes().pool(1) as pool:
        shards = [Do("slow", lambda _: slow.wait(20)), *(Do(str(n), lambda _, n=n: work(n)) for n in range(3))]
        results = in_order(pool.submit, shards, 4)
        threading.Timer(0.05, slow.set).start()
        next(results)
        results.close()
        held.set()
        assert pool.submit(Do("then", lambda _: "then")).result(20)[0] == "then"
    assert done in ([], [0])  # the one that was begun


def test_shards_of_a_call_that_was_interrupted_are_not_done():
    go, done = threading.Event(), list[int]()
    with Nodes().pool(1) as pool:
        engine = ClusterEngine(pool)
        busy = pool.submit(Do("busy", lambda _: go.wait(20)))

        def submit(*_: Any) -> Any:
            future = Pool.submit(pool, Do("a call", lambda _: done.append(1)))
            future.result = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
            return future

        pool.submit = submit
        with pytest.raises(KeyboardInterrupt):
            engine.sample([Request(Question("a", "Who?", ("x",)), 0)], Sampling())
        del pool.submit
        go.set()
        busy.result(20)
        assert pool.submit(Do("then", lambda _: "then")).result(20)[0] == "then"
    assert done == []


def test_an_interrupt_ends_the_chunk_that_is_waited_for():
    """It would go on to its last round, and to a judge that is paid."""
    ended, before = threading.Event(), signal.signal(signal.SIGINT, signal.default_int_handler)

    def work(_: Any, __: Any, tick: Any) -> Any:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            while True:
                tick(1)
                time.sleep(0.01)
        finally:
            ended.set()

    try:
        with pytest.raises(KeyboardInterrupt), lookahead(work, {0: []}, 1) as coming:
            coming.take(0, set())
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.wait(20)


def test_an_error_ends_what_others_decode(monkeypatch: pytest.MonkeyPatch):
    failed, steps = threading.Event(), list[int]()

    def drawn(*args: Any) -> Any:
        if not steps and not failed.is_set():
            failed.set()
            raise MemoryError("out of memory")
        failed.wait(20)
        steps.append(1)
        time.sleep(0.02)
        return draw(*args)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    engine = HFEngine(tiny.study(), prompts_a_batch=1)
    engine._merges = False
    asked = [Request(Question(name, f"Who is {name}?", ("x",)), 0) for name in ("a", "bb")]
    sampling = Sampling(temperature=0.0, max_new_tokens=60)
    whole = min(len(response.token_ids) for response in engine.sample(asked, sampling))
    assert whole > 20
    monkeypatch.setattr(hf, "draw", drawn)
    with pytest.raises(MemoryError):
        engine.sample(asked, sampling)
    assert len(steps) < whole // 2


@pytest.mark.parametrize(("parts", "failing"), [(1, "_0"), (2, "_0"), (2, "_1")])
def test_an_error_keeps_no_tensors_of_the_pass_that_failed(monkeypatch: pytest.MonkeyPatch, parts: int, failing: str):
    """Which the halves that are tried for want of memory would lack; nothing may wait for the garbage collector."""
    left: list[weakref.ref[Any]] = []
    both = threading.Barrier(parts)

    def drawn(logits: torch.Tensor, *rest: Any) -> Any:
        left.append(weakref.ref(logits))
        if len(left) <= parts:
            both.wait(20)
        if threading.current_thread().name.endswith(failing):
            raise MemoryError("out of memory")
        time.sleep(0.1)
        return draw(logits, *rest)

    monkeypatch.setattr(torch, "get_num_threads", lambda: parts)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    engine = HFEngine(tiny.study(), prompts_a_batch=1)
    engine._merges = False
    monkeypatch.setattr(hf, "draw", drawn)
    asked = [Request(Question(name, f"Who is {name}?", ("x",)), 0) for name in ("a", "bb")[:parts]]
    gc.disable()
    try:
        with suppress(MemoryError):
            engine.sample(asked, Sampling(temperature=0.0, max_new_tokens=20))
        assert len(left) >= parts
        assert not any(ref() is not None for ref in left)
    finally:
        gc.enable()


def test_an_interrupt_waits_for_no_server(monkeypatch: pytest.MonkeyPatch):
    go, ended = threading.Event(), threading.Event()

    def slow(_: str) -> None:
        go.wait(5)
        ended.set()

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(connection, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        connection.each(slow, ["a", "b"], 1)
    assert not ended.is_set()
    go.set()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_row_is_written_once_the_study_is_over(tmp_path: Path, error: type[BaseException]):
    """Its folder is anybody's then."""
    ledger = Ledger(RunFolder(tmp_path), "x", {})
    both = threading.Barrier(2)
    arms = [Arm(name, "uniform", ()) for name in ("h", "r")]

    class Nothing:
        def __enter__(self) -> Any: ...
        def __exit__(self, *_: object) -> None: ...

    def make(_: Any, chunk: Any, arm: Arm, alphas: tuple[float, ...]) -> None:
        if arm.name in ("h", "r"):
            both.wait(20)
        if arm.name == "r":
            time.sleep(0.2)
        ledger.add(
            [{"item": item, "arm": arm.name, "alpha": alpha, "outcomes": {}} for item in chunk for alpha in alphas]
        )

    ticks: list[int] = []

    def tick(count: int) -> None:
        ticks.append(count)
        if len(ticks) == 2:  # of the arm h, while r is in work
            raise error

    with pytest.raises(error):
        fill(ledger, [["a"]], str, arms, [0.0, 1.0], lambda _: Nothing(), make, tick=tick, together=2)
    rows = ledger.journal.read()
    time.sleep(0.3)
    assert ledger.journal.read() == rows
    assert {row["arm"] for row in rows} == {"none", "h", "r"}


def test_hooks_come_off_when_features_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Even while somebody keeps the error, as a notebook does."""
    model = tiny.study()
    before, on = hooks(model), list[int]()

    def full(*_: Any) -> None:
        on.append(hooks(model))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FeatureStore, "write", full)
    monkeypatch.setattr(BlockStore, "write", full)
    questions = tiny.write_questions(tmp_path / "cities.jsonl", QUESTIONS)
    with pytest.raises(Exception, match="space") as kept:
        identify(model, questions, tmp_path / "run", SETTINGS, engine=tiny.ScriptedEngine(model, tiny.half_right))
    assert on
    assert on[0] > before
    assert hooks(model) == before
    del kept


def test_an_extractor_that_is_left_early_takes_its_hooks_off():
    model = tiny.study()
    before = hooks(model)
    found = PooledExtractor(model).many([[Passage(str(n), (3, 4, 5), 1, (0, 1))] for n in range(4)])
    next(found)
    assert hooks(model) > before
    found.close()
    assert hooks(model) == before


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "Qwen2MoeForCausalLM"])
def test_a_dial_that_waits_in_another_thread_is_in_nobodys_way(kind: str):
    """A server's, or a monitor's whose generator somebody keeps."""
    model = study(kind)
    before = logits(model, 3)
    there, go = threading.Event(), threading.Event()

    def wait() -> None:
        with scale(model, some(model), torch.ones(1)):
            there.set()
            go.wait(20)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        assert there.wait(20)
        assert torch.equal(logits(model, 3), before)
    finally:
        go.set()
        thread.join()
