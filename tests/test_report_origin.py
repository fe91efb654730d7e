"""The origin study in the report: its numbers are those of origin.json, and the paper's stay apart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fake_origin import VARIANTS, write_origin
from fake_run import write_run
from hneurons.errors import RunError
from hneurons.report import canvas, write_report
from hneurons.report import page as report_page
from hneurons.report.drawing import PHONE, WIDE
from hneurons.report.drawing_origin import PAPER_RANKS, along, draw_origin
from hneurons.report.folder import load
from hneurons.results import Run
from test_report import Page


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without other figures, and none rendered, which takes longest."""
    monkeypatch.setattr(report_page, "draw", lambda run, width, half: draw_origin(run, width))
    monkeypatch.setattr(canvas, "svg", lambda _: "<svg/>")
    monkeypatch.setattr(canvas, "save", lambda *_: "<svg/>")


def shown(interval: dict[str, Any], sign: str = "") -> str:
    values = (f"{interval[k]:{sign}.3f}".replace("-", "−") for k in ("value", "low", "high"))
    return "{} [{}, {}]".format(*values)


def section(html: str) -> str:
    start = html.index('id="origin"')
    return " ".join(re.sub(r"<[^>]+>", " ", html[start : html.index("</section>", start)]).split())


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_renders_as_balanced_html(variant: str, tmp_path: Path, undrawn: None) -> None:
    run = write_run(tmp_path / "run")
    write_origin(run, variant)
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert "#origin" in page.values("href")
    assert "nan" not in page.words.lower().split()
    assert "None" not in page.words
    assert not set(page.tags) & {"script", "img"}


def test_the_numbers_are_those_of_the_file(tmp_path: Path, undrawn: None) -> None:
    run = write_run(tmp_path / "run")
    found = write_origin(run, "three checkpoints")
    text = section(write_report(run).read_text(encoding="utf-8"))
    for entry in found["checkpoints"]:
        name = entry["name"]
        assert entry["verdict"]["sentence"] in text
        for key, data in entry["datasets"].items():
            random = data["random"]
            back = entry["own_card"]["on_run"][key]["h_neurons"]["auroc"]
            row = (
                f"{name} {data['n']} {shown(data['h_neurons']['auroc'])} {shown(random['uniform']['difference'], '+')}"
            )
            assert f"{row} {shown(random['layer_matched']['difference'], '+')} {shown(data['own']['auroc'])}" in text
            assert f"{shown(data['own']['difference'], '+')} {shown(back)}" in text
        for drift in (entry["drift"], entry["drift_to_next"]):
            test = drift["permutation"]
            row = f"{name} {drift['to']} {shown(drift['mean'])} {shown(test['random'])} {test['p']:.4f} 0.0213"
            assert row in text
    assert "tuned and step-1000 4 0.01 8.3 % 0.0000" in text
    assert "base is stored as BF16." in text
    own, paper = text.split("Figures of the paper")
    for name, value, remark in PAPER_RANKS:
        assert f"{name} {value:.3f} {'not significant' if remark else 'below 0.001'}" in paper
        assert name not in own


def test_problems_are_said_where_the_numbers_would_be(tmp_path: Path, undrawn: None) -> None:
    run = write_run(tmp_path / "run")
    write_origin(run, "problems")
    text = section(write_report(run).read_text(encoding="utf-8"))
    assert "base starter: only 3 faithful examples. Ask more." in text
    assert "No card of base ’s own: Only 3 faithful examples." in text
    assert "base tuned base is quantised (gptq). Give another." in text


def test_without_a_study_there_is_no_section(tmp_path: Path, undrawn: None) -> None:
    run = write_run(tmp_path / "run")
    assert 'id="origin"' not in write_report(run).read_text(encoding="utf-8")
    (run / "origin.json").write_text(json.dumps({"format": "hneurons.origin/9"}))
    with pytest.raises(RunError, match="origin/9"):
        write_report(run)


def test_a_study_of_other_neurons_is_not_shown(tmp_path: Path, undrawn: None) -> None:
    run = write_run(tmp_path / "run")
    found = write_origin(run)
    card = json.loads((run / "neurons.json").read_text())
    card["neurons"][0]["weight"] *= 2
    (run / "neurons.json").write_text(json.dumps(card))
    html = write_report(run).read_text(encoding="utf-8")
    assert 'id="origin"' not in html
    assert "origin.json is of other H-Neurons than this run’s card." in html
    with pytest.raises(RunError, match="of other H-Neurons than the run's card"):
        _ = Run(run).origin
    del found["card"]  # as an older version wrote it
    (run / "origin.json").write_text(json.dumps(found))
    assert 'id="origin"' in write_report(run).read_text(encoding="utf-8")
    assert Run(run).origin == found


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_figures(width: float, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    found = write_origin(run, "three checkpoints")
    drawn = draw_origin(load(run), width)
    assert set(drawn) == {"origin-ranks", "origin-auroc-1", "origin-auroc-2", "origin-stages"}
    tips = re.findall(r"<title>([^<]*)</title>", canvas.svg(drawn["origin-ranks"]))
    for entry in found["checkpoints"]:
        mean = entry["drift"]["mean"]["value"]
        assert f"{entry['name']}: mean rank {mean:.3f}" in tips
        for row in entry["drift"]["ranks"]:
            assert f"layer {row['layer']}, neuron {row['index']}: rank {row['rank']:.3f}" in tips
    assert "Mistral-7B-v0.3: mean rank 0.483, not significant" in tips
    assert sum("mean rank" in tip for tip in tips) == 3 + 6
    write_origin(run, "weights only")
    assert set(draw_origin(load(run), width)) == {"origin-ranks"}
    write_origin(run, "no H-Neurons")
    words = canvas.svg(draw_origin(load(run), width)["origin-ranks"])
    assert "no H-Neurons" in words


def test_the_list_ends_with_the_runs_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    found = write_origin(run, "three checkpoints")
    names, aurocs, means = along(load(run), "starter")
    assert names == [*(entry["name"] for entry in found["checkpoints"]), "tuned"]
    assert list(aurocs) == ["unchanged card", "own card"]
    wanted = [entry["datasets"]["starter"]["h_neurons"]["auroc"]["value"] for entry in found["checkpoints"]]
    assert [row[1] for row in aurocs["unchanged card"]] == [*wanted, 0.81]
    assert [row[1] for row in means] == [entry["drift"]["mean"]["value"] for entry in found["checkpoints"]]
