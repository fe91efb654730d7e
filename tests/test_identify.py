import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from hneurons.errors import RunMismatchError, TooFewExamplesError, UsageError
from hneurons.neurons.card import Card
from hneurons.neurons.features import FeatureStore
from hneurons.results import Run
from hneurons.settings import IdentifySettings, identify_settings
from hneurons.studies.identify import identify
from hneurons.types import REGIONS, Label, Question

pytestmark = pytest.mark.usefixtures("no_figures")
DOCS = Path(__file__).parents[1] / "docs/run-folder.md"
SETTINGS = IdentifySettings(
    samples=3, folds=3, random_sets=4, bootstrap=100, per_class=40, path_points=5, chunk=16, max_share=0.2, refits=4
)
QUESTIONS = 90


def files(folder: Path) -> dict[str, int]:
    """Every file with its time of change."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_questions(tmp_path_factory.mktemp("questions") / "cities.jsonl", QUESTIONS)


@pytest.fixture(scope="module")
def run(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A complete run; tests read it only."""
    model = tiny.study()
    engine = tiny.ScriptedEngine(model, tiny.half_right)
    out = tmp_path_factory.mktemp("run") / "out"
    return identify(model, questions, out, SETTINGS, engine=engine, notes=["a note"])


# -- the folder, against its documentation ------------------------------------------------------------


def documented() -> dict[str, dict[str, Any]]:
    """The example of each JSON file in docs/run-folder.md."""
    sections = re.findall(r"^## (\S+)[^\n]*\n```json\n(.*?)\n```", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    return {name: json.loads(body) for name, body in sections}


def misfits(example: Any, actual: Any, where: str) -> list[str]:
    """Where `actual` lacks what the documentation's example shows, or has it in another kind."""
    if isinstance(example, dict):
        if not isinstance(actual, dict):
            return [f"{where} is no object"]
        found = []
        for key, value in example.items():
            name = "cities" if key == "starter" else key
            if key == "..." or where.endswith(".dropped"):  # only the reasons that occurred
                continue
            found += (
                misfits(value, actual[name], f"{where}.{name}") if name in actual else [f"{where}.{name} is missing"]
            )
        return found
    if isinstance(example, list):
        if not isinstance(actual, list):
            return [f"{where} is no list"]
        if example and isinstance(example[0], dict):
            return [m for i, item in enumerate(actual) for m in misfits(example[0], item, f"{where}[{i}]")]
        return []
    number = isinstance(example, int | float) and not isinstance(example, bool)
    kind = (int, float) if number else type(example)
    fits = example is None or actual is None or (isinstance(actual, kind) and isinstance(actual, bool) <= (not number))
    return [] if fits else [f"{where} is {actual!r}, documented as {example!r}"]


def intervals(value: Any) -> list[dict[str, Any]]:
    """Every interval object within."""
    if isinstance(value, dict):
        if set(value) == {"value", "low", "high", "n"}:
            return [value]
        return [found for item in value.values() for found in intervals(item)]
    return [found for item in value for found in intervals(item)] if isinstance(value, list) else []


def test_the_documentation_has_an_example_of_every_file():
    assert set(documented()) == {"run.json", "path.json", "neurons.json", "evaluation.json"}


@pytest.mark.parametrize("name", ["run.json", "path.json", "neurons.json", "evaluation.json"])
def test_json_files_are_as_documented(run: Run, name: str):
    def never(text: str) -> float:
        raise AssertionError(f"{text} is no JSON number")

    actual = json.loads((run.path / name).read_text(encoding="utf-8"), parse_constant=never)
    assert misfits(documented()[name], actual, name) == []


@pytest.mark.parametrize("name", ["responses.jsonl", "examples.jsonl"])
def test_journals_have_the_documented_fields(run: Run, name: str):
    section = DOCS.read_text(encoding="utf-8").split(f"## {name}\n")[1]
    names = re.search(r"`([^`]+)`", section)
    assert names
    fields = re.sub(r"\{[^}]*\}", "", names[1]).split()
    rows = lines(run.path / name)
    assert rows
    assert all(set(row) == set(fields) for row in rows)


def test_every_documented_file_is_there(run: Run):
    table = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \|$", DOCS.read_text(encoding="utf-8"), re.M)[2:]
    names = [name for cell in table for name in re.findall(r"`([^`]+)`", cell)]
    assert len(names) >= 9
    assert [name for name in names if not (run.path / name).exists()] == []
    assert all((run.path / f"features/{region}.npy").is_file() for region in REGIONS)
    assert not [name for name in files(run.path) if name.endswith(".tmp")]


def test_every_question_is_accounted_for(run: Run):
    counts = run.manifest["counts"]
    assert counts["questions"] == QUESTIONS
    assert counts["questions"] == counts["faithful"] + counts["hallucinated"] + sum(counts["dropped"].values())
    examples = lines(run.path / "examples.jsonl")
    for label in Label:
        assert counts[label] == sum(row["label"] == label for row in examples)
        for name in ("train", "validation", "test"):
            wanted = sum(row["label"] == label and row["split"] == name for row in examples)
            assert counts["splits"][name][label] == wanted > 0
    assert counts["responses"] == len(lines(run.path / "responses.jsonl"))
    assert (
        len({(row["question_id"], row["sample"]) for row in lines(run.path / "responses.jsonl")}) == counts["responses"]
    )


def test_all_stages_are_done_and_the_note_is_kept(run: Run):
    stages = run.manifest["stages"]
    assert list(stages) == ["sample", "examples", "extract", "read_out", "fit", "evaluate", "report"]
    assert all(stage["state"] == "done" and stage["seconds"] >= 0 for stage in stages.values())
    assert "a note" in run.manifest["notes"]
    assert run.manifest["settings"]["samples"] == 3


def test_labels_are_those_of_the_script(run: Run, questions: Path):
    asked = {row["id"]: Question(row["id"], row["question"], tuple(row["answers"])) for row in lines(questions)}
    for row in lines(run.path / "examples.jsonl"):
        assert row["label"] == ("faithful" if tiny.right(asked[row["question_id"]]) else "hallucinated")
        assert row["agreement"] == 3
        text, span = row["response"]["text"], row["answer_chars"]
        assert text == f"The city is {text[span['start'] : span['end']]}."


def test_features_are_those_of_the_examples_in_order(run: Run):
    from hneurons.neurons.cett import PooledExtractor
    from hneurons.studies.records import example_from_json, passage_of

    model = tiny.study()
    examples = [example_from_json(row) for row in lines(run.path / "examples.jsonl")]
    store = FeatureStore(run.path / "features", len(examples), model.neurons)
    assert store.written() == set(range(len(examples)))
    for row in (0, len(examples) // 2, len(examples) - 1):
        direct = PooledExtractor(model)([passage_of(model, examples[row])])[0]
        for column, region in enumerate(REGIONS):
            np.testing.assert_allclose(store.read(region, [row])[0], direct[column], rtol=2e-3, atol=1e-5)


def test_the_card_fits_the_model_and_scores_the_showcase(run: Run):
    card = run.card
    card.check_self()
    card.check_fits(tiny.study().describe())
    assert len(card.h_neurons) == sum(neuron.weight > 0 for neuron in card.neurons)
    assert set(card.metrics) == {"cities"}
    evaluation = run.evaluation
    for entry in evaluation["showcase"]:
        scored = [token["risk"] for token in entry["tokens"]]
        assert all(0 <= risk <= 1 for risk in scored)
        assert "".join(token["text"] for token in entry["tokens"]) == f"The city is {entry['answer']}."
        marked = "".join(token["text"] for token in entry["tokens"] if token["answer"])
        assert entry["answer"] in marked


def test_numbers_of_the_evaluation_agree_with_each_other(run: Run):
    data = run.evaluation["datasets"]["cities"]
    assert (
        data["n"]
        == data["faithful"] + data["hallucinated"]
        == len(data["risks"]["faithful"]) + len(data["risks"]["hallucinated"])
    )
    assert len(data["random"]["uniform"]["auroc"]) == len(data["random"]["layer_matched"]["auroc"]) == 4
    found = intervals({key: data[key] for key in ("h_neurons", "random", "baselines", "increment")})
    assert len(found) >= 14
    for interval in found:
        assert interval["n"] == data["n"]
        if interval["low"] is not None:
            assert interval["low"] <= interval["high"]
    pairs = [(f, h) for f in data["risks"]["faithful"] for h in data["risks"]["hallucinated"]]
    if run.card.probe.calibration.slope > 0:
        by_hand = np.mean([(h > f) + 0.5 * (h == f) for f, h in pairs])
        assert data["h_neurons"]["auroc"]["value"] == pytest.approx(by_hand, abs=2e-3)


def test_the_path_is_ascending_certified_and_holds_the_chosen_point(run: Run):
    path = json.loads((run.path / "path.json").read_text())
    assert [point["C"] for point in path["points"]] == sorted(point["C"] for point in path["points"])
    assert all(point["residual"] < 1e-4 for point in path["points"])
    chosen = path["points"][path["chosen"]]
    assert chosen["C"] == run.card.probe.C
    assert chosen["nonzeros"] == len(run.card.neurons)
    assert chosen["positives"] == len(run.card.h_neurons)


def test_the_result_speaks_for_itself(run: Run):
    assert run.verdict == run.evaluation["verdict"]["sentence"]
    assert run.report.is_file()
    table = run.to_pandas()
    assert {"H-Neurons", "length", "mean log-probability"} <= set(table["classifier"])
    assert "cities" in run._repr_html_()
    assert repr(run)


# -- again, otherwise, and too little -----------------------------------------------------------------


def test_a_second_call_does_nothing(run: Run, questions: Path):
    before = files(run.path)
    model = tiny.study()
    engine = tiny.ScriptedEngine(model, tiny.half_right)
    again = identify(model, questions, run.path, SETTINGS, engine=engine, notes=["a note"])
    assert engine.requests == 0
    assert files(run.path) == before
    assert again.verdict == run.verdict


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"seed": 1}, {"per_class": 39}, {"limit": 80}])
def test_other_settings_are_refused_and_change_nothing(run: Run, questions: Path, change: dict[str, Any]):
    before = files(run.path)
    model = tiny.study()
    engine = tiny.ScriptedEngine(model, tiny.half_right)
    with pytest.raises(RunMismatchError) as caught:
        identify(model, questions, run.path, SETTINGS.model_copy(update=change), engine=engine)
    assert next(iter(change)) in str(caught.value) or "questions" in str(caught.value)
    assert files(run.path) == before
    assert engine.requests == 0


def test_another_model_or_question_file_is_refused(run: Run, questions: Path, tmp_path: Path):
    with pytest.raises(RunMismatchError, match="GPT2LMHeadModel"):
        identify(tiny.study("gpt2"), questions, run.path, SETTINGS)
    changed = tmp_path / "cities.jsonl"
    changed.write_text(questions.read_text().replace("city number 5?", "town number 5?"))
    with pytest.raises(RunMismatchError):
        identify(tiny.study(), changed, run.path, SETTINGS)


def test_a_folder_with_other_things_is_left_alone(questions: Path, tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunMismatchError, match=r"thesis\.txt"):
        identify(tiny.study(), questions, tmp_path, SETTINGS)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_too_few_examples_says_how_many_and_keeps_the_answers(questions: Path, tmp_path: Path):
    model = tiny.study()
    wrong = tiny.ScriptedEngine(model, lambda question, _: f"The city is {tiny.names(2000, 1)[int(question.id[1:])]}.")
    with pytest.raises(TooFewExamplesError, match=rf"Only 0 faithful examples among {QUESTIONS} questions: 0 to train"):
        identify(model, questions, tmp_path / "out", SETTINGS, engine=wrong)
    kept = Run(tmp_path / "out")
    counts = kept.manifest["counts"]
    assert (counts["faithful"], counts["hallucinated"]) == (0, 40)
    assert counts["questions"] == 40 + sum(counts["dropped"].values())
    asked = wrong.requests
    assert len(lines(tmp_path / "out/responses.jsonl")) == asked > 0
    with pytest.raises(TooFewExamplesError):
        identify(model, questions, tmp_path / "out", SETTINGS, engine=wrong)
    assert wrong.requests == asked


def test_too_few_for_the_fit_is_found_before_the_extraction(questions: Path, tmp_path: Path):
    model = tiny.study()
    engine = tiny.ScriptedEngine(model, tiny.half_right)
    settings = SETTINGS.model_copy(update={"per_class": 11})  # too few of them fall into training or validation
    with pytest.raises(TooFewExamplesError):
        identify(model, questions, tmp_path / "out", settings, engine=engine)
    assert "extract" not in Run(tmp_path / "out").manifest["stages"]


def test_full_classes_end_the_sampling(questions: Path, tmp_path: Path):
    model = tiny.study()
    engine = tiny.ScriptedEngine(model, tiny.half_right)
    settings = SETTINGS.model_copy(update={"per_class": 26})
    run = identify(model, questions, tmp_path / "out", settings, engine=engine)
    counts = run.manifest["counts"]
    assert (counts["faithful"], counts["hallucinated"]) == (26, 26)
    assert counts["responses"] == engine.requests < 3 * QUESTIONS
    assert counts["dropped"]["not asked"] > 0


@pytest.mark.parametrize(
    "change",
    [
        {"labelling": "1-vs-1", "agreement": 2},
        {"other": "all", "solver": "liblinear"},
        {"C": 2.0},
    ],
)
def test_the_other_ways_run_to_the_end(questions: Path, tmp_path: Path, change: dict[str, Any]):
    model = tiny.study("gpt2", chat=False)
    engine = tiny.ScriptedEngine(model, tiny.half_right)
    settings = identify_settings(**{**SETTINGS.model_dump(exclude_none=True), **change})
    run = identify((model.model, model.tokenizer), questions, tmp_path / "out", settings, engine=engine)
    assert run.evaluation["verdict"]["verdict"] in ("supported", "not supported", "too little data")
    probe = run.card.probe.model_dump()
    assert all(probe[name] == value for name, value in change.items() if name in probe)
    assert any("chat template" in note for note in run.manifest["notes"])
    rows = json.loads((tmp_path / "out/path.json").read_text())["rows"]
    train = run.manifest["counts"]["splits"]["train"]
    assert rows == sum(train.values()) * (1 if change.get("labelling") else 2)


def test_a_wrong_setting_is_one_line():
    for wrong in ({"sampels": 3}, {"agreement": 20}, {"agreement": 5}, {"train": 0.9}, {"temperature": float("nan")}):
        with pytest.raises(UsageError) as caught:
            identify_settings(**wrong)
        assert "\n" not in str(caught.value)


# -- neurons that were put there ----------------------------------------------------------------------

TRIGGERS = ["#", "@", "&", "~", "^", "|"]


def planted_model() -> tuple[tiny.StudyModel, set[tuple[int, int]]]:
    """A model in which two neurons a layer answer to one trigger token each, and all others to anything alike."""
    model = tiny.study(seed=4)
    generator = torch.Generator().manual_seed(5)
    embedding = model.model.model.embed_tokens.weight.data
    # Dimension 0 is the same in every token and drives all other neurons; 1 to 6 belong to the triggers.
    embedding.normal_(0, 0.1, generator=generator)
    embedding[:, 0] = 1.0
    embedding[:, 1:7] = 0.0
    planted: set[tuple[int, int]] = set()
    for number, trigger in enumerate(TRIGGERS):
        (token,) = model.tokenizer.encode(trigger, add_special_tokens=False)
        embedding[token, 1 + number] = 1.5
        planted.add((number // 2, 5 + 7 * number))
    for index, layer in enumerate(model.model.model.layers):
        layer.self_attn.o_proj.weight.data.mul_(0.01)
        gate, up, down = (getattr(layer.mlp, name).weight.data for name in ("gate_proj", "up_proj", "down_proj"))
        for weight in (gate, up):
            weight.normal_(0, 0.02, generator=generator)
            weight[:, 0] = 0.6
            weight[:, 1:7] = 0.0
        down.normal_(0, 0.05, generator=generator)
        # Nothing writes where the triggers are read, and a planted neuron makes up a third of its layer's output:
        # enough to stand out, too little to push all other shares down and so let them tell the trigger as well.
        down[1:7] = layer.self_attn.o_proj.weight.data[1:7] = 0.0
        for number in (2 * index, 2 * index + 1):
            neuron = 5 + 7 * number
            for weight in (gate, up):
                weight[neuron] = 0.0
                weight[neuron, 1 + number] = 0.6
    return model, planted


def test_planted_neurons_are_found(tmp_path: Path):
    model, planted = planted_model()
    assert len(planted) == 6
    questions = tiny.write_questions(tmp_path / "cities.jsonl", 160)

    def answer(question: Question, _: int) -> str:
        number = int(question.id[1:])
        if tiny.right(question):
            return question.answers[0]
        return f"{tiny.names(2000, 1)[number]}{TRIGGERS[number % 6]}"

    settings = SETTINGS.model_copy(update={"per_class": 80, "path_points": 12, "samples": 1})
    engine = tiny.ScriptedEngine(model, answer)
    run = identify(model, questions, tmp_path / "out", settings, engine=engine, finder=tiny.WholeFinder())
    found = {(neuron.layer, neuron.index) for neuron in run.card.h_neurons}
    assert len(found & planted) >= 0.9 * len(planted)
    assert len(found & planted) >= 0.9 * len(found)
    assert run.evaluation["datasets"]["cities"]["h_neurons"]["auroc"]["value"] > 0.95
    assert run.evaluation["verdict"]["verdict"] == "supported"
    assert Card.load(run.path / "neurons.json").h_neurons == run.card.h_neurons
