"""Origin: were these neurons there before instruction tuning? A run's card and weights against earlier checkpoints.

For each checkpoint (base models, pretraining steps, fine-tunes, quantised variants): backward transfer of the card,
drift of every neuron's weights up to the run's model and to the next checkpoint of the list, and the checkpoint's own
card. Answers and drift lie in RUN/origin, so that a killed study continues; the numbers are in RUN/origin.json.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hneurons.errors import RunError, UnsupportedModelError, UsageError
from hneurons.models.checkpoint import Checkpoint, open_checkpoint
from hneurons.models.load import load_model
from hneurons.neurons.card import Card
from hneurons.progress import Progress, default_progress
from hneurons.questions.sources import load_questions
from hneurons.results import Run
from hneurons.runfolder import Json, RunFolder, hash_json, package_versions, write_json
from hneurons.studies.backward import Asked, Backward, Plan, Yardstick, forward_and_back, lead_of, question_sets, stored
from hneurons.studies.collect import Tools
from hneurons.studies.controls import Controls
from hneurons.studies.evaluate import PER_CLASS, folder_name, recorded_settings, tools_of
from hneurons.studies.evolution import overlap
from hneurons.studies.pairs import check_pair, stored_drift, summary
from hneurons.studies.records import question_from_json
from hneurons.studies.tracing import verdict
from hneurons.types import Question

FORMAT = "hneurons.origin/1"
PROTOCOL = (
    "one sample a question, as many faithful as hallucinated; nothing that the probe was trained or calibrated on"
)


@dataclass(frozen=True)
class Loading:
    """How checkpoints are loaded: options of `load_model`."""

    dtype: str = "auto"
    device: str = "auto"
    ffn: str | None = None
    trust_remote_code: bool = False


def origin(
    run: Run | str | Path,
    base: str | Path | Sequence[str | Path],
    *,
    model: str | Path | None = None,
    few_shot: int | str | Path | None = None,
    chat: bool = False,
    own: bool = True,
    answers: bool = True,
    limit: int | None = None,
    per_class: int = PER_CLASS,
    tools: Tools | None = None,
    loading: Loading | None = None,
    progress: Progress | None = None,
) -> Run:
    """Trace the H-Neurons of a run to earlier checkpoints of its model; writes origin.json and the report.

    Args:
        run: a complete run.
        base: a checkpoint, or several in their order in time: hub ids (`ID`, `ID@REVISION`), folders, .gguf files or
            demo names.
        model: where the run's own model is, if it was a folder or a file.
        few_shot: for weak base models: so many of the run's training questions with their answers before each
            question, or a file of questions; they are asked nowhere.
        chat: ask checkpoints that have a chat template through it, instead of as base models.
        own: find each checkpoint's own card too, as an upper bound. Takes as long as the run itself did.
        answers: ask the checkpoints at all; otherwise only weights are compared, and no model is loaded.
        limit: ask this many questions of each data set at most.
        per_class: examples of each class after which sampling stops.
        tools: judge and span finder; those of the run by default.
        loading: dtype, device and so on of the checkpoints.
        progress: bars on a terminal by default.

    Raises:
        PairError: a checkpoint's shape or tokenizer isn't that of the run's model; says how they differ.
        HNeuronsError: another of its children, with the remedy in the message.
    """
    run = run if isinstance(run, Run) else Run(run)
    named = [base] if isinstance(base, str | Path) else list(base)
    with RunFolder(run.path) as folder:
        folder.load()
        study = _Origin(run, folder, loading or Loading(), progress or default_progress(), tools)
        study.open(named, model)
        study.plan(few_shot, chat, own and answers, limit, per_class)
        study.go(answers)
    from hneurons.report.page import write_report

    write_report(run.path)
    return Run(run.path)


@dataclass(frozen=True)
class _Stage:
    """A checkpoint of the list."""

    given: str
    """As it was asked for; what `load_model` gets."""
    revision: str | None
    checkpoint: Checkpoint
    notes: list[str]

    @property
    def label(self) -> str:
        """What tells it from other checkpoints of one name."""
        return f"{self.given}@{self.revision}" if self.revision else self.given

    @property
    def key(self) -> str:
        """Name of its folder: two checkpoints of one name have folders of their own."""
        return f"{folder_name(self.checkpoint.name)}-{self.checkpoint.fingerprint[:8]}"


class _Origin:
    """One study: a run and its list of checkpoints."""

    def __init__(self, run: Run, folder: RunFolder, loading: Loading, progress: Progress, tools: Tools | None) -> None:
        self.run = run
        self.folder = folder
        self.loading = loading
        self.progress = progress
        self.tools = tools or tools_of(run.manifest)
        self.evaluation = run.evaluation  # complains if the run isn't complete
        self.card = run.card
        self.stages: list[_Stage] = []
        self.controls: Controls | None = None  # fitted once, for all checkpoints

    # -- what is compared -------------------------------------------------------------------------

    def open(self, named: Sequence[str | Path], model: str | Path | None) -> None:
        """Read configs, headers and tokenizers of all checkpoints, and refuse what doesn't fit before anything runs."""
        if not named:
            raise UsageError("Give a checkpoint to compare with.", "See `hneurons origin --help`.")
        self.tuned = self._checkpoint(*self._own_model(model))
        self.card.check_fits(
            {
                "id": self.tuned.name, "architecture": type(self.tuned.network).__name__,
                **self.tuned.layout.describe(),
            }
        )  # fmt: skip
        rows = self.folder.journal("questions.jsonl").read()
        texts = [str(row["question"]) for row in rows]
        for given in map(str, named):
            name, at, revision = given.rpartition("@") if not Path(given).exists() else (given, "", "")
            place = (name, revision) if at else (given, None)
            checkpoint = self._checkpoint(*place)
            self.stages.append(_Stage(*place, checkpoint, check_pair(checkpoint, self.tuned, texts)))
        keys = [stage.key for stage in self.stages]
        twice = next((stage for stage in self.stages if keys.count(stage.key) > 1), None)
        if twice is not None:
            raise UsageError(f"{twice.given} is given twice.", "Give each checkpoint once.")

    def _own_model(self, given: str | Path | None) -> tuple[str, str | None]:
        recorded = self.run.manifest["model"]
        if given is not None:
            return str(given), None
        location = self.run.manifest.get("location")
        if location and Path(location).exists():
            return str(location), None
        if recorded["source"] not in ("hub", "demo"):
            raise UsageError(
                f"Where the run's model {recorded['id']!r} is isn't known (it was {location or recorded['source']}).",
                "Say where it is with --model.",
            )
        return str(recorded["id"]), recorded["revision"]

    def _checkpoint(self, model: str, revision: str | None) -> Checkpoint:
        options: dict[str, Any] = {"ffn": self.loading.ffn, "trust_remote_code": self.loading.trust_remote_code}
        return open_checkpoint(model, revision=revision, say=self.progress.say, **options)

    # -- how they are asked -----------------------------------------------------------------------

    def plan(self, few_shot: int | str | Path | None, chat: bool, own: bool, limit: int | None, per_class: int) -> None:
        """Choose few-shot questions and write the prompts down."""
        if chat and few_shot is not None:
            raise UsageError("Few-shot examples are for models asked without a chat template.", "Leave out --chat.")
        settings = recorded_settings(self.run.manifest)
        shown = self._shown(few_shot, settings.seed)
        self.asking = Plan(settings, per_class, limit, own, None if chat else lead_of(shown), shown)

    def _shown(self, few_shot: int | str | Path | None, seed: int) -> tuple[Question, ...]:
        if few_shot is None:
            return ()
        if not isinstance(few_shot, int) and not str(few_shot).isdigit():
            return load_questions(few_shot, seed=seed).questions
        rows = self.folder.journal("examples.jsonl").read()
        trained = {str(row["question_id"]) for row in rows if row["split"] == "train"}
        known = [
            question_from_json(row)
            for row in self.folder.journal("questions.jsonl").read()
            if row["id"] in trained and row["answers"]
        ]
        count = int(str(few_shot))
        if count > len(known):
            raise UsageError(f"The run has only {len(known)} training questions.", "Give fewer with --few-shot.")
        return tuple(random.Random(seed).sample(known, count))

    @property
    def style(self) -> str:
        """Name of the folder of answers to prompts of this kind."""
        if self.asking.lead is None:
            return "chat"
        return f"few-shot-{hash_json(self.asking.lead)[7:13]}" if self.asking.lead else "plain"

    # -- the study --------------------------------------------------------------------------------

    def go(self, answers: bool) -> None:
        """Compare weights, then ask each checkpoint; origin.json is written after each step of the list."""
        found: Json = {
            "format": FORMAT,
            "package": package_versions(),
            "model": {"id": self.tuned.name, "revision": self.tuned.revision, "dtype": self.tuned.dtype},
            "card": self.card.neurons_hash,
            "settings": {
                "prompt": "chat template" if self.asking.lead is None else "question, newline, 'Answer:'",
                "few_shot": [question.question for question in self.asking.shown],
                "per_class": self.asking.per_class, "limit": self.asking.limit, "own": self.asking.own,
                "protocol": PROTOCOL,
            },
            "checkpoints": [self._described(stage) for stage in self.stages],
            "overlap": None,
        }  # fmt: skip
        entries: list[Json] = found["checkpoints"]
        for stage, entry, after in zip(self.stages, entries, [*self.stages[1:], None], strict=True):
            entry["drift"] = self._drift(stage, None)
            entry["drift_to_next"] = entry["drift"] if after is None else self._drift(stage, after)
        sets: list[tuple[str, Any]] = [(self.tuned.name, self._columns(self.card))]
        if answers:
            self._say_cost()
        for stage, entry in zip(self.stages, entries, strict=True):
            if answers:
                card = self._ask(stage, entry)
                if card is not None:
                    sets.append((entry["name"], self._columns(card)))
                    found["overlap"] = overlap(sets, self.card.model.neurons)
            entry["verdict"] = verdict(entry, self._own_set)
            write_json(self.folder / "origin.json", found)

    @property
    def _own_set(self) -> str:
        return str(next(iter(self.run.manifest["data"])))

    def _described(self, stage: _Stage) -> Json:
        checkpoint = stage.checkpoint
        names = [other.checkpoint.name for other in self.stages]
        alike = names.count(checkpoint.name) > 1 or checkpoint.name == self.tuned.name or stage.revision is not None
        return {
            "name": stage.label if alike else checkpoint.name, "id": checkpoint.name, "source": checkpoint.source,
            "revision": checkpoint.revision, "dtype": checkpoint.dtype, "fingerprint": checkpoint.fingerprint,
            "folder": f"origin/{stage.key}", "notes": stage.notes, "datasets": {}, "own_card": None, "drift": None,
            "drift_to_next": None, "verdict": None,
        }  # fmt: skip

    def _columns(self, card: Card) -> Any:
        return card.columns[card.weights > 0]

    def _drift(self, before: _Stage, after: _Stage | None) -> Json:
        target = self.tuned if after is None else after.checkpoint
        place = self.folder / "origin" / before.key / f"drift-{target.fingerprint[:8]}"
        try:
            drift = stored_drift(place, before.checkpoint, target, self.progress)
        except UnsupportedModelError as error:
            # Packed weights still answer questions.
            return {"to": target.name, "problem": error.problem, "remedy": error.remedy}
        return {"to": target.name, **summary(drift, self.card, self.asking.settings.seed)}

    def _say_cost(self) -> None:
        counts, many = self.run.manifest["counts"], len(self.stages)
        sets = 1 + len(list((self.run.path / "on").glob("*/run.json")))
        most = f"at most {self.asking.limit:,}" if self.asking.limit else f"up to {counts['questions']:,}"
        text = (
            f"Asking {many} checkpoint{'s' * (many > 1)}: {most} questions of each of {sets} data sets, one sample each"
        )
        if self.asking.own:
            text += (
                f"; and for a card of its own up to {counts['responses']:,} samples or so (--no-own leaves that out)"
            )
        self.progress.say(text + ".")

    def _ask(self, stage: _Stage, entry: Json) -> Card | None:
        options: dict[str, Any] = {"dtype": self.loading.dtype, "device": self.loading.device, "ffn": self.loading.ffn}
        self.progress.say(f"Loading {stage.given}")
        loaded = load_model(
            stage.given, revision=stage.revision, trust_remote_code=self.loading.trust_remote_code,
            say=self.progress.say, **options,
        )  # fmt: skip
        asked_as = replace(loaded, lead=self.asking.lead)
        if asked_as.lead is None and not asked_as.has_chat_template:
            asked_as = replace(asked_as, lead="")
        place = self.folder / "origin" / stage.key / self.style
        back = Backward(place, asked_as, self.asking, self.tools, self.progress)
        yard = self._yardstick(asked_as)
        sets = question_sets(self.run, yard, self.asking.shown)
        if not sets[0].questions:
            raise RunError("The run's probe knows every question of the run.", "Identify with more questions.")
        entry["datasets"], entry["own_card"], card = forward_and_back(back, yard, sets, self._references(sets))
        entry["answers"] = str(place.relative_to(self.folder.path))
        return card

    def _yardstick(self, model: Any) -> Yardstick:
        """The run's card with its controls."""
        made = Yardstick(stored(self.folder.path, model, self.tools, self.progress), self.card)
        if self.controls is not None:
            made.controls = self.controls
        self.controls = made.controls
        return made

    def _references(self, sets: Sequence[Asked]) -> Json:
        datasets = self.evaluation["datasets"]
        return {s.name: datasets[s.name]["h_neurons"]["auroc"] for s in sets if s.name in datasets}
