"""Impact: what turning the H-Neurons up and down does to a model's behaviour (Gao et al. 2025, sec. 4).

Every benchmark is asked at every alpha with the H-Neurons, with random neurons and with the top neurons by mean
contribution; alpha = 1 once for all of them. A line a generation goes into RUN/impact/, the numbers into
RUN/impact.json. A killed study continues; more alphas, items or random sets only cost what is new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hneurons.answers.engine import Sampling
from hneurons.answers.llm import LLMClient
from hneurons.errors import TooFewExamplesError, UsageError
from hneurons.models.load import StudyModel
from hneurons.neurons.card import Card
from hneurons.progress import Progress, default_progress
from hneurons.results import Run
from hneurons.runfolder import Json, RunFolder, read_json, write_json
from hneurons.settings import ImpactSettings
from hneurons.studies.arms import Arm, make_arms
from hneurons.studies.benchmarks.base import Benchmark, ItemSet, OutcomeJudge
from hneurons.studies.benchmarks.registry import benchmark as named
from hneurons.studies.capability import Capability, load_sets, plain_text, windows
from hneurons.studies.compliance import Compliance, sampling_of
from hneurons.studies.evaluate import check_model, open_study, recorded_settings
from hneurons.studies.ledger import Ledger
from hneurons.studies.turned import OpenEngine, in_process

FORMAT = "hneurons.impact/1"
TOO_LONG = "longer than the model's context"
Source = str | Path | None
Wanted = (
    str | Benchmark | Sequence[str | Benchmark | tuple[str, Source]] | Mapping[str, Source] | Mapping[Benchmark, Source]
)
"""Benchmarks, by name or not, perhaps with their sources."""


def impact(
    run: Run | str | Path,
    benchmarks: Wanted,
    model: StudyModel | tuple[Any, Any] | str | None = None,
    settings: ImpactSettings | None = None,
    *,
    client: LLMClient | None = None,
    open_engine: OpenEngine | None = None,
    together: int = 1,
    progress: Progress | None = None,
) -> Run:
    """Ask benchmarks while the run's H-Neurons are turned, beside controls; writes impact.json and the report.

    Args:
        run: a run with a card.
        benchmarks: names (`falseqa`, `faitheval`, `sycophancy`, `sycophancy-mc`, `jailbreak`) or benchmarks; a mapping
            gives each its source: a file, `hub`, or None for the built-in items.
        model: the run's model, or where it is; loaded from where it was when not given.
        settings: alphas, number of random sets, limits.
        client: a language model that judges; its outcomes are then the headline, beside the rules'.
        open_engine: engines that turn neurons; transformers in this process by default.
        together: how many of those engines are in work at a time.
        progress: bars on a terminal by default.

    Returns:
        The run; the numbers are its `.impact`.

    Raises:
        CardError: there are no H-Neurons, or they are of another model.
        RunMismatchError: the folder holds a study of these benchmarks with other settings.
        JudgeError: a judge failed; what was generated is kept.
        TooFewExamplesError: a benchmark has no item that counts. The others were finished all the same.
    """
    run = run if isinstance(run, Run) else Run(run)
    settings = settings or ImpactSettings()
    progress = progress or default_progress()
    chosen = choose(benchmarks)
    card = run.card
    loaded = [(each, each.load(source, limit=settings.limit, seed=settings.seed)) for each, source in chosen.items()]
    study = open_study(run.manifest, model, progress)
    with RunFolder(run.path) as folder:
        folder.load()
        made = _Impact(folder, card, study, settings, client, open_engine or in_process(study), together, progress)
        made.run(loaded)
    if (run.path / "evaluation.json").exists():
        from hneurons.report.page import write_report

        write_report(run.path)
    if made.failed:
        raise made.failed[0]
    return Run(run.path)


def choose(benchmarks: Wanted, templates: str | Path | None = None) -> dict[Benchmark, Source]:
    """The benchmarks with their sources; `templates` is the file of Jailbreak's.

    Raises:
        UsageError: there is none of that name, or none was given, or one twice.
    """
    given = [(benchmarks, None)] if isinstance(benchmarks, str) else benchmarks
    if isinstance(given, Mapping):
        given = list(given.items())
    elif not isinstance(given, Sequence):
        given = [(given, None)]
    pairs = [each if isinstance(each, tuple) else (each, None) for each in given]
    chosen: dict[Benchmark, Source] = {}
    for each, source in pairs:
        own = templates if each == "jailbreak" else None
        chosen[named(each, templates=own) if isinstance(each, str) else each] = source
    if not pairs or len({each.name for each in chosen}) < len(pairs):
        raise UsageError("Give each benchmark once, and at least one.", "See `hneurons impact --help`.")
    if templates is not None and not any(each.name == "jailbreak" for each in chosen):
        raise UsageError("Templates belong to the benchmark jailbreak.", "Add --benchmark jailbreak.")
    return chosen


class _Impact:
    """The study over one run folder."""

    def __init__(
        self, folder: RunFolder, card: Card, model: StudyModel, settings: ImpactSettings, client: LLMClient | None,
        open_engine: OpenEngine, together: int, progress: Progress,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.model = model
        self.settings = settings
        self.client = client
        self.open_engine = open_engine
        self.together = together
        self.progress = progress
        self.failed: list[TooFewExamplesError] = []
        described = check_model(model, card, folder)
        self.card_hash = card.neurons_hash
        self.identity: Json = {
            "model": {key: described[key] for key in ("id", "revision", "config_hash", "dtype")},
            "card": self.card_hash,
            "seed": settings.seed,
        }
        self.arms = make_arms(card, folder.path, settings.random_sets, settings.seed)
        self.thinking = recorded_settings(folder.manifest).thinking
        self.path = folder / "impact.json"
        self.found: Json = read_json(self.path) if self.path.exists() else {}
        if self.found.get("card") != self.card_hash:
            self.found = {}
        self.found = {
            "format": FORMAT,
            "model": model.name,
            "card": self.card_hash,
            "notes": self._notes(),
            "benchmarks": self.found.get("benchmarks", {}),
            "capability": self.found.get("capability"),
        }

    def _notes(self) -> list[str]:
        notes: list[str] = []
        if not self.model.has_chat_template:
            notes.append(
                "The tokenizer has no chat template: conversations were asked as 'User: ... Assistant:', and a reply "
                "ends with its first line."
            )
        if not any(arm.kind == "top_contribution" for arm in self.arms):
            notes.append("The run has no features, so the top neurons by mean contribution are unknown.")
        return notes

    def run(self, chosen: Sequence[tuple[Benchmark, ItemSet]]) -> None:
        """Every benchmark, then the capability curve; impact.json is written after each."""
        for benchmark, items in chosen:
            try:
                self.found["benchmarks"][benchmark.name] = self.benchmark(benchmark, items)
            except TooFewExamplesError as error:
                self.failed.append(error)
                continue
            write_json(self.path, self.found)
        if self.settings.capability:
            self.found["capability"] = self.capability()
            write_json(self.path, self.found)

    def benchmark(self, benchmark: Benchmark, items: ItemSet) -> Json:
        """The object of one benchmark."""
        settings = self.settings
        sampling = sampling_of(benchmark, settings.seed, settings.max_new_tokens, self.thinking)
        items = self._fitting(items, sampling)
        rule = benchmark.rule_judge()
        asking = benchmark.llm_judge(self.client) if self.client else None
        if self.client and asking is None:
            self.progress.say(f"{benchmark.title} has no judge that asks a language model: judged by its rule.")
        judges: list[OutcomeJudge] = [asking, rule] if asking else [rule]
        identity = {
            **self.identity,
            "benchmark": benchmark.name,
            "decoding": asdict(sampling),
            "unscaled_turns": benchmark.unscaled_turns,
        }
        ledger = Ledger(self.folder, benchmark.name, identity)
        study = Compliance(
            benchmark, items, ledger, judges, sampling, self.open_engine,
            keep=settings.keep_outputs or not benchmark.private, chunk=settings.chunk,
            together=self.together,
        )  # fmt: skip
        total = len(items.items) * (1 + len(self.arms) * (len(settings.alphas) - 1))
        with self.progress.bar(f"Turning: {benchmark.title}", total) as tick:
            study.ask(self.arms, settings.alphas, tick)
        return {
            "title": benchmark.title,
            "compliant_means": benchmark.compliant_means,
            "private": benchmark.private,
            "source": items.source,
            "sha256": items.sha256,
            "settings": settings.model_dump(mode="json"),
            "decoding": asdict(sampling),
            **study.table(self.arms, settings.alphas, draws=settings.bootstrap, seed=settings.seed),
        }

    def _fitting(self, items: ItemSet, sampling: Sampling) -> ItemSet:
        """The items whose first prompt leaves room for the reply."""
        most = (
            getattr(self.model.model.config.get_text_config(decoder=True), "max_position_embeddings", None) or math.inf
        )
        fit = [i for i in items.items if len(self.model.prompt_ids((i.prompt,))) + sampling.steps <= most]
        if len(fit) == len(items.items):
            return items
        if not fit:
            raise UsageError("No item leaves room for a reply in the model's context.", "Lower --max-new-tokens.")
        dropped = {**items.dropped, TOO_LONG: len(items.items) - len(fit)}
        return replace(items, items=tuple(fit), dropped=dropped)

    def capability(self) -> Json:
        """The `capability` object."""
        settings = self.settings
        recorded = recorded_settings(self.folder.manifest)
        sampling = Sampling(
            0.0, max_new_tokens=recorded.max_new_tokens, seed=settings.seed, thinking=self.thinking or 0
        )
        sets, skipped = load_sets(settings.capability, settings.capability_limit, settings.seed)
        for name, why in skipped.items():
            self.progress.say(f"Without the questions {name}: {why['problem']} {why['remedy']}")
        ledger = Ledger(self.folder, "capability", {**self.identity, "decoding": asdict(sampling)})
        text = windows(self.model, plain_text())
        study = Capability(
            sets, skipped, text, ledger, sampling, self.open_engine, chunk=settings.chunk, together=self.together
        )
        arms: list[Arm] = self.arms if settings.capability_controls else self.arms[:1]
        with self.progress.bar("Turning: capability", study.rows(len(arms), len(settings.alphas))) as tick:
            study.ask(arms, settings.alphas, tick)
        found = study.table(arms, settings.alphas, draws=settings.bootstrap, seed=settings.seed)
        return {"settings": settings.model_dump(mode="json"), "decoding": asdict(sampling), **found}
