"""What the report says of the review: the parts of evaluation.json beside the verdict, arranged for the page.

Everything here is plain data. A part that a run doesn't have is empty, and the page then leaves its section out.
"""

from __future__ import annotations

from typing import Any

from hneurons.neurons.card import CardModel
from hneurons.report.drawing_review import SETS
from hneurons.report.folder import Run
from hneurons.report.values import fixed, interval_row, items, mapping, number, numbers, plain, told
from hneurons.runfolder import Json
from hneurons.types import NeuronId

PAPER = (
    ("Mistral-7B-v0.3", 0.35, ((61.7, 78.4), (56.1, 71.5), (59.4, 75.5), (80.9, 91.1))),
    ("Mistral-Small-3.1-24B", 0.01, ((61.1, 81.0), (56.8, 71.3), (52.8, 69.5), (57.4, 86.6))),
    ("Gemma-3-4B", 0.10, ((62.0, 76.9), (59.7, 70.7), (56.0, 71.0), (56.9, 71.9))),
    ("Gemma-3-27B", 0.18, ((65.2, 83.6), (58.5, 68.6), (61.8, 72.0), (58.2, 95.9))),
    ("Llama-3.1-8B", 0.02, ((56.1, 70.1), (53.0, 63.3), (52.9, 66.0), (50.6, 43.1))),
    ("Llama-3.3-70B", 0.01, ((68.4, 82.7), (58.9, 67.2), (66.9, 74.3), (69.6, 96.7))),
)
"""Gao et al. 2025, Table 1: H-Neurons in per mille, then accuracy in per cent of random neurons and of H-Neurons."""
PAPER_SETS = ("TriviaQA", "NQ-Open", "BioASQ", "NonExist")
KINDS = ("uniform", "layer_matched")
MARKS = {"not explained": "pass", "transfers": "pass", "truth more than verbosity": "pass", "explained": "fail",
         "does not transfer": "fail", "truth not seen": "fail", "verbosity more than truth": "fail"}  # fmt: skip
"""How a finding is marked; any other is left open."""
PROMISES = {
    "unflagged": "Few of the unflagged answers are hallucinated",
    "missed": "Few of the hallucinated answers go unflagged",
}


def review(run: Run) -> Json:
    """Everything that the templates of the review need."""
    evaluation = run.evaluation
    parts: Json = {
        "table": _table(run),
        "peers": [p for i, (n, d) in enumerate(run.datasets, 1) if (p := _peers(i, n, mapping(d.get("peers"))))],
        "confounds": [
            c for i, (n, d) in enumerate(run.datasets, 1) if (c := _confounds(i, n, mapping(d.get("confounds"))))
        ],
        "verbosity": mapping(evaluation.get("verbosity")),
        "transfer": [t for key, figure in SETS if (t := _transfer(figure, mapping(evaluation.get(key))))],
        "calibration": _calibration(run),
        "stability": _stability(run),
        "frequencies": frequencies(run),
        "paper": PAPER,
        "paper_sets": PAPER_SETS,
        "marks": MARKS,
    }
    return parts | {"glance": _glance(parts)}


# -- Table 1 ----------------------------------------------------------------------------------------


def _table(run: Run) -> Json:
    """A row a data set: H-Neurons and random neurons, in accuracy and in AUROC."""
    rows = [_table_row(name, data) for name, data in run.datasets]
    sizes = sorted({size for row in rows for size in row["sets"]})
    if not sizes or not any(row["h_neurons"] for row in rows):
        return {}
    sampled = [row for row in rows if row["answers"] or row["protocol"]]
    sets = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return {"rows": rows, "sets": sets, "sampled": sampled}


def _table_row(name: str, data: Json) -> Json:
    random = {kind: mapping(mapping(data.get("random")).get(kind)) for kind in KINDS}
    keys = ("n", "faithful", "hallucinated", "protocol", "already_asked")
    return {
        "name": name,
        **{key: data.get(key) for key in keys},
        "answers": mapping(data.get("answers")),
        "h_neurons": mapping(data.get("h_neurons")),
        "random": {kind: {m: _spread(sets.get(m)) for m in ("accuracy", "auroc")} for kind, sets in random.items()},
        "sets": [n for sets in random.values() if (n := len(numbers(sets.get("auroc"))))],
    }


def _spread(values: Any) -> Json:
    """Mean and range of the random sets."""
    known = numbers(values)
    return {"mean": sum(known) / len(known), "low": min(known), "high": max(known)} if known else {}


# -- peers ------------------------------------------------------------------------------------------


def _peers(place: int, name: str, found: Json) -> Json:
    """A row a predictor, the notes on cost numbered, and a sentence on the best cheap one."""
    rows: list[Json] = [{"name": n, **mapping(p)} for n, p in mapping(found.get("peers")).items()]
    if not rows and not found.get("problem"):
        return {}
    own: Json = {"name": "H-Neurons", **mapping(found.get("h_neurons"))}
    notes: list[str] = []
    for row in (own, *rows):
        note = mapping(row.get("cost")).get("note")
        if isinstance(note, str) and note:
            notes += [] if note in notes else [note]
            row["note"] = notes.index(note) + 1
    dear = [row for row in rows if (number(mapping(row.get("cost")).get("extra_samples")) or 0) > 0]
    return {
        "place": place, "dataset": name, "own": own, "rows": rows, "notes": notes, "n": found.get("n"),
        "dear": [row["name"] for row in dear],
        "dear_notes": list(dict.fromkeys(notes[row["note"] - 1] for row in dear if "note" in row)),
        "sentence": _best_cheap(found), "problem": found.get("problem"), "remedy": found.get("remedy"),
    }  # fmt: skip


def _best_cheap(found: Json) -> str:
    """How the H-Neurons stand beside the best number that needs no further sample; empty without one."""
    increment = mapping(found.get("increment"))
    best = next((name for name in items(increment.get("over")) if isinstance(name, str)), "")
    _, gain, low, _ = interval_row("", increment.get("difference"))
    if not best or gain is None:
        return ""
    _, _, worse, better = interval_row("", mapping(mapping(found.get("peers")).get(best)).get("difference"))
    alone = "alone, neither is seen to be better"
    if worse is not None and worse > 0:
        alone = "alone, the H-Neurons are better"
    elif better is not None and better < 0:
        alone = "alone, the H-Neurons are worse"
    end = "no gain is seen: it may already say what they say."
    if low is not None and low > 0:
        end = "they know something that it does not."
    return (
        f"Of the numbers that need no further sample, {best} was best on the validation answers. It has AUROC "
        f"{told(increment.get('baseline'))}; {alone}. Together they reach {told(increment.get('combined'))}. "
        f"The H-Neurons add {told(increment.get('difference'), sign=True)}: {end}"
    )


# -- confounds and transfer -------------------------------------------------------------------------


def _confounds(place: int, name: str, found: Json) -> Json:
    rows = [{"name": n, **mapping(c)} for n, c in mapping(found.get("confounds")).items()]
    skipped = mapping(found.get("skipped"))
    if not rows and not skipped and not found.get("problem"):
        return {}
    problem = {key: found.get(key) for key in ("problem", "remedy")}
    return {"place": place, "dataset": name, "rows": rows, "skipped": skipped, **problem}


def _transfer(figure: str, found: Json) -> Json:
    if not found.get("sentence") and not found.get("problem"):
        return {}
    titles = {"transfer": "Between domains of the questions", "transfer-sets": "Between data sets"}
    return {"figure": figure, "title": titles[figure], **found}


# -- calibration ------------------------------------------------------------------------------------


def _calibration(run: Run) -> Json:
    """Reliability a data set, what came of each promise, and domains."""
    sets: list[Json] = []
    for place, (name, data) in enumerate(run.datasets, 1):
        found = mapping(data.get("reliability"))
        outside = mapping(data.get("outside_domains"))
        if found or outside:
            sets.append({"place": place, "dataset": name, **found, "sentence": _gap(found), "outside": outside})
    promises = _promises(run)
    domains = mapping(run.evaluation.get("domain_calibration"))
    return {"sets": sets, "promises": promises, "domains": domains} if sets or promises or domains else {}


def _gap(found: Json) -> str:
    error, chance = number(mapping(found.get("ece")).get("value")), number(found.get("ece_if_calibrated"))
    if error is None or chance is None:
        return ""
    start = f"Risk and rate differ by {fixed(error)} on average; a perfect risk would show {fixed(chance)} by chance"
    if error <= chance:
        return f"{start}: nothing here speaks against the risk."
    return f"{start}, so {fixed(error - chance)} speaks against the risk."


def _promises(run: Run) -> list[Json]:
    """Each promise with what came of it on each data set."""
    found = mapping(run.evaluation.get("guarantees"))
    own = mapping(mapping(run.card.get("probe")).get("guarantee"))
    made = {key: mapping(found.get(key)) for key in PROMISES}
    if not made["unflagged"] and own:
        made["unflagged"] = {"guarantee": own}
    rows: list[Json] = []
    for key, promise in made.items():
        if not promise:
            continue
        guarantee, tests = mapping(promise.get("guarantee")), list[Json]()
        first = run.datasets[0][0] if run.datasets else ""
        if promise.get("test"):
            tests.append({"dataset": first, **mapping(promise["test"])})
        if key == "unflagged":
            others = run.datasets[1:] if tests else run.datasets
            tests += [{"dataset": n, **mapping(d["guarantee"])} for n, d in others if d.get("guarantee")]
        for test in tests:
            test["outcome"] = _outcome(guarantee, test)
        rows.append({"name": PROMISES[key], **promise, "guarantee": guarantee, "tests": tests})
    return rows


def _outcome(guarantee: Json, test: Json) -> str:
    alpha, rate = number(guarantee.get("alpha")), number(mapping(test.get("rate")).get("value"))
    if guarantee and number(guarantee.get("threshold")) is None:
        return "nothing promised"
    if test.get("exceeded") is True:
        return "broken"
    if test.get("exceeded") is not False or alpha is None or rate is None:
        return "can't say"
    return "kept" if rate <= alpha else "above, but not by more than chance"


# -- stability --------------------------------------------------------------------------------------


def _stability(run: Run) -> Json:
    found = mapping(run.evaluation.get("stability"))
    refits = [part for key in ("bootstrap", "splits") if (part := mapping(found.get(key)))]
    for part in refits:
        others = [mapping(n) for n in items(part.get("neurons"))]
        part["outside"] = sum(n.get("in_card") is False and n.get("stable") is True for n in others)
    in_all = number(mapping(run.path.get("stability")).get("in_all"))
    if not refits and not found.get("problem") and in_all is None:
        return {}
    return {
        "refits": refits, "problem": found.get("problem"), "remedy": found.get("remedy"), "in_all": in_all,
    }  # fmt: skip


def frequencies(run: Run) -> list[Json]:
    """Of each H-Neuron, in the order of `run.h_neurons`, the share of bootstrap refits with it; empty if unknown."""
    rows = items(mapping(mapping(run.evaluation.get("stability")).get("bootstrap")).get("neurons"))
    by_column = {mapping(row).get("column"): mapping(row) for row in rows}
    try:
        # A column is only a name once the model's layout is known.
        layout = CardModel.model_validate(run.card.get("model")).layout
    except ValueError:
        return []
    found: list[Json] = []
    for entry in run.h_neurons:
        expert = number(entry.get("expert"))
        neuron = NeuronId(int(entry["layer"]), None if expert is None else int(expert), int(entry["index"]))
        column = int(layout.columns([neuron])[0]) if layout.has(neuron) else None
        found.append(by_column.get(column, {}) if column is not None else {})
    return found if any(number(row.get("frequency")) is not None for row in found) else []


# -- at a glance ------------------------------------------------------------------------------------


def _glance(parts: Json) -> list[tuple[str, str, str]]:
    """Section, question, and short answer of each part that the run has."""
    rows: list[tuple[str, str, str]] = []
    if parts["table"] and len(parts["table"]["rows"]) > 1:
        values = [fixed(mapping(row["h_neurons"].get("auroc")).get("value")) for row in parts["table"]["rows"]]
        rows.append(("table-1", "On other questions?", "AUROC " + ", ".join(values)))
    if parts["peers"]:
        first = parts["peers"][0]
        own, best = (number(mapping(row.get("auroc")).get("value")) for row in (first["own"], _top(first["rows"])))
        answer = f"best other predictor: AUROC {fixed(best)}; H-Neurons: {fixed(own)}"
        rows.append(("peers", "Do simpler predictors do as well?", answer if best is not None else "not measured"))
    if parts["confounds"]:
        findings = [plain(row.get("finding")) for row in parts["confounds"][0]["rows"]]
        by_word = [f"{findings.count(word)} of {len(findings)} {word}" for word in dict.fromkeys(findings)]
        rows.append(("confounds", "Is it something plainer, such as length?", ", ".join(by_word) or "not measured"))
    if parts["verbosity"]:
        answer = plain(parts["verbosity"].get("finding") or "not measured")
        rows.append(("verbosity", "Truth, or the way it is put?", answer))
    for part in parts["transfer"]:
        question = "From one domain to another?" if part["figure"] == "transfer" else "From one data set to another?"
        rows.append((part["figure"], question, plain(part.get("finding") or "not measured")))
    sets = mapping(parts["calibration"]).get("sets") or [{}]
    if parts["calibration"]:
        error, chance = mapping(sets[0].get("ece")).get("value"), sets[0].get("ece_if_calibrated")
        answer = f"off by {fixed(error)} on average; {fixed(chance)} would be chance"
        rows.append(("calibration", "Can the risk be taken at its word?", answer))
    if parts["stability"]:
        first = (parts["stability"]["refits"] or [{}])[0]
        stable, own = number(first.get("stable")), number(first.get("marked"))
        answer = "not measured"
        if stable is not None and own is not None:
            answer = f"{stable:.0f} of {stable + own:.0f} come back in at least half of the refits"
        rows.append(("stability", "Would other data choose the same neurons?", answer))
    return rows


def _top(rows: list[Json]) -> Json:
    """The predictor of highest AUROC."""
    return max(rows, key=lambda row: number(mapping(row.get("auroc")).get("value")) or 0, default={})
