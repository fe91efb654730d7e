"""The demo model's own GGUF file, four bits a weight, served by llama.cpp itself."""

from pathlib import Path

import pytest

import hneurons
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.answers.openai import RETOKENISED, OpenAIEngine
from hneurons.errors import ModelNotFoundError
from hneurons.models.demo import DEMO_MODELS, _fetch
from llamacpp_server import serving

pytestmark = pytest.mark.real
pytest.importorskip("xllamacpp", reason="llama.cpp in a wheel, for some platforms")
pytest.importorskip("openai", reason="needs the extra `judge`")


def test_it_says_what_transformers_says_for_the_most_part(tmp_path: Path):
    """llama.cpp rounds activations as well, so not every response is the same; token ids come from it."""
    try:
        model = hneurons.load_model("smollm2-135m", device="cpu")
        file = _fetch(DEMO_MODELS["smollm2-135m"], tmp_path, lambda _: None)
    except ModelNotFoundError as error:
        pytest.skip(f"the demo model can't be fetched: {error}")
    asked = [Request(question, 0) for question in hneurons.load_questions("starter", limit=12, seed=0).questions]
    sampling = Sampling(temperature=0.0, max_new_tokens=16)
    expected = HFEngine(model).sample(asked, sampling)
    with serving(file) as server:
        engine = OpenAIEngine(model, f"{server.url}/v1")
        found = engine.sample(asked, sampling)
        engine.close()
    assert RETOKENISED not in engine.notes
    assert all(len(response.token_ids) == len(response.logprobs) for response in found)
    same = [mine.token_ids == own.token_ids for mine, own in zip(found, expected, strict=True)]
    assert sum(same) > len(same) / 2
    first = [abs(mine.logprobs[0] - own.logprobs[0]) for mine, own in zip(found, expected, strict=True)]
    assert max(first) < 0.5
    assert {response.finish_reason for response in found} >= {"stop"}
