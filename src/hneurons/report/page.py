"""`write_report`: a run folder in, one self-contained page and its figures out.

The page loads nothing: no script, no font, no request. Whatever a run holds is text to it, whoever wrote it.
"""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path

from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from hneurons.report import canvas
from hneurons.report.drawing import HALF, PHONE, WIDE, draw
from hneurons.report.folder import Run, load
from hneurons.report.impact import impact
from hneurons.report.origin import origin
from hneurons.report.review import review
from hneurons.report.values import count, fixed, listed, number, per_mille, percent, plain, points, signed
from hneurons.runfolder import storage_errors, write_text

REASONS = {
    "mixed verdicts": "the samples of one question were neither all right nor all wrong",
    "abstained": "the model refused or said that it did not know",
    "unparsable": "the judge could not tell right from wrong",
    "no answer span": "the words that carry the claim could not be located in the response",
    "no answer tokens": "those words could not be matched to the response's tokens",
    "class full": "sampling of the question stopped because its class had enough examples",
    "not asked": "sampling stopped before this question because both classes had enough examples",
}


def inline(svg: str, name: str, alt: str) -> Markup:
    """An SVG document as an element of the page: theme colours, page font, own ids, a text alternative."""
    root = ET.fromstring(svg)
    xlink = "{http://www.w3.org/1999/xlink}href"
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    for node in root.iter():
        node.tag = node.tag.split("}")[-1]
        if xlink in node.attrib:
            node.set("href", node.attrib.pop(xlink).replace("#", f"#{name}-"))
        if "id" in node.attrib:
            node.set("id", f"{name}-{node.get('id')}")
        if "clip-path" in node.attrib:
            node.set("clip-path", node.attrib["clip-path"].replace("#", f"#{name}-"))
        style = node.get("style", "")
        for colour, value in canvas.COLOURS.items():
            style = style.replace(value, f"var(--{colour})")
        if style:
            style = re.sub(r"font: (bold )?([\d.]+px)[^;]*", r"\1font-size: \2", style)
            style = style.replace("bold font-size", "font-weight: 700; font-size")
            node.set("style", re.sub(r"font-family:[^;]*;?", "", style))
    for key in ("version", "width", "height"):
        root.attrib.pop(key, None)
    # In a viewBox an inch is 72 units. What was drawn wider than a phone scrolls there, and stays readable.
    width = float(root.attrib.get("viewBox", "0 0 0 0").split()[2]) / 72
    if name.endswith("-phone") and width > PHONE + 0.1:
        root.set("style", f"min-width:{96 * width:.0f}px")
    elif HALF + 0.1 < width < WIDE - 0.1:
        root.set("style", f"max-width:{96 * width:.0f}px")
    root.attrib.update({"role": "img", "aria-label": alt, "class": name.split("-")[-1]})
    return Markup(ET.tostring(root, encoding="unicode"))


@cache
def _environment() -> Environment:
    """The templates, compiled once."""
    # Undefined chains because any number may be missing from a partial run; it then shows as an en dash.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
        undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    filters = (fixed, signed, count, per_mille, percent, plain, listed, number, points)
    environment.filters.update({f.__name__: f for f in filters})
    return environment


def _render(run: Run, drawn: dict[str, dict[str, str]]) -> str:
    def figure(name: str, alt: str) -> Markup:
        variants = drawn[name].items()
        return Markup("\n").join(inline(text, f"{name}-{variant}", alt) for variant, text in variants)

    command = run.run.get("command")
    return _environment().get_template("page.html.j2").render(
        run=run.run, path=run.path, card=run.card, evaluation=run.evaluation, unfinished=run.unfinished,
        missing=run.missing, stale=run.stale, datasets=run.datasets, neurons=run.neurons, h_neurons=run.h_neurons,
        reasons=REASONS, figures=set(drawn), figure=figure, review=review(run), impact=impact(run),
        origin=origin(run),
        command=shlex.join(map(str, command)) if isinstance(command, list) else command,
    )  # fmt: skip


def write_report(run_dir: Path) -> Path:
    """Write `report.html` and `figures/*.png, *.svg` into a run folder; the same bytes for the same run.

    Raises `RunError` where `run_dir` is no run folder or a file of it is damaged. A run that has not
    ended gets a report of what is there.
    """
    run = load(run_dir)
    wide, phone = draw(run, WIDE, HALF), draw(run, PHONE, PHONE)
    folder = run_dir / "figures"
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
        saved = {name: canvas.save(figure, folder, name) for name, figure in wide.items()}
    page = run_dir / "report.html"
    write_text(page, _render(run, {n: {"wide": saved[n], "phone": canvas.svg(phone[n])} for n in wide}))
    return page
