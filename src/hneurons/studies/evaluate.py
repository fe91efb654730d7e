"""Evaluate: a finished run's H-Neurons on other data sets, one sample a question (Gao et al. 2025, sec. 3.4).

Every data set has a folder of its own inside the run, RUN/on/NAME, with the files of a run up to its features, so
that a killed evaluation continues. The numbers go into the run's evaluation.json.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hneurons.answers.judge import JUDGES
from hneurons.answers.normalise import normalise
from hneurons.errors import HNeuronsError, RunError, TooFewExamplesError, UsageError
from hneurons.models.load import StudyModel, as_study_model
from hneurons.models.outline import Outline
from hneurons.neurons.card import Card
from hneurons.neurons.choose import TrainingData
from hneurons.progress import Progress, default_progress
from hneurons.questions.sources import QuestionSet, load_questions
from hneurons.results import Run
from hneurons.runfolder import Json, RunFolder, hash_json, write_json
from hneurons.settings import IdentifySettings
from hneurons.studies.collect import Collection, Tools
from hneurons.studies.judging import LLM, Judging, agree, needs_agreement
from hneurons.studies.records import question_from_json
from hneurons.studies.review import Reviewer
from hneurons.studies.transfer import warning
from hneurons.types import Label, Verdict

PER_CLASS = 500
LEAST = 10
PROTOCOL = "one sample a question, as many faithful as hallucinated"


def evaluate_run(
    run: Run | str | Path,
    on: Sequence[str | Path | QuestionSet],
    model: StudyModel | tuple[Any, Any] | str | None = None,
    *,
    tools: Tools | None = None,
    limit: int | None = None,
    per_class: int = PER_CLASS,
    progress: Progress | None = None,
) -> Run:
    """Score the unchanged card of a run on other data sets, beside controls; adds them to its evaluation.json.

    Questions that the run asked are left out. The responses are sampled with the run's own settings, one a question,
    until both classes hold `per_class`; then as many faithful as hallucinated are kept.

    Args:
        run: a complete run.
        on: names, files or question sets.
        model: the run's model, or where it is; loaded from where it was when not given.
        tools: engine, judge and span finder; those of the run by default.
        limit: ask a random sample of this many questions of each data set.
        per_class: examples of each class after which sampling stops.
        progress: bars on a terminal by default.

    Raises:
        CardError: the model isn't the run's.
        TooFewExamplesError: a data set gave too few examples of a class. The others were evaluated all the same, and
            what was sampled is kept.
    """
    run = run if isinstance(run, Run) else Run(run)
    progress = progress or default_progress()
    settings = recorded_settings(run.manifest)
    sets = [load_questions(s, limit=None, seed=settings.seed) if not isinstance(s, QuestionSet) else s for s in on]
    names = Counter(questions.name for questions in sets)
    if not sets or max(names.values()) > 1:
        raise UsageError("Give each data set once, and at least one.", "See `hneurons evaluate --help`.")
    study = open_study(run.manifest, model, progress)
    with RunFolder(run.path) as folder:
        folder.load()
        evaluation = run.evaluation  # complains if the run isn't complete
        card = run.card
        check_model(study, card, folder)
        tools = tools or tools_of(run.manifest)
        asked = _Asked.of(folder)
        rows = folder.journal("questions.jsonl").read()
        known = tuple(map(question_from_json, rows))
        own = Collection(folder, study, QuestionSet("own", known), settings, tools, progress)
        reviewer = Reviewer(own, card)
        changed = {"samples": 1, "agreement": None, "per_class": per_class, "limit": limit}
        parts: list[tuple[QuestionSet, _Evaluation, int]] = []
        for questions in sets:
            fresh, seen = asked.leave_out(questions, limit)
            part = _Evaluation(run, study, fresh, settings.model_copy(update=changed), tools, progress)
            parts.append((questions, part, seen))
        if isinstance(study, Outline):
            # Everything is sampled before the engine makes room for the weights in transformers.
            for _, part, _ in parts:
                part.sample()
        failed: list[HNeuronsError] = []
        for questions, part, seen in parts:
            try:
                result = part.run(reviewer)
            except TooFewExamplesError as error:
                failed.append(error)
                continue
            key = questions.name if questions.name not in run.manifest["data"] else f"{questions.name} (single samples)"
            evaluation["datasets"][key] = {**result, "already_asked": seen}
            if outside := warning(result["outside_domains"]):
                progress.say(f"{questions.name}: {outside}")
            write_json(folder / "evaluation.json", evaluation)
        trained = _parts(run, own)
        if len(trained) > 1:
            evaluation["transfer_between_sets"] = reviewer.transfer(trained)
            write_json(folder / "evaluation.json", evaluation)
    from hneurons.report.page import write_report

    write_report(run.path)
    if failed:
        raise failed[0]
    return Run(run.path)


def recorded_settings(manifest: Json) -> IdentifySettings:
    """The settings of a run, as its manifest holds them."""
    known = IdentifySettings.model_fields
    return IdentifySettings(**{key: value for key, value in manifest["settings"].items() if key in known})


def open_study(
    manifest: Json,
    model: StudyModel | tuple[Any, Any] | str | None,
    progress: Progress,
    *,
    trust_remote_code: bool = False,
) -> StudyModel:
    """The model given, or that of a run, loaded from where it is said to be or was; told to think if the run's was."""
    loaded: Any = model
    if model is None or isinstance(model, str):
        loaded = load_model_of(manifest, progress, model, trust_remote_code=trust_remote_code)
    return replace(as_study_model(loaded), thinking=recorded_settings(manifest).thinking is not None)


def check_model(study: StudyModel, card: Card, folder: RunFolder) -> Json:
    """The description of the model, which is that of the run.

    Raises:
        CardError: the card is of another model.
        RunError: the run is.
    """
    described = study.describe()
    card.check_fits(described)
    if described["config_hash"] != folder.manifest["model"]["config_hash"]:
        raise RunError(f"{study.name} is not the model of {folder.path}: its configuration differs.", "Give that one.")
    return described


def load_model_of(
    manifest: Json,
    progress: Progress,
    at: str | None = None,
    *,
    device: str = "auto",
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> StudyModel:
    """Load the model that a run recorded.

    Args:
        manifest: of the run.
        progress: says what is loaded.
        at: where the model is, if not where it was.
        device: where to put it; see `load_model`.
        dtype: if not the run's; see `load_model`.
        trust_remote_code: see `load_model`; never taken from the run.

    Raises:
        UsageError: it was an object in memory, or has gone from where it was.
    """
    from hneurons.models.load import load_model

    where, loading = loading_recorded(manifest, at, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    progress.say(f"Loading {where}")
    return load_model(where, say=progress.say, **loading)


def loading_recorded(
    manifest: Json,
    at: str | None = None,
    *,
    device: str = "auto",
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[str, dict[str, Any]]:
    """Where the model that a run recorded is, and the options of `load_model`; arguments as for `load_model_of`.

    Raises:
        UsageError: it was an object in memory, or has gone from where it was.
    """
    model, where = manifest["model"], at or manifest.get("location") or manifest["model"]["id"]
    if model["source"] == "object" and at is None:
        raise UsageError(f"The run's model {model['id']!r} was given as an object.", "Pass it as `model` in Python.")
    if at is None and model["source"] in ("folder", "gguf") and not Path(where).exists():
        raise UsageError(f"The run's model isn't at {where} any more.", "Say where it is with --model.")
    return str(where), {
        "dtype": dtype or model["dtype"],
        "device": device,
        "revision": model["revision"],
        "ffn": manifest.get("ffn"),
        "trust_remote_code": trust_remote_code,
    }


def recorded_judging(manifest: Json) -> Judging:
    """Judge and span finder by the names that a run recorded.

    Raises:
        UsageError: they can't be told from their names.
    """
    names = [str(manifest["settings"][key]) for key in ("judge", "span_finder")]
    models = {name.partition(":")[2] for name in names if name.startswith(f"{LLM}:")}
    short = [LLM if name.startswith(f"{LLM}:") else name for name in names]
    try:
        return Judging(short[0], short[1], {**(manifest.get("judge") or {}), "model": next(iter(models), None)})
    except UsageError as error:
        raise UsageError(
            f"The run was judged by {names[0]!r} and marked by {names[1]!r}, which are no names known here.",
            "Give `tools` in Python, or --judge and --spans.",
        ) from error


def tools_of(manifest: Json) -> Tools:
    """Judge and span finder of a run that asked no language model.

    Raises:
        UsageError: it asked one, or they can't be told from their names.
    """
    chosen = recorded_judging(manifest)
    if chosen.asks:
        raise UsageError(
            "The run asked a language model to judge.", "Give `tools` (see `open_tools`), or use the command."
        )
    return Tools(judge=JUDGES[chosen.judge]())


@dataclass(frozen=True)
class _Asked:
    """What the run asked its model: text of the questions, normalised."""

    texts: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, folder: RunFolder) -> _Asked:
        answered = {str(row["question_id"]) for row in folder.journal("responses.jsonl").read()}
        rows = folder.journal("questions.jsonl").read()
        return cls(frozenset(normalise(str(row["question"])) for row in rows if str(row["id"]) in answered))

    def leave_out(self, questions: QuestionSet, limit: int | None) -> tuple[QuestionSet, int]:
        """The questions that are new to the run, at most `limit`; and how many were not."""
        new = [question for question in questions.questions if normalise(question.question) not in self.texts]
        seen = len(questions.questions) - len(new)
        if not new:
            raise UsageError(
                f"The run has already asked every question of {questions.name}.",
                "Give questions that it did not ask, or identify with --limit, which leaves some over.",
            )
        return replace(questions, questions=tuple(new[:limit])), seen


def _parts(run: Run, own: Collection) -> dict[str, TrainingData]:
    """The run's own examples and those of every data set that it was evaluated on, for the transfer matrix."""
    parts = {next(iter(run.manifest["data"])): own.training(None)}
    for path in sorted((run.path / "on").glob("*/run.json")):
        folder = RunFolder(path.parent)
        manifest = folder.load()
        if folder.done("extract"):
            name = next(iter(manifest["data"]))
            settings = recorded_settings(manifest)
            data = Collection(folder, own.model, QuestionSet(name, ()), settings, own.tools, own.progress)
            parts[name if name not in parts else f"{name} (single samples)"] = data.training(None)
    return parts


class _Evaluation:
    """One data set."""

    def __init__(
        self, run: Run, model: StudyModel, questions: QuestionSet, settings: IdentifySettings, tools: Tools,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.folder = RunFolder(run.path / "on" / folder_name(questions.name))
        self.data = Collection(self.folder, model, questions, settings, tools, progress, held_out=True)

    def sample(self) -> None:
        """The first stage alone."""
        with self.folder:
            self.data.start([], purpose="evaluation")
            self.data.run([self.data.sample])

    def run(self, reviewer: Reviewer) -> Json:
        """All stages, and the object of evaluation.json."""
        data = self.data
        with self.folder:
            data.start([], purpose="evaluation")
            stages = [data.sample, self.examples, data.extract, data.read_out]
            data.run([*stages, self.agree] if needs_agreement(data.tools) else stages)
            result = reviewer.dataset(data, "test")
            return {**result, "split": "all", "protocol": PROTOCOL, "answers": verdict_counts(self.folder)}

    def agree(self) -> None:
        """agreement.json: how far the judge agrees with the rules."""
        agree(self.data)

    def examples(self) -> None:
        """examples.jsonl: as many faithful as hallucinated examples."""
        keep_balanced(self.data)


def folder_name(name: str) -> str:
    """A name as a folder can have it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or hash_json(name)[-12:]


def keep_balanced(data: Collection) -> None:
    """examples.jsonl: as many faithful as hallucinated examples.

    Raises:
        TooFewExamplesError: there are too few of a class.
    """
    found = Counter(example.label for example in data.make(data.settings.per_class).examples)
    smallest = min(found[label] for label in Label)
    if smallest < LEAST:
        raise TooFewExamplesError(
            f"{data.questions.name}: only {found[Label.FAITHFUL]} faithful and {found[Label.HALLUCINATED]} "
            f"hallucinated examples among {len(data.questions.questions)} questions; {LEAST} of each needed.",
            "Ask more or other questions; what was sampled is kept.",
        )
    data.keep(data.make(smallest).examples)


def verdict_counts(folder: RunFolder) -> Json:
    """How many responses got each verdict: the model's accuracy on this data set, refusals counted apart."""
    rows = folder.journal("responses.jsonl").read()
    counts = Counter(str(row["verdict"]) for row in rows)
    return {str(verdict): counts[str(verdict)] for verdict in Verdict}
