"""What the figures of the report share: colours, theme, row labels, and how one becomes SVG and PNG.

Every colour comes from `COLOURS`, so that the page can swap each one for a CSS variable and follow the theme.
An artist whose gid starts with `TIP` carries a hover text. An inch is 96 CSS pixels on the page.
"""

from __future__ import annotations

import functools
import io
import os
import re
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

P = ParamSpec("P")

COLOURS = {
    "bg": "#ffffff",
    "ink": "#1b1f26",
    "muted": "#5a6472",
    "line": "#dfe3e8",
    "accent": "#5b47b8",
    "faithful": "#0069a8",
    "hallucinated": "#c04e00",
}
INK, MUTED, LINE, ACCENT = (COLOURS[k] for k in ("ink", "muted", "line", "accent"))
FAITHFUL, HALLUCINATED = COLOURS["faithful"], COLOURS["hallucinated"]
TIP = "tip:"
NARROW = 5.0
"""Figures below this width (inches) put row labels above their rows."""

_STYLE: dict[Any, Any] = {
    "font.size": 9.5, "axes.labelsize": 9.5, "xtick.labelsize": 9, "ytick.labelsize": 9.5,
    "legend.fontsize": 9, "text.color": INK, "axes.labelcolor": MUTED, "xtick.color": LINE,
    "ytick.color": LINE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED, "axes.edgecolor": LINE,
    "axes.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "grid.color": LINE, "grid.linewidth": 0.7, "legend.frameon": False, "svg.fonttype": "none",
    "text.parse_math": False, "svg.hashsalt": "hneurons", "figure.constrained_layout.use": True,
    "figure.facecolor": COLOURS["bg"], "savefig.facecolor": COLOURS["bg"], "lines.solid_capstyle": "round",
}  # fmt: skip


@contextmanager
def _theme() -> Generator[None]:
    # A reader's own matplotlibrc must not change the report. Emoji that the raster font lacks are boxes in
    # the PNG and text in the SVG, so the warning about them says nothing useful.
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def themed(draw: Callable[Concatenate[Figure, P], None]) -> Callable[Concatenate[float, float, P], Figure]:
    """The drawing function as `f(width, height, ...) -> Figure`, in inches."""

    @functools.wraps(draw)
    def make(width: float, height: float, *args: P.args, **kwargs: P.kwargs) -> Figure:
        with _theme():
            figure = Figure(figsize=(width, height))
            draw(figure, *args, **kwargs)
        return figure

    return make


def svg(figure: Figure) -> str:
    """The figure as an SVG document; the same text for the same figure."""
    out = io.StringIO()
    with _theme():
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=none)
    return re.sub(rf'<g id="{TIP}([^"]*)">', r"<g><title>\1</title>", out.getvalue())


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write `name.png` (192 dots an inch) and `name.svg`, whole or not at all; the text of the SVG."""
    image, drawing = io.BytesIO(), svg(figure)
    with _theme():
        figure.savefig(image, format="png", dpi=192, metadata={"Software": None})
    for suffix, content in (("png", image.getvalue()), ("svg", drawing.encode())):
        temporary = folder / f".{name}.{suffix}.{os.getpid()}.tmp"
        try:
            temporary.write_bytes(content)
            temporary.replace(folder / f"{name}.{suffix}")
        finally:
            temporary.unlink(missing_ok=True)
    return drawing


def narrow(figure: Figure) -> bool:
    """Whether row labels go above their rows."""
    return figure.get_figwidth() < NARROW


def short(text: str, most: int = 40) -> str:
    """One line of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def name_rows(figure: Figure, ax: Axes, labels: Sequence[str]) -> None:
    """Name the rows 0, 1, ... from the top: beside the axis, or above each row where the page is narrow."""
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    if not narrow(figure):
        ax.set_yticks(range(len(labels)), [short(x) for x in labels], color=INK)
        return
    ax.set_yticks([])
    for i, label in enumerate(labels):
        ax.text(0, i - 0.1, short(label), transform=ax.get_yaxis_transform(), va="bottom", color=INK)
