"""What the benchmarks of the live part share: the demo model's card, and prompts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np

import hneurons as hn
from hneurons.neurons.card import Card
from hneurons.runfolder import RunFolder

NEURONS = 104
"""As many as the demo's probe has; 60 of them with positive weight."""
POSITIVE = 60


def make_card(model: hn.StudyModel) -> Card:
    """A card of neurons spread over all layers. Which they are doesn't matter to the time they take."""
    columns = np.sort(np.random.default_rng(0).choice(model.neurons, NEURONS, replace=False))
    described = model.describe()
    keys = ("id", "revision", "architecture", "layers", "width", "neurons")
    weights = [1.0 if number < POSITIVE else -1.0 for number in range(NEURONS)]
    calibration = {"slope": 1.0, "offset": 0.0, "n": 100}
    probe = {
        "labelling": "3-vs-1", "other": "response", "C": 1.0, "solver": "exact", "intercept": 0.0,
        "calibration": calibration,
    }  # fmt: skip
    neurons = [
        {"layer": neuron.layer, "expert": neuron.expert, "index": neuron.index, "weight": weight}
        for neuron, weight in zip(model.layout.ids(columns), weights, strict=True)
    ]
    return Card.model_validate({"model": {key: described[key] for key in keys}, "probe": probe, "neurons": neurons})


def make_run(folder: Path, model: hn.StudyModel) -> Path:
    """A run folder with that card, for commands that want one."""
    with RunFolder(folder) as opened:
        opened.start(model=model.describe(), settings={"max_new_tokens": 24}, data={}, notes=[])
    make_card(model).save(folder / "neurons.json")
    return folder


def prompts(count: int) -> list[str]:
    """Questions that a model of any size has something to say to."""
    questions = hn.load_questions("starter", limit=count, seed=0).questions
    return [f"{question.question} Explain in a few sentences." for question in questions]


def serve(folder: Path, port: int, *options: str) -> subprocess.Popen[bytes]:
    """`hneurons serve` in a process of its own, once it answers."""
    command = [str(Path(sys.executable).with_name("hneurons")), "serve", str(folder), "--port", str(port), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return process
        except OSError:
            time.sleep(0.2)
    process.kill()
    raise SystemExit("the server did not start")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it as a service manager does; it must end well."""
    process.send_signal(signal.SIGTERM)
    status = process.wait(120)
    if status:
        raise SystemExit(f"the server ended with status {status}")
