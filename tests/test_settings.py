"""Settings: the paper's defaults, and a one-line error for anything misspelt or inconsistent."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hneurons.errors import UsageError
from hneurons.settings import DEMO_NOTE, DEMO_QUESTIONS, IdentifySettings, demo_settings, identify_settings


def test_defaults_are_the_papers():
    settings = identify_settings()
    assert (settings.samples, settings.needed) == (10, 10)
    assert (settings.temperature, settings.top_k, settings.top_p, settings.max_new_tokens) == (1.0, 50, 0.9, 50)
    assert (settings.per_class, settings.labelling) == (1000, "3-vs-1")


def test_none_stands_for_the_default():
    assert identify_settings(samples=None, C=None, top_p=None) == IdentifySettings()


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValidationError):
        identify_settings().samples = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["temprature", "Samples", "c", "top-k", "folds_"])
def test_a_misspelt_name_is_refused_by_name(name: str):
    with pytest.raises(UsageError, match=rf"^{name}: ") as caught:
        identify_settings(**{name: 3})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"agreement": 11}, "agreement 11 is more than samples 10"),
        ({"samples": 4, "agreement": 5}, "agreement 5 is more than samples 4"),
        ({"agreement": 5}, "more than half"),
        ({"samples": 3, "agreement": 1}, "more than half"),
        ({"train": 0.8, "validation": 0.2}, "test set"),
        ({"train": 0.9, "validation": 0.5}, "test set"),
        ({"samples": 0}, "samples: "),
        ({"samples": "many"}, "samples: "),
        ({"samples": 2.5}, "samples: "),
        ({"temperature": -0.1}, "temperature: "),
        ({"temperature": float("nan")}, "temperature: "),
        ({"top_p": 0}, "top_p: "),
        ({"top_p": 1.1}, "top_p: "),
        ({"C": 0}, "C: "),
        ({"C": float("nan")}, "C: "),
        ({"folds": 1}, "folds: "),
        ({"labelling": "2-vs-1"}, "labelling: "),
        ({"solver": "saga"}, "solver: "),
        ({"max_share": 0}, "max_share: "),
        ({"path_ratio": 1}, "path_ratio: "),
    ],
)
def test_wrong_values_are_one_line_usage_errors(values: dict[str, Any], says: str):
    with pytest.raises(UsageError) as caught:
        identify_settings(**values)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", ["C", "path_ratio"])
def test_infinity_is_refused(name: str):
    # Infinity is no number of JSON: run.json could not hold it.
    with pytest.raises(UsageError, match=name):
        identify_settings(**{name: float("inf")})


@pytest.mark.parametrize(("samples", "agreement", "needed"), [(10, 6, 6), (10, None, 10), (1, 1, 1), (3, 2, 2)])
def test_needed(samples: int, agreement: int | None, needed: int):
    assert identify_settings(samples=samples, agreement=agreement).needed == needed


def test_demo_settings_say_how_they_differ_from_the_paper():
    demo = demo_settings()
    assert demo.limit == DEMO_QUESTIONS
    assert demo_settings(50).limit == 50
    assert f"temperature {demo.temperature}" in DEMO_NOTE
    assert f"at most {demo.max_new_tokens} tokens" in DEMO_NOTE
    assert demo.temperature < IdentifySettings().temperature
