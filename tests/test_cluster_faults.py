"""What goes wrong on replicas and how it is told: memory that runs out, models that differ from node to node."""

import copy
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from fake_pool import replicas_of
from hneurons.answers import hf
from hneurons.answers.consistency import Rule, sample_questions
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.cluster.engine import ClusterEngine
from hneurons.cluster.fingerprint import Fingerprint
from hneurons.cluster.opening import Cluster
from hneurons.cluster.replica import Draw, Loading, Replica, ReplicaMemoryError
from hneurons.errors import ClusterError
from hneurons.memory import ran_out
from hneurons.models.load import StudyModel, load_model
from hneurons.neurons.cett import Passage, PooledExtractor, beginning
from hneurons.studies.lookahead import lookahead
from hneurons.studies.turned import in_process, sample
from hneurons.types import REGIONS, NeuronId, Question, Region, Verdict

QUESTIONS = [Question(f"q{i}", f"What is the name of city number {i}{'?' * (i % 4)}", ("x",)) for i in range(12)]
REQUESTS = [Request(question, 0) for question in QUESTIONS]
SAMPLING = Sampling(temperature=1.0, max_new_tokens=6)
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of ...")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory: you tried to ...")


# -- memory -------------------------------------------------------------------------------------------


def allocated() -> BaseException:
    """What PyTorch raises here, where nobody has so much."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("error", [CUDA, CPU, allocated(), MemoryError(), OSError(12, "Cannot allocate memory")])
def test_memory_that_ran_out_is_one_line_with_a_remedy(
    llama: StudyModel, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(*_: Any) -> Any:
        raise error

    assert ran_out(error)
    monkeypatch.setattr(HFEngine, "sample", fail)
    with replicas_of(llama).pool(1) as pool, pytest.raises(ReplicaMemoryError) as caught:
        ClusterEngine(pool).sample(REQUESTS, SAMPLING)
    assert isinstance(caught.value, ClusterError)
    assert "\n" not in str(caught.value)
    assert "ran out of memory" in caught.value.problem
    for words in ("--replicas", "--replica-gpus", "batch"):
        assert words in caught.value.remedy
    assert str(copy.copy(caught.value)) == str(caught.value)  # the way of pickle


def test_other_errors_are_none_of_memory(llama: StudyModel, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    assert not ran_out(None)
    monkeypatch.setattr(HFEngine, "sample", fail)
    with replicas_of(llama).pool(1) as pool, pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        ClusterEngine(pool).sample(REQUESTS, SAMPLING)
    assert not isinstance(caught.value, ReplicaMemoryError)


@pytest.mark.parametrize("turned", [False, True])
def test_what_does_not_fit_is_prefilled_in_halves(llama: StudyModel, monkeypatch: pytest.MonkeyPatch, turned: bool):
    """As in the process. Prefilled with the whole, as later rounds are, a half would fail as the whole did."""
    sizes: list[int] = []
    real = hf.prefill

    def small(model: Any, prompts: Any, turn: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(model, prompts, turn)

    monkeypatch.setattr(hf, "prefill", small)
    neurons = [NeuronId(1, None, index) for index in range(0, 40, 3)] if turned else []
    requests = [Request(question, 0, (), 2.0 if turned else 1.0) for question in QUESTIONS]
    with in_process(llama)(neurons) as alone:
        expected = sample(alone, requests, SAMPLING)
    one, sizes[:] = list(sizes), []
    with replicas_of(llama).pool(1) as pool, Cluster(pool, llama).open_engine(neurons) as engine:
        assert sample(engine, requests, SAMPLING) == expected
        assert sizes == one
        assert max(size for size in sizes if size <= 3) == 3
        monkeypatch.setattr(hf, "prefill", lambda *_: (_ for _ in ()).throw(CUDA))
        with pytest.raises(ReplicaMemoryError):
            sample(engine, requests[:2], SAMPLING)


def test_a_replica_that_ran_out_lets_go_of_its_prefills(llama: StudyModel, monkeypatch: pytest.MonkeyPatch):
    replica, asked = Replica(llama), tuple(REQUESTS)
    replica.do(Draw("a", asked, asked, SAMPLING))
    assert replica._engines
    monkeypatch.setattr(HFEngine, "sample", lambda *_: (_ for _ in ()).throw(CUDA))
    with pytest.raises(ReplicaMemoryError) as caught:
        replica.do(Draw("b", asked, asked, SAMPLING))
    assert not replica._engines
    assert caught.value.__context__ is None  # which would keep the tensors of the failed pass


def test_a_model_too_large_for_a_node_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch):
    loading = Loading.of(load_model(folder), device="cpu")
    monkeypatch.setattr(torch.nn.Module, "to", lambda *_: (_ for _ in ()).throw(CUDA))
    with pytest.raises(ReplicaMemoryError, match=r"Loading on node \S+ ran out of memory \(OutOfMemoryError") as caught:
        Replica.load(loading, version("hneurons"))
    for words in ("--replicas", "--replica-gpus", "--dtype"):
        assert words in caught.value.remedy


# -- chunks that nobody wants any more ----------------------------------------------------------------


def test_a_chunk_that_nobody_wants_is_not_judged(llama: StudyModel):
    """Chunk 1 is being sampled when it turns out that chunk 0 was enough: its judge may cost money."""
    sampled, judged, go = threading.Event(), [], threading.Event()

    class Engine:
        def sample(self, requests: Any, sampling: Sampling) -> Any:
            if requests[0].question.id == "q1":
                sampled.set()
                assert go.wait(20)
            return HFEngine(llama).sample(requests, sampling)

    class PaidJudge:
        name = "paid"

        def judge(self, question: Question, text: str) -> Verdict:
            judged.append(question.id)
            return Verdict.CORRECT

    def work(part: Any, full: Any, tick: Any) -> Any:
        return sample_questions(Engine(), PaidJudge(), part, SAMPLING, Rule(2, 2), full, tick)

    chunks = {number: [QUESTIONS[number]] for number in range(2)}
    with lookahead(work, chunks, 2) as coming:
        assert len(coming.take(0, set())) == 2
        assert sampled.wait(20)
        coming.drop()
        go.set()
        pool = coming._pool
    pool.shutdown()
    assert set(judged) == {"q0"}


# -- other models on other nodes ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model") / "tiny-llama")


def tuned(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_template(folder: Path) -> None:
    place = folder / "chat_template.jinja"
    place.write_text(place.read_text().replace("assistant", "helper"))


def other_words(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:20]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def other_end(folder: Path) -> None:
    place = folder / "generation_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "eos_token_id": [2, 7]}))


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (tuned, "the weight model.layers.1.mlp.down_proj.weight differs"),
        (other_template, "its tokenizer, chat template or end of turn differs"),
        (other_words, "its tokenizer, chat template or end of turn differs"),
        (other_end, "its tokenizer, chat template or end of turn differs"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_with_other_files_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], differs: str, dtype: str
):
    there = shutil.copytree(folder, tmp_path / "tiny-llama")
    loading = replace(Loading.of(load_model(folder, dtype=dtype), device="cpu"), model=str(there))
    assert Replica.load(loading, version("hneurons"))
    change(there)
    with pytest.raises(ClusterError, match=rf"is another model than here: {differs}. Put the same files there"):
        Replica.load(loading, version("hneurons"))


def test_a_fingerprint_stays_what_it_is_while_the_model_is_used(folder: Path):
    model = load_model(folder)
    before = Fingerprint.of(model)
    model.tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=3)
    HFEngine(model).sample(REQUESTS, SAMPLING)
    assert Fingerprint.of(replace(model, thinking=True)) == before
    assert len(before.weights) == len(list(model.model.parameters()))


def test_weights_that_are_elsewhere_or_quantised_are_left_out():
    accelerate = pytest.importorskip("accelerate")
    here, moved = tiny.study(), tiny.study()
    accelerate.cpu_offload(moved.model, execution_device=torch.device("cpu"))
    assert Fingerprint.of(moved).weights == {}
    assert Fingerprint.of(moved).difference(Fingerprint.of(here)) is None
    packed = tiny.study()
    down = packed.model.model.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    assert Fingerprint.of(here).weights.keys() - Fingerprint.of(packed).weights == {
        "model.layers.1.mlp.down_proj.weight"
    }
    assert Fingerprint.of(here).difference(Fingerprint.of(packed)) is None


def test_quantised_models_have_a_fingerprint():
    quanto = pytest.importorskip("optimum.quanto")
    model = tiny.study()
    quanto.quantize(model.model, weights=quanto.qint8)
    quanto.freeze(model.model)
    found = Fingerprint.of(model)
    assert not any("proj" in name for name in found.weights)
    assert found.difference(Fingerprint.of(tiny.study())) is None


# -- a model that thinks ------------------------------------------------------------------------------


def test_passages_of_a_model_that_thinks_go_on_from_what_they_begin_with():
    """The system turn says whether to think, so that prompts of the two kinds begin otherwise."""
    model = tiny.study()
    model.tokenizer.chat_template = (
        "<|im_start|>system\nYou are a helpful assistant{% if enable_thinking %} who thinks{% endif %}.<|im_end|>\n"
        + tiny.CHATML
    )
    study = replace(model, thinking=True)
    made = []
    for question in QUESTIONS:
        prompt = study.prompt_ids(question.question)
        answer = model.tokenizer.encode("I think. The city is Paris.", add_special_tokens=False)
        made.append(Passage(question.id, (*prompt, *answer), len(prompt), (4, 6), thinking=2))
    assert beginning(study, made) is not None
    assert beginning(model, made) is None
    groups, regions = [made[i : i + 4] for i in range(0, len(made), 4)], [*REGIONS, Region.THINKING]
    expected = [found.dense() for found in PooledExtractor(study, regions).many(groups)]
    with replicas_of(model).pool(2) as pool:
        shards: list[Any] = []
        real = pool.submit
        pool.submit = lambda shard, home=None: shards.append(shard) or real(shard, home)  # type: ignore[method-assign]
        found = list(Cluster(pool, model).extractor(regions).many(groups))
    assert {shard.begin for shard in shards} == {beginning(study, made)}
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.dense(), other)
