import copy
import gc
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tiny
from hneurons.answers.kvcache import common_prefix
from hneurons.errors import NumericError
from hneurons.models.load import StudyModel
from hneurons.models.parts import FFN
from hneurons.models.structure import backbone
from hneurons.neurons.capture import capture
from hneurons.neurons.cett import Passage, PooledExtractor, batches
from hneurons.types import REGIONS, Region


def passages(seed: int = 0) -> list[Passage]:
    """Four of different length; answers at the start, in the middle, at the end, and everything."""
    rng = np.random.default_rng(seed)
    shapes = [(5, 6, (0, 2)), (9, 7, (2, 5)), (3, 4, (3, 4)), (6, 3, (0, 3))]
    return [
        Passage(f"q{i}", tuple(rng.integers(3, 330, prompt + response).tolist()), prompt, answer)
        for i, (prompt, response, answer) in enumerate(shapes)
    ]


def brute_force(model: StudyModel, passage: Passage) -> np.ndarray:
    """Share of each layer's output that is lost when one neuron is silenced: (tokens, neurons)."""
    seen: list[tuple[FFN, Tensor]] = []
    with capture(model.ffns, lambda _, ffn, z, h: seen.append((ffn, z.reshape(len(passage.ids), -1)))), torch.no_grad():
        model.model(torch.tensor([passage.ids]))
    layers = []
    for ffn, z in seen:
        down = copy.deepcopy(ffn.down).double()  # the difference of two nearly equal outputs needs the digits
        whole = down(z.double())
        shares = []
        for neuron in range(ffn.width):
            masked = z.double().clone()
            masked[:, neuron] = 0
            shares.append((whole - down(masked)).norm(dim=-1) / whole.norm(dim=-1))
        layers.append(torch.stack(shares, dim=-1))
    return torch.cat(layers, dim=-1).numpy()


FAMILIES = ["llama", "gpt2", "opt", "phi3"]


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", [*FAMILIES, "gpt-neox", "gemma3", "falcon"])
def test_equals_silencing_one_neuron_at_a_time(kind: str, double: bool):
    model = tiny.study(kind, double=double)
    # In float32 a neuron that hardly fires differs between a batch and a single passage by rounding of the model.
    tolerance = {"rtol": 1e-5, "atol": 1e-9 if double else 1e-6}
    batch = passages()
    features = PooledExtractor(model)(batch)
    assert features.shape == (4, len(REGIONS), 144)
    assert features.dtype == np.float32
    for row, passage in enumerate(batch):
        shares = brute_force(model, passage)
        for column, region in enumerate(REGIONS):
            tokens = passage.mask(region)
            expected = shares[tokens].mean(axis=0) if tokens.any() else np.zeros(144)
            np.testing.assert_allclose(features[row, column], expected, **tolerance)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_padded_batch_equals_one_at_a_time(kind: str):
    extractor = PooledExtractor(tiny.study(kind))
    batch = passages()
    together = extractor(batch)
    for row, passage in enumerate(batch):
        np.testing.assert_allclose(extractor([passage])[0], together[row], rtol=1e-4, atol=1e-7)


def test_rows_keep_their_order(llama: StudyModel):
    extractor = PooledExtractor(llama)
    batch = passages()
    np.testing.assert_allclose(extractor(batch[::-1])[::-1], extractor(batch), rtol=1e-4, atol=1e-7)


def test_answer_and_other_make_up_the_response(llama: StudyModel):
    batch = passages(1)
    features = PooledExtractor(llama)(batch)
    column = {region: i for i, region in enumerate(REGIONS)}
    for row, passage in enumerate(batch):
        masks = {region: passage.mask(region) for region in REGIONS}
        answer, other = masks[Region.ANSWER], masks[Region.OTHER]
        assert not (answer & other).any()
        np.testing.assert_array_equal(answer | other, masks[Region.RESPONSE])
        np.testing.assert_array_equal(masks[Region.PROMPT], ~masks[Region.RESPONSE])
        assert masks[Region.PROMPT].sum() == passage.prompt_tokens
        share = answer.sum() / masks[Region.RESPONSE].sum()
        mixed = share * features[row, column[Region.ANSWER]] + (1 - share) * features[row, column[Region.OTHER]]
        np.testing.assert_allclose(mixed, features[row, column[Region.RESPONSE]], rtol=1e-4, atol=1e-7)


def test_a_region_without_tokens_is_zero(llama: StudyModel):
    everything = passages()[3]
    assert not everything.mask(Region.OTHER).any()
    assert not PooledExtractor(llama, [Region.OTHER])([everything]).any()


def test_only_the_regions_asked_for_in_their_order(llama: StudyModel):
    batch = passages()
    every = PooledExtractor(llama)(batch)
    two = PooledExtractor(llama, [Region.PROMPT, Region.ANSWER])(batch)
    np.testing.assert_allclose(two[:, 0], every[:, list(REGIONS).index(Region.PROMPT)], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(two[:, 1], every[:, list(REGIONS).index(Region.ANSWER)], rtol=1e-6, atol=1e-9)


def test_a_layer_whose_output_is_zero_contributes_nothing():
    model = tiny.study()
    model.ffns[1].down.weight.data.zero_()
    features = PooledExtractor(model)(passages())
    assert not features[:, :, 48:96].any()
    assert features[:, 0, :48].all()


# -- hooks and what runs ------------------------------------------------------------------------------


def hooks(model: StudyModel) -> int:
    modules = model.model.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_hooks_come_off(llama: StudyModel):
    before = hooks(llama)
    with capture(llama.ffns, lambda *_: None):
        assert hooks(llama) == before + 3
    assert hooks(llama) == before
    PooledExtractor(llama)(passages())
    assert hooks(llama) == before


def test_hooks_come_off_after_an_exception(llama: StudyModel):
    before = hooks(llama)
    with pytest.raises(KeyError), capture(llama.ffns, lambda *_: None):
        raise KeyError

    def fail(*_: object) -> None:
        raise RuntimeError("inside the callback")

    with pytest.raises(RuntimeError, match="inside"), capture(llama.ffns, fail):
        llama.model(torch.tensor([[5, 6]]))
    assert hooks(llama) == before


def test_capture_hands_over_what_goes_in_and_out(llama: StudyModel):
    seen = []
    with capture(llama.ffns, lambda *call: seen.append(call)), torch.no_grad():
        llama.model(torch.tensor([[5, 6, 7]]))
    assert [position for position, *_ in seen] == [0, 1, 2]
    for position, ffn, z, h in seen:
        assert ffn is llama.ffns[position]
        assert (z.shape, h.shape) == ((1, 3, 48), (1, 3, 32))
        torch.testing.assert_close(z @ ffn.weight().T, h)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_lm_head_does_not_run(kind: str):
    model = tiny.study(kind)
    ran = []
    model.model.get_output_embeddings().register_forward_hook(lambda *_: ran.append(1))
    PooledExtractor(model)(passages())
    assert ran == []
    assert backbone(model.model) is not model.model


def live(width: int) -> int:
    """Tensors with one number a neuron and token that are alive now."""
    gc.collect()
    return sum(type(thing) is Tensor and thing.dim() == 3 and thing.shape[-1] == width for thing in gc.get_objects())


def test_no_activation_outlives_its_layer(monkeypatch: pytest.MonkeyPatch):
    model = tiny.study()
    extractor = PooledExtractor(model)
    before = live(48)
    alive: list[int] = []
    handles = [layer.register_forward_pre_hook(lambda *_: alive.append(live(48))) for layer in model.model.model.layers]
    extractor(passages())
    assert alive == [before] * 3  # on entering a layer, nothing of the one before is left
    assert live(48) == before
    for handle in handles:
        handle.remove()


# -- numbers that are none ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_weights_are_named_by_layer_and_example(value: float):
    model = tiny.study()
    model.model.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
    with pytest.raises(NumericError) as caught:
        PooledExtractor(model)(passages())
    assert "layer 1" in str(caught.value)
    assert "'q0'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_example_that_is_bad_is_named_and_not_its_neighbours():
    model = tiny.study()
    batch = passages()
    token = batch[2].ids[1]
    assert not any(token in passage.ids for i, passage in enumerate(batch) if i != 2)
    model.model.model.embed_tokens.weight.data[token] = float("nan")
    with pytest.raises(NumericError, match="layer 0 on example 'q2'"):
        PooledExtractor(model)(batch)


def test_an_output_that_overflows_in_the_last_layer_is_an_error_too():
    # In float16 the output passes 65,504 long before the intermediate does.
    model = tiny.study()
    model.model.half()
    model.ffns[2].down.weight.data.fill_(60000.0)
    seen = []
    with capture(model.ffns, lambda position, _, z, h: seen.append((position, z, h))), torch.no_grad():
        model.model(torch.tensor([passages()[0].ids]))
    assert torch.isfinite(seen[2][1]).all()
    assert torch.isinf(seen[2][2]).any()
    with pytest.raises(NumericError, match="layer 2"):
        PooledExtractor(model)(passages())


# -- batches ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 500))
def test_batches_are_a_partition_within_the_budget(lengths: list[int], budget: int):
    groups = batches(lengths, budget)
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget
    assert groups == batches(list(lengths), budget)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 500))
def test_batches_hold_neighbours_in_length_and_are_full(lengths: list[int], budget: int):
    groups = batches(lengths, budget)
    flat = [lengths[i] for group in groups for i in group]
    assert flat == sorted(flat)
    for group, after in itertools.pairwise(groups):
        assert (len(group) + 1) * lengths[after[0]] > budget


def sizes(groups: Sequence[Sequence[int]]) -> list[int]:
    return [len(group) for group in groups]


def test_batches_by_example():
    assert batches([3, 10, 4, 3], 12) == [[0, 3, 2], [1]]
    assert sizes(batches([5] * 7, 15)) == [3, 3, 1]
    assert batches([], 10) == []


@pytest.mark.parametrize("regions", [REGIONS, (Region.OTHER, Region.ANSWER)], ids=["all", "two"])
@pytest.mark.parametrize("kind", [*FAMILIES, "gpt-neox", "falcon", "gemma3", "mixtral"])
def test_what_prompts_share_goes_through_the_model_once(kind: str, regions: tuple[Region, ...]):
    model = tiny.study(kind, double=kind != "mixtral")  # its experts don't compute in float64
    asked = ["Who?", "What is the capital of France?", "In the year 1925?", "Who wrote it?"]
    batch = []
    for number, question in enumerate(asked):
        prompt = model.prompt_ids(question)
        response = [50 + 7 * number + k for k in range(4 + number)]
        batch.append(Passage(question, (*prompt, *response), len(prompt), (1, 3)))
    shared = common_prefix([passage.ids for passage in batch])
    assert shared >= 4
    seen: list[int] = []
    hook = model.model.get_input_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0].numel()))
    extractor = PooledExtractor(model, regions)
    made = [found.dense() for found in extractor.many([batch[:3], batch[3:]])]
    hook.remove()
    np.testing.assert_allclose(np.concatenate(made), extractor_alone(model, regions, batch), rtol=1e-5, atol=1e-6)
    lengths = [len(passage.ids) for passage in batch]
    whole = 3 * max(lengths[:3]) + lengths[3]
    # Only models with nothing but plain attention go on from a prefix; the batches are the last two passes.
    goes_on = kind not in ("gemma3", "mixtral")
    assert sum(seen[-2:]) == (whole - 4 * shared if goes_on else whole)


def extractor_alone(model: StudyModel, regions: tuple[Region, ...], batch: list[Passage]) -> np.ndarray:
    """Features of one passage at a time, whole."""
    return np.concatenate([PooledExtractor(model, regions)([passage]) for passage in batch])


def test_a_model_that_ignores_its_cache_gets_whole_passages(monkeypatch: pytest.MonkeyPatch):
    model = tiny.study("llama", double=True)
    ids = [model.prompt_ids(question) for question in ("Who?", "What is it?")]
    batch = [Passage(str(len(i)), (*i, 60, 61, 62), len(i), (0, 2)) for i in ids]
    forward = model.model.base_model.forward

    def forgetful(past_key_values: Any = None, attention_mask: Any = None, **named: Any) -> Any:
        length = named["input_ids"].shape[1]
        return forward(attention_mask=attention_mask[:, -length:], **{**named, "use_cache": False})

    monkeypatch.setattr(model.model.base_model, "forward", forgetful)
    made = next(PooledExtractor(model).many([batch])).dense()
    np.testing.assert_allclose(made, extractor_alone(model, REGIONS, batch), rtol=1e-5, atol=1e-9)
