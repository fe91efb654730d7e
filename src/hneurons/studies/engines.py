"""Which engine samples, and where the features come from: by name, as commands take them."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hneurons.answers.engine import Engine
from hneurons.errors import UsageError
from hneurons.models.load import StudyModel, load_model
from hneurons.models.outline import Outline, load_outline
from hneurons.neurons.cett import Extractor
from hneurons.runfolder import Json
from hneurons.studies.collect import HF
from hneurons.types import Region

VLLM, OPENAI = "vllm", "openai"
ENGINES = (HF, VLLM, OPENAI)
FEATURES = (HF, VLLM)


@dataclass(frozen=True)
class Engines:
    """Engine by name, with its settings."""

    engine: str = HF
    features: str | None = None
    """What measures contributions, `hf` or `vllm`; None: hf."""
    base_url: str | None = None
    served_model: str | None = None
    key_env: str | None = None
    args: dict[str, Any] = field(default_factory=dict[str, Any])
    """Of vLLM's `LLM`; for a server those of `hneurons.answers.endpoint.Endpoint`."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"There is no engine {self.engine!r}.", f"Engines: {', '.join(ENGINES)}.")
        if self.features not in (None, *FEATURES):
            raise UsageError(f"Features can't come from {self.features!r}.", f"Choose {' or '.join(FEATURES)}.")
        if self.features == VLLM and self.engine != VLLM:
            raise UsageError("Features come from vLLM only where it samples too.", "Add --engine vllm.")
        if (self.engine == OPENAI) != bool(self.base_url):
            raise UsageError(
                "--engine openai and --base-url belong together.", "E.g. --engine openai --base-url http://host:8000/v1"
            )
        if self.engine == HF and self.args:
            raise UsageError("--engine-arg is for --engine vllm and openai.", "Leave it out.")

    @property
    def in_vllm(self) -> bool:
        """Whether the features come from vLLM, so that transformers never loads the weights."""
        return self.features == VLLM


@dataclass(frozen=True)
class Opened:
    """A model with the engines that a study gets."""

    model: StudyModel
    engine: Engine | None = None
    extractor: Callable[[Sequence[Region]], Extractor] | None = None


@contextmanager
def open_engine(
    chosen: Engines, model: str, loading: dict[str, Any], say: Callable[[str], None] = lambda _: None
) -> Generator[Opened]:
    """The model with its engine, which is closed at the end; an outline of the model if that isn't transformers.

    Args:
        chosen: which.
        model: as for `load_model`.
        loading: options of `load_model`.
        say: gets the sentences.

    Raises:
        HNeuronsError: one of its children, with the remedy in the message.
    """
    if chosen.engine == HF:
        yield Opened(load_model(model, say=say, **loading))
        return
    outline = load_outline(model, loads=not chosen.in_vllm, say=say, **loading)
    engine = _made(chosen, outline, trust=bool(loading.get("trust_remote_code")))
    try:
        yield Opened(outline, engine, InVLLM(engine, outline) if chosen.in_vllm else None)
    finally:
        engine.close()


def _made(chosen: Engines, model: Outline, *, trust: bool) -> Any:
    if chosen.engine == VLLM:
        from hneurons.answers.vllm import VLLMEngine
        from hneurons.vllm.engine import check_engine

        # Refused before anything is sampled.
        return VLLMEngine(model, chosen.args, trust_remote_code=trust, check=check_engine if chosen.in_vllm else None)
    from hneurons.answers.openai import OpenAIEngine

    key: dict[str, Any] = {"key_env": chosen.key_env} if chosen.key_env else {}
    return OpenAIEngine(model, chosen.base_url or "", chosen.served_model, {**chosen.args, **key})


@dataclass(frozen=True)
class InVLLM:
    """Makes extractors that measure in the workers of a vLLM engine."""

    engine: Any
    """A `VLLMEngine`."""
    model: StudyModel
    name: str = VLLM
    """As runs record it."""

    def __call__(self, regions: Sequence[Region]) -> Extractor:
        """The extractor over those regions, in the vLLM that sampled."""
        from hneurons.vllm.features import VLLMExtractor

        return VLLMExtractor(self.engine.llm, self.model.layout, regions)


def recorded_engines(manifest: Json, **given: Any) -> Engines:
    """The engine of a run, as its manifest holds it; what is `given` and not None comes first."""
    name = str(manifest["settings"].get("engine", HF))
    new = {key: value for key, value in given.items() if value}
    if name not in ENGINES or new.get("engine", name) != name:
        return Engines(**new)
    setup: Json = manifest.get("engine") or {}
    # The key of one server is no other's.
    kept = ("base_url", "served_model", "args", *(() if new.get("base_url") else ("key_env",)))
    known: dict[str, Any] = {key: setup[key] for key in kept if setup.get(key)}
    args = {**known.get("args", {}), **new.get("args", {})}
    if manifest["settings"].get("features") in FEATURES:
        known["features"] = manifest["settings"]["features"]
    known |= {"engine": name, **new, "args": args}
    return Engines(**known)


def engine_args(given: Sequence[str] | None) -> dict[str, Any]:
    """Arguments from `KEY=VALUE` options: numbers, true, false and JSON as such, anything else as text.

    Raises:
        UsageError: one without `=`.
    """
    args: dict[str, Any] = {}
    for each in given or ():
        key, found, value = each.partition("=")
        if not found or not key:
            raise UsageError(f"--engine-arg {each!r} has no '='.", "Write it as --engine-arg max_model_len=4096.")
        try:
            args[key.replace("-", "_")] = json.loads(value)
        except ValueError:
            args[key.replace("-", "_")] = value
    return args
