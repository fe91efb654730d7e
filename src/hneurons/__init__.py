"""Find the hallucination-associated neurons (H-Neurons) of a language model and say how well they predict.

    import hneurons as hn

    model = hn.load_model("smollm2-135m")
    run = hn.identify(model, questions="starter", out="runs/smol", settings=hn.demo_settings())
    print(run.verdict)
    run.card.h_neurons

The method is that of Gao et al. 2025 (arXiv:2512.01797). Names are imported when they are first used, so that
`import hneurons` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hneurons.errors import HNeuronsError
    from hneurons.live.export import export
    from hneurons.live.monitor import Monitor
    from hneurons.models.demo import pull
    from hneurons.models.load import StudyModel, load_model
    from hneurons.neurons.card import Card
    from hneurons.neurons.scaling import scale
    from hneurons.neurons.verify import verify
    from hneurons.questions.sources import load_questions
    from hneurons.report.page import write_report
    from hneurons.results import Run
    from hneurons.settings import IdentifySettings, ImpactSettings, demo_settings
    from hneurons.studies.identify import identify
    from hneurons.studies.impact import impact
    from hneurons.studies.origin import origin
    from hneurons.types import Question

_HOMES = {
    "Card": "hneurons.neurons.card",
    "HNeuronsError": "hneurons.errors",
    "IdentifySettings": "hneurons.settings",
    "ImpactSettings": "hneurons.settings",
    "Monitor": "hneurons.live.monitor",
    "Question": "hneurons.types",
    "Run": "hneurons.results",
    "StudyModel": "hneurons.models.load",
    "demo_settings": "hneurons.settings",
    "export": "hneurons.live.export",
    "identify": "hneurons.studies.identify",
    "impact": "hneurons.studies.impact",
    "load_model": "hneurons.models.load",
    "load_questions": "hneurons.questions.sources",
    "origin": "hneurons.studies.origin",
    "pull": "hneurons.models.demo",
    "scale": "hneurons.neurons.scaling",
    "verify": "hneurons.neurons.verify",
    "write_report": "hneurons.report.page",
}

__all__ = [
    "Card",
    "HNeuronsError",
    "IdentifySettings",
    "ImpactSettings",
    "Monitor",
    "Question",
    "Run",
    "StudyModel",
    "demo_settings",
    "export",
    "identify",
    "impact",
    "load_model",
    "load_questions",
    "origin",
    "pull",
    "scale",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hneurons' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
