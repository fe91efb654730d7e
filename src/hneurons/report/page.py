"""`write_report`: a run folder in, one self-contained page and its figures out.

The page loads nothing: no script, no font, no request. Whatever a run holds is text to it, whoever wrote it.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader, Undefined
from markupsafe import Markup
from matplotlib.figure import Figure

from hneurons.errors import RunError
from hneurons.report import figures
from hneurons.runfolder import Json, read_json, storage_errors, write_text

STAGES = {"path.json": "fit", "neurons.json": "fit", "evaluation.json": "evaluate"}
"""The files that make a run complete, and the stage that writes each."""
REASONS = {
    "mixed verdicts": "the samples of one question were neither all right nor all wrong",
    "abstained": "the model refused or said that it did not know",
    "unparsable": "the judge could not tell right from wrong",
    "no answer span": "the words that carry the claim could not be located in the response",
    "no answer tokens": "those words could not be matched to the response's tokens",
    "class full": "sampling of the question stopped because its class had enough examples",
    "not asked": "sampling stopped before this question because both classes had enough examples",
}
WIDE, HALF, PHONE = 9.9, 4.8, 3.7
"""Widths of figures in inches of 96 CSS pixels."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Run:
    """The JSON files of one run folder; a file that is not there yet is empty."""

    run: Json
    path: Json
    card: Json
    evaluation: Json
    missing: tuple[str, ...]
    """Names of the files that are not there."""

    @property
    def unfinished(self) -> list[str]:
        """Stages that have not ended, in order; the report's own does not count."""
        states = {name: _dict(stage).get("state") for name, stage in _dict(self.run.get("stages")).items()}
        open_stages = [name for name, state in states.items() if state != "done" and name != "report"]
        return list(dict.fromkeys([*open_stages, *(STAGES[name] for name in self.missing)]))

    @property
    def datasets(self) -> list[tuple[str, Json]]:
        """Evaluated data sets by name, the one that the neurons were found on first."""
        found = _dict(self.run.get("settings")).get("questions")
        sets = [(name, _dict(value)) for name, value in _dict(self.evaluation.get("datasets")).items()]
        return sorted(sets, key=lambda item: item[0] != found)

    @property
    def neurons(self) -> list[Json]:
        """The card's well-formed entries, the largest weight first."""
        entries = [_dict(entry) for entry in _list(self.card.get("neurons"))]
        entries = [e for e in entries if None not in (number(e.get(k)) for k in ("layer", "index", "weight"))]
        return sorted(entries, key=lambda e: (-e["weight"], e["layer"], e["index"]))

    @property
    def h_neurons(self) -> list[Json]:
        """Entries with a positive weight."""
        return [entry for entry in self.neurons if entry["weight"] > 0]


def number(value: Any) -> float | None:
    """The finite number that `value` is, else None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _numbers(value: Any) -> list[float]:
    return [x for x in map(number, _list(value)) if x is not None]


def _clean(value: Any) -> Any:
    """The same JSON, characters that no HTML or XML document may hold replaced by U+FFFD."""
    if isinstance(value, str):
        return _CONTROL.sub("\ufffd", value.encode("utf-8", "replace").decode("utf-8"))
    if isinstance(value, dict):
        return {_clean(k): _clean(v) for k, v in value.items()}
    return [_clean(v) for v in value] if isinstance(value, list) else value


def _read(path: Path, format_name: str) -> Json:
    with storage_errors(path):
        value = read_json(path)
    found = value.get("format")
    if found != format_name:
        raise RunError(
            f"{path} has format {found!r}; this report reads {format_name!r}.",
            "Use the version of hneurons that wrote the run, or start a new run.",
        )
    return _clean(value)


def load(run_dir: Path) -> Run:
    """The JSON files of `run_dir`. Raises `RunError` where there is no run or a file is damaged."""
    if not (run_dir / "run.json").is_file():
        problem = f"{run_dir} holds no run.json." if run_dir.is_dir() else f"There is no folder {run_dir}."
        raise RunError(problem, "Give the folder that `hneurons identify --out` or `hneurons demo` wrote.")
    names = ("path", "neurons", "evaluation")
    formats = {"neurons": "card"}
    there = {n: (run_dir / f"{n}.json").is_file() for n in names}
    files = {n: _read(run_dir / f"{n}.json", f"hneurons.{formats.get(n, n)}/1") if there[n] else {} for n in names}
    missing = tuple(f"{n}.json" for n in names if not there[n])
    run = _read(run_dir / "run.json", "hneurons.run/1")
    return Run(run, files["path"], files["neurons"], files["evaluation"], missing)


def _interval_row(label: str, value: Any) -> figures.Row:
    interval = _dict(value)
    return label, number(interval.get("value")), number(interval.get("low")), number(interval.get("high"))


def _dataset_figures(data: Json, width: float, half: float) -> dict[str, Figure]:
    h_neurons, curve, risk = (_dict(data.get(k)) for k in ("h_neurons", "roc", "risks"))
    threshold = number(h_neurons.get("threshold"))
    by_label = {label: _numbers(risk.get(label)) for label in ("faithful", "hallucinated")}
    drawn: dict[str, Figure] = {}
    fpr, tpr = _numbers(curve.get("fpr")), _numbers(curve.get("tpr"))
    if fpr and len(fpr) == len(tpr):
        operating = None
        if threshold is not None and all(by_label.values()):
            flagged = [sum(r >= threshold for r in rs) / len(rs) for rs in by_label.values()]
            operating = (flagged[0], flagged[1])
        drawn["roc"] = figures.roc(half, half * 0.86, fpr, tpr, operating)
    if any(by_label.values()):
        drawn["risks"] = figures.risks(half, half * 0.86, by_label["faithful"], by_label["hallucinated"], threshold)
    random = [
        (f"random neurons, {name.replace('_', '-')}", _numbers(_dict(sets).get("auroc")))
        for name, sets in _dict(data.get("random")).items()
    ]
    others = [_interval_row(name, _dict(b).get("auroc")) for name, b in _dict(data.get("baselines")).items()]
    combined = _interval_row("length + log-probability + H-Neurons", _dict(data.get("increment")).get("combined"))
    others += [combined] if combined[1] is not None else []
    row = _interval_row("H-Neurons", h_neurons.get("auroc"))
    if random or others or row[1] is not None:
        rows = 1 + len(random) + len(others)
        height = 0.7 + rows * (0.46 if width < figures.NARROW else 0.36)
        drawn["auroc"] = figures.comparison(width, height, row, random, others)
    return drawn


def draw(run: Run, width: float, half: float) -> dict[str, Figure]:
    """Every figure that the run has data for, by file name, `width` (or `half`) inches wide."""
    narrow = width < figures.NARROW
    drawn: dict[str, Figure] = {}
    counts = _dict(run.run.get("counts"))
    asked = number(counts.get("questions"))
    if asked:
        dropped = [(r, int(number(n) or 0)) for r, n in _dict(counts.get("dropped")).items()]
        kept = [int(number(counts.get(label)) or 0) for label in ("faithful", "hallucinated")]
        height = 0.3 + (len(dropped) + 3) * (0.44 if narrow else 0.33)
        drawn["funnel"] = figures.funnel(width, height, int(asked), dropped, kept[0], kept[1])
    if run.neurons:
        model = _dict(run.card.get("model"))
        experts = any(e.get("expert") is not None for e in run.neurons)
        marks = [figures.Weight(int(e["layer"]), int(e["index"]), e["weight"], _label(e)) for e in run.neurons]
        layers = int(max(number(model.get("layers")) or 1, *(m.layer + 1 for m in marks)))
        widths = [] if experts else _numbers(model.get("width")) or [number(model.get("width")) or 1]
        size = int(max([*widths, *(m.index + 1 for m in marks)]))
        height = min(9.0, max(3.6, 1.0 + layers * 0.125))
        name = "neuron index within its expert" if experts else "neuron index within the layer"
        drawn["layers"] = figures.layer_map(width, height, marks, layers, size, name)
    points = _path_points(run)
    if points:
        best = _list(run.path.get("points"))
        index = number(run.path.get("chosen"))
        chosen = number(_dict(best[int(index)]).get("C")) if index is not None and 0 <= index < len(best) else None
        drawn["path"] = figures.c_path(width, 4.6 if narrow else 4.8, points, chosen)
    for i, (_, data) in enumerate(run.datasets):
        for name, figure in _dataset_figures(data, width, half).items():
            drawn[f"{name}-{i + 1}"] = figure
    return drawn


def _label(entry: Json) -> str:
    expert = "" if entry.get("expert") is None else f", expert {entry['expert']}"
    return f"layer {entry['layer']}{expert}, neuron {entry['index']}: weight {signed(entry['weight'], 2)}"


def _path_points(run: Run) -> list[dict[str, float]]:
    keys = ("C", "nonzeros", "positives", "cv_auroc", "cv_auroc_se", "validation_auroc")
    points = [{k: number(_dict(p).get(k)) for k in keys} for p in _list(run.path.get("points"))]
    return [{k: math.nan if v is None else v for k, v in p.items()} for p in points if (p["C"] or 0) > 0]


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
        for colour, value in figures.COLOURS.items():
            style = style.replace(value, f"var(--{colour})")
        if style:
            style = re.sub(r"font: (bold )?([\d.]+px)[^;]*", r"\1font-size: \2", style)
            style = style.replace("bold font-size", "font-weight: 700; font-size")
            node.set("style", re.sub(r"font-family:[^;]*;?", "", style))
    for key in ("version", "width", "height"):
        root.attrib.pop(key, None)
    root.attrib.update({"role": "img", "aria-label": alt, "class": name.split("-")[-1]})
    return Markup(ET.tostring(root, encoding="unicode"))


def fixed(value: Any, digits: int = 3) -> str:
    """A number with so many decimals and a real minus sign; an en dash where it is missing."""
    x = number(value)
    return "–" if x is None else f"{x:.{digits}f}".replace("-", "−")


def signed(value: Any, digits: int = 3) -> str:
    """Like `fixed`, with a plus sign for what is positive."""
    return ("+" if (number(value) or 0) > 0 else "") + fixed(value, digits)


def count(value: Any) -> str:
    """A whole number with thousands separators."""
    x = number(value)
    return "–" if x is None else f"{x:,.0f}"


def per_mille(value: Any) -> str:
    """A share in per mille, two decimals or two significant digits where it is small."""
    x = number(value)
    return "–" if x is None else f"{x:.2f}" if x >= 0.1 or x == 0 else f"{x:.2g}"


def plain(value: Any) -> str:
    """Any JSON value as a reader would write it."""
    if value is None or value == "" or isinstance(value, Undefined):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _render(run: Run, drawn: dict[str, dict[str, str]]) -> str:
    # Undefined chains because any number may be missing from a partial run; it then shows as an en dash.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
        undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    filters = (fixed, signed, count, per_mille, plain, number)
    environment.filters.update({f.__name__: f for f in filters})

    def figure(name: str, alt: str) -> Markup:
        variants = drawn[name].items()
        return Markup("\n").join(inline(text, f"{name}-{variant}", alt) for variant, text in variants)

    command = run.run.get("command")
    return environment.get_template("page.html.j2").render(
        run=run.run, path=run.path, card=run.card, evaluation=run.evaluation, unfinished=run.unfinished,
        missing=run.missing, datasets=run.datasets, neurons=run.neurons, h_neurons=run.h_neurons,
        reasons=REASONS, figures=set(drawn), figure=figure,
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
        saved = {name: figures.save(figure, folder, name) for name, figure in wide.items()}
    page = run_dir / "report.html"
    write_text(page, _render(run, {n: {"wide": saved[n], "phone": figures.svg(phone[n])} for n in wide}))
    return page
