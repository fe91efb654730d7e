"""The figures of the review: peers, confounds, transfer, calibration, stability. Plain data in, a `Figure` out."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from hneurons.report.canvas import ACCENT, HALLUCINATED, INK, LINE, MUTED, TIP, name_rows, narrow, short, themed
from hneurons.report.values import Row

STRONGEST, FAR = 0.55, 0.4
"""Opacity of a cell of the heat map, and the distance from 0.5 from which on it is that: the number in it stays
readable on light and on dark."""


def bounds(row: Row) -> tuple[float, float] | None:
    """Both ends of the row's interval, if it has them."""
    return None if row[2] is None or row[3] is None else (row[2], row[3])


@themed
def intervals(figure: Figure, own: Row, others: Sequence[Row], hollow: Collection[str], label: str) -> None:
    """A dot and an interval a row, all against the first row, whose interval runs through as a band."""
    ax = figure.add_subplot()
    offset = 0.16 if narrow(figure) else 0.0
    ax.axvline(0.5, color=MUTED, lw=1, ls=(0, (3, 3)), zorder=0)
    for i, row in enumerate((own, *others)):
        name, value, _, _ = row
        colour = INK if i else ACCENT
        if value is None:
            ax.text(0.5, i + offset, " not measured", va="center", color=MUTED)
            continue
        ends = bounds(row)
        if ends:
            ax.plot(ends, [i + offset] * 2, color=colour, lw=2.2)
            if not i:
                ax.axvspan(*ends, color=ACCENT, alpha=0.08, lw=0, zorder=0)
        inside = {"mfc": "#ffffff", "mew": 1.6, "mec": colour} if name in hollow else {"mfc": colour, "mew": 0}
        ax.plot(value, i + offset, "o", ms=7, gid=f"{TIP}{name}: {value:.3f}", **inside)  # pyright: ignore[reportArgumentType]
    name_rows(figure, ax, [own[0], *(row[0] for row in others)])
    known = [x for row in (own, *others) for x in row[1:] if x is not None]
    ax.set_xlim(min([0.45, *(x - 0.02 for x in known)]), min(1.01, max([0.7, *(x + 0.02 for x in known)])))
    ax.set_xlabel(label)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")


@themed
def heat_map(figure: Figure, names: Sequence[str], values: Sequence[Sequence[Row]]) -> None:
    """AUROC of a probe of each part (row) on each part (column): accent above chance, orange below, numbers inside."""
    ax = figure.add_subplot()
    labels = [short(name, 18) for name in names]
    for i, line in enumerate(values):
        for j, row in enumerate(line):
            value, ends = row[1], bounds(row)
            if value is None:
                ax.text(j, i, "–", ha="center", va="center", color=MUTED)
                continue
            colour = ACCENT if value >= 0.5 else HALLUCINATED
            told = f"{TIP}trained on {names[i]}, tested on {names[j]}: {value:.3f}"
            told += f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
            cell = Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, lw=0, fc=colour, gid=told)
            cell.set_alpha(STRONGEST * min(1.0, abs(value - 0.5) / FAR))
            ax.add_patch(cell)
            # Two decimals without the zero fit twenty to a row.
            ax.text(j, i, f"{value:.2f}".lstrip("0") or "0", ha="center", va="center", color=INK, fontsize=9)
            if i == j:
                ax.add_patch(Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, lw=1.2, fc="none", ec=MUTED))
    size = len(names)
    ax.set(xlim=(-0.55, size - 0.45), ylim=(size - 0.45, -0.55), xlabel="tested on", ylabel="trained on")
    turned = size > 6 or narrow(figure)
    ax.set_xticks(range(size), labels, rotation=45 if turned else 0, ha="left" if turned else "center")
    ax.set_yticks(range(size), labels)
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


@themed
def reliability(figure: Figure, bins: Sequence[tuple[float, Row]]) -> None:
    """Share of hallucinated answers over their mean risk, a dot a bin with its interval; the diagonal is perfect."""
    ax = figure.add_subplot()
    ax.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=(0, (3, 3)))
    ax.text(0.03, 0.965, "perfect: on the dashed line", color=MUTED, va="top")
    for risk, row in bins:
        ends = bounds(row)
        if ends:
            ax.plot([risk] * 2, ends, color=ACCENT, lw=2)
        if row[1] is not None:
            tip = f"{TIP}mean risk {risk:.2f}: {row[1]:.2f} hallucinated"
            ax.plot(risk, row[1], "o", ms=6.5, color=ACCENT, mew=0, clip_on=False, gid=tip)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="mean risk of the bin", ylabel="share hallucinated")
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.grid()


@themed
def two_by_two(figure: Figure, cells: dict[str, Row]) -> None:
    """Mean score of right and wrong answers, short and long: a line each, with intervals."""
    ax = figure.add_subplot()
    for truth, colour, shift, mark in (("right", ACCENT, -0.03, "o"), ("wrong", HALLUCINATED, 0.03, "s")):
        rows = [cells[f"{truth} {size}"] for size in ("short", "long")]
        places = [i + shift for i in range(2)]
        means = [math.nan if row[1] is None else row[1] for row in rows]
        ax.plot(places, means, color=colour, lw=1.6, ls=(0, (4, 2)) if truth == "right" else "-")
        for place, mean, row in zip(places, means, rows, strict=True):
            ends = bounds(row)
            if ends:
                ax.plot([place] * 2, ends, color=colour, lw=2.2)
            if math.isfinite(mean):
                ax.plot(place, mean, mark, ms=7, color=colour, mew=0, gid=f"{TIP}{row[0]}: {mean:.2f}")
        if math.isfinite(means[1]):
            ax.annotate(
                truth, (1 + shift, means[1]), xytext=(12, 0), textcoords="offset points", va="center", color=colour,
                weight="bold",
            )  # fmt: skip
    ax.set_xlim(-0.35, 1.5)
    ax.set_xticks([0, 1], ["short: the bare answer", "long: in a sentence"])
    ax.set_ylabel("mean score")
    ax.grid(axis="y")


@themed
def path_overlap(figure: Figure, points: Sequence[dict[str, float]], chosen: float | None) -> None:
    """Share of H-Neurons that the set of each C has in common with the chosen set and with that of the C before.

    A point has `C to_chosen to_previous`, NaN where unknown.
    """
    ax = figure.add_subplot()
    x = np.array([p["C"] for p in points])
    ax.plot(x, [p["to_chosen"] for p in points], color=ACCENT, lw=1.8, label="with the chosen set")
    for p in points:
        if math.isfinite(p["to_chosen"]):
            tip = f"{TIP}C = {p['C']:.3g}: {100 * p['to_chosen']:.0f} % shared with the chosen set"
            ax.plot(p["C"], p["to_chosen"], "o", ms=4, color=ACCENT, mew=0, gid=tip)
    ax.plot(
        x, [p["to_previous"] for p in points], color=MUTED, lw=1.2, ls=(0, (4, 2)), marker="s", ms=3,
        label="with the next sparser set",
    )  # fmt: skip
    ax.set_xscale("log")
    ax.minorticks_off()
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set(ylim=(-0.03, 1.05), xlabel="C (log scale): weaker penalty to the right", ylabel="shared H-Neurons")
    ax.set_yticks([0, 0.5, 1], ["0", "half", "all"])
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=1 if narrow(figure) else 2)
    ax.axhline(0.5, color=LINE, lw=0.7, zorder=0)
    ax.grid(axis="y")
    if chosen is not None:
        ax.axvline(chosen, color=INK, lw=1, ls=(0, (2, 2)))
