"""Mixtures of experts beyond the table of architectures: lists of experts, routing, storage, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import architectures
import brute
import tiny
from hneurons import parallel
from hneurons.errors import RunError, UnsupportedModelError
from hneurons.layout import Layout
from hneurons.models.experts import ListedFFN
from hneurons.models.ffn import find_ffns
from hneurons.models.load import StudyModel
from hneurons.models.moe import RoutedFFN
from hneurons.neurons.blocks import BlockFeatures
from hneurons.neurons.blockstore import BlockStore
from hneurons.neurons.capture import Routed, capture
from hneurons.neurons.card import Card
from hneurons.neurons.cett import PooledExtractor
from hneurons.neurons.scaling import scale
from hneurons.neurons.tokens import token_scores
from hneurons.neurons.verify import verify
from hneurons.settings import IdentifySettings
from hneurons.studies.identify import identify
from hneurons.types import REGIONS, NeuronId, Region

EXPERTS, WIDTH, HIDDEN = 5, 12, 32


class Expert(nn.Module):
    """One expert as an MLP of its own."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(HIDDEN, WIDTH, bias), nn.Linear(HIDDEN, WIDTH, bias)
        self.down_proj = nn.Linear(WIDTH, HIDDEN, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class ListedBlock(nn.Module):
    """A mixture as remote code and older transformers write it: a list of experts, index_add_, a shared expert."""

    def __init__(self, experts: int = EXPERTS, *, shared: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, experts, bias=False)
        self.experts = nn.ModuleList(Expert(bias) for _ in range(experts))
        self.shared_expert = Expert(bias=False) if shared else None
        self.shared_gate = nn.Linear(HIDDEN, 1) if shared else None

    def finish(self, out: Tensor) -> Tensor:
        return 2.5 * out

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.reshape(-1, HIDDEN)
        weights, chosen = self.gate(x).softmax(-1).topk(2, dim=-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == number)
            out.index_add_(0, token, (expert(x[token]) * weights[token, slot, None]).to(out.dtype))
        out = self.finish(out)
        if self.shared_expert is not None and self.shared_gate is not None:
            out = out + torch.sigmoid(self.shared_gate(x)) * self.shared_expert(x)
        return out.reshape(hidden_states.shape)


class NormedBlock(ListedBlock):
    """Normalises what its experts add up to, so that no neuron has a share of its own."""

    def finish(self, out: Tensor) -> Tensor:
        return F.rms_norm(out, (HIDDEN,)) + 0.3 * out.roll(1, dims=-1)


def listed(kind: type[ListedBlock] = ListedBlock, **options: Any) -> StudyModel:
    made = tiny.network("llama")
    torch.manual_seed(1)
    for layer in made.model.layers:
        layer.mlp = kind(**options)
        for parameter in layer.mlp.parameters():
            nn.init.normal_(parameter, std=0.3)
    made = made.eval().requires_grad_(False)
    return StudyModel("listed", "object", made, tiny.tokenizer(), None, find_ffns(made))


def study(name: str) -> StudyModel:
    made = architectures.network(architectures.row(name))
    return StudyModel(name, "object", made, tiny.tokenizer(), None, find_ffns(made))


# -- lists of experts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"shared": False}, {"bias": True}, {"experts": 40, "shared": False}])
def test_a_list_of_experts_equals_brute_force(options: dict[str, Any]):
    # 40 experts are more than the 32 directions of the residual stream: the routing is measured in two goes.
    model = listed(**options)
    count = options.get("experts", EXPERTS)
    own = WIDTH if options.get("shared", True) else 0
    assert model.widths == [own + count * WIDTH] * 3
    truth = architectures.Row("listed", "", blocks=("model.layers.{}.mlp",), widths=tuple(model.widths))
    passage = brute.passages(vocabulary=330)[1]
    features = PooledExtractor(model)([passage])[0]
    shares = brute.contributions(model, truth, passage)
    for column, region in enumerate(REGIONS):
        tokens = passage.mask(region)
        if tokens.any():
            np.testing.assert_allclose(features[column], shares[tokens].mean(axis=0), rtol=1e-4, atol=1e-7)


def test_a_list_of_experts_is_certified():
    result = verify(listed())
    assert result.passed, str(result)
    assert [(part.neurons, part.experts) for part in result.parts] == [(WIDTH, 0), (EXPERTS * WIDTH, EXPERTS)]


def test_a_list_of_experts_scales_as_its_weights_do():
    model = listed()
    ids = torch.tensor([brute.passages(vocabulary=330)[1].ids])
    neurons = model.layout.ids(range(0, model.neurons, 7))
    with torch.no_grad():
        with scale(model, neurons, 3.0):
            scaled = model.model(ids).logits
        with brute.edited(model.model, model, neurons, 3.0):
            torch.testing.assert_close(scaled, model.model(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_mixture_that_does_more_than_add_is_refused_when_measured():
    model = listed(NormedBlock)
    with pytest.raises(UnsupportedModelError, match=r"NormedBlock|make up its output"):
        PooledExtractor(model)(brute.passages(vocabulary=330))
    assert not verify(model).passed


def test_the_members_of_a_list_are_not_taken_for_dense_layers():
    routed = [ffn for ffn in listed().ffns if isinstance(ffn, ListedFFN)]
    assert [ffn.layer for ffn in routed] == [0, 1, 2]
    assert routed[0].expert_weight(2).shape == (HIDDEN, WIDTH)


# -- routing ------------------------------------------------------------------------------------------


def test_an_expert_that_was_not_routed_to_contributes_nothing():
    model = study("Qwen3MoeForCausalLM")
    passage = brute.passages()[1]
    seen: dict[int, set[int]] = {}

    def note(_: int, ffn: Any, z: Any, __: Tensor) -> None:
        seen[ffn.layer] = {piece.expert for piece in z.pieces() if bool((piece.rows < 3).any())}

    with capture(model.ffns, note), torch.no_grad():
        model.model(torch.tensor([passage.ids[:3]]))
    short = brute.Passage("q", passage.ids[:3], 2, (0, 1))
    features = PooledExtractor(model, [Region.PROMPT, Region.ANSWER])([short])[0].max(axis=0)
    for neuron, value in zip(model.layout.ids(range(model.neurons)), features, strict=True):
        assert (value > 0) == (neuron.expert in seen[neuron.layer])
    assert any(len(experts) < architectures.EXPERTS for experts in seen.values())


def test_the_routing_weight_is_part_of_the_contribution():
    model = study("MixtralForCausalLM")
    pieces: list[Any] = []
    with capture(model.ffns[:1], lambda _, __, z, ___: pieces.extend(z.pieces())), torch.no_grad():
        model.model(torch.tensor([[5, 6, 7]]))
    total = torch.zeros(3)
    for piece in pieces:
        total.index_add_(0, piece.rows, piece.weight)
    torch.testing.assert_close(total, torch.ones(3))  # Mixtral's weights of a token add up to 1
    assert len({piece.expert for piece in pieces}) == len(pieces)


def test_token_scores_of_a_mixture_agree_with_the_features():
    model = study("Qwen2MoeForCausalLM")
    passage = brute.passages()[1]
    features = PooledExtractor(model, [Region.RESPONSE])([passage])[0, 0]
    columns = np.argsort(-features)[:30:3]
    ids = model.layout.ids(columns)
    assert {neuron.expert for neuron in ids} > {None}
    described = model.describe()
    keys = ("id", "architecture", "layers", "width", "neurons", "experts", "shared")
    neurons = [
        {"layer": n.layer, "expert": n.expert, "index": n.index, "weight": w}
        for n, w in zip(ids, np.linspace(1, 2, len(ids)), strict=True)
    ]
    probe = {"labelling": "1-vs-1", "other": "response", "C": 1.0, "solver": "exact", "intercept": 0.5,
             "calibration": {"slope": 1.0, "offset": 0.0, "n": 9}}  # fmt: skip
    card = Card.model_validate({"model": {k: described[k] for k in keys}, "probe": probe, "neurons": neurons})
    card.check_self()
    assert card.columns.tolist() == columns.tolist()
    scores = token_scores(model, card, passage)
    np.testing.assert_allclose(scores.mean(), card.score(features[None])[0], rtol=1e-5)
    again = Card.model_validate_json(card.model_dump_json())
    assert again == card
    assert '"experts"' in card.model_dump_json()


def test_padding_changes_nothing():
    model = study("DeepseekV3ForCausalLM")
    extractor = PooledExtractor(model)
    batch = brute.passages()
    together = extractor(batch)
    for place, passage in enumerate(batch):
        np.testing.assert_allclose(extractor([passage])[0], together[place], rtol=1e-4, atol=1e-7)


def test_layout_names_every_column_once():
    layout = Layout((3, 0, 2, 4), (0, 0, 2, 3), (0, 0, 5, 2))
    assert layout.widths == [3, 0, 12, 10]
    ids = layout.ids(range(layout.neurons))
    assert len(set(ids)) == layout.neurons == 25
    assert layout.columns(ids).tolist() == list(range(25))
    assert all(layout.has(neuron) for neuron in ids)
    assert ids[3] == NeuronId(2, None, 0)
    assert ids[5] == NeuronId(2, 0, 0)
    assert ids[-1] == NeuronId(3, 2, 1)
    for wrong in (NeuronId(1, None, 0), NeuronId(2, 2, 0), NeuronId(2, 1, 5), NeuronId(4, None, 0), NeuronId(0, 0, 0)):
        assert not layout.has(wrong)
    assert layout.blocks.tolist() == [0, 3, 5, 10, 15, 19, 21, 23, 25]


# -- storage ------------------------------------------------------------------------------------------


def batch_features(layout: Layout, rows: int, seed: int) -> BlockFeatures:
    rng = np.random.default_rng(seed)
    made = BlockFeatures(rows, 2, layout.neurons, sparse=True)
    for start, end in zip(layout.blocks[:-1], layout.blocks[1:], strict=True):
        touched = np.flatnonzero(rng.random(rows) < 0.4)
        values = rng.random((len(touched), 2, end - start)).astype(np.float32)
        values[rng.random((len(touched), 2)) < 0.3] = 0
        made.add(int(start), touched, values)
    return made


def test_blocks_come_back_from_the_disk(tmp_path: Path):
    layout = Layout((3, 0, 2), (0, 0, 6), (0, 0, 5))
    regions = [Region.ANSWER, Region.OTHER]
    store = BlockStore(tmp_path / "features", 7, layout, regions)
    first, second = batch_features(layout, 3, 0), batch_features(layout, 4, 1)
    store.write([4, 0, 2], first)
    again = BlockStore(tmp_path / "features", 7, layout, regions)
    assert again.written() == {0, 2, 4}
    # Values of a write that the index doesn't name are as good as not there.
    with (tmp_path / "features" / "answer.blocks").open("ab") as file:
        file.write(b"half a row")
    again = BlockStore(tmp_path / "features", 7, layout, regions)
    again.write([1, 3, 5, 6], second)
    final = BlockStore(tmp_path / "features", 7, layout, regions)
    whole = np.zeros((7, 2, layout.neurons), dtype=np.float32)
    whole[[4, 0, 2]], whole[[1, 3, 5, 6]] = first.dense(), second.dense()
    for column, region in enumerate(regions):
        np.testing.assert_allclose(final.read(region, range(7)), whole[:, column], rtol=1e-3)
        some = np.array([30, 0, 7, 12, 3])
        np.testing.assert_allclose(final.read(region, [5, 1], some), whole[[5, 1], column][:, some], rtol=1e-3)


def test_a_cut_block_file_is_found(tmp_path: Path):
    layout = Layout((3,), (4,), (5,))
    store = BlockStore(tmp_path / "features", 2, layout, [Region.ANSWER, Region.OTHER])
    store.write([0, 1], batch_features(layout, 2, 0))
    path = tmp_path / "features" / "answer.blocks"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(RunError, match="cut"):
        BlockStore(tmp_path / "features", 2, layout, [Region.ANSWER, Region.OTHER])


def test_storage_grows_with_the_experts_reached_and_not_with_all(tmp_path: Path):
    sizes: list[int] = []
    for experts in (16, 64):
        qwen = architectures.row("Qwen3MoeForCausalLM")
        made = architectures.network(replace(qwen, values={**qwen.values, "num_experts": experts}))
        model = StudyModel("qwen", "object", made, tiny.tokenizer(), None, find_ffns(made))
        store = BlockStore(tmp_path / str(experts), 3, model.layout, [Region.ANSWER])
        store.write(range(3), next(PooledExtractor(model, [Region.ANSWER]).many([brute.passages()])))
        sizes.append((tmp_path / str(experts) / "answer.blocks").stat().st_size)
        answers = [passage.answer[1] - passage.answer[0] for passage in brute.passages()]
        assert sizes[-1] <= sum(answers) * 2 * 2 * architectures.EXPERT * 2  # tokens x top-2 x layers x width x bytes
    assert sizes[1] < 1.5 * sizes[0]


@pytest.mark.usefixtures("no_figures")
def test_a_whole_run_on_a_mixture(tmp_path: Path):
    model = study("Qwen2MoeForCausalLM")
    path = tiny.write_questions(tmp_path / "questions.jsonl", 90)
    settings = IdentifySettings(
        samples=2, bootstrap=100, random_sets=2, path_points=4, folds=2, refits=4, max_share=0.5
    )
    engine = tiny.ScriptedEngine(model, tiny.half_right)
    run = identify(model, path, tmp_path / "run", settings, engine=engine)
    card = run.card
    assert card.model.experts == architectures.EXPERTS
    assert card.model.layout == model.layout
    assert (tmp_path / "run" / "features" / "answer.blocks").exists()
    card.check_fits(model.describe())
    with scale(model, card, 0.0), torch.no_grad():
        model.model(torch.tensor([[5, 6, 7]]))


def test_routed_parts_are_typed():
    model = study("GptOssForCausalLM")
    assert all(isinstance(ffn, RoutedFFN) for ffn in model.ffns)
    first: Any = model.ffns[0]
    norms = first.column_norms().reshape(architectures.EXPERTS, -1)
    torch.testing.assert_close(norms[2], first.expert_weight(2).norm(dim=0))
    columns = torch.tensor([0, 17, 33, 5])
    torch.testing.assert_close(first.columns(columns), first.weight()[:, columns])


def test_capture_hands_over_the_whole_output_of_a_layer():
    model = study("Qwen2MoeForCausalLM")
    seen: list[tuple[Any, Any, Tensor]] = []
    outputs: list[Tensor] = []
    block = model.model.model.layers[0].mlp
    handle = block.register_forward_hook(lambda _, __, out: outputs.append(out))
    with capture(model.ffns[:2], lambda _, ffn, z, h: seen.append((ffn, z, h))), torch.no_grad():
        model.model(torch.tensor([[5, 6, 7]]))
    handle.remove()
    assert len(outputs) == 1
    (shared, z, h), (_, routed, same) = seen
    assert z.shape == (1, 3, shared.width)
    assert isinstance(routed, Routed)
    assert torch.equal(h, outputs[0])
    assert torch.equal(same, outputs[0])


@pytest.mark.parametrize("name", ["listed", "Qwen2MoeForCausalLM", "Llama4ForCausalLM", "GraniteMoeSharedForCausalLM"])
def test_passes_of_several_threads_do_not_mix(name: str, monkeypatch: pytest.MonkeyPatch):
    model = listed() if name == "listed" else study(name)
    groups = [brute.passages(seed, 330) for seed in range(24)]
    extractor = PooledExtractor(model)
    neurons = model.layout.ids(range(0, model.neurons, 9))
    monkeypatch.setattr(parallel, "worker_count", lambda _: 1)
    alone = [found.dense() for found in extractor.many(groups)]
    with scale(model, neurons, 0.5):
        scaled = [found.dense() for found in extractor.many(groups)]
    monkeypatch.setattr(parallel, "worker_count", lambda _: 6)
    together = [found.dense() for found in extractor.many(groups)]
    with scale(model, neurons, 0.5):
        scaled_together = [found.dense() for found in extractor.many(groups)]
    for one, other in zip([*alone, *scaled], [*together, *scaled_together], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)
    assert not any("forward" in module.__dict__ for module in model.model.modules())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantised_experts_are_refused(dtype: torch.dtype):
    made = architectures.network(architectures.row("MixtralForCausalLM"))
    experts = made.model.layers[0].mlp.experts
    experts.down_proj = nn.Parameter(experts.down_proj.to(dtype), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="quantised") as caught:
        find_ffns(made)
    assert "dequantised" in caught.value.remedy
