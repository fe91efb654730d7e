"""The figures of what a run found and how well it predicts: plain data in, a matplotlib `Figure` out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hneurons.report.canvas import ACCENT, FAITHFUL, HALLUCINATED, INK, LINE, MUTED, TIP, name_rows, narrow, themed
from hneurons.report.values import Row

MOST_TIPS = 300
"""How many neurons of the map carry a hover text; the rest are drawn as one collection."""


@themed
def funnel(
    figure: Figure, questions: int, dropped: Sequence[tuple[str, int]], faithful: int, hallucinated: int
) -> None:
    """Horizontal bars: all questions, what each reason took away, and what was kept."""
    ax = figure.add_subplot()
    rows: list[tuple[str, int, int, str, str]] = [("All questions", 0, questions, MUTED, f"{questions:,}")]
    left = questions
    for reason, count in dropped:
        left -= count
        rows.append((f"Dropped: {reason}", left, count, LINE, f"−{count:,}" if count else "0"))
    rows.append(("Kept: faithful", 0, faithful, FAITHFUL, f"{faithful:,}"))
    rows.append(("Kept: hallucinated", faithful, hallucinated, HALLUCINATED, f"{hallucinated:,}"))
    height = 0.38 if narrow(figure) else 0.62
    offset = 0.14 if narrow(figure) else 0.0
    for i, (label, start, count, colour, text) in enumerate(rows):
        bar = ax.barh(i + offset, count, height, left=start, color=MUTED if colour == LINE else colour)
        bar[0].set_gid(f"{TIP}{label}: {count:,}")
        bar[0].set_alpha(0.55 if colour == LINE else 1)
        if colour == LINE:
            ax.barh(i + offset, start, height, color=LINE, alpha=0.55)
        ax.text(start + count + questions * 0.008, i + offset, text, va="center", color=INK)
    name_rows(figure, ax, [row[0] for row in rows])
    ax.set_xlim(0, max(questions, 1) * (1.16 if narrow(figure) else 1.08))
    ax.spines[["bottom", "left"]].set_visible(False)
    ax.set_xticks([])


@dataclass(frozen=True, slots=True)
class Weight:
    """One neuron of the map."""

    layer: int
    index: int
    weight: float
    label: str


@themed
def layer_map(figure: Figure, neurons: Sequence[Weight], layers: int, width: int, index_name: str) -> None:
    """The neurons with a non-zero weight, layer against index, and how many of them each layer holds."""
    ratio = (3, 1) if narrow(figure) else (6, 1)
    ax, margin = figure.subplots(1, 2, sharey=True, width_ratios=ratio)
    top = max((abs(n.weight) for n in neurons), default=1.0) or 1.0
    ordered = sorted(neurons, key=lambda n: -abs(n.weight))
    for n in reversed(ordered[:MOST_TIPS]):
        strength = math.sqrt(abs(n.weight) / top)
        ax.plot(
            n.index, n.layer, "o", ms=4 + 4 * strength, alpha=0.35 + 0.65 * strength, mew=0, clip_on=False,
            color=HALLUCINATED if n.weight > 0 else FAITHFUL, gid=TIP + n.label,
        )  # fmt: skip
    for sign, colour in ((1, HALLUCINATED), (-1, FAITHFUL)):
        rest = [n for n in ordered[MOST_TIPS:] if n.weight * sign > 0]
        if rest:
            ax.plot([n.index for n in rest], [n.layer for n in rest], "o", ms=4, alpha=0.35, mew=0, color=colour)
    ticks = range(0, layers, 5 if layers <= 60 else 10)
    for layer in ticks:
        ax.axhline(layer, color=LINE, lw=0.7, zorder=0)
    ax.set(xlim=(-width * 0.01, width * 1.01), ylim=(-0.8, layers - 0.2), xlabel=index_name, ylabel="layer")
    ax.set_yticks(ticks)
    ax.xaxis.set_major_locator(MaxNLocator(4 if narrow(figure) else 8, integer=True))
    count = np.zeros((2, layers))
    for n in neurons:
        count[0 if n.weight > 0 else 1, n.layer] += 1
    margin.barh(range(layers), count[0], 0.72, color=HALLUCINATED)
    margin.barh(range(layers), count[1], 0.72, left=count[0], color=FAITHFUL)
    margin.set_xlabel("neurons")
    margin.spines["left"].set_visible(False)
    margin.tick_params(axis="y", length=0)
    margin.xaxis.set_major_locator(MaxNLocator(2, integer=True))


@themed
def c_path(figure: Figure, points: Sequence[dict[str, float]], chosen: float | None) -> None:
    """Cross-validated AUROC with its standard error over C, and below it how many neurons each C keeps.

    A point has `C nonzeros positives cv_auroc cv_auroc_se validation_auroc`, NaN where unknown.
    """
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))

    def column(key: str) -> np.ndarray:
        return np.array([p[key] for p in points], dtype=float)

    x, y, error = column("C"), column("cv_auroc"), np.nan_to_num(column("cv_auroc_se"))
    ax.fill_between(x, y - error, y + error, color=ACCENT, alpha=0.16, lw=0)
    ax.plot(x, y, color=ACCENT, lw=1.8, label="cross-validated ± 1 standard error")
    ax.plot(x, column("validation_auroc"), color=MUTED, lw=1.1, ls=(0, (4, 2)), label="validation split")
    for p in points:
        if math.isfinite(p["cv_auroc"]):
            tip = f"{TIP}C = {p['C']:g}: AUROC {p['cv_auroc']:.3f}, {p['positives']:.0f} H-Neurons"
            ax.plot(p["C"], p["cv_auroc"], "o", ms=4, color=ACCENT, mew=0, gid=tip)
    ax.set_ylabel("AUROC")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=1 if narrow(figure) else 2)
    below.plot(x, column("nonzeros"), color=MUTED, lw=1.3, label="non-zero weights", marker="o", ms=3)
    below.plot(x, column("positives"), color=HALLUCINATED, lw=1.8, label="H-Neurons (weight > 0)", marker="o", ms=3)
    below.set_yscale("symlog", linthresh=10)
    top = float(np.nanmax([*column("nonzeros"), 1.0]))
    ticks = [t for t in (0, 10, 100, 1_000, 10_000, 100_000) if t <= top * 3]
    below.set_yticks(ticks, [f"{t:,}" for t in ticks])
    below.minorticks_off()
    below.set_ylim(-1, top * 1.6)
    below.set(ylabel="neurons", xlabel="C (log scale): weaker penalty to the right")
    below.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=1 if narrow(figure) else 2)
    below.set_xscale("log")
    below.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for panel in (ax, below):
        panel.grid(axis="y")
        if chosen is not None:
            panel.axvline(chosen, color=INK, lw=1, ls=(0, (2, 2)))
    if chosen is not None:
        right = chosen > math.sqrt(float(x.min()) * float(x.max()))
        ax.annotate(
            f"chosen: C = {chosen:.3g}", (chosen, 0.03), xycoords=("data", "axes fraction"), color=INK,
            xytext=(-5 if right else 5, 0), textcoords="offset points", ha="right" if right else "left",
        )  # fmt: skip


@themed
def roc(figure: Figure, fpr: Sequence[float], tpr: Sequence[float], operating: tuple[float, float] | None) -> None:
    """The ROC curve of the risk, hallucinated as the positive class, with the threshold's point."""
    ax = figure.add_subplot()
    ax.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=(0, (3, 3)))
    ax.text(0.72, 0.66, "chance", color=MUTED, ha="left", va="top")
    ax.fill_between(fpr, tpr, step=None, color=ACCENT, alpha=0.08, lw=0)
    ax.plot(fpr, tpr, color=ACCENT, lw=1.8)
    if operating is not None:
        ax.plot(*operating, "o", ms=7, color=ACCENT, mew=0, clip_on=False, gid=f"{TIP}at the threshold")
        ax.annotate("threshold", operating, xytext=(9, -9), textcoords="offset points", color=INK, va="center")
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="faithful answers flagged", ylabel="hallucinated answers flagged")
    ticks = [0, 0.25, 0.5, 0.75, 1]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.grid()


@themed
def risks(figure: Figure, faithful: Sequence[float], hallucinated: Sequence[float], threshold: float | None) -> None:
    """Histograms of the risk, hallucinated above the axis and faithful below it, with the threshold."""
    ax = figure.add_subplot()
    edges = np.linspace(0, 1, 21)
    tallest = 1
    low, high = (threshold or 0.5) < 0.35, (threshold or 0.5) > 0.7
    for values, colour, sign, name in (
        (hallucinated, HALLUCINATED, 1, "hallucinated"),
        (faithful, FAITHFUL, -1, "faithful"),
    ):
        count, _ = np.histogram(values, edges)
        tallest = max(tallest, int(count.max(initial=0)))
        bars = ax.bar(edges[:-1] + 0.025, sign * count, 0.044, color=colour)
        for bar, n, left in zip(bars, count, edges, strict=False):
            bar.set_gid(f"{TIP}{name}, risk {left:.2f} to {left + 0.05:.2f}: {n}")
        place: dict[str, Any] = {"ha": "right" if low else "left", "va": "top" if sign > 0 else "bottom"}
        x, y = 0.99 if low else 0.01, 0.985 if sign > 0 else 0.015
        ax.text(x, y, name, transform=ax.transAxes, color=colour, weight="bold", **place)
    ax.axhline(0, color=MUTED, lw=0.8)
    ax.set_ylim(-tallest * 1.25, tallest * 1.25)
    if threshold is not None:
        ax.axvline(threshold, color=INK, lw=1, ls=(0, (2, 2)))
        ax.annotate(
            f"threshold {threshold:.2f}", (threshold, 0.985), xycoords=("data", "axes fraction"), va="top",
            ha="right" if high else "left", xytext=(-5 if high else 5, 0), textcoords="offset points",
        )  # fmt: skip
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
    ax.set(xlim=(0, 1), xlabel="risk", ylabel="answers")
    ax.grid(axis="y")


@themed
def comparison(
    figure: Figure, h_neurons: Row, random: Sequence[tuple[str, Sequence[float]]], others: Sequence[Row]
) -> None:
    """AUROC side by side: the H-Neurons, a dot for each random set, and the baselines."""
    ax = figure.add_subplot()
    offset = 0.16 if narrow(figure) else 0.0
    labels = [h_neurons[0], *(name for name, _ in random), *(row[0] for row in others)]
    ax.axvline(0.5, color=MUTED, lw=1, ls=(0, (3, 3)), zorder=0)

    def bar(i: int, row: Row, colour: str) -> None:
        label, value, low, high = row
        if value is None:
            ax.text(0.5, i + offset, " not measured", va="center", color=MUTED)
            return
        if low is not None and high is not None:
            ax.plot([low, high], [i + offset] * 2, color=colour, lw=2.2)
        ax.plot(value, i + offset, "o", ms=7, color=colour, mew=0, gid=f"{TIP}{label}: {value:.3f}")

    if h_neurons[1] is not None:
        ax.axvspan(
            h_neurons[2] or h_neurons[1],
            h_neurons[3] or h_neurons[1],
            color=ACCENT,
            alpha=0.08,
            lw=0,
            zorder=0,
        )
    bar(0, h_neurons, ACCENT)
    for i, (name, values) in enumerate(random, 1):
        if not values:
            bar(i, (name, None, None, None), MUTED)
        for seed, value in enumerate(values):
            tip = f"{TIP}{name}, set {seed + 1}: {value:.3f}"
            ax.plot(value, i + offset, "o", ms=5.5, color=MUTED, alpha=0.55, mew=0, gid=tip)
        if values:
            mean = float(np.mean(values))
            ax.plot([mean] * 2, [i + offset - 0.2, i + offset + 0.2], color=INK, lw=1.6)
    for i, row in enumerate(others, 1 + len(random)):
        bar(i, row, INK)
    name_rows(figure, ax, labels)
    ends = [x for row in (h_neurons, *others) for x in row[1:] if x is not None]
    ends += [x for _, values in random for x in values]
    ax.set_xlim(min([0.45, *(x - 0.02 for x in ends)]), min(1.01, max([0.7, *(x + 0.02 for x in ends)])))
    ax.set_xlabel("AUROC (0.5 = chance)")
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
