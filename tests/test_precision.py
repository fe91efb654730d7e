"""Placement and precision: offloaded, spread, narrow, quantised and tied weights give the same neurons."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

import architectures
import brute
import tiny
from hneurons.errors import HNeuronsError, UnsupportedModelError
from hneurons.models import load
from hneurons.models.ffn import find_ffns
from hneurons.models.load import StudyModel, load_model
from hneurons.models.weights import linear_weight, onloaded
from hneurons.neurons.cett import PooledExtractor
from hneurons.neurons.scaling import scale
from hneurons.neurons.verify import verify

KINDS = ["LlamaForCausalLM", "GPT2LMHeadModel", "Qwen2MoeForCausalLM", "GptOssForCausalLM", "Llama4ForCausalLM",
         "GraniteMoeSharedForCausalLM"]  # fmt: skip
WIDE = {"hidden_size": 64, "intermediate_size": 128}


def network(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return architectures.network(architectures.row(name), dtype)


def study(made: Any, name: str = "model") -> StudyModel:
    return StudyModel(name, "object", made, tiny.tokenizer(), None, find_ffns(made))


def wide() -> Any:
    """A Llama whose rows are long enough for groups of quantised weights."""
    row = architectures.Row("LlamaForCausalLM", "LlamaConfig", WIDE)
    return architectures.network(row)


# -- offloading ---------------------------------------------------------------------------------------


def offloaded(name: str, where: str, folder: Path) -> StudyModel:
    accelerate = pytest.importorskip("accelerate")
    made = network(name)
    if where == "memory":
        accelerate.cpu_offload(made, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(made, str(folder), execution_device=torch.device("cpu"))
    return study(made)


# Llama 4 offloaded module by module can't run in accelerate 1.15, hooks or not; placed by layers (spread) it can.
@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("name", [name for name in KINDS if name != "Llama4ForCausalLM"])
def test_offloaded_weights_give_the_same_neurons(name: str, where: str, tmp_path: Path):
    here, there = study(network(name)), offloaded(name, where, tmp_path)
    assert there.device.type == "cpu"
    assert there.layout == here.layout
    batch = brute.passages()
    np.testing.assert_allclose(PooledExtractor(there)(batch), PooledExtractor(here)(batch), rtol=1e-6, atol=1e-8)
    ids = torch.tensor([batch[1].ids])
    neurons = here.layout.ids(range(0, here.neurons, 5))
    with torch.no_grad(), scale(here, neurons, 0.0), scale(there, neurons, 0.0):
        torch.testing.assert_close(there.model(ids).logits, here.model(ids).logits)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen2MoeForCausalLM"])
def test_offloaded_models_are_certified(name: str, tmp_path: Path):
    assert verify(offloaded(name, "memory", tmp_path)).passed


def test_offloaded_weights_are_away_again_afterwards(tmp_path: Path):
    model = offloaded("LlamaForCausalLM", "memory", tmp_path)
    norms = model.ffns[0].column_norms()
    assert norms.device.type == "cpu"
    assert model.ffns[0].down.weight.device.type == "meta"
    with onloaded(model.ffns[0].down):
        assert model.ffns[0].down.weight.device.type == "cpu"
    assert model.ffns[0].down.weight.device.type == "meta"


def test_a_model_spread_over_memory_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("accelerate")
    folder = tiny.save(tmp_path / "model")
    # As on a machine whose memory holds a part of the model only.
    real = load._placement
    monkeypatch.setattr(load, "_placement", lambda device: {**real(device), "max_memory": {"cpu": 60_000}})
    spread = load_model(folder, device="spread")
    monkeypatch.undo()
    whole = load_model(folder, device="cpu")
    where = {parameter.device.type for parameter in spread.model.parameters()}
    assert "meta" in where
    batch = brute.passages(vocabulary=330)
    np.testing.assert_allclose(PooledExtractor(spread)(batch), PooledExtractor(whole)(batch), rtol=1e-6, atol=1e-8)
    assert verify(spread).passed


# -- narrow types -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KINDS)
def test_narrow_weights_are_summed_in_float32(name: str, dtype: torch.dtype):
    made = network(name, dtype)
    model = study(made)
    for ffn in model.ffns:
        exact = ffn.weight().double().norm(dim=0)
        assert ffn.column_norms().dtype is torch.float32
        torch.testing.assert_close(ffn.column_norms().double(), exact, rtol=1e-6, atol=0)
    features = PooledExtractor(model)(brute.passages())
    assert features.dtype == np.float32
    wide_twin = study(brute.double(made))
    exact = PooledExtractor(wide_twin)(brute.passages())
    both = (features > 0) & (exact > 0)  # a router's tie may fall otherwise
    assert np.median(np.abs(features[both] / exact[both] - 1)) < 4e-2


def test_half_precision_norms_do_not_overflow():
    model = study(network("LlamaForCausalLM", torch.float16))
    model.ffns[0].down.weight.data.fill_(30000.0)
    assert torch.isfinite(model.ffns[0].column_norms()).all()


# -- quantised weights --------------------------------------------------------------------------------


def torchao(config: str, **options: Any) -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    made = wide()
    if options.pop("grouped", False):
        options["granularity"] = quantization.granularity.PerGroup(32)
    quantization.quantize_(made.model.layers, getattr(quantization, config)(**options))
    return made


def quanto() -> Any:
    library = pytest.importorskip("optimum.quanto")
    made = wide()
    library.quantize(made.model, weights=library.qint8)
    library.freeze(made.model)
    return made


def bitsandbytes(kind: str) -> Any:
    library = pytest.importorskip("bitsandbytes")
    made = wide()
    for layer in made.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            old = getattr(layer.mlp, name)
            if kind == "int8":
                new = library.nn.Linear8bitLt(old.in_features, old.out_features, bias=False, has_fp16_weights=False)
            else:
                new = library.nn.Linear4bit(old.in_features, old.out_features, bias=False, quant_type="nf4",
                                            compute_dtype=torch.float32)  # fmt: skip
            new.load_state_dict(old.state_dict())
            setattr(layer.mlp, name, new.to("cpu"))
    return made


QUANTISED = {
    "torchao int8": lambda: torchao("Int8WeightOnlyConfig"),
    "torchao int4": lambda: torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4, grouped=True),
    "quanto int8": quanto,
    "bitsandbytes int8": lambda: bitsandbytes("int8"),
    "bitsandbytes nf4": lambda: bitsandbytes("nf4"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_measured_dequantised(kind: str):
    made = QUANTISED[kind]()
    model = study(made, kind)
    plain = study(wide())
    for ffn, original in zip(model.ffns, plain.ffns, strict=True):
        weight = ffn.weight().float()
        assert weight.shape == (64, 128)
        with torch.no_grad():
            written = ffn.down(torch.eye(128)).float().T
        torch.testing.assert_close(weight, written, rtol=2e-2, atol=2e-3)
        torch.testing.assert_close(ffn.column_norms(), weight.norm(dim=0), rtol=1e-5, atol=0)
        error = (weight - original.weight()).norm() / original.weight().norm()
        assert error < 0.15  # quantised, and still the same weight
    result = verify(model)
    assert result.passed, str(result)


class Packed(nn.Module):
    """A linear map whose weight is packed in a way that nobody else knows."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter((linear.weight * 64).round().to(torch.int8).flatten(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.float() / 64).reshape(self.out_features, self.in_features).T


def test_an_unknown_packing_is_read_by_probing():
    made = network("LlamaForCausalLM")
    for layer in made.model.layers:
        mlp = layer.mlp
        mlp.down_proj, mlp.up_proj, mlp.gate_proj = Packed(mlp.down_proj), Packed(mlp.up_proj), Packed(mlp.gate_proj)
    model = study(made)
    expected = (model.ffns[0].down.weight.float() / 64).reshape(32, 24)
    torch.testing.assert_close(model.ffns[0].weight(), expected)
    assert verify(model).passed


def test_a_packing_that_can_not_be_read_is_refused():
    made = network("LlamaForCausalLM")
    down = Packed(made.model.layers[0].mlp.down_proj)
    down.forward = lambda x: (_ for _ in ()).throw(RuntimeError("no kernel\nfor this"))  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModelError) as caught:
        linear_weight(down)
    assert "no kernel for this" in str(caught.value)
    assert "\n" not in str(caught.value)


# -- tied and biased ----------------------------------------------------------------------------------


def test_biased_down_projections_belong_to_no_neuron():
    made = network("GPT2LMHeadModel")
    model = study(made)
    bias = model.ffns[0].bias()
    assert bias is not None
    assert bias.norm() > 0
    twin = copy.deepcopy(made)
    for layer in twin.transformer.h:
        layer.mlp.c_proj.bias.data.zero_()
    torch.testing.assert_close(study(twin).ffns[0].column_norms(), model.ffns[0].column_norms())
    assert verify(model).passed


def test_down_projections_tied_between_layers_are_measured_layer_by_layer():
    made = network("LlamaForCausalLM")
    first, second = made.model.layers
    second.mlp.down_proj.weight = first.mlp.down_proj.weight
    model = study(made)
    row = architectures.row("LlamaForCausalLM")
    passage = brute.passages()[1]
    shares = brute.contributions(model, row, passage)
    features = PooledExtractor(model)([passage])[0]
    np.testing.assert_allclose(features[2], shares[passage.prompt_tokens :].mean(axis=0), rtol=1e-4, atol=1e-7)
    # Scaling a neuron of one layer leaves its twin in the other layer alone.
    assert verify(model).passed


# -- models without what is needed --------------------------------------------------------------------


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(HNeuronsError) as caught:
        load_model(folder, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return str(caught.value)


def test_a_folder_without_weights(tmp_path: Path):
    tiny.save(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    assert "model" in refused(tmp_path / "model")


def test_a_model_of_its_own_code_is_not_run_unasked(tmp_path: Path):
    tiny.save(tmp_path / "model")
    config = (tmp_path / "model" / "config.json").read_text()
    auto_map = '"auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}'
    config = config.replace('"model_type": "llama"', f'"model_type": "mine", {auto_map}')
    (tmp_path / "model" / "config.json").write_text(config)
    (tmp_path / "model" / "mine.py").write_text("raise SystemExit('ran')\n")
    assert "--trust-remote-code" in refused(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("BertForMaskedLM", {"intermediate_size": 48}, "BertForMaskedLM"),
        ("ModernBertForMaskedLM", {"intermediate_size": 48}, "ModernBertForMaskedLM"),
        ("BertLMHeadModel", {"intermediate_size": 48}, "encoder"),
        ("LlamaForSequenceClassification", {"intermediate_size": 48}, "LlamaForSequenceClassification"),
        ("T5ForConditionalGeneration", {"d_model": 32, "num_layers": 2, "d_ff": 48, "d_kv": 8}, "encoder-decoder"),
    ],
)
def test_what_is_no_decoder_is_refused_by_name(tmp_path: Path, name: str, options: dict[str, Any], says: str):
    sizes = {"vocab_size": 330, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    kind = getattr(hf, name).config_class
    if name.startswith("T5"):
        sizes = {"vocab_size": 330}
    getattr(hf, name)(kind(**sizes, **options)).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    assert says in refused(tmp_path / "model")


VISION = [row.architecture for row in architectures.ROWS if row.text is not None]


@pytest.mark.parametrize("name", VISION)
def test_vision_language_models_load_from_a_folder(tmp_path: Path, name: str):
    made = network(name)
    made.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert type(loaded.model).__name__ == name
    row = architectures.row(name)
    assert tuple(loaded.widths) == row.widths
    ids = torch.tensor([brute.passages()[0].ids])
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, made(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
