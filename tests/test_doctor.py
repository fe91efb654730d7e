import json
import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hneurons import doctor
from hneurons.cli import app


def test_says_what_loading_and_sampling_would_use():
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert found["packages"]["torch"] == torch.__version__
    assert found["machine"]["cpus"] == len(os.sched_getaffinity(0))
    settings = found["settings"]
    assert settings["device"] in ("cpu", "cuda", "spread")
    if settings["device"] == "cpu":
        assert settings["workers"] * settings["threads_a_worker"] <= torch.get_num_threads()
        assert settings["dtype"] == "float32"


def test_the_table_shows_every_value():
    found = doctor.examine()
    shown = doctor.table(found)
    for part in ("machine", "packages", "extras", "settings", "cache"):
        assert part in shown
        for key in found[part]:
            assert key.replace("_", " ") in shown
    assert all(f"! {line}" in shown for line in found["advice"])


def test_advises_where_something_is_amiss(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"judge": "no_such_module"})
    monkeypatch.setattr(doctor, "_memory", lambda: 1.5)
    monkeypatch.setattr(doctor, "_free", lambda folder: 0.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    monkeypatch.setattr(doctor, "bfloat16_gain", lambda: 1.9)
    advice = " ".join(doctor.examine()["advice"])
    if not torch.cuda.is_available():
        assert "1.9 times as fast as float32: try --dtype bfloat16" in advice
    for word in ("hneurons[judge]", "4 GiB of memory", "2 GiB of disk", "10000 threads"):
        assert word in advice


def test_no_advice_to_use_what_is_slow_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "bfloat16_gain", lambda: 0.3)
    assert "bfloat16" not in " ".join(doctor.examine()["advice"])


def test_unknown_memory_and_folders_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HNEURONS_CACHE", str(tmp_path / "not" / "there"))
    monkeypatch.setattr(doctor, "_memory", lambda: None)
    found = doctor.examine()
    assert found["machine"]["disk_cache_gib"] > 0
    assert found["cache"]["demo_models"] == []
    assert "unknown" in doctor.table(found)
