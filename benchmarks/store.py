"""The store of features: bytes a row, what its rounding costs in AUROC, and reading random rows against memcpy.

    python benchmarks/store.py bytes
    python benchmarks/store.py auroc
    python benchmarks/store.py read

`auroc` measures the contributions of real answers (benchmarks/real_features.py) once more, fits the probe on them as
they are, float32, and as the store gives them back, on the same half of the answers, and compares the AUROC on the
other half. `read` and `bytes` don't depend on the values. The file is in the page cache, as it is where it is read
again and again; reading and copying both make a new array, on one thread.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from measure import all_cpus, in_turn, options, show, way
from numpy.typing import NDArray

from hneurons.neurons.features import FeatureStore
from hneurons.types import Region

NEURONS = 46_080
REGIONS = (Region.ANSWER, Region.OTHER)

what = way("bytes", "auroc", "read")
given = options(__doc__, rounds=15)


def made_up(rows: int, regions: int = 1) -> NDArray[np.float32]:
    return 0.01 * np.random.default_rng(0).random((rows, regions, NEURONS), dtype=np.float32)


def to_bytes() -> None:
    count = 60 if given.quick else 500
    values = made_up(count, len(REGIONS))
    with tempfile.TemporaryDirectory() as folder:
        ours, plain = Path(folder) / "ours", Path(folder) / "plain"
        plain.mkdir()
        store = FeatureStore(ours, count, NEURONS, REGIONS)
        for start in range(0, count, 50):
            rows = range(start, min(start + 50, count))
            store.write(rows, values[rows.start : rows.stop])
        for row in range(count):
            for column, region in enumerate(REGIONS):
                np.save(plain / f"{region}-{row}.npy", values[row, column])
        sizes = [sum(path.stat().st_size for path in part.iterdir()) for part in (ours, plain)]
    show(
        "store: bytes per example and region, against float32 .npy files", sizes[0] / sizes[1], 0.5, "max", count,
        {"neurons": NEURONS, "regions": len(REGIONS), "counted": "everything in the folder, the index too"},
        bytes_each=[round(size / count / len(REGIONS)) for size in sizes],
    )  # fmt: skip


def to_auroc() -> None:
    from real_answers import GRID, answers, aurocs, half

    import hneurons as hn
    from hneurons.neurons.cett import PooledExtractor, batches

    all_cpus()
    model = hn.load_model("smollm2-135m", device="cpu")
    passages, wrong, groups = answers(model, given.quick)
    count, plan = len(passages), batches([len(passage.ids) for passage in passages], 2048)
    exact = np.zeros((count, 1, model.neurons), dtype=np.float32)
    batched = [[passages[row] for row in rows] for rows in plan]
    for rows, found in zip(plan, PooledExtractor(model, REGIONS[:1]).many(batched), strict=True):
        exact[rows] = found.dense()
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder) / "features", count, model.neurons, REGIONS[:1])
        store.write(range(count), exact)
        kept = store.read(Region.ANSWER, range(count))
    fitted = half(groups)
    scores = [aurocs(features, wrong, fitted) for features in (exact[:, 0], kept)]
    loss = max(before - after for before, after in zip(*scores, strict=True))
    show(
        "store: largest loss in AUROC, against float32", loss, 0.002, "max", count,
        {"model": model.name, "C": GRID, "region": "answer", "scored": int((~fitted).sum())},
        auroc_float32=scores[0], auroc_store=scores[1],
    )  # fmt: skip


def to_read() -> None:
    import torch  # it widens float16, as in every run: without it numpy does, slowly

    torch.set_num_threads(1)
    total, picked = (100, 20) if given.quick else (1000, 400)
    rows = np.random.default_rng(0).permutation(total)[:picked]
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder) / "features", total, NEURONS, REGIONS[:1])
        for start in range(0, total, 50):
            store.write(range(start, start + 50), made_up(50))
        held = store.read(Region.ANSWER, range(total))
        assert (store.read(Region.ANSWER, rows) == held[rows]).all()
        # memcpy plays the part of "ours": the ratio is how many times as long a read takes.
        measured = in_turn(
            lambda: held[rows], lambda: store.read(Region.ANSWER, rows), 2 if given.quick else given.rounds
        )
    times = measured["seconds"]
    show(
        "store: time to read random rows, against memcpy", measured["speedup"], 2, "max", picked,
        {"neurons": NEURONS, "threads": 1, "copied": "float32 rows in memory, into a new array", "rows": total},
        range=measured["range"], rounds=measured["rounds"],
        seconds={"read": times["other"], "memcpy": times["ours"]},
    )  # fmt: skip


{"bytes": to_bytes, "auroc": to_auroc, "read": to_read}[what]()
