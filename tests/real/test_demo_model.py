"""The demo model for real: its numbers, its answers, and a small study. Fetched from the package index once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import hneurons
from cards import probe
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.answers.text import decode, token_offsets
from hneurons.models.load import StudyModel
from hneurons.neurons.cett import Passage, PooledExtractor, capture
from hneurons.settings import IdentifySettings
from hneurons.types import Question, Region, Response

pytestmark = pytest.mark.real
CAPITAL = Question("france", "What is the capital of France?", ("Paris",))


@pytest.fixture(scope="module")
def reply(model: StudyModel) -> Response:
    greedy = Sampling(temperature=0.0, max_new_tokens=24)
    return HFEngine(model).sample([Request(CAPITAL, 0)], greedy)[0]


def test_its_numbers(model: StudyModel):
    described = model.describe()
    assert (described["layers"], described["width"], described["neurons"]) == (30, 1536, 46_080)
    assert described["architecture"] == "LlamaForCausalLM"
    assert described["parameters"] == 134_515_008
    assert described["dtype"] == "float32"
    assert model.has_chat_template


def test_it_knows_the_capital_of_france(model: StudyModel, reply: Response):
    assert "Paris" in reply.text
    assert reply.finish_reason == "stop"
    assert reply.token_ids[-1] in model.end_ids
    assert all(logprob <= 0 for logprob in reply.logprobs)


def test_its_tokens_tile_its_answer(model: StudyModel, reply: Response):
    offsets = token_offsets(model, reply.token_ids, reply.text)
    assert "".join(reply.text[start:end] for start, end in offsets) == reply.text
    ids = model.tokenizer.encode("Zürich ☕ 漢字 👩‍🚀", add_special_tokens=False)
    text = decode(model, ids)
    assert "".join(text[start:end] for start, end in token_offsets(model, ids, text)) == text


def test_contributions_equal_silencing_neurons(model: StudyModel, reply: Response):
    prompt = tuple(model.prompt_ids(CAPITAL.question))
    passage = Passage("france", (*prompt, *reply.token_ids), len(prompt), (0, len(reply.token_ids) - 1))
    features = PooledExtractor(model, [Region.ANSWER])([passage])[0, 0]
    seen: dict[int, torch.Tensor] = {}
    with capture(model.ffns, lambda position, _, z, __: seen.setdefault(position, z[0].double())), torch.no_grad():
        model.model(torch.tensor([passage.ids]))
    rng = np.random.default_rng(0)
    answer = torch.from_numpy(passage.mask(Region.ANSWER))
    for layer in (0, 14, 29):
        weight, z = model.ffns[layer].weight().double(), seen[layer][answer]
        whole = z @ weight.T
        for neuron in rng.choice(1536, 20, replace=False).tolist():
            silent = z.clone()
            silent[:, neuron] = 0
            share = ((whole - silent @ weight.T).norm(dim=-1) / whole.norm(dim=-1)).mean().item()
            assert features[1536 * layer + neuron] == pytest.approx(share, rel=1e-4, abs=1e-7)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_every_export_is_the_hooks(model: StudyModel, alpha: float, tmp_path: Path):
    peft = pytest.importorskip("peft")
    described = model.describe()
    keys = ("id", "architecture", "layers", "width", "neurons")
    # The loudest neurons of a few layers, as many as a card of this model has.
    chosen = [
        {"layer": ffn.layer, "index": int(index), "weight": 1.0}
        for ffn in model.ffns[4::6]
        for index in ffn.column_norms().topk(8).indices[: 3 + ffn.layer % 5]
    ]
    card = hneurons.Card.model_validate(
        {"model": {key: described[key] for key in keys}, "probe": probe(0.0), "neurons": chosen}
    )
    ids = torch.tensor([model.prompt_ids(CAPITAL.question)])

    def logits(network: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return network(input_ids=ids).logits

    before = logits(model.model)
    with hneurons.scale(model, card, alpha):
        wanted = logits(model.model)
    for format in ("lora", "ia3", "weights"):
        folder = hneurons.export(card, model, format=format, out=tmp_path / format, alpha=alpha)
        network = hneurons.load_model(folder, device="cpu").model if format == "weights" else model.model
        adapted = network if format == "weights" else peft.PeftModel.from_pretrained(network, str(folder))
        found = logits(adapted)
        if format != "weights":
            adapted.unload()
        assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    assert torch.equal(logits(model.model), before)
    assert torch.equal(wanted, before) == (alpha == 1)


def test_a_small_study_runs_to_its_verdict(model: StudyModel, tmp_path: Path):
    settings = IdentifySettings(
        samples=3, temperature=0.3, max_new_tokens=24, per_class=30, limit=120, folds=2, train=0.4,
        validation=0.4,
        random_sets=4, bootstrap=200, path_points=8,
    )  # fmt: skip
    run = hneurons.identify(model, "starter", tmp_path / "run", settings)
    counts = run.manifest["counts"]
    assert counts["questions"] == counts["faithful"] + counts["hallucinated"] + sum(counts["dropped"].values()) == 120
    assert min(counts["faithful"], counts["hallucinated"]) >= 10
    rows = [json.loads(line) for line in (run.path / "examples.jsonl").read_text().splitlines()]
    assert len(rows) == counts["faithful"] + counts["hallucinated"]
    assert np.load(run.path / "features/answer.npy", mmap_mode="r").shape == (len(rows), 46_080)
    assert 0 < len(run.card.neurons) <= 461
    run.card.check_fits(model.describe())
    evaluation = run.evaluation
    assert evaluation["verdict"]["verdict"] in ("supported", "not supported", "too little data")
    assert 0 <= evaluation["datasets"]["starter"]["h_neurons"]["auroc"]["value"] <= 1
    assert run.report.stat().st_size > 10_000
