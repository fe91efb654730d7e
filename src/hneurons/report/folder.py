"""The JSON files of a run folder, as the report reads them. Whatever they hold is text to it, whoever wrote it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hneurons.errors import RunError
from hneurons.neurons.card import neurons_hash
from hneurons.report.values import items, mapping, number
from hneurons.runfolder import Json, read_json, storage_errors

STAGES = {"path.json": "fit", "neurons.json": "fit", "evaluation.json": "evaluate"}
"""The files that make a run complete, and the stage that writes each."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Run:
    """The JSON files of one run folder; a file that is not there yet is empty."""

    run: Json
    path: Json
    card: Json
    evaluation: Json
    missing: tuple[str, ...]
    """Names of the files that are not there; those of the studies that only some runs have are not missed."""
    impact: Json = field(default_factory=dict[str, Any])
    """Empty in a run without an impact study."""
    origin: Json = field(default_factory=dict[str, Any])
    """Empty in a run without an origin study."""
    stale: tuple[str, ...] = ()
    """Studies whose file is of other H-Neurons than the card, and therefore empty here."""

    @property
    def unfinished(self) -> list[str]:
        """Stages that have not ended, in order; the report's own does not count."""
        states = {name: mapping(stage).get("state") for name, stage in mapping(self.run.get("stages")).items()}
        open_stages = [name for name, state in states.items() if state != "done" and name != "report"]
        return list(dict.fromkeys([*open_stages, *(STAGES[name] for name in self.missing)]))

    @property
    def datasets(self) -> list[tuple[str, Json]]:
        """Evaluated data sets by name, the one that the neurons were found on first."""
        found = mapping(self.run.get("settings")).get("questions")
        sets = [(name, mapping(value)) for name, value in mapping(self.evaluation.get("datasets")).items()]
        return sorted(sets, key=lambda item: item[0] != found)

    @property
    def neurons(self) -> list[Json]:
        """The card's well-formed entries, the largest weight first."""
        entries = [mapping(entry) for entry in items(self.card.get("neurons"))]
        entries = [e for e in entries if None not in (number(e.get(k)) for k in ("layer", "index", "weight"))]
        return sorted(entries, key=lambda e: (-e["weight"], e["layer"], e["index"]))

    @property
    def h_neurons(self) -> list[Json]:
        """Entries with a positive weight."""
        return [entry for entry in self.neurons if entry["weight"] > 0]


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
    names = ("path", "neurons", "evaluation", "impact", "origin")
    formats = {"neurons": "card"}
    there = {n: (run_dir / f"{n}.json").is_file() for n in names}
    files = {n: _read(run_dir / f"{n}.json", f"hneurons.{formats.get(n, n)}/1") if there[n] else {} for n in names}
    missing = tuple(name for name in STAGES if not there[name.removesuffix(".json")])
    run = _read(run_dir / "run.json", "hneurons.run/1")
    found = Run(run=run, path=files["path"], card=files["neurons"], evaluation=files["evaluation"], missing=missing,
                impact=files["impact"], origin=files["origin"])  # fmt: skip
    stale = {name: {} for name in ("impact", "origin") if _of_others(files[name], found)}
    return replace(found, stale=tuple(stale), **stale)


def _of_others(study: Json, run: Run) -> bool:
    """Whether a study is of other H-Neurons than those of the card; older versions didn't record whose."""
    if not run.card or study.get("card") is None:
        return False
    own = neurons_hash((e["layer"], number(e.get("expert")), e["index"], e["weight"]) for e in run.neurons)
    return study["card"] != own
