import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from cards import probe
from hneurons.errors import CardError
from hneurons.models.load import StudyModel
from hneurons.neurons.card import Card
from hneurons.neurons.cett import Passage, PooledExtractor
from hneurons.neurons.tokens import showcase_rows, token_scores
from hneurons.types import Region


def card_of(model: StudyModel, neurons: list[tuple[int, int, float]], intercept: float = -0.7) -> Card:
    described = model.describe()
    return Card.model_validate(
        {
            "model": {key: described[key] for key in ("id", "architecture", "layers", "width", "neurons")},
            "probe": probe(intercept),
            "neurons": [{"layer": layer, "index": index, "weight": weight} for layer, index, weight in neurons],
        }
    )


NEURONS = [(0, 3, 4.0), (2, 47, -2.5), (2, 0, 1.5), (1, 11, 30.0), (0, 40, -8.0)]
PASSAGE = Passage("q", (5, 9, 30, 44, 60, 71, 88, 90, 101), 3, (1, 4))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "phi3", "gemma3"])
def test_the_mean_over_the_answer_is_the_pooled_score(kind: str):
    model = tiny.study(kind)
    card = card_of(model, NEURONS)
    scores = token_scores(model, card, PASSAGE)
    pooled = card.score(PooledExtractor(model, [Region.ANSWER])([PASSAGE])[:, 0])[0]
    assert scores.shape == (6,)
    assert scores[1:4].mean() == pytest.approx(pooled, abs=1e-5)
    assert scores.std() > 0.01


def test_layers_of_different_width_keep_their_columns():
    model = tiny.study()
    mlp = model.model.model.layers[0].mlp
    for name in ("gate_proj", "up_proj", "down_proj"):
        old = getattr(mlp, name)
        small = type(old)(32, 20, bias=False) if name != "down_proj" else type(old)(20, 32, bias=False)
        setattr(mlp, name, small.requires_grad_(False))
    model = tiny.StudyModel("odd", "object", model.model, model.tokenizer, None, tiny.find_ffns(model.model))
    assert model.widths == [20, 48, 48]
    card = card_of(model, [(0, 19, 2.0), (1, 0, 3.0), (2, 5, -1.0)])
    scores = token_scores(model, card, PASSAGE)
    pooled = card.score(PooledExtractor(model, [Region.ANSWER])([PASSAGE])[:, 0])[0]
    assert scores[1:4].mean() == pytest.approx(pooled, abs=1e-5)


def test_a_card_without_neurons_scores_its_intercept(llama: StudyModel):
    np.testing.assert_array_equal(token_scores(llama, card_of(llama, [], 0.25), PASSAGE), np.full(6, 0.25))


def test_a_card_of_another_model_is_refused(llama: StudyModel):
    card = card_of(tiny.study("gpt2"), NEURONS)
    with pytest.raises(CardError, match="GPT2LMHeadModel in the card, LlamaForCausalLM in the model"):
        token_scores(llama, card, PASSAGE)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["faithful", "hallucinated"])), max_size=40),
    st.integers(1, 8),
)
def test_showcase_rows_span_the_risks_of_either_class(items, each: int):
    risks, labels = [risk for risk, _ in items], [label for _, label in items]
    rows = showcase_rows(risks, labels, each)
    assert len(set(rows)) == len(rows)
    for label in set(labels):
        own = [row for row in rows if labels[row] == label]
        assert len(own) == min(each, labels.count(label))
        every = [risk for risk, other in items if other == label]
        assert [risks[row] for row in own] == sorted(risks[row] for row in own)
        assert risks[own[0]] == min(every)
        if len(own) > 1:
            assert risks[own[-1]] == max(every)
