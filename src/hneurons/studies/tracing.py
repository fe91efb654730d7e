"""Tracing: the verdict on the origin of H-Neurons, by the rule of docs/verdict.md; change both together. No torch."""

from __future__ import annotations

from hneurons.intervals import above, shown
from hneurons.runfolder import Json
from hneurons.stats import minimum_detectable_auroc
from hneurons.studies.evolution import LESS, NOT_LESS
from hneurons.studies.existence import DETECTABLE, LEAST_PER_CLASS

SUPPORTED, PARTLY, NOT_SUPPORTED, TOO_LITTLE = "supported", "supported in part", "not supported", "too little data"
CHANCE, RANDOM, WEIGHTS = "predicts in the checkpoint", "better there than random neurons", "weights changed less"


def verdict(entry: Json, own_set: str) -> Json:
    """The verdict on one checkpoint of origin.json: `verdict`, `sentence`, `checks`.

    Args:
        entry: the checkpoint's object.
        own_set: name of the data set that the neurons were found on, which decides.
    """
    data, drift = entry["datasets"].get(own_set), entry["drift"]
    checks = [*_transfer(data), _weights(drift)]
    passed = {check["name"]: check["passed"] for check in checks}
    transfers = _and(passed[CHANCE], passed[RANDOM])
    if transfers is False and _too_small(data):
        transfers = None
    less = passed[WEIGHTS]
    if transfers and less:
        word = SUPPORTED
    elif transfers or less:
        word = PARTLY
    elif transfers is None or less is None:
        word = TOO_LITTLE
    else:
        word = NOT_SUPPORTED
    return {"verdict": word, "sentence": _sentence(word, transfers, data, drift), "checks": checks}


def _and(first: bool | None, second: bool | None) -> bool | None:
    return None if first is None or second is None else first and second


def _too_small(data: Json) -> bool:
    """Whether an effect worth having could have been missed."""
    return minimum_detectable_auroc(data["hallucinated"], data["faithful"]) > DETECTABLE


def _transfer(data: Json | None) -> list[Json]:
    if data is None or "problem" in data:
        detail = "not asked" if data is None else str(data["problem"])
        return [{"name": name, "passed": None, "detail": detail} for name in (CHANCE, RANDOM)]
    auroc = data["h_neurons"]["auroc"]
    differences = [data["random"][kind]["difference"] for kind in ("uniform", "layer_matched")]
    enough = min(data["faithful"], data["hallucinated"]) >= LEAST_PER_CLASS
    few = "" if enough else f"; fewer than {LEAST_PER_CLASS} answers of a class"
    return [
        {
            "name": CHANCE,
            "passed": above(auroc, 0.5) if enough else None,
            "detail": f"AUROC {shown(auroc)}; its interval must lie above 0.5{few}",
        },
        {
            "name": RANDOM,
            "passed": all(above(difference, 0.0) for difference in differences) if enough else None,
            "detail": f"AUROC difference {shown(differences[0])} to uniform and {shown(differences[1])} to "
            f"layer-matched sets; both intervals must lie above 0{few}",
        },
    ]


def _weights(drift: Json) -> Json:
    detail = str(drift.get("sentence") or drift.get("problem"))
    word = drift.get("finding")
    return {"name": WEIGHTS, "passed": True if word == LESS else False if word == NOT_LESS else None, "detail": detail}


def _sentence(word: str, transfers: bool | None, data: Json | None, drift: Json) -> str:
    says = str(drift.get("sentence") or drift.get("problem"))
    if transfers is None:
        first = "Whether the neurons predict there can't be said."
        if data is None:
            first = "The checkpoint was not asked."
    else:
        assert data is not None
        auroc = shown(data["h_neurons"]["auroc"])
        first = f"The unchanged neurons predict in its answers better than random ones: AUROC {auroc}."
        if not transfers:
            first = (
                f"The unchanged neurons aren't seen to predict in its answers better than random ones: AUROC {auroc}."
            )
    return f"{word.capitalize()}: {first[0].lower()}{first[1:]} {says}"
