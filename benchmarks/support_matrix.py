"""Write docs/support-matrix.md from the table that the tests run (tests/architectures.toml).

    python benchmarks/support_matrix.py           measure every row, then write
    python benchmarks/support_matrix.py --quick   write without measuring; the tests measure

Prints one JSON object: the worst errors of each row in that run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np
import torch

import architectures
import brute
import tiny
from architectures import Row
from hneurons.errors import UnsupportedModelError
from hneurons.models.ffn import find_ffns
from hneurons.models.load import StudyModel
from hneurons.neurons.cett import PooledExtractor
from hneurons.neurons.verify import verify
from hneurons.types import Region

TARGET = ROOT / "docs" / "support-matrix.md"
TITLES = {
    "dense": "Dense",
    "hybrid": "Hybrids: layers that are not all alike",
    "mixture": "Mixtures of experts",
    "refused": "Refused, with the reason",
}
HEAD = """# Support matrix

Made by `benchmarks/support_matrix.py` from `tests/architectures.toml`; a test fails when the two differ. The test suite
builds a tiny random model of every row from its transformers config and checks, row by row:

- **found**: the neurons of every decoder layer are where the architecture's own code has them, and nowhere else;
- **CETT**: equal to brute force (take one neuron's column out of the weights, run the block again, see what is lost) to
  1e-4 relative in float32 and 2e-2 in bfloat16; for experts through the routed experts, routing weight included;
- **scale**: `hneurons.scale` moves the logits as the same factor on the weights does, alpha = 1 is bit-identical, and
  the model is bit-identical afterwards;
- **sample**: the built-in engine's log-probabilities in a padded batch are those of a single teacher-forced pass.

`hneurons verify MODEL` runs the same checks, but for the brute force, on your model. In vision-language models the
language layers are studied and text is asked; the vision tower is never touched. Anything that isn't listed is searched
by structure in the same way: if its feed-forward layers look like one of these, it works; else it is refused with what
was found. [add-a-model.md](add-a-model.md) says how to add one.
"""
AFTER = """
Also refused, with one line that says why and how to go on: encoders and encoder-decoders, checkpoints of classes that
don't generate text, folders without weights or with some missing, custom code without `--trust-remote-code`, a `--ffn`
pattern that matches nothing, maps that don't end in the residual stream, modules outside the decoder, or two modules of
one layer.

## Placement and precision

| weights | checked |
|---|---|
| float32, bfloat16, float16 | every row above, by `verify`; column norms and averages accumulate in float32 |
| CPU or disk offload, `device_map="auto"` (`--device spread`) | dense, Conv1D, mixtures with shared experts |
| torchao int8 and int4 (weight only) | on CPU, norms from dequantised weights |
| bitsandbytes int8 and nf4 | on CPU, norms from dequantised weights |
| optimum-quanto int8 | on CPU, likewise; its int4 can't run under `torch.inference_mode` |
| any other packing of a linear map | read by probing: column j is what the unit vector of input j writes |
| quantised experts in 3-D parameters (FP8, MXFP4) | refused: load them dequantised |
| tied or biased down projections | yes; a bias is part of h and belongs to no neuron |
"""


def render(rows: list[Row]) -> str:
    """The page."""
    parts = [HEAD]
    for kind, title in TITLES.items():
        own = [row for row in rows if row.kind == kind]
        if kind == "refused":
            parts.append(f"## {title}\n\n| class | reason |\n|---|---|")
            parts += [f"| {row.architecture} | {row.note} |" for row in own]
            continue
        parts.append(
            f"## {title}\n\n| class | models | found | CETT | scale | sample | remark |\n|---|---|---|---|---|---|---|"
        )
        for row in own:
            sample = "refused" if row.not_sampled else "yes"
            remark = "; ".join(text for text in (row.note, row.not_sampled) if text)
            parts.append(f"| {row.architecture} | {row.family} | yes | yes | yes | {sample} | {remark} |")
        parts.append("")
    return "\n".join(parts) + "\n" + AFTER


def measure(row: Row) -> dict[str, Any]:
    """Worst errors of a row; raises when it isn't as the table says."""
    if row.refused:
        reason = ""
        try:
            find_ffns(architectures.network(row))
        except UnsupportedModelError as error:
            reason = str(error)
        assert row.refused in reason, row.architecture
        return {"refused": reason}
    result: dict[str, Any] = {}
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        made = architectures.network(row, dtype)
        model = StudyModel(row.architecture, "object", made, tiny.tokenizer(), None, find_ffns(made))
        assert tuple(model.widths) == row.widths
        passage = brute.passages()[1]
        features = PooledExtractor(model, [Region.RESPONSE])([passage])[0, 0]
        expected = brute.contributions(model, row, passage)[passage.mask(Region.RESPONSE)].mean(axis=0)
        error = float((np.abs(features - expected) / (expected + expected.mean())).max())
        assert error <= limit, (row.architecture, dtype, error)
        certificate = verify(model)
        failed = [check.name for check in certificate.checks if not check.passed]
        assert len(failed) == bool(row.not_sampled), str(certificate)
        result[str(dtype).removeprefix("torch.")] = float(f"{error:.2e}")
    return result


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="write without measuring")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    measured = (
        {} if quick else {row.architecture: measure(row) for row in architectures.ROWS if architectures.exists(row)}
    )
    TARGET.write_text(render(architectures.ROWS), encoding="utf-8")
    print(json.dumps({"rows": len(architectures.ROWS), "worst relative error": measured}, indent=1))


if __name__ == "__main__":
    main()
