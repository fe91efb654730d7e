"""The review in the report: its numbers are those of the run, its parts come and go with the run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fake_run import write_run
from hneurons.report import canvas, figures_review, write_report
from hneurons.report import page as report_page
from hneurons.report.drawing import PHONE, WIDE
from hneurons.report.drawing_review import draw_review, matrix
from hneurons.report.folder import Run, load
from hneurons.report.review import PAPER, review

SECTIONS = ("table-1", "peers", "confounds", "verbosity", "transfer", "calibration", "stability")
Made = tuple[str, str, dict[str, Any], Run]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """HTML, text, evaluation.json and run of a variant; without other figures, and none rendered."""

    @cache
    def make(variant: str) -> Made:
        run = write_run(tmp_path_factory.mktemp("review") / "run", variant)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report_page, "draw", draw_review)
            patch.setattr(canvas, "svg", lambda _: "<svg/>")
            patch.setattr(canvas, "save", lambda *_: "<svg/>")
            html = write_report(run).read_text(encoding="utf-8")
        text = " ".join(re.sub(r"<[^>]+>", " ", html).split())
        return html, text, json.loads((run / "evaluation.json").read_text(encoding="utf-8")), load(run)

    return make


def shown(interval: dict[str, Any], sign: str = "") -> str:
    values = (f"{interval[k]:{sign}.3f}".replace("-", "−") for k in ("value", "low", "high"))
    return "{} [{}, {}]".format(*values)


def section(html: str, name: str) -> str:
    start = html.index(f'id="{name}"')
    return " ".join(re.sub(r"<[^>]+>", " ", html[start : html.index("</section>", start)]).split())


def test_every_part_has_a_section_that_the_top_of_the_page_links_to(made: Callable[[str], Made]) -> None:
    html, _, _, _ = made("several data sets")
    top = html[: html.index('id="examples"')]
    for name in SECTIONS:
        assert html.count(f'id="{name}"') == 1, name
        assert f'href="#{name}"' in top, name


def test_an_older_run_has_no_heading_without_a_part(made: Callable[[str], Made]) -> None:
    html, text, _, run = made("before the review")
    assert not [name for name in SECTIONS[1:] if f'id="{name}"' in html]
    assert "What a sceptic would ask" not in text
    assert "Refits with it" not in text
    assert draw_review(run, WIDE, 4.8) == {}


def test_a_part_that_failed_says_why_and_what_helps(made: Callable[[str], Made]) -> None:
    html, _, _, _ = made("problems")
    problem = "Only 3 faithful examples in the validation split. Ask more questions."
    for name in ("peers", "stability"):
        assert problem in section(html, name)
    assert "No test answer could be rewritten. Ask more." in section(html, "verbosity")
    assert "Only 13 hallucinated calibration answers. Ask more." in section(html, "calibration")
    assert "The extra 'confounds' is missing." in section(html, "confounds").replace("&#39;", "'")
    assert "only 9 faithful examples, 20 needed" in section(html, "transfer")
    assert "nothing promised" in section(html, "calibration")


def test_table_1_is_that_of_the_run_and_the_paper_stays_apart(made: Callable[[str], Made]) -> None:
    html, _, evaluation, _ = made("several data sets")
    text = section(html, "table-1")
    own, paper = text.split("The paper’s own Table 1")
    for data in evaluation["datasets"].values():
        for measure in ("accuracy", "auroc"):
            for kind in ("uniform", "layer_matched"):
                draws = data["random"][kind][measure]
                assert f"{sum(draws) / len(draws):.3f} {min(draws):.3f} to {max(draws):.3f}" in own
            assert shown(data["h_neurons"][measure]) in own
    assert "mean and range of 10 sets" in own
    assert "271 505 41 2 3" in own
    assert "not of this run" in paper
    assert "Not comparable" in paper
    for name, _, pairs in PAPER:
        assert f"{name} " in paper
        assert " ".join(f"{a:.1f} → {b:.1f}" for a, b in pairs) in paper
        assert name not in own


def test_peers_are_compared_with_their_cost(made: Callable[[str], Made]) -> None:
    html, _, evaluation, _ = made("supported")
    text = section(html, "peers")
    found = evaluation["datasets"]["starter"]["peers"]
    for name, peer in found["peers"].items():
        cost = peer["cost"]
        assert cost["note"] in text
        cells = [shown(peer[key]) for key in ("auroc", "accuracy")]
        cells += [shown(peer[key], "+") for key in ("difference", "h_adds", "adds_to_h")]
        row = f"{cost['extra_forward_passes']} {cost['extra_samples']} {' '.join(cells)}"
        assert re.search(rf"{re.escape(name)} \d {re.escape(row)}", text), name
    assert "Hollow dots (self-consistency) cost further samples: further responses; flattered" in text


@pytest.mark.parametrize(
    ("gain", "alone", "wanted"),
    [
        ((0.04, 0.02, 0.06), (0.1, 0.05, 0.15), ("H-Neurons are better", "know something")),
        ((0.01, -0.02, 0.03), (-0.1, -0.15, -0.05), ("H-Neurons are worse", "no gain is seen")),
        ((0.01, 0.0, 0.03), (0.0, -0.05, 0.05), ("neither is seen to be better", "no gain is seen")),
    ],
)
def test_the_sentence_on_the_best_cheap_number_follows_the_intervals(
    gain: tuple[float, ...], alone: tuple[float, ...], wanted: tuple[str, str], tmp_path: Path
) -> None:
    run = load(write_run(tmp_path / "run"))
    peers = run.evaluation["datasets"]["starter"]["peers"]
    peers["increment"]["difference"] = dict(zip(("value", "low", "high"), gain, strict=True))
    best = peers["peers"]["minimum log-probability"]
    best["difference"] = dict(zip(("value", "low", "high"), alone, strict=True))
    sentence = review(run)["peers"][0]["sentence"]
    assert "minimum log-probability was best" in sentence
    assert all(words in sentence for words in wanted)
    peers["increment"] = None
    assert review(run)["peers"][0]["sentence"] == ""


def test_confounds_verbosity_and_transfer_say_their_sentences(made: Callable[[str], Made]) -> None:
    html, text, evaluation, _ = made("supported")
    for name, found in evaluation["datasets"]["starter"]["confounds"]["confounds"].items():
        assert f"{found['finding']} {name.capitalize()} {found['sentence']}" in section(html, "confounds")
        assert f"{name} {shown(found['auroc'])} {shown(found['within'])} {shown(found['difference'], '+')}" in text
        assert f"{found['strata'][0]['name']} 25 28 {shown(found['strata'][0]['auroc'])}" in text
    assert evaluation["verbosity"]["sentence"] in section(html, "verbosity")
    assert "right 0.45 [0.05, 0.85] 0.33" in section(html, "verbosity")
    assert evaluation["transfer"]["sentence"] in section(html, "transfer")


def test_a_finding_is_marked_by_more_than_colour(made: Callable[[str], Made]) -> None:
    html = made("supported")[0]
    for word, mark in (("explained", "fail"), ("partly explained", "none"), ("not explained", "pass")):
        assert f'<span class="mark {mark}">{word}</span>' in html


def test_calibration_and_promises_show_what_was_achieved(made: Callable[[str], Made]) -> None:
    html, _, evaluation, _ = made("several data sets")
    text = section(html, "calibration")
    found = evaluation["datasets"]["starter"]["reliability"]
    assert f"Expected calibration error {shown(found['ece'])} the same of a perfect risk, by chance 0.056" in text
    assert (
        "Risk and rate differ by 0.071 on average; a perfect risk would show 0.056 by chance, so 0.016 speaks" in text
    )
    for promise in evaluation["guarantees"].values():
        assert promise["guarantee"]["sentence"] in text
    assert "starter broken 12.7 % [9.7, 15.7]" in text
    assert text.count("starter broken") == 1
    assert "starter kept" not in text
    assert "nq_open kept 3.1 % [0.1, 6.1]" in text
    assert "starter above, but not by more than chance 6.1 %" in text
    assert "1 domain has enough validation answers" in text
    assert "2 are left to the common one" in text
    assert "On the 61 test answers of that domain the Brier score is 0.190 [0.140, 0.240] by its own and 0.210" in text
    assert "by the common one, a difference of −0.020 [−0.030, −0.010]" in text
    assert "not calibrated on 1 domain of starter (nowhere 7)" in text.replace(" )", ")").replace("( ", "(")


def test_neurons_that_seldom_come_back_are_marked_with_a_word(made: Callable[[str], Made]) -> None:
    html, _, evaluation, run = made("supported")
    found = evaluation["stability"]["bootstrap"]
    frequencies = [row["frequency"] for row in found["neurons"] if row["in_card"]]
    assert [row["frequency"] for row in review(run)["frequencies"]] == sorted(frequencies, reverse=True)
    rows = re.findall(r"<tr><th scope=\"row\" class=\"n\">\d+</th>.*?</tr>", html, re.DOTALL)
    assert len(rows) == 15
    for row, frequency in zip(rows, frequencies, strict=False):
        assert f"{100 * frequency:.0f} %" in row
        assert (">seldom<" in row) is (frequency < 0.5)
    assert found["sentence"] in section(html, "stability")
    assert "2 neurons are H-Neurons at every C" in section(html, "stability")


def test_seldom_is_written_for_the_marked_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "svg", lambda _: "<svg/>")
    monkeypatch.setattr(canvas, "save", lambda *_: "<svg/>")
    run = write_run(tmp_path / "run")
    path = run / "evaluation.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    for row in value["stability"]["bootstrap"]["neurons"][:2]:
        row.update(frequency=0.12, stable=False)
    path.write_text(json.dumps(value), encoding="utf-8")
    html = write_report(run).read_text(encoding="utf-8")
    assert html.count('<span class="unstable">seldom</span> 12 %') == 2


def test_frequencies_find_experts_by_the_layout_and_misfits_not_at_all(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run"))
    card = {
        "id": "m",
        "architecture": "X",
        "layers": 2,
        "width": [10, 26],
        "neurons": 36,
        "experts": [0, 4],
        "shared": [10, 6],
    }
    run.card["model"] = card
    run.card["neurons"] = [
        {"layer": 1, "expert": 2, "index": 3, "weight": 2.0},
        {"layer": 1, "expert": 9, "index": 3, "weight": 1.0},
    ]
    run.evaluation["stability"]["bootstrap"]["neurons"] = [{"column": 10 + 6 + 2 * 5 + 3, "frequency": 0.7}]
    assert review(run)["frequencies"] == [{"column": 29, "frequency": 0.7}, {}]
    card["experts"] = [1]
    assert review(run)["frequencies"] == []


def test_the_transfer_matrix_keeps_rows_and_columns_apart() -> None:
    cells = [
        {"train": a, "test": b, "auroc": {"value": float(f"0.{i}{j}")}}
        for j, b in enumerate("xyz")
        for i, a in enumerate("xyz")
    ]
    names, values = matrix({"cells": cells})
    assert names == ["x", "y", "z"]
    assert [[row[1] for row in line] for line in values] == [[0.0, 0.01, 0.02], [0.1, 0.11, 0.12], [0.2, 0.21, 0.22]]


@pytest.mark.parametrize("size", [2, 20])
def test_heat_maps_print_every_value_and_fit_or_scroll(size: int) -> None:
    values: list[list[Any]] = [[("", (i * size + j) / size**2, None, None) for j in range(size)] for i in range(size)]
    run = {
        "cells": [
            {"train": f"part {i}", "test": f"part {j}", "auroc": {"value": values[i][j][1]}}
            for j in range(size)
            for i in range(size)
        ]
    }
    empty = Run({}, {}, {}, {"transfer": run}, ())
    for width in (WIDE, PHONE):
        figure = draw_review(empty, width, min(width, 4.8))["transfer"]
        printed = [text.get_text() for text in figure.axes[0].texts]
        assert printed == [f"{v[1]:.2f}".removeprefix("0") for line in values for v in line]
        assert figure.get_figwidth() <= WIDE or size > 19
        # Two decimals at 9 points are a third of an inch wide.
        assert (figure.get_figwidth() - 1.9) / size >= 0.35


def test_cells_below_chance_differ_in_hue_from_cells_above() -> None:
    figure = figures_review.heat_map(
        6, 4, ["a", "b"], [[("", 0.9, 0.8, 1.0), ("", 0.3, 0.2, 0.4)], [("", 0.5, None, None), ("", None, None, None)]]
    )
    cells = [p for p in figure.axes[0].patches if p.get_gid()]
    colours = [p.get_facecolor() for p in cells]
    assert colours[0][:3] != colours[1][:3]
    assert [float(colour[3]) for colour in colours] == pytest.approx([0.55, 0.275, 0.0])


def test_provenance_tells_knots_and_guarantee_in_words(made: Callable[[str], Made]) -> None:
    text = section(made("many domains")[0], "provenance")
    assert "calibration knots 4, score −3.000 to 2.250, risk 0.008 to 0.992" in text
    assert "calibration Brier score, cross-validated platt 0.2134, isotonic 0.1876" in text
    assert "guarantee sentence Flag scores from 0.21 up (learn then test)." in text
    assert "card examples faithful 300, hallucinated 400" in text
