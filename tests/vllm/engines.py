"""What runs in a process of its own: `python engines.py PART FOLDER` reads in.json there and writes out.json."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

COMMON: dict[str, Any] = {
    "dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 200_000_000, "max_model_len": 256,
    "max_num_seqs": 32, "disable_log_stats": True,
}  # fmt: skip


def features(told: dict[str, Any], folder: Path) -> Any:
    """Pooled features of groups of passages."""
    from vllm import LLM, SamplingParams

    from hneurons.answers.calls import is_apart
    from hneurons.answers.engine import WORKER
    from hneurons.layout import Layout
    from hneurons.neurons.cett import Passage
    from hneurons.types import REGIONS
    from hneurons.vllm.features import VLLMExtractor

    llm = LLM(told["model"], worker_extension_cls=WORKER, **{**COMMON, **told["engine"]})
    layout = Layout(*(tuple(each) for each in told["layout"]))
    extractor = VLLMExtractor(llm, layout, REGIONS)
    twice = VLLMExtractor(llm, layout, REGIONS)  # a second one finds the hooks there
    groups = [[Passage(p[0], tuple(p[1]), p[2], tuple(p[3])) for p in group] for group in told["groups"]]
    # As after sampling: with prefix caching the engine has all of them in its cache.
    again = SamplingParams(temperature=0.0, max_tokens=1)
    prompts = [{"prompt_token_ids": list(passage.ids)} for group in groups for passage in group]
    cached = [[output.num_cached_tokens for output in llm.generate(prompts, again, use_tqdm=False)] for _ in range(2)]
    if is_apart(llm.llm_engine.engine_core):  # an interrupt in the driver leaves nothing behind
        step = llm.llm_engine.step

        def stop() -> Any:
            llm.llm_engine.step = step
            raise KeyboardInterrupt

        llm.llm_engine.step = stop
        with suppress(KeyboardInterrupt):
            list(extractor.many(groups[::-1]))
        assert not llm.llm_engine.has_unfinished_requests()
    paths = []
    for number, found in enumerate(extractor.many(groups)):
        paths.append(str(folder / f"{number}.npy"))
        np.save(paths[-1], found.dense())
    list(twice.many(groups))  # and nothing of the first one's in the cache
    refused = {}
    for name, wrong in told.get("refused", {}).items():
        try:
            VLLMExtractor(llm, Layout(*(tuple(each) for each in wrong)), REGIONS)
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {error}"
    try:
        list(extractor.many([[Passage("long", (5,) * told["too_long"], 3, (0, 1))]]))
    except Exception as error:
        refused["long"] = f"{type(error).__name__}: {error}"
    return {"paths": paths, "refused": refused, "cached": cached}


def dial(told: dict[str, Any], folder: Path) -> Any:
    """Greedy continuations of prompts with an alpha each, all in one batch, several times; risks of each time."""
    from vllm import LLM, SamplingParams

    from hneurons.vllm.asked import card_of_environment
    from hneurons.vllm.risks import CALL, gathered, risks

    card = card_of_environment()
    assert (card is None) is bool(told.get("bare"))
    llm = LLM(told["model"], **{**COMMON, **told["engine"]})
    rounds = []
    for wanted in told["rounds"]:
        params = [
            SamplingParams(temperature=0.0, max_tokens=told["tokens"], extra_args={"hneurons": each["asked"]})
            for each in wanted
        ]
        outputs = llm.generate([{"prompt_token_ids": each["prompt"]} for each in wanted], params, use_tqdm=False)
        names = [output.request_id for output in outputs]
        if card is None:
            told_of = [None] * len(wanted)
        elif told.get("scores"):
            found = gathered(llm.collective_rpc(CALL, args=(names,)), card.probe.intercept)
            told_of = [found[name, 0].scores.tolist() if (name, 0) in found else None for name in names]
        else:
            told_of = [each[0] for each in risks(llm, outputs, [each["question"] for each in wanted], card)]
        ids = [list(output.outputs[0].token_ids) for output in outputs]
        cached = [output.num_cached_tokens for output in outputs]
        rounds.append([{"ids": i, "told": t, "cached": c} for i, t, c in zip(ids, told_of, cached, strict=True)])
    refused = {}
    for asked in told.get("refused", []):
        try:
            llm.generate([{"prompt_token_ids": [1, 2]}], SamplingParams(extra_args={"hneurons": asked}), use_tqdm=False)
        except Exception as error:
            refused[json.dumps(asked)] = f"{type(error).__name__}: {error}"
    return {"rounds": rounds, "refused": refused}


def lora(told: dict[str, Any], folder: Path) -> Any:
    """Greedy continuations of prompts, each with an adapter or none, all in one batch."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(told["model"], enable_lora=True, **{**COMMON, **told["engine"]})
    rounds = []
    for wanted in told["rounds"]:
        adapters = [
            LoRARequest(each["name"], 1 + told["names"].index(each["name"]), each["adapter"])
            if each["adapter"]
            else None
            for each in wanted
        ]
        params = SamplingParams(temperature=0.0, max_tokens=told["tokens"])
        outputs = llm.generate(
            [{"prompt_token_ids": each["prompt"]} for each in wanted], params, lora_request=adapters, use_tqdm=False
        )
        rounds.append([list(output.outputs[0].token_ids) for output in outputs])
    return rounds


def engine(told: dict[str, Any], folder: Path) -> Any:
    """Greedy responses of `VLLMEngine` to questions, at alphas."""
    from hneurons.answers.engine import Request, Sampling
    from hneurons.answers.vllm import VLLMEngine
    from hneurons.models.outline import load_outline
    from hneurons.types import Question, to_json

    outline = load_outline(told["model"], device="cpu")
    made = VLLMEngine(outline, {"kv_cache_memory_bytes": 200_000_000, **told["engine"]}, dial=told["dial"])
    asked = [Request(Question(q, q, ("x",)), 0, alpha=alpha) for q in told["questions"] for alpha in told["alphas"]]
    found = made.sample(asked, Sampling(temperature=0.0, max_new_tokens=told["tokens"]))
    made.close()
    return [to_json(response) for response in found]


def memory(told: dict[str, Any], folder: Path) -> Any:
    """What sampling and measuring say when the forward pass gets no more memory; and responses once it does again.

    Of a prompt that was in the pass: vLLM's prefix cache holds it, and what it holds was never computed.

    The pass asks for more than there is, at a place of its own. A limit of the process instead makes whatever asks
    first fail, and some libraries of C end the process then.
    """
    import torch

    from hneurons.answers.engine import Request, Sampling
    from hneurons.answers.vllm import VLLMEngine
    from hneurons.models.outline import load_outline
    from hneurons.neurons.cett import Passage
    from hneurons.types import REGIONS, Question, to_json
    from hneurons.vllm.engine import check_engine
    from hneurons.vllm.features import VLLMExtractor

    outline = load_outline(told["model"], device="cpu")
    made = VLLMEngine(outline, {"kv_cache_memory_bytes": 200_000_000}, check=check_engine)
    asked = [Request(Question(q, q, ("x",)), 0) for q in told["questions"]]
    sampling = Sampling(temperature=0.0, max_new_tokens=told["tokens"])
    extractor = VLLMExtractor(made.llm, outline.layout, REGIONS)
    passages = [Passage(str(n), tuple(outline.prompt_ids(r.said)), 3, (0, 1)) for n, r in enumerate(asked)]

    def want_more(*_: Any) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    said = {}
    for name, work in {
        "measured": lambda: list(extractor.many([passages])), "sampled": lambda: made.sample(asked, sampling)
    }.items():  # fmt: skip
        (hook,) = made.llm.apply_model(lambda model: model.register_forward_pre_hook(want_more))
        try:
            work()
            said[name] = "nothing"
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
        hook.remove()
        if name == "measured":
            try:
                work()
            except Exception as error:
                said["then"] = f"{type(error).__name__}: {error}"
    found = made.sample(asked[:1], sampling)
    made.close()
    return {"said": said, "after": [to_json(response) for response in found]}


def killed(told: dict[str, Any], folder: Path) -> Any:
    """What sampling and measuring say when vLLM's process is killed, and the next call of it; and responses then."""
    import multiprocessing

    from hneurons.answers.engine import Request, Sampling
    from hneurons.answers.vllm import VLLMEngine
    from hneurons.models.outline import load_outline
    from hneurons.neurons.cett import Passage
    from hneurons.types import REGIONS, Question, to_json
    from hneurons.vllm.engine import check_engine
    from hneurons.vllm.features import VLLMExtractor

    outline = load_outline(told["model"], device="cpu")
    made = VLLMEngine(outline, {"kv_cache_memory_bytes": 200_000_000}, check=check_engine)
    asked = [Request(Question(q, q, ("x",)), sample) for q in told["questions"] for sample in range(8)]
    passages = [[Passage(str(n), tuple(outline.prompt_ids(r.said)), 3, (0, 1))] for n, r in enumerate(asked)]
    said = []
    for number in range(3):
        llm = made.llm
        extractor = VLLMExtractor(llm, outline.layout, REGIONS)
        (process,) = multiprocessing.active_children()

        def after_a_kill(inner: Any, process: Any = process) -> Any:
            def call(*args: Any, **named: Any) -> Any:
                process.kill()
                return inner(*args, **named)

            return call

        if number < 2:
            llm.llm_engine.step = after_a_kill(llm.llm_engine.step)
        else:
            llm.collective_rpc = after_a_kill(llm.collective_rpc)
        for sampled in (number == 0, False):
            try:
                made.sample(asked, Sampling(max_new_tokens=64)) if sampled else list(extractor.many(passages))
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}")
    found = made.sample(asked[:1], Sampling(temperature=0.0, max_new_tokens=24))
    made.close()
    return {"said": said, "after": [to_json(response) for response in found]}


def check(told: dict[str, Any], folder: Path) -> Any:
    """What `check_engine` says of configurations, none of which is started."""
    from vllm.engine.arg_utils import EngineArgs

    from hneurons.errors import UsageError
    from hneurons.vllm.engine import check_engine, check_extension

    found = {}
    for name, options in told["engines"].items():
        variables = options.pop("variables", {})
        settings = {**COMMON, **options}
        config = EngineArgs(told["model"], **settings).create_engine_config()
        # Only now: without Triton vLLM itself refuses the newer model runner.
        os.environ.update(variables)
        try:
            check_engine(config)
            check_extension(config)
            found[name] = None
        except UsageError as error:
            found[name] = str(error)
        for variable in variables:
            del os.environ[variable]
    return found


if __name__ == "__main__":
    part, scratch = sys.argv[1], Path(sys.argv[2])
    parts = (features, dial, lora, engine, memory, killed, check)
    result = {each.__name__: each for each in parts}[part](json.loads((scratch / "in.json").read_text()), scratch)
    (scratch / "out.json").write_text(json.dumps(result))
