"""Every benchmark of speed and memory runs, with --quick in seconds, and prints one JSON object. Nothing is timed."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import hneurons
from hneurons.errors import ModelNotFoundError

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = {path.name for path in FOLDER.glob("*.py")}
BENCH = runpy.run_path(str(FOLDER / "bench.py"))
ASK_THE_MODEL = ("extraction.py", "extraction_naive.py", "sampling.py", "store.py auroc", "scaling.py", "live_")
"""Commands that need the demo model even when quick."""


def claims() -> list[Any]:
    """Each command that claims a number."""
    commands = [*BENCH["COMMANDS"], "drift.py", "live_pass.py", "live_monitor.py"]
    real = [command for command in commands if command.startswith(ASK_THE_MODEL)]
    return [pytest.param(c, marks=[pytest.mark.real] if c in real else []) for c in commands]


@pytest.fixture
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a script of that folder is run."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def run(benchmarks_on_path: None, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Run a command with --quick in this process, which has PyTorch loaded already; returns the object it prints."""
    if request.node.get_closest_marker("real"):
        try:
            hneurons.pull("smollm2-135m")
        except ModelNotFoundError as error:
            pytest.skip(f"the demo model can't be fetched: {error}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # of its children

    def quick(command: str) -> dict[str, Any]:
        script, *words = command.split()
        monkeypatch.setattr(sys, "argv", [script, *words, "--quick"])
        runpy.run_path(str(FOLDER / script), run_name="__main__")
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1
        assert not list(tmp_path.iterdir()), "leaves nothing behind"
        return json.loads(lines[0])

    return quick


def test_every_command_has_its_script():
    assert {command.split()[0] for command in BENCH["COMMANDS"]} <= SCRIPTS


@pytest.mark.usefixtures("benchmarks_on_path")
@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_what_a_script_imports_is_there(script: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with suppress(SystemExit):  # those that measure at once read their options first
        runpy.run_path(str(FOLDER / script))


@pytest.mark.parametrize("command", claims())
def test_quick_prints_one_object(command: str, run: Any):
    found = run(command)
    assert {"name", "ratio", "target", "direction", "n", "settings"} <= set(found)
    assert found["direction"] in ("min", "max")
    assert found["ratio"] >= 0
    assert found["target"] > 0
    assert found["n"] >= 1
    assert found["settings"]["machine"]["cpus"] == len(os.sched_getaffinity(0))
    if "range" in found:
        assert found["range"][0] <= found["ratio"] <= found["range"][1]


@pytest.mark.real
def test_growth_is_measured_and_carried_on_paper(run: Any):
    found = run("cost.py")
    assert len(found["growth"]) == 5
    for line in found["growth"].values():
        assert len(line["sizes"]) == len(line["seconds"])
        assert sorted(line["sizes"]) == line["sizes"]
    # What it prints as Markdown holds what was measured and says that the rest was not.
    text = runpy.run_path(str(FOLDER / "cost.py"))["table"](found)
    assert "| L1 path | neurons | 200 to 400 |" in text
    assert "never measured on a GPU" in text


def test_memory_is_counted_without_pytorch():
    code = "import l1_memory, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER)


# -- what is worked out rather than measured ----------------------------------------------------------


def entry(command: str, ratio: float, direction: str = "min", **more: Any) -> dict[str, Any]:
    return {"command": f"python benchmarks/{command}", "name": command, "ratio": ratio, "target": 2, "n": 1000,
            "direction": direction, **more}  # fmt: skip


def test_the_table_says_what_was_missed():
    rows = BENCH["table"]([
        entry("a", 2.0), entry("b", 1.99, range=[1.5, 2.5]), entry("c", 2.0, "max"), entry("d", 2.01, "max")
    ]).splitlines()[2:]  # fmt: skip
    assert rows == [
        "| a | 2 | at least 2 | reached | 1,000 |",
        "| b | 1.99 [1.5, 2.5] | at least 2 | **missed** | 1,000 |",
        "| c | 2 | at most 2 | reached | 1,000 |",
        "| d | 2.01 | at most 2 | **missed** | 1,000 |",
    ]


def test_results_are_replaced_one_by_one(tmp_path: Path):
    listed, first, second = BENCH["listed"], *BENCH["COMMANDS"][:2]
    listed.__globals__["RESULTS"] = tmp_path / "results.json"
    assert listed(entry(first, 1.0)) == [entry(first, 1.0)]
    (tmp_path / "results.json").write_text(
        json.dumps([entry("is no more", 1.0), entry(second, 1.0), entry(first, 1.0)])
    )
    assert listed(entry(second, 3.0)) == [entry(first, 1.0), entry(second, 3.0)]


@pytest.mark.usefixtures("benchmarks_on_path")
def test_fits_that_were_not_measured_count_as_the_faster_neighbour():
    all_places = runpy.run_path(str(FOLDER / "l1_path.py"))["all_places"]
    assert all_places({0: 1.0, 2: 5.0, 5: 3.0}, 6) == [1.0, 1.0, 5.0, 3.0, 3.0, 3.0]


@pytest.mark.usefixtures("benchmarks_on_path")
def test_the_estimate_follows_the_roofline():
    paper = runpy.run_path(str(FOLDER / "on_paper.py"))
    here, every, weights = paper["HERE"], paper["ALL"], 2 * paper["PARAMETERS"]
    # A row or a few: the weights are read, whatever the rows. Very many: arithmetic takes longer.
    assert here.step(1, 0) == pytest.approx(weights / (0.6 * 3.35e12))
    assert here.step(8, 0) == here.step(1, 0)
    assert here.step(4096, 0) == pytest.approx(4096 * weights / (0.4 * 989e12))
    tokens = {"prompt": 50.0, "response": 30.0, "consistent": 300.0, "mixed": 75.0}
    one, eight = (paper["hours"](machine, tokens, 0.4, 0.1) for machine in (here, every))
    assert one["questions"] == 10_000  # until the rarer class is full
    for part in ("sampling", "extraction", "one by one"):
        assert one[part] == pytest.approx(8 * eight[part])
    more = paper["hours"](here, {**tokens, "mixed": 300.0}, 0.4, 0.1)
    assert one["sampling"] < more["sampling"] < one["one by one"]
