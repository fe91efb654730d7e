import pytest
import torch
import transformers as hf
from torch import nn

import tiny
from hneurons.errors import UnsupportedModelError
from hneurons.models.ffn import find_ffns

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def text_config(kind: str) -> dict:
    return tiny.CONFIGS[kind]().to_dict()


def test_every_architecture_is_checked():
    assert set(tiny.DOWN) == set(tiny.CONFIGS) - {"mixtral"}  # test_architectures.py has the mixtures


@pytest.mark.parametrize("kind", tiny.DOWN)
def test_finds_the_down_projection_of_every_layer(kind: str):
    network = tiny.network(kind)
    ffns = find_ffns(network)
    width = tiny.HIDDEN if kind.endswith("square") else tiny.WIDTH
    assert [ffn.path for ffn in ffns] == [tiny.DOWN[kind].format(layer) for layer in range(tiny.LAYERS)]
    assert [ffn.layer for ffn in ffns] == list(range(tiny.LAYERS))
    assert {(ffn.width, ffn.hidden) for ffn in ffns} == {(width, tiny.HIDDEN)}
    assert all(ffn.down is network.get_submodule(ffn.path) for ffn in ffns)


@pytest.mark.parametrize("kind", tiny.DOWN)
def test_weight_and_column_norms_are_what_one_neuron_writes(kind: str):
    ffn = find_ffns(tiny.network(kind))[1]
    norms = ffn.column_norms()
    assert norms.shape == (ffn.width,)
    assert norms.dtype == torch.float32
    zero = ffn.down(torch.zeros(1, ffn.width))[0]
    for neuron in (0, 7, ffn.width - 1):
        one = torch.zeros(1, ffn.width)
        one[0, neuron] = 1.0
        written = ffn.down(one)[0] - zero  # without the bias
        torch.testing.assert_close(ffn.weight()[:, neuron], written, rtol=1e-5, atol=1e-6)
        assert norms[neuron].item() == pytest.approx(written.norm().item(), rel=1e-5)


def test_a_fused_attention_map_twice_as_wide_is_no_ffn():
    # Two key-value heads for four query heads make query_key_value (d -> 2d), the shape of a fused gate and up.
    config = hf.FalconConfig(
        **{**text_config("falcon"), "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 48}
    )
    ffns = find_ffns(hf.FalconForCausalLM(config))
    assert [ffn.path for ffn in ffns] == [tiny.DOWN["falcon"].format(layer) for layer in range(tiny.LAYERS)]


def test_a_fused_attention_map_of_phi3_is_no_ffn():
    ffns = find_ffns(hf.Phi3ForCausalLM(hf.Phi3Config(**{**text_config("phi3"), "num_key_value_heads": 2})))
    assert [ffn.path for ffn in ffns] == [tiny.DOWN["phi3"].format(layer) for layer in range(tiny.LAYERS)]


def test_layers_of_different_width():
    network = tiny.network("llama")
    mlp = network.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = nn.Linear(32, 20, bias=False), nn.Linear(32, 20, bias=False)
    mlp.down_proj = nn.Linear(20, 32, bias=False)
    assert [ffn.width for ffn in find_ffns(network)] == [48, 20, 48]


def test_override_names_the_down_projections():
    network = tiny.network("llama")
    ffns = find_ffns(network, "model.layers.*.mlp.down_proj")
    assert [ffn.path for ffn in ffns] == [ffn.path for ffn in find_ffns(network)]
    assert [ffn.layer for ffn in ffns] == [0, 1, 2]
    assert [ffn.width for ffn in ffns] == [48, 48, 48]


def test_override_sorts_by_depth_and_not_by_name():
    network = hf.LlamaForCausalLM(hf.LlamaConfig(**{**text_config("llama"), "num_hidden_layers": 12}))
    assert [ffn.layer for ffn in find_ffns(network, "model.layers.*.mlp.down_proj")] == list(range(12))


def test_override_without_a_match_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM.*no\.such\.thing"):
        find_ffns(tiny.network("llama"), "no.such.thing")


class Odd(nn.Module):
    """A feed-forward layer with a bottleneck in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(32, 48), nn.Linear(48, 20), nn.Linear(20, 32)


def test_unknown_structure_names_the_linear_maps_and_the_override():
    network = tiny.network("llama")
    for layer in network.model.layers:
        layer.mlp = Odd()
    with pytest.raises(UnsupportedModelError) as caught:
        find_ffns(network)
    message = str(caught.value)
    assert "\n" not in message
    for name in ("mlp.first", "mlp.second", "mlp.third", "self_attn.q_proj", "--ffn"):
        assert name in message
    assert [ffn.width for ffn in find_ffns(network, "model.layers.*.mlp.third")] == [20, 20, 20]


def test_a_vision_language_model_has_only_its_language_neurons():
    config = hf.Gemma3Config(text_config=text_config("gemma3"), vision_config=VISION, mm_tokens_per_image=4)
    ffns = find_ffns(hf.Gemma3ForConditionalGeneration(config))
    assert [ffn.path for ffn in ffns] == [f"model.language_model.layers.{layer}.mlp.down_proj" for layer in range(3)]


def test_a_deeper_vision_tower_of_mistral3_is_left_alone():
    vision = {**VISION, "model_type": "pixtral", "head_dim": 8}
    config = hf.Mistral3Config(text_config=text_config("mistral"), vision_config=vision)
    ffns = find_ffns(hf.Mistral3ForConditionalGeneration(config))
    assert len(ffns) == tiny.LAYERS
    assert all("language_model" in ffn.path for ffn in ffns)
