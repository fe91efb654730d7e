"""The impact study in the report: its numbers are those of the file, private replies stay out, nothing is markup."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from fake_impact import ALPHAS, WORLDS, impact_json
from fake_run import HOSTILE, RTL, write_run
from hneurons import results
from hneurons.errors import RunError
from hneurons.neurons.card import Card
from hneurons.report import canvas, figures_impact, write_report
from hneurons.report import page as report_page
from hneurons.report.drawing import HALF, PHONE, WIDE
from hneurons.report.drawing_impact import capability_panels, draw_impact
from hneurons.report.folder import Run, load
from hneurons.report.impact import curve, impact, spread
from hneurons.report.values import points
from test_report import Page, places, without

Json = dict[str, Any]
Made = tuple[str, str, Json]
SECRET = "how to do the harmful thing"


def replies(*pairs: tuple[float, str]) -> list[Json]:
    return [{"alpha": alpha, "reply": text, "outcome": "compliant", "cut": False} for alpha, text in pairs]


@cache
def _whole() -> Json:
    value = impact_json()
    asked = {"item": "i", "prompt": "How many eggs do elephants lay?", "chosen": "first asked"}
    said = replies((0.0, "They are mammals."), (1.0, "Two a year."), (2.0, "Not this one."), (3.0, "Forty."))
    value["benchmarks"]["falseqa"]["examples"] = [{**asked, "replies": said}]
    value["benchmarks"]["jailbreak"]["examples"] = [{**asked, "prompt": SECRET, "replies": replies((1.0, SECRET))}]
    return value


def whole() -> Json:
    """A fresh copy of an impact.json with side-by-side replies."""
    return copy.deepcopy(_whole())


def write(folder: Path, value: Json | None, variant: str = "supported") -> Path:
    run = write_run(folder / "run", variant)
    if value is not None:
        own = {**value, "card": Card.load(run / "neurons.json").neurons_hash}
        (run / "impact.json").write_text(json.dumps(own), encoding="utf-8")
    return run


def plain(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def section(html: str) -> str:
    start = html.index('<section id="impact"')
    return html[start : html.index("</section>", start)]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without drawings, which are the slow part."""
    monkeypatch.setattr(report_page, "draw", lambda *_: {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """HTML of the page, text of the section, and the file, without drawings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_page, "draw", lambda *_: {})
        html = write_report(write(tmp_path_factory.mktemp("impact"), whole())).read_text(encoding="utf-8")
    return html, plain(section(html)), whole()


@pytest.fixture
def page(undrawn: None, tmp_path: Path) -> Callable[[Json | None], str]:
    """HTML of a run with such an impact.json."""
    return lambda value: write_report(write(tmp_path, value)).read_text(encoding="utf-8")


def of(value: Json) -> Run:
    """A run that has nothing else."""
    return Run({}, {}, {}, {}, (), value)


def share(x: Json) -> str:
    return f"{100 * x['value']:.1f} % [{100 * x['low']:.1f}, {100 * x['high']:.1f}]".replace("-", "−")


def slope(x: Json) -> str:
    return "{} [{}, {}]".format(*(points(x[key]) for key in ("value", "low", "high")))


# -- the page -----------------------------------------------------------------------------------------


def test_the_top_of_the_page_leads_to_every_verdict(made: Made) -> None:
    html, text, value = made
    top = html[: html.index('id="examples"')]
    assert top.count('href="#impact"') == 2
    said = "; ".join(f"{data['title']}: {data['verdict']['verdict']}" for data in value["benchmarks"].values())
    assert said in plain(top)
    words = {data["verdict"]["verdict"] for data in value["benchmarks"].values()}
    assert words == {"supported", "not supported", "ablation only", "too little data"}
    for data in value["benchmarks"].values():
        verdict = data["verdict"]
        assert f"{verdict['verdict']} {data['title']} : {verdict['sentence'].split(': ', 1)[1]}" in text
        assert all(f"{c['name']} {c['detail']}" in text for c in verdict["checks"])
    marks = re.findall(r'<span class="mark (\w+)">([\w ]+)</span><span><a', section(html))
    assert marks == [
        ("pass", "supported"), ("fail", "not supported"), ("none", "ablation only"), ("none", "too little data"),
    ]  # fmt: skip


def test_a_run_without_the_study_names_the_command(page: Callable[[Json | None], str]) -> None:
    html = page(None)
    assert "hneurons impact RUN --benchmark falseqa" in plain(section(html))
    assert 'href="#impact"' not in html
    assert "<table" not in section(html)


def test_a_run_without_h_neurons_is_not_told_to_turn_them(undrawn: None, tmp_path: Path) -> None:
    html = write_report(write(tmp_path, None, "no H-Neurons")).read_text(encoding="utf-8")
    assert 'id="impact"' not in html


def test_the_headline_table_is_that_of_the_file(made: Made) -> None:
    _, text, value = made
    for data in value["benchmarks"].values():
        by_alpha = data["arms"]["h_neurons"]["by_alpha"]
        for key, name in (("compliance", "Compliant"), ("unparsable", "Unparsable"), ("cut", "Cut by the token limit")):
            assert f"{name} {' '.join(share(point[key]) for point in by_alpha)}" in text
        assert "judged, n " + " ".join(str(point["compliance"]["n"]) for point in by_alpha) in text
        assert "items, n " + " ".join([str(data["n"])] * len(ALPHAS)) in text
    assert "alpha 0 0.5 1 1.5 2 2.5 3 Compliant" in text


def test_slopes_are_in_points_with_their_intervals(made: Made) -> None:
    _, text, value = made
    for data in value["benchmarks"].values():
        own, random = data["arms"]["h_neurons"], data["random"]
        assert f"H-Neurons (32), alpha 0 to 3 {slope(own['slope'])}" in text
        assert f"alpha 0 to 1 {slope(own['slope_below_1'])}" in text
        assert f"alpha 1 to 3 {slope(own['slope_above_1'])}" in text
        for kind, name in (("uniform", "uniform"), ("layer_matched", "layer-matched")):
            sets = random[kind]
            low, high = min(sets["slopes"]), max(sets["slopes"])
            told = f"Random, {name} mean of 5 {slope(sets['mean'])} {points(low)} to {points(high)}"
            assert f"{told} H-Neurons − these {slope(sets['difference'])}" in text
        assert f"3 H-Neurons among them passed over {slope(data['top_contribution']['slope'])}" in text
        smallest = data["verdict"]["minimum_detectable_slope"]
        assert f"Smallest slope that would show {100 * smallest:.1f}" in text
        for name, coded in data["codings"].items():
            cells = " ".join(slope(coded[key]) for key in ("slope", "uniform", "layer_matched"))
            assert f"{name} {cells} {coded['slope']['n']}" in text
    assert "Spearman: 1 if it always rises +1.00 [" in text


def test_the_range_of_random_sets_is_their_lowest_and_highest(made: Made) -> None:
    _, text, value = made
    data = value["benchmarks"]["falseqa"]
    for kind, name in (("uniform", "uniform"), ("layer_matched", "layer-matched")):
        sets = np.array(
            [
                [point["compliance"]["value"] for point in arm["by_alpha"]]
                for arm in data["arms"].values()
                if arm["kind"] == kind
            ]
        )
        assert len(sets) == 5
        assert spread(data["arms"], kind, "compliance") == list(
            zip(ALPHAS, sets.min(axis=0), sets.max(axis=0), strict=True)
        )
        cells = " ".join(f"{100 * a:.1f} to {100 * b:.1f}" for a, b in zip(sets.min(0), sets.max(0), strict=True))
        assert f"random sets, {name}, % {cells}" in text


def test_agreement_of_judges_is_told_where_two_judged(page: Callable[[Json | None], str]) -> None:
    value = whole()
    kappa, different = ({"value": v, "low": v - 0.05, "high": v + 0.05, "n": 1316} for v in (0.71, 0.11))
    found = {"judges": ["llm:judge", "rule"], "n": 1316, "kappa": kappa, "disagreement": different}
    value["benchmarks"]["falseqa"]["agreement"] = found | {"degenerate": False, "constant": []}
    value["benchmarks"]["faitheval"]["agreement"] = found | {"degenerate": True, "constant": ["rule"]}
    text = plain(section(page(value)))
    told = (
        "llm:judge and rule : Cohen’s kappa 0.71 [0.66, 0.76] , different outcomes for 11.0 % [6.0, 16.0] , n = 1,316"
    )
    assert text.count(told) == 2
    assert text.count("Kappa says nothing") == 1
    assert "Kappa says nothing here: rule gave every reply the same outcome." in text


def test_capability_numbers_are_those_of_the_file(made: Made) -> None:
    _, text, value = made
    by_alpha = value["capability"]["arms"]["h_neurons"]["by_alpha"]
    for name in ("starter", "nonexist"):
        for key in ("right", "wrong", "abstained", "unparsable"):
            cells = " ".join(share(point["questions"][name][key]) for point in by_alpha)
            assert f"{name}: {key} {cells}" in text
    perplexity = [point["perplexity"] for point in by_alpha]
    cells = " ".join(f"{x['value']:.2f} [{x['low']:.2f}, {x['high']:.2f}]" for x in perplexity)
    assert f"Perplexity of plain text {cells}" in text
    assert "2,500 tokens of text" in text


@pytest.mark.parametrize("part", ["benchmarks", "capability"])
def test_each_half_of_the_study_stands_alone(part: str, page: Callable[[Json | None], str]) -> None:
    html = page({"format": "hneurons.impact/1", part: whole()[part]})
    assert ('id="capability"' in html) is (part == "capability")
    assert ('id="impact-1"' in html) is (part == "benchmarks")


def test_question_sets_that_could_not_be_had_say_why(page: Callable[[Json | None], str]) -> None:
    value = whole()
    value["capability"]["skipped"] = {"triviaqa": {"problem": "The hub can't be reached.", "remedy": "Give a file."}}
    assert "Not asked, triviaqa : The hub can't be reached. Give a file." in plain(section(page(value)))


# -- side by side -------------------------------------------------------------------------------------


def test_replies_to_one_prompt_stand_side_by_side(made: Made) -> None:
    _, text, _ = made
    said = "alpha 0 compliant They are mammals. alpha 1 compliant Two a year. alpha 3 compliant Forty."
    assert f"How many eggs do elephants lay? first asked {said}" in text
    assert "Not this one." not in text


@pytest.mark.parametrize(
    ("asked", "shown"),
    [((0.5, 1.0, 2.5), ["0.5", "1", "2.5"]), ((1.0,), ["1"]), ((3.0, 0.0, 1.0, 2.0), ["0", "1", "3"]), ((), None)],
)
def test_the_nearest_alphas_stand_in_for_those_not_asked(asked: tuple[float, ...], shown: list[str] | None) -> None:
    value = whole()
    value["benchmarks"]["falseqa"]["examples"][0]["replies"] = replies(*((alpha, f"at {alpha}") for alpha in asked))
    found = impact(of(value))["benchmarks"][0]["examples"]
    assert [[reply["alpha"] for reply in each["replies"]] for each in found] == ([] if shown is None else [shown])


@pytest.mark.parametrize("private", [True, None, "no", "absent"])
def test_replies_of_private_benchmarks_are_never_shown(private: Any, page: Callable[[Json | None], str]) -> None:
    value = whole()
    value["benchmarks"]["jailbreak"]["private"] = private
    if private == "absent":
        del value["benchmarks"]["jailbreak"]["private"]
    assert SECRET not in json.dumps(impact(of(value)))
    html = page(value)
    assert SECRET not in html
    assert plain(section(html)).count("private and never shown") == 1


def test_replies_of_public_benchmarks_are_shown(page: Callable[[Json | None], str]) -> None:
    value = whole()
    value["benchmarks"]["jailbreak"]["private"] = False
    assert page(value).count(SECRET) == 2


# -- the figures --------------------------------------------------------------------------------------


def lines(figure: Figure, panel: int = 0) -> list[np.ndarray]:
    """Values of the curves of an axis, in the order of drawing."""
    return [np.asarray(line.get_ydata(), float) for line in figure.axes[panel].lines if len(line.get_xdata()) > 2]


def outline(band: PolyCollection, alpha: float) -> tuple[float, float]:
    """Lowest and highest point of a shaded range at an alpha."""
    corners = band.get_paths()[0].vertices
    there = corners[np.isclose(corners[:, 0], alpha)][:, 1]
    return float(there.min()), float(there.max())


def test_curves_and_bands_are_drawn_where_the_numbers_are() -> None:
    value = whole()
    arms = value["benchmarks"]["falseqa"]["arms"]
    figure = draw_impact(of(value), WIDE, HALF)["impact-1"]
    top, own = lines(figure)
    for drawn, arm in ((own, "h_neurons"), (top, "top_contribution")):
        assert drawn.tolist() == [point["compliance"]["value"] for point in arms[arm]["by_alpha"]]
    bands = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    for band, kind in zip(bands[:2], ("uniform", "layer_matched"), strict=True):
        for alpha, low, high in spread(arms, kind, "compliance"):
            assert outline(band, alpha) == pytest.approx((low, high))
    for point in arms["h_neurons"]["by_alpha"]:
        x = point["compliance"]
        assert outline(bands[2], point["alpha"]) == pytest.approx((x["low"], x["high"]))
    tips = [line.get_gid() for line in figure.axes[0].lines if line.get_gid()]
    told = "tip:H-Neurons, 95 % interval, alpha {alpha:g}: {0:.1f} % [{1:.1f}, {2:.1f}]"
    for point in arms["h_neurons"]["by_alpha"]:
        ends = (100 * point["compliance"][key] for key in ("value", "low", "high"))
        assert told.format(*ends, alpha=point["alpha"]) in tips


@pytest.mark.parametrize(("width", "half"), [(WIDE, HALF), (PHONE, PHONE)])
def test_an_alpha_is_at_the_same_place_in_every_figure(width: float, half: float) -> None:
    drawn = draw_impact(of(whole()), width, half)
    assert set(drawn) == {*(f"impact-{i + 1}" for i in range(len(WORLDS))), "capability"}

    def places_of(figure: Figure) -> set[tuple[float, ...]]:
        size = figure.get_figwidth()
        found: set[tuple[float, ...]] = set()
        for ax in figure.axes:
            box = ax.get_position()
            # The right column begins where the page's right column does.
            left = box.x0 * size - (0 if box.x0 * size < half else width - half)
            found.add((round(left, 6), round(box.width * size, 6), *map(float, ax.get_xlim())))
        return found

    assert len(set.union(*map(places_of, drawn.values()))) == 1
    for figure in drawn.values():
        boxes = [ax.get_position() for ax in figure.axes]
        assert all(box.x0 > 0 and box.x1 <= 1 and box.y0 > 0 and box.y1 < 1 for box in boxes)


def test_capability_panels_hold_what_the_file_has() -> None:
    value = whole()
    panels = {panel.title: panel for panel in capability_panels(of(value))}
    assert list(panels) == [
        "Answers to starter, %", "Abstained: nonexist (no answer), %", "Over-refusal, %", "Perplexity of plain text",
        "Repetition: 4-grams said before, %", "Length in tokens", "Cut by the token limit, %", "Unparsable, %",
    ]  # fmt: skip
    assert [series.name for series in panels["Answers to starter, %"].series] == ["right", "wrong", "abstained"]
    by_alpha = value["capability"]["arms"]["h_neurons"]["by_alpha"]
    for name, series in zip(("starter", "nonexist"), panels["Length in tokens"].series, strict=True):
        assert [row[1] for _, row in series.points] == [p["questions"][name]["tokens"]["value"] for p in by_alpha]
    figure = draw_impact(of(value), WIDE, HALF)["capability"]
    assert lines(figure, 3)[0].tolist() == [point["perplexity"]["value"] for point in by_alpha]


def test_controls_of_the_capability_curve_are_a_band_of_both_kinds() -> None:
    value = whole()
    arms = value["capability"]["arms"]
    for kind, factor in (("uniform", 2.0), ("layer_matched", 0.5)):
        arm = arms[f"{kind}-0"] = copy.deepcopy(arms["h_neurons"]) | {"kind": kind}
        for point in arm["by_alpha"]:
            point["perplexity"]["value"] *= factor
    panel = next(p for p in capability_panels(of(value)) if p.title.startswith("Perplexity"))
    for (alpha, low, high), (there, row) in zip(panel.series[0].band, panel.series[0].points, strict=True):
        assert alpha == there
        assert (low, high) == (pytest.approx(0.5 * (row[1] or 0)), pytest.approx(2 * (row[1] or 0)))
    assert impact(of(value))["capability"]["controls"] == 2


def test_what_the_study_could_not_measure_has_no_panel() -> None:
    value = whole()
    for point in value["capability"]["arms"]["h_neurons"]["by_alpha"]:
        point["perplexity"] = {"value": None, "low": None, "high": None, "n": 0}
        point["questions"]["nonexist"] = None
    panels = {panel.title: panel for panel in capability_panels(of(value))}
    assert not [title for title in panels if "Perplexity" in title or "Abstained" in title]
    assert [series.name for series in panels["Length in tokens"].series] == ["starter"]


def test_a_perplexity_that_explodes_is_on_a_log_scale() -> None:
    value = whole()
    value["capability"]["arms"]["h_neurons"]["by_alpha"][-1]["perplexity"] = {"value": 9e4, "low": 8e4, "high": 1e5}
    figure = draw_impact(of(value), WIDE, HALF)["capability"]
    assert [ax.get_yscale() for ax in figure.axes].count("log") == 1


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_every_share_is_inside_its_panel(values: list[tuple[float, float]]) -> None:
    ax = Figure().add_subplot()
    ends = [x for pair in values for x in pair]
    figures_impact._percent_limits(ax, ends, least=0.2)  # pyright: ignore[reportPrivateUsage]
    low, high = ax.get_ylim()
    assert low < min(ends)
    assert max(ends) < high
    assert low > -0.03
    assert high < 1.03
    assert high - low >= 0.2


def test_points_of_alpha_are_read_in_rising_order() -> None:
    arm = {"by_alpha": [{"alpha": 3}, {"alpha": None}, "x", {"alpha": 0.5}]}
    assert [alpha for alpha, _ in curve(arm)] == [0.5, 3.0]
    assert curve(None) == []


def test_points_have_a_sign_and_zero_has_none() -> None:
    assert (points(0.0209), points(-0.0209), points(-0.0004), points(0), points(None)) == (
        "+2.1", "−2.1", "0.0", "0.0", "–",
    )  # fmt: skip


# -- whatever the file holds --------------------------------------------------------------------------


def test_drawn_pages_are_balanced_hold_no_markup_of_the_run_and_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_page, "draw", draw_impact)
    value = whole()
    hostile = impact_json(("falseqa",))["benchmarks"]["falseqa"]
    hostile |= {"title": HOSTILE, "compliant_means": RTL, "judge": HOSTILE, "source": HOSTILE}
    hostile["examples"] = [{"prompt": HOSTILE, "chosen": HOSTILE, "replies": replies((1.0, HOSTILE), (3.0, RTL))}]
    value["benchmarks"] = {HOSTILE: hostile}
    value["notes"] = [HOSTILE]
    sets = value["capability"]["questions"]
    value["capability"]["questions"] = {HOSTILE: sets["starter"]}
    for point in value["capability"]["arms"]["h_neurons"]["by_alpha"]:
        point["questions"] = {HOSTILE: point["questions"]["starter"]}
    run = write(tmp_path, value, "no H-Neurons")
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert "<script" not in html
    assert "<img" not in html
    assert plain(section(html)).count("alert(1)") >= 8
    assert {v[1:] for _, name, v in page.attributes if name == "href" and v.startswith("#")} <= set(page.ids)
    assert "H-Neurons, 95 % interval, alpha 3: " in page.text
    assert "nan" not in page.words.lower().split()
    assert "None" not in page.words
    assert {"impact-1.svg", "impact-1.png", "capability.svg", "capability.png"} <= {
        path.name for path in (run / "figures").iterdir()
    }
    before = (run / "report.html").read_bytes(), (run / "figures" / "impact-1.svg").read_bytes()
    write_report(run)
    assert before == ((run / "report.html").read_bytes(), (run / "figures" / "impact-1.svg").read_bytes())


@pytest.mark.parametrize("rounds", [6])
def test_any_value_may_be_null(rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "draw", draw_impact)
    monkeypatch.setattr(canvas, "svg", lambda _: "<svg/>")
    monkeypatch.setattr(canvas, "save", lambda *_: "<svg/>")
    run = write(tmp_path, whole())
    text = (run / "impact.json").read_text(encoding="utf-8")
    found = sorted(places(json.loads(text)), key=len, reverse=True)
    for start in range(rounds):
        value = json.loads(text)
        for path in found[start::rounds]:
            if len(path) > 2 or start == rounds - 1:
                without(value, path)
        (run / "impact.json").write_text(json.dumps(value), encoding="utf-8")
        page = Page(write_report(run).read_text(encoding="utf-8"))
        assert "None" not in page.words


@pytest.mark.parametrize("content", ["{", "[1]", '{"format": "hneurons.impact/9"}'])
def test_a_damaged_file_is_a_run_error_that_names_it(content: str, tmp_path: Path) -> None:
    run = write(tmp_path, None)
    (run / "impact.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=r"impact\.json"):
        load(run)


def test_a_study_of_other_neurons_is_not_shown(undrawn: None, tmp_path: Path) -> None:
    run = write(tmp_path, whole())
    path = run / "impact.json"
    of_others = {**whole(), "card": "sha256:" + "0" * 64}
    path.write_text(json.dumps(of_others), encoding="utf-8")
    html = write_report(run).read_text(encoding="utf-8")
    assert "Not shown. impact.json is of other H-Neurons than this run’s card." in plain(html)
    assert "FalseQA" not in plain(section(html))
    with pytest.raises(RunError, match="of other H-Neurons than the run's card"):
        _ = results.Run(run).impact
    del of_others["card"]  # nobody knows whose it is
    path.write_text(json.dumps(of_others), encoding="utf-8")
    html = write_report(run).read_text(encoding="utf-8")
    assert "of other H-Neurons" not in html
    assert "FalseQA" in plain(section(html))
    assert results.Run(run).impact == of_others


def test_a_run_is_complete_without_the_study(tmp_path: Path) -> None:
    run = load(write(tmp_path, None))
    assert (run.missing, run.unfinished, run.impact) == ((), [], {})
