"""The vLLM engine's own logic, with a fake in vLLM's place; tests/vllm has the real one."""

import json
import sys
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import tiny
from hneurons.answers import calls
from hneurons.answers import vllm as engine_module
from hneurons.answers.engine import NONSENSE, OtherEngine, Request, Sampling, seed_of
from hneurons.answers.vllm import CONTEXT, CPU_BLOCK, CPU_CACHE, VLLMEngine, arguments
from hneurons.errors import (
    MissingExtraError,
    NumericError,
    PromptTooLongError,
    ServiceError,
    UnsupportedModelError,
    UsageError,
)
from hneurons.extras import check_vllm
from hneurons.models.load import load_model
from hneurons.models.outline import Outline, load_outline
from hneurons.types import Question

ASKED = [Request(Question(name, f"Who is {name}?", ("x",)), k) for name in ("a", "b") for k in range(2)]
SHORT = Sampling(max_new_tokens=6, seed=3)


def fine(_: Any) -> None:
    """A configuration that can measure."""


@dataclass
class FakeLLM:
    """Says what `say` makes of a prompt and its settings: token ids and finish reason."""

    args: dict[str, Any]
    say: Any
    plugin: bool = True
    apart: bool = True
    closed: bool = False
    dead: bool = False
    left: list[str] = field(default_factory=list)
    calls: list[tuple[list[Any], list[Any]]] = field(default_factory=list)

    @property
    def llm_engine(self) -> Any:
        core = SimpleNamespace(shutdown=lambda: setattr(self, "closed", True))
        if self.apart:
            core.resources = SimpleNamespace(engine_dead=self.dead)
            core.outputs_queue, core.utility_results = Queue(), {}
        return SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=self.args["max_model_len"]),
            vllm_config="its configuration",
            engine_core=core,
            output_processor=SimpleNamespace(request_states=dict.fromkeys(self.left)),
            abort_request=lambda names, internal: [self.left.remove(name) for name in names],
        )

    def generate(self, prompts: list[Any], settings: list[Any], use_tqdm: bool) -> list[Any]:
        if [wanted.extra_args["hneurons"] for wanted in settings] == [NONSENSE]:
            if self.plugin:
                raise ValueError("hneurons is no JSON")
            return []
        self.calls.append((prompts, settings))
        assert not self.left, "it would answer those as well"
        self.left += [str(number) for number in range(len(prompts))]
        made = []
        for prompt, wanted in zip(prompts, settings, strict=True):
            ids, reason, logprob = self.say(prompt, wanted)
            places = [{id: SimpleNamespace(logprob=logprob - i), -1: None} for i, id in enumerate(ids)]
            made.append(
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=places, finish_reason=reason)])
            )
        self.left.clear()
        return made


class Fakes:
    """Starts fakes in vLLM's place, and keeps them."""

    def __init__(self) -> None:
        self.started: list[FakeLLM] = []
        self.say: Any = lambda prompt, wanted: ([5, 6], "length", -0.5)
        self.plugin, self.apart = True, True

    def __call__(self, args: dict[str, Any]) -> FakeLLM:
        self.started.append(FakeLLM(args, lambda prompt, wanted: self.say(prompt, wanted), self.plugin, self.apart))
        return self.started[-1]


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch: pytest.MonkeyPatch):
    """A module in vLLM's place that only has its settings of a request."""
    fake: Any = ModuleType("vllm")
    fake.SamplingParams = lambda **settings: SimpleNamespace(**settings)
    fake.__version__ = "0.32.0"
    monkeypatch.setitem(sys.modules, "vllm", fake)
    return fake


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def outline(folder: Path) -> Outline:
    return load_outline(folder, device="cpu")


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


def test_every_request_goes_at_once_with_a_seed_of_its_own(outline: Outline, fakes: Fakes):
    engine = VLLMEngine(outline, start=fakes)
    responses = engine.sample(ASKED, SHORT)
    assert [(r.question_id, r.sample) for r in responses] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    ((prompts, settings),) = fakes.started[0].calls
    assert [prompt["prompt_token_ids"] for prompt in prompts] == [outline.prompt_ids(r.said) for r in ASKED]
    assert [wanted.seed for wanted in settings] == [seed_of(SHORT, request) for request in ASKED]
    assert len({wanted.seed for wanted in settings}) == len(ASKED)
    assert {(w.temperature, w.top_k, w.top_p, w.max_tokens) for w in settings} == {(1.0, 50, 0.9, 6)}
    assert {(tuple(w.stop_token_ids), w.stop) for w in settings} == {((2,), None)}


def test_seeds_belong_to_seed_question_and_sample_alone():
    first = seed_of(Sampling(seed=1), ASKED[0])
    assert seed_of(Sampling(0.3, seed=1), Request(Question("a", "other text", ()), 0, alpha=2.0)) == first
    others = [seed_of(Sampling(seed=2), ASKED[0]), *(seed_of(Sampling(seed=1), request) for request in ASKED[1:])]
    assert len({first, *others}) == 5
    assert all(0 <= seed < 2**31 for seed in (first, *others))


def test_no_limit_of_top_k_is_said_as_vllm_says_it(outline: Outline, fakes: Fakes):
    VLLMEngine(outline, start=fakes).sample(ASKED[:1], Sampling(top_k=0))
    assert fakes.started[0].calls[0][1][0].top_k == -1


def test_a_response_is_what_the_transformers_engine_makes_of_its_tokens(outline: Outline, fakes: Fakes):
    ids = outline.tokenizer.encode("Paris, in Vienna", add_special_tokens=False)
    fakes.say = lambda prompt, wanted: ([*ids, 2], "stop", -0.25)
    (response,) = VLLMEngine(outline, start=fakes).sample(ASKED[:1], SHORT)
    assert (response.text, response.token_ids, response.finish_reason) == ("Paris, in Vienna", (*ids, 2), "stop")
    assert response.logprobs == tuple(-0.25 - i for i in range(len(ids) + 1))


def test_the_token_limit_is_a_length(outline: Outline, fakes: Fakes):
    (response,) = VLLMEngine(outline, start=fakes).sample(ASKED[:1], SHORT)
    assert response.finish_reason == "length"


def test_a_base_models_answer_ends_before_its_newline(tmp_path: Path, fakes: Fakes):
    base = load_outline(tiny.save(tmp_path / "base", chat=False), device="cpu")
    ids = base.tokenizer.encode("Paris", add_special_tokens=False)
    newline = base.tokenizer.encode("\n", add_special_tokens=False)
    fakes.say = lambda prompt, wanted: ([*ids, *newline], "stop", -0.5)
    (response,) = VLLMEngine(base, start=fakes).sample(ASKED[:1], SHORT)
    assert (response.text, response.token_ids, response.finish_reason) == ("Paris", tuple(ids), "stop")
    assert len(response.logprobs) == len(ids)
    wanted = fakes.started[0].calls[0][1][0]
    assert (wanted.stop, wanted.detokenize) == (["\n"], True)


def test_the_cache_is_salted_with_alpha_where_neurons_are_turned(outline: Outline, fakes: Fakes):
    question = ASKED[0].question
    engine = VLLMEngine(outline, dial=True, start=fakes)
    engine.sample([Request(question, 0, alpha=alpha) for alpha in (0.0, 1.0, 2.0, 2.0)], SHORT)
    prompts, settings = fakes.started[0].calls[0]
    salts = [prompt["cache_salt"] for prompt in prompts]
    assert salts[2] == salts[3]
    assert len(set(salts)) == 3
    # 1 as well: without a word of it a request would get the plugin's default.
    assert [json.loads(wanted.extra_args["hneurons"])["alpha"] for wanted in settings] == [0.0, 1.0, 2.0, 2.0]
    assert fakes.started[0].args["enforce_eager"] is True


def test_without_the_dial_an_alpha_is_refused_and_nothing_is_salted(outline: Outline, fakes: Fakes):
    engine = VLLMEngine(outline, start=fakes)
    with pytest.raises(UsageError, match="turns no neurons"):
        engine.sample([Request(ASKED[0].question, 0, alpha=0.5)], SHORT)
    engine.sample(ASKED, SHORT)
    assert all("cache_salt" not in prompt for prompt in fakes.started[0].calls[0][0])


def test_a_thinking_budget_is_refused_before_anything_is_started(outline: Outline, fakes: Fakes):
    with pytest.raises(UsageError, match="thinking"):
        VLLMEngine(outline, start=fakes).sample(ASKED, Sampling(thinking=100))
    assert not fakes.started


def test_logits_that_are_no_numbers_are_an_error(outline: Outline, fakes: Fakes):
    fakes.say = lambda prompt, wanted: ([5], "length", float("nan"))
    with pytest.raises(NumericError, match="float32"):
        VLLMEngine(outline, start=fakes).sample(ASKED[:1], SHORT)


def test_a_prompt_that_leaves_no_room_is_refused(outline: Outline, fakes: Fakes):
    longest = len(outline.prompt_ids(ASKED[0].said))
    fits = VLLMEngine(outline, {"max_model_len": longest + 6}, start=fakes)
    assert len(fits.sample(ASKED[:1], SHORT)) == 1
    for args in ({"args": {"max_model_len": longest + 5}}, {"args": {"max_model_len": longest + 6}, "check": fine}):
        with pytest.raises(PromptTooLongError, match="max_model_len"):
            VLLMEngine(outline, **args, start=fakes).sample(ASKED[:1], SHORT)


def test_it_starts_when_it_is_needed_and_again_after_it_was_closed(outline: Outline, fakes: Fakes):
    engine = VLLMEngine(outline, start=fakes)
    assert isinstance(engine, OtherEngine)
    assert engine.sample([], SHORT) == []
    engine.close()
    assert not fakes.started
    engine.sample(ASKED, SHORT)
    engine.sample(ASKED, SHORT)
    assert len(fakes.started) == 1
    engine.close()
    assert fakes.started[0].closed
    engine.sample(ASKED, SHORT)
    assert len(fakes.started) == 2


def test_what_samples_can_measure_too_so_that_the_model_is_loaded_once(outline: Outline, fakes: Fakes):
    engine = VLLMEngine(outline, check=fine, start=fakes)
    engine.sample(ASKED, SHORT)
    assert engine.llm is fakes.started[0]
    (started,) = fakes.started
    assert started.args["worker_extension_cls"] == "hneurons.vllm.worker.Extension"
    assert (started.args["enforce_eager"], started.args["enable_prefix_caching"]) == (True, True)
    VLLMEngine(outline, start=fakes).sample(ASKED, SHORT)
    assert "worker_extension_cls" not in fakes.started[-1].args
    with pytest.raises(UsageError, match="enforce_eager"):
        VLLMEngine(outline, {"enforce_eager": False}, check=fine)


def test_an_engine_that_cannot_measure_is_refused_before_it_samples(outline: Outline, fakes: Fakes):
    def refuse(config: Any) -> None:
        assert config == "its configuration"
        raise UsageError("Stages.", "Ranks.")

    with pytest.raises(UsageError, match="Stages"):
        VLLMEngine(outline, check=refuse, start=fakes).sample(ASKED, SHORT)
    assert not fakes.started[0].calls
    assert fakes.started[0].closed


def test_an_engine_without_the_plugin_turns_nothing(outline: Outline, fakes: Fakes):
    """vLLM ignores what it doesn't know: every alpha would answer as 1."""
    engine = VLLMEngine(outline, dial=True, start=fakes)
    fakes.plugin = False
    with pytest.raises(UsageError, match="HNEURONS_CARD"):
        engine.sample(ASKED, SHORT)
    assert fakes.started[0].closed


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_response_that_was_broken_off_is_none(outline: Outline, fakes: Fakes, reason: str):
    fakes.say = lambda prompt, wanted: ([5], reason, -0.5)
    with pytest.raises(ServiceError, match=f"broken off after 1 tokens .{reason}."):
        VLLMEngine(outline, start=fakes).sample(ASKED[:1], SHORT)


# -- arguments ----------------------------------------------------------------------------------------


def test_arguments_of_a_model_on_a_cpu(outline: Outline, folder: Path):
    made = arguments(outline, {})
    assert (made["model"], made["dtype"], made["logprobs_mode"]) == (str(folder), "float32", "raw_logprobs")
    assert made["max_model_len"] == 256  # the tiny model's own
    assert made["kv_cache_memory_bytes"] == CPU_CACHE
    assert made["enforce_eager"] is True
    assert "revision" not in made
    assert made["enable_chunked_prefill"] is False
    assert made["block_size"] == CPU_BLOCK < 128


def test_arguments_that_are_given_come_first(outline: Outline):
    made = arguments(outline, {"max_model_len": 99, "tensor_parallel_size": 2, "gpu_memory_utilization": 0.5})
    assert (made["max_model_len"], made["tensor_parallel_size"]) == (99, 2)
    assert "kv_cache_memory_bytes" not in made


def test_a_long_context_is_cut_to_what_studies_need(outline: Outline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outline.model.config, "max_position_embeddings", 131072)
    assert arguments(outline, {})["max_model_len"] == CONTEXT


def test_an_argument_that_would_change_the_responses_is_refused(outline: Outline):
    with pytest.raises(UsageError, match="logprobs_mode"):
        VLLMEngine(outline, {"logprobs_mode": "processed_logprobs"})


def test_a_model_in_memory_is_refused():
    with pytest.raises(UsageError, match="in memory"):
        VLLMEngine(tiny.study())


def test_setup_tells_arguments_and_no_secret(outline: Outline):
    engine = VLLMEngine(outline, {"tensor_parallel_size": 2, "hf_token": "hf_secret"}, trust_remote_code=True)
    assert engine.setup == {"args": {"tensor_parallel_size": 2}}


# -- what vLLM refuses --------------------------------------------------------------------------------


@pytest.mark.parametrize("found", ["0.31.1", "0.33.0", "1.0.0", "0.3.2", "dev"])
def test_a_version_that_was_never_tested_is_refused(found: str):
    with pytest.raises(UsageError, match=r"tested with 0\.32"):
        check_vllm(found)


def test_the_tested_version_passes():
    check_vllm("0.32.0")
    check_vllm("0.32.7+cpu")


@pytest.mark.parametrize(
    ("raised", "error", "words"),
    [
        (TypeError("unexpected keyword argument 'speling'"), UsageError, "speling"),
        (ValueError("To serve at least one request\n with 4096 tokens"), UnsupportedModelError, "max_model_len"),
        (RuntimeError("Engine core initialization failed."), UnsupportedModelError, "Engine core"),
    ],
)
def test_what_vllm_raises_is_one_line(outline: Outline, no_vllm: Any, raised: Exception, error: type, words: str):
    def refuse(**args: Any) -> None:
        raise raised

    no_vllm.LLM = refuse
    with pytest.raises(error, match=words) as caught:
        VLLMEngine(outline).sample(ASKED, SHORT)
    assert "\n" not in str(caught.value)


def test_what_vllm_raises_while_it_samples_is_one_line(outline: Outline, fakes: Fakes):
    def fail(prompt: Any, wanted: Any) -> Any:
        raise RuntimeError("worker died\nout of memory")

    fakes.say = fail
    with pytest.raises(ServiceError, match="worker died out of memory") as caught:
        VLLMEngine(outline, start=fakes).sample(ASKED, SHORT)
    assert "same command again" in caught.value.remedy


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("process", ["its own", "its own, which ended", "this one"])
def test_after_a_call_that_was_broken_off_the_next_one_is_answered_alone(
    outline: Outline, fakes: Fakes, error: type[BaseException], process: str
):
    """In this process its prefix cache holds what was never computed."""
    fine, engine, fakes.apart = fakes.say, VLLMEngine(outline, start=fakes), process != "this one"

    def fail(prompt: Any, wanted: Any) -> Any:
        fakes.started[0].dead = process == "its own, which ended"
        raise error

    fakes.say = fail
    with pytest.raises(BaseException) as caught:
        engine.sample(ASKED, SHORT)
    assert caught.type is (ServiceError if error is RuntimeError else error)
    fakes.say = fine
    if process == "this one":
        with pytest.raises(ServiceError, match="was broken off"), calls.calling(fakes.started[0], "sampled"):
            pass
    assert len(engine.sample(ASKED, SHORT)) == len(ASKED)
    assert [started.closed for started in fakes.started] == ([False] if process == "its own" else [True, False])


def test_a_vllm_that_refuses_what_it_is_asked_is_asked_on(outline: Outline, fakes: Fakes):
    """As the one in this process without a plugin, or with one that refuses nonsense."""
    fakes.apart = False
    engine = VLLMEngine(outline, dial=True, start=fakes)
    assert len(engine.sample(ASKED, SHORT)) == len(ASKED)
    assert len(fakes.started) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_check_that_was_broken_off_is_made_again(outline: Outline, fakes: Fakes, error: type[BaseException]):
    """Else every alpha would answer as 1, or nothing be measured."""
    checked = []

    def check(config: Any) -> None:
        checked.append(config)
        if len(checked) == 1:
            raise error

    engine = VLLMEngine(outline, check=check, start=fakes)
    with pytest.raises(error):
        engine.sample(ASKED, SHORT)
    assert engine.sample(ASKED, SHORT)
    assert len(checked) == 2
    assert [started.closed for started in fakes.started] == [True, False]


@pytest.mark.parametrize("waits", ["for outputs", "for a worker's reply"])
def test_whoever_waits_for_a_process_that_was_killed_is_told(monkeypatch: pytest.MonkeyPatch, waits: str):
    """vLLM notes that it is gone, and goes on waiting."""
    monkeypatch.setattr(calls, "LOOK", 0.01)
    llm: Any = FakeLLM({"max_model_len": 1}, None)
    core = llm.llm_engine.engine_core
    replies = core.utility_results[1] = Future()
    engine = SimpleNamespace(engine_core=core, output_processor=SimpleNamespace(request_states={}))
    core.resources.engine_dead = True

    def wait() -> None:
        with calls.calling(SimpleNamespace(llm_engine=engine), "sampled"):
            if waits == "for outputs":
                raise core.outputs_queue.get(timeout=30)
            replies.result(timeout=30)

    with pytest.raises(ServiceError, match="while it sampled: ChildProcessError: its process ended"):
        wait()


def test_without_vllm_the_extra_is_named(outline: Outline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"hneurons\[vllm\]"):
        VLLMEngine(outline).sample(ASKED, SHORT)


def test_the_real_start_is_what_is_replaced_here(no_vllm: Any, outline: Outline):
    no_vllm.LLM = lambda **args: args
    assert engine_module._start({"model": "m"}) == {"model": "m"}
    no_vllm.__version__ = "0.99.0"
    with pytest.raises(UsageError, match=r"0\.99"):
        VLLMEngine(outline).sample(ASKED, SHORT)


# -- outlines -----------------------------------------------------------------------------------------


def test_an_outline_describes_the_model_as_loading_it_does(folder: Path):
    outline, whole = load_outline(folder, device="cpu"), load_model(folder, device="cpu")
    assert outline.describe() == whole.describe()
    assert (outline.end_ids, outline.layout) == (whole.end_ids, whole.layout)
    assert outline.prompt_ids("Who?") == whole.prompt_ids("Who?")
    assert all(parameter.device.type == "meta" for parameter in outline.model.parameters())
    half = load_outline(folder, device="cpu", dtype="bfloat16")
    assert half.describe() == load_model(folder, device="cpu", dtype="bfloat16").describe() != whole.describe()


def test_an_outline_loads_its_weights_once_and_only_where_it_may(folder: Path):
    said: list[str] = []
    outline = load_outline(folder, device="cpu", say=said.append)
    assert said == []
    assert outline.whole is outline.whole
    assert [line for line in said if "into transformers" in line] == ["Loading tiny-llama into transformers"]
    assert outline.whole.device.type == "cpu"
    assert outline.whole.model.get_input_embeddings().weight.device.type == "cpu"
    with pytest.raises(UsageError, match="--features hf"):
        _ = load_outline(folder, device="cpu", loads=False).whole
