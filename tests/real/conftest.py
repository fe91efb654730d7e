"""The demo model, loaded once."""

import pytest

import hneurons
from hneurons.errors import ModelNotFoundError
from hneurons.models.load import StudyModel


@pytest.fixture(scope="session")
def model() -> StudyModel:
    """SmolLM2-135M-Instruct in float32 on the CPU; tests don't change it."""
    try:
        hneurons.pull("smollm2-135m")
    except ModelNotFoundError as error:
        pytest.skip(f"the demo model can't be fetched: {error}")
    return hneurons.load_model("smollm2-135m", device="cpu")
