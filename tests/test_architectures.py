"""Every architecture of the table: found, measured and scaled as brute force does it, or refused with a reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import architectures
import brute
import tiny
from architectures import Row
from hneurons.errors import UnsupportedModelError
from hneurons.models.ffn import find_ffns
from hneurons.models.load import StudyModel
from hneurons.neurons.cett import PooledExtractor
from hneurons.neurons.scaling import scale
from hneurons.types import REGIONS

SUPPORTED = [row for row in architectures.ROWS if not row.refused]
REFUSED = [row for row in architectures.ROWS if row.refused]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def study(row: Row, dtype: torch.dtype = torch.float32) -> StudyModel:
    if not architectures.exists(row):
        pytest.skip(f"this transformers has no {row.architecture}")
    made = architectures.network(row, dtype=dtype)
    return StudyModel(row.architecture, "object", made, tiny.tokenizer(), None, find_ffns(made))


def name(row: Row) -> str:
    return row.architecture


@pytest.mark.parametrize("row", SUPPORTED, ids=name)
def test_finds_the_neurons_of_every_layer(row: Row):
    model = study(row)
    assert tuple(model.widths) == row.widths
    blocks = {block.format(layer) for block in row.blocks for layer in range(len(row.widths))}
    assert all(any(ffn.path.startswith(block) for block in blocks) for ffn in model.ffns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("row", SUPPORTED, ids=name)
def test_contributions_equal_brute_force(row: Row, dtype: torch.dtype):
    model = study(row, dtype)
    batch = brute.passages()
    extractor = PooledExtractor(model)
    # In bfloat16 a padded batch rounds otherwise than a single passage.
    alone = np.stack([extractor([passage])[0] for passage in batch[:2]])
    features = extractor(batch) if dtype is torch.float32 else alone
    for place, passage in enumerate(batch[:2]):
        shares = brute.contributions(model, row, passage)
        for column, region in enumerate(REGIONS):
            tokens = passage.mask(region)
            if not tokens.any():
                continue
            expected = shares[tokens].mean(axis=0)
            # Rounding is relative to the layer's larger contributions where a neuron hardly fires.
            floor = expected.mean() * TOLERANCE[dtype]
            np.testing.assert_allclose(features[place, column], expected, rtol=TOLERANCE[dtype], atol=floor)


@pytest.mark.parametrize("row", SUPPORTED, ids=name)
def test_scaling_equals_scaled_weights(row: Row):
    model = study(row)
    rng = np.random.default_rng(0)
    neurons = model.layout.ids(np.sort(rng.choice(model.neurons, 12, replace=False)))
    ids = torch.tensor([brute.passages()[1].ids])
    with torch.no_grad():
        before = model.model(ids).logits
        for alpha in (0.0, 2.5):
            with scale(model, neurons, alpha):
                scaled = model.model(ids).logits
            with brute.edited(model.model, model, neurons, alpha):
                expected = model.model(ids).logits
            torch.testing.assert_close(scaled, expected, rtol=1e-4, atol=1e-4)
            assert not torch.allclose(scaled, before, rtol=1e-3, atol=1e-3)
        with scale(model, neurons, 1.0):
            assert torch.equal(model.model(ids).logits, before)
        assert torch.equal(model.model(ids).logits, before)


@pytest.mark.parametrize("row", REFUSED, ids=name)
def test_what_is_not_supported_is_refused_with_a_reason(row: Row):
    with pytest.raises(UnsupportedModelError) as caught:
        study(row)
    assert row.refused in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    assert "attn" not in caught.value.remedy
    assert "attention" not in caught.value.remedy


def test_the_support_matrix_is_up_to_date():
    script = Path(__file__).parents[1] / "benchmarks" / "support_matrix.py"
    spec = importlib.util.spec_from_file_location("support_matrix", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text(encoding="utf-8") == module.render(architectures.ROWS)


def test_every_class_of_the_matrix_has_a_reason_or_passes():
    assert len({row.architecture for row in architectures.ROWS}) == len(architectures.ROWS) > 70
    assert all(row.refused and row.note for row in architectures.ROWS if row.kind == "refused")
    assert not any(row.refused for row in architectures.ROWS if row.kind != "refused")
