"""Peak memory of the L1 path and its cross-validation, against the float32 matrix that they are fitted on.

    python benchmarks/l1_memory.py [--quick]

A fresh process loads the features from their store, walks the path and cross-validates. What counts is its largest
resident size, loading included, less the resident size with all libraries imported and no matrix yet.
"""

from __future__ import annotations

import json

import numpy as np
from l1_data import FEATURES, in_a_fresh_process, memory, training
from measure import options, show
from real_features import real_features

from hneurons.neurons.choose import choose_probe
from hneurons.settings import IdentifySettings


def child(quick: bool) -> dict[str, float]:
    imported = memory("VmRSS")
    data = training(quick)
    features, _ = data.design()
    loaded = memory("VmHWM")
    settings = IdentifySettings(path_points=4 if quick else 20, max_share=1.0)
    fits = choose_probe(data, data, settings).fits
    matrix = 4 * int(np.prod(features.shape))
    return {
        "rows": len(features),
        "neurons": features.shape[1],
        "matrix": matrix,
        "imported": imported,
        "loaded": loaded,
        "peak": memory("VmHWM"),
        "points": len(fits),
    }


def main() -> None:
    given = options(__doc__, "--child")
    if given.child is not None:
        print(json.dumps(child(given.quick)))
        return
    if not given.quick:
        real_features()  # made here if they aren't there yet: the model that it takes must not count
    found = in_a_fresh_process(__file__, *(["--quick"] if given.quick else []))
    show(
        "L1: peak memory against the float32 matrix",
        (found["peak"] - found["imported"]) / found["matrix"],
        1.5,
        "max",
        int(found["rows"]),
        {
            "rows": found["rows"],
            "neurons": found["neurons"],
            "points": found["points"],
            "folds": 5,
            "counted": "VmHWM less VmRSS after the imports",
            "features": FEATURES[given.quick],
        },
        bytes=found,
        ratio_with_libraries=round(found["peak"] / found["matrix"], 3),
    )


if __name__ == "__main__":
    main()
