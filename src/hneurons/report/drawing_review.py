"""Which figures of the review a run has data for, and at what size."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from hneurons.report import figures_review as figures
from hneurons.report.canvas import NARROW
from hneurons.report.folder import Run
from hneurons.report.values import Row, interval_row, items, mapping, number
from hneurons.runfolder import Json

SETS = (("transfer", "transfer"), ("transfer_between_sets", "transfer-sets"))
"""Keys of evaluation.json that hold a transfer matrix, and the names of their figures."""
ANSWERS, LENGTHS = ("right", "wrong"), ("short", "long")


def draw_review(run: Run, width: float, half: float) -> dict[str, Figure]:
    """Every figure of the review that the run has data for, by file name, `width` (or `half`) inches wide."""
    drawn: dict[str, Figure] = {}
    line = 0.46 if width < NARROW else 0.34
    for i, (_, data) in enumerate(run.datasets, 1):
        own = interval_row("H-Neurons", mapping(data.get("h_neurons")).get("auroc"))
        peers = {n: mapping(p) for n, p in mapping(mapping(data.get("peers")).get("peers")).items()}
        rows = [interval_row(name, peer.get("auroc")) for name, peer in peers.items()]
        more = [n for n, p in peers.items() if (number(mapping(p.get("cost")).get("extra_samples")) or 0) > 0]
        if _any(rows):
            height = 0.7 + line * (1 + len(rows))
            drawn[f"peers-{i}"] = figures.intervals(width, height, own, rows, more, "AUROC (0.5 = chance)")
        found = mapping(mapping(data.get("confounds")).get("confounds"))
        rows = [interval_row(f"at equal {name}", mapping(c).get("within")) for name, c in found.items()]
        if _any(rows):
            height = 0.7 + line * (1 + len(rows))
            overall = ("overall", *own[1:])
            drawn[f"confounds-{i}"] = figures.intervals(width, height, overall, rows, (), "AUROC (0.5 = chance)")
        bins = [mapping(b) for b in items(mapping(data.get("reliability")).get("bins"))]
        dots = [(risk, interval_row("", b.get("rate"))) for b in bins if (risk := number(b.get("risk"))) is not None]
        if _any([row for _, row in dots]):
            drawn[f"reliability-{i}"] = figures.reliability(half, half * 0.86, dots)
    cells = mapping(mapping(run.evaluation.get("verbosity")).get("cells"))
    four = {f"{a} {b}": interval_row(f"{a} {b}", cells.get(f"{a} {b}")) for a in ANSWERS for b in LENGTHS}
    if _any(list(four.values())):
        drawn["verbosity"] = figures.two_by_two(half, half * 0.72, four)
    for key, name in SETS:
        names, values = matrix(mapping(run.evaluation.get(key)))
        if names:
            narrowest = 1.9 + 0.4 * len(names)
            wide = max(width, narrowest) if width < NARROW else min(width, max(5.2, 2.4 + 0.62 * len(names)))
            height = 1.5 + len(names) * min(0.55, max(0.36, 0.6 * (wide - 1.9) / len(names)))
            drawn[name] = figures.heat_map(wide, height, names, values)
    points, chosen = overlap(run)
    if points:
        drawn["overlap"] = figures.path_overlap(width, 2.6, points, chosen)
    return drawn


def matrix(found: Json) -> tuple[list[str], list[list[Row]]]:
    """Names of the parts of a transfer matrix and its cells, training part by test part; empty without any."""
    cells = [mapping(c) for c in items(found.get("cells"))]
    by = {(str(c["train"]), str(c["test"])): c.get("auroc") for c in cells if _named(c)}
    names = list(dict.fromkeys(train for train, _ in by))
    return names, [[interval_row("", by.get((train, test))) for test in names] for train in names]


def overlap(run: Run) -> tuple[list[dict[str, float]], float | None]:
    """Overlap of the sets of H-Neurons along the path, and the chosen C."""
    stability = mapping(run.path.get("stability"))
    found = items(stability.get("points"))
    keys = ("C", "to_chosen", "to_previous")
    points = [{k: number(mapping(p).get(k)) for k in keys} for p in found]
    index = number(stability.get("chosen"))
    chosen = points[int(index)]["C"] if index is not None and 0 <= index < len(points) else None
    return [{k: math.nan if v is None else v for k, v in p.items()} for p in points if (p["C"] or 0) > 0], chosen


def _named(cell: Json) -> bool:
    return isinstance(cell.get("train"), str) and isinstance(cell.get("test"), str)


def _any(rows: list[Row]) -> bool:
    return any(row[1] is not None for row in rows)
