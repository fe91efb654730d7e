"""Two more real models: Gemma 3 (a base model with norms around its FFN) and Qwen2 (biases, a large vocabulary)."""

import pytest

import hneurons
from hneurons.errors import ModelNotFoundError

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("name", "architecture", "layers", "width", "chat"),
    [
        ("gemma3-270m", "Gemma3ForCausalLM", 18, 2048, False),
        ("qwen2.5-coder-0.5b", "Qwen2ForCausalLM", 24, 4864, True),
    ],
)
def test_it_is_certified(name: str, architecture: str, layers: int, width: int, chat: bool):
    try:
        hneurons.pull(name)
    except ModelNotFoundError as error:
        pytest.skip(f"{name} can't be fetched: {error}")
    model = hneurons.load_model(name, device="cpu")
    described = model.describe()
    assert (described["architecture"], described["layers"], described["width"]) == (architecture, layers, width)
    assert model.has_chat_template is chat
    result = hneurons.verify(model)
    assert result.passed, str(result)
