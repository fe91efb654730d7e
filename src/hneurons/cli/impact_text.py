"""impact.json as the terminal shows it. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hneurons.intervals import shown
from hneurons.runfolder import Json

RANDOM = {"uniform": "uniform", "layer_matched": "layer-matched"}


def impact_text(impact: Json, names: Sequence[str] | None = None) -> str:
    """The headline tables: compliance against alpha with what could fake it, slopes, random sets and the verdict."""
    found = impact["benchmarks"]
    parts = [_benchmark(found[name]) for name in (names or found) if name in found]
    if impact.get("capability"):
        parts.append(_capability(impact["capability"]))
    return "\n\n".join(parts)


def _benchmark(data: Json) -> str:
    own = data["arms"]["h_neurons"]
    curve = own["by_alpha"]
    lines = [
        f"{data['title']}: {data['n']:,} items, judged by {data['judge']}. Compliant: {data['compliant_means']}.",
        *_table(
            [
                ("alpha", [f"{point['alpha']:g}" for point in curve]),
                ("compliance %", [_share(point["compliance"]) for point in curve]),
                ("  95 % interval", [_bounds(point["compliance"]) for point in curve]),
                *((f"random, {label} %", _means(data, kind)) for kind, label in RANDOM.items()),
                ("unparsable %", [_share(point["unparsable"]) for point in curve]),
                ("cut %", [_share(point["cut"]) for point in curve]),
                ("tokens", [_number(point["tokens"]) for point in curve]),
                ("repetition %", [_share(point["repetition"]) for point in curve]),
            ]
        ),
        f"Slope, points a unit of alpha: {_points(own['slope'])}; up to alpha 1 {_points(own['slope_below_1'])}, "
        f"from 1 on {_points(own['slope_above_1'])}. Spearman {shown(own['spearman'], digits=2)}.",
    ]
    for kind, label in RANDOM.items():
        random = data["random"][kind]
        lines.append(
            f"Random, {label}: {100 * random['mean']['value']:.2f} ({100 * random['lowest']:.2f} to "
            f"{100 * random['highest']:.2f} over {len(random['slopes'])} sets); H-Neurons less these: "
            f"{_points(random['difference'])}."
            if random["mean"]["value"] is not None
            else f"Random, {label}: undefined."
        )
    if data["top_contribution"]:
        lines.append(f"Top neurons by mean contribution: {_points(data['top_contribution']['slope'])}.")
    smallest = data["verdict"]["minimum_detectable_slope"]
    if smallest is not None:
        lines.append(f"Smallest slope that this many items would show: {100 * smallest:.2f}.")
    if data["agreement"]:
        agreement = data["agreement"]
        lines.append(f"Judges {' and '.join(agreement['judges'])}: kappa {shown(agreement['kappa'], digits=2)}.")
    lines.append(f"Verdict: {data['verdict']['sentence']}")
    return "\n".join(lines)


def _capability(data: Json) -> str:
    curve = data["arms"]["h_neurons"]["by_alpha"]
    rows = [
        ("alpha", [f"{point['alpha']:g}" for point in curve]),
        ("perplexity", [_number(point["perplexity"], 2) for point in curve]),
        ("over-refusal %", [_share(point["over_refusal"]) for point in curve]),
    ]
    for name in data["questions"]:
        for key in ("right", "wrong", "abstained", "unparsable", "cut"):
            rows.append((f"{name}: {key} %", [_share(point["questions"][name][key]) for point in curve]))
    asked = ", ".join(f"{one['n']:,} questions of {name}" for name, one in data["questions"].items())
    head = f"Capability: {asked or 'no questions'}, {data['text']['tokens']:,} tokens of plain text."
    return "\n".join([head, *_table(rows)])


def _means(data: Json, kind: str) -> list[str]:
    """Mean compliance of the random sets of a kind at each alpha."""
    arms = [arm for arm in data["arms"].values() if arm["kind"] == kind]
    columns = zip(*(arm["by_alpha"] for arm in arms), strict=True)
    values = [[point["compliance"]["value"] for point in column] for column in columns]
    return [
        "-" if any(value is None for value in column) else f"{100 * math.fsum(column) / len(column):.1f}"
        for column in values
    ]


def _table(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    first = max(len(name) for name, _ in rows)
    widths = [max(len(cell) for cell in column) for column in zip(*(cells for _, cells in rows), strict=True)]
    return [
        "  ".join([name.ljust(first), *(cell.rjust(w) for cell, w in zip(cells, widths, strict=True))]).rstrip()
        for name, cells in rows
    ]


def _share(interval: Json) -> str:
    return "-" if interval["value"] is None else f"{100 * interval['value']:.1f}"


def _number(interval: Json, digits: int = 1) -> str:
    return "-" if interval["value"] is None else f"{interval['value']:.{digits}f}"


def _bounds(interval: Json) -> str:
    return "-" if interval["low"] is None else f"{100 * interval['low']:.0f} to {100 * interval['high']:.0f}"


def _points(interval: Json) -> str:
    return shown(interval, 100, 2)
