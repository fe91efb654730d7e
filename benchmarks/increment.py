"""How often the interval of the H-Neurons' gain covers 0 where their score is noise: the score as it is, or curved.

Prints one JSON object. docs/log.md says why the score enters as it is.
"""

from __future__ import annotations

import json

import numpy as np

from hneurons.stats import Bootstrap, weighted_auroc
from hneurons.studies.cheap import cheap_scores

DRAWS, BOOTSTRAP = 150, 500
SIZES = ((100, 150), (200, 150), (200, 300), (400, 600))


def outcome(low: float, high: float) -> str:
    return "above" if low > 0 else "below" if high < 0 else "covers"


def simulate(fit_on: int, test: int) -> dict[str, dict[str, int]]:
    found = {form: {"covers": 0, "above": 0, "below": 0} for form in ("as it is", "curved")}
    for seed in range(DRAWS):
        rng = np.random.default_rng([fit_on, test, seed])
        label = np.arange(fit_on + test) % 2 == 0
        number, noise = label + rng.normal(size=len(label)), rng.normal(size=len(label))
        known, wanted, truth = slice(0, fit_on), slice(fit_on, None), label[fit_on:]
        alone = cheap_scores(number[known, None], label[known], number[wanted, None])
        both = np.column_stack([number, noise])
        with_score = {
            "as it is": cheap_scores(
                number[known, None], label[known], number[wanted, None], (noise[known], noise[wanted])
            ),
            "curved": cheap_scores(both[known], label[known], both[wanted]),
        }
        draws = Bootstrap.of(truth, range(test), draws=BOOTSTRAP, seed=seed)
        for form, scores in with_score.items():
            gain = draws.difference(weighted_auroc, scores, [alone])
            found[form][outcome(gain.low, gain.high)] += 1
    return found


if __name__ == "__main__":
    results = [{"fitted on": n, "tested on": m, **simulate(n, m)} for n, m in SIZES]
    print(json.dumps({"name": "gain of a noise score", "draws": DRAWS, "bootstrap": BOOTSTRAP, "results": results}))
