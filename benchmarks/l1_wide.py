"""The L1 path with cross-validation at the width of Llama 3.3 70B, 4,000 x 2,293,760, out of core: how much memory.

    python benchmarks/l1_wide.py [--quick] [--folder DIR]

The features are made up from real ones and written, 18 GB, as a run has them; they are deleted at the end. Real: 2,000
answers of SmolLM2-135M, 30 layers x 1,536 neurons. Of each of the 80 layers here, the 28,672 neurons are random pairs
of neurons of one real layer, mixed, scaled, and multiplied by noise, so that neurons of a layer are correlated as real
ones are, and two layers made from one real layer more than real ones. The strength of the noise is chosen so that the
spectrum of the correlation inside a layer fits; `leading eigenvalues' shares` has both.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from l1_data import in_a_fresh_process, made_up, memory
from measure import options, show
from numpy.typing import NDArray
from real_features import real_features

from hneurons.neurons.choose import TrainingData, choose_probe
from hneurons.neurons.features import LARGEST, SCALE, FeatureStore
from hneurons.neurons.matrix import Matrix, Stored
from hneurons.settings import IdentifySettings
from hneurons.types import Region

LAYERS, WIDTH, REAL_LAYERS = 80, 28_672, 30
REGIONS = (Region.ANSWER, Region.OTHER)
POOL = 1 << 24
LEADING = 20
POINTS, RATIO = 4, 10.0

Features = NDArray[np.float32]


class Maker:
    """Contributions of a wide model, from those of a small one."""

    def __init__(self, layers: int, width: int, real_width: int, spread: float) -> None:
        rng = np.random.default_rng(0)
        self.width = width
        self.pairs = rng.integers(real_width, size=(layers, 2, width))
        share = rng.random((layers, width))
        scale = np.exp(0.5 * rng.normal(size=(layers, width)))
        self.shares = np.stack([share * scale, (1 - share) * scale], axis=1).astype(np.float32)
        self.pool = np.exp(spread * rng.normal(size=POOL) - spread**2 / 2).astype(np.float32)
        self.rng = rng

    def layer(self, number: int, real: Features) -> Features:
        """Layer `number` of those examples: real (examples, real width) -> (examples, width)."""
        first, second = self.pairs[number]
        made = real[:, first] * self.shares[number, 0]
        made += real[:, second] * self.shares[number, 1]
        for row, start in zip(made, self.rng.integers(POOL - self.width, size=len(made)), strict=True):
            row *= self.pool[start : start + self.width]
        return made


def spectrum(features: Features) -> NDArray[np.float64]:
    """The largest eigenvalues of the correlation between up to 768 neurons, as shares of their sum."""
    some = features[:, np.random.default_rng(1).permutation(features.shape[1])[:768]].astype(np.float64)
    some = (some - some.mean(axis=0)) / np.maximum(some.std(axis=0), 1e-12)
    values = np.linalg.svd(some, compute_uv=False) ** 2
    return values[:LEADING] / values.sum()


def fitting_spread(layer: Features) -> tuple[float, dict[str, list[float]]]:
    """The noise with which made-up neurons of a layer are correlated like real ones, and both spectra."""
    real = spectrum(layer)
    made = {s: spectrum(Maker(1, 768, layer.shape[1], s).layer(0, layer)) for s in (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)}
    best = min(made, key=lambda s: float(np.abs(np.log(made[s] / real)).mean()))
    return best, {"real": np.round(real, 4).tolist(), "made": np.round(made[best], 4).tolist()}


def write(folder: Path, parts: tuple[Matrix, Matrix], real_layers: int, layers: int, width: int, rows: int) -> dict:
    """The features, as a run has them."""
    answer = np.asarray(parts[0][np.arange(rows)])
    spread, spectra = fitting_spread(answer.reshape(rows, real_layers, -1)[:, real_layers // 2])
    maker = Maker(layers, width, answer.shape[1] // real_layers, spread)
    FeatureStore(folder, rows, layers * width, REGIONS)  # makes the files
    for region, part in zip(REGIONS, parts, strict=True):
        with (folder / f"{region}.npy").open("r+b") as file:
            file.seek(-2 * rows * layers * width, os.SEEK_END)
            for start in range(0, rows, 64):
                small = np.asarray(part[np.arange(start, min(start + 64, rows))])
                small = small.reshape(len(small), real_layers, -1)
                block = torch.empty(len(small), layers * width, dtype=torch.float16)
                for number in range(layers):
                    made = maker.layer(number, small[:, number * real_layers // layers])
                    scaled = torch.from_numpy(made).mul_(SCALE).clamp_(max=LARGEST)
                    block[:, number * width : (number + 1) * width] = scaled
                file.write(block.numpy().data)
    return {"noise": spread, "leading eigenvalues' shares": spectra}


def child(folder: Path) -> dict:
    known = json.loads((folder / "labels.json").read_text())
    layout = json.loads((folder / "features" / "layout.json").read_text())
    store = FeatureStore(folder / "features", layout["rows"], layout["neurons"], REGIONS)
    rows = np.arange(store.rows)
    answer, other = (Stored(store, region, rows) for region in REGIONS)
    label = np.array(known["hallucinated"])
    data = TrainingData(answer, other, np.ones(len(rows), bool), label, np.array(known["groups"]))
    began = time.perf_counter()
    settings = IdentifySettings(path_points=POINTS, path_ratio=RATIO)
    choice = choose_probe(data, data, settings)
    return {
        "seconds": time.perf_counter() - began,
        "peak": memory("VmHWM"),
        "rows": choice.rows,
        "neurons": store.neurons,
        "nonzeros": [len(fit.support) for fit in choice.fits],
        "largest_residual": max(fit.residual for fit in choice.fits),
    }


def main() -> None:
    given = options(__doc__, "--child", "--folder")
    if given.child is not None:
        print(json.dumps(child(Path(given.folder))))
        return
    # Stopped from outside, it leaves nothing behind either.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    base = Path(given.folder or tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="l1-wide-", dir=base))
    try:
        if given.quick:
            data, layers, width, real_layers = made_up(120, 1500), 8, 500, 3
            parts, label, groups = (data.answer, data.other), data.hallucinated, data.groups
        else:
            real, (layers, width, real_layers) = real_features(), (LAYERS, WIDTH, REAL_LAYERS)
            rows = np.arange(real.examples)
            parts = tuple(Stored(real.store, region, rows) for region in REGIONS)
            label, groups = real.hallucinated, real.groups
        free = shutil.disk_usage(folder).free
        layers_that_fit = int(0.9 * free / (4 * len(label) * width))
        fewer = min(layers, layers_that_fit)
        began = time.perf_counter()
        made = write(folder / "features", parts, real_layers, fewer, width, len(label))
        took = time.perf_counter() - began
        (folder / "labels.json").write_text(json.dumps({"hallucinated": label.tolist(), "groups": groups.tolist()}))
        found = in_a_fresh_process(__file__, "--folder", str(folder))
    finally:
        shutil.rmtree(folder)
    show(
        "L1: memory at the width of a 70B model, GiB",
        found["peak"] / 2**30,
        12.0,
        "max",
        int(found["rows"]),
        {
            "rows": found["rows"],
            "neurons": found["neurons"],
            "layers": fewer,
            "layers that the disk has no room for": layers - fewer,
            "points": POINTS,
            "path_ratio": RATIO,
            "folds": 5,
            "counted": "VmHWM, libraries included",
        },
        seconds_to_write=took,
        float32_matrix_gib=4 * found["rows"] * found["neurons"] / 2**30,
        **found,
        **made,
    )


if __name__ == "__main__":
    main()
