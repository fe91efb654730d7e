import os
from collections.abc import Iterator
from pathlib import Path

# Before torch and the hub library are imported: one thread (other work shares the machine), no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

import tiny
from hneurons.answers.endpoint import Endpoint
from hneurons.answers.llm import LLMClient
from hneurons.models.load import StudyModel
from llm_server import LLMServer, Say

torch.set_num_threads(1)
transformers_logging.set_verbosity_error()
# Fixtures of narrower scope are constants here; a slow machine is no failure. The same examples each time, so that
# a change fails for what it changes; HNEURONS_RANDOM=1 draws others.
settings.register_profile(
    "hneurons",
    deadline=None,
    derandomize="HNEURONS_RANDOM" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("hneurons")


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch):
    """Keep the user's cache out of every test but those of the real model."""
    if request.node.get_closest_marker("real") is None:
        monkeypatch.setenv("HNEURONS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a ChatML-like template."""
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """The same without a chat template."""
    return tiny.tokenizer(chat=False)


@pytest.fixture(scope="session")
def llama() -> StudyModel:
    """A tiny random Llama in float32; tests don't change it."""
    return tiny.study("llama")


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """Reports without figures, which take longer than a whole run of a tiny model; test_report.py looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hneurons.report.page.draw", lambda *_: {})
        yield


@pytest.fixture
def server() -> Iterator[LLMServer]:
    """A judging model's endpoint; a test says what it answers."""
    with LLMServer(Say('{"verdict": "correct"}')) as running:
        yield running


@pytest.fixture
def client(server: LLMServer, tmp_path: Path) -> Iterator[LLMClient]:
    """Asks that endpoint."""
    pytest.importorskip("openai", reason="needs the extra `judge`")
    with LLMClient(Endpoint(model="m", base_url=server.url, timeout=5, retries=1), tmp_path) as made:
        yield made
