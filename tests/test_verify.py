"""`hneurons verify`: every architecture passes, every kind of mistake is seen."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import architectures
import tiny
from architectures import Row
from hneurons.cli import app
from hneurons.errors import HNeuronsError
from hneurons.models.ffn import find_ffns
from hneurons.models.load import StudyModel
from hneurons.neurons import capture as capturing
from hneurons.neurons import scaling
from hneurons.neurons.certificate import Verification, ranges
from hneurons.neurons.verify import NAMES, verify

SUPPORTED = [row for row in architectures.ROWS if not row.refused]


def study(row: Row, dtype: torch.dtype = torch.float32) -> StudyModel:
    if not architectures.exists(row):
        pytest.skip(f"this transformers has no {row.architecture}")
    made = architectures.network(row, dtype)
    return StudyModel(row.architecture, "object", made, tiny.tokenizer(), None, find_ffns(made))


def failed(result: Verification) -> list[str]:
    return [check.name for check in result.checks if not check.passed]


ADDS_UP, SCALING, UNCHANGED, SAMPLING = NAMES.values()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
@pytest.mark.parametrize("row", SUPPORTED, ids=lambda row: row.architecture)
def test_every_architecture_is_certified(row: Row, dtype: torch.dtype):
    model, begun = study(row, dtype), time.monotonic()
    result = verify(model)
    assert 0 < result.seconds <= time.monotonic() - begun + 0.001  # in whole milliseconds
    assert failed(result) == ([SAMPLING] if row.not_sampled else []), str(result)
    if row.not_sampled:
        assert row.not_sampled in result.checks[-1].detail
    assert sum(part.neurons * len(part.layers) for part in result.parts) == result.neurons == sum(row.widths)


def test_it_says_what_was_found_where():
    text = str(verify(study(architectures.row("DeepseekV3ForCausalLM"))))
    assert "model.layers.*.mlp.down_proj  layers 0: 24 neurons" in text
    assert "model.layers.*.mlp.experts  layers 1: 4 experts x 16 neurons" in text
    assert text.count("ok  ") == 4


def test_ranges():
    assert ranges([0, 1, 2, 3, 5, 7, 8]) == "0-3, 5, 7-8"
    assert ranges([]) == ""


# -- mistakes that it must see ------------------------------------------------------------------------


def test_a_part_that_is_left_out_is_seen():
    model = study(architectures.row("Qwen2MoeForCausalLM"))
    model.ffns.pop(0)
    result = verify(model)
    assert ADDS_UP in failed(result)


def test_a_transposed_weight_is_seen(monkeypatch: pytest.MonkeyPatch):
    model = study(architectures.row("GPT2LMHeadModel"))
    from hneurons.models import parts

    monkeypatch.setattr(parts, "linear_weight", lambda module: module.weight.reshape(32, 24))
    assert failed(verify(model)) == [ADDS_UP, SCALING]


def test_scaling_that_does_nothing_is_seen(monkeypatch: pytest.MonkeyPatch):
    model = study(SUPPORTED[0])
    monkeypatch.setattr(scaling, "_dense_hook", lambda *_: lambda __, inputs: inputs)
    assert failed(verify(model)) == [SCALING]


def test_a_hook_that_stays_is_seen(monkeypatch: pytest.MonkeyPatch):
    model = study(SUPPORTED[0])
    real = scaling._dense_hook

    def leaky(dial, index):  # type: ignore[no-untyped-def]
        model.model.register_forward_hook(lambda *_: None)
        return real(dial, index)

    monkeypatch.setattr(scaling, "_dense_hook", leaky)
    assert failed(verify(model)) == [UNCHANGED]


def test_a_wrong_gate_is_seen(monkeypatch: pytest.MonkeyPatch):
    model = study(architectures.row("Qwen2MoeForCausalLM"))
    monkeypatch.setattr(capturing, "part_weights", lambda *_: {})
    assert ADDS_UP in failed(verify(model))


class Rounding(nn.Module):
    """Gives another result each time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1 + 1e-6 * torch.rand(()))


def test_a_model_that_is_not_deterministic_is_seen():
    model = study(SUPPORTED[0])
    model.model.model.norm = Rounding(model.model.model.norm)
    assert UNCHANGED in failed(verify(model))


def test_a_model_that_can_not_run_is_a_finding(monkeypatch: pytest.MonkeyPatch):
    model = study(SUPPORTED[0])

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel\nhere")

    monkeypatch.setattr(model.model.model, "forward", broken)
    result = verify(model)
    assert len(failed(result)) == 4
    assert result.checks[0].detail == "RuntimeError: no kernel here"


# -- the command --------------------------------------------------------------------------------------


def test_the_command_prints_and_exits_with_zero(tmp_path: Path):
    tiny.save(tmp_path / "model")
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    assert "model.layers.*.mlp.down_proj  layers 0-2: 48 neurons" in result.stdout


def test_the_command_speaks_json(tmp_path: Path):
    tiny.save(tmp_path / "model", "gpt-neox")
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "model"), "--json"])
    told = json.loads(result.stdout)
    assert told["format"] == "hneurons.verification/1"
    assert told["passed"] is True
    path = "gpt_neox.layers.*.mlp.dense_4h_to_h"
    assert told["parts"] == [{"path": path, "layers": [0, 1, 2], "neurons": 48, "experts": 0}]
    assert [check["name"] for check in told["checks"]] == list(NAMES.values())


def test_a_failing_check_is_exit_status_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scaling, "_dense_hook", lambda *_: lambda __, inputs: inputs)
    tiny.save(tmp_path / "model")
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "model"), "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["passed"] is False


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("model.layers.*.mlp.up_proj", "maps 32 to 48"),
        ("model.layers.*.mlp.*", "maps 32 to 48"),
        ("lm_head", "outside the language decoder"),
        ("nothing.*", "No linear module"),
        ("model.layers.*_proj", "maps"),
    ],
)
def test_a_wrong_override_is_one_line(tmp_path: Path, pattern: str, says: str):
    tiny.save(tmp_path / "model")
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "model"), "--ffn", pattern])
    assert isinstance(result.exception, HNeuronsError)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)
    assert result.exception.remedy
