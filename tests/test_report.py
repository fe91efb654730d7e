"""The report: every variant renders, nothing is loaded, nothing in a run can become markup."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fake_run import HOSTILE, RTL, VARIANTS, write_run
from hneurons.errors import RunError
from hneurons.report import canvas, write_report
from hneurons.report import page as report_page
from hneurons.report.drawing import draw
from hneurons.report.values import count, fixed, listed, per_mille, percent, plain, signed

VOID = {"meta", "link", "br", "img", "hr", "input"}
ALL_FIGURES = {
    "funnel", "layers", "path", "auroc-1", "roc-1", "risks-1",
    "peers-1", "confounds-1", "verbosity", "transfer", "reliability-1", "overlap",
}  # fmt: skip


class Page(HTMLParser):
    """A strict reader of the page: balanced tags, every attribute, the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def svg_only(figure: Figure, folder: Path, name: str) -> str:
    """As `canvas.save`, without the PNG, which takes as long again."""
    text = canvas.svg(figure)
    (folder / f"{name}.svg").write_text(text, encoding="utf-8")
    return text


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let reports hold these figures alone: the test is about them."""

    def keep(*names: str) -> None:
        def some(*arguments: Any) -> dict[str, Figure]:
            return {name: figure for name, figure in draw(*arguments).items() if name in names}

        monkeypatch.setattr(report_page, "draw", some)

    return keep


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let figures be made but not rendered: the test is about something else."""
    monkeypatch.setattr(canvas, "svg", lambda _: "<svg/>")
    monkeypatch.setattr(canvas, "save", lambda *_: "<svg/>")


def report(folder: Path, variant: str = "supported", **kwargs: Any) -> tuple[Page, Path]:
    path = write_report(write_run(folder / "run", variant, **kwargs))
    return Page(path.read_text(encoding="utf-8")), path.parent


def edit(run: Path, name: str, change: Any) -> None:
    value = json.loads((run / name).read_text(encoding="utf-8"))
    change(value)
    (run / name).write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="module")
def supported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path]:
    """A whole report; tests read it only."""
    return report(tmp_path_factory.mktemp("supported"))


@pytest.fixture(scope="module")
def reports(
    supported: tuple[Page, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Page, Path]]:
    """The report of a variant, written once; only that of `supported` has PNGs. Tests read them only."""

    @cache
    def make(variant: str) -> tuple[Page, Path]:
        if variant == "supported":
            return supported
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(canvas, "save", svg_only)
            return report(tmp_path_factory.mktemp("reports") / variant, variant)

    return make


@pytest.fixture(scope="module")
def hostile(reports: Callable[[str], tuple[Page, Path]]) -> tuple[Page, Path]:
    return reports("hostile")


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_renders_as_balanced_html_that_loads_nothing(variant: str, reports: Any) -> None:
    page, run = reports(variant)
    wording = {
        "supported": "Supported",
        "not supported": "Not supported",
        "too little data": "Too little data",
    }
    verdict = wording[VARIANTS[variant]["verdict"]]
    assert re.search(rf"</svg>{verdict}</p>", (run / "report.html").read_text(encoding="utf-8"))
    assert len(page.ids) == len(set(page.ids))
    assert "nan" not in page.words.lower().split()
    assert "None" not in page.words
    assert not set(page.tags) & {"script", "img", "iframe", "object", "embed", "form", "base", "image"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in {"src", "srcset"}]
    links = [(tag, value) for tag, name, value in page.attributes if name == "href"]
    assert {value for tag, value in links if tag == "link"} == {"data:,"}
    outside = {(tag, value) for tag, value in links if not value.startswith(("#", "data:,"))}
    assert outside == {("a", "https://arxiv.org/abs/2512.01797")}
    assert {v[1:] for _, v in links if v.startswith("#")} <= set(page.ids)
    html = (run / "report.html").read_text(encoding="utf-8")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in html
    assert "url(" not in style
    assert not re.search(r"url\((?!#)", html.replace(style, ""))


def test_policy_forbids_everything_but_inline_style(supported: tuple[Page, Path]) -> None:
    html = (supported[1] / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy
    assert policy[1].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert "script-src" not in policy[1]
    assert html.index("Content-Security-Policy") < html.index("<title>")


def test_hostile_strings_are_text_everywhere(hostile: tuple[Page, Path]) -> None:
    page, run = hostile
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<img" not in html
    assert "onerror" in page.words
    collapsed = " ".join(HOSTILE.split())
    # Model id (title and headline), note, data set, drop reason, questions, settings: each in full.
    assert page.words.count(collapsed) >= 8
    assert " ".join(RTL.split()) in page.words
    assert not [v for v in page.values("style") if "alert" in v]
    for drawing in (run / "figures").glob("*.svg"):
        assert "<script" not in drawing.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["a\x00b\x08\x1b[31m", "\ud83d alone", "\uffff", "]]>", "{{ 7 * 7 }}", "$\\frac{$"])
def test_characters_that_no_document_may_hold_do_not_break_it(text: str, only: Any, tmp_path: Path) -> None:
    only("funnel")  # it names what was dropped
    run = write_run(tmp_path / "run")

    def change(value: dict[str, Any]) -> None:
        value["model"]["id"] = text
        value["counts"]["dropped"][text] = 7
        value["notes"] = [text, None, 3]

    edit(run, "run.json", change)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "49" not in page.words[: page.words.index("From questions")]
    assert "\x00" not in page.text


def test_figures_are_written_as_png_and_svg(supported: tuple[Page, Path]) -> None:
    folder = supported[1] / "figures"
    assert {p.name for p in folder.iterdir()} == {f"{n}.{s}" for n in ALL_FIGURES for s in ("png", "svg")}
    for name in ALL_FIGURES:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.png").stat().st_size > 5000
        assert "<title>" in (folder / f"{name}.svg").read_text(encoding="utf-8")
    assert supported[0].tags["figure"] == len(ALL_FIGURES)
    drawings = [v for tag, name, v in supported[0].attributes if tag == "svg" and name == "class"]
    assert Counter(drawings) == {"wide": len(ALL_FIGURES), "phone": len(ALL_FIGURES)}
    assert all(supported[0].values("aria-label"))


def test_inline_figures_follow_the_theme(supported: tuple[Page, Path]) -> None:
    html = (supported[1] / "report.html").read_text(encoding="utf-8")
    drawings = re.findall(r"<svg viewBox.*?</svg>", html, re.DOTALL)
    inline = "".join(d for d in drawings if 'role="img"' in d)
    for name, colour in canvas.COLOURS.items():
        assert f"var(--{name})" in inline
        assert colour not in inline
    assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", inline)
    assert "font-family" not in inline


def test_the_same_run_gives_the_same_bytes_whatever_the_readers_matplotlibrc(
    supported: tuple[Page, Path], tmp_path: Path
) -> None:
    import matplotlib as mpl

    def files(run: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in [run / "report.html", *(run / "figures").iterdir()]}

    run = shutil.copytree(supported[1], tmp_path / "run")
    (run / "report.html").unlink()
    (run / "figures/roc-1.png").unlink()
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        write_report(run)
    assert files(run) == files(supported[1])
    assert not list(run.rglob("*.tmp"))


def test_numbers_are_those_of_the_files(supported: tuple[Page, Path]) -> None:
    page, run = supported
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    data = evaluation["datasets"]["starter"]
    card = json.loads((run / "neurons.json").read_text(encoding="utf-8"))
    found = [n for n in card["neurons"] if n["weight"] > 0]
    head = page.words[: page.words.index("From questions to examples", 400)]
    own, gain, difference = (
        data["h_neurons"],
        data["increment"]["difference"],
        data["random"]["uniform"]["difference"],
    )
    for value in (
        f"H-Neurons{len(found)}",
        f"{1000 * len(found) / 46080:.2f} ‰ of 46,080 neurons",
        f"{own['auroc']['value']:.3f}",
        f"[{own['auroc']['low']:.3f}, {own['auroc']['high']:.3f}]",
        f"{data['random']['uniform']['mean_auroc']:.3f}",
        f"difference +{difference['value']:.3f} [+{difference['low']:.3f}, +{difference['high']:.3f}]",
        f"+{gain['value']:.3f}",
        f"Test answers{data['n']}",
        evaluation["verdict"]["sentence"],
        *(check["detail"] for check in evaluation["verdict"]["checks"]),
    ):
        assert value in head, value
    text = spaced(run)
    for name, baseline in data["baselines"].items():
        score = baseline["auroc"]
        low, high = f"{score['low']:.3f}", f"{score['high']:.3f}"
        assert f" {name.capitalize()} {score['value']:.3f} [{low}, {high}] " in text
    strongest = max(found, key=lambda n: n["weight"])
    assert f" 1 {strongest['layer']} {strongest['index']} {strongest['weight']:.2f} 97 % " in text
    tip = f"layer {strongest['layer']}, neuron {strongest['index']}: weight +{strongest['weight']:.2f}"
    assert tip in page.text
    assert page.tags["article"] == len(evaluation["showcase"])
    risks = [f"risk {t['risk']:.3f}" for item in evaluation["showcase"] for t in item["tokens"]]
    assert Counter(page.values("title")) == Counter(risks)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def spaced(run: Path) -> str:
    html = (run / "report.html").read_text(encoding="utf-8")
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_counts_and_splits_are_those_of_the_run(supported: tuple[Page, Path]) -> None:
    page, run = supported
    counts = json.loads((run / "run.json").read_text(encoding="utf-8"))["counts"]
    assert counts["questions"] == counts["faithful"] + counts["hallucinated"] + sum(counts["dropped"].values())
    text = spaced(run)
    for name, split in counts["splits"].items():
        assert f" {name} {split['faithful']} {split['hallucinated']} {sum(split.values())} " in text
    for reason in counts["dropped"]:
        assert f"Dropped: {reason}" in page.text


def test_the_page_is_accessible_in_its_bones(supported: tuple[Page, Path]) -> None:
    html = (supported[1] / "report.html").read_text(encoding="utf-8")
    levels = [int(x) for x in re.findall(r"<h([1-6])", html)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    tables = re.findall(r"<table.*?</table>", html, re.DOTALL)
    assert tables
    for table in tables:
        assert "<caption>" in table
        assert not re.search(r"<th(?![^>]*scope=)(?=[ >])", table)
    assert '<html lang="en">' in html
    assert "Gao, Chen, Xiao, Chen, Liu and Sun 2025" in html


@pytest.mark.usefixtures("unrendered")
def test_no_h_neurons_is_said_not_drawn(tmp_path: Path) -> None:
    page, run = report(tmp_path, "no H-Neurons")
    assert "There are no H-Neurons" in page.words
    assert "H-Neurons0" in page.words
    edit(run, "neurons.json", lambda card: card.update(neurons=[]))
    edit(run, "path.json", lambda path: path.update(points=[], chosen=None))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "There are no H-Neurons" in page.words


def test_a_missing_number_is_a_dash(reports: Any) -> None:
    page, run = reports("nulls")
    assert "Accuracy at the threshold–not measured" in page.words
    assert "auroc-1.svg" in names(run / "figures")
    assert "roc-1.svg" not in names(run / "figures")


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value; of a list, those of its first entry."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in inner:
        if key != "format":
            yield (*here, key)
            yield from places(part, (*here, key))


def without(value: Any, path: tuple[Any, ...]) -> None:
    """Set the value at a path to null, where it is still there."""
    for key in path[:-1]:
        value = value[key] if value else None
    if value:
        value[path[-1]] = None


# Values of one round are as far apart as can be, so that most of them are nulled in parts that are still there.
@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(("name", "rounds"), [("run", 4), ("path", 3), ("neurons", 3), ("evaluation", 10)])
def test_any_value_may_be_null(name: str, rounds: int, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "several data sets" if name == "neurons" else "supported")
    text = (run / f"{name}.json").read_text(encoding="utf-8")
    # Deep ones first: what holds others would hide them.
    found = sorted(places(json.loads(text)), key=len, reverse=True)
    for start in range(rounds):
        value = json.loads(text)
        for path in found[start::rounds]:
            if len(path) > 1 or start == rounds - 1:
                without(value, path)
        (run / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
        assert Page(write_report(run).read_text(encoding="utf-8")).tags["section"] >= 7


def test_several_data_sets_start_with_the_one_the_neurons_came_from(only: Any, tmp_path: Path) -> None:
    third = [f"{name}-3" for name in ("auroc", "peers", "confounds", "reliability")]
    only(*third)
    run = write_run(tmp_path / "run", "several data sets")
    edit(run, "run.json", lambda value: value["settings"].update(questions="nonexist"))
    html = write_report(run).read_text(encoding="utf-8")
    assert re.findall(r"<h3><bdi>(\w+)</bdi> <span", html) == ["nonexist", "starter", "nq_open"]
    assert {f"{name}.svg" for name in third} <= names(run / "figures")


def test_experts_and_uneven_layers_are_shown(only: Any, tmp_path: Path) -> None:
    only("layers")
    run = write_run(tmp_path / "run")

    def change(card: dict[str, Any]) -> None:
        card["model"].update(width=[1536] * 29 + [3072])
        card["neurons"][0].update(expert=7, weight=999.0, layer=31)

    edit(run, "neurons.json", change)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "layer 31, expert 7, neuron" in page.text
    assert "neuron index within its expert" in page.text


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("missing", ["evaluation.json", "path.json", "neurons.json"])
def test_a_run_that_misses_a_file_says_so(missing: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / missing).unlink()
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "Not finished." in page.words
    assert f"Missing: {missing}." in page.words


def test_a_run_that_stopped_early_still_has_a_report(tmp_path: Path) -> None:
    page, run = report(tmp_path, finished=False)
    assert "Still to come: extract, fit, evaluate." in page.words
    assert {p.stem for p in (run / "figures").iterdir()} == {"funnel"}
    edit(
        run,
        "run.json",
        lambda value: [value.pop(k) for k in ("counts", "stages", "settings", "data", "model")],
    )
    assert "No questions counted yet." in Page(write_report(run).read_text(encoding="utf-8")).words


def test_no_run_is_a_one_line_error_with_a_remedy(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError) as error:
            write_report(folder)
        assert "\n" not in str(error.value)
        assert "hneurons" in error.value.remedy
    assert not (tmp_path / "report.html").exists()


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("content", ["{", "[1]", '{"format": "hneurons.evaluation/9"}', "\xff", ""])
def test_a_damaged_file_is_a_run_error_that_names_it(content: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    before = write_report(run).read_bytes()
    (run / "evaluation.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RunError, match=r"evaluation\.json"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


def test_the_report_needs_no_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from hneurons.report import page, write_report; draw = page.draw\n"
        "page.draw = lambda *a: {name: f for name, f in draw(*a).items() if name == 'roc-1'}\n"  # one does
        "write_report(Path(sys.argv[1])); sys.exit(bool({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(run)], check=True)


def test_numbers_read_as_a_reader_expects() -> None:
    assert (fixed(-0.5), fixed(None), fixed(float("nan")), fixed(True)) == ("−0.500", "–", "–", "–")
    assert (signed(0.1234), signed(-0.1), signed(0)) == ("+0.123", "−0.100", "0.000")
    assert (count(134515008), count(None)) == ("134,515,008", "–")
    assert (per_mille(0.6944), per_mille(0.0104), per_mille(0), per_mille(12.345)) == (
        "0.69",
        "0.01",
        "0.00",
        "12.35",
    )
    assert (plain(None), plain(True), plain(["\n"]), plain(0.5)) == ("–", "yes", '["\\n"]', "0.5")
    assert (percent(0.1234), percent(None), percent(-0.001)) == ("12.3 %", "–", "−0.1 %")
    assert (listed({"a": 1, "b": None}), listed({}), listed(None)) == ("a 1, b –", "–", "–")
